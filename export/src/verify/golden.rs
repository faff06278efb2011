//! Reference scores and latents that `train` leaves in a student or teacher directory.

use crate::error::ExportError;
use crate::matrix::Matrix;
use crate::source::tensors::TensorSource;
use models::files;
use models::student::{Residual, StudentConfig};
use serde::Deserialize;
use std::path::Path;

/// Texts and scores.
pub const SCORES_FILE: &str = "golden.json";
/// Latents.
pub const LATENTS_FILE: &str = "golden.safetensors";
/// Pairs of a query and a document that go into the bundle.
pub const GOLDEN_PAIRS: usize = 4;
/// Two documents whose reference scores are this close are both the top document.
const TIE: f32 = 1e-3;

/// `golden.json`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GoldenScores {
    /// Texts.
    pub queries: Vec<String>,
    /// Texts.
    pub documents: Vec<String>,
    /// `scores[i][j]` of query i and document j.
    pub scores: Vec<Vec<f32>>,
}

/// The student's own latents and scores of a few texts, encoded one at a time and unpadded.
#[derive(Debug)]
pub struct GoldenSet {
    /// Texts and their scores.
    pub scores: GoldenScores,
    /// Latents of the queries, `[n, D]`.
    pub query: Matrix,
    /// Latents of the documents, `[n, D]`.
    pub document: Matrix,
    /// Last hidden states of the queries, `[n, H]`, where the student has that residual.
    pub answer: Option<Matrix>,
}

impl GoldenSet {
    /// Reads both files of a student directory; they must agree with each other and with `student`.
    pub fn open(dir: &Path, student: &StudentConfig) -> Result<Self, ExportError> {
        let (scores_file, latents_file) = (dir.join(SCORES_FILE), dir.join(LATENTS_FILE));
        for file in [&scores_file, &latents_file] {
            if !file.exists() {
                return Err(ExportError::NoGolden { file: file.clone() });
            }
        }
        let scores: GoldenScores = files::read_json(&scores_file)?;
        let n = scores.queries.len();
        let square = scores.scores.len() == n && scores.scores.iter().all(|row| row.len() == n);
        if n == 0 || scores.documents.len() != n || !square {
            let reason = format!(
                "{n} queries, {} documents, {} rows of scores; expected one or more, and the same number of each",
                scores.documents.len(),
                scores.scores.len()
            );
            return Err(ExportError::Golden { file: scores_file, reason });
        }
        let mut source = TensorSource::open_file(&latents_file)?;
        let mut latents = |name: &str, columns: usize| -> Result<Matrix, ExportError> {
            let matrix = source.matrix(name)?;
            if (matrix.rows, matrix.columns) == (n, columns) {
                return Ok(matrix);
            }
            let (found, expected) = (vec![matrix.rows, matrix.columns], vec![n, columns]);
            Err(ExportError::Shape { file: latents_file.clone(), name: name.to_owned(), found, expected })
        };
        let query = latents("query", student.dimensions())?;
        let document = latents("document", student.dimensions())?;
        let answer = match student.residual {
            Residual::LastToken => Some(latents("answer", student.hidden_size)?),
            Residual::Pooled => None,
        };
        Ok(Self { scores, query, document, answer })
    }
}

/// Whether the document that `found` ranks first is ranked first, or tied for it, in `expected`.
pub fn same_top1(expected: &[f32], found: &[f32]) -> bool {
    let best = expected.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let first = found.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map(|(i, _)| i);
    first.and_then(|i| expected.get(i)).is_some_and(|score| *score >= best - TIE)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same document twice among the goldens is no disagreement; another document is.
    #[test]
    fn tied_documents_are_both_first() {
        assert!(same_top1(&[2.0, 2.0, 1.0], &[1.9, 2.0, 1.0]));
        assert!(!same_top1(&[2.0, 2.0, 1.0], &[1.0, 1.0, 2.0]));
    }
}
