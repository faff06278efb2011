//! The one training loop: rate, micro-batches, backward, clip, step, log, evaluate, save.
//!
//! Everything random is a function of (seed, step), and the state (parameters, moments, step) is one file written
//! atomically: a run that was killed continues with the same numbers.

use crate::optim::AdamW;
use crate::progress::Progress;
use crate::schedule::Schedule;
use anyhow::{Context, Result, bail};
use models::weights::{DType, Weights, write_safetensors};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

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
    /// Metrics on dev.
    fn evaluate(&mut self) -> Result<Metrics>;
    /// State of the task itself that a resumed run needs.
    fn save(&self) -> serde_json::Value {
        serde_json::Value::Null
    }
    /// Tensors that go with it.
    fn tensors(&self) -> Vec<(String, Tensor)> {
        Vec::new()
    }
    /// Puts back what [`Task::save`] and [`Task::tensors`] gave.
    fn restore(&mut self, _state: &serde_json::Value, _tensors: &Weights) -> Result<()> {
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
}

/// A finished or interrupted run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct History {
    /// One entry per step: loss, parts, lr, grad_norm.
    pub steps: Vec<Metrics>,
    /// One entry per evaluation, with its `step`.
    pub evaluations: Vec<Metrics>,
    /// False if `stop_after` ended it.
    pub complete: bool,
}

#[derive(Serialize, Deserialize)]
struct Saved {
    step: usize,
    settings: serde_json::Value,
    history: History,
    task: serde_json::Value,
}

/// Runs the loop to its last step.
pub fn fit(task: &mut dyn Task, adamw: &mut AdamW, config: &FitConfig, run: &RunState) -> Result<History> {
    let mut history = History { steps: Vec::new(), evaluations: Vec::new(), complete: false };
    let mut first = 0;
    if run.file.exists() {
        if !run.resume {
            bail!(
                "{}: state of an unfinished run; continue it with --resume or remove the file",
                run.file.display()
            );
        }
        (first, history) = restore(task, adamw, run)?;
        eprintln!("continuing after step {first}");
    }
    let mut progress = Progress::new(config.schedule.steps, first);
    for step in first..config.schedule.steps {
        tch::manual_seed((config.seed << 20) as i64 + step as i64);
        task.before_step(step)?;
        let metrics = one_step(task, adamw, config, step, &mut progress, run)?;
        history.steps.push(metrics);
        let done = step + 1;
        let last = done == config.schedule.steps;
        if last || (config.eval_every > 0 && done % config.eval_every == 0) {
            let mut metrics = task.evaluate()?;
            progress.evaluated(done, &metrics);
            metrics.insert("step".into(), done as f64);
            history.evaluations.push(metrics);
        }
        let stop = run.stop_after == Some(done) && !last;
        if stop || (config.save_every > 0 && done % config.save_every == 0 && !last) {
            save(task, adamw, &history, done, run)?;
        }
        if stop {
            progress.finish();
            return Ok(history);
        }
    }
    progress.finish();
    history.complete = true;
    Ok(history)
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
    Ok(metrics)
}

fn save(task: &dyn Task, adamw: &AdamW, history: &History, step: usize, run: &RunState) -> Result<()> {
    let saved = Saved { step, settings: run.settings.clone(), history: history.clone(), task: task.save() };
    let metadata = HashMap::from([("train_state".to_owned(), serde_json::to_string(&saved)?)]);
    let tensors = adamw.state().into_iter().chain(task.tensors()).collect();
    write_tensors(&run.file, tensors, DType::F32, metadata)
}

fn restore(task: &mut dyn Task, adamw: &mut AdamW, run: &RunState) -> Result<(usize, History)> {
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
    task.restore(&saved.task, &weights)?;
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
