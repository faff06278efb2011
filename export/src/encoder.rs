//! `encoder.onnx`: token ids to latents, one graph for queries and documents.

use crate::error::ExportError;
use crate::graph::{Data, Dim, Graph, Scope, Value};
use crate::layers::attention::{Shared, attention};
use crate::layers::embedding::embedding;
use crate::layers::mlp::mlp;
use crate::layers::norm::{Stream, rms_norm};
use crate::layers::past::Past;
use crate::layers::pooling::{MeanPooling, last_token};
use crate::onnx::{AttributeProto, DataType};
use crate::prefix::PrefixStates;
use crate::source::Source;
use models::config::DecoderConfig;
use models::manifest::{Precision, names};
use models::student::{Residual, StudentConfig};

/// Sizes of inputs that are known when the graph runs.
const TOKENS: &[Dim] = &[Dim::Symbol("batch"), Dim::Symbol("seq")];

/// Emits the whole encoder: as many layers as the student reads, their latents pooled, no head.
/// ```text
/// prefix ── keys and values of the prompt ─┐   (and whether the adapter's branches are taken)
/// input_ids ── embed_tokens ─┬─ layers.0 ─┬─ ... ── layers.n ─┬─ last token ── norm ── answer_embedding (last-token residual only)
///                            │            │                   │
///                            └────────────┴── sums over the pooled positions of the chosen layers
/// attention_mask [, pooling_mask] ────────────┘── Concat ── Div ── sentence_embedding
/// ```
pub fn encoder(
    g: &mut Graph,
    source: &mut Source,
    config: &DecoderConfig,
    student: &StudentConfig,
    max_tokens: usize,
    prefix: Option<&PrefixStates>,
) -> Result<(), ExportError> {
    let root = Scope::root();
    let model = root.child("model");
    let ids = g.input(names::INPUT_IDS, DataType::Int64, TOKENS)?;
    let attention_mask = g.input(names::ATTENTION_MASK, DataType::Int64, TOKENS)?;
    let pooling_mask = match student.residual {
        Residual::LastToken => Some(g.input(names::POOLING_MASK, DataType::Int64, TOKENS)?),
        // Nothing but the text is read then.
        Residual::Pooled => None,
    };
    let layers = student.encoder_layers(config.num_hidden_layers);
    let past = match prefix {
        None => None,
        Some(states) => {
            let which = g.input(names::PREFIX, DataType::Int64, &[Dim::Size(1)])?;
            let precision = source.precision;
            if let Some(adapter) = &mut source.adapter {
                adapter.begin(g, &root.child("is_query"), precision, &which)?;
            }
            Some(Past::new(g, &root.child("prefix"), source, states, &which, &ids)?)
        }
    };

    let pooling_scope = root.child("pooling");
    let pooling = MeanPooling::new(g, &pooling_scope, pooling_mask.as_ref(), &attention_mask)?;
    let shared = match layers {
        0 => None,
        _ => Some(Shared::new(g, &model, source, config, max_tokens, &ids, past)?),
    };
    let mut stream = Stream::new(embedding(g, &model.child("embed_tokens"), source, &ids)?);
    let back = way_back(g, &root, source)?;
    let mut sums: Vec<Option<Value>> = vec![None; layers + 1];
    for (depth, sum) in sums.iter_mut().enumerate() {
        if let (Some(shared), Some(index)) = (&shared, depth.checked_sub(1)) {
            layer(g, &model, source, config, shared, index, &mut stream)?;
        }
        if student.latents.layers.contains(&depth) {
            let x = stream.value(g)?;
            let x = in_f32(g, &root.child(&format!("latent.{depth}")), source, x)?;
            let pooled = pooling.sum(g, &pooling_scope.child(&format!("latent.{depth}")), &x)?;
            *sum = Some(turned_back(g, &root.child(&format!("latent.{depth}")), back.as_ref(), pooled)?);
        }
    }
    let chosen: Vec<&Value> =
        student.latents.layers.iter().filter_map(|&depth| sums.get(depth)?.as_ref()).collect();
    let latents = pooling.mean(g, &pooling_scope, &chosen)?;
    let dimensions = Dim::Size(student.dimensions());
    g.output(names::SENTENCE_EMBEDDING, DataType::Float, &[Dim::Symbol("batch"), dimensions], latents)?;

    if student.residual == Residual::LastToken {
        // One row is normed instead of all of them.
        let x = stream.value(g)?;
        let last = last_token(g, &root.child("last_token"), &attention_mask, &x)?;
        let last = turned_back(g, &root.child("last_token"), back.as_ref(), last)?;
        let answer = rms_norm(g, &model.child("norm"), source, config.rms_norm_eps, &last)?;
        let answer = in_f32(g, &root.child("answer"), source, answer)?;
        let shape = [Dim::Symbol("batch"), Dim::Size(config.hidden_size)];
        g.output(names::ANSWER_EMBEDDING, DataType::Float, &shape, answer)?;
    }
    Ok(())
}

/// What turned rows are multiplied by to be turned back; none where nothing is turned.
pub fn way_back(g: &mut Graph, scope: &Scope, source: &Source) -> Result<Option<Value>, ExportError> {
    let Some(turned) = source.turned() else { return Ok(None) };
    let size = turned.stream.size();
    let back = turned.stream.back();
    Ok(Some(g.initializer(&scope.key("rotation.weight"), &[size, size], Data::F32(&back))?))
}

/// Rows in the LLM's own coordinates.
pub fn turned_back(
    g: &mut Graph,
    scope: &Scope,
    back: Option<&Value>,
    x: Value,
) -> Result<Value, ExportError> {
    match back {
        None => Ok(x),
        Some(back) => g.op(&scope.child("rotation"), "MatMul", &[&x, back]),
    }
}

/// Twin of the layer of `models/src/torch/decoder.rs`; returns its keys and values (see [`attention`]).
/// ```text
/// stream ─┬─ input_layernorm ─ self_attn ─ Add ─┬─ post_attention_layernorm ─ mlp ─ Add
///         └─────────────────────────────────┘   └────────────────────────────────────┘
/// ```
pub fn layer(
    g: &mut Graph,
    model: &Scope,
    source: &mut Source,
    config: &DecoderConfig,
    shared: &Shared,
    index: usize,
    stream: &mut Stream,
) -> Result<[Value; 2], ExportError> {
    let eps = config.rms_norm_eps;
    source.begin_layer(index);
    let scope = model.child(&format!("layers.{index}"));
    let normed = stream.normed(g, &scope.child("input_layernorm"), source, eps)?;
    let (attended, present) =
        attention(g, &scope.child("self_attn"), source, config, shared, index, &normed)?;
    stream.add(g, scope.child("attention_residual"), attended)?;
    let normed = stream.normed(g, &scope.child("post_attention_layernorm"), source, eps)?;
    let fed = mlp(g, &scope.child("mlp"), source, config, &normed)?;
    stream.add(g, scope.child("mlp_residual"), fed)?;
    Ok(present)
}

fn in_f32(g: &mut Graph, scope: &Scope, source: &Source, x: Value) -> Result<Value, ExportError> {
    match source.precision {
        Precision::Fp16 => {
            g.op_with(scope, "Cast", &[&x], [AttributeProto::int("to", DataType::Float as i64)])
        }
        Precision::Fp32 | Precision::Int8 | Precision::Int4 => Ok(x),
    }
}
