//! One emitter per block, each the twin of a file in `models/src/torch`.

pub mod attention;
pub mod embedding;
pub mod linear;
pub mod mlp;
pub mod norm;
pub mod past;
pub mod pooling;
pub mod rotary;
