//! How far documents have come, on stderr.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use runtime::ingest::Progress;
use std::time::Instant;

/// Appears with the first word of progress: until then the bundle is being opened, which may fail.
#[derive(Debug)]
pub struct Bar {
    bar: ProgressBar,
    started: Option<Instant>,
}

impl Default for Bar {
    fn default() -> Self {
        Self { bar: ProgressBar::hidden(), started: None }
    }
}

impl Bar {
    /// Shows how far it is.
    pub fn show(&mut self, Progress { done, total }: Progress) {
        if self.started.is_none() && total > 0 {
            self.started = Some(Instant::now());
            let style = ProgressStyle::with_template("{bar:40} {pos}/{len} documents  {per_sec}  {eta} left");
            self.bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            self.bar.set_length(total as u64);
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        self.bar.set_position(done as u64);
    }

    /// Takes it away, and tells the seconds since it appeared.
    pub fn finish(&self) -> f64 {
        self.bar.finish_and_clear();
        self.started.map_or(0.0, |started| started.elapsed().as_secs_f64())
    }
}
