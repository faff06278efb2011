//! Elements of initialisers, in the graph's own file or in the external data file beside it.

use crate::onnx::proto::DataType;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// Initialisers from this size start on a page of their own, so that they can be memory-mapped.
pub(super) const PAGED_BYTES: usize = 1 << 16;
/// Where these start.
pub(super) const PAGE: u64 = 4096;
/// Where smaller ones start: a cache line.
pub(super) const LINE: u64 = 64;

/// Elements of an initialiser, row-major.
#[derive(Debug, Clone, Copy)]
pub enum TensorData<'a> {
    /// f32.
    F32(&'a [f32]),
    /// f32, written as f16.
    F16(&'a [f32]),
    /// i8.
    I8(&'a [i8]),
    /// u8.
    U8(&'a [u8]),
    /// i64.
    I64(&'a [i64]),
}

impl TensorData<'_> {
    pub(super) fn kind(self) -> DataType {
        match self {
            Self::F32(_) => DataType::Float,
            Self::F16(_) => DataType::Float16,
            Self::I8(_) => DataType::Int8,
            Self::U8(_) => DataType::Uint8,
            Self::I64(_) => DataType::Int64,
        }
    }

    pub(super) fn bytes(self) -> usize {
        match self {
            Self::F32(x) => size_of_val(x),
            Self::F16(x) => size_of_val(x) / 2,
            Self::I8(x) => size_of_val(x),
            Self::U8(x) => size_of_val(x),
            Self::I64(x) => size_of_val(x),
        }
    }

    /// Little-endian, in pieces that stay in the cache.
    pub(super) fn write(self, out: &mut impl Write) -> io::Result<()> {
        const PIECE: usize = 1 << 13;
        let mut put = |bytes: Vec<u8>| out.write_all(&bytes);
        match self {
            Self::F32(x) => {
                x.chunks(PIECE).try_for_each(|c| put(c.iter().flat_map(|n| n.to_le_bytes()).collect()))
            }
            Self::F16(x) => x.chunks(PIECE).try_for_each(|c| {
                put(c.iter().flat_map(|n| half::f16::from_f32(*n).to_le_bytes()).collect())
            }),
            Self::I8(x) => {
                x.chunks(PIECE).try_for_each(|c| put(c.iter().map(|n| n.to_le_bytes()[0]).collect()))
            }
            Self::U8(x) => x.chunks(PIECE).try_for_each(|c| put(c.to_vec())),
            Self::I64(x) => {
                x.chunks(PIECE).try_for_each(|c| put(c.iter().flat_map(|n| n.to_le_bytes()).collect()))
            }
        }
    }
}

/// The file beside the graph that holds its large initialisers.
pub(super) struct ExternalData {
    path: PathBuf,
    out: BufWriter<File>,
    length: u64,
}

impl ExternalData {
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        let out = BufWriter::with_capacity(1 << 20, File::create(path)?);
        Ok(Self { path: path.to_owned(), out, length: 0 })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Appends elements, aligned; returns their offset and length.
    pub(super) fn write(&mut self, data: TensorData<'_>) -> io::Result<(u64, u64)> {
        let align = if data.bytes() >= PAGED_BYTES { PAGE } else { LINE };
        let start = self.length.next_multiple_of(align);
        self.out.write_all(&vec![0; (start - self.length) as usize])?;
        data.write(&mut self.out)?;
        self.length = start + data.bytes() as u64;
        Ok((start, data.bytes() as u64))
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
