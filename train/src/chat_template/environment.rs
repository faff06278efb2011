//! The Jinja that chat templates are written for: `apply_chat_template` of transformers
//! (<https://github.com/huggingface/transformers/blob/main/src/transformers/utils/chat_template_utils.py>).

use super::dialect::translate;
use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, Value, escape_formatter};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde_json::Value as Json;

/// A chat template, parsed.
pub(super) struct Template {
    environment: Environment<'static>,
}

const NAME: &str = "chat_template";

impl Template {
    pub(super) fn parse(source: &str) -> Result<Self, Error> {
        let mut environment = Environment::new();
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment
            .add_function("raise_exception", |text: String| -> Result<String, Error> { Err(refuse(text)) });
        environment.add_function("strftime_now", |format: String| on_the_day(&format));
        environment.add_filter("tojson", to_json);
        // Jinja's: a text is, nothing is not. `tools is iterable and tools | length > 0` depends on it.
        environment.add_test("iterable", |value: &Value| {
            value.as_str().is_some() || (!value.is_none() && value.try_iter().is_ok())
        });
        environment.set_formatter(|out, state, value| match value.kind() {
            ValueKind::None => Ok(out.write_str("None")?),
            ValueKind::Bool => Ok(out.write_str(if value.is_true() { "True" } else { "False" })?),
            _ => escape_formatter(out, state, value),
        });
        environment.add_filter("percent", percent);
        environment.add_template_owned(NAME, translate(source))?;
        Ok(Self { environment })
    }

    pub(super) fn render(&self, context: Value) -> Result<String, Error> {
        self.environment.get_template(NAME)?.render(context)
    }
}

fn refuse(text: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, text)
}

/// `strftime` on a fixed day, so that the same model is imported the same on every day: 1 January 2025, a Wednesday, at noon.
fn on_the_day(format: &str) -> String {
    let mut told = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            told.push(c);
            continue;
        }
        let mut directive = chars.next();
        // `%-d`: without a leading zero.
        let short = directive == Some('-');
        if short {
            directive = chars.next();
        }
        let text = match directive {
            Some('Y') => "2025",
            Some('y') => "25",
            Some('m' | 'd') => "01",
            Some('e') => " 1",
            Some('B') => "January",
            Some('b' | 'h') => "Jan",
            Some('A') => "Wednesday",
            Some('a') => "Wed",
            Some('H' | 'I') => "12",
            Some('M' | 'S') => "00",
            Some('p') => "PM",
            Some('j') => "001",
            Some('u' | 'w') => "3",
            Some('F') => "2025-01-01",
            Some('T' | 'X') => "12:00:00",
            Some('D' | 'x') => "01/01/25",
            Some('z' | 'Z') | None => "",
            Some('%') => "%",
            Some(_) => "0",
        };
        told.push_str(if short { text.trim_start_matches('0').trim_start() } else { text });
    }
    told
}

/// Python's `%`: formats a text, else the remainder, which has the divisor's sign.
fn percent(state: &State, left: Value, right: Value) -> Result<Value, Error> {
    if left.as_str().is_some() {
        // A tuple is several values; minijinja has lists only.
        let values: Vec<Value> = match right.kind() {
            ValueKind::Seq => right.try_iter()?.collect(),
            _ => vec![right],
        };
        let arguments: Vec<Value> = [left].into_iter().chain(values).collect();
        return state.apply_filter("format", &arguments);
    }
    let whole = |value: &Value| i128::try_from(value.clone()).ok().filter(|_| value.is_integer());
    if let (Some(a), Some(b)) = (whole(&left), whole(&right)) {
        let remainder = a.checked_rem(b).ok_or_else(|| refuse("division by zero".to_owned()))?;
        return Ok(Value::from(if remainder != 0 && (remainder < 0) != (b < 0) {
            remainder + b
        } else {
            remainder
        }));
    }
    match (f64::try_from(left.clone()), f64::try_from(right.clone())) {
        (Ok(a), Ok(b)) if b != 0.0 => Ok(Value::from(a - b * (a / b).floor())),
        _ => Err(refuse(format!("`{left} % {right}`: neither a text to format nor numbers"))),
    }
}

