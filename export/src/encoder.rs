//! `encoder.onnx`: token ids to latents, one graph for queries and documents.

use crate::error::ExportError;
use crate::graph::{Dim, Graph, Scope, Value};
use crate::layers::attention::{attention, causal_mask};
use crate::layers::embedding::embedding;
use crate::layers::mlp::mlp;
use crate::layers::norm::rms_norm;
use crate::layers::pooling::{MeanPooling, last_token};
use crate::layers::rotary::Rotary;
use crate::onnx::{AttributeProto, DataType};
use crate::source::Source;
use models::config::DecoderConfig;
use models::manifest::names;
use models::student::{Residual, StudentConfig};

/// Sizes of inputs that are known when the graph runs.
const TOKENS: &[Dim] = &[Dim::Symbol("batch"), Dim::Symbol("seq")];

/// Emits the whole encoder: as many layers as the student reads, their latents pooled, no head.
/// ```text
/// input_ids ── embed_tokens ─┬─ layers.0 ─┬─ ... ── layers.n ─┬─ last token ── norm ── answer_embedding (last-token residual only)
///                            │            │                   │
///                            └────────────┴── sums over the pooled positions of the chosen layers
/// attention_mask, pooling_mask ───────────────┘── Concat ── Div ── sentence_embedding
/// ```
pub fn encoder(
    g: &mut Graph,
    source: &mut Source,
    config: &DecoderConfig,
    student: &StudentConfig,
    max_tokens: usize,
) -> Result<(), ExportError> {
    let root = Scope::root();
    let model = root.child("model");
    let ids = g.input(names::INPUT_IDS, DataType::Int64, TOKENS)?;
    let attention_mask = g.input(names::ATTENTION_MASK, DataType::Int64, TOKENS)?;
    let pooling_mask = g.input(names::POOLING_MASK, DataType::Int64, TOKENS)?;

    let pooling_scope = root.child("pooling");
    let pooling = MeanPooling::new(g, &pooling_scope, &pooling_mask, &attention_mask)?;
    let layers = student.encoder_layers(config.num_hidden_layers);
    let mut decoder = Decoder::new(g, &model, config, layers, max_tokens, &ids)?;
    let mut x = embedding(g, &model.child("embed_tokens"), source, &ids)?;
    let mut sums: Vec<Option<Value>> = vec![None; layers + 1];
    for (depth, sum) in sums.iter_mut().enumerate() {
        if depth > 0 {
            x = decoder.layer(g, source, depth - 1, &x)?;
        }
        if student.latents.layers.contains(&depth) {
            *sum = Some(pooling.sum(g, &pooling_scope.child(&format!("latent.{depth}")), &x)?);
        }
    }
    let chosen: Vec<&Value> =
        student.latents.layers.iter().filter_map(|&depth| sums.get(depth)?.as_ref()).collect();
    let latents = pooling.mean(g, &pooling_scope, &chosen)?;
    let dimensions = Dim::Size(student.dimensions());
    g.output(names::SENTENCE_EMBEDDING, DataType::Float, &[Dim::Symbol("batch"), dimensions], latents)?;

    if student.residual == Residual::LastToken {
        // One row is normed instead of all of them.
        let last = last_token(g, &root.child("last_token"), &attention_mask, &x)?;
        let answer = rms_norm(g, &model.child("norm"), source, config.rms_norm_eps, &last)?;
        let shape = [Dim::Symbol("batch"), Dim::Size(config.hidden_size)];
        g.output(names::ANSWER_EMBEDDING, DataType::Float, &shape, answer)?;
    }
    Ok(())
}

/// Twin of `models/src/torch/decoder.rs`: pre-norm layers, and what all of them share.
struct Decoder<'a> {
    scope: &'a Scope,
    config: &'a DecoderConfig,
    /// Rotary tables and causal mask; none where no layer is run.
    shared: Option<(Rotary, Value)>,
}

impl<'a> Decoder<'a> {
    fn new(
        g: &mut Graph,
        scope: &'a Scope,
        config: &'a DecoderConfig,
        layers: usize,
        max_tokens: usize,
        ids: &Value,
    ) -> Result<Self, ExportError> {
        if layers == 0 {
            return Ok(Self { scope, config, shared: None });
        }
        let second = [AttributeProto::int("start", 1), AttributeProto::int("end", 2)];
        let seq = g.op_with(&scope.child("seq"), "Shape", &[ids], second)?;
        let rotary = Rotary::new(g, &scope.child("rotary_emb"), config, max_tokens, &seq)?;
        let mask = causal_mask(g, &scope.child("causal_mask"), &seq)?;
        Ok(Self { scope, config, shared: Some((rotary, mask)) })
    }

    /// `[batch, seq, hidden_size]` in and out.
    /// ```text
    /// x ─┬─ input_layernorm ─ self_attn ─ Add ─┬─ post_attention_layernorm ─ mlp ─ Add
    ///    └─────────────────────────────────┘   └────────────────────────────────────┘
    /// ```
    fn layer(
        &mut self,
        g: &mut Graph,
        source: &mut Source,
        index: usize,
        x: &Value,
    ) -> Result<Value, ExportError> {
        let Some((rotary, mask)) = &self.shared else { return Ok(x.clone()) };
        let (config, eps) = (self.config, self.config.rms_norm_eps);
        let scope = self.scope.child(&format!("layers.{index}"));
        let normed = rms_norm(g, &scope.child("input_layernorm"), source, eps, x)?;
        let attended = attention(g, &scope.child("self_attn"), source, config, rotary, mask, &normed)?;
        let x = g.op(&scope.child("attention_residual"), "Add", &[x, &attended])?;
        let normed = rms_norm(g, &scope.child("post_attention_layernorm"), source, eps, &x)?;
        let fed = mlp(g, &scope.child("mlp"), source, config, &normed)?;
        g.op(&scope.child("mlp_residual"), "Add", &[&x, &fed])
    }
}
