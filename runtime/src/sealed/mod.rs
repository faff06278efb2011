//! Files that travel between machines: safetensors whose header pins every byte of them, and that may be signed.
//!
//! ```text
//! __metadata__  kind            shard or delta
//!               format_version
//!               about           JSON: what is in it
//!               sha256          JSON: tensor to SHA-256 of its bytes
//!               seal            SHA-256 over all of these and over names, kinds and shapes of the tensors
//!               signer          public key (ed25519), where it is signed
//!               signature       of the seal
//! tensors       numbers as F32, lines of JSON as U8
//! ```
//! Whatever reads safetensors opens one. They are not memory-mapped: a shard lies on a shared disk, a delta on a stick that may
//! be pulled out, and both have to end in a sentence.

use ed25519_dalek::{Signature, VerifyingKey};
use models::files::{self, FileError};
use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

mod write;

pub use self::write::{PartWriter, Sealing};

/// Version of the format that this program reads and writes.
pub const FORMAT_VERSION: u32 = 1;
/// Bytes of the number that opens a safetensors file: the length of its header.
const PREFIX: u64 = 8;
/// Longest header, as the format has it.
const LONGEST_HEADER: u64 = 100_000_000;
/// Bytes that are read at a time.
pub const BUFFER: usize = 1 << 18;

/// What a file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Encoded documents on their way into an index.
    Shard,
    /// Changes of an index on their way to those who follow it.
    Delta,
}

impl Kind {
    /// As it is written in files and sentences.
    pub fn name(self) -> &'static str {
        match self {
            Self::Shard => "shard",
            Self::Delta => "delta",
        }
    }

    fn made_by(self) -> &'static str {
        match self {
            Self::Shard => "runtime encode",
            Self::Delta => "runtime snapshot",
        }
    }
}

/// A file that must not be used.
#[derive(Debug, thiserror::Error)]
pub enum SealedError {
    /// It cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// It is something else.
    #[error("{file}: is not a {} ({reason}); name a file that `{}` wrote", .kind.name(), .kind.made_by())]
    Other {
        /// The file.
        file: PathBuf,
        /// What it should be.
        kind: Kind,
        /// What was seen.
        reason: String,
    },
    /// It ends too early, or too late.
    #[error("{file}: is {found} bytes long, expected {expected}; the copy was cut off, copy the {} again", .kind.name())]
    Length {
        /// The file.
        file: PathBuf,
        /// What it should be.
        kind: Kind,
        /// Its length.
        found: u64,
        /// What its header asks for, as far as there is one.
        expected: u64,
    },
    /// Its bytes are not those that were written.
    #[error("{file}: damaged: {what}; copy the {} again, or make it again with `{}`", .kind.name(), .kind.made_by())]
    Damaged {
        /// The file.
        file: PathBuf,
        /// What it should be.
        kind: Kind,
        /// What was seen.
        what: String,
    },
    /// Nobody stands for it.
    #[error("{file}: is not signed; only a {} that is signed with a trusted key is taken", .kind.name())]
    Unsigned {
        /// The file.
        file: PathBuf,
        /// What it should be.
        kind: Kind,
    },
    /// Somebody else stands for it.
    #[error(
        "{file}: is signed with key {found}, which is not trusted here (trusted: {}); only a {} that is signed with a trusted key is taken",
        .trusted.join(", "), .kind.name()
    )]
    Untrusted {
        /// The file.
        file: PathBuf,
        /// What it should be.
        kind: Kind,
        /// Name of the key it says.
        found: String,
        /// Names of the trusted ones.
        trusted: Vec<String>,
    },
    /// The signature is not that key's over these contents.
    #[error(
        "{file}: its signature is not key {key}'s over what is in it: the file was altered; it is not taken"
    )]
    Forged {
        /// The file.
        file: PathBuf,
        /// Name of the key.
        key: String,
    },
}

/// One tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Part {
    dtype: Dtype,
    shape: Vec<usize>,
    /// First byte, counted from the file's.
    start: u64,
    bytes: u64,
    sha256: String,
}

/// An opened file: its header, which is whole, and where the rest is. No file descriptor is kept.
#[derive(Debug, Clone)]
pub struct Sealed {
    file: PathBuf,
    kind: Kind,
    about: String,
    parts: BTreeMap<String, Part>,
    seal: String,
    /// Signer and signature, in hexadecimal digits, as the file has them.
    signed: Option<(String, String)>,
}

