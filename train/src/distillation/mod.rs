//! Distillation (Rabtriever, arXiv 2604.23336): the predictor learns to rebuild the teacher's h(q|d) from latents of a
//! frozen LLM.
//!
//! Every training query takes part in the supervised contrastive term (its latents are cached: a few microseconds);
//! as many as the budget allows also have teacher targets: JEPA distance to h(q|d), divergence of the LLM's logits,
//! listwise divergence over their candidates.

mod queries;
mod ranking;
mod targets;

pub use queries::QueryLatents;
pub use ranking::StudentSet;
pub use targets::Targets;

use crate::calibration::JudgedScore;
use crate::crew::Crew;
use crate::fit::{Metrics, MicroBatch, Task};
use crate::losses::{Divergence, JepaDistance, KlOver, contrastive, divergence, jepa};
use crate::sampling::{batch_at, draw, rng};
use anyhow::{Context, Result, bail};
use models::torch::predictor::QuerySide;
use models::torch::{Predictor, Reranker};
use ranking::{document_side, query_side, spaced};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use tch::{Kind, Tensor};

/// Training queries and documents that documents are equalised on.
const EQUALISED_ON: usize = 4096;
/// The same where each query runs the LLM.
const EQUALISED_ON_LIVE: usize = 512;

/// Settings of the distillation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DistillConfig {
    /// Queries per step.
    pub queries: usize,
    /// Most documents that a query is scored against in the supervised term; in a larger corpus the batch's relevant
    /// documents and random others.
    pub documents: usize,
    /// Queries that get teacher targets, of all sets together.
    pub target_queries: usize,
    /// Seed of which queries these are.
    pub target_seed: u64,
    /// Candidates per target query, gold among them.
    pub candidates: usize,
    /// Share of the candidates drawn uniformly (exploration); 1 is off-policy.
    pub uniform: f64,
    /// Temperature of the student's ranking when candidates are drawn.
    pub sampling_temperature: f64,
    /// Rounds in which targets are made, spread over the run; each with the student of that moment.
    pub rounds: usize,
    /// Weight of the JEPA distance.
    pub jepa_weight: f64,
    /// Which distance.
    pub jepa_distance: JepaDistance,
    /// Weight of the divergence of the LLM's logits.
    pub kl_weight: f64,
    /// Over which logits.
    pub kl_over: KlOver,
    /// Which divergence, of logits and of rankings.
    pub divergence: Divergence,
    /// Weight of the listwise divergence.
    pub listwise_weight: f64,
    /// Temperature of both softmaxes in it.
    pub listwise_temperature: f64,
    /// Weight of the supervised contrastive term.
    pub supervised_weight: f64,
    /// Weight of the squared distance of the gated form's maps from where they started.
    pub start_weight: f64,
    /// Whether documents are equalised after training (see [`Predictor::equalise_documents`]).
    pub equalise: bool,
    /// Steps.
    pub steps: usize,
    /// Seed of everything random.
    pub seed: u64,
}

impl DistillConfig {
    /// Step at which a round begins. Each comes after its share of the run, so that the first meets a student that already
    /// ranks a little; where the teacher's targets are all that teaches, the first comes at once.
    fn starts_at(&self, round: usize) -> usize {
        match self.supervised_weight > 0.0 {
            true => self.steps * (round + 1) / (self.rounds + 2),
            false => self.steps * round / (self.rounds + 1),
        }
    }
}

/// What a distillation ends with.
pub struct Finished {
    /// Documents equalised.
    pub predictor: Predictor,
    /// Dev metrics by split (with several sets: set and split).
    pub dev: Vec<(String, Metrics)>,
    /// All dev pairs, for calibration.
    pub judged: Vec<JudgedScore>,
    /// Pairs that had teacher targets.
    pub target_pairs: usize,
}

/// The task of [`crate::fit::fit`].
pub struct Distillation<'a> {
    teacher: &'a Reranker,
    crew: &'a Crew<'a>,
    sets: Vec<StudentSet<'a>>,
    /// Set and place in it of each step's batch.
    plan: Vec<(usize, usize)>,
    predictor: Predictor,
    targets: Targets,
    /// Head `[H, vocab]`, where the whole vocabulary's logits are compared.
    head: Option<Tensor>,
    config: DistillConfig,
}

