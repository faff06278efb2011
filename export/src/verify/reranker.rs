//! The parity check of a reranker: the new bundle, run by the `runtime` library, against the teacher's own scores.

use crate::error::ExportError;
use crate::verify::golden::{GOLDEN_PAIRS, GoldenScores, SCORES_FILE, same_top1};
use models::files;
use models::manifest::{Golden, Precision};
use models::metrics::spearman;
use runtime::reranker::Reranker;
use runtime::session::SessionOptions;
use serde_json::json;
use std::fmt;
use std::path::Path;

/// What was measured.
#[derive(Debug, Clone)]
pub struct RerankerParity {
    /// Limits that are exceeded, in words.
    pub failed: Vec<String>,
    /// Pairs with this bundle's own scores.
    pub golden: Vec<Golden>,
    pairs: usize,
    /// Largest difference of a score.
    score: f32,
    /// Share of the queries whose top document is the teacher's.
    top1: f64,
    /// Mean over the queries of Spearman's correlation of the scores.
    rank_correlation: f64,
}

impl RerankerParity {
    /// For the manifest.
    pub fn to_json(&self) -> serde_json::Value {
        json!({
            "held": self.failed.is_empty(), "failed": self.failed, "pairs": self.pairs,
            "score_difference_max": self.score, "top1_agreement": self.top1,
            "rank_correlation": self.rank_correlation,
        })
    }
}

impl fmt::Display for RerankerParity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "parity     {} pairs: difference of scores {:.1e}, top-1 agreement {:.1}%, rank correlation {:.4}",
            self.pairs,
            self.score,
            100.0 * self.top1,
            self.rank_correlation
        )
    }
}

/// Scores the golden pairs of the model directory `teacher` with the bundle at `dir`; none where the model brings no scores.
pub fn verify_reranker(
    dir: &Path,
    teacher: &Path,
    precision: Precision,
    options: &SessionOptions,
) -> Result<Option<RerankerParity>, ExportError> {
    let file = teacher.join(SCORES_FILE);
    if !file.exists() {
        return Ok(None);
    }
    let GoldenScores { queries, documents, scores: expected } = files::read_json(&file)?;
    let reranker = Reranker::open(dir, options).map_err(ExportError::cannot_run)?;
    let texts: Vec<&str> = documents.iter().map(String::as_str).collect();
    let mut found: Vec<Vec<f32>> = Vec::with_capacity(queries.len());
    for query in &queries {
        found.push(reranker.scores(query, &texts).map_err(ExportError::cannot_run)?);
    }
    let rows = || expected.iter().zip(&found);
    let score = rows().flat_map(|(a, b)| a.iter().zip(b)).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
    let n = queries.len().max(1) as f64;
    let rank_correlation = rows().map(|(a, b)| spearman(a, b)).sum::<f64>() / n;
    let failed = match precision {
        Precision::Fp32 if score > 1e-2 => {
            vec![format!("difference of a score is {score}, expected at most 0.01")]
        }
        Precision::Int8 | Precision::Int4 if rank_correlation < 0.8 => {
            vec![format!("rank correlation is {rank_correlation:.3}, expected at least 0.8")]
        }
        _ => Vec::new(),
    };
    Ok(Some(RerankerParity {
        failed,
        golden: (0..queries.len().min(documents.len()).min(GOLDEN_PAIRS))
            .map(|i| Golden { query: queries[i].clone(), document: documents[i].clone(), score: found[i][i] })
            .collect(),
        pairs: queries.len() * documents.len(),
        score,
        top1: rows().filter(|(a, b)| same_top1(a, b)).count() as f64 / n,
        rank_correlation,
    }))
}
