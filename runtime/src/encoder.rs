//! Text in, embedding out: tokenises with the bundle's prompt and runs `encoder.onnx` as the manifest allows.

use crate::bundle::Bundle;
use crate::session::{Element, Port, Session, SessionError, SessionOptions, Tensor, Values};
use models::fold::FoldedQuery;
use models::manifest::{Batching, ENCODER_FILE, names};
use models::prompt::{Encoded, PromptError};
use models::student::Residual;
use std::path::PathBuf;
use std::sync::Arc;

/// Most tokens, padding included, in one run of a graph that allows batches. Longer batches gain nothing on a CPU,
/// and ONNX Runtime keeps the memory of the largest one.
pub const TOKENS_PER_BATCH: usize = 1024;

/// A text that cannot be encoded.
#[derive(Debug, thiserror::Error)]
pub enum EncoderError {
    /// The graph cannot be opened or run.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The text cannot be tokenised, or is empty.
    #[error(transparent)]
    Prompt(#[from] PromptError),
    /// The tokenizer knows a token that the graph does not.
    #[error(
        "{file}: has no row for token {found}, its vocabulary ends at {limit}; tokenizer.json belongs to another model, export again"
    )]
    Token {
        /// The graph.
        file: PathBuf,
        /// Token id.
        found: u32,
        /// Rows of the token embedding.
        limit: usize,
    },
    /// A pass without text, which only a hand-made [`Encoded`] can be.
    #[error(
        "pass {position}: marks {marked:?} as text among {tokens} tokens; at least one token within the pass is needed"
    )]
    NoText {
        /// Place in the slice.
        position: usize,
        /// Marked range.
        marked: std::ops::Range<usize>,
        /// Tokens in the pass.
        tokens: usize,
    },
}

/// What the encoder reads in one text.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedding {
    /// The latent: mean over the text's own tokens of the chosen layers, `[D]`.
    pub latent: Vec<f32>,
    /// The last token after the final norm, `[H]`; only with the last-token residual.
    pub answer: Option<Vec<f32>>,
    /// Tokens in the pass, prompt included.
    pub tokens: usize,
}

/// The encoder graph of a bundle. Any thread may use it.
#[derive(Debug)]
pub struct Encoder {
    bundle: Arc<Bundle>,
    session: Session,
}

impl Encoder {
    /// Opens `encoder.onnx`; inputs, outputs and sizes must be those of the manifest.
    pub fn open(bundle: Arc<Bundle>, options: &SessionOptions) -> Result<Self, EncoderError> {
        let free = vec![None, None];
        let inputs = [names::INPUT_IDS, names::ATTENTION_MASK, names::POOLING_MASK]
            .map(|name| Port::new(name, Element::Int64, free.clone()));
        let info = &bundle.manifest.encoder;
        let embedding = |name, size| Port::new(name, Element::Float32, [None, Some(size)]);
        let mut outputs = vec![embedding(names::SENTENCE_EMBEDDING, info.dimensions)];
        if bundle.manifest.predictor.residual == Residual::LastToken {
            outputs.push(embedding(names::ANSWER_EMBEDDING, info.hidden_size));
        }
        let session = Session::open(&bundle.dir.join(ENCODER_FILE), options, inputs.to_vec(), outputs)?;
        Ok(Self { bundle, session })
    }

    /// The bundle it belongs to.
    pub fn bundle(&self) -> &Arc<Bundle> {
        &self.bundle
    }

    /// Token ids of a query's pass, as this bundle's residual needs it.
    pub fn query_pass(&self, text: &str) -> Result<Encoded, EncoderError> {
        let prompter = &self.bundle.prompter;
        Ok(match self.bundle.manifest.predictor.residual {
            Residual::LastToken => prompter.query_answer_pass(text)?,
            Residual::Pooled => prompter.query_pass(text)?,
        })
    }

    /// Encodes one query.
    pub fn query(&self, text: &str) -> Result<Embedding, EncoderError> {
        let mut found = self.encode(&[self.query_pass(text)?])?;
        // encode() returns one embedding for each pass.
        Ok(found.swap_remove(0))
    }

    /// Encodes documents; an embedding for each, in order.
    pub fn documents(&self, texts: &[&str]) -> Result<Vec<Embedding>, EncoderError> {
        let passes: Result<Vec<_>, _> =
            texts.iter().map(|text| self.bundle.prompter.document_pass(text)).collect();
        self.encode(&passes?)
    }

    /// A query's side of the score.
    pub fn fold_query(&self, embedding: &Embedding) -> FoldedQuery {
        let source = embedding.answer.as_ref().unwrap_or(&embedding.latent);
        self.bundle.folded.query(&embedding.latent, source)
    }

