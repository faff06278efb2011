//! What conditions mean, and which are refused.

use super::*;
use serde_json::json;

fn metadata(value: Value) -> Metadata {
    value.as_object().unwrap().clone()
}

/// Whole numbers beyond 53 bits are time stamps and hashes: near is not equal.
#[test]
fn whole_numbers_compare_exactly() {
    let (least, most) = (i64::MAX as u64, u64::MAX);
    let document = metadata(json!({ "at": most, "before": i64::MIN }));
    let passes = |text: String| Filter::parse(&text).unwrap().passes(&document);
    assert!(passes(format!("at={most}")) && !passes(format!("at={}", most - 1)));
    assert!(passes(format!("at>{least}")) && !passes(format!("at<{least}")));
    assert!(passes(format!("before<{most}")) && passes(format!("before={}", i64::MIN)));
    assert!(!passes(format!("before={}", i64::MIN + 1)));
}

/// Typed and sent, the same condition must let the same documents through.
#[test]
fn both_forms_mean_the_same() {
    let documents = [
        json!({"room": "kitchen", "floor": 1, "tags": ["wet", "hot"], "at": {"site": "a"}}),
        json!({"room": "bath", "floor": 2.0, "tags": ["wet"], "since": "2026-01-02"}),
        json!({"floor": "2", "fragile": true}),
        json!({}),
    ];
    let cases = [
        ("room=kitchen", json!({"room": "kitchen"}), [true, false, false, false]),
        ("room!=kitchen", json!({"room": {"$ne": "kitchen"}}), [false, true, true, true]),
        ("floor=2", json!({"floor": {"$in": [2, "2"]}}), [false, true, true, false]),
        ("floor=\"2\"", json!({"floor": "2"}), [false, false, true, false]),
        ("floor >= 2", json!({"floor": {"$gte": 2}}), [false, true, false, false]),
        ("floor<2", json!({"floor": {"$lt": 2}}), [true, false, false, false]),
        ("room in bath, hall", json!({"room": {"$in": ["bath", "hall"]}}), [false, true, false, false]),
        ("room not in bath", json!({"room": {"$nin": ["bath"]}}), [true, false, true, true]),
        ("tags=wet", json!({"tags": {"$eq": "wet"}}), [true, true, false, false]),
        ("tags!=hot", json!({"$not": {"tags": "hot"}}), [false, true, true, true]),
        ("room", json!({"room": {"$exists": true}}), [true, true, false, false]),
        ("!room", json!({"room": {"$exists": false}}), [false, false, true, true]),
        ("at.site=a", json!({"at.site": "a"}), [true, false, false, false]),
        ("since>2026-01-01", json!({"since": {"$gt": "2026-01-01"}}), [false, true, false, false]),
        ("fragile=true", json!({"fragile": true}), [false, false, true, false]),
        ("note=a>b", json!({"note": "a>b"}), [false, false, false, false]),
    ];
    for (typed, sent, expected) in cases {
        let filters = [Filter::parse(typed).unwrap(), Filter::from_json(&sent).unwrap()];
        for filter in filters {
            let found: Vec<bool> = documents.iter().map(|d| filter.passes(&metadata(d.clone()))).collect();
            assert_eq!(found, expected, "{typed} {sent} {filter:?}");
        }
    }
    let both = json!({"$or": [{"room": "bath"}, {"$and": [{"floor": {"$gte": 1, "$lt": 2}}, "tags=hot"]}]});
    let filter = Filter::from_json(&both).unwrap();
    let found: Vec<bool> = documents.iter().map(|d| filter.passes(&metadata(d.clone()))).collect();
    assert_eq!(found, [true, true, false, false]);
    assert!(Filter::everything().passes(&Metadata::new()));
}

/// A mistyped condition that let everything through would answer from the wrong room.
#[test]
fn nonsense_is_refused() {
    for typed in
        ["", "=kitchen", "room=", "a b=c", "{\"room\"", "{\"room\": {\"$near\": 1}}", "!", "!room=bath"]
    {
        let message = Filter::parse(typed).unwrap_err().to_string();
        assert!(message.contains("room=kitchen"), "{message}");
    }
    let sent = [
        json!(3),
        json!({"$nor": []}),
        json!({"$or": {"a": 1}}),
        json!({"a": {"$in": 1}}),
        json!({"a": {"$gt": true}}),
        json!({"a": {"$exists": 1}}),
        json!({"a": {"b": 1}}),
        json!({"$not": "{\"a\": 1}"}),
    ];
    for sent in sent {
        assert!(Filter::from_json(&sent).is_err(), "{sent}");
    }
    // What was sent is told back, not all of it.
    let long = "x".repeat(100_000);
    for sent in [json!({"a": {"$gt": [long]}}), json!({"a": {long.as_str(): 1}}), json!(format!("{long} y"))]
    {
        assert!(Filter::from_json(&sent).unwrap_err().to_string().len() < 500);
    }
    let many = json!({"a": {"$in": (0..2000).collect::<Vec<i32>>()}});
    assert!(serde_json::from_value::<Filter>(many).is_err());
}

