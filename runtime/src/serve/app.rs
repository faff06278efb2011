//! What all requests share: the retriever that is loaded now, the limits, and the places for work.

use super::batch::Batcher;
use super::error::ApiError;
use super::metrics::Metrics;
use crate::encoder::{Embedding, EncoderError};
use crate::place::Place;
use crate::reranker::{Reranker, RerankerError};
use crate::retriever::{Options, Retriever, RetrieverError};
use models::files::sha256_parts;
use models::fold::FoldedQuery;
use models::prompt::Encoded;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What is served; opened anew from the same paths when the server is told to reload.
#[derive(Debug, Clone)]
pub struct Paths {
    /// Bundle of the student.
    pub bundle: PathBuf,
    /// Index made with it.
    pub index: Place,
    /// Bundle of the teacher, where it reranks.
    pub reranker: Option<PathBuf>,
}

/// How much of everything.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Requests that are worked on or wait for it; more are told to come back.
    pub requests: usize,
    /// Texts that are encoded together.
    pub batch: usize,
    /// Time for a request, its body included.
    pub timeout: Duration,
    /// Bytes of a body.
    pub body: usize,
    /// Most documents of an answer, texts of a request, documents of a page.
    pub items: usize,
    /// Most documents that the teacher reads for one query.
    pub rerank: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            requests: 64,
            batch: 16,
            timeout: Duration::from_secs(30),
            body: 2 << 20,
            items: 1000,
            rerank: 100,
        }
    }
}

/// An opened retriever and its teacher.
pub struct Loaded {
    /// The retriever.
    pub retriever: Retriever,
    /// The teacher.
    pub reranker: Option<Reranker>,
}

/// The server.
pub struct App {
    paths: Paths,
    options: Options,
    /// SHA-256 of the key: comparing digests tells nothing about the key by the time it takes.
    key: Option<String>,
    /// Names that mean this machine; empty lets every name through.
    hosts: Vec<String>,
    current: RwLock<Arc<Loaded>>,
    /// One reload at a time.
    reloading: Mutex<()>,
    batcher: Batcher,
    places: Arc<Semaphore>,
    /// Places for requests that change the index, which take turns: half of all, so that queries always find some.
    changes: Arc<Semaphore>,
    /// Places for bodies that are being read.
    bodies: Arc<Semaphore>,
    stopping: AtomicBool,
    /// Counters.
    pub metrics: Metrics,
    /// Limits.
    pub limits: Limits,
}

impl App {
    /// Opens what is to be served. `hosts` are the names under which it may be asked without a key; none lets all through.
    pub fn open(
        paths: Paths,
        options: Options,
        limits: Limits,
        key: Option<&str>,
        hosts: Vec<String>,
    ) -> anyhow::Result<Self> {
        let loaded = Arc::new(load(&paths, &options)?);
        Ok(Self {
            key: key.map(digest),
            hosts,
            current: RwLock::new(loaded),
            reloading: Mutex::new(()),
            batcher: Batcher::start(limits.batch)?,
            places: Arc::new(Semaphore::new(limits.requests)),
            changes: Arc::new(Semaphore::new(limits.requests.div_ceil(2))),
            bodies: Arc::new(Semaphore::new(2 * limits.requests)),
            stopping: AtomicBool::new(false),
            metrics: Metrics::new(),
            paths,
            options,
            limits,
        })
    }

    /// What is loaded now; a request keeps what it began with.
    pub fn loaded(&self) -> Arc<Loaded> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Opens everything anew. If that fails, the server goes on with what it has.
    pub fn reload(&self) -> anyhow::Result<()> {
        let _reloading = self.reloading.lock().unwrap_or_else(PoisonError::into_inner);
        let loaded = Arc::new(load(&self.paths, &self.options)?);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = loaded;
        Ok(())
    }

    /// From now on not ready.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// What hears of things that no client needs to know.
    pub fn notice(&self) -> fn(&str) {
        self.options.notice
    }

