//! The library's front door: a bundle and an index, opened together; queries in, ranked documents out.

use crate::bundle::{Bundle, BundleError};
use crate::document::{Document, Metadata};
use crate::encoder::{Encoder, EncoderError};
use crate::filter::Filter;
use crate::index::{Graph, GraphError, Measure};
use crate::ingest::{self, AddReport, Progress};
use crate::reranker::{Reranker, RerankerError};
use crate::search::{self, EXACT_LIMIT, Scored};
use crate::selftest;
use crate::session::SessionOptions;
use crate::snapshot::{self, SnapshotError};
use crate::store::{self, Store, StoreError, Writer};
use crate::vectors::Precision;
use fixedbitset::FixedBitSet;
use models::files::{FileError, StagedDir};
use models::fold::FoldedQuery;
use models::prompt::PromptError;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

mod linked;
mod recall;

use self::linked::{Memory, State};
pub use self::recall::GraphCheck;
use parking_lot::RwLockReadGuard;

/// Changed documents after which the graph is brought up to date and saved again. Fewer are scored one by one beside what it
/// finds, which takes no time, where linking takes about a millisecond each.
const SAVE_AFTER: usize = 500;
/// Bytes of a graph that opening an index waits for: a tenth of a second.
const LOADED_ASIDE: u64 = 100_000_000;
/// What is done about a saved graph that is of no use.
const REBUILDING: &str = "rebuilding the graph from documents.sqlite";

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
    /// The graph cannot be built or searched.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// The snapshot of the rows cannot be written.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
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
    /// Never use the graph.
    pub exact: bool,
    /// Documents up to which the exact scan answers; above, the graph names candidates.
    pub graph_above: usize,
    /// Bytes of a saved graph up to which opening waits for it; a larger one is loaded aside, after the first query.
    pub graph_waited_for: u64,
    /// Precision of the vectors in memory; `None` is f32 where the exact scan answers, int8 in larger indexes. Scores do not
    /// depend on it: what is found in less than f32 is scored again from the database.
    pub vectors: Option<Precision>,
    /// Hears what a person should know and no caller needs to handle, e.g. that the graph is being rebuilt.
    pub notice: fn(&str),
}

impl Default for Options {
    fn default() -> Self {
        let notice = |message: &str| eprintln!("runtime: {message}");
        Self {
            session: SessionOptions::default(),
            golden: selftest::QUICK,
            exact: false,
            graph_above: EXACT_LIMIT,
            graph_waited_for: LOADED_ASIDE,
            vectors: None,
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
    pub metadata: Metadata,
    /// `log p(T) - log p(F)` as the student sees it.
    pub score: f32,
    /// The same as the teacher sees it, where it was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rerank_score: Option<f32>,
    /// Probability that the document answers the query: the teacher's where it was asked, else the student's, calibrated.
    pub probability: f32,
    /// What the student's score is made of, where that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
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
    pub rerank: Option<f64>,
}

/// Which search answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SearchPath {
    /// Every document was scored.
    Exact,
    /// The graph named candidates, which were scored.
    Graph,
}

/// What is known about a query.
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

/// What a retriever holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Number of documents.
    pub documents: usize,
    /// Numbers per document, m.
    pub dimensions: usize,
    /// Memory of the vectors, in bytes.
    pub vector_bytes: usize,
    /// Their precision in memory.
    pub vector_precision: Precision,
    /// Number of the last change of the index.
    pub generation: u64,
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
    options: Options,
    /// Taken before the memory's locks, never after them.
    store: Mutex<Store>,
    memory: Arc<Memory>,
}

