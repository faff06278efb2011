//! What quantising costs in ranking quality: two bundles of one student rank a BEIR data set, and the rankings are compared.

use crate::error::ExportError;
use models::beir::{BeirData, Purpose, Qrels, SplitQrels};
use models::manifest::Precision;
use models::metrics::{ndcg_at_k, rank, recall_at_k, spearman};
use runtime::bundle::Bundle;
use runtime::encoder::Encoder;
use runtime::session::SessionOptions;
use serde_json::json;
use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Queries with relevance judgements to compare on.
#[derive(Debug, Clone)]
pub struct RankingData {
    /// Data set in BEIR layout.
    pub dir: PathBuf,
    /// Its split.
    pub split: String,
    /// Maximum number of queries, the first of the split by id; 0 = all.
    pub queries: usize,
}

/// Two rankings compared, as means over queries; in pairs the reference comes first.
#[derive(Debug, Clone)]
pub struct RankingReport {
    /// Folder's name and split.
    pub data: String,
    queries: usize,
    documents: usize,
    /// Share of queries whose top document is the same in both.
    pub top1: f64,
    rank_correlation: f64,
    ndcg: [f64; 2],
    recall: [f64; 2],
    /// Limits that are exceeded, in words.
    pub failed: Vec<String>,
}

/// The documents that are ranked, and the queries that rank them.
pub struct JudgedData {
    /// Folder's name and split.
    name: String,
    beir: BeirData,
    qrels: Qrels,
    notes: Vec<String>,
    /// Indexes of the documents that are ranked.
    documents: Vec<usize>,
}

/// Scores of the documents for each query, in their orders.
pub type Scores = Vec<Vec<f32>>;

impl JudgedData {
    /// All documents and the queries asked for.
    pub fn open(data: &RankingData) -> Result<Self, ExportError> {
        let beir = BeirData::open(&data.dir)?;
        let SplitQrels { mut qrels, notes } = beir.qrels(&data.split, Purpose::Measuring)?;
        let notes = [beir.notes.as_slice(), &notes].concat();
        if data.queries > 0 {
            qrels = qrels.into_iter().take(data.queries).collect();
        }
        let name = data.dir.file_name().unwrap_or(data.dir.as_os_str()).to_string_lossy();
        let documents = (0..beir.documents.len()).collect();
        Ok(Self { name: format!("{name}, {}", data.split), beir, qrels, notes, documents })
    }

    /// What of the data was passed over, a sentence for each kind.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// At most this many queries, and documents besides the relevant ones, evenly spread over the data.
    pub fn sample(mut self, queries: usize, documents: usize) -> Self {
        let all: Vec<_> = self.qrels.into_iter().collect();
        let step = all.len().div_ceil(queries).max(1);
        self.qrels = all.into_iter().step_by(step).collect();
        let relevant = self.qrels.values().flat_map(|judgements| judgements.keys());
        let mut chosen: BTreeSet<usize> =
            relevant.filter_map(|id| self.beir.document_index.get(id).copied()).collect();
        let step = self.documents.len().div_ceil(documents).max(1);
        chosen.extend(self.documents.iter().step_by(step));
        self.documents = chosen.into_iter().collect();
        self
    }

    /// The scores of the bundle at `dir`.
    pub fn scores(&self, dir: &Path, options: &SessionOptions) -> Result<Scores, ExportError> {
        let bundle = Arc::new(Bundle::open(dir).map_err(ExportError::cannot_run)?);
        let encoder = Encoder::open(Arc::clone(&bundle), options).map_err(ExportError::cannot_run)?;
        let contents: Vec<String> =
            self.documents.iter().map(|index| self.beir.documents[*index].contents()).collect();
        let texts: Vec<&str> = contents.iter().map(String::as_str).collect();
        let mut documents = Vec::with_capacity(texts.len());
        for embedding in encoder.documents(&texts).map_err(ExportError::cannot_run)? {
            documents.push(bundle.folded.document(&embedding.latent));
        }
        let mut all = Vec::with_capacity(self.qrels.len());
        for id in self.qrels.keys() {
            let query = &self.beir.queries[self.beir.query_index[id]];
            let query = encoder.fold_query(&encoder.query(&query.text).map_err(ExportError::cannot_run)?);
            all.push(documents.iter().map(|document| query.score(document)).collect());
        }
        Ok(all)
    }

