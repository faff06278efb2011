//! Whether a tokenizer belongs to a model.

use crate::error::ExportError;
use models::config::DecoderConfig;
use models::prompt;
use std::path::Path;

/// Tokenizer of models and bundles.
pub const TOKENIZER_FILE: &str = "tokenizer.json";

/// Refuses a tokenizer with tokens that the model has no embedding for.
pub fn check_tokenizer(dir: &Path, config: &DecoderConfig) -> Result<(), ExportError> {
    let vocabulary = prompt::open_tokenizer(dir)?.get_vocab(true);
    let highest = vocabulary.into_iter().max_by(|a, b| (a.1, &a.0).cmp(&(b.1, &b.0)));
    match highest.filter(|(_, id)| *id as usize >= config.vocab_size) {
        None => Ok(()),
        Some((token, id)) => {
            let (file, vocab_size) = (dir.join(TOKENIZER_FILE), config.vocab_size);
            Err(ExportError::TokenId { file, token, id, vocab_size })
        }
    }
}
