//! `export --onnx --student DIR --out BUNDLE` (or `--reranker DIR`): prints the bundle's path; progress and errors go to stderr,
//! exit status 2 on error.

use anyhow::{Context, bail};
use clap::{Parser, ValueEnum};
use export::bundle::options::{MixedPrecision, Options};
use export::bundle::reranker::RerankerOptions;
use export::bundle::{reranker, student};
use export::quantise::mixed::MixedLayers;
use export::verify::ranking::RankingData;
use models::files::StagedDir;
use models::manifest::{GraphKind, Precision};
use models::pretrained::{self, Pretrained};
use runtime::session::SessionOptions;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Export a student (or a teacher, as a reranker) as an ONNX bundle for `runtime`
#[derive(Debug, Parser)]
#[command(name = "export", version)]
struct Args {
    /// Write ONNX graphs (required; so far the only format)
    #[arg(long, required = true)]
    onnx: bool,
    /// Student directory, as written by `train distill`
    #[arg(long, value_name = "DIR", required_unless_present = "reranker", conflicts_with = "reranker")]
    student: Option<PathBuf>,
    /// LLM that a pretrained student (a folder of models/pretrained/) belongs to: a model directory, as written by `train
    /// import`, or the .gguf file
    #[arg(long, value_name = "PATH", requires = "student")]
    llm: Option<PathBuf>,
    /// Teacher directory, as written by `train teacher` (or any imported LLM), to export instead of a student, for `runtime query
    /// --reranker`
    #[arg(long, value_name = "DIR", conflicts_with_all = ["calibrate", "verify"])]
    reranker: Option<PathBuf>,
    /// Bundle directory to create
    #[arg(long, value_name = "BUNDLE")]
    out: PathBuf,
    /// Precision of the encoder's weights and activations
    #[arg(long, value_enum, default_value_t = PrecisionArg::Fp32)]
    precision: PrecisionArg,
    /// Operators that the graph may use
    #[arg(long, value_enum, default_value_t = GraphArg::Fused)]
    graph: GraphArg,
    /// Data set in BEIR layout for calibrating int8 or int4 (takes minutes): by the activations of its texts GPTQ rounds the
    /// weights and, for int8, SmoothQuant scales outlier channels; by its dev queries the layers with a higher precision are
    /// chosen
    #[arg(long, value_name = "DIR")]
    calibrate: Option<PathBuf>,
    /// Layers with a higher precision than the others, counted from 0: `0,1,7:fp32` gives layers 0 and 1 int8 in blocks (in a
    /// portable graph fp32) and layer 7 fp32; `none` gives no layer a higher precision [default: with --calibrate, as few layers
    /// as keep the ranking]
    #[arg(
        long,
        alias = "keep-layers",
        value_name = "LAYERS",
        conflicts_with = "reranker",
        value_parser = mixed_precision
    )]
    mixed_precision: Option<MixedPrecision>,
    /// Data set in BEIR layout on which the ranking must agree with that of the fp32 bundle: top-1 agreement of at least 99 %
    /// (fp16), 98 % (int8) or 95 % (int4), and nDCG@10 within 0.002, 0.005 or 0.01
    #[arg(long, value_name = "DIR")]
    verify: Option<PathBuf>,
    /// Split of --verify
    #[arg(long, default_value = "dev", requires = "verify")]
    split: String,
    /// Maximum number of queries of --verify; 0 = all
    #[arg(long, default_value_t = 0, requires = "verify")]
    queries: usize,
    /// Write the bundle even if it differs from the student by more than the limits (the manifest lists which)
    #[arg(long)]
    allow_degraded: bool,
    /// ONNX Runtime library to check the bundle with [default: found as `runtime` finds it]
    #[arg(long, value_name = "FILE")]
    ort_dylib: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum PrecisionArg {
    /// 32-bit floats: the reference
    Fp32,
    /// 16-bit floats throughout: for GPUs
    Fp16,
    /// 8-bit weights with a scale per output channel, activations quantised at run time: the fastest on CPUs
    Int8,
    /// 4-bit weights in blocks of 32: the smallest
    Int4,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum GraphArg {
    /// ONNX Runtime's own operators too: the fastest in ONNX Runtime
    Fused,
    /// Only operators of the ONNX standard: for other engines, and for batches
    Portable,
}

fn mixed_precision(text: &str) -> Result<MixedPrecision, String> {
    let mixed = MixedLayers::parse(text).map(MixedPrecision::Layers);
    mixed.ok_or_else(|| {
        "expected `none` or layer numbers separated by commas, each with `:fp32` after it if the layer is to be in fp32".into()
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

/// The whole student of a pretrained folder, in a directory beside `out` that goes away with the value; none where `student` is
/// a whole one.
fn assembled(student: &Path, llm: Option<&Path>, out: &Path) -> anyhow::Result<Option<StagedDir>> {
    match (Pretrained::is_one(student), llm) {
        (false, None) => Ok(None),
        (false, Some(_)) => bail!("--llm is for pretrained students, and this one brings its LLM along"),
        (true, None) => {
            let name = Pretrained::open(student)?.base.name;
            bail!("a pretrained student, which comes without its LLM; give {name} with --llm")
        }
        (true, Some(llm)) => {
            if !student.join(models::student::FILE_NAME).is_file() {
                bail!("a pretrained teacher, not a student; import it with `train import` and distil it");
            }
            let name = out.file_name().unwrap_or_default().to_string_lossy();
            let staged = StagedDir::new(&out.with_file_name(format!("{name}.student")))?;
            pretrained::assemble(student, llm, staged.path())?;
            Ok(Some(staged))
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
    let mut progress = |line: &str| eprintln!("{line}");
    if let Some(teacher) = args.reranker {
        let options =
            RerankerOptions { teacher, out: out.clone(), precision, graph, allow_degraded, session };
        reranker::export(&options, &mut progress)
            .with_context(|| format!("cannot export {}", options.teacher.display()))?;
    } else {
        let student = args.student.context("--student or --reranker is required")?;
        let assembled = assembled(&student, args.llm.as_deref(), &out)
            .with_context(|| format!("cannot export {}", student.display()))?;
        let data = |dir| RankingData { dir, split: args.split, queries: args.queries };
        let options = Options {
            student: assembled.as_ref().map_or(student.clone(), |staged| staged.path().to_owned()),
            out: out.clone(),
            precision,
            graph,
            allow_degraded,
            calibration: args.calibrate,
            mixed_precision: args.mixed_precision.unwrap_or_default(),
            ranking: args.verify.map(data),
            session,
        };
        student::export(&options, &mut progress)
            .with_context(|| format!("cannot export {}", student.display()))?;
    }
    println!("{}", out.display());
    Ok(())
}
