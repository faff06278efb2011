//! The student as a first stage, and what its probabilities are worth.

use super::calibration_table::{Reliability, Summary};
use super::first_stage::{FirstStage, Measured};
use super::task::Task;
use crate::device::DeviceArgs;
use crate::features::{FeatureMaker, Side};
use anyhow::{Context, Result};
use models::student::{Calibration, PREDICTOR_FILE, QUERY_ADAPTER_FILE, StudentConfig};
use models::torch::predictor::QuerySide;
use models::torch::{EncoderConfig, Predictor, Reranker};
use models::weights::Weights;
use ndarray::Array2;
use serde::Serialize;
use std::collections::HashSet;
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// Numbers of the joined sides, `[queries, documents, m]`, that are held at once.
const JOINED_AT_ONCE: usize = 1 << 24;

/// Calibration of one split.
#[derive(Debug, Clone, Serialize)]
pub struct SplitCalibration {
    /// Over the student's first documents of each query.
    pub top: Summary,
    /// Over all ranked pairs.
    pub all: Summary,
}

/// An opened student.
pub struct Student<'a> {
    predictor: Predictor,
    documents: FeatureMaker<'a>,
    /// Where queries are read through adapters, whose latents are nobody else's.
    adapted: Option<FeatureMaker<'a>>,
    inner_dimensions: usize,
    calibration: Calibration,
    queries: Option<QuerySide>,
    /// c(q) of each query, which the probability does not see.
    constants: Vec<f32>,
    observed: Option<Observed>,
}

/// Probabilities of all pairs, where asked for.
struct Observed {
    splits: Vec<Reliability>,
    /// Split and relevant documents of each query.
    queries: Vec<(usize, HashSet<usize>)>,
}

/// Opens the LLM of a student directory with the adapters that its queries are read with, if any.
pub fn open_llm(dir: &Path, config: &StudentConfig, device: &DeviceArgs) -> Result<Reranker> {
    let llm = Reranker::open(dir, &device.open(config.query_adapter.clone())?)?;
    if config.query_adapter.is_some() {
        llm.decoder.load_lora(&Weights::open_file(dir.join(QUERY_ADAPTER_FILE))?)?;
    }
    Ok(llm)
}

impl<'a> Student<'a> {
    /// Opens a student directory; `llm` is the model in it (see [`open_llm`]). The LLM's latents are kept in `cache`, a
    /// directory and [`cache_digest`](crate::features::cache_digest), if there is one.
    pub fn open(
        dir: &Path,
        config: &StudentConfig,
        llm: &'a Reranker,
        cache: Option<(&Path, &str)>,
    ) -> Result<Self> {
        let encoder = EncoderConfig { layers: config.latents.layers.clone(), residual: config.residual };
        let adapted = config.query_adapter.as_ref().map(|_| FeatureMaker::new(llm, encoder.clone(), None));
        Ok(Self {
            predictor: Predictor::open(config, &dir.join(PREDICTOR_FILE), llm.device())?,
            documents: FeatureMaker::new(llm, encoder, cache)?,
            adapted: adapted.transpose()?,
            inner_dimensions: config.inner_dimensions,
            calibration: config.calibration,
            queries: None,
            constants: Vec::new(),
            observed: None,
        })
    }

    /// Texts whose latents were in the cache.
    pub fn remembered(&self) -> usize {
        self.documents.remembered()
    }

    /// Has the probabilities of all ranked pairs counted.
    pub fn observe(&mut self, task: &Task) {
        let queries = task.asked().iter().map(|asked| (asked.split, task.relevant(asked))).collect();
        self.observed = Some(Observed { splits: vec![Reliability::default(); task.splits.len()], queries });
    }

    /// Calibration of each split, after [`super::first_stage::rank_corpus`] made `measured`; `None` without
    /// [`Self::observe`].
    pub fn calibration(
        &self,
        task: &Task,
        measured: &[Measured],
        top: usize,
    ) -> Option<Vec<SplitCalibration>> {
        let observed = self.observed.as_ref()?;
        let mut tops = vec![Reliability::default(); task.splits.len()];
        let rankings = measured.iter().flat_map(|measured| measured.run.ranked());
        // Both go split by split, in the order of query ids.
        for ((_, ranked), ((split, relevant), constant)) in
            rankings.zip(observed.queries.iter().zip(&self.constants))
        {
            for (id, score) in ranked.iter().take(top) {
                let probability = self.calibration.probability(score - constant);
                tops[*split].add(probability, relevant.contains(&task.data.document_index[id]));
            }
        }
        let both = tops.iter().zip(&observed.splits);
        Some(both.map(|(top, all)| SplitCalibration { top: top.summary(), all: all.summary() }).collect())
    }
}

impl FirstStage for Student<'_> {
    /// `[documents, m]`.
    type Documents = Tensor;

    fn read_queries(&mut self, texts: &[&str]) -> Result<()> {
        let features = self.adapted.as_mut().unwrap_or(&mut self.documents).make(Side::Query, texts)?;
        let _guard = tch::no_grad_guard();
        let latents = self.predictor.query.apply(&features.latent);
        let side = self.predictor.query_side(&latents, features.answer.as_ref(), false);
        let constants = side.constant(self.predictor.choice()).to_device(Device::Cpu).to_kind(Kind::Float);
        self.constants = Vec::try_from(constants)?;
        self.queries = Some(side);
        Ok(())
    }

    fn read_documents(&mut self, texts: &[&str]) -> Result<Tensor> {
        let features = self.documents.make(Side::Document, texts)?;
        let _guard = tch::no_grad_guard();
        let latents = self.predictor.document.apply(&features.latent);
        Ok(self.predictor.document_side(&latents, false))
    }

    fn score(&self, documents: &Tensor) -> Result<Array2<f32>> {
        let queries = self.queries.as_ref().context("queries are read before documents")?;
        let (rows, columns) = (self.constants.len(), documents.size()[0] as usize);
        let at_once = (JOINED_AT_ONCE / (columns * self.inner_dimensions).max(1)).max(1);
        let places: Vec<i64> = (0..rows as i64).collect();
        let _guard = tch::no_grad_guard();
        let mut all = Vec::with_capacity(rows * columns);
        for places in places.chunks(at_once) {
            let places = Tensor::from_slice(places).to_device(documents.device());
            let scores = self.predictor.score(&queries.select(&places), documents);
            let scores = scores.to_device(Device::Cpu).to_kind(Kind::Float).contiguous().view(-1);
            all.extend(Vec::<f32>::try_from(scores)?);
        }
        Array2::from_shape_vec((rows, columns), all).context("scores of another shape than asked for")
    }

    fn scored(&mut self, query: usize, document: usize, score: f32) {
        if let Some(observed) = &mut self.observed {
            let (split, relevant) = &observed.queries[query];
            let probability = self.calibration.probability(score - self.constants[query]);
            observed.splits[*split].add(probability, relevant.contains(&document));
        }
    }
}
