//! Whole exports of tiny students, run by ONNX Runtime through the runtime library, held to a plain f64 decoder.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use export::bundle::options::{MixedPrecision, Options};
use export::bundle::reranker::{self, RerankerOptions};
use export::quantise::mixed::MixedLayers;
use models::manifest::{GraphKind, Manifest, Precision};
use models::student::{Form, Residual};
use runtime::bundle::Bundle;
use runtime::encoder::{Embedding, Encoder};
use runtime::session::{Element, Graph, Port, SessionOptions, Values};
use std::collections::HashSet;
use std::sync::Arc;
use support::graphs::{graph, node_names, parity, takes_fused};
use support::{DOCUMENTS, Fixture, Plan, configs, export, onnxruntime};

/// Every family, both forms, both residuals: one wrong wire, and a robot ranks plausibly and wrongly for ever.
#[test]
fn every_architecture_means_what_the_reference_means() {
    if !onnxruntime() {
        return;
    }
    let plans = [(Form::Relu, Residual::LastToken), (Form::Gated, Residual::Pooled)];
    for (name, config) in configs() {
        for (form, residual) in plans {
            for kind in [GraphKind::Fused, GraphKind::Portable] {
                if kind == GraphKind::Fused && !takes_fused(&config) {
                    continue;
                }
                let mut fixture = Fixture::new(&Plan {
                    config: config.clone(),
                    layers: vec![0, 3, 1],
                    form,
                    residual,
                    four_bits: false,
                    query_adapter: false,
                    idle_layer: false,
                    outlier_channel: 1.0,
                });
                fixture.options.graph = kind;
                let manifest = export(&fixture.options).unwrap_or_else(|error| panic!("{name}: {error}"));
                let (cosine, relative) =
                    (parity(&manifest, "embedding_cosine_min"), parity(&manifest, "embedding_relative_max"));
                assert!(cosine > 0.999_999 && relative < 1e-5, "{name}: {}", manifest.parity);
                assert!(parity(&manifest, "score_difference_max") < 1e-4, "{name}: {}", manifest.parity);
                assert!(parity(&manifest, "unfolded_difference_max") < 1e-4, "{name}: {}", manifest.parity);
                assert_eq!(manifest.golden.len(), 4);
                // What was returned is what was written, and opens.
                assert_eq!(Manifest::open(&fixture.options.out).unwrap(), manifest);
            }
        }
    }
}

/// Queries take the adapter's branches and look back on a prompt that was read through them; documents meet neither, so an
/// index made without the adapter would be the same.
#[test]
fn queries_alone_take_the_adapter() {
    if !onnxruntime() {
        return;
    }
    for (name, config) in configs() {
        for (kind, residual) in
            [(GraphKind::Fused, Residual::Pooled), (GraphKind::Portable, Residual::LastToken)]
        {
            if kind == GraphKind::Fused && !takes_fused(&config) {
                continue;
            }
            let exported = |query_adapter: bool| {
                let plan = Plan { config: config.clone(), residual, query_adapter, ..Plan::llama() };
                let mut fixture = Fixture::new(&plan);
                fixture.options.graph = kind;
                let manifest = export(&fixture.options).unwrap_or_else(|error| panic!("{name}: {error}"));
                (fixture, manifest)
            };
            let ((adapted, manifest), (plain, _)) = (exported(true), exported(false));
            // The goldens are the reference's, whose query side has the adapter merged in.
            assert!(parity(&manifest, "embedding_cosine_min") > 0.999_999, "{name}: {}", manifest.parity);
            assert!(parity(&manifest, "embedding_relative_max") < 1e-5, "{name}: {}", manifest.parity);
            assert_eq!(manifest.encoder.query_adapter_rank, Some(3));
            let open = |fixture: &Fixture| {
                let bundle = Arc::new(Bundle::open(&fixture.options.out).unwrap());
                Encoder::open(bundle, &SessionOptions::default()).unwrap()
            };
            let (adapted, plain) = (open(&adapted), open(&plain));
            let latents = |encoder: &Encoder| encoder.documents(&[DOCUMENTS[0]]).unwrap()[0].latent.clone();
            let apart =
                |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            assert!(apart(&latents(&adapted), &latents(&plain)) < 1e-5, "{name}: documents took the adapter");
            let query = |encoder: &Encoder| encoder.query(support::QUERIES[0]).unwrap().latent;
            assert!(
                apart(&query(&adapted), &query(&plain)) > 0.01,
                "{name}: queries did not take the adapter"
            );
        }
    }
}

