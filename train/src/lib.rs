//! Makes a teacher and a student: import, SFT, distillation, evaluation. A library so that tests can reach its parts;
//! users type `train`.

pub mod agreement;
pub mod bm25;
pub mod cache;
pub mod calibration;
pub mod chat_template;
pub mod commands;
pub mod config_file;
pub mod crash;
pub mod data;
pub mod data_sets;
pub mod device;
pub mod distillation;
pub mod evaluation;
pub mod features;
pub mod fit;
pub mod golden;
pub mod losses;
pub mod negatives;
pub mod optim;
pub mod progress;
pub mod record;
pub mod sampling;
pub mod schedule;
pub mod scoring;
pub mod teaching;
