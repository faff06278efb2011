//! A row: metadata as it is written, what guards it against damage, what tells it from another.

use crate::document::{Document, Metadata};
use models::files;
use rusqlite::Row;

/// A document without metadata.
pub(super) const NO_METADATA: &str = "{}";

/// Metadata as it is stored and digested.
pub(crate) fn written(metadata: &Metadata) -> String {
    if metadata.is_empty() {
        return NO_METADATA.to_owned();
    }
    serde_json::Value::Object(metadata.clone()).to_string()
}

/// Id, title, text; metadata; digest.
pub(super) fn stored(row: &Row<'_>) -> rusqlite::Result<(Document, String, String)> {
    let metadata = Metadata::new();
    let document = Document { id: row.get(0)?, title: row.get(1)?, text: row.get(2)?, metadata };
    Ok((document, row.get(3)?, row.get(4)?))
}

/// SHA-256 over a document's id, title, text and metadata.
pub fn document_digest(document: &Document) -> String {
    digest(document, &written(&document.metadata))
}

/// SHA-256 over id, title, text and metadata.
pub(crate) fn digest(Document { id, title, text, .. }: &Document, metadata: &str) -> String {
    files::sha256_parts([id.as_bytes(), title.as_bytes(), text.as_bytes(), metadata.as_bytes()])
}

/// 64-bit checksum against damage (not against forgery): every step is a bijection of the state for a fixed input and of
/// the input for a fixed state, so that no change within one word can go unseen.
pub(super) fn checksum(id: &str, metadata: &str, vector: &[u8]) -> i64 {
    let mut state = 0xcbf2_9ce4_8422_2325u64;
    for part in [id.as_bytes(), metadata.as_bytes(), vector] {
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
