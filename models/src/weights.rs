//! Weights on disk: `model.safetensors`, or shards named by `model.safetensors.index.json`, memory-mapped.
//! No libtorch here: the torch model and the ONNX exporter read the same bytes through this file.
//! Format: <https://github.com/huggingface/safetensors#format>.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use memmap2::Mmap;
/// Kind of number in a tensor, as safetensors names it.
pub use safetensors::Dtype as DType;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::Deserialize;

use crate::config::DecoderConfig;

/// Bytes of the number that opens a safetensors file: the length of its header.
const PREFIX: usize = 8;

/// Why weights cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The system refused to read or write.
    #[error("{file}: {source}")]
    Io {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A folder holds neither of the two names.
    #[error(
        "{dir}: found neither model.safetensors nor model.safetensors.index.json\nhint: convert pickled weights (pytorch_model.bin) to safetensors with transformers' save_pretrained"
    )]
    NoWeights {
        /// The folder.
        dir: PathBuf,
    },
    /// The file is shorter or longer than its header says.
    #[error(
        "{file}: {found} bytes, expected {expected}\nhint: the download or copy was cut off, fetch the file again"
    )]
    Truncated {
        /// The file.
        file: PathBuf,
        /// Its length.
        found: u64,
        /// What the header asks for.
        expected: u64,
    },
    /// The header is no safetensors header.
    #[error("{file}: not a safetensors file: {reason}")]
    Header {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The index names a shard that is not there.
    #[error("{file}: names shard `{shard}`, which is missing beside it")]
    MissingShard {
        /// The index.
        file: PathBuf,
        /// The shard's file name.
        shard: String,
    },
    /// Two shards hold a tensor of the same name.
    #[error("{file}: tensor `{name}` is also in another shard")]
    Duplicate {
        /// The second file.
        file: PathBuf,
        /// The tensor.
        name: String,
    },
    /// A tensor the model needs is not there.
    #[error("{file}: tensor `{name}` is missing")]
    Missing {
        /// Where it was looked for.
        file: PathBuf,
        /// The tensor.
        name: String,
    },
    /// A tensor the model does not have.
    #[error(
        "{file}: tensor `{name}` is not part of the model that config.json describes\nhint: weights and config.json come from different models"
    )]
    Unused {
        /// The file.
        file: PathBuf,
        /// The tensor.
        name: String,
    },
    /// A tensor has another shape.
    #[error("{file}: tensor `{name}` has shape {found:?}, expected {expected:?}")]
    Shape {
        /// The file.
        file: PathBuf,
        /// The tensor.
        name: String,
        /// Shape in the file.
        found: Vec<usize>,
        /// Shape by config.json.
        expected: Vec<usize>,
    },
    /// A tensor has numbers of another kind.
    #[error("{file}: tensor `{name}` is {found}, expected F32, F16 or BF16")]
    Dtype {
        /// The file.
        file: PathBuf,
        /// The tensor.
        name: String,
        /// Its kind.
        found: DType,
    },
    /// A tensor to be written has another number of elements than its shape says, or its name is taken.
    #[error("{file}: cannot write tensor `{name}`: {reason}")]
    Unwritable {
        /// The file.
        file: PathBuf,
        /// The tensor.
        name: String,
        /// Why.
        reason: String,
    },
}

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
    /// Opens `model.safetensors` in a model folder, or the shards of `model.safetensors.index.json`.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, WeightsError> {
        let dir = dir.as_ref();
        let (single, index) = (dir.join("model.safetensors"), dir.join("model.safetensors.index.json"));
        if single.is_file() {
            Self::open_file(single)
        } else if index.is_file() {
            Self::open_index(index)
        } else {
            Err(WeightsError::NoWeights { dir: dir.into() })
        }
    }

    /// Opens one safetensors file.
    pub fn open_file(file: impl AsRef<Path>) -> Result<Self, WeightsError> {
        let shard = Shard::open(file.as_ref())?;
        Self::join(file.as_ref().into(), vec![shard])
    }

    fn open_index(file: PathBuf) -> Result<Self, WeightsError> {
        #[derive(Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let text = fs::read(&file).map_err(|source| WeightsError::Io { file: file.clone(), source })?;
        let index: Index = serde_json::from_slice(&text)
            .map_err(|error| WeightsError::Header { file: file.clone(), reason: error.to_string() })?;
        let mut names: Vec<&String> = index.weight_map.values().collect();
        names.sort();
        names.dedup();
        let mut shards = Vec::with_capacity(names.len());
        for name in names {
            let path = file.with_file_name(name);
            // A shard lies beside its index; a name with folders in it could point anywhere.
            if Path::new(name).file_name() != Some(name.as_ref()) || !path.is_file() {
                return Err(WeightsError::MissingShard { file, shard: name.clone() });
            }
            shards.push(Shard::open(&path)?);
        }
        let weights = Self::join(file, shards)?;
        for (name, shard) in &index.weight_map {
            let found = weights.shard(name)?;
            if found.file.file_name() != Some(shard.as_ref()) {
                return Err(WeightsError::Missing {
                    file: weights.file.with_file_name(shard),
                    name: name.clone(),
                });
            }
        }
        Ok(weights)
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

    /// Checks that the file holds exactly the model `config` describes, in kinds we read. Beside that it may
    /// hold an `lm_head.weight` that is tied, and `rotary_emb.inv_freq`, which old checkpoints kept.
    pub fn check(&self, config: &DecoderConfig) -> Result<(), WeightsError> {
        let expected: BTreeMap<String, Vec<usize>> = expected_tensors(config).into_iter().collect();
        for (name, expected) in &expected {
            let (shard, info) = self.tensor(name)?;
            if info.shape != *expected {
                return Err(WeightsError::Shape {
                    file: shard.file.clone(),
                    name: name.clone(),
                    found: info.shape.clone(),
                    expected: expected.clone(),
                });
            }
            if !matches!(info.dtype, DType::F32 | DType::F16 | DType::BF16) {
                return Err(self.wrong_dtype(name, info.dtype));
            }
        }
        let ignored = |name: &str| {
            name.ends_with("rotary_emb.inv_freq") || (config.tie_word_embeddings && name == "lm_head.weight")
        };
        match self.names().find(|name| !expected.contains_key(*name) && !ignored(name)) {
            Some(name) => {
                Err(WeightsError::Unused { file: self.shard(name)?.file.clone(), name: name.into() })
            }
            None => Ok(()),
        }
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

/// Names and shapes of all tensors of the model `config` describes, in the order of the forward pass.
pub fn expected_tensors(config: &DecoderConfig) -> Vec<(String, Vec<usize>)> {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let (queries, keys) =
        (config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim);
    let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![config.vocab_size, hidden])];
    for layer in 0..config.num_hidden_layers {
        let mut add = |name: &str, shape: &[usize]| {
            tensors.push((format!("model.layers.{layer}.{name}"), shape.to_vec()));
        };
        add("input_layernorm.weight", &[hidden]);
        for (name, out) in [("q_proj", queries), ("k_proj", keys), ("v_proj", keys)] {
            add(&format!("self_attn.{name}.weight"), &[out, hidden]);
            if config.has_qkv_bias() {
                add(&format!("self_attn.{name}.bias"), &[out]);
            }
        }
        if config.has_qk_norm() {
            add("self_attn.q_norm.weight", &[config.head_dim]);
            add("self_attn.k_norm.weight", &[config.head_dim]);
        }
        add("self_attn.o_proj.weight", &[hidden, queries]);
        if config.has_o_bias() {
            add("self_attn.o_proj.bias", &[hidden]);
        }
        add("post_attention_layernorm.weight", &[hidden]);
        for (name, out, inputs) in
            [("gate_proj", inner, hidden), ("up_proj", inner, hidden), ("down_proj", hidden, inner)]
        {
            add(&format!("mlp.{name}.weight"), &[out, inputs]);
            if config.has_mlp_bias() {
                add(&format!("mlp.{name}.bias"), &[out]);
            }
        }
    }
    tensors.push(("model.norm.weight".into(), vec![hidden]));
    if !config.tie_word_embeddings {
        tensors.push(("lm_head.weight".into(), vec![config.vocab_size, hidden]));
    }
    tensors
}

