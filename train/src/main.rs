//! Parse, dispatch, print the error chain. Exit code 0 done, 1 a check found something, 2 error.

use clap::{CommandFactory, Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;
use train::commands::{
    Outcome, ablate, bench, compare, data, distill, eval, generate, import, pack, significance, teacher,
};
use train::config_file;
use train::crash::caught;
use train::device::{DeviceArgs, keep_freed_memory};
use train::ranks::refuse_many;

/// Train a generative reranker (teacher) and distil it into a retriever (student)
///
/// LLM -> train import -> train teacher -> train distill -> export --onnx -> runtime
#[derive(Debug, Parser)]
#[command(name = "train", version)]
struct Cli {
    #[command(flatten)]
    device: DeviceArgs,
    /// Flags from a TOML file, with a table per command; what is typed wins
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Data(data::Args),
    Import(import::Args),
    Generate(generate::Args),
    Teacher(teacher::Args),
    Distill(distill::Args),
    Ablate(ablate::Args),
    Pack(pack::Args),
    Eval(eval::Args),
    Compare(compare::Args),
    Significance(significance::Args),
    Bench(bench::Args),
}

impl Command {
    /// Name of a command that cannot divide its work over processes.
    fn of_one_process(&self) -> Option<&'static str> {
        match self {
            Command::Teacher(_) | Command::Distill(_) => None,
            Command::Data(_) => Some("data"),
            Command::Import(_) => Some("import"),
            Command::Generate(_) => Some("generate"),
            Command::Ablate(_) => Some("ablate"),
            Command::Pack(_) => Some("pack"),
            Command::Eval(_) => Some("eval"),
            Command::Compare(_) => Some("compare"),
            Command::Significance(_) => Some("significance"),
            Command::Bench(_) => Some("bench"),
        }
    }
}

fn main() -> ExitCode {
    keep_freed_memory();
    let typed = match config_file::expand(std::env::args_os().collect(), &Cli::command()) {
        Ok(typed) => typed,
        Err(error) => {
            eprintln!("train: {}", models::error::sentence(error.as_ref()));
            return ExitCode::from(2);
        }
    };
    let cli = Cli::parse_from(typed);
    let done = |()| Outcome::Done;
    let result = caught(|| {
        if let Some(name) = cli.command.of_one_process() {
            refuse_many(name)?;
        }
        match &cli.command {
            Command::Data(args) => data::run(args),
            Command::Import(args) => import::run(args).map(done),
            Command::Generate(args) => generate::run(args, &cli.device).map(done),
            Command::Teacher(args) => teacher::run(args, &cli.device).map(done),
            Command::Distill(args) => distill::run(args, &cli.device).map(done),
            Command::Ablate(args) => ablate::run(args, &cli.device).map(done),
            Command::Pack(args) => pack::run(args).map(done),
            Command::Compare(args) => compare::run(args).map(done),
            Command::Bench(args) => bench::run(args, &cli.device).map(done),
            Command::Eval(args) => eval::run(args, &cli.device).map(done),
            Command::Significance(args) => significance::run(args).map(done),
        }
    });
    match result {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Found) => ExitCode::from(1),
        Err(error) => {
            eprintln!("train: {}", models::error::sentence(error.as_ref()));
            ExitCode::from(2)
        }
    }
}
