//! An index in PostgreSQL with pgvector: documents, vectors and graph in tables that any number of servers share.
//!
//! ```text
//! connect.rs  URL, TLS, pool; work that is done again when the server or another transaction came between
//! schema.rs   the tables, their versions, and what they were made with
//! measure.rs  the score in pgvector's operators, exactly and as an inner product
//! filter.rs   a filter as SQL with bound parameters
//! search.rs   candidates from graph or scan, scored again here
//! write.rs    documents in and out, a transaction a batch
//! ```
//! The database is the truth; a server keeps nothing but a sample of vectors (for the relu form's candidates), so that
//! servers can be started, stopped and multiplied at will. Every answer is one read-only snapshot, every change one
//! transaction, and each checks that the tables are still those of this bundle.

mod connect;
mod error;
mod filter;
mod measure;
mod schema;
mod search;
#[cfg(test)]
mod tests;
mod write;

pub use self::error::PostgresError;

use self::connect::Connections;
use self::error::Failure;
use self::measure::{Measure, Sample};
use self::schema::{Abilities, State};
use crate::bundle::Bundle;
use crate::document::{Document, Metadata};
use crate::encoder::Encoder;
use crate::ingest::{self, AddReport, Progress};
use crate::place::{Access, DatabaseUrl};
use crate::retriever::backend::{Backend, Ranked};
use crate::retriever::{Facets, GraphCheck, Options, RetrieverError, SearchPath, Stats, Wanted};
use crate::search::EXACT_LIMIT;
use crate::store::IndexKey;
use crate::vectors::Precision;
use ::postgres::types::Type;
use ::postgres::{IsolationLevel, Row, Transaction};
use models::fold::FoldedQuery;
use parking_lot::Mutex;
use std::sync::Arc;

/// An opened index in a database.
#[derive(Debug)]
struct Database {
    connections: Connections,
    key: IndexKey,
    measure: Measure,
    abilities: Abilities,
    /// Never use the graph.
    exact: bool,
    /// Up to this many documents are scanned.
    exact_limit: usize,
    sample: Mutex<Option<Arc<Sample>>>,
}

/// Opens the index of a bundle in a database; with [`Access::Create`], makes its tables where they are missing.
pub fn open(
    bundle: &Bundle,
    url: &DatabaseUrl,
    access: Access,
    options: &Options,
) -> Result<Box<dyn Backend>, RetrieverError> {
    Ok(Box::new(Database::open(ingest::index_key(bundle), url, access, options)?))
}

impl Database {
    fn open(
        key: IndexKey,
        url: &DatabaseUrl,
        access: Access,
        options: &Options,
    ) -> Result<Self, PostgresError> {
        let connections = Connections::open(url, options.database)?;
        let abilities = schema::prepare(&connections, &key, access)?;
        let measure = Measure::new(&key);
        if measure.graph().is_none() {
            (options.notice)(&format!(
                "{} dimensions are more than pgvector's graph takes; every document is scanned",
                key.inner_dimensions
            ));
        }
        let (exact, exact_limit) = (options.exact, EXACT_LIMIT);
        let sample = Mutex::new(None);
        Ok(Self { connections, key, measure, abilities, exact, exact_limit, sample })
    }

