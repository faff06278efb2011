use super::*;
use std::fs;
use tempfile::TempDir;

const M: usize = 4;

fn key() -> IndexKey {
    IndexKey { document_digest: "d1".into(), inner_dimensions: M, form: Form::Relu }
}

fn document(id: &str, text: &str) -> Document {
    Document { id: id.into(), title: format!("title of {id}"), text: text.into(), metadata: Metadata::new() }
}

fn put(writer: &mut Writer, documents: &[Document]) -> Vec<i64> {
    let vector = |d: &Document| (0..M).map(|i| (d.text.len() + i) as f32).collect();
    let records: Vec<Record<'_>> =
        documents.iter().map(|document| Record { document, vector: Some(vector(document)) }).collect();
    writer.put(&records).unwrap()
}

fn index(documents: &[Document]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::create(dir.path(), &key()).unwrap();
    put(&mut writer, documents);
    writer.close().unwrap();
    dir
}

/// The whole point: what was acknowledged is there for the next process, vectors and texts.
#[test]
fn documents_come_back_as_they_were_stored() {
    let dir = index(&[document("a", "x"), document("b", "yy")]);
    let store = Store::open(dir.path(), &key()).unwrap();
    let (rows, generation) = store.load().unwrap();
    assert_eq!((rows.len(), generation.number, store.count().unwrap()), (2, 1, 2));
    assert_eq!((rows.id(0), &*rows.vector(1)), ("a", [2.0, 3.0, 4.0, 5.0].as_slice()));
    assert_eq!(store.document(rows.key(1)).unwrap().unwrap(), document("b", "yy"));
    assert_eq!(store.document(99).unwrap(), None);
}

/// Re-running an index job over the same file must cost nothing; a changed text must not leave its old vector behind.
#[test]
fn unchanged_documents_are_recognised_and_changed_ones_replaced() {
    let dir = index(&[document("a", "x"), document("b", "yy")]);
    let mut writer = Writer::open(dir.path(), &key()).unwrap();
    let wanted = [document("a", "x"), document("b", "changed"), document("c", "new")];
    assert_eq!(writer.plan(&wanted).unwrap(), [Change::Unchanged, Change::Replaced, Change::Added]);
    let keys = put(&mut writer, &wanted[1..]);
    assert!(keys[0] == 2 && keys[1] > 2, "a replaced document keeps its key: {keys:?}");
    let (rows, generation) = writer.store().load().unwrap();
    assert_eq!((rows.len(), generation.number), (3, 2));
    assert_eq!(rows.vector(1)[0], 7.0);
    assert_eq!(writer.plan(&wanted).unwrap(), [Change::Unchanged; 3]);
}

/// A batch with one bad vector must leave no trace, or a retry would see half of it as done.
#[test]
fn a_failed_batch_leaves_nothing() {
    let dir = index(&[document("a", "x")]);
    let mut writer = Writer::open(dir.path(), &key()).unwrap();
    let (good, bad) = (document("b", "y"), document("c", "z"));
    for vector in [vec![1.0; M + 1], vec![f32::NAN; M]] {
        let records = [
            Record { document: &good, vector: Some(vec![0.0; M]) },
            Record { document: &bad, vector: Some(vector) },
        ];
        assert!(writer.put(&records).unwrap_err().to_string().contains("document `c`: its vector has"));
    }
    assert_eq!((writer.store().count().unwrap(), writer.store().generation().unwrap().number), (1, 1));
}

/// Scores across two bundles are meaningless numbers that look fine.
#[test]
fn another_bundles_index_is_refused_by_name() {
    let dir = index(&[document("a", "x")]);
    let other = [
        (IndexKey { document_digest: "d2".into(), ..key() }, "document digest d1, this bundle's is d2"),
        (IndexKey { inner_dimensions: 8, ..key() }, "number of dimensions 4"),
        (IndexKey { form: Form::Gated, ..key() }, "predictor form relu"),
    ];
    for (key, expected) in other {
        let message = Store::open(dir.path(), &key).err().unwrap().to_string();
        assert!(message.contains("made with another bundle") && message.contains(expected), "{message}");
        assert!(matches!(Writer::open(dir.path(), &key), Err(StoreError::OtherBundle { .. })));
    }
}

/// A server that saves its graph for a moment must not refuse who adds a document at that moment.
#[test]
fn a_writer_waits_a_moment_for_another() {
    let dir = index(&[document("a", "x")]);
    let first = Writer::open(dir.path(), &key()).unwrap();
    assert!(matches!(
        Writer::open_within(dir.path(), &key(), std::time::Duration::ZERO),
        Err(StoreError::Writer { .. })
    ));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(std::time::Duration::from_millis(200));
            drop(first);
        });
        put(&mut Writer::open(dir.path(), &key()).unwrap(), &[document("b", "y")]);
    });
    assert_eq!(Store::open(dir.path(), &key()).unwrap().count().unwrap(), 2);
}