/// What each of these used to find was nothing, and nothing was said: whoever came from another vector database, from Python
/// or from SQL took his corpus for empty.
#[test]
fn filters_of_other_programs_mean_what_they_mean_there() {
    let documents = [
        json!({"shelf": "left", "level": 3, "tags": ["glass", "blue"], "lent": false, "pot": {"size": 2.5}}),
        json!({"shelf": "right", "level": 1.0, "tags": ["glass"], "lent": true, "note": null}),
        json!({"shelf": "R and D", "tags": []}),
    ];
    let same = |filter: Result<Filter, FilterError>, expected: &str, asked: &str| {
        let filter = filter.unwrap_or_else(|error| panic!("{asked}: {error}"));
        let found: String =
            documents.iter().map(|d| if filter.passes(&metadata(d.clone())) { 'x' } else { '-' }).collect();
        assert_eq!(found, expected, "{asked} {filter:?}");
    };
    let left = json!({"key": "shelf", "match": {"value": "left"}});
    for (sent, expected) in [
        // Qdrant, as written and as its Python client dumps it.
        (json!({"must": [left]}), "x--"),
        (json!({"must_not": left}), "-xx"),
        (json!({"should": [left, {"key": "level", "range": {"lte": 1, "gt": null}}]}), "xx-"),
        (json!({"must": [{"key": "tags[]", "match": {"any": ["blue", "red"]}}], "should": []}), "x--"),
        (
            json!({"should": null, "min_should": null, "must_not": null, "must": [
                {"key": "level", "match": null, "range": {"gte": 1.0, "lt": 4, "gt": null}, "geo_radius": null}
            ]}),
            "xx-",
        ),
        (json!({"must": [{"should": [left, {"is_null": {"key": "note"}}]}]}), "xx-"),
        (json!({"key": "pot.size", "range": {"gt": 2}}), "x--"),
        // LlamaIndex
        (
            json!({"filters": [{"key": "shelf", "value": "left", "operator": "=="}], "condition": "and"}),
            "x--",
        ),
        (json!({"filters": [{"key": "shelf", "value": "left"}], "condition": "not"}), "-xx"),
        (
            json!({"condition": "or", "filters": [
                {"key": "tags", "value": ["blue", "glass"], "operator": "all"},
                {"filters": [
                    {"key": "lent", "value": true, "operator": "!="}, {"key": "level", "value": [1], "operator": "nin"}
                ]}
            ]}),
            "x-x",
        ),
        (json!({"filters": [{"key": "tags", "value": "blue", "operator": "contains"}]}), "x--"),
        (json!({"key": "level", "value": 2, "operator": ">"}), "x--"),
        (json!({"filters": [], "condition": "or"}), "xxx"),
        // Haystack
        (json!({"field": "meta.shelf", "operator": "not in", "value": ["left"]}), "-xx"),
        (
            json!({"operator": "NOT", "conditions": [
                {"field": "meta.level", "operator": ">=", "value": 1}, {"field": "meta.lent", "operator": "==", "value": true}
            ]}),
            "x-x",
        ),
        // OpenAI's vector stores
        (json!({"type": "eq", "key": "lent", "value": false}), "x--"),
        (
            json!({"type": "or", "filters": [{"type": "gte", "key": "level", "value": 3}, {"type": "in", "key": "shelf", "value": ["right"]}]}),
            "xx-",
        ),
        // What MongoDB and pgvector's clients have beside the usual.
        (json!({"tags": {"$all": ["glass", "blue"]}}), "x--"),
        (json!({"level": {"$between": [1, 2]}}), "-x-"),
        (json!({"$nor": [{"shelf": "left"}, {"lent": true}]}), "--x"),
        // A document's own fields may have these names.
        (json!({"must": "left"}), "---"),
        (json!({"type": "jar", "key": "a"}), "---"),
        (json!({"operator": {"$exists": false}}), "xxx"),
        (json!({"note": null}), "-x-"),
        (json!({"level": 3.0}), "x--"),
    ] {
        same(Filter::from_json(&sent), expected, &sent.to_string());
        // On the command line too.
        same(Filter::parse(&sent.to_string()), expected, &sent.to_string());
    }
    for (typed, expected) in [
        ("shelf==left", "x--"),
        ("shelf == 'left'", "x--"),
        ("shelf<>left", "-xx"),
        ("\"shelf\"=left", "x--"),
        ("lent=True", "-x-"),
        ("lent = False", "x--"),
        ("note=None", "-x-"),
        ("level=1", "-x-"),
        ("level=3.0", "x--"),
        ("level>=+.5", "xx-"),
        ("shelf in [\"left\", 'R and D']", "x-x"),
        ("shelf IN (left,right)", "xx-"),
        ("shelf Not In left", "-xx"),
        ("shelf in \"a, b\",left", "x--"),
        ("shelf=\"R and D\"", "--x"),
        ("shelf=left and level>=2", "x--"),
        ("lent AND !note", "x--"),
        ("tags=glass and lent=true and level<2", "-x-"),
        ("shelf=\"left\" and lent", "x--"),
        ("[\"shelf=left\", {\"level\": 3}]", "x--"),
    ] {
        same(Filter::parse(typed), expected, typed);
    }
}

