//! Linear layers in 8 bits: weights with a scale for each output channel, activations quantised as their place needs.

use crate::emit::context::EmitContext;
use crate::error::ExportError;
use crate::matrix::{Matrix, transpose};
use crate::onnx::graph::GraphBuilder;
use crate::onnx::proto::{AttributeProto, DataType};
use crate::onnx::scope::Scope;
use crate::onnx::tensor::TensorData;
use crate::onnx::value::Value;
use crate::quantise::rows::quantise_pairs;

/// How an activation is quantised.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ActivationScale {
    /// One scale that is known at export: [`STATIC_RANGE`].
    Static,
    /// One for all tokens, found when the graph runs.
    PerTensor,
    /// One for each token, found when the graph runs.
    PerToken,
}

impl ActivationScale {
    /// For the input of the layer `name`.
    ///
    /// The input of `down_proj` is a product of two activations, and in some tokens it is far larger than in others. Root mean
    /// square error of a latent in units of its standard deviation, on 60 texts through 24 layers of a SmolLM2-135M
    /// (`scripts/fake_quantise.py`): there 0.21 per tensor and 0.057 per token; at `o_proj` 0.013 and 0.008; before `qkv_proj`,
    /// `gate_proj` and `up_proj` 0.025, 0.022 and, static, 0.027.
    /// Portable graphs are for batches: there the rounding of a text must not depend on its neighbours.
    fn of(name: &str, ctx: &EmitContext) -> Self {
        match name {
            "qkv_proj" | "gate_proj" | "up_proj" if ctx.llm.base.basis().is_some() => Self::Static,
            "down_proj" if !ctx.down_proj_per_tensor() => Self::PerToken,
            _ if ctx.fused() => Self::PerTensor,
            _ => Self::PerToken,
        }
    }
}

/// Largest magnitude that a static scale can express, for the rotated output of a norm: a token's elements then have a root mean
/// square of 1 and no outliers. The largest is 2.9 in the median token of a SmolLM2-135M, 3.8 in 99 of 100, and at most 5.1;
/// ranges of 3.5, 4, 4.5 and 5 cost 0.028, 0.027, 0.030 and 0.033 (measured as above).
const STATIC_RANGE: f32 = 4.0;
/// Steps from zero to the largest magnitude.
const STEPS: f32 = 127.0;

/// The input of linear layers, and its 8-bit form once one of them has made it.
pub(super) struct LinearInput<'a> {
    /// The input.
    pub x: &'a Value,
    /// Key of the first layer that reads it.
    pub key: Option<String>,
    per_tensor: Option<[Value; 3]>,
    symmetric: Option<Symmetric>,
}

/// An activation in uint8, `[.., K]`: x = token_scale * step * (x8 - zero_point).
#[derive(Clone)]
struct Symmetric {
    x8: Value,
    /// The same for all tokens.
    step: f32,
    zero_point: Value,
    /// Of each token, `[.., 1]`; none where the scale is static.
    token_scale: Option<Value>,
}

impl<'a> LinearInput<'a> {
    pub(super) fn new(x: &'a Value) -> Self {
        Self { x, key: None, per_tensor: None, symmetric: None }
    }

    /// uint8, scale and zero point, one of each for the whole activation, found when the graph runs.
    fn per_tensor(&mut self, g: &mut GraphBuilder, scope: &Scope) -> Result<&[Value; 3], ExportError> {
        let made = match self.per_tensor.take() {
            Some(made) => made,
            None => g.ops(scope, "DynamicQuantizeLinear", &[self.x], [], ["", ":scale", ":zero_point"])?,
        };
        Ok(self.per_tensor.insert(made))
    }

    /// uint8 around 128, with a static scale or one for each token:
    /// ```text
    /// static      x ── QuantizeLinear(4/127, 128) ── x8
    /// per token   x ─┬─ Abs ─ ReduceMax ── token_scale
    ///                └─ Div(token_scale) ─ QuantizeLinear(1/127, 128) ── x8
    /// ```
    /// In a token of zeros, 0 / 0 becomes some x8, and x is 0 again because its scale is.
    fn symmetric(
        &mut self,
        g: &mut GraphBuilder,
        scope: &Scope,
        is_static: bool,
    ) -> Result<Symmetric, ExportError> {
        if let Some(made) = &self.symmetric {
            return Ok(made.clone());
        }
        let part = &scope.child("activation");
        let zero_point = g.initializer(&scope.key("activation_zero"), &[], TensorData::U8(&[128]))?;
        let (range, x, token_scale) = if is_static {
            (STATIC_RANGE, self.x.clone(), None)
        } else {
            let last = [AttributeProto::ints("axes", &[-1]), AttributeProto::int("keepdims", 1)];
            let size = g.op(part, "Abs", &[self.x])?;
            let size = g.op_with(part, "ReduceMax", &[&size], last)?;
            (1.0, g.op(part, "Div", &[self.x, &size])?, Some(size))
        };
        let step = range / STEPS;
        let scale = g.number(step)?;
        let x8 = g.op(part, "QuantizeLinear", &[&x, &scale, &zero_point])?;
        Ok(self.symmetric.insert(Symmetric { x8, step, zero_point, token_scale }).clone())
    }
}

