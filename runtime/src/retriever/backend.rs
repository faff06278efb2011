//! What a retriever asks of whatever keeps its documents.

use super::recall::GraphCheck;
use super::{Facets, RetrieverError, SearchPath, Stats, Wanted};
use crate::document::Document;
use crate::encoder::Encoder;
use crate::ingest::{AddReport, Progress};
use models::fold::FoldedQuery;
use std::fmt::Debug;

/// The best documents of a query with their scores, best first.
pub type Ranked = Vec<(Document, f32)>;

/// Documents and their vectors, kept somewhere and searched there: a directory ([`super::directory`]), or a database
/// (`crate::postgres`). Any thread may ask and change it.
pub trait Backend: Debug + Send + Sync {
    /// Where they are, for people.
    fn place(&self) -> String;

    /// The best documents of each query, in order.
    fn search(
        &self,
        queries: &[FoldedQuery],
        wanted: &Wanted,
    ) -> Result<(SearchPath, Vec<Ranked>), RetrieverError>;

    /// Adds new documents, replaces changed ones, skips the rest; durable when it returns.
    fn add(
        &self,
        encoder: &Encoder,
        documents: &[Document],
        progress: &mut dyn FnMut(Progress),
    ) -> Result<AddReport, RetrieverError>;

    /// Removes documents and returns how many were there; durable when it returns.
    fn remove(&self, ids: &[&str]) -> Result<usize, RetrieverError>;

    /// Gives the room of removed documents back.
    fn compact(&self) -> Result<(), RetrieverError>;

    /// A document by its id.
    fn document(&self, id: &str) -> Result<Option<Document>, RetrieverError>;

    /// A page of documents, in the order in which they came.
    fn documents(&self, offset: usize, limit: usize) -> Result<Vec<Document>, RetrieverError>;

    /// At most `most` values of each metadata field.
    fn facets(&self, most: usize) -> Result<Facets, RetrieverError>;

    /// What it holds.
    fn stats(&self) -> Result<Stats, RetrieverError>;

    /// Keeps what would have to be computed again at the next start.
    fn save(&self) -> Result<(), RetrieverError>;

    /// Ends what goes on aside, and keeps it; `unread`: also reads what was saved and never needed.
    fn settle(&self, unread: bool);

    /// Measures candidates against the exact scan, see [`super::Retriever::check_graph`].
    fn check_graph(
        &self,
        queries: &[FoldedQuery],
        k: usize,
        least: Option<f64>,
    ) -> Result<Option<GraphCheck>, RetrieverError>;
}
