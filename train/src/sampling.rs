//! Everything random about the data, as pure functions of a seed: a resumed run draws the same batches.

use models::beir::{BeirData, Qrels};
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeSet;

/// Batches of near-equal lengths are cut from pools of so many batches: less padding, still shuffled. Where there are few
/// batches in all, a pool has a quarter of them: of one pool for everything, every epoch would cut the same batches.
const POOL: usize = 16;

/// A generator for one purpose; equal arguments give equal draws.
pub fn rng(seed: u64, purpose: &str, step: u64) -> ChaCha8Rng {
    let key = crate::cache::key(&[&seed.to_string(), purpose, &step.to_string()]);
    ChaCha8Rng::from_seed(key)
}

/// A batch of places in `lengths` for `step`: every epoch shows each place once (the last, smaller batch included),
/// in another order, texts of similar length together.
pub fn batch_at(lengths: &[usize], batch_size: usize, seed: u64, step: usize) -> Vec<usize> {
    let per_epoch = lengths.len().div_ceil(batch_size.max(1)).max(1);
    let (epoch, place) = (step / per_epoch, step % per_epoch);
    let mut rng = rng(seed, "epoch", epoch as u64);
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.shuffle(&mut rng);
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let batch_size = batch_size.max(1);
    let whole = lengths.len() / batch_size;
    // What is left over is drawn like all others, or it would always be the longest.
    let (order, left) = order.split_at_mut(whole * batch_size);
    batches.extend((!left.is_empty()).then(|| left.to_vec()));
    for pool in order.chunks_mut(POOL.min(whole / 4).max(1) * batch_size) {
        pool.sort_by_key(|i| lengths[*i]);
        batches.extend(pool.chunks(batch_size).map(<[usize]>::to_vec));
    }
    batches.shuffle(&mut rng);
    batches.swap_remove(place)
}

/// Which documents take part in training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TrainDocuments {
    /// Those that some training query is judged on: documents of dev and test stay unseen.
    Judged,
    /// The whole corpus.
    Corpus,
}

/// Training queries with their relevant documents, as places in the data set.
#[derive(Debug, Clone, Default)]
pub struct TrainingSet {
    /// Places of the queries.
    pub queries: Vec<usize>,
    /// Places of each query's relevant documents, same order, at least one each.
    pub relevant: Vec<BTreeSet<usize>>,
    /// Places of the documents that were judged not to be relevant (gain 0), same order, often none: hard negatives of
    /// whoever made the data.
    pub negatives: Vec<BTreeSet<usize>>,
    /// Places of the documents that take part, ascending.
    pub documents: Vec<usize>,
}

impl TrainingSet {
    /// From judgements; queries without a relevant document teach nothing and are left out.
    pub fn new(data: &BeirData, qrels: &Qrels, which: TrainDocuments) -> Self {
        let (mut queries, mut relevant, mut negatives) = (Vec::new(), Vec::new(), Vec::new());
        let mut judged = BTreeSet::new();
        for (query, judgements) in qrels {
            let places = |of_gain: fn(u32) -> bool| -> BTreeSet<usize> {
                let ids = judgements.iter().filter(|(_, gain)| of_gain(**gain)).map(|(id, _)| id);
                ids.filter_map(|id| data.document_index.get(id).copied()).collect()
            };
            let (positive, negative) = (places(|gain| gain > 0), places(|gain| gain == 0));
            judged.extend(positive.iter().chain(&negative));
            if let (Some(query), false) = (data.query_index.get(query), positive.is_empty()) {
                queries.push(*query);
                relevant.push(positive);
                negatives.push(negative);
            }
        }
        let documents = match which {
            TrainDocuments::Judged => judged.into_iter().collect(),
            TrainDocuments::Corpus => (0..data.documents.len()).collect(),
        };
        Self { queries, relevant, negatives, documents }
    }
}

/// `n` distinct members of `pool` that are not in `taken`, at random; fewer if there are no more.
pub fn draw(pool: &[usize], n: usize, taken: &BTreeSet<usize>, rng: &mut ChaCha8Rng) -> Vec<usize> {
    let mut free: Vec<usize> = pool.iter().copied().filter(|place| !taken.contains(place)).collect();
    let n = n.min(free.len());
    free.partial_shuffle(rng, n).0.to_vec()
}

