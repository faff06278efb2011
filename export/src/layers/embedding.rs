//! Token embedding: one row of a table per token, in floats or as 8-bit blocks with a scale each.

use crate::error::ExportError;
use crate::graph::{Data, Graph, Scope, Value};
use crate::onnx::{AttributeProto, DataType};
use crate::quantise;
use crate::source::{Matrix, Source};
use models::manifest::Precision;

/// `[batch, seq]` token ids to `[batch, seq, hidden_size]`.
/// ```text
/// floats   weight [vocab, hidden] ── Gather(ids)
/// few bits weight_int8 [vocab, hidden] ──────── Gather(ids) ── Cast ── Reshape([.., blocks, block]) ── Mul ── Reshape
///          weight_scale [vocab, blocks, 1] ──── Gather(ids) ── Cast ────────────────────────────────────┘
/// ```
/// Whose maps have 4 bits keeps 8 here: what is lost in the table every layer inherits. On home-robot, layers in 8 bits, a table in
/// 4 changed one first choice in fifteen.
pub fn embedding(
    g: &mut Graph,
    scope: &Scope,
    source: &mut Source,
    ids: &Value,
) -> Result<Value, ExportError> {
    let table = source.matrix(&scope.key("weight"))?;
    let shape = [table.rows, table.columns];
    match source.precision {
        Precision::Fp32 | Precision::Fp16 => {
            let weight = g.initializer(&scope.key("weight"), &shape, source.activation(&table.values))?;
            g.op(scope, "Gather", &[&weight, ids])
        }
        Precision::Int8 | Precision::Int4 => {
            let block = if shape[1].is_multiple_of(quantise::BLOCK) { quantise::BLOCK } else { shape[1] };
            let blocks = shape[1] / block;
            let table = Matrix { rows: shape[0] * blocks, columns: block, values: table.values };
            let quantised = quantise::per_row(&table);
            source.errors.add("embed_tokens", &scope.key("weight"), quantised.relative_error);
            let rows = g.initializer(&scope.key("weight_int8"), &shape, Data::I8(&quantised.values))?;
            let scales = [shape[0], blocks, 1];
            let scales = g.initializer(&scope.key("weight_scale"), &scales, Data::F16(&quantised.scales))?;
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
