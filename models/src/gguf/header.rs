//! Metadata and tensor directory of a GGUF file, version 2 or 3, little-endian.
//!
//! Every length in the file is compared with what the file still holds before it is used.

use super::error::GgufError;
use super::metadata::Value;
use candle_core::Shape;
use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::TensorInfo;
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

const SUPPORTED_TYPES: &str = "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K";

/// Everything in front of the weights.
#[derive(Debug)]
pub(super) struct Header {
    pub file: PathBuf,
    pub metadata: HashMap<String, Value>,
    /// By GGUF name; shapes rows first, as Hugging Face has them. Type and extent are checked.
    pub tensors: HashMap<String, TensorInfo>,
    /// Where in the file the tensors' own offsets start.
    pub data_offset: u64,
}

impl Header {
    /// Reads everything in front of the weights, and checks that every tensor lies within the file.
    pub(super) fn read(path: &Path) -> Result<Self, GgufError> {
        let mut reader = Reader::open(path)?;
        reader.magic_and_version()?;
        // The least bytes that one entry can take: a tensor has name, rank, type, offset; a value key, type, one byte.
        let tensor_count = reader.count(8 + 4 + 4 + 8, "tensors")?;
        let value_count = reader.count(8 + 4 + 1, "metadata entries")?;
        let mut metadata = HashMap::new();
        for _ in 0..value_count {
            let key = reader.text()?;
            let value = reader.value()?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(reader.damaged(format!("metadata `{key}` stands there twice")));
            }
        }
        let alignment = alignment(&metadata).map_err(|problem| reader.damaged(problem))?;
        let mut tensors = HashMap::new();
        for _ in 0..tensor_count {
            let name = reader.text()?;
            let info = reader.tensor_info(&name)?;
            if tensors.insert(name.clone(), info).is_some() {
                return Err(reader.damaged(format!("tensor `{name}` stands there twice")));
            }
        }
        let data_offset = reader.at.next_multiple_of(alignment);
        for (name, info) in &tensors {
            reader.check_extent(name, info, data_offset)?;
        }
        Ok(Self { file: reader.file, metadata, tensors, data_offset })
    }
}

/// Tensors start at multiples of this many bytes; 32 unless the file says otherwise.
fn alignment(metadata: &HashMap<String, Value>) -> Result<u64, String> {
    match metadata.get("general.alignment") {
        None => Ok(32),
        Some(Value::Integer(value @ 8..=0x1_0000)) if value % 8 == 0 => Ok(*value as u64),
        Some(other) => {
            Err(format!("`general.alignment` is {}, expected a multiple of 8 up to 65536", other.describe()))
        }
    }
}

/// A file that knows how much of it is left.
struct Reader {
    inner: BufReader<File>,
    file: PathBuf,
    at: u64,
    len: u64,
}

