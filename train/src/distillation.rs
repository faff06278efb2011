//! Distillation (Rabtriever, arXiv 2604.23336): the predictor learns to rebuild the teacher's h(q|d) from latents of a
//! frozen LLM.
//!
//! Every training query takes part in the supervised contrastive term (its latents are cached: a few microseconds);
//! as many as the budget allows also have teacher targets: JEPA distance to h(q|d), reverse KL on the logits, listwise
//! reverse KL over their candidates. Candidates are on-policy: drawn from the student's own current ranking.

use crate::cache::{VectorCache, key};
use crate::evaluation::{Run, measure};
use crate::features::{Features, bar};
use crate::fit::{Metrics, MicroBatch, Task, read_tensor};
use crate::losses::{JepaDistance, KlOver, contrastive, jepa, listwise_reverse_kl, reverse_kl};
use crate::sampling::{TrainingSet, batch_at, draw, draw_by_score, rng};
use crate::scoring::{Texts, rows_of, score_pairs};
use anyhow::{Context, Result, bail};
use models::beir::{BeirData, Qrels};
use models::torch::predictor::{QuerySide, Standardised};
use models::torch::{Predictor, Reranker};
use models::weights::Weights;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use tch::{Kind, Tensor};

/// Settings of the distillation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DistillConfig {
    /// Queries per step.
    pub queries: usize,
    /// Most documents that a query is scored against in the supervised term; in a larger corpus the batch's relevant
    /// documents and random others.
    pub documents: usize,
    /// Queries that get teacher targets.
    pub target_queries: usize,
    /// Candidates per target query, gold among them.
    pub candidates: usize,
    /// Share of the candidates drawn uniformly (exploration).
    pub uniform: f64,
    /// Temperature of the student's ranking when candidates are drawn.
    pub sampling_temperature: f64,
    /// Rounds in which targets are made, spread over the run; each with the student of that moment.
    pub rounds: usize,
    /// Weight of the JEPA distance.
    pub jepa_weight: f64,
    /// Which distance.
    pub jepa_distance: JepaDistance,
    /// Weight of the reverse KL on logits.
    pub reverse_kl_weight: f64,
    /// Over which logits.
    pub reverse_kl_over: KlOver,
    /// Weight of the listwise reverse KL.
    pub listwise_weight: f64,
    /// Temperature of both softmaxes in it.
    pub listwise_temperature: f64,
    /// Weight of the supervised contrastive term.
    pub supervised_weight: f64,
    /// Weight of the squared distance of the gated form's maps from where they started.
    pub start_weight: f64,
    /// Steps.
    pub steps: usize,
    /// Seed of everything random.
    pub seed: u64,
}

/// One side's texts and standardised latents.
struct Side {
    latents: Standardised,
    answer: Option<Tensor>,
}

/// A dev split: its queries' latents and judgements.
pub struct DevSplit<'a> {
    qrels: &'a Qrels,
    ids: Vec<&'a str>,
    side: Side,
}

/// The task of [`crate::fit::fit`].
pub struct Distillation<'a> {
    teacher: &'a Reranker,
    data: &'a BeirData,
    contents: &'a [String],
    train: TrainingSet,
    queries: Side,
    /// All documents of the corpus.
    documents: Side,
    dev: Vec<DevSplit<'a>>,
    predictor: Predictor,
    targets: VectorCache,
    /// Training query (place in `train.queries`) to its candidates (places of documents).
    candidates: BTreeMap<usize, Vec<usize>>,
    lengths: Vec<usize>,
    head: Option<Tensor>,
    config: DistillConfig,
    best: Option<Best>,
}

/// The parameters that did best on dev.
struct Best {
    value: f64,
    state: Vec<(String, Tensor)>,
}

/// Everything a distillation is made from.
pub struct Parts<'a> {
    /// The teacher; its layers and head are the student's too.
    pub teacher: &'a Reranker,
    /// Data set.
    pub data: &'a BeirData,
    /// What is encoded of each document.
    pub contents: &'a [String],
    /// Training queries and documents.
    pub train: TrainingSet,
    /// Latents of the training queries, in the order of `train.queries`.
    pub queries: Features,
    /// Latents of the whole corpus.
    pub documents: Features,
    /// Dev splits: judgements, latents of the judged queries in their order.
    pub dev: Vec<(&'a Qrels, Features)>,
    /// Fresh predictor.
    pub predictor: Predictor,
    /// Teacher's score and h(q|d) of pairs seen before.
    pub targets: VectorCache,
}

