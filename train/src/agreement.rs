//! How far a student ranks as its teacher does: on some queries, each with a few documents that both score.

use crate::cache::{VectorCache, key};
use crate::data_sets::DataSet;
use crate::features::{FeatureMaker, Side, bar};
use crate::sampling::{draw, rng};
use crate::scoring::{Texts, rows_of, score_pairs};
use anyhow::{Context, Result};
use models::beir::Qrels;
use models::metrics::spearman;
use models::torch::{Predictor, Reranker};
use rand::seq::SliceRandom;
use std::collections::BTreeSet;

/// Which queries and documents are compared on.
#[derive(Debug, Clone, Copy)]
pub struct PoolConfig {
    /// Queries of each dev split.
    pub queries: usize,
    /// Documents of each query: the relevant ones and random others.
    pub documents: usize,
    /// Seed of both.
    pub seed: u64,
}

/// One query's documents with the teacher's scores.
pub struct Pool {
    /// Place of the query.
    query: usize,
    /// Places of the documents.
    documents: Vec<usize>,
    /// The teacher's scores of them.
    teacher: Vec<f32>,
}

/// What the comparison gives, means over queries.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Agreement {
    /// Share of queries whose first document is the teacher's first.
    pub top_1: f64,
    /// Spearman's rank correlation.
    pub rank_correlation: f64,
}

/// Draws pools from a split and has the teacher score them; scores are remembered in `cache` (vectors of 1 number).
pub fn pools(
    teacher: &Reranker,
    set: &DataSet,
    qrels: &Qrels,
    config: PoolConfig,
    cache: &mut VectorCache,
) -> Result<Vec<Pool>> {
    let mut rng = rng(config.seed, "agreement", 0);
    let mut ids: Vec<&String> = qrels.keys().collect();
    ids.shuffle(&mut rng);
    let all: Vec<usize> = (0..set.data.documents.len()).collect();
    let drawn = ids.into_iter().take(config.queries).map(|id| {
        let relevant = qrels[id].iter().filter(|(_, gain)| **gain > 0);
        let mut documents: BTreeSet<usize> =
            relevant.filter_map(|(id, _)| set.data.document_index.get(id).copied()).collect();
        let missing = config.documents.saturating_sub(documents.len());
        let others = draw(&all, missing, &documents, &mut rng);
        documents.extend(others);
        (set.data.query_index[id], documents.into_iter().collect::<Vec<_>>())
    });
    let drawn: Vec<(usize, Vec<usize>)> = drawn.collect();
    let pair_key =
        |query: usize, document: usize| key(&[&set.data.queries[query].text, &set.contents[document]]);
    let pairs =
        drawn.iter().flat_map(|(query, documents)| documents.iter().map(|document| (*query, *document)));
    let missing: Vec<(usize, usize)> =
        pairs.filter(|(query, document)| !cache.contains(&pair_key(*query, *document))).collect();
    let bar = bar(missing.len(), "teacher scores");
    let texts = Texts { queries: &set.query_texts(), documents: &set.document_texts() };
    score_pairs(teacher, &texts, &missing, false, |scored| {
        bar.inc(scored.len() as u64);
        scored.iter().try_for_each(|pair| cache.insert(pair_key(pair.query, pair.document), &[pair.score]))
    })?;
    bar.finish_and_clear();
    cache.flush()?;
    let with_scores = drawn.into_iter().map(|(query, documents)| {
        let scores = documents.iter().map(|document| {
            let score = cache.get(&pair_key(query, *document))?;
            Ok(score.context("a teacher score vanished from the cache")?[0])
        });
        let teacher = scores.collect::<Result<Vec<f32>>>()?;
        Ok(Pool { query, documents, teacher })
    });
    with_scores.collect()
}

/// Compares a student with its teacher on the pools of one set.
pub fn measure(
    pools: &[Pool],
    set: &DataSet,
    maker: &mut FeatureMaker,
    predictor: &Predictor,
) -> Result<Agreement> {
    let _guard = tch::no_grad_guard();
    let (mut top_1, mut correlation) = (0.0, 0.0);
    for pool in pools {
        let query = maker.make(Side::Query, &[&set.data.queries[pool.query].text])?;
        let documents: Vec<&str> = pool.documents.iter().map(|place| set.contents[*place].as_str()).collect();
        let documents = maker.make(Side::Document, &documents)?;
        let side = predictor.query_side(&predictor.query.apply(&query.latent), query.answer.as_ref(), false);
        let inner = predictor.document_side(&predictor.document.apply(&documents.latent), false);
        let student = rows_of(&predictor.score(&side, &inner))?.swap_remove(0);
        top_1 += f64::from(u8::from(first(&student) == first(&pool.teacher)));
        correlation += spearman(&student, &pool.teacher);
    }
    let n = pools.len().max(1) as f64;
    Ok(Agreement { top_1: top_1 / n, rank_correlation: correlation / n })
}

fn first(scores: &[f32]) -> Option<usize> {
    (0..scores.len()).max_by(|a, b| scores[*a].total_cmp(&scores[*b]).then(b.cmp(a)))
}
