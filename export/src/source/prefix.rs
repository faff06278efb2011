//! Keys and values of the prompt before a text, computed once at export because they are the same in every pass.
//!
//! A graph that holds them reads the text alone. That saves the prompt's tokens (six of SmolLM2's template, for a sentence of
//! ten), and in 8 bits it is worth more than that: the first token of a decoder is an attention sink, with activations a
//! thousand times larger than those of all other tokens (3065 in layer 11 of SmolLM2-135M, others below 2). Without that token
//! one scale is enough for all others.
//!
//! Plain loops in f32 with sums in f64, for a handful of tokens, with the same weights that the graph gets.

use crate::error::ExportError;
use crate::matrix::Matrix;
use crate::source::adapter::QUERY_PREFIX;
use crate::source::llm::Llm;
use models::config::DecoderConfig;

/// Keys and values of several prompts, all layers, for the graph.
#[derive(Debug)]
pub struct PrefixStates {
    /// Token ids of each prompt.
    pub ids: Vec<Vec<u32>>,
    /// `[prompts, 2 * layers, key/value heads, longest, head_dim]`: layer 0's keys, layer 0's values, layer 1's keys, ...;
    /// keys are after rotary embedding; zeros behind a shorter prompt's end.
    pub values: Vec<f32>,
    /// Shape of `values`.
    pub shape: [usize; 5],
}

/// Runs `layers` layers on each prompt, the query's with the LLM's query adapter.
pub fn prefix_states(
    llm: &mut Llm,
    config: &DecoderConfig,
    layers: usize,
    ids: &[Vec<u32>],
) -> Result<PrefixStates, ExportError> {
    let longest = ids.iter().map(Vec::len).max().unwrap_or(0);
    let (heads, head_dim) = (config.num_key_value_heads, config.head_dim);
    let shape = [ids.len(), 2 * layers, heads, longest, head_dim];
    let mut values = vec![0f32; shape.iter().product()];
    let table = llm.base.matrix("model.embed_tokens.weight")?;
    let row = |id: &u32| {
        let start = *id as usize * table.columns;
        table.values[start..start + table.columns].to_vec()
    };
    let mut streams: Vec<Rows> = ids.iter().map(|ids| ids.iter().map(row).collect()).collect();
    drop(table);
    for layer in 0..layers {
        let plain = Layer::read(llm, config, layer, false)?;
        let adapted = match llm.adapter {
            Some(_) => Some(Layer::read(llm, config, layer, true)?),
            None => None,
        };
        for (prompt, stream) in streams.iter_mut().enumerate() {
            let weights = adapted.as_ref().filter(|_| prompt == QUERY_PREFIX).unwrap_or(&plain);
            let (keys, heads_values) = weights.advance(config, stream);
            for (part, states) in [keys, heads_values].iter().enumerate() {
                for (position, token) in states.iter().enumerate() {
                    for (head, state) in token.chunks(head_dim).enumerate() {
                        let outer = (prompt * 2 * layers + 2 * layer + part) * heads + head;
                        let start = (outer * longest + position) * head_dim;
                        values[start..start + head_dim].copy_from_slice(state);
                    }
                }
            }
        }
    }
    Ok(PrefixStates { ids: ids.to_vec(), values, shape })
}

/// One vector per token.
type Rows = Vec<Vec<f32>>;

/// A linear layer with its bias.
struct Linear {
    weight: Matrix,
    bias: Option<Vec<f32>>,
}

impl Linear {
    fn read(llm: &mut Llm, name: &str, bias: bool, adapted: bool) -> Result<Self, ExportError> {
        let mut weight = llm.base.matrix(&format!("{name}.weight"))?;
        if let Some(adapter) = llm.adapter.as_mut().filter(|_| adapted) {
            adapter.merge(name, &mut weight)?;
        }
        let bias = bias.then(|| llm.base.vector(&format!("{name}.bias"))).transpose()?;
        Ok(Self { weight, bias })
    }

    fn apply(&self, x: &[f32]) -> Vec<f32> {
        let rows = self.weight.values.chunks_exact(self.weight.columns).enumerate();
        rows.map(|(i, row)| dot(row, x) + self.bias.as_ref().map_or(0.0, |bias| bias[i])).collect()
    }
}