/// Two writers would overwrite each other's graph; readers must go on.
#[test]
fn one_writer_many_readers() {
    let dir = index(&[document("a", "x")]);
    let mut writer = Writer::open(dir.path(), &key()).unwrap();
    let second = Writer::open(dir.path(), &key()).err().unwrap().to_string();
    assert!(second.contains("another process is changing this index"), "{second}");
    let reader = Store::open(dir.path(), &key()).unwrap();
    put(&mut writer, &[document("b", "y")]);
    assert_eq!(reader.count().unwrap(), 2);
    assert_eq!(Store::open(dir.path(), &key()).unwrap().load().unwrap().0.len(), 2);
    drop(writer);
    Writer::open(dir.path(), &key()).unwrap();
}

/// An index on a read-only partition (the usual place on a robot) must open: there is no log to be written there.
#[test]
fn an_index_opens_where_nothing_can_be_written() {
    let dir = index(&[document("a", "x")]);
    let store = Store::open_immutable(&dir.path().join(FILE_NAME), Some(&key())).unwrap();
    assert_eq!(store.load().unwrap().0.len(), 1);
    assert_eq!(place::percent_encoded(Path::new("/a b/ä?")), "/a%20b/%C3%A4%3F");
}

/// Read-only for a server need not be read-only for whoever brings new documents: what they bring must be found, while they
/// still write and afterwards.
#[test]
fn what_others_write_is_found_where_we_cannot_write() {
    let dir = index(&[document("a", "x")]);
    let open = || Store::open_immutable(&dir.path().join(FILE_NAME), Some(&key())).unwrap();
    let (mut early, mut late) = (open(), open());
    let mut writer = Writer::open(dir.path(), &key()).unwrap();
    put(&mut writer, &[document("b", "y")]);
    assert_eq!((early.count().unwrap(), late.count().unwrap()), (1, 1), "they read without the log");
    early.follow(&key());
    assert_eq!(early.count().unwrap(), 2);
    drop(early);
    writer.close().unwrap();
    assert!(!place::has_log(late.file()), "the last one took the log away");
    late.follow(&key());
    assert_eq!(late.count().unwrap(), 2);
    assert!(!place::is_read_only(dir.path()));
    assert_eq!(
        fs::read_dir(dir.path())
            .unwrap()
            .filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().starts_with(".writable"))
            .count(),
        0
    );
}

/// An index that remembered every change would grow for ever; a reader that missed what is forgotten must be told so, or it
/// would answer with documents that are gone.
#[test]
fn old_generations_are_forgotten_and_late_readers_told() {
    let dir = index(&[document("a", "x"), document("b", "yy"), document("c", "zzz")]);
    let reader = Store::open(dir.path(), &key()).unwrap();
    let (mut rows, seen) = reader.load().unwrap();
    let mut writer = Writer::open(dir.path(), &key()).unwrap();
    writer.keep_generations(3);
    writer.remove(&["b"]).unwrap();
    for step in 0..3usize {
        put(&mut writer, &[document("a", &"x".repeat(step))]);
        let mut others = Rows::new(rows.dimensions());
        let late = reader.update(&mut others, &seen).map(|(changes, _)| changes.removed.len());
        match step {
            // At generation 5 the changes after generation 2 are known, the removal of b is not among them.
            0 | 1 => assert_eq!(late.unwrap(), 1, "{step}"),
            _ => {
                let message = late.unwrap_err().to_string();
                assert!(
                    message.contains("after generation 1 is no longer known, only what changed after 2"),
                    "{message}"
                );
            }
        }
    }
    assert_eq!((reader.oldest_generation().unwrap(), reader.generation().unwrap().number), (2, 5));
    assert!(matches!(reader.changes_since(1), Err(StoreError::Forgotten { .. })));
    assert!(!reader.has_been_at(&seen).unwrap());
    // From the oldest one on, a reader still gets there; from nothing, everybody does.
    assert_eq!(reader.changes_since(2).unwrap(), Changes { put: vec![1], removed: vec![] });
    rows.remove(2);
    let at = Generation { number: 2, digest: reader.digest_at(2).unwrap().unwrap() };
    assert_eq!(reader.update(&mut rows, &at).unwrap().1.number, 5);
    let (anew, _) = reader.load().unwrap();
    assert_eq!((rows.len(), rows.vector(0)), (anew.len(), anew.vector(0)));
    assert_eq!(reader.changes_since(0).unwrap().put, [1, 3]);
    let kept = |table: &str| -> i64 {
        let count = format!("SELECT count(*) FROM {table}");
        reader.connection.query_row(&count, [], |row| row.get(0)).unwrap()
    };
    assert_eq!((kept("generations"), kept("removed")), (4, 0));
}

