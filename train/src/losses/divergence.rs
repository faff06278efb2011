use super::LossError;
use tch::{Kind, Tensor};

/// Which logits are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KlOver {
    /// The two choice tokens.
    Choices,
    /// The whole vocabulary.
    Vocabulary,
}

/// How far two distributions are apart; p is the student's, q the teacher's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Divergence {
    /// KL(p || q), the paper's: the student keeps to what the teacher holds likely
    ReverseKl,
    /// KL(q || p): the student covers all that the teacher holds possible
    ForwardKl,
    /// (KL(p || m) + KL(q || m)) / 2, m the mean of both
    JensenShannon,
}

/// Mean over all rows of the divergence between the softmaxes of `[..., n]` logits or scores; the teacher's side gets no
/// gradient. Both are divided by `temperature` first; the result is multiplied by its square, which keeps the
/// gradient's scale (<https://arxiv.org/abs/1503.02531>).
pub fn divergence(
    student: &Tensor,
    teacher: &Tensor,
    temperature: f64,
    which: Divergence,
) -> Result<Tensor, LossError> {
    let shape = super::same_shape("divergence", student, teacher)?;
    super::candidates("divergence", &shape)?;
    let p = (student / temperature).log_softmax(-1, Kind::Float);
    let q = (teacher.detach() / temperature).log_softmax(-1, Kind::Float);
    let kl =
        |a: &Tensor, b: &Tensor| (a.exp() * (a - b)).sum_dim_intlist([-1i64].as_slice(), false, Kind::Float);
    let rows = match which {
        Divergence::ReverseKl => kl(&p, &q),
        Divergence::ForwardKl => kl(&q, &p),
        Divergence::JensenShannon => {
            let middle = p.logaddexp(&q) - 2f64.ln();
            (kl(&p, &middle) + kl(&q, &middle)) * 0.5
        }
    };
    Ok(rows.mean(Kind::Float) * temperature.powi(2))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Divergence; 3] = [Divergence::ReverseKl, Divergence::ForwardKl, Divergence::JensenShannon];

    /// Zero where both agree up to a constant, and no gradient into the teacher.
    #[test]
    fn vanishes_at_the_teacher_and_leaves_it_alone() {
        for which in ALL {
            let teacher = Tensor::from_slice2(&[[1f32, 2.0, -1.0]]).set_requires_grad(true);
            let student = Tensor::from_slice2(&[[0f32, 1.0, -2.0]]).set_requires_grad(true);
            let loss = divergence(&student, &teacher, 2.0, which).unwrap();
            assert!(loss.double_value(&[]).abs() < 1e-6);
            (loss + student.sum(Kind::Float)).backward();
            assert!(!teacher.grad().defined());
        }
    }

    /// By hand, for p = (1/2, 1/2) and q = (1/4, 3/4): a swapped direction trains too, to another student.
    #[test]
    fn each_direction_is_what_its_name_says() {
        let student = Tensor::from_slice2(&[[0f32, 0.0]]);
        let teacher = Tensor::from_slice2(&[[0f32, 3f32.ln()]]);
        let kl = |p: [f64; 2], q: [f64; 2]| p[0] * (p[0] / q[0]).ln() + p[1] * (p[1] / q[1]).ln();
        let (p, q, m) = ([0.5, 0.5], [0.25, 0.75], [0.375, 0.625]);
        for (which, expected) in ALL.into_iter().zip([kl(p, q), kl(q, p), (kl(p, m) + kl(q, m)) / 2.0]) {
            let found = divergence(&student, &teacher, 1.0, which).unwrap().double_value(&[]);
            assert!((found - expected).abs() < 1e-6, "{which:?}: {found}, expected {expected}");
        }
        let one = Tensor::from_slice2(&[[0f32]]);
        let refused = divergence(&one, &one, 1.0, Divergence::ReverseKl);
        assert!(matches!(refused, Err(LossError::TooFewCandidates { found: 1, .. })));
    }
}
