//! Documents into and out of a database, a transaction a batch.
//!
//! Several programs write at once. Rows are always taken in the order of their ids, so that two batches wait for each other
//! in one direction only; where a transaction has to give way all the same, it is done again.

use super::Database;
use super::error::{Failure, PostgresError};
use super::filter::{fields, has_nul};
use crate::document::Document;
use crate::ingest::Target;
use crate::retriever::RetrieverError;
use crate::store::row::written;
use crate::store::{Change, Record, StoreError, digest};
use ::postgres::Transaction;
use ::postgres::types::{ToSql, Type};
use std::collections::{HashMap, HashSet};

/// Longest id in bytes: PostgreSQL's indexes take little more.
const LONGEST_ID: usize = 2000;
/// Documents that are looked up together.
const LOOKED_UP: usize = 1000;

/// Refuses documents that PostgreSQL cannot hold.
pub(super) fn storable(documents: &[Document]) -> Result<(), PostgresError> {
    for document in documents {
        let Document { id, title, text, metadata } = document;
        let refused = |reason: String| {
            let id = id.chars().filter(|c| *c != '\0').take(60).collect();
            Err(PostgresError::Unstorable { id, reason })
        };
        let nul = [id, title, text].iter().any(|text| text.contains('\0'))
            || metadata.iter().any(|(name, value)| name.contains('\0') || has_nul(value));
        if nul {
            return refused("holds a NUL character, which PostgreSQL cannot store; take it out".into());
        }
        if id.len() > LONGEST_ID {
            return refused(format!("its id has {} bytes, PostgreSQL's indexes take {LONGEST_ID}", id.len()));
        }
    }
    Ok(())
}

/// Columns of a batch.
#[derive(Debug, Default)]
struct Batch {
    ids: Vec<String>,
    fields: Vec<String>,
    vectors: Vec<String>,
    features: Vec<String>,
    digests: Vec<String>,
    titles: Vec<String>,
    texts: Vec<String>,
    metadata: Vec<String>,
}

impl Batch {
    fn push(&mut self, document: &Document) {
        let metadata = written(&document.metadata);
        self.ids.push(document.id.clone());
        self.fields.push(fields(&document.metadata));
        self.digests.push(digest(document, &metadata));
        self.titles.push(document.title.clone());
        self.texts.push(document.text.clone());
        self.metadata.push(metadata);
    }
}

/// As pgvector reads it; the shortest digits that read back as the same number.
fn vector_text(vector: &[f32]) -> String {
    let numbers: Vec<String> = vector.iter().map(|x| format!("{x:e}")).collect();
    format!("[{}]", numbers.join(","))
}

impl Target for &Database {
    fn plan(&mut self, documents: &[Document]) -> Result<Vec<Change>, RetrieverError> {
        let mut plan = Vec::with_capacity(documents.len());
        for documents in documents.chunks(LOOKED_UP) {
            let ids: Vec<&str> = documents.iter().map(|document| document.id.as_str()).collect();
            let found: HashMap<String, (String, bool)> = self.read(|transaction, _| {
                let texts: HashMap<&str, &Document> = documents.iter().map(|d| (d.id.as_str(), d)).collect();
                let rows = transaction.query_typed(
                    "SELECT id, digest, title, text FROM rabtriever_documents WHERE id = ANY ($1)",
                    &[(&ids, Type::TEXT_ARRAY)],
                )?;
                let mut found = HashMap::with_capacity(rows.len());
                for row in &rows {
                    let (id, digest): (String, String) = (row.try_get(0)?, row.try_get(1)?);
                    let (title, text): (&str, &str) = (row.try_get(2)?, row.try_get(3)?);
                    let same = texts.get(id.as_str()).is_some_and(|d| d.title == title && d.text == text);
                    found.insert(id, (digest, same));
                }
                Ok(found)
            })?;
            plan.extend(documents.iter().map(|document| match found.get(&document.id) {
                None => Change::Added,
                Some((found, _)) if *found == digest(document, &written(&document.metadata)) => {
                    Change::Unchanged
                }
                Some((_, true)) => Change::Relabelled,
                Some((_, false)) => Change::Replaced,
            }));
        }
        Ok(plan)
    }