    /// Reads in one snapshot, which is of this bundle.
    fn read<T>(
        &self,
        mut read: impl FnMut(&mut Transaction<'_>, &State) -> Result<T, Failure>,
    ) -> Result<T, PostgresError> {
        self.connections.work(|client| {
            let mut transaction = client
                .build_transaction()
                .isolation_level(IsolationLevel::RepeatableRead)
                .read_only(true)
                .start()?;
            schema::limit(&mut transaction, &self.connections)?;
            let state = schema::state(&mut transaction, &self.key, &self.connections.scene().database)?;
            let found = read(&mut transaction, &state)?;
            transaction.commit()?;
            Ok(found)
        })
    }

    /// Changes in one transaction, in tables that are of this bundle. Whoever has changed documents says by how many there
    /// are more; the row of counters comes last, so that nobody waits for it longer than a commit takes.
    fn change<T>(
        &self,
        mut change: impl FnMut(&mut Transaction<'_>) -> Result<(T, Option<i64>), Failure>,
    ) -> Result<T, PostgresError> {
        self.connections.work(|client| {
            let mut transaction = client.transaction()?;
            schema::limit(&mut transaction, &self.connections)?;
            schema::state(&mut transaction, &self.key, &self.connections.scene().database)?;
            let (done, more) = change(&mut transaction)?;
            if let Some(more) = more {
                transaction.execute_typed(
                    "UPDATE rabtriever_index SET generation = generation + 1, documents = documents + $1",
                    &[(&more, Type::INT8)],
                )?;
            }
            transaction.commit()?;
            Ok(done)
        })
    }

    /// Id, title, text and metadata from the first columns.
    fn stored(&self, row: &Row) -> Result<Document, Failure> {
        let (id, metadata): (String, &str) = (row.try_get(0)?, row.try_get(3)?);
        let metadata: Metadata = serde_json::from_str(metadata).map_err(|error| {
            self.damaged(format!("the metadata of document `{id}` is not a JSON object: {error}"))
        })?;
        Ok(Document { id, title: row.try_get(1)?, text: row.try_get(2)?, metadata })
    }

    fn damaged(&self, reason: String) -> PostgresError {
        let (database, table) = (self.connections.database(), "rabtriever_documents".to_owned());
        PostgresError::Foreign { database, table, reason }
    }
}

impl Backend for Database {
    fn place(&self) -> String {
        self.connections.database()
    }

    fn search(
        &self,
        queries: &[FoldedQuery],
        wanted: &Wanted,
    ) -> Result<(SearchPath, Vec<Ranked>), RetrieverError> {
        Ok(self.ranked(queries, wanted)?)
    }

    fn add(
        &self,
        encoder: &Encoder,
        documents: &[Document],
        progress: &mut dyn FnMut(Progress),
    ) -> Result<AddReport, RetrieverError> {
        // Before anything is encoded.
        write::storable(documents)?;
        ingest::ingest(encoder, &mut &*self, documents, progress)
    }

    fn remove(&self, ids: &[&str]) -> Result<usize, RetrieverError> {
        Ok(self.delete(ids)?)
    }

    fn compact(&self) -> Result<(), RetrieverError> {
        // It runs outside of transactions, where no limit of ours holds.
        let vacuum = "VACUUM (ANALYZE) rabtriever_documents";
        Ok(self.connections.work(|client| Ok(client.batch_execute(vacuum)?))?)
    }

    fn document(&self, id: &str) -> Result<Option<Document>, RetrieverError> {
        if id.contains('\0') {
            return Ok(None);
        }
        Ok(self.read(|transaction, _| {
            let found = transaction.query_typed_opt(
                "SELECT id, title, text, metadata FROM rabtriever_documents WHERE id = $1",
                &[(&id, Type::TEXT)],
            )?;
            found.map(|row| self.stored(&row)).transpose()
        })?)
    }

    fn documents(&self, offset: usize, limit: usize) -> Result<Vec<Document>, RetrieverError> {
        let bound = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        Ok(self.read(|transaction, _| {
            let found = transaction.query_typed(
                "SELECT id, title, text, metadata FROM rabtriever_documents ORDER BY key LIMIT $2 OFFSET $1",
                &[(&bound(offset), Type::INT8), (&bound(limit), Type::INT8)],
            )?;
            found.iter().map(|row| self.stored(row)).collect()
        })?)
    }

    fn facets(&self, most: usize) -> Result<Facets, RetrieverError> {
        Ok(self.values_of_fields(most)?)
    }

    fn stats(&self) -> Result<Stats, RetrieverError> {
        let state = self.read(|_, state| Ok(*state))?;
        Ok(Stats {
            documents: state.documents,
            dimensions: self.key.inner_dimensions,
            // They are in the database's memory, not in this program's.
            vector_bytes: 0,
            vector_precision: Precision::F32,
            generation: state.generation,
            generation_digest: None,
            graph_vectors: self.measure.graph().map(|_| state.documents),
            document_digest: self.key.document_digest.clone(),
        })
    }

    fn save(&self) -> Result<(), RetrieverError> {
        Ok(())
    }

    fn settle(&self, _: bool) {}

    fn check_graph(
        &self,
        queries: &[FoldedQuery],
        k: usize,
        least: Option<f64>,
    ) -> Result<Option<GraphCheck>, RetrieverError> {
        Ok(self.measured(queries, k, least)?)
    }
}
