//! `runtime doctor`: tells what works on this machine, a line for each thing, and what to do about the rest.

use super::place::{DatabaseArgs, place};
use crate::{Global, Outcome};
use anyhow::Context;
use runtime::bundle::Bundle;
use runtime::cpu;
use runtime::encoder::Encoder;
use runtime::index::{Graph, Measure};
use runtime::ingest;
use runtime::place::{Access, DatabaseUrl, Place};
use runtime::postgres;
use runtime::predictor::Predictor;
use runtime::reranker::Reranker;
use runtime::retriever::Options;
use runtime::search::EXACT_LIMIT;
use runtime::selftest::{self, Measured};
use runtime::session::{self, SessionOptions};
use runtime::store::Store;
use std::fmt::Display;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Check library, bundle and index on this machine
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Bundle directory, as written by `export --onnx`
    #[arg(long, value_name = "DIR")]
    bundle: PathBuf,
    /// Index directory, as written by `runtime index`
    #[arg(long, value_name = "DIR")]
    index: Option<PathBuf>,
    /// Index in a PostgreSQL database with pgvector: postgres://USER@HOST:PORT/DATABASE, the password in PGPASSWORD
    #[arg(long, value_name = "URL", conflicts_with = "index")]
    store: Option<DatabaseUrl>,
    #[command(flatten)]
    database: DatabaseArgs,
    /// Reranker's bundle, as written by `export --reranker`
    #[arg(long, value_name = "DIR")]
    reranker: Option<PathBuf>,
}

/// Lines of `pass` and `fail`.
struct Findings {
    failed: bool,
}

impl Findings {
    fn line(&mut self, passed: bool, what: &str, detail: impl Display) -> anyhow::Result<()> {
        self.failed |= !passed;
        let verdict = if passed { "pass" } else { "fail" };
        writeln!(io::stdout(), "{verdict}  {what:<12} {detail}").context("cannot write to stdout")
    }

    /// Passes a result on, and its error into a line.
    fn take<T, E: Display>(&mut self, what: &str, result: Result<T, E>) -> anyhow::Result<Option<T>> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error) => {
                self.line(false, what, error)?;
                Ok(None)
            }
        }
    }
}

/// What depends on something that failed is not tried.
pub fn run(args: &Args, global: &Global) -> anyhow::Result<Outcome> {
    let mut findings = Findings { failed: false };
    let options = Options { database: args.database.options()?, ..global.options() };
    let cores = cpu::physical_cores();
    findings.line(true, "processor", format!("{cores} physical cores, {}", cpu::features().join(" ")))?;
    let library = findings.take("onnxruntime", session::load(global.ort_dylib.as_deref()))?;
    if let Some(library) = &library {
        let needed = session::API_VERSION;
        let detail = format!("{}, version {} (1.{needed} needed)", library.path.display(), library.version);
        findings.line(true, "onnxruntime", detail)?;
    }
    let Some(bundle) = findings.take("bundle", Bundle::open(&args.bundle))? else {
        return Ok(Outcome::Failed);
    };
    let bundle = Arc::new(bundle);
    let manifest = &bundle.manifest;
    findings.line(
        true,
        "bundle",
        format!(
            "{}, all {} files as exported, {} layers {}, {} dimensions",
            bundle.dir.display(),
            manifest.digests.len(),
            manifest.encoder.layers,
            format!("{:?}", manifest.encoder.precision).to_lowercase(),
            manifest.predictor.inner_dimensions,
        ),
    )?;
    if library.is_some() {
        let encoder = findings.take("encoder", Encoder::open(Arc::clone(&bundle), &options.session))?;
        let predictor = findings.take("predictor", Predictor::open(&bundle, &options.session))?;
        if let Some(encoder) = &encoder {
            findings.line(true, "encoder", "inputs, outputs and sizes are those of manifest.json")?;
            check_golden(&mut findings, encoder, predictor.as_ref())?;
        }
    }
    if let (Some(dir), Some(_)) = (&args.reranker, &library) {
        check_reranker(&mut findings, dir, &options.session)?;
    }
    match place(args.index.as_ref(), args.store.as_ref()) {
        Some(Place::Directory(index)) => check_index(&mut findings, &bundle, &index)?,
        Some(Place::Database(url)) => check_database(&mut findings, &bundle, &url, &options)?,
        None => {}
    }
    Ok(if findings.failed { Outcome::Failed } else { Outcome::Done })
}

