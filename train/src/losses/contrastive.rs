use super::LossError;
use tch::{Kind, Tensor};

/// Score of a pair that takes no part in a softmax: finite, so that `0 * score` stays 0.
pub const NOT_A_CANDIDATE: f64 = -1e9;

/// Supervised contrastive term over one query's candidates: mean over queries of
/// `-log(sum over relevant of softmax(scores))` (several relevant documents share the mass as they like).
///
/// `scores` and `relevant` (1 or 0) `[queries, candidates]`; every query needs a relevant candidate.
pub fn contrastive(scores: &Tensor, relevant: &Tensor) -> Result<Tensor, LossError> {
    let shape = super::same_shape("contrastive", scores, relevant)?;
    super::candidates("contrastive", &shape)?;
    let all = scores.logsumexp([-1i64].as_slice(), false);
    let outside: Tensor = (1.0 - relevant.to_kind(Kind::Float)) * NOT_A_CANDIDATE;
    let right: Tensor = scores + outside;
    Ok((all - right.logsumexp([-1i64].as_slice(), false)).mean(Kind::Float))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With two right answers, ranking either first is right: the loss must not pull them apart.
    #[test]
    fn several_relevant_documents_share_the_mass() {
        let scores = Tensor::from_slice2(&[[2f64.ln(), 0.0, 0.0]]);
        let relevant = Tensor::from_slice2(&[[1i64, 1, 0]]);
        let loss = contrastive(&scores, &relevant).unwrap().double_value(&[]);
        assert!((loss + (3.0f64 / 4.0).ln()).abs() < 1e-6);
        let one = Tensor::from_slice2(&[[1.0f64]]);
        assert!(matches!(contrastive(&one, &one), Err(LossError::TooFewCandidates { found: 1, .. })));
    }
}
