//! `runtime bench query`: what whole answers cost, from text to documents.

use super::resident_megabytes;
use crate::commands::sample::query_texts;
use crate::{Global, Outcome};
use anyhow::{Context, bail};
use models::files::write_json;
use runtime::retriever::Retriever;
use serde::Serialize;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Most queries that take turns.
const SAMPLE: usize = 1000;

/// Measure whole answers, from text to documents: the first one, those after it, and many at once
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Bundle directory that the index was made with
    #[arg(long, value_name = "DIR")]
    bundle: PathBuf,
    /// Index directory
    #[arg(long, value_name = "DIR")]
    index: PathBuf,
    /// Queries: JSON lines with `_id` and `text`, or a folder in BEIR layout [default: documents of the index, asked for by
    /// their own titles or texts]
    #[arg(long, value_name = "FILE")]
    queries: Option<PathBuf>,
    /// Results of a query
    #[arg(short, value_name = "K", default_value_t = 5)]
    k: usize,
    /// Queries at once in the second measurement; encoded together where the bundle allows it
    #[arg(long, value_name = "N", default_value_t = 8)]
    batch: usize,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Write the numbers as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Measured {
    documents: usize,
    threads: usize,
    /// Seconds from an unopened bundle and index to the first answer.
    first_answer_seconds: f64,
    words_per_query: f64,
    p50_ms: f64,
    p99_ms: f64,
    queries_per_second: f64,
    batch: usize,
    queries_per_second_in_batches: f64,
    resident_megabytes: Option<f64>,
}

/// Opens, asks, prints a table of one line.
pub fn run(args: &Args, global: &Global) -> anyhow::Result<Outcome> {
    if args.k == 0 || args.batch == 0 {
        bail!("-k and --batch must be at least 1");
    }
    let started = Instant::now();
    let retriever = Retriever::open(&args.bundle, &args.index, global.options())?;
    let texts = query_texts(&retriever, args.queries.as_deref(), SAMPLE)?;
    let Some(first) = texts.first() else { bail!("there is no query to ask") };
    retriever.query(first, args.k)?;
    let first_answer_seconds = started.elapsed().as_secs_f64();

    let asked: Vec<&str> = texts.iter().map(String::as_str).collect();
    let mut one_by_one = measure(&asked, 1, args.seconds, &mut |texts| {
        retriever.query_batch(texts, args.k)?;
        Ok(())
    })?;
    let at_once = measure(&asked, args.batch, args.seconds, &mut |texts| {
        retriever.query_batch(texts, args.k)?;
        Ok(())
    })?;
    one_by_one.sort_unstable();
    let at = |share: f64| {
        let place = ((one_by_one.len() - 1) as f64 * share).round() as usize;
        1e3 * one_by_one[place].as_secs_f64()
    };
    let rate = |times: &[Duration], each: usize| {
        (times.len() * each) as f64 / times.iter().sum::<Duration>().as_secs_f64()
    };
    let words: usize = asked.iter().map(|text| text.split_whitespace().count()).sum();
    let measured = Measured {
        documents: retriever.stats()?.documents,
        threads: if global.threads == 0 { runtime::cpu::physical_cores() } else { global.threads },
        first_answer_seconds,
        words_per_query: words as f64 / asked.len() as f64,
        p50_ms: at(0.5),
        p99_ms: at(0.99),
        queries_per_second: rate(&one_by_one, 1),
        batch: args.batch,
        queries_per_second_in_batches: rate(&at_once, args.batch),
        resident_megabytes: resident_megabytes(),
    };
    let resident = measured.resident_megabytes.map_or(String::new(), |megabytes| format!("{megabytes:.0}"));
    let table = format!(
        "{} documents, {:.1} words a query, {} threads\n\n\
         | first answer s | p50 ms | p99 | queries/s | {} at once: queries/s | ratio | resident MB |\n\
         | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n\
         | {:.2} | {:.1} | {:.1} | {:.1} | {:.1} | {:.2} | {resident} |\n",
        measured.documents,
        measured.words_per_query,
        measured.threads,
        measured.batch,
        measured.first_answer_seconds,
        measured.p50_ms,
        measured.p99_ms,
        measured.queries_per_second,
        measured.queries_per_second_in_batches,
        measured.queries_per_second_in_batches / measured.queries_per_second
    );
    io::stdout().write_all(table.as_bytes()).context("cannot write to stdout")?;
    if let Some(file) = &args.json {
        write_json(file, &measured)?;
    }
    Ok(Outcome::Done)
}

/// Times of batches for so many seconds, three at least; texts come round again.
fn measure(
    texts: &[&str],
    batch: usize,
    seconds: f64,
    ask: &mut dyn FnMut(&[&str]) -> anyhow::Result<()>,
) -> anyhow::Result<Vec<Duration>> {
    let mut texts = texts.iter().copied().cycle();
    let (started, mut times) = (Instant::now(), Vec::new());
    while times.len() < 3 || started.elapsed().as_secs_f64() < seconds {
        let batch: Vec<&str> = texts.by_ref().take(batch).collect();
        let started = Instant::now();
        ask(&batch)?;
        times.push(started.elapsed());
    }
    Ok(times)
}
