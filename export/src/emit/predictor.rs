//! `predictor.onnx`: the predictor before folding, so that anybody can check the folded score, or serve P(e, z) itself.
//! Formulas of `models::student::Form`; the weights are in the file, in f16 if the encoder is not fp32; always computed in
//! f32.

use crate::error::ExportError;
use crate::onnx::graph::GraphBuilder;
use crate::onnx::proto::{AttributeProto, DataType};
use crate::onnx::scope::Scope;
use crate::onnx::tensor::TensorData;
use crate::onnx::value::{Dim, Value};
use crate::source::tensors::TensorSource;
use models::manifest::names;
use models::student::{Form, Residual, StudentConfig, tensors};
use models::weights::DType;

/// Smallest length that a vector is divided by: the epsilon of PyTorch's `normalize`, as in `models::fold`.
const UNIT_EPSILON: f32 = 1e-12;

/// Emits the whole predictor, its matrices stored as `storage` says (F32 or F16). x and z are the standardised latents, r the
/// residual:
/// ```text
/// relu    query_embedding ─ standardise ─ x ─ query_proj ─ Add ─ Relu ─ output_proj ─ Add(r) ─┬─ predicted_hidden
///         document_embedding ─ standardise ─ z ─ document_proj ─┘                             └─ MatMul(W_T - W_F) ─ score
/// gated   x ─┬─ query_proj ────────── Mul ─ unit ─ Mul ─ output_proj ─ ...
///            └─ gate_proj ─ Sigmoid ───┘            │
///         z ─ document_proj ─┬──────────────── Div ─┘
///                            └─ document_norm ─ length
/// ```
pub fn predictor(
    g: &mut GraphBuilder,
    source: TensorSource,
    storage: DType,
    student: &StudentConfig,
) -> Result<(), ExportError> {
    let weights = &mut Weights { source, storage };
    let (batch, root) = (Dim::Symbol("batch"), Scope::root());
    let latent = [batch, Dim::Size(student.dimensions())];
    let hidden = [batch, Dim::Size(student.hidden_size)];
    let query = g.input(names::QUERY_EMBEDDING, DataType::Float, &latent)?;
    let document = g.input(names::DOCUMENT_EMBEDDING, DataType::Float, &latent)?;
    let answer = match student.residual {
        Residual::LastToken => Some(g.input(names::ANSWER_EMBEDDING, DataType::Float, &hidden)?),
        Residual::Pooled => None,
    };
    let x = standardise(g, &root.child("query"), weights, [tensors::QUERY_MEAN, tensors::QUERY_STD], &query)?;
    let z = standardise(
        g,
        &root.child("document"),
        weights,
        [tensors::DOCUMENT_MEAN, tensors::DOCUMENT_STD],
        &document,
    )?;
    let from_query = gemm(g, weights, tensors::QUERY_WEIGHT, Some(tensors::QUERY_BIAS), &x)?;
    let from_document = gemm(g, weights, tensors::DOCUMENT_WEIGHT, None, &z)?;
    let joined = match student.form {
        Form::Relu => {
            let sum = g.op(&root.child("join"), "Add", &[&from_query, &from_document])?;
            g.op(&root.child("join"), "Relu", &[&sum])?
        }
        Form::Gated => {
            let gate = gemm(g, weights, tensors::GATE_WEIGHT, Some(tensors::GATE_BIAS), &x)?;
            let gate = g.op(&root.child("gate"), "Sigmoid", &[&gate])?;
            let gated = g.op(&root.child("gate"), "Mul", &[&from_query, &gate])?;
            let from_query = divide_by_length(g, &root.child("query_unit"), &gated, &gated)?;
            let spread = gemm(g, weights, tensors::DOCUMENT_NORM, None, &from_document)?;
            let from_document = divide_by_length(g, &root.child("document_unit"), &from_document, &spread)?;
            g.op(&root.child("join"), "Mul", &[&from_query, &from_document])?
        }
    };
    let moved = gemm(g, weights, tensors::OUTPUT_WEIGHT, Some(tensors::OUTPUT_BIAS), &joined)?;
    let residual = match answer {
        Some(answer) => answer,
        None => gemm(g, weights, tensors::RESIDUAL_WEIGHT, None, &x)?,
    };
    let predicted = g.op(&root.child("residual"), "Add", &[&residual, &moved])?;

    let choice = weights.source.matrix(tensors::CHOICE_WEIGHT)?;
    let (positive, negative) = choice.values.split_at(choice.columns);
    let difference: Vec<f32> = positive.iter().zip(negative).map(|(t, f)| t - f).collect();
    let difference = g.initializer("choice.difference", &[choice.columns], TensorData::F32(&difference))?;
    let score = g.op(&root.child("choice"), "MatMul", &[&predicted, &difference])?;
    g.output(names::PREDICTED_HIDDEN, DataType::Float, &hidden, predicted)?;
    g.output(names::SCORE, DataType::Float, &[batch], score)?;
    weights.source.all_read()
}

/// The predictor's tensors.
struct Weights {
    source: TensorSource,
    /// How matrices are stored: F32 or F16.
    storage: DType,
}

/// `(x - mean) / std`, `[batch, D]`.
fn standardise(
    g: &mut GraphBuilder,
    scope: &Scope,
    weights: &mut Weights,
    [mean, std]: [&str; 2],
    x: &Value,
) -> Result<Value, ExportError> {
    let [mean, std] = [vector(g, weights, mean)?, vector(g, weights, std)?];
    let centred = g.op(scope, "Sub", &[x, &mean])?;
    g.op(scope, "Div", &[&centred, &std])
}

/// `x W^T + b`, called by the weight's key.
fn gemm(
    g: &mut GraphBuilder,
    weights: &mut Weights,
    weight: &str,
    bias: Option<&str>,
    x: &Value,
) -> Result<Value, ExportError> {
    let matrix = weights.source.matrix(weight)?;
    let scope = Scope::root().child(weight.trim_end_matches(".weight"));
    let half = weights.storage == DType::F16;
    let data = if half { TensorData::F16(&matrix.values) } else { TensorData::F32(&matrix.values) };
    let mut stored = g.initializer(weight, &[matrix.rows, matrix.columns], data)?;
    if half {
        stored =
            g.op_with(&scope, "Cast", &[&stored], [AttributeProto::int("to", DataType::Float as i64)])?;
    }
    let mut inputs = vec![stored];
    if let Some(bias) = bias {
        inputs.push(vector(g, weights, bias)?);
    }
    let inputs: Vec<&Value> = [x].into_iter().chain(&inputs).collect();
    g.op_with(&scope, "Gemm", &inputs, [AttributeProto::int("transB", 1)])
}

/// `x / max(|y|, epsilon)`, `[batch, m]`.
fn divide_by_length(g: &mut GraphBuilder, scope: &Scope, x: &Value, y: &Value) -> Result<Value, ExportError> {
    let last = [AttributeProto::ints("axes", &[-1]), AttributeProto::int("keepdims", 1)];
    let length = g.op_with(scope, "ReduceL2", &[y], last)?;
    let epsilon = g.number(UNIT_EPSILON)?;
    let length = g.op(scope, "Max", &[&length, &epsilon])?;
    g.op(scope, "Div", &[x, &length])
}

fn vector(g: &mut GraphBuilder, weights: &mut Weights, name: &str) -> Result<Value, ExportError> {
    let values = weights.source.vector(name)?;
    g.initializer(name, &[values.len()], TensorData::F32(&values))
}
