//! Losses: scores or hidden states in, a scalar out, no model inside.

mod choice;
mod contrastive;
mod divergence;
mod dpo;
mod jepa;

pub use choice::choice_cross_entropy;
pub use contrastive::{NOT_A_CANDIDATE, contrastive};
pub use divergence::{Divergence, KlOver, divergence};
pub use dpo::dpo;
pub use jepa::{JepaDistance, jepa};

/// Inputs that a loss refuses.
#[derive(Debug, thiserror::Error)]
pub enum LossError {
    /// Two inputs that must have one shape.
    #[error("{loss}: shapes {a:?} and {b:?} differ; they must be the same")]
    Shape {
        /// The loss.
        loss: &'static str,
        /// One shape.
        a: Vec<i64>,
        /// The other.
        b: Vec<i64>,
    },
    /// With fewer candidates every ranking is right: the loss would be zero while nothing is learnt.
    #[error("{loss}: {found} candidates per query, at least 2 are needed")]
    TooFewCandidates {
        /// The loss.
        loss: &'static str,
        /// Candidates found.
        found: i64,
    },
}

fn same_shape(loss: &'static str, a: &tch::Tensor, b: &tch::Tensor) -> Result<Vec<i64>, LossError> {
    if a.size() != b.size() {
        return Err(LossError::Shape { loss, a: a.size(), b: b.size() });
    }
    Ok(a.size())
}

/// Mean over positives and mean over negatives, halved: they weigh the same whatever the number of negatives. `positive`
/// is 1 or 0, f32.
fn balanced(losses: &tch::Tensor, positive: &tch::Tensor) -> tch::Tensor {
    let share = |mask: &tch::Tensor| {
        (losses * mask).sum(tch::Kind::Float) / mask.sum(tch::Kind::Float).clamp_min(1.0)
    };
    (share(positive) + share(&(1.0 - positive))) * 0.5
}

fn candidates(loss: &'static str, shape: &[i64]) -> Result<(), LossError> {
    match shape.last() {
        Some(found) if *found >= 2 => Ok(()),
        found => Err(LossError::TooFewCandidates { loss, found: found.copied().unwrap_or(0) }),
    }
}
