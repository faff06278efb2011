use super::LossError;
use tch::{Kind, Tensor};

/// Listwise reverse KL: mean over queries of `KL(softmax(student / T) || softmax(teacher / T))` over one query's
/// candidates, `[queries, candidates]`; the teacher's side gets no gradient.
///
/// With one candidate both softmaxes are constant: the loss would read zero while nothing is learnt, so that is an
/// error.
pub fn listwise_reverse_kl(
    student: &Tensor,
    teacher: &Tensor,
    temperature: f64,
) -> Result<Tensor, LossError> {
    let shape = super::same_shape("listwise_reverse_kl", student, teacher)?;
    super::candidates("listwise_reverse_kl", &shape)?;
    let p = (student.to_kind(Kind::Float) / temperature).log_softmax(-1, Kind::Float);
    let q = (teacher.detach().to_kind(Kind::Float) / temperature).log_softmax(-1, Kind::Float);
    let per_query = (p.exp() * (&p - q)).sum_dim_intlist([-1i64].as_slice(), false, Kind::Float);
    Ok(per_query.mean(Kind::Float))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reverse, not forward: the direction decides whether the student may ignore some of the teacher's mass.
    #[test]
    fn is_kl_of_student_against_teacher() {
        let student = Tensor::from_slice2(&[[0.75f64.ln(), 0.25f64.ln()]]);
        let teacher = Tensor::from_slice2(&[[0.5f64.ln(), 0.5f64.ln()]]);
        let loss = listwise_reverse_kl(&student, &teacher, 1.0).unwrap().double_value(&[]);
        let expected = 0.75 * (0.75f64 / 0.5).ln() + 0.25 * (0.25f64 / 0.5).ln();
        assert!((loss - expected).abs() < 1e-6, "{loss} {expected}");
        let one = Tensor::from_slice2(&[[1.0f64]]);
        assert!(listwise_reverse_kl(&one, &one, 1.0).is_err());
    }
}
