//! How the score is said in pgvector's operators: exactly, to scan; and as an inner product, to ask a graph.
//!
//! Gated, the score *is* an inner product, `(n(g) * v) . ud`, and the graph is built over the vectors themselves.
//!
//! Relu, `v . relu(uq + ud)`, it is neither an inner product nor a distance.
//! * Exactly: `relu(x) = (x + |x|) / 2`, so the score is half of `v . ud` plus a difference of two taxicab distances, over
//!   the positive and the negative entries of v: pgvector scans without sending a vector.
//! * For the graph: along each dimension the hinge `relu(uq + x)` is fitted by `w x + w' |x| / 2` (least squares over a sample
//!   of the stored vectors), and the sum over dimensions is an inner product of `[v w, v w']` with the document's `[ud, |ud| / 2]`,
//!   which is what the graph is built over. On made-up vectors the best ten by the score are among its best 80 but for one in
//!   two hundred; by the linear term alone up to three in ten are missing.

use crate::store::IndexKey;
use models::fold::FoldedQuery;
use models::student::Form;

/// Most dimensions of a graph over 32-bit and over 16-bit floats.
const MOST_DIMENSIONS: (usize, usize) = (2000, 4000);
/// Most dimensions of a vector in a table.
pub(super) const MOST_STORED: usize = 16_000;
/// Links of a node of the graph.
pub(super) const LINKS: usize = 24;
/// Nodes of the graph that are looked at for a query, at least. Half as many find a tenth less of the best ten among 20,000
/// made-up documents of 512 numbers.
pub(super) const EXPANSION: usize = 512;
/// Stored vectors to which hinges are fitted.
pub(super) const SAMPLE: usize = 512;
/// Largest finite 16-bit float.
const HALF_MAX: f32 = 65_504.0;
/// Smaller numbers are zeros in a database: pgvector refuses products that vanish.
const SMALLEST: f32 = 1e-20;
/// The same for the entries of v.
const SMALLEST_JOIN: f32 = 1e-15;

/// The shape of an index's tables, which follows from its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Measure {
    pub form: Form,
    /// Numbers per document, m.
    pub dimensions: usize,
}

/// An exact score in SQL with its vectors, which are bound from `$1` on.
pub(super) struct Score {
    pub sql: String,
    pub vectors: Vec<Vec<f32>>,
}

impl Measure {
    pub fn new(key: &IndexKey) -> Self {
        Self { form: key.form, dimensions: key.inner_dimensions }
    }

    /// What the graph is built over (a column or an expression in brackets) and its type; `None` where there are too many
    /// dimensions for any.
    pub fn graph(self) -> Option<(String, String)> {
        let m = self.dimensions;
        let (full, half) = MOST_DIMENSIONS;
        match self.form {
            Form::Gated if m <= full => Some(("vector".into(), "vector".into())),
            Form::Gated if m <= half => Some((format!("(vector::halfvec({m}))"), "halfvec".into())),
            Form::Relu if 2 * m <= half => Some(("features".into(), "halfvec".into())),
            _ => None,
        }
    }

    /// The column that only the relu form has.
    pub fn features_column(self) -> Option<String> {
        let relu = self.form == Form::Relu && self.graph().is_some();
        relu.then(|| format!("features halfvec({})", 2 * self.dimensions))
    }

    /// A vector as it is stored.
    pub fn stored(self, vector: &[f32]) -> Vec<f32> {
        match self.form {
            Form::Gated => vector.to_vec(),
            Form::Relu => vector.iter().map(|&x| if x.abs() < SMALLEST { 0.0 } else { x }).collect(),
        }
    }

    /// `[ud, |ud| / 2]`, `[2m]`.
    pub fn features(self, vector: &[f32]) -> Vec<f32> {
        let half = |x: f32| x.clamp(-HALF_MAX, HALF_MAX);
        let plain = vector.iter().map(|&x| half(x));
        plain.chain(vector.iter().map(|x| half(bend(*x)))).collect()
    }

