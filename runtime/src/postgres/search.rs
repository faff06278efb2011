//! Query in, ranked documents out: the database names candidates, which are scored here, exactly as an index in a directory
//! scores them.

use super::Database;
use super::error::{Failure, PostgresError};
use super::filter::Condition;
use super::measure::{SAMPLE, Sample, Score};
use super::schema::State;
use crate::document::Document;
use crate::index::Recall;
use crate::retriever::backend::Ranked;
use crate::retriever::{Facets, GraphCheck, SearchPath, Wanted};
use crate::search;
use ::postgres::types::{ToSql, Type};
use ::postgres::{Row, Transaction};
use models::fold::FoldedQuery;
use serde_json::Value;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

/// The widest look at a graph that pgvector takes.
const WIDEST: usize = 1000;
/// Candidates of a scan beyond those that are wanted: sums in another order may swap neighbours.
const SPARE: usize = 64;

/// A candidate, scored.
#[derive(Debug, Clone)]
struct Candidate {
    key: i64,
    id: String,
    score: f32,
}

impl Database {
    /// The best documents of each query.
    pub(super) fn ranked(
        &self,
        queries: &[FoldedQuery],
        wanted: &Wanted,
    ) -> Result<(SearchPath, Vec<Ranked>), PostgresError> {
        let condition = Condition::new(wanted.filter.as_ref(), 1)?;
        let filtered = wanted.filter.is_some();
        self.read(|transaction, state| {
            let count = search::candidates(wanted.k, state.documents, state.documents);
            let graph = self.measure.graph().is_some() && !self.exact && {
                // Among few documents, or with so many candidates, the scan is the faster way.
                let among = if filtered { self.passing(transaction, &condition)? } else { state.documents };
                among > self.exact_limit && count < among / 2
            };
            let (mut path, mut best) = (SearchPath::Exact, Vec::with_capacity(queries.len()));
            for query in queries {
                let mut found = None;
                if graph {
                    found = self.ask_graph(transaction, state, query, wanted, count)?;
                }
                best.push(match found {
                    Some(found) => {
                        path = SearchPath::Graph;
                        found
                    }
                    None => self.scan(transaction, query, wanted)?,
                });
            }
            Ok((path, self.shown(transaction, best)?))
        })
    }

