//! One file per command: what was typed, then what is done with it.

pub mod ablate;
pub mod bench;
pub mod compare;
pub mod data;
pub mod distill;
pub mod eval;
pub mod generate;
pub mod import;
mod latent_args;
pub mod pack;
mod run_args;
pub mod significance;
pub mod teacher;

/// What a command that ran to its end has to say by its exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Exit code 0.
    Done,
    /// Exit code 1: something is wrong with the data, and has been printed.
    Found,
}
