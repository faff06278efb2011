//! Documents and their vectors in SQLite: the source of truth of an index.
//!
//! ```text
//! INDEX/documents.sqlite   this file's tables: write-ahead log, synchronous
//! INDEX/writer.lock        held by the one process that writes
//! INDEX/graph.json, graph-*.usearch  an accelerator that can always be rebuilt (crate::index)
//! ```
//! What a call has acknowledged is on the disk: every batch is a transaction. SQLite has no checksums of its own, so each
//! vector with its metadata carries one, checked when vectors are read, and each text a digest, checked when a text is shown.
//!
//! Every batch makes a generation: a number, and a digest over all changes so far. Documents know the generation that
//! put them there, removed ones leave their key, so whoever has the rows of one generation reads only what came after.
//! Of the last [`KEPT_GENERATIONS`] that is: what is older is forgotten, or an index would grow with every change for ever.

pub use self::error::StoreError;
use self::error::sql;
use crate::document::{Document, Metadata};
use crate::search::Rows;
use crate::vectors::Precision;
use models::student::Form;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Params, Row};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

mod error;
mod key;
mod place;
mod replica;
pub(crate) mod row;
mod writer;

pub use self::key::IndexKey;
use self::key::form_name;
pub use self::place::Identity;
use self::place::Stamp;
pub use self::replica::{Moment, RemovedDocument, Replica, StoredDocument};
pub(crate) use self::row::digest;
pub use self::row::document_digest;
use self::row::{NO_METADATA, checksum, stored};
pub use self::writer::{Change, KEPT_GENERATIONS, Record, Writer};

/// Version of the tables that this program reads and writes.
pub const FORMAT_VERSION: u32 = 2;
/// Name of the database inside an index.
pub const FILE_NAME: &str = "documents.sqlite";
/// How long a reader waits for a moment when the writer holds the file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// A moment of an index.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Generation {
    /// Batches written until then.
    pub number: u64,
    /// SHA-256 over all changes until then, in their order.
    pub digest: String,
}

/// What has changed between two generations.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Keys of documents that are new or changed.
    pub put: Vec<i64>,
    /// Keys of documents that are gone.
    pub removed: Vec<i64>,
}

/// An index's database, opened for reading.
#[derive(Debug)]
pub struct Store {
    file: PathBuf,
    connection: Connection,
    inner_dimensions: usize,
    identity: Identity,
    /// How the files were when they were opened as something that nobody writes.
    immutable: Option<Stamp>,
}

impl Store {
    /// Opens an index that must have been made with this very bundle.
    pub fn open(dir: &Path, key: &IndexKey) -> Result<Self, StoreError> {
        Self::open_as(dir, Some(key))
    }

    /// Opens an index whatever it was made with, and tells what that was.
    pub fn open_any(dir: &Path) -> Result<(Self, IndexKey), StoreError> {
        let store = Self::open_as(dir, None)?;
        let key = store.key()?;
        Ok((store, key))
    }

    fn open_as(dir: &Path, key: Option<&IndexKey>) -> Result<Self, StoreError> {
        let file = existing(dir)?;
        let before = Identity::of(&file)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let opened = Connection::open_with_flags(&file, flags)
            .map_err(sql(&file))
            .and_then(|c| Self::check(&file, c, key));
        match opened {
            // A log cannot be opened where nothing can be written. With something in the log, this would read without it.
            Err(StoreError::Sqlite { message, .. })
                if (message.contains("unable to open") || message.contains("readonly"))
                    && !place::has_log(&file)
                    && place::is_read_only(dir) =>
            {
                Self::open_immutable(&file, key)
            }
            // Another index was put there meanwhile; which of the two files is open nobody knows.
            Ok(store) if store.identity != before => Self::open_as(dir, key),
            opened => opened,
        }
    }

    /// Opens it as something that nobody writes: without log and locks. Whether somebody with other rights, or another machine,
    /// has written after all is for [`Store::follow`] to find.
    fn open_immutable(file: &Path, key: Option<&IndexKey>) -> Result<Self, StoreError> {
        let stamp = Stamp::of(file);
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let uri = format!("file:{}?immutable=1", place::percent_encoded(file));
        let connection =
            Connection::open_with_flags(uri, flags | OpenFlags::SQLITE_OPEN_URI).map_err(sql(file))?;
        Ok(Self { immutable: Some(stamp), ..Self::check(file, connection, key)? })
    }

