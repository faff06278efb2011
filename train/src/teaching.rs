//! Teaching a reranker (RaHoRe, arXiv 2412.16615): cross-entropy of the choice token over positives and negatives (SFT), or
//! preference of the right choice over the wrong one against a reference (DPO), and a listwise term over one query's
//! candidates.
//!
//! A batch is some queries and some documents (one positive of each query, and negatives); all pairs are scored, each
//! document is read once, and gradients flow through its keys and values.
//!
//! Beside the judgement, or alone, the layers' latents are taught ([`latent`]).

pub mod latent;

use crate::cache::{Key, VectorCache, key};
use crate::data_sets::{DataSet, DataSets};
use crate::evaluation::{Run, measure};
use crate::features::bar;
use crate::fit::{Metrics, MicroBatch, Task};
use crate::losses::{choice_cross_entropy, contrastive, dpo};
use crate::negatives::Negatives;
use crate::ranks::Ranks;
use crate::sampling::{draw, rng};
use crate::scoring::{Texts, score_pairs, score_pairs_on};
use anyhow::{Context, Result};
use latent::{LatentBatch, LatentLoss, LatentLossConfig};
use models::beir::Qrels;
use models::torch::{Recompute, Reranker};
use rand::seq::{IndexedRandom, SliceRandom};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::time::Instant;
use tch::Tensor;

/// What is taught about a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Objective {
    /// Supervised fine-tuning: cross-entropy of the right choice token
    Sft,
    /// Direct preference optimisation: the right choice token over the wrong one, against the model started from
    Dpo,
}

/// Settings of the teaching.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TeachingConfig {
    /// What is taught.
    pub objective: Objective,
    /// DPO: how far the policy may go from the reference; smaller is further.
    pub beta: f64,
    /// DPO: share of preferences taken to be wrong.
    pub label_smoothing: f64,
    /// Queries per micro-batch.
    pub queries: usize,
    /// Documents per micro-batch, the queries' positives among them.
    pub documents: usize,
    /// Weight of the listwise term.
    pub listwise_weight: f64,
    /// Dev queries judged at each evaluation, of each split; 0 = all.
    pub dev_queries: usize,
    /// Documents ranked for each dev query: the relevant ones and random others; 0 = all.
    pub dev_candidates: usize,
    /// Whether layers are run again for their gradient instead of kept.
    pub checkpointing: bool,
    /// Whether pairs are judged at all; without, only latents are taught.
    pub judgement: bool,
    /// Latents that are taught too.
    pub latent: Option<LatentLossConfig>,
    /// Micro-batches per step.
    pub accumulate: usize,
    /// Optimizer steps.
    pub steps: usize,
    /// Seed of everything random.
    pub seed: u64,
}

/// The task of [`crate::fit::fit`].
pub struct Teaching<'a> {
    teacher: &'a Reranker,
    sets: &'a DataSets,
    negatives: Vec<Negatives>,
    /// Set and place in it of each micro-batch.
    plan: Vec<(usize, usize)>,
    /// DPO: the reference's scores.
    reference: Option<VectorCache>,
    /// The last micro-batch's gradient on its way back.
    recompute: Vec<Recompute<'a>>,
    /// The latent loss, and the plan of its micro-batches.
    latent: Option<(LatentLoss<'a>, Vec<(usize, usize)>)>,
    rates: Rates,
    ranks: &'a Ranks,
    config: TeachingConfig,
}

/// Tokens and seconds of a step's two parts, to the end of their backward passes.
#[derive(Default)]
struct Rates {
    /// Of the current step: tokens and seconds of judgement and latents.
    step: [(usize, f64); 2],
    /// When the current micro-batch's judgement began.
    judging: Option<Instant>,
}

/// Names of [`Rates`] in the records.
const RATES: [&str; 2] = ["judgement_tokens_per_second", "latent_tokens_per_second"];

/// Pairs of one micro-batch.
struct Pairs {
    /// Training queries, by place in the set's training set.
    queries: Vec<usize>,
    /// Documents, by place in the set.
    documents: Vec<usize>,
}

/// Sets the latents' plan apart from the judgement's.
const LATENT_SEED: u64 = 0x6c61_7465;

