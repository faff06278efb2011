//! Whole exports of tiny students, run by ONNX Runtime through the runtime library, held to a plain f64 decoder.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use export::bundle::options::{MixedPrecision, Options};
use export::bundle::reranker::{self, RerankerOptions};
use export::onnx::proto::{DataType, GraphProto, ModelProto};
use export::quantise::mixed::MixedLayers;
use export::verify::ranking::RankingData;
use models::manifest::{Batching, GraphKind, Manifest, Precision};
use models::student::{Form, Residual};
use prost::Message;
use runtime::bundle::Bundle;
use runtime::encoder::{Embedding, Encoder};
use runtime::session::{Element, Graph, Port, SessionOptions, Values};
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

/// Few bits that a robot can still rank by; half precision for GPUs, run here on the CPU by casts.
#[test]
fn every_precision_stays_near_the_reference() {
    if !onnxruntime() {
        return;
    }
    for (name, config) in configs() {
        if !takes_fused(&config) {
            continue;
        }
        // A random model this small forgives no error of its weights, so those of 4 bits are made to have none: what is
        // left is how the operator reads them, and its 8-bit activations.
        let limits = [(Precision::Fp16, 0.999_9), (Precision::Int8, 0.96), (Precision::Int4, 0.99)];
        for (precision, least) in limits {
            let four_bits = precision == Precision::Int4;
            let mut fixture = Fixture::new(&Plan { config: config.clone(), four_bits, ..Plan::llama() });
            fixture.options.precision = precision;
            fixture.options.allow_degraded = true;
            let manifest = export(&fixture.options).unwrap_or_else(|error| panic!("{name}: {error}"));
            let cosine = parity(&manifest, "embedding_cosine_min");
            assert!(cosine > least, "{name}, {precision:?}: {cosine}");
            let card = fs::read_to_string(fixture.options.out.join("MODEL_CARD.md")).unwrap();
            assert!(
                card.contains("embedding cosine min") && card.contains("ONNX Runtime's operators"),
                "{card}"
            );
        }
    }
}

/// If GPTQ did not bring int4 embeddings nearer to fp32, or not the same ones every time, a calibration would be minutes for
/// nothing, or an index would no longer fit its bundle.
#[test]
fn calibration_brings_int4_nearer() {
    if !onnxruntime() {
        return;
    }
    let mut fixture = Fixture::new(&Plan::llama());
    fixture.options.precision = Precision::Int4;
    fixture.options.allow_degraded = true;
    let plain = export(&fixture.options).unwrap();
    fixture.options.calibration = Some(fixture.write_data());
    fixture.options.mixed_precision = MixedPrecision::Layers(MixedLayers::none());
    fixture.options.ranking =
        Some(RankingData { dir: fixture.write_data(), split: "dev".into(), queries: 0 });
    let mut calibrated = Vec::new();
    for name in ["calibrated", "again"] {
        fixture.options.out = fixture.options.out.with_file_name(name);
        calibrated.push(export(&fixture.options).unwrap());
    }
    let cosine = |manifest: &Manifest| parity(manifest, "embedding_cosine_min");
    assert!(cosine(&calibrated[0]) > cosine(&plain) + 0.05, "{} {}", calibrated[0].parity, plain.parity);
    assert_eq!(calibrated[0].document_digest, calibrated[1].document_digest);
    let ranking = &calibrated[0].parity["ranking"][0];
    assert_eq!(ranking["queries"], 4);
    assert!(ranking["ndcg_at_10_fp32"].as_f64().unwrap() > 0.0, "{ranking}");
    // Nothing of the fp32 bundle or the observing graph is left.
    let out = fixture.options.out.parent().unwrap();
    let mut left: Vec<_> = fs::read_dir(out).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["again", "bundle", "calibrated"]);
    assert!(!fixture.options.out.join("observed.onnx").exists());
}

