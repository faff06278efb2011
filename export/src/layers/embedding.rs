//! Token embedding: one row of a table per token, in f32 or as 8-bit rows with a scale each.

use crate::error::ExportError;
use crate::graph::{Data, Graph, Scope, Value};
use crate::onnx::{AttributeProto, DataType};
use crate::quantise;
use crate::source::Source;
use models::manifest::Precision;

/// `[batch, seq]` token ids to `[batch, seq, hidden_size]`.
/// ```text
/// fp32   weight [vocab, hidden] ── Gather(ids)
/// int8   weight_int8 [vocab, hidden] ── Gather(ids) ── Cast ── Mul
///        weight_scale [vocab, 1] ────── Gather(ids) ────────────┘
/// ```
pub fn embedding(
    g: &mut Graph,
    scope: &Scope,
    source: &mut Source,
    ids: &Value,
) -> Result<Value, ExportError> {
    let table = source.matrix(&scope.key("weight"))?;
    match source.precision {
        Precision::Fp32 => {
            let weight =
                g.initializer(&scope.key("weight"), &[table.rows, table.columns], Data::F32(&table.values))?;
            g.op(scope, "Gather", &[&weight, ids])
        }
        Precision::Int8 => {
            let quantised = quantise::per_row(&table);
            source.errors.add("embed_tokens", &scope.key("weight"), quantised.relative_error);
            let shape = [table.rows, table.columns];
            drop(table);
            let rows = g.initializer(&scope.key("weight_int8"), &shape, Data::I8(&quantised.values))?;
            let scales =
                g.initializer(&scope.key("weight_scale"), &[shape[0], 1], Data::F32(&quantised.scales))?;
            let rows = g.op(scope, "Gather", &[&rows, ids])?;
            let scales = g.op(&scope.child("scale"), "Gather", &[&scales, ids])?;
            let rows =
                g.op_with(scope, "Cast", &[&rows], [AttributeProto::int("to", DataType::Float as i64)])?;
            g.op(scope, "Mul", &[&rows, &scales])
        }
    }
}