/// A tokenizer of another model must be refused before its ids are looked up as rows that are not there, and nothing of
/// the bundle may be left.
#[test]
fn a_reranker_with_another_models_tokenizer_is_refused() {
    let fixture = Fixture::new(&Plan::llama());
    support::edit_json(&fixture.file("tokenizer.json"), |tokenizer| {
        tokenizer["model"]["vocab"]["foreign"] = 5000.into();
    });
    let Options { student, out, precision, graph, allow_degraded, session, .. } = fixture.options.clone();
    let options = RerankerOptions { teacher: student, out, precision, graph, allow_degraded, session };
    let refused = reranker::export(&options, &mut |_| {}).unwrap_err().to_string();
    assert!(refused.contains("`foreign` has id 5000"), "{refused}");
    assert!(!options.out.exists());
}

/// What a kind of graph cannot express must be refused before minutes of work and gigabytes are spent on it.
#[test]
fn kinds_of_graph_refuse_what_they_cannot_express() {
    let (_, mistral) = configs().into_iter().find(|(name, _)| *name == "mistral").unwrap();
    let fixture = Fixture::new(&Plan { config: mistral, ..Plan::llama() });
    assert!(fixture.refusal().contains("`head_dim` is 6"));
    let mut fixture = Fixture::new(&Plan::llama());
    fixture.options.precision = Precision::Int4;
    fixture.options.graph = GraphKind::Portable;
    assert!(fixture.refusal().contains("--graph fused"));
    fixture.options.precision = Precision::Fp32;
    fixture.options.calibration = Some(fixture.write_data());
    assert!(fixture.refusal().contains("--calibrate is for"));
    fixture.options.calibration = None;
    fixture.options.mixed_precision = MixedPrecision::Layers(MixedLayers::parse("0").unwrap());
    assert!(fixture.refusal().contains("--mixed-precision is for"));
    fixture.options.precision = Precision::Int8;
    fixture.options.mixed_precision = MixedPrecision::Layers(MixedLayers::parse("1,99").unwrap());
    assert!(fixture.refusal().contains("--mixed-precision 99: this student's encoder has layers 0 to"));
}

/// If padding reaches a real token or the pooling, recall falls only where texts share a batch, and no error is seen.
#[test]
fn a_text_alone_and_in_a_padded_batch_is_the_same() {
    if !onnxruntime() {
        return;
    }
    for (name, config) in configs() {
        let (form, residual) = (Form::Gated, Residual::LastToken);
        let mut fixture =
            Fixture::new(&Plan { config, layers: vec![1, 2, 3], form, residual, ..Plan::llama() });
        fixture.options.graph = GraphKind::Portable;
        export(&fixture.options).unwrap();
        let bundle = Arc::new(Bundle::open(&fixture.options.out).unwrap());
        let encoder = Encoder::open(bundle, &fixture.options.session).unwrap();
        let together = encoder.documents(DOCUMENTS).unwrap();
        let close =
            |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-5 * (1.0 + a.abs()));
        for (text, batched) in DOCUMENTS.iter().zip(&together) {
            let alone: Embedding = encoder.documents(&[text]).unwrap().swap_remove(0);
            assert!(close(&alone.latent, &batched.latent), "{name}: `{text}`");
            let answers = (alone.answer.unwrap(), batched.answer.as_ref().unwrap());
            assert!(close(&answers.0, answers.1), "{name}: last token of `{text}`");
        }
    }
}

/// A foreign graph is understood by its own inputs and outputs; if they are read wrongly, a good graph is refused or a foreign one
/// gets the wrong input.
#[test]
fn a_graph_tells_what_it_takes_and_gives() {
    if !onnxruntime() {
        return;
    }
    let (_, config) = configs().swap_remove(0);
    let plan = Plan { config, layers: vec![1, 2], residual: Residual::Pooled, ..Plan::llama() };
    let fixture = Fixture::new(&plan);
    export(&fixture.options).unwrap();
    let load = || Graph::load(&fixture.options.out.join("encoder.onnx"), &fixture.options.session).unwrap();
    let graph = load();
    let inputs = graph.inputs();
    assert_eq!(
        inputs.iter().map(|input| input.name.as_str()).collect::<Vec<_>>(),
        ["input_ids", "attention_mask", "prefix"]
    );
    assert_eq!((inputs[0].element, inputs[0].description.as_str()), (Some(Element::Int64), "int64 [?, ?]"));
    let output = &graph.outputs()[0];
    assert_eq!((output.element, &output.dims), (Some(Element::Float32), &vec![None, Some(32)]));
    // Its own words make a session; less than it takes, or more than it gives, does not.
    let ports = |names: &[&str]| -> Vec<Port> {
        let dims = |name| if name == "prefix" { vec![Some(1)] } else { vec![None, None] };
        names.iter().map(|name| Port::new((*name).to_owned(), Element::Int64, dims(*name))).collect()
    };
    let all = ["input_ids", "attention_mask", "prefix"];
    let output = Port::new(output.name.clone(), Element::Float32, output.dims.clone());
    let session = graph.session(ports(&all), vec![output.clone()]).unwrap();
    let (ids, shape) = ([1i64, 2, 3], [1usize, 3]);
    let filled =
        [(Values::Int64(&ids), &shape[..]), (Values::Int64(&[1; 3]), &shape), (Values::Int64(&[0]), &[1])];
    assert_eq!(session.run(&filled).unwrap()[0].shape, [1, 32]);
    let error = load().session(ports(&all[..2]), vec![output]).unwrap_err().to_string();
    assert!(error.contains("input `prefix` is unknown"), "{error}");
    let more = vec![Port::new("logits", Element::Float32, [None, None])];
    let error = load().session(ports(&all), more).unwrap_err().to_string();
    assert!(error.contains("output `logits` is missing"), "{error}");
}

