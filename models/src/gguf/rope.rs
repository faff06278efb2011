//! `rope_scaling` of config.json, from metadata or from the factors that llama.cpp stores as a tensor.

use super::config::DecoderShape;
use super::error::GgufError;
use super::header::Header;
use super::tensors;
use serde_json::{Value as Json, json};
use std::f64::consts::PI;

/// Tensor of one factor per rotated pair, `[head_dim / 2]`: how much slower the pair turns.
pub(super) const FREQS_TENSOR: &str = "rope_freqs.weight";

/// The `rope_scaling` object, or null where positions are not scaled.
pub(super) fn scaling(header: &Header, shape: &DecoderShape, rope_theta: f64) -> Result<Json, GgufError> {
    let from_metadata = metadata_scaling(header, shape)?;
    if !header.tensors.contains_key(FREQS_TENSOR) {
        return Ok(from_metadata);
    }
    let factors = tensors::read_values(header, FREQS_TENSOR)?;
    let llama3 = llama3_scaling(&factors, shape.head_dim, rope_theta).filter(|_| from_metadata.is_null());
    llama3.ok_or_else(|| GgufError::Unsupported {
        file: header.file.clone(),
        what: format!("tensor `{FREQS_TENSOR}`"),
        found: format!("{} factors up to {}", factors.len(), factors.iter().copied().fold(0.0, f32::max)),
        supported: "those of Llama 3.1 to 3.3, which config.json calls rope type `llama3`".to_owned(),
    })
}

/// As llama.cpp reads it (`load_hparams` in src/llama-model.cpp): a factor without a type means `linear`, an older key
/// stands in for the factor, and a factor of zero, or none, scales nothing.
fn metadata_scaling(header: &Header, shape: &DecoderShape) -> Result<Json, GgufError> {
    let model = shape.architecture.model_type();
    let prefix = format!("{model}.rope.scaling.");
    let key = |suffix: &str| format!("{prefix}{suffix}");
    let known = ["type", "factor", "original_context_length", "finetuned"].map(key);
    // A scaling parameter that we do not pass on would change the model without a word.
    if let Some(other) = header.metadata.keys().find(|k| k.starts_with(&prefix) && !known.contains(k)) {
        return Err(header.bad_value(other, "no such key"));
    }
    let factor = match header.positive_or_zero(&key("factor"))? {
        None => header.positive_or_zero(&format!("{model}.rope.scale_linear"))?,
        factor => factor,
    };
    let factor = factor.filter(|&factor| factor > 0.0);
    match (header.text(&key("type"))?, factor) {
        (Some("none"), _) | (None | Some("linear"), None) | (None, Some(1.0)) => Ok(Json::Null),
        (None | Some("linear"), Some(factor)) => Ok(json!({ "rope_type": "linear", "factor": factor })),
        (Some(found), _) => Err(GgufError::Unsupported {
            file: header.file.clone(),
            what: format!("metadata `{}`", key("type")),
            found: format!("`{found}`"),
            supported: "`none`, `linear`, and Llama 3's factors (another file of the model that is not made for longer texts \
                        may be without)"
                .to_owned(),
        }),
    }
}

/// Recognises the factors that Llama 3.1 to 3.3 are converted with. All these models share three of the four
/// parameters; the fourth, `factor`, is the largest value. Factors of one throughout are no scaling: null.
pub(super) fn llama3_scaling(factors: &[f32], head_dim: usize, rope_theta: f64) -> Option<Json> {
    let close = |a: f64, b: f64| (a - b).abs() <= 1e-4 * b.abs();
    let factor = f64::from(factors.iter().copied().fold(1.0, f32::max));
    let expected = llama3_factors(head_dim, rope_theta, factor);
    let fits = factors.len() == expected.len()
        && factors.iter().zip(&expected).all(|(&found, &expected)| close(f64::from(found), expected));
    if !fits {
        return None;
    }
    if factor == 1.0 {
        return Some(Json::Null);
    }
    Some(json!({
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": LOW_FREQ_FACTOR,
        "high_freq_factor": HIGH_FREQ_FACTOR,
        "original_max_position_embeddings": ORIGINAL_CONTEXT,
    }))
}

const LOW_FREQ_FACTOR: f64 = 1.0;
const HIGH_FREQ_FACTOR: f64 = 4.0;
const ORIGINAL_CONTEXT: usize = 8192;

/// `_compute_llama3_parameters` of transformers, as the divisor of each frequency: one for short waves, `factor` for
/// waves longer than the original context, in between a blend.
fn llama3_factors(head_dim: usize, rope_theta: f64, factor: f64) -> Vec<f64> {
    let context = ORIGINAL_CONTEXT as f64;
    (0..head_dim / 2)
        .map(|pair| {
            let wavelength = 2.0 * PI * rope_theta.powf(2.0 * pair as f64 / head_dim as f64);
            let turns = context / wavelength;
            let smooth = ((turns - LOW_FREQ_FACTOR) / (HIGH_FREQ_FACTOR - LOW_FREQ_FACTOR)).clamp(0.0, 1.0);
            1.0 / ((1.0 - smooth) / factor + smooth)
        })
        .collect()
}
