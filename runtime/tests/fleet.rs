//! A robot that is killed while it takes a delta has what it had, or what it was to have, and takes the delta again.
//!
//! The child (this same program) applies a delta and is killed at some moment; the parent compares every row.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use ed25519_dalek::SigningKey;
use models::student::Form;
use runtime::delta::{self, Apply};
use runtime::document::Document;
use runtime::store::{FILE_NAME, IndexKey, Record, Store, Writer};
use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const M: usize = 64;
const KILLS: u64 = 60;
const CHILD: &str = "RABTRIEVER_FLEET_CHILD";

fn key() -> IndexKey {
    IndexKey { document_digest: "killed".into(), inner_dimensions: M, form: Form::Gated }
}

fn signing() -> SigningKey {
    SigningKey::from_bytes(&[3; 32])
}

fn options() -> Apply {
    Apply { trusted: vec![signing().verifying_key()], ..Apply::default() }
}

/// SplitMix64.
fn random(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Batches that put 64 documents each, old and new ones, and remove some.
fn change(writer: &mut Writer, batches: std::ops::Range<u64>) {
    for batch in batches {
        let document = |place: u64| {
            let text = format!("text {batch} {place} {}", "x".repeat((random(batch + place) % 900) as usize));
            let id = format!("d{}", (batch * 48 + place) % 2000);
            Document { id, text, ..Document::default() }
        };
        let documents: Vec<Document> = (0..64).map(document).collect();
        let vector = |d: &Document| (0..M).map(|i| (d.text.len() * (i + 1)) as f32).collect();
        let record = |document| Record { document, vector: Some(vector(document)) };
        writer.put(&documents.iter().map(record).collect::<Vec<_>>()).unwrap();
        writer.remove(&[format!("d{}", batch * 48), format!("d{}", batch * 48 + 1)]).unwrap();
    }
}

/// Every row of every table, after a look at every checksum.
fn rows(index: &Path) -> Vec<Vec<Value>> {
    Store::open(index, &key()).unwrap().load().unwrap();
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
    let connection = Connection::open_with_flags(index.join(FILE_NAME), flags).unwrap();
    let mut all = Vec::new();
    for table in ["meta", "documents", "removed", "generations", "sqlite_sequence"] {
        let mut statement = connection.prepare(&format!("SELECT * FROM {table} ORDER BY 1")).unwrap();
        let columns = statement.column_count();
        let row = |row: &rusqlite::Row<'_>| (0..columns).map(|i| row.get(i)).collect();
        all.extend(statement.query_map([], row).unwrap().map(Result::unwrap));
    }
    all
}

/// Starts a child that applies a delta, and kills it after a time that counts from when it begins.
fn killed(index: &Path, delta: &Path, after: Duration) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_killed_robot_is_before_or_after", "--nocapture"])
        .env(CHILD, format!("{}\n{}", index.display(), delta.display()))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let said = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(said.into_iter().any(|line| line.ends_with("begins")));
    std::thread::sleep(after);
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Between before and after there must be nothing: a robot in between would answer from rows that never stood side by side.
#[test]
fn a_killed_robot_is_before_or_after() {
    if let Some(paths) = std::env::var_os(CHILD) {
        let paths = paths.into_string().unwrap();
        let (index, delta) = paths.split_once('\n').unwrap();
        println!("begins");
        delta::apply(Path::new(index), Path::new(delta), &options()).unwrap();
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let source = path("source");
    fs::create_dir(&source).unwrap();
    let mut writer = Writer::create(&source, &key()).unwrap();
    change(&mut writer, 0..20);
    writer.close().unwrap();
    let delta = |since: u64, name: &str| -> PathBuf {
        delta::snapshot(&source, since, &path(name), &signing()).unwrap().unwrap();
        path(name)
    };
    let full = delta(0, "full");
    delta::apply(&path("before"), &full, &options()).unwrap();
    let then = Store::open(&source, &key()).unwrap().generation().unwrap().number;
    let mut writer = Writer::open(&source, &key()).unwrap();
    change(&mut writer, 20..50);
    writer.close().unwrap();
    let (before, after) = (rows(&path("before")), rows(&source));
    let (since, full) = (delta(then, "since"), delta(0, "full again"));

    let robot = path("robot");
    let fresh = |begun: bool| {
        let _ = fs::remove_dir_all(&robot);
        if begun {
            fs::create_dir(&robot).unwrap();
            fs::copy(path("before").join(FILE_NAME), robot.join(FILE_NAME)).unwrap();
        }
    };
    let mut moments = [[0; 2]; 2];
    for (begun, delta) in [(true, &since), (false, &full)] {
        fresh(begun);
        let started = Instant::now();
        delta::apply(&robot, delta, &options()).unwrap();
        let whole = started.elapsed().as_micros() as u64;
        for kill in 0..KILLS {
            fresh(begun);
            killed(&robot, delta, Duration::from_micros(random(kill) % (whole + whole / 4)));
            let found = robot.join(FILE_NAME).exists().then(|| rows(&robot));
            let is_after = found.as_ref() == Some(&after);
            let expected = begun.then_some(&before);
            assert!(is_after || found.as_ref() == expected, "kill {kill}: between before and after");
            moments[usize::from(begun)][usize::from(is_after)] += 1;
            delta::apply(&robot, delta, &options()).unwrap();
            assert_eq!(rows(&robot), after, "kill {kill}");
        }
    }
    let [[absent, made], [before, after]] = moments;
    eprintln!("killed before and after: {before} and {after} with an index, {absent} and {made} without");
}
