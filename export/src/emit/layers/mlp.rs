//! Twin of `models/src/torch/mlp.rs`: gated feed-forward block (SwiGLU, <https://arxiv.org/abs/2002.05202>).

use crate::emit::context::EmitContext;
use crate::emit::layers::linear::{linear, together};
use crate::error::ExportError;
use crate::onnx::graph::GraphBuilder;
use crate::onnx::scope::Scope;
use crate::onnx::value::Value;
use models::config::DecoderConfig;

/// `down(silu(gate(x)) * up(x))`, `[batch, seq, hidden_size]` in and out.
/// ```text
/// x ─┬─ gate_proj ─┬─ Sigmoid ─ Mul ─ Mul ─ down_proj
///    │             └─────────────┘     │
///    └─ up_proj ───────────────────────┘
/// ```
pub fn mlp(
    g: &mut GraphBuilder,
    scope: &Scope,
    ctx: &mut EmitContext,
    config: &DecoderConfig,
    x: &Value,
) -> Result<Value, ExportError> {
    let bias = config.has_mlp_bias();
    // Packed, both would have to be split again, which costs more than the second multiplication saves.
    let [gate, up] = together(g, scope, ctx, ["gate_proj", "up_proj"], bias, x)?;
    let act = scope.child("act");
    let sigmoid = g.op(&act, "Sigmoid", &[&gate])?;
    let silu = g.op(&act, "Mul", &[&gate, &sigmoid])?;
    let gated = g.op(scope, "Mul", &[&silu, &up])?;
    linear(g, scope, ctx, "down_proj", bias, &gated)
}