impl<'a> Teaching<'a> {
    /// Joins model and data. With DPO, `reference` keeps the reference's scores, and `teacher` must still be the
    /// reference: what it says of all pairs of this process's share of the run is read off it now.
    pub fn new(
        teacher: &'a Reranker,
        sets: &'a DataSets,
        negatives: Vec<Negatives>,
        reference: Option<VectorCache>,
        ranks: &'a Ranks,
        config: TeachingConfig,
    ) -> Result<Self> {
        let plan = sets.plan(config.steps * config.accumulate, config.seed);
        let latent = config.latent.clone().map(|latent| {
            // Batches of their own: a judgement sees far fewer queries a step.
            let plan = sets.plan(config.steps * config.accumulate, config.seed ^ LATENT_SEED);
            Ok::<_, anyhow::Error>((LatentLoss::new(teacher, sets, latent, config.seed)?, plan))
        });
        let mut task = Self {
            teacher,
            sets,
            negatives,
            plan,
            reference,
            recompute: Vec::new(),
            latent: latent.transpose()?,
            rates: Rates::default(),
            ranks,
            config,
        };
        task.score_reference()?;
        Ok(task)
    }

    /// Micro-batch `index` of the run: a pure function of the seed.
    fn pairs(&self, index: usize) -> (&'a DataSet, Pairs) {
        let (set_index, place) = self.plan[index];
        let set = &self.sets.sets[set_index];
        let queries = set.batch(self.config.queries, self.config.seed, place);
        let mut rng = rng(self.config.seed, "documents", index as u64);
        let mut chosen = BTreeSet::new();
        for query in &queries {
            let positives: Vec<usize> = set.train.relevant[*query].iter().copied().collect();
            chosen.extend(positives.choose(&mut rng));
        }
        self.negatives[set_index].fill(
            &mut chosen,
            self.config.documents,
            &queries,
            &set.train.documents,
            &mut rng,
        );
        (set, Pairs { queries, documents: chosen.into_iter().collect() })
    }

    fn score_reference(&mut self) -> Result<()> {
        let Some(mut cache) = self.reference.take() else { return Ok(()) };
        for set in &self.sets.sets {
            let mut missing: BTreeSet<(usize, usize)> = BTreeSet::new();
            let own = |index: &usize| index % self.config.accumulate % self.ranks.size() == self.ranks.rank();
            for index in (0..self.plan.len()).filter(own) {
                let (of, pairs) = self.pairs(index);
                if std::ptr::eq(of, set) {
                    let each = pairs.queries.iter().map(|query| set.train.queries[*query]);
                    missing.extend(each.flat_map(|query| pairs.documents.iter().map(move |d| (query, *d))));
                }
            }
            missing.retain(|(query, document)| !cache.contains(&pair_key(set, *query, *document)));
            let missing: Vec<(usize, usize)> = missing.into_iter().collect();
            let bar = bar(missing.len(), "reference scores");
            let texts = Texts { queries: &set.query_texts(), documents: &set.document_texts() };
            score_pairs(self.teacher, &texts, &missing, false, |scored| {
                bar.inc(scored.len() as u64);
                for pair in scored {
                    cache.insert(pair_key(set, pair.query, pair.document), &[pair.score])?;
                }
                Ok(())
            })?;
            bar.finish_and_clear();
        }
        cache.flush()?;
        self.reference = Some(cache);
        Ok(())
    }

    /// The reference's scores of a micro-batch's pairs, `[pairs]`, query by query.
    fn reference_scores(&mut self, set: &DataSet, pairs: &Pairs) -> Result<Option<Tensor>> {
        let Some(cache) = &mut self.reference else { return Ok(None) };
        let mut scores = Vec::with_capacity(pairs.queries.len() * pairs.documents.len());
        for query in &pairs.queries {
            for document in &pairs.documents {
                let key = pair_key(set, set.train.queries[*query], *document);
                scores.extend(cache.get(&key)?.context("a reference score vanished from the cache")?);
            }
        }
        Ok(Some(Tensor::from_slice(&scores).to_device(self.teacher.device())))
    }
}

