//! Documents encoded on many machines: shards, and the index that they make together.
//!
//! A shard holds its documents and their vectors, so that the machine that merges needs neither the input nor ONNX Runtime:
//! ```text
//! vectors    [documents, m]
//! documents  lines of id, title, text and metadata, in the same order
//! ```
//! Shard i of n has every n-th batch of the input, from the i-th on, in the very batches in which `runtime index` encodes: a vector
//! then is the same to the bit, also where the numbers that share a run of the graph change its sums' order. Whoever makes a
//! shard reads the whole input and keeps its own part; all shards tell the whole input's digest.

use crate::bundle::BundleError;
use crate::document::{Document, DocumentError, Source};
use crate::ingest::BATCH;
use crate::retriever::RetrieverError;
use crate::sealed::SealedError;
use crate::store::{self, IndexKey, StoreError};
use models::files::{self, FileError};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

mod encode;
mod merge;
mod partial;

pub use self::encode::{Encoded, encode};
pub use self::merge::merge;

/// Names of the tensors.
mod names {
    pub const VECTORS: &str = "vectors";
    pub const DOCUMENTS: &str = "documents";
}

/// Which part of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// From 1 on.
    pub shard: usize,
    /// Number of shards.
    pub of: usize,
}

impl Place {
    /// Whether the batch with this number, from 0 on, is in this shard.
    fn has(self, batch: usize) -> bool {
        batch % self.of == self.shard - 1
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.shard, self.of)
    }
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        match numbers {
            Some((_, 0)) => Err("there are no shards; of n shards, name one as 1/n to n/n".to_owned()),
            Some((shard, of)) if (1..=of).contains(&shard) => Ok(Self { shard, of }),
            Some((shard, of)) => {
                Err(format!("there is no shard {shard} of {of}; they are counted from 1 to {of}"))
            }
            None => Err("expected I/N, for instance 1/4 to 4/4".to_owned()),
        }
    }
}

/// Whose documents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// Documents in all.
    pub documents: usize,
    /// SHA-256 over all of them, in their order.
    pub digest: String,
}

/// What a shard holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct About {
    /// Which part it is.
    pub place: Place,
    /// Documents in it.
    pub documents: usize,
    /// What it is a part of.
    pub input: Input,
    /// What an index of it is keyed to.
    pub index: IndexKey,
}

/// Why shards cannot be made or merged.
#[derive(Debug, thiserror::Error)]
pub enum ShardError {
    /// The input cannot be read.
    #[error(transparent)]
    Documents(#[from] DocumentError),
    /// The bundle cannot be used.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// A shard is damaged, or something else.
    #[error(transparent)]
    Sealed(#[from] SealedError),
    /// Documents cannot be encoded, or their index not be written.
    #[error(transparent)]
    Retriever(#[from] RetrieverError),
    /// Rows cannot be written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file is in the way, or cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// Something else was made there.
    #[error("{file}: holds {found}, not {expected}; name another --out, or remove it")]
    Taken {
        /// The shard, finished or under construction.
        file: PathBuf,
        /// What it is.
        found: String,
        /// What it was to be.
        expected: String,
    },
    /// A shard that somebody still works at, or was killed at.
    #[error("{file}: is a shard under construction; run its `runtime encode` again, which goes on with it")]
    Partial {
        /// The file.
        file: PathBuf,
    },
    /// Vectors of two encoders must not be compared.
    #[error(
        "{file}: was made with another encoder ({what} {found}, this bundle's is {expected}); encode it again with this bundle"
    )]
    OtherEncoder {
        /// The shard.
        file: PathBuf,
        /// What differs.
        what: &'static str,
        /// The shard's.
        found: String,
        /// The bundle's.
        expected: String,
    },
    /// Parts of two inputs.
    #[error(
        "{file}: is of another input than {first} ({found} and {expected}); take the shards of one of them"
    )]
    OtherInput {
        /// The shard.
        file: PathBuf,
        /// The first one.
        first: PathBuf,
        /// Its input.
        found: String,
        /// The first one's.
        expected: String,
    },
    /// Two ways to cut an input overlap.
    #[error(
        "{file}: is shard {found}, {first} is shard {expected}: the input is cut in two ways, which overlap; take the shards of one of them"
    )]
    OtherCut {
        /// The shard.
        file: PathBuf,
        /// The first one.
        first: PathBuf,
        /// Its place.
        found: Place,
        /// The first one's.
        expected: Place,
    },
    /// The same part twice.
    #[error("{file}: is shard {place}, and so is {first}; name each once")]
    Double {
        /// The second.
        file: PathBuf,
        /// The first.
        first: PathBuf,
        /// Their place.
        place: Place,
    },
    /// Parts that are not there.
    #[error("shards {missing} of {of} are missing; encode them, and name all {of}")]
    Missing {
        /// Their numbers.
        missing: String,
        /// Number of shards.
        of: usize,
    },
    /// The parts do not make the whole.
    #[error("the shards hold {found}, but are parts of {expected}; encode them again")]
    NotTheInput {
        /// What they are together.
        found: String,
        /// What they say they are of.
        expected: String,
    },
}

impl Input {
    fn told(&self) -> String {
        let Self { documents, digest } = self;
        format!("{documents} documents with digest {}", digest.get(..12).unwrap_or(digest))
    }
}

impl About {
    fn told(&self) -> String {
        let encoder = self.index.document_digest.get(..12).unwrap_or_default();
        format!("shard {} of {} by encoder {encoder}", self.place, self.input.told())
    }
}

/// Digests an input document by document.
#[derive(Debug, Clone, Default)]
struct InputDigest {
    documents: usize,
    hasher: Sha256,
}

impl InputDigest {
    fn take(&mut self, document: &Document) {
        self.documents += 1;
        self.hasher.update(store::document_digest(document));
    }

    fn finish(self) -> Input {
        Input { documents: self.documents, digest: files::hex(&self.hasher.finalize()) }
    }
}

/// Reads a whole input, and keeps the documents of one shard.
pub fn read(source: &Source, place: Place) -> Result<(Vec<Document>, Input), DocumentError> {
    let (mut documents, mut digest) = (Vec::new(), InputDigest::default());
    source.visit(|document| {
        let batch = digest.documents / BATCH;
        digest.take(&document);
        if place.has(batch) {
            documents.push(document);
        }
    })?;
    Ok((documents, digest.finish()))
}

/// Where a shard grows until it is whole.
pub fn partial_file(out: &Path) -> PathBuf {
    let mut name = out.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}

#[cfg(test)]
mod tests;
