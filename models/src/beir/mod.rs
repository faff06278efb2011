//! Data sets in BEIR layout: `corpus.jsonl`, `queries.jsonl`, `qrels/{train,dev,test}.tsv`.
//!
//! Published sets are read as they are. What is harmless in them is passed over and told in a sentence for each kind: texts that
//! are empty, lines that come twice, judgements of things that are not there. What would make a result wrong is an error with
//! its line. The peculiarities of each set are in `docs/data.md`.

mod error;
mod lines;
mod notes;
mod qrels;
mod texts;

pub use error::{DataError, JUDGEMENT};
pub use qrels::{Judgement, JudgementLine, Purpose, Qrels, SplitQrels, quoted, too_many};
pub use texts::{Document, Query, read_queries};

use crate::files;
use qrels::Whereabouts;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use texts::Texts;

const CORPUS: &str = "corpus.jsonl";
const QUERIES: &str = "queries.jsonl";

/// A folder in BEIR layout, read and checked.
#[derive(Debug, Clone, Default)]
pub struct BeirData {
    /// The folder.
    pub dir: PathBuf,
    /// Documents with a title or a text, in file order.
    pub documents: Vec<Document>,
    /// Queries with a text, in file order.
    pub queries: Vec<Query>,
    /// Place of each document id.
    pub document_index: HashMap<String, usize>,
    /// Place of each query id.
    pub query_index: HashMap<String, usize>,
    /// Line of each document that has neither title nor text, by its id.
    pub empty_documents: HashMap<String, usize>,
    /// Line of each query without a text, by its id.
    pub empty_queries: HashMap<String, usize>,
    /// What was passed over when corpus and queries were read, a sentence for each kind.
    pub notes: Vec<String>,
}

impl BeirData {
    /// Reads corpus and queries.
    pub fn open(dir: &Path) -> Result<Self, DataError> {
        let [corpus, queries] = [CORPUS, QUERIES].map(|name| dir.join(name));
        check_layout(dir)?;
        let documents = Texts::<Document>::read(&corpus)?;
        let read = Texts::<Query>::read(&queries)?;
        let over = "passed over";
        let notes = [
            documents.seen_empty.note(
                &corpus,
                ["document has neither title nor text", "documents have neither title nor text"],
                over,
            ),
            documents.repeated.note(&corpus, ["line repeats a document", "lines repeat documents"], over),
            read.seen_empty.note(&queries, ["query has no text", "queries have no text"], over),
            read.repeated.note(&queries, ["line repeats a query", "lines repeat queries"], over),
        ];
        Ok(Self {
            dir: dir.to_owned(),
            documents: documents.texts,
            queries: read.texts,
            document_index: documents.index,
            query_index: read.index,
            empty_documents: documents.empty,
            empty_queries: read.empty,
            notes: notes.into_iter().flatten().collect(),
        })
    }

    /// Reads `qrels/{split}.tsv`.
    pub fn qrels(&self, split: &str, purpose: Purpose) -> Result<SplitQrels, DataError> {
        let file = self.dir.join("qrels").join(format!("{split}.tsv"));
        if !file.exists() {
            return Err(DataError::NoSplit { file, splits: splits(&self.dir) });
        }
        let whereabouts = |id: &str, known: &HashMap<String, usize>, empty: &HashMap<String, usize>| {
            if known.contains_key(id) {
                Whereabouts::Known
            } else if empty.contains_key(id) {
                Whereabouts::Empty
            } else {
                Whereabouts::Missing
            }
        };
        qrels::read(
            &file,
            purpose,
            |id| whereabouts(id, &self.query_index, &self.empty_queries),
            |id| whereabouts(id, &self.document_index, &self.empty_documents),
        )
    }

    /// Whether a document of this id was passed over because it has neither title nor text.
    pub fn is_empty_document(&self, id: &str) -> bool {
        self.empty_documents.contains_key(id)
    }

    /// SHA-256 over all documents, queries and the given splits' judgements: what a cache or a run is keyed to.
    pub fn digest(&self, splits: &[&Qrels]) -> String {
        let mut parts: Vec<Vec<u8>> = Vec::new();
        for d in &self.documents {
            parts.extend([d.id.clone().into_bytes(), d.contents().into_bytes()]);
        }
        for q in &self.queries {
            parts.extend([q.id.clone().into_bytes(), q.text.clone().into_bytes()]);
        }
        for qrels in splits {
            for (query, judgements) in *qrels {
                let mut judged: Vec<_> = judgements.iter().collect();
                judged.sort();
                parts.push(format!("{query} {judged:?}").into_bytes());
            }
        }
        files::sha256_parts(parts.iter().map(Vec::as_slice))
    }
}

/// Names of the splits of the data set in this folder, in order.
pub fn splits(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir.join("qrels")).into_iter().flatten().flatten();
    let name = |path: PathBuf| {
        let split = path.extension().is_some_and(|extension| extension == "tsv");
        split.then(|| path.file_stem().unwrap_or_default().to_string_lossy().into_owned())
    };
    let mut splits: Vec<String> = entries.filter_map(|entry| name(entry.path())).collect();
    splits.sort();
    splits
}

/// Refuses a folder that is no data set but holds some, or holds one that is still compressed.
pub fn check_layout(dir: &Path) -> Result<(), DataError> {
    let sets = if dir.join(CORPUS).exists() { Vec::new() } else { sets_inside(dir) };
    if !sets.is_empty() {
        return Err(DataError::Several { dir: dir.to_owned(), sets });
    }
    let compressed = |file: &PathBuf| !file.exists() && file.with_extension("jsonl.gz").exists();
    match [CORPUS, QUERIES].map(|name| dir.join(name)).into_iter().find(compressed) {
        Some(file) => Err(DataError::Compressed { file }),
        None => Ok(()),
    }
}

/// Names of the folders in this one that hold a corpus, in order.
fn sets_inside(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let sets = entries.filter(|entry| entry.path().join(CORPUS).exists());
    let mut names: Vec<String> = sets.map(|set| set.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests;
