//! The plots of a finished run: `loss.svg` and `dev.svg`.

use super::plot::{Axis, LineChart, Series};
use super::{Record, Split};
use anyhow::Result;
use std::path::Path;

/// Parts of a loss that lie so many times apart are drawn on a logarithmic axis: on a linear one the small ones are zero.
const LINEAR_SPREAD: f64 = 30.0;

/// Writes both; one that has nothing to show is left out.
pub fn write(dir: &Path, run: &str, records: &[Record]) -> Result<()> {
    for (split, file, what) in
        [(Split::Train, "loss.svg", "training loss"), (Split::Dev, "dev.svg", "dev metrics")]
    {
        let mut series = series(records, split);
        if series.is_empty() {
            continue;
        }
        let mut y = Axis::linear(if split == Split::Train { "loss" } else { "metric" });
        if split == Split::Train {
            series = series.into_iter().map(Series::smoothed).collect();
            if spread(&series) > LINEAR_SPREAD {
                y = Axis::log("loss");
            }
        }
        let chart = LineChart { title: format!("{run}: {what}"), x: Axis::linear("step"), y, series };
        chart.write(&dir.join(file))?;
    }
    Ok(())
}

/// One series per number measured on a split, by name, the loss before its parts.
pub fn series(records: &[Record], split: Split) -> Vec<Series> {
    let mut all: Vec<Series> = Vec::new();
    for record in records.iter().filter(|record| record.split == split) {
        for (name, value) in record.measured() {
            let point = (record.step as f64, value);
            match all.iter_mut().find(|series| series.name == name) {
                Some(series) => series.points.push(point),
                None => all.push(Series::new(name, vec![point])),
            }
        }
    }
    all.sort_by(|a, b| (a.name != "loss", &a.name).cmp(&(b.name != "loss", &b.name)));
    all
}

/// The largest series' mean over the smallest's; 1 where one is not above zero everywhere and has no logarithm.
fn spread(series: &[Series]) -> f64 {
    if series.iter().flat_map(|series| &series.points).any(|(_, value)| *value <= 0.0) {
        return 1.0;
    }
    let mean = |series: &Series| {
        series.points.iter().map(|(_, value)| value).sum::<f64>() / series.points.len() as f64
    };
    let means = series.iter().map(mean);
    let (low, high) = means.fold((f64::MAX, 0.0f64), |(low, high), mean| (low.min(mean), high.max(mean)));
    high / low
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fit::Metrics;

    /// Whoever looks at a plot must find every part of the loss in it by name, and nothing that is no loss.
    #[test]
    fn plots_name_their_series() {
        let dir = tempfile::tempdir().unwrap();
        let mut records = Vec::new();
        for step in 1..=40 {
            let loss = 2.0 / step as f64;
            let values = [("loss", loss), ("jepa", 0.01 * loss), ("lr", 1e-3), ("seconds", 5.0)];
            let values: Metrics = values.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
            records.push(Record::new(step, Split::Train, &values));
        }
        write(dir.path(), "teacher", &records).unwrap();
        assert!(!dir.path().join("dev.svg").exists());
        let dev = ["MRR@10", "nDCG@10"].map(|name| (name.to_owned(), 0.5));
        records.push(Record::new(40, Split::Dev, &dev.into()));
        write(dir.path(), "teacher", &records).unwrap();
        let text = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        let (loss, dev) = (text("loss.svg"), text("dev.svg"));
        let shows = |svg: &str, name: &str| svg.lines().any(|line| line.trim() == name);
        for name in ["teacher: training loss", "loss", "jepa", "step"] {
            assert!(shows(&loss, name), "{name}\n{loss}");
        }
        assert!(!shows(&loss, "lr") && !shows(&loss, "seconds"));
        for name in ["teacher: dev metrics", "MRR@10", "nDCG@10", "step"] {
            assert!(shows(&dev, name), "{name}\n{dev}");
        }
    }
}
