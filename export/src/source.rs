//! A checkpoint as the emitters read it: every tensor checked for NaN and infinity, in the arithmetic chosen for it.

use crate::adapter::QueryAdapter;
use crate::calibrate::Calibration;
use crate::error::ExportError;
use crate::graph::Data;
use crate::keep::KeptLayers;
use crate::quantise::ErrorReport;
use crate::rotation::Turned;
use models::config::DecoderConfig;
use models::manifest::{GraphKind, Precision};
use models::weights::Weights;
use std::collections::HashSet;
use std::path::Path;
use std::rc::Rc;

/// A matrix `[rows, columns]`, row-major: rows are output channels, as in `nn.Linear.weight`.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix {
    /// Output channels.
    pub rows: usize,
    /// Input channels.
    pub columns: usize,
    /// Numbers.
    pub values: Vec<f32>,
}

impl Matrix {
    /// This matrix on its side, `[columns, rows]`.
    pub fn transposed(&self) -> Vec<f32> {
        transpose(&self.values, self.rows, self.columns)
    }
}

/// `[rows, columns]` to `[columns, rows]`, in blocks that stay in the cache.
pub fn transpose<T: Copy + Default>(values: &[T], rows: usize, columns: usize) -> Vec<T> {
    const BLOCK: usize = 32;
    let mut out = vec![T::default(); values.len()];
    for row_block in (0..rows).step_by(BLOCK) {
        for column_block in (0..columns).step_by(BLOCK) {
            for row in row_block..rows.min(row_block + BLOCK) {
                for column in column_block..columns.min(column_block + BLOCK) {
                    out[column * rows + row] = values[row * columns + column];
                }
            }
        }
    }
    out
}

/// Arithmetic of a layer's linear maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Maps {
    /// As the graph's activations are: f32 or f16.
    Floats,
    /// 8 bits, weights with a scale for each row, activations as their place asks for (`layers/linear.rs`).
    Bytes,
    /// 8 bits, weights and activations with a scale for each block of a row (ONNX Runtime's operator): twice the precision at
    /// twice the time.
    ByteBlocks,
    /// 4 bits for weights and 8 for activations, in blocks.
    HalfBytes,
}

impl Maps {
    fn of(precision: Precision) -> Self {
        match precision {
            Precision::Fp32 | Precision::Fp16 => Self::Floats,
            Precision::Int8 => Self::Bytes,
            Precision::Int4 => Self::HalfBytes,
        }
    }

    /// Those of a layer that needs more bits; said as [`Precision::more`].
    fn more(precision: Precision, graph: GraphKind) -> Self {
        match (precision, graph) {
            (Precision::Int4, _) | (Precision::Int8, GraphKind::Fused) => Self::ByteBlocks,
            (Precision::Int8, GraphKind::Portable) | (Precision::Fp32 | Precision::Fp16, _) => Self::Floats,
        }
    }
}

/// Tensors of one checkpoint and how they are to be written.
pub struct Source {
    weights: Weights,
    /// Arithmetic of linear maps and embeddings.
    pub precision: Precision,
    /// Which operators may be used.
    pub graph: GraphKind,
    /// What quantisation has cost so far.
    pub errors: ErrorReport,
    /// What the maps read: weights are rounded by it.
    calibration: Option<Rc<Calibration>>,
    /// The coordinates that the LLM is written in, where they are not its own.
    turned: Option<Rc<Turned>>,
    /// Branches that queries take.
    pub adapter: Option<Box<QueryAdapter>>,
    /// Layers of the LLM whose maps have more bits than the others' ([`Precision::more`]).
    pub kept: KeptLayers,
    /// The layer that is being written, and its arithmetic.
    layer: usize,
    maps: Maps,
    /// Where inputs of maps are to be outputs of the graph: their keys and sizes so far.
    pub observed: Option<Vec<(String, usize)>>,
    read: HashSet<String>,
}

impl Source {
    /// The LLM of a student directory; names, shapes and kinds must be those `config` describes.
    pub fn open_llm(
        dir: &Path,
        config: &DecoderConfig,
        precision: Precision,
        graph: GraphKind,
    ) -> Result<Self, ExportError> {
        let weights = Weights::open(dir)?;
        weights.check(config)?;
        Ok(Self::new(weights, precision, graph))
    }

    fn new(weights: Weights, precision: Precision, graph: GraphKind) -> Self {
        Self {
            weights,
            precision,
            graph,
            errors: ErrorReport::default(),
            calibration: None,
            turned: None,
            adapter: None,
            kept: KeptLayers::none(),
            layer: 0,
            maps: Maps::of(precision),
            observed: None,
            read: HashSet::new(),
        }
    }

    /// Has all tensors read in turned coordinates from now on, an adapter's as well; with a calibration, which was made in
    /// turned coordinates, weights are rounded and neurons divided by what it says.
    pub fn turn(
        &mut self,
        config: &DecoderConfig,
        calibration: Option<Rc<Calibration>>,
    ) -> Result<(), ExportError> {
        let neurons = calibration.as_ref().map(|calibration| calibration.divisors()).unwrap_or_default();
        self.calibration = calibration;
        let turned = Rc::new(Turned::new(&self.weights, config, neurons)?);
        if let Some(adapter) = &mut self.adapter {
            adapter.turn(&turned);
        }
        self.turned = Some(turned);
        Ok(())
    }

    /// As [`Source::turn`], of another checkpoint's coordinates.
    pub fn turn_as(&mut self, turned: &Rc<Turned>) {
        self.turned = Some(Rc::clone(turned));
    }

