//! From a trained model directory and its base LLM to a pretrained folder.

use super::{
    BASE_KEY, Base, DELTA_FILE, FILE_NAME, FORMAT_VERSION, Pretrained, PretrainedError, STUDENT_FILES,
};
use super::{assemble, blocks};
use crate::files::{self, FileError, StagedDir, write_json};
use crate::prompt;
use crate::weights::Weights;
use safetensors::tensor::{Dtype, View};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::Write;
use std::path::Path;

/// One tensor of `delta.safetensors`.
struct Stored {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl View for Stored {
    fn dtype(&self) -> Dtype {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }
    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// Writes what `model` (a model directory) changed in `base` (the one that it was trained from, called `name`) to `out`, with
/// prompt and student. A model that was made of a pretrained folder gives that folder's differences again, not rounded anew.
pub fn pack(model: &Path, base: &Path, name: &str, out: &Path) -> Result<Pretrained, PretrainedError> {
    let staged = StagedDir::new(out)?;
    let (trained, original) = (Weights::open(model)?, Weights::open(base)?);
    same_tensors(&trained, &original, model, base)?;
    let digest = assemble::digest_of(&original)?;
    let delta = staged.path().join(DELTA_FILE);
    if !already_packed(model, &trained, &original, &digest)? {
        write_delta(&delta, differences(&trained, &original)?, &digest)?;
    } else {
        let from = model.join(DELTA_FILE);
        fs::copy(&from, &delta).map_err(FileError::io(&from))?;
    }
    for file in STUDENT_FILES.iter().chain(&[prompt::FILE_NAME]) {
        let from = model.join(file);
        if from.is_file() {
            fs::copy(&from, staged.path().join(file)).map_err(FileError::io(&from))?;
        }
    }
    let mut digests = BTreeMap::new();
    for entry in fs::read_dir(staged.path()).map_err(FileError::io(staged.path()))? {
        let entry = entry.map_err(FileError::io(staged.path()))?;
        digests.insert(entry.file_name().to_string_lossy().into_owned(), files::sha256_file(&entry.path())?);
    }
    let base = Base { name: name.to_owned(), digest };
    let pretrained = Pretrained { format_version: FORMAT_VERSION, base, files: digests };
    write_json(&staged.path().join(FILE_NAME), &pretrained)?;
    staged.commit()?;
    Ok(pretrained)
}

fn same_tensors(
    trained: &Weights,
    original: &Weights,
    model: &Path,
    base: &Path,
) -> Result<(), PretrainedError> {
    let shape = |weights: &Weights, name: &str| match weights.shape(name) {
        Some(shape) => format!("{shape:?}"),
        None => "not there".to_owned(),
    };
    for tensor in trained.names().chain(original.names()) {
        let (found, expected) = (shape(trained, tensor), shape(original, tensor));
        if found != expected {
            let (model, base, tensor) = (model.into(), base.into(), tensor.into());
            return Err(PretrainedError::Tensor { model, base, tensor, found, expected });
        }
    }
    Ok(())
}

/// Whether the model's own differences' file makes exactly its weights of this base.
fn already_packed(
    model: &Path,
    trained: &Weights,
    original: &Weights,
    digest: &str,
) -> Result<bool, PretrainedError> {
    let file = model.join(DELTA_FILE);
    if !file.is_file() {
        return Ok(false);
    }
    let delta = Weights::open_file(&file)?;
    if delta.metadata(BASE_KEY) != Some(digest) {
        return Ok(false);
    }
    for name in original.names() {
        let mut numbers = original.f32(name)?.1;
        assemble::add(&delta, name, &mut numbers)?;
        if numbers != trained.f32(name)?.1 {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The tensors that differ: matrices in blocks, vectors (and what cannot be cut into blocks) as they are.
fn differences(trained: &Weights, original: &Weights) -> Result<Vec<(String, Stored)>, PretrainedError> {
    let mut stored = Vec::new();
    for name in original.names() {
        let (shape, mut numbers) = trained.f32(name)?;
        let base = original.f32(name)?.1;
        if numbers == base {
            continue;
        }
        numbers.iter_mut().zip(&base).for_each(|(number, base)| *number -= base);
        match shape.as_slice() {
            &[rows, columns] if columns.is_multiple_of(blocks::BLOCK) => {
                let rounded = blocks::round(&numbers);
                let values =
                    Stored { dtype: Dtype::U8, shape: vec![rows, columns / 2], bytes: rounded.values };
                let bytes = rounded.scales.iter().flat_map(|scale| scale.to_le_bytes()).collect();
                let shape = vec![rows, columns / blocks::BLOCK];
                stored.push((format!("{name}.values"), values));
                stored.push((format!("{name}.scales"), Stored { dtype: Dtype::F16, shape, bytes }));
            }
            _ => {
                let bytes = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
                stored.push((name.to_owned(), Stored { dtype: Dtype::F32, shape, bytes }));
            }
        }
    }
    Ok(stored)
}

fn write_delta(file: &Path, tensors: Vec<(String, Stored)>, digest: &str) -> Result<(), PretrainedError> {
    let metadata = HashMap::from([(BASE_KEY.to_owned(), digest.to_owned())]);
    let refused = |error: safetensors::SafeTensorError| {
        FileError::io(file)(std::io::Error::other(format!("cannot write tensors: {error}")))
    };
    let bytes = safetensors::serialize(tensors, Some(metadata)).map_err(refused)?;
    Ok(files::write_atomic(file, |writer| writer.write_all(&bytes))?)
}
