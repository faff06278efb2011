//! Documents and their vectors in SQLite: the source of truth of an index.
//!
//! ```text
//! INDEX/documents.sqlite   this file's tables: write-ahead log, synchronous
//! INDEX/writer.lock        held by the one process that writes
//! INDEX/graph.usearch, graph.json   an accelerator that can always be rebuilt (crate::index)
//! ```
//! What a call has acknowledged is on the disk: every batch is a transaction. SQLite has no checksums of its own, so each
//! vector carries one, checked when vectors are read, and each text a digest, checked when a text is shown.

pub use self::error::StoreError;
use self::error::sql;
use crate::search::Rows;
use models::beir::Document;
use models::files;
use models::student::Form;
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};
use std::collections::HashMap;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

mod error;

/// Version of the tables that this program reads and writes.
pub const FORMAT_VERSION: u32 = 1;
/// Name of the database inside an index.
pub const FILE_NAME: &str = "documents.sqlite";
/// Name of the file that the writer locks.
const LOCK_FILE: &str = "writer.lock";
/// How long a reader waits for a moment when the writer holds the file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

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
        checksum INTEGER NOT NULL,
        vector BLOB NOT NULL,
        digest TEXT NOT NULL,
        title TEXT NOT NULL,
        text TEXT NOT NULL
    ) STRICT;
    COMMIT;";

/// What an index is keyed to: everything that shapes a document vector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexKey {
    /// The bundle's `document_digest`.
    pub document_digest: String,
    /// Numbers per document, m.
    pub inner_dimensions: usize,
    /// Predictor form.
    pub form: Form,
}

/// A document that is to be stored.
#[derive(Debug, Clone)]
pub struct Record<'a> {
    /// Id, title and text.
    pub document: &'a Document,
    /// Its vector, `[m]`.
    pub vector: Vec<f32>,
}

/// What storing a document will do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Its id is new.
    Added,
    /// Its id is there with other contents.
    Replaced,
    /// It is there as it is.
    Unchanged,
}

/// An index's database, opened for reading.
#[derive(Debug)]
pub struct Store {
    file: PathBuf,
    connection: Connection,
    inner_dimensions: usize,
}

/// An index's database, opened by its one writer.
#[derive(Debug)]
pub struct Writer {
    store: Store,
    _lock: File,
}

impl Store {
    /// Opens an index that must have been made with this very bundle.
    pub fn open(dir: &Path, key: &IndexKey) -> Result<Self, StoreError> {
        let file = existing(dir)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let opened = Connection::open_with_flags(&file, flags)
            .map_err(sql(&file))
            .and_then(|c| Self::check(&file, c, key));
        match opened {
            // A log cannot be opened on a file system that cannot be written; nobody can be writing there either. With
            // something in the log, this would read without it.
            Err(StoreError::Sqlite { message, .. })
                if (message.contains("unable to open") || message.contains("readonly"))
                    && !has_log(&file) =>
            {
                let uri = format!("file:{}?immutable=1", percent_encoded(&file));
                let flags = flags | OpenFlags::SQLITE_OPEN_URI;
                let connection = Connection::open_with_flags(uri, flags).map_err(sql(&file))?;
                Self::check(&file, connection, key)
            }
            opened => opened,
        }
    }

    fn check(file: &Path, connection: Connection, key: &IndexKey) -> Result<Self, StoreError> {
        connection.busy_timeout(BUSY_TIMEOUT).map_err(sql(file))?;
        let store = Self { file: file.to_owned(), connection, inner_dimensions: key.inner_dimensions };
        let found = store.meta("format_version")?;
        if found != FORMAT_VERSION.to_string() {
            return Err(StoreError::Version { file: store.file, found, expected: FORMAT_VERSION });
        }
        for (what, name, expected) in key.entries() {
            let found = store.meta(name)?;
            if found != expected {
                let short = |value: String| value.chars().take(12).collect();
                let (found, expected) = (short(found), short(expected));
                return Err(StoreError::OtherBundle { file: store.file, what, found, expected });
            }
        }
        Ok(store)
    }

    /// The database.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Number of the last change: a graph is only as good as the generation it was built from.
    pub fn generation(&self) -> Result<u64, StoreError> {
        let value = self.meta("generation")?;
        value.parse().map_err(|_| self.damaged(format!("generation is `{value}`")))
    }

