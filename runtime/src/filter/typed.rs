//! Conditions as people type them.

use super::{Filter, FilterError, Side, Test};
use serde_json::Value;

/// Reads conditions joined by `and`, or JSON.
pub(super) fn parse(text: &str) -> Result<Filter, FilterError> {
    let trimmed = text.trim();
    if trimmed.starts_with(['{', '[']) {
        let value = serde_json::from_str(trimmed).map_err(|e| refused(text, &e.to_string()))?;
        return Filter::from_json(&value);
    }
    let mut filters = Vec::new();
    // Whether the condition before ends in a value without quotes, to which an `and` may belong.
    let mut open = false;
    for part in split(trimmed, |word| word.eq_ignore_ascii_case("and")) {
        let (filter, value) = condition(part)?;
        if open && value.is_none() && !part.starts_with('!') {
            return Err(refused(text, "`and` may belong to the value or join two conditions")
                .or("put the value in quotes, e.g. `team=\"R and D\"`, or give each condition for itself"));
        }
        open = value.is_some_and(|value| !value.ends_with(['"', '\'', ')', ']']));
        filters.push(filter);
    }
    Ok(Filter::all(filters))
}

fn refused(found: &str, reason: &str) -> FilterError {
    FilterError::new(&format!("`{}`", super::short(found.trim())), reason)
}

/// One condition, and the value in it.
fn condition(text: &str) -> Result<(Filter, Option<&str>), FilterError> {
    let exists = |field: &str| Filter::field(field, Test::Exists);
    if let Some(rest) = text.strip_prefix('!') {
        let (field, rest) = field(text, rest.trim_start())?;
        return match rest {
            "" => Ok((Filter::Not(Box::new(exists(&field))), None)),
            _ => Err(refused(text, "behind `!` stands more than a field")),
        };
    }
    let (name, rest) = field(text, text)?;
    if rest.is_empty() {
        if let Some(sign) = name.chars().find(|c| matches!(c, ':' | '~')) {
            return Err(refused(text, &format!("`{sign}` compares nothing")).or(
                "write e.g. `room=kitchen`, or {\"a:b\": {\"$exists\": true}} for a field of such a name",
            ));
        }
        return Ok((exists(&name), None));
    }
    let end = rest.find(|c| !matches!(c, '=' | '<' | '>' | '!' | '~')).unwrap_or(rest.len());
    let (operator, value) = if end > 0 { (&rest[..end], &rest[end..]) } else { word_operator(text, rest)? };
    let value = value.trim();
    if value.is_empty() {
        return Err(refused(text, "there is no value"));
    }
    if let Some(word) = joined(value) {
        return Err(refused(text, &format!("`{word}` joins no conditions here"))
            .or("write `and`, `room in kitchen,bath`, {\"$or\": [...]}, or put the value in quotes"));
    }
    let one = || readings(text, value).map(Test::In);
    let bound = |side| match readings(text, value)?.swap_remove(0) {
        // A bound has one reading: what looks like a number is one.
        bound @ (Value::Number(_) | Value::String(_)) => Ok(Test::Compare(side, bound)),
        _ => Err(refused(text, "a bound is a number or a text").or("put a text in quotes")),
    };
    let (test, negated) = match operator {
        "=" | "==" | "===" => (one()?, false),
        "!=" | "!==" | "<>" => (one()?, true),
        ">" => (bound(Side::Greater)?, false),
        ">=" => (bound(Side::AtLeast)?, false),
        "<" => (bound(Side::Less)?, false),
        "<=" => (bound(Side::AtMost)?, false),
        "in" => (list(text, value)?, false),
        "not in" => (list(text, value)?, true),
        _ => {
            let reason = format!("`{operator}` is not an operator");
            let way_out = match operator {
                "=>" => "write `>=`",
                "=<" => "write `<=`",
                _ => "write `=`, `!=`, `>`, `>=`, `<` or `<=`",
            };
            return Err(
                refused(text, &reason).or(format!("{way_out}, and put a value that begins so in quotes"))
            );
        }
    };
    let filter = Filter::field(&name, test);
    Ok((if negated { Filter::Not(Box::new(filter)) } else { filter }, Some(value)))
}

/// The field that `rest` begins with, and what comes behind it.
fn field<'a>(text: &str, rest: &'a str) -> Result<(String, &'a str), FilterError> {
    if rest.starts_with('"') {
        let end = quoted(rest).ok_or_else(|| refused(text, "the quotes around the field do not end"))?;
        let name = serde_json::from_str(&rest[..end]).map_err(|e| refused(text, &e.to_string()))?;
        return Ok((name, rest[end..].trim_start()));
    }
    let end = rest.find(|c: char| c.is_whitespace() || matches!(c, '=' | '<' | '>' | '!'));
    let (name, rest) = rest.split_at(end.unwrap_or(rest.len()));
    let strange = name.contains(['"', '\'', '`']) || (!rest.is_empty() && name.ends_with([':', '~']));
    if name.is_empty() || strange {
        return Err(refused(text, "the field is not one word"));
    }
    Ok((name.to_owned(), rest.trim_start()))
}

