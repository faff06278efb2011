//! What the scales of rows and of blocks are made from.

/// Largest magnitude of a symmetric 8-bit number: -128 is not used.
pub(super) const INT8_MAX: f32 = 127.0;

pub(super) fn max_abs(weights: &[f32]) -> f32 {
    weights.iter().fold(0f32, |most, w| most.max(w.abs()))
}

/// 1 for a row of zeros, or of numbers too small to divide by: any scale is right there.
pub(super) fn nonzero(scale: f32) -> f32 {
    if scale.abs() > f32::MIN_POSITIVE { scale } else { 1.0 }
}
