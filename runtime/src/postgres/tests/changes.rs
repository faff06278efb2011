//! Changes: whole or not at all, by several writers, through restarts and migrations.

use super::*;
use crate::store::Change;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

/// What was asked for in few words is read as a whole or refused as a whole.
#[test]
fn a_batch_is_stored_whole_or_not_at_all() {
    let Some(scratch) = Scratch::new("batch") else { return };
    let database = scratch.open(Form::Gated);
    let documents = [document("a", "x", json!({"n": 1})), document("b", "y", json!({}))];
    let record =
        |place: usize, vector: Vec<f32>| Record { document: &documents[place], vector: Some(vector) };
    let mut target = &database;
    for vector in [vec![f32::NAN; M], vec![1.0; M - 1]] {
        let refused = target.put(&[record(0, vec![1.0; M]), record(1, vector)]).unwrap_err().to_string();
        assert!(refused.contains("document `b`"), "{refused}");
        assert_eq!(Backend::stats(&database).unwrap().documents, 0);
    }
    target.put(&[record(0, vec![1.0; M]), record(1, vec![2.0; M])]).unwrap();
    assert_eq!(target.plan(&documents).unwrap(), [Change::Unchanged, Change::Unchanged]);
    let relabelled = [document("a", "x", json!({"n": 2}))];
    assert_eq!(target.plan(&relabelled).unwrap(), [Change::Relabelled]);
    assert_eq!(target.put(&[Record { document: &relabelled[0], vector: None }]).unwrap(), [0usize; 0]);
    assert_eq!(Backend::document(&database, "a").unwrap().unwrap(), relabelled[0]);
    // Somebody changes the text between plan and put: the label alone would leave a text with another's vector.
    let other = [document("a", "other", json!({"n": 3}))];
    target.put(&[Record { document: &other[0], vector: Some(vec![3.0; M]) }]).unwrap();
    assert_eq!(target.put(&[Record { document: &relabelled[0], vector: None }]).unwrap(), [0]);
    assert_eq!(Backend::document(&database, "a").unwrap().unwrap(), other[0]);
    assert_eq!(database.delete(&["a", "nobody", "a"]).unwrap(), 1);
    assert_eq!(database.delete(&["a"]).unwrap(), 0);
    Backend::compact(&database).unwrap();
    assert_eq!(Backend::documents(&database, 0, 9).unwrap(), documents[1..]);
    assert_eq!(Backend::stats(&database).unwrap().documents, 1);
}

/// The vector that belongs to a text: whoever has another one with it has mixed two writers' work.
fn vector_of(text: &str) -> Vec<f32> {
    let mut random = Random::new(text.bytes().fold(7, |sum, byte| sum * 31 + u64::from(byte)));
    random.normals(M)
}

fn vectors(client: &mut Client) -> BTreeMap<String, (String, String)> {
    let rows = client.query("SELECT id, text, vector::text FROM rabtriever_documents", &[]).unwrap();
    rows.iter().map(|row| (row.get(0), (row.get(1), row.get(2)))).collect()
}

fn assert_consistent(scratch: &Scratch, database: &Database) -> usize {
    let found = vectors(&mut scratch.client());
    for (id, (text, vector)) in &found {
        let vector: Vec<f32> =
            vector.trim_matches(['[', ']']).split(',').map(|x| x.parse().unwrap()).collect();
        assert_eq!(vector, vector_of(text), "{id}: {text}");
    }
    assert_eq!(Backend::stats(database).unwrap().documents, found.len(), "the counter is the number of rows");
    found.len()
}

/// Two servers take documents at once, the same ones among them: nothing fails, is lost, or is half of one and half of the other.
#[test]
fn servers_write_at_once() {
    let Some(scratch) = Scratch::new("writers") else { return };
    let databases: Vec<Database> = std::thread::scope(|scope| {
        // Both find nothing and make the tables.
        let open = || scope.spawn(|| scratch.open(Form::Gated));
        [open(), open(), open()].into_iter().map(|opening| opening.join().unwrap()).collect()
    });
    let changes: u64 = std::thread::scope(|scope| {
        let write = |(number, database): (usize, &'_ Database)| {
            let mut random = Random::new(number as u64);
            let mut changes = 0;
            for round in 0..40 {
                let mut documents = BTreeMap::new();
                for _ in 0..8 {
                    let id = format!("d{}", random.next() % 30);
                    let text = format!("text {}", random.next() % 3);
                    documents
                        .insert(id.clone(), document(&id, &text, json!({ "by": number, "round": round })));
                }
                // Against the order of ids: whoever took rows as they come would meet the others.
                let mut documents: Vec<Document> = documents.into_values().collect();
                if number % 2 == 0 {
                    documents.reverse();
                }
                let mut database = database;
                let plan = database.plan(&documents).unwrap();
                let record = |(document, change): (_, &Change)| Record {
                    document,
                    vector: (*change != Change::Relabelled)
                        .then(|| vector_of(&Document::clone(document).text)),
                };
                let records: Vec<Record<'_>> = documents.iter().zip(&plan).map(record).collect();
                let missed = database.put(&records).unwrap();
                changes += u64::from(missed.len() < records.len());
                if !missed.is_empty() {
                    let again = |place: &usize| Record {
                        document: &documents[*place],
                        vector: Some(vector_of(&documents[*place].text)),
                    };
                    assert_eq!(
                        database.put(&missed.iter().map(again).collect::<Vec<_>>()).unwrap(),
                        [0usize; 0]
                    );
                    changes += 1;
                }
                if round % 5 == 0 {
                    let ids = [format!("d{}", random.next() % 30), format!("d{}", random.next() % 30)];
                    changes += u64::from(database.delete(&[&ids[0], &ids[1]]).unwrap() > 0);
                }
            }
            changes
        };
        let writers: Vec<_> =
            databases.iter().enumerate().map(|writer| scope.spawn(move || write(writer))).collect();
        writers.into_iter().map(|writer| writer.join().unwrap()).sum()
    });
    assert!(assert_consistent(&scratch, &databases[0]) > 10);
    assert_eq!(Backend::stats(&databases[1]).unwrap().generation, changes);
}

