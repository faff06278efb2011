//! Directories that appear whole or not at all.

use super::{FileError, sibling, sync_parent};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

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

    /// An error that names a folder which the user has never seen, and which is gone, cannot be acted upon.
    #[test]
    fn errors_name_the_directory_that_was_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let staged = StagedDir::new(&dir.path().join("my.model")).unwrap();
        let file = staged.path().join("config.json");
        let told = with_final_names(&format!("{0}: no; {0} again", file.display()));
        let expected = dir.path().join("my.model/config.json");
        assert_eq!(told, format!("{0}: no; {0} again", expected.display()));
        let number = std::process::id();
        assert_eq!(with_final_names(&format!(".out.partial-{number}/x: bad")), "out/x: bad");
        assert_eq!(with_final_names(&format!("cannot write .out.partial-{number}/x")), "cannot write out/x");
        assert_eq!(with_final_names("a.partial-0: b"), "a.partial-0: b");
    }
}
