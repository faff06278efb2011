//! The folded predictor: the exact score of a pair from m numbers per document.
//!
//! With w = W_T - W_F (the head's choice rows), v = W2^T w, and standardisation folded into the linear maps:
//! * relu: `score = c(q) + v . relu(uq + ud)`, `uq = Wq x + b1`, `ud = Wd z`;
//! * gated: `score = c(q) + (n(g(x)) * v) . ud`, `ud = Wd z / |L Wd z|`, an inner product.
//!
//! `c(q) = w . (r + b2)`. This is the predictor itself, not an approximation of it (shared by training, export and
//! runtime, so that all three mean the same number).

use crate::student::{Form, Residual, StudentConfig, tensors};
use crate::weights::{DType, Weights, WeightsError, write_safetensors};
use ndarray::{Array1, Array2, ArrayView1};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Name of the folded weights inside a bundle.
pub const FILE_NAME: &str = "fold.safetensors";

/// Weights that do not fit together.
#[derive(Debug, thiserror::Error)]
pub enum FoldError {
    /// Reading or writing failed.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A tensor of another shape than the student's description asks for.
    #[error(
        "{file}: tensor `{name}` has shape {found:?}, expected {expected:?}; description and weights come from different students"
    )]
    Shape {
        /// The file.
        file: PathBuf,
        /// Tensor name.
        name: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape needed.
        expected: Vec<usize>,
    },
}

/// Folded weights: a small affine map for each side and the vector that joins them.
#[derive(Debug, Clone)]
pub struct Folded {
    form: Form,
    /// `[m, D]`, `[m]`.
    query: (Array2<f32>, Array1<f32>),
    /// `[m, D]`, `[m]`; gated form only.
    gate: Option<(Array2<f32>, Array1<f32>)>,
    /// `[m, D]`, `[m]`.
    document: (Array2<f32>, Array1<f32>),
    /// L, `[m, m]`; gated form only.
    document_norm: Option<Array2<f32>>,
    /// v, `[m]`.
    join: Array1<f32>,
    /// Row that maps the residual's source to its part of c(q): `[H]` (last token) or `[D]` (pooled).
    residual: Array1<f32>,
    /// Constant part of c(q).
    offset: f32,
}

/// A query, ready to score any number of documents.
#[derive(Debug, Clone)]
pub struct FoldedQuery {
    form: Form,
    /// uq (relu) or n(g) * v (gated), `[m]`.
    pub vector: Vec<f32>,
    /// v, `[m]` (relu form only).
    pub join: Vec<f32>,
    /// c(q).
    pub constant: f32,
}

impl Folded {
    /// Folds a student's `predictor.safetensors`.
    pub fn from_predictor(config: &StudentConfig, file: &Path) -> Result<Self, FoldError> {
        let source = Source { file, weights: Weights::open_file(file)? };
        let (m, d, h) = (config.inner_dimensions, config.dimensions(), config.hidden_size);
        let query_mean = source.vector(tensors::QUERY_MEAN, d)?;
        let query_std = source.vector(tensors::QUERY_STD, d)?;
        let document_mean = source.vector(tensors::DOCUMENT_MEAN, d)?;
        let document_std = source.vector(tensors::DOCUMENT_STD, d)?;
        let query = standardised(
            source.matrix(tensors::QUERY_WEIGHT, m, d)?,
            source.vector(tensors::QUERY_BIAS, m)?,
            &query_mean,
            &query_std,
        );
        let document = standardised(
            source.matrix(tensors::DOCUMENT_WEIGHT, m, d)?,
            Array1::zeros(m),
            &document_mean,
            &document_std,
        );
        let gate = match config.form {
            Form::Relu => None,
            Form::Gated => Some(standardised(
                source.matrix(tensors::GATE_WEIGHT, m, d)?,
                source.vector(tensors::GATE_BIAS, m)?,
                &query_mean,
                &query_std,
            )),
        };
        let document_norm = match config.form {
            Form::Relu => None,
            Form::Gated => Some(source.matrix(tensors::DOCUMENT_NORM, m, m)?),
        };
        let choice = source.matrix(tensors::CHOICE_WEIGHT, 2, h)?;
        let w = &choice.row(0) - &choice.row(1);
        let join = source.matrix(tensors::OUTPUT_WEIGHT, h, m)?.t().dot(&w);
        let mut offset = w.dot(&source.vector(tensors::OUTPUT_BIAS, h)?);
        let residual = match config.residual {
            Residual::LastToken => w,
            Residual::Pooled => {
                let row = source.matrix(tensors::RESIDUAL_WEIGHT, h, d)?.t().dot(&w) / &query_std;
                offset -= row.dot(&query_mean);
                row
            }
        };
        Ok(Self { form: config.form, query, gate, document, document_norm, join, residual, offset })
    }

