//! How much of what the exact scan finds the graph finds, measured on an index's own vectors, and how wide it has to look.

use super::RetrieverError;
use super::backend::Backend;
use super::directory::{Directory, SAVE_AFTER};
use super::linked::State;
use crate::index::{Recall, WIDEST};
use crate::search;
use models::fold::FoldedQuery;
use serde::Serialize;
use std::time::Instant;

/// What was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GraphCheck {
    /// Nodes that the graph looks at for a query.
    pub expansion: usize,
    /// Share of the exact scan's best that the graph finds.
    pub recall: Recall,
    /// Mean milliseconds of the exact scan.
    pub exact_ms: f64,
    /// Mean milliseconds of the graph, rescoring included.
    pub graph_ms: f64,
}

impl Directory {
    /// See [`super::Retriever::check_graph`].
    pub(super) fn measure_graph(
        &self,
        queries: &[FoldedQuery],
        k: usize,
        least: Option<f64>,
    ) -> Result<Option<GraphCheck>, RetrieverError> {
        self.refresh()?;
        self.memory.link_all(1);
        let mut state = self.memory.state.write();
        let State { rows, graph: Some(linked), .. } = &mut *state else { return Ok(None) };
        let mut graph = linked.graph.write();
        let started = Instant::now();
        let exact: Vec<_> = queries
            .iter()
            .map(|query| search::exact(std::slice::from_ref(query), rows, k, None).swap_remove(0))
            .collect();
        let mean = |started: Instant| 1e3 * started.elapsed().as_secs_f64() / queries.len().max(1) as f64;
        let exact_ms = mean(started);
        let wanted: usize = exact.iter().map(Vec::len).sum();
        let check = loop {
            let started = Instant::now();
            let mut found = 0;
            for (query, exact) in queries.iter().zip(&exact) {
                let candidates = graph.search(query, search::candidates(k, rows.len(), rows.len()), None)?;
                let best = search::rescore(query, rows, &candidates, k);
                // Of documents that score alike, any one will do.
                let bar = exact.last().map_or(f32::INFINITY, |worst| worst.score);
                found += best.iter().filter(|scored| scored.score >= bar).count();
            }
            let graph_ms = mean(started);
            let share = found as f64 / wanted.max(1) as f64;
            let recall = Recall { k, queries: queries.len(), share };
            let expansion = graph.expansion();
            if least.is_none_or(|least| share >= least) || expansion >= WIDEST {
                break GraphCheck { expansion, recall, exact_ms, graph_ms };
            }
            graph.set_expansion(2 * expansion);
        };
        graph.set_recall(check.recall.clone());
        drop(graph);
        linked.unsaved = SAVE_AFTER;
        drop(state);
        self.save()?;
        Ok(Some(check))
    }
}
