//! Latents of the frozen LLM: each text goes through it once, ever (disk cache).

use crate::cache::{Key, VectorCache, VectorReader, key};
use crate::scoring::rows_of;
use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use models::prompt::{Encoded, PromptError};
use models::student::Residual;
use models::torch::{Decoder, EncoderConfig, Reranker, encode, length_buckets};
use std::collections::HashMap;
use std::path::Path;
use tch::{Device, Tensor};

/// Texts that are tokenised and encoded before the next ones are looked at: bounds memory.
const TEXTS_AT_ONCE: usize = 4096;
/// Tokens per forward pass, padding included.
const TOKENS_PER_BATCH: usize = 2048;

/// Latents of some texts, in their order.
pub struct Features {
    /// `[n, D]`.
    pub latent: Tensor,
    /// `[n, H]`, queries with [`Residual::LastToken`] only.
    pub answer: Option<Tensor>,
}

/// Latents of some texts on disk, read a batch at a time: 8 bytes of memory per text.
pub struct StoredFeatures {
    reader: VectorReader,
    places: Vec<u64>,
    /// Numbers of a latent, D; what follows is the answer's hidden state.
    dimensions: i64,
    device: Device,
}

impl StoredFeatures {
    /// Number of texts.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there are no texts.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Latents of the texts at these places.
    pub fn gather(&self, texts: &[usize]) -> Result<Features> {
        let flat = self.reader.read(texts.iter().map(|text| self.places[*text]))?;
        let all = Tensor::from_slice(&flat)
            .reshape([texts.len() as i64, self.reader.width() as i64])
            .to_device(self.device);
        let rest = all.size()[1] - self.dimensions;
        let answer = (rest > 0).then(|| all.narrow(1, self.dimensions, rest).contiguous());
        Ok(Features { latent: all.narrow(1, 0, self.dimensions).contiguous(), answer })
    }

    /// Latents of all texts, so many at a time.
    pub fn blocks(&self, size: usize) -> impl Iterator<Item = Result<Features>> + '_ {
        let all: Vec<usize> = (0..self.len()).collect();
        let blocks: Vec<Vec<usize>> = all.chunks(size.max(1)).map(<[usize]>::to_vec).collect();
        blocks.into_iter().map(|block| self.gather(&block))
    }
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
        let bar = bar(missing.len(), &format!("{} latents", side_name(side)));
        self.encode_missing(&missing, &mut rows, &bar)?;
        bar.finish_and_clear();
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

    /// Latents of all `texts`, left in the cache, which must be there.
    pub fn store(&mut self, side: Side, texts: &[&str]) -> Result<StoredFeatures> {
        let mut places = Vec::with_capacity(texts.len());
        let missing = texts.iter().filter(|text| !self.cached(side, text)).count();
        let bar = bar(missing, &format!("{} latents", side_name(side)));
        for chunk in texts.chunks(TEXTS_AT_ONCE) {
            let mut missing: HashMap<Key, Encoded> = HashMap::new();
            for text in chunk.iter().filter(|text| !self.cached(side, text)) {
                missing.insert(key(&[side_name(side), text]), self.pass(side, text)?);
            }
            let mut missing: Vec<(Key, Encoded)> = missing.into_iter().collect();
            missing.sort_by_key(|(key, _)| *key);
            self.encode_missing(&missing, &mut HashMap::new(), &bar)?;
            let cache = self.cache.as_ref().context("latents are stored without a cache")?;
            for text in chunk {
                let place = cache.place(&key(&[side_name(side), text]));
                places.push(place.context("a latent vanished from the cache")?);
            }
        }
        bar.finish_and_clear();
        let reader = self.cache.as_ref().context("latents are stored without a cache")?.reader();
        let dimensions = (self.config.layers.len() * self.hidden_size) as i64;
        Ok(StoredFeatures { reader, places, dimensions, device: self.llm.device() })
    }

    fn cached(&self, side: Side, text: &str) -> bool {
        self.cache.as_ref().is_some_and(|cache| cache.contains(&key(&[side_name(side), text])))
    }

    fn encode_missing(
        &mut self,
        missing: &[(Key, Encoded)],
        rows: &mut HashMap<Key, Vec<f32>>,
        bar: &ProgressBar,
    ) -> Result<()> {
        let lengths: Vec<usize> = missing.iter().map(|(_, pass)| pass.ids.len()).collect();
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
