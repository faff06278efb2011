//! Tensor names of llama.cpp and of Hugging Face, expected shapes, and reading.

use super::config::DecoderShape;
use super::error::GgufError;
use super::header::Header;
use super::rope::FREQS_TENSOR;
use crate::config::Architecture;
use candle_core::Device;
use std::collections::HashSet;
use std::fs::File;

/// Where a Hugging Face tensor comes from.
#[derive(Debug)]
pub(super) struct TensorSource {
    pub hf_name: String,
    gguf_name: String,
    /// Rows first.
    pub shape: Vec<usize>,
    /// Number of heads whose rows llama.cpp interleaved.
    interleaved_heads: Option<usize>,
}

impl TensorSource {
    /// Values in row-major order, rows in Hugging Face order.
    pub(super) fn read(&self, header: &Header) -> Result<Vec<f32>, GgufError> {
        let values = read_values(header, &self.gguf_name)?;
        Ok(match self.interleaved_heads {
            Some(heads) => unpermute_rotary(&values, heads, self.shape[0]),
            None => values,
        })
    }
}

/// Dequantised values of a tensor under its GGUF name, in the file's own order.
pub(super) fn read_values(header: &Header, gguf_name: &str) -> Result<Vec<f32>, GgufError> {
    let info = header.tensors.get(gguf_name).ok_or_else(|| missing(header, gguf_name))?;
    let mut file =
        File::open(&header.file).map_err(|source| GgufError::Io { file: header.file.clone(), source })?;
    info.read(&mut file, header.data_offset, &Device::Cpu)
        .and_then(|quantised| quantised.dequantize(&Device::Cpu)?.flatten_all()?.to_vec1())
        .map_err(|source| GgufError::Dequantise {
            file: header.file.clone(),
            tensor: gguf_name.to_owned(),
            source: Box::new(source),
        })
}

/// Undoes the row order of `LlamaModel.permute` in llama.cpp's `convert_hf_to_gguf.py`:
/// `w.reshape(heads, 2, head_dim / 2, columns).swapaxes(1, 2)`. There, row `2 i + half` of a head is row
/// `half * head_dim / 2 + i` here. `values` is `[rows, columns]`, or `[rows]` for a bias.
pub(super) fn unpermute_rotary(values: &[f32], heads: usize, rows: usize) -> Vec<f32> {
    let (head_dim, columns) = (rows / heads, values.len() / rows);
    let mut out = Vec::with_capacity(values.len());
    for row in 0..rows {
        let (head, within) = (row / head_dim, row % head_dim);
        let (half, i) = (within / (head_dim / 2), within % (head_dim / 2));
        let from = (head * head_dim + 2 * i + half) * columns;
        out.extend_from_slice(&values[from..from + columns]);
    }
    out
}

/// Every tensor of the model in the order of the forward pass. An error if the file has fewer, more or other ones.
pub(super) fn plan(header: &Header, shape: &DecoderShape) -> Result<Vec<TensorSource>, GgufError> {
    let (hidden, vocab) = (shape.hidden_size, shape.vocab_size);
    let mut plan = Plan { header, sources: Vec::new() };
    plan.add(
        "model.embed_tokens.weight".to_owned(),
        "token_embd.weight".to_owned(),
        vec![vocab, hidden],
        None,
    )?;
    for layer in 0..shape.num_hidden_layers {
        plan_layer(&mut plan, shape, layer)?;
    }
    plan.add("model.norm.weight".to_owned(), "output_norm.weight".to_owned(), vec![hidden], None)?;
    if !shape.tie_word_embeddings {
        plan.add("lm_head.weight".to_owned(), "output.weight".to_owned(), vec![vocab, hidden], None)?;
    }
    refuse_others(header, shape, &plan.sources)?;
    Ok(plan.sources)
}

