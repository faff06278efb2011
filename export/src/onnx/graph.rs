//! A graph under construction: nodes, initialisers, constants, and the rules that keep it readable.
//!
//! * One [`Scope`] gives a weight its key (`layers.0.mlp.up_proj.weight`) and a node its name
//!   (`/layers.0/mlp/up_proj/MatMul`), so the file opened in Netron shows the model as its source does.
//! * A second node, value or initialiser of the same name is an error, and so is one that nothing reads.
//! * Constants are kept once, however often they are asked for.
//! * Initialisers of more than a kilobyte can go to an external data file; each is written at once, so only one is in
//!   memory at a time.

use crate::error::ExportError;
use crate::onnx::proto::{
    AttributeProto, DataLocation, DataType, GraphProto, IR_VERSION, MICROSOFT, ModelProto, NodeProto, OPSET,
    OperatorSetIdProto, StringStringEntryProto, TensorProto, ValueInfoProto,
};
use crate::onnx::scope::Scope;
use crate::onnx::tensor::{ExternalData, TensorData};
use crate::onnx::value::{Dim, Value, value_info};
use models::files::FileError;
use prost::Message;
use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;

/// Initialisers up to this size stay in the protobuf: shape inference needs the small ones there.
const INLINE_BYTES: usize = 1024;
/// Protobuf's own limit.
const MOST_BYTES: u64 = (1 << 31) - 1;

/// Operators of ONNX Runtime's own domain.
const CONTRIB: &[&str] =
    &["GroupQueryAttention", "MatMulIntegerToFloat", "MatMulNBits", "SkipSimplifiedLayerNormalization"];
/// Ending of an optional output that is not asked for.
pub const NOT_MADE: &str = "!";

/// A graph under construction.
pub struct GraphBuilder {
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
    external: Option<ExternalData>,
}

impl GraphBuilder {
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
        let external = ExternalData::create(path).map_err(FileError::io(path))?;
        Ok(Self { external: Some(external), ..Self::new(name) })
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
        let old = value.name().to_owned();
        let made =
            self.nodes.iter_mut().find_map(|node| node.output.iter_mut().find(|output| **output == old));
        let Some(made) = made else { return Err(self.undefined(&old)) };
        renamed.name().clone_into(made);
        for input in self.nodes.iter_mut().flat_map(|node| &mut node.input).filter(|input| **input == old) {
            renamed.name().clone_into(input);
        }
        self.values.remove(&old);
        self.values.insert(renamed.name().to_owned(), true);
        self.outputs.push(value_info(name, kind, shape));
        Ok(())
    }

    /// Adds a weight or table; large ones are written out at once.
    pub fn initializer(
        &mut self,
        name: &str,
        shape: &[usize],
        data: TensorData<'_>,
    ) -> Result<Value, ExportError> {
        let value = self.define(name.to_owned())?;
        let mut tensor = TensorProto {
            dims: shape.iter().map(|&d| d as i64).collect(),
            data_type: Some(data.kind() as i32),
            name: Some(name.to_owned()),
            ..TensorProto::default()
        };
        match &mut self.external {
            Some(external) if data.bytes() > INLINE_BYTES => {
                let (offset, length) = external.write(data).map_err(FileError::io(external.path()))?;
                let location = external.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
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
        self.constant(format!("/constants/[{}]", text.join(",")), &[numbers.len()], TensorData::I64(numbers))
    }

    /// One integer without dimensions, kept once per graph.
    pub fn integer(&mut self, number: i64) -> Result<Value, ExportError> {
        self.constant(format!("/constants/{number}"), &[], TensorData::I64(&[number]))
    }

    /// One number without dimensions, kept once per graph.
    pub fn number(&mut self, number: f32) -> Result<Value, ExportError> {
        self.constant(format!("/constants/{number:?}"), &[], TensorData::F32(&[number]))
    }

    fn constant(
        &mut self,
        name: String,
        shape: &[usize],
        data: TensorData<'_>,
    ) -> Result<Value, ExportError> {
        // The name says the value and (by its spelling) the kind, so equal names are equal constants.
        if self.values.contains_key(&name) {
            Ok(Value::new(name))
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

    /// As [`GraphBuilder::ops`], for a number of outputs that is not known at compile time.
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
            match self.values.get_mut(input.name()) {
                Some(read) => *read = true,
                None => return Err(self.undefined(input.name())),
            }
        }
        let mut output = Vec::with_capacity(endings.len());
        for ending in endings {
            output.push(match *ending {
                NOT_MADE => String::new(),
                ending => self.define(format!("{name}{ending}"))?.name().to_owned(),
            });
        }
        let values = output.iter().cloned().map(Value::new).collect();
        let contrib = CONTRIB.contains(&op);
        self.contrib |= contrib;
        self.nodes.push(NodeProto {
            input: inputs.iter().map(|value| value.name().to_owned()).collect(),
            output,
            name: Some(name),
            op_type: Some(op.to_owned()),
            attribute,
            domain: contrib.then(|| MICROSOFT.to_owned()),
        });
        Ok(values)
    }

    /// Marks outputs as read that an operator must make although nothing reads them.
    pub fn ignore(&mut self, values: &[&Value]) {
        for value in values {
            self.values.insert(value.name().to_owned(), true);
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
            external.flush().map_err(FileError::io(external.path()))?;
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
        Ok(Value::new(name))
    }

    fn undefined(&self, name: &str) -> ExportError {
        ExportError::Undefined { graph: self.name, name: name.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::tensor::{LINE, PAGE, PAGED_BYTES};

    const ROW: &[Dim] = &[Dim::Symbol("batch"), Dim::Size(3)];

    fn graph() -> (GraphBuilder, Value) {
        let mut g = GraphBuilder::new("test");
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
        g.initializer("w", &[1], TensorData::F32(&[1.0])).unwrap();
        assert!(matches!(
            g.initializer("w", &[1], TensorData::F32(&[2.0])),
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
        g.initializer("w", &[1], TensorData::F32(&[1.0])).unwrap();
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
        let error = GraphBuilder::new("other").op(&Scope::root(), "Relu", &[&x]).unwrap_err();
        assert!(matches!(error, ExportError::Undefined { .. }));
    }

    /// Offsets that overlap or lie off the end would load as other weights.
    #[test]
    fn external_data_comes_back_from_its_offsets() {
        let dir = tempfile::tempdir().unwrap();
        let (file, data) = (dir.path().join("x.onnx"), dir.path().join("x.onnx_data"));
        let mut g = GraphBuilder::with_external_data("test", &data).unwrap();
        let x = g.input("x", DataType::Float, ROW).unwrap();
        let tensors: Vec<Vec<f32>> =
            [3, 300, 20_000, 301].iter().map(|&n| (0..n).map(|i| (i * n) as f32).collect()).collect();
        let mut sum = x;
        for (i, t) in tensors.iter().enumerate() {
            let w = g.initializer(&format!("w{i}"), &[t.len()], TensorData::F32(t)).unwrap();
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
        let mut g = GraphBuilder::new("test");
        let a = g.integers(&[0, -1]).unwrap();
        let b = g.integers(&[0, -1]).unwrap();
        assert_eq!((a.name(), g.initializers.len()), (b.name(), 1));
        for other in [g.integers(&[1]).unwrap(), g.integer(1).unwrap(), g.number(1.0).unwrap()] {
            assert_ne!(other.name(), a.name());
        }
        assert_eq!(g.initializers.len(), 4);
    }
}