impl<'a> Distillation<'a> {
    /// Joins the parts; `crew` makes the targets, `plan` is that of [`crate::data_sets::DataSets::plan`].
    pub fn new(
        teacher: &'a Reranker,
        crew: &'a Crew<'a>,
        sets: Vec<StudentSet<'a>>,
        plan: Vec<(usize, usize)>,
        predictor: Predictor,
        targets: Targets,
        config: DistillConfig,
    ) -> Self {
        let vocabulary = config.kl_weight > 0.0 && config.kl_over == KlOver::Vocabulary;
        let head = vocabulary.then(|| {
            let hidden = teacher.decoder.config().hidden_size as i64;
            // Logits of the unit vectors are the head's columns.
            let identity = Tensor::eye(hidden, (Kind::Float, teacher.device()));
            tch::no_grad(|| teacher.decoder.logits(&identity))
        });
        Self { teacher, crew, sets, plan, predictor, targets, head, config }
    }

    /// Equalises documents for good, and measures.
    pub fn finish(mut self) -> Result<Finished> {
        self.equalise()?;
        let (mut dev, mut judged) = (Vec::new(), Vec::new());
        for set in &self.sets {
            let before = judged.len();
            let of_set = set.dev_metrics(&self.predictor, Some(&mut judged))?;
            if self.sets.len() > 1 {
                as_among_few(&mut judged[before..], set.documents.len());
            }
            let name = |split: String| match self.sets.len() {
                1 => split,
                _ => format!("{}/{split}", set.set.name),
            };
            dev.extend(of_set.into_iter().map(|(split, values)| (name(split), values)));
        }
        Ok(Finished { predictor: self.predictor, dev, judged, target_pairs: self.targets.pairs() })
    }

    /// See [`Predictor::equalise_documents`].
    fn equalise(&mut self) -> Result<()> {
        if !self.config.equalise {
            return Ok(());
        }
        let most = EQUALISED_ON / self.sets.len().max(1);
        let (mut queries, mut documents) = (Vec::new(), Vec::new());
        for set in &self.sets {
            let all: Vec<usize> = (0..set.queries.len()).collect();
            let some = match set.queries.is_live() {
                true => spaced(&all, EQUALISED_ON_LIVE / self.sets.len().max(1)),
                false => spaced(&all, most),
            };
            queries.push(self.predictor.query.apply(&set.queries.gather(&some)?.latent).0);
            let some = spaced(&set.set.train.documents, most);
            documents.push(self.predictor.document.apply(&set.documents.gather(&some)?.latent).0);
        }
        let all = |parts: &[Tensor]| models::torch::predictor::Standardised(Tensor::cat(parts, 0));
        self.predictor.equalise_documents(&all(&queries), &all(&documents));
        Ok(())
    }

    /// Runs `judge` with documents equalised, as they will be served, and goes back to how they are trained.
    fn equalised<T>(&mut self, judge: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.equalise()?;
        let judged = judge(self);
        self.predictor.forget_equalising();
        judged
    }

    /// Documents that a batch is contrasted with: all, or the batch's relevant ones and random others.
    fn documents_for(&self, set: &StudentSet, batch: &[usize], step: usize) -> Vec<usize> {
        let train = &set.set.train;
        if train.documents.len() <= self.config.documents {
            return train.documents.clone();
        }
        let mut chosen: BTreeSet<usize> =
            batch.iter().flat_map(|q| train.relevant[*q].iter().copied()).collect();
        let missing = self.config.documents.saturating_sub(chosen.len());
        let mut rng = rng(self.config.seed, "documents", step as u64);
        let random = draw(&train.documents, missing, &chosen, &mut rng);
        chosen.extend(random);
        chosen.into_iter().collect()
    }

