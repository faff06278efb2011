//! Who answers: the systems of one table, planned before anything is opened, so that a wrong name costs no hours.

use super::cosine::{Cosine, MeanPooled};
use super::first_stage::{Measured, bm25, rank_corpus};
use super::onnx_embedding::{OnnxConfig, OnnxEmbedding};
use super::student::{SplitCalibration, Student, open_llm};
use super::task::Task;
use super::teacher::rerank;
use crate::device::DeviceArgs;
use crate::features::cache_digest;
use anyhow::{Context, Result};
use models::checkpoint;
use models::student::StudentConfig;
use models::torch::Reranker;
use std::path::PathBuf;

/// A system to measure.
#[derive(Debug, Clone)]
pub struct System {
    /// Its name in tables.
    pub name: String,
    /// What it is.
    pub kind: Kind,
}

/// What a system is.
#[derive(Debug, Clone)]
pub enum Kind {
    /// The lexical baseline.
    Bm25,
    /// Cosine of an untaught model's mean hidden states.
    LlmCosine {
        /// Model directory.
        dir: PathBuf,
        /// Layer; none is what the head reads.
        layer: Option<usize>,
    },
    /// Cosine of somebody else's embedding model.
    Onnx(OnnxConfig),
    /// A student.
    Student {
        /// Student directory.
        dir: PathBuf,
        /// Documents of each query whose calibration is looked at apart; none looks at no calibration.
        calibration: Option<usize>,
        /// Where the LLM's latents are kept.
        cache: Option<PathBuf>,
    },
    /// A generative reranker.
    Teacher {
        /// Model directory.
        dir: PathBuf,
        /// Place of the system whose first documents it reranks, and how many; none reads all.
        first: Option<(usize, usize)>,
    },
}

impl Kind {
    /// The system among `planned` that a reranker takes its documents from: the student, or else the nearest to it.
    pub fn first_stage(planned: &[System]) -> Option<usize> {
        let rank = |kind: &Kind| match kind {
            Kind::Student { .. } => 3,
            Kind::Onnx(_) => 2,
            Kind::Bm25 => 1,
            Kind::LlmCosine { .. } => 0,
            Kind::Teacher { .. } => -1,
        };
        let places = (0..planned.len()).filter(|place| rank(&planned[*place].kind) >= 0);
        places.max_by_key(|place| rank(&planned[*place].kind))
    }
}

/// What a system did.
pub struct Answers {
    /// For each split.
    pub splits: Vec<Measured>,
    /// For each split, where asked for.
    pub calibration: Option<Vec<SplitCalibration>>,
}

/// Opens a system and measures it on all splits; `before` are the answers of the systems planned before it.
pub fn answer(system: &System, task: &Task, device: &DeviceArgs, before: &[Answers]) -> Result<Answers> {
    answers(&system.kind, task, device, before).with_context(|| format!("cannot measure {}", system.name))
}

fn answers(kind: &Kind, task: &Task, device: &DeviceArgs, before: &[Answers]) -> Result<Answers> {
    let plain = |splits| Answers { splits, calibration: None };
    Ok(match kind {
        Kind::Bm25 => plain(bm25(task)),
        Kind::LlmCosine { dir, layer } => {
            let llm = Reranker::open(dir, &device.open(None)?)?;
            plain(rank_corpus(task, &mut Cosine::new(MeanPooled::new(&llm, *layer)?))?)
        }
        Kind::Onnx(config) => plain(rank_corpus(task, &mut Cosine::new(OnnxEmbedding::open(config)?))?),
        Kind::Student { dir, calibration, cache } => {
            let config = StudentConfig::open(dir)?;
            let llm = open_llm(dir, &config, device)?;
            let digest = match cache {
                Some(_) => cache_digest(&checkpoint::digest(dir)?, device),
                None => String::new(),
            };
            let cache = cache.as_deref().map(|dir| (dir, digest.as_str()));
            let mut student = Student::open(dir, &config, &llm, cache)?;
            if calibration.is_some() {
                student.observe(task);
            }
            let splits = rank_corpus(task, &mut student)?;
            if let (Some((dir, _)), 1..) = (cache, student.remembered()) {
                let texts = student.remembered();
                eprintln!(
                    "{texts} texts' latents from {}: the student's times are without them",
                    dir.display()
                );
            }
            let calibration = calibration.and_then(|top| student.calibration(task, &splits, top));
            Answers { splits, calibration }
        }
        Kind::Teacher { dir, first } => {
            let teacher = Reranker::open(dir, &device.open(None)?)?;
            let reranked = (0..task.splits.len()).map(|split| {
                let (first, candidates) = match first {
                    Some((place, candidates)) => (before.get(*place), *candidates),
                    None => (None, 0),
                };
                rerank(&teacher, task, split, first.map(|first| &first.splits[split]), candidates)
            });
            plain(reranked.collect::<Result<_>>()?)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reranker of the wrong system's candidates would measure that system's recall.
    #[test]
    fn rerankers_follow_the_student_where_there_is_one() {
        let system = |kind| System { name: String::new(), kind };
        let dir = PathBuf::new();
        let bm25 = || system(Kind::Bm25);
        let cosine = || system(Kind::LlmCosine { dir: dir.clone(), layer: None });
        let student = || system(Kind::Student { dir: dir.clone(), calibration: None, cache: None });
        let teacher = || system(Kind::Teacher { dir: dir.clone(), first: None });
        assert_eq!(Kind::first_stage(&[bm25(), student(), teacher()]), Some(1));
        assert_eq!(Kind::first_stage(&[bm25(), cosine(), teacher()]), Some(0));
        assert_eq!(Kind::first_stage(&[teacher()]), None);
    }
}
