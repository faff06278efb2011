//! Writing: one process at a time, every batch a transaction and a generation.

use super::row::{checksum, digest, written};
use super::{FILE_NAME, FORMAT_VERSION, IndexKey, Store, StoreError, existing, sql};
use crate::document::Document;
use models::files;
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};
use std::fs::{File, TryLockError};
use std::path::Path;
use std::time::{Duration, Instant};

/// Name of the file that the writer locks.
const LOCK_FILE: &str = "writer.lock";
/// How long a writer waits for another one.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long it sleeps between two looks.
const PAUSE: Duration = Duration::from_millis(5);
/// Generations whose changes an index remembers. Whoever is further behind reads all of it anew.
pub const KEPT_GENERATIONS: u64 = 10_000;

const SCHEMA: &str = "
    PRAGMA page_size = 8192;
    PRAGMA journal_mode = WAL;
    -- Nothing is acknowledged before the new directory is synced as a whole and renamed (Writer::create).
    PRAGMA synchronous = OFF;
    BEGIN;
    CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
    -- The vector stands before the texts, so that reading all vectors does not walk through the texts.
    CREATE TABLE documents (
        key INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        generation INTEGER NOT NULL,
        checksum INTEGER NOT NULL,
        metadata TEXT NOT NULL,
        vector BLOB NOT NULL,
        digest TEXT NOT NULL,
        title TEXT NOT NULL,
        text TEXT NOT NULL
    ) STRICT;
    CREATE INDEX documents_by_generation ON documents (generation);
    CREATE TABLE removed (key INTEGER PRIMARY KEY, id TEXT NOT NULL, generation INTEGER NOT NULL) STRICT;
    CREATE INDEX removed_by_generation ON removed (generation);
    CREATE TABLE generations (number INTEGER PRIMARY KEY, digest TEXT NOT NULL) STRICT;
    INSERT INTO generations VALUES (0, '');
    COMMIT;";

/// A document that is to be stored.
#[derive(Debug, Clone)]
pub struct Record<'a> {
    /// Id, title, text and metadata.
    pub document: &'a Document,
    /// Its vector, `[m]`; `None` keeps the one that is there.
    pub vector: Option<Vec<f32>>,
}

/// What storing a document will do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Its id is new.
    Added,
    /// Its id is there with another title or text.
    Replaced,
    /// It is there with other metadata: its vector stays.
    Relabelled,
    /// It is there as it is.
    Unchanged,
}

/// An index's database, opened by its one writer.
#[derive(Debug)]
pub struct Writer {
    pub(super) store: Store,
    pub(super) kept: u64,
    _lock: File,
}

impl Writer {
    /// Makes an empty index in an existing directory. This one writer does not wait for the disk: the directory is
    /// meant to be a staged one, whose files are synced before it is renamed, so that a half-made index is never seen.
    pub fn create(dir: &Path, key: &IndexKey) -> Result<Self, StoreError> {
        let lock = lock(dir, Duration::ZERO)?;
        let file = dir.join(FILE_NAME);
        let connection = Connection::open(&file).map_err(sql(&file))?;
        connection.execute_batch(SCHEMA).map_err(sql(&file))?;
        let version = [("format_version", FORMAT_VERSION.to_string())];
        let entries = version.into_iter().chain(key.entries().map(|(_, name, value)| (name, value)));
        for (name, value) in entries {
            connection
                .execute("INSERT INTO meta (name, value) VALUES (?1, ?2)", params![name, value])
                .map_err(sql(&file))?;
        }
        Ok(Self { store: Store::check(&file, connection, Some(key))?, kept: KEPT_GENERATIONS, _lock: lock })
    }

    /// Opens an existing index for writing; a second writer is refused, but not before it has waited a little: whoever keeps
    /// the index open saves aside what it has linked, which nobody can know of.
    pub fn open(dir: &Path, key: &IndexKey) -> Result<Self, StoreError> {
        Self::open_within(dir, key, PATIENCE)
    }

