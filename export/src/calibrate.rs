//! What the maps of an encoder read: texts of a data set go through the fp32 graph, whose maps' inputs are outputs here, and
//! their Gram matrices say how weights are best rounded ([`crate::gptq`]); in int8 also how far each neuron reaches, and what it is
//! divided by ([`Neurons`]).

use crate::error::ExportError;
use crate::gptq::Curvature;
use crate::quantise::{self, Bits, Blocks, Quantised};
use crate::source::Matrix;
use models::beir::{BeirData, Document, Query};
use models::manifest::Manifest;
use models::prompt::{Encoded, Prompter};
use models::student::Residual;
use ndarray::{Array2, ArrayView2, linalg::general_mat_mul, s};
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
const TOKENS_AT_ONCE: usize = 128;
/// Columns that are multiplied with each other at once.
const COLUMNS_AT_ONCE: usize = 192;

/// What maps read, and their weights rounded by it, each once: the same weights go into several graphs while layers that need more
/// bits are searched for.
pub struct Calibration {
    /// By key of the input.
    curvatures: HashMap<String, Curvature>,
    /// By layer; none where nothing is divided.
    neurons: Vec<Neurons>,
    int8: RefCell<HashMap<String, Rc<Quantised>>>,
    blocks: RefCell<HashMap<(String, Bits), Rc<Blocks>>>,
}

impl Calibration {
    /// Of the inputs that were seen.
    pub fn new(Seen { curvatures, neurons }: Seen) -> Self {
        Self { curvatures, neurons, int8: RefCell::default(), blocks: RefCell::default() }
    }

    /// What each layer's neurons are divided by; empty where nothing is.
    pub fn divisors(&self) -> Vec<Vec<f32>> {
        self.neurons.iter().map(|neurons| neurons.divisors.clone()).collect()
    }

