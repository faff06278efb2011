//! The one training loop: rate, micro-batches, backward, clip, step, log, evaluate, save.
//!
//! Everything random is a function of (seed, step), and the state (parameters, moments, step) is one file written
//! atomically: a run that was killed continues with the same numbers. Where dev is judged more than once, the parameters
//! that did best on it are what the run ends with.
//!
//! On many processes each takes every n-th micro-batch of a step. Gradients are summed, and the loss of every micro-batch is
//! what it would be in one process, so that the run is the same whatever their number; process 0 writes and reports.

mod state;

pub use state::{first_difference, read_tensor, write_tensors};

use crate::optim::AdamW;
use crate::progress::Progress;
use crate::ranks::Ranks;
use crate::record::RunDir;
use crate::schedule::Schedule;
use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use state::{restore, save};
use std::collections::BTreeMap;
use std::path::PathBuf;
use tch::Tensor;

/// The dev metric that decides which parameters are best.
pub const CHOOSE_BY: &str = "MRR@10";

/// Named numbers of a step or an evaluation.
pub type Metrics = BTreeMap<String, f64>;

/// What one micro-batch gives.
pub struct MicroBatch {
    /// Scalar; without a gradient where that has gone backward already.
    pub loss: Tensor,
    /// The loss's parts, for the log.
    pub parts: Metrics,
    /// Tokens that went through the model.
    pub tokens: usize,
    /// Ids of the queries in it: named when the loss is not a number.
    pub ids: Vec<String>,
}

/// What is trained: gives losses, judges itself.
pub trait Task {
    /// Loss of micro-batch `micro` of `step`; called again with the same numbers it gives the same loss.
    fn micro_batch(&mut self, step: usize, micro: usize) -> Result<MicroBatch>;
    /// Before `step`'s first micro-batch.
    fn before_step(&mut self, _step: usize) -> Result<()> {
        Ok(())
    }
    /// After the micro-batch's loss went backward: what is left to do for its gradient.
    fn after_backward(&mut self) -> Result<()> {
        Ok(())
    }
    /// Metrics on dev.
    fn evaluate(&mut self) -> Result<Metrics>;
    /// Tokens a second of the last step's parts, by name: for the records, no part of the run's history.
    fn rates(&self) -> Metrics {
        Metrics::new()
    }
    /// State of the task itself that a resumed run needs.
    fn save(&self) -> Result<serde_json::Value> {
        Ok(serde_json::Value::Null)
    }
    /// Puts back what [`Task::save`] gave.
    fn restore(&mut self, _state: &serde_json::Value) -> Result<()> {
        Ok(())
    }
}

/// What is seen of a micro-batch; the numbers as bits, which every text holds exactly.
#[derive(Serialize, Deserialize)]
struct Seen {
    loss: u64,
    parts: Vec<(String, u64)>,
    tokens: usize,
}

/// Settings of the loop.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FitConfig {
    /// Learning rate.
    pub schedule: Schedule,
    /// Micro-batches per step.
    pub accumulate: usize,
    /// Longest joint gradient.
    pub max_grad_norm: f64,
    /// Evaluate every so many steps and after the last; 0 = only after the last.
    pub eval_every: usize,
    /// Stop when so many evaluations in a row bring nothing better; 0 = never.
    pub patience: usize,
    /// Judge and keep a running average of the parameters, which moves by 1 - this at each step; 0 = the parameters.
    pub ema_decay: f64,
    /// Save the state every so many steps; 0 = never.
    pub save_every: usize,
    /// Seed of everything random.
    pub seed: u64,
}

/// Where a run keeps its state, and what it must agree with to be continued.
pub struct RunState<'a> {
    /// File of the state.
    pub file: PathBuf,
    /// Continue from the file if it is there.
    pub resume: bool,
    /// Stop after this step, leaving the state (time-limited jobs).
    pub stop_after: Option<usize>,
    /// Resolved settings and digests; a state of other settings is refused.
    pub settings: &'a serde_json::Value,
    /// Where to record what is seen of it.
    pub records: RunDir,
}