    /// Number of documents.
    pub fn count(&self) -> Result<usize, StoreError> {
        let count: i64 = self
            .connection
            .query_row("SELECT count(*) FROM documents", [], |row| row.get(0))
            .map_err(sql(&self.file))?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    /// Reads all vectors, each against its checksum, with the generation they belong to. The rows are in order of key.
    pub fn load(&self) -> Result<(Rows, u64), StoreError> {
        // One transaction: vectors and generation belong together even while somebody writes.
        let transaction = self.connection.unchecked_transaction().map_err(sql(&self.file))?;
        let mut rows = Rows::new(self.inner_dimensions);
        rows.reserve(self.count()?);
        let mut statement = transaction
            .prepare("SELECT key, id, checksum, vector FROM documents ORDER BY key")
            .map_err(sql(&self.file))?;
        let mut found = statement.query([]).map_err(sql(&self.file))?;
        let mut vector = vec![0f32; self.inner_dimensions];
        while let Some(row) = found.next().map_err(sql(&self.file))? {
            let read = || -> rusqlite::Result<(i64, &str, i64, &[u8])> {
                let text = |i| row.get_ref(i)?.as_str().map_err(rusqlite::Error::from);
                let blob = row.get_ref(3)?.as_blob().map_err(rusqlite::Error::from)?;
                Ok((row.get(0)?, text(1)?, row.get(2)?, blob))
            };
            let (key, id, expected, blob) = read().map_err(sql(&self.file))?;
            let bytes = self.inner_dimensions * size_of::<f32>();
            if blob.len() != bytes || checksum(id, blob) != expected {
                return Err(self.damaged(format!("the vector of document `{id}` fails its checksum")));
            }
            for (slot, four) in vector.iter_mut().zip(blob.chunks_exact(4)) {
                *slot = f32::from_le_bytes([four[0], four[1], four[2], four[3]]);
            }
            rows.push(key, id, &vector);
        }
        Ok((rows, self.generation()?))
    }

    /// A document by its key, its texts checked against their digest; `None` if it is gone.
    pub fn document(&self, key: i64) -> Result<Option<Document>, StoreError> {
        let found = self
            .connection
            .prepare_cached("SELECT id, title, text, digest FROM documents WHERE key = ?1")
            .and_then(|mut statement| {
                statement
                    .query_row([key], |row| {
                        Ok((
                            Document { id: row.get(0)?, title: row.get(1)?, text: row.get(2)? },
                            row.get::<_, String>(3)?,
                        ))
                    })
                    .optional()
            })
            .map_err(sql(&self.file))?;
        let Some((document, expected)) = found else { return Ok(None) };
        if digest(&document) != expected {
            return Err(self.damaged(format!("the text of document `{}` fails its digest", document.id)));
        }
        Ok(Some(document))
    }

    fn meta(&self, name: &str) -> Result<String, StoreError> {
        self.connection
            .query_row("SELECT value FROM meta WHERE name = ?1", [name], |row| row.get(0))
            .optional()
            .map_err(sql(&self.file))?
            .ok_or_else(|| self.damaged(format!("it has no `{name}`")))
    }

    fn damaged(&self, reason: String) -> StoreError {
        StoreError::Damaged { file: self.file.clone(), reason }
    }
}

impl Writer {
    /// Makes an empty index in an existing directory. This one writer does not wait for the disk: the directory is
    /// meant to be a staged one, whose files are synced before it is renamed, so that a half-made index is never seen.
    pub fn create(dir: &Path, key: &IndexKey) -> Result<Self, StoreError> {
        let lock = lock(dir)?;
        let file = dir.join(FILE_NAME);
        let connection = Connection::open(&file).map_err(sql(&file))?;
        connection.execute_batch(SCHEMA).map_err(sql(&file))?;
        let entries = [("format_version", FORMAT_VERSION.to_string()), ("generation", "0".to_owned())];
        let entries = entries.into_iter().chain(key.entries().map(|(_, name, value)| (name, value)));
        for (name, value) in entries {
            connection
                .execute("INSERT INTO meta (name, value) VALUES (?1, ?2)", params![name, value])
                .map_err(sql(&file))?;
        }
        Ok(Self { store: Store::check(&file, connection, key)?, _lock: lock })
    }

    /// Opens an existing index for writing; a second writer is refused.
    pub fn open(dir: &Path, key: &IndexKey) -> Result<Self, StoreError> {
        let file = existing(dir)?;
        let lock = lock(dir)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&file, flags).map_err(sql(&file))?;
        connection.execute_batch("PRAGMA synchronous = FULL").map_err(sql(&file))?;
        Ok(Self { store: Store::check(&file, connection, key)?, _lock: lock })
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
            .prepare_cached("SELECT digest FROM documents WHERE id = ?1")
            .map_err(sql(file))?;
        let mut plan = Vec::with_capacity(documents.len());
        for document in documents {
            let found: Option<String> =
                statement.query_row([&document.id], |row| row.get(0)).optional().map_err(sql(file))?;
            plan.push(match found {
                None => Change::Added,
                Some(found) if found == digest(document) => Change::Unchanged,
                Some(_) => Change::Replaced,
            });
        }
        Ok(plan)
    }

