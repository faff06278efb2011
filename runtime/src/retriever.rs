//! The library's front door: a bundle and an index, opened together; queries in, ranked documents out.

use crate::bundle::{Bundle, BundleError};
use crate::document::{Document, Metadata};
use crate::encoder::{Encoder, EncoderError};
use crate::filter::Filter;
use crate::index::{Graph, GraphError, Measure};
use crate::ingest::{self, AddReport, Progress};
use crate::place::{Access, DatabaseOptions, DatabaseUrl, Place};
use crate::postgres::{self, PostgresError};
use crate::reranker::{Reranker, RerankerError};
use crate::rows_file::{self, RowsFileError};
use crate::search::EXACT_LIMIT;
use crate::selftest;
use crate::session::SessionOptions;
use crate::store::{self, StoreError, Writer};
use crate::vectors::Precision;
use models::files::{FileError, StagedDir};
use models::fold::FoldedQuery;
use models::prompt::PromptError;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub mod backend;
mod directory;
mod linked;
mod recall;

pub use self::recall::GraphCheck;

use self::backend::{Backend, Ranked};
use self::directory::Directory;

/// Why a retriever cannot be opened, asked or filled.
#[derive(Debug, thiserror::Error)]
pub enum RetrieverError {
    /// The bundle cannot be used.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// A text cannot be encoded.
    #[error(transparent)]
    Encoder(#[from] EncoderError),
    /// The teacher cannot be asked.
    #[error(transparent)]
    Reranker(#[from] RerankerError),
    /// The index cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The database cannot be reached, read or written.
    #[error(transparent)]
    Postgres(#[from] PostgresError),
    /// The graph cannot be built or searched.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// The file of the rows cannot be written.
    #[error(transparent)]
    RowsFile(#[from] RowsFileError),
    /// A file or directory stands in the way, or cannot be written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A document that cannot be encoded.
    #[error("document `{id}`: {source}")]
    Document {
        /// The document.
        id: String,
        /// Why.
        source: PromptError,
    },
    /// Two documents of one call share an id.
    #[error("document `{id}` is given twice; ids must be unique")]
    Duplicate {
        /// The id.
        id: String,
    },
    /// An index without documents answers nothing.
    #[error("{dir}: no documents to index")]
    NoDocuments {
        /// The index that was to be.
        dir: PathBuf,
    },
    /// What is at the index's path is not what is open.
    #[error(
        "{dir}: another index has been put in its place, or it was removed; queries are answered from the one that is open, changes are refused until it is opened anew (SIGHUP to a server)"
    )]
    Replaced {
        /// The index.
        dir: PathBuf,
    },
    /// Nothing is asked for.
    #[error("k is 0; ask for at least 1 result")]
    ZeroResults,
    /// The bundle does not compute here what it computed where it was exported.
    #[error(
        "{dir}: a golden pair scores {found} on this machine, {expected} where it was exported (query {query:?}); run `runtime doctor`, then try another ONNX Runtime library or export again"
    )]
    Golden {
        /// The bundle.
        dir: PathBuf,
        /// Score here.
        found: f32,
        /// Score there.
        expected: f32,
        /// The query.
        query: String,
    },
}

/// How a retriever works.
#[derive(Debug, Clone)]
pub struct Options {
    /// How graphs are run.
    pub session: SessionOptions,
    /// Golden pairs checked at open; 0 switches the check off.
    pub golden: usize,
    /// Whether the largest batch there can be is encoded at open ([`Encoder::warm_up`]).
    pub warm_up: bool,
    /// Never use the graph.
    pub exact: bool,
    /// Documents up to which the exact scan answers; above, the graph names candidates.
    pub graph_above: usize,
    /// Bytes of a saved graph up to which opening waits for it; a larger one is loaded aside, after the first query.
    pub graph_waited_for: u64,
    /// Precision of the vectors in memory; `None` is f32 where the exact scan answers, int8 in larger indexes. Scores do not
    /// depend on it: what is found in less than f32 is scored again from the database.
    pub vectors: Option<Precision>,
    /// How a database is used, where the index is in one.
    pub database: DatabaseOptions,
    /// Hears what a person should know and no caller needs to handle, e.g. that the graph is being rebuilt.
    pub notice: fn(&str),
}