    /// Encodes passes: one by one and unpadded where the manifest asks for it, else sorted by length in batches of at
    /// most [`TOKENS_PER_BATCH`]. An embedding for each, in the order given.
    pub fn encode(&self, passes: &[Encoded]) -> Result<Vec<Embedding>, EncoderError> {
        let limit = self.bundle.manifest.encoder.vocab_size;
        for (position, pass) in passes.iter().enumerate() {
            if let Some(&found) =
                pass.ids.iter().find(|id| usize::try_from(**id).map_or(true, |id| id >= limit))
            {
                return Err(EncoderError::Token { file: self.bundle.dir.join(ENCODER_FILE), found, limit });
            }
            if pass.text.is_empty() || pass.text.end > pass.ids.len() {
                let (marked, tokens) = (pass.text.clone(), pass.ids.len());
                return Err(EncoderError::NoText { position, marked, tokens });
            }
        }
        let mut embeddings: Vec<Option<Embedding>> = vec![None; passes.len()];
        for batch in batches(passes, self.bundle.manifest.encoder.batching) {
            for (&position, embedding) in batch.iter().zip(self.run(passes, &batch)?) {
                embeddings[position] = Some(embedding);
            }
        }
        // Every position is in exactly one batch.
        Ok(embeddings.into_iter().flatten().collect())
    }

    /// One run of the graph: right-padded to the longest, token 0 under masks of 0.
    fn run(&self, passes: &[Encoded], batch: &[usize]) -> Result<Vec<Embedding>, EncoderError> {
        let longest = batch.iter().map(|&i| passes[i].ids.len()).max().unwrap_or(0);
        let shape = [batch.len(), longest];
        let size = batch.len() * longest;
        let (mut ids, mut attention, mut pooling) = (vec![0i64; size], vec![0i64; size], vec![0i64; size]);
        for (row, &i) in batch.iter().enumerate() {
            let (pass, start) = (&passes[i], row * longest);
            for (slot, &id) in ids[start..].iter_mut().zip(&pass.ids) {
                *slot = i64::from(id);
            }
            attention[start..start + pass.ids.len()].fill(1);
            pooling[start + pass.text.start..start + pass.text.end].fill(1);
        }
        let inputs = [ids, attention, pooling];
        let inputs: Vec<_> = inputs.iter().map(|v| (Values::Int64(v), shape.as_slice())).collect();
        let outputs = self.session.run(&inputs)?;
        let mut outputs = outputs.iter().map(rows);
        let (latents, mut answers) = (outputs.next(), outputs.next());
        let latents = latents.into_iter().flatten();
        Ok(latents
            .zip(batch)
            .map(|(latent, &i)| Embedding {
                latent: latent.to_vec(),
                answer: answers.as_mut().and_then(Iterator::next).map(<[f32]>::to_vec),
                tokens: passes[i].ids.len(),
            })
            .collect())
    }
}

/// Rows of a `[batch, n]` tensor.
fn rows(tensor: &Tensor) -> std::slice::ChunksExact<'_, f32> {
    tensor.values.chunks_exact(tensor.shape.last().copied().unwrap_or(1).max(1))
}

/// Positions of the passes that share a run.
fn batches(passes: &[Encoded], batching: Batching) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..passes.len()).collect();
    if batching == Batching::OneAtATime {
        return order.into_iter().map(|i| vec![i]).collect();
    }
    order.sort_by_key(|&i| passes[i].ids.len());
    let mut batches: Vec<Vec<usize>> = Vec::new();
    for i in order {
        match batches.last_mut() {
            // In this order the newest is the longest: it sets the width of all.
            Some(batch) if (batch.len() + 1) * passes[i].ids.len() <= TOKENS_PER_BATCH => batch.push(i),
            _ => batches.push(vec![i]),
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pass(length: usize) -> Encoded {
        Encoded { ids: vec![1; length], text: 0..1 }
    }

    /// A batch over the cap raises the memory of the whole life of the process.
    #[test]
    fn batches_hold_every_pass_once_and_stay_below_the_cap() {
        let lengths: Vec<usize> =
            (0..500).map(|i| 1 + (i * 7919) % 300).chain([TOKENS_PER_BATCH + 5]).collect();
        let passes: Vec<Encoded> = lengths.iter().map(|&n| pass(n)).collect();
        let found = batches(&passes, Batching::Free);
        for batch in &found {
            let width = batch.iter().map(|&i| lengths[i]).max().unwrap();
            assert!(batch.len() == 1 || batch.len() * width <= TOKENS_PER_BATCH);
        }
        let mut all = found.concat();
        all.sort_unstable();
        assert_eq!(all, (0..passes.len()).collect::<Vec<_>>());
        assert!(found.len() < passes.len() / 3, "{} runs for {} texts", found.len(), passes.len());
    }

    /// Dynamic int8 shares one scale among all texts of a run, so answers would depend on the neighbours.
    #[test]
    fn one_at_a_time_means_one_at_a_time() {
        let passes = [pass(3), pass(1), pass(2)];
        assert_eq!(batches(&passes, Batching::OneAtATime), [[0], [1], [2]]);
    }
}
