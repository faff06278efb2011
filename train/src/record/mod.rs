//! What a run leaves to be looked at: `metrics.jsonl` and a TensorBoard event file while it runs, plots when it is done.
//!
//! While a run goes on they lie in `OUT.run/`, beside the output that is not there yet; a finished run has them in
//! `OUT/run/`. The state of the run, not these files, says which steps count: a resumed run writes the records of the
//! steps that it continues from anew and drops what came after.

mod charts;
mod events;
mod metrics;
pub mod plot;
mod summary;

pub use metrics::{Record, Split};
pub use summary::{Dev, Point, Summary};

use crate::fit::{History, Metrics};
use anyhow::{Context, Result, bail};
use events::EventWriter;
use metrics::TIMES;
use models::files::{read_json, write_json};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Name of the records' directory inside a finished output.
const DIR_NAME: &str = "run";
const METRICS_FILE: &str = "metrics.jsonl";
const CONFIG_FILE: &str = "config.json";

/// The directory of a run's records.
#[derive(Debug, Clone)]
pub struct RunDir(PathBuf);

impl RunDir {
    /// Of a run that will write `out`.
    pub fn beside(out: &Path) -> Self {
        let name = out.file_name().unwrap_or_default().to_string_lossy();
        Self(out.with_file_name(format!("{name}.{DIR_NAME}")))
    }

    /// Of a run that was: `path` is the run's directory, or the teacher or student that came of it.
    pub fn of(path: &Path) -> Result<Self> {
        let places = [path.join(DIR_NAME), path.to_owned()];
        match places.into_iter().find(|place| place.join(METRICS_FILE).is_file()) {
            Some(place) => Ok(Self(place)),
            None => bail!(
                "{}: no records of a run, neither {METRICS_FILE} nor {DIR_NAME}/{METRICS_FILE}; give a directory that \
                 `train teacher` or `train distill` wrote, or the OUT.{DIR_NAME} of an unfinished one",
                path.display()
            ),
        }
    }

    /// Everything recorded, in the order in which it happened.
    pub fn records(&self) -> Result<Vec<Record>> {
        metrics::read(&self.0.join(METRICS_FILE))
    }

    /// Resolved settings of the run.
    pub fn settings(&self) -> Result<Value> {
        Ok(read_json(&self.0.join(CONFIG_FILE))?)
    }

    /// Opens the records of a run that has got as far as `history`; a fresh run's history is empty.
    pub fn recorder(&self, settings: &Value, history: &History) -> Result<Recorder> {
        Recorder::open(&self.0, settings, history)
            .with_context(|| format!("cannot keep the run's records in {}", self.0.display()))
    }

    /// Draws the plots and copies all records into a finished output directory.
    pub fn keep(&self, finished: &Path) -> Result<()> {
        charts::write(&self.0, &self.run_name(), &self.records()?)?;
        let to = finished.join(DIR_NAME);
        fs::create_dir(&to).with_context(|| format!("cannot create {}", to.display()))?;
        for entry in fs::read_dir(&self.0).with_context(|| format!("cannot list {}", self.0.display()))? {
            let from = entry?.path();
            let copy = to.join(from.file_name().unwrap_or_default());
            fs::copy(&from, &copy)
                .and_then(|_| File::open(&copy)?.sync_all())
                .with_context(|| format!("cannot copy {} to {}", from.display(), copy.display()))?;
        }
        Ok(())
    }

    /// Removes the records of a finished run from beside its output.
    pub fn remove(&self) -> Result<()> {
        fs::remove_dir_all(&self.0).with_context(|| format!("cannot remove {}", self.0.display()))
    }

    /// What the run makes: the directory's name without its ending.
    fn run_name(&self) -> String {
        let name = self.0.file_name().unwrap_or_default().to_string_lossy();
        name.strip_suffix(&format!(".{DIR_NAME}")).unwrap_or(&name).to_owned()
    }
}

/// Writes records as they come. Every record is whole on disk when the call returns, so that it can be watched.
pub struct Recorder {
    metrics: File,
    events: EventWriter,
    /// Seconds of training before this process.
    before: f64,
    started: Instant,
    /// When the step that is running began.
    step_began: Instant,
}

impl Recorder {
    fn open(dir: &Path, settings: &Value, history: &History) -> Result<Self> {
        fs::create_dir_all(dir)?;
        write_json(&dir.join(CONFIG_FILE), settings)?;
        let file = dir.join(METRICS_FILE);
        let old = if file.exists() { metrics::read(&file)? } else { Vec::new() };
        let kept = kept(history, old);
        metrics::write(&file, &kept)?;
        let mut events = EventWriter::create(dir, now(), !kept.is_empty())?;
        for record in &kept {
            events.write(record)?;
        }
        let before = kept.iter().rev().find_map(|record| record.values.get("seconds")).copied();
        Ok(Self {
            metrics: File::options().append(true).open(&file)?,
            events,
            before: before.unwrap_or(0.0),
            started: Instant::now(),
            step_began: Instant::now(),
        })
    }

    /// After optimizer step `step`, counted from 1; `rates` depend on the machine, as all [`metrics::TIMES`].
    pub fn step(&mut self, step: usize, metrics: &Metrics, rates: &Metrics) -> Result<()> {
        let mut record = Record::new(step, Split::Train, metrics);
        record.values.extend(rates.clone());
        if let Some(tokens) = metrics.get("tokens") {
            let rate = tokens / self.step_began.elapsed().as_secs_f64().max(1e-9);
            record.values.insert("tokens_per_second".into(), rate);
        }
        self.write(record)
    }

