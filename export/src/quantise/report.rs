//! How much of the weights rounding has lost.

use crate::matrix::Matrix;
use std::collections::BTreeMap;
use std::fmt;

/// Relative error of a rounded matrix, `|w - q| / |w|` (Euclidean), as it adds up.
#[derive(Default)]
pub(super) struct RelativeError {
    lost: f64,
    total: f64,
}

impl RelativeError {
    /// Of a matrix and its rounded rows.
    pub(super) fn between<'a>(matrix: &Matrix, rounded: impl Iterator<Item = &'a Vec<f32>>) -> Self {
        let mut error = Self::default();
        for (row, rounded) in matrix.values.chunks_exact(matrix.columns.max(1)).zip(rounded) {
            row.iter().zip(rounded).for_each(|(w, rounded)| error.add(*w, *rounded));
        }
        error
    }

    pub(super) fn add(&mut self, w: f32, rounded: f32) {
        self.lost += f64::from(w - rounded).powi(2);
        self.total += f64::from(w).powi(2);
    }

    pub(super) fn value(&self) -> f64 {
        if self.total > 0.0 { (self.lost / self.total).sqrt() } else { 0.0 }
    }
}

/// Relative errors of all rounded matrices, by kind of layer (`qkv_proj`, `down_proj`, ...).
#[derive(Debug, Clone, Default)]
pub struct ErrorReport {
    kinds: BTreeMap<String, Kind>,
}

#[derive(Debug, Clone, Default)]
struct Kind {
    matrices: usize,
    sum: f64,
    worst: f64,
    worst_name: String,
}

impl ErrorReport {
    /// Adds one matrix.
    pub fn add(&mut self, kind: &str, name: &str, relative_error: f64) {
        let entry = self.kinds.entry(kind.to_owned()).or_default();
        entry.matrices += 1;
        entry.sum += relative_error;
        if relative_error >= entry.worst {
            (entry.worst, entry.worst_name) = (relative_error, name.to_owned());
        }
    }

    /// Whether nothing was quantised.
    pub fn is_empty(&self) -> bool {
        self.kinds.is_empty()
    }
}

impl fmt::Display for ErrorReport {
    /// One line per kind: `down_proj     30 matrices  mean 0.91%  worst 1.32% (model.layers.29.mlp.down_proj)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<_> = self
            .kinds
            .iter()
            .map(|(name, kind)| {
                let mean = 100.0 * kind.sum / kind.matrices as f64;
                let (count, worst) = (kind.matrices, 100.0 * kind.worst);
                format!(
                    "{name:<14}{count:>4} matrices  mean {mean:.2}%  worst {worst:.2}% ({})",
                    kind.worst_name
                )
            })
            .collect();
        f.write_str(&lines.join("\n"))
    }
}
