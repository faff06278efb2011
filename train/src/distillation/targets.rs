//! Teacher targets: which documents a query is compared on, and what the teacher says of them.
//!
//! Candidates are on-policy (Rabtriever, arXiv 2604.23336): gold, some uniform ones, the rest drawn from the student's own
//! current ranking, softmax(score / temperature). The teacher's score and h(q|d) of a pair are computed once, ever.

use super::DistillConfig;
use super::ranking::StudentSet;
use crate::cache::{Key, VectorCache, key};
use crate::crew::Crew;
use crate::features::bar;
use crate::sampling::{draw, draw_by_score, rng};
use anyhow::{Context, Result};
use models::torch::Predictor;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use std::collections::{BTreeMap, BTreeSet};
use tch::Tensor;

/// Queries ranked at once.
const QUERIES_AT_ONCE: usize = 256;

/// Candidates of each set's target queries and the teacher's word on them.
pub struct Targets {
    cache: VectorCache,
    /// By set: training query (place in its training set) to its candidates (places of documents).
    pub candidates: Vec<BTreeMap<usize, Vec<usize>>>,
}

impl Targets {
    /// None yet, for `sets` sets.
    pub fn new(cache: VectorCache, sets: usize) -> Self {
        Self { cache, candidates: vec![BTreeMap::new(); sets] }
    }

    /// Number of pairs that have targets.
    pub fn pairs(&self) -> usize {
        self.candidates.iter().flat_map(BTreeMap::values).map(Vec::len).sum()
    }

    /// Draws candidates for the queries whose turn it is in `round` and has the teacher score the new pairs.
    pub fn make(
        &mut self,
        crew: &Crew,
        sets: &[StudentSet],
        predictor: &Predictor,
        config: &DistillConfig,
        round: usize,
    ) -> Result<()> {
        let total: f64 = sets.iter().map(|set| set.set.share()).sum();
        for (index, set) in sets.iter().enumerate() {
            let all = set.set.train.queries.len();
            // Each set gets the share of the budget that it has of the steps.
            let n = (config.target_queries as f64 * set.set.share() / total).ceil() as usize;
            let n = n.min(all);
            let mut order: Vec<usize> = (0..all).collect();
            order.shuffle(&mut rng(config.target_seed, "target queries", index as u64));
            let chosen = &order[n * round / config.rounds..n * (round + 1) / config.rounds];
            for chunk in chosen.chunks(QUERIES_AT_ONCE) {
                let scores = set.scores(predictor, &set.queries.gather(chunk)?)?;
                for (query, scores) in chunk.iter().zip(scores) {
                    let purpose = format!("candidates {index}");
                    let mut rng = rng(config.seed, &purpose, *query as u64);
                    let candidates = draw_candidates(set, *query, &scores, config, &mut rng);
                    self.candidates[index].insert(*query, candidates);
                }
            }
        }
        self.score_missing(crew, sets)
    }

    /// Has the teacher score those candidates that it never scored.
    pub fn score_missing(&mut self, crew: &Crew, sets: &[StudentSet]) -> Result<()> {
        for (index, (set, candidates)) in sets.iter().zip(&self.candidates).enumerate() {
            let places = &set.set.train.queries;
            let pairs = candidates
                .iter()
                .flat_map(|(query, documents)| documents.iter().map(|document| (places[*query], *document)));
            let pairs: Vec<(usize, usize)> = pairs
                .filter(|(query, document)| !self.cache.contains(&pair_key(set, *query, *document)))
                .collect();
            let bar = bar(pairs.len(), "teacher targets");
            let cache = &mut self.cache;
            crew.score(index, &pairs, true, |scored| {
                bar.inc(scored.len() as u64);
                for pair in scored {
                    let mut record = pair.hidden.unwrap_or_default();
                    record.push(pair.score);
                    cache.insert(pair_key(set, pair.query, pair.document), &record)?;
                }
                Ok(())
            })?;
            bar.finish_and_clear();
        }
        self.cache.flush()
    }

    /// h(q|d) `[n, K, H]` and scores `[n, K]` of some training queries' candidates, all of the same number.
    pub fn read(&mut self, index: usize, set: &StudentSet, queries: &[usize]) -> Result<(Tensor, Tensor)> {
        let mut flat = Vec::new();
        let mut width = 0;
        for query in queries {
            let documents = self.candidates[index].get(query).cloned().unwrap_or_default();
            width = documents.len() as i64;
            for document in documents {
                let key = pair_key(set, set.set.train.queries[*query], document);
                flat.extend(self.cache.get(&key)?.context("a teacher target vanished from the cache")?);
            }
        }
        let all = Tensor::from_slice(&flat).reshape([queries.len() as i64, width, -1]);
        let hidden = all.size()[2] - 1;
        Ok((all.narrow(2, 0, hidden), all.select(2, hidden)))
    }
}

fn pair_key(set: &StudentSet, query: usize, document: usize) -> Key {
    key(&[&set.set.data.queries[query].text, &set.set.contents[document]])
}

/// How many of the relevant documents are among `wanted` candidates: half of them at most, for a comparison of nothing but
/// relevant documents tells nothing of the rest, or as many as it takes where there are few `others`.
fn gold(relevant: &BTreeSet<usize>, wanted: usize, others: usize) -> usize {
    relevant.len().min((wanted / 2).max(1).max(wanted.saturating_sub(others)))
}

fn draw_candidates(
    set: &StudentSet,
    query: usize,
    scores: &[f32],
    config: &DistillConfig,
    rng: &mut ChaCha8Rng,
) -> Vec<usize> {
    let train = &set.set.train;
    let relevant = &train.relevant[query];
    let wanted = config.candidates.min(train.documents.len());
    let gold = gold(relevant, wanted, train.documents.len() - relevant.len());
    let mut chosen: BTreeSet<usize> = match gold < relevant.len() {
        true => draw(&relevant.iter().copied().collect::<Vec<_>>(), gold, &BTreeSet::new(), rng)
            .into_iter()
            .collect(),
        false => relevant.clone(),
    };
    let uniform = ((wanted - chosen.len()) as f64 * config.uniform).round() as usize;
    chosen.extend(draw(&train.documents, uniform, relevant, rng));
    let on_policy: Vec<f32> = train.documents.iter().map(|place| scores[*place]).collect();
    let place_of = |document: &usize| train.documents.binary_search(document).ok();
    let excluded: BTreeSet<usize> = chosen.union(relevant).filter_map(place_of).collect();
    let missing = wanted.saturating_sub(chosen.len());
    let drawn = draw_by_score(&on_policy, config.sampling_temperature, missing, &excluded, rng);
    chosen.extend(drawn.into_iter().map(|place| train.documents[place]));
    chosen.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Twenty relevant documents must leave room for what they are to be told from; every query has as many candidates.
    #[test]
    fn gold_leaves_room_for_others() {
        let relevant = |n: usize| (0..n).collect::<BTreeSet<_>>();
        assert_eq!(gold(&relevant(1), 8, 100), 1);
        assert_eq!(gold(&relevant(4), 8, 100), 4);
        assert_eq!(gold(&relevant(20), 8, 100), 4);
        assert_eq!(gold(&relevant(20), 8, 2), 6);
        assert_eq!(gold(&relevant(3), 2, 100), 1);
        assert_eq!(gold(&relevant(8), 8, 0), 8);
    }
}
