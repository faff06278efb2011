//! One data set as the student sees it: latents on disk, rankings, dev metrics.

use super::queries::QueryLatents;
use crate::calibration::JudgedScore;
use crate::data_sets::DataSet;
use crate::evaluation::{Run, measure};
use crate::features::{Features, StoredFeatures};
use crate::fit::Metrics;
use crate::scoring::rows_of;
use anyhow::Result;
use models::beir::Qrels;
use models::torch::Predictor;
use models::torch::predictor::QuerySide;
use std::collections::BTreeSet;
use tch::{Device, Tensor};

/// Documents scored at once.
const DOCUMENTS_AT_ONCE: usize = 2048;
/// Documents that a dev run keeps of each query: enough for every metric.
const RUN_DEPTH: usize = 100;

/// Latents of one data set.
pub struct StudentSet<'a> {
    /// The data.
    pub set: &'a DataSet,
    /// Latents of the training queries, in their order.
    pub queries: QueryLatents<'a>,
    /// Latents of the whole corpus.
    pub documents: StoredFeatures,
    /// Latents of the judged queries of each dev split, in the split's order.
    pub dev: Vec<QueryLatents<'a>>,
    /// What batches are sorted by, see [`QueryLatents::lengths`].
    pub lengths: Vec<usize>,
}

/// Pairs of a query that its probabilities are fitted on; where there are more, some stand for others.
const JUDGED: usize = 2048;

/// Query side of some texts.
pub fn query_side(predictor: &Predictor, features: &Features, train: bool) -> QuerySide {
    predictor.query_side(&predictor.query.apply(&features.latent), features.answer.as_ref(), train)
}

/// Document side of some texts, `[n, m]`.
pub fn document_side(predictor: &Predictor, features: &Features, train: bool) -> Tensor {
    predictor.document_side(&predictor.document.apply(&features.latent), train)
}

impl StudentSet<'_> {
    /// Scores of some queries against all documents of the corpus; memory is bounded by queries times documents.
    pub fn scores(&self, predictor: &Predictor, queries: &Features) -> Result<Vec<Vec<f32>>> {
        let _guard = tch::no_grad_guard();
        let side = query_side(predictor, queries, false);
        let n = queries.latent.size()[0];
        let mut scores: Vec<Vec<f32>> = (0..n).map(|_| Vec::with_capacity(self.documents.len())).collect();
        for block in self.documents.blocks(DOCUMENTS_AT_ONCE) {
            let inner = document_side(predictor, &block?, false);
            // The relu form holds [queries, documents, m] at once: cut it.
            let rows = (8_000_000 / inner.numel().max(1) as i64).clamp(1, n.max(1));
            for start in (0..n).step_by(rows as usize) {
                let places: Vec<i64> = (start..(start + rows).min(n)).collect();
                let some = side.select(&Tensor::from_slice(&places).to_device(inner.device()));
                for (place, row) in places.iter().zip(rows_of(&predictor.score(&some, &inner))?) {
                    scores[*place as usize].extend(row);
                }
            }
        }
        Ok(scores)
    }

    /// Dev splits: name, judgements and latents.
    fn dev(&self) -> impl Iterator<Item = (&str, &Qrels, &QueryLatents<'_>)> {
        let splits = self.set.dev.iter().zip(&self.dev);
        splits.map(|((name, qrels), features)| (name.as_str(), qrels, features))
    }

    /// Metrics of each dev split, by name, and with `judged` the scores less c(q) of all pairs, or where the corpus is large of
    /// the relevant ones, the first ones and some of the others.
    pub fn dev_metrics(
        &self,
        predictor: &Predictor,
        mut judged: Option<&mut Vec<JudgedScore>>,
    ) -> Result<Vec<(String, Metrics)>> {
        let mut all = Vec::new();
        for (name, qrels, features) in self.dev() {
            let mut run = Run::default();
            let mut ids = qrels.iter();
            for block in features.blocks(64) {
                let block = block?;
                let constants = tch::no_grad(|| {
                    query_side(predictor, &block, false).constant(predictor.choice()).to_device(Device::Cpu)
                });
                let constants = Vec::<f32>::try_from(constants)?;
                for (scores, constant) in self.scores(predictor, &block)?.iter().zip(constants) {
                    let Some((id, judgements)) = ids.next() else { break };
                    let first = best(scores, RUN_DEPTH);
                    for &document in &first {
                        run.add(id, &self.set.data.documents[document].id, scores[document]);
                    }
                    let Some(judged) = &mut judged else { continue };
                    let gains = judgements.iter().filter(|(_, gain)| **gain > 0);
                    let places = gains.filter_map(|(id, _)| self.set.data.document_index.get(id).copied());
                    let relevant: BTreeSet<usize> = places.collect();
                    let certain = first.into_iter().chain(relevant.iter().copied()).collect();
                    judged.extend(standing_for_all(scores.len(), &certain, JUDGED).map(
                        |(document, weight)| {
                            let score = scores[document] - constant;
                            JudgedScore { score, relevant: relevant.contains(&document), weight }
                        },
                    ));
                }
            }
            all.push((name.to_owned(), measure(&run, qrels)));
        }
        Ok(all)
    }
}

