//! Weights on disk: `model.safetensors`, or shards named by `model.safetensors.index.json`, memory-mapped.
//! No libtorch here: the torch model and the ONNX exporter read the same bytes through this module.
//! Format: <https://github.com/huggingface/safetensors#format>.
//!
//! `files` knows which files of a folder are the model, `tensors` which tensors it has and by which names others store
//! them, `quantised` how weights look that we cannot read, `writer` writes.

mod error;
mod files;
mod quantised;
mod tensors;
#[cfg(test)]
mod tests;
mod writer;

pub use error::WeightsError;
pub use files::{WEIGHTS_FILE, WEIGHTS_INDEX_FILE, WeightFiles};
pub use tensors::{Naming, expected_tensors};
pub use writer::{SafetensorsWriter, write_safetensors};

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use memmap2::Mmap;
/// Kind of number in a tensor, as safetensors names it.
pub use safetensors::Dtype as DType;
use safetensors::tensor::{Metadata, TensorInfo};

/// Bytes of the number that opens a safetensors file: the length of its header.
const PREFIX: usize = 8;

/// One mapped file and its parsed header.
#[derive(Debug)]
struct Shard {
    file: PathBuf,
    bytes: Mmap,
    /// Where the first tensor starts.
    data: usize,
    header: Metadata,
}

impl Shard {
    fn open(file: &Path) -> Result<Self, WeightsError> {
        let failed = |source| WeightsError::Io { file: file.into(), source };
        let bad = |reason: String| WeightsError::Header { file: file.into(), reason };
        let opened = File::open(file).map_err(failed)?;
        if opened.metadata().map_err(failed)?.is_dir() {
            return Err(failed(io::ErrorKind::IsADirectory.into()));
        }
        // SAFETY: the mapping is private and read-only. Another process that shortens the file while we read
        // would end this one with SIGBUS; checkpoints are replaced by rename (see `SafetensorsWriter`), never
        // written in place, so the mapped file keeps its bytes.
        let bytes = unsafe { Mmap::map(&opened) }.map_err(failed)?;
        let truncated =
            |expected| WeightsError::Truncated { file: file.into(), found: bytes.len() as u64, expected };
        let Some(prefix) = bytes.first_chunk::<PREFIX>() else {
            return Err(truncated(PREFIX as u64));
        };
        let length = u64::from_le_bytes(*prefix);
        // The format's own limit; a larger number means other bytes altogether.
        if length > 100_000_000 {
            return Err(bad(format!("its header would be {length} bytes long")));
        }
        let data = PREFIX + length as usize;
        let Some(text) = bytes.get(PREFIX..data) else { return Err(truncated(data as u64)) };
        let header: Metadata = serde_json::from_slice(text).map_err(|error| bad(error.to_string()))?;
        let expected = (data as u64).saturating_add(header.data_len() as u64);
        if bytes.len() as u64 != expected {
            return Err(truncated(expected));
        }
        Ok(Self { file: file.into(), bytes, data, header })
    }
}

/// All tensors of a checkpoint by name.
#[derive(Debug)]
pub struct Weights {
    /// What an error about the whole names: the single file, or the index.
    file: PathBuf,
    shards: Vec<Shard>,
    /// Tensor name to position in `shards`.
    tensors: BTreeMap<String, usize>,
}

impl Weights {
    /// Opens the weights of a model folder: see [`WeightFiles`].
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, WeightsError> {
        let files = WeightFiles::of(dir.as_ref())?;
        let shards = files.parts().iter().map(|part| Shard::open(part)).collect::<Result<_, _>>()?;
        let weights = Self::join(files.file.clone(), shards)?;
        for (name, shard) in &files.weight_map {
            if weights.shard(name)?.file.file_name() != Some(shard.as_ref()) {
                let file = files.file.with_file_name(shard);
                return Err(WeightsError::Missing { file, name: name.clone() });
            }
        }
        Ok(weights)
    }

