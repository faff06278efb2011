//! The vectors of all documents in memory, in the precision that the index is searched in: numbers of this process's own,
//! behind what is mapped from a file (crate::rows_file).

use bytemuck::Pod;
use half::f16;
use memmap2::{MmapMut, MmapOptions};
use models::fold::FoldedQuery;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::fs::File;
use std::io;

/// In what precision vectors are kept in memory and scanned. The database has them in f32 always; what was found in less is
/// scored again from there, so that a result's score does not depend on this.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit floats.
    #[default]
    F32,
    /// IEEE half precision.
    F16,
    /// Signed bytes and a scale for each vector.
    Int8,
}

impl Precision {
    /// Bytes of a vector of `m` numbers.
    pub fn bytes(self, m: usize) -> usize {
        match self {
            Self::F32 => 4 * m,
            Self::F16 => 2 * m,
            Self::Int8 => m + 4,
        }
    }
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Int8 => "int8",
        })
    }
}

/// Vectors in places numbered from 0.
#[derive(Debug)]
pub struct Vectors {
    dimensions: usize,
    numbers: Numbers,
}

#[derive(Debug)]
enum Numbers {
    F32(Block<f32>),
    F16(Block<u16>),
    Int8 { numbers: Block<i8>, scales: Block<f32> },
}

/// Numbers `width` at a time: those of a file first, which are read when they are looked at and copied where they are
/// changed, then those that came later.
#[derive(Debug)]
struct Block<T> {
    width: usize,
    mapped: Option<MmapMut>,
    own: Vec<T>,
}

/// A tensor inside a file: where it begins, and how many bytes it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Offset from the file's beginning, a multiple of a number's size.
    pub start: u64,
    /// Length in bytes.
    pub bytes: usize,
}

impl<T: Pod> Block<T> {
    fn new(width: usize) -> Self {
        Self { width, mapped: None, own: Vec::new() }
    }

    fn map(width: usize, file: &File, extent: Extent) -> io::Result<Self> {
        if extent.bytes == 0 {
            return Ok(Self::new(width));
        }
        // SAFETY: the mapping is private: what is written to it stays in this process. Another process that shortened the file
        // would end this one with SIGBUS; rows files are replaced by rename, never written in place.
        let map = unsafe {
            MmapOptions::new().offset(extent.start).len(extent.bytes).no_reserve_swap().map_copy(file)?
        };
        if bytemuck::try_cast_slice::<u8, T>(&map).is_err() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "its numbers are not aligned"));
        }
        Ok(Self { width, mapped: Some(map), own: Vec::new() })
    }

    /// Numbers from the file.
    fn mapped(&self) -> &[T] {
        // Checked when it was mapped.
        self.mapped.as_deref().map_or(&[], |map| bytemuck::try_cast_slice(map).unwrap_or(&[]))
    }

    fn places(&self) -> usize {
        (self.mapped().len() + self.own.len()) / self.width.max(1)
    }

    fn get(&self, place: usize) -> &[T] {
        let (start, mapped) = (place * self.width, self.mapped());
        if start < mapped.len() {
            &mapped[start..start + self.width]
        } else {
            let start = start - mapped.len();
            &self.own[start..start + self.width]
        }
    }

    fn get_mut(&mut self, place: usize) -> &mut [T] {
        let (start, mapped) = (place * self.width, self.mapped().len());
        match self.mapped.as_deref_mut().and_then(|map| bytemuck::try_cast_slice_mut(map).ok()) {
            Some(map) if start < mapped => &mut map[start..start + self.width],
            _ => &mut self.own[start - mapped..start - mapped + self.width],
        }
    }

    fn grow(&mut self) {
        self.own.resize(self.own.len() + self.width, T::zeroed());
    }

    /// The bytes of the vectors at these places, in order.
    fn chunks<'a>(&'a self, places: &'a [usize]) -> impl Iterator<Item = &'a [u8]> {
        places.iter().map(|place| bytemuck::cast_slice(self.get(*place)))
    }
}

