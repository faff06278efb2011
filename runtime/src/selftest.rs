//! Golden pairs: scores that the exporting machine measured with this bundle's own graphs, measured again here.
//!
//! A wrong template, another tokenizer, swapped weights or a miscompiled library answer plausibly and wrongly; here they
//! show, before anybody relies on them.

use crate::encoder::{Embedding, Encoder, EncoderError};
use crate::predictor::Predictor;
use crate::reranker::{Reranker, RerankerError};
use models::manifest::{Golden, Precision};
use std::collections::HashMap;

/// Pairs that are checked when a bundle is opened (`runtime doctor` checks all): each costs up to two encoder runs.
pub const QUICK: usize = 3;

/// How far a score may be from the exporting machine's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tolerance {
    /// In units of the score (log-odds).
    pub absolute: f32,
    /// As a share of the expected score.
    pub relative: f32,
}

impl Tolerance {
    /// fp32: the order of summation differs between processors, the sixth digit with it. fp16 has three digits. In few bits
    /// activations are rounded at run time; a wrong template or tokenizer is off by whole units.
    pub fn of(precision: Precision) -> Self {
        match precision {
            Precision::Fp32 => Self { absolute: 1e-3, relative: 1e-3 },
            Precision::Fp16 => Self { absolute: 0.05, relative: 0.01 },
            Precision::Int8 | Precision::Int4 => Self { absolute: 0.3, relative: 0.05 },
        }
    }

    /// Whether `found` is near enough; NaN never is.
    pub fn admits(self, found: f32, expected: f32) -> bool {
        (found - expected).abs() <= self.absolute + self.relative * expected.abs()
    }
}

/// One golden pair, measured here.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// The pair and the score it should have.
    pub golden: Golden,
    /// Its score by what answers queries: the folded predictor, or the reranker.
    pub folded: f32,
    /// Its score by `predictor.onnx`, where that was asked for.
    pub unfolded: Option<f32>,
    /// Whether all of them are near enough.
    pub passed: bool,
}

/// Measures the first `limit` golden pairs of the encoder's bundle, with the unfolded predictor too where one is given.
pub fn measure(
    encoder: &Encoder,
    predictor: Option<&Predictor>,
    limit: usize,
) -> Result<Vec<Measured>, EncoderError> {
    let manifest = &encoder.bundle().manifest;
    let tolerance = Tolerance::of(manifest.encoder.precision);
    // Golden pairs share queries and documents.
    let mut queries: HashMap<&str, Embedding> = HashMap::new();
    let mut documents: HashMap<&str, Embedding> = HashMap::new();
    let mut measured = Vec::new();
    for golden in manifest.golden.iter().take(limit) {
        if !queries.contains_key(golden.query.as_str()) {
            queries.insert(&golden.query, encoder.query(&golden.query)?);
        }
        if !documents.contains_key(golden.document.as_str()) {
            let embedding = encoder.documents(&[&golden.document])?;
            documents.extend(embedding.into_iter().map(|embedding| (golden.document.as_str(), embedding)));
        }
        let (query, document) = (&queries[golden.query.as_str()], &documents[golden.document.as_str()]);
        let folded = encoder.fold_query(query).score(&encoder.bundle().folded.document(&document.latent));
        let unfolded = predictor.map(|predictor| predictor.score(query, document)).transpose()?;
        let passed = tolerance.admits(folded, golden.score)
            && unfolded.is_none_or(|score| tolerance.admits(score, golden.score));
        measured.push(Measured { golden: golden.clone(), folded, unfolded, passed });
    }
    Ok(measured)
}

/// Measures the first `limit` golden pairs of a reranker's bundle; one whose model brought no numbers of its own has none.
pub fn measure_reranker(reranker: &Reranker, limit: usize) -> Result<Vec<Measured>, RerankerError> {
    let manifest = reranker.manifest();
    let tolerance = Tolerance::of(manifest.precision);
    let mut measured = Vec::new();
    for golden in manifest.golden.iter().take(limit) {
        let folded = reranker.scores(&golden.query, &[&golden.document])?[0];
        let passed = tolerance.admits(folded, golden.score);
        measured.push(Measured { golden: golden.clone(), folded, unfolded: None, passed });
    }
    Ok(measured)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tolerance that lets NaN or a score of the wrong sign through checks nothing.
    #[test]
    fn the_tolerance_refuses_what_is_wrong() {
        let fp32 = Tolerance::of(Precision::Fp32);
        assert!(fp32.admits(-4.003, -4.0) && fp32.admits(0.0005, 0.0));
        assert!(!fp32.admits(-4.01, -4.0) && !fp32.admits(f32::NAN, 0.0));
        let int8 = Tolerance::of(Precision::Int8);
        assert!(int8.admits(4.4, 4.0) && !int8.admits(3.0, 4.0) && !int8.admits(f32::INFINITY, 4.0));
    }
}
