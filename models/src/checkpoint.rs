//! A language model as a directory: Hugging Face's files plus `prompt.json`. Imports, teachers and students are all of
//! this shape, so every stage opens every other's output.

use crate::files::{self, FileError, link_or_copy};
use std::fs;
use std::path::{Path, PathBuf};

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
/// Weights in one file.
pub const WEIGHTS_FILE: &str = "model.safetensors";
/// Index of weights in several files.
pub const WEIGHTS_INDEX_FILE: &str = "model.safetensors.index.json";

/// Copies the side files that exist in `from`.
pub fn copy_side_files(from: &Path, to: &Path) -> Result<(), FileError> {
    for name in SIDE_FILES {
        let source = from.join(name);
        if source.exists() {
            fs::copy(&source, to.join(name)).map_err(FileError::io(&source))?;
        }
    }
    Ok(())
}

/// Links (or copies) the weights, single or sharded.
pub fn link_weights(from: &Path, to: &Path) -> Result<(), FileError> {
    for file in weight_files(from)? {
        if let Some(name) = file.file_name() {
            link_or_copy(&file, &to.join(name))?;
        }
    }
    Ok(())
}

/// SHA-256 over everything that shapes the model's answers: config, weights, tokenizer and prompt.
pub fn digest(dir: &Path) -> Result<String, FileError> {
    let mut parts = Vec::new();
    let shaping = ["config.json", "tokenizer.json", crate::prompt::FILE_NAME].map(|name| dir.join(name));
    for file in weight_files(dir)?.into_iter().chain(shaping) {
        parts.push(files::sha256_file(&file)?);
    }
    Ok(files::sha256_parts(parts.iter().map(String::as_bytes)))
}

/// The weight files of a model directory, the index (if any) first.
fn weight_files(dir: &Path) -> Result<Vec<PathBuf>, FileError> {
    let index = dir.join(WEIGHTS_INDEX_FILE);
    if !index.exists() {
        return Ok(vec![dir.join(WEIGHTS_FILE)]);
    }
    let value: serde_json::Value = files::read_json(&index)?;
    let mut shards: Vec<PathBuf> = value["weight_map"]
        .as_object()
        .into_iter()
        .flat_map(|map| map.values())
        .filter_map(|name| name.as_str())
        .map(|name| dir.join(name))
        .collect();
    shards.sort();
    shards.dedup();
    shards.insert(0, index);
    Ok(shards)
}
