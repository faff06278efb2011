//! Tensors of one safetensors file or model directory, each checked for NaN and infinity, in the basis chosen for them.

use crate::error::ExportError;
use crate::matrix::Matrix;
use crate::quantise::basis::RotatedBasis;
use models::weights::Weights;
use std::collections::HashSet;
use std::path::Path;
use std::rc::Rc;

/// The tensors of one checkpoint.
pub struct TensorSource {
    weights: Weights,
    /// The basis in which tensors are read, where it is not their own.
    basis: Option<Rc<RotatedBasis>>,
    read: HashSet<String>,
}

impl TensorSource {
    /// Tensors of a model directory or file that is open already.
    pub fn new(weights: Weights) -> Self {
        Self { weights, basis: None, read: HashSet::new() }
    }

    /// Tensors of one safetensors file.
    pub fn open_file(file: &Path) -> Result<Self, ExportError> {
        Ok(Self::new(Weights::open_file(file)?))
    }

    /// Reads all tensors in this basis from now on.
    pub fn set_basis(&mut self, basis: &Rc<RotatedBasis>) {
        self.basis = Some(Rc::clone(basis));
    }

    /// The basis of the residual stream, where it is not the LLM's own.
    pub fn basis(&self) -> Option<&RotatedBasis> {
        self.basis.as_deref()
    }

    /// The weights as they are stored.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// The file the tensors come from.
    pub fn file(&self) -> &Path {
        self.weights.file()
    }

    /// Shape and elements of a tensor, all finite.
    pub fn tensor(&mut self, name: &str) -> Result<(Vec<usize>, Vec<f32>), ExportError> {
        let (shape, mut values) = self.weights.f32(name)?;
        if let Some(position) = values.iter().position(|v| !v.is_finite()) {
            let (file, value) = (self.file().to_owned(), values[position]);
            return Err(ExportError::NotFinite { file, name: name.to_owned(), position, value });
        }
        self.read.insert(name.to_owned());
        if let Some(basis) = &self.basis {
            basis.apply(name, &shape, &mut values);
        }
        Ok((shape, values))
    }

    /// A tensor of one dimension.
    pub fn vector(&mut self, name: &str) -> Result<Vec<f32>, ExportError> {
        match self.tensor(name)? {
            (shape, values) if shape.len() == 1 => Ok(values),
            (found, values) => Err(self.wrong_shape(name, found, vec![values.len()])),
        }
    }

    /// A tensor of two dimensions.
    pub fn matrix(&mut self, name: &str) -> Result<Matrix, ExportError> {
        let (shape, values) = self.tensor(name)?;
        match shape[..] {
            [rows, columns] => Ok(Matrix { rows, columns, values }),
            _ => Err(self.wrong_shape(name, shape, vec![0, 0])),
        }
    }

    /// A matrix in the LLM's own basis.
    pub fn unrotated_matrix(&mut self, name: &str) -> Result<Matrix, ExportError> {
        let basis = self.basis.take();
        let matrix = self.matrix(name);
        self.basis = basis;
        matrix
    }

    /// Matrices of the same width, one below the other: several linear layers of one input as one.
    pub fn stacked(&mut self, names: &[String]) -> Result<Matrix, ExportError> {
        let mut stack = Matrix { rows: 0, columns: 0, values: Vec::new() };
        for name in names {
            let next = self.matrix(name)?;
            if stack.rows > 0 && next.columns != stack.columns {
                let (found, expected) = (vec![next.rows, next.columns], vec![next.rows, stack.columns]);
                return Err(self.wrong_shape(name, found, expected));
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

    /// The error for a tensor of this file whose shape is not the expected one.
    pub fn wrong_shape(&self, name: &str, found: Vec<usize>, expected: Vec<usize>) -> ExportError {
        ExportError::Shape { file: self.file().to_owned(), name: name.to_owned(), found, expected }
    }
}
