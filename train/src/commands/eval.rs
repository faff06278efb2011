//! `train eval`: teacher zero-shot, teacher, student and baselines side by side on any BEIR folder.

use crate::device::DeviceArgs;
use crate::evaluation::calibration_table;
use crate::evaluation::cosine::check_layer;
use crate::evaluation::first_stage::Measured;
use crate::evaluation::onnx_embedding::{OnnxConfig, Pooling};
use crate::evaluation::report::{Row, SystemValues, table, write_per_query};
use crate::evaluation::run::{Values, means, per_judged_query};
use crate::evaluation::significance::{self, compare, find_baseline};
use crate::evaluation::systems::{Answers, Kind, System, answer};
use crate::evaluation::task::{Task, TaskConfig};
use anyhow::{Context, Result, bail};
use clap::Args as ClapArgs;
use models::beir::BeirData;
use models::config::DecoderConfig;
use models::files::write_json;
use models::student::StudentConfig;
use runtime::session::SessionOptions;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Documents of each query in a TREC run file, as trec_eval's usual run has them.
const RUN_DEPTH: usize = 1000;

/// Measure systems on a data set: Recall@k, MRR@10, nDCG@10
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// Data set in BEIR layout; need not be the one of training
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Splits to measure on
    #[arg(long, value_delimiter = ',', default_value = "test")]
    split: Vec<String>,
    /// Model directory without fine-tuning, as a zero-shot reranker
    #[arg(long, value_name = "DIR")]
    zero_shot: Option<PathBuf>,
    /// Teacher directory
    #[arg(long, value_name = "DIR")]
    teacher: Option<PathBuf>,
    /// Student directory
    #[arg(long, value_name = "DIR")]
    student: Option<PathBuf>,
    /// Keep what the student's LLM makes of each text here, and read what is already there: `train distill --cache` of the
    /// same teacher writes the same files
    #[arg(long, value_name = "DIR", requires = "student")]
    cache: Option<PathBuf>,
    /// The lexical baseline
    #[arg(long)]
    bm25: bool,
    /// Model directory: cosine of its hidden states' means over each text's tokens, without fine-tuning
    #[arg(long, value_name = "DIR")]
    llm_cosine: Option<PathBuf>,
    /// Layer whose output is averaged, 0 = embeddings; by default what the head reads (behind the final norm)
    #[arg(long, value_name = "N", requires = "llm_cosine")]
    llm_cosine_layer: Option<usize>,
    #[command(flatten)]
    onnx: OnnxArgs,
    /// Measure on so many queries of each split, drawn by --seed; 0 = all
    #[arg(long, default_value_t = 0)]
    sample: usize,
    /// Every system ranks only so many documents of each query: the relevant ones, and others drawn by --seed; 0 = the
    /// whole corpus
    #[arg(long, default_value_t = 0, conflicts_with = "candidates")]
    pool: usize,
    /// The rerankers score only so many documents of each query, the others stay behind them: the student's first ones,
    /// without a student the ONNX model's, BM25's, or the LLM cosine's; 0 = all
    #[arg(long, default_value_t = 0)]
    candidates: usize,
    /// Tell whether systems differ: paired bootstrap over the queries
    #[arg(long)]
    significance: bool,
    /// System that the others are compared to, by its name in the table; by default the first
    #[arg(long, value_name = "NAME", requires = "significance")]
    baseline: Option<String>,
    /// Tell whether the student's probabilities hold: reliability bins, expected calibration error, Brier score
    #[arg(long, requires = "student")]
    calibration: bool,
    /// Documents of each query that are looked at apart from all pairs
    #[arg(long, value_name = "K", default_value_t = 10, requires = "calibration")]
    calibration_top: usize,
    /// Write all numbers as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write each query's metrics, a JSON object per line
    #[arg(long, value_name = "FILE")]
    per_query: Option<PathBuf>,
    /// Write TREC run files, one per split and system
    #[arg(long, value_name = "DIR")]
    runs: Option<PathBuf>,
    /// Least gain of a relevant document, for Recall and MRR (trec_eval's -l); nDCG takes gains as they are
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    relevance_level: u32,
    /// Seed of the sample, the pool and the bootstrap
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// Somebody else's embedding model.
#[derive(Debug, ClapArgs)]
struct OnnxArgs {
    /// Embedding model as ONNX: a graph with its tokenizer.json, or a folder with model.onnx or onnx/model.onnx
    #[arg(long, value_name = "DIR_OR_FILE")]
    onnx_embedding: Option<PathBuf>,
    /// How its token vectors become one; by default as the graph or 1_Pooling/config.json says, else mean
    #[arg(long, value_enum, requires = "onnx_embedding")]
    onnx_pooling: Option<Pooling>,
    /// Put before every query, e.g. "query: " for E5
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true,
        requires = "onnx_embedding"
    )]
    onnx_query_prefix: String,
    /// Put before every document, e.g. "passage: " for E5
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true,
        requires = "onnx_embedding"
    )]
    onnx_document_prefix: String,
    /// ONNX Runtime library; searched for where it is not named
    #[arg(long, value_name = "FILE", requires = "onnx_embedding")]
    ort_dylib: Option<PathBuf>,
}

