//! GPTQ (<https://arxiv.org/abs/2210.17323>): weights are rounded column by column, and the columns that are not rounded yet
//! compensate for the error of those that are, as far as the inputs of the layer are correlated.
//!
//! With the Gram matrix of the inputs as the Hessian, `H = X^T X`, the loss of a row is `(w - q) H (w - q)^T`. With
//! `H = R R^T`, R upper triangular, `U = R^-1` has `H^-1 = U^T U`, and rounding column j changes the later columns by
//! `-(w_j - q_j) / U_jj * U_j,j+1..`.

use crate::matrix::Matrix;
use rayon::prelude::*;

/// Added to the diagonal of H, as a share of its mean: an error in a direction that no calibration text has must not be free.
const DAMPING: f64 = 0.01;
/// Rows of weights that are rounded together, so that U is read once for all of them.
const ROWS: usize = 8;

/// The Cholesky factor U of the inverse Hessian of a layer's inputs, `H^-1 = U^T U`.
#[derive(Debug, Clone)]
pub struct InverseHessian {
    columns: usize,
    /// U by rows, each from its diagonal on: U is upper triangular, and those of all layers together are as large as the model.
    factor: Vec<f32>,
}

impl InverseHessian {
    /// From the Gram matrix of the inputs, `[columns, columns]`, of which the upper triangle is read.
    pub fn of_gram(gram: &[f32], columns: usize) -> Self {
        let n = columns;
        let mean = (0..n).map(|i| f64::from(gram[i * n + i])).sum::<f64>() / n.max(1) as f64;
        // Inputs that are all zero say nothing about the weights.
        let damping = if mean > 0.0 { DAMPING * mean } else { 1.0 };
        // R by columns from the last: H_ij = sum over k >= j of R_ik R_jk. Kept by rows, so that the sums run along memory.
        let mut root = vec![0f64; n * n];
        for j in (0..n).rev() {
            for i in (0..=j).rev() {
                let tail = |row: usize| &root[row * n + j + 1..(row + 1) * n];
                let mut sum = f64::from(gram[i * n + j]) - dot(tail(i), tail(j));
                if i == j {
                    sum += damping;
                    root[j * n + j] = sum.max(f64::MIN_POSITIVE).sqrt();
                } else {
                    root[i * n + j] = sum / root[j * n + j];
                }
            }
        }
        // U = R^-1, upper triangular as well: U R = 1, row by row.
        let rows: Vec<Vec<f32>> = (0..n)
            .into_par_iter()
            .map(|i| {
                let mut row = vec![0f64; n];
                row[i] = 1.0 / root[i * n + i];
                // Subtracting whole rows of R keeps to memory's order.
                let mut pending = vec![0f64; n];
                for k in i..n {
                    if k > i {
                        row[k] = -pending[k] / root[k * n + k];
                    }
                    let u = row[k];
                    pending[k + 1..]
                        .iter_mut()
                        .zip(&root[k * n + k + 1..(k + 1) * n])
                        .for_each(|(p, r)| *p += u * r);
                }
                row[i..].iter().map(|u| *u as f32).collect()
            })
            .collect();
        Self { columns, factor: rows.concat() }
    }

    /// Row j of U from `U_jj` on.
    fn row(&self, j: usize) -> &[f32] {
        let start = j * (2 * self.columns + 1 - j) / 2;
        &self.factor[start..start + self.columns - j]
    }

