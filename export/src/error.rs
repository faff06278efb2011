//! Why a student cannot be exported: where, what was found, what was expected, and the way out where we know it.

use models::beir::DataError;
use models::config::ConfigError;
use models::files::FileError;
use models::fold::FoldError;
use models::manifest::Precision;
use models::prompt::PromptError;
use models::weights::WeightsError;
use std::path::PathBuf;

/// Any failure of this library.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// Reading or writing a file failed, or the output exists.
    #[error(transparent)]
    File(#[from] FileError),
    /// `config.json` is missing, broken or not supported.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The data set to rank cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The LLM's weights cannot be read, or do not fit `config.json`.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The predictor's weights do not fit `student.json`.
    #[error(transparent)]
    Fold(#[from] FoldError),
    /// Template and tokenizer do not fit together.
    #[error(transparent)]
    Prompt(#[from] PromptError),
    /// A precision that standard operators cannot express.
    #[error(
        "{} needs ONNX Runtime's own operators, which a portable graph does not use; take --graph fused, or --precision fp32 or int8",
        precision.name()
    )]
    Portable {
        /// The precision.
        precision: Precision,
    },
    /// A precision without quantised weights.
    #[error(
        "{} weights are not quantised: --calibrate is for --precision int8 and int4",
        precision.name()
    )]
    NothingToCalibrate {
        /// The precision.
        precision: Precision,
    },
    /// A precision that no layer can exceed.
    #[error(
        "no layer can have a higher precision than {}: --mixed-precision is for --precision int8 and int4",
        precision.name()
    )]
    NoHigherPrecision {
        /// The precision.
        precision: Precision,
    },
    /// A layer that the encoder does not have.
    #[error("--mixed-precision {layer}: this student's encoder has layers 0 to {}", depth.saturating_sub(1))]
    MixedLayer {
        /// The layer.
        layer: usize,
        /// Number of layers.
        depth: usize,
    },
    /// A reranker in half precision.
    #[error("a reranker cannot be exported in fp16; take --precision fp32, int8 or int4")]
    RerankerPrecision,
    /// Heads that the fused attention does not support.
    #[error(
        "{file}: `head_dim` is {head_dim}, ONNX Runtime's GroupQueryAttention needs a multiple of 16; take --graph portable"
    )]
    HeadDim {
        /// `config.json`.
        file: PathBuf,
        /// Size of a head.
        head_dim: usize,
    },
    /// A weight is NaN or infinite.
    #[error(
        "{file}: tensor `{name}` holds {value} at position {position}, only finite numbers can be exported; the training has diverged, take an earlier checkpoint"
    )]
    NotFinite {
        /// The safetensors file or index.
        file: PathBuf,
        /// The tensor.
        name: String,
        /// Row-major position of the first such number.
        position: usize,
        /// `NaN`, `inf` or `-inf`.
        value: f32,
    },
    /// A weight of another shape than its block needs.
    #[error("{file}: tensor `{name}` has shape {found:?}, expected {expected:?}")]
    Shape {
        /// The safetensors file or index.
        file: PathBuf,
        /// The tensor.
        name: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape needed.
        expected: Vec<usize>,
    },
    /// A tensor that the graphs do not read.
    #[error(
        "{file}: tensor `{name}` is not part of the predictor that student.json describes; the two files come from different students"
    )]
    UnusedTensor {
        /// The safetensors file.
        file: PathBuf,
        /// The tensor.
        name: String,
    },
    /// Two nodes, values or initialisers of the same name.
    #[error("graph `{graph}`: the name `{name}` is given twice")]
    DuplicateName {
        /// The graph.
        graph: &'static str,
        /// The name.
        name: String,
    },
    /// A node reads a value that does not exist (yet).
    #[error("graph `{graph}`: `{name}` is used before it is defined")]
    Undefined {
        /// The graph.
        graph: &'static str,
        /// The name.
        name: String,
    },
    /// An input, initialiser or node output that nothing reads.
    #[error("graph `{graph}`: nothing reads `{name}`")]
    UnusedValue {
        /// The graph.
        graph: &'static str,
        /// The name.
        name: String,
    },
    /// A protobuf file cannot be larger than 2 GiB.
    #[error("graph `{graph}`: {bytes} bytes do not fit into one protobuf file (2 GiB)")]
    TooLarge {
        /// The graph.
        graph: &'static str,
        /// Its size.
        bytes: u64,
    },
    /// `student.json` contradicts itself or the LLM beside it.
    #[error("{file}: `{field}` is {found}, expected {expected}")]
    Student {
        /// `student.json`.
        file: PathBuf,
        /// The field.
        field: &'static str,
        /// Its value.
        found: String,
        /// What would be right.
        expected: String,
    },
    /// The tokenizer has ids that the embedding has no row for.
    #[error(
        "{file}: token `{token}` has id {id}, the model's embedding has {vocab_size} rows; tokenizer and model do not belong together"
    )]
    TokenId {
        /// `tokenizer.json`.
        file: PathBuf,
        /// The token.
        token: String,
        /// Its id.
        id: u32,
        /// Rows of the embedding.
        vocab_size: usize,
    },
    /// The prompt allows passes that the LLM cannot read.
    #[error(
        "{file}: a pass can be {found} tokens long, the model reads at most {expected}; lower max_tokens"
    )]
    TooLong {
        /// `prompt.json`.
        file: PathBuf,
        /// Longest pass of the template.
        found: usize,
        /// Longest pass of the model.
        expected: usize,
    },
    /// The student has no reference scores to check the bundle with.
    #[error(
        "{file}: not found; without the student's reference scores the bundle cannot be checked (`train distill` writes this file at its end)"
    )]
    NoGolden {
        /// `golden.json` or `golden.safetensors`.
        file: PathBuf,
    },
    /// The reference scores contradict each other.
    #[error("{file}: {reason}; distil the student again")]
    Golden {
        /// `golden.json` or `golden.safetensors`.
        file: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The bundle that was just written cannot be opened or run.
    #[error("the new bundle cannot be run: {0}")]
    Runtime(String),
    /// The bundle differs too much from the student.
    #[error("parity with the student is not reached: {}; nothing was written (--allow-degraded writes the bundle all the same)", .0.join("; "))]
    Parity(
        /// The limits that are exceeded.
        Vec<String>,
    ),
}

impl ExportError {
    /// For a failure of the runtime library.
    pub(crate) fn cannot_run(error: impl std::fmt::Display) -> Self {
        Self::Runtime(error.to_string())
    }
}