/// A pooled student pays for the layers it reads, not for those above.
#[test]
fn layers_above_the_deepest_latent_are_not_exported() {
    if !onnxruntime() {
        return;
    }
    for (layers, kept) in [(vec![0], 0), (vec![1, 0], 1), (vec![2, 2], 2)] {
        let plan = Plan { layers, residual: Residual::Pooled, ..Plan::llama() };
        let fixture = Fixture::new(&plan);
        let manifest = export(&fixture.options).unwrap();
        assert_eq!(manifest.encoder.layers, kept);
        let graph = graph(&fixture.options.out.join("encoder.onnx"));
        for layer in 0..3 {
            let prefix = format!("/model/layers.{layer}/");
            let found = node_names(&graph).iter().any(|name| name.starts_with(&prefix));
            assert_eq!(found, layer < kept, "layer {layer} of {kept}");
        }
        assert!(!graph.initializer.iter().any(|t| t.name.as_deref() == Some("model.norm.weight")));
        assert_eq!(graph.output.len(), 1);
    }
}

/// A graph that cannot be read in Netron cannot be checked by a person.
#[test]
fn names_are_unique_and_say_where_they_belong() {
    if !onnxruntime() {
        return;
    }
    let kinds = [
        (Precision::Fp32, GraphKind::Portable),
        (Precision::Fp32, GraphKind::Fused),
        (Precision::Int8, GraphKind::Portable),
        (Precision::Int4, GraphKind::Fused),
    ];
    for (precision, kind) in kinds {
        let mut fixture = Fixture::new(&Plan::llama());
        fixture.options.precision = precision;
        fixture.options.graph = kind;
        fixture.options.allow_degraded = true;
        export(&fixture.options).unwrap();
        for file in ["encoder.onnx", "predictor.onnx"] {
            let graph = graph(&fixture.options.out.join(file));
            let names = node_names(&graph);
            assert_eq!(names.len(), graph.node.len());
            assert_eq!(names.iter().collect::<HashSet<_>>().len(), names.len());
            for (node, name) in graph.node.iter().zip(names) {
                let op = node.op_type.as_deref().unwrap();
                assert!(name.starts_with('/') && name.ends_with(&format!("/{op}")), "{name}");
                assert!(!name.chars().any(char::is_whitespace), "{name}");
            }
            let weights: Vec<_> = graph.initializer.iter().filter_map(|t| t.name.as_deref()).collect();
            assert_eq!(weights.iter().collect::<HashSet<_>>().len(), graph.initializer.len());
            let known = |name: &&str| name.starts_with("/constants/") || name.split('.').count() >= 2;
            assert!(weights.iter().all(known), "{weights:?}");
            assert!(!weights.iter().any(|name| name.contains("lm_head")));
        }
        let encoder = graph(&fixture.options.out.join("encoder.onnx"));
        let names = node_names(&encoder);
        let attention = match kind {
            GraphKind::Portable => "/model/layers.2/self_attn/Softmax",
            GraphKind::Fused => "/model/layers.2/self_attn/GroupQueryAttention",
        };
        for expected in ["/model/embed_tokens/Gather", "/prefix/Split", attention, "/pooling/Concat"] {
            assert!(names.contains(&expected), "{expected}");
        }
        // Other engines know the standard only.
        let foreign = encoder.node.iter().filter(|node| node.domain.is_some()).count();
        assert_eq!(foreign > 0, kind == GraphKind::Fused, "{foreign} operators of ONNX Runtime's own");
    }
}
