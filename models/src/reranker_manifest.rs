//! The contract of a reranker's bundle: `export --reranker` writes `reranker.json`, `runtime` obeys it.
//!
//! ```text
//! reranker.json        this
//! reranker.onnx        input_ids, attention_mask, past -> choice_logits, present
//! reranker.onnx_data   its weights
//! prefix.safetensors   `past` of the prompt before every document
//! prompt.json, tokenizer.json
//! ```
//! One graph serves documents (their `present` is kept) and queries (their `choice_logits` are read), so that the weights
//! are held once.

use crate::files::{self, FileError};
use crate::manifest::{Golden, GraphKind, ManifestError, Precision, check_digests};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// Version of `reranker.json` that this program reads and writes.
pub const FORMAT_VERSION: u32 = 1;
/// Name of the manifest inside a reranker's bundle.
pub const FILE_NAME: &str = "reranker.json";
/// The graph.
pub const GRAPH_FILE: &str = "reranker.onnx";
/// External data of the graph.
pub const DATA_FILE: &str = "reranker.onnx_data";
/// Keys and values of the prompt.
pub const PREFIX_FILE: &str = "prefix.safetensors";
/// Name of the only tensor in it.
pub const PREFIX_TENSOR: &str = "past";

/// `reranker.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RerankerManifest {
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// Program and version that wrote the bundle.
    pub created_by: String,
    /// Arithmetic.
    pub precision: Precision,
    /// Operators.
    pub graph: GraphKind,
    /// Layers of the LLM.
    pub layers: usize,
    /// Heads of keys and values.
    pub key_value_heads: usize,
    /// Numbers in a head.
    pub head_dim: usize,
    /// Every token id must be below.
    pub vocab_size: usize,
    /// Longest prompt of a pair.
    pub max_tokens: usize,
    /// Token ids whose keys and values `prefix.safetensors` holds: what every prompt begins with.
    pub prefix: Vec<u32>,
    /// Token ids of the choices, positive first: what this tokenizer and prompt must make of them.
    pub choices: [u32; 2],
    /// SHA-256 of every other file of the bundle, by name.
    pub digests: BTreeMap<String, String>,
    /// Measured agreement with the teacher; null where the teacher brought no numbers of its own.
    pub parity: serde_json::Value,
    /// Pairs with known scores.
    pub golden: Vec<Golden>,
    /// Digest of the teacher.
    pub model_digest: String,
}

impl RerankerManifest {
    /// Reads `reranker.json` and checks every listed file.
    pub fn open(dir: &Path) -> Result<Self, ManifestError> {
        let file = dir.join(FILE_NAME);
        let manifest: Self = files::read_json(&file)?;
        if manifest.format_version != FORMAT_VERSION {
            let (found, expected) = (manifest.format_version, FORMAT_VERSION);
            return Err(FileError::Version { file, found, expected }.into());
        }
        for name in [GRAPH_FILE, PREFIX_FILE, crate::prompt::FILE_NAME, "tokenizer.json"] {
            if !manifest.digests.contains_key(name) {
                return Err(ManifestError::Unlisted { file, name: name.to_owned() });
            }
        }
        check_digests(dir, &manifest.digests)?;
        Ok(manifest)
    }

    /// Shape of `past` of so many tokens.
    pub fn past_shape(&self, tokens: usize) -> [usize; 5] {
        [1, 2 * self.layers, self.key_value_heads, tokens, self.head_dim]
    }
}
