//! Other people's models, for `train import`: everything that can be wrong with one is found in it, by the names of its own
//! files, before anything is written.

mod folder;
#[cfg(test)]
mod tests;
mod tokenizer;

use crate::chat_template::Turns;
use anyhow::{Context, Result};
use folder::Folder;
use models::checkpoint::WEIGHTS_FILE;
use models::config::DecoderConfig;
use models::files::write_json;
use models::gguf::GgufModel;
use models::prompt::PromptTemplate;
use models::weights::{DType, SafetensorsWriter, Weights};
use std::collections::HashMap;
use std::path::Path;
use std::str::FromStr;
use tokenizers::Tokenizer;

/// A model as it comes.
#[derive(Debug)]
pub enum Source {
    /// As transformers saves it.
    Folder(Box<Folder>),
    /// As llama.cpp reads it.
    Gguf(Box<GgufModel>),
}

impl Source {
    /// Reads everything but the weights' numbers, and checks it.
    pub fn open(from: &Path) -> Result<Self> {
        match from.is_dir() {
            true => Ok(Self::Folder(Box::new(Folder::open(from)?))),
            false => Ok(Self::Gguf(Box::new(GgufModel::open(from)?))),
        }
    }

    /// Shape and settings.
    pub fn config(&self) -> Result<DecoderConfig> {
        match self {
            Self::Folder(folder) => Ok(folder.config.clone()),
            Self::Gguf(model) => Ok(serde_json::from_value(model.config.clone())?),
        }
    }

    /// The tokenizer that the imported model will have; `from` names the source in errors.
    pub fn tokenizer(&self, from: &Path) -> Result<Tokenizer> {
        match self {
            Self::Folder(folder) => Ok(folder.tokenizer.tokenizer()),
            Self::Gguf(model) => Tokenizer::from_str(&model.tokenizer.to_string())
                .map_err(|error| anyhow::anyhow!("{}: {error}", from.display())),
        }
    }

    /// The prompt that a model of ours brings along.
    pub fn prompt(&self) -> Option<&PromptTemplate> {
        match self {
            Self::Folder(folder) => folder.prompt.as_ref(),
            Self::Gguf(_) => None,
        }
    }

    /// The turns of its chat template, if it has one.
    pub fn turns(&self, from: &Path) -> Result<Option<Turns>> {
        match self {
            Self::Folder(_) => Turns::open(from),
            Self::Gguf(model) => Turns::of_settings(&model.tokenizer_config, &serde_json::Value::Null, from),
        }
    }

    /// Tokens that the tokenizer has and the model does not; the imported tokenizer is without them.
    pub fn left_out(&self) -> &[String] {
        match self {
            Self::Folder(folder) => &folder.tokenizer.left_out,
            Self::Gguf(_) => &[],
        }
    }

    /// Writes the model under the names that everything else reads; the prompt is the caller's.
    pub fn write(&self, from: &Path, out: &Path) -> Result<()> {
        match self {
            Self::Folder(folder) => folder.write(from, out)?,
            Self::Gguf(model) => write_gguf(model, out)?,
        }
        let written = Weights::open(out)?.check(&DecoderConfig::open(out)?);
        written.context("the source was changed while it was read")
    }
}

/// Refuses a prompt that holds a token which was left out of the tokenizer.
pub fn refuse_left_out(left_out: &[String], prompt: &PromptTemplate, from: &Path) -> Result<()> {
    let PromptTemplate { prefix, document, query, instruction, answer, choices, .. } = prompt;
    let pieces = [
        prefix,
        &document.before,
        &document.after,
        &query.before,
        &query.after,
        instruction,
        answer,
        &choices.positive,
        &choices.negative,
    ];
    tokenizer::refuse_in_prompt(left_out, &pieces.map(String::as_str), from)
}

fn write_gguf(model: &GgufModel, out: &Path) -> Result<()> {
    write_json(&out.join("config.json"), &model.config)?;
    write_json(&out.join("tokenizer.json"), &model.tokenizer)?;
    write_json(&out.join("tokenizer_config.json"), &model.tokenizer_config)?;
    let mut writer = SafetensorsWriter::create(out.join(WEIGHTS_FILE), DType::F32)?;
    for name in model.tensor_names() {
        let (shape, values) = model.tensor_f32(&name)?;
        writer.push(&name, &shape, &values)?;
    }
    Ok(writer.finish(HashMap::from([("format".to_owned(), "pt".to_owned())]))?)
}