    /// Compares the ranking by `after`, from a bundle of this precision, with the ranking by `before`.
    pub fn compare(&self, before: &Scores, after: &Scores, precision: Precision) -> RankingReport {
        let mut report = RankingReport {
            data: self.name.clone(),
            queries: self.qrels.len(),
            documents: self.documents.len(),
            top1: 0.0,
            rank_correlation: 0.0,
            ndcg: [0.0; 2],
            recall: [0.0; 2],
            failed: Vec::new(),
        };
        let n = self.qrels.len().max(1) as f64;
        for (judgements, (before, after)) in self.qrels.values().zip(before.iter().zip(after)) {
            let orders = [before, after].map(|scores| {
                let ids = self.documents.iter().map(|index| self.beir.documents[*index].id.clone());
                let mut ranked: Vec<(String, f32)> = ids.zip(scores.iter().copied()).collect();
                rank(&mut ranked);
                ranked
            });
            let first = |order: &[(String, f32)]| order.first().map(|(id, _)| id.clone());
            report.top1 += f64::from(u8::from(first(&orders[0]) == first(&orders[1]))) / n;
            report.rank_correlation += spearman(before, after) / n;
            for (side, order) in orders.iter().enumerate() {
                let ids: Vec<&str> = order.iter().map(|(id, _)| id.as_str()).collect();
                report.ndcg[side] += ndcg_at_k(&ids, judgements, 10).unwrap_or(0.0) / n;
                report.recall[side] += recall_at_k(&ids, judgements, 1).unwrap_or(0.0) / n;
            }
        }
        report.check(precision);
        report
    }
}

impl RankingReport {
    /// Smallest top-1 agreement, and largest change of nDCG@10.
    fn limits(precision: Precision) -> (f64, f64) {
        match precision {
            Precision::Fp32 | Precision::Fp16 => (0.99, 0.002),
            Precision::Int8 => (0.98, 0.005),
            Precision::Int4 => (0.95, 0.01),
        }
    }

    /// Whether all limits are met.
    pub fn passes(&self) -> bool {
        self.failed.is_empty()
    }

    /// Whether top-1 agreement exceeds its limit by a standard error: what was chosen on these queries should pass on others
    /// too.
    pub fn has_margin(&self, precision: Precision) -> bool {
        let (agreement, _) = Self::limits(precision);
        let error = (agreement * (1.0 - agreement) / self.queries.max(1) as f64).sqrt();
        self.top1 >= agreement + error
    }

    /// The top document must mostly stay the same, and quality must neither fall nor rise much.
    fn check(&mut self, precision: Precision) {
        let (agreement, loss) = Self::limits(precision);
        if self.top1 < agreement {
            self.failed.push(format!(
                "top-1 agreement on {} is {:.1}%, expected at least {:.0}%",
                self.data,
                100.0 * self.top1,
                100.0 * agreement
            ));
        }
        let change = self.ndcg[1] - self.ndcg[0];
        if change.abs() > loss {
            self.failed.push(format!(
                "nDCG@10 on {} changes by {change:+.4}, expected at most {loss} either way",
                self.data
            ));
        }
    }

    /// For the manifest.
    pub fn to_json(&self) -> serde_json::Value {
        json!({
            "data": self.data, "queries": self.queries, "documents": self.documents,
            "top1_agreement": self.top1, "rank_correlation": self.rank_correlation,
            "ndcg_at_10": self.ndcg[1], "ndcg_at_10_fp32": self.ndcg[0],
            "recall_at_1": self.recall[1], "recall_at_1_fp32": self.recall[0],
        })
    }
}

impl fmt::Display for RankingReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "ranking    {}, {} queries, {} documents: top-1 agreement {:.1}%, rank correlation {:.4}, nDCG@10 {:.4} ({:+.4}), \
             Recall@1 {:.4} ({:+.4})",
            self.data,
            self.queries,
            self.documents,
            100.0 * self.top1,
            self.rank_correlation,
            self.ndcg[1],
            self.ndcg[1] - self.ndcg[0],
            self.recall[1],
            self.recall[1] - self.recall[0]
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A limit that is only just met on a few queries is exceeded on others half of the time.
    #[test]
    fn a_margin_is_more_than_the_limit_and_smaller_with_more_queries() {
        let report = |queries: usize, top1: f64| RankingReport {
            data: String::new(),
            queries,
            documents: 10,
            top1,
            rank_correlation: 1.0,
            ndcg: [0.5; 2],
            recall: [0.5; 2],
            failed: Vec::new(),
        };
        for (queries, top1, expected) in [
            (256, 0.98, false),
            (256, 0.989, true),
            (50, 0.989, false),
            (50, 1.0, true),
            (25_600, 0.981, true),
        ] {
            assert_eq!(
                report(queries, top1).has_margin(Precision::Int8),
                expected,
                "{queries} queries, {top1}"
            );
        }
    }
}