/// Where two people mean two things, or what is asked is not to be had here, an empty answer would be taken for the truth.
#[test]
fn what_has_no_single_meaning_is_refused_by_name() {
    let cases = [
        (json!({"tags": ["glass", "blue"]}), "compares with a list", "$in"),
        (json!({"tags": {"$eq": ["glass"]}}), "compares with a list", "$all"),
        (json!({"tags": {"$in": [["glass"]]}}), "compares with a list", "$all"),
        (json!({"pot": {"$in": [{"size": 2}]}}), "compares with an object", "outer.inner"),
        (json!({"level": {"gte": 2}}), "`gte`", "write `$gte`"),
        (json!({"tags": {"$contains": "glass"}}), "`$contains`", "{\"tags\": value}"),
        (json!({"note": {"$ilike": "%glass%"}}), "`$ilike`", "in the query"),
        (json!({"tags": {"$all": []}}), "`$all`", "at least one"),
        (json!({"level": {"$between": [1]}}), "`$between`", "two bounds"),
        (json!({"must": [{"key": "a", "match": {"text": "x"}}]}), "`text`", "in the query"),
        (json!({"must": [{"key": "a", "match": {"except": ["x"]}}]}), "`except`", "`must_not`"),
        (json!({"must": [{"key": "a", "values_count": {"gt": 1}}]}), "`values_count`", "Qdrant"),
        (json!({"must": [{"is_empty": {"key": "a"}}]}), "`is_empty`", "{\"a\": {\"$exists\": false}}"),
        (json!({"must": [{"has_id": [1]}]}), "`key`", "missing"),
        (json!({"must": [], "room": "attic"}), "`room`", "Qdrant"),
        (json!({"must": [{"key": "a", "match": {}}]}), "asks for nothing", "`match`"),
        (json!({"min_should": {"conditions": [], "min_count": 1}}), "`min_should`", "Qdrant"),
        (
            json!({"filters": [{"key": "a", "value": "x", "operator": "text_match"}]}),
            "`text_match`",
            "operator",
        ),
        (
            json!({"filters": [{"key": "a", "value": 1}, {"key": "b", "value": 1}], "condition": "not"}),
            "`not`",
            "one",
        ),
        (json!({"key": "a", "value": 1}), "`key` and `value`", "$and"),
        (json!({"operator": "XOR", "conditions": []}), "`XOR`", "`AND`"),
        (json!({"type": "eq", "filters": []}), "`eq`", "`and`"),
    ];
    for (sent, name, way_out) in cases {
        for refused in [Filter::from_json(&sent), Filter::parse(&sent.to_string())] {
            let refused = refused.expect_err(&sent.to_string()).to_string();
            assert!(refused.contains(name) && refused.contains(way_out), "{sent}: {refused}");
            assert!(refused.len() < 500 && !refused.contains('\n'), "{refused}");
        }
    }
    for (typed, name, way_out) in [
        ("level=>2", "`=>`", "write `>=`"),
        ("level=<2", "`=<`", "write `<=`"),
        ("shelf=~le.*", "`=~`", "in quotes"),
        ("shelf:left", "`:`", "write e.g. `room=kitchen`"),
        ("shelf like left", "one word", "room=kitchen"),
        ("shelf=R and D", "`and`", "in quotes"),
        ("shelf=left or right", "`or`", "room in kitchen,bath"),
        ("shelf=left || level=3", "`||`", "write `and`"),
        ("shelf in left,", "empty", "\"\""),
        ("shelf=\"left", "quotes", "room=kitchen"),
        ("level>true", "a bound", "in quotes"),
        ("`shelf`=left", "one word", "room=kitchen"),
    ] {
        let refused = Filter::parse(typed).expect_err(typed).to_string();
        assert!(refused.contains(name) && refused.contains(way_out), "{typed}: {refused}");
    }
}
