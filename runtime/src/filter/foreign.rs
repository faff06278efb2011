//! Filters as other programs write them. Read as MongoDB's form they would be equalities with fields that no document has.
//!
//! * Qdrant: `{"must": [{"key": "room", "match": {"value": "kitchen"}}], "should": [...], "must_not": [...]}`
//! * LlamaIndex: `{"filters": [{"key": "room", "value": "kitchen", "operator": "=="}], "condition": "and"}`
//! * Haystack: `{"operator": "AND", "conditions": [{"field": "meta.room", "operator": "==", "value": "kitchen"}]}`
//! * OpenAI's vector stores: `{"type": "and", "filters": [{"type": "eq", "key": "room", "value": "kitchen"}]}`
//!
//! Fields that are `null` are not there: clients write all that they have.

use super::{Filter, FilterError, Test, sent, short};
use serde_json::{Map, Value};

type Object = Map<String, Value>;

/// What is asked, if an object is of one of these shapes.
pub(super) fn read(object: &Object) -> Option<Result<Filter, FilterError>> {
    let structured = |key: &&str| match object.get(*key) {
        Some(Value::Array(_)) => true,
        Some(Value::Object(inner)) => !inner.keys().any(|key| key.starts_with('$')),
        _ => false,
    };
    let (list, text) = (|key| object.get(key).is_some_and(Value::is_array), |key| object.get(key)?.as_str());
    if ["must", "should", "must_not", "min_should"].iter().any(structured) {
        return Some(qdrant(object));
    }
    if text("key").is_some() && ["match", "range"].iter().any(structured)
        || ["is_null", "is_empty"].iter().any(structured)
    {
        return Some(qdrant_condition(object));
    }
    if list("filters") {
        return Some(if object.contains_key("type") { openai(object) } else { llama_index(object) });
    }
    if list("conditions") && text("operator").is_some() {
        return Some(haystack(object));
    }
    let of = |keys: [&str; 3]| object.len() == keys.len() && keys.iter().all(|key| object.contains_key(*key));
    // Three fields of these names may be a document's own, but hardly with such a value.
    match (text("operator"), text("type")) {
        (Some(operator), _) if of(["field", "operator", "value"]) && sign(operator).is_some() => {
            Some(haystack(object))
        }
        (Some(operator), _) if of(["key", "operator", "value"]) && sign(operator).is_some() => {
            Some(llama_index_filter(object))
        }
        (_, Some(name)) if of(["type", "key", "value"]) && word(name).is_some() => Some(openai(object)),
        _ if object.len() == 2 && text("key").is_some() && object.contains_key("value") => {
            Some(Err(refused(object, "is one filter of a program, or asks for the fields `key` and `value`")
                .or("write {\"room\": \"kitchen\"}, or {\"$and\": [{\"key\": ...}, {\"value\": ...}]}")))
        }
        _ => None,
    }
}

/// Operators that Haystack and LlamaIndex share, as MongoDB's.
fn sign(operator: &str) -> Option<&'static str> {
    Some(match operator {
        "==" => "$eq",
        "!=" => "$ne",
        ">" => "$gt",
        ">=" => "$gte",
        "<" => "$lt",
        "<=" => "$lte",
        "in" => "$in",
        "nin" | "not in" => "$nin",
        _ => return None,
    })
}

/// OpenAI's operators, as MongoDB's.
fn word(name: &str) -> Option<&'static str> {
    Some(match name {
        "eq" => "$eq",
        "ne" => "$ne",
        "gt" => "$gt",
        "gte" => "$gte",
        "lt" => "$lt",
        "lte" => "$lte",
        "in" => "$in",
        "nin" => "$nin",
        _ => return None,
    })
}

fn refused(object: &Object, reason: &str) -> FilterError {
    FilterError::new(&Value::Object(object.clone()).to_string(), reason)
}

