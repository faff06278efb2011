//! From a checkpoint to a bundle directory: a student's (`student`, with `options`, `writer`, `mixed_precision`, `manifest` and
//! `card`) or a teacher's (`reranker`). Both check first, write graphs and copies into a staged directory (`files`), verify them
//! there, and only then give the directory the name that the user asked for: whatever fails, nothing is left behind.

pub mod card;
pub mod files;
mod manifest;
mod mixed_precision;
pub mod options;
pub mod reranker;
pub mod student;
mod writer;