impl Default for Options {
    fn default() -> Self {
        let notice = |message: &str| eprintln!("runtime: {message}");
        Self {
            session: SessionOptions::default(),
            golden: selftest::QUICK,
            warm_up: false,
            exact: false,
            graph_above: EXACT_LIMIT,
            graph_waited_for: directory::LOADED_ASIDE,
            vectors: None,
            database: DatabaseOptions::default(),
            notice,
        }
    }
}

/// What is wanted of a query; a number is how many documents.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Wanted {
    /// Most documents.
    pub k: usize,
    /// Documents that do not pass are not there.
    pub filter: Option<Filter>,
    /// Tell what each score is made of.
    pub explain: bool,
}

impl From<usize> for Wanted {
    fn from(k: usize) -> Self {
        Self { k, ..Self::default() }
    }
}

/// One ranked document.
#[cfg_attr(feature = "serve", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Hit {
    /// The document's id.
    pub id: String,
    /// Its title, may be empty.
    pub title: String,
    /// Its text.
    pub text: String,
    /// Its metadata.
    #[serde(skip_serializing_if = "Metadata::is_empty")]
    #[cfg_attr(feature = "serve", schema(required = false, value_type = Object))]
    pub metadata: Metadata,
    /// `log p(T) - log p(F)` as the student sees it.
    pub score: f32,
    /// The same as the teacher sees it, where it was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "serve", schema(nullable = false))]
    pub rerank_score: Option<f32>,
    /// Probability that the document answers the query: the teacher's where it was asked, else the student's, calibrated.
    pub probability: f32,
    /// What the student's score is made of, where that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "serve", schema(nullable = false))]
    pub explanation: Option<Explanation>,
}

impl Hit {
    /// The text that was encoded.
    pub fn contents(&self) -> String {
        let (title, text) = (self.title.clone(), self.text.clone());
        Document { title, text, ..Document::default() }.contents()
    }
}

/// The parts of a score: `score = query + pair`, `probability = sigmoid(scale * pair + bias)`.
#[cfg_attr(feature = "serve", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Explanation {
    /// `c(q)`, which all documents of a query have in common.
    pub query: f32,
    /// What query and document make together.
    pub pair: f32,
    /// Calibrated slope.
    pub scale: f32,
    /// Calibrated offset.
    pub bias: f32,
}

/// Where the time went, in milliseconds.
#[cfg_attr(feature = "serve", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Timing {
    /// Text to token ids.
    pub tokenise: f64,
    /// Token ids to the query's side of the score.
    pub encode: f64,
    /// Query to documents, their texts read.
    pub search: f64,
    /// The teacher's reading of candidates, where it was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "serve", schema(nullable = false))]
    pub rerank: Option<f64>,
}

/// Which search answered.
#[cfg_attr(feature = "serve", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SearchPath {
    /// Every document was scored.
    Exact,
    /// The graph named candidates, which were scored.
    Graph,
}

/// What is known about a query.
#[cfg_attr(feature = "serve", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Answer {
    /// Best first.
    pub results: Vec<Hit>,
    /// Milliseconds; in a batch, each query's share.
    #[serde(rename = "timing_ms")]
    pub timing: Timing,
    /// Which search answered.
    pub path: SearchPath,
}

impl Answer {
    /// The best `k` by other scores of the first `candidates`; those behind them keep their order. `score` is asked for each
    /// one's contents and gives one score.
    pub fn reranked<E>(
        mut self,
        k: usize,
        candidates: usize,
        mut score: impl FnMut(&str) -> Result<Vec<f32>, E>,
    ) -> Result<Self, E> {
        let started = Instant::now();
        let asked = candidates.min(self.results.len());
        let asked = &mut self.results[..asked];
        for hit in asked.iter_mut() {
            for score in score(&hit.contents())? {
                hit.rerank_score = Some(score);
                hit.probability = 1.0 / (1.0 + (-score).exp());
            }
        }
        asked.sort_by(|a, b| {
            let score = |hit: &Hit| hit.rerank_score.unwrap_or(f32::NEG_INFINITY);
            score(b).total_cmp(&score(a))
        });
        self.results.truncate(k);
        self.timing.rerank = Some((started.elapsed().as_secs_f64() * 1e6).round() / 1e3);
        Ok(self)
    }
}

