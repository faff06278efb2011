//! The library's front door: a bundle and an index, opened together; queries in, ranked documents out.

use crate::bundle::{Bundle, BundleError};
use crate::encoder::{Encoder, EncoderError};
use crate::index::{Graph, GraphError, Measure};
use crate::ingest::{self, AddReport, Progress};
use crate::reranker::{Reranker, RerankerError};
use crate::search::{self, EXACT_LIMIT, Rows, Scored};
use crate::selftest;
use crate::session::SessionOptions;
use crate::store::{self, Store, StoreError, Writer};
use models::beir::Document;
use models::files::{FileError, StagedDir};
use models::fold::FoldedQuery;
use models::prompt::PromptError;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

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
    /// Hears what a person should know and no caller needs to handle, e.g. that the graph is being rebuilt.
    pub notice: fn(&str),
}

impl Default for Options {
    fn default() -> Self {
        let notice = |message: &str| eprintln!("runtime: {message}");
        Self { session: SessionOptions::default(), golden: selftest::QUICK, exact: false, notice }
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
    /// `log p(T) - log p(F)` as the student sees it.
    pub score: f32,
    /// The same as the teacher sees it, where it was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rerank_score: Option<f32>,
    /// Probability that the document answers the query: the teacher's where it was asked, else the student's, calibrated.
    pub probability: f32,
}

impl Hit {
    /// The text that was encoded: title and text as BEIR joins them.
    pub fn contents(&self) -> String {
        let (id, title, text) = (self.id.clone(), self.title.clone(), self.text.clone());
        Document { id, title, text }.contents()
    }
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
    /// Number of the last change of the index.
    pub generation: u64,
    /// Vectors in the graph, where there is one.
    pub graph_vectors: Option<usize>,
    /// What the index is keyed to.
    pub document_digest: String,
}

/// A bundle and an index. Queries may come from any thread; adding needs the retriever alone. It answers from the
/// documents that were there when it was opened and those it has added itself.
#[derive(Debug)]
pub struct Retriever {
    dir: PathBuf,
    encoder: Encoder,
    options: Options,
    store: Mutex<Store>,
    rows: Rows,
    generation: u64,
    graph: Option<Graph>,
}

impl Retriever {
    /// Opens a bundle and an index made with it; both are checked before anything is answered from them.
    pub fn open(bundle: &Path, index: &Path, options: Options) -> Result<Self, RetrieverError> {
        // A mistyped path should not wait until a large bundle has been checked.
        store::existing(index)?;
        let bundle = Arc::new(Bundle::open(bundle)?);
        let (encoder, loaded) = rayon::join(
            || open_encoder(Arc::clone(&bundle), &options),
            || Ok::<_, RetrieverError>(Store::open(index, &ingest::index_key(&bundle))?).and_then(load),
        );
        let (store, rows, generation) = loaded?;
        let (dir, store) = (index.to_owned(), Mutex::new(store));
        let mut retriever = Self { dir, encoder: encoder?, options, store, rows, generation, graph: None };
        if retriever.wants_graph() {
            retriever.open_graph()?;
        }
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
        let key = ingest::index_key(encoder.bundle());
        let mut writer = Writer::create(staged.path(), &key)?;
        let mut rows = Rows::new(key.inner_dimensions);
        let report = ingest::ingest(&encoder, &mut writer, documents, &mut rows, &mut Vec::new(), progress)?;
        if rows.len() > EXACT_LIMIT {
            (options.notice)(&format!("building the graph over {} documents", rows.len()));
            let graph = Graph::build(&rows, Measure::of_bundle(encoder.bundle()))?;
            graph.save(staged.path(), writer.store().generation()?)?;
        }
        writer.close()?;
        staged.commit()?;
        Ok(report)
    }

    /// The best `k` documents for a query.
    pub fn query(&self, text: &str, k: usize) -> Result<Answer, RetrieverError> {
        // query_batch() answers every query it was given.
        Ok(self.query_batch(&[text], k)?.swap_remove(0))
    }

    /// The best `k` documents for each query; an answer for each, in order.
    pub fn query_batch(&self, texts: &[&str], k: usize) -> Result<Vec<Answer>, RetrieverError> {
        if k == 0 {
            return Err(RetrieverError::ZeroResults);
        }
        let started = Instant::now();
        let passes = texts.iter().map(|text| self.encoder.query_pass(text)).collect::<Result<Vec<_>, _>>()?;
        let tokenised = Instant::now();
        let embeddings = self.encoder.encode(&passes)?;
        let queries: Vec<FoldedQuery> = embeddings.iter().map(|e| self.encoder.fold_query(e)).collect();
        let encoded = Instant::now();
        let (path, ranked) = self.search(&queries, k)?;
        let results = queries
            .iter()
            .zip(&ranked)
            .map(|(q, r)| self.hits(q, r))
            .collect::<Result<Vec<_>, RetrieverError>>()?;
        // Microseconds are as fine as anybody wants to read.
        let share = |time: Duration| (time.as_secs_f64() * 1e6 / texts.len().max(1) as f64).round() / 1e3;
        let timing = Timing {
            tokenise: share(tokenised - started),
            encode: share(encoded - tokenised),
            search: share(encoded.elapsed()),
            rerank: None,
        };
        Ok(results.into_iter().map(|results| Answer { results, timing, path }).collect())
    }