    /// Rounds every row of `matrix`. `begin(row, column, weights)` is called before each column with the row's current weights
    /// from that column on and may set the row's scale; `round(row, column, w)` returns the rounded w. Returns the rows'
    /// states and the rounded weights.
    pub fn round<S: Send + Default>(
        &self,
        matrix: &Matrix,
        begin: impl Fn(&mut S, usize, &[f32]) + Sync,
        round: impl Fn(&mut S, usize, f32) -> f32 + Sync,
    ) -> Vec<(S, Vec<f32>)> {
        let n = self.columns;
        let rows: Vec<&[f32]> = matrix.values.chunks_exact(n.max(1)).collect();
        let blocks: Vec<Vec<(S, Vec<f32>)>> = rows
            .par_chunks(ROWS)
            .map(|block| {
                let mut block: Vec<(S, Vec<f32>)> =
                    block.iter().map(|row| (S::default(), row.to_vec())).collect();
                for j in 0..n {
                    let factor = self.row(j);
                    for (state, w) in &mut block {
                        begin(state, j, &w[j..]);
                        let rounded = round(state, j, w[j]);
                        let error = (w[j] - rounded) / factor[0];
                        w[j] = rounded;
                        w[j + 1..].iter_mut().zip(&factor[1..]).for_each(|(w, u)| *w -= error * u);
                    }
                }
                block
            })
            .collect();
        blocks.into_iter().flatten().collect()
    }
}

/// Eight sums side by side, which the compiler turns into vector instructions.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    const LANES: usize = 8;
    let mut sums = [0f64; LANES];
    let (a_blocks, b_blocks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f64 = a_blocks.remainder().iter().zip(b_blocks.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a_blocks.zip(b_blocks) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    sums.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(n: usize, mut seed: u64) -> Vec<f32> {
        let mut next = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        (0..n).map(|_| next()).collect()
    }

    /// `(w - q) H (w - q)^T` over all rows.
    fn loss(w: &[f32], q: &[f32], gram: &[f32], n: usize) -> f64 {
        let lost: Vec<f64> = w.iter().zip(q).map(|(w, q)| f64::from(w - q)).collect();
        lost.chunks(n)
            .map(|row| {
                let by = |i: usize| (0..n).map(|j| f64::from(gram[i * n + j]) * row[j]).sum::<f64>();
                (0..n).map(|i| row[i] * by(i)).sum::<f64>()
            })
            .sum()
    }

    /// With a wrong U the weights would be worse than rounded to nearest, and no other check would say why.
    #[test]
    fn correlated_inputs_lose_less_than_by_rounding_to_nearest() {
        let (rows, n, tokens) = (5, 24, 60);
        // Inputs that live in few directions, as a language model's do.
        let (few, mix) = (numbers(tokens * 6, 1), numbers(6 * n, 2));
        let noise = numbers(tokens * n, 3);
        let x = |t: usize, i: usize| {
            (0..6).map(|k| few[t * 6 + k] * mix[k * n + i]).sum::<f32>() + 0.05 * noise[t * n + i]
        };
        let mut gram = vec![0f32; n * n];
        for i in 0..n {
            for j in 0..n {
                gram[i * n + j] = (0..tokens).map(|t| x(t, i) * x(t, j)).sum();
            }
        }
        let matrix = Matrix { rows, columns: n, values: numbers(rows * n, 4) };
        let step = 0.25f32;
        let plain: Vec<f32> = matrix.values.iter().map(|w| (w / step).round() * step).collect();
        let hessian = InverseHessian::of_gram(&gram, n);
        let rounded = hessian.round::<()>(&matrix, |_, _, _| (), |_, _, w| (w / step).round() * step);
        let rounded: Vec<f32> = rounded.into_iter().flat_map(|(_, row)| row).collect();
        assert!(rounded.iter().all(|q| (q / step - (q / step).round()).abs() < 1e-4));
        let (gptq, nearest) =
            (loss(&matrix.values, &rounded, &gram, n), loss(&matrix.values, &plain, &gram, n));
        assert!(gptq < 0.5 * nearest, "loss {gptq}, rounded to nearest {nearest}");
        // U R = 1 and H = R R^T: the last diagonal element of U is one over the root of H's, damped.
        let mean = (0..n).map(|i| f64::from(gram[i * n + i])).sum::<f64>() / n as f64;
        let expected = (f64::from(gram[n * n - 1]) + DAMPING * mean).sqrt().recip();
        assert!((f64::from(hessian.row(n - 1)[0]) - expected).abs() < 1e-6 * expected);
    }
}
