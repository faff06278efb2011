//! Linear layers `y = x W^T + b` in every number format; several layers of one input are written as one, or share its 8-bit
//! form.

use crate::emit::context::{EmitContext, LinearFormat};
use crate::emit::layers::adapter;
use crate::emit::layers::int8::{LinearInput, int8};
use crate::error::ExportError;
use crate::matrix::Matrix;
use crate::onnx::graph::GraphBuilder;
use crate::onnx::proto::{AttributeProto, DataType};
use crate::onnx::scope::Scope;
use crate::onnx::tensor::TensorData;
use crate::onnx::value::{Dim, Value};
use crate::quantise::blocks::{BLOCK, Bits, quantise_blocks};
use half::f16;
use models::manifest::Precision;

/// One linear layer, called by its checkpoint name; `scope` is the block it belongs to.
pub fn linear(
    g: &mut GraphBuilder,
    scope: &Scope,
    ctx: &mut EmitContext,
    name: &str,
    bias: bool,
    x: &Value,
) -> Result<Value, ExportError> {
    packed(g, scope, ctx, name, &[name], bias, x)
}

/// The linear layers `parts` of one input as one layer `name`, `[.., inputs]` to `[.., sum of outputs]`: one multiplication
/// (and, in 8 bits, one quantisation of x) where the checkpoint has several.
pub fn packed(
    g: &mut GraphBuilder,
    scope: &Scope,
    ctx: &mut EmitContext,
    name: &str,
    parts: &[&str],
    bias: bool,
    x: &Value,
) -> Result<Value, ExportError> {
    let mut input = LinearInput::new(x);
    emit(g, scope, ctx, name, parts, bias, &mut input)
}

/// The linear layers `parts` of one input, each by itself: no output has to be split, and in 8 bits x is quantised once.
pub fn together<const N: usize>(
    g: &mut GraphBuilder,
    scope: &Scope,
    ctx: &mut EmitContext,
    parts: [&str; N],
    bias: bool,
    x: &Value,
) -> Result<[Value; N], ExportError> {
    let mut input = LinearInput::new(x);
    let mut outputs = Vec::with_capacity(N);
    for part in parts {
        outputs.push(emit(g, scope, ctx, part, &[part], bias, &mut input)?);
    }
    Ok(std::array::from_fn(|i| outputs[i].clone()))
}

fn emit(
    g: &mut GraphBuilder,
    scope: &Scope,
    ctx: &mut EmitContext,
    name: &str,
    parts: &[&str],
    bias: bool,
    input: &mut LinearInput,
) -> Result<Value, ExportError> {
    let keys = |leaf: &str| -> Vec<String> { parts.iter().map(|part| scope.child(part).key(leaf)).collect() };
    let weight = ctx.llm.base.stacked(&keys("weight"))?;
    let block = scope;
    let scope = scope.child(name);
    if input.key.is_none() {
        let key = scope.key("input");
        if ctx.observes(&key, weight.columns) {
            let copy = g.op(&scope.child("input"), "Identity", &[input.x])?;
            let shape = [Dim::Symbol("batch"), Dim::Symbol("seq"), Dim::Size(weight.columns)];
            g.output(&key, DataType::Float, &shape, copy)?;
        }
        input.key = Some(key);
    }
    let y = match ctx.format() {
        LinearFormat::Float => float(g, &scope, ctx, &weight, input.x)?,
        LinearFormat::Int8 => int8(g, &scope, ctx, name, &weight, input)?,
        LinearFormat::Int8Blocks => blocks(g, &scope, ctx, name, &weight, input, Bits::Eight)?,
        LinearFormat::Int4Blocks => blocks(g, &scope, ctx, name, &weight, input, Bits::Four)?,
    };
    let linears: Vec<String> = parts.iter().map(|part| block.key(part)).collect();
    let y = adapter::branch(g, &scope, ctx, &linears, input.x, y)?;
    if !bias {
        return Ok(y);
    }
    let mut values = Vec::with_capacity(weight.rows);
    for key in keys("bias") {
        values.extend(ctx.llm.base.vector(&key)?);
    }
    let bias = g.initializer(&scope.key("bias"), &[weight.rows], ctx.activation(&values))?;
    g.op(&scope, "Add", &[&y, &bias])
}

/// ```text
/// x [.., K] ──────────── MatMul ── [.., N]
/// W^T [K, N] ── (Cast) ────┘
/// ```
/// In a graph with quantised layers the weights are stored in half precision, if they are in its range, and converted to f32
/// when the graph is loaded: its rounding error is a twentieth of theirs or less.
fn float(
    g: &mut GraphBuilder,
    scope: &Scope,
    ctx: &EmitContext,
    weight: &Matrix,
    x: &Value,
) -> Result<Value, ExportError> {
    let transposed = weight.transposed();
    let shape = [weight.columns, weight.rows];
    let key = scope.key("weight");
    let w = match ctx.precision {
        Precision::Int8 | Precision::Int4 if transposed.iter().all(|w| w.abs() <= f16::MAX.to_f32()) => {
            let w = g.initializer(&key, &shape, TensorData::F16(&transposed))?;
            let to = AttributeProto::int("to", DataType::Float as i64);
            g.op_with(&scope.child("weight"), "Cast", &[&w], [to])?
        }
        _ => g.initializer(&key, &shape, ctx.activation(&transposed))?,
    };
    g.op(scope, "MatMul", &[x, &w])
}

/// `accuracy_level` of `MatMulNBits`: 4 = it quantises activations to 8 bits, in the same blocks as the weights.
const ACCURACY_LEVEL: i64 = 4;

/// ```text
/// x [.., K] ────────────────────────────────── MatMulNBits ── [.., N]
/// W [N, blocks, bytes of a block] ─────────────┤
/// weight_scale [N * blocks] ───────────────────┘
/// ```
fn blocks(
    g: &mut GraphBuilder,
    scope: &Scope,
    ctx: &mut EmitContext,
    name: &str,
    weight: &Matrix,
    input: &LinearInput,
    bits: Bits,
) -> Result<Value, ExportError> {
    let quantised = match ctx.calibrated.zip(input.key.as_ref()) {
        Some((calibrated, input)) => calibrated.blocks(&scope.key("weight"), input, weight, bits),
        None => quantise_blocks(weight, bits).into(),
    };
    ctx.errors.add(name, &scope.key("weight"), quantised.relative_error);
    let shape = [weight.rows, quantised.blocks, bits.bytes(BLOCK)];
    let packed = TensorData::U8(&quantised.packed);
    let values = g.initializer(&scope.key(&format!("weight_{}", bits.name())), &shape, packed)?;
    let shape = [weight.rows * quantised.blocks];
    let scales = g.initializer(&scope.key("weight_scale"), &shape, TensorData::F32(&quantised.scales))?;
    let attributes = [
        AttributeProto::int("K", weight.columns as i64),
        AttributeProto::int("N", weight.rows as i64),
        AttributeProto::int("bits", bits.number() as i64),
        AttributeProto::int("block_size", BLOCK as i64),
        AttributeProto::int("accuracy_level", ACCURACY_LEVEL),
    ];
    g.op_with(scope, "MatMulNBits", &[input.x, &values, &scales], attributes)
}
