//! `runtime remove`: documents out of an index.

use crate::{Global, Outcome};
use anyhow::{Context, bail};
use runtime::bundle::Bundle;
use runtime::ingest;
use runtime::store::Writer;
use std::io::{self, Read, Write};
use std::path::PathBuf;

/// Remove documents from an index
///
/// Exit code 1 if none of them was there.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Bundle directory that the index was made with
    #[arg(long, value_name = "DIR")]
    bundle: PathBuf,
    /// Index directory
    #[arg(long, value_name = "DIR")]
    index: PathBuf,
    /// Ids of the documents; `-` reads them from stdin, one a line
    #[arg(value_name = "ID", required_unless_present = "compact")]
    ids: Vec<String>,
    /// Give the room of removed documents back to the file system
    #[arg(long)]
    compact: bool,
}

/// Needs no encoder, and hence no ONNX Runtime.
pub fn run(args: &Args, _: &Global) -> anyhow::Result<Outcome> {
    let mut ids = args.ids.clone();
    if ids.iter().any(|id| id == "-") {
        if ids.len() > 1 {
            bail!("`-` reads ids from stdin; give either that or ids");
        }
        let mut text = String::new();
        io::stdin().read_to_string(&mut text).context("cannot read from stdin")?;
        ids = text.lines().map(str::trim).filter(|id| !id.is_empty()).map(str::to_owned).collect();
    }
    let bundle = Bundle::open(&args.bundle)?;
    let mut writer = Writer::open(&args.index, &ingest::index_key(&bundle))?;
    let removed = writer.remove(&ids)?.len();
    if args.compact {
        writer.compact()?;
    }
    writer.close()?;
    eprintln!("runtime: {removed} removed, {} were not there", ids.len() - removed);
    writeln!(io::stdout(), "{}", args.index.display()).context("cannot write to stdout")?;
    Ok(if removed == 0 && !ids.is_empty() { Outcome::Nothing } else { Outcome::Done })
}