/// Entries that are not `null`, all of them among `known`.
fn entries<'a>(
    object: &'a Object,
    whose: &str,
    known: &[&str],
) -> Result<Vec<(&'a str, &'a Value)>, FilterError> {
    let entries =
        object.iter().filter(|(_, value)| !value.is_null()).map(|(key, value)| (key.as_str(), value));
    let entries: Vec<_> = entries.collect();
    match entries.iter().find(|(key, _)| !known.contains(key)) {
        Some((key, _)) => {
            Err(refused(object, &format!("`{}` of {whose} filters is not known here", short(key))))
        }
        None => Ok(entries),
    }
}

fn text<'a>(object: &'a Object, key: &str) -> Result<&'a str, FilterError> {
    let found = object.get(key).and_then(Value::as_str);
    found.ok_or_else(|| refused(object, &format!("`{key}` is missing or no text")))
}

fn each(
    object: &Object,
    value: &Value,
    read: impl Fn(&Object) -> Result<Filter, FilterError>,
) -> Result<Vec<Filter>, FilterError> {
    let read = |value: &Value| match value {
        Value::Object(object) => read(object),
        _ => Err(refused(object, "a condition is not an object")),
    };
    match value {
        Value::Array(conditions) => conditions.iter().map(read).collect(),
        condition => Ok(vec![read(condition)?]),
    }
}

// --- Qdrant ---

fn qdrant(object: &Object) -> Result<Filter, FilterError> {
    let mut all = Vec::new();
    for (key, value) in entries(object, "Qdrant's", &["must", "should", "must_not"])? {
        let conditions = each(object, value, qdrant_condition)?;
        match key {
            "must" => all.extend(conditions),
            "must_not" => {
                all.extend(conditions.into_iter().map(|condition| Filter::Not(Box::new(condition))))
            }
            // Without any, nothing is asked for.
            _ if conditions.is_empty() => {}
            _ => all.push(Filter::Any(conditions)),
        }
    }
    Ok(Filter::all(all))
}

fn qdrant_condition(object: &Object) -> Result<Filter, FilterError> {
    if ["must", "should", "must_not", "min_should"].iter().any(|key| object.contains_key(*key)) {
        return qdrant(object);
    }
    let field = |object: &Object| {
        let key = text(object, "key")?;
        let key = key.strip_suffix("[]").unwrap_or(key);
        match key.contains(['[', '"']) {
            true => Err(refused(object, "lists of objects are not opened here")),
            false => Ok(key.to_owned()),
        }
    };
    match (object.get("is_null"), object.get("is_empty")) {
        (Some(Value::Object(inner)), None) => {
            return Ok(Filter::field(&field(inner)?, Test::In(vec![Value::Null])));
        }
        (None, Some(Value::Object(inner))) => {
            let way_out = format!("write {{\"{}\": {{\"$exists\": false}}}}", short(&field(inner)?));
            return Err(refused(
                object,
                "`is_empty` takes a field that is missing, null or an empty list for one",
            )
            .or(way_out));
        }
        _ => {}
    }
    let (field, mut all) = (field(object)?, Vec::new());
    let tests = entries(object, "Qdrant's", &["key", "match", "range"])?;
    for (key, value) in tests.into_iter().filter(|(key, _)| *key != "key") {
        let Value::Object(inner) = value else {
            return Err(refused(object, &format!("`{key}` is not an object")));
        };
        for (name, value) in inner.iter().filter(|(_, value)| !value.is_null()) {
            let operator = match (key, name.as_str()) {
                ("match", "value") => "$eq",
                ("match", "any") => "$in",
                ("match", "except") => {
                    return Err(refused(object, "`except` also finds lists with a value beside these")
                        .or("write `must_not` with `any`"));
                }
                ("match", "text" | "text_any" | "phrase") => {
                    let reason = format!("`{name}` looks into texts, and filters compare whole values");
                    return Err(refused(object, &reason).or("ask for the words in the query, or use `any`"));
                }
                ("range", "gt" | "gte" | "lt" | "lte") => word(name).unwrap_or_default(),
                _ => return Err(refused(object, &format!("`{}` of `{key}` is not known here", short(name)))),
            };
            all.push(sent::test(&field, operator, value)?);
        }
    }
    if all.is_empty() {
        return Err(refused(object, "asks for nothing").or("give `match` or `range`"));
    }
    Ok(Filter::all(all))
}