    /// Opens the files anew if they were taken for something that nobody writes and have changed since. While that is not
    /// possible, it stays at what it has.
    pub fn follow(&mut self, key: &IndexKey) {
        let changed = self.immutable.as_ref().is_some_and(|stamp| *stamp != Stamp::of(&self.file));
        if changed
            && self.is_in_place()
            && let Some(dir) = self.file.parent()
            && let Ok(anew) = Self::open(dir, key)
        {
            *self = anew;
        }
    }

    /// Which file this is, whatever its path means by now.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Whether the path still leads to the file that is open: another index may have been put in its place.
    pub fn is_in_place(&self) -> bool {
        Identity::of(&self.file).is_ok_and(|found| found == self.identity)
    }

    fn check(file: &Path, connection: Connection, key: Option<&IndexKey>) -> Result<Self, StoreError> {
        connection.busy_timeout(BUSY_TIMEOUT).map_err(sql(file))?;
        let identity = Identity::of(file)?;
        let mut store =
            Self { file: file.to_owned(), connection, inner_dimensions: 0, identity, immutable: None };
        store.holds_only_tables()?;
        let found = store.meta("format_version")?;
        if found != FORMAT_VERSION.to_string() {
            return Err(StoreError::Version { file: store.file, found, expected: FORMAT_VERSION });
        }
        let Some(key) = key else {
            store.inner_dimensions = store.key()?.inner_dimensions;
            return Ok(store);
        };
        store.inner_dimensions = key.inner_dimensions;
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

    /// A file from elsewhere may hold views and triggers: programs, which would run in this one.
    fn holds_only_tables(&self) -> Result<(), StoreError> {
        let foreign: Option<String> = self
            .connection
            .set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)
            .and_then(|_| {
                let foreign = "SELECT name FROM sqlite_schema WHERE type NOT IN ('table', 'index')
                                   OR sql LIKE 'CREATE VIRTUAL%' LIMIT 1";
                self.connection.query_row(foreign, [], |row| row.get(0)).optional()
            })
            .map_err(sql(&self.file))?;
        match foreign {
            Some(name) => Err(self.damaged(format!("it holds `{name}`, which is no table"))),
            None => Ok(()),
        }
    }

    /// What this index is keyed to.
    fn key(&self) -> Result<IndexKey, StoreError> {
        let (dimensions, form) = (self.meta("inner_dimensions")?, self.meta("form")?);
        let inner_dimensions = dimensions
            .parse()
            .map_err(|_| self.damaged(format!("its number of dimensions is {dimensions:?}")))?;
        let form = [Form::Relu, Form::Gated].into_iter().find(|known| form_name(*known) == form);
        let form = form.ok_or_else(|| self.damaged("its predictor form is unknown".into()))?;
        Ok(IndexKey { document_digest: self.meta("document_digest")?, inner_dimensions, form })
    }

    /// The database.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Numbers in each vector, m.
    pub fn dimensions(&self) -> usize {
        self.inner_dimensions
    }

