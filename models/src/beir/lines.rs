//! Text files line by line.

use super::error::DataError;
use crate::files::FileError;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// Lines from 1, blank ones skipped, a byte order mark and carriage returns removed.
pub fn for_each_line(
    file: &Path,
    mut each: impl FnMut(&str, usize) -> Result<(), DataError>,
) -> Result<(), DataError> {
    let mut reader = BufReader::new(File::open(file).map_err(FileError::io(file))?);
    let mut bytes = Vec::new();
    for line in 1.. {
        bytes.clear();
        if reader.read_until(b'\n', &mut bytes).map_err(FileError::io(file))? == 0 {
            break;
        }
        let text =
            std::str::from_utf8(&bytes).map_err(|_| DataError::Utf8 { file: file.to_owned(), line })?;
        let text = text.trim_start_matches('\u{feff}').trim_end_matches(['\n', '\r']);
        if !text.trim().is_empty() {
            each(text, line)?;
        }
    }
    Ok(())
}
