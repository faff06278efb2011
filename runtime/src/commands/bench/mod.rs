//! `runtime bench`: what things cost on this machine.

mod encode;
mod query;
mod search;

use crate::{Global, Outcome};
use clap::Subcommand;
use std::fs;

/// Measure what encoding and searching cost on this machine
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    Encode(encode::Args),
    Query(query::Args),
    Search(search::Args),
}

/// Runs one of them.
pub fn run(args: &Args, global: &Global) -> anyhow::Result<Outcome> {
    match &args.what {
        What::Encode(args) => encode::run(args, global),
        What::Query(args) => query::run(args, global),
        What::Search(args) => search::run(args),
    }
}

/// Of this process; Linux tells.
fn resident_megabytes() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.split_whitespace().next()?.parse::<f64>().ok()? / 1e3)
}