    /// The coordinates that the residual stream is written in, where they are not the LLM's.
    pub fn turned(&self) -> Option<&Turned> {
        self.turned.as_deref()
    }

    /// What follows are this layer's maps.
    pub fn begin_layer(&mut self, index: usize) {
        self.layer = index;
        self.maps = match (self.kept.floats.contains(&index), self.kept.more.contains(&index)) {
            (true, _) => Maps::Floats,
            (false, true) => Maps::more(self.precision, self.graph),
            (false, false) => Maps::of(self.precision),
        };
    }

    /// Arithmetic of the layer that is being written.
    pub fn maps(&self) -> Maps {
        self.maps
    }

    /// What the maps read, where it was looked at.
    pub fn calibration(&self) -> Option<&Calibration> {
        self.calibration.as_deref()
    }

    /// Whether one activation scale serves all tokens' neurons in the layer that is being written.
    pub fn has_even_neurons(&self) -> bool {
        self.calibration.as_ref().is_some_and(|calibration| calibration.is_even(self.layer))
    }

    /// Whether ONNX Runtime's own operators may be used.
    pub fn fused(&self) -> bool {
        self.graph == GraphKind::Fused
    }

    /// Numbers as the graph's activations are: f16 in that precision, f32 in all others.
    pub fn activation<'a>(&self, values: &'a [f32]) -> Data<'a> {
        match self.precision {
            Precision::Fp16 => Data::F16(values),
            Precision::Fp32 | Precision::Int8 | Precision::Int4 => Data::F32(values),
        }
    }

    /// One safetensors file, written as it is.
    pub fn open_file(file: &Path) -> Result<Self, ExportError> {
        Ok(Self::new(Weights::open_file(file)?, Precision::Fp32, GraphKind::Portable))
    }

    /// The file the tensors come from.
    pub fn file(&self) -> &Path {
        self.weights.file()
    }

    /// Shape and numbers of a tensor, all finite.
    pub fn tensor(&mut self, name: &str) -> Result<(Vec<usize>, Vec<f32>), ExportError> {
        let (shape, mut values) = self.weights.f32(name)?;
        if let Some(position) = values.iter().position(|v| !v.is_finite()) {
            let (file, value) = (self.file().to_owned(), values[position]);
            return Err(ExportError::NotFinite { file, name: name.to_owned(), position, value });
        }
        self.read.insert(name.to_owned());
        if let Some(turned) = &self.turned {
            turned.turn(name, &shape, &mut values);
        }
        Ok((shape, values))
    }

    /// A matrix in the LLM's own coordinates.
    pub fn unturned(&mut self, name: &str) -> Result<Matrix, ExportError> {
        let turned = self.turned.take();
        let matrix = self.matrix(name);
        self.turned = turned;
        matrix
    }

    /// A tensor of one dimension.
    pub fn vector(&mut self, name: &str) -> Result<Vec<f32>, ExportError> {
        match self.tensor(name)? {
            (shape, values) if shape.len() == 1 => Ok(values),
            (found, values) => Err(self.shape(name, found, vec![values.len()])),
        }
    }

    /// A tensor of two dimensions.
    pub fn matrix(&mut self, name: &str) -> Result<Matrix, ExportError> {
        let (shape, values) = self.tensor(name)?;
        match shape[..] {
            [rows, columns] => Ok(Matrix { rows, columns, values }),
            _ => Err(self.shape(name, shape, vec![0, 0])),
        }
    }

    /// Matrices of the same width, one below the other: several linear maps of one input as one.
    pub fn stacked(&mut self, names: &[String]) -> Result<Matrix, ExportError> {
        let mut stack = Matrix { rows: 0, columns: 0, values: Vec::new() };
        for name in names {
            let next = self.matrix(name)?;
            if stack.rows > 0 && next.columns != stack.columns {
                return Err(self.shape(name, vec![next.rows, next.columns], vec![next.rows, stack.columns]));
            }
            stack.rows += next.rows;
            stack.columns = next.columns;
            if stack.values.is_empty() {
                stack.values = next.values;
            } else {
                stack.values.extend(next.values);
            }
        }
        Ok(stack)
    }

    /// Refuses a file that holds more than what was read.
    pub fn all_read(&self) -> Result<(), ExportError> {
        match self.weights.names().find(|name| !self.read.contains(*name)) {
            Some(name) => {
                Err(ExportError::UnusedTensor { file: self.file().to_owned(), name: name.to_owned() })
            }
            None => Ok(()),
        }
    }

    /// Shape of a tensor that is not read yet.
    pub fn shape_of(&self, name: &str) -> Result<Vec<usize>, ExportError> {
        let (_, shape, _) = self.weights.raw(name)?;
        Ok(shape.to_vec())
    }

    /// A tensor of this file that has another shape than it should.
    pub fn shape(&self, name: &str, found: Vec<usize>, expected: Vec<usize>) -> ExportError {
        ExportError::Shape { file: self.file().to_owned(), name: name.to_owned(), found, expected }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The graph multiplies from the other side than the checkpoint: a wrong turn here is plausible noise.
    #[test]
    fn transposing_twice_is_nothing() {
        let (rows, columns) = (37, 70);
        let values: Vec<i32> = (0..(rows * columns) as i32).collect();
        let turned = transpose(&values, rows, columns);
        assert_eq!(turned[5 * rows + 3], values[3 * columns + 5]);
        assert_eq!(transpose(&turned, columns, rows), values);
    }
}
