//! Writes a student down as an ONNX bundle, straight from safetensors and without libtorch, and proves it with the very
//! code that will run it.
//!
//! `prefix` runs the prompt once, `source` reads and checks tensors, `adapter` is what queries
//! take beside them, `rotation` turns them for few bits, `layers` turns blocks into nodes, `graph` keeps the rules, `encoder` and
//! `predictor` are the two graphs, `bundle` the directory, `verify` and `ranking` the proof.

pub mod adapter;
pub mod bundle;
pub mod calibrate;
pub mod card;
pub mod encoder;
pub mod error;
pub mod gptq;
pub mod graph;
pub mod keep;
pub mod layers;
pub mod onnx;
pub mod predictor;
pub mod prefix;
pub mod quantise;
pub mod ranking;
pub mod reranker;
pub mod rotation;
pub mod source;
pub mod verify;
