//! Training on many processes, as `torchrun` starts them: one [`Ranks`] in each. Alone, all of it is empty and libtorch's
//! collectives are never touched.
//!
//! Rank 0 alone writes and reports. Whatever one process computes and another needs goes through [`Ranks::exchange`] or
//! [`Ranks::divided`], which carry failures too: when one process cannot go on, all end with its reason.

mod join;
mod place;
mod rows;
mod talk;

pub use place::Place;
pub use rows::Row;

use crate::crash::caught;
use crate::device::DeviceArgs;
use crate::fit::first_difference;
use anyhow::{Context, Result, anyhow, bail};
use c10d::ProcessGroup;
use models::error::sentence;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::time::Duration;
use talk::{FailedElsewhere, Talk};
use tch::{Device, Kind, Tensor};

/// The processes of a run, seen from one of them.
pub struct Ranks {
    joined: Option<Joined>,
}

/// The connections. Groups are closed before the store that they were made through.
struct Joined {
    place: Place,
    gloo: ProcessGroup,
    nccl: Option<ProcessGroup>,
    talk: Talk,
    limit: Duration,
}

/// Runs a command that can work on many processes: alone, or joined with the others that the environment names. What ends
/// it in one process is told to the others.
pub fn within(limit_s: u64, device: &DeviceArgs, command: impl FnOnce(&Ranks) -> Result<()>) -> Result<()> {
    let Some(place) = Place::from_environment()? else { return command(&Ranks::alone()) };
    let who = format!("process {} of {}", place.rank, place.size);
    let named = |error: anyhow::Error| anyhow!("{who}: {}", sentence(error.as_ref()));
    if limit_s == 0 {
        bail!("--rank-timeout is 0, expected a number of seconds above 0");
    }
    let joined = join::join(place, Duration::from_secs(limit_s), device.device != "cpu").map_err(named)?;
    let ranks = Ranks { joined: Some(joined) };
    let result = caught(|| command(&ranks));
    ranks.leave(result.as_ref().err());
    result.map_err(named)
}

/// Refuses to run a command many times over that knows nothing of other processes.
pub fn refuse_many(command: &str) -> Result<()> {
    match Place::from_environment()? {
        None => Ok(()),
        Some(place) => bail!(
            "WORLD_SIZE is {}, and `train {command}` runs in one process: only `train teacher` and `train distill` divide \
             their work; start it without torchrun",
            place.size
        ),
    }
}

impl Ranks {
    /// One process, as ever.
    pub fn alone() -> Self {
        Self { joined: None }
    }

    /// Number of this process.
    pub fn rank(&self) -> usize {
        self.joined.as_ref().map_or(0, |joined| joined.place.rank)
    }

    /// Number of processes.
    pub fn size(&self) -> usize {
        self.joined.as_ref().map_or(1, |joined| joined.place.size)
    }

    /// Whether this process writes and reports.
    pub fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// Whether there are no others.
    pub fn is_alone(&self) -> bool {
        self.joined.is_none()
    }

    /// What to say of them at the start; nothing where there is one.
    pub fn describe(&self) -> String {
        if self.is_alone() { String::new() } else { format!(", on {} processes", self.size()) }
    }

    /// Whether torchrun started the processes anew after a failure.
    pub fn restarted(&self) -> bool {
        self.joined.as_ref().is_some_and(|joined| joined.place.restarts > 0)
    }

    /// Refuses processes that were not started alike: all must have the same `facts`, and be the same program.
    pub fn agree(&self, facts: &serde_json::Value) -> Result<()> {
        if self.is_alone() {
            return Ok(());
        }
        let program = models::files::sha256_file(std::path::Path::new("/proc/self/exe"));
        let mine = program.map_err(anyhow::Error::from).map(|digest| {
            let mut all = facts.clone();
            all["program"] = digest.into();
            all
        });
        let all = self.exchange("comparing settings", mine)?;
        for (rank, other) in all.iter().enumerate() {
            if *other != all[0] {
                let [what, there, here] = first_difference(&all[0], other).unwrap_or_default();
                bail!(
                    "process {rank} is not started as process 0 is (`{what}` is {there} there and {here} in process {rank}): all \
                     need the same program, flags, model and data"
                );
            }
        }
        Ok(())
    }