impl Vectors {
    /// None, of `dimensions` numbers each.
    pub fn new(dimensions: usize, precision: Precision) -> Self {
        let numbers = match precision {
            Precision::F32 => Numbers::F32(Block::new(dimensions)),
            Precision::F16 => Numbers::F16(Block::new(dimensions)),
            Precision::Int8 => Numbers::Int8 { numbers: Block::new(dimensions), scales: Block::new(1) },
        };
        Self { dimensions, numbers }
    }

    /// Those of a file: their numbers and, of int8 ones, their scales.
    pub fn map(
        dimensions: usize,
        precision: Precision,
        file: &File,
        numbers: Extent,
        scales: Extent,
    ) -> io::Result<Self> {
        let numbers = match precision {
            Precision::F32 => Numbers::F32(Block::map(dimensions, file, numbers)?),
            Precision::F16 => Numbers::F16(Block::map(dimensions, file, numbers)?),
            Precision::Int8 => Numbers::Int8 {
                numbers: Block::map(dimensions, file, numbers)?,
                scales: Block::map(1, file, scales)?,
            },
        };
        Ok(Self { dimensions, numbers })
    }

    /// Numbers in each vector, m.
    pub fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// Their precision.
    pub fn precision(&self) -> Precision {
        match self.numbers {
            Numbers::F32(_) => Precision::F32,
            Numbers::F16(_) => Precision::F16,
            Numbers::Int8 { .. } => Precision::Int8,
        }
    }

    /// Number of places.
    pub fn places(&self) -> usize {
        match &self.numbers {
            Numbers::F32(block) => block.places(),
            Numbers::F16(block) => block.places(),
            Numbers::Int8 { scales, .. } => scales.places(),
        }
    }

    /// Makes room.
    pub fn reserve(&mut self, places: usize) {
        let m = self.dimensions;
        match &mut self.numbers {
            Numbers::F32(block) => block.own.reserve(places * m),
            Numbers::F16(block) => block.own.reserve(places * m),
            Numbers::Int8 { numbers, scales } => {
                numbers.own.reserve(places * m);
                scales.own.reserve(places);
            }
        }
    }

    /// Adds a place with zeros in it.
    pub fn grow(&mut self) {
        match &mut self.numbers {
            Numbers::F32(block) => block.grow(),
            Numbers::F16(block) => block.grow(),
            Numbers::Int8 { numbers, scales } => {
                numbers.grow();
                scales.grow();
            }
        }
    }

    /// Puts a vector into a place; one of another length is cut or leaves the rest as it was.
    pub fn set(&mut self, place: usize, vector: &[f32]) {
        match &mut self.numbers {
            Numbers::F32(block) => {
                for (slot, value) in block.get_mut(place).iter_mut().zip(vector) {
                    *slot = *value;
                }
            }
            Numbers::F16(block) => {
                for (slot, value) in block.get_mut(place).iter_mut().zip(vector) {
                    // Beyond its range, the largest number there is: an infinite one would make scores that are none.
                    let value = value.clamp(f16::MIN.to_f32(), f16::MAX.to_f32());
                    *slot = f16::from_f32(value).to_bits();
                }
            }
            Numbers::Int8 { numbers, scales } => {
                let largest = vector.iter().fold(0f32, |largest, x| largest.max(x.abs()));
                let scale = largest / 127.0;
                let factor = if scale > 0.0 { scale.recip() } else { 0.0 };
                for (slot, value) in numbers.get_mut(place).iter_mut().zip(vector) {
                    *slot = (value * factor).round() as i8;
                }
                scales.get_mut(place)[0] = scale;
            }
        }
    }