    /// The moment this is at.
    pub fn generation(&self) -> Result<Generation, StoreError> {
        self.connection
            .prepare_cached("SELECT number, digest FROM generations ORDER BY number DESC LIMIT 1")
            .and_then(|mut statement| {
                let generation = |row: &Row<'_>| {
                    Ok(Generation { number: row.get::<_, i64>(0)?.cast_unsigned(), digest: row.get(1)? })
                };
                statement.query_row([], generation).optional()
            })
            .map_err(sql(&self.file))?
            .ok_or_else(|| self.damaged("it has no generation".into()))
    }

    /// Number of the generation that comes next, and the digest that it continues.
    fn next_generation(&self) -> Result<(i64, String), StoreError> {
        let Generation { number, digest } = self.generation()?;
        let next = i64::try_from(number).ok().and_then(|number| number.checked_add(1));
        Ok((next.ok_or_else(|| self.damaged("it has no next generation".into()))?, digest))
    }

    /// Whether this index has been at that moment.
    pub fn has_been_at(&self, generation: &Generation) -> Result<bool, StoreError> {
        Ok(self.digest_at(generation.number)?.as_ref() == Some(&generation.digest))
    }

    /// The earliest generation after which all changes are still known.
    pub fn oldest_generation(&self) -> Result<u64, StoreError> {
        let oldest: Option<i64> = self
            .connection
            .prepare_cached("SELECT min(number) FROM generations")
            .and_then(|mut statement| statement.query_row([], |row| row.get(0)))
            .map_err(sql(&self.file))?;
        oldest.map(i64::cast_unsigned).ok_or_else(|| self.damaged("it has no generation".into()))
    }

    /// Refuses a generation whose later changes are not all known any more. Of the empty index, all are.
    fn remembers(&self, since: u64) -> Result<(), StoreError> {
        let oldest = self.oldest_generation()?;
        if since != 0 && since < oldest {
            return Err(StoreError::Forgotten { file: self.file.clone(), since, oldest });
        }
        Ok(())
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
    pub fn load(&self) -> Result<(Rows, Generation), StoreError> {
        self.load_in(Precision::F32)
    }

    /// The same, to be kept in memory in this precision.
    pub fn load_in(&self, precision: Precision) -> Result<(Rows, Generation), StoreError> {
        let mut rows = Rows::in_precision(self.inner_dimensions, precision);
        rows.reserve(self.at_most()?);
        let generation = self.update(&mut rows, &Generation::default())?.1;
        Ok((rows, generation))
    }

    /// More documents than there are at most: neither more than keys, nor than fit into the files.
    fn at_most(&self) -> Result<usize, StoreError> {
        let keys: i64 = self
            .connection
            .query_row("SELECT coalesce(max(key), 0) FROM documents", [], |row| row.get(0))
            .map_err(sql(&self.file))?;
        let fit = place::bytes(&self.file) / (self.inner_dimensions * size_of::<f32>()).max(1) as u64;
        Ok(usize::try_from(fit.min(keys.max(0).cast_unsigned())).unwrap_or(usize::MAX))
    }

    /// Brings rows of an earlier generation up to date; [`StoreError::Forgotten`] asks for [`Store::load`] instead: the
    /// generation is too long ago, or of another index that was in this one's place.
    pub fn update(&self, rows: &mut Rows, since: &Generation) -> Result<(Changes, Generation), StoreError> {
        // One transaction: changes and generation belong together even while somebody writes.
        let transaction = self.connection.unchecked_transaction().map_err(sql(&self.file))?;
        let Generation { number, .. } = *since;
        self.remembers(number)?;
        if number != 0 && !self.has_been_at(since)? {
            let (file, oldest) = (self.file.clone(), self.oldest_generation()?);
            return Err(StoreError::Forgotten { file, since: number, oldest });
        }
        let changes = Changes { removed: self.removed_since(number)?, ..Changes::default() };
        for key in &changes.removed {
            rows.remove(*key);
        }
        let changes = Changes { put: self.put_since(rows, number)?, ..changes };
        let generation = self.generation()?;
        transaction.commit().map_err(sql(&self.file))?;
        Ok((changes, generation))
    }

    /// Keys that changed after a generation; one that is too long ago is [`StoreError::Forgotten`].
    pub fn changes_since(&self, since: u64) -> Result<Changes, StoreError> {
        self.remembers(since)?;
        let put = "SELECT key FROM documents WHERE generation > ?1 ORDER BY key";
        Ok(Changes { put: self.keys(put, since)?, removed: self.removed_since(since)? })
    }

    fn removed_since(&self, since: u64) -> Result<Vec<i64>, StoreError> {
        self.keys("SELECT key FROM removed WHERE generation > ?1 ORDER BY key", since)
    }

    fn keys(&self, query: &str, since: u64) -> Result<Vec<i64>, StoreError> {
        let read = || -> rusqlite::Result<Vec<i64>> {
            let mut statement = self.connection.prepare_cached(query)?;
            statement.query_map([since.cast_signed()], |row| row.get(0))?.collect()
        };
        read().map_err(sql(&self.file))
    }

    fn put_since(&self, rows: &mut Rows, since: u64) -> Result<Vec<i64>, StoreError> {
        const COLUMNS: &str = "SELECT key, id, checksum, metadata, vector FROM documents";
        let query = match since {
            // In the table's own order, without the index.
            0 => format!("{COLUMNS} WHERE ?1 = 0 ORDER BY key"),
            _ => format!("{COLUMNS} WHERE generation > ?1 ORDER BY key"),
        };
        let mut statement = self.connection.prepare_cached(&query).map_err(sql(&self.file))?;
        let mut found = statement.query([since.cast_signed()]).map_err(sql(&self.file))?;
        let mut keys = Vec::new();
        let mut vector = vec![0f32; self.inner_dimensions];
        while let Some(row) = found.next().map_err(sql(&self.file))? {
            let read = || -> rusqlite::Result<(i64, &str, i64, &str, &[u8])> {
                let text = |i| row.get_ref(i)?.as_str().map_err(rusqlite::Error::from);
                let blob = row.get_ref(4)?.as_blob().map_err(rusqlite::Error::from)?;
                Ok((row.get(0)?, text(1)?, row.get(2)?, text(3)?, blob))
            };
            let (key, id, expected, metadata, blob) = read().map_err(sql(&self.file))?;
            self.decode(id, expected, metadata, blob, &mut vector)?;
            // A damaged tree may lead to the same rows again and again.
            if keys.last().is_some_and(|last| *last >= key) {
                return Err(self.damaged("its documents are not in order".into()));
            }
            rows.push(key, id, &vector, &self.metadata(id, metadata)?);
            keys.push(key);
        }
        Ok(keys)
    }

    /// Bytes to numbers, if they are those that were stored.
    fn decode(
        &self,
        id: &str,
        expected: i64,
        metadata: &str,
        blob: &[u8],
        vector: &mut [f32],
    ) -> Result<(), StoreError> {
        if blob.len() != size_of_val(vector) || checksum(id, metadata, blob) != expected {
            return Err(self.damaged(format!("the vector of document `{id}` fails its checksum")));
        }
        for (slot, four) in vector.iter_mut().zip(blob.as_chunks::<4>().0) {
            *slot = f32::from_le_bytes(*four);
        }
        Ok(())
    }

    /// A document's id and vector by its key, checked; `None` if it is gone.
    pub fn vector(&self, key: i64) -> Result<Option<(String, Vec<f32>)>, StoreError> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT id, checksum, metadata, vector FROM documents WHERE key = ?1")
            .map_err(sql(&self.file))?;
        let mut found = statement.query([key]).map_err(sql(&self.file))?;
        let Some(row) = found.next().map_err(sql(&self.file))? else { return Ok(None) };
        let read = || -> rusqlite::Result<(&str, i64, &str, &[u8])> {
            let text = |i| row.get_ref(i)?.as_str().map_err(rusqlite::Error::from);
            let blob = row.get_ref(3)?.as_blob().map_err(rusqlite::Error::from)?;
            Ok((text(0)?, row.get(1)?, text(2)?, blob))
        };
        let (id, expected, metadata, blob) = read().map_err(sql(&self.file))?;
        let mut vector = vec![0f32; self.inner_dimensions];
        self.decode(id, expected, metadata, blob, &mut vector)?;
        Ok(Some((id.to_owned(), vector)))
    }

    fn metadata(&self, id: &str, text: &str) -> Result<Metadata, StoreError> {
        if text == NO_METADATA {
            return Ok(Metadata::new());
        }
        serde_json::from_str(text)
            .map_err(|error| self.damaged(format!("the metadata of document `{id}` is not JSON: {error}")))
    }

    /// A document by its key, its texts checked against their digest; `None` if it is gone.
    pub fn document(&self, key: i64) -> Result<Option<Document>, StoreError> {
        self.one("SELECT id, title, text, metadata, digest FROM documents WHERE key = ?1", [key])
    }

    /// A document by its id.
    pub fn document_by_id(&self, id: &str) -> Result<Option<Document>, StoreError> {
        self.one("SELECT id, title, text, metadata, digest FROM documents WHERE id = ?1", [id])
    }

    /// A page of documents, in the order in which they came.
    pub fn documents(&self, offset: usize, limit: usize) -> Result<Vec<Document>, StoreError> {
        let bound = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let read = || -> rusqlite::Result<Vec<(Document, String, String)>> {
            let mut statement = self.connection.prepare_cached(
                "SELECT id, title, text, metadata, digest FROM documents ORDER BY key LIMIT ?2 OFFSET ?1",
            )?;
            statement.query_map([bound(offset), bound(limit)], stored)?.collect()
        };
        read().map_err(sql(&self.file))?.into_iter().map(|found| self.checked(found)).collect()
    }

    fn one(&self, query: &str, by: impl Params) -> Result<Option<Document>, StoreError> {
        let found = self
            .connection
            .prepare_cached(query)
            .and_then(|mut statement| statement.query_row(by, stored).optional())
            .map_err(sql(&self.file))?;
        found.map(|found| self.checked(found)).transpose()
    }

    fn checked(
        &self,
        (mut document, metadata, expected): (Document, String, String),
    ) -> Result<Document, StoreError> {
        if digest(&document, &metadata) != expected {
            return Err(self.damaged(format!("the text of document `{}` fails its digest", document.id)));
        }
        document.metadata = self.metadata(&document.id, &metadata)?;
        Ok(document)
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

#[cfg(test)]
mod tests;
