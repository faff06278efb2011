//! The check of a BEIR folder: reads what it can, reports everything it finds with its line, and holds digests instead of texts
//! (some 60 bytes a document or query, 20 for each judgement of the split at hand, and 50 for each of a query that leaks).

use super::findings::{Findings, Kind, Report, SplitCounts};
use super::lines::{At, excerpt, for_each_raw_line};
use super::text::{fingerprint, fingerprint_of_id};
use anyhow::{Context, Result};
use models::beir::{self, Document, JUDGEMENT, JudgementLine};
use models::prompt::{Part, Prompter, Truncation};
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

const CORPUS: &str = "corpus.jsonl";
const QUERIES: &str = "queries.jsonl";

/// What is kept of a document or query.
struct Text {
    line: usize,
    /// Fingerprint of the text; of the id where there is no text, for empty texts are not copies of each other.
    text: u64,
    /// Fingerprint of all that is read of the line.
    said: u64,
    /// Some split has a relevant document for it (queries only).
    relevant: bool,
}

/// Documents or queries by fingerprint of their id.
type Texts = HashMap<u64, Text>;

/// One `qrels/*.tsv`.
struct Split {
    name: String,
    /// Inside the folder.
    file: String,
}

/// One judgement whose line can be read.
struct Judgement<'a> {
    line: usize,
    query: &'a str,
    document: &'a str,
    gain: u32,
}

/// Where a query was met first.
struct Met {
    split: usize,
    line: usize,
    id: u64,
}

struct Check<'a> {
    dir: &'a Path,
    prompter: Option<&'a Prompter>,
    findings: Findings,
    documents: Texts,
    queries: Texts,
}

/// Checks a folder; at most `examples` faults of each kind are told one by one. With a prompt, lengths are checked too.
pub fn check(dir: &Path, prompter: Option<&Prompter>, examples: usize) -> Result<Report> {
    beir::check_layout(dir)?;
    let findings = Findings::new(examples);
    let (documents, queries) = (Texts::new(), Texts::new());
    let mut check = Check { dir, prompter, findings, documents, queries };
    check.documents = check.read_texts(CORPUS)?;
    check.queries = check.read_texts(QUERIES)?;
    let splits = check.splits()?;
    let leaked = check.read_splits(&splits)?;
    if !leaked.queries.is_empty() {
        check.find_leaked_pairs(&splits, &leaked.queries)?;
    }
    check.find_unanswered();
    let Check { findings, documents, queries, .. } = check;
    Ok(findings.report(dir, documents.len(), queries.len(), leaked.counts))
}

/// What the first reading of the splits left.
struct Leaked {
    counts: Vec<SplitCounts>,
    /// Fingerprints of queries that several splits ask.
    queries: HashSet<u64>,
}

