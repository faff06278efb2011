//! Numbers that are expensive to make and never change: kept on disk, one append-only file of fixed-size records per
//! kind, keyed to a digest of everything that shapes them.
//!
//! A record is `key (32 bytes) + values (f32 little-endian) + checksum (4 bytes)`. A record that was cut short or damaged is
//! ignored and made again.

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{BufReader, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes of a key.
const KEY: u64 = 32;

/// Key of a record.
pub type Key = [u8; 32];

/// Key of some texts.
pub fn key(parts: &[&str]) -> Key {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    hasher.finalize().into()
}

/// A disk cache of vectors of one length.
pub struct VectorCache {
    file: PathBuf,
    width: usize,
    places: HashMap<Key, u64>,
    reader: Arc<File>,
    writer: BufWriter<File>,
    end: u64,
}

/// Reads vectors that are on disk by their places, without the index that found them.
#[derive(Clone)]
pub struct VectorReader {
    file: PathBuf,
    reader: Arc<File>,
    width: usize,
}

impl VectorReader {
    /// Numbers in each vector.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The vectors at these places, one after the other.
    pub fn read(&self, places: impl ExactSizeIterator<Item = u64>) -> Result<Vec<f32>> {
        let mut values = Vec::with_capacity(places.len() * self.width);
        let mut bytes = vec![0u8; self.width * 4];
        for place in places {
            self.reader
                .read_exact_at(&mut bytes, place + KEY)
                .with_context(|| format!("cannot read {}", self.file.display()))?;
            values.extend(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)));
        }
        Ok(values)
    }
}

impl VectorCache {
    /// Opens or creates `dir/{name}-{digest}.f32` for vectors of `width` numbers.
    pub fn open(dir: &Path, name: &str, digest: &str, width: usize) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("cannot create cache {}", dir.display()))?;
        let file = dir.join(format!("{name}-{}.f32", &digest[..16.min(digest.len())]));
        let context = || format!("cannot open cache {}", file.display());
        let writer = OpenOptions::new().create(true).append(true).open(&file).with_context(context)?;
        // Records are found by where this process wrote them: another's would move them.
        match writer.try_lock() {
            Err(TryLockError::WouldBlock) => {
                bail!(
                    "{}: another run is using this cache; wait for it, or give another --cache",
                    file.display()
                )
            }
            other => other.with_context(context)?,
        }
        let reader = Arc::new(File::open(&file).with_context(context)?);
        let mut cache =
            Self { width, places: HashMap::new(), reader, writer: BufWriter::new(writer), end: 0, file };
        cache.scan()?;
        Ok(cache)
    }

    fn record_size(&self) -> usize {
        32 + self.width * 4 + 4
    }

    /// Finds the whole records; one that is damaged is passed over, and what is left behind the last of full length cut off.
    fn scan(&mut self) -> Result<()> {
        let context = || format!("cannot read cache {}", self.file.display());
        let size = self.record_size();
        let records = self.reader.metadata().with_context(context)?.len() / size as u64;
        let mut reader = BufReader::with_capacity(1 << 20, self.reader.as_ref());
        let mut record = vec![0u8; size];
        for number in 0..records {
            reader.read_exact(&mut record).with_context(context)?;
            if checksum(&record[..size - 4]) == record[size - 4..] {
                let mut key = [0u8; 32];
                key.copy_from_slice(&record[..32]);
                self.places.insert(key, number * size as u64);
            }
        }
        self.end = records * size as u64;
        self.writer
            .get_ref()
            .set_len(self.end)
            .with_context(|| format!("cannot mend {}", self.file.display()))
    }

    /// Whether the record is there.
    pub fn contains(&self, key: &Key) -> bool {
        self.places.contains_key(key)
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether nothing is cached yet.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Reads one vector.
    pub fn get(&mut self, key: &Key) -> Result<Option<Vec<f32>>> {
        let Some(place) = self.places.get(key).copied() else { return Ok(None) };
        self.writer.flush()?;
        Ok(Some(self.reader().read(std::iter::once(place))?))
    }

    /// Where a vector is, for [`VectorReader::read`] after a [`VectorCache::flush`].
    pub fn place(&self, key: &Key) -> Option<u64> {
        self.places.get(key).copied()
    }

    /// A reader of what has been flushed.
    pub fn reader(&self) -> VectorReader {
        VectorReader { file: self.file.clone(), reader: Arc::clone(&self.reader), width: self.width }
    }

    /// Appends one vector.
    pub fn insert(&mut self, key: Key, values: &[f32]) -> Result<()> {
        if values.len() != self.width {
            bail!("{}: a vector of {} numbers, expected {}", self.file.display(), values.len(), self.width);
        }
        let mut record = Vec::with_capacity(self.record_size());
        record.extend_from_slice(&key);
        for value in values {
            record.extend_from_slice(&value.to_le_bytes());
        }
        let sum = checksum(&record);
        record.extend_from_slice(&sum);
        self.writer.write_all(&record).with_context(|| format!("cannot write {}", self.file.display()))?;
        self.places.insert(key, self.end);
        self.end += record.len() as u64;
        Ok(())
    }

    /// Makes all appended vectors durable.
    pub fn flush(&mut self) -> Result<()> {
        self.writer.flush()?;
        self.writer.get_ref().sync_data().with_context(|| format!("cannot write {}", self.file.display()))
    }
}

