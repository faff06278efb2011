//! Documents as users bring them: JSON lines (BEIR's `corpus.jsonl` among them), CSV, a folder in BEIR layout.

use crate::filter::flattened;
use models::beir;
use models::files::FileError;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// What a document is filtered by: field to value, as JSON.
pub type Metadata = Map<String, Value>;

/// Most metadata fields of a document: each is a column of the whole index.
pub const MOST_FIELDS: usize = 64;

/// A document; unknown fields are ignored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Fields")]
pub struct Document {
    /// Identifier, unique in the index; BEIR's `_id`.
    pub id: String,
    /// Title, may be empty.
    pub title: String,
    /// Text, may be empty if there is a title.
    pub text: String,
    /// What it can be filtered by.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub metadata: Metadata,
}

/// A document as programs write it: `null` for what is not there, and BEIR's `_id` beside `id` or in its place.
#[derive(Deserialize)]
struct Fields {
    id: Option<String>,
    #[serde(rename = "_id")]
    beir_id: Option<String>,
    title: Option<String>,
    text: Option<String>,
    metadata: Option<Metadata>,
}

impl TryFrom<Fields> for Document {
    type Error = String;

    fn try_from(Fields { id, beir_id, title, text, metadata }: Fields) -> Result<Self, String> {
        let id = match (id, beir_id) {
            (Some(id), Some(beir_id)) if id != beir_id => {
                return Err(format!("`_id` is `{beir_id}` and `id` is `{id}`; keep one of them"));
            }
            (Some(id), _) | (None, Some(id)) => id,
            (None, None) => return Err("there is neither `_id` nor `id`".into()),
        };
        let (title, text) = (title.unwrap_or_default(), text.unwrap_or_default());
        Ok(Self { id, title, text, metadata: metadata.unwrap_or_default() })
    }
}

impl Document {
    /// What is encoded: title and text as BEIR joins them.
    pub fn contents(&self) -> String {
        let (id, title, text) = (String::new(), self.title.clone(), self.text.clone());
        beir::Document { id, title, text }.contents()
    }
}

impl Document {
    /// Number of its metadata fields, those of nested objects counted one by one.
    pub fn fields(&self) -> usize {
        flattened(&self.metadata).len()
    }
}

impl From<beir::Document> for Document {
    fn from(beir::Document { id, title, text }: beir::Document) -> Self {
        Self { id, title, text, metadata: Metadata::new() }
    }
}

/// Documents that cannot be read, with the line.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// A file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// A line is not a document.
    #[error("{source_name}:{line}: {reason}")]
    Line {
        /// File, or `stdin`.
        source_name: String,
        /// Line, from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// No document at all.
    #[error("{source_name}: holds no documents")]
    Empty {
        /// File, or `stdin`.
        source_name: String,
    },
}

/// Where documents come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// JSON lines.
    Jsonl(PathBuf),
    /// CSV with a line of headers: `id`, `title` and `text`, all other columns are metadata. What pandas writes for a value
    /// that is missing (nothing, `NaN`, `nan`, `NaT`, `<NA>`) is missing, and its column of row numbers, the first one and
    /// without a name, is left out.
    Csv(PathBuf),
    /// The `corpus.jsonl` of a folder in BEIR layout. Published sets have documents with neither title nor text, which are passed
    /// over and told; in a file of one's own they are a slip, and an error.
    Beir(PathBuf),
    /// JSON lines on stdin.
    Stdin,
}