/// An fp32 layer of an int8 graph must compute in fp32, or its accuracy is lost, and take 16 bits per weight, or every robot
/// stores it twice as large.
#[test]
fn fp32_layers_are_stored_in_half_precision() {
    if !onnxruntime() {
        return;
    }
    for kind in [GraphKind::Fused, GraphKind::Portable] {
        let mut fixture = Fixture::new(&Plan::llama());
        fixture.options.graph = kind;
        fixture.options.precision = Precision::Int8;
        fixture.options.allow_degraded = true;
        fixture.options.mixed_precision =
            MixedPrecision::Layers(MixedLayers::parse("0:fp32,1:fp32,2:fp32").unwrap());
        let manifest = export(&fixture.options).unwrap();
        // What is left is the token table in 8 bits.
        assert!(parity(&manifest, "embedding_cosine_min") > 0.999_5, "{kind:?}: {}", manifest.parity);
        let encoder = graph(&fixture.options.out.join("encoder.onnx"));
        let maps: Vec<_> = encoder
            .initializer
            .iter()
            .filter(|tensor| tensor.name.as_deref().is_some_and(|name| name.ends_with("_proj.weight")))
            .map(|tensor| tensor.data_type)
            .collect();
        assert_eq!(maps, vec![Some(DataType::Float16 as i32); 15], "{kind:?}");
    }
}