    /// The vector at a place, `[m]`, as near as its precision keeps it.
    pub fn get(&self, place: usize) -> Cow<'_, [f32]> {
        match &self.numbers {
            Numbers::F32(block) => Cow::Borrowed(block.get(place)),
            Numbers::F16(block) => block.get(place).iter().map(|x| f16::from_bits(*x).to_f32()).collect(),
            Numbers::Int8 { numbers, scales } => {
                let scale = scales.get(place)[0];
                numbers.get(place).iter().map(|x| scale * f32::from(*x)).collect()
            }
        }
    }

    /// `log p(T) - log p(F)` of a query and the document at a place.
    pub fn score(&self, query: &FoldedQuery, place: usize) -> f32 {
        match &self.numbers {
            Numbers::F32(block) => query.score(block.get(place)),
            Numbers::F16(block) => query.score_f16(block.get(place)),
            Numbers::Int8 { numbers, scales } => query.score_int8(numbers.get(place), scales.get(place)[0]),
        }
    }

    /// The vectors at these places alone, in order.
    pub fn compacted(&self, places: &[usize]) -> Self {
        fn own<T: Pod>(block: &Block<T>, places: &[usize]) -> Block<T> {
            let mut own = Vec::with_capacity(places.len() * block.width);
            for place in places {
                own.extend_from_slice(block.get(*place));
            }
            Block { width: block.width, mapped: None, own }
        }
        let numbers = match &self.numbers {
            Numbers::F32(block) => Numbers::F32(own(block, places)),
            Numbers::F16(block) => Numbers::F16(own(block, places)),
            Numbers::Int8 { numbers, scales } => {
                Numbers::Int8 { numbers: own(numbers, places), scales: own(scales, places) }
            }
        };
        Self { dimensions: self.dimensions, numbers }
    }

    /// Bytes of the numbers at these places, as a rows file has them.
    pub fn numbers<'a>(&'a self, places: &'a [usize]) -> Box<dyn Iterator<Item = &'a [u8]> + 'a> {
        match &self.numbers {
            Numbers::F32(block) => Box::new(block.chunks(places)),
            Numbers::F16(block) => Box::new(block.chunks(places)),
            Numbers::Int8 { numbers, .. } => Box::new(numbers.chunks(places)),
        }
    }

    /// Bytes of the scales at these places; none where the precision has none.
    pub fn scales<'a>(&'a self, places: &'a [usize]) -> Box<dyn Iterator<Item = &'a [u8]> + 'a> {
        match &self.numbers {
            Numbers::Int8 { scales, .. } => Box::new(scales.chunks(places)),
            _ => Box::new(std::iter::empty()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Folding, Random};
    use models::student::Form;

    /// What is lost may be the rounding of the precision, nothing more.
    #[test]
    fn vectors_come_back_as_near_as_their_precision() {
        let mut random = Random::new(3);
        for (precision, error) in
            [(Precision::F32, 0.0), (Precision::F16, 1e-3), (Precision::Int8, 0.5 / 127.0)]
        {
            let m = 37;
            let mut vectors = Vectors::new(m, precision);
            let all: Vec<Vec<f32>> = (0..20).map(|_| random.normals(m)).collect();
            for (place, vector) in all.iter().enumerate() {
                vectors.grow();
                vectors.set(place, vector);
            }
            let compacted = vectors.compacted(&[3, 7]);
            assert_eq!((vectors.places(), compacted.places(), vectors.precision()), (20, 2, precision));
            assert_eq!(compacted.get(1), vectors.get(7));
            for form in [Form::Relu, Form::Gated] {
                let query = Folding::new(form, m, &mut random).query(&mut random);
                for (place, vector) in all.iter().enumerate() {
                    let largest = vector.iter().fold(0f32, |l, x| l.max(x.abs()));
                    let found = vectors.get(place);
                    for (found, expected) in found.iter().zip(vector) {
                        assert!(
                            (found - expected).abs() <= error * largest * 1.001,
                            "{precision}: {found} for {expected}"
                        );
                    }
                    // The scan computes with the rounded vector, as if it were the vector.
                    let (scanned, plain) = (vectors.score(&query, place), query.score(&found));
                    assert!(
                        (scanned - plain).abs() <= 1e-4 * (1.0 + plain.abs()),
                        "{precision}: {scanned} for {plain}"
                    );
                }
            }
        }
    }

    /// Numbers that a precision has no room for, and vectors of nothing but zeros, must not become infinite.
    #[test]
    fn extreme_vectors_stay_finite() {
        for precision in [Precision::F16, Precision::Int8] {
            let mut vectors = Vectors::new(3, precision);
            for (place, vector) in [[0.0; 3], [1e30, -1e30, 1.0], [1e-30, 0.0, -1e-30]].iter().enumerate() {
                vectors.grow();
                vectors.set(place, vector);
                assert!(
                    vectors.get(place).iter().all(|x| x.is_finite()),
                    "{precision}: {:?}",
                    vectors.get(place)
                );
            }
        }
    }
}