/// `in` or `not in` that `rest` begins with, and what comes behind it.
fn word_operator<'a>(text: &str, rest: &'a str) -> Result<(&'static str, &'a str), FilterError> {
    let after = |rest: &'a str, word: &str| {
        let behind = rest.get(..word.len()).filter(|found| found.eq_ignore_ascii_case(word));
        let behind = behind.map(|_| &rest[word.len()..])?;
        behind.starts_with(|c: char| c.is_whitespace() || matches!(c, '[' | '(')).then(|| behind.trim_start())
    };
    if let Some(value) = after(rest, "in") {
        return Ok(("in", value));
    }
    match after(rest, "not").and_then(|rest| after(rest, "in")) {
        Some(value) => Ok(("not in", value)),
        None => Err(refused(text, "the field is not one word, or no operator follows it")),
    }
}

/// Values between commas, in brackets or without.
fn list(text: &str, value: &str) -> Result<Test, FilterError> {
    let inner = [('[', ']'), ('(', ')')].into_iter().find_map(|(open, close)| {
        value.strip_prefix(open).and_then(|value| value.strip_suffix(close)).map(str::trim)
    });
    let mut values = Vec::new();
    let mut rest = inner.unwrap_or(value);
    loop {
        let end = bare(rest).find(|(_, c)| *c == ',').map(|(place, _)| place);
        let item = rest[..end.unwrap_or(rest.len())].trim();
        if item.is_empty() {
            return Err(refused(text, "a value of the list is empty").or("write \"\" for the empty text"));
        }
        values.extend(readings(text, item)?);
        match end {
            Some(end) => rest = &rest[end + 1..],
            None => return Ok(Test::In(values)),
        }
    }
}

/// What a typed value may mean: `2` is the number and, second, the text; `"2"` is the text only; Python's `True`, `False` and
/// `None` are JSON's.
fn readings(text: &str, value: &str) -> Result<Vec<Value>, FilterError> {
    if value.starts_with('"') {
        return match serde_json::from_str(value) {
            Ok(value @ Value::String(_)) => Ok(vec![value]),
            _ => Err(refused(text, "the quotes do not enclose the value")),
        };
    }
    let single = value.strip_prefix('\'').and_then(|value| value.strip_suffix('\''));
    if let Some(inner) = single.filter(|inner| !inner.contains('\'')) {
        return Ok(vec![Value::from(inner)]);
    }
    let read = match value {
        "True" => Some(Value::Bool(true)),
        "False" => Some(Value::Bool(false)),
        "None" => Some(Value::Null),
        value => match serde_json::from_str(&number(value)) {
            Ok(value @ (Value::Number(_) | Value::Bool(_) | Value::Null)) => Some(value),
            _ => None,
        },
    };
    Ok(read.into_iter().chain([Value::from(value)]).collect())
}

/// `.5`, `5.` and `+5` as JSON writes them.
fn number(value: &str) -> String {
    let (sign, digits) = match value.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", value.strip_prefix('+').unwrap_or(value)),
    };
    let digits = digits.strip_suffix('.').unwrap_or(digits);
    format!("{sign}{}{digits}", if digits.starts_with('.') { "0" } else { "" })
}

/// A word between spaces that joins conditions elsewhere.
fn joined(value: &str) -> Option<&'static str> {
    ["or", "||", "&&"]
        .into_iter()
        .find(|joint| split(value, |word| word.eq_ignore_ascii_case(joint)).len() > 1)
}

/// The parts between words that are `between`, those in quotes excepted; a word at the beginning or end joins nothing.
fn split(text: &str, between: impl Fn(&str) -> bool) -> Vec<&str> {
    let (mut parts, mut start) = (Vec::new(), 0);
    for (place, _) in bare(text).filter(|(place, _)| text[..*place].ends_with(char::is_whitespace)) {
        let word = text[place..].split(char::is_whitespace).next().unwrap_or_default();
        if place > start && place + word.len() < text.len() && between(word) {
            parts.push(text[start..place].trim());
            start = place + word.len();
        }
    }
    parts.push(text[start..].trim());
    parts
}

/// Characters outside of quotes, with their places.
fn bare(text: &str) -> impl Iterator<Item = (usize, char)> {
    let (mut end, mut before) = (0, ' ');
    text.char_indices().filter(move |&(place, c)| {
        if place < end {
            return false;
        }
        let opens = matches!(c, '"' | '\'') && (before.is_whitespace() || "=<>,([!".contains(before));
        before = c;
        match opens.then(|| quoted(&text[place..])).flatten() {
            Some(length) => {
                end = place + length;
                before = '"';
                false
            }
            None => true,
        }
    })
}

/// Length of the text in quotes that `text` begins with.
fn quoted(text: &str) -> Option<usize> {
    let quote = text.chars().next()?;
    let mut escaped = false;
    for (place, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' if quote == '"' => escaped = true,
            c if c == quote => return Some(place + 1),
            _ => {}
        }
    }
    None
}
