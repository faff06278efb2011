//! Twin of `models/src/torch/norm.rs`: RMSNorm (<https://arxiv.org/abs/1910.07467>), in f32 whatever the precision.

use crate::error::ExportError;
use crate::graph::{Data, Graph, Scope, Value};
use crate::onnx::AttributeProto;
use crate::source::Source;

/// `weight * x / sqrt(mean(x^2) + eps)` over the last dimension; same shape out. Written in the order that ONNX Runtime
/// recognises and runs as one kernel.
/// ```text
/// x ─┬─ Pow(2) ─ ReduceMean ─ Add(eps) ─ Sqrt ─ Div ─ Mul(weight)
///    └───────────────────────────────────────────┘
/// ```
pub fn rms_norm(
    g: &mut Graph,
    scope: &Scope,
    source: &mut Source,
    eps: f64,
    x: &Value,
) -> Result<Value, ExportError> {
    let key = scope.key("weight");
    let weight = source.vector(&key)?;
    let weight = g.initializer(&key, &[weight.len()], Data::F32(&weight))?;
    let (two, eps) = (g.number(2.0)?, g.number(eps as f32)?);
    let square = g.op(scope, "Pow", &[x, &two])?;
    let last = [AttributeProto::ints("axes", &[-1]), AttributeProto::int("keepdims", 1)];
    let mean = g.op_with(scope, "ReduceMean", &[&square], last)?;
    let shifted = g.op(scope, "Add", &[&mean, &eps])?;
    let root = g.op(scope, "Sqrt", &[&shifted])?;
    let unit = g.op(scope, "Div", &[x, &root])?;
    g.op(scope, "Mul", &[&unit, &weight])
}
