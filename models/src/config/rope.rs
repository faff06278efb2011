//! Stretched rotary frequencies: `rope_scaling`, or `rope_parameters` in transformers 5.

use super::ConfigError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::f64::consts::PI;
use std::path::Path;

/// How the rotary frequencies are stretched beyond the length of pre-training.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "RawRopeScaling")]
pub struct RopeScaling {
    /// `default`, `linear` or `llama3`; older files write `type`, some write both.
    pub rope_type: String,
    /// How many times longer (`linear`, `llama3`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub factor: Option<f64>,
    /// Wavelengths above `original_max_position_embeddings` over this are divided by `factor` (`llama3`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub low_freq_factor: Option<f64>,
    /// Wavelengths below `original_max_position_embeddings` over this stay (`llama3`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub high_freq_factor: Option<f64>,
    /// Length of pre-training (`llama3`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub original_max_position_embeddings: Option<f64>,
    /// The newer spelling keeps `rope_theta` in here; moved to `DecoderConfig::rope_theta` on reading.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rope_theta: Option<f64>,
    /// Share of each head that is rotated; only the whole head (1) is supported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partial_rotary_factor: Option<f64>,
}

/// The object as it comes.
#[derive(Deserialize)]
struct RawRopeScaling {
    rope_type: Option<String>,
    #[serde(rename = "type")]
    older_type: Option<String>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
    rope_theta: Option<f64>,
    partial_rotary_factor: Option<f64>,
    #[serde(flatten)]
    others: BTreeMap<String, serde_json::Value>,
}

impl TryFrom<RawRopeScaling> for RopeScaling {
    type Error = String;

    fn try_from(raw: RawRopeScaling) -> Result<Self, String> {
        let rope_type = match (raw.rope_type, raw.older_type) {
            // Versions of transformers disagree about which of them counts.
            (Some(newer), Some(older)) if newer != older => {
                return Err(format!(
                    "rotary settings have `rope_type` `{newer}` and `type` `{older}`, expected the same or one of them"
                ));
            }
            (Some(one), _) | (None, Some(one)) => one,
            (None, None) => "default".to_owned(),
        };
        if let Some((name, _)) = raw.others.iter().find(|(_, value)| value.is_object()) {
            return Err(format!(
                "rotary settings have an object `{name}`, expected the same settings for all layers"
            ));
        }
        Ok(Self {
            rope_type,
            factor: raw.factor,
            low_freq_factor: raw.low_freq_factor,
            high_freq_factor: raw.high_freq_factor,
            original_max_position_embeddings: raw.original_max_position_embeddings,
            rope_theta: raw.rope_theta,
            partial_rotary_factor: raw.partial_rotary_factor,
        })
    }
}

impl RopeScaling {
    /// Whether nothing is stretched.
    pub(super) fn is_plain(&self) -> bool {
        self.rope_type == "default" && self.partial_rotary_factor.unwrap_or(1.0) == 1.0
    }

    /// Checks type and parameters; `file` names the origin in errors.
    pub(super) fn validate(&self, file: &Path) -> Result<(), ConfigError> {
        let refuse = |field, found: String, expected: &str| {
            Err(ConfigError::Field { file: file.into(), field, found, expected: expected.into() })
        };
        let needed = match self.rope_type.as_str() {
            "default" => &[][..],
            "linear" => &[("rope_scaling.factor", self.factor)],
            "llama3" => &[
                ("rope_scaling.factor", self.factor),
                ("rope_scaling.low_freq_factor", self.low_freq_factor),
                ("rope_scaling.high_freq_factor", self.high_freq_factor),
                ("rope_scaling.original_max_position_embeddings", self.original_max_position_embeddings),
            ],
            other => {
                return refuse(
                    "rope_scaling.rope_type",
                    format!("`{other}`"),
                    "`default`, `linear` or `llama3`",
                );
            }
        };
        for &(field, found) in needed {
            match found {
                Some(value) if value.is_finite() && value > 0.0 => {}
                Some(value) => return refuse(field, value.to_string(), "a number above zero"),
                None => return refuse(field, "missing".into(), "a number above zero"),
            }
        }
        if self.rope_type == "llama3" && self.low_freq_factor >= self.high_freq_factor {
            let found = format!("{:?}", self.low_freq_factor.unwrap_or_default());
            return refuse("rope_scaling.low_freq_factor", found, "less than `high_freq_factor`");
        }
        match self.partial_rotary_factor {
            Some(share) if share != 1.0 => refuse("partial_rotary_factor", share.to_string(), "1"),
            _ => Ok(()),
        }
    }

    /// One frequency stretched, in f32 as transformers does it: the same bits, so the same angles at any length.
    /// A missing parameter leaves it alone: `validate` has refused that before.
    pub(super) fn stretch(&self, frequency: f32) -> f32 {
        let Some(factor) = self.factor.map(|factor| factor as f32) else { return frequency };
        match (
            self.rope_type.as_str(),
            self.low_freq_factor,
            self.high_freq_factor,
            self.original_max_position_embeddings,
        ) {
            ("linear", ..) => frequency / factor,
            ("llama3", Some(low), Some(high), Some(length)) => {
                let wavelength = (2.0 * PI) as f32 / frequency;
                if wavelength < (length / high) as f32 {
                    frequency
                } else if wavelength > (length / low) as f32 {
                    frequency / factor
                } else {
                    let smooth = (length as f32 / wavelength - low as f32) / (high - low) as f32;
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
            }
            _ => frequency,
        }
    }
}