    /// Whether it is on its way out.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Whether a request with these headers may be answered.
    pub fn admits(&self, authorization: Option<&str>, host: Option<&str>) -> Result<(), ApiError> {
        if let Some(key) = &self.key {
            // The scheme's name may be written in any case (RFC 9110).
            let sent = authorization.and_then(|value| value.split_once(' '));
            return match sent {
                Some((scheme, sent))
                    if scheme.eq_ignore_ascii_case("bearer") && digest(sent.trim()) == *key =>
                {
                    Ok(())
                }
                _ => Err(ApiError::Unauthorized),
            };
        }
        let host = host.unwrap_or_default();
        // `[::1]:8080`, `localhost:8080`, `localhost`
        let name = match host.rsplit_once(':') {
            Some((name, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => name,
            _ => host,
        };
        let same = |known: &String| known.eq_ignore_ascii_case(name) || known.eq_ignore_ascii_case(host);
        let known = self.hosts.is_empty() || self.hosts.iter().any(same);
        if known { Ok(()) } else { Err(ApiError::Host(host.to_owned())) }
    }

    /// Does a request's work on a thread of its own, if there is a place for it. The place is taken until the work is done,
    /// also when the client has gone.
    pub async fn work<T: Send + 'static>(
        self: Arc<Self>,
        work: impl FnOnce(&Arc<Loaded>, &Self) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        if self.is_stopping() {
            return Err(ApiError::Stopping);
        }
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| ApiError::Overloaded)?;
        let taken = self.limits.requests - self.places.available_permits();
        self.metrics.places(taken);
        let done = tokio::task::spawn_blocking(move || {
            let done = work(&self.loaded(), &self);
            drop(place);
            self.metrics.places(self.limits.requests - self.places.available_permits());
            done
        });
        // The sentence is for the client; what happened is on stderr.
        done.await.map_err(|_| ApiError::Backend("the work on this request ended abruptly".into()))?
    }

    /// [`App::work`] that changes the index.
    pub async fn change<T: Send + 'static>(
        self: Arc<Self>,
        work: impl FnOnce(&Arc<Loaded>, &Self) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let turn = Arc::clone(&self.changes).try_acquire_owned().map_err(|_| ApiError::Overloaded)?;
        self.work(move |loaded, app| {
            let done = work(loaded, app);
            drop(turn);
            done
        })
        .await
    }

    /// A short look that needs no place: whoever watches an overloaded server must see it.
    pub async fn look<T: Send + 'static>(
        self: Arc<Self>,
        look: impl FnOnce(&Arc<Loaded>) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let done = tokio::task::spawn_blocking(move || look(&self.loaded()));
        done.await.map_err(|_| ApiError::Backend("the work on this request ended abruptly".into()))?
    }

    /// A place for a body that is to be read; bodies take memory before their requests have a place.
    pub fn body(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        Arc::clone(&self.bodies).try_acquire_owned().map_err(|_| ApiError::Overloaded)
    }

    /// Encodes passes, together with those of other requests that wait.
    pub fn encode(&self, loaded: &Arc<Loaded>, passes: Vec<Encoded>) -> Result<Vec<Embedding>, EncoderError> {
        self.batcher.encode(loaded, passes, &self.metrics)
    }

    /// A query's side of the score.
    pub fn query(&self, loaded: &Arc<Loaded>, text: &str) -> Result<FoldedQuery, EncoderError> {
        let encoder = loaded.retriever.encoder();
        let embeddings = self.encode(loaded, vec![encoder.query_pass(text)?])?;
        // encode() gives an embedding for each pass.
        Ok(encoder.fold_query(&embeddings[0]))
    }

    /// Refuses more than so many of something.
    pub fn within(&self, what: &str, found: usize) -> Result<(), ApiError> {
        let most = self.limits.items;
        if found > most {
            return Err(ApiError::Validation(format!("{found} {what}, at most {most} are taken at once")));
        }
        Ok(())
    }
}

fn digest(key: &str) -> String {
    sha256_parts([key.as_bytes()])
}

fn load(paths: &Paths, options: &Options) -> anyhow::Result<Loaded> {
    use anyhow::Context;
    let retriever: Result<Retriever, RetrieverError> =
        Retriever::open_place(&paths.bundle, &paths.index, options.clone());
    let open = |dir: &PathBuf| -> anyhow::Result<Reranker> {
        let opened: Result<Reranker, RerankerError> =
            Reranker::open_proven(dir, &options.session, options.golden);
        opened.with_context(|| format!("cannot use the reranker {}", dir.display()))
    };
    Ok(Loaded { retriever: retriever?, reranker: paths.reranker.as_ref().map(open).transpose()? })
}
