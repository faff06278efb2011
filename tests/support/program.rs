//! The programs as users start them: what they print, how they end, and what they leave behind.

use crate::repository;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::SystemTime;

/// How a program ended.
#[derive(Debug)]
pub struct Finished {
    /// The command line, for messages.
    pub command: String,
    /// Exit code; `None` after a signal.
    pub code: Option<i32>,
    /// Data.
    pub stdout: String,
    /// Talk.
    pub stderr: String,
}

impl Finished {
    /// Fails unless the program did what was asked; returns itself.
    #[track_caller]
    pub fn done(self) -> Self {
        assert_eq!(self.code, Some(0), "{}\n{}", self.command, self.stderr);
        self
    }

    /// The one JSON value on stdout.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|e| panic!("{}: {e}: {}", self.command, self.stdout))
    }

    /// Fails unless the program refused in one clear sentence that has all `words` in it, and printed no data.
    #[track_caller]
    pub fn refused(self, words: &[&str]) -> Self {
        let said = format!("{}\nstdout: {}\nstderr: {}", self.command, self.stdout, self.stderr);
        assert_eq!(self.code, Some(2), "{said}");
        assert_eq!(self.stdout, "", "{said}");
        for panic in ["panicked", "RUST_BACKTRACE", "unwrap()", "Exception raised from"] {
            assert!(!self.stderr.contains(panic), "{said}");
        }
        for word in words {
            assert!(self.stderr.contains(word), "lacks {word:?}\n{said}");
        }
        let opens = |line: &&str| {
            ["train: ", "export: ", "runtime: ", "error: "].iter().any(|opening| line.starts_with(opening))
        };
        let sentences: Vec<&str> = self.stderr.lines().filter(opens).collect();
        assert_eq!(sentences.len(), 1, "expected one sentence\n{said}");
        // One sentence and one reading of it: nothing is said twice over.
        assert!(sentences[0].len() < 700, "{said}");
        self
    }
}

/// Runs a program with arguments to its end.
pub fn run<A: AsRef<std::ffi::OsStr>>(name: &str, arguments: &[A]) -> Finished {
    let mut command = program(name);
    command.args(arguments);
    finish(&mut command)
}

/// Runs a prepared command to its end.
pub fn finish(command: &mut Command) -> Finished {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Finished {
        command: format!("{command:?}"),
        code: output.status.code(),
        stdout: text(&output.stdout),
        stderr: text(&output.stderr),
    }
}

/// A program of this workspace, not yet started. Idle threads sleep, so that tests that run side by side do not take each
/// other's cores; variables of the developer's own that would change what is found are not passed on.
pub fn program(name: &str) -> Command {
    let mut command = Command::new(binary(name));
    command.env("OMP_WAIT_POLICY", "PASSIVE").env_remove("ORT_DYLIB_PATH").env_remove("RUST_LOG");
    for launcher in ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"] {
        command.env_remove(launcher);
    }
    command
}

/// The program's file, beside this test's own (`target/release`). Cargo builds no programs of other packages for a test,
/// so what is missing or older than the sources is built first.
fn binary(name: &str) -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let directory = BUILT.get_or_init(|| {
        let test = std::env::current_exe().unwrap();
        let directory = test.ancestors().nth(2).unwrap().to_owned();
        let with_torch = cfg!(feature = "torch");
        let wanted: &[&str] =
            if with_torch { &["train", "export", "runtime"] } else { &["export", "runtime"] };
        let newest = newest_source();
        if wanted.iter().any(|name| modified(&directory.join(name)).is_none_or(|built| built < newest)) {
            build(&directory, with_torch);
        }
        directory
    });
    let file = directory.join(name);
    assert!(file.exists(), "{}: not there; build it with `make build`", file.display());
    file
}

/// As `make build` does: what needs no libtorch apart from what does, because one command would unite their features.
fn build(directory: &Path, with_torch: bool) {
    let packages: &[&[&str]] = if with_torch { &[&[], &["-p", "train"]] } else { &[&[]] };
    for packages in packages {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.current_dir(repository()).arg("build").args(*packages);
        command.arg("--target-dir").arg(directory.parent().unwrap());
        if directory.ends_with("release") {
            command.arg("--release");
        }
        assert!(command.status().unwrap().success(), "{command:?}");
    }
}

fn modified(file: &Path) -> Option<SystemTime> {
    fs::metadata(file).ok()?.modified().ok()
}

fn newest_source() -> SystemTime {
    let mut newest = SystemTime::UNIX_EPOCH;
    let mut waiting: Vec<PathBuf> = ["models", "train", "train/c10d", "export", "runtime"]
        .iter()
        .map(|name| repository().join(name).join("src"))
        .collect();
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                waiting.push(path);
            } else {
                newest = newest.max(modified(&path).unwrap());
            }
        }
    }
    newest
}

/// Every file below a directory with its length, and every directory, hidden ones too: to see what a command left behind.
pub fn listing(directory: &Path) -> BTreeMap<PathBuf, u64> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![directory.to_owned()];
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let entry = entry.unwrap();
            let metadata = entry.metadata().unwrap();
            found.insert(entry.path(), if metadata.is_dir() { 0 } else { metadata.len() });
            if metadata.is_dir() {
                waiting.push(entry.path());
            }
        }
    }
    found
}
