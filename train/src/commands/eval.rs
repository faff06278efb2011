//! `train eval`: teacher zero-shot, teacher, student and BM25 side by side on any BEIR folder.

use super::distill::open_predictor;
use crate::bm25::Bm25;
use crate::device::DeviceArgs;
use crate::evaluation::{Row, Run, measure, table};
use crate::features::{FeatureMaker, Side, bar};
use crate::sampling::{draw, rng};
use crate::scoring::{Texts, rows_of, score_pairs};
use anyhow::{Context, Result, bail};
use clap::Args as ClapArgs;
use models::beir::{BeirData, Document, Qrels};
use models::files::write_json;
use models::metrics::Judgements;
use models::student::StudentConfig;
use models::torch::{EncoderConfig, Reranker};
use rand::seq::SliceRandom;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Documents of each query in a TREC run file.
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
    /// Untaught model directory, asked as it is
    #[arg(long, value_name = "DIR")]
    zero_shot: Option<PathBuf>,
    /// Teacher directory
    #[arg(long, value_name = "DIR")]
    teacher: Option<PathBuf>,
    /// Student directory
    #[arg(long, value_name = "DIR")]
    student: Option<PathBuf>,
    /// The lexical baseline
    #[arg(long)]
    bm25: bool,
    /// Measure on so many queries of each split, drawn by --seed; 0 = all
    #[arg(long, default_value_t = 0)]
    sample: usize,
    /// Every system ranks only so many documents of each query: the relevant ones, and others drawn by --seed; 0 = the
    /// whole corpus
    #[arg(long, default_value_t = 0, conflicts_with = "candidates")]
    pool: usize,
    /// The rerankers score only the student's first so many documents (without a student: BM25's); 0 = all
    #[arg(long, default_value_t = 0)]
    candidates: usize,
    /// Write all numbers as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write TREC run files, one per split and system
    #[arg(long, value_name = "DIR")]
    runs: Option<PathBuf>,
    /// Seed of the sample and of the pool
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// The data set of one split.
struct Split<'a> {
    data: &'a BeirData,
    contents: &'a [String],
    qrels: Qrels,
    /// Documents that each query's systems rank, by query id; all where it is empty.
    pools: BTreeMap<String, Vec<usize>>,
}

impl Split<'_> {
    fn queries(&self) -> Vec<(&str, usize)> {
        self.qrels.keys().map(|id| (id.as_str(), self.data.query_index[id])).collect()
    }

    fn text(&self, place: usize) -> &str {
        &self.data.queries[place].text
    }

    /// Places of the documents that are ranked for a query.
    fn documents(&self, query: &str) -> Vec<usize> {
        self.pools.get(query).cloned().unwrap_or_else(|| (0..self.data.documents.len()).collect())
    }

    fn all_pairs(&self) -> Vec<(usize, usize)> {
        let pairs = |(id, query): (&str, usize)| {
            self.documents(id).into_iter().map(move |document| (query, document))
        };
        self.queries().into_iter().flat_map(pairs).collect()
    }
}

