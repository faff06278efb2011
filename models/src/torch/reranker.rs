//! The teacher: an LLM asked a binary-choice question about one document and one query (RaHoRe, arXiv 2412.16615).
//!
//! `h(q|d) = f([prefix][d][q][instruction][answer])[last]`, `s(q, d) = log p(T) - log p(F) = (W_T - W_F) . h(q|d)`.
//! The document part is read once and its keys and values serve every query (or the other way round, where the prompt
//! asks about the query first).

use super::batch::Batch;
use super::{Adapters, Decoder, DecoderError, ForwardInput, Hidden, KvCache, LoraConfig, Recompute};
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

/// Pairs of a training pass.
#[derive(Debug)]
pub struct Pairs<'a, R> {
    /// Place of each pair's first text (its document, see [`Prompter::order`]) among those read.
    pub first: &'a [i64],
    /// Each pair's other text and the question (see [`Prompter::continuation`]).
    pub continuations: &'a [R],
}

/// What a training pass gives.
#[derive(Debug)]
pub struct TrainingPass<'a> {
    /// h(q|d) of each pair, f32 `[pairs, H]`.
    pub hidden: Tensor,
    /// Tokens that went through the model.
    pub tokens: usize,
    /// The same with padding.
    pub computed: usize,
    recompute: Vec<Recompute<'a>>,
}

impl<'a> TrainingPass<'a> {
    /// What is left to do after the loss's `backward`; nothing without checkpointing.
    pub fn way_back(&mut self) -> Vec<Recompute<'a>> {
        std::mem::take(&mut self.recompute)
    }
}

/// A language model with its prompt.
#[derive(Debug)]
pub struct Reranker {
    vs: nn::VarStore,
    /// The model.
    pub decoder: Decoder,
    /// The prompt.
    pub prompter: Prompter,
    /// Whether its adapters take part when it judges; on from the start. Off where they are a student's, whose teacher
    /// is the base model.
    pub judging: Adapters,
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
        Ok(Self { vs, decoder, prompter, judging: Adapters::On, choices })
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

    /// No training of the layers behind the first `layers`, the norm and the head; the embeddings learn.
    pub fn freeze_above(&mut self, layers: usize) {
        self.freeze(|name| match name.strip_prefix("model.layers.") {
            Some(rest) => {
                let number = rest.split('.').next().and_then(|number| number.parse::<usize>().ok());
                number.is_none_or(|number| number >= layers)
            }
            None => !name.starts_with("model.embed_tokens."),
        });
    }

    /// No training of the token embeddings (and of the head, where it is the same matrix).
    pub fn freeze_embeddings(&mut self) {
        self.freeze(|name| name.starts_with("model.embed_tokens."));
    }

    fn freeze(&mut self, which: impl Fn(&str) -> bool) {
        for (name, tensor) in self.vs.variables() {
            if which(&name) {
                let _ = tensor.set_requires_grad(false);
            }
        }
    }

    /// Token ids of the choices, positive first.
    pub fn choice_ids(&self) -> [i64; 2] {
        self.choices
    }

    /// Rows of the head for the choices `[2, H]`, f32, positive first.
    pub fn choice_weight(&self) -> Result<Tensor, DecoderError> {
        Ok(self.decoder.choice_rows(&self.choices)?.to_kind(Kind::Float))
    }

    /// Keys and values of `[prefix][first]` for each text that stands first (documents, see [`Prompter::order`]), one
    /// padded batch.
    pub fn read<S: AsRef<str>>(&self, texts: &[S]) -> Result<KvCache, RerankerError> {
        let batch = self.first_batch(texts)?;
        let input = ForwardInput {
            attention_mask: batch.attention_mask.as_ref(),
            want_cache: true,
            adapters: self.judging,
            ..ForwardInput::new(&batch.input_ids)
        };
        self.cache_of(self.decoder.forward(input)?)
    }

    fn first_batch<S: AsRef<str>>(&self, texts: &[S]) -> Result<Batch, PromptError> {
        let passes = texts.iter().map(|text| Ok(self.prompter.read_pass(text.as_ref())?.ids));
        Ok(Batch::new(&passes.collect::<Result<Vec<_>, PromptError>>()?, self.device()))
    }

    fn cache_of(&self, hidden: Hidden) -> Result<KvCache, RerankerError> {
        let expected = self.decoder.config().num_hidden_layers;
        Ok(hidden.cache.ok_or(DecoderError::PastLayers { found: 0, expected })?)
    }

    /// Reads `first` texts once and continues each pair's, gradients and dropout on. With `checkpointing`, gradients
    /// take the way of [`Decoder::forward_checkpointed`].
    pub fn training_pass<S: AsRef<str>, R: AsRef<[u32]>>(
        &self,
        first: &[S],
        pairs: &Pairs<R>,
        checkpointing: bool,
    ) -> Result<TrainingPass<'_>, RerankerError> {
        let mut recompute = Vec::new();
        let mut forward = |input: ForwardInput| -> Result<Hidden, DecoderError> {
            match checkpointing {
                false => self.decoder.forward(input),
                true => {
                    let (hidden, back) = self.decoder.forward_checkpointed(input)?;
                    recompute.push(back);
                    Ok(hidden)
                }
            }
        };
        let read = self.first_batch(first)?;
        let hidden = forward(ForwardInput {
            attention_mask: read.attention_mask.as_ref(),
            want_cache: true,
            adapters: Adapters::Training,
            ..ForwardInput::new(&read.input_ids)
        })?;
        let past = self.cache_of(hidden)?.select(pairs.first)?;
        let continued = Batch::new(pairs.continuations, self.device());
        let hidden = forward(ForwardInput {
            attention_mask: continued.attention_mask.as_ref(),
            past: Some(&past),
            adapters: Adapters::Training,
            ..ForwardInput::new(&continued.input_ids)
        })?;
        let hidden = continued.last_of(hidden.last()?).to_kind(Kind::Float);
        let computed = (read.input_ids.numel() + continued.input_ids.numel()).max(1);
        Ok(TrainingPass { hidden, tokens: read.tokens() + continued.tokens(), computed, recompute })
    }

    /// h(q|d), f32 `[rows, H]`: row i of `past` continued by `continuations[i]` (see [`Prompter::continuation`]).
    pub fn hidden<R: AsRef<[u32]>>(
        &self,
        past: &KvCache,
        continuations: &[R],
    ) -> Result<Tensor, DecoderError> {
        let batch = Batch::new(continuations, self.device());
        let hidden = self.decoder.forward(ForwardInput {
            attention_mask: batch.attention_mask.as_ref(),
            past: Some(past),
            adapters: self.judging,
            ..ForwardInput::new(&batch.input_ids)
        })?;
        Ok(batch.last_of(hidden.last()?).to_kind(Kind::Float))
    }

    /// h(q|d), f32 `[1, H]`, from the whole prompt in one pass, no cache: the reference that cached scores are held to.
    pub fn hidden_uncached(&self, document: &str, query: &str) -> Result<Tensor, RerankerError> {
        let batch = Batch::new(&[self.prompter.pair(document, query)?], self.device());
        let input = ForwardInput { adapters: self.judging, ..ForwardInput::new(&batch.input_ids) };
        let hidden = self.decoder.forward(input)?;
        Ok(batch.last_of(hidden.last()?).to_kind(Kind::Float))
    }

    /// `log p(T) - log p(F)` of hidden states `[.., H]`.
    pub fn score(&self, hidden: &Tensor) -> Result<Tensor, DecoderError> {
        let rows = self.choice_weight()?;
        Ok(hidden.matmul(&(rows.get(0) - rows.get(1))))
    }
}
