//! Linear algebra of the gated predictor: where its maps start, and how far scores vary.

use tch::{Kind, Tensor};

/// Exponent of the singular values that [`projection`] divides by: 0 keeps their sizes, 1 whitens. Dev queries of
/// home-robot's unseen skills, before any training: MRR@10 0.31 at 0, 0.36 at a half, 0.30 at 1; after training 0.3 was a
/// little ahead of a half.
const WHITENING: f64 = 0.3;
/// Mean length of the projection's rows: Adam moves each weight by about the learning rate a step, so this sets how far
/// from the start a run gets.
const ROW_LENGTH: f64 = 0.5;

/// The `m` leading principal directions of the rows of `[n, D]` (centred), partly whitened, as a map `[m, D]`. Rows
/// beyond the data's rank are small random numbers.
pub fn projection(latents: &Tensor, m: i64) -> Tensor {
    let d = latents.size()[1];
    let (values, vectors) = covariance(latents).linalg_eigh("L");
    // Ascending order; directions without variance have nothing to be divided by.
    let largest = values.max();
    let rank = values.gt_tensor(&(largest * 1e-9)).sum(Kind::Int64).int64_value(&[]).clamp(1, m.min(d));
    let (values, vectors) = (values.narrow(0, d - rank, rank), vectors.narrow(1, d - rank, rank));
    let map = (vectors / values.pow_tensor_scalar(WHITENING / 2.0)).tr();
    let length =
        map.square().sum_dim_intlist([1i64].as_slice(), false, Kind::Double).sqrt().mean(Kind::Double);
    let map = (map * ROW_LENGTH / length).to_kind(Kind::Float);
    let rest =
        Tensor::randn([m - rank, d], (Kind::Float, map.device())) * (ROW_LENGTH / 10.0 / (d as f64).sqrt());
    Tensor::cat(&[map, rest], 0)
}

/// L `[m, m]` with `L^T L = C + least * mean(diagonal of C) * I`, C the covariance of the rows of `[n, m]`.
pub fn root_of_covariance(rows: &Tensor, least: f64) -> Tensor {
    let (values, vectors) = covariance(rows).linalg_eigh("L");
    let values = values.clamp_min(0.0);
    let floor = values.mean(Kind::Double).clamp_min(1e-12) * least;
    ((values + floor).sqrt().unsqueeze(1) * vectors.tr()).to_kind(Kind::Float)
}

/// Of the rows of `[n, D]`, `[D, D]`, in f64: eigenvectors of small values are lost in f32.
fn covariance(rows: &Tensor) -> Tensor {
    let rows = rows.to_kind(Kind::Double);
    let centred = &rows - rows.mean_dim([0i64].as_slice(), true, Kind::Double);
    centred.tr().matmul(&centred) / rows.size()[0] as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// |L x|^2 must be the variance of x's inner product with the rows: that is what equalising divides by.
    #[test]
    fn length_under_the_root_is_the_deviation_of_scores() {
        tch::manual_seed(3);
        let rows = Tensor::randn([200, 6], (Kind::Float, tch::Device::Cpu))
            .matmul(&Tensor::randn([6, 6], (Kind::Float, tch::Device::Cpu)));
        let x = Tensor::randn([4, 6], (Kind::Float, tch::Device::Cpu));
        let deviation = rows.matmul(&x.tr()).std_dim([0i64].as_slice(), false, false);
        let length = x
            .matmul(&root_of_covariance(&rows, 0.0).tr())
            .square()
            .sum_dim_intlist([1i64].as_slice(), false, Kind::Float)
            .sqrt();
        assert!((deviation - length).abs().max().double_value(&[]) < 1e-4);
    }

    /// More inner dimensions than the data has directions must not divide by nothing.
    #[test]
    fn few_latents_make_a_finite_map() {
        tch::manual_seed(3);
        let map = projection(&Tensor::randn([5, 8], (Kind::Float, tch::Device::Cpu)), 12);
        assert_eq!(map.size(), [12, 8]);
        assert_eq!(map.isfinite().all().int64_value(&[]), 1);
    }
}
