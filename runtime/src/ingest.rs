//! Documents in, vectors stored: plans, encodes and stores batch by batch.

use crate::bundle::Bundle;
use crate::encoder::Encoder;
use crate::retriever::RetrieverError;
use crate::search::Rows;
use crate::store::{self, Change, IndexKey, Record, Writer};
use models::beir::Document;
use serde::Serialize;

/// Documents that are encoded and stored together: a transaction each, and as much as an interruption can lose.
const BATCH: usize = 64;

/// What became of the documents.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct AddReport {
    /// Ids that were not there before.
    pub added: usize,
    /// Ids whose contents changed.
    pub replaced: usize,
    /// Documents that were there as they are; they cost nothing.
    pub unchanged: usize,
}

/// How far encoding has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Documents encoded and stored.
    pub done: usize,
    /// Documents to encode: new and changed ones.
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

/// Stores new and changed documents and takes their vectors into `rows`; `changed` gathers their keys. On an error,
/// `rows` and `changed` hold what was stored until then.
pub fn ingest(
    encoder: &Encoder,
    writer: &mut Writer,
    documents: &[Document],
    rows: &mut Rows,
    changed: &mut Vec<i64>,
    progress: &mut dyn FnMut(Progress),
) -> Result<AddReport, RetrieverError> {
    if let Some(id) = store::duplicate_id(documents) {
        return Err(RetrieverError::Duplicate { id: id.to_owned() });
    }
    let plan = writer.plan(documents)?;
    let count = |wanted| plan.iter().filter(|change| **change == wanted).count();
    let report = AddReport {
        added: count(Change::Added),
        replaced: count(Change::Replaced),
        unchanged: count(Change::Unchanged),
    };
    let wanted: Vec<&Document> = documents
        .iter()
        .zip(&plan)
        .filter(|(_, change)| **change != Change::Unchanged)
        .map(|(d, _)| d)
        .collect();
    let total = wanted.len();
    rows.reserve(report.added);
    progress(Progress { done: 0, total });
    for (batch, documents) in wanted.chunks(BATCH).enumerate() {
        let mut passes = Vec::with_capacity(documents.len());
        for document in documents {
            let pass = encoder.bundle().prompter.document_pass(&document.contents());
            passes.push(pass.map_err(|source| RetrieverError::Document { id: document.id.clone(), source })?);
        }
        let records: Vec<Record<'_>> = encoder
            .encode(&passes)?
            .iter()
            .zip(documents)
            .map(|(e, document)| Record { document, vector: encoder.bundle().folded.document(&e.latent) })
            .collect();
        let keys = writer.put(&records)?;
        for (key, record) in keys.iter().zip(&records) {
            rows.push(*key, &record.document.id, &record.vector);
        }
        changed.extend(keys);
        progress(Progress { done: total.min((batch + 1) * BATCH), total });
    }
    Ok(report)
}
