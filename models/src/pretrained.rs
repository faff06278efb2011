//! A pretrained model as this repository ships it: not an LLM's weights again, but what training changed in them, in few bits.
//!
//! A folder holds `pretrained.json` (this file's [`Pretrained`]), `delta.safetensors` (the changed tensors' differences from
//! the base LLM, see [`blocks`]), `prompt.json`, and where it is a student also `student.json`, `predictor.safetensors` and
//! its golden files. Together with the base LLM, a model directory or the GGUF file that it is imported from, it makes the
//! model directory that it was taken from, to the last bit.

mod assemble;
mod blocks;
mod pack;

#[cfg(feature = "gguf")]
pub use assemble::assemble;
pub use pack::pack;

use crate::files::{self, FileError, read_json};
use crate::weights::WeightsError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Version of the folder's format that this program reads and writes.
pub const FORMAT_VERSION: u32 = 1;
/// Name of the description.
pub const FILE_NAME: &str = "pretrained.json";
/// Name of the differences' file; a model directory that was made of a pretrained folder keeps it, so that it can be packed
/// again without rounding again.
pub const DELTA_FILE: &str = "delta.safetensors";
/// Key under which the differences' file names the base LLM's digest.
const BASE_KEY: &str = "base";

/// What belongs to a student beside the LLM, where present.
pub const STUDENT_FILES: &[&str] = &[
    crate::student::FILE_NAME,
    crate::student::PREDICTOR_FILE,
    crate::student::QUERY_ADAPTER_FILE,
    "golden.json",
    "golden.safetensors",
];

/// `pretrained.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pretrained {
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// The LLM that it belongs to.
    pub base: Base,
    /// Digest of each file of the folder.
    pub files: BTreeMap<String, String>,
}

/// An LLM, by what it is and not by where it lies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Base {
    /// For people: what the LLM is called.
    pub name: String,
    /// SHA-256 over names, shapes and f32 numbers of all its tensors.
    pub digest: String,
}

/// A pretrained folder that cannot be written or used.
#[derive(Debug, thiserror::Error)]
pub enum PretrainedError {
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// Weights cannot be read or written.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The LLM's config is refused.
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    /// The GGUF file is refused.
    #[cfg(feature = "gguf")]
    #[error(transparent)]
    Gguf(#[from] crate::gguf::GgufError),
    /// A newer program wrote it.
    #[error("{file}: format version {found}, this program reads {FORMAT_VERSION}")]
    Version {
        /// The description.
        file: PathBuf,
        /// Its version.
        found: u32,
    },
    /// A file of the folder is not what it was when the folder was made.
    #[error("{file}: its digest is not the one in {FILE_NAME}; the folder is damaged, fetch it again")]
    Damaged {
        /// The file.
        file: PathBuf,
    },
    /// The LLM is another one.
    #[error(
        "{llm}: not the LLM that {dir} belongs to, which is {name}; expected one of digest {expected}, found {found}"
    )]
    OtherLlm {
        /// What was given.
        llm: PathBuf,
        /// The pretrained folder.
        dir: PathBuf,
        /// The name of the LLM it belongs to.
        name: String,
        /// Its digest, shortened.
        expected: String,
        /// The digest of what was given, shortened.
        found: String,
    },
    /// Model and base have different tensors.
    #[error(
        "{model}: tensor `{tensor}` is {found}, {base} has {expected}; only a model that was trained from the base can be packed"
    )]
    Tensor {
        /// The model to pack.
        model: PathBuf,
        /// The base LLM.
        base: PathBuf,
        /// Name of the tensor.
        tensor: String,
        /// What the model has.
        found: String,
        /// What the base has.
        expected: String,
    },
    /// The differences' file holds something else.
    #[error("{file}: `{tensor}` {reason}; the folder is damaged, fetch it again")]
    Delta {
        /// The file.
        file: PathBuf,
        /// Name in it.
        tensor: String,
        /// What is wrong.
        reason: String,
    },
}

impl Pretrained {
    /// Whether a directory is a pretrained folder.
    pub fn is_one(dir: &Path) -> bool {
        dir.join(FILE_NAME).is_file()
    }

    /// Reads the description and holds every file to its digest.
    pub fn open(dir: &Path) -> Result<Self, PretrainedError> {
        let file = dir.join(FILE_NAME);
        let value: serde_json::Value = read_json(&file)?;
        let found = value["format_version"].as_u64().unwrap_or(0) as u32;
        if found != FORMAT_VERSION {
            return Err(PretrainedError::Version { file, found });
        }
        let pretrained: Self = read_json(&file)?;
        for (name, digest) in &pretrained.files {
            let file = dir.join(name);
            if files::sha256_file(&file)? != *digest {
                return Err(PretrainedError::Damaged { file });
            }
        }
        Ok(pretrained)
    }
}

/// The first digits of a digest, for messages.
fn short(digest: &str) -> String {
    digest.chars().take(12).collect()
}