impl<'a> Distillation<'a> {
    /// Joins the parts.
    pub fn new(parts: Parts<'a>, config: DistillConfig) -> Self {
        let Parts { teacher, data, contents, train, queries, documents, dev, predictor, targets } = parts;
        let side = |features: Features, documents: bool| {
            let statistics = if documents { &predictor.document } else { &predictor.query };
            Side { latents: statistics.apply(&features.latent), answer: features.answer }
        };
        let dev = dev.into_iter().map(|(qrels, features)| DevSplit {
            qrels,
            ids: qrels.keys().map(String::as_str).collect(),
            side: side(features, false),
        });
        let dev = dev.collect();
        let (queries, documents) = (side(queries, false), side(documents, true));
        // Latents have one size: batches need no sorting by length.
        let lengths = vec![1; train.queries.len()];
        let vocabulary = config.reverse_kl_weight > 0.0 && config.reverse_kl_over == KlOver::Vocabulary;
        let head = vocabulary.then(|| {
            let hidden = teacher.decoder.config().hidden_size as i64;
            // Logits of the unit vectors are the head's columns.
            let identity = Tensor::eye(hidden, (Kind::Float, teacher.device()));
            tch::no_grad(|| teacher.decoder.logits(&identity))
        });
        let candidates = BTreeMap::new();
        Self {
            teacher,
            data,
            contents,
            train,
            queries,
            documents,
            dev,
            predictor,
            targets,
            candidates,
            lengths,
            head,
            config,
            best: None,
        }
    }

    /// Puts the parameters that did best on dev back, documents equalised.
    pub fn with_best(mut self) -> Self {
        if let Some(best) = &self.best {
            tch::no_grad(|| {
                for ((_, parameter), (_, saved)) in self.predictor.parameters().iter_mut().zip(&best.state) {
                    parameter.copy_(saved);
                }
            });
        }
        self.equalise();
        self
    }

    /// See [`Predictor::equalise_documents`].
    fn equalise(&mut self) {
        let device = self.teacher.device();
        let rows: Vec<i64> = self.train.documents.iter().map(|place| *place as i64).collect();
        let documents =
            self.documents.latents.0.index_select(0, &Tensor::from_slice(&rows).to_device(device));
        self.predictor.equalise_documents(&self.queries.latents, &Standardised(documents));
    }

    /// The predictor as it stands.
    pub fn into_predictor(self) -> Predictor {
        self.predictor
    }

    /// Number of pairs that have teacher targets.
    pub fn target_pairs(&self) -> usize {
        self.candidates.values().map(Vec::len).sum()
    }

    /// Scores of queries (rows of `side`) against all documents of the corpus, `[n, documents]`.
    fn rank_all(&self, side: &Side) -> Tensor {
        tch::no_grad(|| {
            let documents = self.predictor.document_side(&self.documents.latents, false);
            let n = side.latents.0.size()[0];
            // The relu form holds [queries, documents, m] at once: cut it.
            let rows = (8_000_000 / documents.numel().max(1) as i64).clamp(1, 256);
            let parts: Vec<Tensor> = (0..n)
                .step_by(rows as usize)
                .map(|start| {
                    let some =
                        Tensor::arange_start(start, (start + rows).min(n), (Kind::Int64, documents.device()));
                    self.predictor.score(&self.query_side(side, &some, false), &documents)
                })
                .collect();
            Tensor::cat(&parts, 0)
        })
    }

    fn query_side(&self, side: &Side, places: &Tensor, train: bool) -> QuerySide {
        let latents = Standardised(side.latents.0.index_select(0, places));
        let answer = side.answer.as_ref().map(|answer| answer.index_select(0, places));
        self.predictor.query_side(&latents, answer.as_ref(), train)
    }

