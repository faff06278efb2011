//! `qrels/*.tsv`: who judged which document how for which query.

use super::error::DataError;
use super::lines::for_each_line;
use super::notes::Seen;
use crate::metrics::Judgements;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

/// The judgements of one split: query id to judged documents, in order of query id.
pub type Qrels = BTreeMap<String, Judgements>;

/// Judgements of one split, and what of them was passed over.
#[derive(Debug, Clone, Default)]
pub struct SplitQrels {
    /// The judgements.
    pub qrels: Qrels,
    /// One sentence for each kind of thing that was passed over.
    pub notes: Vec<String>,
}

/// One line of judgements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement<'a> {
    /// Query id.
    pub query: Cow<'a, str>,
    /// Document id.
    pub document: Cow<'a, str>,
    /// As it is written; below zero is "not relevant" too.
    pub gain: i64,
}

impl Judgement<'_> {
    /// The gain that metrics and losses know: nothing below zero, as in trec_eval.
    pub fn relevance(&self) -> u32 {
        u32::try_from(self.gain.max(0)).unwrap_or(u32::MAX)
    }
}

/// What a line of a file of judgements is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JudgementLine<'a> {
    /// Names of columns, on the first line.
    Header,
    /// A judgement.
    Judgement(Judgement<'a>),
    /// Neither.
    Broken,
}

impl<'a> JudgementLine<'a> {
    /// Reads a line: BEIR's three columns or TREC's four, between tabs, or without any tab between spaces.
    pub fn parse(text: &'a str, line: usize) -> Self {
        let fields: Vec<&str> =
            if text.contains('\t') { text.split('\t').collect() } else { text.split_whitespace().collect() };
        let (query, document, gain) = match fields[..] {
            [query, document, gain] | [query, _, document, gain] => (query, document, gain.trim()),
            _ => return Self::Broken,
        };
        // Whole numbers that went through a table of floating-point numbers end in `.0`.
        match gain.strip_suffix(".0").unwrap_or(gain).parse() {
            Ok(gain) => {
                Self::Judgement(Judgement { query: unquoted(query), document: unquoted(document), gain })
            }
            Err(_) if line == 1 && is_name(gain) => Self::Header,
            Err(_) => Self::Broken,
        }
    }
}

/// Names that the last column goes by.
fn is_name(text: &str) -> bool {
    ["score", "relevance", "rel", "label", "gain", "judgement"].contains(&text.to_ascii_lowercase().as_str())
}

/// BEIR writes its tables with Python's `csv`, which puts an id with a quotation mark between quotation marks, and doubles those
/// in it.
fn unquoted(field: &str) -> Cow<'_, str> {
    let inner = field.strip_prefix('"').and_then(|field| field.strip_suffix('"'));
    match inner {
        Some(inner) if !inner.replace("\"\"", "").contains('"') => Cow::Owned(inner.replace("\"\"", "\"")),
        _ => Cow::Borrowed(field),
    }
}

/// An id as [`JudgementLine::parse`] reads it back.
pub fn quoted(id: &str) -> Cow<'_, str> {
    if id.starts_with('"') {
        Cow::Owned(format!("\"{}\"", id.replace('"', "\"\"")))
    } else {
        Cow::Borrowed(id)
    }
}

/// Where what a judgement names is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whereabouts {
    /// There.
    Known,
    /// There, but its text is empty, so that it was passed over.
    Empty,
    /// Nowhere.
    Missing,
}

/// What the judgements of a split are read for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// At most 1 in 100 may point nowhere; these, and those of empty texts, are left out.
    Training,
    /// Documents that nobody can find stay: trec_eval counts them as not found. Queries that nobody can ask are left out.
    Measuring,
}

/// What was read of a split besides its judgements.
#[derive(Default)]
struct Passed {
    judgements: usize,
    known: usize,
    first: Option<(String, String)>,
    queries: Seen,
    documents: Seen,
    empty: Seen,
    again: Seen,
}

