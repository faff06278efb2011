//! A rotation that spreads outlier channels over all channels (QuaRot, <https://arxiv.org/abs/2404.00456>).

use std::f64::consts::{PI, SQRT_2};

/// An orthogonal map `x' = T x` that is fast to apply: random signs, a cosine transform over the odd factor of the size, and a
/// Hadamard transform over its power of two. Every element of x contributes to every element of x'.
#[derive(Debug, Clone)]
pub struct Rotation {
    signs: Vec<f32>,
    /// `[odd, odd]`, the odd factor's cosines.
    cosines: Vec<f32>,
    odd: usize,
}

impl Rotation {
    /// For vectors of this size; the same for every model of that size.
    pub fn new(size: usize) -> Self {
        let odd = if size == 0 { 1 } else { size >> size.trailing_zeros() };
        let cosine = |row: usize, column: usize| {
            let angle = PI / odd as f64 * (column as f64 + 0.5) * row as f64;
            let length = (odd as f64).sqrt();
            (if row == 0 { 1.0 } else { SQRT_2 * angle.cos() }) / length
        };
        let cosines = (0..odd * odd).map(|i| cosine(i / odd, i % odd) as f32).collect();
        // Splitmix64: signs without a pattern, the same every time.
        let sign = |i: usize| {
            let mut z = (i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            if (z ^ (z >> 31)) & 1 == 0 { 1.0 } else { -1.0 }
        };
        Self { signs: (0..size).map(sign).collect(), cosines, odd }
    }

    /// Size of the vectors.
    pub fn size(&self) -> usize {
        self.signs.len()
    }

    /// Rotates a vector in place.
    pub fn apply(&self, x: &mut [f32]) {
        x.iter_mut().zip(&self.signs).for_each(|(x, sign)| *x *= sign);
        if self.odd > 1 {
            let mut rotated = vec![0f32; self.odd];
            for block in x.chunks_exact_mut(self.odd) {
                for (y, row) in rotated.iter_mut().zip(self.cosines.chunks_exact(self.odd)) {
                    *y = row.iter().zip(&*block).map(|(c, x)| c * x).sum();
                }
                block.copy_from_slice(&rotated);
            }
        }
        let power = x.len() / self.odd;
        let mut half = 1;
        while half < power {
            for start in (0..power).step_by(2 * half) {
                for block in start..start + half {
                    for i in 0..self.odd {
                        let (a, b) = (block * self.odd + i, (block + half) * self.odd + i);
                        (x[a], x[b]) = (x[a] + x[b], x[a] - x[b]);
                    }
                }
            }
            half *= 2;
        }
        let length = (power as f32).sqrt().recip();
        x.iter_mut().for_each(|x| *x *= length);
    }

    /// `[size, size]`: a rotated row vector times this matrix is the original one.
    pub fn inverse(&self) -> Vec<f32> {
        let n = self.size();
        let mut matrix = vec![0f32; n * n];
        let mut unit = vec![0f32; n];
        for column in 0..n {
            unit.fill(0.0);
            unit[column] = 1.0;
            self.apply(&mut unit);
            for (row, value) in unit.iter().enumerate() {
                matrix[row * n + column] = *value;
            }
        }
        matrix
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If the map were not orthogonal, every latent of every int8 bundle would be off, by too little for anyone to notice.
    #[test]
    fn rotations_keep_lengths_mix_all_elements_and_have_an_inverse() {
        for size in [1, 2, 6, 64, 96, 576] {
            let rotation = Rotation::new(size);
            let inverse = rotation.inverse();
            let vector: Vec<f32> = (0..size).map(|i| ((i * 7919) % 31) as f32 - 15.0).collect();
            let mut rotated = vector.clone();
            rotation.apply(&mut rotated);
            let square = |x: &[f32]| x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
            assert!((square(&rotated) / square(&vector) - 1.0).abs() < 1e-5, "{size}");
            for (column, expected) in vector.iter().enumerate() {
                let found: f32 =
                    rotated.iter().enumerate().map(|(row, x)| x * inverse[row * size + column]).sum();
                assert!((found - expected).abs() < 1e-4, "{size}: {found} instead of {expected}");
            }
            // The one outlier channel that rotation is there for.
            let mut outlier = vec![0f32; size];
            outlier[size / 2] = 1000.0;
            rotation.apply(&mut outlier);
            let most = outlier.iter().fold(0f32, |most, x| most.max(x.abs()));
            assert!(most <= 1000.0 * SQRT_2 as f32 / (size as f32).sqrt() + 1e-3, "{size}: {most}");
        }
    }
}
