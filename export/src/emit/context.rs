//! What the emitters of one LLM graph share beside the graph itself: the tensors, the arithmetic, and what quantising cost.

use crate::onnx::tensor::TensorData;
use crate::onnx::value::Value;
use crate::quantise::calibrated::CalibratedQuantiser;
use crate::quantise::mixed::MixedLayers;
use crate::quantise::report::ErrorReport;
use crate::source::llm::Llm;
use models::manifest::{GraphKind, Precision};

/// Number format of a layer's linear layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinearFormat {
    /// As the graph's activations are: f32 or f16.
    Float,
    /// 8 bits, weights with a scale per row, activations as `layers/int8.rs` decides.
    Int8,
    /// 8 bits, weights and activations with a scale per block of a row (`MatMulNBits`): twice the precision of `Int8`, twice
    /// the time.
    Int8Blocks,
    /// 4 bits for weights and 8 for activations, in blocks.
    Int4Blocks,
}

impl LinearFormat {
    fn of(precision: Precision) -> Self {
        match precision {
            Precision::Fp32 | Precision::Fp16 => Self::Float,
            Precision::Int8 => Self::Int8,
            Precision::Int4 => Self::Int4Blocks,
        }
    }

    /// That of layers with a higher precision; [`Precision::more`] is its name.
    fn higher(precision: Precision, graph: GraphKind) -> Self {
        match (precision, graph) {
            (Precision::Int4, _) | (Precision::Int8, GraphKind::Fused) => Self::Int8Blocks,
            (Precision::Int8, GraphKind::Portable) | (Precision::Fp32 | Precision::Fp16, _) => Self::Float,
        }
    }
}

/// The tensors of one LLM and how they are written.
pub struct EmitContext<'a> {
    /// The tensors.
    pub llm: Llm,
    /// Arithmetic of linear layers and embeddings.
    pub precision: Precision,
    /// Which operators may be used.
    pub graph: GraphKind,
    /// What quantising has cost so far.
    pub errors: ErrorReport,
    /// Layers with a higher precision than the others.
    pub mixed: MixedLayers,
    /// Rounds weights by a calibration, where there is one.
    pub calibrated: Option<&'a CalibratedQuantiser>,
    /// f32 or f16 `[1]`: 1 where the graph reads a query, 0 where it reads a document; set where queries take an adapter.
    pub is_query: Option<Value>,
    /// Names and sizes of the linear layers' inputs, where they are to be outputs of the graph.
    observed: Option<Vec<(String, usize)>>,
    /// The layer that is being written, and the format of its linear layers.
    layer: usize,
    format: LinearFormat,
}

impl EmitContext<'_> {
    /// One precision in all layers, rounded to nearest.
    pub fn new(llm: Llm, precision: Precision, graph: GraphKind) -> Self {
        Self {
            llm,
            precision,
            graph,
            errors: ErrorReport::default(),
            mixed: MixedLayers::none(),
            calibrated: None,
            is_query: None,
            observed: None,
            layer: 0,
            format: LinearFormat::of(precision),
        }
    }

    /// Makes the inputs of all linear layers outputs of the graph too.
    pub fn observe_inputs(&mut self) {
        self.observed = Some(Vec::new());
    }

    /// Whether this input, with this many columns, is to be an output too.
    pub fn observes(&mut self, key: &str, columns: usize) -> bool {
        if let Some(observed) = &mut self.observed {
            observed.push((key.to_owned(), columns));
        }
        self.observed.is_some()
    }

    /// Names and sizes of the inputs that are outputs of the graph too; the tensors are closed.
    pub fn into_observed(self) -> Vec<(String, usize)> {
        self.observed.unwrap_or_default()
    }

    /// From here on this layer's linear layers are written.
    pub fn begin_layer(&mut self, index: usize) {
        self.layer = index;
        self.format = match (self.mixed.fp32.contains(&index), self.mixed.higher.contains(&index)) {
            (true, _) => LinearFormat::Float,
            (false, true) => LinearFormat::higher(self.precision, self.graph),
            (false, false) => LinearFormat::of(self.precision),
        };
    }

    /// Format of the linear layers that are being written.
    pub fn format(&self) -> LinearFormat {
        self.format
    }

    /// Whether one activation scale for all tokens is enough before the `down_proj` that is being written.
    pub fn down_proj_per_tensor(&self) -> bool {
        self.calibrated.is_some_and(|calibrated| calibrated.down_proj_per_tensor(self.layer))
    }

    /// Whether ONNX Runtime's own operators may be used.
    pub fn fused(&self) -> bool {
        self.graph == GraphKind::Fused
    }

    /// Numbers as the graph's activations are: f16 in that precision, f32 in all others.
    pub fn activation<'v>(&self, values: &'v [f32]) -> TensorData<'v> {
        match self.precision {
            Precision::Fp16 => TensorData::F16(values),
            Precision::Fp32 | Precision::Int8 | Precision::Int4 => TensorData::F32(values),
        }
    }
}
