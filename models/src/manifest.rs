//! The bundle contract: `export` writes `manifest.json`, `runtime` obeys it; nobody guesses.
//!
//! A bundle directory:
//! ```text
//! manifest.json       this
//! encoder.onnx        input_ids, attention_mask [, pooling_mask] [, prefix] -> sentence_embedding [, answer_embedding]
//! encoder.onnx_data   its weights, where they do not fit into one protobuf
//! predictor.onnx      the predictor unfolded: embeddings -> predicted_hidden, score
//! fold.safetensors    the predictor folded (see crate::fold)
//! MODEL_CARD.md       this for people
//! prompt.json, tokenizer.json
//! ```

use crate::files::{self, FileError};
use crate::student::{self, Calibration, Form, LatentConfig, Residual, StudentConfig};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Version of `manifest.json` that this program reads and writes.
pub const FORMAT_VERSION: u32 = 2;
/// Name of the manifest inside a bundle.
pub const FILE_NAME: &str = "manifest.json";
/// Encoder graph.
pub const ENCODER_FILE: &str = "encoder.onnx";
/// External data of the encoder graph.
pub const ENCODER_DATA_FILE: &str = "encoder.onnx_data";
/// The manifest for people.
pub const CARD_FILE: &str = "MODEL_CARD.md";
/// Unfolded predictor graph.
pub const PREDICTOR_FILE: &str = "predictor.onnx";

/// Names of graph inputs and outputs.
pub mod names {
    /// int64 `[batch, seq]`, right-padded.
    pub const INPUT_IDS: &str = "input_ids";
    /// int64 `[batch, seq]`, 1 on tokens, 0 on padding.
    pub const ATTENTION_MASK: &str = "attention_mask";
    /// int64 `[1]`: which of the manifest's prefixes stands before every row; only where there are any.
    pub const PREFIX: &str = "prefix";
    /// int64 `[batch, seq]`, 1 on the text's own tokens, 0 on prompt and padding; at least one 1 per row. Only with the
    /// last-token residual: otherwise a row is the text's tokens and nothing else.
    pub const POOLING_MASK: &str = "pooling_mask";
    /// f32 `[batch, D]`, the latent: mean over the text's tokens of the chosen layers, concatenated.
    pub const SENTENCE_EMBEDDING: &str = "sentence_embedding";
    /// f32 `[batch, H]`, the last token after the final norm; only with the last-token residual.
    pub const ANSWER_EMBEDDING: &str = "answer_embedding";
    /// reranker: f32 `[1, 2 * layers, key/value heads, past, head_dim]`, keys and values of what stands before.
    pub const PAST: &str = "past";
    /// reranker: the same with `input_ids` behind it.
    pub const PRESENT: &str = "present";
    /// reranker: f32 `[1, 2]`, logits of the choices at the last token, positive first.
    pub const CHOICE_LOGITS: &str = "choice_logits";
    /// predictor: f32 `[batch, D]`, the query's `sentence_embedding`.
    pub const QUERY_EMBEDDING: &str = "query_embedding";
    /// predictor: f32 `[batch, D]`, the document's `sentence_embedding`.
    pub const DOCUMENT_EMBEDDING: &str = "document_embedding";
    /// predictor: f32 `[batch, H]`, P(e, z).
    pub const PREDICTED_HIDDEN: &str = "predicted_hidden";
    /// predictor: f32 `[batch]`, `log p(T) - log p(F)`.
    pub const SCORE: &str = "score";
}

/// Arithmetic of the encoder graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit floats.
    Fp32,
    /// 16-bit floats throughout, for GPUs.
    Fp16,
    /// 8-bit weights per output channel, activations quantised at run time.
    Int8,
    /// 4-bit weights in blocks, activations quantised at run time by the operator.
    Int4,
}

impl Precision {
    /// What the maps of layers have that few bits cost too much, for people; none where all layers have the same.
    pub fn more(self, graph: GraphKind) -> Option<&'static str> {
        match (self, graph) {
            (Self::Int4, _) | (Self::Int8, GraphKind::Fused) => Some("int8 in blocks"),
            (Self::Int8, GraphKind::Portable) => Some("fp32"),
            (Self::Fp32 | Self::Fp16, _) => None,
        }
    }

    /// As it is written in files and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::Fp16 => "fp16",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        }
    }
}

/// Which operators a graph is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GraphKind {
    /// ONNX Runtime's own as well: faster there, unknown elsewhere.
    Fused,
    /// Those of the ONNX standard only.
    Portable,
}

/// Whether texts may share a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Batching {
    /// An embedding does not depend on what shares its batch.
    Free,
    /// Texts must be encoded one at a time, unpadded: in fused graphs int8 has some activation scales for all that is read,
    /// and attention continues one prefix only.
    OneAtATime,
}

/// One measured pair that a device can prove itself with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Golden {
    /// Query text.
    pub query: String,
    /// Document text.
    pub document: String,
    /// Score as this bundle's own graphs give it on the exporting machine.
    pub score: f32,
}

/// The encoder graph's properties.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EncoderInfo {
    /// Arithmetic.
    pub precision: Precision,
    /// Operators.
    pub graph: GraphKind,
    /// Layers of the LLM, counted from 0, whose maps have more bits ([`Precision::more`]): few cost their ranking.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kept_layers: Vec<usize>,
    /// Those of `kept_layers` whose maps are in fp32.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub float_layers: Vec<usize>,
    /// Token ids of the prompts whose keys and values the graph holds: a pass begins behind one of them, and input
    /// `prefix` says which. None where the graph reads whole passes and has no such input.
    pub prefixes: Vec<Vec<u32>>,
    /// Whether texts may share a batch.
    pub batching: Batching,
    /// Rank of the adapters that the graph reads queries with, where the student has some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query_adapter_rank: Option<usize>,
    /// Number of LLM layers in the graph.
    pub layers: usize,
    /// Size of `sentence_embedding`, D.
    pub dimensions: usize,
    /// Size of `answer_embedding`, H.
    pub hidden_size: usize,
    /// Rows of the token embedding: every token id must be below.
    pub vocab_size: usize,
    /// Longest pass that the prompt can make, prefix included.
    pub max_tokens: usize,
}

