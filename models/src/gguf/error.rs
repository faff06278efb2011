//! What can be wrong with a GGUF file.

use crate::config::ConfigError;
use std::path::PathBuf;

/// Why a GGUF file cannot be imported.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// The file cannot be opened or read.
    #[error("{file}: {source}")]
    Io {
        /// The GGUF file.
        file: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// The first bytes are not those of a GGUF file of a known version.
    #[error(
        "{file}: starts with {found}, expected {expected}\nhint: name a GGUF file written by a present-day llama.cpp"
    )]
    NotGguf {
        /// The file.
        file: PathBuf,
        /// What stands there.
        found: String,
        /// What should.
        expected: &'static str,
    },
    /// The file contradicts itself or ends too early.
    #[error("{file}: damaged or cut short: byte {at}: {problem}\nhint: fetch the file again")]
    Damaged {
        /// The file.
        file: PathBuf,
        /// Where in the file the contradiction shows.
        at: u64,
        /// What was found, and what was expected.
        problem: String,
    },
    /// A model that this project has no code for.
    #[error(
        "{file}: `general.architecture` is `{found}`, supported are {supported}\nhint: choose another model"
    )]
    Architecture {
        /// The file.
        file: PathBuf,
        /// Architecture in the file.
        found: String,
        /// Names of the supported ones.
        supported: String,
    },
    /// A supported architecture stored in a way that cannot be imported.
    #[error(
        "{file}: {what} is {found}, supported: {supported}\n\
         hint: use the model's Hugging Face folder instead, or another GGUF file of it"
    )]
    Unsupported {
        /// The file.
        file: PathBuf,
        /// The metadata key, or the property of a tensor.
        what: String,
        /// Its value in the file.
        found: String,
        /// The values that can be imported.
        supported: String,
    },
    /// A reranker with a head of its own, as llama.cpp converts them.
    #[error(
        "{file}: {what}: a reranker with a head of its own, which is not run here\n\
         hint: import the model's Hugging Face folder instead, where the answer is read off the language model's own head \
         (Qwen3-Reranker: with `--prompt qwen3-reranker`)"
    )]
    Reranker {
        /// The file.
        file: PathBuf,
        /// What shows it.
        what: String,
    },
    /// The config.json that the metadata make is refused.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A metadata value that is absent or makes no sense.
    #[error(
        "{file}: metadata `{key}` is {found}, expected {expected}\nhint: use the model's Hugging Face folder instead"
    )]
    Metadata {
        /// The file.
        file: PathBuf,
        /// Metadata key.
        key: String,
        /// Its value in the file, or `missing`.
        found: String,
        /// What would have done.
        expected: String,
    },
    /// The architecture needs a tensor that the file does not have.
    #[error(
        "{file}: tensor `{tensor}` is missing, metadata and architecture call for it\nhint: fetch another GGUF file"
    )]
    MissingTensor {
        /// The file.
        file: PathBuf,
        /// GGUF name of the tensor.
        tensor: String,
    },
    /// The file has a tensor that the architecture knows nothing of: leaving it out would change the model.
    #[error("{file}: tensor `{tensor}` has no place in a `{architecture}` model\nhint: choose another model")]
    UnexpectedTensor {
        /// The file.
        file: PathBuf,
        /// GGUF name of the tensor.
        tensor: String,
        /// Architecture in the file.
        architecture: &'static str,
    },
    /// A tensor's shape disagrees with the metadata.
    #[error(
        "{file}: tensor `{tensor}` has shape {found:?}, metadata says {expected:?}\nhint: fetch another GGUF file"
    )]
    Shape {
        /// The file.
        file: PathBuf,
        /// GGUF name of the tensor.
        tensor: String,
        /// Shape in the file, rows first.
        found: Vec<usize>,
        /// Shape from the metadata, rows first.
        expected: Vec<usize>,
    },
    /// The rebuilt tokenizer.json does not load.
    #[error(
        "{file}: no tokenizer can be built from its metadata: {source}\nhint: use the model's Hugging Face folder instead"
    )]
    Tokenizer {
        /// The file.
        file: PathBuf,
        /// The tokenizer library's answer.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The caller asked for a tensor that this model does not have.
    #[error("{file}: no tensor `{tensor}`\nhint: `tensor_names` lists what there is")]
    UnknownTensor {
        /// The file.
        file: PathBuf,
        /// Hugging Face name that was asked for.
        tensor: String,
    },
    /// Candle could not read or dequantise a tensor.
    #[error("{file}: tensor `{tensor}`: {source}")]
    Dequantise {
        /// The file.
        file: PathBuf,
        /// GGUF name of the tensor.
        tensor: String,
        /// Candle's answer.
        source: Box<candle_core::Error>,
    },
}
