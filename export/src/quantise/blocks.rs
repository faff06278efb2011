//! 4-bit and 8-bit weights with one scale for each block of a row, as `MatMulNBits` takes them.

use crate::matrix::Matrix;
use crate::quantise::gptq::InverseHessian;
use crate::quantise::report::RelativeError;
use crate::quantise::scale::{INT8_MAX, max_abs, nonzero};

/// Weights of a row that share a scale.
pub const BLOCK: usize = 32;

/// Bits per weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Bits {
    /// `scale * (q - 8)`, q from 0 to 15.
    Four,
    /// `scale * (q - 128)`, q from 1 to 255.
    Eight,
}

impl Bits {
    /// As a number.
    pub fn number(self) -> usize {
        match self {
            Self::Four => 4,
            Self::Eight => 8,
        }
    }

    /// As in the names of initialisers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Four => "int4",
            Self::Eight => "int8",
        }
    }

    /// Bytes that this many weights take.
    pub fn bytes(self, weights: usize) -> usize {
        weights * self.number() / 8
    }

    /// The whole number that means 0.
    fn zero(self) -> f32 {
        match self {
            Self::Four => 8.0,
            Self::Eight => 128.0,
        }
    }

    /// The whole number nearest to a weight.
    fn round(self, w: f32, scale: f32) -> f32 {
        let (least, most) = match self {
            Self::Four => (0.0, 15.0),
            Self::Eight => (1.0, 255.0),
        };
        (w / scale + self.zero()).round_ties_even().clamp(least, most)
    }

    fn scale(self, block: &[f32; BLOCK]) -> f32 {
        match self {
            Self::Four => best_scale(block),
            Self::Eight => nonzero(max_abs(block) / INT8_MAX),
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

/// A matrix in blocks.
pub struct QuantisedBlocks {
    /// In 4 bits two numbers per byte, the first in the low half; rows are padded with zeros to whole blocks.
    pub packed: Vec<u8>,
    /// `[rows, blocks]`.
    pub scales: Vec<f32>,
    /// Blocks per row.
    pub blocks: usize,
    /// `|w - scale q| / |w|` over the whole matrix (Euclidean).
    pub relative_error: f64,
}

/// Scales each block of [`BLOCK`] weights of a row. In 4 bits several scales around that of the largest magnitude are tried
/// and the one with the smallest squared error is taken: clipping the largest weight can be worth the precision of all others.
pub fn quantise_blocks(matrix: &Matrix, bits: Bits) -> QuantisedBlocks {
    let blocks = matrix.columns.div_ceil(BLOCK);
    let mut packed = Vec::with_capacity(bits.bytes(matrix.rows * blocks * BLOCK));
    let mut scales = Vec::with_capacity(matrix.rows * blocks);
    let mut error = RelativeError::default();
    for row in matrix.values.chunks_exact(matrix.columns.max(1)) {
        for weights in row.chunks(BLOCK) {
            let block = padded(weights);
            let scale = bits.scale(&block);
            scales.push(scale);
            let whole = block.map(|w| bits.round(w, scale));
            bits.pack(&whole, &mut packed);
            block.iter().zip(whole).for_each(|(w, q)| error.add(*w, (q - bits.zero()) * scale));
        }
    }
    QuantisedBlocks { packed, scales, blocks, relative_error: error.value() }
}

/// As [`quantise_blocks`], rounded by GPTQ.
pub fn quantise_blocks_gptq(matrix: &Matrix, bits: Bits, hessian: &InverseHessian) -> QuantisedBlocks {
    let blocks = matrix.columns.div_ceil(BLOCK);
    let begin = |scales: &mut Vec<f32>, column: usize, weights: &[f32]| {
        if column.is_multiple_of(BLOCK) {
            scales.push(bits.scale(&padded(&weights[..weights.len().min(BLOCK)])));
        }
    };
    let round = |scales: &mut Vec<f32>, column: usize, w: f32| {
        let scale = scales[column / BLOCK];
        (bits.round(w, scale) - bits.zero()) * scale
    };
    let rows = hessian.round(matrix, begin, round);
    let mut packed = Vec::with_capacity(bits.bytes(matrix.rows * blocks * BLOCK));
    for (scales, row) in &rows {
        for (weights, scale) in row.chunks(BLOCK).zip(scales) {
            bits.pack(&padded(weights).map(|w| bits.round(w, *scale)), &mut packed);
        }
    }
    let relative_error = RelativeError::between(matrix, rows.iter().map(|(_, row)| row)).value();
    QuantisedBlocks {
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

/// Negative where the largest weight is positive: the range is -8 to 7.
fn best_scale(block: &[f32; BLOCK]) -> f32 {
    let largest = block.iter().copied().fold(0f32, |most, w| if w.abs() > most.abs() { w } else { most });
    let bits = Bits::Four;
    let squared = |scale: f32| -> f32 {
        block.iter().map(|w| (w - (bits.round(*w, scale) - bits.zero()) * scale).powi(2)).sum()
    };
    let candidates = [8.0, 7.75, 7.5, 7.25, 7.0].map(|reach| nonzero(-largest / reach));
    let mut best = (f32::INFINITY, candidates[0]);
    for scale in candidates {
        let found = squared(scale);
        if found < best.0 {
            best = (found, scale);
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If large weights in another block cost this block its precision, or packing put weights in another order than the operator
    /// reads, every embedding would be wrong.
    #[test]
    fn blocks_have_their_own_scale() {
        let columns = BLOCK + 3;
        let values: Vec<f32> = (0..columns)
            .map(|i| if i < BLOCK { (i as f32 - 10.0) / 8.0 } else { 1e4 * (i as f32 - 33.0) })
            .collect();
        let q = quantise_blocks(&Matrix { rows: 1, columns, values: values.clone() }, Bits::Four);
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

        let q = quantise_blocks(&Matrix { rows: 1, columns, values: values.clone() }, Bits::Eight);
        assert_eq!((q.blocks, q.packed.len(), q.scales.len()), (2, 2 * BLOCK, 2));
        for (i, w) in values.iter().enumerate() {
            let scale = q.scales[i / BLOCK];
            let kept = (f32::from(q.packed[i]) - 128.0) * scale;
            assert!((w - kept).abs() <= 0.501 * scale, "{i}: {w} became {kept}");
        }
        assert!(q.packed[columns..].iter().all(|q| *q == 128), "padding is not zero");
    }
}
