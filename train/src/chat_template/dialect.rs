//! What chat templates say in transformers' Jinja and minijinja cannot parse, said in what it can.
//!
//! * `{% generation %}` marks the model's own words for training; its body is rendered: `{% with %}`, which has a scope
//!   of its own as well.
//! * `a % b` is Python's: formatting where `a` is a text. It becomes the filter `percent`.

/// The template with both replaced.
pub(super) fn translate(source: &str) -> String {
    let mut told = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = next_tag(rest) {
        told.push_str(&rest[..start]);
        rest = &rest[start..];
        let tag = &rest[..tag_length(rest)];
        rest = &rest[tag.len()..];
        let words = words_of(tag);
        match words.as_deref() {
            Some("raw") => {
                told.push_str(tag);
                let end = raw_length(rest);
                told.push_str(&rest[..end]);
                rest = &rest[end..];
            }
            Some("generation") => told.push_str(&tag.replacen("generation", "with", 1)),
            Some("endgeneration") => told.push_str(&tag.replacen("endgeneration", "endwith", 1)),
            _ if tag.starts_with("{#") => told.push_str(tag),
            _ => told.push_str(&without_percent(tag)),
        }
    }
    told + rest
}

/// The template without its comments.
pub(super) fn without_comments(source: &str) -> String {
    let mut told = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = next_tag(rest) {
        told.push_str(&rest[..start]);
        rest = &rest[start..];
        let tag = &rest[..tag_length(rest)];
        if !tag.starts_with("{#") {
            told.push_str(tag);
        }
        rest = &rest[tag.len()..];
    }
    told + rest
}

fn next_tag(text: &str) -> Option<usize> {
    ["{{", "{%", "{#"].iter().filter_map(|open| text.find(open)).min()
}

/// Bytes of the tag that the text begins with, up to the end of the text where it is not closed.
fn tag_length(text: &str) -> usize {
    if text.starts_with("{#") {
        return text.find("#}").map_or(text.len(), |end| end + 2);
    }
    let close = if text.starts_with("{{") { "}}" } else { "%}" };
    let (mut at, mut braces) = (2, 0);
    while at < text.len() {
        let here = &text[at..];
        if braces == 0 && here.starts_with(close) {
            return at + 2;
        }
        let token = token_length(here);
        match &here[..token] {
            "{" => braces += 1,
            "}" if braces > 0 => braces -= 1,
            _ => {}
        }
        at += token;
    }
    text.len()
}

/// What a block tag that is a single word says.
fn words_of(tag: &str) -> Option<String> {
    let inner = tag.strip_prefix("{%")?.strip_suffix("%}")?;
    let inner = inner.strip_prefix(['-', '+']).unwrap_or(inner);
    let inner = inner.strip_suffix(['-', '+']).unwrap_or(inner).trim();
    inner.chars().all(|c| c.is_ascii_alphabetic()).then(|| inner.to_owned())
}

/// Bytes up to the tag that ends a raw block.
fn raw_length(text: &str) -> usize {
    let mut from = 0;
    while let Some(open) = text[from..].find("{%") {
        let start = from + open;
        let length = text[start..].find("%}").map_or(text.len() - start, |end| end + 2);
        if words_of(&text[start..start + length]).as_deref() == Some("endraw") {
            return start;
        }
        from = start + 2;
    }
    text.len()
}

/// Bytes of the token that the text begins with: a string, a word or number, an operator, or one other character.
fn token_length(text: &str) -> usize {
    let Some(first) = text.chars().next() else { return 0 };
    if first == '"' || first == '\'' {
        let mut escaped = false;
        for (at, c) in text.char_indices().skip(1) {
            match c {
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                _ if c == first => return at + 1,
                _ => {}
            }
        }
        return text.len();
    }
    let wordlike = |c: char| c.is_alphanumeric() || c == '_';
    if wordlike(first) {
        return text.find(|c| !wordlike(c)).unwrap_or(text.len());
    }
    let double = ["//", "**", "==", "!=", "<=", ">="].iter().any(|operator| text.starts_with(operator));
    if double { 2 } else { first.len_utf8() }
}

/// Ends an operand of `%` where it stands beside it, outside of brackets.
fn ends_operand(token: &str) -> bool {
    const WORDS: &[&str] = &[
        "and",
        "or",
        "not",
        "in",
        "is",
        "if",
        "else",
        "elif",
        "for",
        "set",
        "do",
        "print",
        "call",
        "filter",
        "with",
        "recursive",
    ];
    const OPERATORS: &[&str] = &["+", "-", "~", ",", ":", "=", "==", "!=", "<", ">", "<=", ">="];
    WORDS.contains(&token) || OPERATORS.contains(&token)
}

fn opens(token: &str) -> bool {
    matches!(token, "(" | "[" | "{")
}

fn closes(token: &str) -> bool {
    matches!(token, ")" | "]" | "}")
}

