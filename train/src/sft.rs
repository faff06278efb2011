//! Supervised fine-tuning of the teacher (RaHoRe, arXiv 2412.16615): cross-entropy on the choice token over positives and
//! negatives, and a listwise term over one query's candidates.
//!
//! A batch is some queries and some documents (one positive of each query, and negatives); all pairs are scored, each
//! document is read once, and gradients flow through its keys and values.

use crate::evaluation::{Run, measure};
use crate::fit::{Metrics, MicroBatch, Task};
use crate::losses::{choice_cross_entropy, contrastive};
use crate::sampling::{TrainingSet, batch_at, draw, rng};
use crate::scoring::{Texts, score_pairs};
use anyhow::Result;
use models::beir::{BeirData, Qrels};
use models::torch::Reranker;
use rand::seq::{IndexedRandom, SliceRandom};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use tch::Tensor;

/// Settings of the fine-tuning.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SftConfig {
    /// Queries per micro-batch.
    pub queries: usize,
    /// Documents per micro-batch, the queries' positives among them.
    pub documents: usize,
    /// Weight of the listwise term.
    pub listwise_weight: f64,
    /// Dev queries judged at each evaluation; 0 = all.
    pub dev_queries: usize,
    /// Documents ranked for each dev query: the relevant ones and random others; 0 = all.
    pub dev_candidates: usize,
    /// Micro-batches per step.
    pub accumulate: usize,
    /// Seed of everything random.
    pub seed: u64,
}

/// The task of [`crate::fit::fit`].
pub struct Sft<'a> {
    teacher: &'a Reranker,
    data: &'a BeirData,
    train: TrainingSet,
    dev: Vec<&'a Qrels>,
    lengths: Vec<usize>,
    contents: Vec<String>,
    config: SftConfig,
}

impl<'a> Sft<'a> {
    /// Joins model and data.
    pub fn new(
        teacher: &'a Reranker,
        data: &'a BeirData,
        train: TrainingSet,
        dev: Vec<&'a Qrels>,
        config: SftConfig,
    ) -> Self {
        let lengths = train.queries.iter().map(|query| data.queries[*query].text.len()).collect();
        let contents = data.documents.iter().map(models::beir::Document::contents).collect();
        Self { teacher, data, train, dev, lengths, contents, config }
    }

    /// One positive of each query, filled up with documents drawn from the training documents.
    fn documents_for(&self, batch: &[usize], index: usize) -> Vec<usize> {
        let mut rng = rng(self.config.seed, "documents", index as u64);
        let mut chosen = BTreeSet::new();
        for query in batch {
            let positives: Vec<usize> = self.train.relevant[*query].iter().copied().collect();
            chosen.extend(positives.choose(&mut rng));
        }
        let missing = self.config.documents.saturating_sub(chosen.len());
        chosen.extend(draw(&self.train.documents, missing, &chosen, &mut rng));
        chosen.into_iter().collect()
    }
}

impl Task for Sft<'_> {
    fn micro_batch(&mut self, step: usize, micro: usize) -> Result<MicroBatch> {
        let index = step * self.config.accumulate + micro;
        let batch = batch_at(&self.lengths, self.config.queries, self.config.seed, index);
        let documents = self.documents_for(&batch, index);
        let contents: Vec<&str> = documents.iter().map(|place| self.contents[*place].as_str()).collect();
        let caches = self.teacher.read_documents(&contents, true)?;
        let mut tokens = caches.lengths().iter().sum::<i64>() as usize;
        let (mut rows, mut continuations, mut relevant) = (Vec::new(), Vec::new(), Vec::new());
        for query in &batch {
            let text = &self.data.queries[self.train.queries[*query]].text;
            let continuation = self.teacher.prompter.continuation(text)?;
            tokens += continuation.len() * documents.len();
            for (row, document) in documents.iter().enumerate() {
                rows.push(row as i64);
                continuations.push(continuation.clone());
                relevant.push(i64::from(self.train.relevant[*query].contains(document)));
            }
        }
        let hidden = self.teacher.hidden(&caches.select(&rows)?, &continuations, true)?;
        let [positive, negative] = self.teacher.choice_ids();
        let targets: Vec<i64> = relevant.iter().map(|r| if *r == 1 { positive } else { negative }).collect();
        let device = self.teacher.device();
        let relevant = Tensor::from_slice(&relevant).to_device(device);
        let logits = self.teacher.decoder.logits(&hidden);
        let choice =
            choice_cross_entropy(&logits, &Tensor::from_slice(&targets).to_device(device), &relevant)?;
        let mut parts = Metrics::from([("choice".to_owned(), choice.double_value(&[]))]);
        let mut loss = choice;
        if self.config.listwise_weight > 0.0 && documents.len() > 1 {
            let shape = [batch.len() as i64, documents.len() as i64];
            let scores = self.teacher.score(&hidden)?.reshape(shape);
            let listwise = contrastive(&scores, &relevant.reshape(shape))?;
            parts.insert("listwise".into(), listwise.double_value(&[]));
            loss += listwise * self.config.listwise_weight;
        }
        let ids =
            batch.iter().map(|query| self.data.queries[self.train.queries[*query]].id.clone()).collect();
        Ok(MicroBatch { loss, parts, tokens, ids })
    }

    fn evaluate(&mut self) -> Result<Metrics> {
        let mut metrics = Metrics::new();
        for qrels in &self.dev {
            let run = dev_run(self.teacher, self.data, qrels, &self.config)?;
            for (name, value) in measure(&run, qrels) {
                *metrics.entry(name).or_default() += value / self.dev.len() as f64;
            }
        }
        Ok(metrics)
    }
}

/// Ranks the dev queries' candidates; which ones depends on the seed alone.
fn dev_run(teacher: &Reranker, data: &BeirData, qrels: &Qrels, config: &SftConfig) -> Result<Run> {
    let mut rng = rng(config.seed, "dev", 0);
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
    let queries: Vec<&str> = data.queries.iter().map(|query| query.text.as_str()).collect();
    let contents: Vec<String> = data.documents.iter().map(models::beir::Document::contents).collect();
    let documents: Vec<&str> = contents.iter().map(String::as_str).collect();
    let mut run = Run::default();
    score_pairs(teacher, &Texts { queries: &queries, documents: &documents }, &pairs, false, |scored| {
        for pair in scored {
            run.add(&data.queries[pair.query].id, &data.documents[pair.document].id, pair.score);
        }
        Ok(())
    })?;
    Ok(run)
}