/// What a retriever holds.
#[cfg_attr(feature = "serve", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Number of documents.
    pub documents: usize,
    /// Numbers per document, m.
    pub dimensions: usize,
    /// Memory of the vectors, in bytes.
    pub vector_bytes: usize,
    /// Their precision in memory.
    #[cfg_attr(feature = "serve", schema(value_type = String))]
    pub vector_precision: Precision,
    /// Number of the last change of the index.
    pub generation: u64,
    /// Digest over all its changes: who has the same one holds the same documents; a database keeps none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "serve", schema(nullable = false))]
    pub generation_digest: Option<String>,
    /// Vectors in the graph, where there is one.
    pub graph_vectors: Option<usize>,
    /// What the index is keyed to.
    pub document_digest: String,
}

/// Values of each metadata field with the number of documents that have them, commonest first.
pub type Facets = BTreeMap<String, Vec<(Value, usize)>>;

/// A bundle and an index. Any thread may ask and change it; what any process has changed is found by the next query.
#[derive(Debug)]
pub struct Retriever {
    encoder: Encoder,
    backend: Box<dyn Backend>,
}

impl Retriever {
    /// Opens a bundle and an index made with it; both are checked before anything is answered from them.
    pub fn open(bundle: &Path, index: &Path, options: Options) -> Result<Self, RetrieverError> {
        // A mistyped path should not wait until a large bundle has been checked.
        store::existing(index)?;
        let bundle = Arc::new(Bundle::open(bundle)?);
        // Threads of their own: those of the search may be busy with the queries of a server that reloads.
        let (encoder, directory) = std::thread::scope(|scope| {
            let encoder = scope.spawn(|| open_encoder(Arc::clone(&bundle), &options));
            let directory = Directory::open(index, &bundle, &options)?;
            // It ends abruptly only with a bug, which then is told as one.
            let encoder = encoder.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            Ok::<_, RetrieverError>((encoder, directory))
        })?;
        let encoder = encoder?;
        directory.open_graph();
        Ok(Self { encoder, backend: Box::new(directory) })
    }

    /// [`Retriever::open`], wherever the index is.
    pub fn open_place(bundle: &Path, index: &Place, options: Options) -> Result<Self, RetrieverError> {
        match index {
            Place::Directory(dir) => Self::open(bundle, dir, options),
            Place::Database(url) => Self::open_database(bundle, url, Access::Existing, options),
        }
    }

    /// Opens a bundle and an index in a database; with [`Access::Create`], its tables are made where they are missing.
    pub fn open_database(
        bundle: &Path,
        url: &DatabaseUrl,
        access: Access,
        options: Options,
    ) -> Result<Self, RetrieverError> {
        let bundle = Arc::new(Bundle::open(bundle)?);
        // The database first: it may refuse at once, and an encoder takes its time.
        let backend = postgres::open(&bundle, url, access, &options)?;
        Ok(Self { encoder: open_encoder(bundle, &options)?, backend })
    }

