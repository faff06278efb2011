//! Learning rate as a pure function of the step.

/// How the rate falls after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decay {
    /// Stays.
    Constant,
    /// Straight to zero.
    Linear,
    /// Half a cosine to zero.
    Cosine,
}

/// Warm-up and decay.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Schedule {
    /// Highest rate.
    pub peak: f64,
    /// Steps of straight rise from zero.
    pub warmup: usize,
    /// All steps.
    pub steps: usize,
    /// After the warm-up.
    pub decay: Decay,
}

impl Schedule {
    /// Rate of `step`, counted from 0.
    pub fn lr_at(&self, step: usize) -> f64 {
        if step < self.warmup {
            return self.peak * (step + 1) as f64 / self.warmup as f64;
        }
        let left = self.steps.saturating_sub(self.warmup).max(1);
        let progress = ((step - self.warmup) as f64 / left as f64).min(1.0);
        self.peak
            * match self.decay {
                Decay::Constant => 1.0,
                Decay::Linear => 1.0 - progress,
                Decay::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A warm-up that starts at zero wastes a step, one that ends below the peak never trains at the asked rate.
    #[test]
    fn rises_to_the_peak_and_falls_to_zero() {
        let schedule = Schedule { peak: 2.0, warmup: 4, steps: 12, decay: Decay::Linear };
        assert_eq!(schedule.lr_at(0), 0.5);
        assert_eq!(schedule.lr_at(3), 2.0);
        assert_eq!(schedule.lr_at(4), 2.0);
        assert_eq!(schedule.lr_at(8), 1.0);
        assert_eq!(Schedule { decay: Decay::Cosine, ..schedule }.lr_at(12), 0.0);
        assert_eq!(Schedule { decay: Decay::Constant, ..schedule }.lr_at(11), 2.0);
    }
}