impl Retriever {
    /// Opens a bundle and an index made with it; both are checked before anything is answered from them.
    pub fn open(bundle: &Path, index: &Path, options: Options) -> Result<Self, RetrieverError> {
        // A mistyped path should not wait until a large bundle has been checked.
        store::existing(index)?;
        let bundle = Arc::new(Bundle::open(bundle)?);
        // Threads of their own: those of the search may be busy with the queries of a server that reloads.
        let (encoder, loaded) = std::thread::scope(|scope| {
            let encoder = scope.spawn(|| open_encoder(Arc::clone(&bundle), &options));
            let loaded = Store::open(index, &ingest::index_key(&bundle))
                .map_err(RetrieverError::from)
                .and_then(|store| load(index, store, &options));
            // It ends abruptly only with a bug, which then is told as one.
            let encoder = encoder.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            Ok::<_, RetrieverError>((encoder, loaded))
        })?;
        let ((store, state), encoder) = (loaded?, encoder?);
        let memory = Memory::new(
            index,
            ingest::index_key(&bundle),
            store.identity(),
            Measure::of_bundle(&bundle),
            options.notice,
            if options.exact { usize::MAX } else { options.graph_above },
            state,
        );
        let retriever = Self { encoder, options, store: Mutex::new(store), memory };
        retriever.open_graph();
        Ok(retriever)
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
        let count = writer.store().count()?;
        if count > options.graph_above {
            let (rows, generation) = writer.store().load_in(precision(options, count))?;
            snapshot::save(staged.path(), &rows, &generation)?;
            (options.notice)(&format!("building the graph over {} documents", rows.len()));
            Graph::build(&rows, Measure::of_bundle(encoder.bundle()))?.save(staged.path(), &generation)?;
        }
        writer.close()?;
        staged.commit()?;
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
        self.refresh()?;
        let (path, rough, mut ranked) = {
            let state = self.state();
            let rough = state.rows.precision() != Precision::F32;
            let k = if rough { search::rough_results(wanted.k) } else { wanted.k };
            let (path, ranked) = state.search(queries, k, wanted.filter.as_ref())?;
            let keyed =
                |found: &Vec<Scored>| found.iter().map(|s| (state.rows.key(s.row), s.score)).collect();
            (path, rough, ranked.iter().map(keyed).collect::<Vec<Vec<(i64, f32)>>>())
        };
        if rough {
            for (query, ranked) in queries.iter().zip(&mut ranked) {
                *ranked = self.scored_exactly(query, ranked, wanted.k)?;
            }
        }
        let hits = queries.iter().zip(&ranked).map(|(query, ranked)| self.hits(query, ranked, wanted));
        let hits = hits.collect::<Result<Vec<_>, _>>()?;
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
        let mut answer = self.query(text, Wanted { k: candidates.max(k), ..wanted })?;
        let started = Instant::now();
        // Those behind the candidates keep the student's order.
        let asked = candidates.min(answer.results.len());
        let asked = &mut answer.results[..asked];
        let contents: Vec<String> = asked.iter().map(Hit::contents).collect();
        let contents: Vec<&str> = contents.iter().map(String::as_str).collect();
        for (hit, score) in asked.iter_mut().zip(reranker.scores(text, &contents)?) {
            hit.rerank_score = Some(score);
            hit.probability = 1.0 / (1.0 + (-score).exp());
        }
        asked.sort_by(|a, b| {
            let score = |hit: &Hit| hit.rerank_score.unwrap_or(f32::NEG_INFINITY);
            score(b).total_cmp(&score(a))
        });
        answer.results.truncate(k);
        answer.timing.rerank = Some((started.elapsed().as_secs_f64() * 1e6).round() / 1e3);
        Ok(answer)
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
        self.change(|writer| ingest::ingest(&self.encoder, writer, documents, progress))
    }

    /// Removes documents and returns how many of them were there. When it returns, they stay removed after a power cut.
    pub fn remove<S: AsRef<str>>(&self, ids: &[S]) -> Result<usize, RetrieverError> {
        self.change(|writer| Ok(writer.remove(ids)?.len()))
    }

    /// Gives the room of removed documents back, on disk and in the graph.
    pub fn compact(&self) -> Result<(), RetrieverError> {
        self.change(|writer| Ok(writer.compact()?))?;
        self.memory.state.write().graph = None;
        self.settle();
        Ok(())
    }

    /// A document by its id.
    pub fn document(&self, id: &str) -> Result<Option<Document>, RetrieverError> {
        Ok(self.store().document_by_id(id)?)
    }

    /// A page of documents, in the order in which they came.
    pub fn documents(&self, offset: usize, limit: usize) -> Result<Vec<Document>, RetrieverError> {
        Ok(self.store().documents(offset, limit)?)
    }

    /// What documents can be filtered by: at most `most` values of each field.
    pub fn facets(&self, most: usize) -> Result<Facets, RetrieverError> {
        self.refresh()?;
        let state = self.state();
        Ok(state.rows.columns().facets(state.rows.live(), most))
    }