impl Source {
    /// `-` is stdin, a folder is one in BEIR layout, `.csv` is CSV, all else JSON lines.
    pub fn of(path: &Path) -> Self {
        if path == Path::new("-") {
            Self::Stdin
        } else if path.is_dir() {
            Self::Beir(path.join("corpus.jsonl"))
        } else if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("csv")) {
            Self::Csv(path.to_owned())
        } else {
            Self::Jsonl(path.to_owned())
        }
    }

    /// Reads all documents: at least one, unique ids, no empty ones.
    pub fn read(&self) -> Result<Vec<Document>, DocumentError> {
        let mut documents = Vec::new();
        self.visit(|document| documents.push(document))?;
        Ok(documents)
    }

    /// [`Source::read`] document by document, of which `each` keeps what it wants. After an error, those before it have been
    /// seen.
    pub fn visit(&self, each: impl FnMut(Document)) -> Result<(), DocumentError> {
        let open = |file: &Path| File::open(file).map_err(FileError::io(file));
        match self {
            Self::Jsonl(file) => {
                let mut checked = Checked::new(file.display().to_string(), each);
                jsonl(&mut checked, BufReader::new(open(file)?))?;
                checked.finish()
            }
            Self::Beir(file) => {
                let mut checked = Checked::new(file.display().to_string(), each);
                checked.empty = Some(0);
                jsonl(&mut checked, BufReader::new(open(file)?))?;
                let (name, empty) = (checked.name.clone(), checked.empty.unwrap_or(0));
                checked.finish()?;
                if empty > 0 {
                    let documents = if empty == 1 { "document has" } else { "documents have" };
                    eprintln!("{name}: {empty} {documents} neither title nor text; passed over");
                }
                Ok(())
            }
            Self::Csv(file) => {
                let mut checked = Checked::new(file.display().to_string(), each);
                csv(&mut checked, open(file)?)?;
                checked.finish()
            }
            Self::Stdin => {
                let mut checked = Checked::new("stdin".to_owned(), each);
                jsonl(&mut checked, io::stdin().lock())?;
                checked.finish()
            }
        }
    }
}

/// Documents from JSON lines.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn read_jsonl(bytes: &[u8]) -> Result<Vec<Document>, DocumentError> {
    let mut documents = Vec::new();
    let mut checked = Checked::new("d.jsonl".into(), |document| documents.push(document));
    jsonl(&mut checked, bytes)?;
    checked.finish()?;
    Ok(documents)
}

/// Documents from CSV.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn read_csv(bytes: &[u8]) -> Result<Vec<Document>, DocumentError> {
    let mut documents = Vec::new();
    let mut checked = Checked::new("d.csv".into(), |document| documents.push(document));
    csv(&mut checked, bytes)?;
    checked.finish()?;
    Ok(documents)
}

fn at(source_name: &str, line: usize, reason: impl Into<String>) -> DocumentError {
    DocumentError::Line { source_name: source_name.to_owned(), line, reason: reason.into() }
}

/// Blank lines are skipped, a byte order mark and carriage returns removed.
fn jsonl<F: FnMut(Document)>(checked: &mut Checked<F>, mut input: impl BufRead) -> Result<(), DocumentError> {
    let name = checked.name.clone();
    let name = name.as_str();
    let mut bytes = Vec::new();
    for line in 1.. {
        bytes.clear();
        if input.read_until(b'\n', &mut bytes).map_err(|e| at(name, line, e.to_string()))? == 0 {
            break;
        }
        let text = std::str::from_utf8(&bytes).map_err(|_| at(name, line, "not UTF-8 text"))?;
        let text = text.trim_start_matches('\u{feff}').trim();
        if text.is_empty() {
            continue;
        }
        let document: Document = serde_json::from_str(text)
            .map_err(|e| at(name, line, format!("not a JSON object with `_id` and `text`: {e}")))?;
        checked.take(document, line)?;
    }
    Ok(())
}

