//! Token embedding: one row of a table per token, in floats or in 8-bit blocks with a scale each.

use crate::emit::context::EmitContext;
use crate::error::ExportError;
use crate::matrix::Matrix;
use crate::onnx::graph::GraphBuilder;
use crate::onnx::proto::{AttributeProto, DataType};
use crate::onnx::scope::Scope;
use crate::onnx::tensor::TensorData;
use crate::onnx::value::Value;
use crate::quantise::blocks::BLOCK;
use crate::quantise::rows::quantise_rows;
use models::manifest::Precision;

/// `[batch, seq]` token ids to `[batch, seq, hidden_size]`.
/// ```text
/// floats   weight [vocab, hidden] ── Gather(ids)
/// int8     weight_int8 [vocab, hidden] ──────── Gather(ids) ── Cast ── Reshape([.., blocks, block]) ── Mul ── Reshape
///          weight_scale [vocab, blocks, 1] ──── Gather(ids) ── Cast ────────────────────────────────────┘
/// ```
/// With int4 linear layers the table stays in 8 bits, because every layer inherits its errors: on home-robot, with layers in
/// 8 bits, a table in 4 bits changed the top document of one query in fifteen.
pub fn embedding(
    g: &mut GraphBuilder,
    scope: &Scope,
    ctx: &mut EmitContext,
    ids: &Value,
) -> Result<Value, ExportError> {
    let table = ctx.llm.base.matrix(&scope.key("weight"))?;
    let shape = [table.rows, table.columns];
    match ctx.precision {
        Precision::Fp32 | Precision::Fp16 => {
            let weight = g.initializer(&scope.key("weight"), &shape, ctx.activation(&table.values))?;
            g.op(scope, "Gather", &[&weight, ids])
        }
        Precision::Int8 | Precision::Int4 => {
            let block = if shape[1].is_multiple_of(BLOCK) { BLOCK } else { shape[1] };
            let blocks = shape[1] / block;
            let table = Matrix { rows: shape[0] * blocks, columns: block, values: table.values };
            let quantised = quantise_rows(&table);
            ctx.errors.add("embed_tokens", &scope.key("weight"), quantised.relative_error);
            let rows = g.initializer(&scope.key("weight_int8"), &shape, TensorData::I8(&quantised.values))?;
            let scales = [shape[0], blocks, 1];
            let scales =
                g.initializer(&scope.key("weight_scale"), &scales, TensorData::F16(&quantised.scales))?;
            let to_float = || [AttributeProto::int("to", DataType::Float as i64)];
            let rows = g.op(scope, "Gather", &[&rows, ids])?;
            let rows = g.op_with(scope, "Cast", &[&rows], to_float())?;
            let apart = g.integers(&[0, 0, blocks as i64, block as i64])?;
            let rows = g.op(&scope.child("blocks"), "Reshape", &[&rows, &apart])?;
            let part = scope.child("scale");
            let scales = g.op(&part, "Gather", &[&scales, ids])?;
            let scales = g.op_with(&part, "Cast", &[&scales], to_float())?;
            let rows = g.op(scope, "Mul", &[&rows, &scales])?;
            let joined = g.integers(&[0, 0, shape[1] as i64])?;
            g.op(scope, "Reshape", &[&rows, &joined])
        }
    }
}
