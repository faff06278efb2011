//! A BEIR folder under construction: texts go straight to disk, ids and judgements are kept, and the folder appears
//! when it is whole.

use anyhow::{Context, Result};
use models::beir::{Document, Query, quoted};
use models::files::{StagedDir, write_atomic};
use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use string_interner::symbol::SymbolU32;
use string_interner::{StringInterner, Symbol};

/// A document or a query, by its place among the ids.
pub type Id = SymbolU32;

/// All ids of one kind, one after the other in one buffer: some 15 bytes each besides their letters.
type Ids = StringInterner<string_interner::backend::StringBackend<Id>>;

/// Relevance of documents to queries: 12 bytes each, at most three times as many held as there are.
#[derive(Debug, Default)]
pub struct Judgements {
    rows: Vec<(Id, Id, u32)>,
    compact_at: usize,
}

impl Judgements {
    /// Adds one. Of several about one pair the highest gain stays: a mined negative may well be a known positive.
    pub fn push(&mut self, query: Id, document: Id, gain: u32) {
        self.rows.push((query, document, gain));
        if self.rows.len() > self.compact_at.max(1 << 20) {
            self.compact();
            self.compact_at = 3 * self.rows.len();
        }
    }

    /// None at all?
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Each pair once, by query and document in the order of their first appearance.
    pub fn compact(&mut self) {
        self.rows
            .sort_unstable_by_key(|(query, document, gain)| (*query, *document, std::cmp::Reverse(*gain)));
        self.rows.dedup_by_key(|(query, document, _)| (*query, *document));
    }

    /// What has been added.
    pub fn rows(&self) -> &[(Id, Id, u32)] {
        &self.rows
    }
}

/// One JSON object per line, to a file that is not visible yet.
struct JsonLines {
    file: PathBuf,
    writer: BufWriter<File>,
}

impl JsonLines {
    fn create(file: PathBuf) -> Result<Self> {
        let writer = File::create(&file).with_context(|| format!("cannot write {}", file.display()))?;
        Ok(Self { file, writer: BufWriter::with_capacity(1 << 20, writer) })
    }

    fn push(&mut self, value: &impl serde::Serialize) -> Result<()> {
        let written = serde_json::to_writer(&mut self.writer, value).map_err(std::io::Error::from);
        let written = written.and_then(|()| self.writer.write_all(b"\n"));
        written.with_context(|| format!("cannot write {}", self.file.display()))
    }

    fn finish(mut self) -> Result<()> {
        self.writer.flush().with_context(|| format!("cannot write {}", self.file.display()))
    }
}

/// The folder.
pub struct BeirWriter {
    staged: StagedDir,
    corpus: JsonLines,
    queries: JsonLines,
    document_ids: Ids,
    query_ids: Ids,
    written: usize,
}

/// What an import made; prints as one line for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Documents written.
    pub documents: usize,
    /// Queries written.
    pub queries: usize,
    /// By split: queries, judgements of gain above 0, judgements of gain 0.
    pub splits: Vec<(String, [usize; 3])>,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} documents, {} queries", self.documents, self.queries)?;
        for (split, [queries, relevant, negative]) in &self.splits {
            write!(f, "; {split}: {queries} queries, {relevant} relevant documents")?;
            if *negative > 0 {
                write!(f, ", {negative} hard negatives")?;
            }
        }
        Ok(())
    }
}

impl BeirWriter {
    /// Starts a folder that will appear at `out`, where nothing may be.
    pub fn create(out: &Path) -> Result<Self> {
        let staged = StagedDir::new(out)?;
        let corpus = JsonLines::create(staged.path().join("corpus.jsonl"))?;
        let queries = JsonLines::create(staged.path().join("queries.jsonl"))?;
        let (document_ids, query_ids) = (Ids::new(), Ids::new());
        Ok(Self { staged, corpus, queries, document_ids, query_ids, written: 0 })
    }

    /// Writes a document unless its id has been seen; says whether it was new.
    pub fn document(&mut self, document: &Document) -> Result<(Id, bool)> {
        let known = self.document_ids.len();
        let id = self.document_ids.get_or_intern(&document.id);
        let new = id.to_usize() >= known;
        if new {
            self.corpus.push(document)?;
        }
        Ok((id, new))
    }

    /// The document of an id.
    pub fn find_document(&self, id: &str) -> Option<Id> {
        self.document_ids.get(id)
    }

    /// Writes a query unless its id has been seen; says whether it was new.
    pub fn query(&mut self, query: &Query) -> Result<(Id, bool)> {
        let (id, new) = self.announce_query(&query.id);
        if new {
            self.write_query(query)?;
        }
        Ok((id, new))
    }

    /// Keeps the id of a query that is written later, with [`Self::write_query`], or never; says whether it was new.
    pub fn announce_query(&mut self, id: &str) -> (Id, bool) {
        let known = self.query_ids.len();
        let id = self.query_ids.get_or_intern(id);
        (id, id.to_usize() >= known)
    }

    /// Writes a query that was announced.
    pub fn write_query(&mut self, query: &Query) -> Result<()> {
        self.written += 1;
        self.queries.push(query)
    }

    /// The query of an id.
    pub fn find_query(&self, id: &str) -> Option<Id> {
        self.query_ids.get(id)
    }

    /// Number of query ids.
    pub fn announced(&self) -> usize {
        self.query_ids.len()
    }

    /// Writes the judgements of each split and lets the folder appear.
    pub fn finish(self, splits: BTreeMap<String, Judgements>) -> Result<Summary> {
        let qrels = self.staged.path().join("qrels");
        fs::create_dir(&qrels).with_context(|| format!("cannot create {}", qrels.display()))?;
        let (documents, queries) = (self.document_ids.len(), self.written);
        let mut summary = Summary { documents, queries, splits: Vec::new() };
        for (split, mut judgements) in splits {
            judgements.compact();
            write_atomic(&qrels.join(format!("{split}.tsv")), |file| {
                writeln!(file, "query-id\tcorpus-id\tscore")?;
                for (query, document, gain) in judgements.rows() {
                    let query = self.query_ids.resolve(*query).unwrap_or_default();
                    let document = self.document_ids.resolve(*document).unwrap_or_default();
                    writeln!(file, "{}\t{}\t{gain}", quoted(query), quoted(document))?;
                }
                Ok(())
            })?;
            let rows = judgements.rows();
            let queries = rows.chunk_by(|a, b| a.0 == b.0).count();
            let relevant = rows.iter().filter(|(_, _, gain)| *gain > 0).count();
            summary.splits.push((split, [queries, relevant, rows.len() - relevant]));
        }
        self.corpus.finish()?;
        self.queries.finish()?;
        self.staged.commit()?;
        Ok(summary)
    }
}
