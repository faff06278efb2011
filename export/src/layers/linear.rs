//! Linear maps `y = x W^T + b` in every precision; several maps of one input are written as one, or share what is made of
//! their input.

use crate::adapter;
use crate::error::ExportError;
use crate::graph::{Data, Dim, Graph, Scope, Value};
use crate::onnx::{AttributeProto, DataType};
use crate::quantise::{self, Bits};
use crate::source::{Maps, Matrix, Source, transpose};
use half::f16;
use models::manifest::Precision;

/// How an activation gets its 8 bits.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scale {
    /// One scale, known beforehand: [`REACH`].
    Known,
    /// One for all tokens, found when the graph runs.
    Whole,
    /// One for each token, found when the graph runs.
    Token,
}

impl Scale {
    /// For the input of the map `name`.
    ///
    /// The input of `down_proj` is a product of two activations, and some tokens' are far larger than others'. Root mean
    /// square error of a latent in units of its deviation, on 60 texts through 24 layers of a SmolLM2-135M
    /// (`scripts/fake_quantise.py`): one scale there 0.21, for each token 0.057; at `o_proj` 0.013 and 0.008, before `qkv_proj`,
    /// `gate_proj` and `up_proj` 0.025, 0.022 and, known beforehand, 0.027.
    /// Portable graphs are for batches: no text is rounded by its neighbours' numbers there.
    fn of(name: &str, source: &Source) -> Self {
        match name {
            "qkv_proj" | "gate_proj" | "up_proj" if source.turned().is_some() => Self::Known,
            "down_proj" if !source.has_even_neurons() => Self::Token,
            _ if source.fused() => Self::Whole,
            _ => Self::Token,
        }
    }
}

/// What 8 bits reach to where a norm stands before a map and coordinates are turned: a token's numbers then have a root mean
/// square of 1 and no outliers. The largest is 2.9 in the median token of a SmolLM2-135M, 3.8 in 99 of 100, 5.1 at most; reaches
/// of 3.5, 4, 4.5 and 5 cost 0.028, 0.027, 0.030 and 0.033 (as above).
const REACH: f32 = 4.0;

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
    let mut input = Input::new(x);
    map(g, scope, source, name, parts, bias, &mut input)
}

/// The maps `parts` of one input, each for itself: no output has to be split, and in 8 bits x is quantised once.
pub fn together<const N: usize>(
    g: &mut Graph,
    scope: &Scope,
    source: &mut Source,
    parts: [&str; N],
    bias: bool,
    x: &Value,
) -> Result<[Value; N], ExportError> {
    let mut input = Input::new(x);
    let mut outputs = Vec::with_capacity(N);
    for part in parts {
        outputs.push(map(g, scope, source, part, &[part], bias, &mut input)?);
    }
    Ok(std::array::from_fn(|i| outputs[i].clone()))
}

/// What maps read, and its 8-bit form once one of them has made it.
struct Input<'a> {
    x: &'a Value,
    /// Name of the first map that reads it.
    key: Option<String>,
    whole: Option<[Value; 3]>,
    steps: Option<Steps>,
}

/// An activation in uint8, `[.., K]`: x = size * step * (x8 - middle).
#[derive(Clone)]
struct Steps {
    x8: Value,
    /// The same for all.
    step: f32,
    middle: Value,
    /// Of each token, `[.., 1]`; 1 where there is none.
    size: Option<Value>,
}

/// Steps from zero to the largest number.
const STEPS: f32 = 127.0;

impl<'a> Input<'a> {
    fn new(x: &'a Value) -> Self {
        Self { x, key: None, whole: None, steps: None }
    }

    /// uint8, scale and zero point, one of each for the whole activation, found when the graph runs.
    fn whole(&mut self, g: &mut Graph, scope: &Scope) -> Result<&[Value; 3], ExportError> {
        let made = match self.whole.take() {
            Some(made) => made,
            None => g.ops(scope, "DynamicQuantizeLinear", &[self.x], [], ["", ":scale", ":zero_point"])?,
        };
        Ok(self.whole.insert(made))
    }

