//! `runtime bench search`: the exact scan beside the graph, on made-up vectors.

use crate::Outcome;
use anyhow::{Context, bail};
use models::files::write_json;
use models::fold::FoldedQuery;
use models::student::Form;
use rayon::prelude::*;
use runtime::document::Metadata;
use runtime::index::{Graph, Measure};
use runtime::rows_file;
use runtime::search::{self, Rows, Scored};
use runtime::store::Generation;
use runtime::vectors::Precision;
use serde::Serialize;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Instant;

/// Documents around one centre.
const CLUSTER: usize = 100;

/// Measure searching: the exact scan in each precision and the graph: latency, recall, time to build and open, bytes
///
/// Vectors are synthetic: unit length, in clusters of a hundred (the vectors of real documents are in clusters, too), queries
/// near documents. Recall is the share of the f32 scan's best documents that are found; scans of less than f32 and the graph
/// have their best ones scored again, as an index does. `open` maps the rows, or loads the graph, from a file that was
/// just written.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Numbers of documents
    #[arg(long, value_delimiter = ',', default_values_t = [1_000, 10_000, 100_000])]
    documents: Vec<usize>,
    /// Dimensions of a vector
    #[arg(long, default_value_t = 512)]
    dimensions: usize,
    /// Form of the predictor
    #[arg(long, value_enum, default_value = "gated")]
    form: FormArg,
    /// Precisions of the scan, measured beside f32; the graph is built from vectors in the first
    #[arg(long, value_delimiter = ',', default_values = ["f16", "int8"], value_name = "PRECISION")]
    precisions: Vec<Precision>,
    /// Without the graph
    #[arg(long)]
    no_graph: bool,
    /// Queries
    #[arg(long, default_value_t = 200)]
    queries: usize,
    /// Results of a query
    #[arg(short, default_value_t = 10)]
    k: usize,
    /// Nodes that the graph visits for a query (ef_search); 0 = what an index of this form uses
    #[arg(long, default_value_t = 0)]
    expansion: usize,
    /// Seed of the vectors
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Write the numbers as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum FormArg {
    Gated,
    Relu,
}

/// Milliseconds of the queries in order.
#[derive(Debug, Serialize)]
struct Latency {
    p50: f64,
    p99: f64,
}

/// A line of the table.
#[derive(Debug, Serialize)]
struct Measured {
    documents: usize,
    search: String,
    latency_ms: Latency,
    /// Of the f32 scan's latency.
    ratio: f64,
    recall: f64,
    /// Inserting into the graph, or quantising the rows.
    build_seconds: f64,
    open_ms: f64,
    file_bytes_per_document: f64,
}

const HEAD: &str = "| documents | search | p50 ms | p99 | ratio | recall | build s | open ms | bytes/document |\n\
                    | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n";

/// A line for each search of each number of documents.
pub fn run(args: &Args) -> anyhow::Result<Outcome> {
    let positive = [("--dimensions", args.dimensions), ("--queries", args.queries), ("-k", args.k)];
    if let Some((flag, _)) = positive.iter().find(|(_, value)| *value == 0) {
        bail!("{flag} is 0; it must be at least 1");
    }
    if args.documents.is_empty() || args.documents.contains(&0) {
        bail!("--documents must name at least one number of documents, and not 0");
    }
    let (threads, m) = (rayon::current_num_threads(), args.dimensions);
    let mut out = io::stdout().lock();
    let head =
        format!("{threads} threads, {m} dimensions, {:?}, {} queries\n\n{HEAD}", args.form, args.queries);
    out.write_all(head.as_bytes()).context("cannot write to stdout")?;
    let mut all = Vec::new();
    for &documents in &args.documents {
        measure(args, documents, &mut |line: Measured| {
            writeln!(
                out,
                "| {documents} | {} | {:.2} | {:.2} | {:.3} | {:.3} | {:.1} | {:.0} | {:.0} |",
                line.search,
                line.latency_ms.p50,
                line.latency_ms.p99,
                line.ratio,
                line.recall,
                line.build_seconds,
                line.open_ms,
                line.file_bytes_per_document
            )
            .and_then(|()| out.flush())
            .context("cannot write to stdout")?;
            all.push(line);
            Ok(())
        })?;
    }
    if let Some(file) = &args.json {
        write_json(file, &all)?;
    }
    Ok(Outcome::Done)
}

