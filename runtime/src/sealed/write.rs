//! Writing sealed files: tensor by tensor into a sibling, which is copied behind the header at the end.

use super::{Kind, Part, message, seal};
use ed25519_dalek::{Signer, SigningKey};
use models::files::{self, FileError};
use safetensors::Dtype;
use serde::Serialize;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// A file under construction. Nothing of it stays when it is dropped before the end.
#[derive(Debug)]
pub struct Sealing {
    path: PathBuf,
    kind: Kind,
    temporary: PathBuf,
    out: BufWriter<File>,
    /// In the order of the file.
    order: Vec<String>,
    parts: BTreeMap<String, Part>,
    offset: u64,
}

/// Takes the bytes of one tensor.
pub struct PartWriter<'a> {
    path: &'a Path,
    out: &'a mut BufWriter<File>,
    hasher: Sha256,
    bytes: u64,
}

impl PartWriter<'_> {
    /// Appends bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), FileError> {
        self.out.write_all(bytes).map_err(FileError::io(self.path))?;
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Appends a value as a line of JSON.
    pub fn line(&mut self, value: &impl Serialize) -> Result<(), FileError> {
        let json = |source| FileError::Json { file: self.path.to_owned(), source };
        let mut line = serde_json::to_vec(value).map_err(json)?;
        line.push(b'\n');
        self.write(&line)
    }
}

impl Sealing {
    /// Starts a file that will appear at `path`.
    pub fn create(path: &Path, kind: Kind) -> Result<Self, FileError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let temporary = path.with_file_name(format!(".{name}.data-{}", std::process::id()));
        let opened = File::options().create(true).truncate(true).read(true).write(true).open(&temporary);
        // The user knows the file by its own name.
        let out = BufWriter::with_capacity(1 << 20, opened.map_err(FileError::io(path))?);
        let (order, parts) = (Vec::new(), BTreeMap::new());
        Ok(Self { path: path.to_owned(), kind, temporary, out, order, parts, offset: 0 })
    }

    /// Appends a tensor of `columns` 32-bit numbers a row; numbers first, so that they lie at multiples of four bytes.
    pub fn numbers<E: From<FileError>>(
        &mut self,
        name: &str,
        columns: usize,
        write: impl FnOnce(&mut PartWriter<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let row = columns * size_of::<f32>();
        self.part(name, Dtype::F32, |bytes| vec![bytes as usize / row.max(1), columns], write)
    }

    /// Appends a tensor of bytes that are lines of JSON.
    pub fn lines<E: From<FileError>>(
        &mut self,
        name: &str,
        write: impl FnOnce(&mut PartWriter<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.part(name, Dtype::U8, |bytes| vec![bytes as usize], write)
    }

    fn part<E: From<FileError>>(
        &mut self,
        name: &str,
        dtype: Dtype,
        shape: impl FnOnce(u64) -> Vec<usize>,
        write: impl FnOnce(&mut PartWriter<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut writer = PartWriter { path: &self.path, out: &mut self.out, hasher: Sha256::new(), bytes: 0 };
        write(&mut writer)?;
        let (bytes, sha256) = (writer.bytes, files::hex(&writer.hasher.finalize()));
        let part = Part { dtype, shape: shape(bytes), start: self.offset, bytes, sha256 };
        self.offset += bytes;
        self.order.push(name.to_owned());
        self.parts.insert(name.to_owned(), part);
        Ok(())
    }

    /// Puts the header in front and the file in its place; returns the seal.
    pub fn finish(mut self, about: &impl Serialize, key: Option<&SigningKey>) -> Result<String, FileError> {
        let json = |source| FileError::Json { file: self.path.clone(), source };
        let about = serde_json::to_string(about).map_err(json)?;
        let seal = seal(self.kind, &about, &self.parts);
        let digests: BTreeMap<&str, &str> =
            self.parts.iter().map(|(name, part)| (name.as_str(), part.sha256.as_str())).collect();
        let mut metadata = json!({
            "kind": self.kind.name(),
            "format_version": super::FORMAT_VERSION.to_string(),
            "about": about,
            "sha256": serde_json::to_string(&digests).map_err(json)?,
            "seal": seal,
        });
        if let Some(key) = key {
            metadata["signer"] = files::hex(key.verifying_key().as_bytes()).into();
            metadata["signature"] = files::hex(&key.sign(&message(self.kind, &seal)).to_bytes()).into();
        }
        // Written by hand, in order, so that the same contents are the same bytes.
        let mut header = Map::new();
        header.insert("__metadata__".into(), metadata);
        for name in &self.order {
            let Part { dtype, shape, start, bytes, .. } = &self.parts[name];
            let offsets = [*start, start + bytes];
            header.insert(name.clone(), json!({ "dtype": dtype, "shape": shape, "data_offsets": offsets }));
        }
        let mut header = Value::Object(header).to_string().into_bytes();
        header.resize(header.len().next_multiple_of(super::PREFIX as usize), b' ');
        self.out.flush().map_err(FileError::io(&self.path))?;
        let data = self.out.get_mut();
        files::write_atomic(&self.path, |out| {
            data.seek(SeekFrom::Start(0))?;
            out.write_all(&(header.len() as u64).to_le_bytes())?;
            out.write_all(&header)?;
            io::copy(data, out).map(|_| ())
        })?;
        Ok(seal)
    }
}

impl Drop for Sealing {
    fn drop(&mut self) {
        // Nothing is lost if it stays.
        let _ = std::fs::remove_file(&self.temporary);
    }
}