    /// The best `k` documents by the teacher, among the best `candidates` by the student.
    pub fn query_reranked(
        &self,
        text: &str,
        k: usize,
        reranker: &Reranker,
        candidates: usize,
    ) -> Result<Answer, RetrieverError> {
        if k == 0 {
            return Err(RetrieverError::ZeroResults);
        }
        let mut answer = self.query(text, candidates.max(k))?;
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

    /// Adds documents: new ids are added, changed contents replaced, unchanged ones skipped. When it returns, they
    /// survive a power cut. After an error, the batches stored until then stay, and the call can be repeated.
    pub fn add(&mut self, documents: &[Document]) -> Result<AddReport, RetrieverError> {
        self.add_with(documents, &mut |_| ())
    }

    /// [`Retriever::add`], telling how far it has come.
    pub fn add_with(
        &mut self,
        documents: &[Document],
        progress: &mut dyn FnMut(Progress),
    ) -> Result<AddReport, RetrieverError> {
        let mut writer = Writer::open(&self.dir, &ingest::index_key(self.encoder.bundle()))?;
        if writer.store().generation()? != self.generation {
            // Another process has written since: start from what is there.
            (self.rows, self.generation) = writer.store().load()?;
            self.graph = None;
        }
        let mut changed = Vec::new();
        let report =
            ingest::ingest(&self.encoder, &mut writer, documents, &mut self.rows, &mut changed, progress);
        // Also after an error: some batches may be in.
        self.generation = writer.store().generation()?;
        if let Err(error) = self.update_graph(&changed) {
            self.graph = None;
            (self.options.notice)(&format!(
                "{error}; every document is scanned until the index is opened again"
            ));
        }
        let closed = writer.close();
        let report = report?;
        closed?;
        Ok(report)
    }

    /// What it holds.
    pub fn stats(&self) -> Stats {
        Stats {
            documents: self.rows.len(),
            dimensions: self.rows.dimensions(),
            vector_bytes: self.rows.bytes(),
            generation: self.generation,
            graph_vectors: self.graph.as_ref().map(Graph::len),
            document_digest: self.encoder.bundle().manifest.document_digest.clone(),
        }
    }

    /// The encoder, for embeddings of one's own.
    pub fn encoder(&self) -> &Encoder {
        &self.encoder
    }

    fn wants_graph(&self) -> bool {
        !self.options.exact && self.rows.len() > EXACT_LIMIT
    }

    /// Loads the saved graph, or builds it anew and says why.
    fn open_graph(&mut self) -> Result<(), RetrieverError> {
        let measure = Measure::of_bundle(self.encoder.bundle());
        let opened = Graph::open(&self.dir, &self.rows, measure.clone(), self.generation);
        self.graph = Some(match opened {
            Ok(graph) => graph,
            Err(reason) => {
                (self.options.notice)(&format!("{reason}; rebuilding the graph from documents.sqlite"));
                let graph = Graph::build(&self.rows, measure)?;
                // Only the writer may put files there; without that, this process alone has the new graph.
                let key = ingest::index_key(self.encoder.bundle());
                let saved = Writer::open(&self.dir, &key).map_err(RetrieverError::from).and_then(|writer| {
                    // Unless somebody has written meanwhile.
                    if writer.store().generation()? == self.generation {
                        graph.save(&self.dir, self.generation)?;
                    }
                    Ok(())
                });
                if let Err(error) = saved {
                    (self.options.notice)(&format!("the new graph is not saved: {error}"));
                }
                graph
            }
        });
        Ok(())
    }

    /// Takes changed rows into the graph and saves it; the caller holds the writer's lock.
    fn update_graph(&mut self, changed: &[i64]) -> Result<(), GraphError> {
        if !self.wants_graph() {
            return Ok(());
        }
        let graph = match self.graph.take() {
            Some(graph) if changed.is_empty() => graph,
            Some(mut graph) => {
                graph.update(&self.rows, changed)?;
                graph.save(&self.dir, self.generation)?;
                graph
            }
            None => {
                (self.options.notice)(&format!("building the graph over {} documents", self.rows.len()));
                let graph = Graph::build(&self.rows, Measure::of_bundle(self.encoder.bundle()))?;
                graph.save(&self.dir, self.generation)?;
                graph
            }
        };
        self.graph = Some(graph);
        Ok(())
    }

    fn search(
        &self,
        queries: &[FoldedQuery],
        k: usize,
    ) -> Result<(SearchPath, Vec<Vec<Scored>>), RetrieverError> {
        let count = search::candidates(k);
        match &self.graph {
            // With so many candidates, the scan is the faster way.
            Some(graph) if count < self.rows.len() / 2 => {
                let ranked: Result<Vec<_>, GraphError> = queries
                    .iter()
                    .map(|query| Ok(search::rescore(query, &self.rows, &graph.search(query, count)?, k)))
                    .collect();
                Ok((SearchPath::Graph, ranked?))
            }
            _ => Ok((SearchPath::Exact, search::exact(queries, &self.rows, k))),
        }
    }

    fn hits(
        &self,
        FoldedQuery { constant, .. }: &FoldedQuery,
        ranked: &[Scored],
    ) -> Result<Vec<Hit>, RetrieverError> {
        let calibration = self.encoder.bundle().manifest.calibration;
        let store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        let mut hits = Vec::with_capacity(ranked.len());
        for &Scored { row, score } in ranked {
            // A document that another process has removed is not shown.
            if let Some(Document { id, title, text }) = store.document(self.rows.key(row))? {
                hits.push(Hit {
                    id,
                    title,
                    text,
                    score,
                    rerank_score: None,
                    probability: calibration.probability(score - constant),
                });
            }
        }
        Ok(hits)
    }
}

fn load(store: Store) -> Result<(Store, Rows, u64), RetrieverError> {
    let (rows, generation) = store.load()?;
    Ok((store, rows, generation))
}

fn open_encoder(bundle: Arc<Bundle>, options: &Options) -> Result<Encoder, RetrieverError> {
    let encoder = Encoder::open(bundle, &options.session)?;
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