impl Check<'_> {
    fn read_texts(&mut self, name: &'static str) -> Result<Texts> {
        let (mut by_id, mut by_text) = (Texts::new(), HashMap::new());
        let (prompter, findings) = (self.prompter, &mut self.findings);
        for_each_raw_line(&self.dir.join(name), |at, bytes| {
            let At { line, .. } = at;
            // Queries are read as documents are: one without `text` is an empty text, which says more than bad JSON.
            let record: Document = match serde_json::from_slice(bytes) {
                Ok(record) => record,
                Err(error) => {
                    let what = if std::str::from_utf8(bytes).is_ok() {
                        format!("not a JSON object with `_id` and `text`: {error}")
                    } else {
                        "not UTF-8 text".to_owned()
                    };
                    findings.note(Kind::BrokenLine, name, Some(line), || what);
                    return Ok(());
                }
            };
            let contents = if name == CORPUS { record.contents() } else { record.text.trim().to_owned() };
            let id = fingerprint_of_id(&record.id);
            // Of a query nothing but the text is read.
            let title = if name == CORPUS { record.title.as_str() } else { "" };
            let said = fingerprint_of_id(&format!("{title}\n{}", record.text));
            let vacant = match by_id.entry(id) {
                Entry::Occupied(first) => {
                    let Text { line: first, said: before, .. } = first.get();
                    let id = excerpt(&record.id);
                    if said == *before {
                        findings.note(Kind::RepeatedLine, name, Some(line), || {
                            format!("`{id}` is on line {first} already")
                        });
                    } else {
                        findings.note(Kind::DuplicateId, name, Some(line), || {
                            format!("id `{id}` was used on line {first} already, with another text")
                        });
                    }
                    return Ok(());
                }
                Entry::Vacant(vacant) => vacant,
            };
            if contents.is_empty() {
                vacant.insert(Text { line, text: id, said, relevant: false });
                findings.note(Kind::EmptyText, name, Some(line), || {
                    format!("`{}` has no text", excerpt(&record.id))
                });
                return Ok(());
            }
            let text = fingerprint(&contents);
            vacant.insert(Text { line, text, said, relevant: false });
            if let Some(first) = by_text.get(&text) {
                findings.note(Kind::DuplicateText, name, Some(line), || {
                    format!(
                        "`{}` has the text of line {first}: {:?}",
                        excerpt(&record.id),
                        excerpt(&contents)
                    )
                });
            } else {
                by_text.insert(text, line);
            }
            if let Some(prompter) = prompter {
                let template = prompter.template();
                let part = if name == CORPUS { &template.document } else { &template.query };
                let tokens = prompter.count_tokens(&contents).with_context(|| at.to_string())?;
                if tokens > part.max_tokens {
                    findings.note(Kind::TooLong, name, Some(line), || too_long(&record.id, tokens, part));
                }
            }
            Ok(())
        })?;
        if by_id.is_empty() {
            self.findings.note(Kind::Empty, name, None, || "holds no line that can be read".to_owned());
        }
        Ok(by_id)
    }

    /// `qrels/*.tsv`, train first: what another split has in common with it is then reported there, where it hurts.
    fn splits(&mut self) -> Result<Vec<Split>> {
        let folder = self.dir.join("qrels");
        let cannot_read = || format!("cannot read {}", folder.display());
        let mut splits = Vec::new();
        for entry in fs::read_dir(&folder).with_context(cannot_read)? {
            let path = PathBuf::from(entry.with_context(cannot_read)?.file_name());
            if path.extension().is_some_and(|extension| extension == "tsv") {
                let name = path.with_extension("").to_string_lossy().into_owned();
                splits.push(Split { name, file: format!("qrels/{}", path.display()) });
            }
        }
        splits.sort_by_key(|split| (split.name != "train", split.name.clone()));
        if splits.is_empty() {
            self.findings.note(Kind::Empty, "qrels", None, || "holds no split (`NAME.tsv`)".to_owned());
        }
        Ok(splits)
    }

    /// Finds bad judgements and the queries that several splits ask.
    fn read_splits(&mut self, splits: &[Split]) -> Result<Leaked> {
        let mut leaked = Leaked { counts: Vec::new(), queries: HashSet::new() };
        let mut met: HashMap<u64, Met> = HashMap::new();
        for (number, split) in splits.iter().enumerate() {
            let (mut judgements, mut relevant, mut asked) = (0, 0, HashSet::new());
            let (mut reported, mut gains) = (HashSet::new(), HashMap::new());
            let (documents, queries, findings) = (&self.documents, &mut self.queries, &mut self.findings);
            for_each_judgement(self.dir, split, |judgement| {
                let Judgement { line, query, document, gain } = match judgement {
                    Ok(judgement) => judgement,
                    Err((line, found)) => {
                        findings.note(Kind::BrokenLine, &split.file, Some(line), || {
                            format!("found {found:?}, expected {JUDGEMENT}")
                        });
                        return;
                    }
                };
                judgements += 1;
                let id = fingerprint_of_id(query);
                asked.insert(id);
                if let Some(before) = gains.insert((id, fingerprint_of_id(document)), gain) {
                    let kind = if before == gain { Kind::RepeatedLine } else { Kind::ChangedJudgement };
                    findings.note(kind, &split.file, Some(line), || {
                        let (query, document) = (excerpt(query), excerpt(document));
                        format!(
                            "query `{query}` with document `{document}` had gain {before} before, here {gain}"
                        )
                    });
                }
                let known = documents.contains_key(&fingerprint_of_id(document));
                if !known {
                    findings.note(Kind::UnknownId, &split.file, Some(line), || {
                        format!("document `{}` is not in {CORPUS}", excerpt(document))
                    });
                }
                let Some(entry) = queries.get_mut(&id) else {
                    findings.note(Kind::UnknownId, &split.file, Some(line), || {
                        format!("query `{}` is not in {QUERIES}", excerpt(query))
                    });
                    return;
                };
                if known && gain > 0 {
                    entry.relevant = true;
                    relevant += 1;
                }
                let (own_line, text) = (entry.line, entry.text);
                match met.entry(text) {
                    Entry::Vacant(vacant) => {
                        vacant.insert(Met { split: number, line, id });
                    }
                    Entry::Occupied(first) if first.get().split != number => {
                        leaked.queries.insert(text);
                        if reported.insert(text) {
                            let Met { split: other, line: there, id: of } = first.get();
                            let place = format!("{}:{there}", splits[*other].file);
                            findings.note(Kind::LeakedQuery, &split.file, Some(line), || {
                                let query = excerpt(query);
                                if *of == id {
                                    return format!("query `{query}` is asked in {place} too");
                                }
                                let first = queries.get(of).map_or(0, |first| first.line);
                                format!(
                                    "query `{query}` ({QUERIES}:{own_line}) has the text of the query in {place} \
                                     ({QUERIES}:{first})"
                                )
                            });
                        }
                    }
                    Entry::Occupied(_) => {}
                }
            })?;
            if relevant == 0 {
                findings.note(Kind::Empty, &split.file, None, || {
                    format!("{judgements} judgements, none of them of a relevant document that exists")
                });
            }
            if !beir::too_many(findings.total(Kind::UnknownId, &split.file), judgements) {
                findings.excuse(Kind::UnknownId, &split.file);
            }
            let split = split.name.clone();
            leaked.counts.push(SplitCounts { split, queries: asked.len(), judgements });
        }
        Ok(leaked)
    }

    /// Reads the splits again for the documents of leaked queries; pairs of all queries would not fit for large sets.
    fn find_leaked_pairs(&mut self, splits: &[Split], leaked: &HashSet<u64>) -> Result<()> {
        let mut met: HashMap<(u64, u64), (usize, usize)> = HashMap::new();
        for (number, split) in splits.iter().enumerate() {
            let mut reported = HashSet::new();
            let (documents, queries, findings) = (&self.documents, &self.queries, &mut self.findings);
            for_each_judgement(self.dir, split, |judgement| {
                let Ok(Judgement { line, query, document, .. }) = judgement else { return };
                let asked =
                    queries.get(&fingerprint_of_id(query)).filter(|query| leaked.contains(&query.text));
                let (Some(asked), Some(judged)) = (asked, documents.get(&fingerprint_of_id(document))) else {
                    return;
                };
                let pair = (asked.text, judged.text);
                let (other, there) = *met.entry(pair).or_insert((number, line));
                if other != number && reported.insert(pair) {
                    findings.note(Kind::LeakedPair, &split.file, Some(line), || {
                        let (query, document) = (excerpt(query), excerpt(document));
                        format!(
                            "query `{query}` with document `{document}` is judged in {}:{there} too",
                            splits[other].file
                        )
                    });
                }
            })?;
        }
        Ok(())
    }

    fn find_unanswered(&mut self) {
        let unanswered = self.queries.values().filter(|query| !query.relevant);
        let mut lines: Vec<usize> = unanswered.map(|query| query.line).collect();
        lines.sort_unstable();
        for line in lines {
            self.findings.note(Kind::NoRelevantDocument, QUERIES, Some(line), || {
                "no split judges a document relevant to this query".to_owned()
            });
        }
    }
}