    /// Documents that a batch is contrasted with: all, or the batch's relevant ones and random others.
    fn documents_for(&self, batch: &[usize], step: usize) -> Vec<usize> {
        if self.train.documents.len() <= self.config.documents {
            return self.train.documents.clone();
        }
        let mut chosen: BTreeSet<usize> =
            batch.iter().flat_map(|q| self.train.relevant[*q].iter().copied()).collect();
        let missing = self.config.documents.saturating_sub(chosen.len());
        let mut rng = rng(self.config.seed, "documents", step as u64);
        chosen.extend(draw(&self.train.documents, missing, &chosen, &mut rng));
        chosen.into_iter().collect()
    }

    /// Draws candidates for this round's queries and has the teacher score those it has not scored before.
    fn make_targets(&mut self, round: usize) -> Result<()> {
        let n = self.train.queries.len().min(self.config.target_queries);
        let mut order: Vec<usize> = (0..self.train.queries.len()).collect();
        order.shuffle(&mut rng(self.config.seed, "target queries", 0));
        let (from, to) = (n * round / self.config.rounds, n * (round + 1) / self.config.rounds);
        let chosen = &order[from..to];
        if chosen.is_empty() {
            return Ok(());
        }
        let places: Vec<i64> = chosen.iter().map(|q| *q as i64).collect();
        let rows = Tensor::from_slice(&places).to_device(self.teacher.device());
        let side = Side {
            latents: Standardised(self.queries.latents.0.index_select(0, &rows)),
            answer: self.queries.answer.as_ref().map(|answer| answer.index_select(0, &rows)),
        };
        self.equalise();
        let scores = rows_of(&self.rank_all(&side));
        self.predictor.forget_equalising();
        let scores = scores?;
        for (query, scores) in chosen.iter().zip(scores) {
            let mut rng = rng(self.config.seed, "candidates", *query as u64);
            let candidates = self.draw_candidates(*query, &scores, &mut rng);
            self.candidates.insert(*query, candidates);
        }
        self.score_missing()
    }

    fn draw_candidates(&self, query: usize, scores: &[f32], rng: &mut rand_chacha::ChaCha8Rng) -> Vec<usize> {
        let wanted = self.config.candidates.min(self.train.documents.len());
        let gold: Vec<usize> = self.train.relevant[query].iter().copied().collect();
        let mut chosen: BTreeSet<usize> = gold.into_iter().take(wanted.saturating_sub(1).max(1)).collect();
        let uniform = ((wanted - chosen.len().min(wanted)) as f64 * self.config.uniform).round() as usize;
        chosen.extend(draw(&self.train.documents, uniform, &chosen, rng));
        let on_policy: Vec<f32> = self.train.documents.iter().map(|place| scores[*place]).collect();
        let place_of = |document: &usize| self.train.documents.binary_search(document).ok();
        let excluded: BTreeSet<usize> = chosen.iter().filter_map(place_of).collect();
        let missing = wanted.saturating_sub(chosen.len());
        let drawn = draw_by_score(&on_policy, self.config.sampling_temperature, missing, &excluded, rng);
        chosen.extend(drawn.into_iter().map(|place| self.train.documents[place]));
        chosen.into_iter().collect()
    }

    fn score_missing(&mut self) -> Result<()> {
        let pairs: Vec<(usize, usize)> = self
            .candidates
            .iter()
            .flat_map(|(query, documents)| documents.iter().map(|d| (self.train.queries[*query], *d)))
            .filter(|(query, document)| !self.targets.contains(&self.pair_key(*query, *document)))
            .collect();
        let queries: Vec<&str> = self.data.queries.iter().map(|query| query.text.as_str()).collect();
        let documents: Vec<&str> = self.contents.iter().map(String::as_str).collect();
        let bar = bar(pairs.len(), "teacher targets");
        let (data, contents, targets) = (self.data, self.contents, &mut self.targets);
        score_pairs(
            self.teacher,
            &Texts { queries: &queries, documents: &documents },
            &pairs,
            true,
            |scored| {
                bar.inc(scored.len() as u64);
                for pair in scored {
                    let mut record = pair.hidden.unwrap_or_default();
                    record.push(pair.score);
                    targets
                        .insert(key(&[&data.queries[pair.query].text, &contents[pair.document]]), &record)?;
                }
                Ok(())
            },
        )?;
        bar.finish_and_clear();
        self.targets.flush()
    }

    fn pair_key(&self, query: usize, document: usize) -> crate::cache::Key {
        key(&[&self.data.queries[query].text, &self.contents[document]])
    }

