//! Unit vectors whose cosine ranks as the folded score does, for vector stores that compare by cosine or normalise.
//!
//! In the gated form a stored vector u has length 1 under L ([`crate::fold`]): `score = c(q) + s . u` with `|L u| = 1`. The
//! vectors `L u` and `L^-T s` have the same inner product, and the documents' lengths are 1 already; dividing a query's by
//! its length changes the ranking of no query. Hence their cosine, inner product and Euclidean distance rank exactly as the
//! score does, in as many numbers as are stored. In the relu form no inner product does.

use crate::fold::{Folded, FoldedQuery};
use ndarray::{Array1, Array2, ArrayView1};

/// Smallest share of L's largest number that a pivot may have: below, L has no inverse worth the name.
const LEAST_PIVOT: f64 = 1e-9;

/// Both sides' maps.
#[derive(Debug, Clone)]
pub struct Cosine {
    /// L.
    norm: Array2<f32>,
    /// L^T, taken apart.
    transposed: Factors,
}

impl Cosine {
    /// None in the relu form, and where L cannot be inverted.
    pub fn of(folded: &Folded) -> Option<Self> {
        Self::new(folded.document_norm()?.clone())
    }

    fn new(norm: Array2<f32>) -> Option<Self> {
        let columns = norm.columns().into_iter();
        let transposed = columns.map(|column| column.iter().map(|x| f64::from(*x)).collect());
        let transposed = Factors::of(transposed.collect())?;
        Some(Self { norm, transposed })
    }

    /// Of a stored vector `[m]`.
    pub fn document(&self, stored: &[f32]) -> Vec<f32> {
        unit(self.norm.dot(&ArrayView1::from(stored)).mapv(f64::from))
    }

    /// Of a query's side of the score.
    pub fn query(&self, query: &FoldedQuery) -> Vec<f32> {
        unit(Array1::from_vec(self.transposed.solve(&query.vector)))
    }
}

fn unit(vector: Array1<f64>) -> Vec<f32> {
    let length = vector.dot(&vector).sqrt();
    let length = if length > 0.0 { length } else { 1.0 };
    vector.iter().map(|x| (x / length) as f32).collect()
}

/// A square matrix as lower times upper triangle, its rows in another order (Gauss, with the largest pivot of each column).
#[derive(Debug, Clone)]
struct Factors {
    rows: Vec<Vec<f64>>,
    /// Which row of the matrix stands at each place.
    order: Vec<usize>,
}

impl Factors {
    fn of(mut rows: Vec<Vec<f64>>) -> Option<Self> {
        let n = rows.len();
        let largest = rows.iter().flatten().fold(0f64, |most, x| most.max(x.abs()));
        if !largest.is_finite() {
            return None;
        }
        let mut order: Vec<usize> = (0..n).collect();
        for k in 0..n {
            let pivot = (k..n).max_by(|&a, &b| rows[a][k].abs().total_cmp(&rows[b][k].abs()))?;
            rows.swap(k, pivot);
            order.swap(k, pivot);
            if rows[k][k].is_nan() || rows[k][k].abs() <= LEAST_PIVOT * largest {
                return None;
            }
            let (above, below) = rows.split_at_mut(k + 1);
            let above = &above[k];
            for row in below {
                let factor = row[k] / above[k];
                row[k] = factor;
                for (x, y) in row[k + 1..].iter_mut().zip(&above[k + 1..]) {
                    *x -= factor * y;
                }
            }
        }
        Some(Self { rows, order })
    }

    /// The x that the matrix maps to `wanted`.
    fn solve(&self, wanted: &[f32]) -> Vec<f64> {
        let n = self.rows.len();
        let sum = |row: &[f64], x: &[f64]| -> f64 { row.iter().zip(x).map(|(a, b)| a * b).sum() };
        let mut x: Vec<f64> = self.order.iter().map(|&i| f64::from(wanted[i])).collect();
        for i in 0..n {
            x[i] -= sum(&self.rows[i][..i], &x[..i]);
        }
        for i in (0..n).rev() {
            x[i] = (x[i] - sum(&self.rows[i][i + 1..], &x[i + 1..])) / self.rows[i][i];
        }
        x
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::student::Form;

    /// Numbers between -1 and 1 without a pattern that matters here.
    fn number(seed: usize, i: usize) -> f32 {
        ((i * 7919 + seed * 104_729) % 1009) as f32 / 504.5 - 1.0
    }

    fn matrix(m: usize, seed: usize) -> Array2<f32> {
        Array2::from_shape_fn((m, m), |(r, c)| number(seed, r * m + c) * (1.0 + r as f32))
    }

    fn dot(a: &[f32], b: &[f32]) -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    }

    /// A store that normalises would otherwise rank otherwise than `/query`, and nobody would be told.
    #[test]
    fn cosine_ranks_as_the_score_does_and_documents_have_one_length() {
        for (m, seed) in [(1, 3), (2, 5), (17, 7), (64, 11)] {
            let norm = matrix(m, seed);
            let cosine = Cosine::new(norm.clone()).unwrap();
            let documents: Vec<Vec<f32>> = (0..40)
                .map(|d| {
                    let u = Array1::from_shape_fn(m, |i| number(d + 100, i));
                    let under = norm.dot(&u);
                    (u / under.dot(&under).sqrt()).to_vec()
                })
                .collect();
            for q in 0..5 {
                let vector: Vec<f32> = (0..m).map(|i| number(q + 500, i)).collect();
                let query = cosine.query(&FoldedQuery::new(Form::Gated, vector.clone(), Vec::new(), 0.0));
                assert!((dot(&query, &query) - 1.0).abs() < 1e-5);
                let ratio = |document: &Vec<f32>| {
                    let unit = cosine.document(document);
                    assert!((dot(&unit, &unit) - 1.0).abs() < 1e-5);
                    (dot(&query, &unit), dot(&vector, document))
                };
                let pairs: Vec<(f64, f64)> = documents.iter().map(ratio).collect();
                // One positive factor for all documents of a query.
                let strongest = pairs.iter().copied().max_by(|a, b| a.1.abs().total_cmp(&b.1.abs())).unwrap();
                let factor = strongest.0 / strongest.1;
                assert!(factor > 0.0);
                for (found, score) in pairs {
                    assert!((found - factor * score).abs() < 1e-4, "m {m}: {found} for {}", factor * score);
                }
            }
        }
    }

    /// A bundle from elsewhere must be refused by a sentence, not answered with infinities.
    #[test]
    fn what_cannot_be_inverted_is_refused() {
        assert!(Cosine::new(Array2::zeros((3, 3))).is_none());
        let mut twice = matrix(4, 3);
        let row = twice.row(0).to_owned();
        twice.row_mut(2).assign(&(row * 2.0));
        assert!(Cosine::new(twice).is_none());
        assert!(Cosine::new(Array2::from_elem((2, 2), f32::NAN)).is_none());
    }
}
