//! The library as a robot's program uses it: changes of any kind in any order leave what a plain model of an index would hold,
//! and nobody waits for a graph.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use models::fold::FoldedQuery;
use models::student::Form;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use runtime::bundle::Bundle;
use runtime::document::{Document, Metadata};
use runtime::filter::Filter;
use runtime::ingest::index_key;
use runtime::retriever::{Answer, Options, Retriever, SearchPath, Wanted};
use runtime::store::{Record, Writer};
use runtime::vectors::Precision;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, OnceLock};
use std::time::Duration;
use tempfile::TempDir;
use tests::model::{INNER_DIMENSIONS, Normal};
use tests::server::shared;

fn bundle() -> PathBuf {
    shared().path().join("bundle")
}

fn options(graph_above: usize) -> Options {
    // Rough vectors want so many candidates that in a small index the scan would always be the faster way.
    let vectors = Some(Precision::F32);
    Options { golden: 0, graph_above, vectors, notice: |_| (), ..Options::default() }
}

fn open(index: &Path, options: Options) -> Retriever {
    Retriever::open(&bundle(), index, options).unwrap()
}

fn writer(index: &Path) -> Writer {
    Writer::open(index, &index_key(&Bundle::open(&bundle()).unwrap())).unwrap()
}

fn named(i: usize) -> Document {
    Document { id: format!("d{i}"), title: String::new(), text: format!("text {i}"), ..Document::default() }
}

/// The vector of document i, made up: the storage does not care where it comes from. Of unit length, so that each answers best what
/// is asked about itself.
fn vector(i: usize) -> Vec<f32> {
    let vector = Normal::new(1000 + i as u64).vector(INNER_DIMENSIONS, 1.0);
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    vector.into_iter().map(|x| x / length).collect()
}

fn put(writer: &mut Writer, which: std::ops::Range<usize>) {
    let documents: Vec<Document> = which.clone().map(named).collect();
    let records: Vec<Record<'_>> = documents
        .iter()
        .zip(which)
        .map(|(document, i)| Record { document, vector: Some(vector(i)) })
        .collect();
    writer.put(&records).unwrap();
}

/// An index of so many made-up documents, without a graph.
fn made_up(documents: usize) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::create(dir.path(), &index_key(&Bundle::open(&bundle()).unwrap())).unwrap();
    put(&mut writer, 0..documents);
    writer.close().unwrap();
    dir
}

/// What document i answers better than any other.
fn about(i: usize) -> FoldedQuery {
    FoldedQuery::new(Form::Gated, vector(i), Vec::new(), 0.0)
}

fn asked(retriever: &Retriever, i: usize) -> Answer {
    retriever.answer(&[about(i)], &Wanted::from(5)).unwrap().swap_remove(0)
}

#[track_caller]
fn finds(retriever: &Retriever, i: usize, path: SearchPath) {
    let answer = asked(retriever, i);
    assert_eq!((answer.path, answer.results[0].id.as_str()), (path, format!("d{i}").as_str()));
}

/// A robot that starts with a new index, or whose graph is damaged, must answer now and not in half an hour; what changes
/// meanwhile must be in the graph when that is whole.
#[test]
fn nobody_waits_while_a_graph_is_built() {
    static MAY_BUILD: (Mutex<bool>, Condvar) = (Mutex::new(false), Condvar::new());
    static BUILDS: Mutex<usize> = Mutex::new(0);
    fn notice(message: &str) {
        if message.starts_with("building the graph") {
            *BUILDS.lock().unwrap() += 1;
            let waiting = MAY_BUILD.0.lock().unwrap();
            let waited =
                MAY_BUILD.1.wait_timeout_while(waiting, Duration::from_secs(60), |may| !*may).unwrap();
            assert!(!waited.1.timed_out(), "who asks waits for the graph");
        }
    }
    let dir = made_up(2000);
    let retriever = open(dir.path(), Options { notice, ..options(100) });
    finds(&retriever, 7, SearchPath::Exact);
    retriever.remove(&["d7"]).unwrap();
    retriever.add(&[Document { text: "the robot waits for nobody".into(), ..named(5000) }]).unwrap();
    put(&mut writer(dir.path()), 2000..2010);
    for i in 2000..2010 {
        finds(&retriever, i, SearchPath::Exact);
    }
    assert_ne!(asked(&retriever, 7).results[0].id, "d7");
    assert_eq!(retriever.stats().unwrap().graph_vectors, None);

    *MAY_BUILD.0.lock().unwrap() = true;
    MAY_BUILD.1.notify_all();
    retriever.settle();
    for i in (0..7).chain(8..20).chain(1990..2010) {
        finds(&retriever, i, SearchPath::Graph);
    }
    assert_ne!(asked(&retriever, 7).results[0].id, "d7");
    let stats = retriever.stats().unwrap();
    assert_eq!(stats.documents, 2010);
    drop(retriever);
    // It was saved: it is not built again.
    let again = open(dir.path(), Options { notice, ..options(100) });
    finds(&again, 2005, SearchPath::Graph);
    assert_eq!(*BUILDS.lock().unwrap(), 1);
}