/// Another index in the place of this one: whoever has this one open must know.
#[test]
fn an_index_that_was_replaced_knows_it() {
    let parent = tempfile::tempdir().unwrap();
    let (here, there) = (parent.path().join("here"), parent.path().join("there"));
    for dir in [&here, &there] {
        fs::create_dir(dir).unwrap();
        Writer::create(dir, &key()).unwrap().close().unwrap();
    }
    let store = Store::open(&here, &key()).unwrap();
    assert!(store.is_in_place());
    fs::rename(&here, parent.path().join("old")).unwrap();
    assert!(!store.is_in_place());
    fs::rename(&there, &here).unwrap();
    assert!(!store.is_in_place());
    assert_ne!(Store::open(&here, &key()).unwrap().identity(), store.identity());
    assert_eq!(store.count().unwrap(), 0);
}

/// The bytes with one bit changed in this pattern (everywhere: pages that were split keep old copies in unused space).
fn flipped(bytes: &[u8], pattern: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for place in 0..bytes.len().saturating_sub(pattern.len()) {
        if bytes[place..].starts_with(pattern) {
            bytes[place + 2] ^= 1;
        }
    }
    bytes
}

/// Every kind of wrong directory and damaged file is one sentence with the file's name; none is answered from.
#[test]
fn missing_and_damaged_indexes_are_named() {
    let empty = tempfile::tempdir().unwrap();
    #[track_caller]
    fn message(dir: &Path) -> String {
        match Store::open(dir, &key()).and_then(|store| store.load()) {
            Ok(_) => panic!("opened {}", dir.display()),
            Err(error) => error.to_string(),
        }
    }
    assert!(message(&empty.path().join("absent")).contains("is not an index (no such directory)"));
    assert!(message(empty.path()).contains("it has no documents.sqlite"));

    let text = |i| if i == 57 { "fifty-seven".to_owned() } else { "text ".repeat(20) };
    let documents: Vec<Document> = (0..200).map(|i| document(&i.to_string(), &text(i))).collect();
    let dir = index(&documents);
    let file = dir.path().join(FILE_NAME);
    let whole = fs::read(&file).unwrap();

    fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    assert!(message(dir.path()).contains("documents.sqlite: damaged:"), "truncated");
    fs::write(&file, "not a database at all, but long enough to have had a header there").unwrap();
    assert!(message(dir.path()).contains("documents.sqlite: damaged:"), "text");
    fs::write(&file, "").unwrap();
    assert!(message(dir.path()).contains("documents.sqlite: damaged:"), "empty");

    fs::write(&file, &whole).unwrap();
    Connection::open(&file)
        .unwrap()
        .execute("UPDATE meta SET value = 9 WHERE name = 'format_version'", [])
        .unwrap();
    assert!(message(dir.path()).contains("format version 9, this program reads version 2"));

    for log in ["-wal", "-shm"] {
        let _ = fs::remove_file(dir.path().join(format!("{FILE_NAME}{log}")));
    }
    // One bit of one vector (the text of document 57 has 11 bytes, so its numbers are 11 to 14).
    let pattern: Vec<u8> = (0..M).flat_map(|i| (11.0 + i as f32).to_le_bytes()).collect();
    fs::write(&file, flipped(&whole, &pattern)).unwrap();
    let found = message(dir.path());
    assert!(found.contains("the vector of document `57` fails its checksum"), "{found}");

    // One bit of one text: seen when the text is shown.
    fs::write(&file, flipped(&whole, b"fifty-seven")).unwrap();
    let store = Store::open(dir.path(), &key()).unwrap();
    let (rows, _) = store.load().unwrap();
    let damaged: Vec<String> = (0..rows.len())
        .filter_map(|row| store.document(rows.key(row)).err())
        .map(|e| e.to_string())
        .collect();
    assert_eq!(damaged.len(), 1);
    assert!(damaged[0].contains("fails its digest"), "{}", damaged[0]);
}

/// A duplicate within one call would make `added` and `replaced` lie.
#[test]
fn duplicate_ids_are_found() {
    assert_eq!(duplicate_id(&[document("a", "x"), document("b", "y"), document("a", "z")]), Some("a"));
    assert_eq!(duplicate_id(&[document("a", "x"), document("b", "y")]), None);
}

fn labelled(id: &str, text: &str, room: &str) -> Document {
    let metadata = [("room".to_owned(), room.into())].into_iter().collect();
    Document { metadata, ..document(id, text) }
}

