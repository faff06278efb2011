//! What the check has to say: faults by kind and file, with totals and a few examples each.

use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// Kinds of faults, in the order in which they are shown: what stops a run first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A line that cannot be read.
    BrokenLine,
    /// An id that was used before.
    DuplicateId,
    /// A text without words.
    EmptyText,
    /// A judgement about a query or document that does not exist.
    UnknownId,
    /// A file or split with nothing in it.
    Empty,
    /// A query of another split, by id or by text.
    LeakedQuery,
    /// A query and document that are judged in another split.
    LeakedPair,
    /// A query that no split has a relevant document for.
    NoRelevantDocument,
    /// A text that another id has too.
    DuplicateText,
    /// A text longer than what the prompt keeps of it.
    TooLong,
}

impl Kind {
    /// In words, one and several.
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Kind::BrokenLine => ("broken line", "broken lines"),
            Kind::DuplicateId => ("duplicate id", "duplicate ids"),
            Kind::EmptyText => ("empty text", "empty texts"),
            Kind::UnknownId => ("unknown id", "unknown ids"),
            Kind::Empty => ("empty file", "empty files"),
            Kind::LeakedQuery => ("query that another split asks too", "queries that another split asks too"),
            Kind::LeakedPair => (
                "query-document pair that another split judges too",
                "query-document pairs that another split judges too",
            ),
            Kind::NoRelevantDocument => {
                ("query without any relevant document", "queries without any relevant document")
            }
            Kind::DuplicateText => ("duplicate text", "duplicate texts"),
            Kind::TooLong => ("text longer than the prompt keeps", "texts longer than the prompt keeps"),
        }
    }
}

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Example {
    /// Line, from 1; none where the whole file is meant.
    pub line: Option<usize>,
    /// What is the matter there.
    pub message: String,
}

/// All faults of one kind in one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The kind.
    pub kind: Kind,
    /// The file, inside the folder.
    pub file: String,
    /// How many.
    pub total: usize,
    /// The first few.
    pub examples: Vec<Example>,
}

/// Size of one split.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SplitCounts {
    /// Its name.
    pub split: String,
    /// Different queries.
    pub queries: usize,
    /// Judgements that can be read.
    pub judgements: usize,
}

/// What a check found; prints as lines for people, one per finding and one per example.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The folder.
    pub data: PathBuf,
    /// Documents that can be read.
    pub documents: usize,
    /// Queries that can be read.
    pub queries: usize,
    /// Splits, train first.
    pub splits: Vec<SplitCounts>,
    /// Faults, the worst first; empty when nothing is wrong.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Sizes in one line.
    pub fn sizes(&self) -> String {
        let mut line = format!("{} documents, {} queries", self.documents, self.queries);
        for SplitCounts { split, queries, judgements } in &self.splits {
            line += &format!("; {split}: {queries} queries, {judgements} judgements");
        }
        line
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Finding { kind, file, total, examples } in &self.findings {
            let file = self.data.join(file);
            let (one, several) = kind.words();
            writeln!(f, "{}: {total} {}", file.display(), if *total == 1 { one } else { several })?;
            for Example { line, message } in examples {
                match line {
                    Some(line) => writeln!(f, "  {}:{line}: {message}", file.display())?,
                    None => writeln!(f, "  {message}")?,
                }
            }
            let more = total - examples.len();
            if more > 0 {
                writeln!(f, "  and {more} more")?;
            }
        }
        Ok(())
    }
}

/// Faults as they are found.
pub struct Findings {
    most: usize,
    found: BTreeMap<(Kind, String), Finding>,
}

impl Findings {
    /// Keeps `most` examples of each.
    pub fn new(most: usize) -> Self {
        Self { most, found: BTreeMap::new() }
    }

    /// Counts a fault, and keeps it where it is among the first; only then is the message made.
    pub fn note(&mut self, kind: Kind, file: &str, line: Option<usize>, message: impl FnOnce() -> String) {
        let finding = self.found.entry((kind, file.to_owned())).or_insert_with(|| Finding {
            kind,
            file: file.to_owned(),
            total: 0,
            examples: Vec::new(),
        });
        finding.total += 1;
        if finding.examples.len() < self.most {
            finding.examples.push(Example { line, message: message() });
        }
    }

    /// The report.
    pub fn report(self, data: &Path, documents: usize, queries: usize, splits: Vec<SplitCounts>) -> Report {
        let findings = self.found.into_values().collect();
        Report { data: data.to_owned(), documents, queries, splits, findings }
    }
}
