use super::LossError;
use tch::{Kind, Tensor};

/// Direct preference optimisation (<https://arxiv.org/abs/2305.18290>) of the binary choice (RaHoRe, arXiv 2412.16615):
/// chosen is the right choice token, rejected the other, both at the answer slot, so that
/// `log p(chosen) - log p(rejected)` is the pair's score, negated on negatives.
///
/// `-(1 - label_smoothing) log sigmoid(beta x) - label_smoothing log sigmoid(-beta x)`, x the policy's margin less the
/// reference's; all `[pairs]`. Positives (`positive` is 1) and negatives weigh the same in total.
pub fn dpo(
    scores: &Tensor,
    reference_scores: &Tensor,
    positive: &Tensor,
    beta: f64,
    label_smoothing: f64,
) -> Result<Tensor, LossError> {
    super::same_shape("dpo", scores, reference_scores)?;
    super::same_shape("dpo", scores, positive)?;
    let positive = positive.to_kind(Kind::Float);
    let sign: Tensor = &positive * 2.0 - 1.0;
    let x = (scores - reference_scores.detach()) * sign * beta;
    let losses = x.log_sigmoid() * (label_smoothing - 1.0) - (-&x).log_sigmoid() * label_smoothing;
    Ok(super::balanced(&losses, &positive))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By hand. With the sign of negatives wrong, DPO teaches to say Yes to everything.
    #[test]
    fn follows_the_formula_on_positives_and_negatives() {
        let scores = Tensor::from_slice(&[1.5f32, -0.5, 0.25]).set_requires_grad(true);
        let reference = Tensor::from_slice(&[0.5f32, 0.5, 0.25]);
        let positive = Tensor::from_slice(&[1i64, 0, 0]);
        let loss = dpo(&scores, &reference, &positive, 0.5, 0.1).unwrap();
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let pair = |x: f64| -0.9 * sigmoid(x).ln() - 0.1 * sigmoid(-x).ln();
        // Margins against the reference: +1 on the positive, +1 and 0 on the negatives.
        let expected = (pair(0.5) + (pair(0.5) + pair(0.0)) / 2.0) / 2.0;
        assert!((loss.double_value(&[]) - expected).abs() < 1e-6);
        loss.backward();
        let gradient = Vec::<f32>::try_from(scores.grad()).unwrap();
        assert!(gradient[0] < 0.0 && gradient[1] > 0.0 && gradient[2] > 0.0, "{gradient:?}");
    }
}
