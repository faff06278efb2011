//! What cannot be used of a data set, with file and line.

use crate::files::FileError;
use std::path::PathBuf;

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
    /// Two lines share an id and say different things.
    #[error(
        "{file}:{line}: id `{id}` was used on line {first} already, with another text; ids must be unique"
    )]
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
    #[error("{file}:{line}: `{id}` has no text; there is nothing to ask")]
    EmptyText {
        /// The file.
        file: PathBuf,
        /// Line.
        line: usize,
        /// The id.
        id: String,
    },
    /// Nothing that could be used.
    #[error("{file}: holds no {what}")]
    Empty {
        /// The file.
        file: PathBuf,
        /// `documents`, `queries` or `judgements`.
        what: &'static str,
    },
    /// A judgement line that does not parse.
    #[error("{file}:{line}: found `{found}`, expected {JUDGEMENT}")]
    Qrels {
        /// The file.
        file: PathBuf,
        /// Line.
        line: usize,
        /// The line's text.
        found: String,
    },
    /// Too many judgements to train on are about things that do not exist.
    #[error(
        "{file}:{line}: {what} `{id}` is not in {other}; {missing} of {judgements} judgements point nowhere, training allows \
         1 in 100: `train data check` lists them"
    )]
    Unknown {
        /// The file.
        file: PathBuf,
        /// Line of the first of them.
        line: usize,
        /// `query` or `document`.
        what: &'static str,
        /// The id.
        id: String,
        /// Where it should be.
        other: &'static str,
        /// How many point nowhere.
        missing: usize,
        /// How many there are.
        judgements: usize,
    },
    /// No judgement at all is about a query and a document that exist.
    #[error(
        "{file}: none of {judgements} judgements names a query of queries.jsonl and a document of corpus.jsonl (the first: \
         `{query}` and `{document}`); these files are of different data sets, or of different versions of one"
    )]
    Unrelated {
        /// The file.
        file: PathBuf,
        /// How many there are.
        judgements: usize,
        /// Query of the first.
        query: String,
        /// Document of the first.
        document: String,
    },
    /// A folder of data sets, as BEIR's CQADupStack is.
    #[error("{dir}: holds no corpus.jsonl but {} ({}); name one folder at a time", count(.sets.len()), .sets.join(", "))]
    Several {
        /// The folder.
        dir: PathBuf,
        /// Names of the folders in it that hold a corpus.
        sets: Vec<String>,
    },
    /// Hugging Face's copies of BEIR are compressed.
    #[error("{file}: not there, {name}.gz is; unpack it with `gunzip`", name = name(.file))]
    Compressed {
        /// The file that is missing.
        file: PathBuf,
    },
    /// A split that is not there.
    #[error("{file}: no such split; {}", there_are(.splits))]
    NoSplit {
        /// The file that is missing.
        file: PathBuf,
        /// Splits that are there.
        splits: Vec<String>,
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

/// What a line of judgements should be, for messages.
pub const JUDGEMENT: &str =
    "`query-id<TAB>corpus-id<TAB>score`, or TREC's `qid 0 docid rel`, with a whole number as score";

fn count(sets: usize) -> String {
    if sets == 1 { "1 data set".into() } else { format!("{sets} data sets") }
}

fn name(file: &std::path::Path) -> std::borrow::Cow<'_, str> {
    file.file_name().unwrap_or_default().to_string_lossy()
}

fn there_are(splits: &[String]) -> String {
    match splits {
        [] => "qrels/ holds none: it takes files `SPLIT.tsv` of judgements".into(),
        [one] => format!("there is `{one}`"),
        several => format!("there are `{}`", several.join("`, `")),
    }
}
