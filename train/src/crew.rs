//! `train distill` on many processes: process 0 runs the command, the others lend it their hands. What takes an LLM's time,
//! latents of texts and the teacher's scores of pairs, is divided over all; the predictor, which takes milliseconds a step
//! from cached latents, learns in process 0 alone while the others wait. So caches, records and state are one process's.

use crate::data_sets::DataSets;
use crate::device::tokens_per_pass;
use crate::features::encode_rows;
use crate::ranks::{Ranks, Row};
use crate::scoring::{ScoredPair, Texts, score_pairs_on};
use anyhow::Result;
use models::prompt::Encoded;
use models::torch::{Adapters, EncoderConfig, Reranker, length_buckets};
use serde::{Deserialize, Serialize};

/// What process 0 asks of all.
#[derive(Serialize, Deserialize)]
enum Work {
    /// Nothing yet: a sign of life.
    Wait,
    /// Latents of these passes: token ids, and where the text is in them.
    Encode(Vec<(Vec<u32>, usize, usize)>),
    /// The teacher's scores of these pairs of a data set, with hidden states if asked for.
    Score { set: usize, pairs: Vec<(usize, usize)>, hidden: bool },
    /// All is done.
    Leave,
}

/// All processes of a distillation, as process 0 sees them; alone, it does everything itself.
pub struct Crew<'a> {
    ranks: &'a Ranks,
    teacher: &'a Reranker,
    sets: &'a DataSets,
    encoder: EncoderConfig,
}

impl<'a> Crew<'a> {
    /// The same in all processes.
    pub fn new(ranks: &'a Ranks, teacher: &'a Reranker, sets: &'a DataSets, encoder: EncoderConfig) -> Self {
        Self { ranks, teacher, sets, encoder }
    }

    /// Latents of a frozen LLM, row by row (see [`encode_rows`]).
    pub fn encode(&self, passes: &[Encoded]) -> Result<Vec<Vec<f32>>> {
        let plain = |pass: &Encoded| (pass.ids.clone(), pass.text.start, pass.text.end);
        self.tell(|| Work::Encode(passes.iter().map(plain).collect()))?;
        self.encoded(passes)
    }

    /// The teacher's scores of pairs of (query, document) places in data set `set`; `done` gets them in parts.
    pub fn score(
        &self,
        set: usize,
        pairs: &[(usize, usize)],
        hidden: bool,
        done: impl FnMut(Vec<ScoredPair>) -> Result<()>,
    ) -> Result<()> {
        self.tell(|| Work::Score { set, pairs: pairs.to_vec(), hidden })?;
        self.scored(set, pairs, hidden, done)
    }

    /// Before each step: those who wait see that the run goes on.
    pub fn wait(&self) -> Result<()> {
        self.tell(|| Work::Wait)
    }

    /// At the end.
    pub fn dismiss(&self) -> Result<()> {
        self.tell(|| Work::Leave)
    }

    /// What the other processes do: their share of all that process 0 asks for, until it is done.
    pub fn serve(&self) -> Result<()> {
        loop {
            match self.ranks.from_first("waiting for work", || Ok(Work::Wait))? {
                Work::Wait => (),
                Work::Encode(passes) => {
                    let passes =
                        passes.into_iter().map(|(ids, start, end)| Encoded { ids, text: start..end });
                    self.encoded(&passes.collect::<Vec<_>>())?;
                }
                Work::Score { set, pairs, hidden } => self.scored(set, &pairs, hidden, |_| Ok(()))?,
                Work::Leave => return Ok(()),
            }
        }
    }

    fn tell(&self, work: impl FnOnce() -> Work) -> Result<()> {
        if !self.ranks.is_alone() {
            self.ranks.from_first("giving out work", || Ok(work()))?;
        }
        Ok(())
    }

    fn encoded(&self, passes: &[Encoded]) -> Result<Vec<Vec<f32>>> {
        let lengths: Vec<usize> = passes.iter().map(|pass| pass.ids.len()).collect();
        let buckets = length_buckets(&lengths, tokens_per_pass(self.teacher.device()));
        let rows = self.ranks.divided("latents", buckets.len(), |bucket| {
            let bucket = &buckets[bucket];
            let passes: Vec<Encoded> = bucket.iter().map(|i| passes[*i].clone()).collect();
            let vectors = encode_rows(&self.teacher.decoder, &self.encoder, &passes, Adapters::Off)?;
            Ok(bucket.iter().zip(vectors).map(|(i, values)| Row { of: [*i as u64, 0], values }).collect())
        })?;
        let mut vectors = vec![Vec::new(); passes.len()];
        for row in rows {
            if let Some(vector) = vectors.get_mut(row.of[0] as usize) {
                *vector = row.values;
            }
        }
        Ok(vectors)
    }

    fn scored(
        &self,
        set: usize,
        pairs: &[(usize, usize)],
        hidden: bool,
        done: impl FnMut(Vec<ScoredPair>) -> Result<()>,
    ) -> Result<()> {
        let set = &self.sets.sets[set];
        let texts = Texts { queries: &set.query_texts(), documents: &set.document_texts() };
        score_pairs_on(self.ranks, self.teacher, &texts, pairs, hidden, done)
    }
}
