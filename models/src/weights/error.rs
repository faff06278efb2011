//! What can be wrong with weights.

use super::DType;
use crate::files::FileError;
use std::io;
use std::path::PathBuf;

/// Why weights cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The system refused to read or write.
    #[error("{file}: {source}")]
    Io {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file beside the weights.
    #[error(transparent)]
    File(#[from] FileError),
    /// A folder holds neither of the two names.
    #[error(
        "{dir}: found neither model.safetensors nor model.safetensors.index.json\nhint: convert pickled weights (pytorch_model.bin) to safetensors with transformers' save_pretrained"
    )]
    NoWeights {
        /// The folder.
        dir: PathBuf,
    },
    /// The file is shorter or longer than its header says.
    #[error(
        "{file}: {found} bytes, expected {expected}\nhint: the download or copy was cut off, fetch the file again"
    )]
    Truncated {
        /// The file.
        file: PathBuf,
        /// Its length.
        found: u64,
        /// What the header asks for.
        expected: u64,
    },
    /// The header is no safetensors header.
    #[error("{file}: not a safetensors file: {reason}")]
    Header {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The index names a shard that is not there.
    #[error("{file}: names shard `{shard}`, which is missing beside it")]
    MissingShard {
        /// The index.
        file: PathBuf,
        /// The shard's file name.
        shard: String,
    },
    /// Two shards hold a tensor of the same name.
    #[error("{file}: tensor `{name}` is also in another shard")]
    Duplicate {
        /// The second file.
        file: PathBuf,
        /// The tensor.
        name: String,
    },
    /// A tensor the model needs is not there.
    #[error("{file}: tensor `{name}` is missing")]
    Missing {
        /// Where it was looked for.
        file: PathBuf,
        /// The tensor.
        name: String,
    },
    /// The model has a head of its own, and the file has none.
    #[error(
        "{file}: tensor `lm_head.weight` is missing, and config.json does not say `tie_word_embeddings`\n\
         hint: what was saved is a decoder without its head; a reranker needs the model saved with it (`ForCausalLM`)"
    )]
    NoHead {
        /// Where it was looked for.
        file: PathBuf,
    },
    /// A head that is said to be the embeddings, and is not.
    #[error(
        "{file}: `lm_head.weight` differs from the embeddings, config.json says `tie_word_embeddings`; transformers 4 and 5 \
         read this as different models\n\
         hint: set `tie_word_embeddings` to false in config.json to use the head, or remove it from the file"
    )]
    OtherHead {
        /// The file with the head.
        file: PathBuf,
    },
    /// Weights in few bits.
    #[error(
        "{file}: the weights are quantised ({how}; tensor `{name}`), expected F32, F16 or BF16\n\
         hint: import the model that they were made from; `export` makes the finished bundle small (int8, int4)"
    )]
    Quantised {
        /// The file.
        file: PathBuf,
        /// By what.
        how: String,
        /// A tensor that shows it.
        name: String,
    },
    /// A tensor the model does not have.
    #[error(
        "{file}: tensor `{name}` is not part of the model that config.json describes\nhint: weights and config.json come from different models"
    )]
    Unused {
        /// The file.
        file: PathBuf,
        /// The tensor.
        name: String,
    },
    /// A tensor has another shape.
    #[error("{file}: tensor `{name}` has shape {found:?}, expected {expected:?}")]
    Shape {
        /// The file.
        file: PathBuf,
        /// The tensor.
        name: String,
        /// Shape in the file.
        found: Vec<usize>,
        /// Shape by config.json.
        expected: Vec<usize>,
    },
    /// A tensor has numbers of another kind.
    #[error("{file}: tensor `{name}` is {found}, expected F32, F16 or BF16")]
    Dtype {
        /// The file.
        file: PathBuf,
        /// The tensor.
        name: String,
        /// Its kind.
        found: DType,
    },
    /// A tensor to be written has another number of elements than its shape says, or its name is taken.
    #[error("{file}: cannot write tensor `{name}`: {reason}")]
    Unwritable {
        /// The file.
        file: PathBuf,
        /// The tensor.
        name: String,
        /// Why.
        reason: String,
    },
}
