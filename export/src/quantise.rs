//! Symmetric 8-bit weights: `w[row, :] ~ scale[row] * q[row, :]`, `q` in -127..=127. One scale per row; the same input
//! always gives the same bytes.

use crate::source::Matrix;
use std::collections::BTreeMap;
use std::fmt;

/// Largest magnitude: -128 is left out, so that the range is symmetric.
const MOST: f32 = 127.0;

/// A quantised matrix, `[rows, columns]`.
pub struct Quantised {
    /// Whole numbers, row-major.
    pub values: Vec<i8>,
    /// One scale per row.
    pub scales: Vec<f32>,
    /// `|w - scale q| / |w|` over the whole matrix (Euclidean).
    pub relative_error: f64,
}

/// Quantises each row by its own largest magnitude.
pub fn per_row(matrix: &Matrix) -> Quantised {
    let mut values = Vec::with_capacity(matrix.values.len());
    let mut scales = Vec::with_capacity(matrix.rows);
    let (mut lost, mut total) = (0f64, 0f64);
    for row in matrix.values.chunks_exact(matrix.columns.max(1)) {
        let most = row.iter().fold(0f32, |most, w| most.max(w.abs()));
        // A row of zeros, or of numbers too small to divide by: any scale is right.
        let scale = if most / MOST > f32::MIN_POSITIVE { most / MOST } else { 1.0 };
        scales.push(scale);
        for &w in row {
            let q = (w / scale).round_ties_even().clamp(-MOST, MOST);
            values.push(q as i8);
            lost += f64::from(w - q * scale).powi(2);
            total += f64::from(w).powi(2);
        }
    }
    let relative_error = if total > 0.0 { (lost / total).sqrt() } else { 0.0 };
    Quantised { values, scales, relative_error }
}

/// Weight errors by kind of block (`qkv_proj`, `down_proj`, ...).
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
    /// Notes one matrix.
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

#[cfg(test)]
mod tests {
    use super::*;

    /// One large weight in another row must not cost this row its precision.
    #[test]
    fn rows_have_their_own_scale() {
        let matrix = Matrix {
            rows: 3,
            columns: 4,
            values: vec![0.5, -0.25, 0.1, 0.0, 1e4, 3.0, -1e4, 40.0, 0.0, 0.0, 0.0, 0.0],
        };
        let q = per_row(&matrix);
        assert_eq!(q.values[..4], [127, -64, 25, 0]);
        assert_eq!(q.values[4..], [127, 0, -127, 1, 0, 0, 0, 0]);
        assert_eq!(q.scales[2], 1.0);
        for (w, (q, i)) in matrix.values.iter().zip(q.values.iter().zip(0..)).take(4) {
            assert!((w - f32::from(*q) * 0.5 / 127.0).abs() <= 0.5 / 254.0 + 1e-6, "{i}");
        }
    }
}
