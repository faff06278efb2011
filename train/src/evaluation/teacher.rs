//! The teacher as a reranker: it reads pairs, all of them or another system's first ones.

use super::first_stage::{Best, Measured, clocked};
use super::run::Run;
use super::task::Task;
use crate::features::bar;
use crate::scoring::{Texts, score_pairs};
use anyhow::Result;
use models::torch::Reranker;
use std::collections::HashMap;
use std::time::Duration;

/// Scores every ranked pair of a split, or where there is a first stage, its first `candidates` documents of each query;
/// the others stay behind them in its order, and its time counts too.
pub fn rerank(
    teacher: &Reranker,
    task: &Task,
    split: usize,
    first: Option<&Measured>,
    candidates: usize,
) -> Result<Measured> {
    let asked: Vec<_> = task.asked().into_iter().filter(|asked| asked.split == split).collect();
    let mut pairs: Vec<(usize, usize)> = Vec::new();
    match first {
        None => {
            let documents = task.documents();
            for asked in &asked {
                let ranked = documents.iter().filter(|document| asked.ranks(**document));
                pairs.extend(ranked.map(|document| (asked.place, *document)));
            }
        }
        Some(first) => {
            for (query, ids) in first.run.top(candidates) {
                let query = task.data.query_index[&query];
                pairs.extend(ids.iter().map(|id| (query, task.data.document_index[id])));
            }
        }
    }
    let queries: Vec<&str> = task.data.queries.iter().map(|query| query.text.as_str()).collect();
    let documents: Vec<&str> = task.contents.iter().map(String::as_str).collect();
    let texts = Texts { queries: &queries, documents: &documents };
    let mut best: HashMap<usize, Best> = HashMap::new();
    let (bar, mut time) = (bar(pairs.len(), "teacher pairs"), Duration::ZERO);
    clocked(&mut time, || {
        score_pairs(teacher, &texts, &pairs, false, |scored| {
            bar.inc(scored.len() as u64);
            for pair in scored {
                let best = best
                    .entry(pair.query)
                    .or_insert_with(|| Best::new(task.data, task.config.depth.max(candidates)));
                best.add(pair.document, pair.score);
            }
            Ok(())
        })
    })?;
    bar.finish_and_clear();
    let mut run = Run::default();
    for (query, best) in best {
        for (document, score) in best.finish() {
            run.add(&task.data.queries[query].id, &task.data.documents[document].id, score);
        }
    }
    let per_query = time.as_secs_f64() / asked.len().max(1) as f64;
    Ok(match first {
        None => Measured { run, documents: 0.0, per_query },
        Some(first) => Measured {
            run: run.followed_by(&first.run),
            documents: first.documents,
            per_query: per_query + first.per_query,
        },
    })
}