/// transformers' `tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`: Python's `json.dumps`.
fn to_json(value: Value, positional: Rest<Value>, named: Kwargs) -> Result<Value, Error> {
    let argument = |place: usize, name: &str| -> Result<Option<Value>, Error> {
        let given = match positional.get(place) {
            Some(value) => Some(value.clone()),
            None => named.get::<Option<Value>>(name)?,
        };
        Ok(given.filter(|value| !value.is_none() && !value.is_undefined()))
    };
    let flag = |place, name| Ok::<bool, Error>(argument(place, name)?.is_some_and(|value| value.is_true()));
    let indent = match argument(1, "indent")? {
        Some(indent) if indent.as_str().is_some() => indent.as_str().map(str::to_owned),
        Some(indent) => Some(" ".repeat(usize::try_from(indent)?)),
        None => None,
    };
    let (item, key) = match argument(2, "separators")? {
        Some(separators) => {
            let texts: Vec<String> = separators.try_iter()?.map(|text| text.to_string()).collect();
            let [item, key] = <[String; 2]>::try_from(texts)
                .map_err(|_| refuse("tojson: separators are two texts".to_owned()))?;
            (item, key)
        }
        None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        None => (", ".to_owned(), ": ".to_owned()),
    };
    let style = JsonStyle {
        ensure_ascii: flag(0, "ensure_ascii")?,
        indent,
        item,
        key,
        sort_keys: flag(3, "sort_keys")?,
    };
    named.assert_all_used()?;
    if value.is_undefined() {
        return Err(refuse("tojson: the value is undefined".to_owned()));
    }
    let json = serde_json::to_value(&value).map_err(|error| refuse(format!("tojson: {error}")))?;
    let mut text = String::new();
    style.write(&json, 0, &mut text);
    Ok(Value::from(text))
}

struct JsonStyle {
    ensure_ascii: bool,
    indent: Option<String>,
    item: String,
    key: String,
    sort_keys: bool,
}

impl JsonStyle {
    fn write(&self, value: &Json, depth: usize, out: &mut String) {
        match value {
            Json::Null => out.push_str("null"),
            Json::Bool(flag) => out.push_str(if *flag { "true" } else { "false" }),
            Json::Number(number) => match number.as_f64().filter(|_| number.is_f64()) {
                Some(float) => out.push_str(&python_float(float)),
                None => out.push_str(&number.to_string()),
            },
            Json::String(text) => self.text(text, out),
            Json::Array(items) => {
                self.items("[]", items.iter(), depth, out, |item, out| self.write(item, depth + 1, out));
            }
            Json::Object(map) => {
                let mut entries: Vec<(&String, &Json)> = map.iter().collect();
                if self.sort_keys {
                    entries.sort_by_key(|(key, _)| *key);
                }
                self.items("{}", entries.into_iter(), depth, out, |(key, value), out| {
                    self.text(key, out);
                    out.push_str(&self.key);
                    self.write(value, depth + 1, out);
                });
            }
        }
    }

    fn items<T>(
        &self,
        brackets: &str,
        items: impl ExactSizeIterator<Item = T>,
        depth: usize,
        out: &mut String,
        mut write: impl FnMut(T, &mut String),
    ) {
        let (open, close) = brackets.split_at(1);
        out.push_str(open);
        let some = items.len() > 0;
        let new_line = |depth: usize, out: &mut String| {
            if let (Some(indent), true) = (&self.indent, some) {
                out.push('\n');
                out.push_str(&indent.repeat(depth));
            }
        };
        for (place, item) in items.enumerate() {
            if place > 0 {
                out.push_str(&self.item);
            }
            new_line(depth + 1, out);
            write(item, out);
        }
        new_line(depth, out);
        out.push_str(close);
    }

