//! The rows of a large index in one file that is mapped, not read: an accelerator like the graph, never the truth.
//!
//! Reading a million vectors from the database, each against its checksum, takes many seconds. `rows.safetensors` has what
//! a search needs (keys, ids, metadata by field, vectors in the precision that is scanned) as of one generation; what came
//! after is read from the database. It is written beside itself and renamed, and has a checksum over all it holds, for
//! which it is read once, on all cores, when it is opened. Anything wrong with it, and the database is read instead.

use crate::columns::Columns;
use crate::search::Rows;
use crate::store::Generation;
use crate::vectors::{Extent, Precision, Vectors};
use memmap2::Mmap;
use models::files::{self, FileError};
use rayon::prelude::*;
use safetensors::tensor::{Metadata, TensorInfo};
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::xxh3_128;

/// Version of the file that this program reads and writes.
pub const FORMAT_VERSION: u32 = 1;
/// Its name inside an index.
pub const FILE_NAME: &str = "rows.safetensors";
/// The checksum is of blocks of this many bytes, so that they can be read side by side.
const BLOCK: usize = 1 << 22;
/// Names of the two entries of the header beside the tensors.
const VERSION_ENTRY: &str = "format_version";
const CHECKSUM_ENTRY: &str = "checksum";

/// A rows file that cannot be used; the database beside it is not concerned.
#[derive(Debug, thiserror::Error)]
pub enum RowsFileError {
    /// Reading or writing failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// Its vectors are in another precision than was asked for.
    #[error("{file}: has vectors in {found}, wanted are {wanted}")]
    Precision {
        /// The file.
        file: PathBuf,
        /// That of its vectors.
        found: Precision,
        /// That asked for.
        wanted: Precision,
    },
    /// Damaged, or of something else.
    #[error("{file}: {reason}")]
    Unfit {
        /// The file.
        file: PathBuf,
        /// Why.
        reason: String,
    },
}

/// What the file is of, under its checksum.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct About {
    generation: u64,
    digest: String,
    rows: usize,
    dimensions: usize,
    precision: Precision,
    fields: Vec<Field>,
}

/// A metadata field and its distinct values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Field {
    name: String,
    values: Vec<Value>,
}

/// A tensor's header, and then its bytes in pieces.
struct Tensor<'a> {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    pieces: Box<dyn Iterator<Item = &'a [u8]> + 'a>,
}

/// Writes the rows that are there, as of a generation; the caller is the index's only writer.
pub fn save(dir: &Path, rows: &Rows, generation: &Generation) -> Result<(), RowsFileError> {
    let places: Vec<usize> = rows.live().ones().collect();
    let (n, m, precision) = (places.len(), rows.dimensions(), rows.precision());
    let keys: Vec<i64> = places.iter().map(|place| rows.key(*place)).collect();
    let mut ids = String::new();
    let mut id_ends = Vec::with_capacity(n);
    for place in &places {
        ids.push_str(rows.id(*place));
        id_ends.push(ids.len() as u64);
    }
    let columns = rows.columns().compacted(rows.live());
    let columns: Vec<_> = columns.entries().collect();
    let about = About {
        generation: generation.number,
        digest: generation.digest.clone(),
        rows: n,
        dimensions: m,
        precision,
        fields: columns
            .iter()
            .map(|(name, values, _)| Field {
                name: (*name).to_owned(),
                values: values.iter().map(|value| (*value).clone()).collect(),
            })
            .collect(),
    };
    let file = dir.join(FILE_NAME);
    let about = serde_json::to_vec(&about).map_err(|error| FileError::io(&file)(error.into()))?;

    // Largest numbers first: each lies where numbers of its size may.
    let mut tensors = vec![
        whole("keys", Dtype::I64, vec![n], bytemuck::cast_slice(&keys)),
        whole("id_ends", Dtype::U64, vec![n], bytemuck::cast_slice(&id_ends)),
    ];
    for (i, (_, _, entries)) in columns.iter().enumerate() {
        let shape = vec![entries.len(), 2];
        tensors.push(whole(&column_name(i), Dtype::U32, shape, bytemuck::cast_slice(entries)));
    }
    let scales = if precision == Precision::Int8 { n } else { 0 };
    tensors.push(Tensor {
        name: "scales".into(),
        dtype: Dtype::F32,
        shape: vec![scales],
        pieces: rows.vectors().scales(&places),
    });
    tensors.push(Tensor {
        name: "vectors".into(),
        dtype: dtype(precision),
        shape: vec![n, m],
        pieces: rows.vectors().numbers(&places),
    });
    tensors.push(whole("ids", Dtype::U8, vec![ids.len()], ids.as_bytes()));
    tensors.push(whole("about", Dtype::U8, vec![about.len()], &about));

    files::write_atomic(&file, |out| {
        // Written twice, of one length: what the checksum is, is known at the end.
        out.write_all(&header(&tensors, 0)?)?;
        let mut hashing = Hashing { out, block: Vec::with_capacity(BLOCK), hashes: Vec::new() };
        for piece in tensors.iter_mut().flat_map(|tensor| &mut tensor.pieces) {
            hashing.write(piece)?;
        }
        let checksum = hashing.finish()?;
        out.seek(SeekFrom::Start(0))?;
        out.write_all(&header(&tensors, checksum)?)
    })?;
    Ok(())
}