/// A tag with each `a % b` as `(a)|percent(b)`.
fn without_percent(tag: &str) -> String {
    let mut tag = tag.to_owned();
    while let Some(next) = first_percent(&tag) {
        tag = next;
    }
    tag
}

/// The tag with its first `%` replaced, if there is one with an operand on each side.
fn first_percent(tag: &str) -> Option<String> {
    let inner = tag.len().checked_sub(2)?;
    let mut tokens: Vec<(usize, &str)> = Vec::new();
    let mut at = 2;
    while at < inner {
        let token = &tag[at..at + token_length(&tag[at..]).min(inner - at)];
        if !token.trim().is_empty() {
            tokens.push((at, token));
        }
        at += token.len().max(1);
    }
    // A dash for whitespace is no operator.
    if tokens.last().is_some_and(|(at, token)| matches!(*token, "-" | "+") && at + 1 == inner) {
        tokens.pop();
    }
    if tokens.first().is_some_and(|(at, token)| matches!(*token, "-" | "+") && *at == 2) {
        tokens.remove(0);
    }
    let percent = tokens.iter().position(|(_, token)| *token == "%")?;
    let left = left_operand(&tokens[..percent]);
    let right = right_operand(&tokens[percent + 1..]);
    let (first, _) = tokens[..percent].get(left)?;
    let (last, token) = tokens[percent + 1..].get(right.checked_sub(1)?)?;
    let ((place, _), end) = (tokens[percent], last + token.len());
    let (a, b) = (tag[*first..place].trim(), tag[place + 1..end].trim());
    Some(format!("{}({a})|percent({b}){}", &tag[..*first], &tag[end..]))
}

/// Where in the tokens before a `%` its left operand begins.
fn left_operand(tokens: &[(usize, &str)]) -> usize {
    let mut depth = 0;
    for (place, (_, token)) in tokens.iter().enumerate().rev() {
        if closes(token) {
            depth += 1;
        } else if opens(token) {
            if depth == 0 {
                return place + 1;
            }
            depth -= 1;
        } else if depth == 0 && ends_operand(token) {
            let before = place.checked_sub(1).map(|before| tokens[before].1);
            let sign = matches!(*token, "-" | "+")
                && before.is_none_or(|before| ends_operand(before) || opens(before));
            if !sign {
                return place + 1;
            }
        }
    }
    0
}

/// How many of the tokens behind a `%` are its right operand.
fn right_operand(tokens: &[(usize, &str)]) -> usize {
    let signs = tokens.iter().take_while(|(_, token)| matches!(*token, "-" | "+")).count();
    let mut depth = 0;
    for (place, (_, token)) in tokens.iter().enumerate().skip(signs) {
        if opens(token) {
            depth += 1;
        } else if closes(token) {
            if depth == 0 {
                return place;
            }
            depth -= 1;
        } else if depth == 0 && (ends_operand(token) || matches!(*token, "*" | "/" | "//" | "%")) {
            return place;
        }
    }
    tokens.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A remainder or a formatted text taken apart at the wrong place is another number, or no template at all.
    #[test]
    fn operands_of_percent_end_where_they_do_in_jinja() {
        for (source, expected) in [
            ("{{ a % 2 }}", "{{ (a)|percent(2) }}"),
            ("{%- if loop.index0 % 2 == 1 -%}", "{%- if (loop.index0)|percent(2) == 1 -%}"),
            ("{{ '%s: %d' % (name, 3) }}", "{{ ('%s: %d')|percent((name, 3)) }}"),
            ("{{ x + 'a}}%s' % m['k'].b|upper ~ c }}", "{{ x + ('a}}%s')|percent(m['k'].b|upper) ~ c }}"),
            ("{{ [7 % 4, -7 % -4] }}", "{{ [(7)|percent(4), (-7)|percent(-4)] }}"),
            ("{{ a * b % c % d }}", "{{ ((a * b)|percent(c))|percent(d) }}"),
            ("{% set n = (i - 1) % {'k': 5}.k %}x", "{% set n = ((i - 1))|percent({'k': 5}.k) %}x"),
            ("100% {{ '100%' }} {# 5 % 2 #}", "100% {{ '100%' }} {# 5 % 2 #}"),
            (
                "{% raw %}{{ 5 % 2 }}{% endraw %}{{ 5 % 2 }}",
                "{% raw %}{{ 5 % 2 }}{% endraw %}{{ (5)|percent(2) }}",
            ),
            ("{%- generation -%}a{%- endgeneration %}", "{%- with -%}a{%- endwith %}"),
            ("{{ generation }} {{ % }} {{ 'open", "{{ generation }} {{ % }} {{ 'open"),
        ] {
            assert_eq!(translate(source), expected, "{source}");
        }
        assert_eq!(without_comments("a{# </think> #}b{{ '{#' }}"), "ab{{ '{#' }}");
    }
}