    /// How many documents pass, counted no further than where a scan stops being the better way.
    fn passing(&self, transaction: &mut Transaction<'_>, condition: &Condition) -> Result<usize, Failure> {
        let sql = format!(
            "SELECT count(*) FROM (SELECT FROM rabtriever_documents WHERE {} LIMIT {}) AS passing",
            condition.sql,
            self.exact_limit + 1
        );
        let count: i64 = transaction.query_typed_one(&sql, &condition.after(&[]))?.try_get(0)?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    /// The best of `count` candidates that the graph names; `None` where it names fewer.
    fn ask_graph(
        &self,
        transaction: &mut Transaction<'_>,
        state: &State,
        query: &FoldedQuery,
        wanted: &Wanted,
        count: usize,
    ) -> Result<Option<Vec<Candidate>>, Failure> {
        let Some(sql) = self.graph_sql(wanted, count)? else { return Ok(None) };
        let look = state.expansion.max(count).clamp(1, WIDEST);
        let mut settings = format!("SET LOCAL hnsw.ef_search = {look}; SET LOCAL enable_seqscan = off");
        if self.abilities.iterative {
            // Where a filter leaves few of those that were looked at, it looks on.
            let most = 20_000.max(8 * count);
            settings += &format!(
                "; SET LOCAL hnsw.iterative_scan = relaxed_order; SET LOCAL hnsw.max_scan_tuples = {most}"
            );
        }
        let probe = self.measure.probe(query, &*self.sample(transaction, state)?);
        transaction.batch_execute(&settings)?;
        let parameters = sql.1.after(&[(&probe, Type::FLOAT4_ARRAY)]);
        let found = transaction.query_typed(&sql.0, &parameters)?;
        transaction.batch_execute("SET LOCAL enable_seqscan = on")?;
        if found.len() < count {
            return Ok(None);
        }
        self.scored(query, &found, wanted.k).map(Some)
    }

    /// The statement that asks the graph for candidates, with its filter.
    pub(super) fn graph_sql(
        &self,
        wanted: &Wanted,
        count: usize,
    ) -> Result<Option<(String, Condition)>, PostgresError> {
        let Some((over, kind)) = self.measure.graph() else { return Ok(None) };
        let condition = Condition::new(wanted.filter.as_ref(), 2)?;
        let sql = format!(
            "SELECT key, id, vector_send(vector) FROM rabtriever_documents WHERE {} \
             ORDER BY {over} <#> $1::real[]::{kind} LIMIT {count}",
            condition.sql
        );
        Ok(Some((sql, condition)))
    }

    /// The best of all documents that pass.
    fn scan(
        &self,
        transaction: &mut Transaction<'_>,
        query: &FoldedQuery,
        Wanted { k, filter, .. }: &Wanted,
    ) -> Result<Vec<Candidate>, Failure> {
        let Score { sql, vectors } = self.measure.score(query);
        let condition = Condition::new(filter.as_ref(), vectors.len() + 1)?;
        // Vectors are read again for the few that are left: in the inner statement they would be copied for all.
        let sql = format!(
            "SELECT key, id, vector_send(vector) FROM rabtriever_documents JOIN ( \
                 SELECT key FROM rabtriever_documents WHERE {} ORDER BY {sql} DESC, id DESC LIMIT {} \
             ) AS best USING (key)",
            condition.sql,
            k.saturating_add(SPARE).min(i64::MAX as usize),
        );
        let vectors: Vec<(&(dyn ToSql + Sync), Type)> =
            vectors.iter().map(|vector| (vector as &(dyn ToSql + Sync), Type::FLOAT4_ARRAY)).collect();
        let found = transaction.query_typed(&sql, &condition.after(&vectors))?;
        self.scored(query, &found, *k)
    }

    /// Scores candidates; equal ones are ordered by id, descending, as everywhere.
    fn scored(&self, query: &FoldedQuery, found: &[Row], k: usize) -> Result<Vec<Candidate>, Failure> {
        let mut candidates = Vec::with_capacity(found.len());
        for row in found {
            let (key, id): (i64, String) = (row.try_get(0)?, row.try_get(1)?);
            let vector = self.vector(row.try_get(2)?)?;
            candidates.push(Candidate { key, id, score: query.score(&vector) });
        }
        candidates.sort_by(|a, b| b.score.total_cmp(&a.score).then_with(|| b.id.cmp(&a.id)));
        candidates.truncate(k);
        Ok(candidates)
    }

    /// pgvector's own form: two 16-bit numbers, of which the first is the length, then 32-bit floats, high byte first.
    fn vector(&self, sent: &[u8]) -> Result<Vec<f32>, PostgresError> {
        let numbers = sent.get(4..).unwrap_or_default();
        if numbers.len() != size_of::<f32>() * self.measure.dimensions {
            let (found, expected) = (numbers.len() / size_of::<f32>(), self.measure.dimensions);
            return Err(self.damaged(format!("a vector of {found} numbers, where {expected} are expected")));
        }
        let number = |four: &[u8]| f32::from_be_bytes([four[0], four[1], four[2], four[3]]);
        Ok(numbers.chunks_exact(size_of::<f32>()).map(number).collect())
    }

    /// Reads what is shown of the best.
    fn shown(
        &self,
        transaction: &mut Transaction<'_>,
        best: Vec<Vec<Candidate>>,
    ) -> Result<Vec<Ranked>, Failure> {
        let keys: Vec<i64> = best.iter().flatten().map(|candidate| candidate.key).collect();
        let rows = transaction.query_typed(
            "SELECT id, title, text, metadata, key FROM rabtriever_documents WHERE key = ANY ($1)",
            &[(&keys, Type::INT8_ARRAY)],
        )?;
        let mut documents: HashMap<i64, Document> = HashMap::with_capacity(rows.len());
        for row in &rows {
            documents.insert(row.try_get(4)?, self.stored(row)?);
        }
        let shown = |Candidate { key, score, .. }: &Candidate| {
            // All of them are there: it is one snapshot.
            documents.get(key).map(|document| (document.clone(), *score))
        };
        Ok(best.iter().map(|best| best.iter().filter_map(shown).collect()).collect())
    }

    /// Vectors to which the relu form's probes are fitted, drawn anew when there are twice as many documents, or half.
    fn sample(&self, transaction: &mut Transaction<'_>, state: &State) -> Result<Arc<Sample>, Failure> {
        if self.measure.features_column().is_none() {
            return Ok(Arc::default());
        }
        let mut sample = self.sample.lock();
        if let Some(sample) = &*sample
            && (sample.documents / 2..=2 * sample.documents).contains(&state.documents)
        {
            return Ok(Arc::clone(sample));
        }
        // A few more pages than would do on average, the same ones for every server.
        let percent = (125.0 * SAMPLE as f64 / state.documents.max(1) as f64).min(100.0);
        let found = transaction.query_typed(
            &format!(
                "SELECT vector_send(vector) FROM rabtriever_documents \
                 TABLESAMPLE SYSTEM ({percent}) REPEATABLE (1) LIMIT {SAMPLE}"
            ),
            &[],
        )?;
        let mut vectors = Vec::with_capacity(found.len() * self.measure.dimensions);
        for row in &found {
            vectors.extend(self.vector(row.try_get(0)?)?);
        }
        let drawn = Arc::new(Sample::new(vectors, self.measure.dimensions, state.documents));
        *sample = Some(Arc::clone(&drawn));
        Ok(drawn)
    }

    /// Values of each field, commonest first; the items of a list count one by one.
    pub(super) fn values_of_fields(&self, most: usize) -> Result<Facets, PostgresError> {
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        self.read(|transaction, _| {
            let found = transaction.query_typed(
                "SELECT field, value, n FROM ( \
                     SELECT field, item::text AS value, count(*) AS n, row_number() OVER ( \
                         PARTITION BY field ORDER BY count(*) DESC, item::text COLLATE \"C\" \
                     ) AS place \
                     FROM rabtriever_documents, jsonb_each(fields) AS each (field, items), \
                         jsonb_array_elements(items) AS item \
                     GROUP BY field, item::text \
                 ) AS counted WHERE place <= $1 ORDER BY field, place",
                &[(&most, Type::INT8)],
            )?;
            let mut facets = Facets::new();
            for row in found {
                let (field, value, count): (String, &str, i64) =
                    (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
                let value: Value = serde_json::from_str(value)
                    .map_err(|error| self.damaged(format!("a value of `{field}` is not JSON: {error}")))?;
                facets.entry(field).or_default().push((value, usize::try_from(count).unwrap_or(0)));
            }
            Ok(facets)
        })
    }

    /// Measures the graph against the scan, looking wider until it finds a share; what was found is kept for all servers.
    pub(super) fn measured(
        &self,
        queries: &[FoldedQuery],
        k: usize,
        least: Option<f64>,
    ) -> Result<Option<GraphCheck>, PostgresError> {
        let wanted = Wanted::from(k);
        let check = self.read(|transaction, state| {
            let (mut state, count) = (*state, search::candidates(k, state.documents, state.documents));
            let graph = self.measure.graph().is_some() && !self.exact;
            if !graph || state.documents <= self.exact_limit || count >= state.documents / 2 {
                return Ok(None);
            }
            let mean = |started: Instant| 1e3 * started.elapsed().as_secs_f64() / queries.len().max(1) as f64;
            let started = Instant::now();
            let mut exact = Vec::with_capacity(queries.len());
            for query in queries {
                exact.push(self.scan(transaction, query, &wanted)?);
            }
            let exact_ms = mean(started);
            let all: usize = exact.iter().map(Vec::len).sum();
            loop {
                let started = Instant::now();
                let mut found = 0;
                for (query, exact) in queries.iter().zip(&exact) {
                    let best =
                        self.ask_graph(transaction, &state, query, &wanted, count)?.unwrap_or_default();
                    // Of documents that score alike, any one will do.
                    let bar = exact.last().map_or(f32::INFINITY, |worst| worst.score);
                    found += best.iter().filter(|candidate| candidate.score >= bar).count();
                }
                let (graph_ms, share) = (mean(started), found as f64 / all.max(1) as f64);
                if least.is_none_or(|least| share >= least) || state.expansion >= WIDEST {
                    let recall = Recall { k, queries: queries.len(), share };
                    return Ok(Some(GraphCheck { expansion: state.expansion, recall, exact_ms, graph_ms }));
                }
                state.expansion = (2 * state.expansion).min(WIDEST);
            }
        })?;
        if let Some(check) = &check {
            let expansion = i32::try_from(check.expansion).unwrap_or(i32::MAX);
            self.change(|transaction| {
                transaction.execute_typed(
                    "UPDATE rabtriever_index SET expansion = $1 WHERE expansion <> $1",
                    &[(&expansion, Type::INT4)],
                )?;
                Ok(((), None))
            })?;
        }
        Ok(check)
    }
}
