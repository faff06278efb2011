//! Linear maps `y = x W^T + b`, in f32 or with 8-bit weights; several maps of one input are written as one.

use crate::error::ExportError;
use crate::graph::{Data, Graph, Scope, Value};
use crate::onnx::{AttributeProto, DataType};
use crate::quantise;
use crate::source::{Matrix, Source, transpose};
use models::manifest::Precision;

/// Maps whose activation gets a scale for each token instead of one for all.
///
/// The input of `down_proj` is a product of two activations, and the first token of a text (where decoders park the
/// attention that is not needed) makes it huge: 3065 in layer 11 of SmolLM2-135M, where other tokens stay below 2. With
/// one scale for all, every other token becomes 0: on the 48 + 48 texts this was measured on, top-1 agreement 35%, rank
/// correlation 0.69. With a scale for each token, 77% and 0.96, as with `down_proj` in f32 (85% and 0.97), at a quarter
/// of its size and 3% more time than the fused form. The other maps read normed activations; a scale for each token
/// there would take 30% more time for a rank correlation of 0.98.
const PER_TOKEN: &[&str] = &["down_proj"];

/// One map, called by its checkpoint name: `scope` is the block it belongs to.
pub fn linear(
    g: &mut Graph,
    scope: &Scope,
    source: &mut Source,
    name: &str,
    bias: bool,
    x: &Value,
) -> Result<Value, ExportError> {
    packed(g, scope, source, name, &[name], bias, x)
}

/// The maps `parts` of one input as one map `name`, `[.., inputs]` to `[.., sum of outputs]`: one multiplication (and, in
/// 8 bits, one quantisation of x) where the checkpoint has several.
pub fn packed(
    g: &mut Graph,
    scope: &Scope,
    source: &mut Source,
    name: &str,
    parts: &[&str],
    bias: bool,
    x: &Value,
) -> Result<Value, ExportError> {
    let keys = |leaf: &str| -> Vec<String> { parts.iter().map(|part| scope.child(part).key(leaf)).collect() };
    let weight = source.stacked(&keys("weight"))?;
    let scope = scope.child(name);
    let y = match source.precision {
        Precision::Fp32 => float(g, &scope, &weight, x)?,
        Precision::Int8 => {
            let quantised = int8_weight(g, &scope, source, name, &weight)?;
            match PER_TOKEN.contains(&name) {
                false => per_tensor(g, &scope, &quantised, x)?,
                true => per_token(g, &scope, &quantised, x)?,
            }
        }
    };
    if !bias {
        return Ok(y);
    }
    let mut values = Vec::with_capacity(weight.rows);
    for key in keys("bias") {
        values.extend(source.vector(&key)?);
    }
    let bias = g.initializer(&scope.key("bias"), &[weight.rows], Data::F32(&values))?;
    g.op(&scope, "Add", &[&y, &bias])
}

/// ```text
/// x [.., K] ── MatMul ── [.., N]
/// W^T [K, N] ──┘
/// ```
fn float(g: &mut Graph, scope: &Scope, weight: &Matrix, x: &Value) -> Result<Value, ExportError> {
    let turned = weight.transposed();
    let w = g.initializer(&scope.key("weight"), &[weight.columns, weight.rows], Data::F32(&turned))?;
    g.op(scope, "MatMul", &[x, &w])
}

/// Zero point of the weights. Unsigned, because x86 processors without VNNI add pairs of products of unsigned activations
/// and signed weights in 16 bits, which saturates: the graph would mean something else there than where it was written
/// (smallest cosine of a tiny model 0.45). Unsigned weights are widened first and exact everywhere.
const ZERO: u8 = 128;

/// 8-bit weight of one map.
struct Int8Weight {
    /// uint8 `[K, N]`, the whole numbers plus 128.
    values: Value,
    /// uint8, 128.
    zero: Value,
    /// f32 `[N]`.
    scales: Value,
    /// Sum of each column of `values`, `[N]`.
    sums: Vec<f32>,
    /// Key of the weight without its ending.
    key: String,
}

