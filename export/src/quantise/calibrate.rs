//! Calibration: texts of a data set are run through an fp32 graph whose linear layers' inputs are outputs too. Their Gram
//! matrices are what GPTQ rounds weights by; the largest magnitudes of `down_proj`'s input channels give SmoothQuant's scales.

use crate::error::ExportError;
use crate::quantise::gptq::InverseHessian;
use crate::quantise::smoothquant::SmoothQuant;
use models::beir::{self, BeirData, Document, Purpose, Qrels, Query};
use models::manifest::Manifest;
use models::prompt::{Encoded, Prompter};
use models::student::Residual;
use ndarray::{Array2, ArrayView2, linalg::general_mat_mul, s};
use rayon::prelude::*;
use runtime::encoder::{Inputs, Row, ports};
use runtime::session::{Element, Port, Session, SessionOptions};
use std::collections::HashMap;
use std::path::Path;

/// Number of queries, and of documents, that are run.
const TEXTS: usize = 128;
/// Tokens that are gathered before they are multiplied: a product of few rows is bound by memory.
const TOKENS_AT_ONCE: usize = 128;
/// Columns that are multiplied with each other at once.
const COLUMNS_AT_ONCE: usize = 192;
/// How the key of `down_proj`'s input ends.
const DOWN_PROJ_INPUT: &str = ".down_proj.input";

/// What is known of the activations that the linear layers read.
pub struct ActivationStats {
    /// By key of the input.
    pub hessians: HashMap<String, InverseHessian>,
    /// Of every layer, or of none.
    pub smoothquant: Vec<SmoothQuant>,
}

/// Tokens of a data set's texts: training queries (all, if there is no training split) and documents, evenly spread over it.
pub fn passes(data: &Path, prompter: &Prompter, residual: Residual) -> Result<Vec<Encoded>, ExportError> {
    let set = BeirData::open(data)?;
    let has_train = beir::splits(data).iter().any(|split| split == "train");
    let train = if has_train { set.qrels("train", Purpose::Measuring)?.qrels } else { Qrels::new() };
    let queries: Vec<&Query> =
        set.queries.iter().filter(|query| train.is_empty() || train.contains_key(&query.id)).collect();
    let mut passes = Vec::new();
    for query in spread(&queries) {
        passes.push(match residual {
            Residual::LastToken => prompter.query_answer_pass(&query.text)?,
            Residual::Pooled => prompter.query_pass(&query.text)?,
        });
    }
    for document in spread(&set.documents) {
        passes.push(prompter.document_pass(&Document::contents(document))?);
    }
    Ok(passes)
}

fn spread<T>(all: &[T]) -> impl Iterator<Item = &T> {
    all.iter().step_by(all.len().div_ceil(TEXTS).max(1))
}

/// Runs `file`, the graph of a bundle like `manifest`'s with the inputs of its linear layers as outputs too, on the passes.
/// `observed` are those outputs' names and sizes; with `smoothquant` the channels of `down_proj`'s inputs get scales.
pub fn observe(
    file: &Path,
    manifest: &Manifest,
    observed: &[(String, usize)],
    smoothquant: bool,
    passes: &[Encoded],
    options: &SessionOptions,
) -> Result<ActivationStats, ExportError> {
    let outputs = observed
        .iter()
        .map(|(name, size)| Port::new(name.clone(), Element::Float32, [None, None, Some(*size)]));
    let session =
        Session::open(file, options, ports(manifest), outputs.collect()).map_err(ExportError::cannot_run)?;
    let mut grams: Vec<Gram> = observed.iter().map(|(_, size)| Gram::new(*size)).collect();
    for pass in passes {
        let row = Row::of(manifest, file.parent().unwrap_or(file), pass).map_err(ExportError::cannot_run)?;
        let found = session.run(&Inputs::of(manifest, &[&row]).values()).map_err(ExportError::cannot_run)?;
        grams.par_iter_mut().zip(found).for_each(|(gram, tensor)| gram.add(&tensor.values));
    }
    drop(session);
    let inputs = observed.par_iter().zip(grams).map(|((name, size), mut gram)| {
        gram.multiply();
        let smoothquant =
            (smoothquant && name.ends_with(DOWN_PROJ_INPUT)).then(|| SmoothQuant::of_maxima(&gram.maxima));
        if let Some(smoothquant) = &smoothquant {
            gram.divide(&smoothquant.scales);
        }
        let hessian = InverseHessian::of_gram(&gram.sum.into_raw_vec_and_offset().0, *size);
        (name.clone(), smoothquant, hessian)
    });
    let mut stats = ActivationStats { hessians: HashMap::new(), smoothquant: Vec::new() };
    for (name, smoothquant, hessian) in inputs.collect::<Vec<_>>() {
        stats.smoothquant.extend(smoothquant);
        stats.hessians.insert(name, hessian);
    }
    Ok(stats)
}