/// Measures every system on every split.
pub fn run(args: &Args, device: &DeviceArgs) -> Result<()> {
    if args.zero_shot.is_none() && args.teacher.is_none() && args.student.is_none() && !args.bm25 {
        bail!("nothing to measure: give --student, --teacher, --zero-shot or --bm25");
    }
    if args.candidates > 0 && args.student.is_none() && !args.bm25 {
        bail!("--candidates {} needs --student or --bm25 to choose them", args.candidates);
    }
    let data = BeirData::open(&args.data)?;
    let contents: Vec<String> = data.documents.iter().map(Document::contents).collect();
    let mut results = serde_json::Map::new();
    let splits = args.split.iter().map(|name| {
        let qrels = sampled(data.qrels(name)?, args);
        let pools = pools(&data, &qrels, args);
        Ok((name, Split { data: &data, contents: &contents, qrels, pools }))
    });
    let splits = splits.collect::<Result<Vec<_>>>()?;
    let mut runs: Vec<Vec<(String, Run, f64)>> = splits.iter().map(|_| Vec::new()).collect();
    if args.bm25 {
        for ((_, split), runs) in splits.iter().zip(&mut runs) {
            runs.push(timed("BM25", || Ok(bm25_run(split)))?);
        }
    }
    if let Some(dir) = &args.student {
        let config = StudentConfig::open(dir)?;
        let llm = Reranker::open(dir, &device.open(None)?)?;
        for ((_, split), runs) in splits.iter().zip(&mut runs) {
            runs.push(timed("student", || student_run(dir, &config, &llm, split))?);
        }
    }
    for (name, dir) in [("teacher zero-shot", &args.zero_shot), ("teacher", &args.teacher)] {
        let Some(dir) = dir else { continue };
        let teacher = Reranker::open(dir, &device.open(None)?)?;
        for ((_, split), runs) in splits.iter().zip(&mut runs) {
            // The last first-stage run: the student's where there is one.
            let first = runs.iter().rev().find(|(name, ..)| !name.starts_with("teacher"));
            let first =
                first.filter(|_| args.candidates > 0).map(|(name, run, _)| (name.clone(), run.clone()));
            let label = match &first {
                Some((first, _)) => format!("{name}, reranking {first} top {}", args.candidates),
                None => name.to_owned(),
            };
            runs.push(timed(&label, || {
                teacher_run(&teacher, split, first.as_ref().map(|f| &f.1), args.candidates)
            })?);
        }
    }
    for ((name, split), runs) in splits.iter().zip(&runs) {
        let rows: Vec<Row> = runs
            .iter()
            .map(|(system, run, seconds)| Row {
                name: system.clone(),
                queries: split.qrels.len(),
                metrics: measure(run, &split.qrels),
                seconds: *seconds,
            })
            .collect();
        let ranked = if args.pool > 0 { args.pool.min(data.documents.len()) } else { data.documents.len() };
        println!("{}", table(&format!("{name}, {ranked} documents"), &rows));
        if let Some(dir) = &args.runs {
            write_runs(dir, name, runs)?;
        }
        let systems: BTreeMap<&str, _> = rows
            .iter()
            .map(|row| {
                (
                    row.name.as_str(),
                    json!({ "queries": row.queries, "metrics": row.metrics, "seconds": row.seconds }),
                )
            })
            .collect();
        results.insert((*name).clone(), json!(systems));
    }
    if let Some(file) = &args.json {
        write_json(
            file,
            &json!({
                "data": args.data, "documents": data.documents.len(), "pool": args.pool, "sample": args.sample,
                "seed": args.seed, "splits": results,
            }),
        )?;
    }
    Ok(())
}

fn sampled(mut qrels: Qrels, args: &Args) -> Qrels {
    // Queries without a relevant document measure nothing.
    qrels.retain(|_, judgements| judgements.values().any(|gain| *gain > 0));
    if args.sample > 0 && args.sample < qrels.len() {
        let mut ids: Vec<String> = qrels.keys().cloned().collect();
        ids.shuffle(&mut rng(args.seed, "sample", 0));
        ids.truncate(args.sample);
        qrels.retain(|id, _| ids.contains(id));
    }
    qrels
}

/// The relevant documents of each query and others drawn at random; empty where the whole corpus is ranked.
fn pools(data: &BeirData, qrels: &Qrels, args: &Args) -> BTreeMap<String, Vec<usize>> {
    if args.pool == 0 || args.pool >= data.documents.len() {
        return BTreeMap::new();
    }
    let all: Vec<usize> = (0..data.documents.len()).collect();
    let pool = |(query, judgements): (&String, &Judgements)| {
        let relevant = judgements.iter().filter(|(_, gain)| **gain > 0);
        let mut chosen: BTreeSet<usize> = relevant.map(|(id, _)| data.document_index[id]).collect();
        let missing = args.pool.saturating_sub(chosen.len());
        let mut rng = rng(args.seed, "pool", data.query_index[query] as u64);
        chosen.extend(draw(&all, missing, &chosen, &mut rng));
        (query.clone(), chosen.into_iter().collect())
    };
    qrels.iter().map(pool).collect()
}

