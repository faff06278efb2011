//! The student: a frozen LLM read at chosen layers, and a predictor between its layers and its head.
//!
//! A student directory holds `student.json` (this file's [`StudentConfig`]), `predictor.safetensors`
//! (names in [`tensors`]), with a query adapter `query_adapter.safetensors`, `prompt.json` and the LLM it was distilled on
//! (`config.json`, `tokenizer.json`, weights).

use crate::files::{self, FileError};
use crate::lora::LoraConfig;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Newest version of `student.json` that this program reads.
pub const FORMAT_VERSION: u32 = 2;
/// Version of a student without [`StudentConfig::query_adapter`]: older programs read it as well.
pub const PLAIN_VERSION: u32 = 1;
/// Name of the student's description inside its directory.
pub const FILE_NAME: &str = "student.json";
/// Name of the predictor's weights inside a student directory.
pub const PREDICTOR_FILE: &str = "predictor.safetensors";
/// Name of the query adapter's weights inside a student directory, named as in PEFT's files.
pub const QUERY_ADAPTER_FILE: &str = "query_adapter.safetensors";

/// Names in `predictor.safetensors`; D = latent dimensions, m = inner dimensions, H = hidden size.
pub mod tensors {
    /// `[D]`, mean of the query latents over the training queries.
    pub const QUERY_MEAN: &str = "query.mean";
    /// `[D]`, their standard deviation.
    pub const QUERY_STD: &str = "query.std";
    /// `[D]`, mean of the document latents over the training corpus.
    pub const DOCUMENT_MEAN: &str = "document.mean";
    /// `[D]`, their standard deviation.
    pub const DOCUMENT_STD: &str = "document.std";
    /// `[m, D]`, Wq.
    pub const QUERY_WEIGHT: &str = "query_proj.weight";
    /// `[m]`, b1.
    pub const QUERY_BIAS: &str = "query_proj.bias";
    /// `[m, D]`, the sigmoid gate of the gated form.
    pub const GATE_WEIGHT: &str = "gate_proj.weight";
    /// `[m]`.
    pub const GATE_BIAS: &str = "gate_proj.bias";
    /// `[m, D]`, Wd.
    pub const DOCUMENT_WEIGHT: &str = "document_proj.weight";
    /// `[m, m]`, L of the gated form: a document's length is measured by it (see [`super::Form::Gated`]).
    pub const DOCUMENT_NORM: &str = "document_norm.weight";
    /// `[H, m]`, W2.
    pub const OUTPUT_WEIGHT: &str = "output_proj.weight";
    /// `[H]`, b2.
    pub const OUTPUT_BIAS: &str = "output_proj.bias";
    /// `[H, D]`, the learned residual, only with [`super::Residual::Pooled`].
    pub const RESIDUAL_WEIGHT: &str = "residual_proj.weight";
    /// `[2, H]`, the head's rows of the positive and the negative choice (frozen).
    pub const CHOICE_WEIGHT: &str = "choice.weight";
}

/// How the predictor joins query and document; x and z are standardised latents, n() is unit length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// `r + W2 relu(Wq x + Wd z + b1) + b2`.
    Relu,
    /// `r + W2 (n((Wq x + b1) * sigmoid(Wg x + bg)) * Wd z / |L Wd z|) + b2`: scores are inner products of stored
    /// vectors.
    ///
    /// `L^T L` is the covariance of the training queries' side of the score, so `|L Wd z|` is how far a document's score
    /// varies over them, and every document, seen in training or not, scores with the same deviation.
    Gated,
}

/// The predictor's residual r.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Residual {
    /// The paper's: e_q, the query pass's last token after all layers, read behind instruction and answer slot.
    LastToken,
    /// A learned linear map of the query's latents: the encoder stops at the deepest latent layer and never reads
    /// the instruction. Rankings do not depend on r; the probability does.
    Pooled,
}

/// How a pass becomes a latent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pooling {
    /// Mean over the text's own tokens, not the prompt's.
    Mean,
}

/// Which hidden states are read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LatentConfig {
    /// Outputs of these layers, concatenated in this order; 0 is the embedding, n the n-th layer's output before the
    /// final norm.
    pub layers: Vec<usize>,
    /// Over tokens.
    pub pooling: Pooling,
}

/// `probability = sigmoid(scale * (score - c(q)) + bias)`, fitted on the dev queries (Platt scaling).
///
/// c(q) is what all of a query's scores have in common. Rankings never see it and only teacher targets teach it: with few
/// of them it is noise that drowns the rest (on home-robot every document of every query got the base rate, 0.7 %).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// Slope.
    pub scale: f32,
    /// Offset.
    pub bias: f32,
}

impl Calibration {
    /// Calibrated probability that the document answers the query; `score` is less c(q).
    pub fn probability(&self, score: f32) -> f32 {
        1.0 / (1.0 + (-(self.scale * score + self.bias)).exp())
    }
}

/// `student.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StudentConfig {
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// What is read from the LLM.
    pub latents: LatentConfig,
    /// Hidden size H of the LLM.
    pub hidden_size: usize,
    /// Predictor form.
    pub form: Form,
    /// Inner dimensions m: numbers stored per document.
    pub inner_dimensions: usize,
    /// Predictor residual.
    pub residual: Residual,
    /// Adapters of the LLM that queries are read with; documents never are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query_adapter: Option<LoraConfig>,
    /// From score to probability.
    pub calibration: Calibration,
    /// Where it came from: digests of LLM and data, seeds, settings, metrics.
    pub provenance: serde_json::Value,
}

impl StudentConfig {
    /// Reads `student.json` of a student directory.
    pub fn open(dir: &Path) -> Result<Self, FileError> {
        let file = dir.join(FILE_NAME);
        let config: Self = files::read_json(&file)?;
        if !(PLAIN_VERSION..=FORMAT_VERSION).contains(&config.format_version) {
            return Err(FileError::Version { file, found: config.format_version, expected: FORMAT_VERSION });
        }
        Ok(config)
    }

    /// Latent dimensions D.
    pub fn dimensions(&self) -> usize {
        self.latents.layers.len().saturating_mul(self.hidden_size)
    }

    /// Number of LLM layers that the encoder runs, given how many the LLM has.
    pub fn encoder_layers(&self, num_hidden_layers: usize) -> usize {
        match self.residual {
            Residual::LastToken => num_hidden_layers,
            Residual::Pooled => self.latents.layers.iter().copied().max().unwrap_or(num_hidden_layers),
        }
    }
}