impl Teaching<'_> {
    /// The latent part of a micro-batch: its gradient is with the parameters when this returns, its loss comes back with its
    /// weight.
    fn learn_latents(&mut self, index: usize, parts: &mut Metrics) -> Result<(f64, usize, Vec<String>)> {
        let (Some((latent, plan)), Some(config)) = (&self.latent, &self.config.latent) else {
            return Ok((0.0, 0, Vec::new()));
        };
        let began = Instant::now();
        let (set_index, place) = plan[index];
        let set = &self.sets.sets[set_index];
        let (negatives, seed) = (&self.negatives[set_index], self.config.seed);
        let sizes = [config.queries, config.documents];
        let batch = LatentBatch::draw(set, negatives, sizes, seed ^ LATENT_SEED, [index, place]);
        let scale = config.weight / self.config.accumulate as f64;
        let step = latent.backward(&batch, scale, (seed ^ LATENT_SEED) as i64 ^ ((index as i64) << 8))?;
        parts.extend(step.parts);
        let [_, (tokens, seconds)] = &mut self.rates.step;
        *tokens += step.tokens;
        *seconds += began.elapsed().as_secs_f64();
        Ok((step.loss * config.weight, step.tokens, set.ids(&batch.queries)))
    }
}

fn pair_key(set: &DataSet, query: usize, document: usize) -> Key {
    key(&[&set.data.queries[query].text, &set.contents[document]])
}

impl Task for Teaching<'_> {
    fn before_step(&mut self, step: usize) -> Result<()> {
        self.rates.step = Default::default();
        self.latent.as_mut().map_or(Ok(()), |(latent, _)| latent.before_step(step))
    }

    fn micro_batch(&mut self, step: usize, micro: usize) -> Result<MicroBatch> {
        let index = step * self.config.accumulate + micro;
        let mut parts = Metrics::new();
        let (latent, latent_tokens, ids) = self.learn_latents(index, &mut parts)?;
        if !self.config.judgement {
            return Ok(MicroBatch { loss: Tensor::from(latent), parts, tokens: latent_tokens, ids });
        }
        self.rates.judging = Some(Instant::now());
        let (set, pairs) = self.pairs(index);
        let documents: Vec<&str> =
            pairs.documents.iter().map(|place| set.contents[*place].as_str()).collect();
        let queries: Vec<&str> = pairs.queries.iter().map(|query| set.training_query(*query)).collect();
        let prompter = &self.teacher.prompter;
        let [firsts, seconds] = prompter.in_order(&documents, &queries);
        let continuations =
            seconds.iter().map(|text| prompter.continuation(text)).collect::<Result<Vec<_>, _>>()?;
        let (mut rows, mut follow, mut relevant) = (Vec::new(), Vec::new(), Vec::new());
        for (query, place) in pairs.queries.iter().enumerate() {
            for (document, of_document) in pairs.documents.iter().enumerate() {
                let [first, second] = prompter.in_order(document, query);
                rows.push(first as i64);
                follow.push(continuations[second].as_slice());
                relevant.push(i64::from(set.train.relevant[*place].contains(of_document)));
            }
        }
        let of_pairs = models::torch::Pairs { first: &rows, continuations: &follow };
        let mut pass = self.teacher.training_pass(firsts, &of_pairs, self.config.checkpointing)?;
        self.recompute = pass.way_back();
        let hidden = &pass.hidden;
        let device = self.teacher.device();
        let positive = Tensor::from_slice(&relevant).to_device(device);
        let scores = self.teacher.score(hidden)?;
        let (name, mut loss) = match self.reference_scores(set, &pairs)? {
            Some(reference) => {
                let config = &self.config;
                ("dpo", dpo(&scores, &reference, &positive, config.beta, config.label_smoothing)?)
            }
            None => {
                let [yes, no] = self.teacher.choice_ids();
                let targets: Vec<i64> = relevant.iter().map(|r| if *r == 1 { yes } else { no }).collect();
                let targets = Tensor::from_slice(&targets).to_device(device);
                ("choice", choice_cross_entropy(&self.teacher.decoder.logits(hidden), &targets, &positive)?)
            }
        };
        parts.insert(name.to_owned(), loss.double_value(&[]));
        if self.config.listwise_weight > 0.0 && pairs.documents.len() > 1 {
            let shape = [pairs.queries.len() as i64, pairs.documents.len() as i64];
            let listwise = contrastive(&scores.reshape(shape), &positive.reshape(shape))?;
            parts.insert("listwise".into(), listwise.double_value(&[]));
            loss += listwise * self.config.listwise_weight;
        }
        parts.insert("padding".into(), 1.0 - pass.tokens as f64 / pass.computed as f64);
        self.rates.step[0].0 += pass.tokens;
        Ok(MicroBatch {
            loss: loss + latent,
            parts,
            tokens: pass.tokens + latent_tokens,
            ids: set.ids(&pairs.queries),
        })
    }

    fn after_backward(&mut self) -> Result<()> {
        // The queries' pass first: the documents' gradient comes from it.
        self.recompute.drain(..).rev().for_each(Recompute::backward);
        if let Some(began) = self.rates.judging.take() {
            self.rates.step[0].1 += began.elapsed().as_secs_f64();
        }
        Ok(())
    }

    fn rates(&self) -> Metrics {
        // One part alone has the rate of the whole step.
        if !self.config.judgement || self.latent.is_none() {
            return Metrics::new();
        }
        let rates = RATES.iter().zip(self.rates.step);
        rates
            .map(|(name, (tokens, seconds))| ((*name).to_owned(), tokens as f64 / seconds.max(1e-9)))
            .collect()
    }

    fn save(&self) -> Result<serde_json::Value> {
        self.latent.as_ref().map_or(Ok(serde_json::Value::Null), |(latent, _)| latent.save())
    }

    fn restore(&mut self, state: &serde_json::Value) -> Result<()> {
        self.latent.as_mut().map_or(Ok(()), |(latent, _)| latent.restore(state))
    }

    fn evaluate(&mut self) -> Result<Metrics> {
        let mut metrics = Metrics::new();
        if let Some((latent, _)) = &self.latent {
            let of_latents = latent.evaluate(self.config.dev_queries, self.config.dev_candidates)?;
            if !self.config.judgement {
                return Ok(of_latents);
            }
            metrics.extend(of_latents.into_iter().map(|(name, value)| (format!("latent {name}"), value)));
        }
        let splits: usize = self.sets.sets.iter().map(|set| set.dev.len()).sum();
        for set in &self.sets.sets {
            for (_, qrels) in &set.dev {
                let run = dev_run(self.teacher, set, qrels, &self.config, self.ranks)?;
                for (name, value) in measure(&run, qrels) {
                    *metrics.entry(name).or_default() += value / splits as f64;
                }
            }
        }
        Ok(metrics)
    }
}

