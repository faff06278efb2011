//! Pairs and triplets of texts in JSON lines, as users of sentence-transformers, FlagEmbedding and Tevatron have them:
//! ```json
//! {"anchor": "…", "positive": "…", "negative": "…"}
//! {"anchor": "…", "positive": "…", "negative_1": "…", "negative_2": "…", "scores": [0.9, 0.4, 0.3]}
//! {"anchor": "…", "positive": "…", "label": 0}
//! {"query": "…", "answer": ["…", "…"], "labels": [1, 0]}
//! {"query": "…", "pos": ["…"], "neg": ["…", "…"], "pos_scores": [0.9], "neg_scores": [0.4, 0.3], "prompt": "…", "type": "…"}
//! {"query_id": "…", "query": "…", "positive_passages": [{"docid": "…", "title": "…", "text": "…"}], "negative_passages": []}
//! ```
//! A text is one document (or query) however often it comes. Its negatives become judgements of gain 0.
//!
//! The first four are what sentence-transformers' `mine_hard_negatives` writes (`triplet`, `n-tuple`, `labeled-pair`,
//! `labeled-list`; it keeps the names of the two columns that it was given). In the labelled ones the column of positives holds
//! negatives too, and the label is the gain. With `output_scores=True` it writes similarities in place of the labels, which do not
//! say what is relevant: such a line is refused.
//!
//! Scores beside positives and negatives would be another teacher's; they are not read, and that is told. Neither are FlagEmbedding's
//! `prompt` and `type`, because the prompt is the model's own.

use super::lines::{At, excerpt, for_each_line};
use super::splits::Shares;
use super::text::digest_id;
use super::writer::{BeirWriter, Judgements, Summary};
use anyhow::{Result, anyhow, bail};
use models::beir::{Document, Query};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::Path;
use string_interner::Symbol;

/// What an import made, and what of its lines was not read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// The folder.
    pub summary: Summary,
    /// Lines with scores beside positives and negatives.
    pub scored: usize,
    /// Documents without a text.
    pub empty: usize,
    /// Queries that no line gives a relevant document.
    pub unanswered: usize,
}

/// One line, whatever its dialect.
struct Example {
    query: String,
    /// Documents with their gains; those without a text are none.
    judged: Vec<(Option<Document>, u32)>,
    /// Whether it has scores that are not read.
    scored: bool,
}

/// What stands on a line, key by key.
#[derive(Default)]
struct Line {
    /// Key and text.
    query: Option<(String, String)>,
    positives: Vec<Option<Document>>,
    negatives: Vec<Option<Document>>,
    /// Documents that only labels tell apart.
    unnamed: Vec<Option<Document>>,
    /// `label` or `labels`: key and value.
    labels: Option<(String, Value)>,
    /// `score` or `scores`: the key.
    scores: Option<String>,
    /// Other scores, of texts whose place says what they are.
    placed_scores: bool,
    /// Key of documents that are named by id.
    ids: Option<String>,
}

/// Writes the folder; splits are drawn by query.
pub fn import(from: &Path, out: &Path, shares: Shares, seed: u64) -> Result<Imported> {
    let mut writer = BeirWriter::create(out)?;
    let (mut judgements, mut scored, mut empty) = (Judgements::default(), 0, 0);
    for_each_line(from, |at, line| {
        let example = parse(at, line)?;
        scored += usize::from(example.scored);
        empty += example.judged.iter().filter(|(document, _)| document.is_none()).count();
        let judged: Vec<(Document, u32)> =
            example.judged.into_iter().filter_map(|(document, gain)| Some((document?, gain))).collect();
        if judged.is_empty() {
            return Ok(());
        }
        let id = digest_id("q", &example.query);
        let (query, _) = writer.query(&Query { id, text: example.query })?;
        for (document, gain) in judged {
            let (document, _) = writer.document(&document)?;
            judgements.push(query, document, gain);
        }
        Ok(())
    })?;
    if judgements.is_empty() {
        bail!("{}: holds no pairs", from.display());
    }
    let split_of = shares.assign(writer.announced(), "queries", seed)?;
    let mut splits: BTreeMap<String, Judgements> = BTreeMap::new();
    judgements.compact();
    let of_queries = judgements.rows().chunk_by(|a, b| a.0 == b.0);
    let unanswered = of_queries.filter(|rows| rows.iter().all(|(_, _, gain)| *gain == 0)).count();
    if unanswered == writer.announced() {
        bail!("{}: no document is relevant to any query; are the labels right?", from.display());
    }
    for (query, document, gain) in judgements.rows() {
        let split = split_of[query.to_usize()];
        splits.entry(split.to_owned()).or_default().push(*query, *document, *gain);
    }
    Ok(Imported { summary: writer.finish(splits)?, scored, empty, unanswered })
}

