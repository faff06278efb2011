//! Differences in few bits: blocks of [`BLOCK`] numbers of a row, signed integers of [`Bits`] and one f16 scale each.
//!
//! A difference from the base weights is some hundredths of them: its own relative error in 4 bits (some 6 %) is then one of a
//! few thousandths of the weights, a third of what int8 loses.

use half::f16;

/// Numbers that share a scale.
pub const BLOCK: usize = 32;
/// Largest magnitude of a signed integer of 4 bits, the same on both sides.
const MOST: f32 = 7.0;
/// Scales that are tried for a block, as parts of the one under which nothing is cut off.
const TRIED: [f32; 5] = [1.0, 0.95, 0.9, 0.85, 0.8];

/// Values and scales of one matrix.
#[derive(Debug, PartialEq)]
pub struct Blocks {
    /// Two numbers a byte, the first in the low half, each with 8 added.
    pub values: Vec<u8>,
    /// One for each block.
    pub scales: Vec<f16>,
}

/// Rounds `numbers`, whose length is a multiple of [`BLOCK`].
pub fn round(numbers: &[f32]) -> Blocks {
    let mut blocks = Blocks { values: Vec::with_capacity(numbers.len() / 2), scales: Vec::new() };
    for block in numbers.chunks_exact(BLOCK) {
        let most = block.iter().fold(0f32, |most, x| most.max(x.abs()));
        let scale = TRIED
            .map(|part| f16::from_f32(most / MOST * part))
            .into_iter()
            .min_by(|a, b| squared_error(block, *a).total_cmp(&squared_error(block, *b)))
            .unwrap_or_default();
        blocks.scales.push(scale);
        let integers: Vec<u8> = block.iter().map(|x| (integer(*x, scale.to_f32()) + 8.0) as u8).collect();
        blocks.values.extend(integers.chunks_exact(2).map(|pair| pair[0] | pair[1] << 4));
    }
    blocks
}

/// Numbers of [`Blocks`]; `scales` must be as many as `values` has blocks.
pub fn numbers<'a>(values: &'a [u8], scales: &'a [f16]) -> impl Iterator<Item = f32> + 'a {
    let of_block = |(bytes, scale): (&'a [u8], &f16)| {
        let scale = scale.to_f32();
        bytes.iter().flat_map(|byte| [byte & 15, byte >> 4]).map(move |x| (f32::from(x) - 8.0) * scale)
    };
    values.chunks_exact(BLOCK / 2).zip(scales).flat_map(of_block)
}

/// Scales as they lie in the file, little-endian.
pub fn scales_of(bytes: &[u8]) -> Vec<f16> {
    bytes.as_chunks::<2>().0.iter().map(|scale| f16::from_le_bytes(*scale)).collect()
}

fn integer(number: f32, scale: f32) -> f32 {
    if scale > 0.0 { (number / scale).round_ties_even().clamp(-MOST, MOST) } else { 0.0 }
}

fn squared_error(block: &[f32], scale: f16) -> f32 {
    let scale = scale.to_f32();
    block.iter().map(|x| (x - integer(*x, scale) * scale).powi(2)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was trained for hours is what is read back: every number within half a step of its block, and nothing where nothing
    /// was changed.
    #[test]
    fn rounded_numbers_are_near() {
        let numbers_of = |k: f32| (0..BLOCK).map(|i| k * ((i as f32) * 1.7).sin()).collect::<Vec<f32>>();
        let original = [numbers_of(1e-3), numbers_of(0.0), numbers_of(4.0)].concat();
        let blocks = round(&original);
        let back: Vec<f32> = numbers(&blocks.values, &blocks.scales).collect();
        assert_eq!(back.len(), original.len());
        for (block, (a, b)) in original.chunks(BLOCK).zip(back.chunks(BLOCK)).enumerate() {
            let most = a.iter().fold(0f32, |most, x| most.max(x.abs()));
            let squares = |x: &[f32]| x.iter().map(|x| x * x).sum::<f32>();
            let error: Vec<f32> = a.iter().zip(b).map(|(a, b)| a - b).collect();
            assert!(error.iter().all(|x| x.abs() <= most * 0.21), "block {block}");
            assert!(squares(&error) <= squares(a) * 0.01, "block {block}");
        }
        // Rounding what was rounded changes nothing.
        assert_eq!(round(&back), blocks);
    }
}
