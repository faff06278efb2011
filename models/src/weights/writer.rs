//! Writing a safetensors file, tensor by tensor.

use super::{DType, PREFIX, WeightsError};
use half::{bf16, f16};
use safetensors::tensor::{Metadata, TensorInfo};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

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
        let out = out.map_err(|source| WeightsError::Io { file: path.clone(), source })?;
        let out = BufWriter::with_capacity(1 << 20, out);
        Ok(Self { path, dtype, _data: data, out, tensors: Vec::new(), offset: 0 })
    }

    /// Appends a tensor, row-major.
    pub fn push(&mut self, name: &str, shape: &[usize], numbers: &[f32]) -> Result<(), WeightsError> {
        self.admit(name, shape, numbers.len())?;
        // In pieces: the converted copy of a whole embedding matrix is not needed at once.
        for chunk in numbers.chunks(1 << 14) {
            let bytes: Vec<u8> = match self.dtype {
                DType::F16 => chunk.iter().flat_map(|n| f16::from_f32(*n).to_le_bytes()).collect(),
                DType::BF16 => chunk.iter().flat_map(|n| bf16::from_f32(*n).to_le_bytes()).collect(),
                _ => chunk.iter().flat_map(|n| n.to_le_bytes()).collect(),
            };
            self.out.write_all(&bytes).map_err(|source| self.failed(source))?;
        }
        self.added(name, self.dtype, shape, numbers.len() * self.dtype.bitsize() / 8);
        Ok(())
    }

    /// Appends a tensor as it lies in another file ([`Weights::raw`](super::Weights::raw)), in its own kind of number.
    pub fn push_raw(
        &mut self,
        name: &str,
        (dtype, shape, bytes): (DType, &[usize], &[u8]),
    ) -> Result<(), WeightsError> {
        self.admit(name, shape, bytes.len() * 8 / dtype.bitsize().max(1))?;
        self.out.write_all(bytes).map_err(|source| self.failed(source))?;
        self.added(name, dtype, shape, bytes.len());
        Ok(())
    }

    fn admit(&self, name: &str, shape: &[usize], numbers: usize) -> Result<(), WeightsError> {
        let refuse = |reason: String| {
            Err(WeightsError::Unwritable { file: self.path.clone(), name: name.into(), reason })
        };
        let expected = shape.iter().try_fold(1_usize, |product, &size| product.checked_mul(size));
        if expected != Some(numbers) {
            return refuse(format!("{numbers} numbers, expected shape {shape:?}"));
        }
        if self.tensors.iter().any(|(taken, _)| taken == name) {
            return refuse("its name is taken".into());
        }
        Ok(())
    }

    fn added(&mut self, name: &str, dtype: DType, shape: &[usize], bytes: usize) {
        let end = self.offset + bytes;
        let data_offsets = (std::mem::replace(&mut self.offset, end), end);
        self.tensors.push((name.into(), TensorInfo { dtype, shape: shape.into(), data_offsets }));
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
