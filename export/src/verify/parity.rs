//! The parity check: the new bundle, opened and run by the `runtime` library as on a robot, against the student's own scores
//! and latents from libtorch (`golden.json`, `golden.safetensors` of the student directory).

use crate::error::ExportError;
use crate::matrix::Matrix;
use crate::verify::golden::{GOLDEN_PAIRS, GoldenSet, same_top1};
use models::manifest::{Golden, Precision};
use models::metrics::spearman;
use runtime::bundle::Bundle;
use runtime::encoder::{Embedding, Encoder};
use runtime::predictor::Predictor;
use runtime::session::{self, SessionOptions};
use serde_json::json;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// What was measured.
#[derive(Debug, Clone)]
pub struct ParityReport {
    /// Limits that are exceeded, in words.
    pub failed: Vec<String>,
    /// Pairs with this bundle's own scores.
    pub golden: Vec<Golden>,
    texts: usize,
    seconds: f64,
    onnxruntime: String,
    precision: Precision,
    /// Smallest cosine between an embedding and the student's.
    cosine: f64,
    /// Largest difference of a number, relative to the largest magnitude of its embedding.
    relative: f64,
    /// Largest difference of a score.
    score: f32,
    /// Largest difference between the unfolded predictor and the folded score.
    unfolded: f32,
    /// Share of the queries whose top document is the student's.
    top1: f64,
    /// Mean over the queries of Spearman's correlation of the scores.
    rank_correlation: f64,
}

impl ParityReport {
    /// For the manifest.
    pub fn to_json(&self) -> serde_json::Value {
        json!({
            "held": self.failed.is_empty(),
            "failed": self.failed,
            "texts": self.texts,
            "onnxruntime": self.onnxruntime,
            "embedding_cosine_min": self.cosine,
            "embedding_relative_max": self.relative,
            "score_difference_max": self.score,
            "unfolded_difference_max": self.unfolded,
            "top1_agreement": self.top1,
            "rank_correlation": self.rank_correlation,
        })
    }

    /// Compares each number with its limit. int8 and int4 have a limit for the cosine only: what they cost is measured by the
    /// ranking.
    fn check(&mut self) {
        // Unless the encoder is fp32 both are stored in f16, each rounded by itself.
        let apart = if self.precision == Precision::Fp32 { 1e-2 } else { 1e-1 };
        let mut limits = vec![("unfolded against folded score", f64::from(self.unfolded), false, apart)];
        match self.precision {
            Precision::Fp32 => limits.extend([
                ("smallest cosine", self.cosine, true, 0.9999),
                ("relative difference of an embedding", self.relative, false, 2e-3),
                ("difference of a score", f64::from(self.score), false, 1e-2),
                ("top-1 agreement", self.top1, true, 1.0),
            ]),
            Precision::Fp16 => limits.extend([
                ("smallest cosine", self.cosine, true, 0.999),
                ("top-1 agreement", self.top1, true, 0.98),
            ]),
            Precision::Int8 | Precision::Int4 => limits.push(("smallest cosine", self.cosine, true, 0.95)),
        }
        self.failed = limits
            .into_iter()
            .filter(|&(_, found, at_least, limit)| !(if at_least { found >= limit } else { found <= limit }))
            .map(|(what, found, at_least, limit)| {
                let side = if at_least { "at least" } else { "at most" };
                format!("{what} is {found:.6}, expected {side} {limit}")
            })
            .collect();
    }
}

impl fmt::Display for ParityReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "parity     {} texts, ONNX Runtime {}: cosine at least {:.6}, relative difference of embeddings {:.1e}, difference \
             of scores {:.1e}, unfolded {:.1e}, top-1 agreement {:.1}%, rank correlation {:.4}, {:.1} s",
            self.texts,
            self.onnxruntime,
            self.cosine,
            self.relative,
            self.score,
            self.unfolded,
            100.0 * self.top1,
            self.rank_correlation,
            self.seconds
        )
    }
}

