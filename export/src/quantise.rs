//! Weights in few bits: whole numbers and a scale for each row or block. The same input always gives the same bytes.

use crate::gptq::Curvature;
use crate::source::Matrix;
use std::collections::BTreeMap;
use std::fmt;

/// Largest magnitude of 8 bits, symmetric: -128 is left out.
const EIGHT_BITS: f32 = 127.0;
/// What two neighbours of one sign may have together: x86 processors without VNNI add the products of two neighbouring signed
/// weights with unsigned activations in 16 bits, and 255 x 128 is the most that fits.
const PAIR: f32 = 128.0;

/// A matrix in 8 bits, `[rows, columns]`: `w[row, :] ~ scale[row] * q[row, :]`.
pub struct Quantised {
    /// Whole numbers, row-major.
    pub values: Vec<i8>,
    /// One scale per row.
    pub scales: Vec<f32>,
    /// `|w - scale q| / |w|` over the whole matrix (Euclidean).
    pub relative_error: f64,
}

/// Quantises each row by its own largest magnitude: a table that is looked up in.
pub fn per_row(matrix: &Matrix) -> Quantised {
    by_rows(matrix, |row| usable(largest(row) / EIGHT_BITS))
}

/// Quantises each row of a linear map by its largest pair: columns 0 and 1, 2 and 3, ... fit 16 bits together wherever they
/// are multiplied. Of weights without a pattern that keeps all but half a bit of the eight; halving every weight's reach, which
/// is enough as well, costs a whole one.
pub fn in_pairs(matrix: &Matrix) -> Quantised {
    by_rows(matrix, pair_scale)
}

fn by_rows(matrix: &Matrix, scale: impl Fn(&[f32]) -> f32) -> Quantised {
    let mut values = Vec::with_capacity(matrix.values.len());
    let mut scales = Vec::with_capacity(matrix.rows);
    let mut error = Error::default();
    for row in matrix.values.chunks_exact(matrix.columns.max(1)) {
        let scale = scale(row);
        scales.push(scale);
        for &w in row {
            let q = whole(w, scale);
            values.push(q as i8);
            error.add(w, q * scale);
        }
    }
    Quantised { values, scales, relative_error: error.relative() }
}

/// As [`in_pairs`], each weight rounded with regard to those after it.
pub fn in_pairs_along(matrix: &Matrix, curvature: &Curvature) -> Quantised {
    /// A row's scale, and the whole number before.
    #[derive(Default)]
    struct Row {
        scale: f32,
        before: f32,
    }
    let begin = |row: &mut Row, column: usize, weights: &[f32]| {
        if column == 0 {
            row.scale = pair_scale(weights);
        }
    };
    let round = |row: &mut Row, column: usize, w: f32| {
        let mut q = whole(w, row.scale);
        // What earlier columns have lost may have carried a weight beyond what its pair's scale was made for.
        if column % 2 == 1 && q * row.before > 0.0 {
            let most = PAIR - row.before.abs();
            q = q.clamp(-most, most);
        }
        row.before = q;
        q * row.scale
    };
    let rows = curvature.round(matrix, begin, round);
    let values =
        rows.iter().flat_map(|(row, kept)| kept.iter().map(|w| whole(*w, row.scale) as i8)).collect();
    let relative_error = Error::between(matrix, rows.iter().map(|(_, kept)| kept)).relative();
    Quantised { values, scales: rows.into_iter().map(|(row, _)| row.scale).collect(), relative_error }
}

fn whole(w: f32, scale: f32) -> f32 {
    (w / scale).round_ties_even().clamp(-EIGHT_BITS, EIGHT_BITS)
}

/// Rounding may add a half to either of a pair: one less than [`PAIR`] is what they are scaled to.
fn pair_scale(row: &[f32]) -> f32 {
    let most = row.chunks(2).fold(largest(row), |most, pair| match pair {
        [a, b] if (*a > 0.0) == (*b > 0.0) => most.max((a + b).abs()),
        _ => most,
    });
    usable(most / EIGHT_BITS.min(PAIR - 1.0))
}

/// Weights of one row that share a scale in blocks.
pub const BLOCK: usize = 32;

/// Bits of a weight in blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Bits {
    /// `scale * (q - 8)`, q from 0 to 15.
    Four,
    /// `scale * (q - 128)`, q from 1 to 255.
    Eight,
}

impl Bits {
    /// How many.
    pub fn number(self) -> usize {
        match self {
            Self::Four => 4,
            Self::Eight => 8,
        }
    }

