//! Latents of the frozen LLM: each text goes through it once, ever (disk cache). Every layer has a file of its own, so that
//! students of other layers share what they can.

use crate::cache::{Key, VectorCache, VectorReader, key};
use crate::crew::Crew;
use crate::device::{DeviceArgs, tokens_per_pass};
use crate::scoring::rows_of;
use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use models::prompt::{Encoded, PromptError, Prompter};
use models::student::Residual;
use models::torch::{Adapters, Decoder, EncoderConfig, Reranker, encode, length_buckets};
use std::collections::HashMap;
use std::path::Path;
use tch::{Device, Tensor};

/// Texts that are tokenised and encoded before the next ones are looked at: bounds memory.
const TEXTS_AT_ONCE: usize = 4096;

/// Latents of some texts, in their order.
pub struct Features {
    /// `[n, D]`.
    pub latent: Tensor,
    /// `[n, H]`, queries with [`Residual::LastToken`] only.
    pub answer: Option<Tensor>,
}

/// Latents of some texts on disk, read a batch at a time: 8 bytes of memory per text and layer.
pub struct StoredFeatures {
    /// One for each layer, then the answer's hidden state where the student reads it.
    parts: Vec<StoredPart>,
    layers: usize,
    texts: usize,
    device: Device,
}

/// One layer's mean of some texts.
struct StoredPart {
    reader: VectorReader,
    places: Vec<u64>,
}

impl StoredFeatures {
    /// Number of texts.
    pub fn len(&self) -> usize {
        self.texts
    }

    /// Whether there are no texts.
    pub fn is_empty(&self) -> bool {
        self.texts == 0
    }

