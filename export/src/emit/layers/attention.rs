//! Twin of `models/src/torch/attention.rs`: causal self-attention with grouped queries
//! (<https://arxiv.org/abs/2305.13245>).

use crate::emit::context::EmitContext;
use crate::emit::layers::linear::{linear, packed};
use crate::emit::layers::norm::rms_norm;
use crate::emit::layers::past::PastKeyValues;
use crate::emit::layers::rotary::{Rotary, tables};
use crate::error::ExportError;
use crate::onnx::graph::GraphBuilder;
use crate::onnx::proto::{AttributeProto, DataType};
use crate::onnx::scope::Scope;
use crate::onnx::value::Value;
use models::config::DecoderConfig;

/// Inputs that the attention of all layers shares.
pub struct SharedInputs {
    kind: Kind,
    past: Option<PastKeyValues>,
}

enum Kind {
    /// Inputs of `GroupQueryAttention`: int32 `[1]` last position, int32 `[]` number of positions, and both tables.
    Fused([Value; 4]),
    Portable {
        rotary: Rotary,
        mask: Value,
    },
}

impl SharedInputs {
    /// `ids` is `[batch, seq]`; `max_tokens` is the largest number of positions.
    pub fn new(
        g: &mut GraphBuilder,
        scope: &Scope,
        ctx: &EmitContext,
        config: &DecoderConfig,
        max_tokens: usize,
        ids: &Value,
        past: Option<PastKeyValues>,
    ) -> Result<Self, ExportError> {
        let tables = tables(g, &scope.child("rotary_emb"), ctx, config, max_tokens)?;
        let second = [AttributeProto::int("start", 1), AttributeProto::int("end", 2)];
        let part = scope.child("seq");
        let seq = g.op_with(&part, "Shape", &[ids], second)?;
        let before = match &past {
            Some(past) => past.length.clone(),
            None => g.integers(&[0])?,
        };
        let total = g.op(&part, "Add", &[&seq, &before])?;
        let kind = if ctx.fused() {
            let one = g.integers(&[1])?;
            let to_int32 = || [AttributeProto::int("to", DataType::Int32 as i64)];
            let last = g.op(&part, "Sub", &[&total, &one])?;
            let last = g.op_with(&part.child("last"), "Cast", &[&last], to_int32())?;
            let total = g.op(&part, "Squeeze", &[&total])?;
            let total = g.op_with(&part.child("total"), "Cast", &[&total], to_int32())?;
            let [cos, sin] = tables;
            Kind::Fused([last, total, cos, sin])
        } else {
            let rotary = Rotary::new(g, &scope.child("rotary_emb"), config, &tables, [&before, &total])?;
            Kind::Portable { rotary, mask: causal_mask(g, &scope.child("causal_mask"), &before, &total)? }
        };
        Ok(Self { kind, past })
    }
}

/// What is added to the attention scores, `[seq, total]`: 0 where the key is at or before the query, else the smallest f32.
///
/// It does not mask padding. Texts are padded on the right, so the causal mask already hides the padding from every real
/// token; what padding itself computes is not pooled.
/// ```text
/// total ── Range(0..total) ───────────────────── Less ── Where(smallest, 0)
/// before ── Range(before..total) ── Unsqueeze(1) ──┘
/// ```
fn causal_mask(
    g: &mut GraphBuilder,
    scope: &Scope,
    before: &Value,
    total: &Value,
) -> Result<Value, ExportError> {
    let (zero, one, column) = (g.integer(0)?, g.integer(1)?, g.integers(&[1])?);
    let (hidden, seen) = (g.number(f32::MIN)?, g.number(0.0)?);
    let (keys, queries) = (&scope.child("keys"), &scope.child("queries"));
    let total = g.op(keys, "Squeeze", &[total])?;
    let before = g.op(queries, "Squeeze", &[before])?;
    let key = g.op(keys, "Range", &[&zero, &total, &one])?;
    let query = g.op(queries, "Range", &[&before, &total, &one])?;
    let query = g.op(queries, "Unsqueeze", &[&query, &column])?;
    let future = g.op(scope, "Less", &[&query, &key])?;
    g.op(scope, "Where", &[&future, &hidden, &seen])
}