    /// Opens one safetensors file.
    pub fn open_file(file: impl AsRef<Path>) -> Result<Self, WeightsError> {
        let shard = Shard::open(file.as_ref())?;
        Self::join(file.as_ref().into(), vec![shard])
    }

    fn join(file: PathBuf, shards: Vec<Shard>) -> Result<Self, WeightsError> {
        let mut tensors = BTreeMap::new();
        for (position, shard) in shards.iter().enumerate() {
            for name in shard.header.tensors().into_keys() {
                if tensors.insert(name.clone(), position).is_some() {
                    return Err(WeightsError::Duplicate { file: shard.file.clone(), name });
                }
            }
        }
        Ok(Self { file, shards, tensors })
    }

    /// The file all this came from: the single file, or the index.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Shape of a tensor, if there is one of this name.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensor(name).ok().map(|(_, info)| info.shape.as_slice())
    }

    /// What the files' headers say beside the tensors; the first file wins.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.shards.iter().find_map(|shard| shard.header.metadata().as_ref()?.get(key).map(String::as_str))
    }

    /// Kind, shape and little-endian bytes of a tensor, as they lie in the file.
    pub fn raw(&self, name: &str) -> Result<(DType, &[usize], &[u8]), WeightsError> {
        let (shard, info) = self.tensor(name)?;
        let (start, end) = info.data_offsets;
        // Checked when the file was opened: offsets are contiguous and end where the file ends.
        let bytes = shard.bytes.get(shard.data + start..shard.data + end);
        let bytes = bytes.ok_or_else(|| self.missing(name))?;
        Ok((info.dtype, &info.shape, bytes))
    }

    /// Shape and numbers of a tensor, converted from F32, F16 or BF16.
    pub fn f32(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>), WeightsError> {
        let (dtype, shape, bytes) = self.raw(name)?;
        let numbers = match dtype {
            DType::F32 => bytes.as_chunks::<4>().0.iter().map(|number| f32::from_le_bytes(*number)).collect(),
            DType::F16 => widen(bytes, |chunk, out| {
                chunk.iter().map(|n| f16::from_le_bytes(*n)).collect::<Vec<_>>().convert_to_f32_slice(out);
            }),
            DType::BF16 => widen(bytes, |chunk, out| {
                chunk.iter().map(|n| bf16::from_le_bytes(*n)).collect::<Vec<_>>().convert_to_f32_slice(out);
            }),
            found => return Err(self.wrong_dtype(name, found)),
        };
        Ok((shape.to_vec(), numbers))
    }

    fn shard(&self, name: &str) -> Result<&Shard, WeightsError> {
        let position = self.tensors.get(name);
        position.and_then(|&position| self.shards.get(position)).ok_or_else(|| self.missing(name))
    }

    fn tensor(&self, name: &str) -> Result<(&Shard, &TensorInfo), WeightsError> {
        let shard = self.shard(name)?;
        let info = shard.header.info(name).ok_or_else(|| self.missing(name))?;
        Ok((shard, info))
    }

    fn missing(&self, name: &str) -> WeightsError {
        WeightsError::Missing { file: self.file.clone(), name: name.into() }
    }

    fn wrong_dtype(&self, name: &str, found: DType) -> WeightsError {
        let file = self.shard(name).map_or_else(|_| self.file.clone(), |shard| shard.file.clone());
        WeightsError::Dtype { file, name: name.into(), found }
    }
}

/// Two-byte numbers to `f32` through `convert`, in pieces that stay in the cache.
fn widen(bytes: &[u8], convert: impl Fn(&[[u8; 2]], &mut [f32])) -> Vec<f32> {
    let (numbers, _) = bytes.as_chunks::<2>();
    let mut out = vec![0.0; numbers.len()];
    for (chunk, out) in numbers.chunks(4096).zip(out.chunks_mut(4096)) {
        convert(chunk, out);
    }
    out
}
