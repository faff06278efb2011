//! What systems are worth: the same queries for all, the runs they make of them, and what is told about the runs.
//!
//! `task` is what is asked; `systems` is who answers (`first_stage` with `bm25`, `cosine`, `onnx_embedding` and `student`
//! rank the corpus, `teacher` reads pairs); `run` is who ranked what how; `report`, `significance` and `calibration_table`
//! say what it is worth.

pub mod calibration_table;
pub mod cosine;
pub mod first_stage;
pub mod onnx_embedding;
pub mod onnx_folder;
pub mod report;
pub mod run;
pub mod significance;
pub mod student;
pub mod systems;
pub mod task;
pub mod teacher;

pub use run::{COLUMNS, Run, measure};
pub use student::open_llm;
