//! Runs (who ranked what how), their metrics, and TREC's files of them.

use crate::fit::Metrics;
use anyhow::{Context, Result, bail};
use models::beir::{BeirData, Qrels};
use models::files::write_atomic;
use models::metrics::{Judgements, mrr_at_k, ndcg_at_k, rank, recall_at_k};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::Write;
use std::path::Path;

/// Scores of one system: query id to (document id, score).
#[derive(Debug, Clone, Default)]
pub struct Run {
    results: BTreeMap<String, Vec<(String, f32)>>,
}

/// Metrics in the order in which tables show them.
pub const COLUMNS: [&str; 5] = ["Recall@1", "Recall@3", "Recall@10", "MRR@10", "nDCG@10"];

/// One query's metrics, in the order of [`COLUMNS`].
pub type Values = [f64; COLUMNS.len()];

impl Run {
    /// Adds one scored document.
    pub fn add(&mut self, query: &str, document: &str, score: f32) {
        self.results.entry(query.to_owned()).or_default().push((document.to_owned(), score));
    }

    /// Each query's documents with their scores, best first.
    pub fn ranked(&self) -> impl Iterator<Item = (&str, Vec<(String, f32)>)> {
        self.results.iter().map(|(query, results)| {
            let mut results = results.clone();
            rank(&mut results);
            (query.as_str(), results)
        })
    }

    /// Ids of the first `k` documents of each query.
    pub fn top(&self, k: usize) -> BTreeMap<String, Vec<String>> {
        let ids = |ranked: Vec<(String, f32)>| ranked.into_iter().take(k).map(|(id, _)| id).collect();
        self.ranked().map(|(query, ranked)| (query.to_owned(), ids(ranked))).collect()
    }

    /// This run's documents as it scores them, and behind them, in the order of `first`, those that only `first` has.
    ///
    /// Without them a reranker of fewer than ten documents would be punished in every metric at 10 for what it was never
    /// shown.
    pub fn followed_by(mut self, first: &Run) -> Self {
        for (query, ranked) in first.ranked() {
            let results = self.results.entry(query.to_owned()).or_default();
            let reranked: HashSet<String> = results.iter().map(|(id, _)| id.clone()).collect();
            let lowest = results.iter().map(|(_, score)| *score).fold(f32::INFINITY, f32::min);
            let mut next = if lowest.is_finite() { lowest } else { 0.0 };
            for (id, _) in ranked.into_iter().filter(|(id, _)| !reranked.contains(id)) {
                next -= 1.0;
                results.push((id, next));
            }
        }
        self
    }

    /// Writes the first `depth` documents of each query as a TREC run: `qid Q0 docno rank sim run_id`.
    pub fn write_trec(&self, file: &Path, name: &str, depth: usize) -> Result<()> {
        write_atomic(file, |writer| {
            for (query, ranked) in self.ranked() {
                for (place, (document, score)) in ranked.iter().take(depth).enumerate() {
                    writeln!(writer, "{query} Q0 {document} {} {score} {name}", place + 1)?;
                }
            }
            Ok(())
        })
        .with_context(|| format!("cannot write run {}", file.display()))
    }

    /// Reads a TREC run on `data`. As in trec_eval, `rank` is not looked at: scores order, and ties are broken by id.
    pub fn read_trec(file: &Path, data: &BeirData) -> Result<Self> {
        let text =
            std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let (mut run, mut seen) = (Self::default(), HashMap::new());
        for (line, text) in text.lines().enumerate().filter(|(_, text)| !text.trim().is_empty()) {
            let line = line + 1;
            let place = format!("{}:{line}", file.display());
            let fields: Vec<&str> = text.split_whitespace().collect();
            let score = fields.get(4).and_then(|sim| sim.parse::<f32>().ok()).filter(|sim| !sim.is_nan());
            let (&[query, _, document, ..], Some(score), 6) = (fields.as_slice(), score, fields.len()) else {
                bail!(
                    "{place}: found `{text}`, expected `qid Q0 docno rank sim run_id` with a number as sim"
                );
            };
            if data.is_empty_document(document) {
                continue;
            }
            let (Some(&q), Some(&d)) = (data.query_index.get(query), data.document_index.get(document))
            else {
                let known = data.query_index.contains_key(query);
                let (what, id, other) = if known {
                    ("document", document, "corpus.jsonl")
                } else {
                    ("query", query, "queries.jsonl")
                };
                bail!("{place}: {what} `{id}` is not in {other} of {}", data.dir.display());
            };
            if let Some(first) = seen.insert((q, d), line) {
                bail!("{place}: document `{document}` of query `{query}` is on line {first} already");
            }
            run.add(query, document, score);
        }
        Ok(run)
    }
}

