//! `runtime apply`: a robot takes what `runtime snapshot` wrote.

use crate::{Global, Outcome};
use anyhow::Context;
use runtime::bundle::Bundle;
use runtime::delta::{self, Applied, Apply};
use runtime::ingest;
use runtime::keys;
use std::io::{self, Write};
use std::path::PathBuf;

/// Bring an index to the generation of its source, by files that `runtime snapshot` wrote
///
/// All of a file is taken or none of it, whatever happens meanwhile; a server on the index answers from it at its next query.
/// A full snapshot makes the index where there is none. Needs neither the bundle nor ONNX Runtime.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Index directory; created from a full snapshot where there is none
    #[arg(long, value_name = "DIR")]
    index: PathBuf,
    /// Public key whose files are taken, in PEM (`runtime keygen`, or `openssl pkey -in KEY -pubout`)
    #[arg(long, value_name = "FILE", required = true)]
    trust: Vec<PathBuf>,
    /// Take only what was made with this bundle, the robot's
    #[arg(long, value_name = "DIR")]
    bundle: Option<PathBuf>,
    /// Give up what the index holds for a full snapshot: the way back for one that has changes of its own
    #[arg(long)]
    replace: bool,
    /// Files in their order; those that the index has already are left out
    #[arg(value_name = "DELTA", required = true)]
    deltas: Vec<PathBuf>,
}

/// Says on stderr what became of each file, and prints the index's path.
pub fn run(args: &Args, _: &Global) -> anyhow::Result<Outcome> {
    let trusted = args.trust.iter().map(|file| keys::read_public(file)).collect::<Result<_, _>>()?;
    let expected = args.bundle.as_deref().map(Bundle::open).transpose()?;
    let expected = expected.as_ref().map(ingest::index_key);
    let options = Apply { trusted, expected, replace: args.replace };
    for file in &args.deltas {
        let (applied, about) = delta::apply(&args.index, file, &options)?;
        let (file, end, total) = (file.display(), about.generation.number, about.total);
        match applied {
            Applied::Already(at) => eprintln!(
                "runtime: {file}: applied already, the index is at generation {}; nothing to do",
                at.number
            ),
            Applied::From(None) => {
                eprintln!("runtime: {file}: a new index of {total} documents at generation {end}")
            }
            Applied::From(Some(from)) => {
                let from = from.number;
                eprintln!("runtime: {file}: from generation {from} to {end}, {total} documents")
            }
        }
    }
    writeln!(io::stdout(), "{}", args.index.display()).context("cannot write to stdout")?;
    Ok(Outcome::Done)
}
