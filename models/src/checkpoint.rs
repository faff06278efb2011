//! A language model as a directory: Hugging Face's files plus `prompt.json`. Imports, teachers and students are all of
//! this shape, so every stage opens every other's output.

use crate::files::{self, FileError, copy, link_or_copy, present};
use crate::weights::{WeightFiles, WeightsError};
use std::path::Path;

pub use crate::weights::{WEIGHTS_FILE, WEIGHTS_INDEX_FILE};

/// Small files that travel with a model from stage to stage, where present.
pub const SIDE_FILES: &[&str] = &[
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    crate::prompt::FILE_NAME,
];

/// Copies the side files that exist in `from`.
pub fn copy_side_files(from: &Path, to: &Path) -> Result<(), FileError> {
    for name in SIDE_FILES {
        let source = from.join(name);
        if present(&source)? {
            copy(&source, &to.join(name))?;
        }
    }
    Ok(())
}

/// Copies the weights of a folder that is not ours: whoever owns it may write to its files later.
pub fn copy_weights(from: &Path, to: &Path) -> Result<(), WeightsError> {
    put_weights(from, to, copy)
}

/// Links (or copies) the weights of one of our own directories.
pub fn link_weights(from: &Path, to: &Path) -> Result<(), WeightsError> {
    put_weights(from, to, link_or_copy)
}

fn put_weights(
    from: &Path,
    to: &Path,
    put: impl Fn(&Path, &Path) -> Result<(), FileError>,
) -> Result<(), WeightsError> {
    for file in WeightFiles::of(from)?.all() {
        if let Some(name) = file.file_name() {
            put(&file, &to.join(name))?;
        }
    }
    Ok(())
}

/// SHA-256 over everything that shapes the model's answers: config, weights, tokenizer and prompt.
pub fn digest(dir: &Path) -> Result<String, WeightsError> {
    let mut parts = Vec::new();
    let shaping = ["config.json", "tokenizer.json", crate::prompt::FILE_NAME].map(|name| dir.join(name));
    for file in WeightFiles::of(dir)?.all().into_iter().chain(shaping) {
        parts.push(files::sha256_file(&file)?);
    }
    Ok(files::sha256_parts(parts.iter().map(String::as_bytes)))
}
