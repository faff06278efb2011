//! `export --onnx --student DIR --out BUNDLE` (or `--reranker DIR`): prints the bundle's path; talk and errors go to stderr, exit 2 on error.

use anyhow::Context;
use clap::{Parser, ValueEnum};
use export::bundle::{self, KeepLayers, Options};
use export::keep::KeptLayers;
use export::ranking::RankingData;
use export::reranker::{self, RerankerOptions};
use models::manifest::{GraphKind, Precision};
use runtime::session::SessionOptions;
use std::path::PathBuf;
use std::process::ExitCode;

/// Write a student (or a teacher, as a reranker) down as an ONNX bundle, ready for `runtime`
#[derive(Debug, Parser)]
#[command(name = "export", version)]
struct Args {
    /// Format to write: ONNX graphs in a bundle directory (so far the only format)
    #[arg(long, required = true)]
    onnx: bool,
    /// Student directory, as written by `train distill`
    #[arg(long, value_name = "DIR", required_unless_present = "reranker", conflicts_with = "reranker")]
    student: Option<PathBuf>,
    /// Instead of a student: a teacher, as written by `train teacher` (or any imported LLM), for `runtime query --reranker`
    #[arg(long, value_name = "DIR", conflicts_with_all = ["calibrate", "verify"])]
    reranker: Option<PathBuf>,
    /// Bundle directory to create
    #[arg(long, value_name = "BUNDLE")]
    out: PathBuf,
    /// Arithmetic of the encoder
    #[arg(long, value_enum, default_value_t = PrecisionArg::Fp32)]
    precision: PrecisionArg,
    /// Operators of the encoder
    #[arg(long, value_enum, default_value_t = GraphArg::Fused)]
    graph: GraphArg,
    /// Data set in BEIR layout whose texts decide how int8 and int4 weights are rounded (GPTQ) and, in int8, which neurons are
    /// divided, and whose dev queries decide which layers get more bits (minutes)
    #[arg(long, value_name = "DIR")]
    calibrate: Option<PathBuf>,
    /// Layers that get more bits, counted from 0: `0,1,7:fp32` has 8 bits in blocks in two and fp32 in one; or `none`
    /// [default: with --calibrate as few as hold the ranking]
    #[arg(long, value_name = "LAYERS", conflicts_with = "reranker", value_parser = keep_layers)]
    keep_layers: Option<KeepLayers>,
    /// Data set in BEIR layout on which the ranking is held to that of the fp32 bundle
    #[arg(long, value_name = "DIR")]
    verify: Option<PathBuf>,
    /// Split of --verify
    #[arg(long, default_value = "dev", requires = "verify")]
    split: String,
    /// Most queries of --verify; 0 = all
    #[arg(long, default_value_t = 0, requires = "verify")]
    queries: usize,
    /// Write the bundle even where it differs from the student by more than the limits (the manifest says so)
    #[arg(long)]
    allow_degraded: bool,
    /// ONNX Runtime library that proves the bundle [default: searched for as `runtime` does]
    #[arg(long, value_name = "FILE")]
    ort_dylib: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum PrecisionArg {
    /// 32-bit floats: the reference
    Fp32,
    /// 16-bit floats throughout: for GPUs
    Fp16,
    /// 8-bit weights per output channel, activations quantised at run time: the fastest on CPUs
    Int8,
    /// 4-bit weights in blocks of 32: the smallest
    Int4,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum GraphArg {
    /// ONNX Runtime's own operators too: the fastest there
    Fused,
    /// The ONNX standard's operators only: for other engines, and for batches
    Portable,
}

fn keep_layers(text: &str) -> Result<KeepLayers, String> {
    let kept = KeptLayers::parse(text).map(KeepLayers::These);
    kept.ok_or_else(|| {
        "expected layer numbers with commas between them, `:fp32` behind those, or `none`".into()
    })
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("export: {}", models::error::sentence(error.as_ref()));
            ExitCode::from(2)
        }
    }
}

fn run(args: Args) -> anyhow::Result<()> {
    let precision = match args.precision {
        PrecisionArg::Fp32 => Precision::Fp32,
        PrecisionArg::Fp16 => Precision::Fp16,
        PrecisionArg::Int8 => Precision::Int8,
        PrecisionArg::Int4 => Precision::Int4,
    };
    let graph = match args.graph {
        GraphArg::Fused => GraphKind::Fused,
        GraphArg::Portable => GraphKind::Portable,
    };
    let session = SessionOptions { ort_dylib: args.ort_dylib, ..SessionOptions::default() };
    let (out, allow_degraded) = (args.out, args.allow_degraded);
    let mut say = |line: &str| eprintln!("{line}");
    if let Some(teacher) = args.reranker {
        let options =
            RerankerOptions { teacher, out: out.clone(), precision, graph, allow_degraded, session };
        reranker::export(&options, &mut say)
            .with_context(|| format!("cannot export {}", options.teacher.display()))?;
    } else {
        let student = args.student.context("--student or --reranker is needed")?;
        let data = |dir| RankingData { dir, split: args.split, queries: args.queries };
        let options = Options {
            student,
            out: out.clone(),
            precision,
            graph,
            allow_degraded,
            calibration: args.calibrate,
            keep: args.keep_layers.unwrap_or_default(),
            ranking: args.verify.map(data),
            session,
        };
        bundle::export(&options, &mut say)
            .with_context(|| format!("cannot export {}", options.student.display()))?;
    }
    println!("{}", out.display());
    Ok(())
}
