//! Runs (who ranked what how) and what they are worth.

use crate::fit::Metrics;
use anyhow::{Context, Result};
use models::beir::Qrels;
use models::files::write_atomic;
use models::metrics::{mrr_at_k, ndcg_at_k, rank, recall_at_k};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

/// Scores of one system: query id to (document id, score).
#[derive(Debug, Clone, Default)]
pub struct Run {
    results: BTreeMap<String, Vec<(String, f32)>>,
}

/// Metrics in the order in which tables show them.
pub const COLUMNS: [&str; 5] = ["Recall@1", "Recall@3", "Recall@10", "MRR@10", "nDCG@10"];

impl Run {
    /// Adds one scored document.
    pub fn add(&mut self, query: &str, document: &str, score: f32) {
        self.results.entry(query.to_owned()).or_default().push((document.to_owned(), score));
    }

    /// Ids of the first `k` documents of each query.
    pub fn top(&self, k: usize) -> BTreeMap<String, Vec<String>> {
        let ranked = |results: &Vec<(String, f32)>| {
            let mut results = results.clone();
            rank(&mut results);
            results.into_iter().take(k).map(|(id, _)| id).collect()
        };
        self.results.iter().map(|(query, results)| (query.clone(), ranked(results))).collect()
    }

    /// Writes the first `depth` documents of each query as a TREC run: `qid Q0 docno rank sim run_id`.
    pub fn write_trec(&self, file: &Path, name: &str, depth: usize) -> Result<()> {
        write_atomic(file, |writer| {
            for (query, results) in &self.results {
                let mut results = results.clone();
                rank(&mut results);
                for (place, (document, score)) in results.iter().take(depth).enumerate() {
                    writeln!(writer, "{query} Q0 {document} {} {score} {name}", place + 1)?;
                }
            }
            Ok(())
        })
        .with_context(|| format!("cannot write run {}", file.display()))
    }
}

/// Means over the run's queries that have relevant documents, by name of [`COLUMNS`].
pub fn measure(run: &Run, qrels: &Qrels) -> Metrics {
    let mut sums = Metrics::new();
    let mut count = 0.0;
    for (query, results) in &run.results {
        let Some(judgements) = qrels.get(query) else { continue };
        let mut results = results.clone();
        rank(&mut results);
        let ranked: Vec<&str> = results.iter().map(|(id, _)| id.as_str()).collect();
        let values = [
            recall_at_k(&ranked, judgements, 1),
            recall_at_k(&ranked, judgements, 3),
            recall_at_k(&ranked, judgements, 10),
            mrr_at_k(&ranked, judgements, 10),
            ndcg_at_k(&ranked, judgements, 10),
        ];
        if values[0].is_some() {
            count += 1.0;
        }
        for (name, value) in COLUMNS.iter().zip(values) {
            *sums.entry((*name).to_owned()).or_default() += value.unwrap_or(0.0);
        }
    }
    sums.values_mut().for_each(|sum| *sum /= f64::max(count, 1.0));
    sums
}

/// One line of the table.
pub struct Row {
    /// System.
    pub name: String,
    /// Queries judged.
    pub queries: usize,
    /// By name of [`COLUMNS`].
    pub metrics: Metrics,
    /// Seconds that the ranking took.
    pub seconds: f64,
}

/// A table in Markdown, which terminals show well too.
pub fn table(title: &str, rows: &[Row]) -> String {
    let width = rows.iter().map(|row| row.name.len()).chain([title.len()]).max().unwrap_or(0);
    let mut text = format!("| {title:width$} | queries | {} | seconds |\n", COLUMNS.join(" | "));
    let dashes = COLUMNS.map(|name| "-".repeat(name.len() - 1) + ":").join(" | ");
    text += &format!("| {} | ------: | {dashes} | ------: |\n", "-".repeat(width));
    for row in rows {
        let values: Vec<String> = COLUMNS
            .iter()
            .map(|name| format!("{:>1$.3}", row.metrics.get(*name).copied().unwrap_or(0.0), name.len()))
            .collect();
        text += &format!(
            "| {:width$} | {:>7} | {} | {:>7.1} |\n",
            row.name,
            row.queries,
            values.join(" | "),
            row.seconds
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two queries, one found first and one third: the means of a paper's table, and a run file trec_eval reads.
    #[test]
    fn means_are_over_queries_and_runs_are_trec() {
        let mut run = Run::default();
        for (query, document, score) in
            [("q1", "a", 2.0), ("q1", "b", 1.0), ("q2", "a", 3.0), ("q2", "b", 2.0), ("q2", "c", 1.0)]
        {
            run.add(query, document, score);
        }
        let judged = |id: &str| [(id.to_owned(), 1)].into_iter().collect();
        let qrels = Qrels::from([("q1".to_owned(), judged("a")), ("q2".to_owned(), judged("c"))]);
        let metrics = measure(&run, &qrels);
        assert_eq!(metrics["Recall@1"], 0.5);
        assert!((metrics["MRR@10"] - (1.0 + 1.0 / 3.0) / 2.0).abs() < 1e-12);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.trec");
        run.write_trec(&file, "x", 1).unwrap();
        assert_eq!(std::fs::read_to_string(file).unwrap(), "q1 Q0 a 1 2 x\nq2 Q0 a 1 3 x\n");
    }
}
