//! `runtime bench search`: the exact scan beside the graph, on made-up vectors.

use super::resident_megabytes;
use crate::Outcome;
use anyhow::{Context, bail};
use models::files::write_json;
use models::fold::FoldedQuery;
use models::student::Form;
use rayon::prelude::*;
use runtime::document::Metadata;
use runtime::index::{Graph, Measure};
use runtime::search::{self, Rows};
use serde::Serialize;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Instant;

/// Documents around one centre.
const CLUSTER: usize = 100;

/// Measure searching: latency of the exact scan and of the graph, its recall, time to build it and memory
///
/// Vectors are made up: unit length, in clusters of a hundred (the vectors of real documents are in clusters, too), queries
/// near documents.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Numbers of documents
    #[arg(long, value_delimiter = ',', default_values_t = [1_000, 10_000, 100_000])]
    documents: Vec<usize>,
    /// Numbers per document
    #[arg(long, default_value_t = 512)]
    dimensions: usize,
    /// Form of the predictor
    #[arg(long, value_enum, default_value = "gated")]
    form: FormArg,
    /// Queries
    #[arg(long, default_value_t = 200)]
    queries: usize,
    /// Results of a query
    #[arg(short, default_value_t = 10)]
    k: usize,
    /// Nodes that the graph looks at for a query; 0 = what an index of this form uses
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

#[derive(Debug, Serialize)]
struct Measured {
    documents: usize,
    exact_ms: Latency,
    graph_ms: Latency,
    recall: f64,
    build_seconds: f64,
    vector_bytes_per_document: f64,
    graph_bytes_per_document: Option<f64>,
}

/// One line of the table for each number of documents.
pub fn run(args: &Args) -> anyhow::Result<Outcome> {
    let positive = [("--dimensions", args.dimensions), ("--queries", args.queries), ("-k", args.k)];
    if let Some((flag, _)) = positive.iter().find(|(_, value)| *value == 0) {
        bail!("{flag} is 0; it must be at least 1");
    }
    if args.documents.is_empty() || args.documents.contains(&0) {
        bail!("--documents must name at least one number of documents, and not 0");
    }
    let mut out = io::stdout().lock();
    let head = format!(
        "{} threads, {} numbers a document, {:?}, {} queries\n\n\
         | documents | exact p50 ms | p99 | graph p50 ms | p99 | graph / exact | recall@{} | build s | documents/s | bytes/document: vectors | graph |\n\
         | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n",
        rayon::current_num_threads(),
        args.dimensions,
        args.form,
        args.queries,
        args.k
    );
    write!(out, "{head}").context("cannot write to stdout")?;
    let mut all = Vec::new();
    for &documents in &args.documents {
        let found = measure(args, documents)?;
        let graph_bytes = found.graph_bytes_per_document.map_or(String::new(), |bytes| format!("{bytes:.0}"));
        writeln!(
            out,
            "| {documents} | {:.2} | {:.2} | {:.2} | {:.2} | {:.3} | {:.3} | {:.1} | {:.0} | {:.0} | {graph_bytes} |",
            found.exact_ms.p50,
            found.exact_ms.p99,
            found.graph_ms.p50,
            found.graph_ms.p99,
            found.graph_ms.p50 / found.exact_ms.p50,
            found.recall,
            found.build_seconds,
            documents as f64 / found.build_seconds,
            found.vector_bytes_per_document,
        )
        .and_then(|()| out.flush())
        .context("cannot write to stdout")?;
        all.push(found);
    }
    if let Some(file) = &args.json {
        write_json(file, &all)?;
    }
    Ok(Outcome::Done)
}

fn measure(args: &Args, documents: usize) -> anyhow::Result<Measured> {
    let m = args.dimensions;
    let made = MadeUp { seed: args.seed, m, clusters: documents.div_ceil(CLUSTER) };
    let mut rows = Rows::new(m);
    rows.reserve(documents);
    // Some at a time, so that the vectors are in memory once.
    for start in (0..documents).step_by(10_000) {
        let end = documents.min(start + 10_000);
        let vectors: Vec<Vec<f32>> = (start..end).into_par_iter().map(|i| made.document(i)).collect();
        for (i, vector) in (start..end).zip(vectors) {
            rows.push(i as i64 + 1, &format!("d{i}"), &vector, &Metadata::new());
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
    let (exact_ms, exact) = timed(&queries, |query| {
        Ok(search::exact(std::slice::from_ref(query), &rows, args.k, None).swap_remove(0))
    })?;
    let before = resident_megabytes();
    let measure = match args.form {
        FormArg::Gated => Measure::Gated,
        FormArg::Relu => Measure::Relu(v.into()),
    };
    let start = Instant::now();
    let mut graph = Graph::build(&rows, measure)?;
    let build_seconds = start.elapsed().as_secs_f64();
    if args.expansion > 0 {
        graph.set_expansion(args.expansion);
    }
    let graph_megabytes = before.zip(resident_megabytes()).map(|(before, after)| after - before);
    let (graph_ms, found) = timed(&queries, |query| {
        let candidates = graph.search(query, search::candidates(args.k, documents, documents), None)?;
        Ok(search::rescore(query, &rows, &candidates, args.k))
    })?;
    let hits: usize = exact
        .iter()
        .zip(&found)
        .map(|(exact, found)| exact.iter().filter(|s| found.contains(s)).count())
        .sum();
    Ok(Measured {
        documents,
        exact_ms,
        graph_ms,
        recall: hits as f64 / exact.iter().map(Vec::len).sum::<usize>().max(1) as f64,
        build_seconds,
        vector_bytes_per_document: rows.bytes() as f64 / documents as f64,
        graph_bytes_per_document: graph_megabytes.map(|megabytes| megabytes * 1e6 / documents as f64),
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
