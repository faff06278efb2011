//! `train significance`: whether runs differ, from TREC run files of whatever system.

use crate::evaluation::run::{Run, Values, per_query};
use crate::evaluation::significance::{Measured, RESAMPLES, compare, find_baseline, table};
use anyhow::{Result, bail};
use clap::Args as ClapArgs;
use models::beir::{BeirData, Purpose, SplitQrels};
use models::files::write_json;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Tell whether TREC runs differ: paired bootstrap over the queries of a split
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// Data set in BEIR layout that the runs are on
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Split with the judgements
    #[arg(long, default_value = "test")]
    split: String,
    /// Run files (`qid Q0 docno rank sim run_id`), two or more
    #[arg(value_name = "RUN.trec", required = true, num_args = 1..)]
    runs: Vec<PathBuf>,
    /// Run that the others are compared to, by its file's name without `.trec`; by default the first
    #[arg(long, value_name = "NAME")]
    baseline: Option<String>,
    /// Write the numbers as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Least gain of a relevant document, for Recall and MRR (trec_eval's -l); nDCG takes gains as they are
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    relevance_level: u32,
    /// Seed of the bootstrap
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// Compares run files.
pub fn run(args: &Args) -> Result<()> {
    let names: Vec<String> = args.runs.iter().map(|file| name_of(file, &args.runs)).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let baseline = find_baseline(&names, args.baseline.as_deref())?;
    let data = BeirData::open(&args.data)?;
    let SplitQrels { qrels, notes } = data.qrels(&args.split, Purpose::Measuring)?;
    data.notes.iter().chain(&notes).for_each(|note| eprintln!("{note}"));
    let mut values: Vec<BTreeMap<String, Values>> = Vec::new();
    for file in &args.runs {
        let found = per_query(&Run::read_trec(file, &data)?, &qrels, args.relevance_level);
        if found.is_empty() {
            bail!(
                "{}: answers no query of split `{}`; is it a run on another split?",
                file.display(),
                args.split
            );
        }
        values.push(found);
    }
    let queries: BTreeSet<&String> = values.iter().flat_map(BTreeMap::keys).collect();
    for (file, values) in args.runs.iter().zip(&values).filter(|(_, values)| values.len() < queries.len()) {
        let missing = queries.len() - values.len();
        eprintln!("{}: {missing} of {} queries are missing; they count as 0", file.display(), queries.len());
    }
    let systems: Vec<_> = names.iter().zip(&values).map(|(name, values)| Measured { name, values }).collect();
    let found = compare(&systems, baseline, args.seed);
    println!("{}", table(&format!("{}, {} queries", args.split, queries.len()), &found));
    if let Some(file) = &args.json {
        let report = json!({
            "data": args.data, "split": args.split, "queries": queries.len(), "resamples": RESAMPLES,
            "seed": args.seed, "differences": found,
        });
        write_json(file, &report)?;
    }
    Ok(())
}

/// The file's name without its ending; the whole path where two files are called the same.
fn name_of(file: &Path, all: &[PathBuf]) -> String {
    let stem = |file: &Path| file.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let same = all.iter().filter(|other| stem(other) == stem(file)).count();
    match stem(file) {
        Some(stem) if same == 1 => stem,
        _ => file.display().to_string(),
    }
}
