//! Twin of `models/src/torch/rotary.rs`: rotary position embedding (<https://arxiv.org/abs/2104.09864>), half rotation:
//! `x * cos + rotate_half(x) * sin` with `rotate_half([a, b]) = [-b, a]`.

use crate::emit::context::EmitContext;
use crate::error::ExportError;
use crate::onnx::graph::GraphBuilder;
use crate::onnx::proto::AttributeProto;
use crate::onnx::scope::Scope;
use crate::onnx::value::Value;
use models::config::DecoderConfig;

/// Cosines and sines of `max_tokens` positions, `[max_tokens, head_dim / 2]` each.
pub fn tables(
    g: &mut GraphBuilder,
    scope: &Scope,
    ctx: &EmitContext,
    config: &DecoderConfig,
    max_tokens: usize,
) -> Result<[Value; 2], ExportError> {
    let frequencies = config.inverse_frequencies();
    // Angles in f32, as transformers and the torch twin compute them; cosine and sine then rounded once.
    let table = |of: fn(f64) -> f64| -> Vec<f32> {
        let angles = (0..max_tokens).flat_map(|t| frequencies.iter().map(move |f| t as f32 * f));
        angles.map(|angle| of(f64::from(angle)) as f32).collect()
    };
    let shape = [max_tokens, frequencies.len()];
    Ok([
        g.initializer(&scope.key("cos_cached"), &shape, ctx.activation(&table(f64::cos)))?,
        g.initializer(&scope.key("sin_cached"), &shape, ctx.activation(&table(f64::sin)))?,
    ])
}

/// Tables of one forward pass, shared by all layers.
pub struct Rotary {
    /// `[seq, head_dim]`: both halves the same.
    cos: Value,
    /// `[seq, head_dim]`: the first half negative, so that the rotation needs no negation of its own.
    sin: Value,
    half: i64,
}

impl Rotary {
    /// Cuts the tables to the pass's positions, `past` up to `total`.
    /// ```text
    /// cos_cached [max_tokens, head_dim / 2] ── Slice(past..total) ─┬─ Concat ── cos [seq, head_dim]
    ///                                                              └────┘
    /// sin_cached ── Slice(past..total) ─┬─ Neg ── Concat ── sin [seq, head_dim]
    ///                                   └───────────┘
    /// ```
    pub fn new(
        g: &mut GraphBuilder,
        scope: &Scope,
        config: &DecoderConfig,
        [cos, sin]: &[Value; 2],
        [past, total]: [&Value; 2],
    ) -> Result<Self, ExportError> {
        let rows = g.integers(&[0])?;
        let mut cut =
            |name: &str, table: &Value| g.op(&scope.child(name), "Slice", &[table, past, total, &rows]);
        let (cos, sin) = (cut("cos", cos)?, cut("sin", sin)?);
        let last = || [AttributeProto::int("axis", -1)];
        let negative = g.op(&scope.child("sin"), "Neg", &[&sin])?;
        let cos = g.op_with(&scope.child("cos"), "Concat", &[&cos, &cos], last())?;
        let sin = g.op_with(&scope.child("sin"), "Concat", &[&negative, &sin], last())?;
        Ok(Self { cos, sin, half: (config.head_dim / 2) as i64 })
    }

    /// Rotates `[.., seq, head_dim]` by position.
    /// ```text
    /// x ─┬─ Mul(cos) ────────────────────────────────── Add
    ///    └─ Split ─┬─ first ──╲╱── second ─┐             │
    ///              └─ second ─╱╲── first ── Concat ─ Mul(sin)
    /// ```
    pub fn rotate(&self, g: &mut GraphBuilder, scope: &Scope, x: &Value) -> Result<Value, ExportError> {
        let scope = &scope.child("rotary");
        let halves = g.integers(&[self.half, self.half])?;
        let last = || [AttributeProto::int("axis", -1)];
        let [first, second] = g.ops(scope, "Split", &[x, &halves], last(), [":first", ":second"])?;
        let swapped = g.op_with(scope, "Concat", &[&second, &first], last())?;
        let straight = g.op(&scope.child("cos"), "Mul", &[x, &self.cos])?;
        let across = g.op(&scope.child("sin"), "Mul", &[&swapped, &self.sin])?;
        g.op(scope, "Add", &[&straight, &across])
    }
}