impl Sealed {
    /// Reads the header, which must be the one that was written, and whether the rest is as long as it says.
    pub fn open(file: &Path, kind: Kind) -> Result<Self, SealedError> {
        let other = |reason: String| SealedError::Other { file: file.to_owned(), kind, reason };
        let mut opened = File::open(file).map_err(FileError::io(file))?;
        let metadata = opened.metadata().map_err(FileError::io(file))?;
        if metadata.is_dir() {
            return Err(other("a directory".into()));
        }
        let found = metadata.len();
        let length = |expected| SealedError::Length { file: file.to_owned(), kind, found, expected };
        if found < PREFIX {
            return Err(length(PREFIX));
        }
        let mut prefix = [0; PREFIX as usize];
        opened.read_exact(&mut prefix).map_err(FileError::io(file))?;
        let header_bytes = u64::from_le_bytes(prefix);
        if header_bytes > LONGEST_HEADER {
            return Err(other("it does not begin as a safetensors file".into()));
        }
        let data = PREFIX + header_bytes;
        if found < data {
            return Err(length(data));
        }
        let mut text = vec![0; header_bytes as usize];
        opened.read_exact(&mut text).map_err(FileError::io(file))?;
        let header: Metadata = serde_json::from_slice(&text)
            .map_err(|error| other(format!("its header is not a safetensors header: {error}")))?;
        let sealed = Self::of(file, kind, &header, data)?;
        let expected = data + header.data_len() as u64;
        if found != expected {
            return Err(length(expected));
        }
        Ok(sealed)
    }

    fn of(file: &Path, kind: Kind, header: &Metadata, data: u64) -> Result<Self, SealedError> {
        let other = |reason: String| SealedError::Other { file: file.to_owned(), kind, reason };
        let damaged =
            |what: &str| SealedError::Damaged { file: file.to_owned(), kind, what: what.to_owned() };
        let none = HashMap::new();
        let metadata = header.metadata().as_ref().unwrap_or(&none);
        let entry = |name: &str| metadata.get(name).map(String::as_str);
        match entry("kind") {
            Some(found) if found == kind.name() => {}
            Some(found) => return Err(other(format!("a {found}"))),
            None => return Err(other("a safetensors file of another program".into())),
        }
        let needed = |name: &str| entry(name).ok_or_else(|| damaged(&format!("its header lacks `{name}`")));
        let found = needed("format_version")?;
        if found != FORMAT_VERSION.to_string() {
            let found = found.parse().map_err(|_| damaged("its format version is not a number"))?;
            let (file, expected) = (file.to_owned(), FORMAT_VERSION);
            return Err(FileError::Version { file, found, expected }.into());
        }
        let mut digests: BTreeMap<String, String> = serde_json::from_str(needed("sha256")?)
            .map_err(|_| damaged("the digests in its header cannot be read"))?;
        let mut parts = BTreeMap::new();
        for (name, info) in header.tensors() {
            let sha256 = digests.remove(&name).ok_or_else(|| damaged("its header lacks a digest"))?;
            let (start, end) = info.data_offsets;
            let (bytes, start) = ((end - start) as u64, data + start as u64);
            parts.insert(name, Part { dtype: info.dtype, shape: info.shape.clone(), start, bytes, sha256 });
        }
        let about = needed("about")?.to_owned();
        let seal = seal(kind, &about, &parts);
        if !digests.is_empty() || seal != needed("seal")? {
            return Err(damaged("its header is not the one that was written"));
        }
        let signed = match (entry("signer"), entry("signature")) {
            (Some(signer), Some(signature)) => Some((signer.to_owned(), signature.to_owned())),
            (None, None) => None,
            _ => return Err(damaged("half of its signature is missing")),
        };
        Ok(Self { file: file.to_owned(), kind, about, parts, seal, signed })
    }

    /// The file.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Digest over everything in it.
    pub fn seal(&self) -> &str {
        &self.seal
    }

    /// What is in it, as its kind has it.
    pub fn about<T: DeserializeOwned>(&self) -> Result<T, SealedError> {
        serde_json::from_str(&self.about)
            .map_err(|error| self.damaged(format!("its description cannot be read: {error}")))
    }

    /// Refuses what none of these keys has signed.
    pub fn check_signature(&self, trusted: &[VerifyingKey]) -> Result<(), SealedError> {
        let (file, kind) = (self.file.clone(), self.kind);
        let Some((signer, signature)) = &self.signed else {
            return Err(SealedError::Unsigned { file, kind });
        };
        let Some(key) = trusted.iter().find(|key| files::hex(key.as_bytes()) == *signer) else {
            // What the file says about itself, hence not its whole length.
            let found = unhex(signer).map_or("(unreadable)".to_owned(), |key| name_of(&key));
            let trusted = trusted.iter().map(|key| name_of(key.as_bytes())).collect();
            return Err(SealedError::Untrusted { file, kind, found, trusted });
        };
        let verified = unhex(signature).is_some_and(|signature| {
            key.verify_strict(&message(self.kind, &self.seal), &Signature::from_bytes(&signature)).is_ok()
        });
        if !verified {
            return Err(SealedError::Forged { file, key: name_of(key.as_bytes()) });
        }
        Ok(())
    }

