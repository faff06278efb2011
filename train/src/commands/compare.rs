//! `train compare`: runs side by side, what was set and what came of it.

use crate::record::plot::{Axis, LineChart, Series};
use crate::record::{Dev, Point, Record, RunDir, Split, Summary};
use anyhow::{Context, Result, bail};
use clap::Args as ClapArgs;
use models::files::write_json;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Digits of a digest that tell two apart.
const DIGEST_DIGITS: usize = 12;

/// Show runs side by side: settings that differ, dev metrics, loss, time
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// Teachers, students or run directories (`OUT.run` while a run goes on)
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// Write the same as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw the runs' dev curves into one plot
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    /// Dev metric of the plot
    #[arg(long, default_value = "MRR@10")]
    metric: String,
}

/// One column of the table.
struct Run {
    name: String,
    /// By dotted name, such as `fit.schedule.peak`.
    settings: Map<String, Value>,
    records: Vec<Record>,
    summary: Summary,
}

/// Reads the runs and prints the table.
pub fn run(args: &Args) -> Result<()> {
    let mut runs = args.runs.iter().map(|path| open(path)).collect::<Result<Vec<Run>>>()?;
    keep_differing(&mut runs);
    if let Some(file) = &args.plot {
        plot(&runs, &args.metric)?.write(file)?;
    }
    if let Some(file) = &args.json {
        let runs: Vec<Value> = runs
            .iter()
            .map(|run| json!({ "run": run.name, "settings": run.settings, "results": run.summary }))
            .collect();
        write_json(file, &json!({ "runs": runs }))?;
    }
    print!("{}", table(&runs));
    Ok(())
}

fn open(path: &Path) -> Result<Run> {
    let dir = RunDir::of(path)?;
    let mut settings = Map::new();
    flatten("", &dir.settings()?, &mut settings);
    let records = dir.records().with_context(|| format!("cannot read the run {}", path.display()))?;
    let name = path.display().to_string();
    let name = name.strip_suffix('/').unwrap_or(&name).to_owned();
    Ok(Run { name, settings, summary: Summary::of(&records), records })
}

/// Nested settings under dotted names.
fn flatten(prefix: &str, value: &Value, settings: &mut Map<String, Value>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let dot = if prefix.is_empty() { "" } else { "." };
                flatten(&format!("{prefix}{dot}{name}"), value, settings);
            }
        }
        value => {
            settings.insert(prefix.to_owned(), value.clone());
        }
    }
}

/// Leaves the settings that differ, in every run the same ones; null where a run has no such setting.
fn keep_differing(runs: &mut [Run]) {
    let mut names: Vec<String> = Vec::new();
    for name in runs.iter().flat_map(|run| run.settings.keys()) {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    let value = |run: &Run, name: &String| run.settings.get(name).cloned().unwrap_or(Value::Null);
    names.retain(|name| runs.iter().any(|run| value(run, name) != value(&runs[0], name)));
    for run in runs {
        run.settings = names.iter().map(|name| (name.clone(), value(run, name))).collect();
    }
}

fn plot(runs: &[Run], metric: &str) -> Result<LineChart> {
    let series = runs.iter().filter_map(|run| {
        let dev = run.records.iter().filter(|record| record.split == Split::Dev);
        let points: Vec<(f64, f64)> =
            dev.filter_map(|record| Some((record.step as f64, *record.values.get(metric)?))).collect();
        (!points.is_empty()).then(|| Series::new(&run.name, points))
    });
    let series: Vec<Series> = series.collect();
    if series.is_empty() {
        let known = dev_metrics(runs);
        let known = if known.is_empty() { "none yet".into() } else { known.join(", ") };
        bail!("--metric {metric}: no run has measured it on dev; measured: {known}");
    }
    Ok(LineChart { title: format!("dev {metric}"), x: Axis::linear("step"), y: Axis::linear(metric), series })
}

fn dev_metrics(runs: &[Run]) -> Vec<&str> {
    let names: BTreeSet<&str> =
        runs.iter().flat_map(|run| run.summary.dev.keys()).map(String::as_str).collect();
    names.into_iter().collect()
}

/// One row per setting that differs and per result, one column per run, in Markdown.
fn table(runs: &[Run]) -> String {
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut row = |name: String, cell: &dyn Fn(&Run) -> Option<String>| {
        let cells = runs.iter().map(|run| cell(run).unwrap_or_else(|| "-".into()));
        rows.push(std::iter::once(name).chain(cells).collect());
    };
    row("run".into(), &|run| Some(run.name.clone()));
    for name in runs.iter().take(1).flat_map(|run| run.settings.keys()) {
        row(name.clone(), &|run| setting(&run.settings[name]));
    }
    row("steps".into(), &|run| Some(run.summary.steps.to_string()));
    let at = |point: Point| format!("{:.4} @ {}", point.value, point.step);
    for name in dev_metrics(runs) {
        let dev = |run: &Run| run.summary.dev.get(name).copied();
        row(format!("best dev {name} @ step"), &|run| dev(run).map(|Dev { best, .. }| at(best)));
        row(format!("last dev {name} @ step"), &|run| dev(run).map(|Dev { last, .. }| at(last)));
    }
    row("final loss (mean of 10 steps)".into(), &|run| {
        run.summary.final_loss.map(|loss| format!("{loss:.4}"))
    });
    row("seconds".into(), &|run| run.summary.seconds.map(|seconds| format!("{seconds:.1}")));
    row("tokens/s".into(), &|run| run.summary.tokens_per_second.map(|rate| format!("{rate:.0}")));
    aligned(&rows)
}

fn setting(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) if text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
            Some(text[..DIGEST_DIGITS].to_owned())
        }
        Value::String(text) => Some(text.clone()),
        value => Some(value.to_string()),
    }
}

fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0).max(3);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .enumerate()
            .map(
                |(column, (cell, width))| {
                    if column == 0 { format!("{cell:width$}") } else { format!("{cell:>width$}") }
                },
            )
            .collect();
        text += &format!("| {} |\n", cells.join(" | "));
        if number == 0 {
            let dashes = widths.iter().enumerate().map(|(column, width)| {
                if column == 0 { "-".repeat(*width) } else { "-".repeat(width - 1) + ":" }
            });
            text += &format!("| {} |\n", dashes.collect::<Vec<_>>().join(" | "));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fit::Metrics;

    fn made(name: &str, settings: Value, mrr: f64) -> Run {
        let mut flat = Map::new();
        flatten("", &settings, &mut flat);
        let train = Metrics::from([("loss".to_owned(), 0.5), ("seconds".to_owned(), 7.0)]);
        let dev = Metrics::from([("MRR@10".to_owned(), mrr)]);
        let records = vec![Record::new(9, Split::Train, &train), Record::new(9, Split::Dev, &dev)];
        Run { name: name.into(), settings: flat, summary: Summary::of(&records), records }
    }

    /// What made one run better than another is read off this table: a setting that is left out, or one in the wrong column,
    /// sends the next runs the wrong way.
    #[test]
    fn settings_that_differ_stand_above_what_came_of_them() {
        let digest = "0123456789abcdef".repeat(4);
        let settings = json!({ "command": "teacher", "fit": { "peak": 0.001, "seed": 1 }, "lora": null });
        let other = json!({
            "command": "teacher", "fit": { "peak": 0.0005, "seed": 1 }, "lora": { "rank": 4 }, "digest": digest,
        });
        let mut runs = [made("a", settings, 0.25), made("b", other, 0.5)];
        keep_differing(&mut runs);
        let table = table(&runs);
        let rows: Vec<Vec<&str>> =
            table.lines().map(|line| line.trim_matches('|').split('|').map(str::trim).collect()).collect();
        for row in [
            ["run", "a", "b"],
            ["fit.peak", "0.001", "0.0005"],
            ["lora.rank", "-", "4"],
            ["digest", "-", "0123456789ab"],
            ["best dev MRR@10 @ step", "0.2500 @ 9", "0.5000 @ 9"],
            ["final loss (mean of 10 steps)", "0.5000", "0.5000"],
            ["tokens/s", "-", "-"],
        ] {
            assert!(rows.iter().any(|found| *found == row), "{row:?}\n{table}");
        }
        assert!(!table.contains("command") && !table.contains("seed"), "{table}");
        assert!(plot(&runs, "MRR@10").unwrap().svg().unwrap().contains("dev MRR@10"));
        assert!(plot(&runs, "nDCG@10").unwrap_err().to_string().contains("measured: MRR@10"));
    }
}
