//! From tensors to graphs: one emitter for each block (`layers`), whole graphs (`encoder`, `predictor`, `reranker`), and what
//! the emitters of one graph share (`context`).

pub mod context;
pub mod encoder;
pub mod layers;
pub mod predictor;
pub mod reranker;
