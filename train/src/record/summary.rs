//! A run in a few numbers.

use super::{Record, Split};
use serde::Serialize;
use std::collections::BTreeMap;

/// One step's loss is mostly its batch's: the loss at the end is the mean over so many steps.
const LAST_STEPS: usize = 10;

/// A value and when it was measured.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Point {
    /// Optimizer steps done.
    pub step: usize,
    /// What was measured.
    pub value: f64,
}

/// One dev metric.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Dev {
    /// The best; of equal ones the first.
    pub best: Point,
    /// At the last evaluation.
    pub last: Point,
}

/// What a run came to.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Summary {
    /// Optimizer steps recorded.
    pub steps: usize,
    /// Dev metrics by name.
    pub dev: BTreeMap<String, Dev>,
    /// Mean training loss of the last ten steps.
    pub final_loss: Option<f64>,
    /// Seconds of training and evaluating, over all sessions of a resumed run.
    pub seconds: Option<f64>,
    /// Tokens through the model per second of training; none where only cached latents are trained on.
    pub tokens_per_second: Option<f64>,
}

impl Summary {
    /// Of all records of a run.
    pub fn of(records: &[Record]) -> Self {
        let mut summary = Self::default();
        let (mut losses, mut tokens, mut seconds) = (Vec::new(), 0.0, 0.0);
        for record in records {
            summary.steps = summary.steps.max(record.step);
            let value = |name| record.values.get(name).copied();
            summary.seconds = value("seconds").or(summary.seconds);
            if record.split == Split::Train {
                losses.extend(value("loss"));
                if let (Some(count), Some(rate)) = (value("tokens"), value("tokens_per_second")) {
                    tokens += count;
                    seconds += count / rate;
                }
                continue;
            }
            for (name, value) in record.measured() {
                let point = Point { step: record.step, value };
                let dev = summary.dev.entry(name.to_owned()).or_insert(Dev { best: point, last: point });
                dev.last = point;
                if better(name, value, dev.best.value) {
                    dev.best = point;
                }
            }
        }
        let last = &losses[losses.len().saturating_sub(LAST_STEPS)..];
        summary.final_loss = (!last.is_empty()).then(|| last.iter().sum::<f64>() / last.len() as f64);
        summary.tokens_per_second = (seconds > 0.0).then(|| tokens / seconds);
        summary
    }
}

/// Retrieval's metrics are better when higher, losses when lower.
fn better(name: &str, value: f64, than: f64) -> bool {
    if name.ends_with("loss") { value < than } else { value > than }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fit::Metrics;

    /// Hyper-parameters are chosen by these numbers: the best must be the first step that reached it, and an evaluation must
    /// not count as slow training.
    #[test]
    fn best_last_and_rates() {
        let record = |step, split, values: &[(&str, f64)]| {
            let values: Metrics = values.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
            Record { step, split, values }
        };
        let mut records = Vec::new();
        for step in 1..=20 {
            let seconds = step as f64;
            let values =
                [("loss", seconds), ("tokens", 100.0), ("tokens_per_second", 50.0), ("seconds", seconds)];
            records.push(record(step, Split::Train, &values));
            if step % 5 == 0 {
                let mrr = [0.2, 0.4, 0.4, 0.3][step / 5 - 1];
                records.push(record(step, Split::Dev, &[("MRR@10", mrr), ("loss", mrr), ("seconds", 90.0)]));
            }
        }
        let summary = Summary::of(&records);
        let point = |step, value| Point { step, value };
        assert_eq!(summary.dev["MRR@10"], Dev { best: point(10, 0.4), last: point(20, 0.3) });
        assert_eq!(summary.dev["loss"].best, point(5, 0.2));
        assert_eq!(summary.dev.len(), 2);
        assert_eq!((summary.steps, summary.final_loss), (20, Some(15.5)));
        assert_eq!((summary.seconds, summary.tokens_per_second), (Some(90.0), Some(50.0)));
        assert_eq!(Summary::of(&[]).final_loss, None);
    }
}
