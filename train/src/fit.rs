//! The one training loop: rate, micro-batches, backward, clip, step, log, evaluate, save.
//!
//! Everything random is a function of (seed, step), and the state (parameters, moments, step) is one file written
//! atomically: a run that was killed continues with the same numbers. Where dev is judged more than once, the parameters
//! that did best on it are what the run ends with.

use crate::optim::AdamW;
use crate::progress::Progress;
use crate::record::RunDir;
use crate::schedule::Schedule;
use anyhow::{Context, Result, bail};
use models::weights::{DType, Weights, write_safetensors};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

/// The dev metric that decides which parameters are best.
pub const CHOOSE_BY: &str = "MRR@10";

/// Named numbers of a step or an evaluation.
pub type Metrics = BTreeMap<String, f64>;

/// What one micro-batch gives.
pub struct MicroBatch {
    /// Scalar, with gradient.
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
    /// State of the task itself that a resumed run needs.
    fn save(&self) -> serde_json::Value {
        serde_json::Value::Null
    }
    /// Puts back what [`Task::save`] gave.
    fn restore(&mut self, _state: &serde_json::Value) -> Result<()> {
        Ok(())
    }
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

#[derive(Serialize, Deserialize)]
struct Saved {
    step: usize,
    settings: serde_json::Value,
    history: History,
    task: serde_json::Value,
    best: Option<(usize, f64)>,
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

/// Runs the loop to its last step.
pub fn fit(task: &mut dyn Task, adamw: &mut AdamW, config: &FitConfig, run: &RunState) -> Result<History> {
    let mut history =
        History { steps: Vec::new(), evaluations: Vec::new(), best_step: None, complete: false };
    let mut kept = Kept { average: (config.ema_decay > 0.0).then(|| adamw.snapshot()), best: None };
    let mut first = 0;
    if run.file.exists() {
        if !run.resume {
            bail!(
                "{}: state of an unfinished run; continue it with --resume or remove the file",
                run.file.display()
            );
        }
        (first, history) = restore(task, adamw, &mut kept, run)?;
        eprintln!("continuing after step {first}");
    }
    let mut recorder = run.records.recorder(run.settings, &history)?;
    let mut progress = Progress::new(config.schedule.steps, first);
    for step in first..config.schedule.steps {
        tch::manual_seed((config.seed << 20) as i64 + step as i64);
        task.before_step(step)?;
        let metrics = one_step(task, adamw, config, step, &mut progress, run)?;
        let done = step + 1;
        recorder.step(done, &metrics)?;
        history.steps.push(metrics);
        if let Some(average) = &mut kept.average {
            adamw.follow(average, config.ema_decay);
        }
        let mut last = done == config.schedule.steps;
        if last || (config.eval_every > 0 && done % config.eval_every == 0) {
            let mut metrics = evaluate(task, adamw, &mut kept, config, done)?;
            progress.evaluated(done, &metrics);
            recorder.evaluated(done, &metrics)?;
            metrics.insert("step".into(), done as f64);
            history.evaluations.push(metrics);
            if !last && kept.best.as_ref().is_some_and(|best| exhausted(config, best.0, done)) {
                eprintln!("no better {CHOOSE_BY} on dev in {} evaluations: stopping here", config.patience);
                last = true;
            }
        }
        let stop = run.stop_after == Some(done) && !last;
        if stop || (config.save_every > 0 && done % config.save_every == 0 && !last) {
            save(task, adamw, &kept, &history, done, run)?;
        }
        if stop {
            progress.finish();
            return Ok(history);
        }
        if last {
            break;
        }
    }
    progress.finish();
    if let Some((step, _, parameters)) = &kept.best {
        history.best_step = Some(*step);
        adamw.load(parameters);
    } else if let Some(average) = &kept.average {
        adamw.load(average);
    }
    history.complete = true;
    Ok(history)
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
        kept.best = Some((step, *value, adamw.snapshot()));
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
    progress: &mut Progress,
    run: &RunState,
) -> Result<Metrics> {
    adamw.zero_grad();
    let mut metrics = Metrics::new();
    let mut tokens = 0;
    let share = 1.0 / config.accumulate as f64;
    for micro in 0..config.accumulate {
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
        (batch.loss * share).backward();
        task.after_backward()?;
        tokens += batch.tokens;
        *metrics.entry("loss".into()).or_default() += loss * share;
        for (name, value) in batch.parts {
            *metrics.entry(name).or_default() += value * share;
        }
    }
    let norm = adamw.clip_grad_norm(config.max_grad_norm);
    if !norm.is_finite() {
        bail!("step {}: the gradient's length is {norm}; try a lower --lr or --dtype f32", step + 1);
    }
    let lr = config.schedule.lr_at(step);
    adamw.step(lr);
    progress.step(step + 1, &metrics, tokens);
    metrics.extend([("lr".to_owned(), lr), ("grad_norm".to_owned(), norm)]);
    if tokens > 0 {
        metrics.insert("tokens".into(), tokens as f64);
    }
    Ok(metrics)
}

fn save(
    task: &dyn Task,
    adamw: &AdamW,
    kept: &Kept,
    history: &History,
    step: usize,
    run: &RunState,
) -> Result<()> {
    let best = kept.best.as_ref().map(|(step, value, _)| (*step, *value));
    let saved =
        Saved { step, settings: run.settings.clone(), history: history.clone(), task: task.save(), best };
    let metadata = HashMap::from([("train_state".to_owned(), serde_json::to_string(&saved)?)]);
    let named = |what: &'static str, parameters: Option<&Snapshot>| {
        let named = parameters.into_iter().flatten();
        named
            .map(move |(name, tensor)| (format!("{what}.{name}"), tensor.shallow_clone()))
            .collect::<Vec<_>>()
    };
    let mut tensors = adamw.state();
    tensors.extend(named("best", kept.best.as_ref().map(|best| &best.2)));
    tensors.extend(named("average", kept.average.as_ref()));
    write_tensors(&run.file, tensors, DType::F32, metadata)
}

fn restore(
    task: &mut dyn Task,
    adamw: &mut AdamW,
    kept: &mut Kept,
    run: &RunState,
) -> Result<(usize, History)> {
    let file = &run.file;
    let weights = Weights::open_file(file)?;
    let text = weights
        .metadata("train_state")
        .with_context(|| format!("{}: holds no training state; remove it and start again", file.display()))?;
    let saved: Saved =
        serde_json::from_str(text).with_context(|| format!("{}: damaged training state", file.display()))?;
    if &saved.settings != run.settings {
        bail!(
            "{}: state of a run with other settings ({}); use the same, or remove the file and start again",
            file.display(),
            first_difference(&saved.settings, run.settings)
        );
    }
    adamw.restore(saved.step as u64, |name| read_tensor(&weights, name, Device::Cpu))?;
    let read = |what: &str| {
        let parameters = adamw.snapshot().into_iter().map(|(name, parameter)| {
            let tensor = read_tensor(&weights, &format!("{what}.{name}"), parameter.device())?;
            Ok((name, tensor))
        });
        parameters.collect::<Result<Snapshot>>()
    };
    if let Some((step, value)) = saved.best {
        kept.best = Some((step, value, read("best")?));
    }
    if kept.average.is_some() {
        kept.average = Some(read("average")?);
    }
    task.restore(&saved.task)?;
    Ok((saved.step, saved.history))
}

/// Names the first setting that differs, so that the user need not compare two files.
fn first_difference(saved: &serde_json::Value, now: &serde_json::Value) -> String {
    if let (Some(a), Some(b)) = (saved.as_object(), now.as_object()) {
        for key in a.keys().chain(b.keys()) {
            let (x, y) = (
                a.get(key).unwrap_or(&serde_json::Value::Null),
                b.get(key).unwrap_or(&serde_json::Value::Null),
            );
            if x != y {
                return if x.is_object() && y.is_object() {
                    first_difference(x, y)
                } else {
                    format!("`{key}` was {x}, is {y}")
                };
            }
        }
    }
    "shape of the settings".into()
}

/// Reads one tensor as f32.
pub fn read_tensor(weights: &Weights, name: &str, device: Device) -> Result<Tensor> {
    let (shape, values) = weights.f32(name)?;
    let shape: Vec<i64> = shape.iter().map(|n| *n as i64).collect();
    Ok(Tensor::from_slice(&values).reshape(shape).to_device(device))
}

/// Writes tensors to one safetensors file, atomically.
pub fn write_tensors(
    file: &Path,
    tensors: Vec<(String, Tensor)>,
    dtype: DType,
    metadata: HashMap<String, String>,
) -> Result<()> {
    let tensors = tensors.into_iter().map(|(name, tensor)| {
        let shape: Vec<usize> = tensor.size().iter().map(|n| *n as usize).collect();
        let flat = tensor.detach().to_device(Device::Cpu).to_kind(Kind::Float).contiguous().view(-1);
        let mut values = vec![0f32; flat.numel()];
        flat.copy_data(&mut values, flat.numel());
        (name, shape, values)
    });
    write_safetensors(file, tensors, dtype, metadata)?;
    Ok(())
}
