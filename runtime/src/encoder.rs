//! Text in, embedding out: tokenises with the bundle's prompt and runs `encoder.onnx` as the manifest allows.

use crate::bundle::Bundle;
use crate::session::{Element, Port, Session, SessionError, SessionOptions, Tensor, Values};
use models::fold::FoldedQuery;
use models::manifest::{Batching, ENCODER_FILE, Manifest, names};
use models::prompt::{Encoded, PromptError};
use models::student::Residual;
use std::path::{Path, PathBuf};
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
    /// A pass that begins otherwise than the graph assumes.
    #[error(
        "{file}: holds the prompts that begin with tokens {prefixes:?}, but the pass begins with {found:?}; prompt.json belongs to another export"
    )]
    Prefix {
        /// The graph.
        file: PathBuf,
        /// What the pass begins with.
        found: Vec<u32>,
        /// What the graph holds.
        prefixes: Vec<Vec<u32>>,
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
        let info = &bundle.manifest.encoder;
        let inputs = ports(&bundle.manifest);
        let embedding = |name, size| Port::new(name, Element::Float32, [None, Some(size)]);
        let mut outputs = vec![embedding(names::SENTENCE_EMBEDDING, info.dimensions)];
        if bundle.manifest.predictor.residual == Residual::LastToken {
            outputs.push(embedding(names::ANSWER_EMBEDDING, info.hidden_size));
        }
        let session = Session::open(&bundle.dir.join(ENCODER_FILE), options, inputs, outputs)?;
        Ok(Self { bundle, session })
    }

    /// A sentence for each provider that was wanted and does not compute.
    pub fn fallbacks(&self) -> &[String] {
        self.session.fallbacks()
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

    /// Encodes the most and longest texts that one run ever takes: what a run needs of memory, and what only the first
    /// one costs, is then known at the start.
    pub fn warm_up(&self) -> Result<(), EncoderError> {
        let text = "a ".repeat(TOKENS_PER_BATCH);
        for pass in [self.bundle.prompter.document_pass(&text)?, self.query_pass(&text)?] {
            let width = Row::of(&self.bundle.manifest, &self.bundle.dir, &pass)?.ids.len();
            let most = match self.bundle.manifest.encoder.batching {
                Batching::Free => (TOKENS_PER_BATCH / width).max(1),
                Batching::OneAtATime => 1,
            };
            self.encode(&vec![pass; most])?;
        }
        Ok(())
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
        let row = |pass| Row::of(&self.bundle.manifest, &self.bundle.dir, pass);
        let rows = passes.iter().map(row).collect::<Result<Vec<_>, _>>()?;
        let mut embeddings: Vec<Option<Embedding>> = vec![None; passes.len()];
        for batch in batches(&rows, self.bundle.manifest.encoder.batching) {
            for (&position, embedding) in batch.iter().zip(self.run(&rows, &batch)?) {
                embeddings[position] = Some(embedding);
            }
        }
        // Every position is in exactly one batch.
        Ok(embeddings.into_iter().flatten().collect())
    }

    /// One run of the graph.
    fn run(&self, rows: &[Row], batch: &[usize]) -> Result<Vec<Embedding>, EncoderError> {
        let manifest = &self.bundle.manifest;
        let batch: Vec<&Row> = batch.iter().map(|&i| &rows[i]).collect();
        let inputs = Inputs::of(manifest, &batch);
        let outputs = self.session.run(&inputs.values())?;
        let mut outputs = outputs.iter().map(vectors);
        let (latents, mut answers) = (outputs.next(), outputs.next());
        let latents = latents.into_iter().flatten();
        Ok(latents
            .zip(batch)
            .map(|(latent, row)| Embedding {
                latent: latent.to_vec(),
                answer: answers.as_mut().and_then(Iterator::next).map(<[f32]>::to_vec),
                tokens: row.tokens,
            })
            .collect())
    }
}

/// What an encoder graph takes, in the order of [`Inputs::values`].
pub fn ports(manifest: &Manifest) -> Vec<Port> {
    let tokens = |name| Port::new(name, Element::Int64, [None, None]);
    let mut ports = vec![tokens(names::INPUT_IDS), tokens(names::ATTENTION_MASK)];
    if manifest.predictor.residual == Residual::LastToken {
        ports.push(tokens(names::POOLING_MASK));
    }
    if !manifest.encoder.prefixes.is_empty() {
        ports.push(Port::new(names::PREFIX, Element::Int64, [Some(1)]));
    }
    ports
}

/// Tensors of one run: right-padded to the longest, token 0 under masks of 0.
pub struct Inputs {
    shape: [usize; 2],
    ids: Vec<i64>,
    attention: Vec<i64>,
    pooling: Option<Vec<i64>>,
    prefix: Option<[i64; 1]>,
}

