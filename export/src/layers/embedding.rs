//! Token embedding: one row of a table per token, in floats, as 8-bit rows with a scale each, or in 4-bit blocks.

use crate::error::ExportError;
use crate::graph::{Data, Graph, Scope, Value};
use crate::onnx::{AttributeProto, DataType};
use crate::quantise;
use crate::source::Source;
use models::manifest::Precision;

/// `[batch, seq]` token ids to `[batch, seq, hidden_size]`.
/// ```text
/// floats weight [vocab, hidden] ── Gather(ids)
/// int8   weight_int8 [vocab, hidden] ── Gather(ids) ── Cast ── Mul
///        weight_scale [vocab, 1] ────── Gather(ids) ────────────┘
/// int4   weight_int4 [vocab, hidden / 2 bytes], weight_scale [vocab, blocks] ── GatherBlockQuantized(ids)
/// ```
pub fn embedding(
    g: &mut Graph,
    scope: &Scope,
    source: &mut Source,
    ids: &Value,
) -> Result<Value, ExportError> {
    let table = source.matrix(&scope.key("weight"))?;
    let shape = [table.rows, table.columns];
    // The operator knows no padded last block.
    let whole_blocks = table.columns.is_multiple_of(quantise::BLOCK);
    match source.precision {
        Precision::Fp32 | Precision::Fp16 => {
            let weight = g.initializer(&scope.key("weight"), &shape, source.activation(&table.values))?;
            g.op(scope, "Gather", &[&weight, ids])
        }
        Precision::Int4 if whole_blocks => {
            let quantised = quantise::in_blocks(&table);
            source.errors.add("embed_tokens", &scope.key("weight"), quantised.relative_error);
            let packed = [shape[0], shape[1] / 2];
            let values = g.initializer(&scope.key("weight_int4"), &packed, Data::U8(&quantised.packed))?;
            let blocks = [shape[0], quantised.blocks];
            let scales = g.initializer(&scope.key("weight_scale"), &blocks, Data::F32(&quantised.scales))?;
            let attributes = [
                AttributeProto::int("bits", 4),
                AttributeProto::int("block_size", quantise::BLOCK as i64),
                AttributeProto::int("gather_axis", 0),
                AttributeProto::int("quantize_axis", 1),
            ];
            g.op_with(scope, "GatherBlockQuantized", &[&values, ids, &scales], attributes)
        }
        Precision::Int8 | Precision::Int4 => {
            let quantised = quantise::per_row(&table, quantise::EIGHT_BITS);
            source.errors.add("embed_tokens", &scope.key("weight"), quantised.relative_error);
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