    fn supervised(&self, set: &StudentSet, batch: &[usize], side: &QuerySide, step: usize) -> Result<Tensor> {
        let documents = self.documents_for(set, batch, step);
        let inner = document_side(&self.predictor, &set.documents.gather(&documents)?, true);
        let relevant: Vec<i64> = batch
            .iter()
            .flat_map(|query| {
                let relevant = &set.set.train.relevant[*query];
                documents.iter().map(|document| i64::from(relevant.contains(document)))
            })
            .collect();
        let relevant = Tensor::from_slice(&relevant)
            .reshape([batch.len() as i64, documents.len() as i64])
            .to_device(inner.device());
        Ok(contrastive(&self.predictor.score(side, &inner), &relevant)?)
    }

    /// Training queries of a step: any, where all of them teach; else those that have targets.
    fn batch(&self, index: usize, place: usize) -> Vec<usize> {
        let set = &self.sets[index];
        let DistillConfig { queries, seed, supervised_weight, .. } = self.config;
        if supervised_weight > 0.0 {
            return batch_at(&set.lengths, queries, seed, place);
        }
        let with: Vec<usize> = self.targets.candidates[index].keys().copied().collect();
        if with.is_empty() {
            return Vec::new();
        }
        let lengths: Vec<usize> = with.iter().map(|query| set.lengths[*query]).collect();
        batch_at(&lengths, queries, seed, place).into_iter().map(|i| with[i]).collect()
    }

    /// JEPA, divergence of logits and listwise divergence of the batch's queries that have targets.
    fn teacher_terms(
        &mut self,
        index: usize,
        batch: &[usize],
        side: &QuerySide,
        parts: &mut Metrics,
    ) -> Result<Option<Tensor>> {
        let candidates = &self.targets.candidates[index];
        let with: Vec<usize> = (0..batch.len()).filter(|i| candidates.contains_key(&batch[*i])).collect();
        if with.is_empty() {
            return Ok(None);
        }
        let queries: Vec<usize> = with.iter().map(|i| batch[*i]).collect();
        let documents: Vec<usize> = queries.iter().flat_map(|q| candidates[q].iter().copied()).collect();
        let set = &self.sets[index];
        let device = self.teacher.device();
        let (hidden, scores) = self.targets.read(index, set, &queries)?;
        let (teacher_hidden, teacher_scores) = (hidden.to_device(device), scores.to_device(device));
        let rows: Vec<i64> = with.iter().map(|i| *i as i64).collect();
        let side = side.select(&Tensor::from_slice(&rows).to_device(device));
        let inner = document_side(&self.predictor, &set.documents.gather(&documents)?, true);
        let inner = inner.reshape([queries.len() as i64, -1, inner.size()[1]]);
        let predicted = self.predictor.predict(&side, &inner);
        let student_logits = predicted.matmul(&self.predictor.choice().tr());
        let student_scores = student_logits.select(-1, 0) - student_logits.select(-1, 1);
        let mut total = Tensor::zeros([], (Kind::Float, device));
        let mut add = |name: &str, weight: f64, loss: Tensor| {
            parts.insert(name.to_owned(), loss.double_value(&[]));
            total += loss * weight;
        };
        let config = &self.config;
        if config.jepa_weight > 0.0 {
            add("jepa", config.jepa_weight, jepa(&predicted, &teacher_hidden, config.jepa_distance)?);
        }
        if config.kl_weight > 0.0 {
            let (student, teacher) = match &self.head {
                Some(head) => (predicted.matmul(head), teacher_hidden.matmul(head)),
                None => (student_logits, teacher_hidden.matmul(&self.predictor.choice().tr())),
            };
            add("kl", config.kl_weight, divergence(&student, &teacher, 1.0, config.divergence)?);
        }
        if config.listwise_weight > 0.0 {
            let (temperature, which) = (config.listwise_temperature, config.divergence);
            let loss = divergence(&student_scores, &teacher_scores, temperature, which)?;
            add("listwise", config.listwise_weight, loss);
        }
        Ok(Some(total))
    }
}

/// How many documents a query of a general student is taken to be asked of: the probability that one of them is right falls with
/// their number, and that of the corpora it was trained on says nothing about the one it will serve.
const ASKED_OF: usize = 128;

