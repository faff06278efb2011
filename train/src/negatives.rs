//! Hard negatives: documents that were judged not to be relevant (gain 0), and those that some system ranks high for a
//! training query and that nobody judged relevant.

use crate::bm25::Bm25;
use crate::data_sets::DataSet;
use crate::sampling::draw;
use anyhow::{Context, Result, bail};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Where hard negatives come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Miner {
    /// Nowhere: beside those judged to be negatives there are the other queries' positives and random documents.
    Random,
    /// BM25 over the set's corpus.
    Bm25,
    /// TREC runs on the training split, by any system: a student, the teacher itself, a search engine.
    Runs(Vec<PathBuf>),
}

/// How many, and how hard.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NegativesConfig {
    /// Where from.
    pub miner: Miner,
    /// Share of a micro-batch's negatives that is drawn from the hard ones.
    pub share: f64,
    /// First documents of a ranking that are passed over: unjudged, they are likely relevant.
    pub skip: usize,
    /// Ranks after these that negatives are drawn from.
    pub depth: usize,
}

/// Hard negatives of each training query of a set, as places of documents.
pub struct Negatives {
    lists: Vec<Vec<usize>>,
    share: f64,
}

impl Negatives {
    /// Mines them for one set.
    pub fn mine(set: &DataSet, config: &NegativesConfig) -> Result<Self> {
        let ranked: Vec<Vec<usize>> = match &config.miner {
            Miner::Random => vec![Vec::new(); set.train.queries.len()],
            Miner::Bm25 => {
                let bm25 = Bm25::new(set.contents.iter().map(String::as_str));
                let places = 0..set.train.queries.len();
                places
                    .into_par_iter()
                    .map(|place| first(&bm25.scores(set.training_query(place)), config))
                    .collect()
            }
            Miner::Runs(files) => {
                let mut by_query = BTreeMap::new();
                for file in files {
                    read_run(file, set, config, &mut by_query)?;
                }
                let lists = set.train.queries.iter();
                let lists: Vec<Vec<usize>> =
                    lists.map(|query| by_query.remove(query).unwrap_or_default()).collect();
                if lists.iter().all(Vec::is_empty) {
                    bail!(
                        "the runs of --negatives-run rank nothing for the training queries of {}",
                        set.name
                    );
                }
                lists
            }
        };
        let takes_part: BTreeSet<usize> = set.train.documents.iter().copied().collect();
        let judged = set.train.relevant.iter().zip(&set.train.negatives);
        let lists = ranked.into_iter().zip(judged).map(|(ranked, (relevant, negative))| {
            let mined = ranked.into_iter().filter(|document| {
                !relevant.contains(document) && !negative.contains(document) && takes_part.contains(document)
            });
            // Somebody judged these: they need no rank.
            negative.iter().copied().chain(mined.skip(config.skip).take(config.depth)).collect()
        });
        Ok(Self { lists: lists.collect(), share: config.share })
    }

    /// Fills `chosen`, the positives of `batch`, up to `wanted` documents: hard negatives of the batch's queries by
    /// their share, then random documents of `pool`.
    pub fn fill(
        &self,
        chosen: &mut BTreeSet<usize>,
        wanted: usize,
        batch: &[usize],
        pool: &[usize],
        rng: &mut ChaCha8Rng,
    ) {
        let missing = wanted.saturating_sub(chosen.len());
        let mut hard: Vec<usize> =
            batch.iter().flat_map(|query| self.lists[*query].iter().copied()).collect();
        for _ in 0..(missing as f64 * self.share).round() as usize {
            hard.retain(|document| !chosen.contains(document));
            if hard.is_empty() {
                break;
            }
            chosen.insert(hard[rng.random_range(0..hard.len())]);
        }
        let missing = wanted.saturating_sub(chosen.len());
        let random = draw(pool, missing, chosen, rng);
        chosen.extend(random);
    }
}

/// Places of the best scores; enough of them that `depth` are left when positives and the skipped are gone.
fn first(scores: &[f32], config: &NegativesConfig) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).filter(|place| scores[*place] > 0.0).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
    order.truncate(config.skip + 4 * config.depth);
    order
}

/// Adds the documents of a TREC run, in its order, by place of the query.
fn read_run(
    file: &Path,
    set: &DataSet,
    config: &NegativesConfig,
    by_query: &mut BTreeMap<usize, Vec<usize>>,
) -> Result<()> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("cannot read run {}", file.display()))?;
    for (line, text) in text.lines().enumerate().filter(|(_, text)| !text.trim().is_empty()) {
        let fields: Vec<&str> = text.split_whitespace().collect();
        let &[query, _, document, rank, _, _] = fields.as_slice() else {
            bail!("{}:{}: found `{text}`, expected `qid Q0 docno rank sim run_id`", file.display(), line + 1);
        };
        let rank: usize = rank
            .parse()
            .with_context(|| format!("{}:{}: rank `{rank}` is no number", file.display(), line + 1))?;
        // Runs of other sets may be given with those of this one.
        let places = (set.data.query_index.get(query), set.data.document_index.get(document));
        if let (Some(query), Some(document)) = places
            && rank <= config.skip + 4 * config.depth
        {
            by_query.entry(*query).or_default().push(*document);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::rng;

    /// A relevant document among the negatives teaches the opposite of what was judged; too few documents waste a batch.
    #[test]
    fn hard_ones_by_their_share_and_the_rest_at_random() {
        let negatives = Negatives { lists: vec![vec![10, 11], vec![12, 13, 14]], share: 0.5 };
        let pool: Vec<usize> = (0..40).collect();
        for seed in 0..20 {
            let mut chosen = BTreeSet::from([0, 1]);
            negatives.fill(&mut chosen, 8, &[0, 1], &pool, &mut rng(seed, "test", 0));
            assert_eq!(chosen.len(), 8);
            let hard = chosen.iter().filter(|d| (10..15).contains(*d)).count();
            assert!(hard >= 3, "{chosen:?}");
        }
    }
}
