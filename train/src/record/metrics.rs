//! `metrics.jsonl`: one JSON object per line, one line per step and per evaluation.

use crate::fit::Metrics;
use anyhow::{Context, Result};
use models::files::write_atomic;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::Write;
use std::path::Path;

/// Values that depend on the machine and the hour; all others are the same however often a run was interrupted.
/// `seconds` of training so far, `time` in seconds since 1970.
pub const TIMES: &[&str] =
    &["seconds", "time", "tokens_per_second", "judgement_tokens_per_second", "latent_tokens_per_second"];

/// Values of a training step that are neither the loss nor a part of it.
const NOT_LOSSES: &[&str] = &["grad_norm", "lr", "tokens"];

/// What was measured on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// The step's own batch.
    Train,
    /// The dev splits.
    Dev,
}

impl Split {
    /// As in the file, and before the slash in TensorBoard's tags.
    pub fn name(self) -> &'static str {
        match self {
            Split::Train => "train",
            Split::Dev => "dev",
        }
    }
}

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Optimizer steps done.
    pub step: usize,
    /// What was measured on.
    pub split: Split,
    /// Numbers by name.
    #[serde(flatten)]
    pub values: Metrics,
}

impl Record {
    /// Takes the finite numbers: JSON has no others.
    pub fn new(step: usize, split: Split, values: &Metrics) -> Self {
        let finite = values.iter().filter(|(name, value)| value.is_finite() && *name != "step");
        Self { step, split, values: finite.map(|(name, value)| (name.clone(), *value)).collect() }
    }

    /// The loss and its parts, or the dev metrics: what a plot of this split shows.
    pub fn measured(&self) -> impl Iterator<Item = (&str, f64)> {
        let values = self.values.iter().map(|(name, value)| (name.as_str(), *value));
        values.filter(|(name, _)| !TIMES.contains(name) && !NOT_LOSSES.contains(name))
    }

    /// With its newline.
    pub fn line(&self) -> String {
        // Numbers and names: always JSON.
        serde_json::to_string(self).unwrap_or_default() + "\n"
    }
}

/// Writes all records, atomically.
pub fn write(file: &Path, records: &[Record]) -> Result<()> {
    write_atomic(file, |writer| {
        records.iter().try_for_each(|record| writer.write_all(record.line().as_bytes()))
    })?;
    Ok(())
}

/// Reads all records. What a killed run left of its last line is not one.
pub fn read(file: &Path) -> Result<Vec<Record>> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let lines = whole.lines().enumerate().filter(|(_, line)| !line.is_empty());
    lines
        .map(|(number, line)| {
            serde_json::from_str(line)
                .with_context(|| format!("{}:{}: not a record of a run", file.display(), number + 1))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines are read by other people's scripts: names and nesting are a promise.
    #[test]
    fn a_line_is_flat_json() {
        let values = Metrics::from([("loss".to_owned(), 0.5), ("odd".to_owned(), f64::NAN)]);
        let record = Record::new(3, Split::Train, &values);
        assert_eq!(record.line(), "{\"step\":3,\"split\":\"train\",\"loss\":0.5}\n");
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("metrics.jsonl");
        write(&file, std::slice::from_ref(&record)).unwrap();
        assert_eq!(read(&file).unwrap(), [record]);
        fs::write(&file, "{\"step\":1,\"split\":\"train\"}\nhello\n").unwrap();
        assert!(format!("{:#}", read(&file).unwrap_err()).contains("metrics.jsonl:2: not a record"));
    }
}