/// `[batch, seq, hidden_size]` in and out, for layer `index`; and the layer's keys and values, past and new together,
/// `[batch, key/value heads, total, head_dim]`, portable with an axis of 1 behind the heads.
pub fn attention(
    g: &mut GraphBuilder,
    scope: &Scope,
    ctx: &mut EmitContext,
    config: &DecoderConfig,
    shared: &SharedInputs,
    index: usize,
    x: &Value,
) -> Result<(Value, [Value; 2]), ExportError> {
    let past = shared.past.as_ref().map(|past| &past.layers[index]);
    let (y, present) = match &shared.kind {
        Kind::Fused(inputs) => fused(g, scope, ctx, config, inputs, past, x)?,
        Kind::Portable { rotary, mask } => portable(g, scope, ctx, config, (rotary, mask), past, x)?,
    };
    Ok((linear(g, scope, ctx, "o_proj", config.has_o_bias(), &y)?, present))
}

/// One kernel applies rotary embedding, appends to the past and attends.
/// ```text
/// x ─ qkv_proj ── GroupQueryAttention(past, tables)
/// with q_norm and k_norm: qkv_proj ─ Split ─┬─ q ─ Reshape ─ norm ─ Reshape ─ GroupQueryAttention
///                                           ├─ k ─ Reshape ─ norm ─ Reshape ─┤
///                                           └─ v ────────────────────────────┘
/// ```
fn fused(
    g: &mut GraphBuilder,
    scope: &Scope,
    ctx: &mut EmitContext,
    config: &DecoderConfig,
    [last, total, cos, sin]: &[Value; 4],
    past: Option<&[Value; 2]>,
    x: &Value,
) -> Result<(Value, [Value; 2]), ExportError> {
    let qkv = packed(g, scope, ctx, "qkv_proj", &QKV, config.has_qkv_bias(), x)?;
    let none = Value::absent();
    let [q, k, v] = match config.has_qk_norm() {
        false => [qkv, none.clone(), none.clone()],
        true => {
            let [q, k, v] = split(g, scope, config, &qkv)?;
            let mut normed = |g: &mut GraphBuilder, name: &str, heads: usize, x: &Value| {
                let (part, head_dim) = (scope.child(name), config.head_dim as i64);
                let apart = g.integers(&[0, 0, heads as i64, head_dim])?;
                let x = g.op(&part.child("heads"), "Reshape", &[x, &apart])?;
                let x = rms_norm(g, &scope.child(&format!("{name}_norm")), ctx, config.rms_norm_eps, &x)?;
                let joined = g.integers(&[0, 0, heads as i64 * head_dim])?;
                g.op(&part, "Reshape", &[&x, &joined])
            };
            let q = normed(g, "q", config.num_attention_heads, &q)?;
            [q, normed(g, "k", config.num_key_value_heads, &k)?, v]
        }
    };
    let [past_key, past_value] = past.cloned().unwrap_or([none.clone(), none]);
    let inputs = [&q, &k, &v, &past_key, &past_value, last, total, cos, sin];
    let attributes = [
        AttributeProto::int("num_heads", config.num_attention_heads as i64),
        AttributeProto::int("kv_num_heads", config.num_key_value_heads as i64),
        AttributeProto::int("do_rotary", 1),
    ];
    let endings = ["", ":present_key", ":present_value"];
    let [y, key, value] = g.ops(scope, "GroupQueryAttention", &inputs, attributes, endings)?;
    // The kernel attends to these outputs: without them it reads only the past (ONNX Runtime 1.32).
    g.ignore(&[&key, &value]);
    Ok((y, [key, value]))
}

const QKV: [&str; 3] = ["q_proj", "k_proj", "v_proj"];

fn split(
    g: &mut GraphBuilder,
    scope: &Scope,
    config: &DecoderConfig,
    qkv: &Value,
) -> Result<[Value; 3], ExportError> {
    let head_dim = config.head_dim as i64;
    let (q, kv) =
        (config.num_attention_heads as i64 * head_dim, config.num_key_value_heads as i64 * head_dim);
    let sizes = g.integers(&[q, kv, kv])?;
    g.ops(scope, "Split", &[qkv, &sizes], [AttributeProto::int("axis", -1)], [":q", ":k", ":v"])
}

