//! Whole exports of tiny students, run by ONNX Runtime through the runtime library, held to a plain f64 decoder.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use export::onnx::{GraphProto, ModelProto};
use models::manifest::{Batching, Manifest, Precision};
use models::student::{Form, Residual};
use prost::Message;
use runtime::bundle::Bundle;
use runtime::encoder::{Embedding, Encoder};
use runtime::session::{Element, Graph, Port, Values};
use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use support::{DOCUMENTS, Fixture, Plan, configs, export, onnxruntime};

fn graph(file: &Path) -> GraphProto {
    ModelProto::decode(fs::read(file).unwrap().as_slice()).unwrap().graph.unwrap()
}

fn node_names(graph: &GraphProto) -> Vec<&str> {
    graph.node.iter().filter_map(|node| node.name.as_deref()).collect()
}

fn parity(manifest: &Manifest, what: &str) -> f64 {
    manifest.parity[what].as_f64().unwrap()
}

/// Every family, both forms, both residuals: one wrong wire, and a robot ranks plausibly and wrongly for ever.
#[test]
fn every_architecture_means_what_the_reference_means() {
    if !onnxruntime() {
        return;
    }
    let plans = [(Form::Relu, Residual::LastToken), (Form::Gated, Residual::Pooled)];
    for (name, config) in configs() {
        for (form, residual) in plans {
            let fixture =
                Fixture::new(&Plan { config: config.clone(), layers: vec![0, 3, 1], form, residual });
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

/// If padding reaches a real token or the pooling, recall falls only where texts share a batch, and no error is seen.
#[test]
fn a_text_alone_and_in_a_padded_batch_is_the_same() {
    if !onnxruntime() {
        return;
    }
    for (name, config) in configs() {
        let (form, residual) = (Form::Gated, Residual::LastToken);
        let fixture = Fixture::new(&Plan { config, layers: vec![1, 2, 3], form, residual });
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

/// A graph of somebody else's making is understood by what it says of itself; told wrongly, a good one is refused or a
/// foreign one fed.
#[test]
fn a_graph_tells_what_it_takes_and_gives() {
    if !onnxruntime() {
        return;
    }
    let (_, config) = configs().swap_remove(0);
    let plan = Plan { config, layers: vec![1, 2], form: Form::Relu, residual: Residual::Pooled };
    let fixture = Fixture::new(&plan);
    export(&fixture.options).unwrap();
    let load = || Graph::load(&fixture.options.out.join("encoder.onnx"), &fixture.options.session).unwrap();
    let graph = load();
    let inputs = graph.inputs();
    assert_eq!(
        inputs.iter().map(|input| input.name.as_str()).collect::<Vec<_>>(),
        ["input_ids", "attention_mask", "pooling_mask"]
    );
    assert_eq!((inputs[0].element, inputs[0].description.as_str()), (Some(Element::Int64), "int64 [?, ?]"));
    let output = &graph.outputs()[0];
    assert_eq!((output.element, &output.dims), (Some(Element::Float32), &vec![None, Some(32)]));
    // Its own words make a session; less than it takes, or more than it gives, does not.
    let ports = |names: &[&str]| -> Vec<Port> {
        names.iter().map(|name| Port::new((*name).to_owned(), Element::Int64, [None, None])).collect()
    };
    let all = ["input_ids", "attention_mask", "pooling_mask"];
    let output = Port::new(output.name.clone(), Element::Float32, output.dims.clone());
    let session = graph.session(ports(&all), vec![output.clone()]).unwrap();
    let (ids, shape) = ([1i64, 2, 3], [1usize, 3]);
    let filled = [
        (Values::Int64(&ids), &shape[..]),
        (Values::Int64(&[1; 3]), &shape),
        (Values::Int64(&[1; 3]), &shape),
    ];
    assert_eq!(session.run(&filled).unwrap()[0].shape, [1, 32]);
    let error = load().session(ports(&all[..2]), vec![output]).unwrap_err().to_string();
    assert!(error.contains("input `pooling_mask` is unknown"), "{error}");
    let more = vec![Port::new("logits", Element::Float32, [None, None])];
    let error = load().session(ports(&all), more).unwrap_err().to_string();
    assert!(error.contains("output `logits` is missing"), "{error}");
}

/// 8 bits must stay near, be small, be said in the manifest, and be the same bytes every time (an index is keyed to them).
#[test]
fn int8_is_near_small_and_deterministic() {
    if !onnxruntime() {
        return;
    }
    for (name, config) in configs() {
        let mut fixture = Fixture::new(&Plan { config, ..Plan::llama() });
        let fp32 = export(&fixture.options).unwrap();
        let size = |out: &Path| fs::metadata(out.join("encoder.onnx_data")).unwrap().len();
        let fp32_size = size(&fixture.options.out);
        fixture.options.precision = Precision::Int8;
        fixture.options.out = fixture.options.out.with_file_name("int8");
        let int8 = export(&fixture.options).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!((fp32.encoder.batching, int8.encoder.batching), (Batching::Free, Batching::OneAtATime));
        assert!(parity(&int8, "embedding_cosine_min") > 0.98, "{name}: {}", int8.parity);
        assert!(size(&fixture.options.out) < fp32_size / 2);
        assert_ne!(fp32.document_digest, int8.document_digest);
        fixture.options.out = fixture.options.out.with_file_name("again");
        let again = export(&fixture.options).unwrap();
        assert_eq!(again.document_digest, int8.document_digest);
        let types = |kind: &str| {
            graph(&fixture.options.out.join("encoder.onnx"))
                .node
                .iter()
                .filter(|node| node.op_type.as_deref() == Some(kind))
                .count()
        };
        assert_eq!((types("DynamicQuantizeLinear"), types("MatMulInteger")), (9, 12), "{name}");
    }
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
    for precision in [Precision::Fp32, Precision::Int8] {
        let mut fixture = Fixture::new(&Plan::llama());
        fixture.options.precision = precision;
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
        for expected in ["/model/embed_tokens/Gather", "/model/layers.2/self_attn/Softmax", "/pooling/Concat"]
        {
            assert!(names.contains(&expected), "{expected}");
        }
    }
}
