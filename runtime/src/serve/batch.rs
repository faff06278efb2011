//! Texts that wait together are encoded together: one thread takes what has gathered while it was busy. Nobody waits for
//! company, and a graph that takes one text at a time gets them one by one.

use super::app::Loaded;
use super::metrics::Metrics;
use crate::encoder::{Embedding, EncoderError};
use models::manifest::Batching;
use models::prompt::Encoded;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::time::Instant;

/// What one request wants encoded.
struct Job {
    loaded: Arc<Loaded>,
    passes: Vec<Encoded>,
    /// Takes the answer, and how many texts were encoded together; closed when nobody waits for it any more.
    reply: SyncSender<(Result<Vec<Embedding>, EncoderError>, usize)>,
}

/// The thread that encodes. It ends when this is dropped.
pub struct Batcher {
    jobs: Sender<Job>,
    most: usize,
}

impl Batcher {
    /// Starts the thread; it encodes at most so many texts together.
    pub fn start(most: usize) -> std::io::Result<Self> {
        let (jobs, waiting) = channel();
        std::thread::Builder::new().name("encode".into()).spawn(move || run(&waiting, most))?;
        Ok(Self { jobs, most })
    }

    /// An embedding for each pass. As many threads wait here as there are places for requests, so the queue is bounded.
    ///
    /// What is more than a batch goes in slices, each behind what others have asked for meanwhile: a thousand texts must not
    /// keep one query waiting for all of them.
    pub fn encode(
        &self,
        loaded: &Arc<Loaded>,
        passes: Vec<Encoded>,
        metrics: &Metrics,
    ) -> Result<Vec<Embedding>, EncoderError> {
        let mut embeddings = Vec::with_capacity(passes.len());
        let slice = match loaded.retriever.encoder().bundle().manifest.encoder.batching {
            Batching::Free => self.most,
            // Together they gain nothing.
            Batching::OneAtATime => 1,
        };
        for passes in passes.chunks(slice) {
            embeddings.extend(self.slice(loaded, passes.to_vec(), metrics)?);
        }
        Ok(embeddings)
    }

    fn slice(
        &self,
        loaded: &Arc<Loaded>,
        passes: Vec<Encoded>,
        metrics: &Metrics,
    ) -> Result<Vec<Embedding>, EncoderError> {
        let started = Instant::now();
        let (reply, answer) = sync_channel(1);
        let job = Job { loaded: Arc::clone(loaded), passes: passes.clone(), reply };
        // Should the thread have ended, the request still gets its answer.
        let answered = self.jobs.send(job).ok().and_then(|()| answer.recv().ok());
        let (encoded, together) =
            answered.unwrap_or_else(|| (loaded.retriever.encoder().encode(&passes), passes.len()));
        metrics.encoded(together, started.elapsed());
        encoded
    }
}

fn run(waiting: &Receiver<Job>, most: usize) {
    while let Ok(first) = waiting.recv() {
        let mut texts = first.passes.len();
        let mut jobs = vec![first];
        let mut next = None;
        while texts < most
            && let Ok(job) = waiting.try_recv()
        {
            // After a reload, the old ones are finished first.
            if !Arc::ptr_eq(&job.loaded, &jobs[0].loaded) || texts + job.passes.len() > most {
                next = Some(job);
                break;
            }
            texts += job.passes.len();
            jobs.push(job);
        }
        answer(jobs);
        answer(next.into_iter().collect());
    }
}

/// Encodes all jobs' texts in one call, or, if that fails, each job's alone: a text that is refused is one request's error.
fn answer(jobs: Vec<Job>) {
    let Some(first) = jobs.first() else { return };
    let encoder = first.loaded.retriever.encoder();
    if jobs.len() == 1 {
        let _ = first.reply.send((encoder.encode(&first.passes), first.passes.len()));
        return;
    }
    let passes: Vec<Encoded> = jobs.iter().flat_map(|job| job.passes.clone()).collect();
    // A failed send is a client that has gone.
    match encoder.encode(&passes) {
        Ok(embeddings) => {
            let mut embeddings = embeddings.into_iter();
            for job in &jobs {
                let own = embeddings.by_ref().take(job.passes.len()).collect();
                let _ = job.reply.send((Ok(own), passes.len()));
            }
        }
        Err(_) => {
            for job in &jobs {
                let _ = job.reply.send((encoder.encode(&job.passes), job.passes.len()));
            }
        }
    }
}
