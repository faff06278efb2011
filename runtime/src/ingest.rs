//! Documents in, vectors stored: plans, encodes and stores batch by batch.
//!
//! What an index is follows from its documents and their order alone, to the byte: crate::shard makes the same one from batches
//! that were encoded elsewhere.

use crate::bundle::Bundle;
use crate::document::Document;
use crate::encoder::Encoder;
use crate::retriever::RetrieverError;
use crate::store::{self, Change, IndexKey, Record, Writer};
use serde::Serialize;

/// Documents that are encoded and stored together: a transaction each, and as much as an interruption can lose. Shards
/// consist of whole batches: with another number they would be of another format.
pub const BATCH: usize = 64;

/// What became of the documents.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct AddReport {
    /// Ids that were not there before.
    pub added: usize,
    /// Ids whose contents or metadata changed.
    pub replaced: usize,
    /// Documents that were there as they are; they cost nothing.
    pub unchanged: usize,
}

/// How far encoding has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Documents stored.
    pub done: usize,
    /// Documents to store: new and changed ones.
    pub total: usize,
}

/// Where vectors are stored.
pub trait Target {
    /// What [`Target::put`] would do with each document.
    fn plan(&mut self, documents: &[Document]) -> Result<Vec<Change>, RetrieverError>;

    /// Stores a batch, all of it or nothing; durable when it returns. Returns the places of records that came without a
    /// vector and are not stored, because somebody has changed their texts meanwhile: these need one after all.
    fn put(&mut self, records: &[Record<'_>]) -> Result<Vec<usize>, RetrieverError>;
}

impl Target for Writer {
    fn plan(&mut self, documents: &[Document]) -> Result<Vec<Change>, RetrieverError> {
        Ok(Self::plan(self, documents)?)
    }

    fn put(&mut self, records: &[Record<'_>]) -> Result<Vec<usize>, RetrieverError> {
        // Nobody changes anything beside the one writer.
        Self::put(self, records)?;
        Ok(Vec::new())
    }
}

/// The key of an index made with this bundle.
pub fn index_key(bundle: &Bundle) -> IndexKey {
    let manifest = &bundle.manifest;
    IndexKey {
        document_digest: manifest.document_digest.clone(),
        inner_dimensions: manifest.predictor.inner_dimensions,
        form: manifest.predictor.form,
    }
}

/// Vectors of documents that are encoded together, `[m]` each, in order.
pub fn encode(encoder: &Encoder, documents: &[&Document]) -> Result<Vec<Vec<f32>>, RetrieverError> {
    let mut passes = Vec::with_capacity(documents.len());
    for document in documents {
        let pass = encoder.bundle().prompter.document_pass(&document.contents());
        passes.push(pass.map_err(|source| RetrieverError::Document { id: document.id.clone(), source })?);
    }
    let folded = &encoder.bundle().folded;
    Ok(encoder.encode(&passes)?.iter().map(|embedding| folded.document(&embedding.latent)).collect())
}

/// Stores new and changed documents, and encodes those whose text is new. After an error the batches stored until then
/// stay, and the call can be repeated.
pub fn ingest(
    encoder: &Encoder,
    target: &mut impl Target,
    documents: &[Document],
    progress: &mut dyn FnMut(Progress),
) -> Result<AddReport, RetrieverError> {
    if let Some(id) = store::duplicate_id(documents) {
        return Err(RetrieverError::Duplicate { id: id.to_owned() });
    }
    let plan = target.plan(documents)?;
    let count = |wanted: &[Change]| plan.iter().filter(|change| wanted.contains(change)).count();
    let report = AddReport {
        added: count(&[Change::Added]),
        replaced: count(&[Change::Replaced, Change::Relabelled]),
        unchanged: count(&[Change::Unchanged]),
    };
    let changed = documents.iter().zip(plan).filter(|(_, change)| *change != Change::Unchanged);
    let changed: Vec<(&Document, Change)> = changed.collect();
    let total = changed.len();
    progress(Progress { done: 0, total });
    for (batch, changed) in changed.chunks(BATCH).enumerate() {
        let mut changed = changed.to_vec();
        while !changed.is_empty() {
            let missed = target.put(&encoded(encoder, &changed)?)?;
            changed = missed.into_iter().map(|place| (changed[place].0, Change::Replaced)).collect();
        }
        progress(Progress { done: total.min((batch + 1) * BATCH), total });
    }
    Ok(report)
}

/// Records of a batch, with vectors where texts are new.
fn encoded<'a>(
    encoder: &Encoder,
    changed: &[(&'a Document, Change)],
) -> Result<Vec<Record<'a>>, RetrieverError> {
    let texts = changed.iter().filter(|(_, change)| *change != Change::Relabelled);
    let texts: Vec<&Document> = texts.map(|(document, _)| *document).collect();
    let mut vectors = encode(encoder, &texts)?.into_iter();
    let record = |&(document, change): &(&'a Document, Change)| {
        // encode() returns a vector for each document.
        let vector = if change == Change::Relabelled { None } else { vectors.next() };
        Record { document, vector }
    };
    Ok(changed.iter().map(record).collect())
}