/// Who asks one question should not wait for a large graph to be read; who asks more must be answered from it, with what has
/// changed in the meantime.
#[test]
fn a_large_graph_is_loaded_after_the_first_query() {
    static NOTICES: Mutex<Vec<String>> = Mutex::new(Vec::new());
    let notice = |message: &str| NOTICES.lock().unwrap().push(message.to_owned());
    let dir = made_up(2000);
    open(dir.path(), options(100)).settle();
    let aside = Options { graph_waited_for: 0, notice, ..options(100) };
    let retriever = open(dir.path(), aside.clone());
    finds(&retriever, 7, SearchPath::Exact);
    let mut other = writer(dir.path());
    put(&mut other, 2000..2003);
    other.remove(&["d7"]).unwrap();
    assert_eq!(asked(&retriever, 2001).results[0].id, "d2001");
    retriever.settle();
    for i in [0, 6, 8, 1999, 2000, 2002] {
        finds(&retriever, i, SearchPath::Graph);
    }
    assert_ne!(asked(&retriever, 7).results[0].id, "d7");
    assert_eq!(*NOTICES.lock().unwrap(), Vec::<String>::new(), "nothing is built anew");
    drop((retriever, other));
    // A damaged one is found out then, and built anew.
    let graph = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path());
    let graph = graph.into_iter().find(|path| path.extension().is_some_and(|e| e == "usearch")).unwrap();
    std::fs::write(&graph, "no graph").unwrap();
    let retriever = open(dir.path(), aside);
    finds(&retriever, 8, SearchPath::Exact);
    retriever.settle();
    finds(&retriever, 8, SearchPath::Graph);
    let notices = NOTICES.lock().unwrap().join("; ");
    assert!(notices.contains("damaged") && notices.contains("rebuilding the graph"), "{notices}");
}

/// Linking takes a thousand times as long as scoring: what others have changed is found at once, beside a graph that lacks it,
/// and linked when it is much.
#[test]
fn changes_are_found_before_they_are_linked() {
    let dir = made_up(3000);
    let retriever = open(dir.path(), options(100));
    retriever.settle();
    finds(&retriever, 11, SearchPath::Graph);
    let mut other = writer(dir.path());
    put(&mut other, 3000..3300);
    other.remove(&["d11", "d12"]).unwrap();
    // Document 13 says now what 9000 says.
    let (changed, says) = (named(13), vector(9000));
    other.put(&[Record { document: &changed, vector: Some(says) }]).unwrap();
    for i in (3000..3300).step_by(20) {
        finds(&retriever, i, SearchPath::Graph);
    }
    assert_eq!(asked(&retriever, 9000).results[0].id, "d13");
    let mut ids: Vec<String> = asked(&retriever, 9000).results.into_iter().map(|hit| hit.id).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 5, "a changed document is shown once: {ids:?}");
    assert_ne!(asked(&retriever, 11).results[0].id, "d11");
    assert_eq!(retriever.stats().unwrap().graph_vectors, Some(2998), "nothing is linked yet");

    put(&mut other, 3300..3900);
    other.close().unwrap();
    finds(&retriever, 3899, SearchPath::Graph);
    retriever.settle();
    assert_eq!(retriever.stats().unwrap().graph_vectors, Some(3898));
    for i in (3000..3900).step_by(50) {
        finds(&retriever, i, SearchPath::Graph);
    }
    drop(retriever);
    let again = open(dir.path(), options(100));
    finds(&again, 3333, SearchPath::Graph);
    assert_eq!(again.stats().unwrap().graph_vectors, Some(3898), "it was saved");
}