    fn text(&self, text: &str, out: &mut String) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if c < ' ' || (self.ensure_ascii && !(' '..='~').contains(&c)) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

/// Python's shortest form of a float: an exponent below 1e-4 and from 1e16 on.
fn python_float(float: f64) -> String {
    let scientific = format!("{float:e}");
    match scientific.split_once('e').and_then(|(digits, power)| Some((digits, power.parse::<i32>().ok()?))) {
        Some((digits, power)) if !(-4..16).contains(&power) => {
            let sign = if power < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", power.abs())
        }
        _ => format!("{float:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use minijinja::context;

    fn rendered(source: &str) -> String {
        let tool = serde_json::json!({"name": "lamp", "on": true, "level": 0.5, "rooms": ["Küche", 2, null], "none": {}});
        let context = context! { tool, messages => vec!["a", "b", "c", "d"], few => 1e-5 };
        Template::parse(source)
            .and_then(|template| template.render(context))
            .unwrap_or_else(|e| format!("{e:#}"))
    }

    /// What a template writes into a turn is what the model has seen in training, character for character. Expected values
    /// are those of `render_jinja_template` of transformers 5.24.
    #[test]
    fn templates_render_as_in_transformers() {
        for (source, expected) in [
            (
                "{{ tool | tojson }}",
                r#"{"name": "lamp", "on": true, "level": 0.5, "rooms": ["Küche", 2, null], "none": {}}"#,
            ),
            (
                "{{ tool.rooms | tojson(ensure_ascii=true) }}{{ '<&\"' | tojson }}{{ few | tojson }}",
                r#"["K\u00fcche", 2, null]"<&\""1e-05"#,
            ),
            (
                "{{ {'b': 1, 'a': [1, {}]} | tojson(indent=2) }}",
                "{\n  \"b\": 1,\n  \"a\": [\n    1,\n    {}\n  ]\n}",
            ),
            ("{{ {'b': 1, 'a': 2} | tojson(sort_keys=true, separators=(',', ':')) }}", r#"{"a":2,"b":1}"#),
            (
                "{% for m in messages %}{% if m == 'b' %}{% continue %}{% elif m == 'd' %}{% break %}{% endif %}{{ m }}{% endfor %}",
                "ac",
            ),
            ("{% set x = 1 %}{% generation %}{% set x = 2 %}a{{ x }}{% endgeneration %}{{ x }}", "a21"),
            (
                "{{ '%s is %.1f of %03d' % ('it', 2.25, 7) }}|{{ '%(a)s' % {'a': 'x'} }}|{{ '%d%%' % 5 }}",
                "it is 2.2 of 007|x|5%",
            ),
            (
                "{{ 7 % 3 }} {{ -7 % 3 }} {{ 7 % -3 }} {{ 7.5 % 2 }} {{ 'x' * (messages|length % 3) }}",
                "1 2 -2 1.5 x",
            ),
            (
                "{{ none is iterable }} {{ 'a' is iterable }} {{ absent is iterable }} {{ 5 is iterable }} {{ none }}",
                "False True True False None",
            ),
            (
                "{{ strftime_now('%d %B %Y, %A') }}{{ strftime_now('%-d.%-m. %H:%M') }}",
                "01 January 2025, Wednesday1.1. 12:00",
            ),
            (
                "{%- set ns = namespace(n=0) %}{% for m in messages[::-1] %}{% set ns.n = ns.n + loop.index %}{% endfor %}{{ ns.n }}",
                "10",
            ),
            (
                "{{ 'a,b'.split(',')[-1].rstrip('b') ~ tool.get('absent', 'c') ~ ('x' if tool.absent is defined) }}",
                "c",
            ),
            ("{% macro say(x) %}<{{ x }}>{% endmacro %}{{ say('hi') }}{{ tool.items() | length }}", "<hi>5"),
        ] {
            assert_eq!(rendered(source), expected, "{source}");
        }
        for (source, words) in [
            ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
            ("{{ 5 % 0 }}", "division by zero"),
            ("{{ absent | tojson }}", "undefined"),
            ("{{ tool | tojson(colour='red') }}", "colour"),
        ] {
            assert!(rendered(source).contains(words), "{source}: {}", rendered(source));
        }
    }
}