    /// The score but for what all documents have in common.
    pub fn score(self, query: &FoldedQuery) -> Score {
        match self.form {
            Form::Gated => {
                Score { sql: "-(vector <#> $1::real[]::vector)".into(), vectors: vec![query.vector.clone()] }
            }
            Form::Relu => {
                let side = |sign: f32| -> Vec<f32> {
                    let part = |v: &f32| if sign * v < SMALLEST_JOIN { 0.0 } else { sign * v };
                    query.join.iter().map(part).collect()
                };
                let (positive, negative) = (side(1.0), side(-1.0));
                let opposite = |weights: &[f32]| -> Vec<f32> {
                    weights.iter().zip(&query.vector).map(|(w, u)| -w * u).collect()
                };
                let (from, against) = (opposite(&positive), opposite(&negative));
                Score {
                    sql: "l1_distance(vector * $2::real[]::vector, $3::real[]::vector) \
                          - l1_distance(vector * $4::real[]::vector, $5::real[]::vector) \
                          - (vector <#> $1::real[]::vector)"
                        .into(),
                    vectors: vec![query.join.clone(), positive, from, negative, against],
                }
            }
        }
    }

    /// What the graph is asked with: its inner product with what the graph is built over orders about as the score does.
    pub fn probe(self, query: &FoldedQuery, sample: &Sample) -> Vec<f32> {
        let probe = match self.form {
            Form::Gated => query.vector.clone(),
            Form::Relu => sample.probe(query),
        };
        // As 16-bit floats, large ones would be refused and small ones lost; the order does not depend on the length.
        let most = probe.iter().fold(0f32, |most, x| most.max(x.abs()));
        if most > 0.0 && most.is_finite() { probe.into_iter().map(|x| x / most).collect() } else { probe }
    }
}

/// The second feature of a number: the bend that a straight line lacks.
fn bend(x: f32) -> f32 {
    0.5 * x.abs()
}

/// Some of the stored vectors, to which hinges are fitted.
#[derive(Debug, Clone, Default)]
pub(super) struct Sample {
    /// `[rows, m]`.
    vectors: Vec<f32>,
    dimensions: usize,
    /// Of each dimension.
    moments: Vec<Moments>,
    /// Documents that there were when it was drawn.
    pub documents: usize,
}

/// Means of x and its bend, and their scatter around them.
#[derive(Debug, Clone, Copy, Default)]
struct Moments {
    mean: [f32; 2],
    /// xx, x bend, bend bend.
    scatter: [f32; 3],
}

impl Sample {
    /// Prepares the fit; `vectors` are `[rows, dimensions]`.
    pub fn new(vectors: Vec<f32>, dimensions: usize, documents: usize) -> Self {
        let rows = (vectors.len() / dimensions.max(1)).max(1) as f32;
        let mut moments = vec![Moments::default(); dimensions];
        for row in vectors.chunks_exact(dimensions.max(1)) {
            for (moments, &x) in moments.iter_mut().zip(row) {
                moments.mean[0] += x / rows;
                moments.mean[1] += bend(x) / rows;
            }
        }
        for row in vectors.chunks_exact(dimensions.max(1)) {
            for (moments, &x) in moments.iter_mut().zip(row) {
                let (a, b) = (x - moments.mean[0], bend(x) - moments.mean[1]);
                for (sum, term) in moments.scatter.iter_mut().zip([a * a, a * b, b * b]) {
                    *sum += term;
                }
            }
        }
        Self { vectors, dimensions, moments, documents }
    }

