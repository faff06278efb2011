//! Progress of a training run: a bar on a terminal, a line now and then in a log file. Always on stderr.

use crate::fit::Metrics;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::time::Instant;

/// Lines that a log file gets in a whole run.
const LOG_LINES: usize = 20;

/// Bar or lines.
pub struct Progress {
    bar: ProgressBar,
    plain: bool,
    steps: usize,
    start: Instant,
    first: usize,
    tokens: usize,
}

impl Progress {
    /// For steps `first..steps`.
    pub fn new(steps: usize, first: usize) -> Self {
        let plain = !std::io::stderr().is_terminal();
        let bar = ProgressBar::with_draw_target(
            Some(steps as u64),
            if plain { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() },
        );
        let template = "{bar:30} {pos}/{len} {msg} [{elapsed} elapsed, {eta} left]";
        bar.set_style(
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        bar.set_position(first as u64);
        bar.reset_eta();
        Self { bar, plain, steps, start: Instant::now(), first, tokens: 0 }
    }

    /// After a step; `tokens` went through the model in it.
    pub fn step(&mut self, done: usize, metrics: &Metrics, tokens: usize) {
        self.tokens += tokens;
        let seconds = self.start.elapsed().as_secs_f64();
        let loss = metrics.get("loss").copied().unwrap_or(f64::NAN);
        let mut message = format!("loss {loss:.4}");
        if self.tokens > 0 {
            message += &format!(", {:.0} tokens/s", self.tokens as f64 / seconds);
        }
        self.bar.set_position(done as u64);
        self.bar.set_message(message.clone());
        if self.plain && (done.is_multiple_of((self.steps / LOG_LINES).max(1)) || done == self.steps) {
            let left = seconds / (done - self.first) as f64 * (self.steps - done) as f64;
            eprintln!("step {done}/{}: {message}, {seconds:.0} s elapsed, {left:.0} s left", self.steps);
        }
    }

    /// After an evaluation.
    pub fn evaluated(&self, done: usize, metrics: &Metrics) {
        let numbers: Vec<String> = metrics.iter().map(|(name, value)| format!("{name} {value:.3}")).collect();
        let line = format!("dev after step {done}: {}", numbers.join(", "));
        if self.plain { eprintln!("{line}") } else { self.bar.println(line) }
    }

    /// Ends the bar.
    pub fn finish(&self) {
        self.bar.finish();
    }
}
