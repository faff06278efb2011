//! Pairs and triplets of texts in JSON lines, as users of sentence-transformers, FlagEmbedding and Tevatron have them:
//! ```json
//! {"anchor": "…", "positive": "…", "negative": "…"}
//! {"query": "…", "pos": ["…"], "neg": ["…", "…"]}
//! {"query": "…", "positive_passages": [{"title": "…", "text": "…"}], "negative_passages": []}
//! {"anchor": "…", "positive": "…", "label": 0}
//! {"query": "…", "docs": ["…", "…"], "labels": [1, 0]}
//! ```
//! A text is one document (or query) however often it comes. Its negatives become judgements of gain 0.
//!
//! The last two are what sentence-transformers' `mine_hard_negatives` writes as `labeled-pair` and `labeled-list`: there the column
//! of positives holds negatives too, and the label is the gain. With `output_scores=True` it writes similarities in place of the
//! labels, which do not say what is relevant: such a line is refused. Scores beside positives and negatives are not read.

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

/// One line, whatever its dialect.
struct Example {
    query: String,
    /// Documents with their gains.
    judged: Vec<(Document, u32)>,
    /// Whether it has scores that are not read.
    scored: bool,
}

/// What a line says about its documents besides naming them.
#[derive(Default)]
struct Marks {
    /// `label` or `labels`: key and value.
    labels: Option<(String, Value)>,
    /// `score` or `scores`: key and value.
    scores: Option<(String, Value)>,
    /// Other scores, of texts whose place says what they are.
    others: bool,
}

/// Writes the folder; splits are drawn by query.
pub fn import(from: &Path, out: &Path, shares: Shares, seed: u64) -> Result<Summary> {
    let mut writer = BeirWriter::create(out)?;
    let (mut judgements, mut scored) = (Judgements::default(), 0);
    for_each_line(from, |at, line| {
        let example = parse(at, line)?;
        scored += usize::from(example.scored);
        let id = digest_id("q", &example.query);
        let (query, _) = writer.query(&Query { id, text: example.query })?;
        for (document, gain) in example.judged {
            let (document, _) = writer.document(&document)?;
            judgements.push(query, document, gain);
        }
        Ok(())
    })?;
    if scored > 0 {
        eprintln!(
            "{}: {scored} lines have scores, which are not read: `train distill` asks its own teacher",
            from.display()
        );
    }
    if judgements.is_empty() {
        bail!("{}: holds no pairs", from.display());
    }
    let split_of = shares.assign(writer.announced(), "queries", seed)?;
    let mut splits: BTreeMap<String, Judgements> = BTreeMap::new();
    judgements.compact();
    for (query, document, gain) in judgements.rows() {
        let split = split_of[query.to_usize()];
        splits.entry(split.to_owned()).or_default().push(*query, *document, *gain);
    }
    writer.finish(splits)
}