/// Writes a safetensors file tensor by tensor: one of them is in memory at a time, and `path` is replaced only
/// when everything is on disk.
///
/// The header stands first in the file and needs all shapes, so tensors go to a sibling first and are copied
/// behind the header at the end (inside the kernel, where the file system can).
#[derive(Debug)]
pub struct SafetensorsWriter {
    path: PathBuf,
    dtype: DType,
    /// Tensors so far, removed on drop.
    _data: Temporary,
    out: BufWriter<File>,
    tensors: Vec<(String, TensorInfo)>,
    offset: usize,
}

impl SafetensorsWriter {
    /// Starts a file at `path` whose numbers are stored as `dtype`: F32, BF16 or F16.
    pub fn create(path: impl AsRef<Path>, dtype: DType) -> Result<Self, WeightsError> {
        let path = path.as_ref().to_path_buf();
        if !matches!(dtype, DType::F32 | DType::F16 | DType::BF16) {
            return Err(WeightsError::Dtype { file: path, name: "(any)".into(), found: dtype });
        }
        let data = Temporary::beside(&path, "data");
        let out = File::options().create(true).truncate(true).read(true).write(true).open(&data.0);
        let out = out.map_err(|source| WeightsError::Io { file: data.0.clone(), source })?;
        let out = BufWriter::with_capacity(1 << 20, out);
        Ok(Self { path, dtype, _data: data, out, tensors: Vec::new(), offset: 0 })
    }