/// The predictor's properties.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PredictorInfo {
    /// Form.
    pub form: Form,
    /// Residual.
    pub residual: Residual,
    /// Numbers stored per document, m.
    pub inner_dimensions: usize,
    /// What is read from the LLM.
    pub latents: LatentConfig,
}

/// `manifest.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// Program and version that wrote the bundle.
    pub created_by: String,
    /// Encoder graph.
    pub encoder: EncoderInfo,
    /// Predictor.
    pub predictor: PredictorInfo,
    /// From score to probability.
    pub calibration: Calibration,
    /// SHA-256 of every other file of the bundle, by name.
    pub digests: BTreeMap<String, String>,
    /// Digest of all that shapes a document vector (encoder, fold, prompt, tokenizer): an index is keyed to it.
    pub document_digest: String,
    /// Measured agreement of this bundle with its student; null until measured.
    pub parity: serde_json::Value,
    /// Pairs with known scores.
    pub golden: Vec<Golden>,
    /// The student's provenance.
    pub provenance: serde_json::Value,
}

/// A bundle that must not be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Reading failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file of the bundle is not the one that was exported.
    #[error(
        "{file}: damaged: its SHA-256 begins {found}, manifest.json says {expected}; copy the bundle again"
    )]
    Digest {
        /// The damaged file.
        file: PathBuf,
        /// First digits found.
        found: String,
        /// First digits expected.
        expected: String,
    },
    /// A file that every bundle has is not listed.
    #[error("{file}: lists no digest for `{name}`; the bundle is incomplete, export it again")]
    Unlisted {
        /// The manifest.
        file: PathBuf,
        /// The missing entry.
        name: String,
    },
    /// A listed file that lies elsewhere.
    #[error("{file}: lists `{name}`, which is no file of the bundle; the manifest was altered, export again")]
    Elsewhere {
        /// The manifest.
        file: PathBuf,
        /// The entry.
        name: String,
    },
    /// The digest over all of the manifest's parts disagrees.
    #[error(
        "{file}: document_digest does not follow from the listed digests; the manifest was altered, export again"
    )]
    DocumentDigest {
        /// The manifest.
        file: PathBuf,
    },
}

/// Every file against its digest.
pub(crate) fn check_digests(dir: &Path, digests: &BTreeMap<String, String>) -> Result<(), ManifestError> {
    for (name, expected) in digests {
        let path = dir.join(name);
        // A path to a device could be read for ever.
        if Path::new(name).file_name() != Some(name.as_ref()) || path.exists() && !path.is_file() {
            return Err(ManifestError::Elsewhere { file: dir.join(FILE_NAME), name: name.clone() });
        }
        let found = files::sha256_file(&path)?;
        if &found != expected {
            let short = |digest: &str| digest.chars().take(12).collect();
            let (found, expected) = (short(&found), short(expected));
            return Err(ManifestError::Digest { file: path, found, expected });
        }
    }
    Ok(())
}

impl Manifest {
    /// Reads `manifest.json` and checks every listed file against its digest, so that a damaged bundle is refused by
    /// the name of the damaged file before anything is answered from it.
    pub fn open(bundle: &Path) -> Result<Self, ManifestError> {
        let file = bundle.join(FILE_NAME);
        let manifest: Self = files::read_json(&file)?;
        if manifest.format_version != FORMAT_VERSION {
            let (found, expected) = (manifest.format_version, FORMAT_VERSION);
            return Err(FileError::Version { file, found, expected }.into());
        }
        for name in
            [ENCODER_FILE, PREDICTOR_FILE, crate::fold::FILE_NAME, crate::prompt::FILE_NAME, "tokenizer.json"]
        {
            if !manifest.digests.contains_key(name) {
                return Err(ManifestError::Unlisted { file, name: name.to_owned() });
            }
        }
        check_digests(bundle, &manifest.digests)?;
        if manifest.document_digest != manifest.expected_document_digest() {
            return Err(ManifestError::DocumentDigest { file });
        }
        Ok(manifest)
    }

    /// Digest over precision, batching and the listed digests of all files that shape a document vector.
    pub fn expected_document_digest(&self) -> String {
        let info = &self.encoder;
        let precision = format!("{:?} {:?} {:?}", info.precision, info.graph, info.batching);
        let mut parts = vec![precision.into_bytes()];
        for (name, digest) in &self.digests {
            if name != PREDICTOR_FILE && name != CARD_FILE {
                parts.push(name.clone().into_bytes());
                parts.push(digest.clone().into_bytes());
            }
        }
        files::sha256_parts(parts.iter().map(Vec::as_slice))
    }

    /// The student's description as far as folding needs it.
    pub fn student(&self) -> StudentConfig {
        StudentConfig {
            format_version: student::PLAIN_VERSION,
            latents: self.predictor.latents.clone(),
            hidden_size: self.encoder.hidden_size,
            form: self.predictor.form,
            inner_dimensions: self.predictor.inner_dimensions,
            residual: self.predictor.residual,
            // It is part of the graph.
            query_adapter: None,
            calibration: self.calibration,
            provenance: self.provenance.clone(),
        }
    }
}