impl Inputs {
    /// Of rows behind one and the same prompt.
    pub fn of(manifest: &Manifest, rows: &[&Row]) -> Self {
        let longest = rows.iter().map(|row| row.ids.len()).max().unwrap_or(0);
        let size = rows.len() * longest;
        let (mut ids, mut attention, mut pooling) = (vec![0i64; size], vec![0i64; size], vec![0i64; size]);
        for (place, row) in rows.iter().enumerate() {
            let start = place * longest;
            for (slot, &id) in ids[start..].iter_mut().zip(row.ids) {
                *slot = i64::from(id);
            }
            attention[start..start + row.ids.len()].fill(1);
            pooling[start + row.text.start..start + row.text.end].fill(1);
        }
        let prefix = rows.first().map_or(0, |row| row.prefix as i64);
        Self {
            shape: [rows.len(), longest],
            ids,
            attention,
            pooling: (manifest.predictor.residual == Residual::LastToken).then_some(pooling),
            prefix: (!manifest.encoder.prefixes.is_empty()).then_some([prefix]),
        }
    }

    /// For [`Session::run`].
    pub fn values(&self) -> Vec<(Values<'_>, &[usize])> {
        let mut all = vec![
            (Values::Int64(&self.ids), &self.shape[..]),
            (Values::Int64(&self.attention), &self.shape[..]),
        ];
        all.extend(self.pooling.as_ref().map(|pooling| (Values::Int64(pooling), &self.shape[..])));
        all.extend(self.prefix.as_ref().map(|prefix| (Values::Int64(prefix), &[1][..])));
        all
    }
}

/// A pass as the graph reads it: without the prompt that the graph holds, and nothing behind the text where nobody looks.
pub struct Row<'a> {
    /// Place of its prompt among the manifest's.
    prefix: usize,
    ids: &'a [u32],
    /// The text's own tokens in `ids`.
    text: std::ops::Range<usize>,
    /// Tokens of the whole pass.
    tokens: usize,
}

impl<'a> Row<'a> {
    /// Refuses a pass that begins otherwise than the graph in `dir` assumes.
    pub fn of(manifest: &Manifest, dir: &Path, pass: &'a Encoded) -> Result<Self, EncoderError> {
        let prefixes = &manifest.encoder.prefixes;
        let before = &pass.ids[..pass.text.start];
        let prefix = prefixes.iter().position(|prefix| prefix == before);
        if prefix.is_none() && !prefixes.is_empty() {
            let (file, found) = (dir.join(ENCODER_FILE), before.to_vec());
            return Err(EncoderError::Prefix { file, found, prefixes: prefixes.clone() });
        }
        let (start, end) = match manifest.predictor.residual {
            Residual::Pooled => (pass.text.start, pass.text.end),
            Residual::LastToken if prefix.is_some() => (pass.text.start, pass.ids.len()),
            Residual::LastToken => (0, pass.ids.len()),
        };
        let text = pass.text.start - start..pass.text.end - start;
        Ok(Self { prefix: prefix.unwrap_or(0), ids: &pass.ids[start..end], text, tokens: pass.ids.len() })
    }
}

/// Rows of a `[batch, n]` tensor.
fn vectors(tensor: &Tensor) -> std::slice::ChunksExact<'_, f32> {
    tensor.values.chunks_exact(tensor.shape.last().copied().unwrap_or(1).max(1))
}

/// Positions of the rows that share a run: one prompt stands before all of them.
fn batches(rows: &[Row], batching: Batching) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..rows.len()).collect();
    if batching == Batching::OneAtATime {
        return order.into_iter().map(|i| vec![i]).collect();
    }
    order.sort_by_key(|&i| (rows[i].prefix, rows[i].ids.len()));
    let mut batches: Vec<Vec<usize>> = Vec::new();
    for i in order {
        match batches.last_mut() {
            // In this order the newest is the longest: it sets the width of all.
            Some(batch)
                if rows[batch[0]].prefix == rows[i].prefix
                    && (batch.len() + 1) * rows[i].ids.len() <= TOKENS_PER_BATCH =>
            {
                batch.push(i);
            }
            _ => batches.push(vec![i]),
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDS: [u32; TOKENS_PER_BATCH + 5] = [1; TOKENS_PER_BATCH + 5];

    fn row(prefix: usize, length: usize) -> Row<'static> {
        Row { prefix, ids: &IDS[..length], text: 0..1, tokens: length }
    }

    /// A batch over the cap raises the memory of the whole life of the process.
    #[test]
    fn batches_hold_every_pass_once_and_stay_below_the_cap() {
        let lengths: Vec<usize> =
            (0..500).map(|i| 1 + (i * 7919) % 300).chain([TOKENS_PER_BATCH + 5]).collect();
        let rows: Vec<Row> = lengths.iter().enumerate().map(|(i, &n)| row(i % 2, n)).collect();
        let found = batches(&rows, Batching::Free);
        for batch in &found {
            let width = batch.iter().map(|&i| lengths[i]).max().unwrap();
            assert!(batch.len() == 1 || batch.len() * width <= TOKENS_PER_BATCH);
            assert!(batch.iter().all(|&i| rows[i].prefix == rows[batch[0]].prefix));
        }
        let mut all = found.concat();
        all.sort_unstable();
        assert_eq!(all, (0..rows.len()).collect::<Vec<_>>());
        assert!(found.len() < rows.len() / 3, "{} runs for {} texts", found.len(), rows.len());
    }

    /// Dynamic int8 shares one scale among all texts of a run, so answers would depend on the neighbours.
    #[test]
    fn one_at_a_time_means_one_at_a_time() {
        let rows = [row(0, 3), row(0, 1), row(0, 2)];
        assert_eq!(batches(&rows, Batching::OneAtATime), [[0], [1], [2]]);
    }
}