/// Places of the `k` best scores; ties at the edge are all kept, for who cuts them by id later.
fn best(scores: &[f32], k: usize) -> Vec<usize> {
    let mut places: Vec<usize> = (0..scores.len()).collect();
    if places.len() > k {
        places.select_nth_unstable_by(k - 1, |a, b| scores[*b].total_cmp(&scores[*a]));
        let edge = scores[places[k - 1]];
        places.retain(|place| scores[*place] >= edge);
    }
    places
}

/// Places of documents and for how many each stands: all for themselves, or from `most` documents on the `certain` ones for
/// themselves and at most `most` evenly spaced others for all others.
fn standing_for_all(
    documents: usize,
    certain: &BTreeSet<usize>,
    most: usize,
) -> impl Iterator<Item = (usize, f32)> + use<> {
    let (certain, others): (Vec<usize>, Vec<usize>) =
        (0..documents).partition(|document| documents <= most || certain.contains(document));
    let some = spaced(&others, most);
    let weight = others.len() as f32 / some.len().max(1) as f32;
    certain
        .into_iter()
        .map(|document| (document, 1.0))
        .chain(some.into_iter().map(move |place| (place, weight)))
}

/// At most `most` of them, evenly spaced.
pub fn spaced(among: &[usize], most: usize) -> Vec<usize> {
    let step = among.len().div_ceil(most.max(1)).max(1);
    among.iter().copied().step_by(step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tie cut by place instead of by id makes dev metrics differ from those of `train eval`.
    #[test]
    fn ties_at_the_edge_are_kept() {
        let mut places = best(&[1.0, 3.0, 2.0, 2.0, 0.0], 2);
        places.sort_unstable();
        assert_eq!(places, [1, 2, 3]);
        assert_eq!(best(&[1.0], 2), [0]);
    }

    /// Few pairs that stand for a large corpus must weigh what it weighs, or probabilities are wrong by the difference.
    #[test]
    fn some_documents_stand_for_all() {
        let certain = BTreeSet::from([3, 90]);
        let few: Vec<_> = standing_for_all(5, &certain, 8).collect();
        assert_eq!(few, (0..5).map(|place| (place, 1.0)).collect::<Vec<_>>());
        let some: Vec<_> = standing_for_all(100, &certain, 8).collect();
        assert!(some.len() <= 10 && some.contains(&(3, 1.0)) && some.contains(&(90, 1.0)), "{some:?}");
        assert!((some.iter().map(|(_, weight)| weight).sum::<f32>() - 100.0).abs() < 1e-3);
    }
}
