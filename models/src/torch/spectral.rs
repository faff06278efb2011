//! Linear algebra of the gated predictor: where its maps start, and how far scores vary.

use tch::{Device, Kind, Tensor};

/// Exponent of the singular values that [`projection`] divides by: 0 keeps their sizes, 1 whitens. Dev queries of
/// home-robot's unseen skills, before any training: MRR@10 0.31 at 0, 0.36 at a half, 0.30 at 1; after training 0.3 was a
/// little ahead of a half.
const WHITENING: f64 = 0.3;
/// Mean length of the projection's rows: Adam moves each weight by about the learning rate a step, so this sets how far
/// from the start a run gets.
const ROW_LENGTH: f64 = 0.5;

/// First and second moments of vectors `[D]` that arrive in blocks, in f64: eigenvectors of small values are lost in f32.
#[derive(Debug)]
pub struct Moments {
    count: f64,
    sum: Tensor,
    /// Sum of x x^T, `[D, D]`.
    products: Tensor,
}

impl Moments {
    /// Of nothing yet.
    pub fn new(dimensions: usize, device: Device) -> Self {
        let (d, options) = (dimensions as i64, (Kind::Double, device));
        Self { count: 0.0, sum: Tensor::zeros([d], options), products: Tensor::zeros([d, d], options) }
    }

    /// Takes the rows of `[n, D]` in.
    pub fn add(&mut self, rows: &Tensor) {
        let rows = rows.to_kind(Kind::Double);
        self.count += rows.size()[0] as f64;
        self.sum += rows.sum_dim_intlist([0i64].as_slice(), false, Kind::Double);
        self.products += rows.tr().matmul(&rows);
    }

    /// `[D]`.
    pub fn mean(&self) -> Tensor {
        &self.sum / self.count.max(1.0)
    }

    /// `[D, D]`.
    fn covariance(&self) -> Tensor {
        let mean = self.mean();
        &self.products / self.count.max(1.0) - mean.outer(&mean)
    }

    /// `[D]`, 1 where a dimension never varies.
    pub fn deviation(&self) -> Tensor {
        let deviation = self.covariance().diagonal(0, 0, 1).clamp_min(0.0).sqrt();
        deviation.where_self(&deviation.gt(1e-6), &deviation.ones_like())
    }

    /// Covariance `[D, D]` of the union of several sides, each standardised on its own.
    pub fn joint_correlation(sides: &[&Self]) -> Tensor {
        let total: f64 = sides.iter().map(|side| side.count).sum();
        let each = sides.iter().map(|side| {
            let deviation = side.deviation();
            side.covariance() / deviation.outer(&deviation) * (side.count / total.max(1.0))
        });
        each.reduce(|a, b| a + b).unwrap_or_else(|| Tensor::zeros([0, 0], (Kind::Double, Device::Cpu)))
    }
}

/// The `m` leading principal directions of a covariance `[D, D]`, partly whitened, as a map `[m, D]`. Rows beyond its
/// rank are small random numbers.
pub fn projection(covariance: &Tensor, m: i64) -> Tensor {
    let d = covariance.size()[1];
    let (values, vectors) = covariance.linalg_eigh("L");
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
    let mut moments = Moments::new(rows.size()[1] as usize, rows.device());
    moments.add(rows);
    let (values, vectors) = moments.covariance().linalg_eigh("L");
    let values = values.clamp_min(0.0);
    let floor = values.mean(Kind::Double).clamp_min(1e-12) * least;
    ((values + floor).sqrt().unsqueeze(1) * vectors.tr()).to_kind(Kind::Float)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moments(rows: &Tensor) -> Moments {
        let mut moments = Moments::new(rows.size()[1] as usize, Device::Cpu);
        for block in rows.split(2, 0) {
            moments.add(&block);
        }
        moments
    }

    /// Statistics made a block at a time must be those of all rows at once, a dead dimension included.
    #[test]
    fn moments_of_blocks_are_those_of_the_whole() {
        tch::manual_seed(4);
        let rows = Tensor::randn([7, 3], (Kind::Float, Device::Cpu)) * 2.0 + 5.0;
        let rows = Tensor::cat(&[rows, Tensor::ones([7, 1], (Kind::Float, Device::Cpu))], 1);
        let moments = moments(&rows);
        let expected = rows.std_dim([0i64].as_slice(), false, false);
        let apart = (moments.deviation() - &expected).abs();
        assert!(apart.narrow(0, 0, 3).max().double_value(&[]) < 1e-5);
        assert_eq!(moments.deviation().double_value(&[3]), 1.0);
        assert!(
            (moments.mean() - rows.mean_dim([0i64].as_slice(), false, Kind::Double))
                .abs()
                .max()
                .double_value(&[])
                < 1e-5
        );
    }

    /// |L x|^2 must be the variance of x's inner product with the rows: that is what equalising divides by.
    #[test]
    fn length_under_the_root_is_the_deviation_of_scores() {
        tch::manual_seed(3);
        let rows = Tensor::randn([200, 6], (Kind::Float, Device::Cpu))
            .matmul(&Tensor::randn([6, 6], (Kind::Float, Device::Cpu)));
        let x = Tensor::randn([4, 6], (Kind::Float, Device::Cpu));
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
        let latents = Tensor::randn([5, 8], (Kind::Float, Device::Cpu));
        let map = projection(&moments(&latents).covariance(), 12);
        assert_eq!(map.size(), [12, 8]);
        assert_eq!(map.isfinite().all().int64_value(&[]), 1);
    }
}
