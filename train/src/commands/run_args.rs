//! Flags that every training command has.

use crate::data_sets::{DataArg, DataSets, Splits};
use crate::fit::{FitConfig, RunState};
use crate::ranks::Ranks;
use crate::record::RunDir;
use crate::sampling::TrainDocuments;
use crate::schedule::{Decay, Schedule};
use anyhow::{Context, Result, bail};
use clap::Args as ClapArgs;
use std::path::{Path, PathBuf};

/// Data, output, and how a run goes on.
#[derive(Debug, ClapArgs)]
pub struct RunArgs {
    /// Data set in BEIR layout; several are trained on together, each query of DIR=WEIGHT seen WEIGHT times as often
    #[arg(long, value_name = "DIR[=WEIGHT]", required = true)]
    pub data: Vec<DataArg>,
    /// Directory to create
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Split to train on
    #[arg(long, default_value = "train")]
    pub split: String,
    /// Splits to evaluate on while training; their metrics are averaged
    #[arg(long, value_delimiter = ',', default_value = "dev")]
    pub dev_split: Vec<String>,
    /// Documents that take part: judged in the training split, or the whole corpus
    #[arg(long, value_enum, default_value = "judged")]
    pub documents: TrainDocuments,
    /// Most training queries of each data set, drawn by --seed [default: all]
    #[arg(long, value_name = "QUERIES", value_parser = clap::value_parser!(u32).range(1..))]
    pub train_queries: Option<u32>,
    /// Most queries that a data set's share of the run is counted by, so that a huge one does not crowd out the others; all
    /// of its queries are seen, but less often [default: no cap]
    #[arg(long, value_name = "QUERIES", value_parser = clap::value_parser!(u32).range(1..))]
    pub cap: Option<u32>,
    /// Gradient clipping: a larger norm is scaled down to this
    #[arg(long, default_value_t = 1.0)]
    pub max_grad_norm: f64,
    /// Stop when so many evaluations in a row do not improve MRR@10 on dev; 0 = never
    #[arg(long, default_value_t = 0)]
    pub patience: usize,
    /// Keep a running average of the parameters that moves by 1 - this at each step; 0 = the parameters themselves
    #[arg(long, default_value_t = 0.0)]
    pub ema_decay: f64,
    /// Continue an interrupted run of the same settings
    #[arg(long)]
    pub resume: bool,
    /// Stop after this step and leave the state for --resume
    #[arg(long, value_name = "STEP")]
    pub stop_after: Option<usize>,
    /// Seed of everything random
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// On many processes (torchrun): how long one waits for another before it gives up and names it
    #[arg(long, value_name = "SECONDS", default_value_t = 1800)]
    pub rank_timeout: u64,
}

/// What the commands differ in.
pub struct Pace {
    /// Learning rate over the run.
    pub schedule: Schedule,
    /// Micro-batches per step.
    pub accumulate: usize,
    /// See [`FitConfig::eval_every`].
    pub eval_every: usize,
    /// See [`FitConfig::save_every`].
    pub save_every: usize,
}

impl RunArgs {
    /// Opens the data.
    pub fn open_data(&self) -> Result<DataSets> {
        let splits = Splits {
            train: &self.split,
            dev: &self.dev_split,
            documents: self.documents,
            cap: self.cap.map(|cap| cap as usize),
            queries: self.train_queries.map(|most| (most as usize, self.seed)),
        };
        DataSets::open(&self.data, &splits)
    }

    /// Settings of the loop.
    pub fn fit_config(&self, pace: Pace) -> Result<FitConfig> {
        if !(0.0..1.0).contains(&self.ema_decay) {
            bail!("--ema-decay is {}, expected 0 up to, not including, 1", self.ema_decay);
        }
        if self.patience > 0 && pace.eval_every == 0 {
            bail!("--patience {} needs evaluations to be patient about: give --eval-every", self.patience);
        }
        if self.max_grad_norm <= 0.0 {
            bail!("--max-grad-norm is {}, expected a number above 0", self.max_grad_norm);
        }
        Ok(FitConfig {
            schedule: pace.schedule,
            accumulate: pace.accumulate,
            max_grad_norm: self.max_grad_norm,
            eval_every: pace.eval_every,
            patience: self.patience,
            ema_decay: self.ema_decay,
            save_every: pace.save_every,
            seed: self.seed,
        })
    }

    /// Where the run keeps its state. What torchrun has started again goes on from there without being asked.
    pub fn state<'a>(&self, settings: &'a serde_json::Value, ranks: &Ranks) -> RunState<'a> {
        RunState {
            file: state_file(&self.out),
            resume: self.resume || ranks.restarted(),
            stop_after: self.stop_after,
            settings,
            records: self.records(),
        }
    }

    /// Where the run is recorded while it goes on.
    pub fn records(&self) -> RunDir {
        RunDir::beside(&self.out)
    }

    /// Removes state and records of a finished run, which are in its output now.
    pub fn remove_state(&self) -> Result<()> {
        let file = state_file(&self.out);
        if file.exists() {
            std::fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
        }
        self.records().remove()
    }

    /// Directory beside the output in which numbers that are expensive to make are kept.
    pub fn cache_beside(&self) -> PathBuf {
        beside(&self.out, "cache")
    }
}

/// State of an unfinished run, beside its output.
fn state_file(out: &Path) -> PathBuf {
    beside(out, "state.safetensors")
}

fn beside(out: &Path, extension: &str) -> PathBuf {
    let name = out.file_name().unwrap_or_default().to_string_lossy();
    out.with_file_name(format!("{name}.{extension}"))
}

/// A schedule as the commands ask for it.
pub fn schedule(peak: f64, warmup: usize, steps: usize, decay: Decay) -> Schedule {
    Schedule { peak, warmup, steps, decay }
}
