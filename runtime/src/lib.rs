//! Answers queries on the device: a bundle written by `export`, ONNX Runtime, documents in SQLite, a usearch graph.
//! No libtorch, no network (but for feature `postgres`: an index in a database, which many servers share).
//!
//! ```no_run
//! use runtime::retriever::{Options, Retriever};
//! use std::path::Path;
//!
//! let retriever = Retriever::open(Path::new("bundle"), Path::new("index"), Options::default())?;
//! for hit in retriever.query("I spilled my coffee", 5)?.results {
//!     println!("{:3.0} %  {}  {}", 100.0 * hit.probability, hit.id, hit.title);
//! }
//! # Ok::<(), runtime::retriever::RetrieverError>(())
//! ```

pub mod bundle;
pub mod columns;
pub mod cpu;
pub mod delta;
pub mod document;
pub mod dylib;
pub mod encoder;
mod external_data;
pub mod filter;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
pub mod index;
pub mod ingest;
pub mod keys;
pub mod place;
#[cfg(feature = "postgres")]
pub mod postgres;
#[cfg(not(feature = "postgres"))]
#[path = "postgres/absent.rs"]
pub mod postgres;
pub mod predictor;
pub mod reranker;
pub mod retriever;
pub mod rows_file;
pub mod sealed;
pub mod search;
pub mod selftest;
#[cfg(feature = "serve")]
pub mod serve;
pub mod session;
pub mod shard;
pub mod store;
#[cfg(test)]
mod testing;
pub mod vectors;