    /// What each process has come to, in their order. One's error is everyone's.
    pub fn exchange<T: Serialize + DeserializeOwned>(&self, doing: &str, mine: Result<T>) -> Result<Vec<T>> {
        if self.is_alone() {
            return Ok(vec![mine?]);
        }
        let told = mine.as_ref().map_err(|error| sentence(error.as_ref()));
        let all = self.gather(doing, &serde_json::to_vec(&told)?)?;
        self.outcomes(mine.err(), all.iter().map(|bytes| Ok(serde_json::from_slice(bytes)?)))
    }

    /// What process 0 makes, on all of them. Its error is everyone's.
    pub fn from_first<T: Serialize + DeserializeOwned>(
        &self,
        doing: &str,
        make: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let Some(joined) = &self.joined else { return make() };
        let mine = self.is_first().then(make);
        let told = mine.as_ref().map(|made| made.as_ref().map_err(|error| sentence(error.as_ref())));
        let mut bytes = told.map_or(Ok(Vec::new()), |told| serde_json::to_vec(&told))?;
        joined.talk.check_in(doing);
        let mut length = Tensor::from_slice(&[bytes.len() as i64]);
        self.told(doing, joined.gloo.broadcast(&mut length, 0))?;
        bytes.resize(length.int64_value(&[0]) as usize, 0);
        let mut tensor = Tensor::from_slice(&bytes);
        self.told(doing, joined.gloo.broadcast(&mut tensor, 0))?;
        match mine {
            Some(made) => made,
            None => {
                let bytes = Vec::<u8>::try_from(tensor)?;
                let told: Result<T, String> = serde_json::from_slice(&bytes)?;
                told.map_err(|reason| {
                    FailedElsewhere(format!("process 0 of {} failed: {reason}", self.size())).into()
                })
            }
        }
    }

    /// Work in `pieces`, piece i done by process i modulo their number: all rows, in the order of the pieces, everywhere.
    pub fn divided(
        &self,
        doing: &str,
        pieces: usize,
        work: impl FnMut(usize) -> Result<Vec<Row>>,
    ) -> Result<Vec<Row>> {
        let (rank, size) = (self.rank(), self.size());
        let mine = (rank..pieces).step_by(size).map(work).collect::<Result<Vec<Vec<Row>>>>();
        if self.is_alone() {
            return Ok(mine?.concat());
        }
        let all = self.gather(doing, &rows::to_bytes(&mine))?;
        let all = self.outcomes(mine.err(), all.iter().map(|bytes| rows::from_bytes(bytes)))?;
        let mut of_rank: Vec<_> = all.into_iter().map(Vec::into_iter).collect();
        Ok((0..pieces).flat_map(|piece| of_rank[piece % size].next().unwrap_or_default()).collect())
    }

    /// Sum of all processes' tensors, in place.
    pub fn all_reduce(&self, doing: &str, tensor: &mut Tensor) -> Result<()> {
        let Some(joined) = &self.joined else { return Ok(()) };
        joined.talk.check_in(doing);
        self.told(doing, joined.group(tensor.device())?.all_reduce(tensor))
    }

    /// Sum of all processes' `[size, ...]`, of which this process gets its row.
    pub fn reduce_scatter(&self, doing: &str, rows: &Tensor) -> Result<Tensor> {
        let Some(joined) = &self.joined else { return Ok(rows.select(0, 0)) };
        joined.talk.check_in(doing);
        let mut row = rows.select(0, 0).zeros_like();
        self.told(doing, joined.group(rows.device())?.reduce_scatter(&mut row, &rows.contiguous()))?;
        Ok(row)
    }