    /// Writes `fold.safetensors`.
    pub fn write(&self, file: &Path, dtype: DType) -> Result<(), FoldError> {
        let matrix =
            |name: &str, a: &Array2<f32>| (name.to_owned(), a.shape().to_vec(), a.iter().copied().collect());
        let vector = |name: &str, a: &Array1<f32>| (name.to_owned(), vec![a.len()], a.to_vec());
        let mut all = vec![
            matrix("query.weight", &self.query.0),
            vector("query.bias", &self.query.1),
            matrix("document.weight", &self.document.0),
            vector("document.bias", &self.document.1),
            vector("join", &self.join),
            vector("residual", &self.residual),
            vector("offset", &Array1::from_elem(1, self.offset)),
        ];
        if let Some((weight, bias)) = &self.gate {
            all.push(matrix("gate.weight", weight));
            all.push(vector("gate.bias", bias));
        }
        if let Some(norm) = &self.document_norm {
            all.push(matrix("document.norm", norm));
        }
        Ok(write_safetensors(file, all, dtype, HashMap::new())?)
    }

    /// Reads `fold.safetensors`; sizes must agree with the bundle's manifest.
    pub fn open(config: &StudentConfig, file: &Path) -> Result<Self, FoldError> {
        let source = Source { file, weights: Weights::open_file(file)? };
        let (m, d) = (config.inner_dimensions, config.dimensions());
        let affine = |side: &str| -> Result<_, FoldError> {
            Ok((source.matrix(&format!("{side}.weight"), m, d)?, source.vector(&format!("{side}.bias"), m)?))
        };
        let residual = match config.residual {
            Residual::LastToken => config.hidden_size,
            Residual::Pooled => d,
        };
        Ok(Self {
            form: config.form,
            query: affine("query")?,
            gate: matches!(config.form, Form::Gated).then(|| affine("gate")).transpose()?,
            document: affine("document")?,
            document_norm: matches!(config.form, Form::Gated)
                .then(|| source.matrix("document.norm", m, m))
                .transpose()?,
            join: source.vector("join", m)?,
            residual: source.vector("residual", residual)?,
            offset: source.vector("offset", 1)?[0],
        })
    }

    /// Numbers stored per document, m.
    pub fn inner_dimensions(&self) -> usize {
        self.join.len()
    }

    /// Predictor form.
    pub fn form(&self) -> Form {
        self.form
    }

    /// L, under which stored vectors have length 1; gated form only.
    pub(crate) fn document_norm(&self) -> Option<&Array2<f32>> {
        self.document_norm.as_ref()
    }

    /// A document's stored vector `ud`, `[m]`, from its latent `[D]`.
    pub fn document(&self, latent: &[f32]) -> Vec<f32> {
        let mut u = self.document.0.dot(&ArrayView1::from(latent)) + &self.document.1;
        if let Some(norm) = &self.document_norm {
            let length = norm.dot(&u);
            u /= length.dot(&length).sqrt().max(UNIT_EPSILON);
        }
        u.to_vec()
    }

    /// A query's side of the score, from its latent `[D]` and, with [`Residual::LastToken`], its last token's hidden
    /// state `[H]` (otherwise pass the latent again).
    pub fn query(&self, latent: &[f32], residual_source: &[f32]) -> FoldedQuery {
        let x = ArrayView1::from(latent);
        let mut u = self.query.0.dot(&x) + &self.query.1;
        let constant = self.residual.dot(&ArrayView1::from(residual_source)) + self.offset;
        let join = match &self.gate {
            None => self.join.to_vec(),
            Some((weight, bias)) => {
                let gate = weight.dot(&x) + bias;
                u.zip_mut_with(&gate, |u, g| *u /= 1.0 + (-g).exp());
                unit(&mut u);
                u *= &self.join;
                Vec::new()
            }
        };
        FoldedQuery { form: self.form, vector: u.to_vec(), join, constant }
    }
}

impl FoldedQuery {
    /// A query of made-up numbers, for measurements.
    pub fn new(form: Form, vector: Vec<f32>, join: Vec<f32>, constant: f32) -> Self {
        Self { form, vector, join, constant }
    }

