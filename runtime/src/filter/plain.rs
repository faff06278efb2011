//! Conditions held to a plain reading of MongoDB's form, written without a word of the one above: it walks the JSON as it was sent.

use super::Filter;
use crate::document::Metadata;
use proptest::prelude::*;
use serde_json::{Value, json};

/// What stands at `outer.inner`; objects are no values.
fn at<'a>(metadata: &'a Metadata, path: &str) -> Option<&'a Value> {
    let mut parts = path.split('.');
    let mut found = metadata.get(parts.next()?)?;
    for part in parts {
        found = found.as_object()?.get(part)?;
    }
    (!found.is_object()).then_some(found)
}

fn holds(condition: &Value, metadata: &Metadata) -> bool {
    let inner = |list: &Value| -> Vec<bool> {
        list.as_array().unwrap().iter().map(|condition| holds(condition, metadata)).collect()
    };
    condition.as_object().unwrap().iter().all(|(key, wanted)| match key.as_str() {
        "$and" => !inner(wanted).contains(&false),
        "$or" => inner(wanted).contains(&true),
        "$not" => !holds(wanted, metadata),
        path => passes(at(metadata, path), wanted),
    })
}

fn passes(found: Option<&Value>, wanted: &Value) -> bool {
    let Some(tests) = wanted.as_object() else { return any(found, |value| same(value, wanted)) };
    tests.iter().all(|(operator, wanted)| {
        let one_of = || any(found, |value| wanted.as_array().unwrap().iter().any(|one| same(value, one)));
        match operator.as_str() {
            "$eq" => any(found, |value| same(value, wanted)),
            "$ne" => !any(found, |value| same(value, wanted)),
            "$in" => one_of(),
            "$nin" => !one_of(),
            "$exists" => found.is_some() == (*wanted == json!(true)),
            "$not" => !passes(found, wanted),
            "$gt" => any(found, |value| between(value, wanted, |a, b| a > b, |a, b| a > b)),
            "$gte" => any(found, |value| between(value, wanted, |a, b| a >= b, |a, b| a >= b)),
            "$lt" => any(found, |value| between(value, wanted, |a, b| a < b, |a, b| a < b)),
            "$lte" => any(found, |value| between(value, wanted, |a, b| a <= b, |a, b| a <= b)),
            other => panic!("{other}"),
        }
    })
}

/// Of a list, one item has to pass.
fn any(found: Option<&Value>, test: impl Fn(&Value) -> bool) -> bool {
    match found {
        Some(Value::Array(items)) => items.iter().any(test),
        found => found.is_some_and(test),
    }
}

fn same(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}

fn between(a: &Value, b: &Value, numbers: fn(f64, f64) -> bool, texts: fn(&str, &str) -> bool) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => numbers(a.as_f64().unwrap(), b.as_f64().unwrap()),
        (Value::String(a), Value::String(b)) => texts(a, b),
        _ => false,
    }
}

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        (-1..3i64).prop_map(|n| json!(n)),
        (-1..3i64).prop_map(|n| json!(n as f64 / 2.0)),
        "[ab]{0,2}".prop_map(|s| json!(s)),
        any_bool(),
        Just(Value::Null),
    ]
}

fn any_bool() -> impl Strategy<Value = Value> {
    proptest::bool::ANY.prop_map(|b| json!(b))
}

fn metadata() -> impl Strategy<Value = Metadata> {
    let value = prop_oneof![
        3 => scalar(),
        1 => prop::collection::vec(scalar(), 0..3).prop_map(|items| json!(items)),
        1 => prop::collection::btree_map("[ab]", scalar(), 0..3).prop_map(|inner| json!(inner)),
    ];
    prop::collection::btree_map("[abc]", value, 0..4).prop_map(|fields| fields.into_iter().collect())
}

fn condition() -> impl Strategy<Value = Value> {
    let bound = prop_oneof![(-1..3i64).prop_map(|n| json!(n)), "[ab]{0,2}".prop_map(|s| json!(s))];
    let test = prop_oneof![
        ("\\$(eq|ne)", scalar()),
        ("\\$(gt|gte|lt|lte)", bound),
        ("\\$(in|nin)", prop::collection::vec(scalar(), 0..3).prop_map(|items| json!(items))),
        (Just("$exists".to_owned()), any_bool()),
    ];
    let tests = prop::collection::btree_map("[xyz]", test, 1..3).prop_map(|tests| {
        // Of two tests of one name the last one is sent.
        let tests: Metadata = tests.into_values().collect();
        json!(tests)
    });
    let field = prop_oneof![3 => "[abc]", 1 => "[ab]\\.[ab]"];
    let asked = prop_oneof![
        2 => scalar().prop_filter("a value of its own", |value| !value.is_object()),
        3 => tests.clone(),
        1 => tests.prop_map(|tests| json!({ "$not": tests })),
    ];
    let one = (field, asked).prop_map(|(field, asked)| json!({ field: asked }));
    one.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            ("\\$(and|or)", prop::collection::vec(inner.clone(), 0..3))
                .prop_map(|(word, conditions)| json!({ word: conditions })),
            inner.clone().prop_map(|condition| json!({ "$not": condition })),
            (inner.clone(), inner).prop_map(|(one, other)| {
                let mut both = one.as_object().unwrap().clone();
                both.extend(other.as_object().unwrap().clone());
                json!(both)
            }),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// What a program sends means what it says, however it is nested; read twice, it means the same.
    #[test]
    fn conditions_mean_what_a_plain_reading_says(condition in condition(), metadata in metadata()) {
        let filter = Filter::from_json(&condition).unwrap();
        prop_assert_eq!(filter.passes(&metadata), holds(&condition, &metadata), "{} {:?}", condition, metadata);
        let typed = Filter::parse(&condition.to_string()).unwrap();
        prop_assert_eq!(typed, filter);
    }
}