    /// Appends a tensor, row-major.
    pub fn push(&mut self, name: &str, shape: &[usize], numbers: &[f32]) -> Result<(), WeightsError> {
        let refuse = |reason: String| {
            Err(WeightsError::Unwritable { file: self.path.clone(), name: name.into(), reason })
        };
        let expected = shape.iter().try_fold(1_usize, |product, &size| product.checked_mul(size));
        if expected != Some(numbers.len()) {
            return refuse(format!("{} numbers, expected shape {shape:?}", numbers.len()));
        }
        if self.tensors.iter().any(|(taken, _)| taken == name) {
            return refuse("its name is taken".into());
        }
        // In pieces: the converted copy of a whole embedding matrix is not needed at once.
        for chunk in numbers.chunks(1 << 14) {
            let bytes: Vec<u8> = match self.dtype {
                DType::F16 => chunk.iter().flat_map(|n| f16::from_f32(*n).to_le_bytes()).collect(),
                DType::BF16 => chunk.iter().flat_map(|n| bf16::from_f32(*n).to_le_bytes()).collect(),
                _ => chunk.iter().flat_map(|n| n.to_le_bytes()).collect(),
            };
            self.out.write_all(&bytes).map_err(|source| self.failed(source))?;
        }
        let end = self.offset + numbers.len() * self.dtype.bitsize() / 8;
        let data_offsets = (std::mem::replace(&mut self.offset, end), end);
        self.tensors.push((name.into(), TensorInfo { dtype: self.dtype, shape: shape.into(), data_offsets }));
        Ok(())
    }

    /// Puts the header in front and moves the file to its place. `metadata` lands under `__metadata__`;
    /// `format: pt` is added, without which transformers refuses the file.
    pub fn finish(mut self, metadata: HashMap<String, String>) -> Result<(), WeightsError> {
        let mut metadata = metadata;
        metadata.entry("format".into()).or_insert_with(|| "pt".into());
        let tensors = std::mem::take(&mut self.tensors);
        let header = Metadata::new(Some(metadata), tensors)
            .map_err(|error| error.to_string())
            .and_then(|header| serde_json::to_vec(&header).map_err(|error| error.to_string()));
        let mut header = header.map_err(|reason| WeightsError::Header { file: self.path.clone(), reason })?;
        header.resize(header.len().next_multiple_of(PREFIX), b' ');
        self.copy(&header).map_err(|source| self.failed(source))
    }

    fn copy(&mut self, header: &[u8]) -> io::Result<()> {
        self.out.flush()?;
        let data = self.out.get_mut();
        data.seek(SeekFrom::Start(0))?;
        let whole = Temporary::beside(&self.path, "tmp");
        let mut file = File::create(&whole.0)?;
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(header)?;
        io::copy(data, &mut file)?;
        file.sync_all()?;
        fs::rename(&whole.0, &self.path)
    }

    fn failed(&self, source: io::Error) -> WeightsError {
        WeightsError::Io { file: self.path.clone(), source }
    }
}

/// A file of ours beside another, removed when dropped (renamed away before, it is not there any more).
#[derive(Debug)]
struct Temporary(PathBuf);

impl Temporary {
    fn beside(path: &Path, ending: &str) -> Self {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        Self(path.with_file_name(format!(".{name}.{}.{ending}", std::process::id())))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Nothing is lost if it stays; and after a rename it is gone already.
        let _ = fs::remove_file(&self.0);
    }
}