fn checksum(bytes: &[u8]) -> [u8; 4] {
    let digest = Sha256::digest(bytes);
    [digest[0], digest[1], digest[2], digest[3]]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A crash in the middle of a write must cost one record, not the cache or, worse, a wrong target.
    #[test]
    fn a_torn_record_is_dropped_and_the_rest_kept() {
        let dir = tempfile::tempdir().unwrap();
        let mut cache = VectorCache::open(dir.path(), "t", "0123", 3).unwrap();
        cache.insert(key(&["a"]), &[1.0, 2.0, 3.0]).unwrap();
        cache.insert(key(&["b"]), &[4.0, 5.0, 6.0]).unwrap();
        cache.flush().unwrap();
        let file = cache.file.clone();
        drop(cache);
        let bytes = fs::read(&file).unwrap();
        fs::write(&file, &bytes[..bytes.len() - 5]).unwrap();
        let mut cache = VectorCache::open(dir.path(), "t", "0123", 3).unwrap();
        assert_eq!(cache.get(&key(&["a"])).unwrap(), Some(vec![1.0, 2.0, 3.0]));
        assert_eq!(cache.get(&key(&["b"])).unwrap(), None);
        cache.insert(key(&["b"]), &[7.0, 8.0, 9.0]).unwrap();
        assert_eq!(cache.get(&key(&["b"])).unwrap(), Some(vec![7.0, 8.0, 9.0]));
        assert!(cache.insert(key(&["c"]), &[0.0]).is_err());
    }

    /// Hours of work lie behind the record that a disk has spoilt.
    #[test]
    fn a_damaged_record_costs_itself_alone() {
        let dir = tempfile::tempdir().unwrap();
        let mut cache = VectorCache::open(dir.path(), "t", "0123", 3).unwrap();
        for name in ["a", "b", "c"] {
            cache.insert(key(&[name]), &[1.0, 2.0, 3.0]).unwrap();
        }
        cache.flush().unwrap();
        let (file, size) = (cache.file.clone(), cache.record_size());
        drop(cache);
        let mut bytes = fs::read(&file).unwrap();
        bytes[size + 40] ^= 1;
        fs::write(&file, &bytes).unwrap();
        let mut cache = VectorCache::open(dir.path(), "t", "0123", 3).unwrap();
        assert_eq!(["a", "b", "c"].map(|name| cache.contains(&key(&[name]))), [true, false, true]);
        cache.insert(key(&["b"]), &[7.0, 8.0, 9.0]).unwrap();
        drop(cache);
        let mut cache = VectorCache::open(dir.path(), "t", "0123", 3).unwrap();
        assert_eq!(cache.get(&key(&["b"])).unwrap(), Some(vec![7.0, 8.0, 9.0]));
        assert_eq!(cache.get(&key(&["c"])).unwrap(), Some(vec![1.0, 2.0, 3.0]));
    }

    /// Two runs that append to one file would each read the other's numbers as its own.
    #[test]
    fn a_second_run_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let open = || VectorCache::open(dir.path(), "t", "0123", 3);
        let first = open().unwrap();
        let reader = first.reader();
        let refused = open().err().unwrap().to_string();
        assert!(refused.contains("another run") && refused.contains("--cache"), "{refused}");
        drop(first);
        assert!(open().is_ok());
        drop(reader);
    }

    /// "ab"+"c" and "a"+"bc" are different pairs.
    #[test]
    fn keys_separate_their_parts() {
        assert_ne!(key(&["ab", "c"]), key(&["a", "bc"]));
    }
}
