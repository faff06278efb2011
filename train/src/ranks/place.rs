//! Who this process is among many: the variables that `torchrun` and every other PyTorch launcher set.

use anyhow::{Context, Result, bail};
use std::str::FromStr;

/// This process's place in a run of several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Number of this process, from 0 (`RANK`).
    pub rank: usize,
    /// Number of processes (`WORLD_SIZE`), at least 2.
    pub size: usize,
    /// Number of this process among those of its machine (`LOCAL_RANK`): its GPU.
    pub local_rank: usize,
    /// Processes on this machine (`LOCAL_WORLD_SIZE`), where it is known.
    pub local_size: Option<usize>,
    /// Where the store is served (`MASTER_ADDR`, `MASTER_PORT`).
    pub address: String,
    /// Its port.
    pub port: u16,
    /// Whether torchrun's agent serves the store (`TORCHELASTIC_USE_AGENT_STORE`); else process 0 does.
    pub agent_serves: bool,
    /// How often torchrun has started the processes again (`TORCHELASTIC_RESTART_COUNT`).
    pub restarts: usize,
}

impl Place {
    /// From the environment; none for a program that was started alone.
    pub fn from_environment() -> Result<Option<Self>> {
        Self::read(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    /// From variables by name.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let number = |name: &str| variable(name).map(|text| parsed::<usize>(name, &text)).transpose();
        let (rank, size) = match (number("RANK")?, number("WORLD_SIZE")?) {
            (None, None) => return Ok(None),
            (Some(rank), Some(size)) => (rank, size),
            (Some(_), None) => bail!("RANK is set and WORLD_SIZE is not: {START}"),
            (None, Some(_)) => bail!("WORLD_SIZE is set and RANK is not: {START}"),
        };
        if rank >= size {
            let last = size.saturating_sub(1);
            bail!(
                "RANK is {rank} and WORLD_SIZE {size}: expected a RANK from 0 to {last}, another for each process"
            );
        }
        if size == 1 {
            return Ok(None);
        }
        let address =
            variable("MASTER_ADDR").with_context(|| missing("MASTER_ADDR", "the host of process 0"))?;
        let port =
            variable("MASTER_PORT").with_context(|| missing("MASTER_PORT", "a free port on that host"))?;
        Ok(Some(Self {
            rank,
            size,
            local_rank: number("LOCAL_RANK")?.unwrap_or(0),
            local_size: number("LOCAL_WORLD_SIZE")?,
            address,
            port: parsed("MASTER_PORT", &port)?,
            agent_serves: variable("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|value| value == "True"),
            restarts: number("TORCHELASTIC_RESTART_COUNT")?.unwrap_or(0),
        }))
    }
}

const START: &str =
    "start the processes with torchrun, or set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT for each";

fn missing(name: &str, what: &str) -> String {
    format!("RANK and WORLD_SIZE are set and {name} ({what}) is not: {START}")
}

fn parsed<T: FromStr>(name: &str, text: &str) -> Result<T> {
    text.trim().parse().ok().with_context(|| {
        let most = if name == "MASTER_PORT" { " up to 65535" } else { "" };
        format!("{name} is `{text}`, expected a whole number{most}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Option<Place>> {
        let find = |name: &str| variables.iter().find(|(known, _)| *known == name);
        Place::read(|name| find(name).map(|(_, value)| (*value).to_owned()))
    }

    const TORCHRUN: &[(&str, &str)] = &[
        ("RANK", "1"),
        ("WORLD_SIZE", "2"),
        ("LOCAL_RANK", "1"),
        ("LOCAL_WORLD_SIZE", "2"),
        ("MASTER_ADDR", "localhost"),
        ("MASTER_PORT", "29500"),
        ("TORCHELASTIC_USE_AGENT_STORE", "True"),
        ("TORCHELASTIC_RESTART_COUNT", "3"),
    ];

    /// A process that took itself for alone would train another model beside the others and overwrite their output.
    #[test]
    fn launchers_say_who_a_process_is() {
        let place = read(TORCHRUN).unwrap().unwrap();
        assert_eq!((place.rank, place.size, place.local_rank, place.port), (1, 2, 1, 29500));
        assert!(place.agent_serves && place.restarts == 3 && place.address == "localhost");
        // By hand: no agent, no restarts, one process a machine.
        let place = read(&TORCHRUN[..6]).unwrap().unwrap();
        assert!(!place.agent_serves && place.restarts == 0);
        assert_eq!(read(&[]).unwrap(), None);
        assert_eq!(read(&[("RANK", "0"), ("WORLD_SIZE", "1")]).unwrap(), None);
    }

    /// A wrong environment must be told in a sentence, not found out by a run that waits for ever.
    #[test]
    fn wrong_environments_are_refused() {
        let with = |changes: &[(&str, &str)], without: &str| {
            let mut variables: Vec<(&str, &str)> = changes.to_vec();
            variables.extend(TORCHRUN.iter().filter(|(name, _)| *name != without));
            read(&variables).unwrap_err().to_string()
        };
        let told = with(&[("RANK", "2")], "");
        assert!(told.contains("RANK is 2 and WORLD_SIZE 2") && told.contains("from 0 to 1"), "{told}");
        assert!(with(&[], "MASTER_ADDR").contains("MASTER_ADDR (the host of process 0) is not"));
        assert!(with(&[], "MASTER_PORT").contains("MASTER_PORT"));
        assert!(with(&[], "WORLD_SIZE").contains("RANK is set and WORLD_SIZE is not"));
        assert!(with(&[("MASTER_PORT", "70000")], "").contains("up to 65535"));
        assert!(with(&[("WORLD_SIZE", "two")], "").contains("WORLD_SIZE is `two`"));
    }
}