/// Whoever slept through more changes than are remembered reads all of it, and never shows what is gone.
#[test]
fn a_reader_that_is_too_late_reads_all_of_it() {
    let dir = made_up(500);
    let retriever = open(dir.path(), options(100));
    retriever.settle();
    let mut other = writer(dir.path());
    other.keep_generations(2);
    for i in 0..6usize {
        other.remove(&[format!("d{i}")]).unwrap();
        put(&mut other, 600 + i..601 + i);
    }
    for i in 0..6 {
        assert_ne!(asked(&retriever, i).results[0].id, format!("d{i}"));
        assert_eq!(asked(&retriever, 600 + i).results[0].id, format!("d{}", 600 + i));
    }
    retriever.settle();
    let stats = retriever.stats().unwrap();
    assert_eq!((stats.documents, stats.graph_vectors), (500, Some(500)));
}

/// Two retrievers of one process, as a server has that reloads, take turns; another process is another matter.
#[test]
fn retrievers_of_one_process_take_turns() {
    let dir = made_up(10);
    let (first, second) = (open(dir.path(), options(100)), open(dir.path(), options(100)));
    let text = |id: &str| Document {
        text: format!("The robot knows {id}."),
        ..Document { id: id.into(), ..named(0) }
    };
    let (asks, named) = (&second, &text);
    std::thread::scope(|scope| {
        let mut other = None;
        let mut progress = |_| {
            // The first one holds the index now.
            other.get_or_insert_with(|| scope.spawn(move || asks.add(&[named("second")]).unwrap()));
        };
        first.add_with(&[text("first")], &mut progress).unwrap();
        assert_eq!(other.unwrap().join().unwrap().added, 1);
    });
    assert_eq!(first.stats().unwrap().documents, 12);
    let held = writer(dir.path());
    let refused = first.remove(&["first"]).unwrap_err().to_string();
    assert!(refused.contains("another process is changing this index"), "{refused}");
    drop(held);
    assert_eq!(first.remove(&["first"]).unwrap(), 1);
}

/// What a program may do to an index.
#[derive(Debug, Clone)]
enum Step {
    /// Id, text, metadata.
    Add(Vec<(u8, u16, Metadata)>),
    Remove(Vec<u8>),
    /// By another process.
    AddElsewhere(u8, u16),
    RemoveElsewhere(u8),
    /// Query, number of results, condition.
    Ask(u16, usize, Option<Filter>),
    Reopen,
    Save,
    Compact,
}

/// Texts that are encoded; from this number on, they are made-up documents.
const TEXTS: u16 = 12;
/// Made-up documents that are there from the beginning where a graph is wanted: with fewer, every one is scored.
const CROWD: usize = 200;

fn metadata() -> impl Strategy<Value = Metadata> {
    let value = prop_oneof![
        (0..3i64).prop_map(|n| json!(n)),
        "[ab]".prop_map(|s| json!(s)),
        prop::collection::vec((0..3i64).prop_map(|n| json!(n)), 0..3).prop_map(|items| json!(items)),
        (0..3i64).prop_map(|n| json!({ "y": n })),
    ];
    prop::collection::btree_map("[xz]", value, 0..3).prop_map(|fields| fields.into_iter().collect())
}

