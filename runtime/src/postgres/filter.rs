//! A filter as SQL, with the meaning that [`Filter::passes`] gives it.
//!
//! A document's metadata lie flattened in the column `fields`: `{"room": ["kitchen"], "at.site": ["a"], "tags": ["wet",
//! "hot"]}`. Every value is a list there, so that a list and a single value are asked alike, and by the index where one
//! helps: `fields @> '{"room": ["kitchen"]}'`. Numbers with a fraction or an exponent keep a decimal point, which tells them
//! from whole ones: those compare exactly with each other, others as 64-bit floats.
//!
//! Whatever comes from a filter is a bound parameter. No predicate is ever NULL, so `NOT` is the plain opposite.

use super::error::PostgresError;
use crate::document::Metadata;
use crate::filter::{Filter, Side, Test, flattened};
use postgres::types::{ToSql, Type};
use serde_json::{Number, Value};
use std::collections::BTreeMap;

/// Up to here whole numbers and 64-bit floats agree, so that a decimal comparison is both.
const EXACT_FLOATS: f64 = 9_007_199_254_740_992.0;

/// A condition in SQL and what it is asked with.
#[derive(Debug, Clone, Default)]
pub(super) struct Condition {
    /// An expression that is true or false.
    pub sql: String,
    /// `$first`, `$first + 1`, ...
    pub values: Vec<Bound>,
    first: usize,
}

/// A bound parameter.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Bound {
    Text(String),
    Texts(Vec<String>),
}

impl Bound {
    /// As the client takes it.
    pub fn typed(&self) -> (&(dyn ToSql + Sync), Type) {
        match self {
            Self::Text(text) => (text, Type::TEXT),
            Self::Texts(texts) => (texts, Type::TEXT_ARRAY),
        }
    }
}

impl Condition {
    /// The condition of a filter, whose parameters are numbered from `first`; without a filter everything passes.
    pub fn new(filter: Option<&Filter>, first: usize) -> Result<Self, PostgresError> {
        let mut condition = Self { first, ..Self::default() };
        match filter {
            None => condition.sql.push_str("true"),
            Some(filter) if asks_for_nul(filter) => return Err(PostgresError::Filter),
            Some(filter) => condition.write(filter),
        }
        Ok(condition)
    }

