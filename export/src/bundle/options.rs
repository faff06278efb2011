//! What to export, and how.

use crate::quantise::mixed::MixedLayers;
use crate::verify::ranking::RankingData;
use models::manifest::{GraphKind, Precision};
use runtime::session::SessionOptions;
use std::path::PathBuf;

/// What to export, where to, and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// Student directory.
    pub student: PathBuf,
    /// Bundle directory; must not exist, or be empty.
    pub out: PathBuf,
    /// Arithmetic of the encoder graph.
    pub precision: Precision,
    /// Operators of the encoder graph.
    pub graph: GraphKind,
    /// Whether a bundle that exceeds the parity limits is written all the same.
    pub allow_degraded: bool,
    /// Data set whose texts decide how weights are rounded and, in int8, the SmoothQuant scales.
    pub calibration: Option<PathBuf>,
    /// Layers with a higher precision.
    pub mixed_precision: MixedPrecision,
    /// Judged queries on which the ranking must agree with that of the fp32 bundle.
    pub ranking: Option<RankingData>,
    /// How the parity check runs the graphs.
    pub session: SessionOptions,
}

impl Options {
    /// Whether the graph is written in the rotated basis. Formats with one scale for a whole row always gain by it, blocks only if
    /// weights are rounded by GPTQ: on home-robot int4 then loses 0.006 instead of 0.019 of nDCG@10, without calibration 0.080
    /// instead of 0.067.
    pub(super) fn rotated(&self) -> bool {
        match self.precision {
            Precision::Fp32 | Precision::Fp16 => false,
            Precision::Int8 => true,
            Precision::Int4 => self.calibration.is_some(),
        }
    }
}

/// Which layers get a higher precision than the others ([`Precision::more`]).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum MixedPrecision {
    /// With a calibration, as few as keep the ranking; otherwise none.
    #[default]
    Search,
    /// These, counted from 0.
    Layers(MixedLayers),
}
