//! Which layers need more bits: those whose rounding moves the scores most get them first, as few as hold the ranking.

use crate::error::ExportError;
use crate::ranking::{Judged, RankingData, RankingProof, Scores};
use models::beir::BeirData;
use models::manifest::Precision;
use runtime::session::SessionOptions;
use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::path::Path;

/// Queries and documents by which layers are put in order: enough to tell large errors from small ones.
const FEW: usize = 64;
/// Queries and documents by which a ranking is held.
const MANY: usize = 256;

/// Layers that get more bits, counted from 0.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KeptLayers {
    /// More than the precision's ([`Precision::more`]).
    pub more: BTreeSet<usize>,
    /// Of these, those in fp32.
    pub floats: BTreeSet<usize>,
}

impl KeptLayers {
    /// None at all.
    pub fn none() -> Self {
        Self::default()
    }

    fn more(layers: impl IntoIterator<Item = usize>) -> Self {
        Self { more: layers.into_iter().collect(), floats: BTreeSet::new() }
    }

    fn with_floats(mut self, layers: impl IntoIterator<Item = usize>) -> Self {
        self.floats.extend(layers);
        self.more.extend(&self.floats);
        self
    }

    /// As `--keep-layers` takes it: `0,1,5:fp32`, or `none`.
    pub fn parse(text: &str) -> Option<Self> {
        if text == "none" {
            return Some(Self::none());
        }
        let mut kept = Self::none();
        for layer in text.split(',') {
            let (layer, floats) = match layer.trim().strip_suffix(":fp32") {
                Some(layer) => (layer, true),
                None => (layer.trim(), false),
            };
            let layer = layer.parse().ok()?;
            kept.more.insert(layer);
            if floats {
                kept.floats.insert(layer);
            }
        }
        Some(kept)
    }

    /// For people; `more` says what the first kind has.
    pub fn describe(&self, more: &str) -> String {
        let blocks: Vec<usize> = self.more.difference(&self.floats).copied().collect();
        let mut parts = Vec::new();
        if !blocks.is_empty() {
            parts.push(format!("{blocks:?} in {more}"));
        }
        if !self.floats.is_empty() {
            parts.push(format!("{:?} in fp32", Vec::from_iter(&self.floats)));
        }
        parts.join(", ")
    }
}

/// What the search is about.
pub struct Search<'a> {
    /// Data set in BEIR layout: its dev queries, which taught the predictor nothing; training queries where it has none.
    pub data: &'a Path,
    /// A bundle of the same student in fp32.
    pub fp32: &'a Path,
    /// Layers of the encoder.
    pub layers: usize,
    /// Of all other layers.
    pub precision: Precision,
    /// Whether there is anything between the precision's bits and fp32.
    pub between: bool,
    /// How bundles are run.
    pub session: &'a SessionOptions,
}

/// What the search found.
pub struct Kept {
    /// Layers that get more bits.
    pub layers: KeptLayers,
    /// How these rank; a limit may still be missed where fp32 itself would miss it.
    pub proof: RankingProof,
}

