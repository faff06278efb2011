//! A fleet in step: what came after a generation of an index as one signed file, and that file put into another index.
//!
//! ```text
//! removed      lines of key, generation and id
//! documents    lines of key, generation, id, title, text and metadata
//! vectors      [documents, m], in the same order
//! generations  lines of number and digest: all between the delta's base and its end
//! ```
//! Who holds the rows of any of these generations, which its digest proves, can go on from there; the result has the
//! source's own rows, keys and history, so that it can be a source itself. A delta from generation 0 is a full snapshot.

use crate::keys::KeyError;
use crate::sealed::{Kind, SealedError, Sealing};
use crate::store::{Generation, IndexKey, Moment, Store, StoreError};
use ed25519_dalek::SigningKey;
use models::files::FileError;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

mod apply;

pub use self::apply::{Applied, Apply, apply};

/// Names of the tensors.
mod names {
    pub const VECTORS: &str = "vectors";
    pub const REMOVED: &str = "removed";
    pub const DOCUMENTS: &str = "documents";
    pub const GENERATIONS: &str = "generations";
}

/// What a delta holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct About {
    /// It begins after this generation.
    pub base: Generation,
    /// It ends with this one.
    pub generation: Generation,
    /// What the index is keyed to.
    pub index: IndexKey,
    /// Documents in it.
    pub documents: usize,
    /// Removed documents in it.
    pub removed: usize,
    /// Documents of the index at its end.
    pub total: u64,
    /// The highest key that the source has given out.
    pub last_key: i64,
}

/// Why a delta cannot be made or applied.
#[derive(Debug, thiserror::Error)]
pub enum DeltaError {
    /// The delta is damaged, unsigned, or something else.
    #[error(transparent)]
    Sealed(#[from] SealedError),
    /// A key cannot be read.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The index cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file is in the way, or cannot be written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The source has never been there, or has forgotten it.
    #[error(
        "{index}: remembers no generation {since}: it knows those up to {last}; name one of these, or 0 for a full snapshot"
    )]
    Unknown {
        /// The index.
        index: PathBuf,
        /// What was asked for.
        since: u64,
        /// Where it is.
        last: u64,
    },
    /// The rows would not fit.
    #[error(
        "{file}: is for another encoder ({what} {found}, {whose} is {expected}); make a delta from an index of the same bundle"
    )]
    OtherEncoder {
        /// The delta.
        file: PathBuf,
        /// What differs.
        what: &'static str,
        /// The delta's.
        found: String,
        /// `the index's` or `the bundle's`.
        whose: &'static str,
        /// That one's.
        expected: String,
    },
    /// There is nothing that it could continue.
    #[error(
        "{index}: there is no index, and {file} begins after generation {base}; begin with a full snapshot (`runtime snapshot --since 0`)"
    )]
    NoIndex {
        /// Where an index was looked for.
        index: PathBuf,
        /// The delta.
        file: PathBuf,
        /// Where it begins.
        base: u64,
    },
    /// Changes between would be missing.
    #[error(
        "{file}: begins after generation {base}, {index} is at {at}: out of order; apply what is between first, or make a delta with `runtime snapshot --since {at}`"
    )]
    Gap {
        /// The delta.
        file: PathBuf,
        /// Where it begins.
        base: u64,
        /// The index.
        index: PathBuf,
        /// Where that is.
        at: u64,
    },
    /// The index has changes that the source has not.
    #[error(
        "{index}: its generation {at} is not that of {file}: it has changes of its own, or follows another source; `--replace` with a full snapshot (`runtime snapshot --since 0`) gives them up"
    )]
    Diverged {
        /// The index.
        index: PathBuf,
        /// The generation that differs.
        at: u64,
        /// The delta.
        file: PathBuf,
    },
    /// Only all of an index can take another's place.
    #[error(
        "{file}: begins after generation {base}; only a full snapshot (`runtime snapshot --since 0`) can replace an index"
    )]
    NotFull {
        /// The delta.
        file: PathBuf,
        /// Where it begins.
        base: u64,
    },
    /// Rows are missing or too many, though the history is the same.
    #[error(
        "{index}: would hold {found} documents after {file}, its source holds {expected}: rows of it were lost; `--replace` it with a full snapshot (`runtime snapshot --since 0`)"
    )]
    Rows {
        /// The index.
        index: PathBuf,
        /// Documents there would be.
        found: u64,
        /// The delta.
        file: PathBuf,
        /// Documents of the source.
        expected: u64,
    },
}

/// Writes what came after a generation to `out`, which must not exist; `None` if nothing did. Whoever changes the index
/// meanwhile is not disturbed and not seen.
pub fn snapshot(index: &Path, since: u64, out: &Path, key: &SigningKey) -> Result<Option<About>, DeltaError> {
    if out.exists() {
        return Err(FileError::Exists { file: out.to_owned() }.into());
    }
    let (store, index_key) = Store::open_any(index)?;
    let moment = store.moment()?;
    let generation = moment.generation().clone();
    // Of the empty index everything is known, however long ago that was.
    let digest = if since == 0 { Some(String::new()) } else { store.digest_at(since)? };
    let Some(digest) = digest else {
        return Err(DeltaError::Unknown { index: index.to_owned(), since, last: generation.number });
    };
    if since == generation.number {
        return Ok(None);
    }
    let base = Generation { number: since, digest };
    write(&moment, base, index_key, store.count()? as u64, out, key).map(Some)
}

fn write(
    moment: &Moment<'_>,
    base: Generation,
    index: IndexKey,
    total: u64,
    out: &Path,
    key: &SigningKey,
) -> Result<About, DeltaError> {
    let since = base.number;
    let (mut documents, mut removed) = (0, 0);
    let mut sealing = Sealing::create(out, Kind::Delta)?;
    sealing.numbers::<DeltaError>(names::VECTORS, index.inner_dimensions, |part| {
        moment.vectors(since, |vector| Ok(part.write(vector)?))
    })?;
    sealing.lines::<DeltaError>(names::REMOVED, |part| {
        moment.removed(since, |line| {
            removed += 1;
            Ok(part.line(&line)?)
        })
    })?;
    sealing.lines::<DeltaError>(names::DOCUMENTS, |part| {
        moment.documents(since, |line| {
            documents += 1;
            Ok(part.line(&line)?)
        })
    })?;
    sealing.lines::<DeltaError>(names::GENERATIONS, |part| {
        moment.generations(since, |line| Ok(part.line(&line)?))
    })?;
    let (generation, last_key) = (moment.generation().clone(), moment.last_key()?);
    let about = About { base, generation, index, documents, removed, total, last_key };
    sealing.finish(&about, Some(key))?;
    Ok(about)
}

#[cfg(test)]
mod tests;
