//! Files of a bundle directory.

use crate::error::ExportError;
use crate::source::tokenizer::TOKENIZER_FILE;
use models::files::{self, FileError};
use models::prompt;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Copies prompt and tokenizer of a model directory into a bundle.
pub(super) fn copy_prompt_and_tokenizer(from: &Path, to: &Path) -> Result<(), ExportError> {
    for name in [prompt::FILE_NAME, TOKENIZER_FILE] {
        let file = from.join(name);
        fs::copy(&file, to.join(name)).map_err(FileError::io(&file))?;
    }
    Ok(())
}

/// SHA-256 of every file of a directory, by name.
pub(super) fn digests(dir: &Path) -> Result<BTreeMap<String, String>, ExportError> {
    let mut digests = BTreeMap::new();
    for entry in fs::read_dir(dir).map_err(FileError::io(dir))? {
        let entry = entry.map_err(FileError::io(dir))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        digests.insert(name, files::sha256_file(&entry.path())?);
    }
    Ok(digests)
}

/// Size of a file in megabytes.
pub(super) fn megabytes(file: &Path) -> Result<f64, ExportError> {
    Ok(fs::metadata(file).map_err(FileError::io(file))?.len() as f64 / 1e6)
}

/// Size of all files of a directory in megabytes.
pub(super) fn directory_megabytes(dir: &Path) -> Result<f64, ExportError> {
    let mut sum = 0.0;
    for entry in fs::read_dir(dir).map_err(FileError::io(dir))? {
        sum += megabytes(&entry.map_err(FileError::io(dir))?.path())?;
    }
    Ok(sum)
}
