//! Files that are either whole or absent: digests, atomic writes, staged directories.

use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::MetadataExt;
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

/// A directory under construction: filled beside its final place, renamed when whole, removed when dropped before. What killed
/// runs left there is removed by the next one.
#[derive(Debug)]
pub struct StagedDir {
    temporary: PathBuf,
    target: PathBuf,
    committed: bool,
    /// The directory, locked: whoever finds it unlocked knows that nobody fills it any more.
    _lock: File,
}

impl StagedDir {
    /// Starts a directory that will appear at `target`, which must not exist (an empty directory is fine).
    pub fn new(target: &Path) -> Result<Self, FileError> {
        let occupied = match fs::read_dir(target) {
            Ok(mut entries) => entries.next().is_some(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(_) => true,
        };
        if occupied {
            return Err(FileError::Exists { file: target.to_owned() });
        }
        let temporary = sibling(target, "partial");
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).map_err(FileError::io(parent))?;
        }
        remove_abandoned(&temporary);
        // Another run that looks for abandoned ones may take it before it is locked, while it is empty.
        for _ in 0..10 {
            fs::create_dir(&temporary).map_err(FileError::io(&temporary))?;
            let lock = File::open(&temporary).map_err(FileError::io(&temporary))?;
            // Where a file system cannot lock, nobody removes anything.
            let _ = lock.try_lock();
            if same_file(&lock, &temporary) {
                return Ok(Self { temporary, target: target.to_owned(), committed: false, _lock: lock });
            }
        }
        Err(FileError::Exists { file: temporary })
    }

    /// Where to write the files meanwhile.
    pub fn path(&self) -> &Path {
        &self.temporary
    }

    /// Syncs every file and renames the directory into place.
    pub fn commit(mut self) -> Result<(), FileError> {
        for entry in fs::read_dir(&self.temporary).map_err(FileError::io(&self.temporary))? {
            let path = entry.map_err(FileError::io(&self.temporary))?.path();
            File::open(&path).and_then(|f| f.sync_all()).map_err(FileError::io(&path))?;
        }
        // Without this, the names in it may be gone after a power cut.
        File::open(&self.temporary).and_then(|dir| dir.sync_all()).map_err(FileError::io(&self.temporary))?;
        if self.target.exists() {
            fs::remove_dir(&self.target).map_err(FileError::io(&self.target))?;
        }
        fs::rename(&self.temporary, &self.target).map_err(FileError::io(&self.target))?;
        self.committed = true;
        sync_parent(&self.target).map_err(FileError::io(&self.target))
    }
}

/// Removes the siblings that other processes left when they were killed; `temporary` is this process's own name for one.
fn remove_abandoned(temporary: &Path) {
    let name = temporary.file_name().unwrap_or_default().to_string_lossy();
    let Some((prefix, _)) = name.rsplit_once('-') else { return };
    let parent = temporary.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(prefix)?.strip_prefix('-'));
        if number.is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
            && let Ok(abandoned) = File::open(entry.path())
            && abandoned.try_lock().is_ok()
        {
            // Best effort: what cannot be removed costs room, no more.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Whether a path still leads to an open file.
fn same_file(open: &File, path: &Path) -> bool {
    let identity = |found: fs::Metadata| (found.dev(), found.ino());
    match (open.metadata(), fs::metadata(path)) {
        (Ok(open), Ok(there)) => identity(open) == identity(there),
        _ => false,
    }
}

impl Drop for StagedDir {
    fn drop(&mut self) {
        if !self.committed {
            // Best effort: an error path is already being reported.
            let _ = fs::remove_dir_all(&self.temporary);
        }
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

/// A text in which this process's directories under construction have the names that they are to get: a user has never
/// seen the others, and they are gone when the text is read.
pub fn with_final_names(text: &str) -> String {
    let mark = format!(".partial-{}", std::process::id());
    let mut told = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(&mark) {
        let name = before.rfind("/.").map(|slash| slash + 1);
        let name = name
            .or_else(|| before.starts_with('.').then_some(0))
            .or(before.rfind(" .").map(|space| space + 1));
        match name {
            Some(dot) => {
                told.push_str(&before[..dot]);
                told.push_str(&before[dot + 1..]);
            }
            None => told.push_str(before),
        }
        rest = after;
    }
    told + rest
}

#[cfg(test)]
mod tests {
    use super::*;

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

    /// An output directory that exists is never merged into or overwritten, and a dropped one vanishes.
    #[test]
    fn staged_directories_appear_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        let staged = StagedDir::new(&target).unwrap();
        fs::write(staged.path().join("x"), "1").unwrap();
        drop(staged);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let staged = StagedDir::new(&target).unwrap();
        fs::write(staged.path().join("x"), "1").unwrap();
        staged.commit().unwrap();
        assert_eq!(fs::read_to_string(target.join("x")).unwrap(), "1");
        assert!(matches!(StagedDir::new(&target), Err(FileError::Exists { .. })));
    }
    /// Killed runs must not fill a robot's disk, nor keep the next one from starting in a container, where every process has the
    /// same number; what somebody is filling now must stay.
    #[test]
    fn what_killed_runs_left_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        let left = |number: u32| dir.path().join(format!(".out.partial-{number}"));
        let (own, other, others_target) =
            (left(std::process::id()), left(1), dir.path().join(".out2.partial-1"));
        for path in [&own, &other, &others_target, &dir.path().join(".out.partial-x")] {
            fs::create_dir(path).unwrap();
            fs::write(path.join("big"), "1").unwrap();
        }
        let living = left(2);
        fs::create_dir(&living).unwrap();
        let lock = File::open(&living).unwrap();
        lock.try_lock().unwrap();
        let staged = StagedDir::new(&target).unwrap();
        assert!(!other.exists() && living.exists() && others_target.exists());
        assert_eq!(fs::read_dir(staged.path()).unwrap().count(), 0, "nothing of another run is in it");
        // A second one of the same name finds the first one locked.
        assert!(StagedDir::new(&target).is_err());
        fs::write(staged.path().join("x"), "1").unwrap();
        staged.commit().unwrap();
        assert_eq!(fs::read_dir(&target).unwrap().count(), 1);
        drop(lock);
        drop(StagedDir::new(&dir.path().join("out3")).unwrap());
        fs::remove_dir_all(&target).unwrap();
        drop(StagedDir::new(&target).unwrap());
        let mut there: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        there.sort();
        assert_eq!(there, [".out.partial-x", ".out2.partial-1"]);
    }
}