    /// What it holds.
    pub fn stats(&self) -> Result<Stats, RetrieverError> {
        self.refresh()?;
        let state = self.state();
        Ok(Stats {
            documents: state.rows.len(),
            dimensions: state.rows.dimensions(),
            vector_bytes: state.rows.bytes(),
            vector_precision: state.rows.precision(),
            generation: state.generation.number,
            graph_vectors: state.graph.as_ref().map(|linked| linked.graph.read().len()),
            document_digest: self.encoder.bundle().manifest.document_digest.clone(),
        })
    }

    /// The encoder, for embeddings of one's own.
    pub fn encoder(&self) -> &Encoder {
        &self.encoder
    }

    /// Saves the graph if it has changed much; small changes are cheaper to repeat at the next start. A change that is under
    /// way is not waited for.
    pub fn save(&self) -> Result<(), RetrieverError> {
        self.memory.save(true)
    }

    /// Waits until the graph, if one is wanted, has nearly every document, and saves it if it has changed much: for
    /// whoever ends. Nobody else waits for the graph; it is built and brought up to date aside.
    pub fn settle(&self) {
        self.memory.link_all(SAVE_AFTER);
        // The documents are safe; the graph will be caught up with, or built again.
        if let Err(error) = self.memory.save(false) {
            (self.options.notice)(&format!("the graph is not saved: {error}"));
        }
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> RwLockReadGuard<'_, State> {
        self.memory.state.read()
    }

    /// Writes under the lock of the one writer; what was written is in memory when it returns.
    fn change<T>(
        &self,
        change: impl FnOnce(&mut Writer) -> Result<T, RetrieverError>,
    ) -> Result<T, RetrieverError> {
        let _changing = self.memory.changing.lock();
        let mut writer = self.memory.writer()?;
        let changed = change(&mut writer);
        // Also after an error: some batches may be in.
        self.refresh()?;
        let closed = writer.close();
        let changed = changed?;
        closed?;
        // What went into files that were taken away meanwhile must not be called durable.
        if self.memory.identity.is_at(&self.memory.dir) {
            Ok(changed)
        } else {
            Err(RetrieverError::Replaced { dir: self.memory.dir.clone() })
        }
    }

    /// Reads what this or any other process has changed.
    fn refresh(&self) -> Result<(), RetrieverError> {
        let mut store = self.store();
        store.follow(&self.memory.key);
        let since = self.state().generation.number;
        if store.generation()?.number != since {
            let mut state = self.memory.state.write();
            match store.update(&mut state.rows, since) {
                Ok((changes, now)) => state.note(&changes, now),
                Err(StoreError::Forgotten { .. }) => {
                    // Others go on with what there was.
                    drop(state);
                    let precision = self.state().rows.precision();
                    let (rows, now) = store.load_in(precision)?;
                    self.memory.state.write().replace(rows, now);
                }
                Err(error) => return Err(error.into()),
            }
        }
        drop(store);
        if !self.memory.is_first() {
            self.memory.link_aside();
        }
        Ok(())
    }

    /// Loads the saved graph, or says why a new one has to be built; what it lacks is linked aside. A large one is loaded
    /// aside too, after the first query: whoever asks only one would wait for it longer than for the scan.
    fn open_graph(&self) {
        if Graph::bytes(&self.memory.dir) > self.options.graph_waited_for {
            return self.memory.load_later();
        }
        let store = self.store();
        let mut state = self.memory.state.write();
        if self.memory.wants_graph(&state.rows) {
            match linked::saved_graph(&self.memory, &store, state.rows.len()) {
                Ok(linked) => state.graph = Some(linked),
                Err(reason) => (self.options.notice)(&format!("{reason}; {REBUILDING}")),
            }
        }
        drop((state, store));
        self.memory.link_aside();
    }