    /// h(q|d) `[n, K, H]` and scores `[n, K]` of some training queries' candidates.
    fn read_targets(&mut self, queries: &[usize]) -> Result<(Tensor, Tensor)> {
        let mut flat = Vec::new();
        let mut width = 0;
        for query in queries {
            let documents = self.candidates.get(query).cloned().unwrap_or_default();
            width = documents.len() as i64;
            for document in documents {
                let key = self.pair_key(self.train.queries[*query], document);
                flat.extend(self.targets.get(&key)?.context("a teacher target vanished from the cache")?);
            }
        }
        let all = Tensor::from_slice(&flat)
            .reshape([queries.len() as i64, width, -1])
            .to_device(self.teacher.device());
        let hidden = all.size()[2] - 1;
        Ok((all.narrow(2, 0, hidden), all.select(2, hidden)))
    }

    /// JEPA, reverse KL and listwise reverse KL of the batch's queries that have targets.
    fn teacher_terms(
        &mut self,
        batch: &[usize],
        side: &QuerySide,
        parts: &mut Metrics,
    ) -> Result<Option<Tensor>> {
        let with: Vec<usize> =
            (0..batch.len()).filter(|i| self.candidates.contains_key(&batch[*i])).collect();
        if with.is_empty() {
            return Ok(None);
        }
        let queries: Vec<usize> = with.iter().map(|i| batch[*i]).collect();
        let (teacher_hidden, teacher_scores) = self.read_targets(&queries)?;
        let device = self.teacher.device();
        let rows: Vec<i64> = with.iter().map(|i| *i as i64).collect();
        let side = side.select(&Tensor::from_slice(&rows).to_device(device));
        let documents: Vec<i64> =
            queries.iter().flat_map(|q| &self.candidates[q]).map(|d| *d as i64).collect();
        let latents =
            self.documents.latents.0.index_select(0, &Tensor::from_slice(&documents).to_device(device));
        let inner = self.predictor.document_side(&Standardised(latents), true);
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
        if config.reverse_kl_weight > 0.0 {
            let loss = match &self.head {
                Some(head) => reverse_kl(&predicted.matmul(head), &teacher_hidden.matmul(head))?,
                None => reverse_kl(&student_logits, &teacher_hidden.matmul(&self.predictor.choice().tr()))?,
            };
            add("reverse_kl", config.reverse_kl_weight, loss);
        }
        if config.listwise_weight > 0.0 {
            let loss = listwise_reverse_kl(&student_scores, &teacher_scores, config.listwise_temperature)?;
            add("listwise", config.listwise_weight, loss);
        }
        Ok(Some(total))
    }

    /// Scores less c(q), and relevance, of all dev pairs, for calibration.
    pub fn dev_pairs(&self) -> Result<Vec<(f32, bool)>> {
        let mut pairs = Vec::new();
        for split in &self.dev {
            let all = Tensor::arange(split.ids.len() as i64, (Kind::Int64, self.teacher.device()));
            let side = self.query_side(&split.side, &all, false);
            let constants = tch::no_grad(|| side.constant(self.predictor.choice()));
            let constants = Vec::<f32>::try_from(constants.to_device(tch::Device::Cpu))?;
            let scores = rows_of(&self.rank_all(&split.side))?;
            for ((id, scores), constant) in split.ids.iter().zip(scores).zip(constants) {
                for (document, score) in self.data.documents.iter().zip(scores) {
                    let relevant = split.qrels[*id].get(&document.id).is_some_and(|gain| *gain > 0);
                    pairs.push((score - constant, relevant));
                }
            }
        }
        Ok(pairs)
    }

    /// Metrics of each dev split.
    pub fn dev_metrics(&self) -> Result<Vec<Metrics>> {
        self.dev
            .iter()
            .map(|split| {
                let mut run = Run::default();
                for (id, scores) in split.ids.iter().zip(rows_of(&self.rank_all(&split.side))?) {
                    for (document, score) in self.data.documents.iter().zip(scores) {
                        run.add(id, &document.id, score);
                    }
                }
                Ok(measure(&run, split.qrels))
            })
            .collect()
    }
}

