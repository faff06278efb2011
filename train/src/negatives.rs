//! Hard negatives: documents that were judged not to be relevant (gain 0), and those that some system ranks high for a
//! training query and that nobody judged relevant.

use crate::bm25::Bm25;
use crate::data_sets::DataSet;
use crate::sampling::draw;
use anyhow::{Context, Result, bail};
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap};
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
    /// Mines them for all sets of a run.
    pub fn mine(sets: &[DataSet], config: &NegativesConfig) -> Result<Vec<Self>> {
        let usable: Vec<Usable> = sets.iter().map(Usable::new).collect();
        let most = config.skip + config.depth;
        let mined: Vec<Vec<Vec<usize>>> = match &config.miner {
            Miner::Random => sets.iter().map(|set| vec![Vec::new(); set.train.queries.len()]).collect(),
            Miner::Bm25 => {
                let of_set = |usable: &Usable| {
                    let bm25 = Bm25::new(usable.set.contents.iter().map(String::as_str));
                    let queries = (0..usable.set.train.queries.len()).into_par_iter();
                    let first = |query| {
                        let scores = bm25.scores(usable.set.training_query(query));
                        first(&scores, most, |document| usable.takes(query, document))
                    };
                    queries.map(first).collect()
                };
                usable.iter().map(of_set).collect()
            }
            Miner::Runs(files) => {
                let mut all: Vec<Vec<Vec<usize>>> =
                    sets.iter().map(|set| vec![Vec::new(); set.train.queries.len()]).collect();
                for file in files {
                    let (set, pairs) = read_run(file, &usable)?;
                    for (query, document) in pairs {
                        let list = &mut all[set][query];
                        if list.len() < most {
                            list.push(document);
                        }
                    }
                }
                all
            }
        };
        let mut negatives = Vec::new();
        for (set, lists) in sets.iter().zip(mined) {
            let none = lists.iter().all(|list| list.len() <= config.skip);
            if none && matches!(config.miner, Miner::Runs(_)) {
                bail!("{}; give another run, or use --negatives random", Self::none_for(set, config));
            }
            let lists = lists.into_iter().zip(&set.train.negatives).map(|(mined, judged)| {
                // Somebody judged these: they need no rank.
                judged.iter().copied().chain(mined.into_iter().skip(config.skip)).collect()
            });
            negatives.push(Self { lists: lists.collect(), share: config.share });
        }
        Ok(negatives)
    }

    /// Whether there is not one.
    pub fn is_empty(&self) -> bool {
        self.lists.iter().all(Vec::is_empty)
    }

    /// What to say where there is not one.
    pub fn none_for(set: &DataSet, config: &NegativesConfig) -> String {
        format!(
            "no hard negatives for {}: behind the first {} documents of each ranking none is left that takes part in training and is \
             not judged",
            set.name, config.skip
        )
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
        // In a random order, each at its first place: as if one were drawn at a time and all its copies taken away.
        hard.shuffle(rng);
        let full = chosen.len() + (missing as f64 * self.share).round() as usize;
        for document in hard {
            if chosen.len() >= full {
                break;
            }
            chosen.insert(document);
        }
        let missing = wanted.saturating_sub(chosen.len());
        let random = draw(pool, missing, chosen, rng);
        chosen.extend(random);
    }
}

/// Which documents of a set may be negatives of which training query.
struct Usable<'a> {
    set: &'a DataSet,
    takes_part: BTreeSet<usize>,
    /// Place among the training queries by place in the data.
    training: HashMap<usize, usize>,
}

impl<'a> Usable<'a> {
    fn new(set: &'a DataSet) -> Self {
        let training = set.train.queries.iter().enumerate().map(|(place, query)| (*query, place));
        Self { set, takes_part: set.train.documents.iter().copied().collect(), training: training.collect() }
    }

    fn takes(&self, query: usize, document: usize) -> bool {
        let train = &self.set.train;
        let judged = train.relevant[query].contains(&document) || train.negatives[query].contains(&document);
        !judged && self.takes_part.contains(&document)
    }
}

/// Places of the `most` best documents with a word of the query's that `takes` lets through, best first.
fn first(scores: &[f32], most: usize, takes: impl Fn(usize) -> bool) -> Vec<usize> {
    let mut order: Vec<usize> =
        (0..scores.len()).filter(|place| scores[*place] > 0.0 && takes(*place)).collect();
    let better = |a: &usize, b: &usize| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b));
    // Of a large corpus nearly all documents share a word with a query: only the first are sorted.
    if most < order.len() {
        order.select_nth_unstable_by(most, better);
        order.truncate(most);
    }
    order.sort_unstable_by(better);
    order
}

/// Place of the set that a TREC run ranks, which is the only one that knows all its ids, and in the run's order its training
/// queries (by place among them) with documents that may be negatives.
fn read_run(file: &Path, sets: &[Usable]) -> Result<(usize, Vec<(usize, usize)>)> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("cannot read run {}", file.display()))?;
    let mut found: Vec<Result<Vec<(usize, usize)>, String>> = sets.iter().map(|_| Ok(Vec::new())).collect();
    for (line, text) in text.lines().enumerate().filter(|(_, text)| !text.trim().is_empty()) {
        let place = format!("{}:{}", file.display(), line + 1);
        let fields: Vec<&str> = text.split_whitespace().collect();
        let &[query, _, document, rank, _, _] = fields.as_slice() else {
            bail!("{place}: found `{text}`, expected `qid Q0 docno rank sim run_id`");
        };
        rank.parse::<usize>().with_context(|| format!("{place}: rank `{rank}` is no number"))?;
        for (usable, found) in sets.iter().zip(&mut found) {
            let Ok(pairs) = found else { continue };
            let data = &usable.set.data;
            // Other people's systems rank documents without a text too.
            if data.is_empty_document(document) {
                continue;
            }
            match (data.query_index.get(query), data.document_index.get(document)) {
                (Some(query), Some(document)) => {
                    let query = usable.training.get(query);
                    pairs.extend(query.filter(|q| usable.takes(**q, *document)).map(|q| (*q, *document)));
                }
                (None, _) => *found = Err(format!("{place}: query `{query}` is not in {}", usable.set.name)),
                (_, None) => {
                    *found = Err(format!("{place}: document `{document}` is not in {}", usable.set.name));
                }
            }
        }
    }
    let names = |fitting: &[usize]| {
        fitting.iter().map(|place| sets[*place].set.name.as_str()).collect::<Vec<_>>().join(" and ")
    };
    let fitting: Vec<usize> = (0..sets.len()).filter(|place| found[*place].is_ok()).collect();
    match fitting.as_slice() {
        &[place] => Ok((place, found.swap_remove(place).unwrap_or_default())),
        [] => {
            let why: Vec<String> = found.into_iter().filter_map(Result::err).collect();
            bail!("{}; a run of --negatives-run ranks documents of one of the data sets", why.join("; "))
        }
        several => bail!(
            "{}: its ids fit {} alike; give the data sets ids of their own, or teach on one after the other",
            file.display(),
            names(several)
        ),
    }
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
