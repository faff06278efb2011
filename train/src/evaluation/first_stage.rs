//! Systems that rank the whole corpus. Documents pass by in blocks, and of each query only its best ones are kept: memory
//! is bounded whatever the corpus.

use super::run::Run;
use super::task::{Asked, Task};
use crate::bm25::Bm25;
use anyhow::Result;
use models::beir::BeirData;
use ndarray::Array2;
use std::cmp::Ordering;
use std::time::{Duration, Instant};

/// Documents that are encoded before their scores are taken.
const DOCUMENTS_AT_ONCE: usize = 4096;

/// A system that encodes documents without knowing the queries.
pub trait FirstStage {
    /// A block of documents, encoded.
    type Documents;
    /// Encodes all queries; comes first.
    fn read_queries(&mut self, texts: &[&str]) -> Result<()>;
    /// Encodes a block of documents.
    fn read_documents(&mut self, texts: &[&str]) -> Result<Self::Documents>;
    /// Scores of every query with every document of a block, `[queries, documents]`.
    fn score(&self, documents: &Self::Documents) -> Result<Array2<f32>>;
    /// Looks at the score of a ranked pair: places among the queries, and in the corpus.
    fn scored(&mut self, _query: usize, _document: usize, _score: f32) {}
}

/// What a system did with one split.
#[derive(Debug, Clone, Default)]
pub struct Measured {
    /// Who ranked what how.
    pub run: Run,
    /// Seconds that the documents took, which does not depend on the queries.
    pub documents: f64,
    /// Seconds that each query took.
    pub per_query: f64,
}

/// Ranks the corpus for all queries; an answer for each split.
pub fn rank_corpus(task: &Task, stage: &mut impl FirstStage) -> Result<Vec<Measured>> {
    let (asked, places) = (task.asked(), task.documents());
    let (mut on_queries, mut on_documents) = (Duration::ZERO, Duration::ZERO);
    let texts: Vec<&str> = asked.iter().map(|asked| asked.text).collect();
    clocked(&mut on_queries, || stage.read_queries(&texts))?;
    let mut best: Vec<Best> = asked.iter().map(|_| Best::new(task.data, task.config.depth)).collect();
    for block in places.chunks(DOCUMENTS_AT_ONCE) {
        let texts: Vec<&str> = block.iter().map(|place| task.contents[*place].as_str()).collect();
        let documents = clocked(&mut on_documents, || stage.read_documents(&texts))?;
        let scores = clocked(&mut on_queries, || stage.score(&documents))?;
        for (query, (scores, asked)) in scores.outer_iter().zip(&asked).enumerate() {
            for (&score, &place) in scores.iter().zip(block).filter(|(_, place)| asked.ranks(**place)) {
                best[query].add(place, score);
                stage.scored(query, place, score);
            }
        }
    }
    Ok(runs(task, &asked, best, on_documents, on_queries))
}

/// The lexical baseline.
pub fn bm25(task: &Task) -> Vec<Measured> {
    let (mut on_queries, mut on_documents) = (Duration::ZERO, Duration::ZERO);
    let bm25 = clocked(&mut on_documents, || Bm25::new(task.contents.iter().map(String::as_str)));
    let asked = task.asked();
    let best = asked.iter().map(|asked| {
        let scores = clocked(&mut on_queries, || bm25.scores(asked.text));
        let mut best = Best::new(task.data, task.config.depth);
        for (place, score) in scores.into_iter().enumerate().filter(|(place, _)| asked.ranks(*place)) {
            best.add(place, score);
        }
        best
    });
    let best = best.collect();
    runs(task, &asked, best, on_documents, on_queries)
}

/// Runs what is measured and adds the time it took.
pub fn clocked<T>(total: &mut Duration, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = work();
    *total += start.elapsed();
    result
}

fn runs(
    task: &Task,
    asked: &[Asked],
    best: Vec<Best>,
    on_documents: Duration,
    on_queries: Duration,
) -> Vec<Measured> {
    let per_query = on_queries.as_secs_f64() / asked.len().max(1) as f64;
    let empty = Measured { documents: on_documents.as_secs_f64(), per_query, run: Run::default() };
    let mut measured = vec![empty; task.splits.len()];
    for (asked, best) in asked.iter().zip(best) {
        for (place, score) in best.finish() {
            measured[asked.split].run.add(asked.id, &task.data.documents[place].id, score);
        }
    }
    measured
}

/// The best documents of a query so far.
pub struct Best<'a> {
    data: &'a BeirData,
    depth: usize,
    found: Vec<(usize, f32)>,
}

impl<'a> Best<'a> {
    /// Of no document yet.
    pub fn new(data: &'a BeirData, depth: usize) -> Self {
        Self { data, depth: depth.max(1), found: Vec::new() }
    }

    /// Takes a document in, by place.
    pub fn add(&mut self, document: usize, score: f32) {
        self.found.push((document, score));
        // Twice as many, so that sorting them out is paid for by as many additions.
        if self.found.len() >= 2 * self.depth {
            self.shorten();
        }
    }

    /// The best ones, in no order.
    pub fn finish(mut self) -> Vec<(usize, f32)> {
        self.shorten();
        self.found
    }

    fn shorten(&mut self) {
        if self.found.len() > self.depth {
            let (data, last) = (self.data, self.depth - 1);
            self.found.select_nth_unstable_by(last, |a, b| order(data, a, b));
            self.found.truncate(self.depth);
        }
    }
}

/// As [`models::metrics::rank`] orders.
fn order(data: &BeirData, a: &(usize, f32), b: &(usize, f32)) -> Ordering {
    b.1.total_cmp(&a.1).then_with(|| data.documents[b.0].id.cmp(&data.documents[a.0].id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn data(documents: usize) -> BeirData {
        let document = |i: usize| models::beir::Document {
            id: format!("d{i}"),
            title: String::new(),
            text: "x".to_owned(),
        };
        BeirData {
            dir: "data".into(),
            documents: (0..documents).map(document).collect(),
            queries: Vec::new(),
            document_index: HashMap::new(),
            query_index: HashMap::new(),
            ..BeirData::default()
        }
    }

    /// What is thrown away on the way must be what would have been last, ties included, or large corpora would measure
    /// otherwise than small ones.
    #[test]
    fn the_best_are_those_of_the_whole_ranking() {
        let data = data(100);
        let scores: Vec<f32> = (0..100).map(|i| ((i * 37) % 100 / 10) as f32).collect();
        let mut best = Best::new(&data, 7);
        scores.iter().enumerate().for_each(|(place, score)| best.add(place, *score));
        assert!(best.found.len() < 14);
        let mut all: Vec<(String, f32)> =
            scores.iter().enumerate().map(|(place, score)| (format!("d{place}"), *score)).collect();
        models::metrics::rank(&mut all);
        let mut found: Vec<(String, f32)> = best
            .finish()
            .into_iter()
            .map(|(place, score)| (data.documents[place].id.clone(), score))
            .collect();
        models::metrics::rank(&mut found);
        assert_eq!(found, all[..7]);
    }
}
