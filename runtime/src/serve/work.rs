//! What a request's work is done with: it knows whether anybody still waits for it, and whether it can be done in time.

use super::app::{App, Loaded};
use super::error::{ApiError, Kind};
use crate::encoder::Embedding;
use models::prompt::Encoded;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Share of the time for a request after which its own pace tells how long it will take, ...
const TRIAL: f64 = 0.05;
/// ... if so many texts are done: the first ones wait for others.
const TRIED: f64 = 4.0;
/// By how much work may seem to overrun its time, in the beginning; the nearer the end, the less.
const DOUBT: f64 = 0.5;

/// Whether somebody waits for an answer.
#[derive(Debug, Clone, Default)]
pub struct Waiting(Arc<AtomicBool>);

/// Held by whoever waits: dropped with the request, be it answered, out of time or hung up.
#[derive(Debug)]
pub struct Waits(Arc<AtomicBool>);

impl Waiting {
    /// Somebody waits from now on.
    pub fn begin() -> (Self, Waits) {
        let gone = Arc::new(AtomicBool::new(false));
        (Self(Arc::clone(&gone)), Waits(gone))
    }

    /// Whether nobody does any more.
    pub fn is_over(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A request's work.
pub struct Job {
    /// What was loaded when it began.
    pub loaded: Arc<Loaded>,
    /// The server.
    pub app: Arc<App>,
    /// Whether it is still wanted.
    pub waiting: Waiting,
    began: Instant,
}

impl Job {
    /// Work that begins now.
    pub fn new(app: Arc<App>, waiting: Waiting, began: Instant) -> Self {
        Self { loaded: app.loaded(), app, waiting, began }
    }

    /// Fails when nobody waits for the answer any more: what is left is not worth doing. The error is never told.
    pub fn wanted(&self) -> Result<(), ApiError> {
        if self.waiting.is_over() {
            return Err(ApiError::new(Kind::Timeout, "nobody waits for the answer any more"));
        }
        Ok(())
    }

    /// Encodes passes, together with those of other requests that wait.
    pub fn encode(&self, passes: &[Encoded]) -> Result<Vec<Embedding>, ApiError> {
        self.app.batcher.encode(self, passes)
    }

    /// Refuses work on so many texts that cannot be done in time, by the pace of the `share` that is done: an answer that comes
    /// too late is worth as little as none, and costs more.
    pub fn in_time(&self, share: f64, texts: usize) -> Result<(), ApiError> {
        match too_long(self.began.elapsed(), self.app.limits.timeout, share, texts) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}

fn too_long(spent: Duration, limit: Duration, share: f64, texts: usize) -> Option<ApiError> {
    let (spent, limit) = (spent.as_secs_f64(), limit.as_secs_f64());
    let (used, whole) = (spent / limit, spent / share);
    let tried = used >= TRIAL && share * texts as f64 >= TRIED;
    if !tried || share >= 1.0 || whole <= limit * (1.0 + DOUBT * (1.0 - used).max(0.0)) {
        return None;
    }
    let fits = rounded(texts as f64 * 0.7 * limit / whole);
    let error = format!(
        "{texts} texts would take about {whole:.0} s, and an answer has {limit} s; send at most {fits} at once \
         (LangChain's chunk_size, other clients' batch size), or start the server with a longer --timeout"
    );
    Some(ApiError::new(Kind::TooLarge, error))
}

/// One digit is as much as an estimate is worth.
fn rounded(texts: f64) -> usize {
    let texts = texts.max(1.0);
    let unit = 10f64.powf(texts.log10().floor());
    ((texts / unit).floor() * unit) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A request that cannot be answered in time keeps a core busy until then, and its client asks twice more.
    #[test]
    fn what_cannot_be_done_in_time_is_refused_early_and_with_the_way_out() {
        let limit = Duration::from_secs(30);
        let after = |seconds: f64, share: f64| too_long(Duration::from_secs_f64(seconds), limit, share, 1000);
        let error = after(2.0, 0.02).unwrap();
        assert_eq!(error.kind, Kind::TooLarge);
        assert!(
            error.message.contains("about 100 s") && error.message.contains("at most 200 at once"),
            "{error:?}"
        );
        // Too early to tell, in time, nearly in time, nearly done.
        assert!(after(1.0, 0.005).is_none());
        assert!(after(2.0, 0.10).is_none());
        assert!(after(2.0, 0.05).is_none());
        assert!(after(29.0, 1.0).is_none());
        // The nearer the end, the surer.
        assert!(after(20.0, 0.55).is_some());
        assert!(too_long(Duration::from_secs(20), limit, 0.1, 20).is_none());
        assert_eq!([0.2, 1.0, 9.9, 10.0, 287.0].map(rounded), [1, 1, 9, 10, 200]);
    }

    /// Work for clients that have gone would keep those that wait from being answered.
    #[test]
    fn waiting_ends_with_the_request() {
        let (waiting, waits) = Waiting::begin();
        assert!(!waiting.is_over());
        drop(waits);
        assert!(waiting.is_over());
    }
}
