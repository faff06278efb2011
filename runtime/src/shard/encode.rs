//! One shard: encoded batch by batch, so that a killed run can be gone on with, and sealed when it is whole.

use super::partial::{self, Partial};
use super::{About, Place, ShardError, names, read};
use crate::bundle::Bundle;
use crate::document::{Document, Source};
use crate::ingest::{self, BATCH, Progress};
use crate::retriever::{self, Options};
use crate::sealed::{Kind, Sealed, Sealing};
use std::path::Path;
use std::sync::Arc;

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoded {
    /// It was whole already.
    Already {
        /// Documents in it.
        documents: usize,
    },
    /// It is whole now.
    Now {
        /// Documents in it.
        documents: usize,
        /// Those of them that an interrupted run had encoded.
        resumed: usize,
    },
}

/// Encodes one shard of an input to `out`. Repeating the call costs nothing once the shard is whole, and goes on where a killed
/// one was; a file that is something else is never overwritten.
pub fn encode(
    bundle: &Path,
    source: &Source,
    place: Place,
    out: &Path,
    options: &Options,
    progress: &mut dyn FnMut(Progress),
) -> Result<Encoded, ShardError> {
    let bundle = Arc::new(Bundle::open(bundle)?);
    let (documents, input) = read(source, place)?;
    let about = About { place, documents: documents.len(), input, index: ingest::index_key(&bundle) };
    if is_whole(out, &about)? {
        return Ok(Encoded::Already { documents: about.documents });
    }
    let sizes: Vec<usize> = documents.chunks(BATCH).map(<[Document]>::len).collect();
    let waiting = || (options.notice)("another process is encoding this shard, waiting for it");
    let mut partial = Partial::open(out, &about, &sizes, waiting)?;
    if is_whole(out, &about)? {
        partial.remove()?;
        return Ok(Encoded::Already { documents: about.documents });
    }
    let resumed = sizes.iter().take(partial.batches).sum();
    if partial.batches < sizes.len() {
        let encoder = retriever::open_encoder(bundle, options)?;
        let (mut done, total) = (resumed, documents.len());
        progress(Progress { done: 0, total });
        for batch in documents.chunks(BATCH).skip(partial.batches) {
            let batch: Vec<&Document> = batch.iter().collect();
            partial.push(&ingest::encode(&encoder, &batch)?)?;
            done += batch.len();
            progress(Progress { done, total });
        }
    }
    let mut sealing = Sealing::create(out, Kind::Shard)?;
    sealing.numbers::<ShardError>(names::VECTORS, about.index.inner_dimensions, |part| {
        partial.replay(&sizes, |vectors| Ok(part.write(vectors)?))
    })?;
    sealing.lines::<ShardError>(names::DOCUMENTS, |part| {
        documents.iter().try_for_each(|document| Ok(part.line(document)?))
    })?;
    sealing.finish(&about, None)?;
    partial.remove()?;
    Ok(Encoded::Now { documents: about.documents, resumed })
}

/// Whether this very shard is there, whole. What else is there is an error.
fn is_whole(out: &Path, about: &About) -> Result<bool, ShardError> {
    if !out.exists() {
        return Ok(false);
    }
    if partial::is_partial(out) {
        return Err(ShardError::Partial { file: out.to_owned() });
    }
    let sealed = Sealed::open(out, Kind::Shard)?;
    let found: About = sealed.about()?;
    if found != *about {
        let (found, expected) = (found.told(), about.told());
        return Err(ShardError::Taken { file: out.to_owned(), found, expected });
    }
    sealed.check()?;
    Ok(true)
}