    /// `log p(T) - log p(F)` of this query and a stored document vector `[m]`.
    pub fn score(&self, document: &[f32]) -> f32 {
        self.constant
            + match self.form {
                Form::Relu => kernels::relu_f32(&self.join, &self.vector, document),
                Form::Gated => kernels::dot_f32(&self.vector, document),
            }
    }

    /// The same of a document vector in IEEE half precision, `[m]` bit patterns of finite numbers.
    pub fn score_f16(&self, document: &[u16]) -> f32 {
        self.constant
            + match self.form {
                Form::Relu => kernels::relu_f16(&self.join, &self.vector, document),
                Form::Gated => kernels::dot_f16(&self.vector, document),
            }
    }

    /// The same of a document vector `scale * document`, `[m]`.
    pub fn score_int8(&self, document: &[i8], scale: f32) -> f32 {
        self.constant
            + match self.form {
                Form::Relu => kernels::relu_int8(&self.join, &self.vector, document, scale),
                Form::Gated => scale * kernels::dot_int8(&self.vector, document),
            }
    }
}

/// `v . relu(a + b)`, the relu form's part of a score that is the pair's; what the longer of them has beyond the others
/// does not count. It never panics.
pub fn relu_score(join: &[f32], a: &[f32], b: &[f32]) -> f32 {
    kernels::relu_f32(join, a, b)
}

/// The inner loops, compiled for several instruction sets of which the machine's best is taken. Each sums in the same
/// [`LANES`](kernels::LANES) on all of them, and nothing is fused, so that every machine makes the same number.
mod kernels {
    use multiversion::multiversion;

    /// Independent sums, which the compiler turns into vector instructions (one running sum it may not).
    const LANES: usize = 32;

