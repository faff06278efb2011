//! What the tests share: a tiny seeded model, student and data set written by code, the programs as users start them,
//! and how near two numbers have to be.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

#[path = "support/data.rs"]
pub mod data;
#[path = "support/markdown.rs"]
pub mod markdown;
#[path = "support/model.rs"]
pub mod model;
#[path = "support/onnx.rs"]
pub mod onnx;
#[path = "support/program.rs"]
pub mod program;
#[path = "support/server.rs"]
pub mod server;

use std::path::PathBuf;

/// Root of the repository.
pub fn repository() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// How near two vectors have to be; each rung of the parity ladder names one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Tolerance {
    /// The same bits: the same computation was done.
    Exact,
    /// 1e-5 of the largest magnitude: the same sums in another order.
    Close,
    /// 1e-4 of the largest magnitude: the same sums in another order, several layers deep, terms of both signs.
    Near,
    /// A cosine of 0.999: eight bits.
    Cosine,
}

/// Fails unless `found` is `expected` within `tolerance`; NaN never is.
#[track_caller]
pub fn assert_close(what: &str, found: &[f32], expected: &[f32], tolerance: Tolerance) {
    assert_eq!(found.len(), expected.len(), "{what}: number of values");
    let most = expected.iter().fold(0f32, |most, e| most.max(e.abs()));
    let apart = found.iter().zip(expected).map(|(f, e)| f64::from((f - e).abs())).fold(0.0, worse);
    let relative = apart / f64::from(most.max(f32::MIN_POSITIVE));
    match tolerance {
        Tolerance::Exact => assert_eq!(found, expected, "{what}"),
        Tolerance::Close => assert!(relative <= 1e-5, "{what}: {relative:.1e} apart, expected at most 1e-5"),
        Tolerance::Near => assert!(relative <= 1e-4, "{what}: {relative:.1e} apart, expected at most 1e-4"),
        Tolerance::Cosine => {
            let cosine = cosine(found, expected);
            assert!(cosine >= 0.999, "{what}: cosine {cosine:.5}, expected at least 0.999");
        }
    }
}

/// The larger of two numbers, NaN counting as infinitely large.
fn worse(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::INFINITY } else { a.max(b) }
}

/// Cosine of the angle between two vectors.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passes(found: &[f32], expected: &[f32], tolerance: Tolerance) -> bool {
        std::panic::catch_unwind(|| assert_close("test", found, expected, tolerance)).is_ok()
    }

    /// A comparison that lets NaN or a wrong number through would pass every test that uses it.
    #[test]
    fn a_tolerance_admits_what_it_says_and_no_more() {
        assert!(passes(&[1.0, -4.0], &[1.0, -4.0], Tolerance::Exact));
        assert!(!passes(&[1.0, -4.0], &[1.0, -4.000001], Tolerance::Exact));
        assert!(passes(&[1.00003, -4.0], &[1.0, -4.0], Tolerance::Close));
        assert!(!passes(&[1.0001, -4.0], &[1.0, -4.0], Tolerance::Close));
        assert!(passes(&[1.0003, -4.0], &[1.0, -4.0], Tolerance::Near));
        assert!(!passes(&[1.001, -4.0], &[1.0, -4.0], Tolerance::Near));
        assert!(!passes(&[1.0, 1.0], &[1.0, -1.0], Tolerance::Cosine));
        for tolerance in [Tolerance::Exact, Tolerance::Close, Tolerance::Near, Tolerance::Cosine] {
            assert!(!passes(&[f32::NAN, 1.0], &[1.0, 1.0], tolerance), "{tolerance:?}");
            assert!(!passes(&[1.0], &[1.0, 1.0], tolerance), "{tolerance:?}");
        }
    }
}