fn csv<F: FnMut(Document)>(checked: &mut Checked<F>, input: impl Read) -> Result<(), DocumentError> {
    let name = checked.name.clone();
    let name = name.as_str();
    let mut reader = csv::ReaderBuilder::new().flexible(false).from_reader(input);
    let refused = |error: csv::Error| {
        let line = error.position().map_or(1, |position| position.line() as usize);
        at(name, line, error.to_string())
    };
    let headers = reader.headers().map_err(refused)?.clone();
    let headers: Vec<&str> = headers.iter().map(|h| h.trim_start_matches('\u{feff}').trim()).collect();
    if !headers.iter().any(|h| matches!(*h, "id" | "_id")) {
        let found = headers.join("`, `");
        return Err(at(
            name,
            1,
            format!("the columns are `{found}`; one must be `id`, and `text` or `title`"),
        ));
    }
    let mut seen = HashSet::new();
    if let Some(double) = headers.iter().find(|header| {
        !header.is_empty()
            && !seen.insert(match **header {
                "_id" => "id",
                header => header,
            })
    }) {
        return Err(at(name, 1, format!("there are two columns `{double}`")));
    }
    for record in reader.records() {
        let record = record.map_err(refused)?;
        let line = record.position().map_or(0, |position| position.line() as usize);
        let mut document = Document::default();
        for (column, (header, field)) in headers.iter().zip(&record).enumerate() {
            if matches!(field, "" | "NaN" | "nan" | "NaT" | "<NA>") {
                continue;
            }
            match *header {
                "id" | "_id" => document.id = field.to_owned(),
                "title" => document.title = field.to_owned(),
                "text" => document.text = field.to_owned(),
                // The row numbers that pandas writes unless told otherwise.
                "" if column == 0 => {}
                "" => {
                    let reason = format!("column {} holds `{field}` and has no name", column + 1);
                    return Err(at(name, line, reason));
                }
                other => {
                    document.metadata.insert(other.to_owned(), scalar(field));
                }
            }
        }
        checked.take(document, line)?;
    }
    Ok(())
}

/// `3` and `true` are a number and a truth value (`True` as Python, `TRUE` as spreadsheets write it), all else is text: also
/// what would not be written again as it was (`1e3`, `00420`, a number of twenty digits).
fn scalar(field: &str) -> Value {
    match field {
        "True" | "TRUE" => return Value::Bool(true),
        "False" | "FALSE" => return Value::Bool(false),
        _ => {}
    }
    if let Ok(value @ (Value::Number(_) | Value::Bool(_))) = serde_json::from_str::<Value>(field) {
        let written = value.to_string();
        if written == field {
            return value;
        }
    }
    Value::String(field.to_owned())
}

/// Lets through what can be indexed.
struct Checked<F> {
    name: String,
    /// Id to line.
    seen: HashMap<String, usize>,
    /// Documents without a word, where they are passed over.
    empty: Option<usize>,
    each: F,
}

impl<F: FnMut(Document)> Checked<F> {
    fn new(name: String, each: F) -> Self {
        Self { name, seen: HashMap::new(), empty: None, each }
    }

    fn take(&mut self, document: Document, line: usize) -> Result<(), DocumentError> {
        let (name, id) = (&self.name, &document.id);
        if id.is_empty() {
            return Err(at(name, line, "the id is empty"));
        }
        if document.contents().is_empty() {
            if let Some(empty) = &mut self.empty {
                *empty += 1;
                return Ok(());
            }
            let reason = format!("`{id}` has neither title nor text; there is nothing to encode");
            return Err(at(name, line, reason));
        }
        let fields = document.fields();
        if fields > MOST_FIELDS {
            let reason = format!("`{id}` has {fields} metadata fields, at most {MOST_FIELDS} are taken");
            return Err(at(name, line, reason));
        }
        if let Some(first) = self.seen.insert(id.clone(), line) {
            let reason = format!("id `{id}` was used on line {first} already; ids must be unique");
            return Err(at(name, line, reason));
        }
        (self.each)(document);
        Ok(())
    }

