//! Where an index is: a directory on this machine, or a database that many servers share.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// Where an index is.
#[derive(Debug, Clone)]
pub enum Place {
    /// A directory, as `runtime index --out` makes it.
    Directory(PathBuf),
    /// Tables in a PostgreSQL database (cargo feature `postgres`).
    Database(DatabaseUrl),
}

impl From<&Path> for Place {
    fn from(dir: &Path) -> Self {
        Self::Directory(dir.to_owned())
    }
}

/// `postgres://USER:PASSWORD@HOST:PORT/DATABASE?parameters`. It may hold a password, so it is never printed: neither
/// `Debug` nor an error shows any of it.
#[derive(Clone, PartialEq, Eq)]
pub struct DatabaseUrl(String);

impl DatabaseUrl {
    /// The secret itself, for whoever connects.
    pub fn secret(&self) -> &str {
        &self.0
    }
}

impl FromStr for DatabaseUrl {
    /// Reading it is left to whoever connects: a command-line parser would print what it refuses.
    type Err = std::convert::Infallible;

    fn from_str(url: &str) -> Result<Self, Self::Err> {
        Ok(Self(url.to_owned()))
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DatabaseUrl(..)")
    }
}

/// What may be made of a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// An index is there already.
    Existing,
    /// Tables are made where they are missing.
    Create,
}

/// How a database is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DatabaseOptions {
    /// Most connections at once.
    pub connections: u32,
    /// Longest that a statement may take, that a connection is waited for, and that a change is tried again for.
    pub timeout: Duration,
}

impl Default for DatabaseOptions {
    fn default() -> Self {
        Self { connections: 8, timeout: Duration::from_secs(10) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Arguments are printed when somebody hunts a bug; passwords must not be among them.
    #[test]
    fn a_url_is_not_printed() {
        let url: DatabaseUrl = "postgres://robot:hunter2@db/skills".parse().unwrap();
        let printed = format!("{:?} {:?}", url, Place::Database(url.clone()));
        assert!(!printed.contains("hunter2") && !printed.contains("robot"), "{printed}");
        assert!(url.secret().contains("hunter2"));
    }
}
