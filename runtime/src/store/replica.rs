//! An index as others follow it: what came after a generation, row for row, and those rows put into another database, which
//! then holds the same.

use super::writer::forget_old_generations;
use super::{Generation, Store, StoreError, Writer, checksum, digest, sql};
use crate::document::{Document, Metadata};
use rusqlite::{ErrorCode, OptionalExtension, Row, Transaction, params};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// A document as its row holds it, without the vector.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredDocument {
    /// Key of the row.
    pub key: i64,
    /// Generation that put it there.
    pub generation: u64,
    /// Its id.
    pub id: String,
    /// Its title.
    pub title: String,
    /// Its text.
    pub text: String,
    /// Its metadata as the text that is digested.
    pub metadata: String,
}

/// A document that is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemovedDocument {
    /// Key that its row had.
    pub key: i64,
    /// Generation that removed it.
    pub generation: u64,
    /// Its id.
    pub id: String,
}

/// An index at one moment: whoever writes meanwhile is not seen.
#[derive(Debug)]
pub struct Moment<'a> {
    store: &'a Store,
    generation: Generation,
    _transaction: Transaction<'a>,
}

impl Store {
    /// Holds this moment until it is dropped.
    pub fn moment(&self) -> Result<Moment<'_>, StoreError> {
        let transaction = self.connection.unchecked_transaction().map_err(sql(&self.file))?;
        // The first thing that is read fixes the moment.
        let generation = self.generation()?;
        Ok(Moment { store: self, generation, _transaction: transaction })
    }

    /// Digest of a generation, if this index has been there.
    pub fn digest_at(&self, number: u64) -> Result<Option<String>, StoreError> {
        self.connection
            .query_row("SELECT digest FROM generations WHERE number = ?1", [number.cast_signed()], |row| {
                row.get(0)
            })
            .optional()
            .map_err(sql(&self.file))
    }
}

impl Moment<'_> {
    /// The moment.
    pub fn generation(&self) -> &Generation {
        &self.generation
    }

    /// The highest key that was ever given out.
    pub fn last_key(&self) -> Result<i64, StoreError> {
        let found = self
            .store
            .connection
            .query_row("SELECT seq FROM sqlite_sequence WHERE name = 'documents'", [], |row| row.get(0))
            .optional();
        Ok(found.map_err(sql(&self.store.file))?.unwrap_or(0))
    }

    /// Documents that were put after a generation, in order of key, each against its digest.
    pub fn documents<E: From<StoreError>>(
        &self,
        since: u64,
        mut each: impl FnMut(StoredDocument) -> Result<(), E>,
    ) -> Result<(), E> {
        let query = "SELECT key, generation, id, title, text, metadata, digest FROM documents
                     WHERE generation > ?1 ORDER BY key";
        let read = |row: &Row<'_>| {
            let document = StoredDocument {
                key: row.get(0)?,
                generation: row.get::<_, i64>(1)?.cast_unsigned(),
                id: row.get(2)?,
                title: row.get(3)?,
                text: row.get(4)?,
                metadata: row.get(5)?,
            };
            Ok((document, row.get::<_, String>(6)?))
        };
        self.each(query, since, read, |(document, expected)| {
            if document.digest() != expected {
                let what = format!("the text of document `{}` fails its digest", document.id);
                return Err(self.store.damaged(what).into());
            }
            each(document)
        })
    }

    /// Their vectors, `[m]` little-endian numbers each, in the same order, each against its checksum.
    pub fn vectors<E: From<StoreError>>(
        &self,
        since: u64,
        mut each: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let query = "SELECT id, metadata, vector, checksum FROM documents WHERE generation > ?1 ORDER BY key";
        let read = |row: &Row<'_>| -> rusqlite::Result<(String, String, Vec<u8>, i64)> {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
        };
        let bytes = self.store.inner_dimensions * size_of::<f32>();
        self.each(query, since, read, |(id, metadata, vector, expected)| {
            if vector.len() != bytes || checksum(&id, &metadata, &vector) != expected {
                let what = format!("the vector of document `{id}` fails its checksum");
                return Err(self.store.damaged(what).into());
            }
            each(&vector)
        })
    }

    /// Documents that were removed after a generation, in order of key.
    pub fn removed<E: From<StoreError>>(
        &self,
        since: u64,
        each: impl FnMut(RemovedDocument) -> Result<(), E>,
    ) -> Result<(), E> {
        let query = "SELECT key, generation, id FROM removed WHERE generation > ?1 ORDER BY key";
        let read = |row: &Row<'_>| {
            let generation = row.get::<_, i64>(1)?.cast_unsigned();
            Ok(RemovedDocument { key: row.get(0)?, generation, id: row.get(2)? })
        };
        self.each(query, since, read, each)
    }

    /// Generations after a generation, in order.
    pub fn generations<E: From<StoreError>>(
        &self,
        since: u64,
        each: impl FnMut(Generation) -> Result<(), E>,
    ) -> Result<(), E> {
        let query = "SELECT number, digest FROM generations WHERE number > ?1 ORDER BY number";
        let read = |row: &Row<'_>| {
            Ok(Generation { number: row.get::<_, i64>(0)?.cast_unsigned(), digest: row.get(1)? })
        };
        self.each(query, since, read, each)
    }

    fn each<T, E: From<StoreError>>(
        &self,
        query: &str,
        since: u64,
        read: impl Fn(&Row<'_>) -> rusqlite::Result<T>,
        mut each: impl FnMut(T) -> Result<(), E>,
    ) -> Result<(), E> {
        let Store { file, connection, .. } = self.store;
        let mut statement = connection.prepare_cached(query).map_err(sql(file))?;
        let mut rows = statement.query([since.cast_signed()]).map_err(sql(file))?;
        while let Some(row) = rows.next().map_err(sql(file))? {
            each(read(row).map_err(sql(file))?)?;
        }
        Ok(())
    }
}