/// Metrics of each of the run's queries that somebody judged; where nothing was judged to be relevant they are 0, as in
/// trec_eval. What has a gain of at least `level` is relevant (trec_eval's `-l`); nDCG's gains do not depend on it. A document
/// with its query's id is passed over, as BEIR's evaluation does (in its ArguAna and Quora every query is a document), unless
/// somebody judged it.
pub fn per_query(run: &Run, qrels: &Qrels, level: u32) -> BTreeMap<String, Values> {
    let measured = run.ranked().filter_map(|(query, ranked)| {
        let judgements = qrels.get(query)?;
        let ids = ranked.iter().map(|(id, _)| id.as_str());
        let ranked: Vec<&str> = ids.filter(|id| !is_itself(query, id, judgements)).collect();
        Some((query.to_owned(), values(&ranked, judgements, level)))
    });
    measured.collect()
}

/// The same for all judged queries: those that the run lacks count 0 in every metric (trec_eval's `-c`).
pub fn per_judged_query(run: &Run, qrels: &Qrels, level: u32) -> BTreeMap<String, Values> {
    let mut values: BTreeMap<String, Values> =
        qrels.keys().map(|query| (query.clone(), Values::default())).collect();
    values.extend(per_query(run, qrels, level));
    values
}

/// Whether a document is the query, put into the corpus as well.
pub fn is_itself(query: &str, document: &str, judgements: &Judgements) -> bool {
    query == document && !judgements.contains_key(document)
}

fn values(ranked: &[&str], judgements: &Judgements, level: u32) -> Values {
    let relevant: Judgements = judgements
        .iter()
        .filter(|(_, gain)| **gain >= level.max(1))
        .map(|(id, gain)| (id.clone(), *gain))
        .collect();
    [
        recall_at_k(ranked, &relevant, 1),
        recall_at_k(ranked, &relevant, 3),
        recall_at_k(ranked, &relevant, 10),
        mrr_at_k(ranked, &relevant, 10),
        ndcg_at_k(ranked, judgements, 10),
    ]
    .map(|value| value.unwrap_or(0.0))
}

/// Means of per-query metrics, by name of [`COLUMNS`]; zeros where there is no query.
pub fn means<'a>(values: impl IntoIterator<Item = &'a Values>) -> Metrics {
    let (mut sums, mut count) = ([0.0; COLUMNS.len()], 0.0);
    for values in values {
        count += 1.0;
        sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
    }
    COLUMNS.iter().zip(sums).map(|(name, sum)| ((*name).to_owned(), sum / f64::max(count, 1.0))).collect()
}

/// Means over the run's queries that somebody judged, by name of [`COLUMNS`].
pub fn measure(run: &Run, qrels: &Qrels) -> Metrics {
    means(per_query(run, qrels, 1).values())
}

#[cfg(test)]
mod tests {
    use super::*;
    use models::beir::Judgement;
    use std::fs;

    fn run(results: &[(&str, &str, f32)]) -> Run {
        let mut run = Run::default();
        results.iter().for_each(|(query, document, score)| run.add(query, document, *score));
        run
    }

    fn judged(id: &str) -> Judgements {
        [(id.to_owned(), 1)].into_iter().collect()
    }

    /// Two queries, one found first and one third: the means of a paper's table, and a run file trec_eval reads.
    #[test]
    fn means_are_over_queries_and_runs_are_trec() {
        let run =
            run(&[("q1", "a", 2.0), ("q1", "b", 1.0), ("q2", "a", 3.0), ("q2", "b", 2.0), ("q2", "c", 1.0)]);
        let qrels = Qrels::from([("q1".to_owned(), judged("a")), ("q2".to_owned(), judged("c"))]);
        let metrics = measure(&run, &qrels);
        assert_eq!(metrics["Recall@1"], 0.5);
        assert!((metrics["MRR@10"] - (1.0 + 1.0 / 3.0) / 2.0).abs() < 1e-12);
        assert_eq!(per_query(&run, &qrels, 1)["q2"][..3], [0.0, 1.0, 1.0]);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.trec");
        run.write_trec(&file, "x", 1).unwrap();
        assert_eq!(fs::read_to_string(file).unwrap(), "q1 Q0 a 1 2 x\nq2 Q0 a 1 3 x\n");
    }

