//! The JEPA predictor (Rabtriever, arXiv 2604.23336): rebuilds the teacher's h(q|d) from the query's and the document's
//! latents. Formulas in [`crate::student`]; [`crate::fold`] is the same predictor folded.

use crate::student::{Form, Residual, StudentConfig, tensors as names};
use crate::weights::{Weights, WeightsError};
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// Latents of some queries or documents, standardised.
#[derive(Debug)]
pub struct Standardised(pub Tensor);

/// Mean and deviation of one side's latents, `[D]` each.
#[derive(Debug)]
pub struct Statistics {
    mean: Tensor,
    std: Tensor,
}

impl Statistics {
    /// Over the rows of `[n, D]`. A dimension that never varies is divided by 1.
    pub fn of(latents: &Tensor) -> Self {
        let mean = latents.mean_dim([0i64].as_slice(), false, Kind::Float);
        let std = latents.std_dim([0i64].as_slice(), false, false);
        let std = std.where_self(&std.gt(1e-6), &std.ones_like());
        Self { mean, std }
    }

    /// `(x - mean) / std` for `[n, D]`.
    pub fn apply(&self, latents: &Tensor) -> Standardised {
        Standardised((latents - &self.mean) / &self.std)
    }
}

/// The predictor's weights and constants; all f32 (it is small, and its scores are compared closely).
#[derive(Debug)]
pub struct Predictor {
    form: Form,
    dropout: f64,
    /// Query side.
    pub query: Statistics,
    /// Document side.
    pub document: Statistics,
    query_weight: Tensor,
    query_bias: Tensor,
    gate: Option<(Tensor, Tensor)>,
    document_weight: Tensor,
    output_weight: Tensor,
    output_bias: Tensor,
    residual: Option<Tensor>,
    /// `[2, H]`, frozen rows of the head.
    choice: Tensor,
}

/// The query side of the predictor for a batch of queries.
#[derive(Debug)]
pub struct QuerySide {
    /// `Wq x + b1` (relu) or `n(g(x))` (gated), `[n, m]`.
    inner: Tensor,
    /// `r + b2`, `[n, H]`.
    residual: Tensor,
}

impl QuerySide {
    /// c(q) = `(W_T - W_F) . (r + b2)`, `[n]`: what every document's score of a query has in common. `choice` `[2, H]`.
    pub fn constant(&self, choice: &Tensor) -> Tensor {
        self.residual.matmul(&(choice.select(0, 0) - choice.select(0, 1)))
    }

    /// Some of the queries, by place.
    pub fn select(&self, places: &Tensor) -> Self {
        Self { inner: self.inner.index_select(0, places), residual: self.residual.index_select(0, places) }
    }
}

