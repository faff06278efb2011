//! From the rotated basis back to the LLM's own.

use crate::emit::context::EmitContext;
use crate::error::ExportError;
use crate::onnx::graph::GraphBuilder;
use crate::onnx::scope::Scope;
use crate::onnx::tensor::TensorData;
use crate::onnx::value::Value;

/// The inverse of the residual stream's rotation; none where nothing is rotated.
pub struct InverseRotation(Option<Value>);

impl InverseRotation {
    /// Adds its matrix to the graph.
    pub fn new(g: &mut GraphBuilder, scope: &Scope, ctx: &EmitContext) -> Result<Self, ExportError> {
        let Some(basis) = ctx.llm.base.basis() else { return Ok(Self(None)) };
        let size = basis.stream.size();
        let inverse = basis.stream.inverse();
        let data = TensorData::F32(&inverse);
        Ok(Self(Some(g.initializer(&scope.key("rotation.weight"), &[size, size], data)?)))
    }

    /// Rows in the LLM's own basis.
    pub fn apply(&self, g: &mut GraphBuilder, scope: &Scope, x: Value) -> Result<Value, ExportError> {
        match &self.0 {
            None => Ok(x),
            Some(inverse) => g.op(&scope.child("rotation"), "MatMul", &[&x, inverse]),
        }
    }
}