    /// Makes an index of these documents at `index`, which must not exist (an empty directory is fine). It appears when
    /// it is whole, or not at all.
    pub fn create(
        bundle: &Path,
        index: &Path,
        documents: &[Document],
        options: &Options,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<AddReport, RetrieverError> {
        if documents.is_empty() {
            return Err(RetrieverError::NoDocuments { dir: index.to_owned() });
        }
        let staged = StagedDir::new(index)?;
        let encoder = open_encoder(Arc::new(Bundle::open(bundle)?), options)?;
        let mut writer = Writer::create(staged.path(), &ingest::index_key(encoder.bundle()))?;
        let report = ingest::ingest(&encoder, &mut writer, documents, progress)?;
        complete(staged, writer, encoder.bundle(), options)?;
        Ok(report)
    }

    /// The best documents for a query.
    pub fn query(&self, text: &str, wanted: impl Into<Wanted>) -> Result<Answer, RetrieverError> {
        // query_batch() answers every query it was given.
        Ok(self.query_batch(&[text], wanted)?.swap_remove(0))
    }

    /// The best documents for each query; an answer for each, in order.
    pub fn query_batch(
        &self,
        texts: &[&str],
        wanted: impl Into<Wanted>,
    ) -> Result<Vec<Answer>, RetrieverError> {
        let wanted = wanted.into();
        if wanted.k == 0 {
            return Err(RetrieverError::ZeroResults);
        }
        let started = Instant::now();
        let passes = texts.iter().map(|text| self.encoder.query_pass(text)).collect::<Result<Vec<_>, _>>()?;
        let tokenised = Instant::now();
        let embeddings = self.encoder.encode(&passes)?;
        let queries: Vec<FoldedQuery> = embeddings.iter().map(|e| self.encoder.fold_query(e)).collect();
        let encoded = Instant::now();
        let mut answers = self.answer(&queries, &wanted)?;
        for Answer { timing, .. } in &mut answers {
            timing.tokenise = share(tokenised - started, texts.len());
            timing.encode = share(encoded - tokenised, texts.len());
        }
        Ok(answers)
    }

    /// The best documents for encoded queries; an answer for each, in order, that knows the time of the search only.
    pub fn answer(&self, queries: &[FoldedQuery], wanted: &Wanted) -> Result<Vec<Answer>, RetrieverError> {
        if wanted.k == 0 {
            return Err(RetrieverError::ZeroResults);
        }
        let started = Instant::now();
        let (path, ranked) = self.backend.search(queries, wanted)?;
        let hits: Vec<Vec<Hit>> =
            queries.iter().zip(ranked).map(|(query, ranked)| self.hits(query, ranked, wanted)).collect();
        let timing = Timing { search: share(started.elapsed(), queries.len()), ..Timing::default() };
        Ok(hits.into_iter().map(|results| Answer { results, timing, path }).collect())
    }

    /// The best documents by the teacher, among the best `candidates` by the student.
    pub fn query_reranked(
        &self,
        text: &str,
        wanted: impl Into<Wanted>,
        reranker: &Reranker,
        candidates: usize,
    ) -> Result<Answer, RetrieverError> {
        let wanted = wanted.into();
        if wanted.k == 0 {
            return Err(RetrieverError::ZeroResults);
        }
        let k = wanted.k;
        let answer = self.query(text, Wanted { k: candidates.max(k), ..wanted })?;
        answer.reranked(k, candidates, |contents| Ok(reranker.scores(text, &[contents])?))
    }

    /// Scores of texts that need not be in the index: the student's `log p(T) - log p(F)` and calibrated probability.
    pub fn score(&self, query: &str, texts: &[&str]) -> Result<Vec<(f32, f32)>, RetrieverError> {
        let query = self.encoder.fold_query(&self.encoder.query(query)?);
        let bundle = self.encoder.bundle();
        let score = |embedding: &crate::encoder::Embedding| {
            let score = query.score(&bundle.folded.document(&embedding.latent));
            (score, bundle.manifest.calibration.probability(score - query.constant))
        };
        Ok(self.encoder.documents(texts)?.iter().map(score).collect())
    }

    /// Adds documents: new ids are added, changed ones replaced, unchanged ones skipped. When it returns, they survive a
    /// power cut. After an error, the batches stored until then stay, and the call can be repeated.
    pub fn add(&self, documents: &[Document]) -> Result<AddReport, RetrieverError> {
        self.add_with(documents, &mut |_| ())
    }

    /// [`Retriever::add`], telling how far it has come.
    pub fn add_with(
        &self,
        documents: &[Document],
        progress: &mut dyn FnMut(Progress),
    ) -> Result<AddReport, RetrieverError> {
        self.backend.add(&self.encoder, documents, progress)
    }

    /// Removes documents and returns how many of them were there. When it returns, they stay removed after a power cut.
    pub fn remove<S: AsRef<str>>(&self, ids: &[S]) -> Result<usize, RetrieverError> {
        self.backend.remove(&ids.iter().map(AsRef::as_ref).collect::<Vec<&str>>())
    }

    /// Gives the room of removed documents back, on disk and in the graph.
    pub fn compact(&self) -> Result<(), RetrieverError> {
        self.backend.compact()
    }

    /// A document by its id.
    pub fn document(&self, id: &str) -> Result<Option<Document>, RetrieverError> {
        self.backend.document(id)
    }

    /// A page of documents, in the order in which they came.
    pub fn documents(&self, offset: usize, limit: usize) -> Result<Vec<Document>, RetrieverError> {
        self.backend.documents(offset, limit)
    }

    /// What documents can be filtered by: at most `most` values of each field.
    pub fn facets(&self, most: usize) -> Result<Facets, RetrieverError> {
        self.backend.facets(most)
    }

    /// What it holds.
    pub fn stats(&self) -> Result<Stats, RetrieverError> {
        self.backend.stats()
    }

    /// Where the index is, for people: a directory, or a database's URL without its password.
    pub fn place(&self) -> String {
        self.backend.place()
    }

    /// The encoder, for embeddings of one's own.
    pub fn encoder(&self) -> &Encoder {
        &self.encoder
    }

    /// Saves the graph if it has changed much; small changes are cheaper to repeat at the next start. A change that is under
    /// way is not waited for.
    pub fn save(&self) -> Result<(), RetrieverError> {
        self.backend.save()
    }

    /// Waits until the graph, if one is wanted, has nearly every document, and saves it if it has changed much: for
    /// whoever ends. Nobody else waits for the graph; it is built and brought up to date aside.
    pub fn settle(&self) {
        self.backend.settle(true);
    }

    /// The same for whoever has only asked: a large graph that was saved and not needed stays unread.
    pub fn settle_after_query(&self) {
        self.backend.settle(false);
    }

    /// Measures the graph against the exact scan; `None` where no graph answers. With `least`, the graph looks wider until it
    /// finds that share, or as wide as it goes. What was found is kept in the index.
    pub fn check_graph(
        &self,
        queries: &[FoldedQuery],
        k: usize,
        least: Option<f64>,
    ) -> Result<Option<GraphCheck>, RetrieverError> {
        self.backend.check_graph(queries, k, least)
    }

    fn hits(&self, &FoldedQuery { constant, .. }: &FoldedQuery, ranked: Ranked, wanted: &Wanted) -> Vec<Hit> {
        let calibration = self.encoder.bundle().manifest.calibration;
        let hit = |(Document { id, title, text, metadata }, score): (Document, f32)| {
            let pair = score - constant;
            let explanation =
                Explanation { query: constant, pair, scale: calibration.scale, bias: calibration.bias };
            Hit {
                id,
                title,
                text,
                metadata,
                score,
                rerank_score: None,
                probability: calibration.probability(pair),
                explanation: wanted.explain.then_some(explanation),
            }
        };
        ranked.into_iter().map(hit).collect()
    }
}

/// Ends a new index: what speeds up a large one, and the directory in its place.
pub(crate) fn complete(
    staged: StagedDir,
    writer: Writer,
    bundle: &Bundle,
    options: &Options,
) -> Result<(), RetrieverError> {
    let count = writer.store().count()?;
    if count > options.graph_above {
        let (rows, generation) = writer.store().load_in(directory::precision(options, count))?;
        rows_file::save(staged.path(), &rows, &generation)?;
        (options.notice)(&format!("building the graph over {} documents", rows.len()));
        Graph::build(&rows, Measure::of_bundle(bundle))?.save(staged.path(), &generation)?;
    }
    writer.close()?;
    Ok(staged.commit()?)
}

/// Each text's share of a time, in milliseconds; microseconds are as fine as anybody wants to read.
fn share(time: Duration, texts: usize) -> f64 {
    (time.as_secs_f64() * 1e6 / texts.max(1) as f64).round() / 1e3
}

pub(crate) fn open_encoder(bundle: Arc<Bundle>, options: &Options) -> Result<Encoder, RetrieverError> {
    let encoder = Encoder::open(bundle, &options.session)?;
    encoder.fallbacks().iter().for_each(|fallback| (options.notice)(fallback));
    if options.warm_up {
        encoder.warm_up()?;
    }
    for measured in selftest::measure(&encoder, None, options.golden)? {
        if !measured.passed {
            return Err(RetrieverError::Golden {
                dir: encoder.bundle().dir.clone(),
                found: measured.folded,
                expected: measured.golden.score,
                query: measured.golden.query,
            });
        }
    }
    Ok(encoder)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server shares one retriever among its threads; a field that forbids it would be noticed only there.
    #[test]
    fn a_retriever_can_be_shared_between_threads() {
        fn shared<T: Send + Sync>() {}
        shared::<Retriever>();
    }
}