/// The server is killed and started again while documents come in and queries are asked: what was acknowledged is there.
#[test]
fn a_restarted_server_loses_nothing_acknowledged() {
    let Some(scratch) = Scratch::new("restart") else { return };
    let Ok(restart) = std::env::var(RESTART) else {
        eprintln!("skipped, {RESTART} does not say how to restart the server");
        return;
    };
    let database = scratch.open(Form::Gated);
    let (stop, steps) = (AtomicBool::new(false), [AtomicUsize::new(0), AtomicUsize::new(0)]);
    // Until both have come on: a server that has just been started may take its time.
    let go_on = || {
        let started = Instant::now();
        let before = steps.each_ref().map(|step| step.load(Ordering::Relaxed));
        while steps.iter().zip(before).any(|(step, before)| step.load(Ordering::Relaxed) < before + 10) {
            assert!(started.elapsed() < Duration::from_secs(180), "nothing comes on");
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    let (acknowledged, asked) = std::thread::scope(|scope| {
        let writing = scope.spawn(|| {
            let (mut database, mut acknowledged) = (&database, Vec::new());
            for number in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let id = format!("d{number}");
                let text = format!("text {number}");
                let document = document(&id, &text, json!({}));
                let records = [Record { document: &document, vector: Some(vector_of(&text)) }];
                database.put(&records).unwrap();
                acknowledged.push(id);
                steps[0].fetch_add(1, Ordering::Relaxed);
                if number % 9 == 8 {
                    let gone = format!("d{}", number - 4);
                    assert_eq!(database.delete(&[&gone]).unwrap(), 1, "{gone} was acknowledged");
                    acknowledged.retain(|id| *id != gone);
                }
            }
            acknowledged
        });
        let asking = scope.spawn(|| {
            let query = FoldedQuery::new(Form::Gated, vec![0.1; M], Vec::new(), 0.0);
            let mut asked = 0;
            while !stop.load(Ordering::Relaxed) {
                database.ranked(std::slice::from_ref(&query), &wanted(3, "")).unwrap();
                asked += 1;
                steps[1].fetch_add(1, Ordering::Relaxed);
            }
            asked
        });
        for _ in 0..3 {
            go_on();
            assert!(std::process::Command::new("sh").args(["-c", &restart]).status().unwrap().success());
        }
        go_on();
        stop.store(true, Ordering::Relaxed);
        (writing.join().unwrap(), asking.join().unwrap())
    });
    eprintln!("{} documents acknowledged, {asked} queries answered over 3 restarts", acknowledged.len());
    let found = vectors(&mut scratch.client());
    let missing: Vec<&String> = acknowledged.iter().filter(|id| !found.contains_key(*id)).collect();
    assert!(missing.is_empty(), "{missing:?}");
    assert_consistent(&scratch, &database);
}

/// An older program's tables are brought up to date as a whole or not at all; an older program leaves newer tables alone.
#[test]
fn tables_are_migrated_in_one_step_or_not_at_all() {
    let Some(scratch) = Scratch::new("migration") else { return };
    let database = scratch.open(Form::Gated);
    put(&database, &[document("a", "x", json!({}))], &[vec![1.0; M]]);
    let migrate = |second| {
        database.connections.work(|client| {
            let mut transaction = client.transaction()?;
            let steps = [schema::first as schema::Migration, second];
            schema::migrate(&mut transaction, &database.connections, &database.key, &steps)?;
            transaction.commit()?;
            Ok(())
        })
    };
    let broken =
        migrate(|_| "ALTER TABLE rabtriever_documents ADD COLUMN seen bigint; SELECT nonsense".into());
    assert!(broken.unwrap_err().to_string().contains("nonsense"));
    assert_eq!(database.read(|_, state| Ok(state.documents)).unwrap(), 1);
    migrate(|_| "ALTER TABLE rabtriever_documents ADD COLUMN seen bigint".into()).unwrap();
    let seen: i64 = scratch
        .client()
        .query_one("SELECT count(*) FROM rabtriever_documents WHERE seen IS NULL", &[])
        .unwrap()
        .get(0);
    assert_eq!(seen, 1);
    // This program is older than its tables now, also where it has been opened before.
    for refused in [
        database.read(|_, _| Ok(())).unwrap_err().to_string(),
        scratch.open_as(key(Form::Gated), "", Access::Create, patient()).unwrap_err().to_string(),
    ] {
        assert!(
            refused.contains("schema version 2") && refused.contains(&format!("up to {}", schema::VERSION)),
            "{refused}"
        );
    }
}