    fn put(&mut self, records: &[Record<'_>]) -> Result<Vec<usize>, RetrieverError> {
        let expected = self.measure.dimensions;
        let mut places: Vec<usize> = (0..records.len()).collect();
        places.sort_by(|&a, &b| records[a].document.id.cmp(&records[b].document.id));
        let (mut whole, mut labels) = (Batch::default(), Batch::default());
        for Record { document, vector } in places.iter().map(|&place| &records[place]) {
            let Some(vector) = vector else {
                labels.push(document);
                continue;
            };
            let finite = vector.iter().all(|x| x.is_finite());
            if vector.len() != expected || !finite {
                let (id, found) = (document.id.clone(), vector.len());
                return Err(StoreError::Vector { id, found, finite, expected }.into());
            }
            whole.push(document);
            let vector = self.measure.stored(vector);
            whole.vectors.push(vector_text(&vector));
            if self.measure.features_column().is_some() {
                whole.features.push(vector_text(&self.measure.features(&vector)));
            }
        }
        let relabelled = self.change(|transaction| {
            let more = self.insert(transaction, &whole)?;
            let relabelled = relabel(transaction, &labels)?;
            let changed = !whole.ids.is_empty() || !relabelled.is_empty();
            Ok((relabelled, changed.then_some(more)))
        })?;
        let missed = |place: &usize| {
            let Record { document, vector } = &records[*place];
            vector.is_none() && !relabelled.contains(&document.id)
        };
        Ok((0..records.len()).filter(missed).collect())
    }
}

impl Database {
    /// Adds or replaces documents; returns by how many there are more.
    fn insert(&self, transaction: &mut Transaction<'_>, batch: &Batch) -> Result<i64, Failure> {
        if batch.ids.is_empty() {
            return Ok(0);
        }
        let (name, value, update) = if batch.features.is_empty() {
            ("", "", "")
        } else {
            (", features", ", features::halfvec", ", features = excluded.features")
        };
        let sql = format!(
            "INSERT INTO rabtriever_documents (id, fields, vector, digest, title, text, metadata{name}) \
             SELECT id, fields::jsonb, vector::vector, digest, title, text, metadata{value} \
             FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[]) \
                 AS new (id, fields, vector, digest, title, text, metadata, features) \
             ORDER BY id COLLATE \"C\" \
             ON CONFLICT (id) DO UPDATE SET fields = excluded.fields, vector = excluded.vector, \
                 digest = excluded.digest, title = excluded.title, text = excluded.text, \
                 metadata = excluded.metadata{update} \
             RETURNING xmax = 0"
        );
        let Batch { ids, fields, vectors, features, digests, titles, texts, metadata } = batch;
        let columns = [ids, fields, vectors, digests, titles, texts, metadata, features];
        let rows = transaction
            .query_typed(&sql, &columns.map(|column| (column as &(dyn ToSql + Sync), Type::TEXT_ARRAY)))?;
        let mut more = 0;
        for row in rows {
            // A row that was there before has been locked by this transaction, and carries its number.
            more += i64::from(row.try_get::<_, bool>(0)?);
        }
        Ok(more)
    }

    /// Removes documents and returns how many were there.
    pub(super) fn delete(&self, ids: &[&str]) -> Result<usize, PostgresError> {
        let ids: Vec<&str> = ids.iter().copied().filter(|id| !id.contains('\0')).collect();
        // If the answer to a commit is lost, the next try finds none of them; they were there all the same.
        let mut most = 0;
        self.change(|transaction| {
            let removed = transaction.execute_typed(
                "WITH locked AS ( \
                     SELECT key FROM rabtriever_documents WHERE id = ANY ($1) ORDER BY id FOR UPDATE \
                 ) DELETE FROM rabtriever_documents USING locked WHERE rabtriever_documents.key = locked.key",
                &[(&ids, Type::TEXT_ARRAY)],
            )?;
            most = most.max(usize::try_from(removed).unwrap_or(0));
            let less = -i64::try_from(removed).unwrap_or(0);
            Ok(((), (removed > 0).then_some(less)))
        })?;
        Ok(most)
    }
}

/// Gives documents other metadata if their texts are still what they were planned with; returns the ids of those.
fn relabel(transaction: &mut Transaction<'_>, batch: &Batch) -> Result<HashSet<String>, Failure> {
    if batch.ids.is_empty() {
        return Ok(HashSet::new());
    }
    let Batch { ids, fields, digests, titles, texts, metadata, .. } = batch;
    let rows = transaction.query_typed(
        "WITH new AS ( \
             SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[]) \
                 AS new (id, fields, digest, title, text, metadata) \
         ), locked AS ( \
             SELECT old.key, new.* FROM rabtriever_documents AS old JOIN new USING (id) \
             WHERE old.title = new.title AND old.text = new.text ORDER BY id FOR UPDATE OF old \
         ) \
         UPDATE rabtriever_documents AS old SET fields = locked.fields::jsonb, metadata = locked.metadata, \
             digest = locked.digest \
         FROM locked WHERE old.key = locked.key RETURNING old.id",
        &[ids, fields, digests, titles, texts, metadata]
            .map(|column| (column as &(dyn ToSql + Sync), Type::TEXT_ARRAY)),
    )?;
    let mut relabelled = HashSet::with_capacity(rows.len());
    for row in rows {
        relabelled.insert(row.try_get(0)?);
    }
    Ok(relabelled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// The server would refuse these with words about byte sequences and index rows, after everything has been encoded.
    #[test]
    fn what_postgresql_cannot_hold_is_refused_before_it_is_encoded() {
        let plain = Document { id: "a".into(), text: "x".into(), ..Document::default() };
        assert!(storable(std::slice::from_ref(&plain)).is_ok());
        let metadata = |value| Document {
            metadata: json!({ "k": value }).as_object().unwrap().clone(),
            ..plain.clone()
        };
        for document in [
            Document { text: "x\0".into(), ..plain.clone() },
            Document { id: "a\0".into(), ..plain.clone() },
            metadata(json!(["\0"])),
            metadata(json!({ "in\0": 1 })),
        ] {
            let refused = storable(&[plain.clone(), document]).unwrap_err().to_string();
            assert!(refused.contains("document `a`") && refused.contains("NUL"), "{refused}");
        }
        let long = Document { id: "é".repeat(1001), ..plain };
        let refused = storable(&[long]).unwrap_err().to_string();
        assert!(refused.contains("2002 bytes") && refused.len() < 300, "{refused}");
    }

    /// A score that changes on the way to the database and back would make two servers disagree with a robot.
    #[test]
    fn vectors_are_written_with_all_their_digits() {
        let vector = [0.1, -1.0, f32::MIN_POSITIVE, 16_777_217.0, 1.0 / 3.0, 0.0];
        let text = vector_text(&vector);
        let read: Vec<f32> =
            text.trim_matches(['[', ']']).split(',').map(|number| number.parse().unwrap()).collect();
        assert_eq!(read, vector);
    }
}