    fn probe(&self, query: &FoldedQuery) -> Vec<f32> {
        let m = self.dimensions;
        // Of the hinge with x and with its bend.
        let mut products = vec![[0f32; 2]; m];
        for row in self.vectors.chunks_exact(m.max(1)) {
            let sides = products.iter_mut().zip(&self.moments);
            for ((product, moments), (&x, u)) in sides.zip(row.iter().zip(&query.vector)) {
                let hinge = (u + x).max(0.0);
                product[0] += hinge * (x - moments.mean[0]);
                product[1] += hinge * (bend(x) - moments.mean[1]);
            }
        }
        let mut probe = vec![0f32; 2 * m];
        for (i, (moments, [p, q])) in self.moments.iter().zip(products).enumerate() {
            let [a, b, d] = moments.scatter;
            let determinant = a * d - b * b;
            let (straight, bent) = if determinant > 1e-3 * a * d {
                ((d * p - b * q) / determinant, (a * q - b * p) / determinant)
            } else if a > 0.0 {
                // All on one side of zero, where the bend is a straight line, too.
                (p / a, 0.0)
            } else {
                (0.0, 0.0)
            };
            let v = query.join.get(i).copied().unwrap_or(0.0);
            (probe[i], probe[m + i]) = (v * straight, v * bent);
        }
        probe
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Folding, Random};

    /// The graph's candidates are as good as the fit; a linear one alone would leave three in ten behind.
    #[test]
    fn the_probe_puts_the_best_first() {
        const N: usize = 6000;
        const M: usize = 48;
        let mut random = Random::new(11);
        let folding = Folding::new(Form::Relu, M, &mut random);
        let measure = Measure { form: Form::Relu, dimensions: M };
        let centres: Vec<Vec<f32>> = (0..N / 50).map(|_| random.normals(M)).collect();
        let documents: Vec<Vec<f32>> = (0..N)
            .map(|i| {
                let centre = &centres[i % centres.len()];
                let latent: Vec<f32> = centre.iter().map(|x| x + 0.4 * random.normal()).collect();
                folding.folded.document(&latent)
            })
            .collect();
        let sample = Sample::new(documents[..SAMPLE].concat(), M, N);
        let best = |score: &dyn Fn(&[f32]) -> f32, k: usize| -> Vec<usize> {
            let mut order: Vec<usize> = (0..N).collect();
            order.sort_by(|&a, &b| score(&documents[b]).total_cmp(&score(&documents[a])));
            order.truncate(k);
            order
        };
        let (mut found, mut straight) = (0, 0);
        const QUERIES: usize = 40;
        for _ in 0..QUERIES {
            let query = folding.query(&mut random);
            let probe = measure.probe(&query, &sample);
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
            let exact = best(&|d| query.score(d), 10);
            let near = best(&|d| dot(&probe, &measure.features(d)), 80);
            let linear = best(&|d| dot(&probe[..M], d), 80);
            found += exact.iter().filter(|i| near.contains(i)).count();
            straight += exact.iter().filter(|i| linear.contains(i)).count();
        }
        let (found, straight) = (found as f64 / 400.0, straight as f64 / 400.0);
        eprintln!("best 10 among 80 candidates: {found:.3}, by the linear part {straight:.3}");
        assert!(found >= 0.98 && found > straight, "{found} {straight}");
    }

    /// A dimension that never changes, or never changes its sign, must not become NaN: one would spoil the whole probe.
    #[test]
    fn the_probe_is_finite_whatever_the_sample() {
        let query = FoldedQuery::new(Form::Relu, vec![0.5, -1.0, 0.0], vec![1.0, -2.0, 0.0], 0.0);
        let measure = Measure { form: Form::Relu, dimensions: 3 };
        for vectors in
            [vec![], vec![1.0, 0.0, 3.0], [2.0, 0.0, -1.0].repeat(5), vec![1.0, 2.0, 3.0, 4.0, 0.0, 5.0]]
        {
            let probe = measure.probe(&query, &Sample::new(vectors, 3, 0));
            assert!(probe.len() == 6 && probe.iter().all(|x| x.is_finite()), "{probe:?}");
        }
    }
}