    /// As in names of initialisers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Four => "int4",
            Self::Eight => "int8",
        }
    }

    /// Bytes of so many weights.
    pub fn bytes(self, weights: usize) -> usize {
        weights * self.number() / 8
    }

    /// What stands for 0.
    fn zero(self) -> f32 {
        match self {
            Self::Four => 8.0,
            Self::Eight => 128.0,
        }
    }

    /// The whole number that stands for a weight.
    fn whole(self, w: f32, scale: f32) -> f32 {
        let (least, most) = match self {
            Self::Four => (0.0, 15.0),
            Self::Eight => (1.0, 255.0),
        };
        (w / scale + self.zero()).round_ties_even().clamp(least, most)
    }

    fn scale(self, block: &[f32; BLOCK]) -> f32 {
        match self {
            Self::Four => best_scale(block),
            Self::Eight => usable(largest(block) / EIGHT_BITS),
        }
    }

    fn pack(self, whole: &[f32; BLOCK], packed: &mut Vec<u8>) {
        match self {
            Self::Four => {
                packed.extend(whole.chunks_exact(2).map(|pair| (pair[0] as u8) | ((pair[1] as u8) << 4)));
            }
            Self::Eight => packed.extend(whole.iter().map(|q| *q as u8)),
        }
    }
}

/// A matrix in blocks, as `MatMulNBits` and `GatherBlockQuantized` take it.
pub struct Blocks {
    /// In 4 bits two numbers a byte, the earlier in the low half; rows padded with zeros to whole blocks.
    pub packed: Vec<u8>,
    /// `[rows, blocks]`.
    pub scales: Vec<f32>,
    /// Blocks of a row.
    pub blocks: usize,
    /// As [`Quantised::relative_error`].
    pub relative_error: f64,
}

/// Quantises blocks of [`BLOCK`] weights of a row, each with a scale of its own. In 4 bits, of several scales around the
/// largest magnitude's the one with the smallest squared error is taken: the outermost weight is not worth the precision
/// of all others.
pub fn in_blocks(matrix: &Matrix, bits: Bits) -> Blocks {
    let blocks = matrix.columns.div_ceil(BLOCK);
    let mut packed = Vec::with_capacity(bits.bytes(matrix.rows * blocks * BLOCK));
    let mut scales = Vec::with_capacity(matrix.rows * blocks);
    let mut error = Error::default();
    for row in matrix.values.chunks_exact(matrix.columns.max(1)) {
        for weights in row.chunks(BLOCK) {
            let block = padded(weights);
            let scale = bits.scale(&block);
            scales.push(scale);
            let whole = block.map(|w| bits.whole(w, scale));
            bits.pack(&whole, &mut packed);
            block.iter().zip(whole).for_each(|(w, q)| error.add(*w, (q - bits.zero()) * scale));
        }
    }
    Blocks { packed, scales, blocks, relative_error: error.relative() }
}

/// As [`in_blocks`], each weight rounded with regard to those after it.
pub fn in_blocks_along(matrix: &Matrix, bits: Bits, curvature: &Curvature) -> Blocks {
    let blocks = matrix.columns.div_ceil(BLOCK);
    let begin = |scales: &mut Vec<f32>, column: usize, weights: &[f32]| {
        if column.is_multiple_of(BLOCK) {
            scales.push(bits.scale(&padded(&weights[..weights.len().min(BLOCK)])));
        }
    };
    let round = |scales: &mut Vec<f32>, column: usize, w: f32| {
        let scale = scales[column / BLOCK];
        (bits.whole(w, scale) - bits.zero()) * scale
    };
    let rows = curvature.round(matrix, begin, round);
    let mut packed = Vec::with_capacity(bits.bytes(matrix.rows * blocks * BLOCK));
    for (scales, row) in &rows {
        for (weights, scale) in row.chunks(BLOCK).zip(scales) {
            bits.pack(&padded(weights).map(|w| bits.whole(w, *scale)), &mut packed);
        }
    }
    let relative_error = Error::between(matrix, rows.iter().map(|(_, row)| row)).relative();
    Blocks {
        packed,
        scales: rows.into_iter().flat_map(|(scales, _)| scales).collect(),
        blocks,
        relative_error,
    }
}

fn padded(weights: &[f32]) -> [f32; BLOCK] {
    let mut block = [0f32; BLOCK];
    block[..weights.len()].copy_from_slice(weights);
    block
}

