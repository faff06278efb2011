//! The teacher: an LLM asked a binary-choice question about one document and one query (RaHoRe, arXiv 2412.16615).
//!
//! `h(q|d) = f([prefix][d][q][instruction][answer])[last]`, `s(q, d) = log p(T) - log p(F) = (W_T - W_F) . h(q|d)`.
//! The document part is read once and its keys and values serve every query.

use super::batch::Batch;
use super::{Decoder, DecoderError, ForwardInput, KvCache, LoraConfig};
use crate::prompt::{PromptError, Prompter};
use std::path::Path;
use tch::{Device, Kind, Tensor, nn};

/// A reranker that cannot be opened or run.
#[derive(Debug, thiserror::Error)]
pub enum RerankerError {
    /// The prompt or a text is refused.
    #[error(transparent)]
    Prompt(#[from] PromptError),
    /// The model is refused.
    #[error(transparent)]
    Decoder(#[from] DecoderError),
    /// The tokenizer makes ids the model has no embedding for.
    #[error(
        "{dir}: the tokenizer has token id {found}, the model's vocabulary ends at {vocab_size}; tokenizer.json belongs to another model"
    )]
    Tokenizer {
        /// The model directory.
        dir: String,
        /// Highest token id.
        found: usize,
        /// Embedding rows.
        vocab_size: usize,
    },
}

/// How a model is opened.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// Where it runs.
    pub device: Device,
    /// What its blocks compute in; parameters stay f32.
    pub compute: Kind,
    /// Adapters to train; none trains all weights.
    pub lora: Option<LoraConfig>,
}

/// A language model with its prompt.
#[derive(Debug)]
pub struct Reranker {
    vs: nn::VarStore,
    /// The model.
    pub decoder: Decoder,
    /// The prompt.
    pub prompter: Prompter,
    choices: [i64; 2],
}

impl Reranker {
    /// Opens a model directory (import, teacher or student).
    pub fn open(dir: &Path, options: &OpenOptions) -> Result<Self, RerankerError> {
        let prompter = Prompter::open(dir)?;
        let vs = nn::VarStore::new(options.device);
        let mut decoder = Decoder::open(&vs.root(), dir, options.lora.as_ref())?;
        let (found, vocab_size) = (prompter.highest_token_id(), decoder.config().vocab_size);
        if found >= vocab_size {
            return Err(RerankerError::Tokenizer { dir: dir.display().to_string(), found, vocab_size });
        }
        decoder.set_compute_kind((options.compute != Kind::Float).then_some(options.compute));
        let choices = prompter.choices().map(i64::from);
        Ok(Self { vs, decoder, prompter, choices })
    }

    /// Where it runs.
    pub fn device(&self) -> Device {
        self.vs.device()
    }

    /// Trainable tensors by checkpoint name (the adapters, or everything).
    pub fn parameters(&self) -> Vec<(String, Tensor)> {
        let mut all: Vec<_> = self.vs.variables().into_iter().filter(|(_, t)| t.requires_grad()).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }

    /// Token ids of the choices, positive first.
    pub fn choice_ids(&self) -> [i64; 2] {
        self.choices
    }

    /// Rows of the head for the choices `[2, H]`, f32, positive first.
    pub fn choice_weight(&self) -> Result<Tensor, DecoderError> {
        Ok(self.decoder.choice_rows(&self.choices)?.to_kind(Kind::Float))
    }

    /// Keys and values of `[prefix][document]` for each document, one padded batch.
    pub fn read_documents<S: AsRef<str>>(&self, texts: &[S], train: bool) -> Result<KvCache, RerankerError> {
        let passes = texts.iter().map(|text| Ok(self.prompter.document_pass(text.as_ref())?.ids));
        let batch = Batch::new(&passes.collect::<Result<Vec<_>, PromptError>>()?, self.device());
        let hidden = self.decoder.forward(ForwardInput {
            attention_mask: batch.attention_mask.as_ref(),
            want_cache: true,
            train,
            ..ForwardInput::new(&batch.input_ids)
        })?;
        Ok(hidden.cache.ok_or(DecoderError::PastLayers {
            found: 0,
            expected: self.decoder.config().num_hidden_layers,
        })?)
    }

    /// h(q|d), f32 `[rows, H]`: row i of `past` continued by `continuations[i]` (see [`Prompter::continuation`]).
    pub fn hidden<R: AsRef<[u32]>>(
        &self,
        past: &KvCache,
        continuations: &[R],
        train: bool,
    ) -> Result<Tensor, DecoderError> {
        let batch = Batch::new(continuations, self.device());
        let hidden = self.decoder.forward(ForwardInput {
            attention_mask: batch.attention_mask.as_ref(),
            past: Some(past),
            train,
            ..ForwardInput::new(&batch.input_ids)
        })?;
        Ok(batch.last_of(hidden.last()?).to_kind(Kind::Float))
    }

    /// h(q|d), f32 `[1, H]`, from the whole prompt in one pass, no cache: the reference that cached scores are held to.
    pub fn hidden_uncached(&self, document: &str, query: &str) -> Result<Tensor, RerankerError> {
        let batch = Batch::new(&[self.prompter.pair(document, query)?], self.device());
        let hidden = self.decoder.forward(ForwardInput::new(&batch.input_ids))?;
        Ok(batch.last_of(hidden.last()?).to_kind(Kind::Float))
    }

    /// `log p(T) - log p(F)` of hidden states `[.., H]`.
    pub fn score(&self, hidden: &Tensor) -> Result<Tensor, DecoderError> {
        let rows = self.choice_weight()?;
        Ok(hidden.matmul(&(rows.get(0) - rows.get(1))))
    }
}
