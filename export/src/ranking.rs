//! What fewer bits cost where it counts: two bundles of one student rank a BEIR data set, and the rankings are compared.

use crate::error::ExportError;
use models::beir::{BeirData, Qrels};
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

/// Judged queries to compare on.
#[derive(Debug, Clone)]
pub struct RankingData {
    /// Data set in BEIR layout.
    pub dir: PathBuf,
    /// Its split.
    pub split: String,
    /// Most queries, the first of the split by id; 0 = all.
    pub queries: usize,
}

/// Two rankings compared, means over queries; each first the reference's, then the bundle's.
#[derive(Debug, Clone)]
pub struct RankingProof {
    /// Folder's name and split.
    pub data: String,
    queries: usize,
    documents: usize,
    /// Share of queries whose first document is the reference's first.
    pub top1: f64,
    rank_correlation: f64,
    ndcg: [f64; 2],
    recall: [f64; 2],
    /// Limits that are not held, in words.
    pub failed: Vec<String>,
}

/// What is ranked, and by which queries.
pub struct Judged {
    /// Folder's name and split.
    name: String,
    beir: BeirData,
    qrels: Qrels,
    /// Places of the documents that are ranked.
    documents: Vec<usize>,
}

/// Scores of the documents for each query, in their orders.
pub type Scores = Vec<Vec<f32>>;

impl Judged {
    /// All documents and the queries asked for.
    pub fn open(data: &RankingData) -> Result<Self, ExportError> {
        let beir = BeirData::open(&data.dir)?;
        let mut qrels = beir.qrels(&data.split)?;
        if data.queries > 0 {
            qrels = qrels.into_iter().take(data.queries).collect();
        }
        let name = data.dir.file_name().unwrap_or(data.dir.as_os_str()).to_string_lossy();
        let documents = (0..beir.documents.len()).collect();
        Ok(Self { name: format!("{name}, {}", data.split), beir, qrels, documents })
    }

    /// At most so many queries, and documents beside their relevant ones, spread over the data.
    pub fn some(mut self, queries: usize, documents: usize) -> Self {
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

    /// How a bundle scores.
    pub fn scores(&self, dir: &Path, options: &SessionOptions) -> Result<Scores, ExportError> {
        let runs = |error: &dyn std::error::Error| ExportError::Runtime(error.to_string());
        let bundle = Arc::new(Bundle::open(dir).map_err(|e| runs(&e))?);
        let encoder = Encoder::open(Arc::clone(&bundle), options).map_err(|e| runs(&e))?;
        let contents: Vec<String> =
            self.documents.iter().map(|place| self.beir.documents[*place].contents()).collect();
        let texts: Vec<&str> = contents.iter().map(String::as_str).collect();
        let mut documents = Vec::with_capacity(texts.len());
        for embedding in encoder.documents(&texts).map_err(|e| runs(&e))? {
            documents.push(bundle.folded.document(&embedding.latent));
        }
        let mut all = Vec::with_capacity(self.qrels.len());
        for id in self.qrels.keys() {
            let query = &self.beir.queries[self.beir.query_index[id]];
            let query = encoder.fold_query(&encoder.query(&query.text).map_err(|e| runs(&e))?);
            all.push(documents.iter().map(|document| query.score(document)).collect());
        }
        Ok(all)
    }

    /// The ranking by `after`, from a bundle of this precision, held to that by `before`.
    pub fn compare(&self, before: &Scores, after: &Scores, precision: Precision) -> RankingProof {
        let mut proof = RankingProof {
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
                let ids = self.documents.iter().map(|place| self.beir.documents[*place].id.clone());
                let mut ranked: Vec<(String, f32)> = ids.zip(scores.iter().copied()).collect();
                rank(&mut ranked);
                ranked
            });
            let first = |order: &[(String, f32)]| order.first().map(|(id, _)| id.clone());
            proof.top1 += f64::from(u8::from(first(&orders[0]) == first(&orders[1]))) / n;
            proof.rank_correlation += spearman(before, after) / n;
            for (side, order) in orders.iter().enumerate() {
                let ids: Vec<&str> = order.iter().map(|(id, _)| id.as_str()).collect();
                proof.ndcg[side] += ndcg_at_k(&ids, judgements, 10).unwrap_or(0.0) / n;
                proof.recall[side] += recall_at_k(&ids, judgements, 1).unwrap_or(0.0) / n;
            }
        }
        proof.check(precision);
        proof
    }
}

impl RankingProof {
    /// Share of first choices that must stay, and how far nDCG@10 may move.
    fn limits(precision: Precision) -> (f64, f64) {
        match precision {
            Precision::Fp32 | Precision::Fp16 => (0.99, 0.002),
            Precision::Int8 => (0.98, 0.005),
            Precision::Int4 => (0.95, 0.01),
        }
    }

    /// Whether no limit is missed.
    pub fn holds(&self) -> bool {
        self.failed.is_empty()
    }

    /// Whether first choices stay a standard error more often than they must: what was chosen on these queries should hold
    /// on others too.
    pub fn has_to_spare(&self, precision: Precision) -> bool {
        let (agreement, _) = Self::limits(precision);
        let error = (agreement * (1.0 - agreement) / self.queries.max(1) as f64).sqrt();
        self.top1 >= agreement + error
    }

    /// First choices must mostly stay, and quality must neither fall nor rise much.
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

impl fmt::Display for RankingProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "ranking    {}, {} queries, {} documents: top-1 {:.1}%, rank correlation {:.4}, nDCG@10 {:.4} ({:+.4}), \
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

    /// A limit that is just held on a few queries is missed on others half of the time.
    #[test]
    fn to_spare_is_more_than_held_and_less_of_it_on_more_queries() {
        let proof = |queries: usize, top1: f64| RankingProof {
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
                proof(queries, top1).has_to_spare(Precision::Int8),
                expected,
                "{queries} queries, {top1}"
            );
        }
    }
}
