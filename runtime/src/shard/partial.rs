//! A shard under construction: a line that says what it will be, then the vectors of batch after batch, each with a digest.
//!
//! What a killed run has written whole is not encoded again; a torn end is cut off. Its lock is held by whoever works at it.

use super::{About, ShardError, partial_file};
use models::files::{self, FileError};
use sha2::{Digest, Sha256};
use std::fs::{self, File, TryLockError};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// How the line begins.
const OPENING: &[u8] = b"rabtriever partial shard 1 ";
/// Bytes of a batch's digest.
const DIGEST: usize = 32;

/// The file, with its lock.
#[derive(Debug)]
pub(super) struct Partial {
    file: PathBuf,
    opened: File,
    line: Vec<u8>,
    row: usize,
    /// Where vectors begin.
    start: u64,
    /// Batches in it.
    pub batches: usize,
}

impl Partial {
    /// Opens what a killed run has left, or begins; waits while another process works at it, which `waiting` is told.
    pub fn open(
        out: &Path,
        about: &About,
        sizes: &[usize],
        waiting: impl FnOnce(),
    ) -> Result<Self, ShardError> {
        let file = partial_file(out);
        let io = |error| FileError::io(&file)(error);
        let mut waiting = Some(waiting);
        let opened = loop {
            let opened = File::options().create(true).truncate(false).read(true).write(true).open(&file);
            let opened = opened.map_err(io)?;
            match opened.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    if let Some(waiting) = waiting.take() {
                        waiting();
                    }
                    opened.lock().map_err(io)?;
                }
                Err(TryLockError::Error(error)) => return Err(io(error).into()),
            }
            // Whoever held it may have finished and removed it: the lock of a file without a name keeps nobody out.
            let same = |named: fs::Metadata, held: fs::Metadata| {
                (named.dev(), named.ino()) == (held.dev(), held.ino())
            };
            if fs::metadata(&file).is_ok_and(|named| opened.metadata().is_ok_and(|held| same(named, held))) {
                break opened;
            }
        };
        let mut line = OPENING.to_vec();
        serde_json::to_writer(&mut line, about)
            .map_err(|source| FileError::Json { file: file.clone(), source })?;
        line.push(b'\n');
        let (start, row) = (line.len() as u64, about.index.inner_dimensions * size_of::<f32>());
        let mut partial = Self { file, opened, line, row, start, batches: 0 };
        partial.resume(about, sizes)?;
        Ok(partial)
    }

    /// Counts the batches that are there whole, and cuts off the rest.
    fn resume(&mut self, about: &About, sizes: &[usize]) -> Result<(), ShardError> {
        let io = |error| FileError::io(&self.file)(error);
        let mut reader = BufReader::with_capacity(1 << 20, &self.opened);
        let mut found = vec![0; self.line.len()];
        let there = read_up_to(&mut reader, &mut found).map_err(io)?;
        // A line that was cut off begins the file anew, as if nothing was there.
        let mut end = 0;
        if there == self.line.len() && found == self.line {
            end = self.start;
            for &size in sizes {
                let mut block = vec![0; size * self.row + DIGEST];
                let whole = read_up_to(&mut reader, &mut block).map_err(io)? == block.len();
                let (vectors, digest) = block.split_at(size * self.row);
                if !whole || self.digest(self.batches, vectors) != *digest {
                    break;
                }
                self.batches += 1;
                end += block.len() as u64;
            }
        } else if !self.line.starts_with(&found[..there]) {
            let (found, expected) = (self.told()?, about.told());
            return Err(ShardError::Taken { file: self.file.clone(), found, expected });
        }
        self.opened.set_len(end).map_err(io)?;
        self.opened.seek(SeekFrom::Start(end)).map_err(io)?;
        if end == 0 {
            self.append(&self.line.clone())?;
        }
        Ok(())
    }

    /// What another run was making here.
    fn told(&self) -> Result<String, FileError> {
        let bytes = fs::read(&self.file).map_err(FileError::io(&self.file))?;
        let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let about = line.strip_prefix(OPENING).and_then(|json| serde_json::from_slice::<About>(json).ok());
        Ok(about.map_or("something else".to_owned(), |about| about.told()))
    }

    /// Adds the vectors of the next batch; when it returns, they survive a power cut.
    pub fn push(&mut self, vectors: &[Vec<f32>]) -> Result<(), ShardError> {
        let mut block: Vec<u8> = vectors.iter().flatten().flat_map(|x| x.to_le_bytes()).collect();
        let digest = self.digest(self.batches, &block);
        block.extend(digest);
        self.append(&block)?;
        self.batches += 1;
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), FileError> {
        let write = || -> io::Result<()> {
            (&self.opened).write_all(bytes)?;
            self.opened.sync_data()
        };
        write().map_err(FileError::io(&self.file))
    }

    /// Of a batch in this file: elsewhere, the same numbers have another one.
    fn digest(&self, batch: usize, vectors: &[u8]) -> [u8; DIGEST] {
        let mut hasher = Sha256::new();
        hasher.update(files::sha256(&self.line));
        hasher.update((batch as u64).to_le_bytes());
        hasher.update(vectors);
        hasher.finalize().into()
    }

    /// Hands the vectors of all batches on, each against its digest.
    pub fn replay(
        &self,
        sizes: &[usize],
        mut each: impl FnMut(&[u8]) -> Result<(), ShardError>,
    ) -> Result<(), ShardError> {
        let io = |error| FileError::io(&self.file)(error);
        let mut reader = BufReader::with_capacity(1 << 20, &self.opened);
        reader.seek(SeekFrom::Start(self.start)).map_err(io)?;
        for (batch, &size) in sizes.iter().enumerate() {
            let mut block = vec![0; size * self.row + DIGEST];
            reader.read_exact(&mut block).map_err(io)?;
            let (vectors, digest) = block.split_at(size * self.row);
            if self.digest(batch, vectors) != *digest {
                return Err(io(io::Error::other("a batch is not what was written")).into());
            }
            each(vectors)?;
        }
        Ok(())
    }

    /// Removes it, the shard being whole.
    pub fn remove(self) -> Result<(), FileError> {
        fs::remove_file(&self.file).map_err(FileError::io(&self.file))
    }
}

/// Whether a file is one of these.
pub(super) fn is_partial(file: &Path) -> bool {
    let mut found = [0; OPENING.len()];
    File::open(file).and_then(|mut file| file.read_exact(&mut found)).is_ok() && found == OPENING
}

/// Fills the buffer as far as the file goes.
fn read_up_to(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
