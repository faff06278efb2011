//! `runtime index`: documents into an index, new or existing.

use super::place::DatabaseArgs;
use super::progress::Bar;
use crate::{Global, Outcome};
use anyhow::{Context, bail};
use runtime::document::Source;
use runtime::ingest::AddReport;
use runtime::place::{Access, DatabaseUrl};
use runtime::retriever::{Options, Retriever};
use runtime::{shard, store};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Make an index of documents, or add documents to one
///
/// Documents that are there already with the same contents are skipped, changed ones replaced.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Bundle directory, as written by `export --onnx`
    #[arg(long, value_name = "DIR")]
    bundle: PathBuf,
    #[command(flatten)]
    input: Input,
    #[command(flatten)]
    out: OutArgs,
    #[command(flatten)]
    database: DatabaseArgs,
}

/// One of the two.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct OutArgs {
    /// Index directory: created, or added to where it exists (with --from only created)
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Index in a PostgreSQL database with pgvector, its tables created where they are missing:
    /// postgres://USER@HOST:PORT/DATABASE, the password in PGPASSWORD
    #[arg(long, value_name = "URL")]
    store: Option<DatabaseUrl>,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Input {
    /// JSON lines with `_id`, `title`, `text` and `metadata`; a .csv file (columns beside `id`, `title` and `text` are
    /// metadata); a folder in BEIR layout; `-` for JSON lines on stdin
    #[arg(long, value_name = "FILE")]
    documents: Option<PathBuf>,
    /// All shards of an input, in any order
    #[arg(long, value_name = "SHARD", num_args = 1..)]
    from: Vec<PathBuf>,
}

/// Tells on stderr what was done, and prints where the index is.
pub fn run(args: &Args, global: &Global) -> anyhow::Result<Outcome> {
    let place = match (&args.input.documents, &args.out.out) {
        (Some(documents), _) => add(args, documents, global)?,
        (None, Some(out)) => merge(args, out, global)?,
        (None, None) => bail!("--from makes an index in a directory: give --out instead of --store"),
    };
    writeln!(io::stdout(), "{place}").context("cannot write to stdout")?;
    Ok(Outcome::Done)
}

/// Reads all documents before it opens anything else, so that a broken line costs nothing.
fn add(args: &Args, documents: &Path, global: &Global) -> anyhow::Result<String> {
    let documents = Source::of(documents).read()?;
    let options = Options { database: args.database.options()?, ..global.options() };
    let mut bar = Bar::default();
    let mut progress = |progress| bar.show(progress);
    let (report, place) = match (&args.out.out, &args.out.store) {
        (Some(out), _) => {
            let report = if out.join(store::FILE_NAME).exists() {
                let retriever = Retriever::open(&args.bundle, out, options)?;
                let report = retriever.add_with(&documents, &mut progress)?;
                retriever.settle();
                report
            } else {
                Retriever::create(&args.bundle, out, &documents, &options, &mut progress)?
            };
            (report, out.display().to_string())
        }
        (None, Some(url)) => {
            let retriever = Retriever::open_database(&args.bundle, url, Access::Create, options)?;
            (retriever.add_with(&documents, &mut progress)?, retriever.place())
        }
        (None, None) => bail!("name the index: --out DIR or --store URL"),
    };
    let seconds = bar.finish();
    let AddReport { added, replaced, unchanged } = report;
    let rate = (added + replaced) as f64 / seconds.max(1e-6);
    eprintln!(
        "runtime: {added} added, {replaced} replaced, {unchanged} unchanged in {seconds:.1} s ({rate:.0} documents/s)"
    );
    Ok(place)
}

fn merge(args: &Args, out: &Path, global: &Global) -> anyhow::Result<String> {
    let mut bar = Bar::default();
    let (shards, notice) = (&args.input.from, global.options().notice);
    let documents = shard::merge(&args.bundle, shards, out, notice, &mut |progress| bar.show(progress))?;
    let seconds = bar.finish();
    eprintln!("runtime: {documents} documents from {} shards in {seconds:.1} s", shards.len());
    Ok(out.display().to_string())
}
