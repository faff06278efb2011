//! The state of an unfinished run: one file, written by process 0 and the same whatever the number of processes.

use super::{History, Kept, RunState, Snapshot, Task};
use crate::optim::AdamW;
use crate::ranks::Ranks;
use anyhow::{Context, Result, bail};
use models::weights::{DType, Weights, write_safetensors};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::Path;
use tch::{Device, Kind, Tensor};

#[derive(Serialize, Deserialize)]
struct Saved {
    step: usize,
    settings: serde_json::Value,
    history: History,
    task: serde_json::Value,
    best: Option<(usize, f64)>,
}

/// Writes the state; all processes take part.
pub(super) fn save(
    task: &dyn Task,
    adamw: &AdamW,
    kept: &Kept,
    history: &History,
    step: usize,
    run: &RunState,
    ranks: &Ranks,
) -> Result<()> {
    let mut tensors = adamw.state(ranks)?;
    if !ranks.is_first() {
        return Ok(());
    }
    let best = kept.best.as_ref().map(|(step, value, _)| (*step, *value));
    let (settings, history, task) = (run.settings.clone(), history.clone(), task.save()?);
    let saved = Saved { step, settings, history, task, best };
    let metadata = HashMap::from([("train_state".to_owned(), serde_json::to_string(&saved)?)]);
    let named = |what: &'static str, parameters: Option<&Snapshot>| {
        let named = parameters.into_iter().flatten();
        named
            .map(move |(name, tensor)| (format!("{what}.{name}"), tensor.shallow_clone()))
            .collect::<Vec<_>>()
    };
    tensors.extend(named("best", kept.best.as_ref().map(|best| &best.2)));
    tensors.extend(named("average", kept.average.as_ref()));
    write_tensors(&run.file, tensors, DType::F32, metadata)
}

/// Puts back the saved state where there is one: process 0 reads it, the others hear it from there.
pub(super) fn restore(
    task: &mut dyn Task,
    adamw: &mut AdamW,
    kept: &mut Kept,
    run: &RunState,
    ranks: &Ranks,
) -> Result<Option<(usize, History)>> {
    let mut weights = None;
    let found = ranks.from_first("looking for a saved state", || {
        if !run.file.exists() {
            return Ok(None);
        }
        let (opened, saved) = open_state(run)?;
        weights = Some(opened);
        Ok(Some(saved))
    })?;
    let Some(saved) = found else { return Ok(None) };
    let read = |name: &str, like: &Tensor| -> Result<Tensor> {
        let mut tensor = match &weights {
            Some(weights) => read_tensor(weights, name, like.device())?,
            None => like.zeros_like().to_kind(Kind::Float),
        };
        ranks.tensor_from_first("reading the saved state", &mut tensor)?;
        Ok(tensor)
    };
    adamw.restore(saved.step as u64, &read)?;
    let snapshot = |what: &str| {
        let parameters = adamw.snapshot().into_iter();
        parameters
            .map(|(name, parameter)| Ok((name.clone(), read(&format!("{what}.{name}"), &parameter)?)))
            .collect::<Result<Snapshot>>()
    };
    if let Some((step, value)) = saved.best {
        kept.best = Some((step, value, snapshot("best")?));
    }
    if kept.average.is_some() {
        kept.average = Some(snapshot("average")?);
    }
    task.restore(&saved.task)?;
    Ok(Some((saved.step, saved.history)))
}

/// The saved state, if this run may go on from it.
fn open_state(run: &RunState) -> Result<(Weights, Saved)> {
    let file = &run.file;
    if !run.resume {
        bail!("{}: state of an unfinished run; continue it with --resume or remove the file", file.display());
    }
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
            match first_difference(&saved.settings, run.settings) {
                Some([setting, was, is]) => format!("`{setting}` was {was}, is {is}"),
                None => "shape of the settings".into(),
            }
        );
    }
    Ok((weights, saved))
}

/// Name and two values of the first setting that differs, so that the user need not compare two files.
pub fn first_difference(saved: &serde_json::Value, now: &serde_json::Value) -> Option<[String; 3]> {
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
                    Some([key.clone(), x.to_string(), y.to_string()])
                };
            }
        }
    }
    None
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
