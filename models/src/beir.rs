//! Data sets in BEIR layout: `corpus.jsonl`, `queries.jsonl`, `qrels/{train,dev,test}.tsv`.

use crate::files::{self, FileError};
use crate::metrics::Judgements;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

/// One line of `corpus.jsonl`; null is an empty text, unknown fields are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Line")]
pub struct Document {
    /// Identifier, unique in the corpus.
    #[serde(rename = "_id")]
    pub id: String,
    /// Title, may be empty.
    pub title: String,
    /// Text.
    pub text: String,
}

impl Document {
    /// What is encoded: title and text on lines of their own (either may be empty).
    pub fn contents(&self) -> String {
        let (title, text) = (self.title.trim(), self.text.trim());
        match (title.is_empty(), text.is_empty()) {
            (true, _) => text.to_owned(),
            (_, true) => title.to_owned(),
            _ => format!("{title}\n{text}"),
        }
    }
}

/// One line of `queries.jsonl`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Line")]
pub struct Query {
    /// Identifier, unique among the queries.
    #[serde(rename = "_id")]
    pub id: String,
    /// Text.
    pub text: String,
}

/// A line of either file as it lies there: what writers of data frames leave empty is null, and some write `id` beside `_id`.
#[derive(Deserialize)]
struct Line {
    #[serde(rename = "_id")]
    id: Option<Id>,
    #[serde(rename = "id")]
    other_id: Option<Id>,
    title: Option<String>,
    text: Option<String>,
}

/// Ids are texts; where all are numbers some writers leave the quotes out.
#[derive(Deserialize)]
#[serde(untagged)]
enum Id {
    Text(String),
    Number(u64),
}

impl Line {
    fn id(id: Option<Id>, other: Option<Id>) -> Result<String, String> {
        let text = |id: Id| match id {
            Id::Text(text) => text,
            Id::Number(number) => number.to_string(),
        };
        match (id.map(text), other.map(text)) {
            (None, _) => Err("missing field `_id`".into()),
            (Some(id), Some(other)) if id != other => {
                Err(format!("`_id` is `{id}` and `id` is `{other}`, expected one id"))
            }
            (Some(id), _) => Ok(id),
        }
    }
}

impl TryFrom<Line> for Document {
    type Error = String;

    fn try_from(line: Line) -> Result<Self, String> {
        let id = Line::id(line.id, line.other_id)?;
        Ok(Self { id, title: line.title.unwrap_or_default(), text: line.text.unwrap_or_default() })
    }
}

impl TryFrom<Line> for Query {
    type Error = String;

    fn try_from(line: Line) -> Result<Self, String> {
        let id = Line::id(line.id, line.other_id)?;
        Ok(Self { id, text: line.text.ok_or("missing field `text`")? })
    }
}

/// Data that cannot be used, with the line.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// A line is not JSON of the expected shape.
    #[error("{file}:{line}: not a JSON object with `_id` and `text`: {source}")]
    Json {
        /// The file.
        file: PathBuf,
        /// Line, from 1.
        line: usize,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// Two lines share an id.
    #[error("{file}:{line}: id `{id}` was used on line {first} already; ids must be unique")]
    Duplicate {
        /// The file.
        file: PathBuf,
        /// Second line.
        line: usize,
        /// First line.
        first: usize,
        /// The id.
        id: String,
    },
    /// A line without any text.
    #[error("{file}:{line}: `{id}` has neither title nor text; there is nothing to encode")]
    EmptyText {
        /// The file.
        file: PathBuf,
        /// Line.
        line: usize,
        /// The id.
        id: String,
    },
    /// No line at all.
    #[error("{file}: holds no {what}")]
    Empty {
        /// The file.
        file: PathBuf,
        /// `documents`, `queries` or `judgements`.
        what: &'static str,
    },
    /// A judgement line that does not parse.
    #[error(
        "{file}:{line}: found `{found}`, expected `query-id<TAB>corpus-id<TAB>score` with a whole number as score"
    )]
    Qrels {
        /// The file.
        file: PathBuf,
        /// Line.
        line: usize,
        /// The line's text.
        found: String,
    },
    /// A judgement about something that does not exist.
    #[error("{file}:{line}: {what} `{id}` is not in {other}")]
    Unknown {
        /// The file.
        file: PathBuf,
        /// Line.
        line: usize,
        /// `query` or `document`.
        what: &'static str,
        /// The id.
        id: String,
        /// Where it should be.
        other: &'static str,
    },
    /// A text that is not UTF-8.
    #[error("{file}:{line}: not UTF-8 text")]
    Utf8 {
        /// The file.
        file: PathBuf,
        /// Line.
        line: usize,
    },
}