// --- LlamaIndex ---

fn llama_index(object: &Object) -> Result<Filter, FilterError> {
    entries(object, "LlamaIndex's", &["filters", "condition"])?;
    let filters = each(object, &object["filters"], |inner| match inner.contains_key("filters") {
        true => llama_index(inner),
        false => llama_index_filter(inner),
    })?;
    match object.get("condition").and_then(Value::as_str) {
        _ if filters.is_empty() => Ok(Filter::everything()),
        None | Some("and") => Ok(Filter::all(filters)),
        Some("or") => Ok(Filter::Any(filters)),
        // Of several, stores differ in whether all or any must fail.
        Some("not") if filters.len() == 1 => Ok(Filter::Not(Box::new(Filter::all(filters)))),
        Some(other) => Err(refused(
            object,
            &format!("the condition `{}` is not `and`, `or`, or `not` of one filter", short(other)),
        )),
    }
}

fn llama_index_filter(object: &Object) -> Result<Filter, FilterError> {
    entries(object, "LlamaIndex's", &["key", "value", "operator"])?;
    let (field, value) = (text(object, "key")?, object.get("value").unwrap_or(&Value::Null));
    let operator = match object.get("operator").and_then(Value::as_str).unwrap_or("==") {
        "any" => "$in",
        "all" => "$all",
        // An item of a list, by its definition there.
        "contains" => "$eq",
        "is_empty" => {
            return Err(refused(
                object,
                "`is_empty` takes a field that is missing, null or an empty list for one",
            )
            .or(format!("write {{\"{}\": {{\"$exists\": false}}}}", short(field))));
        }
        other => sign(other)
            .ok_or_else(|| refused(object, &format!("the operator `{}` is not known here", short(other))))?,
    };
    sent::test(field, operator, value)
}

// --- Haystack ---

fn haystack(object: &Object) -> Result<Filter, FilterError> {
    let operator = text(object, "operator")?;
    let Some(conditions) = object.get("conditions") else {
        entries(object, "Haystack's", &["field", "operator", "value"])?;
        let field = text(object, "field")?;
        let operator = sign(operator).ok_or_else(|| {
            refused(object, &format!("the operator `{}` is not known here", short(operator)))
        })?;
        let value = object.get("value").unwrap_or(&Value::Null);
        return sent::test(field.strip_prefix("meta.").unwrap_or(field), operator, value);
    };
    entries(object, "Haystack's", &["operator", "conditions"])?;
    let conditions = each(object, conditions, haystack)?;
    match operator.to_ascii_uppercase().as_str() {
        "AND" => Ok(Filter::all(conditions)),
        "OR" => Ok(Filter::Any(conditions)),
        "NOT" => Ok(Filter::Not(Box::new(Filter::all(conditions)))),
        _ => Err(refused(object, &format!("the operator `{}` is not `AND`, `OR` or `NOT`", short(operator)))),
    }
}

// --- OpenAI ---

fn openai(object: &Object) -> Result<Filter, FilterError> {
    let name = text(object, "type")?;
    let Some(filters) = object.get("filters") else {
        entries(object, "OpenAI's", &["type", "key", "value"])?;
        let operator = word(name)
            .ok_or_else(|| refused(object, &format!("the type `{}` is not known here", short(name))))?;
        return sent::test(text(object, "key")?, operator, object.get("value").unwrap_or(&Value::Null));
    };
    entries(object, "OpenAI's", &["type", "filters"])?;
    let filters = each(object, filters, openai)?;
    match name {
        "and" => Ok(Filter::all(filters)),
        "or" => Ok(Filter::Any(filters)),
        other => Err(refused(object, &format!("the type `{}` is not `and` or `or`", short(other)))),
    }
}