/// Standard operators. `n` = key/value heads, `g` = query heads for each of them; the products broadcast one key/value
/// head over its group, so nothing is copied.
/// ```text
/// x ─ qkv_proj ─ Split ─┬─ q ─ Reshape ─ (q_norm) ─ Transpose ─ rotary ─ Mul(1/sqrt(head_dim)) ─┐  [batch, n, g, seq, head_dim]
///                       ├─ k ─ Reshape ─ (k_norm) ─ Transpose ─ rotary ─ past ─ Transpose ─── MatMul  [batch, n, 1, head_dim, total]
///                       │                                                                       │
///                       │                                               Add(mask) ─ Softmax ────┘  [batch, n, g, seq, total]
///                       │                                                              │
///                       └─ v ─ Reshape ─ Transpose ─ past ──────────────────────────── MatMul ─ Transpose ─ Reshape
/// ```
fn portable(
    g: &mut GraphBuilder,
    scope: &Scope,
    ctx: &mut EmitContext,
    config: &DecoderConfig,
    (rotary, mask): (&Rotary, &Value),
    past: Option<&[Value; 2]>,
    x: &Value,
) -> Result<(Value, [Value; 2]), ExportError> {
    let (groups, head_dim) = (config.num_key_value_heads, config.head_dim as i64);
    let per_group = (config.num_attention_heads / groups) as i64;
    let groups = groups as i64;
    let qkv = packed(g, scope, ctx, "qkv_proj", &QKV, config.has_qkv_bias(), x)?;
    let [q, k, v] = split(g, scope, config, &qkv)?;

    let mut heads = |g: &mut GraphBuilder, name: &str, norm: bool, per_group: i64, x: &Value| {
        let part = scope.child(name);
        let shape = g.integers(&[0, 0, groups, per_group, head_dim])?;
        let mut x = g.op(&part, "Reshape", &[x, &shape])?;
        if norm {
            x = rms_norm(g, &scope.child(&format!("{name}_norm")), ctx, config.rms_norm_eps, &x)?;
        }
        g.op_with(&part, "Transpose", &[&x], [AttributeProto::ints("perm", &[0, 2, 3, 1, 4])])
    };
    let q = heads(g, "q", config.has_qk_norm(), per_group, &q)?;
    let k = heads(g, "k", config.has_qk_norm(), 1, &k)?;
    let v = heads(g, "v", false, 1, &v)?;

    let q = rotary.rotate(g, &scope.child("q"), &q)?;
    let k = rotary.rotate(g, &scope.child("k"), &k)?;
    let behind = |g: &mut GraphBuilder, name: &str, past: Option<&Value>, x: Value| match past {
        None => Ok(x),
        Some(past) => {
            let (part, group) = (scope.child(name).child("past"), g.integers(&[2])?);
            let past = g.op(&part, "Unsqueeze", &[past, &group])?;
            g.op_with(&part, "Concat", &[&past, &x], [AttributeProto::int("axis", 3)])
        }
    };
    let key = behind(g, "k", past.map(|past| &past[0]), k)?;
    let v = behind(g, "v", past.map(|past| &past[1]), v)?;
    let scale = g.number((head_dim as f32).sqrt().recip())?;
    let part = &scope.child("scores");
    let q = g.op(part, "Mul", &[&q, &scale])?;
    let k = g.op_with(part, "Transpose", &[&key], [AttributeProto::ints("perm", &[0, 1, 2, 4, 3])])?;
    let scores = g.op(part, "MatMul", &[&q, &k])?;
    let scores = g.op(part, "Add", &[&scores, mask])?;
    let shares = g.op_with(scope, "Softmax", &[&scores], [AttributeProto::int("axis", -1)])?;
    let context = &scope.child("context");
    let y = g.op(context, "MatMul", &[&shares, &v])?;
    let y = g.op_with(context, "Transpose", &[&y], [AttributeProto::ints("perm", &[0, 3, 1, 2, 4])])?;
    let shape = g.integers(&[0, 0, groups * per_group * head_dim])?;
    Ok((g.op(context, "Reshape", &[&y, &shape])?, [key, v]))
}