    /// After an evaluation on dev that followed `step`.
    pub fn evaluated(&mut self, step: usize, metrics: &Metrics) -> Result<()> {
        self.write(Record::new(step, Split::Dev, metrics))
    }

    fn write(&mut self, mut record: Record) -> Result<()> {
        let seconds = self.before + self.started.elapsed().as_secs_f64();
        record.values.extend([("seconds".to_owned(), seconds), ("time".to_owned(), now())]);
        let attempt =
            self.metrics.write_all(record.line().as_bytes()).and_then(|()| self.events.write(&record));
        attempt.with_context(|| format!("cannot record step {}", record.step))?;
        self.step_began = Instant::now();
        Ok(())
    }
}

/// The records of a history; when they happened is known from the old file alone.
fn kept(history: &History, old: Vec<Record>) -> Vec<Record> {
    let mut times: BTreeMap<(usize, Split), Metrics> = BTreeMap::new();
    for mut record in old {
        record.values.retain(|name, _| TIMES.contains(&name.as_str()));
        times.insert((record.step, record.split), record.values);
    }
    let mut records: Vec<Record> = Vec::new();
    for (index, metrics) in history.steps.iter().enumerate() {
        records.push(Record::new(index + 1, Split::Train, metrics));
    }
    for metrics in &history.evaluations {
        let step = metrics.get("step").copied().unwrap_or(0.0) as usize;
        records.push(Record::new(step, Split::Dev, metrics));
    }
    records.sort_by_key(|record| (record.step, record.split));
    for record in &mut records {
        record.values.extend(times.remove(&(record.step, record.split)).unwrap_or_default());
    }
    records
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn metrics(values: &[(&str, f64)]) -> Metrics {
        values.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect()
    }

    fn history(steps: usize) -> History {
        History {
            steps: (1..=steps).map(|step| metrics(&[("loss", 1.0 / step as f64), ("tokens", 9.0)])).collect(),
            evaluations: vec![metrics(&[("MRR@10", 0.25), ("step", 2.0)])],
            best_step: None,
            complete: false,
        }
    }

    fn record(recorder: &mut Recorder, steps: std::ops::RangeInclusive<usize>) {
        for step in steps {
            let values = metrics(&[("loss", 1.0 / step as f64), ("tokens", 9.0)]);
            recorder.step(step, &values, &Metrics::new()).unwrap();
            if step == 2 {
                recorder.evaluated(step, &metrics(&[("MRR@10", 0.25)])).unwrap();
            }
        }
    }

    /// A run killed after its last saved state has recorded steps that the resumed run makes again; kept twice, every curve
    /// would jump back and every mean be of other steps than were trained.
    #[test]
    fn a_resumed_run_has_no_step_twice_and_none_missing() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::beside(&dir.path().join("teacher"));
        let settings = json!({ "command": "teacher" });
        let empty = History { steps: Vec::new(), evaluations: Vec::new(), best_step: None, complete: false };
        record(&mut run.recorder(&settings, &empty).unwrap(), 1..=5);
        let file = dir.path().join("teacher.run/metrics.jsonl");
        let before = run.records().unwrap();
        // Killed in the middle of a line.
        File::options().append(true).open(&file).unwrap().write_all(b"{\"step\":6,\"spl").unwrap();

        record(&mut run.recorder(&settings, &history(3)).unwrap(), 4..=6);
        let after = run.records().unwrap();
        let places: Vec<_> = after.iter().map(|record| (record.step, record.split)).collect();
        let train = |step| (step, Split::Train);
        assert_eq!(places, [train(1), train(2), (2, Split::Dev), train(3), train(4), train(5), train(6)]);
        // Steps 1 to 3 are the old ones, their times too; the clock goes on from there.
        assert_eq!(after[..4], before[..4]);
        assert!(after[4].values["seconds"] >= after[3].values["seconds"]);
        assert_eq!(after[6].values["loss"], 1.0 / 6.0);

        // The records of the steps that count survive the loss of the file.
        fs::remove_file(&file).unwrap();
        run.recorder(&settings, &history(3)).unwrap();
        assert_eq!(run.records().unwrap()[3].values, metrics(&[("loss", 1.0 / 3.0), ("tokens", 9.0)]));
    }

    /// Whoever opens a finished teacher a year later finds how it was made, and nothing is left beside it.
    #[test]
    fn finished_runs_keep_their_records() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("teacher");
        let run = RunDir::beside(&out);
        let settings = json!({ "command": "teacher", "lr": 1e-3 });
        record(&mut run.recorder(&settings, &history(0)).unwrap(), 3..=9);
        fs::create_dir(&out).unwrap();
        run.keep(&out).unwrap();
        run.remove().unwrap();
        let mut names: Vec<String> = fs::read_dir(out.join("run"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        assert_eq!(names.len(), 5, "{names:?}");
        assert_eq!([&names[0], &names[1], &names[3]], ["config.json", "dev.svg", "loss.svg"]);
        assert!(names[2].starts_with("events.out.tfevents."), "{names:?}");
        assert_eq!(RunDir::of(&out).unwrap().settings().unwrap(), settings);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let refused = RunDir::of(dir.path()).unwrap_err().to_string();
        assert!(refused.contains("no records of a run"), "{refused}");
    }
}