    /// All processes' rows, `[size, ...]`.
    pub fn all_gather(&self, doing: &str, row: &Tensor) -> Result<Tensor> {
        let Some(joined) = &self.joined else { return Ok(row.unsqueeze(0)) };
        joined.talk.check_in(doing);
        let mut shape = row.size();
        shape.insert(0, self.size() as i64);
        let mut rows = Tensor::zeros(shape, (row.kind(), row.device()));
        self.told(doing, joined.group(row.device())?.all_gather(&mut rows, &row.contiguous()))?;
        Ok(rows)
    }

    /// Process 0's tensor, in place.
    pub fn tensor_from_first(&self, doing: &str, tensor: &mut Tensor) -> Result<()> {
        let Some(joined) = &self.joined else { return Ok(()) };
        joined.talk.check_in(doing);
        self.told(doing, joined.group(tensor.device())?.broadcast(tensor, 0))
    }

    /// All processes' bytes.
    fn gather(&self, doing: &str, mine: &[u8]) -> Result<Vec<Vec<u8>>> {
        let Some(joined) = &self.joined else { return Ok(vec![mine.to_vec()]) };
        joined.talk.check_in(doing);
        let cpu = |kind| (kind, Device::Cpu);
        let mut lengths = Tensor::zeros([self.size() as i64], cpu(Kind::Int64));
        let length = Tensor::from_slice(&[mine.len() as i64]);
        self.told(doing, joined.gloo.all_gather(&mut lengths, &length))?;
        let lengths = Vec::<i64>::try_from(lengths)?;
        let longest = lengths.iter().copied().max().unwrap_or(0).max(1);
        let mut padded = mine.to_vec();
        padded.resize(longest as usize, 0);
        let mut all = Tensor::zeros([self.size() as i64 * longest], cpu(Kind::Uint8));
        self.told(doing, joined.gloo.all_gather(&mut all, &Tensor::from_slice(&padded)))?;
        let all = Vec::<u8>::try_from(all)?;
        let each = all.chunks(longest as usize).zip(lengths);
        Ok(each.map(|(bytes, length)| bytes[..(length as usize).min(bytes.len())].to_vec()).collect())
    }

    /// Everyone's results, or the first error: the own one where there is one.
    fn outcomes<T>(
        &self,
        mine: Option<anyhow::Error>,
        all: impl Iterator<Item = Result<Result<T, String>>>,
    ) -> Result<Vec<T>> {
        if let Some(error) = mine {
            return Err(error);
        }
        let size = self.size();
        let each = all.enumerate().map(|(rank, outcome)| {
            outcome.context("damaged message of another process")?.map_err(|reason| {
                anyhow::Error::from(FailedElsewhere(format!("process {rank} of {size} failed: {reason}")))
            })
        });
        each.collect()
    }

    fn told(&self, doing: &str, result: Result<(), c10d::Error>) -> Result<()> {
        match (&self.joined, result) {
            (Some(joined), Err(error)) => Err(joined.talk.explain(doing, &error, joined.limit)),
            (_, result) => Ok(result?),
        }
    }

    /// Closes the connections, and says before why where there is an error.
    fn leave(self, error: Option<&anyhow::Error>) {
        let Some(Joined { place, gloo, nccl, talk, .. }) = self.joined else { return };
        let own = error.filter(|error| error.downcast_ref::<FailedElsewhere>().is_none());
        if let Some(error) = own {
            talk.fail(&sentence(error.as_ref()));
        }
        // Others that wait for this process see now that it is gone, and ask why.
        drop((gloo, nccl));
        talk.leave();
        if error.is_some() && place.rank == 0 && !place.agent_serves {
            talk.wait_until_all_left();
        }
    }
}

impl Joined {
    fn group(&self, device: Device) -> Result<&ProcessGroup> {
        match device {
            Device::Cpu => Ok(&self.gloo),
            _ => self.nccl.as_ref().context("tensors on a GPU and no NCCL to carry them"),
        }
    }
}