    /// Graded, negative, tied, lost, unjudged and missing, query by query and in the mean, as trec_eval has them: numbers that
    /// differ from everybody else's cannot stand beside them. A query of which nothing is relevant, or that a system did not
    /// answer, counts as 0 instead of raising the mean. Made by `tests/golden/make_metrics.py`.
    #[test]
    fn metrics_are_those_of_pytrec_eval() {
        let golden: serde_json::Value =
            serde_json::from_str(include_str!("../../../tests/golden/metrics.json")).unwrap();
        let mut qrels = Qrels::new();
        for (query, judged) in golden["qrels"].as_object().unwrap() {
            let gains = judged.as_object().unwrap().iter();
            let judgement = |(document, gain): (&String, &serde_json::Value)| {
                let (query, document) = (query.as_str().into(), document.as_str().into());
                let judgement = Judgement { query, document, gain: gain.as_i64().unwrap() };
                (judgement.document.to_string(), judgement.relevance())
            };
            qrels.insert(query.clone(), gains.map(judgement).collect());
        }
        let mut run = Run::default();
        for (query, scores) in golden["run"].as_object().unwrap() {
            for (id, score) in scores.as_object().unwrap() {
                run.add(query, id, score.as_f64().unwrap() as f32);
            }
        }
        for (level, expected) in golden["expected"].as_object().unwrap() {
            let level_number = level.parse().unwrap();
            let found = per_query(&run, &qrels, level_number);
            let queries = expected["queries"].as_object().unwrap();
            assert_eq!(found.keys().collect::<Vec<_>>(), queries.keys().collect::<Vec<_>>());
            let means = means(per_judged_query(&run, &qrels, level_number).values());
            let found = found.iter().map(|(query, values)| (query.as_str(), *values));
            let of_means = COLUMNS.map(|name| means[name]);
            for (query, values) in found.chain([("mean", of_means)]) {
                let expected = queries.get(query).unwrap_or(&expected["means"]);
                for (name, found) in COLUMNS.iter().zip(values) {
                    let expected = expected[*name].as_f64().unwrap();
                    assert!(
                        (found - expected).abs() < 1e-9,
                        "{query}, level {level}, {name}: {found}, {expected}"
                    );
                }
            }
        }
    }

    /// Where every query is a document too, each finds itself first; BEIR's numbers are made without it.
    #[test]
    fn a_query_is_no_answer_to_itself() {
        let run = run(&[("a", "a", 9.0), ("a", "b", 8.0), ("a", "c", 7.0)]);
        let of = |id| measure(&run, &Qrels::from([("a".to_owned(), judged(id))]))["MRR@10"];
        assert_eq!(of("b"), 1.0);
        assert_eq!(of("c"), 0.5);
        // Ids that only happen to be the same: somebody judged the pair.
        assert_eq!(of("a"), 1.0);
    }

    /// A reranker of the top two is right about them; that the relevant document was fifth is the first stage's doing, and
    /// fifth it stays. Counted as never found, a good reranker would look worse than none.
    #[test]
    fn documents_that_were_not_reranked_stay_behind_in_their_order() {
        let first =
            run(&[("q", "a", 9.0), ("q", "b", 8.0), ("q", "c", 7.0), ("q", "d", 7.0), ("q", "e", 1.0)]);
        let both = run(&[("q", "a", -3.0), ("q", "b", -1.0)]).followed_by(&first);
        assert_eq!(both.top(9)["q"], ["b", "a", "d", "c", "e"]);
        let qrels = Qrels::from([("q".to_owned(), judged("e"))]);
        let metrics = measure(&both, &qrels);
        assert_eq!((metrics["Recall@3"], metrics["Recall@10"], metrics["MRR@10"]), (0.0, 1.0, 0.2));
        assert!((metrics["nDCG@10"] - 1.0 / 6f64.log2()).abs() < 1e-12);
        // The same from the file, whose scores trec_eval sorts by.
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.trec");
        both.write_trec(&file, "x", 9).unwrap();
        let scores = fs::read_to_string(file).unwrap();
        let scores: Vec<f32> =
            scores.lines().map(|l| l.split(' ').nth(4).unwrap().parse().unwrap()).collect();
        assert_eq!(scores, [-1.0, -3.0, -4.0, -5.0, -6.0]);
    }

    /// A run of another data set compares nothing; the line says where to look.
    #[test]
    fn run_files_are_read_back_or_refused_by_line() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(
            dir.path().join("corpus.jsonl"),
            "{\"_id\":\"a\",\"text\":\"x\"}\n{\"_id\":\"b\",\"text\":\"y\"}\n",
        )
        .unwrap();
        fs::write(dir.path().join("queries.jsonl"), "{\"_id\":\"q\",\"text\":\"x\"}\n").unwrap();
        let data = BeirData::open(dir.path()).unwrap();
        let file = dir.path().join("x.trec");
        let read = |text: &str| {
            fs::write(&file, text).unwrap();
            Run::read_trec(&file, &data)
        };
        // Ranks are not looked at, tabs separate too, ties are ordered by id, descending.
        let found = read("q Q0 a 1 0.5 x\n\nq\tQ0\tb\t2\t0.5\tx\n").unwrap();
        assert_eq!(found.top(2)["q"], ["b", "a"]);
        for (text, words) in [
            ("q Q0 a 1 0.5 x\nq9 Q0 a 1 0.5 x\n", "x.trec:2: query `q9` is not in queries.jsonl"),
            ("q Q0 z 1 0.5 x\n", "x.trec:1: document `z` is not in corpus.jsonl"),
            ("q Q0 a 1 x\n", "x.trec:1: found `q Q0 a 1 x`, expected `qid Q0 docno rank sim run_id`"),
            ("q Q0 a 1 NaN x\n", "x.trec:1: found"),
            ("q Q0 a 1 2 x\nq Q0 a 2 1 x\n", "x.trec:2: document `a` of query `q` is on line 1 already"),
        ] {
            let message = read(text).unwrap_err().to_string();
            assert!(message.contains(words), "{message:?} lacks {words:?}");
        }
    }
}