/// Opens the bundle at `dir` with the runtime and compares it with the student's own scores and latents.
pub fn verify(dir: &Path, golden: &GoldenSet, options: &SessionOptions) -> Result<ParityReport, ExportError> {
    let start = Instant::now();
    let library = session::load(options.ort_dylib.as_deref()).map_err(ExportError::cannot_run)?;
    let bundle = Arc::new(Bundle::open(dir).map_err(ExportError::cannot_run)?);
    let encoder = Encoder::open(Arc::clone(&bundle), options).map_err(ExportError::cannot_run)?;
    let mut queries = Vec::with_capacity(golden.scores.queries.len());
    for query in &golden.scores.queries {
        queries.push(encoder.query(query).map_err(ExportError::cannot_run)?);
    }
    let texts: Vec<&str> = golden.scores.documents.iter().map(String::as_str).collect();
    let documents = encoder.documents(&texts).map_err(ExportError::cannot_run)?;

    let (mut cosine, mut relative) = (1f64, 0f64);
    let mut compare = |expected: &Matrix, found: &mut dyn Iterator<Item = &[f32]>| {
        for (expected, found) in expected.values.chunks_exact(expected.columns).zip(found) {
            let row = Difference::between(expected, found);
            (cosine, relative) = (cosine.min(row.cosine), relative.max(row.relative));
        }
    };
    compare(&golden.query, &mut queries.iter().map(|e| e.latent.as_slice()));
    compare(&golden.document, &mut documents.iter().map(|e| e.latent.as_slice()));
    if let Some(answer) = &golden.answer {
        compare(answer, &mut queries.iter().filter_map(|e| e.answer.as_deref()));
    }

    let stored: Vec<Vec<f32>> = documents.iter().map(|e| bundle.folded.document(&e.latent)).collect();
    let scores: Vec<Vec<f32>> = queries
        .iter()
        .map(|query| {
            let query = encoder.fold_query(query);
            stored.iter().map(|document| query.score(document)).collect()
        })
        .collect();
    let unfolded = unfolded_difference(&bundle, options, &queries, &documents, &scores)?;
    let n = queries.len();
    let pairs = || golden.scores.scores.iter().zip(&scores);
    let score = pairs().flat_map(|(a, b)| a.iter().zip(b)).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
    let agreed = pairs().filter(|(expected, found)| same_top1(expected, found)).count();
    let bundle_pairs =
        golden.scores.queries.iter().zip(&golden.scores.documents).zip(&scores).zip(0..GOLDEN_PAIRS);
    let mut report = ParityReport {
        failed: Vec::new(),
        golden: bundle_pairs
            .map(|(((query, document), scores), i)| Golden {
                query: query.clone(),
                document: document.clone(),
                score: scores[i],
            })
            .collect(),
        texts: 2 * n,
        seconds: start.elapsed().as_secs_f64(),
        onnxruntime: library.version,
        precision: bundle.manifest.encoder.precision,
        cosine,
        relative,
        score,
        unfolded,
        top1: agreed as f64 / n as f64,
        rank_correlation: pairs().map(|(a, b)| spearman(a, b)).sum::<f64>() / n as f64,
    };
    report.check();
    Ok(report)
}

/// Largest difference between `predictor.onnx` and the folded score, over each query's own document and its neighbour.
fn unfolded_difference(
    bundle: &Bundle,
    options: &SessionOptions,
    queries: &[Embedding],
    documents: &[Embedding],
    scores: &[Vec<f32>],
) -> Result<f32, ExportError> {
    let predictor = Predictor::open(bundle, options).map_err(ExportError::cannot_run)?;
    let mut most = 0f32;
    for (i, query) in queries.iter().enumerate() {
        for j in [i, (i + 1) % documents.len()] {
            let score = predictor.score(query, &documents[j]).map_err(ExportError::cannot_run)?;
            most = most.max((score - scores[i][j]).abs());
        }
    }
    Ok(most)
}

/// How far two vectors lie apart.
struct Difference {
    cosine: f64,
    relative: f64,
}

impl Difference {
    fn between(expected: &[f32], found: &[f32]) -> Self {
        let pairs = || expected.iter().zip(found).map(|(a, b)| (f64::from(*a), f64::from(*b)));
        let dot: f64 = pairs().map(|(a, b)| a * b).sum();
        let lengths: f64 =
            pairs().map(|(a, _)| a * a).sum::<f64>().sqrt() * pairs().map(|(_, b)| b * b).sum::<f64>().sqrt();
        let most = pairs().map(|(a, _)| a.abs()).fold(0.0, f64::max);
        let apart = pairs().map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        // Two vectors of zeros are the same; one of them alone is as wrong as can be.
        let same = apart == 0.0;
        Self {
            cosine: if same {
                1.0
            } else if lengths > 0.0 {
                dot / lengths
            } else {
                0.0
            },
            relative: if same {
                0.0
            } else if most > 0.0 {
                apart / most
            } else {
                f64::INFINITY
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A check that measures wrongly would accept every broken bundle.
    #[test]
    fn measures_know_equal_from_different() {
        let a = [1.0, 2.0, -4.0];
        let same = Difference::between(&a, &a);
        assert_eq!((same.cosine, same.relative), (1.0, 0.0));
        let off = Difference::between(&a, &[1.0, 2.0, -3.6]);
        assert!((off.relative - 0.1).abs() < 1e-6 && off.cosine < 1.0);
        assert_eq!(Difference::between(&a, &[0.0; 3]).cosine, 0.0);
    }
}
