//! What was passed over, in sentences.

use std::path::Path;

/// How often something was met, and where first.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// How often.
    pub count: usize,
    /// Line and id of the first.
    pub first: Option<(usize, String)>,
}

impl Seen {
    /// Counts one.
    pub fn add(&mut self, line: usize, id: &str) {
        self.count += 1;
        self.first.get_or_insert_with(|| (line, id.to_owned()));
    }

    /// A sentence with the file, how many there are, the first of them and what happens `then`; nothing where nothing was met.
    /// `one` and `several` are what is said of one and of several.
    pub fn note(&self, file: &Path, [one, several]: [&str; 2], then: &str) -> Option<String> {
        let (line, id) = self.first.as_ref()?;
        let (file, count, words) = (file.display(), self.count, if self.count == 1 { one } else { several });
        Some(format!("{file}: {count} {words} (first: `{id}`, line {line}); {then}"))
    }
}
