//! Texts that wait together are encoded together: one thread takes what has gathered while it was busy. Nobody waits for
//! company, and a graph that takes one text at a time gets them one by one.

use super::app::Loaded;
use super::error::ApiError;
use super::work::{Job, Waiting};
use crate::encoder::{Embedding, EncoderError};
use models::manifest::Batching;
use models::prompt::Encoded;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::time::Instant;

/// What a text costs beside its tokens, in tokens: enough to foresee how long many texts take.
const OVERHEAD: usize = 8;

/// What one request wants encoded.
struct Slice {
    loaded: Arc<Loaded>,
    passes: Vec<Encoded>,
    waiting: Waiting,
    /// Takes the answer, and how many texts were encoded together; closed when nobody waits for it any more.
    reply: SyncSender<(Result<Vec<Embedding>, EncoderError>, usize)>,
}

/// The thread that encodes. It ends when this is dropped.
pub struct Batcher {
    slices: Sender<Slice>,
    most: usize,
}

impl Batcher {
    /// Starts the thread; it encodes at most so many texts together.
    pub fn start(most: usize) -> std::io::Result<Self> {
        let (slices, waiting) = channel();
        std::thread::Builder::new().name("encode".into()).spawn(move || run(&waiting, most))?;
        Ok(Self { slices, most })
    }

    /// An embedding for each pass. As many threads wait here as there are places for requests, so the queue is bounded.
    ///
    /// What is more than a batch goes in slices, each behind what others have asked for meanwhile: a thousand texts must not
    /// keep one query waiting for all of them. Between slices it ends where nobody waits any more, or where the time for the
    /// request will not do.
    pub fn encode(&self, job: &Job, passes: &[Encoded]) -> Result<Vec<Embedding>, ApiError> {
        let mut embeddings = Vec::with_capacity(passes.len());
        let slice = match job.loaded.retriever.encoder().bundle().manifest.encoder.batching {
            Batching::Free => self.most,
            // Together they gain nothing.
            Batching::OneAtATime => 1,
        };
        let cost = |passes: &[Encoded]| passes.iter().map(|pass| pass.text.len() + OVERHEAD).sum::<usize>();
        let (whole, mut done) = (cost(passes), 0);
        for slice in passes.chunks(slice) {
            embeddings.extend(self.slice(job, slice)?);
            done += cost(slice);
            job.in_time(done as f64 / whole as f64, passes.len())?;
        }
        Ok(embeddings)
    }

    fn slice(&self, job: &Job, passes: &[Encoded]) -> Result<Vec<Embedding>, ApiError> {
        job.wanted()?;
        let started = Instant::now();
        let (reply, answer) = sync_channel(1);
        let (loaded, waiting) = (Arc::clone(&job.loaded), job.waiting.clone());
        let slice = Slice { loaded, passes: passes.to_vec(), waiting, reply };
        let answered = self.slices.send(slice).ok().and_then(|()| answer.recv().ok());
        let (encoded, together) = match answered {
            Some(answered) => answered,
            // Left out because nobody waits; or the thread has ended, and the request still gets its answer.
            None => {
                job.wanted()?;
                (job.loaded.retriever.encoder().encode(passes), passes.len())
            }
        };
        job.app.metrics.encoded(together, started.elapsed());
        Ok(encoded?)
    }
}

fn run(waiting: &Receiver<Slice>, most: usize) {
    while let Ok(first) = waiting.recv() {
        let mut texts = first.passes.len();
        let mut slices = vec![first];
        let mut next = None;
        while texts < most
            && let Ok(slice) = waiting.try_recv()
        {
            // After a reload, the old ones are finished first.
            if !Arc::ptr_eq(&slice.loaded, &slices[0].loaded) || texts + slice.passes.len() > most {
                next = Some(slice);
                break;
            }
            texts += slice.passes.len();
            slices.push(slice);
        }
        answer(slices);
        answer(next.into_iter().collect());
    }
}

/// Encodes all slices' texts in one call, or, if that fails, each slice's alone: a text that is refused is one request's
/// error. Slices that nobody waits for are dropped.
fn answer(mut slices: Vec<Slice>) {
    slices.retain(|slice| !slice.waiting.is_over());
    let Some(first) = slices.first() else { return };
    let encoder = first.loaded.retriever.encoder();
    // A failed send is a client that has gone.
    if slices.len() == 1 {
        let _ = first.reply.send((encoder.encode(&first.passes), first.passes.len()));
        return;
    }
    let passes: Vec<Encoded> = slices.iter().flat_map(|slice| slice.passes.clone()).collect();
    match encoder.encode(&passes) {
        Ok(embeddings) => {
            let mut embeddings = embeddings.into_iter();
            for slice in &slices {
                let own = embeddings.by_ref().take(slice.passes.len()).collect();
                let _ = slice.reply.send((Ok(own), passes.len()));
            }
        }
        Err(_) => {
            for slice in &slices {
                let _ = slice.reply.send((encoder.encode(&slice.passes), slice.passes.len()));
            }
        }
    }
}
