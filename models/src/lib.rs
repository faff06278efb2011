//! What things are: data sets, prompts, teachers, students and bundles, their file formats and names; with the
//! feature `torch`, the decoder and predictor themselves.
//!
//! Depends on no other crate of the project. Without features it is small enough for a robot.

pub mod beir;
pub mod checkpoint;
pub mod config;
pub mod cosine;
pub mod error;
pub mod files;
pub mod fold;
#[cfg(feature = "gguf")]
pub mod gguf;
pub mod lora;
pub mod manifest;
pub mod metrics;
pub mod prompt;
pub mod reranker_manifest;
pub mod student;
#[cfg(feature = "torch")]
pub mod torch;
pub mod weights;