/// A finished or interrupted run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct History {
    /// One entry per step: loss, parts, lr, grad_norm, tokens.
    pub steps: Vec<Metrics>,
    /// One entry per evaluation, with its `step`.
    pub evaluations: Vec<Metrics>,
    /// Step whose parameters were kept, where dev was judged more than once.
    pub best_step: Option<usize>,
    /// False if `stop_after` ended it.
    pub complete: bool,
}

/// Parameters by name.
type Snapshot = Vec<(String, Tensor)>;

/// Parameters other than the current ones that a run remembers.
#[derive(Default)]
struct Kept {
    /// Step, metric and parameters that did best on dev.
    best: Option<(usize, f64, Snapshot)>,
    /// Running average.
    average: Option<Snapshot>,
}

/// Runs the loop to its last step, on all processes of the run; only process 0 ends with the best parameters.
pub fn fit(
    task: &mut dyn Task,
    adamw: &mut AdamW,
    config: &FitConfig,
    run: &RunState,
    ranks: &Ranks,
) -> Result<History> {
    adamw.begin_together(ranks)?;
    let mut history =
        History { steps: Vec::new(), evaluations: Vec::new(), best_step: None, complete: false };
    let mut kept = Kept { average: (config.ema_decay > 0.0).then(|| adamw.snapshot()), best: None };
    let mut first = 0;
    if let Some((step, restored)) = restore(task, adamw, &mut kept, run, ranks)? {
        (first, history) = (step, restored);
        if ranks.is_first() {
            eprintln!("continuing after step {first}");
        }
    }
    let mut recorder = ranks.is_first().then(|| run.records.recorder(run.settings, &history)).transpose()?;
    let mut progress = ranks.is_first().then(|| Progress::new(config.schedule.steps, first));
    for step in first..config.schedule.steps {
        tch::manual_seed(seed_of(config.seed, step, 0));
        task.before_step(step)?;
        let metrics = one_step(task, adamw, config, step, &mut progress, run, ranks)?;
        let done = step + 1;
        if let Some(recorder) = &mut recorder {
            recorder.step(done, &metrics, &task.rates())?;
        }
        history.steps.push(metrics);
        if let Some(average) = &mut kept.average {
            adamw.follow(average, config.ema_decay);
        }
        let mut last = done == config.schedule.steps;
        if last || (config.eval_every > 0 && done % config.eval_every == 0) {
            let mut metrics = evaluate(task, adamw, &mut kept, config, done, ranks)?;
            if let (Some(progress), Some(recorder)) = (&progress, &mut recorder) {
                progress.evaluated(done, &metrics);
                recorder.evaluated(done, &metrics)?;
            }
            metrics.insert("step".into(), done as f64);
            history.evaluations.push(metrics);
            if !last && kept.best.as_ref().is_some_and(|best| exhausted(config, best.0, done)) {
                if ranks.is_first() {
                    eprintln!(
                        "no better {CHOOSE_BY} on dev in {} evaluations: stopping here",
                        config.patience
                    );
                }
                last = true;
            }
        }
        let stop = run.stop_after == Some(done) && !last;
        if stop || (config.save_every > 0 && done % config.save_every == 0 && !last) {
            save(task, adamw, &kept, &history, done, run, ranks)?;
        }
        if stop {
            progress.iter().for_each(Progress::finish);
            return Ok(history);
        }
        if last {
            break;
        }
    }
    progress.iter().for_each(Progress::finish);
    if let Some((step, _, parameters)) = &kept.best {
        history.best_step = Some(*step);
        adamw.load(parameters);
    } else if let Some(average) = &kept.average {
        adamw.load(average);
    }
    history.complete = true;
    Ok(history)
}

/// Seed of what is random in a micro-batch: the same whichever process has it.
fn seed_of(seed: u64, step: usize, micro: usize) -> i64 {
    ((seed << 20) as i64).wrapping_add(step as i64).wrapping_add((micro as i64) << 50)
}