fn timed(name: &str, run: impl FnOnce() -> Result<Run>) -> Result<(String, Run, f64)> {
    let start = Instant::now();
    let run = run().with_context(|| format!("cannot measure {name}"))?;
    Ok((name.to_owned(), run, start.elapsed().as_secs_f64()))
}

fn bm25_run(split: &Split) -> Run {
    let bm25 = Bm25::new(split.contents.iter().map(String::as_str));
    let mut run = Run::default();
    for (id, place) in split.queries() {
        let scores: Vec<f32> = bm25.scores(split.text(place));
        for document in split.documents(id) {
            run.add(id, &split.data.documents[document].id, scores[document]);
        }
    }
    run
}

fn student_run(dir: &Path, config: &StudentConfig, llm: &Reranker, split: &Split) -> Result<Run> {
    let predictor = open_predictor(dir, config, llm.device())?;
    let encoder = EncoderConfig { layers: config.latents.layers.clone(), residual: config.residual };
    let mut maker = FeatureMaker::new(llm, encoder, None)?;
    let documents: Vec<&str> = split.contents.iter().map(String::as_str).collect();
    let documents = maker.make(Side::Document, &documents)?;
    let queries = split.queries();
    let texts: Vec<&str> = queries.iter().map(|(_, place)| split.text(*place)).collect();
    let features = maker.make(Side::Query, &texts)?;
    let _guard = tch::no_grad_guard();
    let inner = predictor.document_side(&predictor.document.apply(&documents.latent), false);
    let latents = predictor.query.apply(&features.latent).0;
    let mut run = Run::default();
    for (row, (id, _)) in queries.iter().enumerate() {
        let row = row as i64;
        let answer = features.answer.as_ref().map(|answer| answer.narrow(0, row, 1));
        let side = predictor.query_side(
            &models::torch::predictor::Standardised(latents.narrow(0, row, 1)),
            answer.as_ref(),
            false,
        );
        let scores = rows_of(&predictor.score(&side, &inner))?.swap_remove(0);
        for document in split.documents(id) {
            run.add(id, &split.data.documents[document].id, scores[document]);
        }
    }
    Ok(run)
}

/// All documents, or the first `candidates` of another run.
fn teacher_run(teacher: &Reranker, split: &Split, first: Option<&Run>, candidates: usize) -> Result<Run> {
    let pairs = match first {
        None => split.all_pairs(),
        Some(first) => {
            let place = |id: &String| split.data.document_index[id];
            let top = first.top(candidates);
            top.iter()
                .flat_map(|(query, ids)| ids.iter().map(move |id| (split.data.query_index[query], place(id))))
                .collect()
        }
    };
    let queries: Vec<&str> = split.data.queries.iter().map(|query| query.text.as_str()).collect();
    let documents: Vec<&str> = split.contents.iter().map(String::as_str).collect();
    let bar = bar(pairs.len(), "teacher pairs");
    let mut run = Run::default();
    score_pairs(teacher, &Texts { queries: &queries, documents: &documents }, &pairs, false, |scored| {
        bar.inc(scored.len() as u64);
        for pair in scored {
            run.add(&split.data.queries[pair.query].id, &split.data.documents[pair.document].id, pair.score);
        }
        Ok(())
    })?;
    bar.finish_and_clear();
    Ok(run)
}

fn write_runs(dir: &Path, split: &str, runs: &[(String, Run, f64)]) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    for (name, run, _) in runs {
        let name: String = name
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
            .collect();
        run.write_trec(&dir.join(format!("{split}-{name}.trec")), &name, RUN_DEPTH)?;
    }
    Ok(())
}
