//! `corpus.jsonl` and `queries.jsonl`: texts with ids.

use super::error::DataError;
use super::lines::for_each_line;
use super::notes::Seen;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;

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

/// One line of `queries.jsonl`; null is an empty text, unknown fields are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Line")]
pub struct Query {
    /// Identifier, unique among the queries.
    #[serde(rename = "_id")]
    pub id: String,
    /// Text.
    pub text: String,
}

/// A line of either file as it lies there: what writers of data frames leave empty is null, and some write `id` for `_id`, or
/// both.
#[derive(Deserialize)]
struct Line {
    #[serde(rename = "_id", default)]
    id: Value,
    #[serde(rename = "id", default)]
    other_id: Value,
    #[serde(default)]
    title: Option<String>,
    #[serde(default)]
    text: Option<String>,
}

impl Line {
    /// Ids are texts; where all are whole numbers some writers leave the quotes out.
    fn id(&self) -> Result<String, String> {
        let text = |key: &str, id: &Value| match id {
            Value::Null => Ok(None),
            Value::String(text) => Ok(Some(text.clone())),
            Value::Number(number) if number.is_i64() || number.is_u64() => Ok(Some(number.to_string())),
            other => Err(format!("`{key}` is {other}, expected a text or a whole number")),
        };
        match (text("_id", &self.id)?, text("id", &self.other_id)?) {
            (None, None) => Err("missing field `_id`".into()),
            (Some(id), Some(other)) if id != other => {
                Err(format!("`_id` is `{id}` and `id` is `{other}`, expected one id"))
            }
            (Some(id), _) | (None, Some(id)) => Ok(id),
        }
    }
}

impl TryFrom<Line> for Document {
    type Error = String;

    fn try_from(line: Line) -> Result<Self, String> {
        let id = line.id()?;
        Ok(Self { id, title: line.title.unwrap_or_default(), text: line.text.unwrap_or_default() })
    }
}

impl TryFrom<Line> for Query {
    type Error = String;

    fn try_from(line: Line) -> Result<Self, String> {
        Ok(Self { id: line.id()?, text: line.text.unwrap_or_default() })
    }
}

/// Either kind of text.
pub trait Text: DeserializeOwned + PartialEq {
    /// What several of them are called.
    const WHAT: &'static str;
    /// Its id.
    fn id(&self) -> &str;
    /// Whether there is nothing to read.
    fn is_empty(&self) -> bool;
}

impl Text for Document {
    const WHAT: &'static str = "documents";

    fn id(&self) -> &str {
        &self.id
    }

    fn is_empty(&self) -> bool {
        self.title.trim().is_empty() && self.text.trim().is_empty()
    }
}

impl Text for Query {
    const WHAT: &'static str = "queries";

    fn id(&self) -> &str {
        &self.id
    }

    fn is_empty(&self) -> bool {
        self.text.trim().is_empty()
    }
}

/// A file of texts, and what of it was passed over.
#[derive(Debug)]
pub struct Texts<T> {
    /// Texts that are not empty, in file order.
    pub texts: Vec<T>,
    /// Place of each id among them.
    pub index: HashMap<String, usize>,
    /// Line of each id whose text is empty: it can be neither encoded nor found.
    pub empty: HashMap<String, usize>,
    /// The empty ones, for people.
    pub seen_empty: Seen,
    /// Lines that say what an earlier one said.
    pub repeated: Seen,
}

impl<T: Text> Texts<T> {
    /// Reads a file with at least one text and unique ids.
    pub fn read(file: &Path) -> Result<Self, DataError> {
        let mut read = Self {
            texts: Vec::new(),
            index: HashMap::new(),
            empty: HashMap::new(),
            seen_empty: Seen::default(),
            repeated: Seen::default(),
        };
        let mut lines: Vec<usize> = Vec::new();
        for_each_line(file, |json, line| {
            let text: T = serde_json::from_str(json).map_err(|source| DataError::Json {
                file: file.to_owned(),
                line,
                source,
            })?;
            let known = read.index.get(text.id()).copied();
            let first = known.map(|place| lines[place]).or_else(|| read.empty.get(text.id()).copied());
            if let Some(first) = first {
                let same = known.map_or(text.is_empty(), |place| read.texts[place] == text);
                if !same {
                    let (file, id) = (file.to_owned(), text.id().to_owned());
                    return Err(DataError::Duplicate { file, line, first, id });
                }
                read.repeated.add(line, text.id());
            } else if text.is_empty() {
                read.seen_empty.add(line, text.id());
                read.empty.insert(text.id().to_owned(), line);
            } else {
                read.index.insert(text.id().to_owned(), read.texts.len());
                read.texts.push(text);
                lines.push(line);
            }
            Ok(())
        })?;
        if read.texts.is_empty() {
            return Err(DataError::Empty { file: file.to_owned(), what: T::WHAT });
        }
        Ok(read)
    }
}

/// Reads a `queries.jsonl` whose queries are all to be asked: at least one, unique ids, no empty ones.
pub fn read_queries(file: &Path) -> Result<Vec<Query>, DataError> {
    let Texts { texts, seen_empty, .. } = Texts::read(file)?;
    match seen_empty.first {
        Some((line, id)) => Err(DataError::EmptyText { file: file.to_owned(), line, id }),
        None => Ok(texts),
    }
}