    /// Its parameters, behind those that come before.
    pub fn after<'a>(
        &'a self,
        before: &[(&'a (dyn ToSql + Sync), Type)],
    ) -> Vec<(&'a (dyn ToSql + Sync), Type)> {
        before.iter().cloned().chain(self.values.iter().map(Bound::typed)).collect()
    }

    fn bind(&mut self, value: Bound) -> String {
        self.values.push(value);
        format!("${}", self.first + self.values.len() - 1)
    }

    fn write(&mut self, filter: &Filter) {
        match filter {
            Filter::All(filters) => self.join(filters, " AND ", "true"),
            Filter::Any(filters) => self.join(filters, " OR ", "false"),
            Filter::Not(filter) => {
                self.sql.push_str("NOT (");
                self.write(filter);
                self.sql.push(')');
            }
            Filter::Field { field, test } => self.test(field, test),
        }
    }

    fn join(&mut self, filters: &[Filter], between: &str, without: &str) {
        if filters.is_empty() {
            return self.sql.push_str(without);
        }
        for (i, filter) in filters.iter().enumerate() {
            self.sql.push_str(if i == 0 { "((" } else { between });
            if i > 0 {
                self.sql.push('(');
            }
            self.write(filter);
            self.sql.push(')');
        }
        self.sql.push(')');
    }

    fn test(&mut self, field: &str, test: &Test) {
        match test {
            Test::Exists => {
                let field = self.bind(Bound::Text(field.to_owned()));
                self.sql += &format!("fields ? {field}");
            }
            Test::In(values) => self.one_of(field, values),
            Test::Compare(side, Value::Number(bound)) if !floats_agree(bound) => {
                let cases = self.numbers(sign(*side), bound);
                self.items(field, &cases);
            }
            Test::Compare(side, bound @ (Value::Number(_) | Value::String(_))) => {
                // The path language compares numbers as decimals and texts by their bytes, and whatever else with nothing.
                let field = self.bind(Bound::Text(field.to_owned()));
                let bound = self.bind(Bound::Text(format!("{{\"bound\":{}}}", exact(bound))));
                let sign = sign(*side);
                self.sql += &format!(
                    "jsonb_path_exists(fields -> {field}, 'strict $[*] ? (@ {sign} $bound)', {bound}::text::jsonb) IS TRUE"
                );
            }
            // Other values compare with nothing.
            Test::Compare(..) => self.sql.push_str("false"),
        }
    }

    /// The value, or an item of the list, is one of these.
    fn one_of(&mut self, field: &str, values: &[Value]) {
        let (mut contained, mut written, mut cases) = (Vec::new(), Vec::new(), Vec::new());
        for value in values {
            match value {
                Value::Array(_) | Value::Object(_) => written.push(exact(value)),
                Value::Number(number) if !floats_agree(number) => {
                    cases.push(self.numbers("=", number));
                }
                value => {
                    contained.push(format!("{{{}:[{}]}}", Value::from(field), exact(value)));
                }
            }
        }
        let mut any = Vec::new();
        if !contained.is_empty() {
            let contained = self.bind(Bound::Texts(contained));
            any.push(format!("fields @> ANY ({contained}::text[]::jsonb[])"));
        }
        if !written.is_empty() {
            // Lists and objects are equal when they are written alike: the order of keys is the database's own.
            let written = self.bind(Bound::Texts(written));
            cases.push(format!(
                "item::text IN (SELECT value::jsonb::text FROM unnest({written}::text[]) AS value)"
            ));
        }
        if !cases.is_empty() {
            let field = self.bind(Bound::Text(field.to_owned()));
            any.push(items(&field, &cases.join(" OR ")));
        }
        if any.is_empty() {
            any.push("false".to_owned());
        }
        self.sql += &format!("({})", any.join(" OR "));
    }

    /// Whether an item is a number on this side of the bound.
    fn numbers(&mut self, sign: &str, bound: &Number) -> String {
        let whole = !bound.is_f64();
        let bound = self.bind(Bound::Text(number(bound)));
        let floats = format!("item::text::float8 {sign} {bound}::float8");
        let compared = if whole {
            format!(
                "CASE WHEN item::text LIKE '%.%' THEN {floats} ELSE item::text::numeric {sign} {bound}::numeric END"
            )
        } else {
            floats
        };
        format!("CASE jsonb_typeof(item) WHEN 'number' THEN {compared} ELSE false END")
    }

    fn items(&mut self, field: &str, cases: &str) {
        let field = self.bind(Bound::Text(field.to_owned()));
        self.sql += &items(&field, cases);
    }
}

/// Whether a field or a value holds a NUL character, which PostgreSQL's texts cannot.
fn asks_for_nul(filter: &Filter) -> bool {
    match filter {
        Filter::All(filters) | Filter::Any(filters) => filters.iter().any(asks_for_nul),
        Filter::Not(filter) => asks_for_nul(filter),
        Filter::Field { field, test } => {
            field.contains('\0')
                || match test {
                    Test::Exists => false,
                    Test::In(values) => values.iter().any(has_nul),
                    Test::Compare(_, bound) => has_nul(bound),
                }
        }
    }
}

/// Whether a number compares with any other the same as decimals and as 64-bit floats.
fn floats_agree(number: &Number) -> bool {
    number.as_f64().is_some_and(|x| x.abs() < EXACT_FLOATS)
}

/// Whether there is a NUL character anywhere in a value.
pub(super) fn has_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(items) => items.iter().any(has_nul),
        Value::Object(entries) => entries.iter().any(|(name, value)| name.contains('\0') || has_nul(value)),
        _ => false,
    }
}

fn items(field: &str, cases: &str) -> String {
    format!("EXISTS (SELECT FROM jsonb_array_elements(fields -> {field}) AS item WHERE {cases})")
}