    macro_rules! kernel {
        ($(#[$doc:meta])* $name:ident($($vector:ident: $number:ty),+; $($scalar:ident),*) $term:expr) => {
            $(#[$doc])*
            #[multiversion(targets(
                "x86_64+avx512f+avx512bw+avx512dq+avx512vl",
                "x86_64+avx2",
                "aarch64+neon",
            ))]
            pub fn $name($($vector: &[$number],)+ $($scalar: f32),*) -> f32 {
                kernel!(@sum $($vector),+; $term)
            }
        };
        (@sum $a:ident, $b:ident; $term:expr) => {{
            let mut sums = [0f32; LANES];
            let (blocks_a, blocks_b) = ($a.chunks_exact(LANES), $b.chunks_exact(LANES));
            let rest = blocks_a.remainder().iter().zip(blocks_b.remainder());
            let rest: f32 = rest.map(|(&$a, &$b)| $term).sum();
            for ($a, $b) in blocks_a.zip(blocks_b) {
                for ((sum, &$a), &$b) in sums.iter_mut().zip($a).zip($b) {
                    *sum += $term;
                }
            }
            sums.iter().sum::<f32>() + rest
        }};
        (@sum $v:ident, $a:ident, $b:ident; $term:expr) => {{
            let mut sums = [0f32; LANES];
            let (blocks_v, blocks_a, blocks_b) =
                ($v.chunks_exact(LANES), $a.chunks_exact(LANES), $b.chunks_exact(LANES));
            let rest = blocks_v.remainder().iter().zip(blocks_a.remainder()).zip(blocks_b.remainder());
            let rest: f32 = rest.map(|((&$v, &$a), &$b)| $term).sum();
            for (($v, $a), $b) in blocks_v.zip(blocks_a).zip(blocks_b) {
                for (((sum, &$v), &$a), &$b) in sums.iter_mut().zip($v).zip($a).zip($b) {
                    *sum += $term;
                }
            }
            sums.iter().sum::<f32>() + rest
        }};
    }

    kernel!(dot_f32(q: f32, d: f32;) q * d);
    kernel!(dot_f16(q: f32, d: u16;) q * widened(d));
    kernel!(dot_int8(q: f32, d: i8;) q * f32::from(d));
    kernel!(relu_f32(v: f32, q: f32, d: f32;) v * (q + d).max(0.0));
    kernel!(relu_f16(v: f32, q: f32, d: u16;) v * (q + widened(d)).max(0.0));
    kernel!(relu_int8(v: f32, q: f32, d: i8; scale) v * (q + scale * f32::from(d)).max(0.0));

    /// A finite half-precision number's bits as f32, in operations that vectorise everywhere: the exponents of the two
    /// differ by 112, and the product is exact, subnormal numbers included.
    #[inline(always)]
    fn widened(half: u16) -> f32 {
        let bits = u32::from(half);
        let magnitude = f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits((127 + 112) << 23);
        f32::from_bits(magnitude.to_bits() | (bits & 0x8000) << 16)
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        /// A wrong exponent or a lost subnormal would bend every score a little.
        #[test]
        fn every_finite_half_is_widened_exactly() {
            for bits in 0..=u16::MAX {
                let half = half::f16::from_bits(bits);
                if half.is_finite() {
                    assert_eq!(widened(bits).to_bits(), half.to_f32().to_bits(), "{half}");
                }
            }
        }

        /// Lanes, remainders and the three kinds of number against sums in f64.
        #[test]
        fn kernels_are_the_sums_they_stand_for() {
            for m in [0, 1, 31, 32, 33, 64, 100, 512] {
                let number = |seed: usize, i: usize| (((i * 37 + seed * 101) % 113) as f32 - 56.0) / 41.0;
                let [v, q, d] = [1, 2, 3].map(|seed| (0..m).map(|i| number(seed, i)).collect::<Vec<f32>>());
                let halves: Vec<u16> = d.iter().map(|x| half::f16::from_f32(*x).to_bits()).collect();
                let bytes: Vec<i8> = d.iter().map(|x| (x * 60.0) as i8).collect();
                let of_halves: Vec<f32> = halves.iter().map(|h| half::f16::from_bits(*h).to_f32()).collect();
                let of_bytes: Vec<f32> = bytes.iter().map(|b| 0.25 * f32::from(*b)).collect();
                let dot =
                    |d: &[f32]| -> f64 { q.iter().zip(d).map(|(q, d)| f64::from(*q) * f64::from(*d)).sum() };
                let relu = |d: &[f32]| -> f64 {
                    let pairs = q.iter().zip(d).map(|(q, d)| (f64::from(*q) + f64::from(*d)).max(0.0));
                    v.iter().zip(pairs).map(|(v, x)| f64::from(*v) * x).sum()
                };
                for (name, found, expected) in [
                    ("dot_f32", dot_f32(&q, &d), dot(&d)),
                    ("dot_f16", dot_f16(&q, &halves), dot(&of_halves)),
                    ("dot_int8", 0.25 * dot_int8(&q, &bytes), dot(&of_bytes)),
                    ("relu_f32", relu_f32(&v, &q, &d), relu(&d)),
                    ("relu_f16", relu_f16(&v, &q, &halves), relu(&of_halves)),
                    ("relu_int8", relu_int8(&v, &q, &bytes, 0.25), relu(&of_bytes)),
                ] {
                    let error = (f64::from(found) - expected).abs();
                    assert!(
                        error <= 1e-4 * (1.0 + m as f64).sqrt() * 16.0,
                        "{name}, {m} numbers: {found} for {expected}"
                    );
                }
            }
        }
    }
}

/// `W ((x - mean) / std) + b` as one affine map of x.
fn standardised(
    mut weight: Array2<f32>,
    bias: Array1<f32>,
    mean: &Array1<f32>,
    std: &Array1<f32>,
) -> (Array2<f32>, Array1<f32>) {
    weight /= std;
    let bias = bias - weight.dot(mean);
    (weight, bias)
}

/// Smallest length a vector is divided by: the epsilon of PyTorch's `normalize`, so that folded and unfolded agree.
const UNIT_EPSILON: f32 = 1e-12;

fn unit(u: &mut Array1<f32>) {
    let length = u.dot(u).sqrt().max(UNIT_EPSILON);
    *u /= length;
}

struct Source<'a> {
    file: &'a Path,
    weights: Weights,
}

impl Source<'_> {
    fn checked(&self, name: &str, expected: &[usize]) -> Result<Vec<f32>, FoldError> {
        let (found, values) = self.weights.f32(name)?;
        if found != expected {
            let (file, name) = (self.file.to_owned(), name.to_owned());
            return Err(FoldError::Shape { file, name, found, expected: expected.to_vec() });
        }
        Ok(values)
    }

    fn vector(&self, name: &str, n: usize) -> Result<Array1<f32>, FoldError> {
        Ok(Array1::from_vec(self.checked(name, &[n])?))
    }

    fn matrix(&self, name: &str, rows: usize, columns: usize) -> Result<Array2<f32>, FoldError> {
        let values = self.checked(name, &[rows, columns])?;
        Ok(Array2::from_shape_fn((rows, columns), |(r, c)| values[r * columns + c]))
    }
}
