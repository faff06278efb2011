//! `runtime stats`: what an index holds and where it is, for scripts that watch a fleet.

use crate::{Global, Outcome};
use anyhow::Context;
use runtime::store::Store;
use serde_json::json;
use std::io::{self, Write};
use std::path::PathBuf;

/// Tell as JSON what an index holds and at which generation it is
///
/// Two indexes of the same `generation_digest` hold the same documents. Needs neither the bundle nor ONNX Runtime.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Index directory
    #[arg(long, value_name = "DIR")]
    index: PathBuf,
}

/// The names are those of the server's `/stats`.
pub fn run(args: &Args, _: &Global) -> anyhow::Result<Outcome> {
    let (store, key) = Store::open_any(&args.index)?;
    let moment = store.moment()?;
    let generation = moment.generation();
    let stats = json!({
        "documents": store.count()?,
        "dimensions": key.inner_dimensions,
        "generation": generation.number,
        "generation_digest": generation.digest,
        "document_digest": key.document_digest,
    });
    writeln!(io::stdout(), "{stats}").context("cannot write to stdout")?;
    Ok(Outcome::Done)
}