/// Writes tensors as a safetensors file, atomically; see [`SafetensorsWriter`] for sources that can fail.
pub fn write_safetensors(
    path: impl AsRef<Path>,
    tensors: impl IntoIterator<Item = (String, Vec<usize>, Vec<f32>)>,
    dtype: DType,
    metadata: HashMap<String, String>,
) -> Result<(), WeightsError> {
    let mut writer = SafetensorsWriter::create(path, dtype)?;
    for (name, shape, numbers) in tensors {
        writer.push(&name, &shape, &numbers)?;
    }
    writer.finish(metadata)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers() -> Vec<(String, Vec<usize>, Vec<f32>)> {
        vec![
            ("b".into(), vec![2, 3], vec![0.0, -1.5, 2.0, 1e-3, 65504.0, -0.0]),
            ("a".into(), vec![], vec![3.25]),
            ("empty".into(), vec![0, 4], vec![]),
        ]
    }

    fn write(path: &Path, dtype: DType) {
        write_safetensors(path, numbers(), dtype, HashMap::from([("k".into(), "v".into())])).unwrap();
    }

    /// A checkpoint that changes its numbers by being saved would drift with every resume.
    #[test]
    fn every_dtype_comes_back_as_written() {
        let dir = tempfile::tempdir().unwrap();
        for (dtype, relative) in [(DType::F32, 0.0), (DType::F16, 1e-3), (DType::BF16, 1e-2)] {
            let path = dir.path().join("model.safetensors");
            write(&path, dtype);
            let weights = Weights::open(dir.path()).unwrap();
            assert_eq!(weights.names().collect::<Vec<_>>(), ["a", "b", "empty"]);
            assert_eq!((weights.metadata("k"), weights.metadata("format")), (Some("v"), Some("pt")));
            for (name, shape, expected) in numbers() {
                let (found_shape, found) = weights.f32(&name).unwrap();
                assert_eq!(found_shape, shape);
                assert_eq!(found.len(), expected.len());
                for (f, e) in found.iter().zip(&expected) {
                    assert!((f - e).abs() <= relative * e.abs(), "{dtype}: {name}: {f} {e}");
                }
            }
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "a temporary file was left");
    }

    /// A half-copied file must say so, not be read as noise or end the process.
    #[test]
    fn a_file_cut_anywhere_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        write(&path, DType::F32);
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            let error = Weights::open(dir.path()).unwrap_err();
            assert!(matches!(error, WeightsError::Truncated { .. }), "{length}: {error}");
        }
        fs::write(&path, [&whole[..], b"x"].concat()).unwrap();
        assert!(matches!(Weights::open(dir.path()), Err(WeightsError::Truncated { .. })));
        for byte in 0..whole.len().min(200) {
            let mut broken = whole.clone();
            broken[byte] ^= 0x41;
            fs::write(&path, broken).unwrap();
            let _ = Weights::open(dir.path()).map(|weights| weights.f32("b").map(|_| ()));
        }
    }

    /// Large models come in shards; one that is not there must be named.
    #[test]
    fn shards_are_joined_and_a_missing_one_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let shard = |name: &str, tensor: &str| {
            let tensors = [(tensor.to_owned(), vec![1], vec![1.0])];
            write_safetensors(dir.path().join(name), tensors, DType::F32, HashMap::new()).unwrap();
        };
        let index = |map: &str| {
            let text = format!(r#"{{"metadata": {{}}, "weight_map": {map}}}"#);
            fs::write(dir.path().join("model.safetensors.index.json"), text).unwrap();
        };
        index(r#"{"x": "1.safetensors", "y": "2.safetensors"}"#);
        shard("1.safetensors", "x");
        let error = Weights::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("2.safetensors"), "{error}");
        shard("2.safetensors", "y");
        assert_eq!(Weights::open(dir.path()).unwrap().f32("y").unwrap().1, [1.0]);
        shard("2.safetensors", "z");
        assert!(matches!(Weights::open(dir.path()), Err(WeightsError::Missing { name, .. }) if name == "y"));
        shard("2.safetensors", "x");
        assert!(matches!(Weights::open(dir.path()), Err(WeightsError::Duplicate { .. })));
        index(r#"{"x": "../1.safetensors"}"#);
        assert!(matches!(Weights::open(dir.path()), Err(WeightsError::MissingShard { .. })));
    }

    /// A wrong count would shift every tensor behind it.
    #[test]
    fn a_tensor_of_another_size_than_its_shape_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        let tensors = [("x".to_owned(), vec![2, 2], vec![1.0])];
        let error = write_safetensors(&path, tensors, DType::F32, HashMap::new()).unwrap_err();
        assert!(error.to_string().contains("`x`"), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