    fn finish(self) -> Result<(), DocumentError> {
        if self.seen.is_empty() {
            return Err(DocumentError::Empty { source_name: self.name });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read_jsonl(text: &str) -> Result<Vec<Document>, DocumentError> {
        super::read_jsonl(text.as_bytes())
    }

    fn read_csv(text: &str) -> Result<Vec<Document>, DocumentError> {
        super::read_csv(text.as_bytes())
    }

    /// A postal code or an article number that became another one would filter wrongly for ever; of two columns of one name one
    /// would be lost.
    #[test]
    fn columns_keep_what_stands_in_them() {
        let table = "id,text,a,b,c,d,e,f\n1,x,00420,1e3,3,1.50,true,18446744073709551616\n";
        let expected = json!({
            "a": "00420", "b": "1e3", "c": 3, "d": "1.50", "e": true, "f": "18446744073709551616"
        });
        assert_eq!(Value::Object(read_csv(table).unwrap()[0].metadata.clone()), expected);
        for header in ["id,text,room,room", "id,_id,text,room"] {
            let refused = read_csv(&format!("{header}\n1,2,3,4\n")).unwrap_err().to_string();
            assert!(refused.contains("d.csv:1") && refused.contains("two columns"), "{refused}");
        }
    }

    /// Exporters write `null` for what a document lacks, and both names of the id; a corpus refused for that is edited by hand,
    /// and of two different ids the wrong one would be in every judgement.
    #[test]
    fn null_is_what_is_not_there() {
        let read = read_jsonl(
            "{\"_id\":\"a\",\"title\":null,\"text\":\"Air the cellar\",\"metadata\":null}\n\
             {\"id\":\"b\",\"_id\":\"b\",\"title\":\"Feed the fish\",\"text\":null}\n\
             {\"id\":null,\"_id\":\"c\",\"text\":\"x\",\"metadata\":{\"floor\":null}}",
        );
        let read = read.unwrap();
        let ids: Vec<&str> = read.iter().map(|document| document.id.as_str()).collect();
        assert_eq!(ids, ["a", "b", "c"]);
        assert_eq!(
            (read[0].contents().as_str(), read[1].contents().as_str()),
            ("Air the cellar", "Feed the fish")
        );
        assert!(read[0].metadata.is_empty() && read[2].metadata["floor"].is_null());
        let written = serde_json::to_value(&read[1]).unwrap();
        assert_eq!(written, json!({"id": "b", "title": "Feed the fish", "text": ""}));
        for (line, expected) in [
            ("{\"id\":\"a\",\"_id\":\"b\",\"text\":\"x\"}", "`_id` is `b` and `id` is `a`"),
            ("{\"id\":null,\"text\":\"x\"}", "neither `_id` nor `id`"),
            ("{\"id\":\"a\",\"title\":null,\"text\":null}", "neither title nor text"),
        ] {
            let refused = read_jsonl(line).unwrap_err().to_string();
            assert!(refused.contains("d.jsonl:1") && refused.contains(expected), "{refused}");
        }
    }

    /// A table that pandas wrote would have row numbers as metadata, texts `True` that no truth value equals, and documents
    /// called `nan`.
    #[test]
    fn tables_of_pandas_mean_what_the_frame_held() {
        let table = ",id,title,text,in_stock,floor,since\n\
                     0,a,,Water the ferns,True,2.0,2026-02-01\n\
                     1,b,NaN,Wind the clock,False,,NaT\n\
                     2,c,nan,Sweep the steps,TRUE,nan,<NA>\n";
        let read = read_csv(table).unwrap();
        let metadata: Vec<Value> = read.iter().map(|d| Value::Object(d.metadata.clone())).collect();
        let first = json!({"in_stock": true, "floor": 2.0, "since": "2026-02-01"});
        assert_eq!(metadata, [first, json!({"in_stock": false}), json!({"in_stock": true})]);
        assert!(read.iter().all(|document| document.title.is_empty()));
        // Spreadsheets leave empty columns at the end; one that holds something lacks its name.
        assert_eq!(read_csv("id,text,,\na,x,,\n").unwrap()[0].fields(), 0);
        for (table, expected) in [
            ("id,text,\na,x,\nb,y,attic\n", "d.csv:3: column 3 holds `attic` and has no name"),
            ("id,text\nnan,x\n", "d.csv:2: the id is empty"),
            ("id,text\na,NaN\n", "d.csv:2: `a` has neither title nor text"),
        ] {
            let refused = read_csv(table).unwrap_err().to_string();
            assert!(refused.contains(expected), "{refused}");
        }
    }

    /// BEIR's key and ours, a byte order mark, Windows line ends and metadata all mean the same document.
    #[test]
    fn both_formats_read_the_same_documents() {
        let lines = "\u{feff}{\"_id\":\"a\",\"title\":\"T\",\"text\":\"x, y\",\"metadata\":{\"room\":\"bath\",\"floor\":2}}\r\n\n{\"id\":\"b\",\"text\":\"z\",\"other\":1}";
        let table = "\u{feff}id,title,text,room,floor\r\na,T,\"x, y\",bath,2\r\nb,,z,,\r\n";
        let read = read_jsonl(lines).unwrap();
        assert_eq!(read, read_csv(table).unwrap());
        assert_eq!(Value::Object(read[0].metadata.clone()), json!({"room": "bath", "floor": 2}));
        assert_eq!((read[0].contents().as_str(), read[1].contents().as_str()), ("T\nx, y", "z"));
    }

    /// A bad line must be found by its number, not by bisecting a million lines.
    #[test]
    fn errors_name_the_line() {
        let bad = [
            (read_jsonl("{\"id\":\"a\",\"text\":\"x\"}\n\n{oops"), "d.jsonl:3: not a JSON object"),
            (
                read_jsonl("{\"id\":\"a\",\"text\":\"x\"}\n{\"id\":\"a\",\"text\":\"y\"}"),
                "d.jsonl:2: id `a` was used on line 1",
            ),
            (read_jsonl("{\"id\":\"a\"}"), "d.jsonl:1: `a` has neither title nor text"),
            (read_jsonl("{\"id\":\"\",\"text\":\"x\"}"), "d.jsonl:1: the id is empty"),
            (read_jsonl("{\"id\":\"a\",\"text\":\"x\",\"metadata\":3}"), "d.jsonl:1:"),
            (read_jsonl("\n"), "d.jsonl: holds no documents"),
            (read_csv("name,text\na,x\n"), "d.csv:1: the columns are `name`, `text`; one must be `id`"),
            (read_csv("id,text\na,x\nb\n"), "d.csv:3:"),
            (read_csv("id,text\na,x\na,y\n"), "d.csv:3: id `a` was used on line 2"),
        ];
        for (result, expected) in bad {
            let message = result.unwrap_err().to_string();
            assert!(message.contains(expected), "{message:?} lacks {expected:?}");
        }
    }

    /// BEIR's FiQA has 38 documents without a word among 57,638: refused whole, it could not be served at all.
    #[test]
    fn a_published_corpus_is_read_without_its_empty_documents() {
        let dir = tempfile::tempdir().unwrap();
        let lines =
            "{\"_id\":\"a\",\"title\":\"\",\"text\":\"\"}\n{\"_id\":\"b\",\"text\":\"a bond pays\"}\n";
        std::fs::write(dir.path().join("corpus.jsonl"), lines).unwrap();
        let read = Source::of(dir.path()).read().unwrap();
        assert_eq!(read.iter().map(|document| document.id.as_str()).collect::<Vec<_>>(), ["b"]);
        // The same file by its own name is somebody's list of documents, with a slip in it.
        let refused = Source::of(&dir.path().join("corpus.jsonl")).read().unwrap_err().to_string();
        assert!(refused.contains("corpus.jsonl:1: `a` has neither title nor text"), "{refused}");
        std::fs::write(dir.path().join("corpus.jsonl"), "{\"_id\":\"a\"}\n").unwrap();
        assert!(Source::of(dir.path()).read().unwrap_err().to_string().contains("holds no documents"));
    }
}
