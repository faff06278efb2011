//! 8-bit weights with one scale for each row (output channel).

use crate::matrix::Matrix;
use crate::quantise::gptq::InverseHessian;
use crate::quantise::report::RelativeError;
use crate::quantise::scale::{INT8_MAX, max_abs, nonzero};

/// Largest sum of two neighbouring weights of the same sign: x86 processors without VNNI add the products of two
/// neighbouring signed weights with unsigned activations in 16 bits, and 255 x 128 is the most that fits.
const PAIR_MAX: f32 = 128.0;

/// A matrix in 8 bits, `[rows, columns]`: `w[row, :] ~ scale[row] * q[row, :]`.
pub struct Int8Rows {
    /// Rounded weights, row-major.
    pub values: Vec<i8>,
    /// One scale per row.
    pub scales: Vec<f32>,
    /// `|w - scale q| / |w|` over the whole matrix (Euclidean).
    pub relative_error: f64,
}

/// Scales each row by its largest magnitude: for tables whose rows are looked up.
pub fn quantise_rows(matrix: &Matrix) -> Int8Rows {
    by_rows(matrix, |row| nonzero(max_abs(row) / INT8_MAX))
}

/// Scales each row of a linear layer by its largest pair: the products of columns 0 and 1, 2 and 3, ... then fit 16 bits
/// together wherever they are multiplied. For typical weights that costs half a bit of the eight; halving the range of every
/// weight, which is also enough, costs a whole bit.
pub fn quantise_pairs(matrix: &Matrix) -> Int8Rows {
    by_rows(matrix, pair_scale)
}

fn by_rows(matrix: &Matrix, scale: impl Fn(&[f32]) -> f32) -> Int8Rows {
    let mut values = Vec::with_capacity(matrix.values.len());
    let mut scales = Vec::with_capacity(matrix.rows);
    let mut error = RelativeError::default();
    for row in matrix.values.chunks_exact(matrix.columns.max(1)) {
        let scale = scale(row);
        scales.push(scale);
        for &w in row {
            let q = round(w, scale);
            values.push(q as i8);
            error.add(w, q * scale);
        }
    }
    Int8Rows { values, scales, relative_error: error.value() }
}

/// As [`quantise_pairs`], rounded by GPTQ.
pub fn quantise_pairs_gptq(matrix: &Matrix, hessian: &InverseHessian) -> Int8Rows {
    /// A row's scale, and the whole number of the previous column.
    #[derive(Default)]
    struct Row {
        scale: f32,
        previous: f32,
    }
    let begin = |row: &mut Row, column: usize, weights: &[f32]| {
        if column == 0 {
            row.scale = pair_scale(weights);
        }
    };
    let round_weight = |row: &mut Row, column: usize, w: f32| {
        let mut q = round(w, row.scale);
        // Errors of earlier columns may have moved a weight beyond what its pair's scale allows.
        if column % 2 == 1 && q * row.previous > 0.0 {
            let most = PAIR_MAX - row.previous.abs();
            q = q.clamp(-most, most);
        }
        row.previous = q;
        q * row.scale
    };
    let rows = hessian.round(matrix, begin, round_weight);
    let values =
        rows.iter().flat_map(|(row, rounded)| rounded.iter().map(|w| round(*w, row.scale) as i8)).collect();
    let relative_error = RelativeError::between(matrix, rows.iter().map(|(_, rounded)| rounded)).value();
    Int8Rows { values, scales: rows.into_iter().map(|(row, _)| row.scale).collect(), relative_error }
}

fn round(w: f32, scale: f32) -> f32 {
    (w / scale).round_ties_even().clamp(-INT8_MAX, INT8_MAX)
}

/// Rounding may add a half to each weight of a pair, so pairs are scaled to one less than [`PAIR_MAX`].
fn pair_scale(row: &[f32]) -> f32 {
    let most = row.chunks(2).fold(max_abs(row), |most, pair| match pair {
        [a, b] if (*a > 0.0) == (*b > 0.0) => most.max((a + b).abs()),
        _ => most,
    });
    nonzero(most / INT8_MAX.min(PAIR_MAX - 1.0))
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
        let q = quantise_rows(&matrix);
        assert_eq!(q.values[..4], [127, -64, 25, 0]);
        assert_eq!(q.values[4..], [127, 0, -127, 1, 0, 0, 0, 0]);
        assert_eq!(q.scales[2], 1.0);
        for (w, (q, i)) in matrix.values.iter().zip(q.values.iter().zip(0..)).take(4) {
            assert!((w - f32::from(*q) * 0.5 / 127.0).abs() <= 0.5 / 254.0 + 1e-6, "{i}");
        }
    }

    /// On x86 without VNNI a pair that does not fit 16 bits is cut off there: another machine would compute other scores.
    #[test]
    fn pairs_fit_sixteen_bits_and_use_more_than_seven_bits_each() {
        let (rows, columns) = (40, 97);
        let mut seed = 1u64;
        let mut next = || {
            // The sum of four uniform numbers is nearly normal.
            (0..4)
                .map(|_| {
                    seed =
                        seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    (seed >> 40) as f32 / (1u64 << 23) as f32 - 1.0
                })
                .sum::<f32>()
        };
        let mut values: Vec<f32> = (0..rows * columns).map(|_| next()).collect();
        // Two large neighbours, one alone, and one at the odd end.
        (values[0], values[1], values[columns + 2], values[3 * columns - 1]) = (50.0, 50.0, -90.0, 70.0);
        let matrix = Matrix { rows, columns, values };
        let inputs: Vec<f32> = (0..3 * columns * columns).map(|_| next()).collect();
        let mut gram = vec![0f32; columns * columns];
        for row in inputs.chunks_exact(columns) {
            for (i, sums) in gram.chunks_exact_mut(columns).enumerate() {
                sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += row[i] * x);
            }
        }
        let gptq = quantise_pairs_gptq(&matrix, &InverseHessian::of_gram(&gram, columns));
        for (how, q) in [("nearest", quantise_pairs(&matrix)), ("gptq", gptq)] {
            let mut largest = 0;
            for row in q.values.chunks_exact(columns) {
                for pair in row.chunks(2) {
                    // Activations from 0 to 255, which meet the weights of one sign alone in the worst case.
                    let positive: i32 = pair.iter().map(|q| 255 * i32::from(*q).max(0)).sum();
                    let negative: i32 = pair.iter().map(|q| 255 * i32::from(*q).min(0)).sum();
                    assert!(
                        positive <= i32::from(i16::MAX) && negative >= i32::from(i16::MIN),
                        "{how}: {pair:?}"
                    );
                    largest = pair.iter().fold(largest, |most, q| most.max(q.unsigned_abs()));
                }
            }
            assert!(largest > 120, "{how}: {largest}");
        }
        let seven_bits = by_rows(&matrix, |row| nonzero(max_abs(row) / 63.0)).relative_error;
        let error = quantise_pairs(&matrix).relative_error;
        assert!(error < 0.8 * seven_bits, "{error}, in seven bits {seven_bits}");
    }
}
