//! Files too large to hold, line by line; every complaint names file and line.

use anyhow::{Context, Result, bail};
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// A place in a file; prints as `file:line`.
#[derive(Debug, Clone, Copy)]
pub struct At<'a> {
    /// The file.
    pub file: &'a Path,
    /// Line, from 1.
    pub line: usize,
}

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// A file read line by line into one buffer.
struct LineReader<'a> {
    file: &'a Path,
    reader: BufReader<File>,
    line: usize,
    bytes: Vec<u8>,
}

impl<'a> LineReader<'a> {
    fn open(file: &'a Path) -> Result<Self> {
        let opened = File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
        Ok(Self { file, reader: BufReader::with_capacity(1 << 20, opened), line: 0, bytes: Vec::new() })
    }

    /// The next line that is not blank, without byte order mark and line end.
    fn next(&mut self) -> Result<Option<(At<'a>, &[u8])>> {
        loop {
            self.bytes.clear();
            let read = self.reader.read_until(b'\n', &mut self.bytes);
            if read.with_context(|| format!("cannot read {}", self.file.display()))? == 0 {
                return Ok(None);
            }
            self.line += 1;
            if !self.bytes.trim_ascii().is_empty() {
                break;
            }
        }
        let mut text = self.bytes.as_slice();
        if self.line == 1 {
            text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
        }
        text = text.strip_suffix(b"\n").unwrap_or(text);
        text = text.strip_suffix(b"\r").unwrap_or(text);
        Ok(Some((At { file: self.file, line: self.line }, text)))
    }
}

/// Lines as they lie in the file, UTF-8 or not; blank ones are skipped, a byte order mark and line ends removed.
pub fn for_each_raw_line(file: &Path, mut each: impl FnMut(At, &[u8]) -> Result<()>) -> Result<()> {
    let mut reader = LineReader::open(file)?;
    while let Some((at, bytes)) = reader.next()? {
        each(at, bytes)?;
    }
    Ok(())
}

/// The same for a file that has to be UTF-8 throughout.
pub fn for_each_line(file: &Path, mut each: impl FnMut(At, &str) -> Result<()>) -> Result<()> {
    for_each_raw_line(file, |at, bytes| each(at, utf8(at, bytes)?))
}

/// What `read` makes of the first line; nothing where there is none.
pub fn first_line<T>(file: &Path, read: impl FnOnce(At, &str) -> Result<T>) -> Result<Option<T>> {
    let mut reader = LineReader::open(file)?;
    let Some((at, bytes)) = reader.next()? else { return Ok(None) };
    read(at, utf8(at, bytes)?).map(Some)
}

fn utf8<'a>(at: At, bytes: &'a [u8]) -> Result<&'a str> {
    let Ok(text) = std::str::from_utf8(bytes) else {
        bail!("{at}: not UTF-8 text; a compressed file has to be unpacked first");
    };
    Ok(text)
}

/// The beginning of a text, for messages.
pub fn excerpt(text: &str) -> String {
    const MOST: usize = 60;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Line numbers that count differently from an editor's send people to the wrong line.
    #[test]
    fn blank_lines_count_and_marks_vanish() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.tsv");
        std::fs::write(&file, "\u{feff}a\r\n\n  \nb\tc").unwrap();
        let mut lines = Vec::new();
        for_each_line(&file, |at, text| {
            lines.push((at.line, text.to_owned()));
            Ok(())
        })
        .unwrap();
        assert_eq!(lines, [(1, "a".to_owned()), (4, "b\tc".to_owned())]);
        std::fs::write(&file, b"a\n\xff\n").unwrap();
        let error = for_each_line(&file, |_, _| Ok(())).unwrap_err().to_string();
        assert!(error.contains("x.tsv:2: not UTF-8"), "{error}");
        assert_eq!(excerpt(&"ä".repeat(61)).chars().count(), 61);
    }
}
