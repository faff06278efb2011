//! A Hugging Face folder: as `save_pretrained` writes it, as a hub's cache holds it, as fine-tuning leaves it.

use super::tokenizer::FittedTokenizer;
use anyhow::{Result, bail};
use models::checkpoint::{WEIGHTS_FILE, copy_side_files, copy_weights};
use models::config::DecoderConfig;
use models::files::{present, read_json};
use models::prompt::{self, PromptTemplate};
use models::weights::{DType, Naming, SafetensorsWriter, Weights, expected_tensors};
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;

/// What was read of it.
#[derive(Debug)]
pub struct Folder {
    pub(super) config: DecoderConfig,
    pub(super) tokenizer: FittedTokenizer,
    pub(super) prompt: Option<PromptTemplate>,
    weights: Weights,
    naming: Naming,
}

impl Folder {
    pub(super) fn open(from: &Path) -> Result<Self> {
        refuse_what_is_no_model(from)?;
        let config = DecoderConfig::open(from)?;
        let settings: Value = read_json(&from.join("config.json"))?;
        // transformers reads the file that is named here, whatever lies beside it.
        if let Some(named) = settings["transformers_weights"].as_str().filter(|named| *named != WEIGHTS_FILE)
        {
            bail!(
                "{}: `transformers_weights` is `{named}`, expected `{WEIGHTS_FILE}` or nothing; save the model anew with \
                 save_pretrained",
                from.join("config.json").display()
            );
        }
        let weights = Weights::open(from)?;
        let said = quantisation(&settings);
        weights.check_whole(said.as_deref())?;
        if let Some(how) = said {
            eprintln!(
                "config.json says that the weights are quantised ({how}); they are whole and taken as they are"
            );
        }
        let naming = Naming::of(&weights, &config);
        weights.check_named(&config, naming)?;
        weights.check_tied_head(&config, naming)?;
        let prompt = from.join(prompt::FILE_NAME);
        let prompt = present(&prompt)?.then(|| PromptTemplate::open(&prompt)).transpose()?;
        let tokenizer = FittedTokenizer::open(from, config.vocab_size)?;
        Ok(Self { config, tokenizer, prompt, weights, naming })
    }

    pub(super) fn write(&self, from: &Path, out: &Path) -> Result<()> {
        copy_side_files(from, out)?;
        self.tokenizer.write(&out.join("tokenizer.json"))?;
        if self.naming.is_usual() {
            return Ok(copy_weights(from, out)?);
        }
        let mut writer = SafetensorsWriter::create(out.join(WEIGHTS_FILE), DType::F32)?;
        for (name, _) in expected_tensors(&self.config) {
            writer.push_raw(&name, self.weights.raw(self.naming.stored(&name))?)?;
        }
        Ok(writer.finish(HashMap::new())?)
    }
}

/// Folders that people take for a model.
fn refuse_what_is_no_model(from: &Path) -> Result<()> {
    if from.join("config.json").symlink_metadata().is_ok() {
        return Ok(());
    }
    if from.join("adapter_config.json").exists() {
        bail!(
            "{}: an adapter (PEFT) without its model; merge the two with peft's merge_and_unload and save the model with \
             save_pretrained",
            from.display()
        );
    }
    if let Ok(mut snapshots) = from.join("snapshots").read_dir() {
        let example = snapshots.find_map(|entry| Some(entry.ok()?.path()));
        bail!(
            "{}: a hub's cache of a model; name one of the folders in snapshots/{}",
            from.display(),
            example.map(|example| format!(", for example {}", example.display())).unwrap_or_default()
        );
    }
    Ok(())
}

/// What config.json says of weights in few bits.
fn quantisation(settings: &Value) -> Option<String> {
    let said = ["quantization_config", "quantization"]
        .into_iter()
        .map(|key| &settings[key])
        .find(|v| v.is_object())?;
    let method = said["quant_method"].as_str().unwrap_or("MLX");
    let bits = ["bits", "w_bit"].into_iter().find_map(|key| said[key].as_u64());
    Some(bits.map_or_else(|| method.to_owned(), |bits| format!("{method}, {bits} bits")))
}
