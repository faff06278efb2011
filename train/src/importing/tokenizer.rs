//! A tokenizer and the rows of the embeddings: they must fit, and after fine-tuning they may just not.

use anyhow::{Result, anyhow, bail};
use models::files::{FileError, read_json, write_json};
use models::prompt::open_tokenizer;
use serde_json::Value;
use std::path::Path;
use std::str::FromStr;
use tokenizers::Tokenizer;

/// `tokenizer.json` without tokens that the model has no row for.
#[derive(Debug)]
pub(super) struct FittedTokenizer {
    tokenizer: Tokenizer,
    /// What is written in place of the file; nothing where it is taken as it is.
    changed: Option<Value>,
    /// The tokens that are not in it any more.
    pub(super) left_out: Vec<String>,
}

impl FittedTokenizer {
    /// Of a folder whose embeddings have `rows`.
    ///
    /// Tokens that were added behind the last row, without the embeddings being made larger, are left out: a `<pad>` that
    /// only ever filled batches. The model has never seen one. Any other token out of reach belongs to another model.
    pub(super) fn open(from: &Path, rows: usize) -> Result<Self> {
        let tokenizer = open_tokenizer(from)?;
        let highest = highest_id(&tokenizer);
        if highest < rows {
            return Ok(Self { tokenizer, changed: None, left_out: Vec::new() });
        }
        let file = from.join("tokenizer.json");
        let mut json: Value = read_json(&file)?;
        if let Some(left_out) = leave_out(&mut json, rows) {
            let tokenizer = Tokenizer::from_str(&json.to_string())
                .map_err(|error| anyhow!("{}: without {left_out:?}: {error}", file.display()))?;
            if highest_id(&tokenizer) < rows {
                return Ok(Self { tokenizer, changed: Some(json), left_out });
            }
        }
        bail!(
            "{}: tokenizer.json has token id {highest}, config.json says vocab_size {rows}; they belong to different models",
            from.display()
        )
    }

    /// As it will be.
    pub(super) fn tokenizer(&self) -> Tokenizer {
        self.tokenizer.clone()
    }

    /// Over the copy of the file, where it was changed.
    pub(super) fn write(&self, file: &Path) -> Result<(), FileError> {
        self.changed.as_ref().map_or(Ok(()), |json| write_json(file, json))
    }
}

/// Takes the added tokens out that follow the last row, if they do so one by one.
fn leave_out(json: &mut Value, rows: usize) -> Option<Vec<String>> {
    let added = json["added_tokens"].as_array_mut()?;
    let id = |token: &Value| token["id"].as_u64().map(|id| id as usize);
    let mut beyond: Vec<(usize, String)> = Vec::new();
    added.retain(|token| match (id(token), token["content"].as_str()) {
        (Some(id), Some(content)) if id >= rows => {
            beyond.push((id, content.to_owned()));
            false
        }
        _ => true,
    });
    beyond.sort();
    if beyond.is_empty() || beyond.iter().enumerate().any(|(place, (id, _))| *id != rows + place) {
        return None;
    }
    if let Some(vocab) = json["model"]["vocab"].as_object_mut() {
        vocab.retain(|token, _| !beyond.iter().any(|(_, content)| content == token));
    }
    if json["padding"]["pad_id"].as_u64().is_some_and(|id| id as usize >= rows) {
        json["padding"] = Value::Null;
    }
    Some(beyond.into_iter().map(|(_, content)| content).collect())
}

fn highest_id(tokenizer: &Tokenizer) -> usize {
    tokenizer.get_vocab(true).into_values().max().unwrap_or(0) as usize
}

/// Refuses a prompt that holds a token which was left out: it would be cut into letters.
pub(super) fn refuse_in_prompt(left_out: &[String], pieces: &[&str], from: &Path) -> Result<()> {
    match left_out.iter().find(|token| pieces.iter().any(|piece| piece.contains(token.as_str()))) {
        Some(token) => bail!(
            "{}: the prompt holds the token `{token}`, for which the model has no embedding; tokenizer.json and weights belong \
             to different models, or give another prompt with --prompt",
            from.display()
        ),
        None => Ok(()),
    }
}
