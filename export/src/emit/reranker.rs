//! `reranker.onnx`: the teacher as one graph that reads documents and queries.

use crate::emit::context::EmitContext;
use crate::emit::layers::attention::SharedInputs;
use crate::emit::layers::basis::InverseRotation;
use crate::emit::layers::decoder_layer::decoder_layer;
use crate::emit::layers::embedding::embedding;
use crate::emit::layers::norm::{ResidualStream, rms_norm};
use crate::emit::layers::past::PastKeyValues;
use crate::error::ExportError;
use crate::onnx::graph::GraphBuilder;
use crate::onnx::proto::{AttributeProto, DataType};
use crate::onnx::scope::Scope;
use crate::onnx::tensor::TensorData;
use crate::onnx::value::{Dim, Value};
use models::config::DecoderConfig;
use models::manifest::names;

/// Emits the whole model; one text at a time.
/// ```text
/// past [1, 2 layers, heads, past, head_dim] ── Squeeze ── Split ── keys and values of each layer
/// input_ids ── embed_tokens ── layers ── last position ── norm ── MatMul(rows of the choices) ── choice_logits
///                                 └── keys and values ── Concat ── Reshape ── present
/// ```
pub fn reranker(
    g: &mut GraphBuilder,
    ctx: &mut EmitContext,
    config: &DecoderConfig,
    choices: [u32; 2],
    max_tokens: usize,
) -> Result<(), ExportError> {
    let (root, layers) = (Scope::root(), config.num_hidden_layers);
    let model = root.child("model");
    let (heads, head_dim) = (config.num_key_value_heads, config.head_dim);
    let ids = g.input(names::INPUT_IDS, DataType::Int64, &[Dim::Size(1), Dim::Symbol("seq")])?;
    let states = |tokens| {
        [Dim::Size(1), Dim::Size(2 * layers), Dim::Size(heads), Dim::Symbol(tokens), Dim::Size(head_dim)]
    };
    let past = g.input(names::PAST, DataType::Float, &states("past"))?;

    let scope = root.child("past");
    let first = g.integers(&[0])?;
    let third = [AttributeProto::int("start", 3), AttributeProto::int("end", 4)];
    let length = g.op_with(&scope.child("length"), "Shape", &[&past], third)?;
    let past = g.op(&scope, "Squeeze", &[&past, &first])?;
    let endings: Vec<String> =
        (0..layers).flat_map(|layer| [format!(":key.{layer}"), format!(":value.{layer}")]).collect();
    let endings: Vec<&str> = endings.iter().map(String::as_str).collect();
    let parts = g.node(&scope, "Split", &[&past], vec![AttributeProto::int("axis", 0)], &endings)?;
    let of_layers = parts.chunks_exact(2).map(|pair| [pair[0].clone(), pair[1].clone()]).collect();
    let past = PastKeyValues { length, layers: of_layers };

    let shared = SharedInputs::new(g, &model, ctx, config, max_tokens, &ids, Some(past))?;
    let mut stream = ResidualStream::new(embedding(g, &model.child("embed_tokens"), ctx, &ids)?);
    let mut present: Vec<Value> = Vec::new();
    for index in 0..layers {
        present.extend(decoder_layer(g, &model, ctx, config, &shared, index, &mut stream)?);
    }
    let scope = root.child("present");
    let present: Vec<&Value> = present.iter().collect();
    let all = g.op_with(&scope, "Concat", &present, [AttributeProto::int("axis", 0)])?;
    let shape = g.integers(&[1, 2 * layers as i64, heads as i64, -1, head_dim as i64])?;
    let all = g.op(&scope, "Reshape", &[&all, &shape])?;
    g.output(names::PRESENT, DataType::Float, &states("total"), all)?;

    let x = stream.value(g)?;
    let end = g.integer(-1)?;
    let last = [AttributeProto::int("axis", 1)];
    let last = g.op_with(&root.child("last_token"), "Gather", &[&x, &end], last)?;
    let last = InverseRotation::new(g, &root, ctx)?.apply(g, &root.child("last_token"), last)?;
    let last = rms_norm(g, &model.child("norm"), ctx, config.rms_norm_eps, &last)?;
    let head = if config.tie_word_embeddings { "model.embed_tokens.weight" } else { "lm_head.weight" };
    let head = ctx.llm.base.unrotated_matrix(head)?;
    let row = |id: u32| &head.values[id as usize * head.columns..(id as usize + 1) * head.columns];
    let columns: Vec<f32> =
        row(choices[0]).iter().zip(row(choices[1])).flat_map(|(yes, no)| [*yes, *no]).collect();
    let weight = g.initializer("choice.weight", &[head.columns, 2], TensorData::F32(&columns))?;
    let logits = g.op(&root.child("choice"), "MatMul", &[&last, &weight])?;
    g.output(names::CHOICE_LOGITS, DataType::Float, &[Dim::Size(1), Dim::Size(2)], logits)
}
