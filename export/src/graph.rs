//! A graph under construction: nodes, initialisers, constants, and the rules that keep it readable.
//!
//! * One [`Scope`] gives a weight its key (`layers.0.mlp.up_proj.weight`) and a node its name
//!   (`/layers.0/mlp/up_proj/MatMul`), so the file opened in Netron shows the model as its source does.
//! * A second node, value or initialiser of one name is an error, and so is whatever nothing reads.
//! * Constants are kept once, however often they are asked for.
//! * Initialisers of more than a kilobyte can go to an external data file; they are written as they come, so memory
//!   holds one of them at a time.

use crate::error::ExportError;
use crate::onnx::*;
use models::files::FileError;
use prost::Message;
use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// Initialisers up to this size stay in the protobuf: shape inference needs the small ones there.
const INLINE_BYTES: usize = 1024;
/// Initialisers from this size start on a page of their own, so that they can be memory-mapped.
const PAGED_BYTES: usize = 1 << 16;
const PAGE: u64 = 4096;
/// Where smaller ones start: a cache line.
const LINE: u64 = 64;
/// Protobuf's own limit.
const MOST_BYTES: u64 = (1 << 31) - 1;

/// A place in the model: `layers.0` / `mlp` / `up_proj`.
#[derive(Debug, Clone, Default)]
pub struct Scope {
    parts: Vec<String>,
}

impl Scope {
    /// The whole model.
    pub fn root() -> Self {
        Self::default()
    }

    /// A part of this place.
    pub fn child(&self, part: &str) -> Self {
        Self { parts: self.parts.iter().cloned().chain([part.to_owned()]).collect() }
    }

    /// Key of a tensor of this place in the checkpoint: `layers.0.mlp.up_proj.weight`.
    pub fn key(&self, leaf: &str) -> String {
        self.child(leaf).parts.join(".")
    }

    /// Name of a node of this place: `/layers.0/mlp/up_proj/MatMul`.
    pub fn node(&self, op: &str) -> String {
        format!("/{}", self.child(op).parts.join("/"))
    }
}

/// Something a node can read: an input, an initialiser or a node's output.
#[derive(Debug, Clone)]
pub struct Value {
    name: String,
}

impl Value {
    /// An input that is left out.
    pub fn absent() -> Self {
        Self { name: String::new() }
    }

    fn is_absent(&self) -> bool {
        self.name.is_empty()
    }