    /// Stores a batch, all of it or nothing, and returns the documents' keys; when it returns, the batch survives a
    /// power cut. A document whose id is there replaces the old one and keeps its key.
    pub fn put(&mut self, records: &[Record<'_>]) -> Result<Vec<i64>, StoreError> {
        let Store { file, connection, inner_dimensions } = &mut self.store;
        let transaction = connection.transaction().map_err(sql(file))?;
        let mut keys = Vec::with_capacity(records.len());
        {
            let mut statement = transaction
                .prepare_cached(
                    "INSERT INTO documents (id, checksum, vector, digest, title, text)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6)
                     ON CONFLICT (id) DO UPDATE SET checksum = excluded.checksum, vector = excluded.vector,
                         digest = excluded.digest, title = excluded.title, text = excluded.text
                     RETURNING key",
                )
                .map_err(sql(file))?;
            for Record { document, vector } in records {
                let finite = vector.iter().all(|x| x.is_finite());
                if vector.len() != *inner_dimensions || !finite {
                    let (id, found, expected) = (document.id.clone(), vector.len(), *inner_dimensions);
                    return Err(StoreError::Vector { id, found, finite, expected });
                }
                let blob: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
                let Document { id, title, text } = document;
                let row = params![id, checksum(id, &blob), blob, digest(document), title, text];
                keys.push(statement.query_row(row, |row| row.get(0)).map_err(sql(file))?);
            }
        }
        transaction
            .execute("UPDATE meta SET value = CAST(value AS INTEGER) + 1 WHERE name = 'generation'", [])
            .map_err(sql(file))?;
        transaction.commit().map_err(sql(file))?;
        Ok(keys)
    }

    /// Moves the log into the database and closes it, so that the directory can be copied or renamed.
    pub fn close(self) -> Result<(), StoreError> {
        let Store { file, connection, .. } = self.store;
        // The answer is a row of counts, which do not matter: readers may hold a part of the log back.
        connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).map_err(sql(&file))?;
        connection.close().map_err(|(_, error)| sql(&file)(error))
    }
}

impl IndexKey {
    /// What differs in words, name in the table, value.
    fn entries(&self) -> impl Iterator<Item = (&'static str, &'static str, String)> {
        let form = match self.form {
            Form::Relu => "relu",
            Form::Gated => "gated",
        };
        [
            ("document digest", "document_digest", self.document_digest.clone()),
            ("number of dimensions", "inner_dimensions", self.inner_dimensions.to_string()),
            ("predictor form", "form", form.to_owned()),
        ]
        .into_iter()
    }
}

/// The first id that is given twice.
pub fn duplicate_id(documents: &[Document]) -> Option<&str> {
    let mut seen = HashMap::with_capacity(documents.len());
    documents.iter().map(|d| d.id.as_str()).find(|id| seen.insert(*id, ()).is_some())
}

/// The database of an index directory.
pub fn existing(dir: &Path) -> Result<PathBuf, StoreError> {
    let not_an_index = |reason| StoreError::NotAnIndex { dir: dir.to_owned(), reason };
    let file = dir.join(FILE_NAME);
    match (dir.is_dir(), dir.exists(), file.exists()) {
        (_, _, true) => Ok(file),
        (true, _, _) => Err(not_an_index("it has no documents.sqlite")),
        (_, true, _) => Err(not_an_index("a file")),
        _ => Err(not_an_index("no such directory")),
    }
}

fn lock(dir: &Path) -> Result<File, StoreError> {
    let path = dir.join(LOCK_FILE);
    let io = |error: std::io::Error| StoreError::Sqlite { file: path.clone(), message: error.to_string() };
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(io)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::Writer { dir: dir.to_owned() }),
        Err(TryLockError::Error(error)) => Err(io(error)),
    }
}

/// SHA-256 over id, title and text.
fn digest(document: &Document) -> String {
    files::sha256_parts([document.id.as_bytes(), document.title.as_bytes(), document.text.as_bytes()])
}

/// 64-bit checksum against damage (not against forgery): every step is a bijection of the state for a fixed input and of
/// the input for a fixed state, so that no change within one word can go unseen.
fn checksum(id: &str, vector: &[u8]) -> i64 {
    let mut state = 0xcbf2_9ce4_8422_2325u64;
    for part in [id.as_bytes(), vector] {
        state = mix(state ^ part.len() as u64);
        for chunk in part.chunks(8) {
            let mut word = [0u8; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            state = mix(state ^ u64::from_le_bytes(word));
        }
    }
    state.cast_signed()
}

fn mix(state: u64) -> u64 {
    let state = state.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    state ^ (state >> 29)
}

/// Whether changes wait in the write-ahead log.
fn has_log(file: &Path) -> bool {
    let mut log = file.as_os_str().to_owned();
    log.push("-wal");
    std::fs::metadata(log).is_ok_and(|log| log.len() > 0)
}

/// A path inside an SQLite URI.
fn percent_encoded(path: &Path) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"/-._~".contains(byte);
    path.as_os_str()
        .as_encoded_bytes()
        .iter()
        .map(|byte| if plain(byte) { char::from(*byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

#[cfg(test)]
mod tests;
