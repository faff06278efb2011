//! The search for the layers that need a higher precision: ordered by sensitivity, as few as keep the ranking.

use crate::bundle::options::MixedPrecision;
use crate::bundle::writer::BundleWriter;
use crate::error::ExportError;
use crate::quantise::mixed::MixedLayers;
use crate::verify::ranking::{JudgedData, RankingData, RankingReport, Scores};
use models::beir;
use models::files::StagedDir;
use models::manifest::Precision;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Queries and documents that order the layers by sensitivity: enough to tell large errors from small ones.
const SENSITIVITY_TEXTS: usize = 64;
/// Queries and documents on which a ranking is checked.
const RANKING_TEXTS: usize = 256;

/// The layers asked for, or those that need a higher precision on the calibration's data set. `fp32` writes an fp32 bundle of
/// the same student and returns its directory.
pub(super) fn choose_layers(
    writer: &BundleWriter,
    fp32: impl FnOnce() -> Result<PathBuf, ExportError>,
    progress: &mut dyn FnMut(&str),
) -> Result<MixedLayers, ExportError> {
    let (options, depth) = (writer.options, writer.student.layers());
    let data = match (&options.mixed_precision, &options.calibration) {
        (MixedPrecision::Layers(mixed), _) => {
            return match mixed.higher.last().filter(|layer| **layer >= depth) {
                Some(&layer) => Err(ExportError::MixedLayer { layer, depth }),
                None => Ok(mixed.clone()),
            };
        }
        (MixedPrecision::Search, None) => return Ok(MixedLayers::none()),
        (MixedPrecision::Search, Some(data)) => data,
    };
    let start = Instant::now();
    let higher = options.precision.more(options.graph).unwrap_or_default();
    let fp32 = &fp32()?;
    let staged = StagedDir::new(&fp32.with_extension("search"))?;
    let search = Search {
        writer,
        dir: staged.path(),
        data,
        fp32,
        layers: depth,
        has_intermediate: higher != Precision::Fp32.name(),
    };
    let Candidate { mixed, ranking } = search.run()?;
    let seconds = start.elapsed().as_secs_f64();
    let precision = options.precision.name();
    let layers = match mixed.higher.is_empty() {
        true => format!("all in {precision}"),
        false => format!("{}, the others in {precision}", mixed.describe(higher)),
    };
    progress(&format!("layers     {layers}, {seconds:.1} s\n{ranking}"));
    Ok(mixed)
}

/// What the search works on.
struct Search<'a> {
    writer: &'a BundleWriter<'a>,
    /// Where bundles are written that are only measured.
    dir: &'a Path,
    /// Data set in BEIR layout: its dev queries, which the predictor was not trained on; training queries where it has none.
    data: &'a Path,
    /// An fp32 bundle of the same student.
    fp32: &'a Path,
    /// Layers of the encoder.
    layers: usize,
    /// Whether there is a format between the precision and fp32.
    has_intermediate: bool,
}

/// One choice of layers.
struct Candidate {
    mixed: MixedLayers,
    /// How it ranks; a limit can be exceeded where not even fp32 in every layer meets it.
    ranking: RankingReport,
}