    /// Latents of the texts at these places.
    pub fn gather(&self, texts: &[usize]) -> Result<Features> {
        let part = |part: &StoredPart| {
            let flat = part.reader.read(texts.iter().map(|text| part.places[*text]))?;
            Ok(Tensor::from_slice(&flat).reshape([texts.len() as i64, part.reader.width() as i64]))
        };
        let mut parts = self.parts.iter().map(part).collect::<Result<Vec<_>>>()?;
        let answer = parts.split_off(self.layers).pop();
        Ok(Features {
            latent: Tensor::cat(&parts, 1).to_device(self.device),
            answer: answer.map(|answer| answer.to_device(self.device)),
        })
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

/// Name of the caches of one LLM: bf16 and f32 give other numbers and do not share one.
pub fn cache_digest(llm_digest: &str, device: &DeviceArgs) -> String {
    models::files::sha256_parts([llm_digest.as_bytes(), device.compute().name().as_bytes()])
}

/// Vectors of one text, each in a cache of its own, as one vector.
struct Cache(Vec<VectorCache>);

impl Cache {
    fn contains(&self, key: &Key) -> bool {
        self.0.iter().all(|part| part.contains(key))
    }

    fn get(&mut self, key: &Key) -> Result<Option<Vec<f32>>> {
        let mut whole = Vec::new();
        for part in &mut self.0 {
            let Some(values) = part.get(key)? else { return Ok(None) };
            whole.extend(values);
        }
        Ok(Some(whole))
    }

    /// Keeps the parts that are not there yet.
    fn insert(&mut self, key: Key, whole: &[f32]) -> Result<()> {
        let width = whole.len() / self.0.len();
        for (part, values) in self.0.iter_mut().zip(whole.chunks(width)) {
            if !part.contains(&key) {
                part.insert(key, values)?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        self.0.iter_mut().try_for_each(VectorCache::flush)
    }
}

/// Makes latents, or remembers them.
pub struct FeatureMaker<'a> {
    llm: &'a Reranker,
    config: EncoderConfig,
    cache: Option<Cache>,
    hidden_size: usize,
    crew: Option<&'a Crew<'a>>,
    remembered: usize,
}

impl<'a> FeatureMaker<'a> {
    /// With a cache directory, latents are kept there under `digest` (of the LLM and its prompt). These are the frozen LLM's:
    /// adapters, which learn, take part in queries only where nothing is kept.
    pub fn new(llm: &'a Reranker, config: EncoderConfig, cache: Option<(&Path, &str)>) -> Result<Self> {
        let hidden_size = llm.decoder.config().hidden_size;
        let mut names: Vec<String> = config.layers.iter().map(|layer| format!("latents-{layer}")).collect();
        names.extend((config.residual == Residual::LastToken).then(|| "answers".to_owned()));
        let open = |(dir, digest): (&Path, &str)| {
            let parts = names.iter().map(|name| VectorCache::open(dir, name, digest, hidden_size));
            Ok::<_, anyhow::Error>(Cache(parts.collect::<Result<_>>()?))
        };
        let cache = cache.map(open).transpose()?;
        Ok(Self { llm, config, cache, hidden_size, crew: None, remembered: 0 })
    }

    /// With others to divide the work with, where latents are kept.
    pub fn with_crew(self, crew: &'a Crew<'a>) -> Self {
        Self { crew: Some(crew), ..self }
    }

    /// Texts that [`Self::make`] found in the cache so far.
    pub fn remembered(&self) -> usize {
        self.remembered
    }

    /// Latents of all `texts`; queries through the LLM's adapters where nothing is kept.
    pub fn make(&mut self, side: Side, texts: &[&str]) -> Result<Features> {
        let mut rows: HashMap<Key, Vec<f32>> = HashMap::new();
        let keys: Vec<Key> = texts.iter().map(|text| key(&[side_name(side), text])).collect();
        let mut missing: Vec<(Key, Encoded)> = Vec::new();
        for (key, text) in keys.iter().zip(texts) {
            if rows.contains_key(key) {
                continue;
            }
            let cached = self.cache.as_mut().map(|cache| cache.get(key)).transpose()?.flatten();
            match cached {
                None => missing.push((*key, self.pass(side, text)?)),
                Some(_) => self.remembered += 1,
            }
            rows.insert(*key, cached.unwrap_or_default());
        }
        let bar = bar(missing.len(), &format!("{} latents", side_name(side)));
        self.encode_missing(self.adapters(side), &missing, &mut rows, &bar)?;
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
        let missing = texts.iter().filter(|text| !self.cached(side, text)).count();
        let bar = bar(missing, &format!("{} latents", side_name(side)));
        for chunk in texts.chunks(TEXTS_AT_ONCE) {
            let mut missing: HashMap<Key, Encoded> = HashMap::new();
            for text in chunk.iter().filter(|text| !self.cached(side, text)) {
                missing.insert(key(&[side_name(side), text]), self.pass(side, text)?);
            }
            let mut missing: Vec<(Key, Encoded)> = missing.into_iter().collect();
            missing.sort_by_key(|(key, _)| *key);
            self.encode_missing(Adapters::Off, &missing, &mut HashMap::new(), &bar)?;
        }
        bar.finish_and_clear();
        let keys: Vec<Key> = texts.iter().map(|text| key(&[side_name(side), text])).collect();
        let cache = self.cache.as_ref().context("latents are stored without a cache")?;
        let stored = |part: &VectorCache| {
            let places = keys.iter().map(|key| part.place(key).context("a latent vanished from the cache"));
            Ok(StoredPart { reader: part.reader(), places: places.collect::<Result<_>>()? })
        };
        Ok(StoredFeatures {
            parts: cache.0.iter().map(stored).collect::<Result<_>>()?,
            layers: self.config.layers.len(),
            texts: texts.len(),
            device: self.llm.device(),
        })
    }

    fn cached(&self, side: Side, text: &str) -> bool {
        self.cache.as_ref().is_some_and(|cache| cache.contains(&key(&[side_name(side), text])))
    }

    fn adapters(&self, side: Side) -> Adapters {
        match (side, &self.cache) {
            (Side::Query, None) => Adapters::On,
            (Side::Query, Some(_)) | (Side::Document, _) => Adapters::Off,
        }
    }

    fn encode_missing(
        &mut self,
        adapters: Adapters,
        missing: &[(Key, Encoded)],
        rows: &mut HashMap<Key, Vec<f32>>,
        bar: &ProgressBar,
    ) -> Result<()> {
        let crew = self.crew.filter(|_| adapters == Adapters::Off && !missing.is_empty());
        let lengths: Vec<usize> = missing.iter().map(|(_, pass)| pass.ids.len()).collect();
        let buckets = match crew {
            // All at once: the crew divides it.
            Some(_) => vec![(0..missing.len()).collect()],
            None => length_buckets(&lengths, tokens_per_pass(self.llm.device())),
        };
        for bucket in buckets {
            let passes: Vec<Encoded> = bucket.iter().map(|i| missing[*i].1.clone()).collect();
            let vectors = match crew {
                Some(crew) => crew.encode(&passes)?,
                None => encode_rows(&self.llm.decoder, &self.config, &passes, adapters)?,
            };
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
        pass(&self.llm.prompter, self.config.residual, side, text)
    }
}

/// Token ids that the student reads of a text.
pub fn pass(prompter: &Prompter, residual: Residual, side: Side, text: &str) -> Result<Encoded, PromptError> {
    match (side, residual) {
        (Side::Document, _) => prompter.document_pass(text),
        (Side::Query, Residual::Pooled) => prompter.query_pass(text),
        (Side::Query, Residual::LastToken) => prompter.query_answer_pass(text),
    }
}

/// Latent and, with [`Residual::LastToken`], last token of each pass, in one vector.
pub fn encode_rows(
    decoder: &Decoder,
    config: &EncoderConfig,
    passes: &[Encoded],
    adapters: Adapters,
) -> Result<Vec<Vec<f32>>> {
    let _guard = tch::no_grad_guard();
    let latents = encode(decoder, config, passes, adapters)?;
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

/// A progress bar on stderr (hidden where stderr is no terminal).
pub fn bar(length: usize, what: &str) -> ProgressBar {
    let template = format!("{what} {{bar:30}} {{pos}}/{{len}} [{{elapsed}}, {{eta}} left]");
    let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(length as u64).with_style(style)
}
