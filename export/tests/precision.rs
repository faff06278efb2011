//! Exports of tiny students in fewer bits than fp32: near the reference, small, and the same bytes every time.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use export::bundle::options::MixedPrecision;
use export::onnx::proto::DataType;
use export::quantise::mixed::MixedLayers;
use export::verify::ranking::RankingData;
use models::manifest::{Batching, GraphKind, Manifest, Precision};
use std::fs;
use std::path::Path;
use support::graphs::{graph, node_names, parity, takes_fused};
use support::{Fixture, Plan, configs, export, onnxruntime};

/// Embeddings must stay near the reference in every precision, or rankings change; half precision is for GPUs and run here on
/// the CPU by casts.
#[test]
fn every_precision_stays_near_the_reference() {
    if !onnxruntime() {
        return;
    }
    for (name, config) in configs() {
        if !takes_fused(&config) {
            continue;
        }
        // A random model this small tolerates no error of its weights, so those of 4 bits are chosen to have none: what is
        // tested is how the operator reads them, and its 8-bit activations.
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
        let weights: Vec<_> = encoder
            .initializer
            .iter()
            .filter(|tensor| tensor.name.as_deref().is_some_and(|name| name.ends_with("_proj.weight")))
            .map(|tensor| tensor.data_type)
            .collect();
        assert_eq!(weights, vec![Some(DataType::Float16 as i32); 15], "{kind:?}");
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

/// int8 must stay near fp32, be small, be named in the manifest, and be the same bytes every time (an index is keyed to them).
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
        // Three layers with four inputs and five linear layers: a static scale behind the norms, otherwise one per token, in the
        // fused graph only before `down_proj`.
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

/// A token is divided by its largest magnitude; if all its elements are zero, 0 / 0 must not become NaN in the output.
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