/// A folder in BEIR layout, read and checked.
#[derive(Debug, Clone, Default)]
pub struct BeirData {
    /// The folder.
    pub dir: PathBuf,
    /// Documents in file order.
    pub documents: Vec<Document>,
    /// Queries in file order.
    pub queries: Vec<Query>,
    /// Place of each document id.
    pub document_index: HashMap<String, usize>,
    /// Place of each query id.
    pub query_index: HashMap<String, usize>,
    /// Ids of documents with neither title nor text, in file order: passed over, as they can be neither encoded nor found. BEIR's
    /// FiQA and TREC-COVID have some.
    pub empty_documents: Vec<String>,
}

/// Judgements of one split, and what of them is about things that are not there.
#[derive(Debug, Clone, Default)]
pub struct LenientQrels {
    /// Judgements of known queries. Documents that the corpus lacks are among them: nobody can find them, and metrics count
    /// that as trec_eval does.
    pub qrels: Qrels,
    /// One sentence for each kind of thing that was missing.
    pub notes: Vec<String>,
}

/// How often ids of one kind were missing, and where first.
#[derive(Default)]
struct Missing {
    count: usize,
    first: Option<(usize, String)>,
}

impl Missing {
    fn add(&mut self, line: usize, id: &str) {
        self.count += 1;
        self.first.get_or_insert_with(|| (line, id.to_owned()));
    }

    fn note(&self, file: &Path, what: &str, other: &str, meaning: &str) -> Option<String> {
        let (line, id) = self.first.as_ref()?;
        let (file, count) = (file.display(), self.count);
        let judgements = if count == 1 { "judgement names a" } else { "judgements name" };
        let plural =
            if count == 1 { what.to_owned() } else { format!("{what}s").replace("querys", "queries") };
        Some(format!(
            "{file}: {count} {judgements} {plural} that {other} lacks (first: `{id}`, line {line}); {meaning}"
        ))
    }
}

/// The judgements of one split: query id to judged documents, in order of query id.
pub type Qrels = BTreeMap<String, Judgements>;

impl BeirData {
    /// Reads corpus and queries.
    pub fn open(dir: &Path) -> Result<Self, DataError> {
        let (documents, empty_documents) = read_corpus(&dir.join("corpus.jsonl"))?;
        let queries = read_queries(&dir.join("queries.jsonl"))?;
        let query_index = queries.iter().enumerate().map(|(i, q)| (q.id.clone(), i)).collect();
        let document_index = documents.iter().enumerate().map(|(i, d)| (d.id.clone(), i)).collect();
        Ok(Self { dir: dir.to_owned(), documents, queries, document_index, query_index, empty_documents })
    }

    /// What was passed over when corpus and queries were read, for people.
    pub fn notes(&self) -> Vec<String> {
        let note = self.empty_documents.first().map(|first| {
            let (file, count) = (self.dir.join("corpus.jsonl"), self.empty_documents.len());
            let documents = if count == 1 { "document has" } else { "documents have" };
            let file = file.display();
            format!("{file}: {count} {documents} neither title nor text (first: `{first}`); passed over")
        });
        note.into_iter().collect()
    }