fn sign(side: Side) -> &'static str {
    match side {
        Side::Less => "<",
        Side::AtMost => "<=",
        Side::Greater => ">",
        Side::AtLeast => ">=",
    }
}

/// The column `fields` of a document: full name to list of values. Of two fields of one name the last counts.
pub(super) fn fields(metadata: &Metadata) -> String {
    let fields: BTreeMap<String, &Value> = flattened(metadata).into_iter().collect();
    let entries = fields.iter().map(|(name, value)| match value {
        Value::Array(_) => format!("{}:{}", Value::from(name.as_str()), exact(value)),
        value => format!("{}:[{}]", Value::from(name.as_str()), exact(value)),
    });
    format!("{{{}}}", entries.collect::<Vec<_>>().join(","))
}

/// JSON whose numbers tell whether they are whole.
fn exact(value: &Value) -> String {
    match value {
        Value::Number(value) => number(value),
        Value::Array(items) => format!("[{}]", items.iter().map(exact).collect::<Vec<_>>().join(",")),
        Value::Object(entries) => {
            let entry =
                |(name, value): (&String, &Value)| format!("{}:{}", Value::from(name.as_str()), exact(value));
            format!("{{{}}}", entries.iter().map(entry).collect::<Vec<_>>().join(","))
        }
        value => value.to_string(),
    }
}

/// The shortest digits that read back as the same number, without an exponent; floats always have a decimal point.
fn number(number: &Number) -> String {
    match number.as_f64() {
        Some(float) if number.is_f64() => {
            let digits = float.to_string();
            if digits.contains('.') { digits } else { format!("{digits}.0") }
        }
        _ => number.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// What a client sends must never be read as SQL.
    #[test]
    fn nothing_of_a_filter_stands_in_the_sql() {
        let field = "room'); DROP TABLE rabtriever_documents; --";
        let filter = json!({
            "y": {"$gte": "'z"},
            "$or": [{"$not": {field: {"$exists": true}}}, {"n": {"$lt": 2}}],
        });
        let values = vec![json!("x'; --"), json!(3), json!(1e300), json!([1]), json!({"a": "$1"})];
        let one_of = Filter::Field { field: field.to_owned(), test: Test::In(values) };
        let filter = Filter::All(vec![one_of, Filter::from_json(&filter).unwrap()]);
        let condition = Condition::new(Some(&filter), 4).unwrap();
        for word in ["DROP", "room", "--", "'z", "'x", "1e300", "\"a\""] {
            assert!(!condition.sql.contains(word), "{word}: {}", condition.sql);
        }
        let last = 3 + condition.values.len();
        assert!(condition.sql.contains("$4") && condition.sql.contains(&format!("${last}")), "{condition:?}");
        assert!(!condition.sql.contains(&format!("${}", last + 1)) && !condition.sql.contains("$3"));
    }

    /// A whole number and a float differ beyond 53 bits only; written alike, they would be taken for each other.
    #[test]
    fn metadata_are_flattened_and_numbers_keep_their_kind() {
        let metadata = json!({
            "a": {"x": 1, "deep": {"y": [1, 2.0]}}, "a.x": "later", "big": u64::MAX, "float": 1e16, "small": 1.5e-7, "none": {}, "l": []
        });
        let expected = r#"{"a.deep.y":[1,2.0],"a.x":["later"],"big":[18446744073709551615],"float":[10000000000000000.0],"l":[],"small":[0.00000015]}"#;
        assert_eq!(fields(metadata.as_object().unwrap()), expected);
    }

    /// PostgreSQL has no NUL in texts: a filter with one is told so instead of failing inside the server.
    #[test]
    fn a_nul_is_refused() {
        for filter in [json!({"a": "x\0"}), json!({"a\0": {"$exists": true}}), json!({"a": {"$lt": "\0"}})] {
            let refused = Condition::new(Some(&Filter::from_json(&filter).unwrap()), 1).unwrap_err();
            assert!(refused.to_string().contains("NUL"), "{refused}");
        }
    }
}
