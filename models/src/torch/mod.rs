//! The decoder in tch: blocks from small to large, the model last. Needs libtorch, so it stands behind the
//! feature `torch`; what it computes is also written as ONNX by `export/src/emit/layers`, file by file.

pub mod attention;
pub mod batch;
pub mod cache;
pub mod checkpointing;
pub mod decoder;
pub mod encoder;
pub mod layers;
pub mod mlp;
pub mod norm;
pub mod predictor;
pub mod reranker;
pub mod rotary;
pub mod spectral;
pub mod weights;

pub use crate::lora::LoraConfig;
pub use batch::{Batch, length_buckets};
pub use cache::KvCache;
pub use checkpointing::Recompute;
pub use decoder::{Decoder, DecoderError, ForwardInput, Hidden};
pub use encoder::{EncoderConfig, Latents, encode};
pub use layers::{Adapters, Linear};
pub use predictor::Predictor;
pub use reranker::{OpenOptions, Pairs, Reranker, RerankerError};