/// Negative where the outermost weight is positive: -8 reaches further than 7.
fn best_scale(block: &[f32; BLOCK]) -> f32 {
    let outermost = block.iter().copied().fold(0f32, |most, w| if w.abs() > most.abs() { w } else { most });
    let bits = Bits::Four;
    let squared = |scale: f32| -> f32 {
        block.iter().map(|w| (w - (bits.whole(*w, scale) - bits.zero()) * scale).powi(2)).sum()
    };
    let candidates = [8.0, 7.75, 7.5, 7.25, 7.0].map(|reach| usable(-outermost / reach));
    let mut best = (f32::INFINITY, candidates[0]);
    for scale in candidates {
        let found = squared(scale);
        if found < best.0 {
            best = (found, scale);
        }
    }
    best.1
}

fn largest(row: &[f32]) -> f32 {
    row.iter().fold(0f32, |most, w| most.max(w.abs()))
}

/// A row of zeros, or of numbers too small to divide by: any scale is right.
fn usable(scale: f32) -> f32 {
    if scale.abs() > f32::MIN_POSITIVE { scale } else { 1.0 }
}

/// Squares of what was lost and of all there was.
#[derive(Default)]
struct Error {
    lost: f64,
    total: f64,
}

impl Error {
    fn between<'a>(matrix: &Matrix, kept: impl Iterator<Item = &'a Vec<f32>>) -> Self {
        let mut error = Self::default();
        for (row, kept) in matrix.values.chunks_exact(matrix.columns.max(1)).zip(kept) {
            row.iter().zip(kept).for_each(|(w, kept)| error.add(*w, *kept));
        }
        error
    }

    fn add(&mut self, w: f32, kept: f32) {
        self.lost += f64::from(w - kept).powi(2);
        self.total += f64::from(w).powi(2);
    }

    fn relative(&self) -> f64 {
        if self.total > 0.0 { (self.lost / self.total).sqrt() } else { 0.0 }
    }
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

    /// On x86 without VNNI a pair that does not fit 16 bits is cut off there: another machine would compute other scores.
    #[test]
    fn pairs_fit_sixteen_bits_and_use_more_than_seven_bits_each() {
        let (rows, columns) = (40, 97);
        let mut seed = 1u64;
        let mut next = || {
            // The sum of four evenly spread numbers is nearly normal.
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
        let along = in_pairs_along(&matrix, &Curvature::of(&gram, columns));
        for (how, q) in [("plain", in_pairs(&matrix)), ("along", along)] {
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
        let seven_bits = by_rows(&matrix, |row| usable(super::largest(row) / 63.0)).relative_error;
        let error = in_pairs(&matrix).relative_error;
        assert!(error < 0.8 * seven_bits, "{error}, in seven bits {seven_bits}");
    }

    /// Half a step is the most that a weight within reach may move, whatever its neighbours in other blocks are; numbers
    /// are packed in the order in which the operator reads them.
    #[test]
    fn blocks_have_their_own_scale() {
        let columns = BLOCK + 3;
        let values: Vec<f32> = (0..columns)
            .map(|i| if i < BLOCK { (i as f32 - 10.0) / 8.0 } else { 1e4 * (i as f32 - 33.0) })
            .collect();
        let q = in_blocks(&Matrix { rows: 1, columns, values: values.clone() }, Bits::Four);
        assert_eq!((q.blocks, q.packed.len(), q.scales.len()), (2, BLOCK, 2));
        for (i, w) in values.iter().enumerate() {
            let whole = (q.packed[i / 2] >> (4 * (i % 2))) & 15;
            let scale = q.scales[i / BLOCK];
            let kept = (f32::from(whole) - 8.0) * scale;
            assert!((w - kept).abs() <= 0.8 * scale.abs(), "{i}: {w} became {kept}");
        }
        // The padding behind the last weight is zero.
        assert_eq!(
            q.packed[columns.div_ceil(2)..].iter().collect::<std::collections::BTreeSet<_>>().len(),
            1
        );
        assert_eq!(q.packed[BLOCK - 1], 0x88);
        assert!(q.relative_error < 0.1, "{}", q.relative_error);

        let q = in_blocks(&Matrix { rows: 1, columns, values: values.clone() }, Bits::Eight);
        assert_eq!((q.blocks, q.packed.len(), q.scales.len()), (2, 2 * BLOCK, 2));
        for (i, w) in values.iter().enumerate() {
            let scale = q.scales[i / BLOCK];
            let kept = (f32::from(q.packed[i]) - 128.0) * scale;
            assert!((w - kept).abs() <= 0.501 * scale, "{i}: {w} became {kept}");
        }
        assert!(q.packed[columns..].iter().all(|q| *q == 128), "padding is not zero");
    }
}
