use super::LossError;
use tch::{Kind, Reduction, Tensor};

/// Distance between the predicted and the teacher's hidden state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JepaDistance {
    /// Huber with beta 1.
    SmoothL1,
    /// Squared error.
    Mse,
    /// 1 - cosine.
    Cosine,
}

/// JEPA loss (Rabtriever, arXiv 2604.23336): mean distance between P(e_q, z_d) and h(q|d), both `[..., H]`.
/// The teacher's side gets no gradient.
pub fn jepa(predicted: &Tensor, teacher: &Tensor, distance: JepaDistance) -> Result<Tensor, LossError> {
    super::same_shape("jepa", predicted, teacher)?;
    let teacher = teacher.detach().to_kind(Kind::Float);
    Ok(match distance {
        JepaDistance::SmoothL1 => predicted.smooth_l1_loss(&teacher, Reduction::Mean, 1.0),
        JepaDistance::Mse => predicted.mse_loss(&teacher, Reduction::Mean),
        JepaDistance::Cosine => {
            1.0 - Tensor::cosine_similarity(predicted, &teacher, -1, 1e-8).mean(Kind::Float)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each distance is zero at the target and as in its definition elsewhere.
    #[test]
    fn distances_follow_their_definitions() {
        let (a, b) = (Tensor::from_slice(&[3f32, 0.0]), Tensor::from_slice(&[0f32, 0.5]));
        let loss = |distance| jepa(&a, &b, distance).unwrap().double_value(&[]);
        assert!((loss(JepaDistance::SmoothL1) - (2.5 + 0.125) / 2.0).abs() < 1e-6);
        assert!((loss(JepaDistance::Mse) - (9.0 + 0.25) / 2.0).abs() < 1e-6);
        assert!((loss(JepaDistance::Cosine) - 1.0).abs() < 1e-6);
        assert_eq!(jepa(&a, &a, JepaDistance::SmoothL1).unwrap().double_value(&[]), 0.0);
    }
}
