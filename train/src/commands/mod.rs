//! One file per command: what was typed, then what is done with it.

pub mod ablate;
pub mod bench;
pub mod distill;
pub mod eval;
pub mod generate;
pub mod import;
mod run_args;
pub mod teacher;
