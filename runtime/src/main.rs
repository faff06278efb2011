//! The `runtime` program: parses, dispatches, prints the error chain. Data on stdout, talk on stderr; exit code 0 done,
//! 1 nothing found, 2 error.

mod commands;

use clap::{Parser, Subcommand};
use runtime::cpu::{self, Cpus};
use runtime::retriever::Options;
use runtime::selftest;
use runtime::session::{Provider, SessionOptions};
use runtime::vectors::Precision;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

/// Indexes documents and answers queries with an exported bundle
#[derive(Debug, Parser)]
#[command(name = "runtime", version, arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// What every command understands.
#[derive(Debug, clap::Args)]
pub struct Global {
    /// ONNX Runtime library; else ORT_DYLIB_PATH, beside this program, or .deps/onnxruntime/
    #[arg(long, global = true, value_name = "FILE")]
    ort_dylib: Option<PathBuf>,
    /// Threads for graphs and search; 0 = one for each physical core
    #[arg(long, global = true, value_name = "N", default_value_t = 0)]
    threads: usize,
    /// Run on these processors only, e.g. 0-1,4, and leave the others free
    #[arg(long, global = true, value_name = "LIST")]
    cpus: Option<Cpus>,
    /// Execution providers in order of preference, as far as the library has them; the CPU takes the rest
    #[arg(long, global = true, value_name = "PROVIDERS", value_delimiter = ',')]
    provider: Vec<Provider>,
    /// Let threads sleep instead of spin while they wait: leaves more CPU to other programs, slower
    #[arg(long, global = true)]
    no_spinning: bool,
    /// Return memory to the system after every run instead of keeping the peak of the largest: slower
    #[arg(long, global = true)]
    no_arena: bool,
    /// Encode the largest possible batch first, so that the peak of memory comes at the start
    #[arg(long, global = true)]
    warm_up: bool,
    /// How vectors are kept in memory and scanned; scores do not depend on it [default: f32 up to 20,000 documents, else int8]
    #[arg(long, global = true, value_name = "PRECISION")]
    vectors: Option<Precision>,
    /// Do not check at start that the bundle computes the same here as where it was exported
    #[arg(long, global = true)]
    skip_self_test: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    Index(commands::index::Args),
    Encode(commands::encode::Args),
    Query(commands::query::Args),
    Remove(commands::remove::Args),
    #[cfg(feature = "serve")]
    Serve(commands::serve::Args),
    Keygen(commands::keygen::Args),
    Snapshot(commands::snapshot::Args),
    Apply(commands::apply::Args),
    Stats(commands::stats::Args),
    Check(commands::check::Args),
    Doctor(commands::doctor::Args),
    Bench(commands::bench::Args),
}

/// What a command that ran to its end found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Exit code 0.
    Done,
    /// Exit code 1: an honest "nothing".
    Nothing,
    /// Exit code 2: the answer itself is bad news, and has been printed.
    Failed,
}

impl Global {
    /// Library options as they were typed.
    fn options(&self) -> Options {
        Options {
            session: SessionOptions {
                ort_dylib: self.ort_dylib.clone(),
                threads: self.threads,
                providers: self.provider.clone(),
                spinning: !self.no_spinning,
                arena: !self.no_arena,
                ..SessionOptions::default()
            },
            vectors: self.vectors,
            warm_up: self.warm_up,
            golden: if self.skip_self_test { 0 } else { selftest::QUICK },
            ..Options::default()
        }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // Before anything starts a thread.
    if let Some(Err(error)) = cli.global.cpus.as_ref().map(cpu::pin) {
        eprintln!("runtime: {error}");
        return ExitCode::from(2);
    }
    let threads = if cli.global.threads == 0 { cpu::physical_cores() } else { cli.global.threads };
    // Fails only if somebody has set it up before, which nobody has.
    let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    let result = match &cli.command {
        Command::Index(args) => commands::index::run(args, &cli.global),
        Command::Encode(args) => commands::encode::run(args, &cli.global),
        Command::Query(args) => commands::query::run(args, &cli.global),
        Command::Remove(args) => commands::remove::run(args, &cli.global),
        #[cfg(feature = "serve")]
        Command::Serve(args) => commands::serve::run(args, &cli.global),
        Command::Keygen(args) => commands::keygen::run(args, &cli.global),
        Command::Snapshot(args) => commands::snapshot::run(args, &cli.global),
        Command::Apply(args) => commands::apply::run(args, &cli.global),
        Command::Stats(args) => commands::stats::run(args, &cli.global),
        Command::Check(args) => commands::check::run(args, &cli.global),
        Command::Doctor(args) => commands::doctor::run(args, &cli.global),
        Command::Bench(args) => commands::bench::run(args, &cli.global),
    };
    match result {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Nothing) => ExitCode::from(1),
        Ok(Outcome::Failed) => ExitCode::from(2),
        // Whoever read our output has seen enough (`runtime query ... | head -1`).
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("runtime: {}", models::error::sentence(error.as_ref()));
            ExitCode::from(2)
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let kinds = error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>()).map(io::Error::kind);
    kinds.into_iter().any(|kind| kind == io::ErrorKind::BrokenPipe)
}
