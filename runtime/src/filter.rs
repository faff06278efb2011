//! Which documents a query may find: conditions on their metadata.
//!
//! Typed by a person, a condition is a line: `room=kitchen`, `room!=kitchen`, `floor>=2`, `room in kitchen,bath`,
//! `room not in bath`, `room` (has the field), `!room` (lacks it). Sent by a program it is the JSON that vector
//! databases agree on (MongoDB's): `{"room": "kitchen", "floor": {"$gte": 2}, "$or": [...]}`.
//!
//! Where a document's value is a list, one of its items has to pass. A document without the field passes no test, and
//! hence every negated one. Numbers compare with numbers and texts with texts (ISO 8601 times in order of time); other
//! pairs do not compare. Fields of nested objects are reached by `outer.inner`.

use crate::document::Metadata;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};
use std::cmp::Ordering;

/// Most conditions and values that a program may send: each may look at every document.
const LARGEST: usize = 1000;

/// A condition on metadata.
#[derive(Debug, Clone, PartialEq)]
pub enum Filter {
    /// All of them hold; without any, always.
    All(Vec<Filter>),
    /// One of them holds.
    Any(Vec<Filter>),
    /// It does not hold.
    Not(Box<Filter>),
    /// A field's value passes a test.
    Field {
        /// `room`, or `outer.inner`.
        field: String,
        /// The test.
        test: Test,
    },
}

/// What is asked of a value.
#[derive(Debug, Clone, PartialEq)]
pub enum Test {
    /// It is there.
    Exists,
    /// It is one of these.
    In(Vec<Value>),
    /// It is on this side of the bound.
    Compare(Side, Value),
}

/// A side of a bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// `<`
    Less,
    /// `<=`
    AtMost,
    /// `>`
    Greater,
    /// `>=`
    AtLeast,
}

/// A condition that nobody understands.
#[derive(Debug, thiserror::Error)]
#[error(
    "filter {found}: {reason}; expected e.g. `room=kitchen`, `floor>=2`, `room in kitchen,bath`, `!room`, or as JSON {{\"floor\": {{\"$gte\": 2}}}}"
)]
pub struct FilterError {
    found: String,
    reason: String,
}

impl Filter {
    /// Passes everything.
    pub fn everything() -> Self {
        Self::All(Vec::new())
    }

    /// Reads one condition as people type it.
    pub fn parse(text: &str) -> Result<Self, FilterError> {
        let refused =
            |reason: &str| FilterError { found: format!("`{}`", short(text)), reason: reason.into() };
        let trimmed = text.trim();
        if trimmed.starts_with('{') {
            let value = serde_json::from_str(trimmed).map_err(|e| refused(&e.to_string()))?;
            return Self::from_json(&value);
        }
        let condition = |field: &str, test: Test| -> Result<Self, FilterError> {
            let field = field.trim();
            if field.is_empty() || field.contains('!') || field.contains(char::is_whitespace) {
                return Err(refused("the field is not one word"));
            }
            Ok(Self::Field { field: field.to_owned(), test })
        };
        let negated = |filter: Self| Self::Not(Box::new(filter));
        // Whichever operator stands first is meant: a value may hold others.
        let words = [" not in ", " in "].into_iter().filter_map(|word| Some((trimmed.find(word)?, word)));
        let signs = ["!=", ">=", "<=", "=", ">", "<"];
        let signs = signs.into_iter().filter_map(|sign| Some((trimmed.find(sign)?, sign)));
        let first = words.chain(signs).min_by_key(|(place, sign)| (*place, std::cmp::Reverse(sign.len())));
        let Some((place, sign)) = first else {
            return match trimmed.strip_prefix('!') {
                Some(field) => Ok(negated(condition(field, Test::Exists)?)),
                None => condition(trimmed, Test::Exists),
            };
        };
        let (field, value) = (&trimmed[..place], trimmed[place + sign.len()..].trim());
        if value.is_empty() {
            return Err(refused("there is no value"));
        }
        let list = || Test::In(value.split(',').flat_map(|item| readings(item.trim())).collect());
        // A bound has one reading: what looks like a number is one.
        let bound = |side| Test::Compare(side, readings(value).swap_remove(0));
        match sign {
            "=" => condition(field, Test::In(readings(value))),
            "!=" => Ok(negated(condition(field, Test::In(readings(value)))?)),
            " in " => condition(field, list()),
            " not in " => Ok(negated(condition(field, list())?)),
            ">" => condition(field, bound(Side::Greater)),
            ">=" => condition(field, bound(Side::AtLeast)),
            "<" => condition(field, bound(Side::Less)),
            _ => condition(field, bound(Side::AtMost)),
        }
    }

