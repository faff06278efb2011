//! One file per command: `Args` holds what was typed, `run` opens things, calls the library and reports.

pub mod apply;
pub mod bench;
pub mod check;
pub mod doctor;
pub mod encode;
pub mod index;
pub mod keygen;
pub mod place;
mod progress;
pub mod query;
pub mod remove;
mod sample;
#[cfg(feature = "serve")]
pub mod serve;
pub mod snapshot;
pub mod stats;
