//! What fewer bits cost where it counts: two bundles of one student rank a BEIR data set, and the rankings are compared.

use crate::error::ExportError;
use models::beir::{BeirData, Qrels};
use models::manifest::Precision;
use models::metrics::{ndcg_at_k, rank, recall_at_k, spearman};
use runtime::bundle::Bundle;
use runtime::encoder::Encoder;
use runtime::session::SessionOptions;
use serde_json::json;
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

/// Ranks all documents for the split's queries by both bundles.
pub fn compare(
    reference: &Path,
    bundle: &Path,
    data: &RankingData,
    options: &SessionOptions,
) -> Result<RankingProof, ExportError> {
    let beir = BeirData::open(&data.dir)?;
    let mut qrels = beir.qrels(&data.split)?;
    if data.queries > 0 {
        qrels = qrels.into_iter().take(data.queries).collect();
    }
    let [(before, _), (after, precision)] =
        [scores(reference, &beir, &qrels, options)?, scores(bundle, &beir, &qrels, options)?];
    let name = data.dir.file_name().unwrap_or(data.dir.as_os_str()).to_string_lossy();
    let mut proof = RankingProof {
        data: format!("{name}, {}", data.split),
        queries: qrels.len(),
        documents: beir.documents.len(),
        top1: 0.0,
        rank_correlation: 0.0,
        ndcg: [0.0; 2],
        recall: [0.0; 2],
        failed: Vec::new(),
    };
    let n = qrels.len().max(1) as f64;
    for (judgements, (before, after)) in qrels.values().zip(before.iter().zip(&after)) {
        let orders = [before, after].map(|scores| {
            let ids = beir.documents.iter().map(|document| document.id.clone());
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
    Ok(proof)
}

/// Scores of every document for every query, and the bundle's precision.
fn scores(
    dir: &Path,
    beir: &BeirData,
    qrels: &Qrels,
    options: &SessionOptions,
) -> Result<(Vec<Vec<f32>>, Precision), ExportError> {
    let runs = |error: &dyn std::error::Error| ExportError::Runtime(error.to_string());
    let bundle = Arc::new(Bundle::open(dir).map_err(|e| runs(&e))?);
    let encoder = Encoder::open(Arc::clone(&bundle), options).map_err(|e| runs(&e))?;
    let contents: Vec<String> = beir.documents.iter().map(models::beir::Document::contents).collect();
    let texts: Vec<&str> = contents.iter().map(String::as_str).collect();
    let mut documents = Vec::with_capacity(texts.len());
    for embedding in encoder.documents(&texts).map_err(|e| runs(&e))? {
        documents.push(bundle.folded.document(&embedding.latent));
    }
    let mut all = Vec::with_capacity(qrels.len());
    for id in qrels.keys() {
        let query = &beir.queries[beir.query_index[id]];
        let query = encoder.fold_query(&encoder.query(&query.text).map_err(|e| runs(&e))?);
        all.push(documents.iter().map(|document| query.score(document)).collect());
    }
    Ok((all, bundle.manifest.encoder.precision))
}

impl RankingProof {
    /// First choices must mostly stay, and quality must not fall; a gain is no fault.
    fn check(&mut self, precision: Precision) {
        let (agreement, loss) = match precision {
            Precision::Fp32 | Precision::Fp16 => (0.99, 0.002),
            Precision::Int8 => (0.98, 0.005),
            Precision::Int4 => (0.95, 0.01),
        };
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
