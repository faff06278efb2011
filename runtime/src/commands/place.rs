//! Where an index is, as it is typed.

use anyhow::{Context, bail};
use runtime::place::{DatabaseOptions, DatabaseUrl, Place};
use std::path::PathBuf;
use std::time::Duration;

/// One of the two.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub struct IndexArgs {
    /// Index directory, as written by `runtime index`
    #[arg(long, value_name = "DIR")]
    pub index: Option<PathBuf>,
    /// Index in a PostgreSQL database with pgvector: postgres://USER@HOST:PORT/DATABASE, the password in PGPASSWORD
    #[arg(long, value_name = "URL")]
    pub store: Option<DatabaseUrl>,
}

impl IndexArgs {
    /// The place.
    pub fn place(&self) -> anyhow::Result<Place> {
        place(self.index.as_ref(), self.store.as_ref()).context("name the index: --index DIR or --store URL")
    }
}

/// What was typed, if anything was.
pub fn place(dir: Option<&PathBuf>, url: Option<&DatabaseUrl>) -> Option<Place> {
    let directory = dir.map(|dir| Place::Directory(dir.clone()));
    directory.or_else(|| url.map(|url| Place::Database(url.clone())))
}

/// How the database of `--store` is used.
#[derive(Debug, clap::Args)]
pub struct DatabaseArgs {
    /// Most connections to the database of --store at once
    #[arg(long, value_name = "N", default_value_t = DatabaseOptions::default().connections)]
    store_connections: u32,
    /// Seconds that a statement in the database may take, and that a connection or a restarting server is waited for
    #[arg(long, value_name = "SECONDS", default_value_t = DatabaseOptions::default().timeout.as_secs_f64())]
    store_timeout: f64,
}

impl DatabaseArgs {
    /// The same for the library.
    pub fn options(&self) -> anyhow::Result<DatabaseOptions> {
        if self.store_connections == 0 {
            bail!("--store-connections is 0; it must be at least 1");
        }
        let timeout = Duration::try_from_secs_f64(self.store_timeout).ok().filter(|time| !time.is_zero());
        let timeout = timeout
            .with_context(|| format!("--store-timeout {} is not a time in seconds", self.store_timeout))?;
        Ok(DatabaseOptions { connections: self.store_connections, timeout })
    }
}