    /// Reads MongoDB's form: `$eq $ne $gt $gte $lt $lte $in $nin $exists` on fields, `$and $or $not` around conditions.
    pub fn from_json(value: &Value) -> Result<Self, FilterError> {
        let refused = |reason: String| FilterError { found: short(&value.to_string()), reason };
        match value {
            Value::Object(conditions) => {
                let conditions = conditions.iter().map(|(key, value)| Self::entry(key, value));
                Ok(Self::all(conditions.collect::<Result<_, _>>()?))
            }
            // A program may also send the lines that people type; JSON within them could nest without end.
            Value::String(text) if text.trim_start().starts_with('{') => {
                Err(refused("is JSON in a text; send it as JSON".into()))
            }
            Value::String(text) => Self::parse(text),
            Value::Array(filters) => {
                Ok(Self::all(filters.iter().map(Self::from_json).collect::<Result<_, _>>()?))
            }
            _ => Err(refused("is not an object".into())),
        }
    }

    /// Conditions and values in it.
    fn size(&self) -> usize {
        match self {
            Self::All(filters) | Self::Any(filters) => 1 + filters.iter().map(Self::size).sum::<usize>(),
            Self::Not(filter) => 1 + filter.size(),
            Self::Field { test: Test::In(values), .. } => 1 + values.len(),
            Self::Field { .. } => 1,
        }
    }

    /// All of these hold.
    pub fn all(mut filters: Vec<Self>) -> Self {
        if filters.len() == 1 { filters.swap_remove(0) } else { Self::All(filters) }
    }

    fn entry(key: &str, value: &Value) -> Result<Self, FilterError> {
        let refused = |reason: String| {
            let found = short(&format!("{{\"{key}\": {value}}}"));
            FilterError { found, reason: short(&reason) }
        };
        let several = || -> Result<Vec<Self>, FilterError> {
            match value {
                Value::Array(filters) => filters.iter().map(Self::from_json).collect(),
                _ => Err(refused(format!("`{key}` wants a list of conditions"))),
            }
        };
        match key {
            "$and" => Ok(Self::All(several()?)),
            "$or" => Ok(Self::Any(several()?)),
            "$not" => Ok(Self::Not(Box::new(Self::from_json(value)?))),
            _ if key.starts_with('$') => Err(refused(format!("`{key}` is not known here"))),
            field => match value {
                Value::Object(tests) if tests.keys().any(|key| key.starts_with('$')) => {
                    Self::tests(field, tests)
                }
                Value::Object(_) => Err(refused("compares with an object; write `outer.inner`".into())),
                value => Ok(Self::field(field, Test::In(vec![value.clone()]))),
            },
        }
    }

    fn tests(field: &str, tests: &Map<String, Value>) -> Result<Self, FilterError> {
        let test = |(operator, value): (&String, &Value)| -> Result<Self, FilterError> {
            let refused = |reason: String| FilterError {
                found: short(&format!("{{\"{field}\": {{\"{operator}\": {value}}}}}")),
                reason: short(&reason),
            };
            let list = || match value {
                Value::Array(values) => Ok(Test::In(values.clone())),
                _ => Err(refused(format!("`{operator}` wants a list"))),
            };
            let bound = |side| match value {
                Value::Number(_) | Value::String(_) => {
                    Ok(Self::field(field, Test::Compare(side, value.clone())))
                }
                _ => Err(refused(format!("`{operator}` wants a number or a text"))),
            };
            let not = |filter: Self| Self::Not(Box::new(filter));
            match operator.as_str() {
                "$eq" => Ok(Self::field(field, Test::In(vec![value.clone()]))),
                "$ne" => Ok(not(Self::field(field, Test::In(vec![value.clone()])))),
                "$in" => Ok(Self::field(field, list()?)),
                "$nin" => Ok(not(Self::field(field, list()?))),
                "$gt" => bound(Side::Greater),
                "$gte" => bound(Side::AtLeast),
                "$lt" => bound(Side::Less),
                "$lte" => bound(Side::AtMost),
                "$exists" => match value {
                    Value::Bool(true) => Ok(Self::field(field, Test::Exists)),
                    Value::Bool(false) => Ok(not(Self::field(field, Test::Exists))),
                    _ => Err(refused("`$exists` wants true or false".into())),
                },
                "$not" => match value {
                    Value::Object(tests) => Ok(not(Self::tests(field, tests)?)),
                    _ => Err(refused("`$not` wants an object of tests".into())),
                },
                other => Err(refused(format!("`{other}` is not known here"))),
            }
        };
        Ok(Self::all(tests.iter().map(test).collect::<Result<_, _>>()?))
    }

    fn field(field: &str, test: Test) -> Self {
        Self::Field { field: field.to_owned(), test }
    }