fn parse(at: At, line: &str) -> Result<Example> {
    let object: Map<String, Value> =
        serde_json::from_str(line).map_err(|error| anyhow!("{at}: not a JSON object: {error}"))?;
    let keys: Vec<String> = object.keys().map(|key| format!("`{key}`")).collect();
    let line = Line::read(at, object)?;
    let Some((_, query)) = line.query else {
        bail!(
            "{at}: holds no query; found {}, expected the key `query`, `anchor` or `question`",
            keys.join(", ")
        );
    };
    let Line { mut positives, negatives, mut unnamed, labels, scores, placed_scores, ids, .. } = line;
    let scored = placed_scores || scores.is_some();
    if let Some((key, value)) = labels {
        if !negatives.is_empty() {
            bail!(
                "{at}: holds both negatives and `{key}`, expected one of them: which documents are relevant?"
            );
        }
        positives.append(&mut unnamed);
        let gains = gains(at, &key, &value, positives.len())?;
        return Ok(Example { query, judged: positives.into_iter().zip(gains).collect(), scored });
    }
    if let Some(key) = scores
        && negatives.is_empty()
    {
        bail!(
            "{at}: `{key}` says how similar the documents are, not which are relevant (mine_hard_negatives with \
             output_scores=True writes negatives beside positives); write the pairs with `label` instead, or leave `{key}` \
             out where all are relevant"
        );
    }
    if let Some(key) = ids {
        bail!(
            "{at}: `{key}` names documents by their ids, expected their texts, as Tevatron's `positive_passages` and \
             `negative_passages` have them"
        );
    }
    if positives.is_empty() && !unnamed.is_empty() {
        bail!(
            "{at}: holds documents and no label; expected `label` or `labels` beside them, or the key `positive`"
        );
    }
    if positives.is_empty() {
        bail!(
            "{at}: holds no positive for {:?}; expected `positive`, `pos`, `positives`, `positive_passages` or `answer` with a \
             text or a list of texts",
            excerpt(&query)
        );
    }
    let relevant = positives.into_iter().map(|document| (document, 1));
    let judged = relevant.chain(negatives.into_iter().map(|document| (document, 0))).collect();
    Ok(Example { query, judged, scored })
}

impl Line {
    fn read(at: At, object: Map<String, Value>) -> Result<Self> {
        let mut line = Self::default();
        // Beside passages the answer to a question is not a passage.
        let others = ["positive", "pos", "positives", "positive_passages", "docs", "documents", "passages"];
        let has_passages = others.iter().any(|key| object.contains_key(*key));
        for (key, value) in object {
            match key.as_str() {
                "query" | "anchor" | "question" => line.set_query(at, key, value)?,
                "positive" | "pos" | "positives" | "positive_passages" => {
                    passages(at, &key, value, &mut line.positives)?;
                }
                "answer" if !has_passages => passages(at, &key, value, &mut line.positives)?,
                "negative" | "neg" | "negatives" | "negative_passages" => {
                    passages(at, &key, value, &mut line.negatives)?;
                }
                // `negative_1` to `negative_n`: n-tuples of sentence-transformers.
                _ if key.strip_prefix("negative_").is_some_and(|n| n.parse::<u32>().is_ok()) => {
                    passages(at, &key, value, &mut line.negatives)?;
                }
                "docs" | "document" | "documents" | "passage" | "passages" => {
                    passages(at, &key, value, &mut line.unnamed)?;
                }
                "label" | "labels" if !value.is_null() => {
                    if let Some((other, _)) = line.labels.replace((key.clone(), value)) {
                        bail!("{at}: holds both `{other}` and `{key}`, expected one of them");
                    }
                }
                "score" | "scores" if !value.is_null() => line.scores = Some(key),
                "pos_scores" | "neg_scores" if !value.is_null() => line.placed_scores = true,
                // Tevatron's newer format: ids of documents, and `query_text`.
                "positive_document_ids" => line.ids = Some(key),
                "query_text" if line.query.is_none() && value.is_string() => {
                    line.set_query(at, key, value)?;
                }
                _ => {}
            }
        }
        Ok(line)
    }

