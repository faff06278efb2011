//! Writes a student as an ONNX bundle, straight from safetensors and without libtorch, and checks the bundle with the
//! code that will run it.
//!
//! Data flows one way, and each module uses only those above it in this list:
//!
//! 1. `error`, `matrix`: what everything else shares;
//! 2. `onnx`: the file format, and a graph under construction;
//! 3. `quantise`: int8 and int4 weights, and the basis in which they lose least;
//! 4. `source`: a checkpoint's tensors, checked, in that basis; the prompt's keys and values;
//! 5. `emit`: one emitter for each block, and the whole graphs;
//! 6. `verify`: a finished bundle against the reference scores and against fp32;
//! 7. `bundle`: from a checkpoint to a directory.

pub mod bundle;
mod emit;
pub mod error;
pub mod matrix;
pub mod onnx;
pub mod quantise;
mod source;
pub mod verify;