fn measure(
    args: &Args,
    documents: usize,
    tell: &mut dyn FnMut(Measured) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let m = args.dimensions;
    let made = MadeUp { seed: args.seed, m, clusters: documents.div_ceil(CLUSTER) };
    let mut plain = Rows::new(m);
    plain.reserve(documents);
    // Some at a time, so that the vectors are in memory once.
    for start in (0..documents).step_by(10_000) {
        let end = documents.min(start + 10_000);
        let vectors: Vec<Vec<f32>> = (start..end).into_par_iter().map(|i| made.document(i)).collect();
        for (i, vector) in (start..end).zip(vectors) {
            plain.push(i as i64 + 1, &format!("d{i}"), &vector, &Metadata::new());
        }
    }
    let mut random = Random(made.seed ^ 0x5eed);
    let v: Vec<f32> = (0..m).map(|_| random.normal()).collect();
    let queries: Vec<FoldedQuery> = (0..args.queries)
        .map(|_| {
            let near = made.document(random.next() as usize % documents);
            let noise = 0.5 / (m as f32).sqrt();
            let near: Vec<f32> = near.iter().map(|x| x + noise * random.normal()).collect();
            match args.form {
                FormArg::Gated => FoldedQuery::new(Form::Gated, near, Vec::new(), 0.0),
                FormArg::Relu => FoldedQuery::new(Form::Relu, near, v.clone(), 0.0),
            }
        })
        .collect();
    let directory = tempfile::tempdir().context("cannot make a temporary directory")?;
    let (dir, moment) = (directory.path(), Generation::default());
    let bytes_of = |start: &str| -> anyhow::Result<f64> {
        let mut bytes = 0;
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(start) {
                bytes += entry.metadata()?.len();
            }
        }
        Ok(bytes as f64 / documents as f64)
    };
    // Rows are searched as an index searches them: mapped.
    let reopened = |rows: &Rows| -> anyhow::Result<(Rows, f64)> {
        rows_file::save(dir, rows, &moment)?;
        let started = Instant::now();
        let rows = rows_file::open(dir, m, None)?.0;
        Ok((rows, 1e3 * started.elapsed().as_secs_f64()))
    };
    let (mapped, open_ms) = reopened(&plain)?;
    let (exact_ms, exact) = timed(&queries, |query| {
        Ok(search::exact(std::slice::from_ref(query), &mapped, args.k, None).swap_remove(0))
    })?;
    drop(mapped);
    let p50 = exact_ms.p50;
    let recall = |found: &[Vec<Scored>]| -> f64 {
        let hits: usize = exact
            .iter()
            .zip(found)
            .map(|(exact, found)| exact.iter().filter(|s| found.contains(s)).count())
            .sum();
        hits as f64 / exact.iter().map(Vec::len).sum::<usize>().max(1) as f64
    };
    let again = |query: &FoldedQuery, rows: &Rows, found: &[Scored]| -> Vec<Scored> {
        let keys: Vec<i64> = found.iter().map(|s| rows.key(s.row)).collect();
        search::rescore(query, &plain, &keys, args.k)
    };
    tell(Measured {
        documents,
        search: "exact, f32".to_owned(),
        latency_ms: exact_ms,
        ratio: 1.0,
        recall: 1.0,
        build_seconds: 0.0,
        open_ms,
        file_bytes_per_document: bytes_of(rows_file::FILE_NAME)?,
    })?;
    let mut graphed = None;
    for &precision in &args.precisions {
        let started = Instant::now();
        let mut rough = Rows::in_precision(m, precision);
        rough.reserve(documents);
        for row in 0..documents {
            rough.push(plain.key(row), plain.id(row), &plain.vector(row), &Metadata::new());
        }
        let build_seconds = started.elapsed().as_secs_f64();
        let (rough, open_ms) = reopened(&rough)?;
        let (latency_ms, found) = timed(&queries, |query| {
            let k = search::rough_results(args.k);
            let found = search::exact(std::slice::from_ref(query), &rough, k, None).swap_remove(0);
            Ok(again(query, &rough, &found))
        })?;
        tell(Measured {
            documents,
            search: format!("exact, {precision}"),
            ratio: latency_ms.p50 / p50,
            latency_ms,
            recall: recall(&found),
            build_seconds,
            open_ms,
            file_bytes_per_document: bytes_of(rows_file::FILE_NAME)?,
        })?;
        graphed.get_or_insert(rough);
    }
    if args.no_graph {
        return Ok(());
    }
    let rows = graphed.as_ref().unwrap_or(&plain);
    let measure = match args.form {
        FormArg::Gated => Measure::Gated,
        FormArg::Relu => Measure::Relu(v.into()),
    };
    let started = Instant::now();
    let built = Graph::build(rows, measure.clone())?;
    let build_seconds = started.elapsed().as_secs_f64();
    built.save(dir, &moment)?;
    drop(built);
    let started = Instant::now();
    let mut graph = Graph::open(dir, m, measure)?.0;
    let open_ms = 1e3 * started.elapsed().as_secs_f64();
    if args.expansion > 0 {
        graph.set_expansion(args.expansion);
    }
    let kept = if rows.precision() == Precision::F32 { args.k } else { search::rough_results(args.k) };
    let (latency_ms, found) = timed(&queries, |query| {
        let count = search::candidates(args.k, documents, documents).max(kept);
        let candidates = graph.search(query, count, None)?;
        Ok(again(query, rows, &search::rescore(query, rows, &candidates, kept)))
    })?;
    tell(Measured {
        documents,
        search: format!("graph, {}", rows.precision()),
        ratio: latency_ms.p50 / p50,
        latency_ms,
        recall: recall(&found),
        build_seconds,
        open_ms,
        file_bytes_per_document: bytes_of("graph-")?,
    })
}

