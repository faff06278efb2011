//! The teacher's scores of many pairs: each document is read once, its queries follow from its cache (or each query, where
//! the prompt asks about it first).

use crate::device::tokens_per_pass;
use crate::ranks::{Ranks, Row};
use anyhow::Result;
use models::torch::{Reranker, length_buckets};
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};

/// Texts whose keys and values are held at once: bounds memory whatever the corpus.
const READ_AT_ONCE: usize = 32;
/// How often so many are read by each of many processes before they exchange what they have.
const TURNS: usize = 4;

/// One scored pair.
pub struct ScoredPair {
    /// Place of the query in `queries`.
    pub query: usize,
    /// Place of the document in `documents`.
    pub document: usize,
    /// `log p(T) - log p(F)`.
    pub score: f32,
    /// h(q|d), `[H]`, where asked for.
    pub hidden: Option<Vec<f32>>,
}

/// Texts of the pairs to score.
pub struct Texts<'a> {
    /// Queries by place.
    pub queries: &'a [&'a str],
    /// Documents by place.
    pub documents: &'a [&'a str],
}

/// Scores `pairs` of (query, document) places; `done` gets them in the order in which they are computed, a batch at a
/// time. Memory is bounded whatever the number of pairs.
pub fn score_pairs(
    teacher: &Reranker,
    texts: &Texts,
    pairs: &[(usize, usize)],
    want_hidden: bool,
    done: impl FnMut(Vec<ScoredPair>) -> Result<()>,
) -> Result<()> {
    score_pairs_on(&Ranks::alone(), teacher, texts, pairs, want_hidden, done)
}

/// The same, divided over all processes, which must all ask for it and all get everything. Which pairs are computed together
/// does not depend on their number, so neither does any score.
pub fn score_pairs_on(
    ranks: &Ranks,
    teacher: &Reranker,
    texts: &Texts,
    pairs: &[(usize, usize)],
    want_hidden: bool,
    mut done: impl FnMut(Vec<ScoredPair>) -> Result<()>,
) -> Result<()> {
    // First the texts that are read once, then those that follow from their caches.
    let [firsts, seconds] = teacher.prompter.in_order(texts.documents, texts.queries);
    let mut continuations: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
    let mut by_first: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for &(query, document) in pairs {
        let [first, second] = teacher.prompter.in_order(document, query);
        if let std::collections::btree_map::Entry::Vacant(entry) = continuations.entry(second) {
            entry.insert(teacher.prompter.continuation(seconds[second])?);
        }
        by_first.entry(first).or_default().push(second);
    }
    // Texts of similar length share a padded cache.
    let mut order: Vec<usize> = by_first.keys().copied().collect();
    order.sort_by_key(|first| (firsts[*first].len(), *first));
    let _guard = tch::no_grad_guard();
    let score = |chunk: &[usize], done: &mut dyn FnMut(Vec<ScoredPair>) -> Result<()>| -> Result<()> {
        let contents: Vec<&str> = chunk.iter().map(|first| firsts[*first]).collect();
        let caches = teacher.read(&contents)?;
        let of_chunk: Vec<(usize, usize)> = chunk
            .iter()
            .enumerate()
            .flat_map(|(row, first)| by_first[first].iter().map(move |second| (row, *second)))
            .collect();
        let lengths: Vec<usize> = of_chunk.iter().map(|(_, second)| continuations[second].len()).collect();
        for bucket in length_buckets(&lengths, tokens_per_pass(teacher.device())) {
            let rows: Vec<i64> = bucket.iter().map(|pair| of_chunk[*pair].0 as i64).collect();
            let ids: Vec<&[u32]> =
                bucket.iter().map(|pair| continuations[&of_chunk[*pair].1].as_slice()).collect();
            let hidden = teacher.hidden(&caches.select(&rows)?, &ids)?;
            let scores = Vec::<f32>::try_from(teacher.score(&hidden)?.to_kind(Kind::Float))?;
            let hidden = want_hidden.then(|| rows_of(&hidden)).transpose()?;
            let scored = bucket.iter().enumerate().map(|(i, pair)| {
                let (row, second) = of_chunk[*pair];
                let hidden = hidden.as_ref().map(|rows| rows[i].clone());
                // What put a pair in order takes it out again.
                let [document, query] = teacher.prompter.in_order(chunk[row], second);
                ScoredPair { query, document, score: scores[i], hidden }
            });
            done(scored.collect())?;
        }
        Ok(())
    };
    let chunks: Vec<&[usize]> = order.chunks(READ_AT_ONCE).collect();
    if ranks.is_alone() {
        return chunks.into_iter().try_for_each(|chunk| score(chunk, &mut done));
    }
    for some in chunks.chunks(TURNS * ranks.size()) {
        let rows = ranks.divided("scoring pairs", some.len(), |chunk| {
            let mut rows = Vec::new();
            score(some[chunk], &mut |scored| {
                rows.extend(scored.into_iter().map(ScoredPair::into_row));
                Ok(())
            })?;
            Ok(rows)
        })?;
        done(rows.into_iter().map(|row| ScoredPair::from_row(row, want_hidden)).collect())?;
    }
    Ok(())
}

impl ScoredPair {
    fn into_row(self) -> Row {
        let mut values = vec![self.score];
        values.extend(self.hidden.unwrap_or_default());
        Row { of: [self.query as u64, self.document as u64], values }
    }

    fn from_row(row: Row, with_hidden: bool) -> Self {
        let score = row.values.first().copied().unwrap_or(f32::NAN);
        let hidden = with_hidden.then(|| row.values.into_iter().skip(1).collect());
        Self { query: row.of[0] as usize, document: row.of[1] as usize, score, hidden }
    }
}

/// Rows of a matrix as vectors.
pub fn rows_of(matrix: &Tensor) -> Result<Vec<Vec<f32>>> {
    let width = matrix.size()[1] as usize;
    let flat =
        Vec::<f32>::try_from(matrix.to_device(Device::Cpu).to_kind(Kind::Float).contiguous().view(-1))?;
    Ok(flat.chunks(width.max(1)).map(<[f32]>::to_vec).collect())
}
