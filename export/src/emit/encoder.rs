//! `encoder.onnx`: token ids to latents, one graph for queries and documents.

use crate::emit::context::EmitContext;
use crate::emit::layers::adapter::is_query;
use crate::emit::layers::attention::SharedInputs;
use crate::emit::layers::basis::InverseRotation;
use crate::emit::layers::decoder_layer::decoder_layer;
use crate::emit::layers::embedding::embedding;
use crate::emit::layers::norm::{ResidualStream, rms_norm};
use crate::emit::layers::past::PastKeyValues;
use crate::emit::layers::pooling::{MeanPooling, last_token};
use crate::error::ExportError;
use crate::onnx::graph::GraphBuilder;
use crate::onnx::proto::{AttributeProto, DataType};
use crate::onnx::scope::Scope;
use crate::onnx::value::{Dim, Value};
use crate::source::prefix::PrefixStates;
use crate::source::student::Student;
use models::manifest::{Precision, names};
use models::student::Residual;

/// Sizes of inputs that are known when the graph runs.
const TOKENS: &[Dim] = &[Dim::Symbol("batch"), Dim::Symbol("seq")];

/// Emits the whole encoder: as many layers as the student reads, their latents pooled, no head.
/// ```text
/// prefix ── keys and values of the prompt ─┐   (and whether the query adapter is used)
/// input_ids ── embed_tokens ─┬─ layers.0 ─┬─ ... ── layers.n ─┬─ last token ── norm ── answer_embedding (last-token residual only)
///                            │            │                   │
///                            └────────────┴── sums over the pooled positions of the chosen layers
/// attention_mask [, pooling_mask] ────────────┘── Concat ── Div ── sentence_embedding
/// ```
pub fn encoder(
    g: &mut GraphBuilder,
    ctx: &mut EmitContext,
    student: &Student,
    prefix: Option<&PrefixStates>,
) -> Result<(), ExportError> {
    let (config, latents, layers) = (&student.llm, &student.config.latents, student.layers());
    let root = Scope::root();
    let model = root.child("model");
    let ids = g.input(names::INPUT_IDS, DataType::Int64, TOKENS)?;
    let attention_mask = g.input(names::ATTENTION_MASK, DataType::Int64, TOKENS)?;
    let pooling_mask = match student.config.residual {
        Residual::LastToken => Some(g.input(names::POOLING_MASK, DataType::Int64, TOKENS)?),
        // Then the text is all that is read.
        Residual::Pooled => None,
    };
    let past = match prefix {
        None => None,
        Some(states) => {
            let which = g.input(names::PREFIX, DataType::Int64, &[Dim::Size(1)])?;
            is_query(g, &root.child("is_query"), ctx, &which)?;
            Some(PastKeyValues::new(g, &root.child("prefix"), ctx, states, &which, &ids)?)
        }
    };

    let pooling_scope = root.child("pooling");
    let pooling = MeanPooling::new(g, &pooling_scope, pooling_mask.as_ref(), &attention_mask)?;
    let shared = match layers {
        0 => None,
        _ => Some(SharedInputs::new(g, &model, ctx, config, student.max_tokens, &ids, past)?),
    };
    let mut stream = ResidualStream::new(embedding(g, &model.child("embed_tokens"), ctx, &ids)?);
    let inverse = InverseRotation::new(g, &root, ctx)?;
    let mut sums: Vec<Option<Value>> = vec![None; layers + 1];
    for (depth, sum) in sums.iter_mut().enumerate() {
        if let (Some(shared), Some(index)) = (&shared, depth.checked_sub(1)) {
            decoder_layer(g, &model, ctx, config, shared, index, &mut stream)?;
        }
        if latents.layers.contains(&depth) {
            let scope = root.child(&format!("latent.{depth}"));
            let x = stream.value(g)?;
            let x = in_f32(g, &scope, ctx, x)?;
            let pooled = pooling.sum(g, &pooling_scope.child(&format!("latent.{depth}")), &x)?;
            *sum = Some(inverse.apply(g, &scope, pooled)?);
        }
    }
    let chosen: Vec<&Value> = latents.layers.iter().filter_map(|&depth| sums.get(depth)?.as_ref()).collect();
    let embedding = pooling.mean(g, &pooling_scope, &chosen)?;
    let dimensions = Dim::Size(student.config.dimensions());
    g.output(names::SENTENCE_EMBEDDING, DataType::Float, &[Dim::Symbol("batch"), dimensions], embedding)?;

    if student.config.residual == Residual::LastToken {
        // One row is normalised instead of all of them.
        let x = stream.value(g)?;
        let last = last_token(g, &root.child("last_token"), &attention_mask, &x)?;
        let last = inverse.apply(g, &root.child("last_token"), last)?;
        let answer = rms_norm(g, &model.child("norm"), ctx, config.rms_norm_eps, &last)?;
        let answer = in_f32(g, &root.child("answer"), ctx, answer)?;
        let shape = [Dim::Symbol("batch"), Dim::Size(config.hidden_size)];
        g.output(names::ANSWER_EMBEDDING, DataType::Float, &shape, answer)?;
    }
    Ok(())
}

fn in_f32(g: &mut GraphBuilder, scope: &Scope, ctx: &EmitContext, x: Value) -> Result<Value, ExportError> {
    match ctx.precision {
        Precision::Fp16 => {
            g.op_with(scope, "Cast", &[&x], [AttributeProto::int("to", DataType::Float as i64)])
        }
        Precision::Fp32 | Precision::Int8 | Precision::Int4 => Ok(x),
    }
}