    fn set_query(&mut self, at: At, key: String, value: Value) -> Result<()> {
        if let Some((other, _)) = &self.query {
            bail!("{at}: holds both `{other}` and `{key}`, expected one of them");
        }
        match value {
            Value::String(text) if !text.trim().is_empty() => self.query = Some((key, text)),
            Value::String(_) => bail!("{at}: `{key}` is empty"),
            value => bail!("{at}: `{key}` is {}, expected a text", kind(&value)),
        }
        Ok(())
    }
}

/// Gains from one label for each of `documents` texts: whole numbers (below 1: not relevant), true and false.
fn gains(at: At, key: &str, value: &Value, documents: usize) -> Result<Vec<u32>> {
    let labels = match value {
        Value::Array(labels) => labels.as_slice(),
        label => std::slice::from_ref(label),
    };
    if labels.len() != documents {
        bail!("{at}: `{key}` has {} labels for {documents} documents, expected one for each", labels.len());
    }
    let gain = |label: &Value| match label {
        Value::Bool(relevant) => Ok(u32::from(*relevant)),
        Value::Number(number) => match number.as_f64() {
            Some(gain) if gain.fract() == 0.0 && gain < f64::from(u32::MAX) => Ok(gain.max(0.0) as u32),
            _ => bail!("{at}: `{key}` holds {number}, expected a whole number: above 0 is relevant"),
        },
        other => bail!("{at}: `{key}` holds {}, expected a whole number: above 0 is relevant", kind(other)),
    };
    labels.iter().map(gain).collect()
}

