use super::*;
use crate::document::Document;
use crate::store::{Changes, FILE_NAME, Record, StoreError, Writer};
use ed25519_dalek::VerifyingKey;
use models::student::Form;
use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags};
use std::fs;
use tempfile::TempDir;

const M: usize = 3;

fn index_key() -> IndexKey {
    IndexKey { document_digest: "a bundle's digest".into(), inner_dimensions: M, form: Form::Gated }
}

fn signing() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

fn options() -> Apply {
    Apply { trusted: vec![signing().verifying_key()], ..Apply::default() }
}

fn document(id: &str, text: &str) -> Document {
    let metadata = [("length".to_owned(), text.len().into())].into_iter().collect();
    Document { id: id.into(), title: format!("title of {id}"), text: text.into(), metadata }
}

fn put(dir: &Path, documents: &[Document]) {
    let mut writer = Writer::open(dir, &index_key()).unwrap();
    let vector = |d: &Document| (0..M).map(|i| (d.text.len() * (i + 1)) as f32).collect();
    let record = |document| Record { document, vector: Some(vector(document)) };
    writer.put(&documents.iter().map(record).collect::<Vec<_>>()).unwrap();
    writer.close().unwrap();
}

fn remove(dir: &Path, ids: &[&str]) {
    let mut writer = Writer::open(dir, &index_key()).unwrap();
    writer.remove(ids).unwrap();
    writer.close().unwrap();
}

/// A source with a history: documents put, changed, removed, put again.
struct Fleet {
    dir: TempDir,
}

impl Fleet {
    fn new() -> Self {
        let fleet = Self { dir: tempfile::tempdir().unwrap() };
        fs::create_dir(fleet.source()).unwrap();
        Writer::create(&fleet.source(), &index_key()).unwrap().close().unwrap();
        fleet.change();
        fleet
    }

    /// Six generations.
    fn change(&self) {
        let (source, at) = (self.source(), self.at(&self.source()).number);
        put(
            &source,
            &[document("a", &"x".repeat(at as usize + 1)), document("b", "bb"), document("c", "ccc")],
        );
        put(&source, &[document("b", &format!("changed at {at}")), document(&format!("n{at}"), "n")]);
        remove(&source, &["a", "c"]);
        put(&source, &[document("c", "again")]);
        // One that no robot will have seen.
        put(&source, &[document("brief", "here")]);
        remove(&source, &["brief"]);
    }