    /// Its name in the file.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// Numbers of an initialiser, row-major.
#[derive(Debug, Clone, Copy)]
pub enum Data<'a> {
    /// f32.
    F32(&'a [f32]),
    /// f32, written as f16.
    F16(&'a [f32]),
    /// i8.
    I8(&'a [i8]),
    /// u8.
    U8(&'a [u8]),
    /// i64.
    I64(&'a [i64]),
}

impl Data<'_> {
    fn kind(self) -> DataType {
        match self {
            Self::F32(_) => DataType::Float,
            Self::F16(_) => DataType::Float16,
            Self::I8(_) => DataType::Int8,
            Self::U8(_) => DataType::Uint8,
            Self::I64(_) => DataType::Int64,
        }
    }

    fn bytes(self) -> usize {
        match self {
            Self::F32(x) => size_of_val(x),
            Self::F16(x) => size_of_val(x) / 2,
            Self::I8(x) => size_of_val(x),
            Self::U8(x) => size_of_val(x),
            Self::I64(x) => size_of_val(x),
        }
    }

    /// Little-endian, in pieces that stay in the cache.
    fn write(self, out: &mut impl Write) -> io::Result<()> {
        const PIECE: usize = 1 << 13;
        let mut put = |bytes: Vec<u8>| out.write_all(&bytes);
        match self {
            Self::F32(x) => {
                x.chunks(PIECE).try_for_each(|c| put(c.iter().flat_map(|n| n.to_le_bytes()).collect()))
            }
            Self::F16(x) => x.chunks(PIECE).try_for_each(|c| {
                put(c.iter().flat_map(|n| half::f16::from_f32(*n).to_le_bytes()).collect())
            }),
            Self::I8(x) => {
                x.chunks(PIECE).try_for_each(|c| put(c.iter().map(|n| n.to_le_bytes()[0]).collect()))
            }
            Self::U8(x) => x.chunks(PIECE).try_for_each(|c| put(c.to_vec())),
            Self::I64(x) => {
                x.chunks(PIECE).try_for_each(|c| put(c.iter().flat_map(|n| n.to_le_bytes()).collect()))
            }
        }
    }
}

/// Operators that are ONNX Runtime's own.
const CONTRIB: &[&str] =
    &["GroupQueryAttention", "MatMulIntegerToFloat", "MatMulNBits", "SkipSimplifiedLayerNormalization"];
/// Ending of an output that the operator need not make.
pub const NOT_MADE: &str = "!";

/// One dimension of an input or output.
#[derive(Debug, Clone, Copy)]
pub enum Dim {
    /// Known at export.
    Size(usize),
    /// Known when the graph runs.
    Symbol(&'static str),
}

/// The file beside the graph that holds its large initialisers.
struct External {
    path: PathBuf,
    out: BufWriter<File>,
    length: u64,
}

impl External {
    /// Appends aligned numbers and says where they lie.
    fn write(&mut self, data: Data<'_>) -> io::Result<(u64, u64)> {
        let align = if data.bytes() >= PAGED_BYTES { PAGE } else { LINE };
        let start = self.length.next_multiple_of(align);
        self.out.write_all(&vec![0; (start - self.length) as usize])?;
        data.write(&mut self.out)?;
        self.length = start + data.bytes() as u64;
        Ok((start, data.bytes() as u64))
    }
}

/// Nodes and initialisers so far.
pub struct Graph {
    name: &'static str,
    nodes: Vec<NodeProto>,
    initializers: Vec<TensorProto>,
    inputs: Vec<ValueInfoProto>,
    outputs: Vec<ValueInfoProto>,
    node_names: HashSet<String>,
    /// Every value and whether something reads it.
    values: HashMap<String, bool>,
    /// Whether an operator of ONNX Runtime's own is used.
    contrib: bool,
    external: Option<External>,
}

impl Graph {
    /// A graph whose initialisers all stand in its own file.
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            nodes: Vec::new(),
            initializers: Vec::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            node_names: HashSet::new(),
            values: HashMap::new(),
            contrib: false,
            external: None,
        }
    }

    /// A graph whose large initialisers go to `path`, which must lie beside the graph's own file.
    pub fn with_external_data(name: &'static str, path: &Path) -> Result<Self, ExportError> {
        let out = BufWriter::with_capacity(1 << 20, File::create(path).map_err(FileError::io(path))?);
        Ok(Self { external: Some(External { path: path.to_owned(), out, length: 0 }), ..Self::new(name) })
    }

    /// Number of nodes so far.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there is no node yet.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Declares an input.
    pub fn input(&mut self, name: &str, kind: DataType, shape: &[Dim]) -> Result<Value, ExportError> {
        let value = self.define(name.to_owned())?;
        self.inputs.push(value_info(name, kind, shape));
        Ok(value)
    }

    /// Declares `value`, made by a node, as an output called `name`.
    pub fn output(
        &mut self,
        name: &str,
        kind: DataType,
        shape: &[Dim],
        value: Value,
    ) -> Result<(), ExportError> {
        let renamed = self.define(name.to_owned())?;
        let old = value.name;
        let made =
            self.nodes.iter_mut().find_map(|node| node.output.iter_mut().find(|output| **output == old));
        let Some(made) = made else { return Err(self.undefined(&old)) };
        made.clone_from(&renamed.name);
        for input in self.nodes.iter_mut().flat_map(|node| &mut node.input).filter(|input| **input == old) {
            input.clone_from(&renamed.name);
        }
        self.values.remove(&old);
        self.values.insert(renamed.name, true);
        self.outputs.push(value_info(name, kind, shape));
        Ok(())
    }

    /// Adds a weight or table; large ones are written out at once.
    pub fn initializer(&mut self, name: &str, shape: &[usize], data: Data<'_>) -> Result<Value, ExportError> {
        let value = self.define(name.to_owned())?;
        let mut tensor = TensorProto {
            dims: shape.iter().map(|&d| d as i64).collect(),
            data_type: Some(data.kind() as i32),
            name: Some(name.to_owned()),
            ..TensorProto::default()
        };
        match &mut self.external {
            Some(external) if data.bytes() > INLINE_BYTES => {
                let (offset, length) = external.write(data).map_err(FileError::io(&external.path))?;
                let location = external.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                tensor.data_location = Some(DataLocation::External as i32);
                tensor.external_data =
                    [("location", location), ("offset", offset.to_string()), ("length", length.to_string())]
                        .map(|(k, v)| StringStringEntryProto { key: Some(k.into()), value: Some(v) })
                        .into();
            }
            _ => {
                let mut bytes = Vec::with_capacity(data.bytes());
                data.write(&mut bytes).map_err(FileError::io(Path::new(name)))?;
                tensor.raw_data = Some(bytes);
            }
        }
        self.initializers.push(tensor);
        Ok(value)
    }

    /// A list of integers (shapes, axes, sizes), kept once per graph.
    pub fn integers(&mut self, numbers: &[i64]) -> Result<Value, ExportError> {
        let text: Vec<_> = numbers.iter().map(i64::to_string).collect();
        self.constant(format!("/constants/[{}]", text.join(",")), &[numbers.len()], Data::I64(numbers))
    }

    /// One integer without dimensions, kept once per graph.
    pub fn integer(&mut self, number: i64) -> Result<Value, ExportError> {
        self.constant(format!("/constants/{number}"), &[], Data::I64(&[number]))
    }

    /// One number without dimensions, kept once per graph.
    pub fn number(&mut self, number: f32) -> Result<Value, ExportError> {
        self.constant(format!("/constants/{number:?}"), &[], Data::F32(&[number]))
    }

    fn constant(&mut self, name: String, shape: &[usize], data: Data<'_>) -> Result<Value, ExportError> {
        // The name says the value and (by its spelling) the kind, so equal names are equal constants.
        if self.values.contains_key(&name) {
            Ok(Value { name })
        } else {
            self.initializer(&name, shape, data)
        }
    }

    /// Adds an operator without attributes.
    pub fn op(&mut self, scope: &Scope, op: &str, inputs: &[&Value]) -> Result<Value, ExportError> {
        self.op_with(scope, op, inputs, [])
    }

    /// Adds an operator with attributes.
    pub fn op_with<const N: usize>(
        &mut self,
        scope: &Scope,
        op: &str,
        inputs: &[&Value],
        attributes: [AttributeProto; N],
    ) -> Result<Value, ExportError> {
        let [output] = self.ops(scope, op, inputs, attributes, [""])?;
        Ok(output)
    }

    /// Adds an operator with several outputs, called by the node's name and these endings.
    pub fn ops<const N: usize, const OUTPUTS: usize>(
        &mut self,
        scope: &Scope,
        op: &str,
        inputs: &[&Value],
        attributes: [AttributeProto; N],
        endings: [&str; OUTPUTS],
    ) -> Result<[Value; OUTPUTS], ExportError> {
        let outputs = self.node(scope, op, inputs, attributes.into(), &endings)?;
        Ok(std::array::from_fn(|i| outputs[i].clone()))
    }

    /// As [`Graph::ops`], where the number of outputs is known when this program runs.
    pub fn node(
        &mut self,
        scope: &Scope,
        op: &str,
        inputs: &[&Value],
        attribute: Vec<AttributeProto>,
        endings: &[&str],
    ) -> Result<Vec<Value>, ExportError> {
        let name = scope.node(op);
        if !self.node_names.insert(name.clone()) {
            return Err(ExportError::DuplicateName { graph: self.name, name });
        }
        for input in inputs.iter().filter(|input| !input.is_absent()) {
            match self.values.get_mut(&input.name) {
                Some(read) => *read = true,
                None => return Err(self.undefined(&input.name)),
            }
        }
        let mut output = Vec::with_capacity(endings.len());
        for ending in endings {
            output.push(match *ending {
                NOT_MADE => String::new(),
                ending => self.define(format!("{name}{ending}"))?.name,
            });
        }
        let values = output.iter().map(|name| Value { name: name.clone() }).collect();
        let contrib = CONTRIB.contains(&op);
        self.contrib |= contrib;
        self.nodes.push(NodeProto {
            input: inputs.iter().map(|value| value.name.clone()).collect(),
            output,
            name: Some(name),
            op_type: Some(op.to_owned()),
            attribute,
            domain: contrib.then(|| MICROSOFT.to_owned()),
        });
        Ok(values)
    }

    /// Outputs that an operator must make though nobody reads them.
    pub fn ignore(&mut self, values: &[&Value]) {
        for value in values {
            self.values.insert(value.name.clone(), true);
        }
    }

    /// Checks that everything is read and writes the graph to `path`.
    pub fn finish(mut self, path: &Path) -> Result<(), ExportError> {
        let mut unused: Vec<_> =
            self.values.iter().filter(|(_, read)| !**read).map(|(name, _)| name).collect();
        unused.sort();
        if let Some(name) = unused.first() {
            return Err(ExportError::UnusedValue { graph: self.name, name: (*name).clone() });
        }
        if let Some(external) = &mut self.external {
            external.out.flush().map_err(FileError::io(&external.path))?;
        }
        let set = |domain: &str, version| OperatorSetIdProto {
            domain: Some(domain.into()),
            version: Some(version),
        };
        let mut opset_import = vec![set("", OPSET)];
        if self.contrib {
            opset_import.push(set(MICROSOFT, 1));
        }
        let model = ModelProto {
            ir_version: Some(IR_VERSION),
            producer_name: Some(env!("CARGO_PKG_NAME").into()),
            producer_version: Some(env!("CARGO_PKG_VERSION").into()),
            graph: Some(GraphProto {
                node: self.nodes,
                name: Some(self.name.into()),
                initializer: self.initializers,
                doc_string: None,
                input: self.inputs,
                output: self.outputs,
            }),
            opset_import,
        };
        let bytes = model.encoded_len() as u64;
        if bytes > MOST_BYTES {
            return Err(ExportError::TooLarge { graph: self.name, bytes });
        }
        Ok(fs::write(path, model.encode_to_vec()).map_err(FileError::io(path))?)
    }

    fn define(&mut self, name: String) -> Result<Value, ExportError> {
        if self.values.insert(name.clone(), false).is_some() {
            return Err(ExportError::DuplicateName { graph: self.name, name });
        }
        Ok(Value { name })
    }

    fn undefined(&self, name: &str) -> ExportError {
        ExportError::Undefined { graph: self.name, name: name.to_owned() }
    }
}

fn value_info(name: &str, kind: DataType, shape: &[Dim]) -> ValueInfoProto {
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

#[cfg(test)]
mod tests {
    use super::*;

    const ROW: &[Dim] = &[Dim::Symbol("batch"), Dim::Size(3)];

    fn graph() -> (Graph, Value) {
        let mut g = Graph::new("test");
        let x = g.input("x", DataType::Float, ROW).unwrap();
        (g, x)
    }

    /// Two weights under one name: the second would silently replace the first in most readers.
    #[test]
    fn a_name_is_given_once() {
        let (mut g, x) = graph();
        let scope = Scope::root().child("layers.0");
        g.op(&scope, "Relu", &[&x]).unwrap();
        let error = g.op(&scope, "Relu", &[&x]).unwrap_err().to_string();
        assert!(error.contains("`/layers.0/Relu`"), "{error}");
        g.initializer("w", &[1], Data::F32(&[1.0])).unwrap();
        assert!(matches!(
            g.initializer("w", &[1], Data::F32(&[2.0])),
            Err(ExportError::DuplicateName { .. })
        ));
        assert!(matches!(g.input("w", DataType::Float, ROW), Err(ExportError::DuplicateName { .. })));
    }

    /// A dead weight costs megabytes on every robot; a dead node means a block was wired past.
    #[test]
    fn nothing_is_left_unread() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.onnx");
        let (mut g, x) = graph();
        let y = g.op(&Scope::root(), "Relu", &[&x]).unwrap();
        g.output("y", DataType::Float, ROW, y).unwrap();
        g.initializer("w", &[1], Data::F32(&[1.0])).unwrap();
        assert!(matches!(g.finish(&file), Err(ExportError::UnusedValue { name, .. }) if name == "w"));
        let (mut g, x) = graph();
        g.op(&Scope::root(), "Relu", &[&x]).unwrap();
        assert!(matches!(g.finish(&file), Err(ExportError::UnusedValue { name, .. }) if name == "/Relu"));
        assert!(!file.exists());
    }

    /// A node that reads what another graph made would be written and fail on the robot.
    #[test]
    fn values_of_another_graph_are_refused() {
        let (_, x) = graph();
        let error = Graph::new("other").op(&Scope::root(), "Relu", &[&x]).unwrap_err();
        assert!(matches!(error, ExportError::Undefined { .. }));
    }

    /// Offsets that overlap or lie off the end would load as other weights.
    #[test]
    fn external_data_comes_back_from_its_offsets() {
        let dir = tempfile::tempdir().unwrap();
        let (file, data) = (dir.path().join("x.onnx"), dir.path().join("x.onnx_data"));
        let mut g = Graph::with_external_data("test", &data).unwrap();
        let x = g.input("x", DataType::Float, ROW).unwrap();
        let tensors: Vec<Vec<f32>> =
            [3, 300, 20_000, 301].iter().map(|&n| (0..n).map(|i| (i * n) as f32).collect()).collect();
        let mut sum = x;
        for (i, t) in tensors.iter().enumerate() {
            let w = g.initializer(&format!("w{i}"), &[t.len()], Data::F32(t)).unwrap();
            sum = g.op(&Scope::root().child(&i.to_string()), "Add", &[&sum, &w]).unwrap();
        }
        g.output("y", DataType::Float, ROW, sum).unwrap();
        g.finish(&file).unwrap();

        let model = ModelProto::decode(fs::read(&file).unwrap().as_slice()).unwrap();
        let bytes = fs::read(&data).unwrap();
        let graph = model.graph.unwrap();
        assert_eq!(graph.output[0].name.as_deref(), Some("y"));
        assert_eq!(graph.node.last().unwrap().output, ["y"]);
        assert!(graph.initializer[0].raw_data.is_some(), "small tensors stay in the graph");
        for (tensor, expected) in graph.initializer.iter().zip(&tensors).skip(1) {
            let field = |i: usize| tensor.external_data[i].value.as_deref().unwrap();
            assert_eq!(field(0), "x.onnx_data");
            let (offset, length): (usize, usize) = (field(1).parse().unwrap(), field(2).parse().unwrap());
            let align = if length >= PAGED_BYTES { PAGE } else { LINE };
            assert_eq!(offset as u64 % align, 0);
            let found: Vec<f32> = bytes[offset..offset + length]
                .as_chunks::<4>()
                .0
                .iter()
                .map(|n| f32::from_le_bytes(*n))
                .collect();
            assert_eq!(&found, expected);
        }
    }

    /// Thirty copies of one shape vector are noise in Netron.
    #[test]
    fn constants_are_kept_once() {
        let mut g = Graph::new("test");
        let a = g.integers(&[0, -1]).unwrap();
        let b = g.integers(&[0, -1]).unwrap();
        assert_eq!((a.name(), g.initializers.len()), (b.name(), 1));
        for other in [g.integers(&[1]).unwrap(), g.integer(1).unwrap(), g.number(1.0).unwrap()] {
            assert_ne!(other.name(), a.name());
        }
        assert_eq!(g.initializers.len(), 4);
    }
}