/// A text, a list of texts, or passages with `title` and `text`; null counts as none, and an empty text keeps its place.
fn passages(at: At, key: &str, value: Value, into: &mut Vec<Option<Document>>) -> Result<()> {
    let values = match value {
        Value::Array(values) => values,
        Value::Null => return Ok(()),
        value => vec![value],
    };
    for value in values {
        let (title, text) = match value {
            Value::String(text) => (String::new(), text),
            Value::Object(mut passage) => {
                let mut field = |name: &str| match passage.remove(name) {
                    Some(Value::String(text)) => Ok(text),
                    None | Some(Value::Null) => Ok(String::new()),
                    Some(other) => {
                        Err(anyhow!("{at}: `{name}` in `{key}` is {}, expected a text", kind(&other)))
                    }
                };
                (field("title")?, field("text")?)
            }
            other => bail!("{at}: `{key}` holds {}, expected a text or a list of texts", kind(&other)),
        };
        let mut document = Document { id: String::new(), title, text };
        let contents = document.contents();
        document.id = digest_id("d", &contents);
        into.push((!contents.is_empty()).then_some(document));
    }
    Ok(())
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use models::beir::{BeirData, Purpose};
    use std::fs;

    fn imported(lines: &str, dev: f64) -> (tempfile::TempDir, Result<Imported>) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("pairs.jsonl"), lines).unwrap();
        let shares = Shares::new(dev, 0.0).unwrap();
        let made = import(&dir.path().join("pairs.jsonl"), &dir.path().join("out"), shares, 1);
        (dir, made)
    }

    /// The dialects differ in keys only; a negative lost on the way is a mined negative that never teaches.
    #[test]
    fn every_dialect_becomes_the_same_judgements() {
        let lines = r#"{"anchor": "coffee!", "positive": "sponge", "negative": "lamp", "score": 3}
{"query": "dusk", "pos": ["lamp"], "neg": ["sponge", "Sponge."], "prompt": "x"}
{"query": "Coffee", "positives": "mop", "negatives": ["mop", "broom"], "neg": null}
{"query": "cold", "query_id": "7", "positive_passages": [{"docid": "1", "title": "Blanket", "text": "warm"}], "negative_passages": []}
{"anchor": "dark", "positive": "lamp", "negative_1": "mop", "negative_2": "broom", "negative_mean": "x"}
"#;
        let (dir, made) = imported(lines, 0.0);
        let made = made.unwrap().summary;
        assert_eq!((made.documents, made.queries), (5, 4));
        assert_eq!(made.splits, [("train".to_owned(), [4, 5, 5])]);
        assert!(
            made.to_string().ends_with("train: 4 queries, 5 relevant documents, 5 hard negatives"),
            "{made}"
        );
        let data = BeirData::open(&dir.path().join("out")).unwrap();
        let qrels = data.qrels("train", Purpose::Training).unwrap().qrels;
        let judged = |query: &str| {
            let id = &data.queries.iter().find(|q| q.text == query).unwrap().id;
            let mut judged: Vec<(String, u32)> = qrels[id]
                .iter()
                .map(|(id, gain)| (data.documents[data.document_index[id]].contents(), *gain))
                .collect();
            judged.sort();
            judged
        };
        let expected = |pairs: &[(&str, u32)]| -> Vec<(String, u32)> {
            pairs.iter().map(|(text, gain)| ((*text).to_owned(), *gain)).collect()
        };
        // Relevant on one line and negative on another: relevant.
        assert_eq!(judged("coffee!"), expected(&[("broom", 0), ("lamp", 0), ("mop", 1), ("sponge", 1)]));
        assert_eq!(judged("dusk"), expected(&[("lamp", 1), ("sponge", 0)]));
        assert_eq!(judged("cold"), expected(&[("Blanket\nwarm", 1)]));
        assert_eq!(judged("dark"), expected(&[("broom", 0), ("lamp", 1), ("mop", 0)]));
    }

    /// Gains by query and document, as texts.
    fn judged(dir: &Path) -> BTreeMap<String, BTreeMap<String, u32>> {
        let data = BeirData::open(&dir.join("out")).unwrap();
        let mut judged: BTreeMap<String, BTreeMap<String, u32>> = BTreeMap::new();
        for (query, gains) in data.qrels("train", Purpose::Training).unwrap().qrels {
            let query = data.queries[data.query_index[&query]].text.clone();
            let of_query = judged.entry(query).or_default();
            of_query.extend(
                gains.iter().map(|(id, gain)| (data.documents[data.document_index[id]].contents(), *gain)),
            );
        }
        judged
    }

    /// The column of positives holds negatives too: without its labels a model learns every mined negative as the answer. Scores
    /// beside texts whose place says what they are change nothing. The lines are what sentence-transformers 6.2 (the same since
    /// 5.1), FlagEmbedding 1.4 and Tevatron write.
    #[test]
    fn every_shape_that_miners_write_has_its_gains() {
        const MOP: &str = "Mop the hall.";
        const LAMP: &str = "Light the lamp.";
        const FAN: &str = "Turn on the fan.";
        let of =
            |gains: &[(&str, u32)]| gains.iter().map(|(text, gain)| ((*text).to_owned(), *gain)).collect();
        for (shape, line, gains, scored) in [
            (
                "triplet",
                r#"{"anchor": "q", "positive": "MOP", "negative": "LAMP"}"#,
                &[(MOP, 1), (LAMP, 0)][..],
                0,
            ),
            (
                "triplet, scores",
                r#"{"anchor": "q", "positive": "MOP", "negative": "LAMP", "scores": [0.8, 0.3]}"#,
                &[(MOP, 1), (LAMP, 0)],
                1,
            ),
            (
                "n-tuple",
                r#"{"question": "q", "answer": "MOP", "negative_1": "LAMP", "negative_2": "FAN"}"#,
                &[(MOP, 1), (LAMP, 0), (FAN, 0)],
                0,
            ),
            (
                "n-tuple, scores",
                r#"{"query": "q", "answer": "MOP", "negative_1": "LAMP", "scores": [0.8, 0.3]}"#,
                &[(MOP, 1), (LAMP, 0)],
                1,
            ),
            (
                "labeled-pair",
                "{\"query\": \"q\", \"answer\": \"MOP\", \"label\": 1}\n{\"query\": \"q\", \"answer\": \"LAMP\", \"label\": 0}",
                &[(MOP, 1), (LAMP, 0)],
                0,
            ),
            (
                "labeled-list",
                r#"{"anchor": "q", "positive": ["MOP", "LAMP", "FAN"], "labels": [1, 0, 0]}"#,
                &[(MOP, 1), (LAMP, 0), (FAN, 0)],
                0,
            ),
            (
                "graded list",
                r#"{"query": "q", "docs": ["MOP", "LAMP", "FAN"], "labels": [2, 0.0, true]}"#,
                &[(MOP, 2), (LAMP, 0), (FAN, 1)],
                0,
            ),
            (
                "negative label",
                r#"{"query": "q", "passages": ["MOP", "LAMP"], "labels": [1, -1]}"#,
                &[(MOP, 1), (LAMP, 0)],
                0,
            ),
            ("pair", r#"{"anchor": "q", "positive": "MOP"}"#, &[(MOP, 1)], 0),
            (
                "no label",
                r#"{"anchor": "q", "positive": "MOP", "negative": "LAMP", "label": null, "score": null}"#,
                &[(MOP, 1), (LAMP, 0)],
                0,
            ),
            (
                "FlagEmbedding",
                r#"{"query": "q", "pos": ["MOP"], "neg": ["LAMP", "FAN"], "pos_scores": [0.9], "neg_scores": [0.7, 0.1], "prompt": "Represent this sentence", "type": "normal"}"#,
                &[(MOP, 1), (LAMP, 0), (FAN, 0)],
                1,
            ),
            (
                "FlagEmbedding, no scores",
                r#"{"query": "q", "pos": ["MOP", "FAN"], "neg": [], "pos_scores": null, "neg_scores": null, "type": "symmetric_sts"}"#,
                &[(MOP, 1), (FAN, 1)],
                0,
            ),
            (
                "Tevatron",
                r#"{"query_id": "7", "query": "q", "answers": ["yes"], "answer": "yes", "positive_passages": [{"docid": "1", "title": "", "text": "MOP"}], "negative_passages": [{"docid": "2", "text": "LAMP"}]}"#,
                &[(MOP, 1), (LAMP, 0)],
                0,
            ),
        ] {
            let line = line.replace("MOP", MOP).replace("LAMP", LAMP).replace("FAN", FAN);
            let (dir, made) = imported(&line, 0.0);
            let made = made.expect(shape);
            assert_eq!(judged(dir.path()), BTreeMap::from([("q".to_owned(), of(gains))]), "{shape}");
            assert_eq!((made.scored, made.empty, made.unanswered), (scored, 0, 0), "{shape}");
        }
    }

    /// A text that is missing, or a query that has only negatives, is no reason to refuse a million lines; but it is counted.
    #[test]
    fn what_teaches_nothing_is_counted() {
        let lines = r#"{"query": "wet", "pos": ["mop", ""], "neg": [" ", "lamp"]}
{"query": "dim", "docs": ["", "lamp", "mop"], "labels": [0, 1, 0]}
{"query": "hot", "positive": "", "negative": "lamp"}
{"query": "lone", "positive": " "}
"#;
        let (dir, made) = imported(lines, 0.0);
        let made = made.unwrap();
        assert_eq!((made.empty, made.unanswered, made.summary.queries), (5, 1, 3));
        let judged = judged(dir.path());
        let gains =
            |query: &str| judged[query].iter().map(|(text, gain)| (text.as_str(), *gain)).collect::<Vec<_>>();
        assert_eq!(gains("wet"), [("lamp", 0), ("mop", 1)]);
        assert_eq!(gains("dim"), [("lamp", 1), ("mop", 0)]);
        assert_eq!(gains("hot"), [("lamp", 0)]);
        let none = imported(r#"{"query": "wet", "docs": ["mop", "lamp"], "labels": [0, 0]}"#, 0.0).1;
        assert!(none.unwrap_err().to_string().contains("no document is relevant to any query"));
    }

    /// Where only similarities or ids were written, nobody can tell what is relevant: nothing is made.
    #[test]
    fn lines_that_do_not_say_what_is_relevant_are_refused() {
        for (bad, words) in [
            (r#"{"anchor": "a", "positive": "b", "score": 0.31}"#, "`score` says how similar"),
            (r#"{"anchor": "a", "positive": ["b", "c"], "scores": [0.9, 0.3]}"#, "`scores` says how similar"),
            (r#"{"query": "a", "answer": ["b"], "scores": [0.9]}"#, "`scores` says how similar"),
            (r#"{"query": "a", "docs": ["b", "c"], "labels": [1]}"#, "`labels` has 1 labels for 2 documents"),
            (r#"{"query": "a", "docs": ["b"]}"#, "documents and no label"),
            (
                r#"{"query": "a", "positive": "b", "label": 0.4}"#,
                "`label` holds 0.4, expected a whole number",
            ),
            (r#"{"query": "a", "positive": "b", "label": "yes"}"#, "`label` holds a text"),
            (r#"{"query": "a", "pos": "b", "neg": "c", "label": 1}"#, "both negatives and `label`"),
            (r#"{"query": "a", "pos": "b", "label": 1, "labels": [1]}"#, "both `label` and `labels`"),
            (
                r#"{"query_id": "1", "query_text": "a", "positive_document_ids": ["7"], "negative_document_ids": []}"#,
                "`positive_document_ids` names documents by their ids, expected their texts",
            ),
            (
                r#"{"sentence1": "a", "sentence2": "b", "score": 0.4}"#,
                "holds no query; found `sentence1`, `sentence2`, `score`, expected the key `query`",
            ),
        ] {
            let message = imported(bad, 0.0).1.unwrap_err().to_string();
            assert!(
                message.contains("pairs.jsonl:1: ") && message.contains(words),
                "{message:?} lacks {words:?}"
            );
        }
    }

    /// One query in train and in dev is a leak that the import itself would have made.
    #[test]
    fn lines_of_one_query_stay_in_one_split() {
        let lines: String = (0..40)
            .map(|i| format!("{{\"query\": \"q{}\", \"pos\": \"p{i}\", \"neg\": \"n{i}\"}}\n", i % 20))
            .collect();
        let (dir, made) = imported(&lines, 0.25);
        assert_eq!(
            made.unwrap().summary.splits,
            [("dev".to_owned(), [5, 10, 10]), ("train".to_owned(), [15, 30, 30])]
        );
        let data = BeirData::open(&dir.path().join("out")).unwrap();
        let (train, dev) = (
            data.qrels("train", Purpose::Training).unwrap().qrels,
            data.qrels("dev", Purpose::Training).unwrap().qrels,
        );
        assert!(train.keys().all(|query| !dev.contains_key(query)));
    }

    /// Line 700,000 of somebody's file is wrong; without its number they will not find it.
    #[test]
    fn bad_lines_are_named() {
        let good = r#"{"query": "a", "pos": "b"}"#;
        for (bad, words) in [
            ("{oops", "pairs.jsonl:3: not a JSON object"),
            ("[1, 2]", "pairs.jsonl:3: not a JSON object"),
            (
                r#"{"pos": "b"}"#,
                "holds no query; found `pos`, expected the key `query`, `anchor` or `question`",
            ),
            (r#"{"query": "", "pos": "b"}"#, "`query` is empty"),
            (r#"{"query": 4, "pos": "b"}"#, "`query` is a number, expected a text"),
            (r#"{"query": "a", "anchor": "b", "pos": "b"}"#, "both `query` and `anchor`"),
            (r#"{"query": "wet floor", "neg": "b"}"#, "no positive for \"wet floor\""),
            (r#"{"query": "a", "pos": []}"#, "no positive for \"a\""),
            (
                r#"{"query": "a", "pos": ["b", 5]}"#,
                "`pos` holds a number, expected a text or a list of texts",
            ),
            (r#"{"query": "a", "pos": [{"text": 1}]}"#, "`text` in `pos` is a number"),
        ] {
            let (dir, made) = imported(&format!("{good}\n\n{bad}\n"), 0.0);
            let message = made.unwrap_err().to_string();
            assert!(
                message.contains("pairs.jsonl:3: ") && message.contains(words),
                "{message:?} lacks {words:?}"
            );
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "something was left behind");
        }
        assert!(imported("", 0.0).1.unwrap_err().to_string().contains("holds no pairs"));
    }
}