/// Ranks the dev queries' candidates; which ones depends on the seed alone.
fn dev_run(
    teacher: &Reranker,
    set: &DataSet,
    qrels: &Qrels,
    config: &TeachingConfig,
    ranks: &Ranks,
) -> Result<Run> {
    let (data, mut rng) = (&set.data, rng(config.seed, "dev", 0));
    let all: Vec<usize> = (0..data.documents.len()).collect();
    let mut ids: Vec<&String> = qrels.keys().collect();
    if config.dev_queries > 0 && config.dev_queries < ids.len() {
        ids.shuffle(&mut rng);
        ids.truncate(config.dev_queries);
    }
    let mut pairs = Vec::new();
    for id in ids {
        let mut candidates: BTreeSet<usize> =
            qrels[id].keys().filter_map(|d| data.document_index.get(d).copied()).collect();
        let more = match config.dev_candidates {
            0 => data.documents.len(),
            n => n.saturating_sub(candidates.len()),
        };
        candidates.extend(draw(&all, more, &candidates, &mut rng));
        pairs.extend(candidates.into_iter().map(|document| (data.query_index[id], document)));
    }
    let texts = Texts { queries: &set.query_texts(), documents: &set.document_texts() };
    let mut run = Run::default();
    score_pairs_on(ranks, teacher, &texts, &pairs, false, |scored| {
        for pair in scored {
            run.add(&data.queries[pair.query].id, &data.documents[pair.document].id, pair.score);
        }
        Ok(())
    })?;
    Ok(run)
}
