//! Twin of the layer of `models/src/torch/decoder.rs`.

use crate::emit::context::EmitContext;
use crate::emit::layers::attention::{SharedInputs, attention};
use crate::emit::layers::mlp::mlp;
use crate::emit::layers::norm::ResidualStream;
use crate::error::ExportError;
use crate::onnx::graph::GraphBuilder;
use crate::onnx::scope::Scope;
use crate::onnx::value::Value;
use models::config::DecoderConfig;

/// Layer `index`; returns its keys and values (see [`attention`]).
/// ```text
/// stream ─┬─ input_layernorm ─ self_attn ─ Add ─┬─ post_attention_layernorm ─ mlp ─ Add
///         └─────────────────────────────────┘   └────────────────────────────────────┘
/// ```
pub fn decoder_layer(
    g: &mut GraphBuilder,
    model: &Scope,
    ctx: &mut EmitContext,
    config: &DecoderConfig,
    shared: &SharedInputs,
    index: usize,
    stream: &mut ResidualStream,
) -> Result<[Value; 2], ExportError> {
    let eps = config.rms_norm_eps;
    ctx.begin_layer(index);
    let scope = model.child(&format!("layers.{index}"));
    let normed = stream.normed(g, &scope.child("input_layernorm"), ctx, eps)?;
    let (attended, present) = attention(g, &scope.child("self_attn"), ctx, config, shared, index, &normed)?;
    stream.add(g, scope.child("attention_residual"), attended)?;
    let normed = stream.normed(g, &scope.child("post_attention_layernorm"), ctx, eps)?;
    let fed = mlp(g, &scope.child("mlp"), ctx, config, &normed)?;
    stream.add(g, scope.child("mlp_residual"), fed)?;
    Ok(present)
}