impl Reader {
    fn open(path: &Path) -> Result<Self, GgufError> {
        let io = |source| GgufError::Io { file: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        let len = file.metadata().map_err(io)?.len();
        Ok(Self { inner: BufReader::new(file), file: path.to_owned(), at: 0, len })
    }

    fn damaged(&self, problem: String) -> GgufError {
        GgufError::Damaged { file: self.file.clone(), at: self.at, problem }
    }

    fn need(&self, bytes: u64) -> Result<(), GgufError> {
        let left = self.len.saturating_sub(self.at);
        if bytes > left {
            return Err(self.damaged(format!("{bytes} bytes should follow, the file holds {left}")));
        }
        Ok(())
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), GgufError> {
        self.need(buffer.len() as u64)?;
        self.inner.read_exact(buffer).map_err(|source| GgufError::Io { file: self.file.clone(), source })?;
        self.at += buffer.len() as u64;
        Ok(())
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], GgufError> {
        let mut buffer = [0; N];
        self.fill(&mut buffer)?;
        Ok(buffer)
    }

    fn u32(&mut self) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    fn u64(&mut self) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.bytes()?))
    }

    /// A number of things that take `least` bytes each: more than the rest of the file can hold is an error.
    fn count(&mut self, least: u64, things: &str) -> Result<u64, GgufError> {
        let count = self.u64()?;
        let left = self.len.saturating_sub(self.at);
        if count.saturating_mul(least) > left {
            return Err(
                self.damaged(format!("{count} {things} announced, the {left} bytes left cannot hold them"))
            );
        }
        Ok(count)
    }

    fn text(&mut self) -> Result<String, GgufError> {
        let len = self.count(1, "bytes of a string")?;
        let mut buffer = vec![0; len as usize];
        self.fill(&mut buffer)?;
        // Some writers put names in other encodings; what matters here (keys, tokens) is UTF-8.
        Ok(String::from_utf8_lossy(&buffer).into_owned())
    }

    fn magic_and_version(&mut self) -> Result<(), GgufError> {
        let not_gguf =
            |file: &Path, found, expected| GgufError::NotGguf { file: file.to_owned(), found, expected };
        let magic = self.bytes::<4>()?;
        if &magic != b"GGUF" {
            let found = format!("`{}`", magic.escape_ascii());
            return Err(not_gguf(&self.file, found, "`GGUF`"));
        }
        match self.u32()? {
            2 | 3 => Ok(()),
            version => Err(not_gguf(
                &self.file,
                format!("GGUF version {version:#x}"),
                "little-endian version 2 or 3",
            )),
        }
    }

    fn value(&mut self) -> Result<Value, GgufError> {
        match self.u32()? {
            8 => Ok(Value::Text(self.text()?)),
            9 => self.array(),
            kind => self.scalar(kind),
        }
    }

    fn scalar(&mut self, kind: u32) -> Result<Value, GgufError> {
        Ok(match kind {
            0 => Value::Integer(u8::from_le_bytes(self.bytes()?).into()),
            1 => Value::Integer(i8::from_le_bytes(self.bytes()?).into()),
            2 => Value::Integer(u16::from_le_bytes(self.bytes()?).into()),
            3 => Value::Integer(i16::from_le_bytes(self.bytes()?).into()),
            4 => Value::Integer(self.u32()?.into()),
            5 => Value::Integer(i32::from_le_bytes(self.bytes()?).into()),
            6 => Value::Float(shortest(f32::from_le_bytes(self.bytes()?))),
            7 => Value::Bool(self.bytes::<1>()? != [0]),
            10 => Value::Integer(self.u64()?.into()),
            11 => Value::Integer(i64::from_le_bytes(self.bytes()?).into()),
            12 => Value::Float(f64::from_le_bytes(self.bytes()?)),
            other => return Err(self.damaged(format!("value type {other}, expected 0 to 12"))),
        })
    }

    fn array(&mut self) -> Result<Value, GgufError> {
        let kind = self.u32()?;
        let least = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            // Arrays of arrays are in the format, but in no language model.
            other => {
                return Err(self.damaged(format!("array element type {other}, expected a scalar or string")));
            }
        };
        let count = self.count(least, "array elements")?;
        if kind == 8 {
            return Ok(Value::Texts((0..count).map(|_| self.text()).collect::<Result<_, _>>()?));
        }
        let mut integers = Vec::new();
        for _ in 0..count {
            if let Value::Integer(value) = self.scalar(kind)? {
                integers.push(value);
            }
        }
        Ok(if matches!(kind, 6 | 7 | 12) { Value::Other } else { Value::Integers(integers) })
    }

    fn tensor_info(&mut self, name: &str) -> Result<TensorInfo, GgufError> {
        let rank = self.u32()?;
        if !(1..=4).contains(&rank) {
            return Err(self.damaged(format!("tensor `{name}` has {rank} dimensions, expected 1 to 4")));
        }
        let mut dims = Vec::new();
        for _ in 0..rank {
            dims.push(self.u64()? as usize);
        }
        dims.reverse(); // GGUF names the fastest dimension first
        let kind = self.u32()?;
        let ggml_dtype = ggml_type(kind).map_err(|found| GgufError::Unsupported {
            file: self.file.clone(),
            what: format!("the type of tensor `{name}`"),
            found,
            supported: SUPPORTED_TYPES.to_owned(),
        })?;
        let offset = self.u64()?;
        Ok(TensorInfo { ggml_dtype, shape: Shape::from(dims), offset })
    }

    /// Refuses a tensor that ends behind the file, or whose rows are no whole number of quantisation blocks.
    fn check_extent(&self, name: &str, info: &TensorInfo, data_offset: u64) -> Result<(), GgufError> {
        let at = data_offset.saturating_add(info.offset);
        let damaged = |problem| GgufError::Damaged { file: self.file.clone(), at, problem };
        let (dims, block) = (info.shape.dims(), info.ggml_dtype.block_size());
        let row = dims.last().copied().unwrap_or(0);
        if row == 0 || row % block != 0 {
            return Err(damaged(format!(
                "tensor `{name}` has rows of {row} values, its type {:?} needs a multiple of {block}",
                info.ggml_dtype
            )));
        }
        let end = dims
            .iter()
            .try_fold(1u64, |count, &dim| count.checked_mul(dim as u64))
            .and_then(|count| (count / block as u64).checked_mul(info.ggml_dtype.type_size() as u64))
            .and_then(|bytes| at.checked_add(bytes));
        match end {
            Some(end) if end <= self.len => Ok(()),
            _ => Err(damaged(format!(
                "tensor `{name}`, shape {dims:?}, ends behind the file's {} bytes",
                self.len
            ))),
        }
    }
}

/// The `f64` with the shortest decimal that means this `f32`: 1e-5 as in config.json, not 9.999999747378752e-6.
fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

/// A tensor type by its number, or the name under which llama.cpp knows one that we cannot read.
fn ggml_type(kind: u32) -> Result<GgmlDType, String> {
    Ok(match kind {
        0 => GgmlDType::F32,
        1 => GgmlDType::F16,
        2 => GgmlDType::Q4_0,
        3 => GgmlDType::Q4_1,
        6 => GgmlDType::Q5_0,
        7 => GgmlDType::Q5_1,
        8 => GgmlDType::Q8_0,
        10 => GgmlDType::Q2K,
        11 => GgmlDType::Q3K,
        12 => GgmlDType::Q4K,
        13 => GgmlDType::Q5K,
        14 => GgmlDType::Q6K,
        30 => GgmlDType::BF16,
        other => return Err(unreadable_type(other)),
    })
}

/// Names from `ggml.h`; files with these types are common enough that a bare number would puzzle.
fn unreadable_type(kind: u32) -> String {
    let name = match kind {
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return format!("number {kind}"),
    };
    format!("`{name}`")
}