    /// The same, waiting for another writer for so long at most.
    pub fn open_within(dir: &Path, key: &IndexKey, patience: Duration) -> Result<Self, StoreError> {
        let file = existing(dir)?;
        let lock = lock(dir, patience)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&file, flags).map_err(sql(&file))?;
        connection.execute_batch("PRAGMA synchronous = FULL").map_err(sql(&file))?;
        Ok(Self { store: Store::check(&file, connection, Some(key))?, kept: KEPT_GENERATIONS, _lock: lock })
    }

    /// Remembers the changes of this many generations from now on, instead of [`KEPT_GENERATIONS`].
    pub fn keep_generations(&mut self, kept: u64) {
        self.kept = kept;
    }

    /// Reading through the writer's connection.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// What [`Writer::put`] would do with each document.
    pub fn plan(&self, documents: &[Document]) -> Result<Vec<Change>, StoreError> {
        let file = &self.store.file;
        let mut statement = self
            .store
            .connection
            .prepare_cached("SELECT digest, title, text FROM documents WHERE id = ?1")
            .map_err(sql(file))?;
        let mut plan = Vec::with_capacity(documents.len());
        for document in documents {
            let found: Option<(String, String, String)> = statement
                .query_row([&document.id], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
                .optional()
                .map_err(sql(file))?;
            plan.push(match found {
                None => Change::Added,
                Some((found, ..)) if found == digest(document, &written(&document.metadata)) => {
                    Change::Unchanged
                }
                Some((_, title, text)) if title == document.title && text == document.text => {
                    Change::Relabelled
                }
                Some(_) => Change::Replaced,
            });
        }
        Ok(plan)
    }

    /// Stores a batch, all of it or nothing, and returns the documents' keys; when it returns, the batch survives a
    /// power cut. A document whose id is there replaces the old one and keeps its key.
    pub fn put(&mut self, records: &[Record<'_>]) -> Result<Vec<i64>, StoreError> {
        let (number, digest_before) = self.store.next_generation()?;
        let Store { file, connection, inner_dimensions, .. } = &mut self.store;
        let transaction = connection.transaction().map_err(sql(file))?;
        let mut keys = Vec::with_capacity(records.len());
        let mut changes = vec![digest_before];
        {
            let mut insert = transaction
                .prepare_cached(
                    "INSERT INTO documents (id, generation, checksum, metadata, vector, digest, title, text)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
                     ON CONFLICT (id) DO UPDATE SET generation = excluded.generation,
                         checksum = excluded.checksum, metadata = excluded.metadata, vector = excluded.vector,
                         digest = excluded.digest, title = excluded.title, text = excluded.text
                     RETURNING key",
                )
                .map_err(sql(file))?;
            let mut known = transaction
                .prepare_cached("SELECT vector FROM documents WHERE id = ?1")
                .map_err(sql(file))?;
            for Record { document, vector } in records {
                let Document { id, title, text, metadata } = document;
                let blob: Vec<u8> = match vector {
                    Some(vector) => {
                        let finite = vector.iter().all(|x| x.is_finite());
                        if vector.len() != *inner_dimensions || !finite {
                            let (id, found, expected) = (id.clone(), vector.len(), *inner_dimensions);
                            return Err(StoreError::Vector { id, found, finite, expected });
                        }
                        vector.iter().flat_map(|x| x.to_le_bytes()).collect()
                    }
                    None => known.query_row([id], |row| row.get(0)).map_err(sql(file))?,
                };
                let metadata = written(metadata);
                let (checksum, digest) = (checksum(id, &metadata, &blob), digest(document, &metadata));
                let row = params![id, number, checksum, metadata, blob, digest, title, text];
                keys.push(insert.query_row(row, |row| row.get(0)).map_err(sql(file))?);
                changes.extend(["put".to_owned(), digest]);
            }
        }
        commit_generation(transaction, number, &changes, self.kept).map_err(sql(file))?;
        Ok(keys)
    }

    /// Removes documents, all of them or none, and returns the keys of those that were there; when it returns, they stay
    /// removed after a power cut.
    pub fn remove<S: AsRef<str>>(&mut self, ids: &[S]) -> Result<Vec<i64>, StoreError> {
        let (number, digest_before) = self.store.next_generation()?;
        let Store { file, connection, .. } = &mut self.store;
        let transaction = connection.transaction().map_err(sql(file))?;
        let mut keys = Vec::new();
        let mut changes = vec![digest_before];
        {
            let mut delete = transaction
                .prepare_cached("DELETE FROM documents WHERE id = ?1 RETURNING key")
                .map_err(sql(file))?;
            let mut remember = transaction
                .prepare_cached("INSERT INTO removed (key, id, generation) VALUES (?1, ?2, ?3)")
                .map_err(sql(file))?;
            for id in ids.iter().map(AsRef::as_ref) {
                let key: Option<i64> =
                    delete.query_row([id], |row| row.get(0)).optional().map_err(sql(file))?;
                if let Some(key) = key {
                    remember.execute(params![key, id, number]).map_err(sql(file))?;
                    keys.push(key);
                    changes.extend(["remove".to_owned(), id.to_owned()]);
                }
            }
        }
        if !keys.is_empty() {
            commit_generation(transaction, number, &changes, self.kept).map_err(sql(file))?;
        }
        Ok(keys)
    }

    /// Gives the room of removed documents back to the file system.
    pub fn compact(&mut self) -> Result<(), StoreError> {
        self.store.connection.execute_batch("VACUUM").map_err(sql(&self.store.file))
    }

    /// Moves what no reader needs any more from the log into the database and closes it: the last one to close leaves no log,
    /// so that the directory can be copied or renamed.
    pub fn close(self) -> Result<(), StoreError> {
        let Store { file, connection, .. } = self.store;
        // Passive: a reader that takes its time must not make a writer wait. The answer is a row of counts.
        connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())).map_err(sql(&file))?;
        connection.close().map_err(|(_, error)| sql(&file)(error))
    }
}

fn lock(dir: &Path, patience: Duration) -> Result<File, StoreError> {
    let path = dir.join(LOCK_FILE);
    let io = |error: std::io::Error| StoreError::Sqlite { file: path.clone(), message: error.to_string() };
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(io)?;
    let start = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if start.elapsed() < patience => std::thread::sleep(PAUSE),
            Err(TryLockError::WouldBlock) => return Err(StoreError::Writer { dir: dir.to_owned() }),
            Err(TryLockError::Error(error)) => return Err(io(error)),
        }
    }
}

/// Ends a batch: its generation's digest continues the one before it.
fn commit_generation(
    transaction: rusqlite::Transaction<'_>,
    number: i64,
    changes: &[String],
    kept: u64,
) -> rusqlite::Result<()> {
    let digest = files::sha256_parts(changes.iter().map(String::as_bytes));
    transaction
        .execute("INSERT INTO generations (number, digest) VALUES (?1, ?2)", params![number, digest])?;
    forget_old_generations(&transaction, number, kept)?;
    transaction.commit()
}

/// Whoever is at the oldest generation that stays has seen the removals until then, so those go with the ones before it.
pub(super) fn forget_old_generations(
    transaction: &rusqlite::Transaction<'_>,
    number: i64,
    kept: u64,
) -> rusqlite::Result<()> {
    let oldest = number.saturating_sub_unsigned(kept);
    transaction.prepare_cached("DELETE FROM generations WHERE number < ?1")?.execute([oldest])?;
    transaction.prepare_cached("DELETE FROM removed WHERE generation <= ?1")?.execute([oldest])?;
    Ok(())
}
