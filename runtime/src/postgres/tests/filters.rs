//! Filters: made-up conditions on made-up metadata, asked both ways.

use super::*;
use crate::filter::Test;
use crate::search::Rows;

/// A filter that lets another document through on a server than on a robot shows somebody the wrong room.
#[test]
fn filters_mean_what_they_mean_in_a_directory() {
    let Some(scratch) = Scratch::new("filters") else { return };
    let database = scratch.open(Form::Gated);
    let mut random = Random::new(21);
    let documents: Vec<Document> =
        (0..400).map(|i| document(&format!("d{i}"), "x", metadata(&mut random))).collect();
    let mut rows = Rows::new(M);
    for (key, document) in (1..).zip(&documents) {
        rows.push(key, &document.id, &[0.0; M], &document.metadata);
    }
    put(&database, &documents, &vec![vec![0.0; M]; documents.len()]);
    let (mut kept, mut all) = (0, 0);
    for round in 0..600 {
        let filter = filter(&mut random, 3);
        let condition = crate::postgres::filter::Condition::new(Some(&filter), 1).unwrap();
        let sql = format!("SELECT id FROM rabtriever_documents WHERE {} ORDER BY key", condition.sql);
        let found = database.read(|transaction, _| {
            let rows = transaction.query_typed(&sql, &condition.after(&[]))?;
            Ok(rows.iter().map(|row| row.get(0)).collect::<Vec<String>>())
        });
        let expected: Vec<&str> = rows.select(&filter).ones().map(|row| rows.id(row)).collect();
        let found = found.unwrap();
        let differs =
            |document: &&Document| found.contains(&document.id) != expected.contains(&document.id.as_str());
        if let Some(document) = documents.iter().find(differs) {
            panic!("round {round}: {filter:?} on {:?}\n{sql}\n{:?}", document.metadata, condition.values);
        }
        (kept, all) = (kept + found.len(), all + documents.len());
    }
    // Filters that keep all or nothing would prove little.
    let share = kept as f64 / all as f64;
    assert!((0.1..0.9).contains(&share), "{share}");
    // Everything comes back as it was.
    for document in &documents {
        assert_eq!(Backend::document(&database, &document.id).unwrap().as_ref(), Some(document));
    }
}

fn scalar(random: &mut Random) -> Value {
    let values = [
        json!(0),
        json!(-0.0),
        json!(1),
        json!(1.0),
        json!(2),
        json!(2.5),
        json!(-3),
        json!("2"),
        json!("a"),
        json!("b"),
        json!(""),
        json!("é"),
        json!("\u{ffff}"),
        json!("\u{10000}"),
        json!("A'\"\\ $1 ? {}"),
        json!(true),
        json!(false),
        json!(null),
        json!(9_007_199_254_740_992_i64),
        json!(9_007_199_254_740_993_i64),
        json!(9_007_199_254_740_992.0),
        json!(1e16),
        json!(10_000_000_000_000_001_i64),
        json!(u64::MAX),
        json!(u64::MAX - 1),
        json!(i64::MIN),
        json!(18_446_744_073_709_551_616.0),
        json!(0.1),
        json!(1e300),
        json!(5e-324),
        json!(-1e-7),
        json!("2026-01-02"),
    ];
    values[random.next() as usize % values.len()].clone()
}

fn value(random: &mut Random) -> Value {
    match random.next() % 8 {
        0 => json!([scalar(random), scalar(random)]),
        1 => json!([]),
        2 => json!([[scalar(random)], {"y": scalar(random)}, scalar(random)]),
        3 => json!({ "x": scalar(random), "deep": {"y": [scalar(random)]} }),
        _ => scalar(random),
    }
}

fn metadata(random: &mut Random) -> Value {
    let mut fields = serde_json::Map::new();
    for name in ["a", "b", "a.x", "it's \"c\""] {
        if !random.next().is_multiple_of(3) {
            fields.insert(name.to_owned(), value(random));
        }
    }
    Value::Object(fields)
}

fn filter(random: &mut Random, depth: usize) -> Filter {
    let several = |random: &mut Random| (0..random.next() % 3).map(|_| filter(random, depth - 1)).collect();
    match random.next() % 8 {
        0 if depth > 0 => Filter::All(several(random)),
        1 if depth > 0 => Filter::Any(several(random)),
        2 if depth > 0 => Filter::Not(Box::new(filter(random, depth - 1))),
        _ => {
            let names = ["a", "b", "a.x", "b.x", "a.deep.y", "it's \"c\"", "none"];
            let field = names[random.next() as usize % names.len()];
            let wanted = |random: &mut Random| match random.next() % 5 {
                0 => json!([scalar(random)]),
                1 => json!({ "y": scalar(random) }),
                _ => scalar(random),
            };
            let test = match random.next() % 6 {
                0 => json!({ "$exists": random.next().is_multiple_of(2) }),
                1 => {
                    // Lists and objects too, which nothing that is sent asks for.
                    let test = Test::In((0..random.next() % 4).map(|_| wanted(random)).collect());
                    return Filter::Field { field: field.to_owned(), test };
                }
                2 => json!({ "$ne": scalar(random) }),
                3 => json!({ "$eq": scalar(random) }),
                _ => {
                    let bound = loop {
                        if let bound @ (Value::Number(_) | Value::String(_)) = scalar(random) {
                            break bound;
                        }
                    };
                    let side = ["$gt", "$gte", "$lt", "$lte"][random.next() as usize % 4];
                    json!({ side: bound })
                }
            };
            Filter::from_json(&json!({ field: test })).unwrap()
        }
    }
}
