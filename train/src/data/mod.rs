//! Data sets of others made into BEIR folders, one file per format, and the check of any BEIR folder.

pub mod check;
pub mod esconv;
mod findings;
mod lines;
pub mod msmarco;
pub mod pairs;
pub mod splits;
mod text;
pub mod writer;

pub use findings::{Example, Finding, Kind, Report, Severity, SplitCounts};