    /// Reads `qrels/{split}.tsv`; judgements about unknown queries or documents are errors with their line.
    pub fn qrels(&self, split: &str) -> Result<Qrels, DataError> {
        let file = self.qrels_file(split);
        let unknown = |what, id: &str, line, other| {
            Err(DataError::Unknown { file: file.clone(), line, what, id: id.to_owned(), other })
        };
        self.read_qrels(split, &mut |line, query, document| {
            if !self.query_index.contains_key(query) {
                return unknown("query", query, line, "queries.jsonl");
            }
            // A document that was passed over is known all the same.
            if !self.document_index.contains_key(document) && !self.is_empty_document(document) {
                return unknown("document", document, line, "corpus.jsonl");
            }
            Ok(true)
        })
    }

    /// The same for measuring, where published sets (BEIR's ArguAna among them) judge documents that their corpus lacks: these
    /// count as not found, queries that are not there are left out, and both are told.
    pub fn lenient_qrels(&self, split: &str) -> Result<LenientQrels, DataError> {
        let (mut queries, mut documents) = (Missing::default(), Missing::default());
        let qrels = self.read_qrels(split, &mut |line, query, document| {
            if !self.query_index.contains_key(query) {
                queries.add(line, query);
                return Ok(false);
            }
            if !self.document_index.contains_key(document) {
                documents.add(line, document);
            }
            Ok(true)
        })?;
        let file = self.qrels_file(split);
        let notes = [
            queries.note(&file, "query", "queries.jsonl", "nobody can ask it, so it is not measured"),
            documents.note(
                &file,
                "document",
                "corpus.jsonl",
                "nobody can find it, which counts as not found",
            ),
        ];
        Ok(LenientQrels { qrels, notes: notes.into_iter().flatten().collect() })
    }

    /// Whether a document of this id was passed over because it has neither title nor text.
    pub fn is_empty_document(&self, id: &str) -> bool {
        self.empty_documents.iter().any(|empty| empty == id)
    }

    fn qrels_file(&self, split: &str) -> PathBuf {
        self.dir.join("qrels").join(format!("{split}.tsv"))
    }

    /// Reads judgements; `takes` decides about each pair on its line.
    fn read_qrels(
        &self,
        split: &str,
        takes: &mut dyn FnMut(usize, &str, &str) -> Result<bool, DataError>,
    ) -> Result<Qrels, DataError> {
        let file = self.qrels_file(split);
        let mut qrels = Qrels::new();
        for_each_line(&file, |text, line| {
            let fields: Vec<&str> = text.split('\t').collect();
            if line == 1 && fields.first() == Some(&"query-id") {
                return Ok(());
            }
            let parsed = match fields[..] {
                [query, document, gain] => {
                    gain.trim().parse::<i64>().ok().map(|gain| (query, document, gain))
                }
                _ => None,
            };
            let Some((query, document, gain)) = parsed else {
                return Err(DataError::Qrels { file: file.clone(), line, found: text.to_owned() });
            };
            if !takes(line, query, document)? {
                return Ok(());
            }
            // Below zero is not relevant either, and no gain to lose.
            let gain = u32::try_from(gain).unwrap_or(0);
            qrels.entry(query.to_owned()).or_default().insert(document.to_owned(), gain);
            Ok(())
        })?;
        if qrels.is_empty() {
            return Err(DataError::Empty { file, what: "judgements" });
        }
        Ok(qrels)
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

/// Reads a `corpus.jsonl`: unique ids, at least one document with a title or a text; and the ids of those that have neither.
pub fn read_corpus(file: &Path) -> Result<(Vec<Document>, Vec<String>), DataError> {
    let mut documents = Vec::new();
    for_each_json(file, |document: Document, line| {
        documents.push((document, line));
        Ok(())
    })?;
    unique(file, documents.iter().map(|(d, line)| (d.id.as_str(), *line)))?;
    let (full, empty): (Vec<_>, Vec<_>) =
        documents.into_iter().map(|(document, _)| document).partition(|d| !d.contents().is_empty());
    if full.is_empty() {
        return Err(DataError::Empty { file: file.to_owned(), what: "documents" });
    }
    Ok((full, empty.into_iter().map(|document| document.id).collect()))
}

/// Reads a `queries.jsonl`: at least one query, unique ids, no empty ones.
pub fn read_queries(file: &Path) -> Result<Vec<Query>, DataError> {
    let mut queries = Vec::new();
    for_each_json(file, |query: Query, line| {
        if query.text.trim().is_empty() {
            return Err(DataError::EmptyText { file: file.to_owned(), line, id: query.id });
        }
        queries.push((query, line));
        Ok(())
    })?;
    if queries.is_empty() {
        return Err(DataError::Empty { file: file.to_owned(), what: "queries" });
    }
    unique(file, queries.iter().map(|(q, line)| (q.id.as_str(), *line)))?;
    Ok(queries.into_iter().map(|(query, _)| query).collect())
}

fn unique<'a>(file: &Path, ids: impl Iterator<Item = (&'a str, usize)>) -> Result<(), DataError> {
    let mut seen: HashMap<&str, usize> = HashMap::new();
    for (id, line) in ids {
        if let Some(first) = seen.insert(id, line) {
            return Err(DataError::Duplicate { file: file.to_owned(), line, first, id: id.to_owned() });
        }
    }
    Ok(())
}