/// Weighs the documents that are not relevant as if there were [`ASKED_OF`] of them instead of `documents`.
fn as_among_few(judged: &mut [JudgedScore], documents: usize) {
    let share = (ASKED_OF as f32 / documents.max(1) as f32).min(1.0);
    judged.iter_mut().filter(|pair| !pair.relevant).for_each(|pair| pair.weight *= share);
}

impl Task for Distillation<'_> {
    fn before_step(&mut self, step: usize) -> Result<()> {
        self.crew.wait()?;
        let round = (0..self.config.rounds).find(|round| self.config.starts_at(*round) == step);
        match round {
            Some(round) if self.config.target_queries > 0 => self.equalised(|task| {
                task.targets.make(task.crew, &task.sets, &task.predictor, &task.config, round)
            }),
            _ => Ok(()),
        }
    }

    fn micro_batch(&mut self, step: usize, _micro: usize) -> Result<MicroBatch> {
        let (index, place) = self.plan[step];
        let set = &self.sets[index];
        let batch = self.batch(index, place);
        if batch.is_empty() {
            bail!(
                "no query has teacher targets and --supervised-weight is 0: there is nothing to learn; give more --target-queries"
            );
        }
        let ids = set.set.ids(&batch);
        let side = query_side(&self.predictor, &set.queries.gather_for_training(&batch)?, true);
        let mut parts = Metrics::new();
        let mut loss = Tensor::zeros([], (Kind::Float, self.teacher.device()));
        if self.config.supervised_weight > 0.0 {
            let supervised = self.supervised(set, &batch, &side, step)?;
            parts.insert("supervised".into(), supervised.double_value(&[]));
            loss += supervised * self.config.supervised_weight;
        }
        if let Some(terms) = self.teacher_terms(index, &batch, &side, &mut parts)? {
            loss += terms;
        }
        if loss.requires_grad() && self.config.start_weight > 0.0 {
            loss += self.predictor.distance_from_start() * self.config.start_weight;
        }
        if !loss.requires_grad() {
            bail!(
                "no loss has a weight above zero on this batch; give --supervised-weight or more --target-queries"
            );
        }
        Ok(MicroBatch { loss, parts, tokens: 0, ids })
    }

    fn evaluate(&mut self) -> Result<Metrics> {
        self.equalised(|task| {
            let mut splits = Vec::new();
            for set in &task.sets {
                splits.extend(set.dev_metrics(&task.predictor, None)?);
            }
            let mut mean = Metrics::new();
            for (_, metrics) in &splits {
                for (name, value) in metrics {
                    *mean.entry(name.clone()).or_default() += value / splits.len() as f64;
                }
            }
            Ok(mean)
        })
    }

    fn save(&self) -> Result<serde_json::Value> {
        let sets = self.targets.candidates.iter();
        let candidates: Vec<Vec<_>> = sets.map(|set| set.iter().collect()).collect();
        Ok(serde_json::json!({ "candidates": candidates }))
    }

    fn restore(&mut self, state: &serde_json::Value) -> Result<()> {
        let candidates: Vec<Vec<(usize, Vec<usize>)>> =
            serde_json::from_value(state["candidates"].clone()).context("damaged state: candidates")?;
        self.targets.candidates = candidates.into_iter().map(|set| set.into_iter().collect()).collect();
        self.targets.score_missing(self.crew, &self.sets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A general student is calibrated on corpora of thousands of documents and serves a hundred skills: with the former's odds
    /// even a perfect answer would be shown with one per cent.
    #[test]
    fn a_large_corpus_does_not_set_the_odds_of_a_small_one() {
        let pair = |relevant| JudgedScore { score: 0.0, relevant, weight: 10.0 };
        let mut judged = [pair(true), pair(false)];
        as_among_few(&mut judged, 1280);
        assert_eq!(judged.map(|pair| pair.weight), [10.0, 1.0]);
        as_among_few(&mut judged, 50);
        assert_eq!(judged.map(|pair| pair.weight), [10.0, 1.0]);
    }
}