/// Maps the rows of such a file, and tells of which generation they are.
pub fn open(
    dir: &Path,
    dimensions: usize,
    precision: Option<Precision>,
) -> Result<(Rows, Generation), RowsFileError> {
    let path = dir.join(FILE_NAME);
    let unfit = |reason: String| RowsFileError::Unfit { file: path.clone(), reason };
    let damaged = |what: &str| unfit(format!("damaged: {what}"));
    let file = File::open(&path).map_err(FileError::io(&path))?;
    // SAFETY: as in crate::vectors: private, read-only, and such files are replaced by rename.
    let bytes = unsafe { Mmap::map(&file) }.map_err(FileError::io(&path))?;
    let (length, metadata) = SafeTensors::read_metadata(&bytes).map_err(|e| damaged(&e.to_string()))?;
    let data = size_of::<u64>() + length;
    let entry = |name: &str| metadata.metadata().as_ref().and_then(|entries| entries.get(name));
    let found = entry(VERSION_ENTRY).ok_or_else(|| damaged("it has no format version"))?;
    if *found != FORMAT_VERSION.to_string() {
        return Err(unfit(format!("format version {found}, this program reads version {FORMAT_VERSION}")));
    }
    // Nothing of it is believed before this.
    let contents = bytes.get(data..).unwrap_or_default();
    if entry(CHECKSUM_ENTRY) != Some(&written(checksum(contents))) {
        return Err(damaged("it fails its checksum"));
    }
    let tensor = |name: &str, kind: Dtype, shape: &[usize]| -> Result<(&[u8], Extent), RowsFileError> {
        let info = metadata.info(name).filter(|info| fits(info, kind, shape));
        let info = info.ok_or_else(|| damaged(&format!("tensor `{name}` is not what it should be")))?;
        let (start, end) = info.data_offsets;
        let bytes = contents.get(start..end).ok_or_else(|| damaged("it is cut off"))?;
        Ok((bytes, Extent { start: (data + start) as u64, bytes: bytes.len() }))
    };
    let about = tensor("about", Dtype::U8, &[length_of(&metadata, "about")])?.0;
    let about: About = serde_json::from_slice(about).map_err(|error| damaged(&error.to_string()))?;
    if about.dimensions != dimensions {
        return Err(unfit(format!("has {} numbers a document, this bundle {dimensions}", about.dimensions)));
    }
    if let Some(wanted) = precision.filter(|wanted| *wanted != about.precision) {
        return Err(RowsFileError::Precision { file: path, found: about.precision, wanted });
    }
    let n = about.rows;
    let keys: Vec<i64> = bytemuck::pod_collect_to_vec(tensor("keys", Dtype::I64, &[n])?.0);
    let id_ends: Vec<u64> = bytemuck::pod_collect_to_vec(tensor("id_ends", Dtype::U64, &[n])?.0);
    let ids = tensor("ids", Dtype::U8, &[length_of(&metadata, "ids")])?.0;
    let ids = std::str::from_utf8(ids).map_err(|error| damaged(&error.to_string()))?;
    let mut start = 0;
    let mut each = Vec::with_capacity(n);
    for end in id_ends {
        let end = usize::try_from(end).unwrap_or(usize::MAX);
        let id = ids.get(start..end).ok_or_else(|| damaged("its ids overlap"))?;
        each.push(Box::from(id));
        start = end;
    }
    let mut columns = Columns::default();
    for (i, Field { name, values }) in about.fields.into_iter().enumerate() {
        let column = column_name(i);
        let count = length_of(&metadata, &column);
        let entries: Vec<[u32; 2]> =
            bytemuck::pod_collect_to_vec(tensor(&column, Dtype::U32, &[count, 2])?.0);
        if !columns.restore(name, values, &entries, n) {
            return Err(damaged("its metadata contradict themselves"));
        }
    }
    let scales = if about.precision == Precision::Int8 { n } else { 0 };
    let scales = tensor("scales", Dtype::F32, &[scales])?.1;
    let numbers = tensor("vectors", dtype(about.precision), &[n, dimensions])?.1;
    let vectors =
        Vectors::map(dimensions, about.precision, &file, numbers, scales).map_err(FileError::io(&path))?;
    let rows =
        Rows::restored(keys, each, vectors, columns).ok_or_else(|| damaged("its keys do not ascend"))?;
    Ok((rows, Generation { number: about.generation, digest: about.digest }))
}