impl Predictor {
    /// Fresh weights: small random maps, so that at the start P is close to its residual.
    /// `choice` is `[2, H]`. Seed with [`tch::manual_seed`] before.
    pub fn new(
        config: &StudentConfig,
        query: Statistics,
        document: Statistics,
        choice: Tensor,
        dropout: f64,
    ) -> Self {
        let device = choice.device();
        let (m, d, h) =
            (config.inner_dimensions as i64, config.dimensions() as i64, config.hidden_size as i64);
        let uniform = |rows: i64, columns: i64| {
            let bound = 1.0 / (columns as f64).sqrt();
            let mut weight = Tensor::zeros([rows, columns], (Kind::Float, device));
            let _ = weight.uniform_(-bound, bound);
            weight.set_requires_grad(true)
        };
        let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, device)).set_requires_grad(true);
        Self {
            form: config.form,
            dropout,
            query,
            document,
            query_weight: uniform(m, d),
            query_bias: zeros(&[m]),
            gate: matches!(config.form, Form::Gated).then(|| (uniform(m, d), zeros(&[m]))),
            document_weight: uniform(m, d),
            output_weight: uniform(h, m),
            output_bias: zeros(&[h]),
            residual: matches!(config.residual, Residual::Pooled).then(|| zeros(&[h, d])),
            choice: choice.to_kind(Kind::Float),
        }
    }

    /// Reads `predictor.safetensors`.
    pub fn open(config: &StudentConfig, file: &Path, device: Device) -> Result<Self, WeightsError> {
        let weights = Weights::open_file(file)?;
        let tensor = |name: &str| -> Result<Tensor, WeightsError> {
            let (shape, values) = weights.f32(name)?;
            let shape: Vec<i64> = shape.iter().map(|n| *n as i64).collect();
            Ok(Tensor::from_slice(&values).reshape(shape).to_device(device))
        };
        let statistics = |mean: &str, std: &str| -> Result<Statistics, WeightsError> {
            Ok(Statistics { mean: tensor(mean)?, std: tensor(std)? })
        };
        Ok(Self {
            form: config.form,
            dropout: 0.0,
            query: statistics(names::QUERY_MEAN, names::QUERY_STD)?,
            document: statistics(names::DOCUMENT_MEAN, names::DOCUMENT_STD)?,
            query_weight: tensor(names::QUERY_WEIGHT)?,
            query_bias: tensor(names::QUERY_BIAS)?,
            gate: match config.form {
                Form::Relu => None,
                Form::Gated => Some((tensor(names::GATE_WEIGHT)?, tensor(names::GATE_BIAS)?)),
            },
            document_weight: tensor(names::DOCUMENT_WEIGHT)?,
            output_weight: tensor(names::OUTPUT_WEIGHT)?,
            output_bias: tensor(names::OUTPUT_BIAS)?,
            residual: match config.residual {
                Residual::LastToken => None,
                Residual::Pooled => Some(tensor(names::RESIDUAL_WEIGHT)?),
            },
            choice: tensor(names::CHOICE_WEIGHT)?,
        })
    }

    /// Trainable tensors by checkpoint name.
    pub fn parameters(&self) -> Vec<(String, Tensor)> {
        let mut all = vec![
            (names::QUERY_WEIGHT, &self.query_weight),
            (names::QUERY_BIAS, &self.query_bias),
            (names::DOCUMENT_WEIGHT, &self.document_weight),
            (names::OUTPUT_WEIGHT, &self.output_weight),
            (names::OUTPUT_BIAS, &self.output_bias),
        ];
        if let Some((weight, bias)) = &self.gate {
            all.extend([(names::GATE_WEIGHT, weight), (names::GATE_BIAS, bias)]);
        }
        if let Some(residual) = &self.residual {
            all.push((names::RESIDUAL_WEIGHT, residual));
        }
        all.into_iter().map(|(name, tensor)| (name.to_owned(), tensor.shallow_clone())).collect()
    }

    /// Everything that `predictor.safetensors` holds.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        let constants = [
            (names::QUERY_MEAN, &self.query.mean),
            (names::QUERY_STD, &self.query.std),
            (names::DOCUMENT_MEAN, &self.document.mean),
            (names::DOCUMENT_STD, &self.document.std),
            (names::CHOICE_WEIGHT, &self.choice),
        ];
        let constants = constants.into_iter().map(|(name, t)| (name.to_owned(), t.shallow_clone()));
        self.parameters().into_iter().chain(constants).collect()
    }

    /// Query side of `n` queries; `answer` is e_q `[n, H]` and needed with [`Residual::LastToken`] only.
    pub fn query_side(&self, x: &Standardised, answer: Option<&Tensor>, train: bool) -> QuerySide {
        let x_dropped = self.drop(&x.0, train);
        let mut inner = x_dropped.matmul(&self.query_weight.tr()) + &self.query_bias;
        if let Some((weight, bias)) = &self.gate {
            inner = unit(&(inner * (x_dropped.matmul(&weight.tr()) + bias).sigmoid()));
        }
        let residual = match (&self.residual, answer) {
            (Some(map), _) => x.0.matmul(&map.tr()),
            (None, Some(answer)) => answer.to_kind(Kind::Float),
            // Without either the residual is zero: the ranking is the same, only c(q) is missing.
            (None, None) => {
                Tensor::zeros([x.0.size()[0], self.choice.size()[1]], (Kind::Float, x.0.device()))
            }
        };
        QuerySide { inner, residual: residual + &self.output_bias }
    }

    /// Document side `[n, m]`.
    pub fn document_side(&self, z: &Standardised, train: bool) -> Tensor {
        let u = self.drop(&z.0, train).matmul(&self.document_weight.tr());
        match self.form {
            Form::Relu => u,
            Form::Gated => unit(&u),
        }
    }

    /// P(e, z) for every query with every one of its own documents: documents `[n, c, m]` or `[c, m]` (shared by all
    /// queries) to `[n, c, H]`.
    pub fn predict(&self, query: &QuerySide, documents: &Tensor) -> Tensor {
        self.join(query, documents).matmul(&self.output_weight.tr()) + query.residual.unsqueeze(1)
    }

    /// `log p(T) - log p(F)` of the same pairs, `[n, c]`, without building P.
    pub fn score(&self, query: &QuerySide, documents: &Tensor) -> Tensor {
        let w = self.choice.get(0) - self.choice.get(1);
        let v = self.output_weight.tr().matmul(&w);
        let constant = query.residual.matmul(&w).unsqueeze(1);
        match (self.form, documents.dim()) {
            // An inner product: no [n, c, m] is needed.
            (Form::Gated, 2) => (&query.inner * v).matmul(&documents.tr()) + constant,
            _ => self.join(query, documents).matmul(&v) + constant,
        }
    }

    /// The choice rows `[2, H]`, positive first.
    pub fn choice(&self) -> &Tensor {
        &self.choice
    }

    fn join(&self, query: &QuerySide, documents: &Tensor) -> Tensor {
        let inner = query.inner.unsqueeze(1);
        match self.form {
            Form::Relu => (inner + documents).relu(),
            Form::Gated => inner * documents,
        }
    }

    fn drop(&self, x: &Tensor, train: bool) -> Tensor {
        if train && self.dropout > 0.0 { x.dropout(self.dropout, true) } else { x.shallow_clone() }
    }
}

/// Rows at unit length.
fn unit(x: &Tensor) -> Tensor {
    let length = x.square().sum_dim_intlist([-1i64].as_slice(), true, Kind::Float).sqrt();
    x / length.clamp_min(1e-12)
}
