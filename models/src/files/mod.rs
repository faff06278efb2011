//! Files that are either whole or absent: digests, atomic writes, staged directories.

mod staged;

pub use staged::{StagedDir, with_final_names};

use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

/// What went wrong with which file.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file cannot be opened, read or written.
    #[error("{file}: {source}")]
    Io {
        /// The file or directory.
        file: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// The file is not JSON of the expected shape.
    #[error("{file}: not the JSON expected here: {source}")]
    Json {
        /// The file.
        file: PathBuf,
        /// Where and what.
        source: serde_json::Error,
    },
    /// A link to nothing.
    #[error(
        "{file}: a link to {to}, which is not there; the download was cut off or part of it removed: fetch it again"
    )]
    Dangling {
        /// The link.
        file: PathBuf,
        /// What it names.
        to: PathBuf,
    },
    /// An output that would overwrite something.
    #[error("{file}: already exists; name another output or remove it first")]
    Exists {
        /// The directory or file in the way.
        file: PathBuf,
    },
    /// The file was written by a newer or unknown version of this program.
    #[error(
        "{file}: format version {found}, this program reads version {expected}; update the program or write the file again"
    )]
    Version {
        /// The file.
        file: PathBuf,
        /// Version in the file.
        found: u32,
        /// Version read here.
        expected: u32,
    },
}

impl FileError {
    /// Pairs an I/O error with its file.
    pub fn io(file: &Path) -> impl FnOnce(io::Error) -> FileError {
        let file = file.to_owned();
        move |source| FileError::Io { file, source }
    }
}

/// Lower-case hexadecimal SHA-256 of a file's bytes.
pub fn sha256_file(path: &Path) -> Result<String, FileError> {
    let mut file = File::open(path).map_err(FileError::io(path))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0u8; 1 << 20];
    loop {
        let read = file.read(&mut buffer).map_err(FileError::io(path))?;
        if read == 0 {
            return Ok(hex(&hasher.finalize()));
        }
        hasher.update(&buffer[..read]);
    }
}

/// Lower-case hexadecimal SHA-256 of several byte strings, each preceded by its length (so that no two lists collide).
pub fn sha256_parts<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hex(&hasher.finalize())
}

/// SHA-256 of bytes as they are.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Writes through a temporary sibling, fsync and rename: readers see the old file or the new one, never a part.
pub fn write_atomic(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> Result<(), FileError> {
    let temporary = sibling(path, "tmp");
    let attempt = || -> io::Result<()> {
        let mut writer = BufWriter::with_capacity(1 << 20, File::create(&temporary)?);
        write(&mut writer)?;
        writer.flush()?;
        writer.get_ref().sync_all()?;
        fs::rename(&temporary, path)?;
        sync_parent(path)
    };
    attempt().map_err(|source| {
        // Best effort: the error that matters is the one being reported.
        let _ = fs::remove_file(&temporary);
        FileError::Io { file: path.to_owned(), source }
    })
}

/// Pretty-printed JSON with a final newline, written atomically.
pub fn write_json<T: serde::Serialize>(path: &Path, value: &T) -> Result<(), FileError> {
    write_atomic(path, |writer| {
        serde_json::to_writer_pretty(&mut *writer, value)?;
        writer.write_all(b"\n")
    })
}

/// Reads one JSON file.
pub fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, FileError> {
    let text = fs::read_to_string(path).map_err(FileError::io(path))?;
    serde_json::from_str(&text).map_err(|source| FileError::Json { file: path.to_owned(), source })
}

fn sibling(path: &Path, what: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{what}-{}", std::process::id()))
}

fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

/// Whether there is a file of this name, links followed. A link to nothing is an error: whoever made it meant the file
/// to be there.
pub fn present(file: &Path) -> Result<bool, FileError> {
    if file.is_file() {
        return Ok(true);
    }
    match fs::read_link(file) {
        Ok(to) if !file.exists() => Err(FileError::Dangling { file: file.to_owned(), to }),
        _ => Ok(false),
    }
}

/// Copies a file, links followed: what its owner does to it later does not reach the copy. Where the file system can, both
/// share their blocks until one is written to: `fs::copy` asks the kernel for it (`copy_file_range`).
pub fn copy(from: &Path, to: &Path) -> Result<(), FileError> {
    fs::copy(from, to).map(|_| ()).map_err(FileError::io(from))
}

/// Hard-links `from` to `to`, or copies where the file system cannot link: large weights are shared between directories of
/// our own making, whose files are replaced and never written to. A link leads to somebody else's file: copied.
pub fn link_or_copy(from: &Path, to: &Path) -> Result<(), FileError> {
    let own = fs::symlink_metadata(from).map_err(FileError::io(from))?.is_file();
    if own && fs::hard_link(from, to).is_ok() {
        return Ok(());
    }
    copy(from, to)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    /// A crash or error while writing must leave neither a half file nor a stray one.
    #[test]
    fn a_failed_write_leaves_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        write_json(&path, &1).unwrap();
        let failed = write_atomic(&path, |w| {
            w.write_all(b"half")?;
            Err(io::Error::other("disk full"))
        });
        assert!(failed.unwrap_err().to_string().contains("disk full"));
        assert_eq!(read_json::<i32>(&path).unwrap(), 1);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    /// A link to a blob that is gone is a broken download, not a file that was never there; and what is shared between our own
    /// directories must never be somebody else's file.
    #[test]
    fn links_are_followed_copied_and_missed() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("own"), "1").unwrap();
        std::os::unix::fs::symlink("own", at("link")).unwrap();
        std::os::unix::fs::symlink("gone", at("dangling")).unwrap();
        assert!(
            present(&at("own")).unwrap() && present(&at("link")).unwrap() && !present(&at("absent")).unwrap()
        );
        let told = present(&at("dangling")).unwrap_err().to_string();
        assert!(told.contains("dangling: a link to gone"), "{told}");
        let inode = |name: &str| fs::symlink_metadata(at(name)).unwrap().ino();
        link_or_copy(&at("own"), &at("linked")).unwrap();
        assert_eq!(inode("linked"), inode("own"));
        link_or_copy(&at("link"), &at("from link")).unwrap();
        copy(&at("own"), &at("copied")).unwrap();
        for name in ["from link", "copied"] {
            assert_eq!(fs::read_to_string(at(name)).unwrap(), "1");
            assert!(
                inode(name) != inode("own") && fs::symlink_metadata(at(name)).unwrap().is_file(),
                "{name}"
            );
        }
    }
}
