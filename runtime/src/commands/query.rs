//! `runtime query`: one query for a person or a program, a stream of them on stdin, or a file of them to a run file.

use super::place::{DatabaseArgs, IndexArgs};
use crate::{Global, Outcome};
use anyhow::{Context, bail};
use models::beir::{self, Query};
use models::files;
use runtime::filter::Filter;
use runtime::reranker::Reranker;
use runtime::retriever::{Answer, Explanation, Facets, Options, Retriever, RetrieverError, Wanted};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

/// Queries of a file that are encoded together.
const BATCH: usize = 32;

/// Ask for the documents that best answer a query
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Bundle directory, as written by `export --onnx`
    #[arg(long, value_name = "DIR")]
    bundle: PathBuf,
    #[command(flatten)]
    index: IndexArgs,
    #[command(flatten)]
    database: DatabaseArgs,
    /// The query
    #[arg(
        value_name = "TEXT",
        required_unless_present_any = ["stdin", "queries"],
        conflicts_with_all = ["stdin", "queries"]
    )]
    text: Option<String>,
    /// Results wanted
    #[arg(short, value_name = "K", default_value_t = 5)]
    k: usize,
    /// Only documents whose metadata pass: `room=kitchen`, `room!=bath`, `floor>=2`, `room in kitchen,bath`, `!room`, some of
    /// these joined by `and`, or JSON: MongoDB's form, or a filter of Qdrant, LlamaIndex, Haystack or OpenAI; several must all
    /// hold
    #[arg(long, value_name = "CONDITION", value_parser = Filter::parse)]
    filter: Vec<Filter>,
    /// Tell what each score is made of
    #[arg(long)]
    explain: bool,
    /// Answer with one JSON object
    #[arg(long)]
    json: bool,
    /// Reranker's bundle, as written by `export --reranker`: it reads the first documents anew and orders them
    #[arg(long, value_name = "DIR")]
    reranker: Option<PathBuf>,
    /// Documents that the reranker reads
    #[arg(long, value_name = "N", default_value_t = 20, requires = "reranker")]
    rerank: usize,
    /// Score every document, whatever the size of the index
    #[arg(long)]
    exact: bool,
    /// Read queries from stdin: a line {"query": "...", "k"?: n, "filter"?: {...}, "id"?: any} in, a line of JSON out
    #[arg(long)]
    stdin: bool,
    /// Answer all queries of a file (JSON lines with `_id` and `text`, or a folder in BEIR layout) as a TREC run
    #[arg(long, value_name = "FILE", conflicts_with_all = ["stdin", "json", "explain", "reranker"])]
    queries: Option<PathBuf>,
    /// Where the run goes [default: stdout]
    #[arg(long, value_name = "FILE", requires = "queries")]
    run: Option<PathBuf>,
}

/// A line of `--stdin`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    query: String,
    k: Option<usize>,
    filter: Option<Filter>,
    id: Option<Value>,
}

/// A line of answer; `id` is the request's.
#[derive(Debug, Serialize)]
struct Response<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<Value>,
    query: &'a str,
    #[serde(flatten)]
    answer: Answer,
}

/// What answers.
struct Answerer {
    retriever: Retriever,
    /// The teacher, and how many documents it reads.
    reranker: Option<(Reranker, usize)>,
}

impl Answerer {
    fn answer(&self, text: &str, wanted: Wanted) -> Result<Answer, RetrieverError> {
        match &self.reranker {
            None => self.retriever.query(text, wanted),
            Some((reranker, candidates)) => {
                self.retriever.query_reranked(text, wanted, reranker, *candidates)
            }
        }
    }
}

