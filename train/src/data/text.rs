//! When are two texts the same? One answer for the importers, which keep one of them, and for the check.

use crate::cache;

/// What is compared: lower case, single spaces, without the marks that end a sentence.
fn normalise(text: &str) -> String {
    let words: Vec<String> = text.split_whitespace().map(str::to_lowercase).collect();
    let joined = words.join(" ");
    let bare = joined.trim_end_matches(|c: char| c.is_whitespace() || matches!(c, '.' | '!' | '?' | '…'));
    // "?!" is a text too, and not the same as "...".
    if bare.is_empty() { joined } else { bare.to_owned() }
}

/// 64 bits that equal texts share. Among ten million texts two others share them with a probability of 3 in a million.
pub fn fingerprint(text: &str) -> u64 {
    first_64_bits(cache::key(&[&normalise(text)]))
}

/// The same for ids, which are compared as they are written: `Q1` is not `q1`.
pub fn fingerprint_of_id(id: &str) -> u64 {
    first_64_bits(cache::key(&["id", id]))
}

fn first_64_bits([a, b, c, d, e, f, g, h, ..]: cache::Key) -> u64 {
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

/// An id made of the text alone, so that a text that comes again gets the id that it has: `prefix` and 80 bits.
pub fn digest_id(prefix: &str, text: &str) -> String {
    let digest = cache::key(&[&normalise(text)]);
    let hex: String = digest[..10].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{prefix}-{hex}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Too strict, and a query leaks into the test split with a full stop added; too loose, and `C++` is called a copy
    /// of `C#`.
    #[test]
    fn spelling_does_not_matter_but_words_and_symbols_do() {
        for same in ["i spilled my coffee", "  I spilled\n my  COFFEE!!", "I spilled my coffee …"] {
            assert_eq!(fingerprint(same), fingerprint("I spilled my coffee."), "{same}");
            assert_eq!(digest_id("q", same), digest_id("q", "I spilled my coffee."), "{same}");
        }
        for (a, b) in
            [("what is C++", "what is C#"), ("?!", "..."), ("ab c", "a bc"), ("it is 5", "it is -5")]
        {
            assert_ne!(fingerprint(a), fingerprint(b), "{a} {b}");
        }
        let id = digest_id("d", "x");
        assert!(id.starts_with("d-") && id.len() == 22, "{id}");
    }
}
