//! Symmetric 8-bit weights: `w[row, :] ~ scale[row] * q[row, :]`, zero point 0 (what ARM's and AVX-VNNI's kernels need),
//! `q` in -63..=63. One scale per output channel; the same input always gives the same bytes.
//!
//! Why not -127..=127: x86 processors without VNNI add pairs of products of unsigned activations and signed weights in
//! 16 bits, and 2 * 255 * 127 does not fit: the sum saturates, and the graph means something else there than on the
//! machine that wrote it. 2 * 255 * 63 = 32,130 fits, so every processor computes the same whole numbers.

use crate::source::Matrix;
use std::collections::BTreeMap;
use std::fmt;

/// Largest magnitude.
const MOST: f32 = 63.0;

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
        assert_eq!(q.values[..4], [63, -31, 13, 0]);
        assert_eq!(q.values[4..], [63, 0, -63, 0, 0, 0, 0, 0]);
        assert_eq!(q.scales[2], 1.0);
        for (w, (q, i)) in matrix.values.iter().zip(q.values.iter().zip(0..)).take(4) {
            assert!((w - f32::from(*q) * 0.5 / 63.0).abs() <= 0.5 / 126.0 + 1e-6, "{i}");
        }
    }
}