fn condition() -> impl Strategy<Value = Filter> {
    let field = prop_oneof![Just("x"), Just("z"), Just("x.y")];
    let test = prop_oneof![
        (0..3i64).prop_map(|n| json!({ "$gte": n })),
        (0..3i64).prop_map(|n| json!({ "$ne": n })),
        Just(json!({ "$in": [0, "a"] })),
        any::<bool>().prop_map(|there| json!({ "$exists": there })),
    ];
    let one = (field, test).prop_map(|(field, test)| Filter::from_json(&json!({ field: test })).unwrap());
    prop_oneof![
        3 => one.clone(),
        1 => prop::collection::vec(one.clone(), 0..3).prop_map(Filter::Any),
        1 => one.prop_map(|filter| Filter::Not(Box::new(filter))),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let id = 0..16u8;
    prop_oneof![
        4 => prop::collection::btree_map(id.clone(), (0..TEXTS, metadata()), 1..5)
            .prop_map(|d| Step::Add(d.into_iter().map(|(id, (text, metadata))| (id, text, metadata)).collect())),
        2 => prop::collection::vec(id.clone(), 0..4).prop_map(Step::Remove),
        2 => (id.clone(), 0..TEXTS).prop_map(|(id, text)| Step::AddElsewhere(id, text)),
        1 => id.prop_map(Step::RemoveElsewhere),
        6 => (0..TEXTS, prop_oneof![1..4usize, Just(40)], prop::option::of(condition()))
            .prop_map(|(text, k, filter)| Step::Ask(text, k, filter)),
        1 => Just(Step::Reopen),
        1 => Just(Step::Save),
        1 => Just(Step::Compact),
    ]
}

fn words(text: u16) -> String {
    match text.checked_sub(TEXTS) {
        Some(i) => named(i.into()).text,
        None => format!(
            "the robot {} number {text}",
            ["wipes", "lights", "brings", "opens"][usize::from(text % 4)]
        ),
    }
}

fn vector_of(text: u16) -> Vec<f32> {
    text.checked_sub(TEXTS).map_or_else(|| encoded(text).0.clone(), |i| vector(i.into()))
}

/// The vector of a text, as the encoder gives it alone; and a query about it.
fn encoded(text: u16) -> &'static (Vec<f32>, FoldedQuery) {
    static ENCODED: OnceLock<Vec<(Vec<f32>, FoldedQuery)>> = OnceLock::new();
    let all = ENCODED.get_or_init(|| {
        let dir = made_up(1);
        let retriever = open(dir.path(), options(100));
        let encoder = retriever.encoder();
        let both = |text: u16| {
            let text = words(text);
            let latent = encoder.documents(&[text.as_str()]).unwrap().swap_remove(0).latent;
            let vector = encoder.bundle().folded.document(&latent);
            (vector, encoder.fold_query(&encoder.query(&text).unwrap()))
        };
        (0..TEXTS).map(both).collect()
    });
    &all[usize::from(text)]
}

/// Text and metadata by id: all there is to an index.
type Model = BTreeMap<String, (u16, Metadata)>;

/// An answer is what scoring every document of the model gives, up to the rounding of batches, and where scores are equal within
/// that, any of them. A graph may miss one, and nothing else.
fn check(model: &Model, answer: &Answer, text: u16, k: usize, filter: Option<&Filter>) {
    const ROUNDING: f32 = 1e-3;
    let query = &encoded(text).1;
    let passing: BTreeMap<&str, f32> = model
        .iter()
        .filter(|(_, (_, metadata))| filter.is_none_or(|filter| filter.passes(metadata)))
        .map(|(id, (text, _))| (id.as_str(), query.score(&vector_of(*text))))
        .collect();
    assert_eq!(answer.results.len(), k.min(passing.len()), "{filter:?}");
    let mut seen: Vec<&str> = Vec::new();
    for hit in &answer.results {
        let (text, metadata) = &model[&hit.id];
        assert_eq!((&hit.text, &hit.metadata), (&words(*text), metadata));
        let expected = passing[hit.id.as_str()];
        assert!((hit.score - expected).abs() < ROUNDING, "{}: {} for {expected}", hit.id, hit.score);
        assert!(!seen.contains(&hit.id.as_str()), "{} twice", hit.id);
        seen.push(&hit.id);
    }
    assert!(answer.results.is_sorted_by(|a, b| a.score >= b.score));
    if let (SearchPath::Exact, Some(worst)) = (answer.path, answer.results.last()) {
        for (id, score) in passing.iter().filter(|(id, _)| !seen.contains(id)) {
            assert!(
                *score <= worst.score + ROUNDING,
                "{id} is missing: {score}, the last has {}",
                worst.score
            );
        }
    }
}