    /// Reads everything against its digest.
    pub fn check(&self) -> Result<(), SealedError> {
        let mut buffer = vec![0; BUFFER];
        for (name, part) in &self.parts {
            let mut reader = PartReader::new(&self.file, part);
            while reader.read(&mut buffer).map_err(FileError::io(&self.file))? > 0 {}
            self.finish(name, reader)?;
        }
        Ok(())
    }

    /// A tensor's bytes, from the first; what is read must go through [`Sealed::finish`] before it counts.
    pub fn part(&self, name: &str, dtype: Dtype, shape: &[usize]) -> Result<PartReader, SealedError> {
        match self.parts.get(name) {
            Some(part) if part.dtype == dtype && part.shape == shape => Ok(PartReader::new(&self.file, part)),
            Some(part) => {
                let (found, is) = (&part.shape, part.dtype);
                Err(self.damaged(format!("`{name}` is {is} {found:?}, expected {dtype} {shape:?}")))
            }
            None => Err(self.damaged(format!("it has no `{name}`"))),
        }
    }

    /// The bytes of a tensor of lines.
    pub fn lines(&self, name: &str) -> Result<PartReader, SealedError> {
        let bytes = self.parts.get(name).map_or(0, |part| part.bytes as usize);
        self.part(name, Dtype::U8, &[bytes])
    }

    /// Refuses a tensor that was not read to its end, or whose bytes were not those that were written.
    pub fn finish(&self, name: &str, reader: PartReader) -> Result<(), SealedError> {
        if reader.left > 0 || files::hex(&reader.hasher.finalize()) != reader.sha256 {
            return Err(self.damaged(format!("the SHA-256 of `{name}` is not the one in its header")));
        }
        Ok(())
    }

    /// This file contradicts itself.
    pub fn damaged(&self, what: String) -> SealedError {
        SealedError::Damaged { file: self.file.clone(), kind: self.kind, what }
    }
}

/// Reads a tensor's bytes and digests them. The file is opened for each piece, so that hundreds of shards can be read side by
/// side; pieces should be large, so put it into a `BufReader`.
#[derive(Debug)]
pub struct PartReader {
    file: PathBuf,
    position: u64,
    left: u64,
    sha256: String,
    hasher: Sha256,
}

impl PartReader {
    fn new(file: &Path, part: &Part) -> Self {
        let (position, left, sha256) = (part.start, part.bytes, part.sha256.clone());
        Self { file: file.to_owned(), position, left, sha256, hasher: Sha256::new() }
    }
}

impl Read for PartReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if most == 0 {
            return Ok(0);
        }
        let mut file = File::open(&self.file)?;
        file.seek(SeekFrom::Start(self.position))?;
        let read = file.read(&mut buffer[..most])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.hasher.update(&buffer[..read]);
        self.position += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

/// Digest over all that a header says.
fn seal(kind: Kind, about: &str, parts: &BTreeMap<String, Part>) -> String {
    let version = FORMAT_VERSION.to_string();
    let mut all = vec![kind.name().to_owned(), version, about.to_owned()];
    for (name, Part { dtype, shape, sha256, .. }) in parts {
        all.extend([name.clone(), format!("{dtype} {shape:?}"), sha256.clone()]);
    }
    files::sha256_parts(all.iter().map(String::as_bytes))
}

/// What is signed: says what it is, so that no other file's signature fits.
fn message(kind: Kind, seal: &str) -> Vec<u8> {
    format!("rabtriever {} {FORMAT_VERSION} {seal}", kind.name()).into_bytes()
}

/// A public key as people tell it from another: the beginning of its SHA-256.
pub fn name_of(key: &[u8; 32]) -> String {
    files::hex(&files::sha256(key)[..8])
}

/// Bytes of exactly this many hexadecimal digits, as [`files::hex`] writes them.
fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    let mut bytes = [0; N];
    if digits.len() != 2 * N {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |digit: u8| char::from(digit).to_digit(16);
        *byte = u8::try_from(16 * digit(pair[0])? + digit(pair[1])?).ok()?;
    }
    (files::hex(&bytes) == text).then_some(bytes)
}

#[cfg(test)]
mod tests;
