//! How processes find each other, and how it is told when one does not come, comes twice, or speaks of another run.

use super::Joined;
use super::place::Place;
use super::talk::Talk;
use anyhow::{Context, Result, bail};
use c10d::{Backend, ProcessGroup, Store};
use std::time::Duration;

/// Connects this process with all others; `limit` is for all waiting, now and later.
pub fn join(place: Place, limit: Duration, on_gpu: bool) -> Result<Joined> {
    if on_gpu && !c10d::has_nccl() {
        bail!(
            "{} processes on GPUs need NCCL, and this program is built without it: run `make setup-cuda` and build again, \
             or use --device cpu",
            place.size
        );
    }
    c10d::silence();
    let serves = place.rank == 0 && !place.agent_serves;
    let store = if serves { host(&place, limit) } else { connect(&place, limit) }?;
    // Each start of the processes by torchrun's agent has a table of its own in the agent's store.
    let store = store.with_prefix(&format!("rabtriever/{}", place.restarts))?;
    meet(&store, &place, limit)?;
    let groups = |backend, name: &str| {
        ProcessGroup::new(&store.with_prefix(name)?, backend, place.rank, place.size, limit)
    };
    let connected = "cannot connect the processes (GLOO_SOCKET_IFNAME names the network to use)";
    let gloo = groups(Backend::Gloo, "gloo").context(connected)?;
    let nccl = on_gpu.then(|| groups(Backend::Nccl, "nccl")).transpose().context("cannot start NCCL")?;
    let talk = Talk::new(store, place.rank, place.size, !place.agent_serves)?;
    Ok(Joined { place, gloo, nccl, talk, limit })
}

fn host(place: &Place, limit: Duration) -> Result<Store> {
    Store::host(place.port, limit).map_err(|error| {
        let said = error.to_string();
        if said.contains("EADDRINUSE") {
            return anyhow::anyhow!(
                "MASTER_PORT {} is in use, by another program or another process with RANK 0: give the run a port of its own",
                place.port
            );
        }
        anyhow::anyhow!("cannot serve the processes' store on MASTER_PORT {}: {}", place.port, first_line(&said))
    })
}

fn connect(place: &Place, limit: Duration) -> Result<Store> {
    Store::join(&place.address, place.port, limit).map_err(|error| {
        let (address, port) = (&place.address, place.port);
        let server = if place.agent_serves { "torchrun's agent" } else { "process 0" };
        anyhow::anyhow!(
            "{server} does not answer at MASTER_ADDR {address}, MASTER_PORT {port}, after {} s: is it running there? ({})",
            limit.as_secs_f64(),
            first_line(&error.to_string())
        )
    })
}

/// Sees that everyone is there once, and of one run.
fn meet(store: &Store, place: &Place, limit: Duration) -> Result<()> {
    let (rank, size) = (place.rank, place.size);
    if store.add(&format!("taken/{rank}"), 1)? > 1 {
        bail!("RANK {rank} is taken: another process of this run has it too; give each a RANK of its own");
    }
    store.set(&format!("size/{rank}"), size.to_string().as_bytes())?;
    for other in (0..size).filter(|other| *other != rank) {
        let found = store.get(&format!("size/{other}"), limit).map_err(|error| {
            if !error.is_timeout() {
                let server = if place.agent_serves { "torchrun's agent" } else { "process 0" };
                return anyhow::anyhow!("{server}, which serves the store, ended before all had met: its own output says why");
            }
            let missing: Vec<String> = (0..size)
                .filter(|other| !store.has(&format!("size/{other}")).unwrap_or(false))
                .map(|other| other.to_string())
                .collect();
            anyhow::anyhow!(
                "waited {} s for the process with RANK {} of {size}: it did not come (--rank-timeout says how long to wait)",
                limit.as_secs_f64(),
                missing.join(" and that with RANK ")
            )
        })?;
        let found = String::from_utf8_lossy(&found).into_owned();
        if found != size.to_string() {
            bail!(
                "WORLD_SIZE is {size} here and {found} in the process with RANK {other}: give all the same"
            );
        }
    }
    Ok(())
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}