    /// uint8 around 128, by a known scale or one for each token:
    /// ```text
    /// known   x ── QuantizeLinear(4/127, 128) ── x8
    /// token   x ─┬─ Abs ─ ReduceMax ── size
    ///            └─ Div(size) ─ QuantizeLinear(1/127, 128) ── x8
    /// ```
    /// Of a token of zeros, 0 / 0 becomes some x8, and x is 0 again, its size.
    fn steps(&mut self, g: &mut Graph, scope: &Scope, known: bool) -> Result<Steps, ExportError> {
        if let Some(made) = &self.steps {
            return Ok(made.clone());
        }
        let part = &scope.child("activation");
        let middle = g.initializer(&scope.key("activation_zero"), &[], Data::U8(&[128]))?;
        let (reach, x, size) = if known {
            (REACH, self.x.clone(), None)
        } else {
            let last = [AttributeProto::ints("axes", &[-1]), AttributeProto::int("keepdims", 1)];
            let size = g.op(part, "Abs", &[self.x])?;
            let size = g.op_with(part, "ReduceMax", &[&size], last)?;
            (1.0, g.op(part, "Div", &[self.x, &size])?, Some(size))
        };
        let step = reach / STEPS;
        let scale = g.number(step)?;
        let x8 = g.op(part, "QuantizeLinear", &[&x, &scale, &middle])?;
        Ok(self.steps.insert(Steps { x8, step, middle, size }).clone())
    }
}

fn map(
    g: &mut Graph,
    scope: &Scope,
    source: &mut Source,
    name: &str,
    parts: &[&str],
    bias: bool,
    input: &mut Input,
) -> Result<Value, ExportError> {
    let keys = |leaf: &str| -> Vec<String> { parts.iter().map(|part| scope.child(part).key(leaf)).collect() };
    let weight = source.stacked(&keys("weight"))?;
    let block = scope;
    let scope = scope.child(name);
    if input.key.is_none() {
        let key = scope.key("input");
        if let Some(observed) = &mut source.observed {
            observed.push((key.clone(), weight.columns));
            let copy = g.op(&scope.child("input"), "Identity", &[input.x])?;
            let shape = [Dim::Symbol("batch"), Dim::Symbol("seq"), Dim::Size(weight.columns)];
            g.output(&key, DataType::Float, &shape, copy)?;
        }
        input.key = Some(key);
    }
    let y = match source.maps() {
        Maps::Floats => float(g, &scope, source, &weight, input.x)?,
        Maps::Bytes => int8(g, &scope, source, name, &weight, input)?,
        Maps::ByteBlocks => in_blocks(g, &scope, source, name, &weight, input, Bits::Eight)?,
        Maps::HalfBytes => in_blocks(g, &scope, source, name, &weight, input, Bits::Four)?,
    };
    let maps: Vec<String> = parts.iter().map(|part| block.key(part)).collect();
    let y = adapter::branch(g, &scope, source, &maps, input.x, y)?;
    if !bias {
        return Ok(y);
    }
    let mut values = Vec::with_capacity(weight.rows);
    for key in keys("bias") {
        values.extend(source.vector(&key)?);
    }
    let bias = g.initializer(&scope.key("bias"), &[weight.rows], source.activation(&values))?;
    g.op(&scope, "Add", &[&y, &bias])
}

/// ```text
/// x [.., K] ──────────── MatMul ── [.., N]
/// W^T [K, N] ── (Cast) ────┘
/// ```
/// Beside maps of few bits weights are stored in half precision where it reaches that far, whose rounding is a twentieth of
/// theirs or less, and made f32 when the graph is loaded.
fn float(
    g: &mut Graph,
    scope: &Scope,
    source: &Source,
    weight: &Matrix,
    x: &Value,
) -> Result<Value, ExportError> {
    let turned = weight.transposed();
    let shape = [weight.columns, weight.rows];
    let key = scope.key("weight");
    let w = match source.precision {
        Precision::Int8 | Precision::Int4 if turned.iter().all(|w| w.abs() <= f16::MAX.to_f32()) => {
            let w = g.initializer(&key, &shape, Data::F16(&turned))?;
            let to = AttributeProto::int("to", DataType::Float as i64);
            g.op_with(&scope.child("weight"), "Cast", &[&w], [to])?
        }
        _ => g.initializer(&key, &shape, source.activation(&turned))?,
    };
    g.op(scope, "MatMul", &[x, &w])
}

/// Weights are signed and symmetric, which is what the fast kernels of x86 and ARM take, and small enough in pairs for those
/// x86 processors that add two products in 16 bits ([`quantise::in_pairs`]). (Unsigned weights are exact there as well, at 1.3
/// times the time.)
fn int8(
    g: &mut Graph,
    scope: &Scope,
    source: &mut Source,
    name: &str,
    weight: &Matrix,
    input: &mut Input,
) -> Result<Value, ExportError> {
    let quantised = match source.calibration().zip(input.key.as_ref()) {
        Some((calibration, input)) => calibration.int8(&scope.key("weight"), input, weight),
        None => quantise::in_pairs(weight).into(),
    };
    source.errors.add(name, &scope.key("weight"), quantised.relative_error);
    let turned = transpose(&quantised.values, weight.rows, weight.columns);
    let values =
        g.initializer(&scope.key("weight_int8"), &[weight.columns, weight.rows], Data::I8(&turned))?;
    let scale = Scale::of(name, source);
    if scale == Scale::Whole {
        return in_whole(g, scope, input, &values, &quantised.scales);
    }
    let steps = input.steps(g, scope, scale == Scale::Known)?;
    in_steps(g, scope, source, &steps, &values, &quantised.scales)
}

