//! Latents of the frozen LLM: each text goes through it once, ever (disk cache).

use crate::cache::{Key, VectorCache, key};
use crate::scoring::rows_of;
use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use models::prompt::{Encoded, PromptError};
use models::student::Residual;
use models::torch::{Decoder, EncoderConfig, Reranker, encode, length_buckets};
use std::collections::HashMap;
use std::path::Path;
use tch::Tensor;

/// Tokens per forward pass, padding included.
const TOKENS_PER_BATCH: usize = 2048;

/// Latents of some texts, in their order.
pub struct Features {
    /// `[n, D]`.
    pub latent: Tensor,
    /// `[n, H]`, queries with [`Residual::LastToken`] only.
    pub answer: Option<Tensor>,
}

/// Which side a text stands on: its prompt differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// A query.
    Query,
    /// A document.
    Document,
}

/// Makes latents, or remembers them.
pub struct FeatureMaker<'a> {
    llm: &'a Reranker,
    config: EncoderConfig,
    cache: Option<VectorCache>,
    hidden_size: usize,
}

impl<'a> FeatureMaker<'a> {
    /// With a cache directory, latents are kept there under `digest` (of the LLM and its prompt).
    pub fn new(llm: &'a Reranker, config: EncoderConfig, cache: Option<(&Path, &str)>) -> Result<Self> {
        let hidden_size = llm.decoder.config().hidden_size;
        let width = width(&config, hidden_size);
        let cache = cache
            .map(|(dir, digest)| {
                let layers: Vec<String> = config.layers.iter().map(usize::to_string).collect();
                let name = format!("latents-{}-{}", layers.join("."), residual_name(config.residual));
                VectorCache::open(dir, &name, digest, width)
            })
            .transpose()?;
        Ok(Self { llm, config, cache, hidden_size })
    }

    /// Latents of all `texts`.
    pub fn make(&mut self, side: Side, texts: &[&str]) -> Result<Features> {
        let mut rows: HashMap<Key, Vec<f32>> = HashMap::new();
        let keys: Vec<Key> = texts.iter().map(|text| key(&[side_name(side), text])).collect();
        let mut missing: Vec<(Key, Encoded)> = Vec::new();
        for (key, text) in keys.iter().zip(texts) {
            if rows.contains_key(key) {
                continue;
            }
            let cached = self.cache.as_mut().map(|cache| cache.get(key)).transpose()?.flatten();
            if cached.is_none() {
                missing.push((*key, self.pass(side, text)?));
            }
            rows.insert(*key, cached.unwrap_or_default());
        }
        self.encode_missing(side, &missing, &mut rows)?;
        let width = width(&self.config, self.hidden_size);
        let flat: Vec<f32> = keys.iter().flat_map(|key| rows[key].iter().copied()).collect();
        let all = Tensor::from_slice(&flat)
            .reshape([texts.len() as i64, width as i64])
            .to_device(self.llm.device());
        let dimensions = (self.config.layers.len() * self.hidden_size) as i64;
        let answer = matches!((side, self.config.residual), (Side::Query, Residual::LastToken))
            .then(|| all.narrow(1, dimensions, self.hidden_size as i64).contiguous());
        Ok(Features { latent: all.narrow(1, 0, dimensions).contiguous(), answer })
    }

    fn encode_missing(
        &mut self,
        side: Side,
        missing: &[(Key, Encoded)],
        rows: &mut HashMap<Key, Vec<f32>>,
    ) -> Result<()> {
        let lengths: Vec<usize> = missing.iter().map(|(_, pass)| pass.ids.len()).collect();
        let bar = bar(missing.len(), &format!("{} latents", side_name(side)));
        for bucket in length_buckets(&lengths, TOKENS_PER_BATCH) {
            let passes: Vec<Encoded> = bucket.iter().map(|i| missing[*i].1.clone()).collect();
            let vectors = encode_rows(&self.llm.decoder, &self.config, &passes)?;
            for (i, vector) in bucket.iter().zip(vectors) {
                let key = missing[*i].0;
                if let Some(cache) = &mut self.cache {
                    cache.insert(key, &vector)?;
                }
                rows.insert(key, vector);
            }
            bar.inc(bucket.len() as u64);
        }
        bar.finish_and_clear();
        if let Some(cache) = &mut self.cache {
            cache.flush()?;
        }
        Ok(())
    }

    fn pass(&self, side: Side, text: &str) -> Result<Encoded, PromptError> {
        match (side, self.config.residual) {
            (Side::Document, _) => self.llm.prompter.document_pass(text),
            (Side::Query, Residual::Pooled) => self.llm.prompter.query_pass(text),
            (Side::Query, Residual::LastToken) => self.llm.prompter.query_answer_pass(text),
        }
    }
}

/// Latent and, with [`Residual::LastToken`], last token of each pass, in one vector.
fn encode_rows(decoder: &Decoder, config: &EncoderConfig, passes: &[Encoded]) -> Result<Vec<Vec<f32>>> {
    let _guard = tch::no_grad_guard();
    let latents = encode(decoder, config, passes)?;
    match &latents.answer {
        None => rows_of(&latents.latent),
        Some(answer) => rows_of(&Tensor::cat(&[&latents.latent, answer], 1)),
    }
}

fn width(config: &EncoderConfig, hidden_size: usize) -> usize {
    let answer = matches!(config.residual, Residual::LastToken) as usize;
    (config.layers.len() + answer) * hidden_size
}

fn side_name(side: Side) -> &'static str {
    match side {
        Side::Query => "query",
        Side::Document => "document",
    }
}

fn residual_name(residual: Residual) -> &'static str {
    match residual {
        Residual::LastToken => "last-token",
        Residual::Pooled => "pooled",
    }
}

/// A progress bar on stderr (hidden where stderr is no terminal).
pub fn bar(length: usize, what: &str) -> ProgressBar {
    let template = format!("{what} {{bar:30}} {{pos}}/{{len}} [{{elapsed}}, {{eta}} left]");
    let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(length as u64).with_style(style)
}
