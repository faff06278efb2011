//! The ONNX file format: its protobuf messages, by hand, so that no `protoc` and no generated code is needed.
//! Field numbers and value codes: <https://github.com/onnx/onnx/blob/main/onnx/onnx.proto>; fields that we never write are
//! left out, as protobuf allows.
//!
//! The schema is proto2: an optional scalar that is set to zero is written, and one that is not set is absent. The
//! ONNX checker tells the two apart in attributes, hence `Option` there.

use prost::{Enumeration, Message, Oneof};

/// Version of the format itself that opset 17 came with (ONNX 1.12).
pub const IR_VERSION: i64 = 8;

/// Version of the standard operators. 17 is the oldest that has all we use (`Shape` with `start`/`end` came with 15,
/// `GatherND` with `batch_dims` with 12), ONNX Runtime runs it since 1.12, and TensorRT, OpenVINO and tract know it. The
/// next ones offer nothing to this graph before `RMSNormalization`, `RotaryEmbedding` and `Attention` of opset 23,
/// which ONNX Runtime 1.17 refuses.
pub const OPSET: i64 = 17;

/// ONNX Runtime's own operators (docs/ContribOperators.md of its repository).
pub const MICROSOFT: &str = "com.microsoft";

/// A whole file.
#[derive(Clone, PartialEq, Message)]
pub struct ModelProto {
    /// [`IR_VERSION`].
    #[prost(int64, optional, tag = "1")]
    pub ir_version: Option<i64>,
    /// Program that wrote the file.
    #[prost(string, optional, tag = "2")]
    pub producer_name: Option<String>,
    /// Its version.
    #[prost(string, optional, tag = "3")]
    pub producer_version: Option<String>,
    /// The graph.
    #[prost(message, optional, tag = "7")]
    pub graph: Option<GraphProto>,
    /// Operator sets in use.
    #[prost(message, repeated, tag = "8")]
    pub opset_import: Vec<OperatorSetIdProto>,
}

/// An operator set: domain (empty = standard) and version.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct OperatorSetIdProto {
    /// Domain.
    #[prost(string, optional, tag = "1")]
    pub domain: Option<String>,
    /// Version.
    #[prost(int64, optional, tag = "2")]
    pub version: Option<i64>,
}

/// Nodes in topological order, weights, inputs and outputs.
#[derive(Clone, PartialEq, Message)]
pub struct GraphProto {
    /// Operators.
    #[prost(message, repeated, tag = "1")]
    pub node: Vec<NodeProto>,
    /// Name.
    #[prost(string, optional, tag = "2")]
    pub name: Option<String>,
    /// Weights and constants.
    #[prost(message, repeated, tag = "5")]
    pub initializer: Vec<TensorProto>,
    /// Documentation.
    #[prost(string, optional, tag = "10")]
    pub doc_string: Option<String>,
    /// Inputs.
    #[prost(message, repeated, tag = "11")]
    pub input: Vec<ValueInfoProto>,
    /// Outputs.
    #[prost(message, repeated, tag = "12")]
    pub output: Vec<ValueInfoProto>,
}

/// One operator.
#[derive(Clone, PartialEq, Message)]
pub struct NodeProto {
    /// Names of the values read.
    #[prost(string, repeated, tag = "1")]
    pub input: Vec<String>,
    /// Names of the values made.
    #[prost(string, repeated, tag = "2")]
    pub output: Vec<String>,
    /// Unique name.
    #[prost(string, optional, tag = "3")]
    pub name: Option<String>,
    /// Operator, e.g. `MatMul`.
    #[prost(string, optional, tag = "4")]
    pub op_type: Option<String>,
    /// Attributes.
    #[prost(message, repeated, tag = "5")]
    pub attribute: Vec<AttributeProto>,
    /// Operator set it belongs to; absent = standard.
    #[prost(string, optional, tag = "7")]
    pub domain: Option<String>,
}

/// A named attribute of one node.
#[derive(Clone, PartialEq, Message)]
pub struct AttributeProto {
    /// Name.
    #[prost(string, optional, tag = "1")]
    pub name: Option<String>,
    /// The number, if `type` is FLOAT.
    #[prost(float, optional, tag = "2")]
    pub f: Option<f32>,
    /// The number, if `type` is INT.
    #[prost(int64, optional, tag = "3")]
    pub i: Option<i64>,
    /// The numbers, if `type` is INTS.
    #[prost(int64, repeated, packed = "false", tag = "8")]
    pub ints: Vec<i64>,
    /// Which of the fields is set.
    #[prost(enumeration = "AttributeType", optional, tag = "20")]
    pub r#type: Option<i32>,
}