    fn at(&self, index: &Path) -> Generation {
        Store::open_any(index).unwrap().0.generation().unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn source(&self) -> PathBuf {
        self.path("source")
    }

    fn delta(&self, since: u64, name: &str) -> PathBuf {
        let out = self.path(name);
        snapshot(&self.source(), since, &out, &signing()).unwrap().unwrap();
        out
    }

    /// A robot that follows the source until now.
    fn robot(&self, name: &str) -> PathBuf {
        let full = self.delta(0, &format!("{name}.full"));
        let applied = apply(&self.path(name), &full, &options()).unwrap().0;
        assert_eq!(applied, Applied::From(None));
        self.path(name)
    }
}

/// Every row of every table.
fn rows(index: &Path) -> Vec<Vec<Value>> {
    let file = index.join(FILE_NAME);
    let connection = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let mut all = Vec::new();
    for table in ["meta", "documents", "removed", "generations", "sqlite_sequence"] {
        let mut statement = connection.prepare(&format!("SELECT * FROM {table} ORDER BY 1")).unwrap();
        let columns = statement.column_count();
        let row = |row: &rusqlite::Row<'_>| (0..columns).map(|i| row.get(i)).collect();
        all.extend(statement.query_map([], row).unwrap().map(Result::unwrap));
    }
    all
}

#[track_caller]
fn refused(index: &Path, file: &Path, options: &Apply, words: &[&str]) {
    let before = index.join(FILE_NAME).exists().then(|| rows(index));
    let message = apply(index, file, options).unwrap_err().to_string();
    for word in words {
        assert!(message.contains(word), "{message} lacks {word}");
    }
    assert_eq!(index.join(FILE_NAME).exists().then(|| rows(index)), before, "{message}");
}

/// The whole point: a robot has the source's rows, keys and history, by a full snapshot, by one delta from any generation, and
/// by a chain of them.
#[test]
fn a_robot_that_follows_has_the_sources_rows() {
    let fleet = Fleet::new();
    let robots: Vec<PathBuf> = (0..3).map(|i| fleet.robot(&format!("robot{i}"))).collect();
    assert_eq!(rows(&robots[0]), rows(&fleet.source()));
    let then = fleet.at(&fleet.source()).number;
    fleet.change();
    let first = fleet.delta(then, "first");
    let between = fleet.at(&fleet.source()).number;
    fleet.change();
    let second = fleet.delta(between, "second");
    let both = fleet.delta(then, "both");
    let from_zero = fleet.delta(0, "from-zero");

    let applied = |robot: &Path, file: &Path| apply(robot, file, &options()).unwrap().0;
    assert!(matches!(applied(&robots[0], &first), Applied::From(Some(at)) if at.number == then));
    assert_eq!(fleet.at(&robots[0]).number, between);
    // A delta that begins earlier than where the robot is: it goes on from there.
    assert!(matches!(applied(&robots[0], &both), Applied::From(Some(at)) if at.number == between));
    assert!(matches!(applied(&robots[1], &both), Applied::From(Some(_))));
    assert!(matches!(applied(&robots[2], &from_zero), Applied::From(Some(_))));
    for robot in &robots {
        assert_eq!(rows(robot), rows(&fleet.source()));
        let now = fleet.at(&fleet.source());
        // Again, and older ones: nothing to do.
        for file in [&first, &second, &both, &from_zero] {
            assert_eq!(applied(robot, file), Applied::Already(now.clone()));
        }
        assert_eq!(rows(robot), rows(&fleet.source()));
    }
    // A robot can be a source: its deltas are the source's, byte for byte.
    let again = fleet.path("again");
    snapshot(&robots[1], then, &again, &signing()).unwrap().unwrap();
    assert_eq!(fs::read(&again).unwrap(), fs::read(&both).unwrap());
}

/// Changes that were skipped would be missing for ever, and nobody would see it.
#[test]
fn deltas_out_of_order_are_refused() {
    let fleet = Fleet::new();
    let robot = fleet.robot("robot");
    let then = fleet.at(&fleet.source()).number;
    fleet.change();
    let between = fleet.at(&fleet.source()).number;
    let first = fleet.delta(then, "first");
    fleet.change();
    let second = fleet.delta(between, "second");
    let since = format!("--since {then}");
    refused(
        &robot,
        &second,
        &options(),
        &["second: begins after generation 12", "is at 6", "out of order", &since],
    );
    apply(&robot, &first, &options()).unwrap();
    apply(&robot, &second, &options()).unwrap();
    assert_eq!(rows(&robot), rows(&fleet.source()));
    refused(&fleet.path("empty"), &second, &options(), &["there is no index", "full snapshot"]);
    assert!(!fleet.path("empty").exists());
    let nothing = fleet.path("nothing");
    let now = fleet.at(&fleet.source()).number;
    assert_eq!(snapshot(&fleet.source(), now, &nothing, &signing()).unwrap(), None);
    let unknown = snapshot(&fleet.source(), now + 1, &nothing, &signing()).unwrap_err().to_string();
    assert!(unknown.contains("remembers no generation 19") && unknown.contains("up to 18"), "{unknown}");
    assert!(!nothing.exists());
    let exists = snapshot(&fleet.source(), 0, &first, &signing()).unwrap_err().to_string();
    assert!(exists.contains("already exists"), "{exists}");
}

/// A robot that learned something by itself is on a way of its own; what it learned is given up only when somebody says so.
#[test]
fn a_robot_with_changes_of_its_own_is_replaced_only_on_demand() {
    let fleet = Fleet::new();
    let (robot, ahead) = (fleet.robot("robot"), fleet.robot("ahead"));
    let then = fleet.at(&fleet.source()).number;
    put(&robot, &[document("own", "what the robot found out")]);
    (0..20).for_each(|i| put(&ahead, &[document("own", &format!("note {i}"))]));
    fleet.change();
    let (delta, full) = (fleet.delta(then, "delta"), fleet.delta(0, "full"));
    for robot in [&robot, &ahead] {
        for file in [&delta, &full] {
            refused(robot, file, &options(), &["has changes of its own", "--replace"]);
        }
        let replace = Apply { replace: true, ..options() };
        refused(robot, &delta, &replace, &["only a full snapshot"]);
        apply(robot, &full, &replace).unwrap();
        assert_eq!(rows(robot), rows(&fleet.source()));
        assert!(matches!(apply(robot, &delta, &options()).unwrap().0, Applied::Already(_)));
    }
}

/// A server follows its index through everything, also when another one takes its place at the same or an earlier number.
#[test]
fn a_reader_follows_a_replaced_index() {
    let fleet = Fleet::new();
    let robot = fleet.robot("robot");
    let full = fleet.delta(0, "full");
    for own in [1, 30] {
        (0..own).for_each(|i| put(&robot, &[document(&format!("own{i}"), "what the robot found out")]));
        let reader = Store::open(&robot, &index_key()).unwrap();
        let (mut rows, seen) = reader.load().unwrap();
        apply(&robot, &full, &Apply { replace: true, ..options() }).unwrap();
        assert!(matches!(reader.update(&mut rows, &seen), Err(StoreError::Forgotten { .. })));
        let now;
        (rows, now) = reader.load().unwrap();
        assert!(now == fleet.at(&fleet.source()) && now != seen);
        let anew = Store::open(&fleet.source(), &index_key()).unwrap().load().unwrap().0;
        let held = |rows: &crate::search::Rows| -> Vec<(i64, String, Vec<f32>)> {
            let live = rows.live().ones();
            live.map(|r| (rows.key(r), rows.id(r).to_owned(), rows.vector(r).to_vec())).collect()
        };
        assert_eq!(held(&rows), held(&anew));
        assert_eq!(reader.update(&mut rows, &now).unwrap(), (Changes::default(), now));
    }
}

/// What is not whole, not signed by whom the robot trusts, or for another encoder, changes nothing.
#[test]
fn bad_deltas_change_nothing() {
    let fleet = Fleet::new();
    let robot = fleet.robot("robot");
    let then = fleet.at(&fleet.source()).number;
    fleet.change();
    let delta = fleet.delta(then, "delta");
    let whole = fs::read(&delta).unwrap();
    let damaged = fleet.path("damaged");
    for place in (0..whole.len()).step_by(11) {
        let mut bytes = whole.clone();
        bytes[place] ^= 1;
        fs::write(&damaged, &bytes).unwrap();
        refused(&robot, &damaged, &options(), &["damaged"]);
        fs::write(&damaged, &whole[..place]).unwrap();
        refused(&robot, &damaged, &options(), &["damaged", "cut off"]);
    }
    let strange = |seed: u8| SigningKey::from_bytes(&[seed; 32]).verifying_key();
    let trust = |trusted: Vec<VerifyingKey>| Apply { trusted, ..Apply::default() };
    refused(
        &robot,
        &delta,
        &trust(vec![strange(1), strange(2)]),
        &["delta: is signed with key", "not trusted"],
    );
    refused(&robot, &delta, &trust(vec![]), &["not trusted"]);
    for (other, words) in [
        (IndexKey { document_digest: "another".into(), ..index_key() }, "document digest a bundle's"),
        (IndexKey { inner_dimensions: 5, ..index_key() }, "number of dimensions 3"),
        (IndexKey { form: Form::Relu, ..index_key() }, "predictor form gated"),
    ] {
        let expected = Apply { expected: Some(other.clone()), ..options() };
        refused(&robot, &delta, &expected, &["for another encoder", words, "this bundle's"]);
        let index = fleet.path(&format!("other{}", other.inner_dimensions));
        fs::create_dir_all(&index).unwrap();
        let _ = fs::remove_file(index.join(FILE_NAME));
        Writer::create(&index, &other).unwrap().close().unwrap();
        let full = fleet.path("robot.full");
        let replace = Apply { replace: true, ..options() };
        for options in [&options(), &replace] {
            refused(&index, &full, options, &["for another encoder", words, "the index's"]);
        }
    }
    // A robot that lost rows without a change of its history.
    let lossy = fleet.robot("lossy");
    put(&fleet.source(), &[document("last", "one more")]);
    let last = fleet.delta(fleet.at(&lossy).number, "last");
    let connection = Connection::open(lossy.join(FILE_NAME)).unwrap();
    connection.execute("DELETE FROM documents WHERE id = 'b'", []).unwrap();
    drop(connection);
    refused(&lossy, &last, &options(), &["rows of it were lost", "--replace"]);
    let full = fleet.delta(0, "full again");
    apply(&lossy, &full, &Apply { replace: true, ..options() }).unwrap();
    assert_eq!(rows(&lossy), rows(&fleet.source()));
    fs::write(fleet.path("file"), "x").unwrap();
    refused(&fleet.path("file"), &full, &options(), &["is not an index (a file)"]);
    fs::create_dir(fleet.path("full-dir")).unwrap();
    fs::write(fleet.path("full-dir/mine"), "x").unwrap();
    refused(&fleet.path("full-dir"), &full, &options(), &["it has no documents.sqlite"]);
    let writer = Writer::open(&robot, &index_key()).unwrap();
    refused(&robot, &delta, &options(), &["another process is changing this index"]);
    drop(writer);
    apply(&robot, &delta, &options()).unwrap();
}

/// A row that went bad on the source's disk must not become every robot's.
#[test]
fn a_damaged_source_sends_nothing() {
    for (column, words) in
        [("text = 'forged'", "fails its digest"), ("vector = zeroblob(12)", "fails its checksum")]
    {
        let fleet = Fleet::new();
        let connection = Connection::open(fleet.source().join(FILE_NAME)).unwrap();
        connection.execute(&format!("UPDATE documents SET {column} WHERE id = 'b'"), []).unwrap();
        drop(connection);
        let out = fleet.path("delta");
        let error = snapshot(&fleet.source(), 0, &out, &signing()).unwrap_err().to_string();
        assert!(error.contains(words) && error.contains("`b`"), "{error}");
        assert_eq!(fs::read_dir(fleet.dir.path()).unwrap().count(), 1);
    }
}
