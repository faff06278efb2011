//! What all requests share: the retriever that is loaded now, the limits, and the places for work.

use super::batch::Batcher;
use super::error::{ApiError, Kind};
use super::metrics::Metrics;
use super::role::Defaults;
use super::work::{Job, Waiting};
use crate::place::Place;
use crate::reranker::{Reranker, RerankerError};
use crate::retriever::{Options, Retriever, RetrieverError};
use models::cosine::Cosine;
use models::files::sha256_parts;
use models::student::Form;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
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
    /// When the bundle was put there, in seconds since 1970.
    pub created: u64,
    cosine: OnceLock<Option<Cosine>>,
}

impl Loaded {
    /// Whether vectors can be given whose cosine ranks as the score does.
    pub fn has_cosine(&self) -> bool {
        self.retriever.encoder().bundle().folded.form() == Form::Gated
    }

    /// What makes them. The first request that wants it waits for it.
    pub fn cosine(&self) -> Result<&Cosine, ApiError> {
        let cosine = self.cosine.get_or_init(|| Cosine::of(&self.retriever.encoder().bundle().folded));
        cosine.as_ref().ok_or_else(|| {
            ApiError::validation("this bundle has no vectors for cosine: its predictor is of the relu form, whose scores are no inner product")
        })
    }
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
    /// Encodes what waits together.
    pub(super) batcher: Batcher,
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
    /// What holds where a request says nothing.
    pub defaults: Defaults,
}

impl App {
    /// Opens what is to be served. `hosts` are the names under which it may be asked without a key; none lets all through.
    pub fn open(
        paths: Paths,
        options: Options,
        limits: Limits,
        defaults: Defaults,
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
            defaults,
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
            let sent = authorization.and_then(|value| value.trim().split_once(' '));
            return match sent {
                Some((scheme, sent)) if scheme.eq_ignore_ascii_case("bearer") => {
                    if digest(sent.trim()) == *key {
                        return Ok(());
                    }
                    let error = "the key is not this server's; it takes the one that it was started with, as `Authorization: Bearer KEY`";
                    Err(ApiError::new(Kind::WrongKey, error))
                }
                _ => {
                    Err(ApiError::new(Kind::NoKey, "a key is needed; send it as `Authorization: Bearer KEY`"))
                }
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
        if known {
            return Ok(());
        }
        let error = format!(
            "the request means `{host}`, and this server answers this machine only; name it with --allow-host, or use an API key"
        );
        Err(ApiError::new(Kind::Host, error))
    }

    /// Does a request's work on a thread of its own, if there is a place for it. The place is taken until the work has ended;
    /// when the client has gone, or its time is over, that is at the next look at [`Job::wanted`].
    pub async fn work<T: Send + 'static>(
        self: Arc<Self>,
        work: impl FnOnce(&Job) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let began = Instant::now();
        if self.is_stopping() {
            return Err(ApiError::stopping());
        }
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| ApiError::overloaded())?;
        let taken = self.limits.requests - self.places.available_permits();
        self.metrics.places(taken);
        // Dropped with this future, which is what a client that hangs up and a time that is over look like from here.
        let (waiting, _waits) = Waiting::begin();
        let done = tokio::task::spawn_blocking(move || {
            let job = Job::new(Arc::clone(&self), waiting, began);
            let done = job.wanted().and_then(|()| work(&job));
            drop(place);
            self.metrics.places(self.limits.requests - self.places.available_permits());
            done
        });
        // The sentence is for the client; what happened is on stderr.
        done.await.map_err(|_| ApiError::backend("the work on this request ended abruptly"))?
    }

    /// [`App::work`] that changes the index.
    pub async fn change<T: Send + 'static>(
        self: Arc<Self>,
        work: impl FnOnce(&Job) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let turn = Arc::clone(&self.changes).try_acquire_owned().map_err(|_| ApiError::overloaded())?;
        self.work(move |job| {
            let done = work(job);
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
        done.await.map_err(|_| ApiError::backend("the work on this request ended abruptly"))?
    }

    /// A place for a body that is to be read; bodies take memory before their requests have a place.
    pub fn body(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        Arc::clone(&self.bodies).try_acquire_owned().map_err(|_| ApiError::overloaded())
    }

    /// Refuses more than so many of something.
    pub fn within(&self, what: &str, found: usize) -> Result<(), ApiError> {
        let most = self.limits.items;
        if found > most {
            return Err(ApiError::validation(format!(
                "{found} {what}, at most {most} are taken at once (--max-items)"
            )));
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
    let (retriever, reranker) = (retriever?, paths.reranker.as_ref().map(open).transpose()?);
    let created = seconds_of(&paths.bundle.join(models::manifest::FILE_NAME));
    Ok(Loaded { retriever, reranker, created, cosine: OnceLock::new() })
}

/// When a file was written; 1970 where the file system does not know.
fn seconds_of(file: &Path) -> u64 {
    let written = std::fs::metadata(file).and_then(|data| data.modified()).unwrap_or(UNIX_EPOCH);
    written.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
