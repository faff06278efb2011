//! Twin of `models/src/torch/attention.rs`: causal self-attention with grouped queries
//! (<https://arxiv.org/abs/2305.13245>).

use crate::error::ExportError;
use crate::graph::{Graph, Scope, Value};
use crate::layers::linear::{linear, packed};
use crate::layers::norm::rms_norm;
use crate::layers::rotary::Rotary;
use crate::onnx::AttributeProto;
use crate::source::Source;
use models::config::DecoderConfig;

/// What is added to the scores, `[seq, seq]`: 0 where the key stands at or before the query, else the smallest f32.
///
/// There is no padding in it. Texts are padded on the right, so a real token stands before all padding and causality
/// already hides the padding from it; what padding itself computes is pooled by nobody.
/// ```text
/// seq ── Range ─┬─ Unsqueeze(1) ── Less ── Where(smallest, 0)
///               └──────────────────┘
/// ```
pub fn causal_mask(g: &mut Graph, scope: &Scope, seq: &Value) -> Result<Value, ExportError> {
    let (zero, one, column) = (g.integer(0)?, g.integer(1)?, g.integers(&[1])?);
    let (hidden, seen) = (g.number(f32::MIN)?, g.number(0.0)?);
    let length = g.op(scope, "Squeeze", &[seq])?;
    let keys = g.op(scope, "Range", &[&zero, &length, &one])?;
    let queries = g.op(scope, "Unsqueeze", &[&keys, &column])?;
    let future = g.op(scope, "Less", &[&queries, &keys])?;
    g.op(scope, "Where", &[&future, &hidden, &seen])
}

/// `[batch, seq, hidden_size]` in and out. `n` = key/value heads, `g` = query heads for each of them; the products
/// broadcast one key/value head over its group, so nothing is copied for it.
/// ```text
/// x ─ qkv_proj ─ Split ─┬─ q ─ Reshape ─ (q_norm) ─ Transpose ─ rotary ─ Mul(1/sqrt(head_dim)) ─┐  [batch, n, g, seq, head_dim]
///                       ├─ k ─ Reshape ─ (k_norm) ─ Transpose ─ rotary ─ Transpose ────────── MatMul  [batch, n, 1, head_dim, seq]
///                       │                                                                       │
///                       │                                               Add(mask) ─ Softmax ────┘  [batch, n, g, seq, seq]
///                       │                                                              │
///                       └─ v ─ Reshape ─ Transpose ───────────────────────────────── MatMul ─ Transpose ─ Reshape ─ o_proj
/// ```
pub fn attention(
    g: &mut Graph,
    scope: &Scope,
    source: &mut Source,
    config: &DecoderConfig,
    rotary: &Rotary,
    mask: &Value,
    x: &Value,
) -> Result<Value, ExportError> {
    let (groups, head_dim) = (config.num_key_value_heads, config.head_dim as i64);
    let per_group = (config.num_attention_heads / groups) as i64;
    let groups = groups as i64;
    let qkv =
        packed(g, scope, source, "qkv_proj", &["q_proj", "k_proj", "v_proj"], config.has_qkv_bias(), x)?;
    let sizes = g.integers(&[groups * per_group * head_dim, groups * head_dim, groups * head_dim])?;
    let [q, k, v] =
        g.ops(scope, "Split", &[&qkv, &sizes], [AttributeProto::int("axis", -1)], [":q", ":k", ":v"])?;

    let mut heads = |g: &mut Graph, name: &str, norm: bool, per_group: i64, x: &Value| {
        let part = scope.child(name);
        let shape = g.integers(&[0, 0, groups, per_group, head_dim])?;
        let mut x = g.op(&part, "Reshape", &[x, &shape])?;
        if norm {
            x = rms_norm(g, &scope.child(&format!("{name}_norm")), source, config.rms_norm_eps, &x)?;
        }
        g.op_with(&part, "Transpose", &[&x], [AttributeProto::ints("perm", &[0, 2, 3, 1, 4])])
    };
    let q = heads(g, "q", config.has_qk_norm(), per_group, &q)?;
    let k = heads(g, "k", config.has_qk_norm(), 1, &k)?;
    let v = heads(g, "v", false, 1, &v)?;

    let q = rotary.rotate(g, &scope.child("q"), &q)?;
    let k = rotary.rotate(g, &scope.child("k"), &k)?;
    let scale = g.number((head_dim as f32).sqrt().recip())?;
    let part = &scope.child("scores");
    let q = g.op(part, "Mul", &[&q, &scale])?;
    let k = g.op_with(part, "Transpose", &[&k], [AttributeProto::ints("perm", &[0, 1, 2, 4, 3])])?;
    let scores = g.op(part, "MatMul", &[&q, &k])?;
    let scores = g.op(part, "Add", &[&scores, mask])?;
    let shares = g.op_with(scope, "Softmax", &[&scores], [AttributeProto::int("axis", -1)])?;
    let context = &scope.child("context");
    let y = g.op(context, "MatMul", &[&shares, &v])?;
    let y = g.op_with(context, "Transpose", &[&y], [AttributeProto::ints("perm", &[0, 3, 1, 2, 4])])?;
    let shape = g.integers(&[0, 0, groups * per_group * head_dim])?;
    let y = g.op(context, "Reshape", &[&y, &shape])?;
    linear(g, scope, source, "o_proj", config.has_o_bias(), &y)
}
