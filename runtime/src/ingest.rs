//! Documents in, vectors stored: plans, encodes and stores batch by batch.

use crate::bundle::Bundle;
use crate::document::Document;
use crate::encoder::Encoder;
use crate::retriever::RetrieverError;
use crate::store::{self, Change, IndexKey, Record, Writer};
use serde::Serialize;

/// Documents that are encoded and stored together: a transaction each, and as much as an interruption can lose.
const BATCH: usize = 64;

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

/// The key of an index made with this bundle.
pub fn index_key(bundle: &Bundle) -> IndexKey {
    let manifest = &bundle.manifest;
    IndexKey {
        document_digest: manifest.document_digest.clone(),
        inner_dimensions: manifest.predictor.inner_dimensions,
        form: manifest.predictor.form,
    }
}

/// Stores new and changed documents, and encodes those whose text is new. After an error the batches stored until then
/// stay, and the call can be repeated.
pub fn ingest(
    encoder: &Encoder,
    writer: &mut Writer,
    documents: &[Document],
    progress: &mut dyn FnMut(Progress),
) -> Result<AddReport, RetrieverError> {
    if let Some(id) = store::duplicate_id(documents) {
        return Err(RetrieverError::Duplicate { id: id.to_owned() });
    }
    let plan = writer.plan(documents)?;
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
        let mut passes = Vec::with_capacity(changed.len());
        for (document, _) in changed.iter().filter(|(_, change)| *change != Change::Relabelled) {
            let pass = encoder.bundle().prompter.document_pass(&document.contents());
            passes.push(pass.map_err(|source| RetrieverError::Document { id: document.id.clone(), source })?);
        }
        let mut vectors =
            encoder.encode(&passes)?.into_iter().map(|e| encoder.bundle().folded.document(&e.latent));
        let mut records = Vec::with_capacity(changed.len());
        for &(document, change) in changed {
            // encode() returns an embedding for each pass.
            let vector = if change == Change::Relabelled { None } else { vectors.next() };
            records.push(Record { document, vector });
        }
        writer.put(&records)?;
        progress(Progress { done: total.min((batch + 1) * BATCH), total });
    }
    Ok(report)
}
