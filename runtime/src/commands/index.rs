//! `runtime index`: documents into an index, new or existing.

use super::place::DatabaseArgs;
use crate::{Global, Outcome};
use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};
use runtime::document::Source;
use runtime::ingest::{AddReport, Progress};
use runtime::place::{Access, DatabaseUrl};
use runtime::retriever::{Options, Retriever};
use runtime::store;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Instant;

/// Make an index of documents, or add documents to one
///
/// Documents that are there already with the same contents are skipped, changed ones replaced.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Bundle directory, as written by `export --onnx`
    #[arg(long, value_name = "DIR")]
    bundle: PathBuf,
    /// JSON lines with `_id`, `title`, `text` and `metadata`; a .csv file (columns beside `id`, `title` and `text` are
    /// metadata); a folder in BEIR layout; `-` for JSON lines on stdin
    #[arg(long, value_name = "FILE")]
    documents: PathBuf,
    #[command(flatten)]
    out: OutArgs,
    #[command(flatten)]
    database: DatabaseArgs,
}

/// One of the two.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct OutArgs {
    /// Index directory: created, or added to where it exists
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Index in a PostgreSQL database with pgvector, its tables created where they are missing:
    /// postgres://USER@HOST:PORT/DATABASE, the password in PGPASSWORD
    #[arg(long, value_name = "URL")]
    store: Option<DatabaseUrl>,
}

/// Reads all documents before it opens anything else, so that a broken line costs nothing.
pub fn run(args: &Args, global: &Global) -> anyhow::Result<Outcome> {
    let documents = Source::of(&args.documents).read()?;
    let options = Options { database: args.database.options()?, ..global.options() };
    let bar = ProgressBar::hidden();
    let mut started = None;
    let mut progress = |progress: Progress| {
        started.get_or_insert_with(Instant::now);
        show(&bar, progress);
    };
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
    bar.finish_and_clear();
    let AddReport { added, replaced, unchanged } = report;
    let seconds = started.map_or(0.0, |started| started.elapsed().as_secs_f64());
    let rate = (added + replaced) as f64 / seconds.max(1e-6);
    eprintln!(
        "runtime: {added} added, {replaced} replaced, {unchanged} unchanged in {seconds:.1} s ({rate:.0} documents/s)"
    );
    writeln!(io::stdout(), "{place}").context("cannot write to stdout")?;
    Ok(Outcome::Done)
}

/// The bar appears with the first word of progress: until then the bundle is being opened, which may fail.
fn show(bar: &ProgressBar, Progress { done, total }: Progress) {
    if done == 0 && total > 0 {
        let style = ProgressStyle::with_template("{bar:40} {pos}/{len} documents  {per_sec}  {eta} left");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_length(total as u64);
        bar.set_draw_target(indicatif::ProgressDrawTarget::stderr());
    }
    bar.set_position(done as u64);
}
