//! `runtime encode`: one shard of the documents, on one of many machines.

use super::progress::Bar;
use crate::{Global, Outcome};
use anyhow::Context;
use runtime::document::Source;
use runtime::shard::{self, Encoded, Place};
use std::io::{self, Write};
use std::path::PathBuf;

/// Encode one of n parts of documents, for `runtime index --from`
///
/// Run it once for each part, on any machine; what was killed goes on when it is run again, what is whole is left alone. The
/// shard holds the documents too.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Bundle directory, as written by `export --onnx`
    #[arg(long, value_name = "DIR")]
    bundle: PathBuf,
    /// All documents, as `runtime index` takes them: every machine reads the same input, and keeps its own part
    #[arg(long, value_name = "FILE")]
    documents: PathBuf,
    /// Which part of how many: 1/4 to 4/4
    #[arg(long, value_name = "I/N")]
    shard: Place,
    /// Shard to write, e.g. shard-1.safetensors; until it is whole, FILE.partial
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Says on stderr what was encoded, and what was there already.
pub fn run(args: &Args, global: &Global) -> anyhow::Result<Outcome> {
    let mut bar = Bar::default();
    let source = Source::of(&args.documents);
    let encoded =
        shard::encode(&args.bundle, &source, args.shard, &args.out, &global.options(), &mut |progress| {
            bar.show(progress)
        })?;
    let seconds = bar.finish();
    let place = args.shard;
    match encoded {
        Encoded::Already { documents } => {
            eprintln!("runtime: shard {place} is whole already, {documents} documents; nothing to do")
        }
        Encoded::Now { documents, resumed } => {
            let rate = (documents - resumed) as f64 / seconds.max(1e-6);
            let before = match resumed {
                0 => String::new(),
                resumed => format!(", {resumed} of them by an interrupted run"),
            };
            eprintln!(
                "runtime: shard {place}, {documents} documents{before}, in {seconds:.1} s ({rate:.0} documents/s)"
            )
        }
    }
    writeln!(io::stdout(), "{}", args.out.display()).context("cannot write to stdout")?;
    Ok(Outcome::Done)
}
