//! Latents of queries: of a frozen LLM from the disk, of one whose query side learns from the LLM itself, every time.

use crate::features::{FeatureMaker, Features, Side, StoredFeatures, pass};
use anyhow::Result;
use models::torch::{Adapters, EncoderConfig, Reranker, encode};

/// Latents of some queries.
pub struct QueryLatents<'a> {
    /// Those of the LLM as it was.
    stored: StoredFeatures,
    /// Where adapters learn, what is read instead.
    live: Option<Live<'a>>,
}

/// Queries that go through the LLM and its adapters.
struct Live<'a> {
    llm: &'a Reranker,
    encoder: EncoderConfig,
    texts: Vec<&'a str>,
}

impl<'a> QueryLatents<'a> {
    /// Of a frozen LLM.
    pub fn frozen(stored: StoredFeatures) -> Self {
        Self { stored, live: None }
    }

    /// Read through the adapters of `llm` from now on; `texts` are those that are stored.
    pub fn adapt(&mut self, llm: &'a Reranker, encoder: &EncoderConfig, texts: Vec<&'a str>) {
        self.live = Some(Live { llm, encoder: encoder.clone(), texts });
    }

    /// The frozen LLM's.
    pub fn stored(&self) -> &StoredFeatures {
        &self.stored
    }

    /// Number of queries.
    pub fn len(&self) -> usize {
        self.stored.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.stored.is_empty()
    }

    /// Whether each reading runs the LLM.
    pub fn is_live(&self) -> bool {
        self.live.is_some()
    }

    /// As they are for whoever ranks, no gradients.
    pub fn gather(&self, places: &[usize]) -> Result<Features> {
        match &self.live {
            None => self.stored.gather(places),
            Some(live) => {
                let texts: Vec<&str> = places.iter().map(|place| live.texts[*place]).collect();
                FeatureMaker::new(live.llm, live.encoder.clone(), None)?.make(Side::Query, &texts)
            }
        }
    }

    /// For a training step: gradients reach the adapters.
    pub fn gather_for_training(&self, places: &[usize]) -> Result<Features> {
        let Some(live) = &self.live else { return self.stored.gather(places) };
        let passes = places
            .iter()
            .map(|place| pass(&live.llm.prompter, live.encoder.residual, Side::Query, live.texts[*place]))
            .collect::<Result<Vec<_>, _>>()?;
        let latents = encode(&live.llm.decoder, &live.encoder, &passes, Adapters::Training)?;
        Ok(Features { latent: latents.latent, answer: latents.answer })
    }

    /// Latents of all queries, so many at a time.
    pub fn blocks(&self, size: usize) -> impl Iterator<Item = Result<Features>> + '_ {
        let all: Vec<usize> = (0..self.len()).collect();
        let blocks: Vec<Vec<usize>> = all.chunks(size.max(1)).map(<[usize]>::to_vec).collect();
        blocks.into_iter().map(|block| self.gather(&block))
    }

    /// Lengths to sort batches by: texts that run together should be of one length, latents have one size.
    pub fn lengths(&self) -> Vec<usize> {
        match &self.live {
            None => vec![1; self.len()],
            Some(live) => live.texts.iter().map(|text| text.len()).collect(),
        }
    }
}
