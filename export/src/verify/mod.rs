//! A finished bundle, run by the `runtime` library: against the reference scores of the student or teacher (`golden`, `parity`,
//! `reranker`), and its ranking against that of the fp32 bundle (`ranking`).

pub mod golden;
pub mod parity;
pub mod ranking;
pub mod reranker;