fn check_golden(
    findings: &mut Findings,
    encoder: &Encoder,
    predictor: Option<&Predictor>,
) -> anyhow::Result<()> {
    let measured = selftest::measure(encoder, predictor, usize::MAX);
    let Some(measured) = findings.take("golden", measured)? else { return Ok(()) };
    if measured.is_empty() {
        return findings.line(false, "golden", "manifest.json has no golden pairs; export again");
    }
    golden_lines(findings, measured)
}

fn check_reranker(findings: &mut Findings, dir: &Path, session: &SessionOptions) -> anyhow::Result<()> {
    let Some(reranker) = findings.take("reranker", Reranker::open(dir, session))? else { return Ok(()) };
    let manifest = reranker.manifest();
    let precision = format!("{:?}", manifest.precision).to_lowercase();
    let detail = format!("{}, all {} files as exported, {precision}", dir.display(), manifest.digests.len());
    findings.line(true, "reranker", detail)?;
    let measured = selftest::measure_reranker(&reranker, usize::MAX);
    let Some(measured) = findings.take("golden", measured)? else { return Ok(()) };
    if measured.is_empty() {
        let detail = "the reranker has no golden pairs: its model brought no numbers of its own";
        return findings.line(true, "golden", detail);
    }
    golden_lines(findings, measured)
}

fn golden_lines(findings: &mut Findings, measured: Vec<Measured>) -> anyhow::Result<()> {
    for pair in measured {
        let unfolded = pair.unfolded.map_or(String::new(), |score| format!(", unfolded {score:.4}"));
        let detail = format!(
            "{:?}: score {:.4}{unfolded}, exported as {:.4}",
            pair.golden.query, pair.folded, pair.golden.score
        );
        let way_out = "; try another ONNX Runtime library, or export again";
        findings.line(
            pair.passed,
            "golden",
            format!("{detail}{}", if pair.passed { "" } else { way_out }),
        )?;
    }
    Ok(())
}

fn check_database(
    findings: &mut Findings,
    bundle: &Bundle,
    url: &DatabaseUrl,
    options: &Options,
) -> anyhow::Result<()> {
    let opened = postgres::open(bundle, url, Access::Existing, options).and_then(|database| {
        let stats = database.stats()?;
        Ok((database.place(), stats))
    });
    let Some((place, stats)) = findings.take("index", opened)? else { return Ok(()) };
    let (documents, generation) = (stats.documents, stats.generation);
    findings.line(true, "index", format!("{place}, {documents} documents, generation {generation}"))?;
    let graph = match stats.graph_vectors {
        Some(vectors) => {
            format!("{vectors} vectors, asked above {EXACT_LIMIT} documents (`runtime check` measures it)")
        }
        None => "none: pgvector's take fewer dimensions; every document is scanned".to_owned(),
    };
    findings.line(true, "graph", graph)
}

fn check_index(findings: &mut Findings, bundle: &Bundle, dir: &Path) -> anyhow::Result<()> {
    let loaded = Store::open(dir, &ingest::index_key(bundle)).and_then(|store| {
        let (rows, generation) = store.load()?;
        for row in 0..rows.len() {
            store.document(rows.key(row))?;
        }
        Ok((rows, generation))
    });
    let Some((rows, generation)) = findings.take("index", loaded)? else { return Ok(()) };
    let number = generation.number;
    let digest = generation.digest.get(..12).unwrap_or("none");
    let detail =
        format!("{}, {} documents, generation {number} with digest {digest}", dir.display(), rows.len());
    findings.line(true, "index", detail)?;
    if rows.len() <= EXACT_LIMIT {
        return findings.line(true, "graph", format!("not needed up to {EXACT_LIMIT} documents"));
    }
    let opened = Graph::open(dir, rows.dimensions(), Measure::of_bundle(bundle));
    match opened {
        Ok((graph, of)) => {
            let behind = number.saturating_sub(of.number);
            let recall = graph.recall().map_or("not measured (`runtime check`)".to_owned(), |recall| {
                format!("{:.4} on {} queries", recall.share, recall.queries)
            });
            let detail = format!("{} vectors, {behind} generations behind, recall {recall}", graph.len());
            findings.line(true, "graph", detail)
        }
        Err(error) => findings.line(false, "graph", format!("{error}; the next query rebuilds it")),
    }
}
