//! What the processes of a run tell each other beside their tensors, through the store: where each of them is, and why
//! one of them stops. It is read when something has gone wrong, so that the message names the process that did.

use anyhow::Error;
use c10d::Store;
use std::cell::Cell;
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Prefix of its keys.
const SAID: &str = "said";
/// Longest look into the store after a failure; a server that is stopped never answers.
const LOOK: Duration = Duration::from_secs(10);
/// How long to wait for a process that closed its connections to say why.
const REASON: Duration = Duration::from_secs(3);
/// Pause between looks.
const PAUSE: Duration = Duration::from_millis(50);

/// A failure whose cause is another process: what is told of it here is not told on.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct FailedElsewhere(pub String);

/// One process's voice and ears.
pub struct Talk {
    /// The run's table, and what is said in it.
    base: Store,
    store: Store,
    rank: usize,
    size: usize,
    /// Whether process 0 serves the store.
    first_serves: bool,
    steps: Cell<u64>,
}

/// What a look into the store found.
#[derive(Debug, Default)]
struct Seen {
    failed: Option<(usize, String)>,
    /// By process: how many collectives it has come to, and the last one's name.
    at: Vec<(u64, String)>,
}

impl Talk {
    /// In a table that all processes of the run share.
    pub fn new(base: Store, rank: usize, size: usize, first_serves: bool) -> Result<Self, c10d::Error> {
        let store = base.with_prefix(SAID)?;
        Ok(Self { base, store, rank, size, first_serves, steps: Cell::new(0) })
    }

    /// Before a collective: what it is for.
    pub fn check_in(&self, doing: &str) {
        self.steps.set(self.steps.get() + 1);
        // Best effort: a store that is gone shows in the collective itself.
        let _ =
            self.store.set(&format!("at/{}", self.rank), format!("{} {doing}", self.steps.get()).as_bytes());
    }

    /// Before this process ends with an error.
    pub fn fail(&self, sentence: &str) {
        let _ = self.store.set(&format!("failed/{}", self.rank), sentence.as_bytes());
    }

    /// When this process needs nothing more of the store.
    pub fn leave(&self) {
        let _ = self.store.add("left", 1);
    }

    /// Waits a little for the others to have read why this process, which serves the store, ends.
    pub fn wait_until_all_left(&self) {
        let start = Instant::now();
        while self.store.add("left", 0).is_ok_and(|left| left < self.size as i64)
            && start.elapsed() < LOOK / 2
        {
            std::thread::sleep(PAUSE);
        }
    }

    /// What went wrong in a collective, with the name of the process that it went wrong in.
    pub fn explain(&self, doing: &str, error: &c10d::Error, limit: Duration) -> Error {
        if let c10d::Error::Tensors { .. } = error {
            return Error::msg(format!("{doing}: {error}"));
        }
        let timeout = error.is_timeout();
        let seen = self.look(!timeout);
        let size = self.size;
        let others = |ranks: Vec<usize>| {
            let ranks =
                if ranks.is_empty() { (0..size).filter(|rank| *rank != self.rank).collect() } else { ranks };
            match &ranks[..] {
                [one] => format!("process {one} of {size}"),
                several => {
                    let names: Vec<String> = several.iter().map(usize::to_string).collect();
                    format!("one of the processes {} of {size}", names.join(", "))
                }
            }
        };
        let Some(seen) = seen else {
            let server = if self.first_serves { "process 0" } else { "torchrun's agent" };
            let what = if timeout {
                format!("waited {} s", limit.as_secs_f64())
            } else {
                "lost the connection".into()
            };
            return FailedElsewhere(format!(
                "{what} at `{doing}`, and {server}, which serves the store, is gone or does not answer: its own output \
                 may say why"
            ))
            .into();
        };
        if let Some((rank, reason)) = seen.failed {
            return FailedElsewhere(format!("process {rank} of {size} failed: {reason}")).into();
        }
        let mine = self.steps.get();
        let behind: Vec<usize> =
            (0..size).filter(|rank| *rank != self.rank && seen.at[*rank].0 < mine).collect();
        let last = match &behind[..] {
            [one] => format!(", last seen at `{}`", seen.at[*one].1),
            _ => String::new(),
        };
        let who = others(behind);
        FailedElsewhere(if timeout {
            format!(
                "waited {} s at `{doing}` for {who}{last}: it hangs, or it needs longer than --rank-timeout allows",
                limit.as_secs_f64()
            )
        } else {
            format!("lost the connection to {who} at `{doing}`{last}: it was ended before it could say why")
        })
        .into()
    }

    /// Looks at what all have said; none where the store does not answer.
    fn look(&self, for_a_reason: bool) -> Option<Seen> {
        let (sender, receiver) = mpsc::channel();
        let store = self.base.with_prefix(SAID).ok()?;
        let (rank, size) = (self.rank, self.size);
        // On a thread of its own: a call to a server that is stopped does not return.
        std::thread::spawn(move || sender.send(look(&store, rank, size, for_a_reason)));
        receiver.recv_timeout(LOOK).ok()?.ok()
    }
}

fn look(store: &Store, rank: usize, size: usize, for_a_reason: bool) -> Result<Seen, c10d::Error> {
    let text = |key: String| -> Result<Option<String>, c10d::Error> {
        Ok(match store.has(&key)? {
            true => Some(String::from_utf8_lossy(&store.get(&key, LOOK)?).into_owned()),
            false => None,
        })
    };
    let start = Instant::now();
    let mut seen = Seen::default();
    loop {
        for other in (0..size).filter(|other| *other != rank) {
            if let Some(reason) = text(format!("failed/{other}"))? {
                seen.failed = Some((other, reason));
                return Ok(seen);
            }
        }
        if !for_a_reason || start.elapsed() > REASON {
            break;
        }
        std::thread::sleep(PAUSE);
    }
    for other in 0..size {
        let at = text(format!("at/{other}"))?.unwrap_or_default();
        let (steps, doing) = at.split_once(' ').unwrap_or(("0", "the start"));
        seen.at.push((steps.parse().unwrap_or(0), doing.to_owned()));
    }
    Ok(seen)
}
