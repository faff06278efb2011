//! `runtime snapshot`: what came after a generation of an index, as one signed file.

use crate::{Global, Outcome};
use anyhow::Context;
use runtime::delta;
use runtime::keys;
use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

/// Write what came after a generation of an index as one signed file, for `runtime apply` on any robot
///
/// `runtime stats` tells an index's generation. Whoever is at that generation or a later one can go on with the file. Exit code
/// 1 if nothing came after it; then nothing is written. Needs neither the bundle nor ONNX Runtime.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Index directory
    #[arg(long, value_name = "DIR")]
    index: PathBuf,
    /// Generation that the robots have; 0 for a full snapshot, from which a new index begins
    #[arg(long, value_name = "GENERATION")]
    since: u64,
    /// File to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Private key to sign with, in PEM (`runtime keygen`, or `openssl genpkey -algorithm ed25519`)
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
}

/// Says on stderr what is in it, and prints its path.
pub fn run(args: &Args, _: &Global) -> anyhow::Result<Outcome> {
    let key = keys::read_private(&args.key)?;
    let Some(about) = delta::snapshot(&args.index, args.since, &args.out, &key)? else {
        let (index, since) = (args.index.display(), args.since);
        eprintln!("runtime: {index} is at generation {since}: there is nothing to send, nothing is written");
        return Ok(Outcome::Nothing);
    };
    let bytes = fs::metadata(&args.out).map_or(0, |metadata| metadata.len());
    eprintln!(
        "runtime: generations {} to {}, {} documents, {} removed, {}, signed with key {}",
        about.base.number,
        about.generation.number,
        about.documents,
        about.removed,
        size(bytes),
        keys::name(&key.verifying_key()),
    );
    writeln!(io::stdout(), "{}", args.out.display()).context("cannot write to stdout")?;
    Ok(Outcome::Done)
}

fn size(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        _ => format!("{:.1} MB", bytes as f64 / 1e6),
    }
}