impl StoredDocument {
    fn digest(&self) -> String {
        let (id, title, text) = (self.id.clone(), self.title.clone(), self.text.clone());
        digest(&Document { id, title, text, metadata: Metadata::new() }, &self.metadata)
    }
}

/// Somebody else's rows on their way into this database.
#[derive(Debug)]
pub struct Replica<'a> {
    file: &'a Path,
    transaction: &'a Transaction<'a>,
    inner_dimensions: usize,
}

impl Writer {
    /// Puts somebody else's rows in, all that `fill` brings or none; when it returns, they survive a power cut.
    pub fn follow<E: From<StoreError>>(
        &mut self,
        fill: impl FnOnce(&Replica<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let Store { file, connection, inner_dimensions, .. } = &mut self.store;
        let transaction = connection.transaction().map_err(sql(file))?;
        fill(&Replica { file, transaction: &transaction, inner_dimensions: *inner_dimensions })?;
        let newest: i64 = transaction
            .query_row("SELECT coalesce(max(number), 0) FROM generations", [], |row| row.get(0))
            .map_err(sql(file))?;
        forget_old_generations(&transaction, newest, self.kept).map_err(sql(file))?;
        Ok(transaction.commit().map_err(sql(file))?)
    }
}

impl Replica<'_> {
    /// Forgets everything.
    pub fn clear(&self) -> Result<(), StoreError> {
        let all = "DELETE FROM documents; DELETE FROM removed; DELETE FROM generations WHERE number > 0;";
        self.transaction.execute_batch(all).map_err(sql(self.file))
    }

    /// Removes a document, if it is there.
    pub fn remove(&self, removed: &RemovedDocument) -> Result<(), StoreError> {
        let RemovedDocument { key, generation, id } = removed;
        let remove = || -> rusqlite::Result<()> {
            self.transaction.prepare_cached("DELETE FROM documents WHERE key = ?1")?.execute([key])?;
            let insert = "INSERT INTO removed (key, id, generation) VALUES (?1, ?2, ?3)";
            self.transaction.prepare_cached(insert)?.execute(params![key, id, generation.cast_signed()])?;
            Ok(())
        };
        remove().map_err(self.refused(id))
    }

    /// Puts a document with its vector, `[m]` little-endian numbers, in the place of the one with its key.
    pub fn put(&self, document: &StoredDocument, vector: &[u8]) -> Result<(), StoreError> {
        let StoredDocument { key, generation, id, title, text, metadata } = document;
        let numbers =
            vector.chunks_exact(4).map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]]));
        let (found, finite) = (numbers.len(), numbers.clone().all(f32::is_finite));
        if found != self.inner_dimensions || vector.len() != found * size_of::<f32>() || !finite {
            let (id, expected) = (id.clone(), self.inner_dimensions);
            return Err(StoreError::Vector { id, found, finite, expected });
        }
        let (checksum, digest) = (checksum(id, metadata, vector), document.digest());
        let generation = generation.cast_signed();
        let row = params![key, id, generation, checksum, metadata, vector, digest, title, text];
        let put =
            "INSERT INTO documents (key, id, generation, checksum, metadata, vector, digest, title, text)
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
                   ON CONFLICT (key) DO UPDATE SET id = excluded.id, generation = excluded.generation,
                       checksum = excluded.checksum, metadata = excluded.metadata, vector = excluded.vector,
                       digest = excluded.digest, title = excluded.title, text = excluded.text";
        let put = || self.transaction.prepare_cached(put)?.execute(row);
        put().map(|_| ()).map_err(self.refused(id))
    }

    /// Adds a generation.
    pub fn generation(&self, generation: &Generation) -> Result<(), StoreError> {
        let row = params![generation.number.cast_signed(), generation.digest];
        let add = "INSERT INTO generations (number, digest) VALUES (?1, ?2)";
        let add = || self.transaction.prepare_cached(add)?.execute(row);
        add().map(|_| ()).map_err(sql(self.file))
    }

    /// From here on new documents get keys above this one, as where the rows come from.
    pub fn last_key(&self, key: i64) -> Result<(), StoreError> {
        let set = || -> rusqlite::Result<()> {
            self.transaction.execute("DELETE FROM sqlite_sequence WHERE name = 'documents'", [])?;
            // One that never held a document has no row there.
            if key > 0 {
                let insert = "INSERT INTO sqlite_sequence (name, seq) VALUES ('documents', ?1)";
                self.transaction.execute(insert, [key])?;
            }
            Ok(())
        };
        set().map_err(sql(self.file))
    }

    /// A row that is in the way means that this database does not hold what its digest says.
    fn refused(&self, id: &str) -> impl FnOnce(rusqlite::Error) -> StoreError {
        let reason =
            format!("document `{id}` does not fit among its rows, which are not those of its digest");
        let file = self.file.to_owned();
        move |error| match error.sqlite_error_code() {
            Some(ErrorCode::ConstraintViolation) => StoreError::Damaged { file, reason },
            _ => sql(&file)(error),
        }
    }

    /// Number of documents.
    pub fn count(&self) -> Result<u64, StoreError> {
        let count = self.transaction.query_row("SELECT count(*) FROM documents", [], |row| row.get(0));
        count.map(i64::cast_unsigned).map_err(sql(self.file))
    }
}