/// `n` distinct places from `softmax(scores / temperature)` without replacement (Gumbel top-k), `excluded` left out.
pub fn draw_by_score(
    scores: &[f32],
    temperature: f64,
    n: usize,
    excluded: &BTreeSet<usize>,
    rng: &mut ChaCha8Rng,
) -> Vec<usize> {
    let mut keyed: Vec<(f64, usize)> = scores
        .iter()
        .enumerate()
        .filter(|(place, _)| !excluded.contains(place))
        .map(|(place, score)| {
            let uniform: f64 = rng.random_range(f64::MIN_POSITIVE..1.0);
            (f64::from(*score) / temperature - (-uniform.ln()).ln(), place)
        })
        .collect();
    keyed.sort_by(|a, b| b.0.total_cmp(&a.0));
    keyed.into_iter().take(n).map(|(_, place)| place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A query that an epoch leaves out is never learnt; one shown twice counts double.
    #[test]
    fn every_epoch_shows_every_query_once() {
        let lengths: Vec<usize> = (0..103).map(|i| i % 17).collect();
        for epoch in 0..2 {
            let mut seen: Vec<usize> =
                (0..13).flat_map(|step| batch_at(&lengths, 8, 7, epoch * 13 + step)).collect();
            seen.sort_unstable();
            assert_eq!(seen, (0..103).collect::<Vec<_>>());
        }
        assert_eq!(batch_at(&lengths, 8, 7, 5), batch_at(&lengths, 8, 7, 5));
        assert_ne!(batch_at(&lengths, 8, 7, 5), batch_at(&lengths, 8, 8, 5));
    }

    /// Who meets whom in a batch is who is compared: on small data it must change from epoch to epoch, and the longest must not
    /// always be what is left over.
    #[test]
    fn batches_are_others_in_every_epoch() {
        let lengths: Vec<usize> = (0..97).collect();
        let (mut partners, mut left) = (BTreeSet::new(), BTreeSet::new());
        for step in 0..20 * 13 {
            let batch = batch_at(&lengths, 8, 3, step);
            if batch.contains(&40) {
                partners.extend(batch.iter().copied());
            }
            if batch.len() == 1 {
                left.extend(batch);
            }
        }
        assert!(partners.len() > 40, "{partners:?}");
        assert!(left.len() > 12, "{left:?}");
    }

    /// Somebody mined hard negatives and wrote them down as gain 0: taken for relevant they teach the opposite, and
    /// forgotten they teach nothing.
    #[test]
    fn judgements_of_gain_0_are_negatives_of_their_query() {
        let index = |ids: &[&str]| ids.iter().enumerate().map(|(i, id)| ((*id).to_owned(), i)).collect();
        let data = BeirData {
            document_index: index(&["a", "b", "c", "d"]),
            query_index: index(&["p", "q", "r"]),
            ..BeirData::default()
        };
        let judged =
            |judged: &[(&str, u32)]| judged.iter().map(|(id, gain)| ((*id).to_owned(), *gain)).collect();
        let qrels = Qrels::from([
            ("p".to_owned(), judged(&[("a", 2), ("c", 0), ("b", 0)])),
            ("q".to_owned(), judged(&[("d", 0)])),
            ("r".to_owned(), judged(&[("b", 1)])),
        ]);
        let set = TrainingSet::new(&data, &qrels, TrainDocuments::Judged);
        assert_eq!(set.queries, [0, 2]);
        assert_eq!(set.relevant, [BTreeSet::from([0]), BTreeSet::from([1])]);
        assert_eq!(set.negatives, [BTreeSet::from([1, 2]), BTreeSet::new()]);
        assert_eq!(set.documents, [0, 1, 2, 3]);
    }

    /// On-policy means: what the student ranks high is drawn more often, in the proportion of its softmax.
    #[test]
    fn draws_follow_the_softmax() {
        let scores = [2f32.ln(), 0.0, 0.0];
        let mut rng = rng(1, "test", 0);
        let first =
            (0..4000).filter(|_| draw_by_score(&scores, 1.0, 1, &BTreeSet::new(), &mut rng) == [0]).count();
        assert!((1880..2120).contains(&first), "{first} of 4000, expected about 2000");
        let two = draw_by_score(&scores, 1.0, 5, &BTreeSet::from([1]), &mut rng);
        assert_eq!(BTreeSet::from_iter(two), BTreeSet::from([0, 2]));
    }
}