/// Kinds of attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub enum AttributeType {
    /// `f`.
    Float = 1,
    /// `i`.
    Int = 2,
    /// `ints`.
    Ints = 7,
}

impl AttributeProto {
    /// A number attribute.
    pub fn float(name: &str, f: f32) -> Self {
        let r#type = Some(AttributeType::Float as i32);
        Self { name: Some(name.into()), f: Some(f), r#type, ..Self::default() }
    }

    /// An integer attribute.
    pub fn int(name: &str, i: i64) -> Self {
        let r#type = Some(AttributeType::Int as i32);
        Self { name: Some(name.into()), i: Some(i), r#type, ..Self::default() }
    }

    /// A list of integers.
    pub fn ints(name: &str, ints: &[i64]) -> Self {
        let r#type = Some(AttributeType::Ints as i32);
        Self { name: Some(name.into()), ints: ints.into(), r#type, ..Self::default() }
    }
}

/// A tensor: its elements are in `raw_data`, or in another file that `external_data` names.
#[derive(Clone, PartialEq, Message)]
pub struct TensorProto {
    /// Shape.
    #[prost(int64, repeated, packed = "false", tag = "1")]
    pub dims: Vec<i64>,
    /// Kind of number.
    #[prost(enumeration = "DataType", optional, tag = "2")]
    pub data_type: Option<i32>,
    /// Unique name.
    #[prost(string, optional, tag = "8")]
    pub name: Option<String>,
    /// Little-endian elements, row-major.
    #[prost(bytes = "vec", optional, tag = "9")]
    pub raw_data: Option<Vec<u8>>,
    /// `location`, `offset`, `length`.
    #[prost(message, repeated, tag = "13")]
    pub external_data: Vec<StringStringEntryProto>,
    /// Where the elements are.
    #[prost(enumeration = "DataLocation", optional, tag = "14")]
    pub data_location: Option<i32>,
}

/// Kinds of number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub enum DataType {
    /// f32.
    Float = 1,
    /// u8.
    Uint8 = 2,
    /// i8.
    Int8 = 3,
    /// i32.
    Int32 = 6,
    /// i64.
    Int64 = 7,
    /// One byte, 0 or 1.
    Bool = 9,
    /// f16.
    Float16 = 10,
}

/// Where a tensor's elements are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub enum DataLocation {
    /// In `raw_data`.
    Default = 0,
    /// In the file that `external_data` names.
    External = 1,
}

/// A pair of strings.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct StringStringEntryProto {
    /// Key.
    #[prost(string, optional, tag = "1")]
    pub key: Option<String>,
    /// Value.
    #[prost(string, optional, tag = "2")]
    pub value: Option<String>,
}

/// A graph's input or output.
#[derive(Clone, PartialEq, Message)]
pub struct ValueInfoProto {
    /// Name.
    #[prost(string, optional, tag = "1")]
    pub name: Option<String>,
    /// Kind and shape.
    #[prost(message, optional, tag = "2")]
    pub r#type: Option<TypeProto>,
}

/// A type; we only write tensors.
#[derive(Clone, PartialEq, Message)]
pub struct TypeProto {
    /// The tensor.
    #[prost(message, optional, tag = "1")]
    pub tensor_type: Option<TensorTypeProto>,
}

/// `TypeProto.Tensor`.
#[derive(Clone, PartialEq, Message)]
pub struct TensorTypeProto {
    /// Kind of number.
    #[prost(enumeration = "DataType", optional, tag = "1")]
    pub elem_type: Option<i32>,
    /// Shape.
    #[prost(message, optional, tag = "2")]
    pub shape: Option<TensorShapeProto>,
}

/// A shape.
#[derive(Clone, PartialEq, Message)]
pub struct TensorShapeProto {
    /// Its dimensions.
    #[prost(message, repeated, tag = "1")]
    pub dim: Vec<DimensionProto>,
}

/// `TensorShapeProto.Dimension`: a number or a name.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct DimensionProto {
    /// Which of both.
    #[prost(oneof = "Dimension", tags = "1, 2")]
    pub value: Option<Dimension>,
}

/// A dimension's value.
#[derive(Clone, PartialEq, Eq, Hash, Oneof)]
pub enum Dimension {
    /// Known at export.
    #[prost(int64, tag = "1")]
    Size(i64),
    /// Known when the graph runs; equal names are equal sizes.
    #[prost(string, tag = "2")]
    Symbol(String),
}