/// Weights of one layer.
struct Layer {
    input_norm: Vec<f32>,
    post_norm: Vec<f32>,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    head_norms: Option<[Vec<f32>; 2]>,
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl Layer {
    fn read(llm: &mut Llm, config: &DecoderConfig, layer: usize, adapted: bool) -> Result<Self, ExportError> {
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        let (qkv, mlp) = (config.has_qkv_bias(), config.has_mlp_bias());
        let head_norms = match config.has_qk_norm() {
            false => None,
            true => Some([
                llm.base.vector(&name("self_attn.q_norm.weight"))?,
                llm.base.vector(&name("self_attn.k_norm.weight"))?,
            ]),
        };
        let mut linear = |part: &str, bias| Linear::read(llm, &name(part), bias, adapted);
        Ok(Self {
            q: linear("self_attn.q_proj", qkv)?,
            k: linear("self_attn.k_proj", qkv)?,
            v: linear("self_attn.v_proj", qkv)?,
            o: linear("self_attn.o_proj", config.has_o_bias())?,
            gate: linear("mlp.gate_proj", mlp)?,
            up: linear("mlp.up_proj", mlp)?,
            down: linear("mlp.down_proj", mlp)?,
            input_norm: llm.base.vector(&name("input_layernorm.weight"))?,
            post_norm: llm.base.vector(&name("post_attention_layernorm.weight"))?,
            head_norms,
        })
    }

    /// Runs the tokens through the layer; returns their keys after rotary embedding and their values.
    fn advance(&self, config: &DecoderConfig, stream: &mut Rows) -> (Rows, Rows) {
        let (eps, head_dim) = (config.rms_norm_eps, config.head_dim);
        let frequencies = config.inverse_frequencies();
        let rotated = |linear: &Linear, norm: usize, x: &[f32], position: usize| -> Vec<f32> {
            let mut all = linear.apply(x);
            for head in all.chunks_mut(head_dim) {
                if let Some(norms) = &self.head_norms {
                    let normed = rms_norm(head, &norms[norm], eps);
                    head.copy_from_slice(&normed);
                }
                rotate(head, &frequencies, position);
            }
            all
        };
        let normed: Rows = stream.iter().map(|x| rms_norm(x, &self.input_norm, eps)).collect();
        let tokens = || normed.iter().enumerate();
        let queries: Rows = tokens().map(|(t, x)| rotated(&self.q, 0, x, t)).collect();
        let keys: Rows = tokens().map(|(t, x)| rotated(&self.k, 1, x, t)).collect();
        let values: Rows = normed.iter().map(|x| self.v.apply(x)).collect();
        let group = config.num_attention_heads / config.num_key_value_heads;
        for (t, x) in stream.iter_mut().enumerate() {
            let mut context = vec![0f32; queries[t].len()];
            for (h, query) in queries[t].chunks(head_dim).enumerate() {
                let part = h / group * head_dim..(h / group + 1) * head_dim;
                let scores: Vec<f64> = keys[..=t]
                    .iter()
                    .map(|key| f64::from(dot(query, &key[part.clone()])) / (head_dim as f64).sqrt())
                    .collect();
                let most = scores.iter().copied().fold(f64::MIN, f64::max);
                let shares: Vec<f64> = scores.iter().map(|score| (score - most).exp()).collect();
                let sum: f64 = shares.iter().sum();
                for (share, value) in shares.iter().zip(&values) {
                    for (c, v) in context[h * head_dim..].iter_mut().zip(&value[part.clone()]) {
                        *c += (share / sum) as f32 * v;
                    }
                }
            }
            add(x, &self.o.apply(&context));
        }
        for x in stream {
            let normed = rms_norm(x, &self.post_norm, eps);
            let (gate, up) = (self.gate.apply(&normed), self.up.apply(&normed));
            let inner: Vec<f32> = gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
            add(x, &self.down.apply(&inner));
        }
        (keys, values)
    }
}

fn rms_norm(x: &[f32], weight: &[f32], eps: f64) -> Vec<f32> {
    let square: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum();
    let scale = (square / x.len() as f64 + eps).sqrt().recip() as f32;
    x.iter().zip(weight).map(|(x, w)| x * scale * w).collect()
}

/// Half rotation, as in `emit/layers/rotary.rs`.
fn rotate(head: &mut [f32], frequencies: &[f32], position: usize) {
    let half = frequencies.len();
    for (i, frequency) in frequencies.iter().enumerate() {
        let (sin, cos) = f64::from(position as f32 * frequency).sin_cos();
        let (a, b) = (f64::from(head[i]), f64::from(head[i + half]));
        head[i] = (a * cos - b * sin) as f32;
        head[i + half] = (b * cos + a * sin) as f32;
    }
}

fn add(x: &mut [f32], y: &[f32]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

/// Sixteen sums side by side, which the compiler turns into vector instructions, joined in f64.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut sums = [0f32; LANES];
    let (a_blocks, b_blocks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest = a_blocks.remainder().iter().zip(b_blocks.remainder());
    let rest: f64 = rest.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
    for (a, b) in a_blocks.zip(b_blocks) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    (sums.iter().map(|sum| f64::from(*sum)).sum::<f64>() + rest) as f32
}
