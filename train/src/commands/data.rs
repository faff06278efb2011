//! `train data`: other people's data as BEIR folders, and what is wrong with a folder.

use super::Outcome;
use crate::data::splits::Shares;
use crate::data::{check, esconv, msmarco, pairs};
use anyhow::{Context, Result};
use clap::{Args as ClapArgs, Subcommand};
use models::files::write_json;
use models::prompt::Prompter;
use std::io::Write;
use std::path::PathBuf;

/// Import data sets into BEIR folders, and check BEIR folders
#[derive(Debug, ClapArgs)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Check(CheckArgs),
    Import(ImportArgs),
}

/// Find leaks, duplicates, empty texts, unknown ids and more; exit status 0 no fault, 1 faults, 2 error
///
/// Faults stop a run or make its numbers wrong. Warnings are passed over by all commands and told, or cost little: they leave the
/// exit status as it is.
#[derive(Debug, ClapArgs)]
struct CheckArgs {
    /// Data set in BEIR layout
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Model directory, with tokenizer.json and prompt.json: find texts that are longer than its prompt keeps, too
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Write everything found as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Findings of each kind and file that are shown with their line
    #[arg(long, value_name = "N", default_value_t = 3)]
    examples: usize,
}

/// Make a BEIR folder: corpus.jsonl, queries.jsonl, qrels/*.tsv
#[derive(Debug, ClapArgs)]
struct ImportArgs {
    #[command(subcommand)]
    format: Format,
}

#[derive(Debug, Subcommand)]
enum Format {
    Esconv(EsconvArgs),
    Msmarco(MsmarcoArgs),
    Pairs(PairsArgs),
}

/// ESConv.json: the conversation so far asks for the support strategy that comes next
#[derive(Debug, ClapArgs)]
struct EsconvArgs {
    /// ESConv.json
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    /// Last turns of the conversation that a query shows; 0 = all
    #[arg(long, default_value_t = 4)]
    turns: usize,
    /// Share of the conversations that become the dev split
    #[arg(long, default_value_t = 0.15)]
    dev_share: f64,
    /// Share of the conversations that become the test split
    #[arg(long, default_value_t = 0.15)]
    test_share: f64,
    /// Seed of the splits
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// BEIR folder to create
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// MS MARCO's tab-separated files: collection, queries, TREC qrels, triples
#[derive(Debug, ClapArgs)]
struct MsmarcoArgs {
    /// Documents: docid<TAB>text
    #[arg(long, value_name = "FILE")]
    collection: PathBuf,
    /// Queries: qid<TAB>text; may be given several times. Those without a judgement are left out
    #[arg(long, value_name = "FILE", required = true)]
    queries: Vec<PathBuf>,
    /// A split and its judgements (qid 0 docid rel); may be given several times
    #[arg(long, value_name = "SPLIT=FILE", value_parser = split_and_file)]
    qrels: Vec<(String, PathBuf)>,
    /// Query, positive and negative per line, all ids or all texts; they go into the train split, negatives as gain 0.
    /// May be given several times
    #[arg(long, value_name = "FILE")]
    triples: Vec<PathBuf>,
    /// BEIR folder to create
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// JSON lines of query, positives and negatives, as for sentence-transformers, FlagEmbedding or Tevatron
///
/// Keys: query, anchor or question; positive, pos, positives, positive_passages or answer; negative, neg, negatives, negative_1
/// to negative_N or negative_passages, which become judgements of gain 0. With label or labels, the documents (also docs or
/// passages) have these gains. Scores, prompt and type are not read.
#[derive(Debug, ClapArgs)]
struct PairsArgs {
    /// The JSON lines
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    /// Share of the queries that become the dev split
    #[arg(long, default_value_t = 0.0)]
    dev_share: f64,
    /// Share of the queries that become the test split
    #[arg(long, default_value_t = 0.0)]
    test_share: f64,
    /// Seed of the splits
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// BEIR folder to create
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// Checks or imports.
pub fn run(args: &Args) -> Result<Outcome> {
    match &args.command {
        Command::Check(args) => run_check(args),
        Command::Import(args) => {
            let out = match &args.format {
                Format::Esconv(args) => import_esconv(args)?,
                Format::Msmarco(args) => import_msmarco(args)?,
                Format::Pairs(args) => import_pairs(args)?,
            };
            println!("{}", out.display());
            Ok(Outcome::Done)
        }
    }
}

fn run_check(args: &CheckArgs) -> Result<Outcome> {
    let prompter = args.model.as_deref().map(Prompter::open).transpose()?;
    let report = check::check(&args.data, prompter.as_ref(), args.examples)?;
    if let Some(file) = &args.json {
        write_json(file, &report)?;
    }
    eprintln!("{}", report.sizes());
    if report.findings.is_empty() {
        eprintln!("nothing is wrong");
        return Ok(Outcome::Done);
    }
    let mut stdout = std::io::stdout().lock();
    write!(stdout, "{report}").and_then(|()| stdout.flush()).context("cannot write to stdout")?;
    if report.has_faults() {
        return Ok(Outcome::Found);
    }
    eprintln!("no fault; warnings need no repair");
    Ok(Outcome::Done)
}

fn import_esconv(args: &EsconvArgs) -> Result<&PathBuf> {
    let shares = Shares::new(args.dev_share, args.test_share)?;
    let made = esconv::import(&args.from, &args.out, args.turns, shares, args.seed)?;
    eprintln!("{}", made.summary);
    if made.repeated > 0 {
        eprintln!("left out: {} contexts with the words of an earlier one", made.repeated);
    }
    if !made.undescribed.is_empty() {
        eprintln!(
            "strategies without a description: {}; their documents have a title only, add a text in corpus.jsonl",
            made.undescribed.join(", ")
        );
    }
    Ok(&args.out)
}

fn import_msmarco(args: &MsmarcoArgs) -> Result<&PathBuf> {
    let MsmarcoArgs { collection, queries, qrels, triples, out } = args;
    let files = msmarco::Files {
        collection: collection.clone(),
        queries: queries.clone(),
        qrels: qrels.clone(),
        triples: triples.clone(),
    };
    let made = msmarco::import(&files, out)?;
    eprintln!("{}", made.summary);
    if made.unjudged > 0 {
        eprintln!("left out: {} queries without a judgement", made.unjudged);
    }
    if made.added > 0 {
        eprintln!("added: {} texts of triples that --collection and --queries lack", made.added);
    }
    Ok(out)
}

fn import_pairs(args: &PairsArgs) -> Result<&PathBuf> {
    let shares = Shares::new(args.dev_share, args.test_share)?;
    let made = pairs::import(&args.from, &args.out, shares, args.seed)?;
    eprintln!("{}", made.summary);
    if made.scored > 0 {
        eprintln!("not read: the scores of {} lines; `train distill` asks its own teacher", made.scored);
    }
    if made.empty > 0 {
        eprintln!("left out: {} documents without a text", made.empty);
    }
    if made.unanswered > 0 {
        eprintln!("queries without a relevant document: {}; they teach nothing", made.unanswered);
    }
    Ok(&args.out)
}

/// `SPLIT=FILE`; the split becomes a file name.
fn split_and_file(text: &str) -> Result<(String, PathBuf), String> {
    let letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    match text.split_once('=') {
        Some((split, file)) if !split.is_empty() && split.chars().all(letter) && !file.is_empty() => {
            Ok((split.to_owned(), file.into()))
        }
        _ => Err("expected SPLIT=FILE with letters, digits, - and _ as the split's name, for example \
                  train=qrels.train.tsv"
            .to_owned()),
    }
}
