//! What the maps of an encoder read: texts of a data set go through the fp32 graph, whose maps' inputs are outputs here, and
//! their Gram matrices say how weights are best rounded ([`crate::gptq`]).

use crate::error::ExportError;
use crate::gptq::Curvature;
use crate::quantise::{self, Bits, Blocks, Quantised};
use crate::source::Matrix;
use models::beir::{BeirData, Document, Query};
use models::manifest::Manifest;
use models::prompt::{Encoded, Prompter};
use models::student::Residual;
use ndarray::{Array2, ArrayView2, linalg::general_mat_mul};
use rayon::prelude::*;
use runtime::encoder::{Inputs, Row, ports};
use runtime::session::{Element, Port, Session, SessionOptions};
use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::Hash;
use std::path::Path;
use std::rc::Rc;

/// Queries and documents that are looked at, of each.
const TEXTS: usize = 128;
/// Tokens that are gathered before they are multiplied: a product of few is bound by memory.
const TOKENS_AT_ONCE: usize = 512;

/// What maps read, and their weights rounded by it, each once: the same weights go into several graphs while layers that need more
/// bits are searched for.
pub struct Calibration {
    /// By key of the input.
    curvatures: HashMap<String, Curvature>,
    int8: RefCell<HashMap<String, Rc<Quantised>>>,
    blocks: RefCell<HashMap<(String, Bits), Rc<Blocks>>>,
}

impl Calibration {
    /// Of these inputs of maps, by their keys.
    pub fn new(curvatures: HashMap<String, Curvature>) -> Self {
        Self { curvatures, int8: RefCell::default(), blocks: RefCell::default() }
    }

    /// The matrix `name`, which reads `input`, in 8 bits.
    pub fn int8(&self, name: &str, input: &str, matrix: &Matrix) -> Rc<Quantised> {
        once(&self.int8, name.to_owned(), || match self.curvatures.get(input) {
            Some(curvature) => quantise::in_pairs_along(matrix, curvature),
            None => quantise::in_pairs(matrix),
        })
    }

    /// The matrix `name`, which reads `input`, in blocks.
    pub fn blocks(&self, name: &str, input: &str, matrix: &Matrix, bits: Bits) -> Rc<Blocks> {
        once(&self.blocks, (name.to_owned(), bits), || match self.curvatures.get(input) {
            Some(curvature) => quantise::in_blocks_along(matrix, bits, curvature),
            None => quantise::in_blocks(matrix, bits),
        })
    }
}

fn once<K: Eq + Hash, T>(made: &RefCell<HashMap<K, Rc<T>>>, key: K, make: impl FnOnce() -> T) -> Rc<T> {
    Rc::clone(made.borrow_mut().entry(key).or_insert_with(|| Rc::new(make())))
}

/// Passes of a data set: training queries (all, where it has no training split) and documents, spread over it evenly.
pub fn passes(data: &Path, prompter: &Prompter, residual: Residual) -> Result<Vec<Encoded>, ExportError> {
    let beir = BeirData::open(data)?;
    let train = beir.qrels("train").unwrap_or_default();
    let queries: Vec<&Query> =
        beir.queries.iter().filter(|query| train.is_empty() || train.contains_key(&query.id)).collect();
    let mut passes = Vec::new();
    for query in spread(&queries) {
        passes.push(match residual {
            Residual::LastToken => prompter.query_answer_pass(&query.text)?,
            Residual::Pooled => prompter.query_pass(&query.text)?,
        });
    }
    for document in spread(&beir.documents) {
        passes.push(prompter.document_pass(&Document::contents(document))?);
    }
    Ok(passes)
}

fn spread<T>(all: &[T]) -> impl Iterator<Item = &T> {
    all.iter().step_by(all.len().div_ceil(TEXTS).max(1))
}

/// Runs the observing graph `file` of a bundle like `manifest`'s on the passes; `observed` are its outputs beside the
/// latents: names and sizes.
pub fn curvatures(
    file: &Path,
    manifest: &Manifest,
    observed: &[(String, usize)],
    passes: &[Encoded],
    options: &SessionOptions,
) -> Result<HashMap<String, Curvature>, ExportError> {
    let runs = |error: &dyn std::error::Error| ExportError::Runtime(error.to_string());
    let outputs = observed
        .iter()
        .map(|(name, size)| Port::new(name.clone(), Element::Float32, [None, None, Some(*size)]));
    let session = Session::open(file, options, ports(manifest), outputs.collect()).map_err(|e| runs(&e))?;
    let mut grams: Vec<Gram> = observed.iter().map(|(_, size)| Gram::new(*size)).collect();
    for pass in passes {
        let row = Row::of(manifest, file.parent().unwrap_or(file), pass).map_err(|e| runs(&e))?;
        let found = session.run(&Inputs::of(manifest, &[&row]).values()).map_err(|e| runs(&e))?;
        grams.par_iter_mut().zip(found).for_each(|(gram, tensor)| gram.add(&tensor.values));
    }
    drop(session);
    let curvatures = observed.iter().zip(grams).map(|((name, size), mut gram)| {
        gram.multiply();
        (name.clone(), Curvature::of(&gram.sum.into_raw_vec_and_offset().0, *size))
    });
    Ok(curvatures.collect())
}

/// `X^T X` of the rows seen so far.
struct Gram {
    columns: usize,
    waiting: Vec<f32>,
    sum: Array2<f32>,
}

impl Gram {
    fn new(columns: usize) -> Self {
        Self { columns, waiting: Vec::new(), sum: Array2::zeros((columns, columns)) }
    }

    fn add(&mut self, rows: &[f32]) {
        self.waiting.extend(rows);
        if self.waiting.len() >= TOKENS_AT_ONCE * self.columns {
            self.multiply();
        }
    }

    fn multiply(&mut self) {
        let rows = self.waiting.len() / self.columns.max(1);
        if let Ok(x) = ArrayView2::from_shape((rows, self.columns), &self.waiting) {
            general_mat_mul(1.0, &x.t(), &x, 1.0, &mut self.sum);
        }
        self.waiting.clear();
    }
}