impl Search<'_> {
    /// Has `write` make bundles with some layers kept, in the directory that it returns, and judges them.
    pub fn run<'d>(
        &self,
        mut write: impl FnMut(&KeptLayers) -> Result<&'d Path, ExportError>,
    ) -> Result<Kept, ExportError> {
        let judged = self.judged(MANY)?;
        let fp32 = judged.scores(self.fp32, self.session)?;
        let judge =
            |layers: KeptLayers, write: &mut dyn FnMut(&KeptLayers) -> Result<&'d Path, ExportError>| {
                let scores = judged.scores(write(&layers)?, self.session)?;
                Ok::<_, ExportError>(Kept { proof: judged.compare(&fp32, &scores, self.precision), layers })
            };
        let none = judge(KeptLayers::none(), &mut write)?;
        if none.proof.holds() && none.proof.has_to_spare(self.precision) {
            return Ok(none);
        }
        let all = judge(KeptLayers::more(0..self.layers), &mut write)?;
        if all.proof.holds() {
            let enough = self.enough(&all);
            if enough(&none) {
                return Ok(none);
            }
            let order = self.worst_first(&mut write, |layer| KeptLayers::more([layer]))?;
            let kept = |n: usize| KeptLayers::more(order[..n].iter().copied());
            return fewest(all, 1..=self.layers, &enough, |n| judge(kept(n), &mut write));
        }
        if !self.between {
            return Ok(all);
        }
        let most = |floats: &[usize]| all.layers.clone().with_floats(floats.iter().copied());
        let floats = judge(most(&Vec::from_iter(0..self.layers)), &mut write)?;
        if !floats.proof.holds() {
            return Ok(floats);
        }
        let enough = self.enough(&floats);
        let order = self.worst_first(&mut write, |layer| most(&[layer]))?;
        let found = fewest(floats, 1..=self.layers, &enough, |n| judge(most(&order[..n]), &mut write))?;
        // Then some of the others may do without blocks; those that gain little by fp32 come last here as well.
        let (floats, rest) = order.split_at(found.layers.floats.len());
        let kept = |n: usize| KeptLayers::more(rest[..n].iter().copied()).with_floats(floats.iter().copied());
        fewest(found, 0..=rest.len(), &enough, |n| judge(kept(n), &mut write))
    }

    /// When a ranking is good enough: with something to spare, where `most` layers in more bits have it.
    fn enough(&self, most: &Kept) -> impl Fn(&Kept) -> bool + use<> {
        let (precision, spare) = (self.precision, most.proof.has_to_spare(self.precision));
        move |kept| kept.proof.holds() && (!spare || kept.proof.has_to_spare(precision))
    }

    /// Layers, the one first that brings the scores nearest to those of fp32 when it alone is kept as `one` says.
    fn worst_first<'d>(
        &self,
        write: &mut impl FnMut(&KeptLayers) -> Result<&'d Path, ExportError>,
        one: impl Fn(usize) -> KeptLayers,
    ) -> Result<Vec<usize>, ExportError> {
        let judged = self.judged(FEW)?;
        let fp32 = judged.scores(self.fp32, self.session)?;
        let mut errors = Vec::with_capacity(self.layers);
        for layer in 0..self.layers {
            let scores = judged.scores(write(&one(layer))?, self.session)?;
            errors.push((distance(&fp32, &scores), layer));
        }
        errors.sort_by(|a, b| a.0.total_cmp(&b.0));
        Ok(errors.into_iter().map(|(_, layer)| layer).collect())
    }

    fn judged(&self, most: usize) -> Result<Judged, ExportError> {
        let has_dev = BeirData::open(self.data)?.qrels("dev").is_ok();
        let split = if has_dev { "dev" } else { "train" };
        let data = RankingData { dir: self.data.to_owned(), split: split.into(), queries: 0 };
        Ok(Judged::open(&data)?.some(most, most))
    }
}

/// What is found with the fewest, of so many, that is enough; `all` is what was found with the most of them, and is. More are
/// enough where fewer are, as good as always: bisection finds the edge.
fn fewest<T>(
    all: T,
    numbers: RangeInclusive<usize>,
    enough: impl Fn(&T) -> bool,
    mut judge: impl FnMut(usize) -> Result<T, ExportError>,
) -> Result<T, ExportError> {
    let (mut least, mut n) = numbers.into_inner();
    let mut holds = all;
    while least < n {
        let middle = usize::midpoint(least, n);
        let found = judge(middle)?;
        match enough(&found) {
            true => (n, holds) = (middle, found),
            false => least = middle + 1,
        }
    }
    Ok(holds)
}

/// Squared distance of the scores, less what all of a query's scores have in common: it moves no ranking.
fn distance(before: &Scores, after: &Scores) -> f64 {
    let of_query = |(before, after): (&Vec<f32>, &Vec<f32>)| {
        let moved: Vec<f64> = before.iter().zip(after).map(|(b, a)| f64::from(a - b)).collect();
        let mean = moved.iter().sum::<f64>() / moved.len().max(1) as f64;
        moved.iter().map(|m| (m - mean).powi(2)).sum::<f64>()
    };
    before.iter().zip(after).map(of_query).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the search prints can be typed.
    #[test]
    fn kept_layers_are_written_as_they_are_read() {
        let kept = KeptLayers::parse("0, 7:fp32,3").unwrap();
        assert_eq!(kept, KeptLayers::more([0, 3]).with_floats([7]));
        assert_eq!(kept.describe("int8 in blocks"), "[0, 3] in int8 in blocks, [7] in fp32");
        assert_eq!(KeptLayers::parse("none"), Some(KeptLayers::none()));
        for wrong in ["", "1,", "a", "1:fp16", "-1"] {
            assert_eq!(KeptLayers::parse(wrong), None, "{wrong}");
        }
    }

    /// One layer too many is time and space that every robot pays; one too few is a ranking that was promised.
    #[test]
    fn the_edge_is_found() {
        for (least, most) in [(0, 0), (1, 1), (0, 1), (0, 6), (1, 24)] {
            for edge in least..=most {
                let found = fewest(most, least..=most, |n| *n >= edge, Ok).unwrap();
                assert_eq!(found, edge, "of {least} to {most}");
            }
        }
    }

    /// A query's scores that all move alike rank as before.
    #[test]
    fn a_common_shift_is_no_distance() {
        let before = vec![vec![1.0, 2.0, 3.0], vec![0.0, 0.0, 5.0]];
        let shifted = vec![vec![2.0, 3.0, 4.0], vec![-1.0, -1.0, 4.0]];
        assert_eq!(distance(&before, &shifted), 0.0);
        let moved = vec![vec![1.0, 2.0, 6.0], vec![0.0, 0.0, 5.0]];
        assert!((distance(&before, &moved) - 6.0).abs() < 1e-9);
    }
}