    /// Whether one activation scale serves all tokens' neurons in this layer.
    pub fn is_even(&self, layer: usize) -> bool {
        self.neurons.get(layer).is_some_and(|neurons| neurons.even)
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

/// How the key of an input ends that is a feed-forward block's gated neurons.
const NEURONS: &str = ".down_proj.input";

/// What all maps read.
pub struct Seen {
    /// By key of the input.
    pub curvatures: HashMap<String, Curvature>,
    /// Of every layer, or of none.
    pub neurons: Vec<Neurons>,
}

/// Neurons of a feed-forward block behind the gate, where a few reach much further than all others.
#[derive(Debug, Clone, PartialEq)]
pub struct Neurons {
    /// Half of what a neuron's largest number is above the median neuron's, as a factor (SmoothQuant's 0.5), in powers of two,
    /// which cost no bits anywhere.
    divisors: Vec<f32>,
    /// Whether none stands out so far that tokens in which it fires would leave the others few steps.
    even: bool,
}

impl Neurons {
    /// More gains next to nothing: what activations win the weights lose.
    const MOST: f32 = 4.0;
    /// How far a neuron may stand out, in medians. On 24 layers of a SmolLM2-135M most stand out 5 to 13, four 20 to 69.
    const OUT: f32 = 12.0;

    /// From each neuron's largest number.
    fn of(largest: &[f32]) -> Self {
        let mut sorted = largest.to_vec();
        sorted.sort_by(f32::total_cmp);
        let median = sorted.get(sorted.len() / 2).copied().unwrap_or_default();
        let most = sorted.last().copied().unwrap_or_default();
        if median <= 0.0 {
            // Neurons that never fire say nothing.
            return Self { divisors: vec![1.0; largest.len()], even: false };
        }
        let divisor =
            |x: &f32| (0.5 * (x / median).log2()).round().exp2().clamp(Self::MOST.recip(), Self::MOST);
        Self { divisors: largest.iter().map(divisor).collect(), even: most <= Self::OUT * median }
    }
}

/// Runs the observing graph `file` of a bundle like `manifest`'s on the passes; `observed` are its outputs beside the
/// latents: names and sizes. `divide` has neurons divided.
pub fn see(
    file: &Path,
    manifest: &Manifest,
    observed: &[(String, usize)],
    divide: bool,
    passes: &[Encoded],
    options: &SessionOptions,
) -> Result<Seen, ExportError> {
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
    let looked_at = observed.par_iter().zip(grams).map(|((name, size), mut gram)| {
        gram.multiply();
        let neurons = (divide && name.ends_with(NEURONS)).then(|| Neurons::of(&gram.largest));
        if let Some(neurons) = &neurons {
            gram.divide(&neurons.divisors);
        }
        (name.clone(), neurons, Curvature::of(&gram.sum.into_raw_vec_and_offset().0, *size))
    });
    let mut seen = Seen { curvatures: HashMap::new(), neurons: Vec::new() };
    for (name, neurons, curvature) in looked_at.collect::<Vec<_>>() {
        seen.neurons.extend(neurons);
        seen.curvatures.insert(name, curvature);
    }
    Ok(seen)
}

/// `X^T X` of the rows seen so far, and the largest magnitude of each column.
struct Gram {
    columns: usize,
    waiting: Vec<f32>,
    /// The diagonal and what is above it; what is below is the same and left out by blocks.
    sum: Array2<f32>,
    largest: Vec<f32>,
}

impl Gram {
    fn new(columns: usize) -> Self {
        Self {
            columns,
            waiting: Vec::new(),
            sum: Array2::zeros((columns, columns)),
            largest: vec![0.0; columns],
        }
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
            let blocks: Vec<_> = (0..self.columns)
                .step_by(COLUMNS_AT_ONCE)
                .map(|start| start..self.columns.min(start + COLUMNS_AT_ONCE))
                .collect();
            for (i, above) in blocks.iter().enumerate() {
                let left = x.slice(s![.., above.clone()]);
                for beside in &blocks[i..] {
                    let mut sum = self.sum.slice_mut(s![above.clone(), beside.clone()]);
                    general_mat_mul(1.0, &left.t(), &x.slice(s![.., beside.clone()]), 1.0, &mut sum);
                }
            }
        }
        for row in self.waiting.chunks_exact(self.columns.max(1)) {
            self.largest.iter_mut().zip(row).for_each(|(most, x)| *most = most.max(x.abs()));
        }
        self.waiting.clear();
    }

    /// As if every row had been divided before.
    fn divide(&mut self, divisors: &[f32]) {
        for ((i, j), sum) in self.sum.indexed_iter_mut() {
            *sum /= divisors[i] * divisors[j];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Divisors go into weights, which only powers of two cost nothing.
    #[test]
    fn neurons_are_divided_by_powers_of_two() {
        // Five neurons around 1, one that reaches 9 times as far, one a ninth, and one that never fires.
        let neurons = Neurons::of(&[1.0, 0.9, 1.1, 1.0, 1.2, 9.0, 0.111, 0.0]);
        assert_eq!(neurons.divisors, [1.0, 1.0, 1.0, 1.0, 1.0, 4.0, 0.25, 0.25]);
        assert!(neurons.even);
        assert!(!Neurons::of(&[1.0, 1.0, 1.0, 13.0]).even);
        let idle = Neurons::of(&[0.0; 4]);
        assert_eq!((idle.divisors, idle.even), (vec![1.0; 4], false));
    }

    /// A block that is left out above the diagonal would leave weights without a say in each other's rounding.
    #[test]
    fn a_gram_matrix_is_whole_above_its_diagonal() {
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

    /// Weights are rounded by what they will read, not by what was seen.
    #[test]
    fn a_gram_matrix_is_divided_as_its_rows_are() {
        let (rows, divisors) = ([3.0f32, -1.0, 4.0, 1.0, 5.0, -9.0], [2.0f32, 0.5, 4.0]);
        let gram = |rows: &[f32]| {
            let mut gram = Gram::new(3);
            gram.add(rows);
            gram.multiply();
            gram
        };
        let mut seen = gram(&rows);
        assert_eq!(seen.largest, [3.0, 5.0, 9.0]);
        seen.divide(&divisors);
        let divided: Vec<f32> = rows.iter().zip(divisors.iter().cycle()).map(|(x, d)| x / d).collect();
        assert_eq!(seen.sum, gram(&divided).sum);
    }
}