/// Every judgement of a split, or the line and text of what is none.
fn for_each_judgement(
    dir: &Path,
    split: &Split,
    mut each: impl FnMut(std::result::Result<Judgement, (usize, String)>),
) -> Result<()> {
    for_each_raw_line(&dir.join(&split.file), |At { line, .. }, bytes| {
        let text = String::from_utf8_lossy(bytes);
        match JudgementLine::parse(&text, line) {
            JudgementLine::Header => {}
            JudgementLine::Judgement(judgement) => {
                let gain = judgement.relevance();
                let (query, document) = (judgement.query.as_ref(), judgement.document.as_ref());
                each(Ok(Judgement { line, query, document, gain }));
            }
            JudgementLine::Broken => each(Err((line, excerpt(&text)))),
        }
        Ok(())
    })
}

fn too_long(id: &str, tokens: usize, part: &Part) -> String {
    let end = match part.truncate {
        Truncation::Left => "last",
        Truncation::Right => "first",
    };
    format!("`{}` has {tokens} tokens, the prompt keeps the {end} {}", excerpt(id), part.max_tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(queries: &str, splits: &[(&str, &str)], examples: usize) -> Report {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("qrels")).unwrap();
        fs::write(dir.path().join(CORPUS), "{\"_id\": \"d\", \"text\": \"x\"}\n").unwrap();
        fs::write(dir.path().join(QUERIES), queries).unwrap();
        for (split, lines) in splits {
            fs::write(dir.path().join(format!("qrels/{split}.tsv")), lines).unwrap();
        }
        check(dir.path(), None, examples).unwrap()
    }

    fn kinds(report: &Report) -> Vec<(Kind, usize)> {
        report.findings.iter().map(|finding| (finding.kind, finding.total)).collect()
    }

    /// Texts that are missing are one fault each; called copies and leaks besides, they would bury the real ones.
    #[test]
    fn empty_texts_are_no_copies_of_each_other() {
        let queries = "{\"_id\": \"a\", \"text\": \"\"}\n{\"_id\": \"b\"}\n";
        let report = found(queries, &[("train", "a\td\t1\n"), ("test", "b\td\t1\n")], 3);
        assert_eq!(kinds(&report), [(Kind::EmptyText, 2)]);
    }

    /// A query that has nothing but negatives measures nothing and teaches nothing, and so does a split of such.
    #[test]
    fn negatives_are_no_answers() {
        let queries = "{\"_id\": \"a\", \"text\": \"u\"}\n{\"_id\": \"b\", \"text\": \"v\"}\n";
        let report = found(queries, &[("train", "a\td\t1\n"), ("dev", "b\td\t0\n")], 0);
        assert_eq!(kinds(&report), [(Kind::Empty, 1), (Kind::NoRelevantDocument, 1)]);
        assert!(report.findings.iter().all(|finding| finding.examples.is_empty()));
        assert!(
            report.to_string().contains("1 query without any relevant document\n  and 1 more\n"),
            "{report}"
        );
        assert_eq!(kinds(&found(queries, &[], 1)), [(Kind::Empty, 1), (Kind::NoRelevantDocument, 2)]);
    }
}
