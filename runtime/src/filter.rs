//! Which documents a query may find: conditions on their metadata.
//!
//! Typed by a person, a condition is a line: `room=kitchen`, `room!=kitchen`, `floor>=2`, `room in kitchen,bath`,
//! `room not in bath`, `room` (has the field), `!room` (lacks it). Sent by a program it is the JSON that vector
//! databases agree on (MongoDB's): `{"room": "kitchen", "floor": {"$gte": 2}, "$or": [...]}`. Filters of other shapes that mean
//! the same are read as well; what has two meanings, or none here, is refused: it would silently find nothing.
//!
//! Where a document's value is a list, one of its items has to pass. A document without the field passes no test, and
//! hence every negated one. Numbers compare with numbers and texts with texts (ISO 8601 times in order of time); other
//! pairs do not compare. Fields of nested objects are reached by `outer.inner`.

use crate::document::Metadata;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use std::cmp::Ordering;
use std::collections::BTreeSet;

/// Most conditions and values that a program may send: each may look at every document.
const LARGEST: usize = 1000;

mod foreign;
mod sent;
mod typed;

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
#[error("filter {found}: {reason}; {way_out}")]
pub struct FilterError {
    found: String,
    reason: String,
    way_out: String,
}

impl FilterError {
    const EXAMPLES: &str = "expected e.g. `room=kitchen`, `floor>=2`, `room in kitchen,bath`, `!room`, or as JSON {\"floor\": {\"$gte\": 2}}";

    /// What was sent and why it is refused, as much of both as fits into a sentence.
    fn new(found: &str, reason: &str) -> Self {
        Self { found: short(found), reason: short(reason), way_out: Self::EXAMPLES.to_owned() }
    }

    /// With a way out of its own.
    fn or(self, way_out: impl Into<String>) -> Self {
        Self { way_out: way_out.into(), ..self }
    }
}

impl Filter {
    /// Passes everything.
    pub fn everything() -> Self {
        Self::All(Vec::new())
    }

    /// Reads conditions as people type them: one, or several joined by `and`.
    pub fn parse(text: &str) -> Result<Self, FilterError> {
        typed::parse(text)
    }

    /// Reads MongoDB's form: `$eq $ne $gt $gte $lt $lte $in $nin $all $between $exists` on fields, `$and $or $nor $not` around
    /// conditions; and what is asked alike by Qdrant's, LlamaIndex's, Haystack's and OpenAI's filters.
    pub fn from_json(value: &Value) -> Result<Self, FilterError> {
        sent::read(value)
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

    /// Names of all fields that are asked for.
    pub fn fields(&self) -> BTreeSet<&str> {
        match self {
            Self::All(filters) | Self::Any(filters) => filters.iter().flat_map(Self::fields).collect(),
            Self::Not(filter) => filter.fields(),
            Self::Field { field, .. } => [field.as_str()].into(),
        }
    }

    /// All of these hold.
    pub fn all(mut filters: Vec<Self>) -> Self {
        if filters.len() == 1 { filters.swap_remove(0) } else { Self::All(filters) }
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

#[cfg(test)]
mod plain;
#[cfg(test)]
mod tests;