    /// The best `k` of what a rough scan found, by their vectors as they were stored.
    fn scored_exactly(
        &self,
        query: &FoldedQuery,
        found: &[(i64, f32)],
        k: usize,
    ) -> Result<Vec<(i64, f32)>, RetrieverError> {
        let store = self.store();
        let mut scored = Vec::with_capacity(found.len());
        for (key, _) in found {
            // A document that was removed meanwhile is not shown.
            if let Some((id, vector)) = store.vector(*key)? {
                scored.push((query.score(&vector), id, *key));
            }
        }
        scored.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| b.1.cmp(&a.1)));
        scored.truncate(k);
        Ok(scored.into_iter().map(|(score, _, key)| (key, score)).collect())
    }

    fn hits(
        &self,
        &FoldedQuery { constant, .. }: &FoldedQuery,
        ranked: &[(i64, f32)],
        wanted: &Wanted,
    ) -> Result<Vec<Hit>, RetrieverError> {
        let calibration = self.encoder.bundle().manifest.calibration;
        let store = self.store();
        let mut hits = Vec::with_capacity(ranked.len());
        for &(key, score) in ranked {
            // A document that was removed meanwhile is not shown.
            if let Some(Document { id, title, text, metadata }) = store.document(key)? {
                let pair = score - constant;
                let explanation =
                    Explanation { query: constant, pair, scale: calibration.scale, bias: calibration.bias };
                hits.push(Hit {
                    id,
                    title,
                    text,
                    metadata,
                    score,
                    rerank_score: None,
                    probability: calibration.probability(pair),
                    explanation: wanted.explain.then_some(explanation),
                });
            }
        }
        Ok(hits)
    }
}

impl Drop for Retriever {
    fn drop(&mut self) {
        self.memory.stop();
    }
}

impl State {
    fn search(
        &self,
        queries: &[FoldedQuery],
        k: usize,
        filter: Option<&Filter>,
    ) -> Result<(SearchPath, Vec<Vec<Scored>>), GraphError> {
        let rows = &self.rows;
        let selected: Option<FixedBitSet> = filter.map(|filter| rows.select(filter));
        let selected = selected.as_ref();
        if let Some(linked) = &self.graph
            && let Some(ranked) = linked.search(queries, rows, k, selected)?
        {
            return Ok((SearchPath::Graph, ranked));
        }
        Ok((SearchPath::Exact, search::exact(queries, rows, k, selected)))
    }
}

/// Each text's share of a time, in milliseconds; microseconds are as fine as anybody wants to read.
fn share(time: Duration, texts: usize) -> f64 {
    (time.as_secs_f64() * 1e6 / texts.max(1) as f64).round() / 1e3
}

/// Precision of an index of this many documents.
fn precision(options: &Options, documents: usize) -> Precision {
    let fitting = if documents > options.graph_above { Precision::Int8 } else { Precision::F32 };
    options.vectors.unwrap_or(fitting)
}

/// The rows: of a large index from its snapshot and what came after it, else, and of any other, from the database.
fn load(dir: &Path, store: Store, options: &Options) -> Result<(Store, State), RetrieverError> {
    let count = store.count()?;
    let mut unmapped = count;
    if count > options.graph_above {
        match saved_rows(dir, &store, options.vectors) {
            Ok(Some(state)) => return Ok((store, state)),
            Ok(None) => (),
            // It serves those who did not ask for another; so it is left as it is.
            Err(RetrieverError::Snapshot(SnapshotError::Precision { .. })) => unmapped = 0,
            Err(reason) => (options.notice)(&format!("{reason}; reading all vectors from documents.sqlite")),
        }
    }
    let (rows, generation) = store.load_in(precision(options, count))?;
    Ok((store, State::new(rows, generation, unmapped)))
}

/// The snapshot on disk brought up to date; `None` where there is none, an error says why it is of no use.
fn saved_rows(
    dir: &Path,
    store: &Store,
    precision: Option<Precision>,
) -> Result<Option<State>, RetrieverError> {
    let (mut rows, generation) = match snapshot::open(dir, store.dimensions(), precision) {
        Err(SnapshotError::File(FileError::Io { source, .. })) if source.kind() == ErrorKind::NotFound => {
            return Ok(None);
        }
        opened => opened?,
    };
    if !store.has_been_at(&generation)? {
        let reason = format!(
            "of generation {}, where documents.sqlite has never been, or long ago",
            generation.number
        );
        return Err(SnapshotError::Unfit { file: dir.join(snapshot::FILE_NAME), reason }.into());
    }
    let (changes, now) = store.update(&mut rows, generation.number)?;
    rows.compact();
    Ok(Some(State::new(rows, now, changes.put.len() + changes.removed.len())))
}

fn open_encoder(bundle: Arc<Bundle>, options: &Options) -> Result<Encoder, RetrieverError> {
    let encoder = Encoder::open(bundle, &options.session)?;
    encoder.fallbacks().iter().for_each(|fallback| (options.notice)(fallback));
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