impl Task for Distillation<'_> {
    fn before_step(&mut self, step: usize) -> Result<()> {
        // Round r starts after its share of the run: the first meets a student that already ranks a little.
        let round = (0..self.config.rounds)
            .find(|round| self.config.steps * (round + 1) / (self.config.rounds + 2) == step);
        match round {
            Some(round) if self.config.target_queries > 0 => self.make_targets(round),
            _ => Ok(()),
        }
    }

    fn micro_batch(&mut self, step: usize, _micro: usize) -> Result<MicroBatch> {
        let batch = batch_at(&self.lengths, self.config.queries, self.config.seed, step);
        let device = self.teacher.device();
        let rows: Vec<i64> = batch.iter().map(|query| *query as i64).collect();
        let side = self.query_side(&self.queries, &Tensor::from_slice(&rows).to_device(device), true);
        let mut parts = Metrics::new();
        let mut loss = Tensor::zeros([], (Kind::Float, device));
        if self.config.supervised_weight > 0.0 {
            let documents = self.documents_for(&batch, step);
            let rows: Vec<i64> = documents.iter().map(|document| *document as i64).collect();
            let latents =
                self.documents.latents.0.index_select(0, &Tensor::from_slice(&rows).to_device(device));
            let inner = self.predictor.document_side(&Standardised(latents), true);
            let relevant: Vec<i64> = batch
                .iter()
                .flat_map(|query| {
                    let relevant = &self.train.relevant[*query];
                    documents.iter().map(|document| i64::from(relevant.contains(document)))
                })
                .collect();
            let relevant = Tensor::from_slice(&relevant)
                .reshape([batch.len() as i64, documents.len() as i64])
                .to_device(device);
            let supervised = contrastive(&self.predictor.score(&side, &inner), &relevant)?;
            parts.insert("supervised".into(), supervised.double_value(&[]));
            loss += supervised * self.config.supervised_weight;
        }
        if let Some(terms) = self.teacher_terms(&batch, &side, &mut parts)? {
            loss += terms;
        }
        if loss.requires_grad() && self.config.start_weight > 0.0 {
            loss += self.predictor.distance_from_start() * self.config.start_weight;
        }
        let ids =
            batch.iter().map(|query| self.data.queries[self.train.queries[*query]].id.clone()).collect();
        if !loss.requires_grad() {
            bail!(
                "no loss has a weight above zero on this batch; give --supervised-weight or more --target-queries"
            );
        }
        Ok(MicroBatch { loss, parts, tokens: 0, ids })
    }

    fn evaluate(&mut self) -> Result<Metrics> {
        self.equalise();
        let splits = self.dev_metrics();
        self.predictor.forget_equalising();
        let splits = splits?;
        let mut mean = Metrics::new();
        for metrics in &splits {
            for (name, value) in metrics {
                *mean.entry(name.clone()).or_default() += value / splits.len() as f64;
            }
        }
        let value = mean.get("MRR@10").copied().unwrap_or(0.0);
        if self.best.as_ref().is_none_or(|best| value > best.value) {
            let state = self.predictor.parameters().into_iter().map(|(name, t)| (name, t.detach().copy()));
            self.best = Some(Best { value, state: state.collect() });
        }
        Ok(mean)
    }

    fn save(&self) -> serde_json::Value {
        let candidates: Vec<(&usize, &Vec<usize>)> = self.candidates.iter().collect();
        let best = self.best.as_ref().map(|best| best.value);
        serde_json::json!({ "candidates": candidates, "best": best })
    }

    fn tensors(&self) -> Vec<(String, Tensor)> {
        let best = self.best.iter().flat_map(|best| &best.state);
        best.map(|(name, tensor)| (format!("best.{name}"), tensor.shallow_clone())).collect()
    }

    fn restore(&mut self, state: &serde_json::Value, tensors: &Weights) -> Result<()> {
        if let Some(value) = state["best"].as_f64() {
            let device = self.teacher.device();
            let saved = self.predictor.parameters().into_iter().map(|(name, _)| {
                let tensor = read_tensor(tensors, &format!("best.{name}"), device)?;
                Ok((name, tensor))
            });
            self.best = Some(Best { value, state: saved.collect::<Result<_>>()? });
        }
        let candidates: Vec<(usize, Vec<usize>)> =
            serde_json::from_value(state["candidates"].clone()).context("damaged state: candidates")?;
        self.candidates = candidates.into_iter().collect();
        self.score_missing()
    }
}