fn whole<'a>(name: &str, dtype: Dtype, shape: Vec<usize>, bytes: &'a [u8]) -> Tensor<'a> {
    Tensor { name: name.to_owned(), dtype, shape, pieces: Box::new(std::iter::once(bytes)) }
}

fn column_name(i: usize) -> String {
    format!("column.{i}")
}

fn dtype(precision: Precision) -> Dtype {
    match precision {
        Precision::F32 => Dtype::F32,
        Precision::F16 => Dtype::F16,
        Precision::Int8 => Dtype::I8,
    }
}

fn fits(info: &TensorInfo, dtype: Dtype, shape: &[usize]) -> bool {
    info.dtype == dtype && info.shape == shape
}

/// First dimension of a tensor that may have any length.
fn length_of(metadata: &Metadata, name: &str) -> usize {
    metadata.info(name).and_then(|info| info.shape.first().copied()).unwrap_or(0)
}

/// Length and JSON, padded to a multiple of 8 bytes as the format's own writer does.
fn header(tensors: &[Tensor<'_>], checksum: u128) -> io::Result<Vec<u8>> {
    let mut entries = serde_json::Map::new();
    let about = json!({ VERSION_ENTRY: FORMAT_VERSION.to_string(), CHECKSUM_ENTRY: written(checksum) });
    entries.insert("__metadata__".into(), about);
    let mut start = 0;
    for Tensor { name, dtype, shape, .. } in tensors {
        let end = start + shape.iter().product::<usize>() * dtype.bitsize() / 8;
        entries.insert(name.clone(), json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, end] }));
        start = end;
    }
    let mut text = serde_json::to_vec(&entries)?;
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut header = (text.len() as u64).to_le_bytes().to_vec();
    header.extend(text);
    Ok(header)
}

fn written(checksum: u128) -> String {
    format!("{checksum:032x}")
}

/// xxh3 of the blocks' xxh3: against damage, not against forgery.
fn checksum(bytes: &[u8]) -> u128 {
    let hashes: Vec<u128> = bytes.par_chunks(BLOCK).map(xxh3_128).collect();
    xxh3_128(&hashes.iter().flat_map(|hash| hash.to_le_bytes()).collect::<Vec<_>>())
}

/// Writes through, and computes the checksum on the way.
struct Hashing<'a, W> {
    out: &'a mut W,
    block: Vec<u8>,
    hashes: Vec<u8>,
}

