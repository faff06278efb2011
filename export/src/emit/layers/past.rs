//! Keys and values of the prompt before the text, which the text's tokens attend to.

use crate::emit::context::EmitContext;
use crate::error::ExportError;
use crate::onnx::graph::GraphBuilder;
use crate::onnx::proto::AttributeProto;
use crate::onnx::scope::Scope;
use crate::onnx::tensor::TensorData;
use crate::onnx::value::Value;
use crate::source::prefix::PrefixStates;

/// Keys and values of the tokens before the text.
pub struct PastKeyValues {
    /// Number of these tokens, int64 `[1]`.
    pub length: Value,
    /// Keys and values of each layer, `[1, key/value heads, length, head_dim]`; portable: `[batch, ..]`.
    pub layers: Vec<[Value; 2]>,
}

impl PastKeyValues {
    /// Those of one of the prompts: `which` is its number, int64 `[1]`; `ids` are `[batch, seq]`.
    /// ```text
    /// prefix.states [prompts, 2 layers, heads, longest, head_dim] ── Gather(which) ── Squeeze ── Slice(0..length) ── Split
    /// prefix.lengths [prompts] ── Gather(which) ── length ──────────────────────────────────────┘
    /// portable: every part ── Expand([batch, 1, 1, 1])
    /// ```
    pub fn new(
        g: &mut GraphBuilder,
        scope: &Scope,
        ctx: &EmitContext,
        states: &PrefixStates,
        which: &Value,
        ids: &Value,
    ) -> Result<Self, ExportError> {
        let lengths: Vec<i64> = states.ids.iter().map(|ids| ids.len() as i64).collect();
        let lengths = g.initializer(&scope.key("lengths"), &[lengths.len()], TensorData::I64(&lengths))?;
        let length = g.op(&scope.child("length"), "Gather", &[&lengths, which])?;
        let table = g.initializer(&scope.key("states"), &states.shape, ctx.activation(&states.values))?;
        let (first, tokens) = (g.integers(&[0])?, g.integers(&[2])?);
        let chosen = g.op(scope, "Gather", &[&table, which])?;
        let chosen = g.op(scope, "Squeeze", &[&chosen, &first])?;
        let chosen = g.op(scope, "Slice", &[&chosen, &first, &length, &tokens])?;
        let endings: Vec<String> = (0..states.shape[1] / 2)
            .flat_map(|layer| [format!(":key.{layer}"), format!(":value.{layer}")])
            .collect();
        let endings: Vec<&str> = endings.iter().map(String::as_str).collect();
        let axis = vec![AttributeProto::int("axis", 0)];
        let mut parts = g.node(scope, "Split", &[&chosen], axis, &endings)?;
        if !ctx.fused() {
            let ones = g.integers(&[1, 1, 1])?;
            let batch = [AttributeProto::int("start", 0), AttributeProto::int("end", 1)];
            let batch = g.op_with(&scope.child("batch"), "Shape", &[ids], batch)?;
            let shape = g.op_with(
                &scope.child("batch"),
                "Concat",
                &[&batch, &ones],
                [AttributeProto::int("axis", 0)],
            )?;
            for (part, ending) in parts.iter_mut().zip(&endings) {
                *part = g.op(&scope.child(ending.trim_start_matches(':')), "Expand", &[part, &shape])?;
            }
        }
        let layers = parts.chunks_exact(2).map(|pair| [pair[0].clone(), pair[1].clone()]).collect();
        Ok(Self { length, layers })
    }
}
