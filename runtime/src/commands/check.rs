//! `runtime check`: how much of what the exact scan finds the graph finds.

use super::place::{DatabaseArgs, IndexArgs};
use crate::{Global, Outcome};
use anyhow::{Context, bail};
use models::fold::FoldedQuery;
use runtime::retriever::{Options, Retriever};
use runtime::search::EXACT_LIMIT;
use std::io::{self, Write};
use std::path::PathBuf;

/// Measure, and with --recall widen, what the graph of a large index finds of what the exact scan finds
///
/// The result is kept in the index, where `runtime doctor` tells it. Exit code 2 if --recall is not reached.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Bundle directory that the index was made with
    #[arg(long, value_name = "DIR")]
    bundle: PathBuf,
    #[command(flatten)]
    index: IndexArgs,
    #[command(flatten)]
    database: DatabaseArgs,
    /// Queries: JSON lines with `_id` and `text`, or a folder in BEIR layout [default: documents of the index, asked for by
    /// their own titles or texts]
    #[arg(long, value_name = "FILE")]
    queries: Option<PathBuf>,
    /// Most queries
    #[arg(long, value_name = "N", default_value_t = 100)]
    sample: usize,
    /// Results that are compared
    #[arg(short, value_name = "K", default_value_t = 10)]
    k: usize,
    /// Let the graph look wider until it finds this share
    #[arg(long, value_name = "SHARE")]
    recall: Option<f64>,
}

/// Queries are spread evenly over the file or the index.
pub fn run(args: &Args, global: &Global) -> anyhow::Result<Outcome> {
    if args.sample == 0 || args.k == 0 {
        bail!("--sample and -k must be at least 1");
    }
    if let Some(recall) = args.recall
        && !(0.0..=1.0).contains(&recall)
    {
        bail!("--recall {recall} is not a share between 0 and 1");
    }
    let options = Options { database: args.database.options()?, ..global.options() };
    let retriever = Retriever::open_place(&args.bundle, &args.index.place()?, options)?;
    let documents = retriever.stats()?.documents;
    let texts = super::sample::query_texts(&retriever, args.queries.as_deref(), args.sample)?;
    let encoder = retriever.encoder();
    let mut queries: Vec<FoldedQuery> = Vec::new();
    for text in &texts {
        queries.push(encoder.fold_query(&encoder.query(text)?));
    }
    let mut out = io::stdout().lock();
    let Some(check) = retriever.check_graph(&queries, args.k, args.recall)? else {
        writeln!(
            out,
            "{documents} documents: the exact scan answers (up to {EXACT_LIMIT}), there is nothing to check"
        )
        .context("cannot write to stdout")?;
        return Ok(Outcome::Done);
    };
    writeln!(
        out,
        "recall@{} {:.4} on {} queries, {} nodes looked at; graph {:.2} ms, exact scan {:.2} ms ({documents} documents)",
        args.k, check.recall.share, check.recall.queries, check.expansion, check.graph_ms, check.exact_ms
    )
    .context("cannot write to stdout")?;
    let reached = args.recall.is_none_or(|recall| check.recall.share >= recall);
    Ok(if reached { Outcome::Done } else { Outcome::Failed })
}
