use super::LossError;
use tch::{Kind, Tensor};

/// SFT of the binary choice (RaHoRe, arXiv 2412.16615): mean cross-entropy of the right choice token.
///
/// `logits` `[pairs, vocab]` over the whole vocabulary at the answer slot, `targets` `[pairs]` token ids.
/// Positives and negatives are weighted to count the same in total, whatever the number of negatives per positive:
/// `positive` `[pairs]` is 1 on positives.
pub fn choice_cross_entropy(
    logits: &Tensor,
    targets: &Tensor,
    positive: &Tensor,
) -> Result<Tensor, LossError> {
    super::same_shape("choice_cross_entropy", targets, positive)?;
    let losses = logits.to_kind(Kind::Float).cross_entropy_loss::<Tensor>(
        targets,
        None,
        tch::Reduction::None,
        -100,
        0.0,
    );
    Ok(super::balanced(&losses, &positive.to_kind(Kind::Float)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Were the many negatives to outweigh the few positives, the teacher would learn to say No to everything.
    #[test]
    fn positives_and_negatives_weigh_the_same() {
        // Undecided logits: every pair loses ln 2, so any weighting must give ln 2; then one wrong positive of four.
        let logits = Tensor::from_slice2(&[[0f32, 9.0], [0.0, 9.0], [0.0, 9.0], [0.0, 9.0]]);
        let targets = Tensor::from_slice(&[0i64, 1, 1, 1]);
        let positive = Tensor::from_slice(&[1i64, 0, 0, 0]);
        let loss = choice_cross_entropy(&logits, &targets, &positive).unwrap().double_value(&[]);
        assert!((loss - 4.5).abs() < 1e-2, "{loss}");
    }
}