/// Whether the last `patience` evaluations brought nothing.
fn exhausted(config: &FitConfig, best_step: usize, done: usize) -> bool {
    config.patience > 0 && done >= best_step + config.patience * config.eval_every
}

/// Judges the average where there is one, and remembers the best.
fn evaluate(
    task: &mut dyn Task,
    adamw: &mut AdamW,
    kept: &mut Kept,
    config: &FitConfig,
    step: usize,
    ranks: &Ranks,
) -> Result<Metrics> {
    let current = kept.average.as_ref().map(|average| {
        let current = adamw.snapshot();
        adamw.load(average);
        current
    });
    let metrics = task.evaluate();
    // With one evaluation there is nothing to choose from, and a copy of a whole LLM is not held for it.
    if let Ok(metrics) = &metrics
        && config.eval_every > 0
        && let Some(value) = metrics.get(CHOOSE_BY)
        && kept.best.as_ref().is_none_or(|best| *value > best.1)
    {
        let parameters = if ranks.is_first() { adamw.snapshot() } else { Snapshot::new() };
        kept.best = Some((step, *value, parameters));
    }
    if let Some(current) = current {
        adamw.load(&current);
    }
    metrics
}

fn one_step(
    task: &mut dyn Task,
    adamw: &mut AdamW,
    config: &FitConfig,
    step: usize,
    progress: &mut Option<Progress>,
    run: &RunState,
    ranks: &Ranks,
) -> Result<Metrics> {
    adamw.zero_grad();
    let mine = (ranks.rank()..config.accumulate).step_by(ranks.size());
    let mine = mine.map(|micro| micro_batch(task, config, step, micro, run)).collect::<Result<Vec<Seen>>>();
    let all = ranks.exchange(&format!("step {}", step + 1), mine)?;
    adamw.collect_gradients(ranks)?;
    let mut metrics = Metrics::new();
    let mut tokens = 0;
    let share = 1.0 / config.accumulate as f64;
    for micro in 0..config.accumulate {
        let seen = &all[micro % ranks.size()][micro / ranks.size()];
        tokens += seen.tokens;
        *metrics.entry("loss".into()).or_default() += f64::from_bits(seen.loss) * share;
        for (name, value) in &seen.parts {
            *metrics.entry(name.clone()).or_default() += f64::from_bits(*value) * share;
        }
    }
    let norm = adamw.clip_grad_norm(config.max_grad_norm, ranks)?;
    if !norm.is_finite() {
        bail!("step {}: the gradient's length is {norm}; try a lower --lr or --dtype f32", step + 1);
    }
    let lr = config.schedule.lr_at(step);
    adamw.step(lr);
    adamw.share_parameters(ranks)?;
    if let Some(progress) = progress {
        progress.step(step + 1, &metrics, tokens);
    }
    metrics.extend([("lr".to_owned(), lr), ("grad_norm".to_owned(), norm)]);
    if tokens > 0 {
        metrics.insert("tokens".into(), tokens as f64);
    }
    Ok(metrics)
}

/// Forward and backward of one micro-batch.
fn micro_batch(
    task: &mut dyn Task,
    config: &FitConfig,
    step: usize,
    micro: usize,
    run: &RunState,
) -> Result<Seen> {
    if micro > 0 {
        tch::manual_seed(seed_of(config.seed, step, micro));
    }
    let batch = task.micro_batch(step, micro)?;
    let loss = batch.loss.double_value(&[]);
    if !loss.is_finite() {
        let saved = if run.file.exists() { run.file.display().to_string() } else { "none yet".into() };
        bail!(
            "step {}: the loss is {loss} on queries {}; last saved state: {saved}; try a lower --lr or --dtype f32",
            step + 1,
            batch.ids.join(", ")
        );
    }
    if batch.loss.requires_grad() {
        (batch.loss * (1.0 / config.accumulate as f64)).backward();
    }
    task.after_backward()?;
    let parts = batch.parts.into_iter().map(|(name, value)| (name, value.to_bits())).collect();
    Ok(Seen { loss: loss.to_bits(), parts, tokens: batch.tokens })
}
