//! What the check has to say: faults and warnings by kind and file, with totals and a few examples each.

use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// Whether something has to be repaired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// It stops a run, or makes its numbers wrong.
    Fault,
    /// It is passed over and told, or costs little.
    Warning,
}

/// Kinds of findings, in the order in which they are shown: what stops a run first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A line that cannot be read.
    BrokenLine,
    /// An id that was used before, for another text.
    DuplicateId,
    /// A judgement about a query or document that does not exist; a warning where they are at most 1 in 100 of the file.
    UnknownId,
    /// A file or split with nothing in it.
    Empty,
    /// A query of another split, by id or by text.
    LeakedQuery,
    /// A query and document that are judged in another split.
    LeakedPair,
    /// A text without words.
    EmptyText,
    /// A line that says what an earlier one said.
    RepeatedLine,
    /// A judgement that says otherwise than an earlier one.
    ChangedJudgement,
    /// A query that no split has a relevant document for.
    NoRelevantDocument,
    /// A text that another id has too.
    DuplicateText,
    /// A text longer than what the prompt keeps of it.
    TooLong,
}

impl Kind {
    /// How bad it is, as long as nothing excuses it.
    fn severity(self) -> Severity {
        match self {
            Kind::BrokenLine
            | Kind::DuplicateId
            | Kind::UnknownId
            | Kind::Empty
            | Kind::LeakedQuery
            | Kind::LeakedPair => Severity::Fault,
            Kind::EmptyText
            | Kind::RepeatedLine
            | Kind::ChangedJudgement
            | Kind::NoRelevantDocument
            | Kind::DuplicateText
            | Kind::TooLong => Severity::Warning,
        }
    }

    /// In words, one and several.
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Kind::BrokenLine => ("broken line", "broken lines"),
            Kind::DuplicateId => ("duplicate id", "duplicate ids"),
            Kind::EmptyText => ("empty text", "empty texts"),
            Kind::RepeatedLine => ("repeated line", "repeated lines"),
            Kind::ChangedJudgement => {
                ("judgement that contradicts an earlier one", "judgements that contradict earlier ones")
            }
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

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Example {
    /// Line, from 1; none where the whole file is meant.
    pub line: Option<usize>,
    /// What is the matter there.
    pub message: String,
}

/// All findings of one kind in one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
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
    /// Faults and then warnings, the worst first; empty when nothing is wrong.
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

impl Report {
    /// Whether anything has to be repaired.
    pub fn has_faults(&self) -> bool {
        self.findings.iter().any(|finding| finding.severity == Severity::Fault)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Finding { severity, kind, file, total, examples } in &self.findings {
            let file = self.data.join(file);
            let (one, several) = kind.words();
            let severity = match severity {
                Severity::Fault => "fault",
                Severity::Warning => "warning",
            };
            writeln!(
                f,
                "{}: {severity}: {total} {}",
                file.display(),
                if *total == 1 { one } else { several }
            )?;
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

/// What is found, as it is found.
pub struct Findings {
    most: usize,
    found: BTreeMap<(Kind, String), Finding>,
}

impl Findings {
    /// Keeps `most` examples of each.
    pub fn new(most: usize) -> Self {
        Self { most, found: BTreeMap::new() }
    }

    /// Counts a finding, and keeps it where it is among the first; only then is the message made.
    pub fn note(&mut self, kind: Kind, file: &str, line: Option<usize>, message: impl FnOnce() -> String) {
        let finding = self.found.entry((kind, file.to_owned())).or_insert_with(|| Finding {
            severity: kind.severity(),
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

    /// How many there are so far of one kind in one file.
    pub fn total(&self, kind: Kind, file: &str) -> usize {
        self.found.get(&(kind, file.to_owned())).map_or(0, |finding| finding.total)
    }

    /// Makes what was found of one kind in one file a warning.
    pub fn excuse(&mut self, kind: Kind, file: &str) {
        if let Some(finding) = self.found.get_mut(&(kind, file.to_owned())) {
            finding.severity = Severity::Warning;
        }
    }

    /// The report.
    pub fn report(self, data: &Path, documents: usize, queries: usize, splits: Vec<SplitCounts>) -> Report {
        let mut findings: Vec<Finding> = self.found.into_values().collect();
        findings.sort_by_key(|finding| finding.severity);
        Report { data: data.to_owned(), documents, queries, splits, findings }
    }
}
