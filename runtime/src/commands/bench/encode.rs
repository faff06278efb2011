//! `runtime bench encode`: what the encoders of some bundles cost on this machine, side by side in one run.

use super::resident_megabytes;
use crate::{Global, Outcome};
use anyhow::{Context, bail};
use models::files::write_json;
use models::prompt::Encoded;
use runtime::bundle::Bundle;
use runtime::encoder::Encoder;
use runtime::session;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Measure encoding: latency by length and batch, loading, memory and size of one bundle or several
///
/// Bundles take turns, so that a busy machine is busy for all; ratios are to the first one.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Bundle directory; several are compared, the first is what the ratios are to
    #[arg(long, value_name = "DIR", required = true)]
    bundle: Vec<PathBuf>,
    /// Lengths of passes in tokens, prompt included
    #[arg(long, value_delimiter = ',', default_values_t = [16, 32, 64, 128, 512])]
    lengths: Vec<usize>,
    /// Texts at once
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 32])]
    batches: Vec<usize>,
    /// Seconds for each length and batch, shared by the bundles
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Write the numbers as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// A bundle that is measured.
struct Contender {
    name: String,
    encoder: Encoder,
    megabytes: f64,
    load: Duration,
    /// Growth of this process's resident memory by loading, MB; where the system tells.
    memory: Option<f64>,
}

/// One length and batch: seconds of a run in the middle, by bundle; none where a pass of that length is not possible.
struct Cell {
    length: usize,
    batch: usize,
    seconds: Vec<Option<f64>>,
}

/// Loads all, measures all, prints a table.
pub fn run(args: &Args, global: &Global) -> anyhow::Result<Outcome> {
    if args.lengths.is_empty() || args.batches.contains(&0) || args.batches.is_empty() {
        bail!("--lengths and --batches must name at least one, and no batch of 0 texts");
    }
    let options = global.options();
    let library = session::load(options.session.ort_dylib.as_deref())?;
    let mut contenders = Vec::new();
    for dir in &args.bundle {
        contenders.push(Contender::open(dir, &options.session)?);
    }
    let mut cells = Vec::new();
    for &length in &args.lengths {
        for &batch in &args.batches {
            cells.push(measure(&contenders, length, batch, args.seconds)?);
        }
    }
    let mut out = io::stdout().lock();
    let threads = if global.threads == 0 { runtime::cpu::physical_cores() } else { global.threads };
    write!(out, "ONNX Runtime {}, {threads} threads\n\n{}", library.version, table(&contenders, &cells))
        .context("cannot write to stdout")?;
    if let Some(file) = &args.json {
        write_json(file, &to_json(&contenders, &cells, &library.version, threads))?;
    }
    Ok(Outcome::Done)
}

impl Contender {
    fn open(dir: &Path, options: &session::SessionOptions) -> anyhow::Result<Self> {
        let mut megabytes = 0.0;
        for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
            megabytes += entry?.metadata()?.len() as f64 / 1e6;
        }
        let bundle = Arc::new(Bundle::open(dir)?);
        let before = resident_megabytes();
        let start = Instant::now();
        let encoder = Encoder::open(bundle, options)?;
        let load = start.elapsed();
        let memory = before.zip(resident_megabytes()).map(|(before, after)| after - before);
        let name = dir.file_name().unwrap_or(dir.as_os_str()).to_string_lossy().into_owned();
        Ok(Self { name, encoder, megabytes, load, memory })
    }

    /// A query's pass of exactly `length` tokens, its text some word again and again.
    fn pass(&self, length: usize) -> anyhow::Result<Option<Encoded>> {
        if length > self.encoder.bundle().manifest.encoder.max_tokens {
            return Ok(None);
        }
        let pass = self.encoder.query_pass("the")?;
        let more = length.checked_sub(pass.ids.len());
        Ok(more.map(|more| {
            let (start, end) = (pass.text.start, pass.text.end);
            let word = pass.ids[start];
            let mut ids = pass.ids;
            ids.splice(end..end, std::iter::repeat_n(word, more));
            Encoded { ids, text: start..end + more }
        }))
    }
}

fn measure(contenders: &[Contender], length: usize, batch: usize, seconds: f64) -> anyhow::Result<Cell> {
    let mut passes = Vec::new();
    for contender in contenders {
        passes.push(contender.pass(length)?.map(|pass| vec![pass; batch]));
    }
    let mut times: Vec<Vec<f64>> = vec![Vec::new(); contenders.len()];
    let start = Instant::now();
    // The first round warms up.
    for round in 0.. {
        for ((contender, passes), times) in contenders.iter().zip(&passes).zip(&mut times) {
            let Some(passes) = passes else { continue };
            let start = Instant::now();
            contender.encoder.encode(passes)?;
            if round > 0 {
                times.push(start.elapsed().as_secs_f64());
            }
        }
        if round >= 3 && start.elapsed().as_secs_f64() >= seconds {
            break;
        }
    }
    let seconds = times.into_iter().map(|mut times| {
        times.sort_by(f64::total_cmp);
        times.get(times.len() / 2).copied()
    });
    Ok(Cell { length, batch, seconds: seconds.collect() })
}

fn table(contenders: &[Contender], cells: &[Cell]) -> String {
    let mut text = String::from("| bundle | MB | load s | memory MB |\n| --- | ---: | ---: | ---: |\n");
    for contender in contenders {
        let memory = contender.memory.map_or(String::new(), |memory| format!("{memory:.0}"));
        let _ = writeln!(
            text,
            "| {} | {:.1} | {:.2} | {memory} |",
            contender.name,
            contender.megabytes,
            contender.load.as_secs_f64()
        );
    }
    let names: Vec<&str> = contenders.iter().map(|contender| contender.name.as_str()).collect();
    let _ = writeln!(text, "\n| tokens | texts | {} |", names.join(" | "));
    let _ = writeln!(text, "| ---: | ---: |{}", " ---: |".repeat(names.len()));
    for cell in cells {
        let _ = write!(text, "| {} | {} |", cell.length, cell.batch);
        for seconds in &cell.seconds {
            let shown = match (seconds, cell.seconds.first().copied().flatten()) {
                (Some(seconds), Some(first)) => {
                    let rate = (cell.length * cell.batch) as f64 / seconds;
                    format!("{:.1} ms, {rate:.0} tokens/s, {:.2}x", 1e3 * seconds, seconds / first)
                }
                (Some(seconds), None) => format!("{:.1} ms", 1e3 * seconds),
                (None, _) => "too long or short for its prompt".into(),
            };
            let _ = write!(text, " {shown} |");
        }
        text.push('\n');
    }
    text
}

fn to_json(contenders: &[Contender], cells: &[Cell], onnxruntime: &str, threads: usize) -> Value {
    let bundles: Vec<Value> = contenders
        .iter()
        .map(|contender| {
            json!({
                "name": contender.name, "megabytes": contender.megabytes,
                "load_seconds": contender.load.as_secs_f64(), "memory_megabytes": contender.memory,
                "encoder": contender.encoder.bundle().manifest.encoder,
            })
        })
        .collect();
    let cells: Vec<Value> = cells
        .iter()
        .map(|cell| json!({ "tokens": cell.length, "texts": cell.batch, "median_seconds": cell.seconds }))
        .collect();
    json!({ "onnxruntime": onnxruntime, "threads": threads, "bundles": bundles, "cells": cells })
}
