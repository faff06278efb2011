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

/// Reverse KL on LLM logits: mean over pairs of `KL(student || teacher)` over the last dimension of `[..., n]` logits
/// (the choice tokens' or the whole vocabulary's); the teacher's side gets no gradient.
pub fn reverse_kl(student: &Tensor, teacher: &Tensor) -> Result<Tensor, LossError> {
    let shape = super::same_shape("reverse_kl", student, teacher)?;
    super::candidates("reverse_kl", &shape)?;
    let p = student.log_softmax(-1, Kind::Float);
    let q = teacher.detach().log_softmax(-1, Kind::Float);
    Ok((p.exp() * (&p - q)).sum_dim_intlist([-1i64].as_slice(), false, Kind::Float).mean(Kind::Float))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Zero where both agree up to a constant, and no gradient into the teacher.
    #[test]
    fn vanishes_at_the_teacher_and_leaves_it_alone() {
        let teacher = Tensor::from_slice2(&[[1f32, 2.0, -1.0]]).set_requires_grad(true);
        let student = Tensor::from_slice2(&[[0f32, 1.0, -2.0]]).set_requires_grad(true);
        let loss = reverse_kl(&student, &teacher).unwrap();
        assert!(loss.double_value(&[]).abs() < 1e-6);
        (loss + student.sum(Kind::Float)).backward();
        assert!(!teacher.grad().defined());
    }
}
