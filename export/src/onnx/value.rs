//! Values that nodes read, and the shapes of a graph's inputs and outputs.

use crate::onnx::proto::{
    DataType, Dimension, DimensionProto, TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto,
};

/// Something a node can read: an input, an initialiser or a node's output.
#[derive(Debug, Clone)]
pub struct Value {
    name: String,
}

impl Value {
    pub(super) fn new(name: String) -> Self {
        Self { name }
    }

    /// An optional input that is not given.
    pub fn absent() -> Self {
        Self { name: String::new() }
    }

    pub(super) fn is_absent(&self) -> bool {
        self.name.is_empty()
    }

    /// Its name in the file.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// One dimension of an input or output.
#[derive(Debug, Clone, Copy)]
pub enum Dim {
    /// Known at export.
    Size(usize),
    /// Known when the graph runs.
    Symbol(&'static str),
}

/// An input or output of a graph, as the file describes it.
pub(super) fn value_info(name: &str, kind: DataType, shape: &[Dim]) -> ValueInfoProto {
    let dim = shape
        .iter()
        .map(|dim| match *dim {
            Dim::Size(size) => Dimension::Size(size as i64),
            Dim::Symbol(symbol) => Dimension::Symbol(symbol.to_owned()),
        })
        .map(|value| DimensionProto { value: Some(value) })
        .collect();
    let tensor = TensorTypeProto { elem_type: Some(kind as i32), shape: Some(TensorShapeProto { dim }) };
    ValueInfoProto { name: Some(name.to_owned()), r#type: Some(TypeProto { tensor_type: Some(tensor) }) }
}