fn int8_weight(
    g: &mut Graph,
    scope: &Scope,
    source: &mut Source,
    name: &str,
    weight: &Matrix,
) -> Result<Int8Weight, ExportError> {
    let quantised = quantise::per_row(weight);
    source.errors.add(name, &scope.key("weight"), quantised.relative_error);
    let turned = transpose(&quantised.values, weight.rows, weight.columns);
    let turned: Vec<u8> = turned.into_iter().map(|q| q.cast_unsigned().wrapping_add(ZERO)).collect();
    let values =
        g.initializer(&scope.key("weight_uint8"), &[weight.columns, weight.rows], Data::U8(&turned))?;
    let zero = g.initializer(&scope.key("weight_zero"), &[], Data::U8(&[ZERO]))?;
    let scales = g.initializer(&scope.key("weight_scale"), &[weight.rows], Data::F32(&quantised.scales))?;
    let rows = quantised.values.chunks_exact(weight.columns.max(1));
    // Below 2^24 for any width we accept, so exact in f32 as well.
    let sums = rows.map(|row| row.iter().map(|&q| i32::from(q)).sum::<i32>() as f32).collect();
    Ok(Int8Weight { values, zero, scales, sums, key: scope.key("weight_sum") })
}

/// One scale and zero point for the whole activation, found when the graph runs; ONNX Runtime fuses these nodes into
/// one. The weight's zero point is 0 and therefore left out.
/// ```text
/// x ── DynamicQuantizeLinear ─┬─ x8, zero point ── MatMulInteger ── Cast ── Mul ── [.., N]
///                             │                 W8 ──┘                      │
///                             └─ scale ── Mul(weight_scale) ────────────────┘
/// ```
fn per_tensor(g: &mut Graph, scope: &Scope, weight: &Int8Weight, x: &Value) -> Result<Value, ExportError> {
    let endings = ["", ":scale", ":zero_point"];
    let [x8, x_scale, x_zero] = g.ops(scope, "DynamicQuantizeLinear", &[x], [], endings)?;
    let sums = g.op(scope, "MatMulInteger", &[&x8, &weight.values, &x_zero, &weight.zero])?;
    let sums = g.op_with(scope, "Cast", &[&sums], [AttributeProto::int("to", DataType::Float as i64)])?;
    let scale = g.op(&scope.child("scale"), "Mul", &[&x_scale, &weight.scales])?;
    g.op(scope, "Mul", &[&sums, &scale])
}

/// One scale and zero point for each token. `zero` is a whole number, so that an activation of 0 is met exactly: in a
/// token with one huge number all others are nearly 0, and a shared rounding error of theirs would add up.
/// ```text
/// low = min(x, 0), high = max(x, 0) over K           [.., 1]
/// step = (high - low) / 255, zero = round(low / step)
/// x8 = quantise(x / step - zero)                     [.., K], 0 to 255
/// y = (x8 W8 + zero * (column sums of W8)) * step * weight_scale
/// ```
fn per_token(g: &mut Graph, scope: &Scope, weight: &Int8Weight, x: &Value) -> Result<Value, ExportError> {
    let sums = g.initializer(&weight.key, &[weight.sums.len()], Data::F32(&weight.sums))?;
    let (nought, one) = (g.number(0.0)?, g.number(1.0)?);
    let (steps, least) = (g.number(1.0 / 255.0)?, g.number(1e-30)?);
    let part = |name: &str| scope.child("activation").child(name);
    let last = || [AttributeProto::ints("axes", &[-1]), AttributeProto::int("keepdims", 1)];
    let low = g.op_with(&part("low"), "ReduceMin", &[x], last())?;
    let low = g.op(&part("low"), "Min", &[&low, &nought])?;
    let high = g.op_with(&part("high"), "ReduceMax", &[x], last())?;
    let high = g.op(&part("high"), "Max", &[&high, &nought])?;
    let range = g.op(&part("step"), "Sub", &[&high, &low])?;
    // A token of zeros has no range to divide by.
    let range = g.op(&part("step"), "Max", &[&range, &least])?;
    let step = g.op(&part("step"), "Mul", &[&range, &steps])?;
    let zero = g.op(&part("zero"), "Div", &[&low, &step])?;
    let zero = g.op(&part("zero"), "Round", &[&zero])?;
    let x = g.op(&part("quantise"), "Div", &[x, &step])?;
    let x = g.op(&part("quantise"), "Sub", &[&x, &zero])?;
    let x8 = g.op(&part("quantise"), "QuantizeLinear", &[&x, &one])?;
    // The activation's own zero point is taken care of below.
    let none = g.initializer(&scope.key("activation_zero"), &[], Data::U8(&[0]))?;
    let product = g.op(scope, "MatMulInteger", &[&x8, &weight.values, &none, &weight.zero])?;
    let product =
        g.op_with(scope, "Cast", &[&product], [AttributeProto::int("to", DataType::Float as i64)])?;
    let shift = g.op(&part("zero"), "Mul", &[&zero, &sums])?;
    let product = g.op(&part("zero"), "Add", &[&product, &shift])?;
    let product = g.op(&part("step").child("apply"), "Mul", &[&product, &step])?;
    g.op(scope, "Mul", &[&product, &weight.scales])
}
