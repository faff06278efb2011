//! usearch's file, looked through before usearch reads it: its loader takes sizes and links as they stand there, and a wrong one
//! would be memory that is not ours.
//!
//! ```text
//! u32 rows, u32 bytes of a vector, the vectors
//! 64 bytes: "usearch", 3 x u16 version, u8 metric, scalar, key and slot kind, u64 present, deleted, dimensions, u8 multi
//! u64 nodes, connectivity, connectivity of the base, highest level, entry node;  i16 level of each node
//! each node: u64 key, i16 level, for each of its levels from the base up: u32 number of links, room for that many u32 links
//! ```

use super::{CONNECTIVITY, GraphError};
use memmap2::Mmap;
use models::files::FileError;
use std::fs::File;
use std::path::Path;
use usearch::ScalarKind;

/// Bytes of usearch's head, its numbers and what it keeps free.
const HEAD: usize = 64;
/// Links of a node on its lowest level.
const BASE: usize = 2 * CONNECTIVITY;
/// Highest level of a node; of 2^64 nodes one would be expected there.
const HIGHEST: i16 = 16;

/// Refuses a file that is not a graph over vectors of this many numbers of this kind.
pub(super) fn check(file: &Path, dimensions: usize, scalar: ScalarKind) -> Result<(), GraphError> {
    let opened = File::open(file).map_err(FileError::io(file))?;
    // SAFETY: the mapping is private and read-only. Graphs are replaced by rename and never written in place, so the mapped file
    // keeps its bytes; its digest has just been read from them.
    let bytes = unsafe { Mmap::map(&opened) }.map_err(FileError::io(file))?;
    let damaged = |reason: String| GraphError::Format { file: file.to_owned(), reason };
    Reader { rest: &bytes }.graph(dimensions, scalar).map_err(damaged)
}

/// usearch's codes: two metrics (ours goes by the name of the first), two kinds of vectors, keys and links.
const METRICS: [u8; 2] = [b'e', b'i'];
const F32: u8 = 11;
const F16: u8 = 12;
const KEYS_AND_LINKS: [u8; 2] = [14, 15];

/// What is still to be read.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn graph(&mut self, dimensions: usize, scalar: ScalarKind) -> Result<(), String> {
        let (size, code) = match scalar {
            ScalarKind::F16 => (2, F16),
            _ => (4, F32),
        };
        let (rows, bytes) = (self.u32()? as usize, self.u32()? as usize);
        let numbers = bytes / size;
        if numbers * size != bytes || (rows > 0 && numbers != dimensions) {
            return Err(format!("its vectors are of {numbers} numbers, documents.sqlite has {dimensions}"));
        }
        self.skip(rows.checked_mul(bytes).ok_or("its size is beyond all bounds")?)?;
        let mut head = Self { rest: self.take(HEAD)? };
        if head.take(7)? != b"usearch" {
            return Err("it does not say that it is a graph".into());
        }
        // Versions, and kinds of metric, vectors, keys and links.
        head.skip(6)?;
        let kinds = head.take(4)?;
        // Present and deleted.
        head.skip(16)?;
        let (said, multi) = (head.u64()?, head.take(1)?[0]);
        if said != dimensions as u64 || multi != 0 {
            return Err(format!("it is over vectors of {said} numbers, documents.sqlite has {dimensions}"));
        }
        if !METRICS.contains(&kinds[0]) || kinds[1] != code || kinds[2..] != KEYS_AND_LINKS {
            return Err(format!("it holds numbers of other kinds ({kinds:?})"));
        }
        let nodes = self.size()?;
        if nodes != rows {
            return Err(format!("it has {rows} vectors and {nodes} nodes"));
        }
        let (connectivity, base, highest, entry) = (self.size()?, self.size()?, self.u64()?, self.size()?);
        if nodes == 0 {
            return self.end();
        }
        if (connectivity, base) != (CONNECTIVITY, BASE) {
            return Err(format!(
                "its nodes have {connectivity} and {base} links, not {CONNECTIVITY} and {BASE}"
            ));
        }
        let levels: Vec<i16> =
            self.take(2 * nodes)?.as_chunks::<2>().0.iter().map(|two| i16::from_le_bytes(*two)).collect();
        if levels.iter().any(|level| !(0..=HIGHEST).contains(level)) {
            return Err("a node's level is out of bounds".into());
        }
        if levels.get(entry).is_none_or(|level| highest > *level as u64) {
            return Err("searches would begin outside of it".into());
        }
        for level in &levels {
            self.node(*level, &levels)?;
        }
        self.end()
    }

    fn node(&mut self, level: i16, levels: &[i16]) -> Result<(), String> {
        self.skip(8)?;
        if self.take(2)? != level.to_le_bytes() {
            return Err("a node's two levels differ".into());
        }
        for at in 0..=level {
            let most = if at == 0 { BASE } else { CONNECTIVITY };
            let (count, links) = (self.u32()? as usize, self.take(4 * most)?);
            let linked = links.as_chunks::<4>().0.iter().map(|four| u32::from_le_bytes(*four) as usize);
            // A node on this level is only reached, and read as one, by those beside it.
            if count > most || linked.take(count).any(|to| levels.get(to).is_none_or(|level| *level < at)) {
                return Err("a link leads out of it".into());
            }
        }
        Ok(())
    }

    fn end(&self) -> Result<(), String> {
        if self.rest.is_empty() { Ok(()) } else { Err(format!("{} bytes are left over", self.rest.len())) }
    }

    fn take(&mut self, bytes: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self.rest.split_at_checked(bytes).ok_or("it ends too early")?;
        self.rest = rest;
        Ok(taken)
    }

    fn skip(&mut self, bytes: usize) -> Result<(), String> {
        self.take(bytes).map(drop)
    }

    fn u32(&mut self) -> Result<u32, String> {
        let four = self.take(4)?.first_chunk().ok_or("it ends too early")?;
        Ok(u32::from_le_bytes(*four))
    }

    fn u64(&mut self) -> Result<u64, String> {
        let eight = self.take(8)?.first_chunk().ok_or("it ends too early")?;
        Ok(u64::from_le_bytes(*eight))
    }

    fn size(&mut self) -> Result<usize, String> {
        usize::try_from(self.u64()?).map_err(|_| "its size is beyond all bounds".into())
    }
}