/// ONNX Runtime fuses these nodes into one.
/// ```text
/// x ── DynamicQuantizeLinear ─┬─ x8, zero point ── MatMulInteger ── Cast ── Mul ── [.., N]
///                             │          W8 [K, N] ──┘                       │
///                             └─ scale ── Mul(weight_scale) ─────────────────┘
/// ```
fn in_whole(
    g: &mut Graph,
    scope: &Scope,
    input: &mut Input,
    weight: &Value,
    scales: &[f32],
) -> Result<Value, ExportError> {
    let scales = &g.initializer(&scope.key("weight_scale"), &[scales.len()], Data::F32(scales))?;
    let [x8, x_scale, x_zero] = input.whole(g, scope)?;
    let sums = g.op(scope, "MatMulInteger", &[x8, weight, x_zero])?;
    let scale = g.op(&scope.child("scale"), "Mul", &[x_scale, scales])?;
    let sums = g.op_with(scope, "Cast", &[&sums], [AttributeProto::int("to", DataType::Float as i64)])?;
    g.op(scope, "Mul", &[&sums, &scale])
}

/// The sums of whole numbers, times what a step of either side is worth:
/// ```text
/// fused      x8, 128, step ── MatMulIntegerToFloat(W8, weight_scale) ─────────── Mul(size)
/// portable   x8, 128 ── MatMulInteger(W8) ─ Cast ─ Mul(weight_scale * step) ──── Mul(size)
/// ```
fn in_steps(
    g: &mut Graph,
    scope: &Scope,
    source: &Source,
    Steps { x8, step, middle, size }: &Steps,
    weight: &Value,
    scales: &[f32],
) -> Result<Value, ExportError> {
    let key = scope.key("weight_scale");
    let product = if source.fused() {
        let scales = g.initializer(&key, &[scales.len()], Data::F32(scales))?;
        let step = g.number(*step)?;
        g.op(scope, "MatMulIntegerToFloat", &[x8, weight, &step, &scales, middle])?
    } else {
        let scales: Vec<f32> = scales.iter().map(|scale| scale * step).collect();
        let scales = g.initializer(&key, &[scales.len()], Data::F32(&scales))?;
        let sums = g.op(scope, "MatMulInteger", &[x8, weight, middle])?;
        let sums = g.op_with(scope, "Cast", &[&sums], [AttributeProto::int("to", DataType::Float as i64)])?;
        g.op(&scope.child("scale"), "Mul", &[&sums, &scales])?
    };
    match size {
        Some(size) => g.op(scope, "Mul", &[&product, size]),
        None => Ok(product),
    }
}

/// How the operator multiplies: 4 = it quantises activations to 8 bits, in blocks as the weights'.
const ACCURACY_LEVEL: i64 = 4;

/// ```text
/// x [.., K] ────────────────────────────────── MatMulNBits ── [.., N]
/// W [N, blocks, bytes of a block] ─────────────┤
/// weight_scale [N * blocks] ───────────────────┘
/// ```
fn in_blocks(
    g: &mut Graph,
    scope: &Scope,
    source: &mut Source,
    name: &str,
    weight: &Matrix,
    input: &Input,
    bits: Bits,
) -> Result<Value, ExportError> {
    let quantised = match source.calibration().zip(input.key.as_ref()) {
        Some((calibration, input)) => calibration.blocks(&scope.key("weight"), input, weight, bits),
        None => quantise::in_blocks(weight, bits).into(),
    };
    source.errors.add(name, &scope.key("weight"), quantised.relative_error);
    let shape = [weight.rows, quantised.blocks, bits.bytes(quantise::BLOCK)];
    let values =
        g.initializer(&scope.key(&format!("weight_{}", bits.name())), &shape, Data::U8(&quantised.packed))?;
    let scales = g.initializer(
        &scope.key("weight_scale"),
        &[weight.rows * quantised.blocks],
        Data::F32(&quantised.scales),
    )?;
    let attributes = [
        AttributeProto::int("K", weight.columns as i64),
        AttributeProto::int("N", weight.rows as i64),
        AttributeProto::int("bits", bits.number() as i64),
        AttributeProto::int("block_size", quantise::BLOCK as i64),
        AttributeProto::int("accuracy_level", ACCURACY_LEVEL),
    ];
    g.op_with(scope, "MatMulNBits", &[input.x, &values, &scales], attributes)
}