impl<W: Write> Hashing<'_, W> {
    fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(BLOCK - self.block.len()));
            self.block.extend_from_slice(now);
            if self.block.len() == BLOCK {
                self.flush()?;
            }
            bytes = later;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.hashes.extend(xxh3_128(&self.block).to_le_bytes());
        self.out.write_all(&self.block)?;
        self.block.clear();
        Ok(())
    }

    fn finish(mut self) -> io::Result<u128> {
        if !self.block.is_empty() {
            self.flush()?;
        }
        Ok(xxh3_128(&self.hashes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::search;
    use crate::testing::{Folding, Random};
    use models::student::Form;

    fn rows(precision: Precision, n: usize, m: usize) -> Rows {
        let mut random = Random::new(11);
        let mut rows = Rows::in_precision(m, precision);
        for i in 0..n {
            let metadata = match i % 3 {
                0 => json!({}),
                1 => json!({ "room": format!("r{}", i % 7), "floor": i % 4 }),
                _ => json!({ "floor": [i % 4, "x"], "deep": { "down": true } }),
            };
            let metadata = metadata.as_object().cloned().unwrap_or_default();
            rows.push(i as i64 * 3 + 1, &format!("dö{i}"), &random.normals(m), &metadata);
        }
        rows
    }

    /// A row that came back under another id, with another vector or other metadata is a wrong answer that nobody sees.
    #[test]
    fn what_was_saved_is_what_is_searched() {
        for precision in [Precision::F32, Precision::F16, Precision::Int8] {
            let (n, m) = (900, 19);
            let mut random = Random::new(12);
            let folding = Folding::new(Form::Relu, m, &mut random);
            let queries: Vec<_> = (0..3).map(|_| folding.query(&mut random)).collect();
            let mut rows = rows(precision, n, m);
            for key in [1, 4, 304, 2698] {
                assert!(rows.remove(key));
            }
            let dir = tempfile::tempdir().unwrap();
            let generation = Generation { number: 9, digest: "nine".into() };
            save(dir.path(), &rows, &generation).unwrap();
            let (mut restored, of) = open(dir.path(), m, None).unwrap();
            assert_eq!((restored.len(), restored.precision(), of), (n - 4, precision, generation));
            let answers = |rows: &Rows, filter: &str| -> Vec<Vec<(String, i64, u32)>> {
                let selected = rows.select(&crate::filter::Filter::parse(filter).unwrap());
                let found = search::exact(&queries, rows, n, Some(&selected));
                let told =
                    |s: &search::Scored| (rows.id(s.row).to_owned(), rows.key(s.row), s.score.to_bits());
                found.iter().map(|found| found.iter().map(told).collect()).collect()
            };
            let filters = ["floor>=0", "room=r1", "deep.down=true", "!room"];
            for filter in filters {
                assert_eq!(answers(&restored, filter), answers(&rows, filter), "{precision} {filter}");
            }
            // What is changed afterwards is changed in both alike, and not in the file.
            for rows in [&mut rows, &mut restored] {
                rows.push(7, "dö2", &[0.5; 19], &crate::document::Metadata::new());
                rows.push(5000, "new", &[0.25; 19], &crate::document::Metadata::new());
                rows.remove(10);
            }
            for filter in filters {
                assert_eq!(answers(&restored, filter), answers(&rows, filter), "{precision} {filter}");
            }
            let again = open(dir.path(), m, None).unwrap().0;
            let of_seven = |rows: &Rows| rows.vector(rows.row(7).unwrap()).into_owned();
            assert_ne!(of_seven(&again), of_seven(&restored));
        }
    }

    /// Answered from a damaged file is answered wrongly: every byte counts.
    #[test]
    fn every_flipped_bit_and_every_cut_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let generation = Generation { number: 2, digest: "two".into() };
        save(dir.path(), &rows(Precision::Int8, 9, 5), &generation).unwrap();
        let file = dir.path().join(FILE_NAME);
        let whole = std::fs::read(&file).unwrap();
        let refused = |bytes: &[u8]| {
            std::fs::write(&file, bytes).unwrap();
            open(dir.path(), 5, None).is_err()
        };
        let text_ends = 8 + u64::from_le_bytes(*whole.first_chunk().unwrap()) as usize;
        for place in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[place] ^= 1 << (place % 8);
            // Blanks that pad the header mean nothing, whatever blanks they are.
            let blank = place < text_ends && whole[place] == b' ' && bytes[place].is_ascii_whitespace();
            assert!(blank || refused(&bytes), "bit flipped at byte {place} of {}", whole.len());
        }
        for end in [0, 7, 8, 100, whole.len() - 1] {
            assert!(refused(&whole[..end]), "cut at {end}");
        }
        assert!(!refused(&whole));
        let message = open(dir.path(), 6, None).unwrap_err().to_string();
        assert!(message.contains("has 5 numbers a document, this bundle 6"), "{message}");
        let message = open(dir.path(), 5, Some(Precision::F16)).unwrap_err().to_string();
        assert!(message.contains("has vectors in int8, wanted are f16"), "{message}");
    }

    /// Other programs may read it: it is a safetensors file like any other.
    #[test]
    fn it_is_a_safetensors_file() {
        let dir = tempfile::tempdir().unwrap();
        let rows = rows(Precision::F32, 4, 3);
        save(dir.path(), &rows, &Generation::default()).unwrap();
        let weights = models::weights::Weights::open_file(dir.path().join(FILE_NAME)).unwrap();
        let (shape, numbers) = weights.f32("vectors").unwrap();
        assert_eq!((shape, &numbers[3..6]), (vec![4, 3], &*rows.vector(1)));
    }
}