/// The first tenth of the queries warms up.
fn timed<T>(
    queries: &[FoldedQuery],
    mut search: impl FnMut(&FoldedQuery) -> anyhow::Result<T>,
) -> anyhow::Result<(Latency, Vec<T>)> {
    for query in queries.iter().take(queries.len().div_ceil(10)) {
        search(query)?;
    }
    let (mut times, mut answers) = (Vec::new(), Vec::new());
    for query in queries {
        let start = Instant::now();
        answers.push(search(query)?);
        times.push(1e3 * start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((times.len() - 1) as f64 * share).round() as usize];
    Ok((Latency { p50: at(0.5), p99: at(0.99) }, answers))
}

/// Vectors that follow from their number.
struct MadeUp {
    seed: u64,
    m: usize,
    clusters: usize,
}

impl MadeUp {
    fn document(&self, i: usize) -> Vec<f32> {
        let mut centre =
            Random(self.seed.wrapping_add(1 + (i % self.clusters) as u64).wrapping_mul(0x9e37_79b9));
        let mut own = Random(self.seed.wrapping_add(7_777_777 + i as u64).wrapping_mul(0x85eb_ca6b));
        let vector: Vec<f32> = (0..self.m).map(|_| centre.normal() + 0.6 * own.normal()).collect();
        let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
        vector.into_iter().map(|x| x / length).collect()
    }
}

/// SplitMix64: the same vectors on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Mean 0, deviation 1 (the sum of twelve uniform numbers; near enough, and quick).
    fn normal(&mut self) -> f32 {
        let sum: u64 = (0..3)
            .map(|_| {
                let bits = self.next();
                (0..4).map(|part| bits >> (16 * part) & 0xffff).sum::<u64>()
            })
            .sum();
        sum as f32 / 65_536.0 - 6.0
    }
}