/// Measures every system on every split.
pub fn run(args: &Args, device: &DeviceArgs) -> Result<()> {
    let systems = plan(args, device)?;
    let names: Vec<&str> = systems.iter().map(|system| system.name.as_str()).collect();
    let mut baseline = match args.significance {
        true => Some(find_baseline(&names, args.baseline.as_deref())?),
        false => None,
    };
    systems.iter().try_for_each(check)?;
    let data = BeirData::open(&args.data)?;
    data.notes.iter().for_each(|note| eprintln!("{note}"));
    let config = TaskConfig {
        sample: args.sample,
        pool: args.pool,
        depth: RUN_DEPTH.max(args.candidates),
        seed: args.seed,
    };
    let task = Task::new(&data, &args.split, config)?;
    let mut answers: Vec<Answers> = Vec::new();
    let mut failed = Ok(());
    for system in &systems {
        match answer(system, &task, device, &answers) {
            Ok(answer) => answers.push(answer),
            // What the others have done is told all the same.
            Err(error) if !answers.is_empty() => {
                failed = Err(error);
                break;
            }
            error => drop(error?),
        }
    }
    let names = &names[..answers.len()];
    baseline = baseline.filter(|baseline| *baseline < names.len());
    let (mut results, mut differences, mut calibrations) = (Map::new(), Map::new(), Map::new());
    let mut lines: Vec<(&str, &str, BTreeMap<String, Values>)> = Vec::new();
    for (place, split) in task.splits.iter().enumerate() {
        let measured: Vec<&Measured> = answers.iter().map(|answers| &answers.splits[place]).collect();
        let values: Vec<_> = measured
            .iter()
            .map(|measured| per_judged_query(&measured.run, &split.qrels, args.relevance_level))
            .collect();
        let rows: Vec<Row> = names.iter().zip(&measured).zip(&values).map(row).collect();
        println!("{}", table(&format!("{}, {} documents", split.name, task.ranked_documents()), &rows));
        results.insert(split.name.clone(), json_of(&rows));
        if let Some(baseline) = baseline {
            let systems: Vec<_> = names
                .iter()
                .zip(&values)
                .map(|(name, values)| significance::Measured { name, values })
                .collect();
            let found = compare(&systems, baseline, args.seed);
            println!("{}", significance::table(&split.name, &found));
            differences.insert(split.name.clone(), json!(found));
        }
        for calibration in answers.iter().filter_map(|answers| Some(&answers.calibration.as_ref()?[place])) {
            let title = format!("{}, student's first {}", split.name, args.calibration_top);
            println!("{}", calibration_table::table(&title, &calibration.top));
            println!("{}", calibration_table::table(&format!("{}, all pairs", split.name), &calibration.all));
            calibrations.insert(split.name.clone(), json!(calibration));
        }
        if let Some(dir) = &args.runs {
            write_runs(dir, &split.name, names, &measured)?;
        }
        lines.extend(names.iter().zip(values).map(|(name, values)| (split.name.as_str(), *name, values)));
    }
    if let Some(file) = &args.per_query {
        let systems = lines.iter().map(|(split, system, values)| SystemValues { split, system, values });
        write_per_query(file, &systems.collect::<Vec<_>>())?;
    }
    if let Some(file) = &args.json {
        let mut report = json!({
            "data": args.data, "documents": data.documents.len(), "pool": args.pool, "sample": args.sample,
            "relevance_level": args.relevance_level,
            "seed": args.seed, "splits": results,
        });
        if args.significance {
            report["significance"] = json!({ "resamples": significance::RESAMPLES, "splits": differences });
        }
        if args.calibration {
            report["calibration"] = json!({ "top": args.calibration_top, "splits": calibrations });
        }
        write_json(file, &report)?;
    }
    failed
}

