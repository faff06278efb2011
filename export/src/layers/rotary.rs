//! Twin of `models/src/torch/rotary.rs`: rotary position embedding (<https://arxiv.org/abs/2104.09864>), half rotation:
//! `x * cos + rotate_half(x) * sin` with `rotate_half([a, b]) = [-b, a]`.

use crate::error::ExportError;
use crate::graph::{Data, Graph, Scope, Value};
use crate::onnx::AttributeProto;
use models::config::DecoderConfig;

/// Tables of one forward pass, shared by all layers.
pub struct Rotary {
    /// `[seq, head_dim]`: both halves the same.
    cos: Value,
    /// `[seq, head_dim]`: the first half negative, so that the rotation needs no negation of its own.
    sin: Value,
    half: i64,
}

impl Rotary {
    /// Computes the tables for `max_tokens` positions and cuts them to the pass's length.
    /// ```text
    /// cos_cached [max_tokens, head_dim / 2] ── Slice(0..seq) ─┬─ Concat ── cos [seq, head_dim]
    ///                                                         └────┘
    /// sin_cached ── Slice(0..seq) ─┬─ Neg ── Concat ── sin [seq, head_dim]
    ///                              └───────────┘
    /// ```
    pub fn new(
        g: &mut Graph,
        scope: &Scope,
        config: &DecoderConfig,
        max_tokens: usize,
        seq: &Value,
    ) -> Result<Self, ExportError> {
        let frequencies = config.inverse_frequencies();
        // Angles in f32, as transformers and the torch twin compute them; cosine and sine then rounded once.
        let table = |of: fn(f64) -> f64| -> Vec<f32> {
            let angles = (0..max_tokens).flat_map(|t| frequencies.iter().map(move |f| t as f32 * f));
            angles.map(|angle| of(f64::from(angle)) as f32).collect()
        };
        let shape = [max_tokens, frequencies.len()];
        let first = g.integers(&[0])?;
        let mut cut = |name: &str, values: Vec<f32>| {
            let table = g.initializer(&scope.key(&format!("{name}_cached")), &shape, Data::F32(&values))?;
            g.op(&scope.child(name), "Slice", &[&table, &first, seq, &first])
        };
        let (cos, sin) = (cut("cos", table(f64::cos))?, cut("sin", table(f64::sin))?);
        let last = || [AttributeProto::int("axis", -1)];
        let negative = g.op(&scope.child("sin"), "Neg", &[&sin])?;
        let cos = g.op_with(&scope.child("cos"), "Concat", &[&cos, &cos], last())?;
        let sin = g.op_with(&scope.child("sin"), "Concat", &[&negative, &sin], last())?;
        Ok(Self { cos, sin, half: frequencies.len() as i64 })
    }

    /// Rotates `[.., seq, head_dim]` by position.
    /// ```text
    /// x ─┬─ Mul(cos) ────────────────────────────────── Add
    ///    └─ Split ─┬─ first ──╲╱── second ─┐             │
    ///              └─ second ─╱╲── first ── Concat ─ Mul(sin)
    /// ```
    pub fn rotate(&self, g: &mut Graph, scope: &Scope, x: &Value) -> Result<Value, ExportError> {
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