fn plan_layer(plan: &mut Plan, shape: &DecoderShape, layer: usize) -> Result<(), GgufError> {
    let (hidden, inner, head_dim) = (shape.hidden_size, shape.intermediate_size, shape.head_dim);
    let (heads, kv_heads) = (shape.num_attention_heads, shape.num_key_value_heads);
    let (query, key_value) = (heads * head_dim, kv_heads * head_dim);
    let interleaved = |heads| shape.interleaves_rotary_rows().then_some(heads);
    let mut add = |hf: &str, gguf: &str, dims: Vec<usize>, heads: Option<usize>| {
        plan.add(format!("model.layers.{layer}.{hf}"), format!("blk.{layer}.{gguf}"), dims, heads)
    };
    add("input_layernorm.weight", "attn_norm.weight", vec![hidden], None)?;
    add("self_attn.q_proj.weight", "attn_q.weight", vec![query, hidden], interleaved(heads))?;
    add("self_attn.k_proj.weight", "attn_k.weight", vec![key_value, hidden], interleaved(kv_heads))?;
    add("self_attn.v_proj.weight", "attn_v.weight", vec![key_value, hidden], None)?;
    add("self_attn.o_proj.weight", "attn_output.weight", vec![hidden, query], None)?;
    if shape.has_qkv_bias() {
        add("self_attn.q_proj.bias", "attn_q.bias", vec![query], interleaved(heads))?;
        add("self_attn.k_proj.bias", "attn_k.bias", vec![key_value], interleaved(kv_heads))?;
        add("self_attn.v_proj.bias", "attn_v.bias", vec![key_value], None)?;
    }
    if shape.has_o_bias() {
        add("self_attn.o_proj.bias", "attn_output.bias", vec![hidden], None)?;
    }
    if shape.architecture == Architecture::Qwen3 {
        add("self_attn.q_norm.weight", "attn_q_norm.weight", vec![head_dim], None)?;
        add("self_attn.k_norm.weight", "attn_k_norm.weight", vec![head_dim], None)?;
    }
    add("post_attention_layernorm.weight", "ffn_norm.weight", vec![hidden], None)?;
    add("mlp.gate_proj.weight", "ffn_gate.weight", vec![inner, hidden], None)?;
    add("mlp.up_proj.weight", "ffn_up.weight", vec![inner, hidden], None)?;
    add("mlp.down_proj.weight", "ffn_down.weight", vec![hidden, inner], None)
}

/// The list so far. Looks every tensor up at once, so that a nonsensical number of layers ends at the first
/// missing one instead of filling the memory.
struct Plan<'a> {
    header: &'a Header,
    sources: Vec<TensorSource>,
}

impl Plan<'_> {
    fn add(
        &mut self,
        hf_name: String,
        gguf_name: String,
        shape: Vec<usize>,
        interleaved_heads: Option<usize>,
    ) -> Result<(), GgufError> {
        let info = self.header.tensors.get(&gguf_name).ok_or_else(|| missing(self.header, &gguf_name))?;
        if info.shape.dims() != shape {
            return Err(GgufError::Shape {
                file: self.header.file.clone(),
                tensor: gguf_name,
                found: info.shape.dims().to_vec(),
                expected: shape,
            });
        }
        self.sources.push(TensorSource { hf_name, gguf_name, shape, interleaved_heads });
        Ok(())
    }
}

fn missing(header: &Header, gguf_name: &str) -> GgufError {
    GgufError::MissingTensor { file: header.file.clone(), tensor: gguf_name.to_owned() }
}

fn refuse_others(header: &Header, shape: &DecoderShape, sources: &[TensorSource]) -> Result<(), GgufError> {
    let known: HashSet<&str> = sources.iter().map(|source| source.gguf_name.as_str()).collect();
    let others = header.tensors.keys().filter(|name| !known.contains(name.as_str()) && *name != FREQS_TENSOR);
    match others.min() {
        Some(name) => Err(GgufError::UnexpectedTensor {
            file: header.file.clone(),
            tensor: name.clone(),
            architecture: shape.architecture.model_type(),
        }),
        None => Ok(()),
    }
}
