//! ONNX graphs: the file format (`proto`), and a graph under construction (`graph`) with its names (`scope`), values
//! (`value`) and tensors (`tensor`).

pub mod graph;
pub mod proto;
pub mod scope;
pub mod tensor;
pub mod value;
