//! Where an index lies: which file its path means now, and whether anybody can write there.

use super::error::StoreError;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A file itself, whatever name leads to it: device and inode, which no other file has while this one is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    /// Whether an index directory holds this file as its database.
    pub fn is_at(&self, dir: &Path) -> bool {
        Self::of(&dir.join(super::FILE_NAME)).is_ok_and(|found| found == *self)
    }

    /// Of the file that a path leads to now. It is looked at and not opened: closing it would give up SQLite's locks.
    pub(super) fn of(file: &Path) -> Result<Self, StoreError> {
        match fs::metadata(file) {
            Ok(found) => Ok(Self { device: found.dev(), inode: found.ino() }),
            Err(error) => Err(StoreError::Sqlite { file: file.to_owned(), message: error.to_string() }),
        }
    }
}

/// What a database and its log look like from outside; any change of theirs changes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stamp {
    database: Option<(u64, i64, i64)>,
    log: Option<(u64, i64, i64)>,
}

impl Stamp {
    pub(super) fn of(file: &Path) -> Self {
        let look = |found: Metadata| (found.len(), found.mtime(), found.mtime_nsec());
        let look = |path: &Path| fs::metadata(path).ok().map(look);
        Self { database: look(file), log: look(&log(file)).filter(|(length, ..)| *length > 0) }
    }
}

/// Whether changes wait in the write-ahead log.
pub(super) fn has_log(file: &Path) -> bool {
    fs::metadata(log(file)).is_ok_and(|log| log.len() > 0)
}

/// Bytes of a database and its log.
pub(super) fn bytes(file: &Path) -> u64 {
    [file, &log(file)].into_iter().filter_map(|path| fs::metadata(path).ok()).map(|found| found.len()).sum()
}

/// Whether this process can put no file into a directory. Only trying tells: rights, file systems and their mounts differ.
pub(super) fn is_read_only(dir: &Path) -> bool {
    let probe = dir.join(format!(".writable-{}", std::process::id()));
    match File::create_new(&probe) {
        Ok(_) => {
            // Best effort: an empty file costs nothing.
            let _ = fs::remove_file(&probe);
            false
        }
        Err(error) => {
            matches!(error.kind(), io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied)
        }
    }
}

fn log(file: &Path) -> PathBuf {
    let mut log = file.as_os_str().to_owned();
    log.push("-wal");
    log.into()
}

/// A path inside an SQLite URI.
pub(super) fn percent_encoded(path: &Path) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"/-._~".contains(byte);
    path.as_os_str()
        .as_encoded_bytes()
        .iter()
        .map(|byte| if plain(byte) { char::from(*byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}