impl Search<'_> {
    fn run(&self) -> Result<Candidate, ExportError> {
        let (judged, fp32) = self.judged(RANKING_TEXTS)?;
        let measure = |mixed: MixedLayers| -> Result<Candidate, ExportError> {
            let ranking = judged.compare(&fp32, &self.scores(&judged, &mixed)?, self.precision());
            Ok(Candidate { mixed, ranking })
        };
        let none = measure(MixedLayers::none())?;
        if none.ranking.passes() && none.ranking.has_margin(self.precision()) {
            return Ok(none);
        }
        let all = measure(MixedLayers::higher(0..self.layers))?;
        if all.ranking.passes() {
            let enough = self.enough(&all);
            if enough(&none) {
                return Ok(none);
            }
            let order = self.most_sensitive_first(|layer| MixedLayers::higher([layer]))?;
            let first = |n: usize| MixedLayers::higher(order[..n].iter().copied());
            return fewest(all, 1..=self.layers, &enough, |n| measure(first(n)));
        }
        if !self.has_intermediate {
            return Ok(all);
        }
        let with_fp32 = |layers: &[usize]| all.mixed.clone().with_fp32(layers.iter().copied());
        let all_fp32 = measure(with_fp32(&Vec::from_iter(0..self.layers)))?;
        if !all_fp32.ranking.passes() {
            return Ok(all_fp32);
        }
        let enough = self.enough(&all_fp32);
        let order = self.most_sensitive_first(|layer| with_fp32(&[layer]))?;
        let found = fewest(all_fp32, 1..=self.layers, &enough, |n| measure(with_fp32(&order[..n])))?;
        // Then some of the others may not need blocks; the least sensitive layers are the last here as well.
        let (fp32_layers, rest) = order.split_at(found.mixed.fp32.len());
        let first =
            |n: usize| MixedLayers::higher(rest[..n].iter().copied()).with_fp32(fp32_layers.iter().copied());
        fewest(found, 0..=rest.len(), &enough, |n| measure(first(n)))
    }

    fn precision(&self) -> Precision {
        self.writer.options.precision
    }

    /// When a ranking is good enough: with a margin, if the candidate with `most` layers in a higher precision has it.
    fn enough(&self, most: &Candidate) -> impl Fn(&Candidate) -> bool + use<> {
        let (precision, margin) = (self.precision(), most.ranking.has_margin(self.precision()));
        move |candidate| candidate.ranking.passes() && (!margin || candidate.ranking.has_margin(precision))
    }

    /// The layers, first the one that brings the scores nearest to those of fp32 when it alone is changed as `one` says.
    fn most_sensitive_first(&self, one: impl Fn(usize) -> MixedLayers) -> Result<Vec<usize>, ExportError> {
        let (judged, fp32) = self.judged(SENSITIVITY_TEXTS)?;
        let mut errors = Vec::with_capacity(self.layers);
        for layer in 0..self.layers {
            errors.push((distance(&fp32, &self.scores(&judged, &one(layer))?), layer));
        }
        errors.sort_by(|a, b| a.0.total_cmp(&b.0));
        Ok(errors.into_iter().map(|(_, layer)| layer).collect())
    }

    /// At most `most` queries, and documents besides the relevant ones, and the scores of fp32.
    fn judged(&self, most: usize) -> Result<(JudgedData, Scores), ExportError> {
        let has_dev = beir::splits(self.data).iter().any(|split| split == "dev");
        let split = if has_dev { "dev" } else { "train" };
        let data = RankingData { dir: self.data.to_owned(), split: split.into(), queries: 0 };
        let judged = JudgedData::open(&data)?.sample(most, most);
        let fp32 = judged.scores(self.fp32, &self.writer.options.session)?;
        Ok((judged, fp32))
    }

    /// The scores of a bundle with these layers in a higher precision.
    fn scores(&self, judged: &JudgedData, mixed: &MixedLayers) -> Result<Scores, ExportError> {
        self.writer.write(self.dir, mixed, &mut |_| {})?;
        judged.scores(self.dir, &self.writer.options.session)
    }
}

/// The candidate of the smallest number in `numbers` that is good enough, found by bisection: if a number is enough, larger ones
/// practically always are. `all` is the candidate of the largest number, and is good enough.
fn fewest<T>(
    all: T,
    numbers: RangeInclusive<usize>,
    enough: impl Fn(&T) -> bool,
    mut candidate: impl FnMut(usize) -> Result<T, ExportError>,
) -> Result<T, ExportError> {
    let (mut least, mut most) = numbers.into_inner();
    let mut best = all;
    while least < most {
        let middle = usize::midpoint(least, most);
        let found = candidate(middle)?;
        match enough(&found) {
            true => (most, best) = (middle, found),
            false => least = middle + 1,
        }
    }
    Ok(best)
}

/// Squared distance of the scores, without the part that all scores of a query share, which changes no ranking.
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

    /// One layer too many costs every robot time and memory; one too few breaks the promised ranking.
    #[test]
    fn the_smallest_number_is_found() {
        for (least, most) in [(0, 0), (1, 1), (0, 1), (0, 6), (1, 24)] {
            for edge in least..=most {
                let found = fewest(most, least..=most, |n| *n >= edge, Ok).unwrap();
                assert_eq!(found, edge, "of {least} to {most}");
            }
        }
    }

    /// If a shift of all scores of a query counted, layers that change no ranking would get a higher precision.
    #[test]
    fn a_common_shift_is_no_distance() {
        let before = vec![vec![1.0, 2.0, 3.0], vec![0.0, 0.0, 5.0]];
        let shifted = vec![vec![2.0, 3.0, 4.0], vec![-1.0, -1.0, 4.0]];
        assert_eq!(distance(&before, &shifted), 0.0);
        let moved = vec![vec![1.0, 2.0, 6.0], vec![0.0, 0.0, 5.0]];
        assert!((distance(&before, &moved) - 6.0).abs() < 1e-9);
    }
}