/// Weights are signed and symmetric, which the fast kernels of x86 and ARM need, and small enough in pairs for those x86
/// processors that add two products in 16 bits ([`quantise_pairs`]). (Unsigned weights are exact there as well, at 1.3 times
/// the time.)
pub(super) fn int8(
    g: &mut GraphBuilder,
    scope: &Scope,
    ctx: &mut EmitContext,
    name: &str,
    weight: &Matrix,
    input: &mut LinearInput,
) -> Result<Value, ExportError> {
    let quantised = match ctx.calibrated.zip(input.key.as_ref()) {
        Some((calibrated, input)) => calibrated.pairs(&scope.key("weight"), input, weight),
        None => quantise_pairs(weight).into(),
    };
    ctx.errors.add(name, &scope.key("weight"), quantised.relative_error);
    let transposed = transpose(&quantised.values, weight.rows, weight.columns);
    let shape = [weight.columns, weight.rows];
    let values = g.initializer(&scope.key("weight_int8"), &shape, TensorData::I8(&transposed))?;
    let scale = ActivationScale::of(name, ctx);
    if scale == ActivationScale::PerTensor {
        return multiply_per_tensor(g, scope, input, &values, &quantised.scales);
    }
    let x = input.symmetric(g, scope, scale == ActivationScale::Static)?;
    multiply_symmetric(g, scope, ctx, &x, &values, &quantised.scales)
}

/// ONNX Runtime fuses these nodes into one.
/// ```text
/// x ── DynamicQuantizeLinear ─┬─ x8, zero point ── MatMulInteger ── Cast ── Mul ── [.., N]
///                             │          W8 [K, N] ──┘                       │
///                             └─ scale ── Mul(weight_scale) ─────────────────┘
/// ```
fn multiply_per_tensor(
    g: &mut GraphBuilder,
    scope: &Scope,
    input: &mut LinearInput,
    weight: &Value,
    scales: &[f32],
) -> Result<Value, ExportError> {
    let scales = &g.initializer(&scope.key("weight_scale"), &[scales.len()], TensorData::F32(scales))?;
    let [x8, x_scale, x_zero] = input.per_tensor(g, scope)?;
    let sums = g.op(scope, "MatMulInteger", &[x8, weight, x_zero])?;
    let scale = g.op(&scope.child("scale"), "Mul", &[x_scale, scales])?;
    let sums = g.op_with(scope, "Cast", &[&sums], [AttributeProto::int("to", DataType::Float as i64)])?;
    g.op(scope, "Mul", &[&sums, &scale])
}

/// The integer sums, times the steps of both sides:
/// ```text
/// fused      x8, 128, step ── MatMulIntegerToFloat(W8, weight_scale) ─────────── Mul(token_scale)
/// portable   x8, 128 ── MatMulInteger(W8) ─ Cast ─ Mul(weight_scale * step) ──── Mul(token_scale)
/// ```
fn multiply_symmetric(
    g: &mut GraphBuilder,
    scope: &Scope,
    ctx: &EmitContext,
    Symmetric { x8, step, zero_point, token_scale }: &Symmetric,
    weight: &Value,
    scales: &[f32],
) -> Result<Value, ExportError> {
    let key = scope.key("weight_scale");
    let product = if ctx.fused() {
        let scales = g.initializer(&key, &[scales.len()], TensorData::F32(scales))?;
        let step = g.number(*step)?;
        g.op(scope, "MatMulIntegerToFloat", &[x8, weight, &step, &scales, zero_point])?
    } else {
        let scales: Vec<f32> = scales.iter().map(|scale| scale * step).collect();
        let scales = g.initializer(&key, &[scales.len()], TensorData::F32(&scales))?;
        let sums = g.op(scope, "MatMulInteger", &[x8, weight, zero_point])?;
        let sums = g.op_with(scope, "Cast", &[&sums], [AttributeProto::int("to", DataType::Float as i64)])?;
        g.op(&scope.child("scale"), "Mul", &[&sums, &scales])?
    };
    match token_scale {
        Some(token_scale) => g.op(scope, "Mul", &[&product, token_scale]),
        None => Ok(product),
    }
}