    /// Whether a document with this metadata passes. The index asks each distinct value once instead.
    pub fn passes(&self, metadata: &Metadata) -> bool {
        match self {
            Self::All(filters) => filters.iter().all(|filter| filter.passes(metadata)),
            Self::Any(filters) => filters.iter().any(|filter| filter.passes(metadata)),
            Self::Not(filter) => !filter.passes(metadata),
            Self::Field { field, test } => {
                let fields = flattened(metadata);
                let found = fields.iter().rev().find(|(name, _)| name == field);
                found.is_some_and(|(_, value)| test.passes(value))
            }
        }
    }
}

impl<'de> Deserialize<'de> for Filter {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let filter = Self::from_json(&Value::deserialize(deserializer)?).map_err(serde::de::Error::custom)?;
        match filter.size() {
            size if size > LARGEST => Err(serde::de::Error::custom(format!(
                "filter: {size} conditions and values, at most {LARGEST} are taken"
            ))),
            _ => Ok(filter),
        }
    }
}

impl Test {
    /// Whether a value passes; of a list, whether one of its items does.
    pub fn passes(&self, value: &Value) -> bool {
        match (self, value) {
            (Self::Exists, _) => true,
            (_, Value::Array(items)) => items.iter().any(|item| self.passes_one(item)),
            _ => self.passes_one(value),
        }
    }

    fn passes_one(&self, value: &Value) -> bool {
        match self {
            Self::Exists => true,
            Self::In(values) => values.iter().any(|wanted| equal(wanted, value)),
            Self::Compare(side, bound) => compare(value, bound).is_some_and(|ordering| match side {
                Side::Less => ordering == Ordering::Less,
                Side::AtMost => ordering != Ordering::Greater,
                Side::Greater => ordering == Ordering::Greater,
                Side::AtLeast => ordering != Ordering::Less,
            }),
        }
    }
}

/// Fields with their full names; objects are opened, lists are not. Of two of one name (`{"a.b": 1, "a": {"b": 2}}`) the last
/// one counts.
pub fn flattened(metadata: &Metadata) -> Vec<(String, &Value)> {
    fn open<'a>(prefix: &str, metadata: &'a Metadata, fields: &mut Vec<(String, &'a Value)>) {
        for (name, value) in metadata {
            let name = format!("{prefix}{name}");
            match value {
                Value::Object(inner) => open(&format!("{name}."), inner, fields),
                value => fields.push((name, value)),
            }
        }
    }
    let mut fields = Vec::new();
    open("", metadata, &mut fields);
    fields
}

/// As much of what was sent as fits into a sentence.
fn short(text: &str) -> String {
    const LONGEST: usize = 100;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{} ...", &text[..end]),
        None => text.to_owned(),
    }
}

/// 2 and 2.0 are one number.
fn equal(a: &Value, b: &Value) -> bool {
    a == b || compare(a, b) == Some(Ordering::Equal)
}

fn compare(a: &Value, b: &Value) -> Option<Ordering> {
    match (a, b) {
        // As i128 all whole numbers of JSON compare exactly, signed or not.
        (Value::Number(a), Value::Number(b)) => match (a.as_i128(), b.as_i128()) {
            (Some(a), Some(b)) => Some(a.cmp(&b)),
            _ => a.as_f64()?.partial_cmp(&b.as_f64()?),
        },
        (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
        _ => None,
    }
}

/// What a typed value may mean: `2` is the number and, second, the text; `"2"` is the text only.
fn readings(text: &str) -> Vec<Value> {
    match serde_json::from_str(text) {
        Ok(value @ Value::String(_)) => vec![value],
        Ok(value @ (Value::Number(_) | Value::Bool(_) | Value::Null)) => {
            vec![value, Value::String(text.into())]
        }
        _ => vec![Value::String(text.into())],
    }
}

#[cfg(test)]
mod plain;

#[cfg(test)]
mod tests {
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
                let found: Vec<bool> =
                    documents.iter().map(|d| filter.passes(&metadata(d.clone()))).collect();
                assert_eq!(found, expected, "{typed} {sent} {filter:?}");
            }
        }
        let both =
            json!({"$or": [{"room": "bath"}, {"$and": [{"floor": {"$gte": 1, "$lt": 2}}, "tags=hot"]}]});
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
        for sent in
            [json!({"a": {"$gt": [long]}}), json!({"a": {long.as_str(): 1}}), json!(format!("{long} y"))]
        {
            assert!(Filter::from_json(&sent).unwrap_err().to_string().len() < 500);
        }
        let many = json!({"a": {"$in": (0..2000).collect::<Vec<i32>>()}});
        assert!(serde_json::from_value::<Filter>(many).is_err());
    }
}