/// Reads a file of judgements; `of_query` and `of_document` know what is there.
pub fn read(
    file: &Path,
    purpose: Purpose,
    of_query: impl Fn(&str) -> Whereabouts,
    of_document: impl Fn(&str) -> Whereabouts,
) -> Result<SplitQrels, DataError> {
    use Whereabouts::{Empty, Known, Missing};
    let (mut qrels, mut passed) = (Qrels::new(), Passed::default());
    for_each_line(file, |text, line| {
        let judgement = match JudgementLine::parse(text, line) {
            JudgementLine::Header => return Ok(()),
            JudgementLine::Judgement(judgement) => judgement,
            JudgementLine::Broken => {
                return Err(DataError::Qrels { file: file.to_owned(), line, found: text.to_owned() });
            }
        };
        let relevance = judgement.relevance();
        let Judgement { query, document, .. } = judgement;
        passed.judgements += 1;
        passed.first.get_or_insert_with(|| (query.to_string(), document.to_string()));
        let there = (of_query(&query), of_document(&document));
        passed.known += usize::from(there.0 != Missing && there.1 != Missing);
        match there {
            (Known, Known) => {}
            (Missing, _) => passed.queries.add(line, &query),
            (_, Missing) => passed.documents.add(line, &document),
            (Empty, _) => passed.empty.add(line, &query),
            (_, Empty) => passed.empty.add(line, &document),
        }
        let kept = match purpose {
            Purpose::Training => there == (Known, Known),
            Purpose::Measuring => there.0 == Known,
        };
        if kept {
            let of_query = qrels.entry(query.into_owned()).or_default();
            let document = document.into_owned();
            if let Some(other) = of_query.get(&document)
                && *other != relevance
            {
                passed.again.add(line, &document);
            }
            of_query.insert(document, relevance);
        }
        Ok(())
    })?;
    passed.check(file, purpose)?;
    Ok(SplitQrels { qrels, notes: passed.notes(file, purpose) })
}

impl Passed {
    fn check(&self, file: &Path, purpose: Purpose) -> Result<(), DataError> {
        let Self { judgements, queries, documents, .. } = self;
        let (file, judgements) = (file.to_owned(), *judgements);
        let Some((query, document)) = self.first.clone() else {
            return Err(DataError::Empty { file, what: "judgements" });
        };
        let missing = queries.count + documents.count;
        if purpose == Purpose::Training && too_many(missing, judgements) {
            let of = |seen: &Seen, what, other| seen.first.clone().map(|(line, id)| (line, id, what, other));
            let first = [of(queries, "query", "queries.jsonl"), of(documents, "document", "corpus.jsonl")];
            if let Some((line, id, what, other)) = first.into_iter().flatten().min() {
                return Err(DataError::Unknown { file, line, what, id, other, missing, judgements });
            }
        }
        match self.known {
            0 => Err(DataError::Unrelated { file, judgements, query, document }),
            _ => Ok(()),
        }
    }

    fn notes(&self, file: &Path, purpose: Purpose) -> Vec<String> {
        let left_out = "left out";
        let not_found = match purpose {
            Purpose::Training => left_out,
            Purpose::Measuring => "nobody can find it, which counts as not found",
        };
        let notes = [
            self.queries.note(
                file,
                [
                    "judgement names a query that queries.jsonl lacks",
                    "judgements name queries that queries.jsonl lacks",
                ],
                "nobody can ask them: left out",
            ),
            self.documents.note(
                file,
                [
                    "judgement names a document that corpus.jsonl lacks",
                    "judgements name documents that corpus.jsonl lacks",
                ],
                not_found,
            ),
            self.empty.note(
                file,
                ["judgement names an empty text", "judgements name empty texts"],
                not_found,
            ),
            self.again.note(
                file,
                [
                    "judgement contradicts an earlier one about the same document",
                    "judgements contradict earlier ones about the same documents",
                ],
                "the last one counts",
            ),
        ];
        notes.into_iter().flatten().collect()
    }
}

/// Whether so many judgements that point nowhere are more than a slip: above 1 in 100.
pub fn too_many(missing: usize, judgements: usize) -> bool {
    missing.saturating_mul(100) > judgements
}
