//! SmoothQuant (<https://arxiv.org/abs/2211.10438>): scales that move the range of outlier channels from the activations into
//! the weights, at the one place where no rotation is possible, the input of `down_proj`.

/// Scales of the input channels of one layer's `down_proj`.
#[derive(Debug, Clone, PartialEq)]
pub struct SmoothQuant {
    /// What each channel is divided by: the square root (SmoothQuant's alpha of 0.5) of its largest magnitude over the median
    /// channel's, rounded to powers of two, which cost no bits anywhere.
    pub scales: Vec<f32>,
    /// Whether one activation scale for all tokens is enough: no channel stands out so far that the tokens in which it is large
    /// would leave the other channels few steps.
    pub per_tensor: bool,
}

impl SmoothQuant {
    /// Larger scales gain next to nothing: the weights lose what the activations gain.
    const MAX_SCALE: f32 = 4.0;
    /// How far a channel may stand out, as a multiple of the median. In 24 layers of a SmolLM2-135M most stand out 5 to 13 fold,
    /// four 20 to 69 fold.
    const MAX_OUTLIER: f32 = 12.0;

    /// From each channel's largest magnitude.
    pub fn of_maxima(maxima: &[f32]) -> Self {
        let mut sorted = maxima.to_vec();
        sorted.sort_by(f32::total_cmp);
        let median = sorted.get(sorted.len() / 2).copied().unwrap_or_default();
        let most = sorted.last().copied().unwrap_or_default();
        if median <= 0.0 {
            // Channels that are always zero say nothing.
            return Self { scales: vec![1.0; maxima.len()], per_tensor: false };
        }
        let scale = |x: &f32| {
            (0.5 * (x / median).log2()).round().exp2().clamp(Self::MAX_SCALE.recip(), Self::MAX_SCALE)
        };
        Self { scales: maxima.iter().map(scale).collect(), per_tensor: most <= Self::MAX_OUTLIER * median }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scales are folded into weights; only powers of two do that without rounding them once more.
    #[test]
    fn scales_are_powers_of_two() {
        // Five channels around 1, one nine times as large, one a ninth, and one that is always zero.
        let found = SmoothQuant::of_maxima(&[1.0, 0.9, 1.1, 1.0, 1.2, 9.0, 0.111, 0.0]);
        assert_eq!(found.scales, [1.0, 1.0, 1.0, 1.0, 1.0, 4.0, 0.25, 0.25]);
        assert!(found.per_tensor);
        assert!(!SmoothQuant::of_maxima(&[1.0, 1.0, 1.0, 13.0]).per_tensor);
        let idle = SmoothQuant::of_maxima(&[0.0; 4]);
        assert_eq!((idle.scales, idle.per_tensor), (vec![1.0; 4], false));
    }
}
