//! Twin of `models/src/torch/mlp.rs`: gated feed-forward block (SwiGLU, <https://arxiv.org/abs/2002.05202>).

use crate::error::ExportError;
use crate::graph::{Graph, Scope, Value};
use crate::layers::linear::{linear, together};
use crate::source::Source;
use models::config::DecoderConfig;

/// `down(silu(gate(x)) * up(x))`, `[batch, seq, hidden_size]` in and out.
/// ```text
/// x ─┬─ gate_proj ─┬─ Sigmoid ─ Mul ─ Mul ─ down_proj
///    │             └─────────────┘     │
///    └─ up_proj ───────────────────────┘
/// ```
pub fn mlp(
    g: &mut Graph,
    scope: &Scope,
    source: &mut Source,
    config: &DecoderConfig,
    x: &Value,
) -> Result<Value, ExportError> {
    let bias = config.has_mlp_bias();
    // Packed, both would have to be split again, which costs more than the second multiplication saves.
    let [gate, up] = together(g, scope, source, ["gate_proj", "up_proj"], bias, x)?;
    let act = scope.child("act");
    let sigmoid = g.op(&act, "Sigmoid", &[&gate])?;
    let silu = g.op(&act, "Mul", &[&gate, &sigmoid])?;
    let gated = g.op(scope, "Mul", &[&silu, &up])?;
    linear(g, scope, source, "down_proj", bias, &gated)
}