/// Takes the steps, and tells how many questions a graph answered.
fn run(steps: &[Step], graph_above: usize) -> usize {
    let mut by_graph = 0;
    let id = |id: u8| format!("i{id}");
    let document = |which: u8, text: u16, metadata: &Metadata| Document {
        id: id(which),
        title: String::new(),
        text: words(text),
        metadata: metadata.clone(),
    };
    let dir = tempfile::tempdir().unwrap();
    let key = index_key(&Bundle::open(&bundle()).unwrap());
    let mut made = Writer::create(dir.path(), &key).unwrap();
    let mut model = Model::new();
    if graph_above < CROWD {
        put(&mut made, 0..CROWD);
        model.extend((0..CROWD).map(|i| (named(i).id, (TEXTS + i as u16, Metadata::new()))));
    }
    made.close().unwrap();
    let mut retriever = open(dir.path(), options(graph_above));
    for step in steps {
        match step {
            Step::Add(added) => {
                let documents: Vec<Document> =
                    added.iter().map(|(i, text, m)| document(*i, *text, m)).collect();
                let report = retriever.add(&documents).unwrap();
                let known = added.iter().filter(|(i, ..)| model.contains_key(&id(*i))).count();
                let same =
                    added.iter().filter(|(i, text, m)| model.get(&id(*i)) == Some(&(*text, m.clone())));
                assert_eq!((report.added, report.unchanged), (added.len() - known, same.count()));
                model.extend(added.iter().map(|(i, text, m)| (id(*i), (*text, m.clone()))));
            }
            Step::Remove(ids) => {
                let ids: Vec<String> = ids.iter().map(|i| id(*i)).collect();
                let there = ids.iter().filter(|id| model.remove(*id).is_some()).count();
                assert_eq!(retriever.remove(&ids).unwrap(), there);
            }
            Step::AddElsewhere(i, text) => {
                let mut writer = Writer::open(dir.path(), &key).unwrap();
                let document = document(*i, *text, &Metadata::new());
                writer.put(&[Record { document: &document, vector: Some(vector_of(*text)) }]).unwrap();
                writer.close().unwrap();
                model.insert(id(*i), (*text, Metadata::new()));
            }
            Step::RemoveElsewhere(i) => {
                let mut writer = Writer::open(dir.path(), &key).unwrap();
                let there = model.remove(&id(*i)).is_some();
                assert_eq!(writer.remove(&[id(*i)]).unwrap().len(), usize::from(there));
            }
            Step::Ask(text, k, filter) => {
                let wanted = Wanted { k: *k, filter: filter.clone(), explain: false };
                let answer = retriever.answer(&[encoded(*text).1.clone()], &wanted).unwrap().swap_remove(0);
                check(&model, &answer, *text, *k, filter.as_ref());
                by_graph += usize::from(answer.path == SearchPath::Graph);
            }
            Step::Reopen => {
                drop(retriever);
                retriever = open(dir.path(), options(graph_above));
            }
            Step::Save => {
                retriever.save().unwrap();
                retriever.settle();
            }
            Step::Compact => retriever.compact().unwrap(),
        }
        assert_eq!(retriever.stats().unwrap().documents, model.len());
    }
    for (id, (text, metadata)) in &model {
        let found = retriever.document(id).unwrap().unwrap();
        assert_eq!((found.text, &found.metadata), (words(*text), metadata));
    }
    by_graph
}

/// Any order of changes, by this process and others, of restarts, saves and questions: the answers are those of a plain model.
#[test]
fn an_index_is_what_a_plain_model_of_it_is() {
    let config = Config { cases: 30, max_shrink_iters: 100, failure_persistence: None, ..Config::default() };
    let steps = prop::collection::vec(step(), 1..20);
    let by_graph = std::cell::Cell::new(0);
    // With a graph as well: what it lacks and what is gone must not show.
    let result = TestRunner::new(config).run(&(steps, any::<bool>()), |(steps, graph)| {
        by_graph.set(by_graph.get() + run(&steps, if graph { 100 } else { 1000 }));
        Ok(())
    });
    result.unwrap();
    assert!(by_graph.get() > 0, "no question was answered from a graph");
}
