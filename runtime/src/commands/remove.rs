//! `runtime remove`: documents out of an index.

use super::place::{DatabaseArgs, IndexArgs};
use crate::{Global, Outcome};
use anyhow::{Context, bail};
use runtime::bundle::Bundle;
use runtime::ingest;
use runtime::place::{Access, Place};
use runtime::postgres;
use runtime::retriever::Options;
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
    #[command(flatten)]
    index: IndexArgs,
    #[command(flatten)]
    database: DatabaseArgs,
    /// Ids of the documents; `-` reads them from stdin, one a line
    #[arg(value_name = "ID", required_unless_present = "compact")]
    ids: Vec<String>,
    /// Give the room of removed documents back to the file system
    #[arg(long)]
    compact: bool,
}

/// Needs no encoder, and hence no ONNX Runtime.
pub fn run(args: &Args, global: &Global) -> anyhow::Result<Outcome> {
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
    let (removed, place) = match args.index.place()? {
        Place::Directory(dir) => {
            let mut writer = Writer::open(&dir, &ingest::index_key(&bundle))?;
            let removed = writer.remove(&ids)?.len();
            if args.compact {
                writer.compact()?;
            }
            writer.close()?;
            (removed, dir.display().to_string())
        }
        Place::Database(url) => {
            let options = Options { database: args.database.options()?, ..global.options() };
            let database = postgres::open(&bundle, &url, Access::Existing, &options)?;
            let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
            let removed = database.remove(&ids)?;
            if args.compact {
                database.compact()?;
            }
            (removed, database.place())
        }
    };
    eprintln!("runtime: {removed} removed, {} were not there", ids.len() - removed);
    writeln!(io::stdout(), "{place}").context("cannot write to stdout")?;
    Ok(if removed == 0 && !ids.is_empty() { Outcome::Nothing } else { Outcome::Done })
}
