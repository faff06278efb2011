//! From hidden states to one vector per text: the mean over chosen positions, and the last token.

use crate::error::ExportError;
use crate::onnx::graph::GraphBuilder;
use crate::onnx::proto::{AttributeProto, DataType};
use crate::onnx::scope::Scope;
use crate::onnx::value::Value;

/// Mean over the positions of a mask.
pub struct MeanPooling {
    /// `[batch, 1, seq]`, 1 where pooled.
    mask: Value,
    /// `[batch, 1, 1]`, how many of them.
    count: Value,
}

impl MeanPooling {
    /// Both masks are int64 `[batch, seq]`. A position is pooled where both are 1, or the attention mask alone where there
    /// is no other: padding is never pooled, whatever the caller says. A text without any such position gives NaN, which cannot pass for an
    /// embedding.
    /// ```text
    /// pooling_mask ── Mul ── Cast ── Unsqueeze(1) ─┬─ mask [batch, 1, seq]
    /// attention_mask ──┘                           └─ ReduceSum ── count [batch, 1, 1]
    /// ```
    pub fn new(
        g: &mut GraphBuilder,
        scope: &Scope,
        pooling_mask: Option<&Value>,
        attention_mask: &Value,
    ) -> Result<Self, ExportError> {
        let (row, last) = (g.integers(&[1])?, g.integers(&[-1])?);
        let mask = match pooling_mask {
            Some(pooling_mask) => g.op(scope, "Mul", &[pooling_mask, attention_mask])?,
            None => attention_mask.clone(),
        };
        let mask = g.op_with(scope, "Cast", &[&mask], [AttributeProto::int("to", DataType::Float as i64)])?;
        let mask = g.op(scope, "Unsqueeze", &[&mask, &row])?;
        let count = g.op_with(scope, "ReduceSum", &[&mask, &last], [AttributeProto::int("keepdims", 1)])?;
        Ok(Self { mask, count })
    }

    /// Sum over the pooled positions of `[batch, seq, hidden_size]`: `[batch, 1, hidden_size]`. A product with the
    /// mask costs one pass over x, and adds in blocks, which loses less than one running sum.
    pub fn sum(&self, g: &mut GraphBuilder, scope: &Scope, x: &Value) -> Result<Value, ExportError> {
        g.op(scope, "MatMul", &[&self.mask, x])
    }

    /// Sums, side by side and divided by the count: `[batch, dimensions]`. The division comes last and once, so that a
    /// mean of equal states is exactly that state.
    /// ```text
    /// sums ── Concat(-1) ── Div(count) ── Squeeze(1)
    /// ```
    pub fn mean(&self, g: &mut GraphBuilder, scope: &Scope, sums: &[&Value]) -> Result<Value, ExportError> {
        let sums = g.op_with(scope, "Concat", sums, [AttributeProto::int("axis", -1)])?;
        let means = g.op(scope, "Div", &[&sums, &self.count])?;
        let row = g.integers(&[1])?;
        g.op(scope, "Squeeze", &[&means, &row])
    }
}

/// State at the last attended position: `[batch, seq, hidden_size]` and a mask `[batch, seq]` to `[batch, hidden_size]`.
/// ```text
/// attention_mask ── ReduceSum(1) ── Sub(1) ── GatherND(batch_dims 1)
/// x ──────────────────────────────────────────┘
/// ```
pub fn last_token(
    g: &mut GraphBuilder,
    scope: &Scope,
    attention_mask: &Value,
    x: &Value,
) -> Result<Value, ExportError> {
    let (row, one) = (g.integers(&[1])?, g.integer(1)?);
    let length =
        g.op_with(scope, "ReduceSum", &[attention_mask, &row], [AttributeProto::int("keepdims", 1)])?;
    let last = g.op(scope, "Sub", &[&length, &one])?;
    g.op_with(scope, "GatherND", &[x, &last], [AttributeProto::int("batch_dims", 1)])
}
