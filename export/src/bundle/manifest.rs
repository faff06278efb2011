//! The manifest, as far as it is known before the files are written.

use crate::source::student::Student;
use models::manifest::{self, Batching, EncoderInfo, GraphKind, Manifest, Precision, PredictorInfo};
use std::collections::BTreeMap;

/// A manifest without digests and measurements.
pub(super) fn manifest(student: &Student, precision: Precision, graph: GraphKind) -> Manifest {
    let (llm, config) = (&student.llm, &student.config);
    Manifest {
        format_version: manifest::FORMAT_VERSION,
        created_by: concat!("export ", env!("CARGO_PKG_VERSION")).into(),
        encoder: EncoderInfo {
            precision,
            graph,
            kept_layers: Vec::new(),
            float_layers: Vec::new(),
            prefixes: student.prefixes.clone(),
            batching: match graph {
                // GroupQueryAttention continues a past for one row only (ONNX Runtime 1.32).
                GraphKind::Fused => Batching::OneAtATime,
                GraphKind::Portable => Batching::Free,
            },
            query_adapter_rank: config.query_adapter.as_ref().map(|adapter| adapter.rank),
            layers: student.layers(),
            dimensions: config.dimensions(),
            hidden_size: llm.hidden_size,
            vocab_size: llm.vocab_size,
            max_tokens: student.max_tokens,
        },
        predictor: PredictorInfo {
            form: config.form,
            residual: config.residual,
            inner_dimensions: config.inner_dimensions,
            latents: config.latents.clone(),
        },
        calibration: config.calibration,
        digests: BTreeMap::new(),
        document_digest: String::new(),
        parity: serde_json::Value::Null,
        golden: Vec::new(),
        provenance: config.provenance.clone(),
    }
}
