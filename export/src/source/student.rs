//! A student directory that passed all checks which need no weights.

use crate::error::ExportError;
use crate::source::adapter::QueryAdapter;
use crate::source::llm::Llm;
use crate::source::tokenizer::check_tokenizer;
use models::config::DecoderConfig;
use models::prompt::{self, Prompter};
use models::student::{self, StudentConfig};
use std::path::{Path, PathBuf};

/// A student.
#[derive(Debug)]
pub struct Student {
    /// Its directory.
    pub dir: PathBuf,
    /// The LLM.
    pub llm: DecoderConfig,
    /// `student.json`.
    pub config: StudentConfig,
    /// Longest pass of its prompt.
    pub max_tokens: usize,
    /// Tokens that its passes begin with.
    pub prefixes: Vec<Vec<u32>>,
}

impl Student {
    /// Reads and checks the configuration files.
    pub fn open(dir: &Path) -> Result<Self, ExportError> {
        let config = StudentConfig::open(dir)?;
        let llm = DecoderConfig::open(dir)?;
        let refuse = |field, found: String, expected: String| {
            let file = dir.join(student::FILE_NAME);
            Err(ExportError::Student { file, field, found, expected })
        };
        if config.hidden_size != llm.hidden_size {
            let expected = format!("{} as in config.json", llm.hidden_size);
            return refuse("hidden_size", config.hidden_size.to_string(), expected);
        }
        let depth = llm.num_hidden_layers;
        let layers = &config.latents.layers;
        if layers.is_empty() || layers.iter().any(|&layer| layer > depth) {
            return refuse("latents.layers", format!("{layers:?}"), format!("one or more of 0 to {depth}"));
        }
        if config.inner_dimensions == 0 {
            return refuse("inner_dimensions", "0".into(), "1 or more".into());
        }

        check_tokenizer(dir, &llm)?;
        let prompter = Prompter::open(dir)?;
        let (found, expected) = (prompter.max_pass_tokens(), llm.max_length());
        if found > expected {
            return Err(ExportError::TooLong { file: dir.join(prompt::FILE_NAME), found, expected });
        }
        let mut prefixes = prompter.before_texts().to_vec();
        // Queries and documents may begin alike, and without layers nothing attends to the prefix.
        prefixes.dedup();
        if config.encoder_layers(depth) == 0 || prefixes.iter().all(Vec::is_empty) {
            prefixes.clear();
        }
        if config.query_adapter.is_some() && prefixes.len() < 2 {
            let expected = "none, because this prompt's queries and documents begin alike and the graph could not tell them apart";
            return refuse("query_adapter", "some".into(), expected.into());
        }
        Ok(Self { dir: dir.to_owned(), llm, config, max_tokens: found, prefixes })
    }

    /// Layers of the LLM that the encoder reads.
    pub fn layers(&self) -> usize {
        self.config.encoder_layers(self.llm.num_hidden_layers)
    }

    /// The tensors of the LLM and of the query adapter, in the LLM's own basis.
    pub fn open_llm(&self) -> Result<Llm, ExportError> {
        let mut llm = Llm::open(&self.dir, &self.llm)?;
        if let Some(adapter) = &self.config.query_adapter {
            llm.adapter = Some(QueryAdapter::open(&self.dir, adapter)?);
        }
        Ok(llm)
    }
}
