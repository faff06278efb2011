//! What can be wrong with an index's database, in sentences.

use rusqlite::ErrorCode;
use std::path::{Path, PathBuf};

/// Why an index cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no such directory, or no index in it.
    #[error("{dir}: is not an index ({reason}); make one with `runtime index`")]
    NotAnIndex {
        /// The directory.
        dir: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The file is not a database any more, or contradicts itself.
    #[error("{file}: damaged: {reason}; restore the index from a copy or make it again with `runtime index`")]
    Damaged {
        /// The database.
        file: PathBuf,
        /// What was seen.
        reason: String,
    },
    /// Written by a newer or unknown version of this program.
    #[error(
        "{file}: format version {found}, this program reads version {expected}; update the program or index again"
    )]
    Version {
        /// The database.
        file: PathBuf,
        /// Version found.
        found: String,
        /// Version read here.
        expected: u32,
    },
    /// Vectors of two bundles must not be compared.
    #[error(
        "{file}: was made with another bundle ({what} {found}, this bundle's is {expected}); index the documents again into a new directory, or use the bundle it was made with"
    )]
    OtherBundle {
        /// The database.
        file: PathBuf,
        /// What differs.
        what: &'static str,
        /// The index's.
        found: String,
        /// The bundle's.
        expected: String,
    },
    /// Somebody else writes.
    #[error(
        "{dir}: another process is changing this index; try again when it has finished (reading is possible meanwhile)"
    )]
    Writer {
        /// The index.
        dir: PathBuf,
    },
    /// SQLite waited for somebody else in vain.
    #[error("{file}: another program keeps this database locked; close it and try again")]
    Locked {
        /// The database.
        file: PathBuf,
    },
    /// A reader asks for changes that are not remembered any more.
    #[error(
        "{file}: what changed after generation {since} is no longer known, only what changed after {oldest}; read or copy the whole index instead"
    )]
    Forgotten {
        /// The database.
        file: PathBuf,
        /// The generation that was asked for.
        since: u64,
        /// The earliest one that can be.
        oldest: u64,
    },
    /// A vector that does not belong into this index.
    #[error(
        "document `{id}`: its vector has {found} dimensions (finite: {finite}), the index holds finite vectors of {expected}"
    )]
    Vector {
        /// The document.
        id: String,
        /// Numbers found.
        found: usize,
        /// Whether all of them are finite.
        finite: bool,
        /// Numbers per document.
        expected: usize,
    },
    /// Any other refusal.
    #[error("{file}: {message}")]
    Sqlite {
        /// The file.
        file: PathBuf,
        /// SQLite's or the system's words.
        message: String,
    },
}

/// Turns SQLite's refusals into sentences.
pub(super) fn sql(file: &Path) -> impl Fn(rusqlite::Error) -> StoreError + use<> {
    let file = file.to_owned();
    move |error| {
        let file = file.clone();
        let code = error.sqlite_error_code();
        // The detail of a failed statement would quote the statement, which helps nobody here.
        let message = match &error {
            rusqlite::Error::SqliteFailure(_, Some(message)) => message.clone(),
            error => error.to_string(),
        };
        match code {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                StoreError::Damaged { file, reason: message }
            }
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => StoreError::Locked { file },
            Some(_) if message.starts_with("no such table") || message.starts_with("no such column") => {
                StoreError::Damaged { file, reason: message }
            }
            // A column of another type or text that is not UTF-8.
            None => StoreError::Damaged { file, reason: message },
            Some(_) => StoreError::Sqlite { file, message },
        }
    }
}
