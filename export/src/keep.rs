//! Which layers need more bits: those whose rounding moves the scores most get them first, as few as hold the ranking.

use crate::error::ExportError;
use crate::ranking::{Judged, RankingData, RankingProof, Scores};
use models::beir::BeirData;
use models::manifest::Precision;
use runtime::session::SessionOptions;
use std::collections::BTreeSet;
use std::path::Path;

/// Queries and documents by which layers are put in order: enough to tell large errors from small ones.
const FEW: usize = 64;
/// Queries and documents by which a ranking is held.
const MANY: usize = 256;

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
    /// How bundles are run.
    pub session: &'a SessionOptions,
}

/// What the search found.
pub struct Kept {
    /// Layers that get more bits; all where no number of them holds the ranking.
    pub layers: BTreeSet<usize>,
    /// How these rank.
    pub proof: RankingProof,
}

impl Search<'_> {
    /// Has `write` make bundles with some layers kept, in the directory that it returns, and judges them.
    pub fn run<'d>(
        &self,
        mut write: impl FnMut(&BTreeSet<usize>) -> Result<&'d Path, ExportError>,
    ) -> Result<Kept, ExportError> {
        let judged = self.judged(MANY)?;
        let fp32 = judged.scores(self.fp32, self.session)?;
        let mut judge = |kept: &BTreeSet<usize>| -> Result<RankingProof, ExportError> {
            let scores = judged.scores(write(kept)?, self.session)?;
            Ok(judged.compare(&fp32, &scores, self.precision))
        };
        let none = judge(&BTreeSet::new())?;
        if none.failed.is_empty() {
            return Ok(Kept { layers: BTreeSet::new(), proof: none });
        }
        let all = judge(&(0..self.layers).collect())?;
        if !all.failed.is_empty() {
            // The best there is; whether it is good enough is decided on the queries that the user names.
            return Ok(Kept { layers: (0..self.layers).collect(), proof: all });
        }
        let order = self.worst_first(&mut write)?;
        // More layers hold what fewer hold, as good as always: bisection finds the edge.
        let mut judge = |n: usize| -> Result<Kept, ExportError> {
            let layers: BTreeSet<usize> = order[..n].iter().copied().collect();
            let scores = judged.scores(write(&layers)?, self.session)?;
            Ok(Kept { proof: judged.compare(&fp32, &scores, self.precision), layers })
        };
        let (mut fails, mut holds) = (0, Kept { layers: (0..self.layers).collect(), proof: all });
        while holds.layers.len() - fails > 1 {
            let found = judge(usize::midpoint(fails, holds.layers.len()))?;
            match found.proof.failed.is_empty() {
                true => holds = found,
                false => fails = found.layers.len(),
            }
        }
        Ok(holds)
    }

    /// Layers, the one first that brings the scores nearest to those of fp32 when it alone has more bits.
    fn worst_first<'d>(
        &self,
        write: &mut impl FnMut(&BTreeSet<usize>) -> Result<&'d Path, ExportError>,
    ) -> Result<Vec<usize>, ExportError> {
        let judged = self.judged(FEW)?;
        let fp32 = judged.scores(self.fp32, self.session)?;
        let mut errors = Vec::with_capacity(self.layers);
        for layer in 0..self.layers {
            let scores = judged.scores(write(&BTreeSet::from([layer]))?, self.session)?;
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