fn for_each_json<T: serde::de::DeserializeOwned>(
    file: &Path,
    mut each: impl FnMut(T, usize) -> Result<(), DataError>,
) -> Result<(), DataError> {
    for_each_line(file, |text, line| {
        let value = serde_json::from_str(text).map_err(|source| DataError::Json {
            file: file.to_owned(),
            line,
            source,
        })?;
        each(value, line)
    })
}

/// Lines from 1, blank ones skipped, a byte order mark and carriage returns removed.
fn for_each_line(
    file: &Path,
    mut each: impl FnMut(&str, usize) -> Result<(), DataError>,
) -> Result<(), DataError> {
    let mut reader = BufReader::new(File::open(file).map_err(FileError::io(file))?);
    let mut bytes = Vec::new();
    for line in 1.. {
        bytes.clear();
        if reader.read_until(b'\n', &mut bytes).map_err(FileError::io(file))? == 0 {
            break;
        }
        let text =
            std::str::from_utf8(&bytes).map_err(|_| DataError::Utf8 { file: file.to_owned(), line })?;
        let text = text.trim_start_matches('\u{feff}').trim_end_matches(['\n', '\r']);
        if !text.trim().is_empty() {
            each(text, line)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn data(corpus: &str, queries: &str, qrels: &str) -> (tempfile::TempDir, Result<Qrels, DataError>) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("qrels")).unwrap();
        fs::write(dir.path().join("corpus.jsonl"), corpus).unwrap();
        fs::write(dir.path().join("queries.jsonl"), queries).unwrap();
        fs::write(dir.path().join("qrels/test.tsv"), qrels).unwrap();
        let read = BeirData::open(dir.path()).and_then(|data| data.qrels("test"));
        (dir, read)
    }

    const CORPUS: &str = "{\"_id\":\"d1\",\"title\":\"T\",\"text\":\"x\"}\n";
    const QUERIES: &str = "{\"_id\":\"q1\",\"text\":\"x\"}\n";

    /// A bad line must be found by its number, not by bisecting a million lines.
    #[test]
    fn errors_name_the_line() {
        let bad = [
            (data("{\"_id\":\"d1\",\"text\":\"x\"}\n\n{oops\n", QUERIES, ""), "corpus.jsonl:3:"),
            (data(&CORPUS.repeat(2), QUERIES, ""), "corpus.jsonl:2: id `d1` was used on line 1 already"),
            (data("{\"_id\":\"d1\"}\n", QUERIES, ""), "corpus.jsonl: holds no documents"),
            (data("{\"_id\":\"d1\",\"id\":\"d2\",\"text\":\"x\"}\n", QUERIES, ""), "corpus.jsonl:1: "),
            (data("{\"text\":\"x\"}\n", QUERIES, ""), "missing field `_id`"),
            (data(CORPUS, "{\"_id\":\"q1\",\"text\":null}\n", ""), "queries.jsonl:1: "),
            (data(CORPUS, "{\"_id\":\"q1\",\"text\":\" \"}\n", ""), "queries.jsonl:1: `q1` has neither"),
            (data("", QUERIES, ""), "corpus.jsonl: holds no documents"),
            (data(CORPUS, QUERIES, "query-id\tcorpus-id\tscore\nq1\td1\n"), "test.tsv:2: found `q1\td1`"),
            (data(CORPUS, QUERIES, "q1\td9\t1\n"), "test.tsv:1: document `d9` is not in corpus.jsonl"),
            (data(CORPUS, QUERIES, "q9\td1\t1\n"), "test.tsv:1: query `q9` is not in queries.jsonl"),
            (data(CORPUS, QUERIES, "query-id\tcorpus-id\tscore\n"), "test.tsv: holds no judgements"),
        ];
        for ((_dir, result), expected) in bad {
            let message = result.unwrap_err().to_string();
            assert!(message.contains(expected), "{message:?} lacks {expected:?}");
        }
    }

    /// FiQA's corpus has documents without a word, ArguAna's judgements name documents that are not there, and data frames write
    /// null for what is empty: refused, none of these sets could be measured; counted otherwise than trec_eval does, no number
    /// could be compared.
    #[test]
    fn what_published_sets_lack_is_passed_over_and_told() {
        let corpus = "{\"_id\":\"d1\",\"id\":\"d1\",\"title\":null,\"text\":\"x\",\"metadata\":null}\n\
                      {\"_id\":\"d2\",\"title\":\"\",\"text\":null}\n{\"_id\":3,\"title\":\"T\"}\n";
        let judged = "q1\td1\t1\nq1\td2\t1\nq1\t3\t-1\n";
        let (dir, strict) = data(corpus, QUERIES, judged);
        // Passed over, but no stranger: training may go on.
        assert_eq!(strict.unwrap()["q1"].len(), 3);
        let read = BeirData::open(dir.path()).unwrap();
        assert_eq!((read.documents.len(), read.documents[1].id.as_str()), (2, "3"));
        assert_eq!(read.empty_documents, ["d2"]);
        let note = &read.notes()[0];
        assert!(
            note.ends_with("corpus.jsonl: 1 document has neither title nor text (first: `d2`); passed over"),
            "{note}"
        );

        fs::write(dir.path().join("qrels/test.tsv"), format!("{judged}q1\td8\t2\nq1\td9\t1\nq7\td1\t1\n"))
            .unwrap();
        assert!(read.qrels("test").is_err());
        let LenientQrels { qrels, notes } = read.lenient_qrels("test").unwrap();
        assert_eq!(qrels.keys().collect::<Vec<_>>(), ["q1"]);
        assert_eq!((qrels["q1"]["d8"], qrels["q1"]["3"]), (2, 0));
        assert!(
            notes[0].contains("1 judgement names a query that queries.jsonl lacks (first: `q7`, line 6)"),
            "{notes:?}"
        );
        assert!(
            notes[1].contains("3 judgements name documents that corpus.jsonl lacks (first: `d2`, line 2)"),
            "{notes:?}"
        );
    }

    /// BEIR files with Windows line ends and graded judgements are common and must read the same.
    #[test]
    fn reads_graded_judgements_and_carriage_returns() {
        let (_dir, qrels) = data(CORPUS, QUERIES, "query-id\tcorpus-id\tscore\r\nq1\td1\t3\r\n");
        assert_eq!(qrels.unwrap()["q1"]["d1"], 3);
    }
}