/// `X^T X` of the rows so far, and the largest magnitude of each column.
struct Gram {
    columns: usize,
    /// Rows that are not multiplied yet.
    pending: Vec<f32>,
    /// The diagonal and the blocks above it; those below are their mirror image and left out.
    sum: Array2<f32>,
    maxima: Vec<f32>,
}

impl Gram {
    fn new(columns: usize) -> Self {
        Self {
            columns,
            pending: Vec::new(),
            sum: Array2::zeros((columns, columns)),
            maxima: vec![0.0; columns],
        }
    }

    fn add(&mut self, rows: &[f32]) {
        self.pending.extend(rows);
        if self.pending.len() >= TOKENS_AT_ONCE * self.columns {
            self.multiply();
        }
    }

    fn multiply(&mut self) {
        let rows = self.pending.len() / self.columns.max(1);
        if let Ok(x) = ArrayView2::from_shape((rows, self.columns), &self.pending) {
            let blocks: Vec<_> = (0..self.columns)
                .step_by(COLUMNS_AT_ONCE)
                .map(|start| start..self.columns.min(start + COLUMNS_AT_ONCE))
                .collect();
            for (i, upper) in blocks.iter().enumerate() {
                let left = x.slice(s![.., upper.clone()]);
                for right in &blocks[i..] {
                    let mut sum = self.sum.slice_mut(s![upper.clone(), right.clone()]);
                    general_mat_mul(1.0, &left.t(), &x.slice(s![.., right.clone()]), 1.0, &mut sum);
                }
            }
        }
        for row in self.pending.chunks_exact(self.columns.max(1)) {
            self.maxima.iter_mut().zip(row).for_each(|(most, x)| *most = most.max(x.abs()));
        }
        self.pending.clear();
    }

    /// As if every row had been divided by these before.
    fn divide(&mut self, divisors: &[f32]) {
        for ((i, j), sum) in self.sum.indexed_iter_mut() {
            *sum /= divisors[i] * divisors[j];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If a block above the diagonal were left out, GPTQ would take inputs as uncorrelated that are not.
    #[test]
    fn a_gram_matrix_is_complete_above_its_diagonal() {
        let (columns, rows) = (2 * COLUMNS_AT_ONCE + 7, TOKENS_AT_ONCE + 3);
        let x: Vec<f32> = (0..rows * columns).map(|i| ((i * 7919) % 13) as f32 - 6.0).collect();
        let mut gram = Gram::new(columns);
        x.chunks(5 * columns).for_each(|rows| gram.add(rows));
        gram.multiply();
        for i in (0..columns).step_by(11) {
            for j in i..columns {
                let sum: f32 = x.chunks_exact(columns).map(|row| row[i] * row[j]).sum();
                assert_eq!(gram.sum[[i, j]], sum, "{i}, {j}");
            }
        }
    }

    /// Weights must be rounded for the activations that they will read, which are scaled, not for those that were observed.
    #[test]
    fn a_gram_matrix_is_divided_as_its_rows_are() {
        let (rows, divisors) = ([3.0f32, -1.0, 4.0, 1.0, 5.0, -9.0], [2.0f32, 0.5, 4.0]);
        let gram = |rows: &[f32]| {
            let mut gram = Gram::new(3);
            gram.add(rows);
            gram.multiply();
            gram
        };
        let mut found = gram(&rows);
        assert_eq!(found.maxima, [3.0, 5.0, 9.0]);
        found.divide(&divisors);
        let divided: Vec<f32> = rows.iter().zip(divisors.iter().cycle()).map(|(x, d)| x / d).collect();
        assert_eq!(found.sum, gram(&divided).sum);
    }
}
