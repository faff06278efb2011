//! What was acknowledged survives SIGKILL at any moment, and the index opens.
//!
//! The child (this same program) changes an index, each change following from its number alone, and says after each one
//! that it is done. The parent kills it at some moment and knows what must be there.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use models::student::Form;
use runtime::document::Document;
use runtime::index::{Graph, Measure, SIDECAR_NAME};
use runtime::rows_file;
use runtime::search::Rows;
use runtime::store::{IndexKey, Record, Store, StoreError, Writer};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const M: usize = 8;
const KILLS: u64 = 200;
const CHILD: &str = "RABTRIEVER_DURABILITY_CHILD";

fn key() -> IndexKey {
    IndexKey { document_digest: "durable".into(), inner_dimensions: M, form: Form::Gated }
}

/// SplitMix64.
fn random(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn document(change: u64, place: u64) -> Document {
    let number = random(change * 31 + place) % 60;
    let text = format!("text {change} of {number} {}", "x".repeat((random(change) % 3000) as usize));
    let metadata = [("change".to_owned(), change.into())].into_iter().collect();
    Document { id: format!("d{number}"), title: String::new(), text, metadata }
}

fn vector(document: &Document) -> Vec<f32> {
    (0..M).map(|i| (document.text.len() * (i + 1)) as f32).collect()
}

/// Documents that are put, or ids that are removed; at least one, so that every change is a generation.
enum Change {
    Put(Vec<Document>),
    Remove(Vec<String>),
}

fn change(number: u64, there: &BTreeMap<String, Document>) -> Change {
    if number % 3 == 2 && there.len() > 5 {
        let ids = there.keys().enumerate().filter(|(i, _)| random(number + *i as u64).is_multiple_of(4));
        let ids: Vec<String> = ids.map(|(_, id)| id.clone()).collect();
        if !ids.is_empty() {
            return Change::Remove(ids);
        }
    }
    let mut documents: Vec<Document> = (0..1 + random(number) % 6).map(|p| document(number, p)).collect();
    documents.sort_by(|a, b| a.id.cmp(&b.id));
    documents.dedup_by(|a, b| a.id == b.id);
    Change::Put(documents)
}

fn apply(number: u64, there: &mut BTreeMap<String, Document>) {
    match change(number, there) {
        Change::Put(documents) => there.extend(documents.into_iter().map(|d| (d.id.clone(), d))),
        Change::Remove(ids) => there.retain(|id, _| !ids.contains(id)),
    }
}

/// Change n makes generation n, so the generation says where to go on.
fn run_child(dir: &Path) {
    let mut writer = loop {
        match Writer::open(dir, &key()) {
            // The killed one's lock goes with the last of its file descriptors.
            Err(StoreError::Writer { .. }) => std::thread::sleep(Duration::from_millis(1)),
            opened => break opened.unwrap(),
        }
    };
    let (mut rows, generation) = writer.store().load().unwrap();
    let mut there: BTreeMap<String, Document> = contents(writer.store(), &rows);
    let mut seen = generation.clone();
    for number in generation.number + 1.. {
        match change(number, &there) {
            Change::Put(documents) => {
                let record = |document| Record { document, vector: Some(vector(document)) };
                writer.put(&documents.iter().map(record).collect::<Vec<_>>()).unwrap();
            }
            Change::Remove(ids) => assert_eq!(writer.remove(&ids).unwrap().len(), ids.len()),
        }
        println!("{number}");
        apply(number, &mut there);
        if number.is_multiple_of(7) {
            writer.compact().unwrap();
        }
        if number.is_multiple_of(4) {
            seen = writer.store().update(&mut rows, &seen).unwrap().1;
            Graph::build(&rows, Measure::Gated).unwrap().save(dir, &seen).unwrap();
            rows_file::save(dir, &rows, &seen).unwrap();
        }
    }
}

fn contents(store: &Store, rows: &Rows) -> BTreeMap<String, Document> {
    let document = |row| store.document(rows.key(row)).unwrap().unwrap();
    rows.live().ones().map(document).map(|d| (d.id.clone(), d)).collect()
}

/// A robot loses power while it learns; what it said it knows, it must know afterwards.
#[test]
fn nothing_acknowledged_is_lost_when_the_process_is_killed() {
    if let Some(dir) = std::env::var_os(CHILD) {
        return run_child(Path::new(&dir));
    }
    let dir = tempfile::tempdir().unwrap();
    Writer::create(dir.path(), &key()).unwrap().close().unwrap();
    let (mut there, mut at) = (BTreeMap::new(), 0u64);
    // Documents at each generation.
    let mut counts = vec![0];
    let (mut graphs, mut unsaid) = (0, 0);
    for kill in 0..KILLS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "nothing_acknowledged_is_lost_when_the_process_is_killed", "--nocapture"])
            .env(CHILD, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let first = said.by_ref().find_map(|line| line.parse::<u64>().ok());
        std::thread::sleep(Duration::from_micros(random(kill) % 20_000));
        child.kill().unwrap();
        child.wait().unwrap();
        let acknowledged = said.filter_map(|line| line.parse().ok()).last().or(first).unwrap();

        let store = Store::open(dir.path(), &key()).unwrap();
        let (rows, generation) = store.load().unwrap();
        let found = generation.number;
        assert!(
            found == acknowledged || found == acknowledged + 1,
            "kill {kill}: {acknowledged} changes were acknowledged, {found} are there"
        );
        unsaid += found - acknowledged;
        for number in at + 1..=found {
            apply(number, &mut there);
            counts.push(there.len());
        }
        at = found;
        assert_eq!(contents(&store, &rows), there, "kill {kill}, change {found}");
        for row in rows.live().ones() {
            assert_eq!(rows.vector(row), vector(&there[rows.id(row)]));
        }
        // Once there is a graph, a whole one of a moment of this index is there at any moment.
        if dir.path().join(SIDECAR_NAME).exists() {
            let (graph, of) = Graph::open(dir.path(), M, Measure::Gated).unwrap();
            assert!(store.has_been_at(&of).unwrap(), "kill {kill}: {of:?}, the index is at {generation:?}");
            assert_eq!(graph.len(), counts[of.number as usize], "kill {kill}: {of:?}");
            graphs += 1;
        }
        // So is a snapshot of the rows, which with what came after it is the database.
        if dir.path().join(rows_file::FILE_NAME).exists() {
            let (mut mapped, of) = rows_file::open(dir.path(), M, None).unwrap();
            assert!(store.has_been_at(&of).unwrap(), "kill {kill}: {of:?}, the index is at {generation:?}");
            store.update(&mut mapped, &of).unwrap();
            assert_eq!(contents(&store, &mapped), there, "kill {kill}, snapshot of {of:?}");
            assert!(mapped.live().ones().all(|row| mapped.vector(row) == vector(&there[mapped.id(row)])));
        }
    }
    eprintln!("{KILLS} kills, {at} changes, {unsaid} of them unsaid, a graph at {graphs} of them");
    assert!(at > KILLS && graphs > KILLS / 2);
}
