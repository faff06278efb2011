//! One emitter per block; those of the LLM are each the twin of a file in `models/src/torch`.

pub mod adapter;
pub mod attention;
pub mod basis;
pub mod decoder_layer;
pub mod embedding;
mod int8;
pub mod linear;
pub mod mlp;
pub mod norm;
pub mod past;
pub mod pooling;
pub mod rotary;