/// Layers that lose too much by quantising must be found, be listed in the card, and bring the ranking back within its limits; no
/// robot should pay for a higher precision that was not needed.
#[test]
fn layers_that_need_a_higher_precision_are_found() {
    if !onnxruntime() {
        return;
    }
    let mut helped = 0;
    let cases = configs().into_iter().filter(|(_, config)| takes_fused(config));
    for (config, precision) in cases.flat_map(|(_, c)| [(c.clone(), Precision::Int4), (c, Precision::Int8)]) {
        let mut fixture = Fixture::new(&Plan { config, ..Plan::llama() });
        fixture.options.precision = precision;
        fixture.options.allow_degraded = true;
        fixture.options.calibration = Some(fixture.write_data());
        fixture.options.ranking =
            Some(RankingData { dir: fixture.write_data(), split: "dev".into(), queries: 0 });
        let more = precision.more(fixture.options.graph).unwrap();
        let held = |manifest: &Manifest| !manifest.parity["failed"].to_string().contains("data, dev");
        let mut exported = |name: &str, mixed: MixedPrecision| {
            fixture.options.out = fixture.options.out.with_file_name(name);
            fixture.options.mixed_precision = mixed;
            let manifest = export(&fixture.options).unwrap();
            (fs::read_to_string(fixture.options.out.join("MODEL_CARD.md")).unwrap(), manifest)
        };
        let (_, none) = exported("none", MixedPrecision::Layers(MixedLayers::none()));
        let (card, found) = exported("found", MixedPrecision::Search);
        let mixed = MixedLayers {
            higher: found.encoder.kept_layers.iter().copied().collect(),
            fp32: found.encoder.float_layers.iter().copied().collect(),
        };
        // No layer has a higher precision only if none needs it; some may also have it where the limit is met without a margin.
        assert!(held(&none) || !mixed.higher.is_empty(), "{mixed:?}");
        if mixed.higher.is_empty() {
            continue;
        }
        if !held(&found) {
            // Where not even fp32 in every layer keeps the ranking, the best bundle there is has that.
            assert_eq!(
                Vec::from_iter(mixed.fp32),
                Vec::from_iter(0..found.encoder.layers),
                "{}",
                found.parity
            );
            continue;
        }
        helped += 1;
        assert!(card.contains(&mixed.describe(more)), "{card}");
        // Asked for by name they are the same bundle.
        let (_, named) = exported("named", MixedPrecision::Layers(mixed));
        assert_eq!(named.document_digest, found.document_digest);
    }
    assert!(helped > 0, "no case needed a higher precision and was helped by it");
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

fn takes_fused(config: &serde_json::Value) -> bool {
    config["head_dim"].as_u64().is_some_and(|head_dim| head_dim.is_multiple_of(16))
}

/// What a graph of one kind cannot say is refused before anything is written.
#[test]
fn kinds_of_graph_refuse_what_they_cannot_say() {
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

/// A graph of somebody else's making is understood by what it says of itself; told wrongly, a good one is refused or a
/// foreign one fed.
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

/// 8 bits must stay near, be small, be said in the manifest, and be the same bytes every time (an index is keyed to them).
#[test]
fn int8_is_near_small_and_deterministic() {
    if !onnxruntime() {
        return;
    }
    for (name, config) in configs() {
        // GroupQueryAttention takes such heads only.
        let fusible = config["head_dim"].as_u64().is_none_or(|size| size % 16 == 0);
        let mut fixture = Fixture::new(&Plan { config, ..Plan::llama() });
        fixture.options.graph = GraphKind::Portable;
        let fp32 = export(&fixture.options).unwrap();
        let size = |out: &Path| fs::metadata(out.join("encoder.onnx_data")).unwrap().len();
        let fp32_size = size(&fixture.options.out);
        fixture.options.precision = Precision::Int8;
        fixture.options.out = fixture.options.out.with_file_name("int8");
        let int8 = export(&fixture.options).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!((fp32.encoder.batching, int8.encoder.batching), (Batching::Free, Batching::Free));
        assert!(parity(&int8, "embedding_cosine_min") > 0.96, "{name}: {}", int8.parity);
        assert!(size(&fixture.options.out) < fp32_size / 2);
        assert_ne!(fp32.document_digest, int8.document_digest);
        fixture.options.out = fixture.options.out.with_file_name("again");
        let again = export(&fixture.options).unwrap();
        assert_eq!(again.document_digest, int8.document_digest);
        let types = |out: &Path| {
            let nodes = graph(&out.join("encoder.onnx")).node;
            let count = |kind| nodes.iter().filter(|node| node.op_type.as_deref() == Some(kind)).count();
            ["DynamicQuantizeLinear", "QuantizeLinear", "ReduceMax", "MatMulInteger", "MatMulIntegerToFloat"]
                .map(count)
        };
        // Three layers of four inputs and five maps: a known scale behind the norms, otherwise one for each token, and in the fused
        // graph in `down_proj` only.
        assert_eq!(types(&fixture.options.out), [0, 12, 6, 15, 0], "{name}");
        if !fusible {
            continue;
        }
        fixture.options.graph = GraphKind::Fused;
        fixture.options.out = fixture.options.out.with_file_name("fused");
        let fused = export(&fixture.options).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(fused.encoder.batching, Batching::OneAtATime);
        assert_eq!(types(&fixture.options.out), [3, 9, 3, 3, 12], "{name}");
    }
}

/// A channel with much larger activations than all others leaves them few of the 256 steps, and embeddings lose precision: with a
/// calibration SmoothQuant scales it, and where that is not enough its layer keeps one activation scale per token.
#[test]
fn outlier_channels_are_scaled() {
    if !onnxruntime() {
        return;
    }
    for (name, config) in configs().into_iter().filter(|(_, config)| takes_fused(config)) {
        let mut cosines = Vec::new();
        for (outlier_channel, calibrated) in [(1.0, true), (60.0, false), (60.0, true)] {
            let mut fixture =
                Fixture::new(&Plan { config: config.clone(), outlier_channel, ..Plan::llama() });
            fixture.options.precision = Precision::Int8;
            fixture.options.allow_degraded = true;
            fixture.options.calibration = calibrated.then(|| fixture.write_data());
            fixture.options.mixed_precision = MixedPrecision::Layers(MixedLayers::none());
            let manifest = export(&fixture.options).unwrap_or_else(|error| panic!("{name}: {error}"));
            cosines.push(parity(&manifest, "embedding_cosine_min"));
            let encoder = graph(&fixture.options.out.join("encoder.onnx"));
            let per_token = |name: &&str| name.ends_with("/down_proj/activation/ReduceMax");
            let layers: Vec<&str> = node_names(&encoder)
                .into_iter()
                .filter(per_token)
                .filter_map(|name| name.split('/').nth(2))
                .collect();
            let expected: &[&str] = match (calibrated, outlier_channel > 1.0) {
                (false, _) => &["layers.0", "layers.1", "layers.2"],
                (true, true) => &["layers.1"],
                (true, false) => &[],
            };
            assert_eq!(layers, expected, "{name}");
        }
        let [_, plain, scaled] = cosines[..] else { panic!("{cosines:?}") };
        assert!(1.0 - scaled < 0.7 * (1.0 - plain), "{name}: {cosines:?}");
    }
}

/// A token's numbers are divided by the largest of them, and where all are zero so must the map's output be.
#[test]
fn zeros_in_eight_bits_stay_zeros() {
    if !onnxruntime() {
        return;
    }
    for kind in [GraphKind::Fused, GraphKind::Portable] {
        let mut fixture = Fixture::new(&Plan { idle_layer: true, ..Plan::llama() });
        fixture.options.graph = kind;
        fixture.options.precision = Precision::Int8;
        let manifest = export(&fixture.options).unwrap();
        assert!(parity(&manifest, "embedding_cosine_min") > 0.96, "{kind:?}: {}", manifest.parity);
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
