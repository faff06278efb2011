//! Weights rounded by a calibration, each once: the search for layers that need a higher precision writes the same weights
//! into many graphs.

use crate::matrix::Matrix;
use crate::quantise::blocks::{Bits, QuantisedBlocks, quantise_blocks, quantise_blocks_gptq};
use crate::quantise::calibrate::ActivationStats;
use crate::quantise::rows::{Int8Rows, quantise_pairs, quantise_pairs_gptq};
use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::Hash;
use std::rc::Rc;

/// Rounds weights by GPTQ, each once.
pub struct CalibratedQuantiser {
    stats: ActivationStats,
    pairs: Cache<String, Int8Rows>,
    blocks: Cache<(String, Bits), QuantisedBlocks>,
}

type Cache<K, T> = RefCell<HashMap<K, Rc<T>>>;

impl CalibratedQuantiser {
    /// By what a calibration has observed.
    pub fn new(stats: ActivationStats) -> Self {
        Self { stats, pairs: Cache::default(), blocks: Cache::default() }
    }

    /// SmoothQuant scales of each layer; empty where nothing is scaled.
    pub fn smoothquant_scales(&self) -> Vec<Vec<f32>> {
        self.stats.smoothquant.iter().map(|smoothquant| smoothquant.scales.clone()).collect()
    }

    /// Whether one activation scale for all tokens is enough before this layer's `down_proj`.
    pub fn down_proj_per_tensor(&self, layer: usize) -> bool {
        self.stats.smoothquant.get(layer).is_some_and(|smoothquant| smoothquant.per_tensor)
    }

    /// The matrix `name`, which reads `input`, in 8 bits with a scale for each row.
    pub fn pairs(&self, name: &str, input: &str, matrix: &Matrix) -> Rc<Int8Rows> {
        cached(&self.pairs, name.to_owned(), || match self.stats.hessians.get(input) {
            Some(hessian) => quantise_pairs_gptq(matrix, hessian),
            None => quantise_pairs(matrix),
        })
    }

    /// The matrix `name`, which reads `input`, in blocks.
    pub fn blocks(&self, name: &str, input: &str, matrix: &Matrix, bits: Bits) -> Rc<QuantisedBlocks> {
        cached(&self.blocks, (name.to_owned(), bits), || match self.stats.hessians.get(input) {
            Some(hessian) => quantise_blocks_gptq(matrix, bits, hessian),
            None => quantise_blocks(matrix, bits),
        })
    }
}

fn cached<K: Eq + Hash, T>(cache: &Cache<K, T>, key: K, make: impl FnOnce() -> T) -> Rc<T> {
    Rc::clone(cache.borrow_mut().entry(key).or_insert_with(|| Rc::new(make())))
}
