//! Import of GGUF files (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>): the same config.json,
//! tokenizer.json and tensors, under the same names, as the model's Hugging Face folder would hold.
//!
//! Directory, metadata and all sizes are checked here before anything is allocated, because a downloaded file may be
//! cut short; candle then reads and dequantises the tensors.
//!
//! `header` reads metadata and directory, `config` and `rope` make config.json of them, `tokenizer` makes
//! tokenizer.json and tokenizer_config.json, `tensors` names, reads and un-permutes the weights.

mod config;
mod error;
mod header;
mod metadata;
mod rope;
mod tensors;
#[cfg(test)]
mod tests;
mod tokenizer;

pub use error::GgufError;

use crate::config::{ConfigError, DecoderConfig};
use config::DecoderShape;
use header::Header;
use serde_json::Value;
use std::path::Path;
use tensors::TensorSource;

/// A GGUF file as a Hugging Face folder would hold it.
#[derive(Debug)]
pub struct GgufModel {
    /// config.json, with Hugging Face names.
    pub config: Value,
    /// tokenizer.json.
    pub tokenizer: Value,
    /// tokenizer_config.json: special tokens, chat template, `model_max_length`.
    pub tokenizer_config: Value,
    header: Header,
    tensors: Vec<TensorSource>,
}

impl GgufModel {
    /// Reads metadata and tensor directory, not the weights.
    ///
    /// Everything is decided here: a file that opens has every tensor of its architecture, in the right shape, in a
    /// readable type and within the file, no tensor besides, and a tokenizer that loads. Anything else is an error.
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        let header = Header::read(path)?;
        let shape = DecoderShape::read(&header)?;
        let tensors = tensors::plan(&header, &shape)?;
        let config = config::config_json(&header, &shape)?;
        let completed: DecoderConfig = serde_json::from_value(config.clone())
            .map_err(|source| ConfigError::Parse { file: path.to_owned(), source })?;
        completed.validate(path)?;
        let (tokenizer, tokenizer_config) = tokenizer::read(&header, &shape)?;
        Ok(Self { config, tokenizer, tokenizer_config, header, tensors })
    }

    /// Hugging Face tensor names in the order of the forward pass; no `lm_head.weight` where embeddings are tied.
    pub fn tensor_names(&self) -> Vec<String> {
        self.tensors.iter().map(|tensor| tensor.hf_name.clone()).collect()
    }

    /// Shape of one tensor under its Hugging Face name, `[out, in]` for matrices.
    pub fn tensor_shape(&self, hf_name: &str) -> Option<&[usize]> {
        self.tensors.iter().find(|tensor| tensor.hf_name == hf_name).map(|tensor| tensor.shape.as_slice())
    }

    /// Reads and dequantises one tensor under its Hugging Face name: shape and values in row-major order.
    ///
    /// Query and key rows stand in Hugging Face order, whatever order the file has them in.
    pub fn tensor_f32(&self, hf_name: &str) -> Result<(Vec<usize>, Vec<f32>), GgufError> {
        let tensor = self.tensors.iter().find(|tensor| tensor.hf_name == hf_name).ok_or_else(|| {
            GgufError::UnknownTensor { file: self.header.file.clone(), tensor: hf_name.to_owned() }
        })?;
        Ok((tensor.shape.clone(), tensor.read(&self.header)?))
    }
}