/// Checks what was typed before it opens anything.
pub fn run(args: &Args, global: &Global) -> anyhow::Result<Outcome> {
    if args.k == 0 {
        bail!("-k is 0; ask for at least 1 result");
    }
    if let Some(text) = &args.text
        && text.trim().is_empty()
    {
        bail!("the query is empty; say what is needed, e.g. \"it is getting dark in here\"");
    }
    if args.rerank == 0 {
        bail!("--rerank is 0; let the reranker read at least 1 document");
    }
    let options = Options { exact: args.exact, database: args.database.options()?, ..global.options() };
    let (session, golden) = (options.session.clone(), options.golden);
    let retriever = Retriever::open_place(&args.bundle, &args.index.place()?, options)?;
    let reranker = match &args.reranker {
        None => None,
        Some(dir) => {
            let opened = Reranker::open_proven(dir, &session, golden);
            let opened = opened.with_context(|| format!("cannot use the reranker {}", dir.display()))?;
            Some((opened, args.rerank))
        }
    };
    let filter = (!args.filter.is_empty()).then(|| Filter::all(args.filter.clone()));
    let wanted = Wanted { k: args.k, filter, explain: args.explain };
    if let Some(queries) = &args.queries {
        return answer_file(&retriever, &wanted, queries, args.run.as_deref());
    }
    let answerer = Answerer { retriever, reranker };
    let Some(text) = &args.text else {
        answer_lines(&answerer, &wanted, BufReader::new(io::stdin().lock()), io::stdout().lock())?;
        return Ok(Outcome::Done);
    };
    let asked = wanted.filter.clone();
    let answer = answerer.answer(text, wanted)?;
    let outcome = if answer.results.is_empty() { Outcome::Nothing } else { Outcome::Done };
    if let (Outcome::Nothing, Some(filter)) = (&outcome, &asked)
        && let Some(notice) = unknown_fields(filter, &answerer.retriever.facets(1)?)
    {
        eprintln!("runtime: {notice}");
    }
    let mut out = io::stdout().lock();
    if args.json {
        let response = Response { id: None, query: text, answer };
        writeln!(out, "{}", serde_json::to_string(&response)?).context("cannot write to stdout")?;
    } else {
        write!(out, "{}", for_people(&answer)).context("cannot write to stdout")?;
        out.flush().context("cannot write to stdout")?;
        let timing = answer.timing;
        let rerank = timing.rerank.map_or(String::new(), |rerank| format!(", rerank {rerank:.2} ms"));
        eprintln!(
            "tokenise {:.2} ms, encode {:.2} ms, search {:.2} ms ({}, {} documents){rerank}",
            timing.tokenise,
            timing.encode,
            timing.search,
            serde_json::to_value(answer.path)?.as_str().unwrap_or_default(),
            answerer.retriever.stats()?.documents,
        );
    }
    // The answer is out; a graph that has to be built is there for the next one.
    out.flush().context("cannot write to stdout")?;
    answerer.retriever.settle_after_query();
    Ok(outcome)
}

/// Why a filter may have found nothing: fields that no document has.
fn unknown_fields(filter: &Filter, known: &Facets) -> Option<String> {
    let names =
        |names: Vec<&str>| names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    let unknown: Vec<&str> =
        filter.fields().into_iter().filter(|field| !known.contains_key(*field)).collect();
    if unknown.is_empty() {
        return None;
    }
    let fields = match known.is_empty() {
        true => "none has metadata".to_owned(),
        false => format!("there are {}", names(known.keys().map(String::as_str).collect())),
    };
    Some(format!("no document has a field {}; {fields}", names(unknown)))
}

/// A line out for each line in, flushed at once; a bad line is answered with its error, and the next one is read.
fn answer_lines(
    answerer: &Answerer,
    wanted: &Wanted,
    mut input: impl BufRead,
    mut output: impl Write,
) -> anyhow::Result<()> {
    let mut bytes = Vec::new();
    for line in 1.. {
        bytes.clear();
        if input.read_until(b'\n', &mut bytes).context("cannot read from stdin")? == 0 {
            break;
        }
        if bytes.trim_ascii().is_empty() {
            continue;
        }
        let answer = answer_line(answerer, wanted, line, &bytes);
        writeln!(output, "{answer}").and_then(|()| output.flush()).context("cannot write to stdout")?;
    }
    Ok(())
}

fn answer_line(answerer: &Answerer, typed: &Wanted, line: usize, bytes: &[u8]) -> String {
    let request: Request = match serde_json::from_slice(bytes) {
        Ok(request) => request,
        Err(error) => {
            let error = format!(
                "line {line}: not a JSON object with `query` and optional `k`, `filter` and `id`: {error}"
            );
            return json!({ "error": error, "line": line }).to_string();
        }
    };
    let Request { query, k, filter, id } = request;
    // What was typed holds for every line.
    let filter = match (typed.filter.clone(), filter) {
        (Some(typed), Some(sent)) => Some(Filter::all(vec![typed, sent])),
        (typed, sent) => typed.or(sent),
    };
    let wanted = Wanted { k: k.unwrap_or(typed.k), filter, explain: typed.explain };
    let answered = answerer.answer(&query, wanted).map_err(|error| error.to_string());
    let printed = answered.and_then(|answer| {
        let response = Response { id: id.clone(), query: &query, answer };
        serde_json::to_string(&response).map_err(|error| error.to_string())
    });
    printed.unwrap_or_else(|error| {
        let mut answer = json!({ "error": format!("line {line}: {error}"), "line": line });
        if let (Some(answer), Some(id)) = (answer.as_object_mut(), id) {
            answer.insert("id".into(), id);
        }
        answer.to_string()
    })
}

