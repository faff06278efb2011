//! `MODEL_CARD.md`: the manifest for people.

use crate::quantise::mixed::MixedLayers;
use models::manifest::{Batching, GraphKind, Manifest, Precision};
use serde_json::Value;
use std::fmt::Write;

/// What the bundle is, what it was measured to do, and how to use it.
pub fn card(manifest: &Manifest, megabytes: f64) -> String {
    let (encoder, predictor) = (&manifest.encoder, &manifest.predictor);
    let precision = match encoder.precision {
        Precision::Fp32 => "fp32",
        Precision::Fp16 => "fp16 (for GPUs)",
        Precision::Int8 => {
            "int8 (weights with a scale per output channel, activations quantised at run time)"
        }
        Precision::Int4 => "int4 (weights in blocks of 32)",
    };
    let graph = match encoder.graph {
        GraphKind::Fused => "ONNX Runtime's operators",
        GraphKind::Portable => "standard ONNX operators only",
    };
    let batching = match encoder.batching {
        Batching::Free => "texts may share a batch",
        Batching::OneAtATime => "one text at a time",
    };
    let mut text = String::from("# Retrieval bundle\n\n");
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "| {name} | {value} |");
    };
    line("what", "value".into());
    line("---", "---".into());
    line("made by", manifest.created_by.clone());
    line("encoder", format!("{} layers of the LLM, {precision}, {graph}, {batching}", encoder.layers));
    if let Some(higher) = encoder.precision.more(encoder.graph).filter(|_| !encoder.kept_layers.is_empty()) {
        let mixed = MixedLayers {
            higher: encoder.kept_layers.iter().copied().collect(),
            fp32: encoder.float_layers.iter().copied().collect(),
        };
        line("layers in a higher precision", format!("{}, to keep the ranking", mixed.describe(higher)));
    }
    if let Some(rank) = encoder.query_adapter_rank {
        line("query adapter", format!("rank {rank}, in the same graph"));
    }
    line("latent", format!("layers {:?}, {} dimensions", predictor.latents.layers, encoder.dimensions));
    line(
        "predictor",
        format!("{:?}, {} dimensions per document", predictor.form, predictor.inner_dimensions),
    );
    line("longest pass", format!("{} tokens, prompt included", encoder.max_tokens));
    line("size", format!("{megabytes:.1} MB"));
    line("document digest", format!("`{}`", manifest.document_digest.get(..16).unwrap_or_default()));

    text.push_str("\n## Measured at export\n\n");
    table(&mut text, "Compared with the student's own scores and latents (libtorch)", &manifest.parity);
    for ranking in manifest.parity["ranking"].as_array().into_iter().flatten() {
        let about = format!(
            "Compared with the fp32 bundle: {} ({} queries, {} documents)",
            ranking["data"].as_str().unwrap_or_default(),
            ranking["queries"],
            ranking["documents"]
        );
        table(&mut text, &about, ranking);
    }
    if let Some(failed) = manifest.parity["failed"].as_array().filter(|failed| !failed.is_empty()) {
        text.push_str("**Limits that are exceeded:**\n\n");
        for limit in failed {
            let _ = writeln!(text, "- {}", limit.as_str().unwrap_or_default());
        }
        text.push('\n');
    }
    text.push_str(
        "## Use\n\n```sh\nruntime index --bundle BUNDLE --documents corpus.jsonl --out INDEX\nruntime query --bundle BUNDLE \
         --index INDEX \"a need in plain words\"\nruntime doctor --bundle BUNDLE        # does this machine compute the same?\n```\n\n\
         An index belongs to this bundle's document digest: another export needs its own. Licence and intended use are \
         those of the language model and the data it was trained on; see `provenance` in `manifest.json`.\n",
    );
    text
}

fn table(text: &mut String, about: &str, values: &Value) {
    let _ = writeln!(text, "{about}:\n\n| measure | value |\n| --- | ---: |");
    for (name, value) in values.as_object().into_iter().flatten() {
        if let (Some(number), false) = (value.as_f64(), matches!(name.as_str(), "queries" | "documents")) {
            let _ = writeln!(text, "| {} | {} |", name.replace('_', " "), short(number));
        }
    }
    text.push('\n');
}

fn short(number: f64) -> String {
    match number.abs() {
        0.0 => "0".into(),
        size if size < 1e-3 => format!("{number:.1e}"),
        size if number.fract() == 0.0 && size < 1e9 => format!("{number:.0}"),
        _ => format!("{number:.4}"),
    }
}