fn parse(at: At, line: &str) -> Result<Example> {
    let object: Map<String, Value> =
        serde_json::from_str(line).map_err(|error| anyhow!("{at}: not a JSON object: {error}"))?;
    let (mut query, mut positives, mut negatives) = (None, Vec::new(), Vec::new());
    // Documents that only labels tell apart, and how many texts stand under a key of positives.
    let (mut unnamed, mut marks) = (Vec::new(), Marks::default());
    for (key, value) in object {
        match key.as_str() {
            "query" | "anchor" => match (value, &query) {
                (Value::String(text), None) if !text.trim().is_empty() => query = Some(text),
                (Value::String(_), None) => bail!("{at}: `{key}` is empty"),
                (_, Some(_)) => bail!("{at}: holds both `query` and `anchor`, expected one of them"),
                (value, None) => bail!("{at}: `{key}` is {}, expected a text", kind(&value)),
            },
            "positive" | "pos" | "positives" | "positive_passages" => {
                passages(at, &key, value, &mut positives)?;
            }
            "negative" | "neg" | "negatives" | "negative_passages" => {
                passages(at, &key, value, &mut negatives)?;
            }
            // `negative_1` to `negative_n`: n-tuples of sentence-transformers.
            _ if key.strip_prefix("negative_").is_some_and(|n| n.parse::<u32>().is_ok()) => {
                passages(at, &key, value, &mut negatives)?;
            }
            "docs" | "document" | "documents" | "passage" | "passages" => {
                passages(at, &key, value, &mut unnamed)?;
            }
            "label" | "labels" if !value.is_null() => {
                if let Some((other, _)) = marks.labels.replace((key.clone(), value)) {
                    bail!("{at}: holds both `{other}` and `{key}`, expected one of them");
                }
            }
            "score" | "scores" if !value.is_null() => marks.scores = Some((key, value)),
            "pos_scores" | "neg_scores" if !value.is_null() => marks.others = true,
            _ => {}
        }
    }
    let Some(query) = query else { bail!("{at}: holds no query; expected the key `query` or `anchor`") };
    if let Some((key, value)) = marks.labels {
        if !negatives.is_empty() {
            bail!(
                "{at}: holds both negatives and `{key}`, expected one of them: which documents are relevant?"
            );
        }
        positives.append(&mut unnamed);
        let gains = gains(at, &key, &value, positives.len())?;
        let judged = positives.into_iter().zip(gains).collect();
        return Ok(Example { query, judged, scored: marks.others || marks.scores.is_some() });
    }
    let several = positives.len() > 1;
    if let Some((key, value)) = &marks.scores
        && negatives.is_empty()
        && !positives.is_empty()
        && value.is_array() == several
    {
        bail!(
            "{at}: `{key}` says how similar the documents are, not which are relevant (mine_hard_negatives with \
             output_scores=True writes negatives beside positives); write the pairs with `label` instead, or leave `{key}` \
             out where all are relevant"
        );
    }
    if positives.is_empty() && !unnamed.is_empty() {
        bail!(
            "{at}: holds documents and no label; expected `label` or `labels` beside them, or the key `positive`"
        );
    }
    if positives.is_empty() {
        bail!(
            "{at}: holds no positive for {:?}; expected `positive`, `pos`, `positives` or `positive_passages` with a \
             text or a list of texts",
            excerpt(&query)
        );
    }
    let relevant = positives.into_iter().map(|document| (document, 1));
    let judged = relevant.chain(negatives.into_iter().map(|document| (document, 0))).collect();
    Ok(Example { query, judged, scored: marks.others || marks.scores.is_some() })
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

/// A text, a list of texts, or passages with `title` and `text`; null counts as none.
fn passages(at: At, key: &str, value: Value, into: &mut Vec<Document>) -> Result<()> {
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
        if contents.is_empty() {
            bail!("{at}: `{key}` holds an empty text");
        }
        document.id = digest_id("d", &contents);
        into.push(document);
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
    use models::beir::BeirData;
    use std::fs;

    fn imported(lines: &str, dev: f64) -> (tempfile::TempDir, Result<Summary>) {
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
        let made = made.unwrap();
        assert_eq!((made.documents, made.queries), (5, 4));
        assert_eq!(made.splits, [("train".to_owned(), [4, 5, 5])]);
        assert!(
            made.to_string().ends_with("train: 4 queries, 5 relevant documents, 5 hard negatives"),
            "{made}"
        );
        let data = BeirData::open(&dir.path().join("out")).unwrap();
        let qrels = data.qrels("train").unwrap();
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

    /// The column of positives holds negatives too: without its labels a model learns every mined negative as the answer. Where
    /// only similarities were written, nobody can tell, and nothing is made.
    #[test]
    fn labels_are_gains_and_similarities_are_none() {
        let lines = r#"{"anchor": "coffee!", "positive": "sponge", "label": 1}
{"anchor": "coffee!", "positive": "lamp", "label": 0}
{"query": "dusk", "docs": ["lamp", "sponge", "candle"], "labels": [2, 0.0, true]}
{"query": "cold", "positive": ["blanket", "mop"], "labels": [1, -1]}
{"query": "dark", "pos": ["lamp"], "neg": ["mop"], "pos_scores": [0.9], "neg_scores": [0.2]}
{"anchor": "wet", "positive": "mop", "negative_1": "lamp", "scores": [0.8, 0.1]}
{"anchor": "hot", "positive": "fan", "negative": "blanket", "label": null}
"#;
        let (dir, made) = imported(lines, 0.0);
        made.unwrap();
        let data = BeirData::open(&dir.path().join("out")).unwrap();
        let qrels = data.qrels("train").unwrap();
        let gain = |query: &str, document: &str| {
            let query = &data.queries.iter().find(|q| q.text == query).unwrap().id;
            let document = &data.documents.iter().find(|d| d.text == document).unwrap().id;
            qrels[query][document]
        };
        let coffee = ["sponge", "lamp"].map(|document| gain("coffee!", document));
        let dusk = ["lamp", "sponge", "candle"].map(|document| gain("dusk", document));
        assert_eq!((coffee, dusk), ([1, 0], [2, 0, 1]));
        assert_eq!((gain("cold", "blanket"), gain("cold", "mop")), (1, 0));
        assert_eq!((gain("dark", "lamp"), gain("dark", "mop"), gain("wet", "lamp")), (1, 0, 0));
        for (bad, words) in [
            (r#"{"anchor": "a", "positive": "b", "score": 0.31}"#, "`score` says how similar"),
            (r#"{"anchor": "a", "positive": ["b", "c"], "scores": [0.9, 0.3]}"#, "`scores` says how similar"),
            (r#"{"query": "a", "docs": ["b", "c"], "labels": [1]}"#, "`labels` has 1 labels for 2 documents"),
            (r#"{"query": "a", "docs": ["b"]}"#, "documents and no label"),
            (
                r#"{"query": "a", "positive": "b", "label": 0.4}"#,
                "`label` holds 0.4, expected a whole number",
            ),
            (r#"{"query": "a", "positive": "b", "label": "yes"}"#, "`label` holds a text"),
            (r#"{"query": "a", "pos": "b", "neg": "c", "label": 1}"#, "both negatives and `label`"),
            (r#"{"query": "a", "pos": "b", "label": 1, "labels": [1]}"#, "both `label` and `labels`"),
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
            made.unwrap().splits,
            [("dev".to_owned(), [5, 10, 10]), ("train".to_owned(), [15, 30, 30])]
        );
        let data = BeirData::open(&dir.path().join("out")).unwrap();
        let (train, dev) = (data.qrels("train").unwrap(), data.qrels("dev").unwrap());
        assert!(train.keys().all(|query| !dev.contains_key(query)));
    }

    /// Line 700,000 of somebody's file is wrong; without its number they will not find it.
    #[test]
    fn bad_lines_are_named() {
        let good = r#"{"query": "a", "pos": "b"}"#;
        for (bad, words) in [
            ("{oops", "pairs.jsonl:3: not a JSON object"),
            ("[1, 2]", "pairs.jsonl:3: not a JSON object"),
            (r#"{"pos": "b"}"#, "holds no query; expected the key `query` or `anchor`"),
            (r#"{"query": "", "pos": "b"}"#, "`query` is empty"),
            (r#"{"query": 4, "pos": "b"}"#, "`query` is a number, expected a text"),
            (r#"{"query": "a", "anchor": "b", "pos": "b"}"#, "both `query` and `anchor`"),
            (r#"{"query": "wet floor", "neg": "b"}"#, "no positive for \"wet floor\""),
            (r#"{"query": "a", "pos": []}"#, "no positive for \"a\""),
            (
                r#"{"query": "a", "pos": ["b", 5]}"#,
                "`pos` holds a number, expected a text or a list of texts",
            ),
            (r#"{"query": "a", "pos": "b", "neg": " "}"#, "`neg` holds an empty text"),
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