/// Metadata is part of the document: it comes back, it is filtered by, and changing it alone costs no encoding.
#[test]
fn metadata_is_kept_and_changed_without_a_new_vector() {
    let dir = index(&[labelled("a", "x", "bath"), document("b", "yy")]);
    let mut writer = Writer::open(dir.path(), &key()).unwrap();
    let moved = labelled("a", "x", "hall");
    assert_eq!(
        writer.plan(&[moved.clone(), labelled("a", "z", "bath")]).unwrap(),
        [Change::Relabelled, Change::Replaced]
    );
    let before = writer.store().load().unwrap().0.vector(0).to_vec();
    writer.put(&[Record { document: &moved, vector: None }]).unwrap();
    let (rows, _) = writer.store().load().unwrap();
    assert_eq!(*rows.vector(0), before);
    let filter = crate::filter::Filter::parse("room=hall").unwrap();
    assert_eq!(rows.select(&filter).ones().collect::<Vec<_>>(), [0]);
    assert_eq!(writer.store().document_by_id("a").unwrap().unwrap(), moved);
    assert_eq!(writer.store().documents(1, 5).unwrap(), [document("b", "yy")]);
    let unknown = writer.put(&[Record { document: &document("c", "z"), vector: None }]);
    assert!(unknown.is_err() && writer.store().count().unwrap() == 2);
}

/// A reader that follows the changes must hold what a reader that starts anew holds, removals included.
#[test]
fn following_the_changes_is_loading_anew() {
    let dir = index(&[document("a", "x"), document("b", "yy")]);
    let reader = Store::open(dir.path(), &key()).unwrap();
    let (mut rows, mut seen) = reader.load().unwrap();
    let mut writer = Writer::open(dir.path(), &key()).unwrap();
    let mut moments = vec![seen.clone()];
    for step in 0..40usize {
        match step % 4 {
            0 => drop(put(
                &mut writer,
                &[document(&format!("n{step}"), "z"), document("a", &"a".repeat(step))],
            )),
            1 => {
                assert_eq!(writer.remove(&["b", "absent"]).unwrap().len(), usize::from(step == 1 || step > 3))
            }
            2 => assert!(writer.remove(&["absent"]).unwrap().is_empty()),
            _ => drop(put(&mut writer, &[document("b", &"b".repeat(step))])),
        }
        // Not after every step: several generations are caught up with at once.
        if step % 3 != 1 {
            let (_, generation) = reader.update(&mut rows, &seen).unwrap();
            seen = generation;
            rows.compact();
            let (anew, generation) = reader.load().unwrap();
            assert_eq!(seen, generation);
            let held = |rows: &Rows| -> Vec<(i64, String, Vec<f32>)> {
                rows.live()
                    .ones()
                    .map(|r| (rows.key(r), rows.id(r).to_owned(), rows.vector(r).to_vec()))
                    .collect()
            };
            assert_eq!(held(&rows), held(&anew));
            moments.push(seen.clone());
        }
    }
    for moment in &moments {
        assert!(reader.has_been_at(moment).unwrap());
        let other = Generation { digest: "other".into(), ..moment.clone() };
        assert!(!reader.has_been_at(&other).unwrap());
    }
    let since = reader.changes_since(moments[moments.len() - 2].number).unwrap();
    assert!(!since.put.is_empty() || !since.removed.is_empty());
    writer.compact().unwrap();
    assert_eq!(reader.load().unwrap().1, seen);
}

/// A file that was made to be opened here must be refused before what it brought is run: this view would never end.
#[test]
fn programs_inside_a_database_are_refused() {
    let dir = index(&[document("a", "x")]);
    let connection = Connection::open(dir.path().join(FILE_NAME)).unwrap();
    connection
        .execute_batch(
            "ALTER TABLE documents RENAME TO old;
             CREATE VIEW documents AS WITH RECURSIVE n(key) AS (SELECT 1 UNION ALL SELECT key + 1 FROM n)
                 SELECT key, 'a' AS id, 0 AS checksum, '{}' AS metadata, x'' AS vector, 1 AS generation FROM n;",
        )
        .unwrap();
    let message = Store::open(dir.path(), &key()).err().unwrap().to_string();
    assert!(message.contains("damaged: it holds `documents`, which is no table"), "{message}");
    connection
        .execute_batch("DROP VIEW documents; ALTER TABLE old RENAME TO documents; UPDATE generations SET number = 9223372036854775807 WHERE number = 1;")
        .unwrap();
    drop(connection);
    let mut writer = Writer::open(dir.path(), &key()).unwrap();
    assert!(writer.remove(&["a"]).unwrap_err().to_string().contains("no next generation"));
}
