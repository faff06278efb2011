//! The query adapter's branches beside the linear layers. One graph serves queries and documents, so the bundle grows by the
//! small matrices only.

use crate::emit::context::EmitContext;
use crate::error::ExportError;
use crate::onnx::graph::GraphBuilder;
use crate::onnx::proto::{AttributeProto, DataType};
use crate::onnx::scope::Scope;
use crate::onnx::value::Value;
use crate::source::adapter::QUERY_PREFIX;
use models::manifest::Precision;

/// Has the graph find out whether it reads a query, where queries take an adapter; `prefix` is int64 `[1]`.
/// ```text
/// prefix ── Equal(query's) ── Cast ── is_query
/// ```
pub fn is_query(
    g: &mut GraphBuilder,
    scope: &Scope,
    ctx: &mut EmitContext,
    prefix: &Value,
) -> Result<(), ExportError> {
    if ctx.llm.adapter.is_none() {
        return Ok(());
    }
    let query = g.integers(&[QUERY_PREFIX as i64])?;
    let is_query = g.op(scope, "Equal", &[prefix, &query])?;
    let kind = if ctx.precision == Precision::Fp16 { DataType::Float16 } else { DataType::Float };
    let to = [AttributeProto::int("to", kind as i64)];
    ctx.is_query = Some(g.op_with(scope, "Cast", &[&is_query], to)?);
    Ok(())
}

/// `y` plus the branches of the layers `linears`, whose outputs are side by side in it.
/// ```text
/// x ── MatMul(A^T) ── Mul(is_query) ── MatMul(B^T) ── Add ── y
/// ```
pub fn branch(
    g: &mut GraphBuilder,
    scope: &Scope,
    ctx: &mut EmitContext,
    linears: &[String],
    x: &Value,
    y: Value,
) -> Result<Value, ExportError> {
    let Some(adapter) = &mut ctx.llm.adapter else { return Ok(y) };
    let branches = adapter.joined(&ctx.llm.base, linears)?;
    let (Some([a, b]), Some(is_query)) = (branches, &ctx.is_query) else { return Ok(y) };
    let (down, up) = (a.transposed(), b.transposed());
    let a = g.initializer(&scope.key("lora_A.weight"), &[a.columns, a.rows], ctx.activation(&down))?;
    let b = g.initializer(&scope.key("lora_B.weight"), &[b.columns, b.rows], ctx.activation(&up))?;
    let scope = scope.child("lora");
    let inner = g.op(&scope.child("A"), "MatMul", &[x, &a])?;
    let inner = g.op(&scope, "Mul", &[&inner, is_query])?;
    let branch = g.op(&scope.child("B"), "MatMul", &[&inner, &b])?;
    g.op(&scope, "Add", &[&y, &branch])
}
