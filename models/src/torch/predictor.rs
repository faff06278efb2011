//! The JEPA predictor (Rabtriever, arXiv 2604.23336): rebuilds the teacher's h(q|d) from the query's and the document's
//! latents. Formulas in [`crate::student`]; [`crate::fold`] is the same predictor folded.

use super::spectral::{self, Moments};
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
    /// A dimension that never varies is divided by 1.
    pub fn of(moments: &Moments) -> Self {
        Self { mean: moments.mean().to_kind(Kind::Float), std: moments.deviation().to_kind(Kind::Float) }
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
    /// L, `[m, m]`, gated form only; not trained, see [`Predictor::equalise_documents`].
    document_norm: Option<Tensor>,
    output_weight: Tensor,
    output_bias: Tensor,
    residual: Option<Tensor>,
    /// `[2, H]`, frozen rows of the head.
    choice: Tensor,
    /// Where the maps of the gated form started, in training only.
    start: Option<Start>,
}

/// The gated form's maps before training.
#[derive(Debug)]
struct Start {
    /// `[m, D]`.
    query: Tensor,
    /// `[m, D]`.
    document: Tensor,
    /// `[m, D]`.
    gate: Tensor,
}

/// Score difference between the most and the least similar documents at the start of the gated form: log-odds of 10
/// leave the softmax over candidates neither flat nor saturated.
const START_SCALE: f64 = 10.0;
/// Share of the mean variance that every direction of the queries' side is granted when documents are equalised: a
/// document in a direction that no training query uses must not be blown up.
const LEAST_VARIANCE: f64 = 0.01;

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
    /// Fresh weights for training on latents with these moments; `choice` is `[2, H]`. Seed with [`tch::manual_seed`]
    /// before.
    ///
    /// The gated form starts as the cosine of both sides under one map ([`spectral::projection`]) and is held near it by
    /// [`Predictor::distance_from_start`]: a document that no training query knows is then judged by likeness, where
    /// maps from random numbers have nothing to say about it. The relu form starts from small random maps.
    pub fn new(
        config: &StudentConfig,
        queries: &Moments,
        documents: &Moments,
        choice: &Tensor,
        dropout: f64,
    ) -> Self {
        let (query, document) = (Statistics::of(queries), Statistics::of(documents));
        let choice = choice.detach().to_kind(Kind::Float);
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
        let trained = |start: &Tensor| start.copy().set_requires_grad(true);
        let start = matches!(config.form, Form::Gated).then(|| {
            tch::no_grad(|| spectral::projection(&Moments::joint_correlation(&[queries, documents]), m))
        });
        let (query_weight, document_weight, output_weight) = match &start {
            None => (uniform(m, d), uniform(m, d), uniform(h, m)),
            Some(start) => {
                // v = W2^T w is then the same for all inner dimensions.
                let w = choice.get(0) - choice.get(1);
                let along = &w * START_SCALE / w.square().sum(Kind::Float).clamp_min(1e-12);
                (trained(start), trained(start), trained(&along.unsqueeze(1).repeat([1, m])))
            }
        };
        Self {
            form: config.form,
            dropout,
            query,
            document,
            query_weight,
            query_bias: zeros(&[m]),
            gate: start.is_some().then(|| (zeros(&[m, d]), zeros(&[m]))),
            document_weight,
            document_norm: start.is_some().then(|| Tensor::eye(m, (Kind::Float, device))),
            output_weight,
            output_bias: zeros(&[h]),
            residual: matches!(config.residual, Residual::Pooled).then(|| zeros(&[h, d])),
            choice,
            start: start.map(|map| Start {
                query: map.shallow_clone(),
                document: map.shallow_clone(),
                gate: Tensor::zeros([m, d], (Kind::Float, device)),
            }),
        }
    }

    /// The predictor of another student in training again: its maps are where this one starts, and the gated form is held near
    /// them; `choice` `[2, H]` is the head's now.
    pub fn continued(
        config: &StudentConfig,
        file: &Path,
        choice: &Tensor,
        dropout: f64,
    ) -> Result<Self, WeightsError> {
        let choice = choice.detach().to_kind(Kind::Float);
        let mut predictor = Self::open(config, file, choice.device())?;
        for (_, tensor) in predictor.parameters() {
            let _ = tensor.set_requires_grad(true);
        }
        predictor.start = predictor.gate.as_ref().map(|(gate, _)| Start {
            query: predictor.query_weight.detach().copy(),
            document: predictor.document_weight.detach().copy(),
            gate: gate.detach().copy(),
        });
        predictor.forget_equalising();
        Ok(Self { choice, dropout, ..predictor })
    }

    /// Squared distance of both maps and the gate from where they started; zero in the relu form.
    pub fn distance_from_start(&self) -> Tensor {
        let squared = |x: Tensor| x.square().sum(Kind::Float);
        match (&self.start, &self.gate) {
            (Some(start), Some((gate, _))) => {
                squared(&self.query_weight - &start.query)
                    + squared(&self.document_weight - &start.document)
                    + squared(gate - &start.gate)
            }
            _ => Tensor::zeros([], (Kind::Float, self.choice.device())),
        }
    }

    /// Sets L of the gated form ([`Form::Gated`]) from training queries and documents; the relu form has none.
    ///
    /// Training pulls the queries towards the documents it knows, whose scores then vary more than those of documents
    /// added later and push them down whatever is asked; measured in each document's own deviation they compare.
    /// L is scaled so that known documents keep their length on average.
    ///
    /// A sample of some thousands of each is enough.
    pub fn equalise_documents(&mut self, queries: &Standardised, documents: &Standardised) {
        if self.form == Form::Relu {
            return;
        }
        self.document_norm = Some(tch::no_grad(|| {
            let vectors = self.query_side(queries, None, false).inner * self.join_vector();
            let norm = spectral::root_of_covariance(&vectors, LEAST_VARIANCE);
            let documents = unit(&documents.0.matmul(&self.document_weight.tr()));
            let lengths = length(&documents.matmul(&norm.tr()));
            norm / lengths.mean(Kind::Float)
        }));
    }

    /// Back to plain unit length, under which the gated form is trained: trained through L, the maps learn to undo it.
    pub fn forget_equalising(&mut self) {
        if let Some(norm) = &mut self.document_norm {
            *norm = Tensor::eye(norm.size()[0], (Kind::Float, norm.device()));
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
            document_norm: match config.form {
                Form::Relu => None,
                Form::Gated => Some(tensor(names::DOCUMENT_NORM)?),
            },
            output_weight: tensor(names::OUTPUT_WEIGHT)?,
            output_bias: tensor(names::OUTPUT_BIAS)?,
            residual: match config.residual {
                Residual::LastToken => None,
                Residual::Pooled => Some(tensor(names::RESIDUAL_WEIGHT)?),
            },
            choice: tensor(names::CHOICE_WEIGHT)?,
            start: None,
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
        let norm = self.document_norm.as_ref().map(|norm| (names::DOCUMENT_NORM, norm));
        let constants =
            constants.into_iter().chain(norm).map(|(name, t)| (name.to_owned(), t.shallow_clone()));
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
        match &self.document_norm {
            None => u,
            Some(norm) => &u / length(&u.matmul(&norm.tr())),
        }
    }

    /// v = W2^T (W_T - W_F), `[m]`.
    fn join_vector(&self) -> Tensor {
        self.output_weight.tr().matmul(&(self.choice.get(0) - self.choice.get(1)))
    }

    /// P(e, z) for every query with every one of its own documents: documents `[n, c, m]` or `[c, m]` (shared by all
    /// queries) to `[n, c, H]`.
    pub fn predict(&self, query: &QuerySide, documents: &Tensor) -> Tensor {
        self.join(query, documents).matmul(&self.output_weight.tr()) + query.residual.unsqueeze(1)
    }

    /// `log p(T) - log p(F)` of the same pairs, `[n, c]`, without building P.
    pub fn score(&self, query: &QuerySide, documents: &Tensor) -> Tensor {
        let v = self.join_vector();
        let constant = query.constant(&self.choice).unsqueeze(1);
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
    x / length(x)
}

/// Lengths of rows, `[n, 1]`, never zero.
fn length(x: &Tensor) -> Tensor {
    x.square().sum_dim_intlist([-1i64].as_slice(), true, Kind::Float).sqrt().clamp_min(1e-12)
}