/// Whether what a system is made of is there, before others take hours.
fn check(system: &System) -> Result<()> {
    let there = match &system.kind {
        Kind::Bm25 | Kind::Onnx(_) => return Ok(()),
        Kind::Student { dir, .. } => StudentConfig::open(dir).map(drop).map_err(anyhow::Error::from),
        Kind::LlmCosine { dir, layer } => DecoderConfig::open(dir)
            .map_err(anyhow::Error::from)
            .and_then(|config| check_layer(&config, *layer)),
        Kind::Teacher { dir, .. } => DecoderConfig::open(dir).map(drop).map_err(anyhow::Error::from),
    };
    there.with_context(|| format!("cannot measure {}", system.name))
}

/// Systems in the order of the table.
fn plan(args: &Args, device: &DeviceArgs) -> Result<Vec<System>> {
    let mut systems: Vec<System> = Vec::new();
    let mut add = |name: &str, kind| systems.push(System { name: name.to_owned(), kind });
    if args.bm25 {
        add("BM25", Kind::Bm25);
    }
    if let Some(dir) = args.llm_cosine.clone() {
        add("LLM cosine", Kind::LlmCosine { dir, layer: args.llm_cosine_layer });
    }
    if let Some(path) = args.onnx.onnx_embedding.clone() {
        let session = SessionOptions {
            ort_dylib: args.onnx.ort_dylib.clone(),
            threads: device.threads,
            ..Default::default()
        };
        let config = OnnxConfig {
            path,
            pooling: args.onnx.onnx_pooling,
            query_prefix: args.onnx.onnx_query_prefix.clone(),
            document_prefix: args.onnx.onnx_document_prefix.clone(),
            session,
        };
        add("ONNX embedding", Kind::Onnx(config));
    }
    if let Some(dir) = args.student.clone() {
        let calibration = args.calibration.then_some(args.calibration_top);
        add("student", Kind::Student { dir, calibration, cache: args.cache.clone() });
    }
    let first = Kind::first_stage(&systems).filter(|_| args.candidates > 0);
    for (name, dir) in [("teacher zero-shot", &args.zero_shot), ("teacher", &args.teacher)] {
        let Some(dir) = dir.clone() else { continue };
        let name = match first {
            Some(place) => format!("{name}, reranking {} top {}", systems[place].name, args.candidates),
            None => name.to_owned(),
        };
        systems
            .push(System { name, kind: Kind::Teacher { dir, first: first.map(|p| (p, args.candidates)) } });
    }
    if systems.is_empty() {
        bail!(
            "nothing to measure: give --student, --teacher, --zero-shot, --bm25, --llm-cosine or --onnx-embedding"
        );
    }
    if args.candidates > 0 && first.is_none() {
        let n = args.candidates;
        bail!("--candidates {n} needs --student, --onnx-embedding, --bm25 or --llm-cosine to choose them");
    }
    Ok(systems)
}

fn row(((name, measured), values): ((&&str, &&Measured), &BTreeMap<String, Values>)) -> Row {
    Row {
        name: (*name).to_owned(),
        queries: values.len(),
        metrics: means(values.values()),
        seconds: measured.documents + measured.per_query * values.len() as f64,
        milliseconds: measured.per_query * 1e3,
    }
}

fn json_of(rows: &[Row]) -> Value {
    let system = |row: &Row| {
        json!({
            "queries": row.queries, "metrics": row.metrics, "seconds": row.seconds,
            "milliseconds_per_query": row.milliseconds,
        })
    };
    rows.iter().map(|row| (row.name.clone(), system(row))).collect::<Map<_, _>>().into()
}

fn write_runs(dir: &Path, split: &str, names: &[&str], measured: &[&Measured]) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    for (name, measured) in names.iter().zip(measured) {
        let name: String = name
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
            .collect();
        measured.run.write_trec(&dir.join(format!("{split}-{name}.trec")), &name, RUN_DEPTH)?;
    }
    Ok(())
}
