//! Conditions as programs send them: MongoDB's form.

use super::{Filter, FilterError, Side, Test, foreign, short};
use serde_json::{Map, Value};

/// Operators of this form, without their `$`.
const OPERATORS: [&str; 11] = ["eq", "ne", "gt", "gte", "lt", "lte", "in", "nin", "all", "between", "exists"];

pub(super) fn read(value: &Value) -> Result<Filter, FilterError> {
    let refused = |reason: &str| FilterError::new(&value.to_string(), reason);
    match value {
        Value::Object(conditions) => {
            if let Some(filter) = foreign::read(conditions) {
                return filter;
            }
            let conditions = conditions.iter().map(|(key, value)| entry(key, value));
            Ok(Filter::all(conditions.collect::<Result<_, _>>()?))
        }
        // A program may also send the lines that people type; JSON within them could nest without end.
        Value::String(text) if text.trim_start().starts_with(['{', '[']) => {
            Err(refused("is JSON in a text; send it as JSON"))
        }
        Value::String(text) => Filter::parse(text),
        Value::Array(filters) => Ok(Filter::all(filters.iter().map(read).collect::<Result<_, _>>()?)),
        _ => Err(refused("is not an object")),
    }
}

fn entry(key: &str, value: &Value) -> Result<Filter, FilterError> {
    let refused = |reason: String| FilterError::new(&format!("{{\"{key}\": {value}}}"), &reason);
    let several = || -> Result<Vec<Filter>, FilterError> {
        match value {
            Value::Array(filters) => filters.iter().map(read).collect(),
            _ => Err(refused(format!("`{key}` wants a list of conditions"))),
        }
    };
    match key {
        "$and" => Ok(Filter::All(several()?)),
        "$or" => Ok(Filter::Any(several()?)),
        "$nor" => match several()? {
            filters if filters.is_empty() => Err(refused("`$nor` wants at least one condition".into())),
            filters => Ok(not(Filter::Any(filters))),
        },
        "$not" => Ok(not(read(value)?)),
        _ if key.starts_with('$') => Err(refused(format!("`{key}` is not known here"))),
        field => match value {
            Value::Object(given) if given.keys().any(|key| key.starts_with('$')) => tests(field, given),
            Value::Object(given) => {
                let missing = given.keys().find(|key| OPERATORS.contains(&key.as_str()));
                Err(match missing {
                    Some(name) => refused(format!("`{name}` is no operator")).or(format!("write `${name}`")),
                    None => refused("compares with an object".into()).or("write `outer.inner`"),
                })
            }
            value => {
                let value = one(value).map_err(|(reason, way_out)| refused(reason.into()).or(way_out))?;
                Ok(Filter::field(field, Test::In(vec![value])))
            }
        },
    }
}

fn not(filter: Filter) -> Filter {
    Filter::Not(Box::new(filter))
}

/// A value that a field can be compared with, or why not and the way out.
fn one(value: &Value) -> Result<Value, (&'static str, &'static str)> {
    match value {
        // Equal to the whole list, to one item, or having all: each is meant by somebody.
        Value::Array(_) => Err((
            "compares with a list",
            "write {\"$in\": [...]} for one of these values, {\"$all\": [...]} for all of them",
        )),
        Value::Object(_) => Err(("compares with an object", "write `outer.inner`")),
        value => Ok(value.clone()),
    }
}

fn refuse(field: &str, operator: &str, value: &Value) -> impl Fn((&str, &str)) -> FilterError {
    let found = format!("{{\"{field}\": {{\"{operator}\": {value}}}}}");
    move |(reason, way_out)| FilterError::new(&found, reason).or(way_out)
}

/// `{"$gte": 1, "$lt": 3}` on a field.
pub(super) fn tests(field: &str, tests: &Map<String, Value>) -> Result<Filter, FilterError> {
    let tests = tests.iter().map(|(operator, value)| test(field, operator, value));
    Ok(Filter::all(tests.collect::<Result<_, _>>()?))
}

/// One of them.
pub(super) fn test(field: &str, operator: &str, value: &Value) -> Result<Filter, FilterError> {
    let refuse = refuse(field, operator, value);
    let unknown =
        |reason: String| FilterError::new(&format!("{{\"{field}\": {{\"{operator}\": {value}}}}}"), &reason);
    let single = || one(value).map_err(&refuse);
    let list = || match value {
        Value::Array(values) => values.iter().map(one).collect::<Result<Vec<_>, _>>().map_err(&refuse),
        _ => Err(unknown(format!("`{operator}` wants a list"))),
    };
    let bound = |side, value: &Value| match value {
        Value::Number(_) | Value::String(_) => Ok(Filter::field(field, Test::Compare(side, value.clone()))),
        _ => Err(unknown(format!("`{operator}` wants a number or a text"))),
    };
    match operator {
        "$eq" => Ok(Filter::field(field, Test::In(vec![single()?]))),
        "$ne" => Ok(not(Filter::field(field, Test::In(vec![single()?])))),
        "$in" => Ok(Filter::field(field, Test::In(list()?))),
        "$nin" => Ok(not(Filter::field(field, Test::In(list()?)))),
        "$all" => match list()? {
            values if values.is_empty() => Err(unknown("`$all` wants at least one value".into())),
            values => {
                let each = values.into_iter().map(|value| Filter::field(field, Test::In(vec![value])));
                Ok(Filter::all(each.collect()))
            }
        },
        "$gt" => bound(Side::Greater, value),
        "$gte" => bound(Side::AtLeast, value),
        "$lt" => bound(Side::Less, value),
        "$lte" => bound(Side::AtMost, value),
        "$between" => match value.as_array().map(Vec::as_slice) {
            Some([least, most]) => {
                Ok(Filter::All(vec![bound(Side::AtLeast, least)?, bound(Side::AtMost, most)?]))
            }
            _ => Err(unknown("`$between` wants a list of two bounds".into())),
        },
        "$exists" => match value {
            Value::Bool(true) => Ok(Filter::field(field, Test::Exists)),
            Value::Bool(false) => Ok(not(Filter::field(field, Test::Exists))),
            _ => Err(unknown("`$exists` wants true or false".into())),
        },
        "$not" => match value {
            Value::Object(given) => Ok(not(self::tests(field, given)?)),
            _ => Err(unknown("`$not` wants an object of tests".into())),
        },
        "$contains" | "$not_contains" => Err(unknown(format!("`{operator}` has two meanings")).or(format!(
            "write {{\"{}\": value}} for an item of a list; texts are searched by the query, not by filters",
            short(field)
        ))),
        "$like" | "$ilike" | "$regex" | "$text" | "$search" => {
            Err(unknown(format!("`{operator}` looks into texts, and filters compare whole values"))
                .or("ask for the words in the query, or name the values with `$in`"))
        }
        other => Err(unknown(format!("`{other}` is not known here"))),
    }
}
