//! From a pretrained folder and its base LLM to a model directory.

use super::{BASE_KEY, DELTA_FILE, PretrainedError, blocks};
use crate::weights::{DType, Weights};
use sha2::{Digest, Sha256};

#[cfg(feature = "gguf")]
pub use with_gguf::assemble;

/// SHA-256 over names, shapes and f32 numbers of all tensors, whatever file and kind of number they lie in.
pub fn digest_of(weights: &Weights) -> Result<String, PretrainedError> {
    let mut digest = LlmDigest::default();
    for name in weights.names() {
        let (shape, numbers) = weights.f32(name)?;
        digest.add(name, &shape, &numbers);
    }
    Ok(digest.finish())
}

/// See [`digest_of`]; tensors come in the order of their names.
#[derive(Default)]
struct LlmDigest(Sha256);

impl LlmDigest {
    fn add(&mut self, name: &str, shape: &[usize], numbers: &[f32]) {
        self.0.update(format!("{name}{shape:?}\n"));
        for chunk in numbers.chunks(1 << 14) {
            self.0.update(chunk.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>());
        }
    }

    fn finish(self) -> String {
        crate::files::hex(&self.0.finalize())
    }
}

/// Adds the stored difference of tensor `name`, if it has one, to the base's numbers.
pub fn add(delta: &Weights, name: &str, numbers: &mut [f32]) -> Result<(), PretrainedError> {
    let wrong = |tensor: &str, reason: String| {
        Err(PretrainedError::Delta { file: delta.file().into(), tensor: tensor.into(), reason })
    };
    let (values, scales) = (format!("{name}.values"), format!("{name}.scales"));
    if delta.contains(&values) {
        let (dtype, _, bytes) = delta.raw(&values)?;
        let (scales_dtype, _, scale_bytes) = delta.raw(&scales)?;
        let fits = bytes.len() * 2 == numbers.len() && scale_bytes.len() / 2 * blocks::BLOCK == numbers.len();
        if dtype != DType::U8 || scales_dtype != DType::F16 || !fits {
            let found = format!(
                "has {} values and {} scales, the base has {} numbers",
                bytes.len() * 2,
                scale_bytes.len() / 2,
                numbers.len()
            );
            return wrong(&values, found);
        }
        let scales = blocks::scales_of(scale_bytes);
        numbers.iter_mut().zip(blocks::numbers(bytes, &scales)).for_each(|(number, more)| *number += more);
    } else if delta.contains(name) {
        let (_, more) = delta.f32(name)?;
        if more.len() != numbers.len() {
            return wrong(name, format!("has {} numbers, the base has {}", more.len(), numbers.len()));
        }
        numbers.iter_mut().zip(more).for_each(|(number, more)| *number += more);
    }
    Ok(())
}

/// Refuses differences of tensors that the base lacks.
fn check_names(delta: &Weights, base: &[String]) -> Result<(), PretrainedError> {
    for name in delta.names() {
        let tensor = name.strip_suffix(".values").or(name.strip_suffix(".scales")).unwrap_or(name);
        if !base.iter().any(|known| known == tensor) {
            return Err(PretrainedError::Delta {
                file: delta.file().into(),
                tensor: name.into(),
                reason: "belongs to no tensor of the base LLM".into(),
            });
        }
    }
    Ok(())
}

#[cfg(feature = "gguf")]
mod with_gguf {
    use super::super::{Pretrained, STUDENT_FILES, short};
    use super::*;
    use crate::checkpoint::{self, WEIGHTS_FILE};
    use crate::files::{FileError, write_json};
    use crate::gguf::GgufModel;
    use crate::prompt;
    use crate::weights::SafetensorsWriter;
    use std::collections::HashMap;
    use std::fs;
    use std::path::Path;

    /// The base LLM, wherever it lies.
    enum Llm {
        Directory(Weights),
        Gguf(Box<GgufModel>),
    }

    impl Llm {
        fn names(&self) -> Vec<String> {
            let mut names: Vec<String> = match self {
                Self::Directory(weights) => weights.names().map(str::to_owned).collect(),
                Self::Gguf(model) => model.tensor_names(),
            };
            names.sort();
            names
        }

        fn f32(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>), PretrainedError> {
            Ok(match self {
                Self::Directory(weights) => weights.f32(name)?,
                Self::Gguf(model) => model.tensor_f32(name)?,
            })
        }
    }

    /// Fills the empty directory `out` with the model that the pretrained folder `dir` was taken from. `llm` is the base: a model
    /// directory, as `train import` writes it, or the GGUF file.
    pub fn assemble(dir: &Path, llm: &Path, out: &Path) -> Result<(), PretrainedError> {
        let pretrained = Pretrained::open(dir)?;
        let delta_file = dir.join(DELTA_FILE);
        let delta = Weights::open_file(&delta_file)?;
        let base = if llm.is_dir() {
            checkpoint::copy_side_files(llm, out)?;
            Llm::Directory(Weights::open(llm)?)
        } else {
            let model = GgufModel::open(llm)?;
            write_json(&out.join("config.json"), &model.config)?;
            write_json(&out.join("tokenizer.json"), &model.tokenizer)?;
            write_json(&out.join("tokenizer_config.json"), &model.tokenizer_config)?;
            Llm::Gguf(Box::new(model))
        };
        let names = base.names();
        check_names(&delta, &names)?;
        let mut digest = LlmDigest::default();
        let mut writer = SafetensorsWriter::create(out.join(WEIGHTS_FILE), DType::F32)?;
        for name in &names {
            let (shape, mut numbers) = base.f32(name)?;
            digest.add(name, &shape, &numbers);
            add(&delta, name, &mut numbers)?;
            writer.push(name, &shape, &numbers)?;
        }
        let found = digest.finish();
        if found != pretrained.base.digest || delta.metadata(BASE_KEY) != Some(&found) {
            return Err(PretrainedError::OtherLlm {
                llm: llm.into(),
                dir: dir.into(),
                name: pretrained.base.name,
                expected: short(&pretrained.base.digest),
                found: short(&found),
            });
        }
        writer.finish(HashMap::new())?;
        for file in STUDENT_FILES.iter().chain(&[prompt::FILE_NAME, DELTA_FILE]) {
            let from = dir.join(file);
            if from.is_file() {
                fs::copy(&from, out.join(file)).map_err(FileError::io(&from))?;
            }
        }
        Ok(())
    }
}