/// All queries of a file; what is written appears whole or not at all.
fn answer_file(
    retriever: &Retriever,
    wanted: &Wanted,
    file: &Path,
    run: Option<&Path>,
) -> anyhow::Result<Outcome> {
    let file = if file.is_dir() { file.join("queries.jsonl") } else { file.to_owned() };
    let queries = beir::read_queries(&file)?;
    let mut lines = String::new();
    for batch in queries.chunks(BATCH) {
        let texts: Vec<&str> = batch.iter().map(|query| query.text.as_str()).collect();
        for (Query { id, .. }, answer) in batch.iter().zip(retriever.query_batch(&texts, wanted.clone())?) {
            for (rank, hit) in (1..).zip(answer.results) {
                writeln!(lines, "{id} Q0 {} {rank} {} rabtriever", hit.id, hit.score)?;
            }
        }
    }
    match run {
        Some(run) => files::write_atomic(run, |writer| writer.write_all(lines.as_bytes()))?,
        None => io::stdout().write_all(lines.as_bytes()).context("cannot write to stdout")?,
    }
    Ok(Outcome::Done)
}

/// Rank, probability, id and title on a line, the text below.
fn for_people(answer: &Answer) -> String {
    let mut page = String::new();
    for (rank, hit) in (1..).zip(&answer.results) {
        page +=
            &format!("{rank:>3}  {:>5.1} %  {}  {}", 100.0 * hit.probability, bar(hit.probability), hit.id);
        if !hit.title.is_empty() {
            page += &format!("  {}", hit.title);
        }
        page.push('\n');
        for line in hit.text.lines() {
            page += &format!("     {line}\n");
        }
        if !hit.metadata.is_empty() {
            let fields = hit.metadata.iter().map(|(name, value)| match value {
                Value::String(text) => format!("{name}={text}"),
                value => format!("{name}={value}"),
            });
            page += &format!("     [{}]\n", fields.collect::<Vec<_>>().join(", "));
        }
        if let Some(Explanation { query, pair, scale, bias }) = hit.explanation {
            page += &format!(
                "     score {:.3} = query {query:.3} + pair {pair:.3}; probability = sigmoid({scale:.3} x pair {bias:+.3})\n",
                hit.score
            );
        }
    }
    page
}

/// Ten characters, eighths of a character fine.
fn bar(probability: f32) -> String {
    const EIGHTHS: [char; 8] = [' ', '▏', '▎', '▍', '▌', '▋', '▊', '▉'];
    let eighths = (80.0 * probability.clamp(0.0, 1.0)).round() as usize;
    let mut bar = "█".repeat(eighths / 8);
    if eighths < 80 {
        bar.push(EIGHTHS[eighths % 8]);
    }
    format!("{bar}{}", " ".repeat(10usize.saturating_sub(bar.chars().count())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use runtime::retriever::{Hit, SearchPath, Timing};

    /// Columns that jump are hard to read, and a probability of NaN must not panic.
    #[test]
    fn bars_are_ten_wide() {
        assert_eq!(bar(0.0), "          ");
        assert_eq!(bar(1.0), "██████████");
        assert_eq!(bar(0.5), "█████     ");
        assert_eq!(bar(0.51), "█████▏    ");
        for probability in [f32::NAN, -1.0, 0.999, 2.0, 0.013] {
            assert_eq!(bar(probability).chars().count(), 10, "{probability}");
        }
    }

    /// A mistyped field finds nothing, like a right one that nothing passes: whoever is not told looks for the fault elsewhere.
    #[test]
    fn fields_that_no_document_has_are_told() {
        let filter = Filter::parse("shelf=left and lamp!=2").unwrap();
        let known: Facets = [("shelf".to_owned(), vec![(json!("left"), 1)])].into();
        assert_eq!(
            unknown_fields(&filter, &known).unwrap(),
            "no document has a field `lamp`; there are `shelf`"
        );
        let told = unknown_fields(&filter, &Facets::new()).unwrap();
        assert_eq!(told, "no document has a field `lamp`, `shelf`; none has metadata");
        let sent = json!({"$or": [{"shelf": 1}, {"$not": {"shelf": {"$exists": true}}}]});
        assert_eq!(unknown_fields(&Filter::from_json(&sent).unwrap(), &known), None);
    }

    /// Robot programs parse this line; a renamed field breaks them without a word.
    #[test]
    fn the_json_line_keeps_its_shape() {
        let (id, title, text) = ("d1".into(), "T".into(), "x".into());
        let metadata = [("room".to_owned(), json!("bath"))].into_iter().collect();
        let hit = Hit {
            id,
            title,
            text,
            metadata,
            score: 1.5,
            rerank_score: None,
            probability: 0.75,
            explanation: None,
        };
        let timing = Timing { tokenise: 0.5, encode: 2.0, search: 1.0, rerank: None };
        let answer = Answer { results: vec![hit], timing, path: SearchPath::Exact };
        let response = Response { id: Some(json!(7)), query: "q", answer };
        assert_eq!(
            serde_json::to_string(&response).unwrap(),
            r#"{"id":7,"query":"q","results":[{"id":"d1","title":"T","text":"x","metadata":{"room":"bath"},"score":1.5,"probability":0.75}],"timing_ms":{"tokenise":0.5,"encode":2.0,"search":1.0},"path":"exact"}"#
        );
    }
}
