//! The student in plain f64, written from the papers and transformers' `modeling_*.py`, not from the emitters: slow,
//! one text at a time, no tensors. What the graphs are held to where no libtorch is.

use super::Tensors;
use models::config::DecoderConfig;
use models::prompt::Encoded;
use models::student::{Form, Residual, StudentConfig};
use std::collections::HashMap;

pub struct Reference {
    pub config: DecoderConfig,
    pub student: StudentConfig,
    weights: HashMap<String, (usize, Vec<f64>)>,
}

/// Latent `[D]`, and the last token after the final norm `[H]`.
pub struct Encoding {
    pub latent: Vec<f64>,
    pub answer: Vec<f64>,
}

impl Reference {
    pub fn new(config: DecoderConfig, student: StudentConfig, llm: &Tensors, predictor: &Tensors) -> Self {
        let wide = |(name, shape, numbers): &(String, Vec<usize>, Vec<f32>)| {
            let columns = *shape.last().unwrap();
            (name.clone(), (columns, numbers.iter().map(|&n| f64::from(n)).collect()))
        };
        let weights = llm.iter().chain(predictor).map(wide).collect();
        Self { config, student, weights }
    }

    fn vector(&self, name: &str) -> &[f64] {
        &self.weights[name].1
    }

    /// `W x + b`, without b where there is none.
    fn linear(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let (columns, weight) = &self.weights[&format!("{name}.weight")];
        assert_eq!(*columns, x.len(), "{name}");
        let bias = self.weights.get(&format!("{name}.bias")).map(|(_, bias)| bias);
        let rows = weight.chunks(*columns).enumerate();
        rows.map(|(i, row)| dot(row, x) + bias.map_or(0.0, |bias| bias[i])).collect()
    }

    fn norm(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let scale = (dot(x, x) / x.len() as f64 + self.config.rms_norm_eps).sqrt();
        x.iter().zip(self.vector(&format!("{name}.weight"))).map(|(x, w)| x / scale * w).collect()
    }

    /// One head of one token, turned to `position`.
    fn rotate(&self, head: &[f64], position: usize) -> Vec<f64> {
        let half = head.len() / 2;
        let mut out = vec![0.0; head.len()];
        for (i, frequency) in self.config.inverse_frequencies().into_iter().enumerate() {
            let (sin, cos) = (position as f64 * f64::from(frequency)).sin_cos();
            out[i] = head[i] * cos - head[i + half] * sin;
            out[i + half] = head[i + half] * cos + head[i] * sin;
        }
        out
    }

    /// Heads of one projection for all tokens: `[token][head]`.
    fn heads(&self, layer: &str, part: &str, x: &[Vec<f64>]) -> Vec<Vec<Vec<f64>>> {
        let norm = format!("{layer}.self_attn.{part}_norm");
        let head = |head: &[f64], position| {
            if part == "v" {
                return head.to_vec();
            }
            match self.weights.contains_key(&format!("{norm}.weight")) {
                true => self.rotate(&self.norm(&norm, head), position),
                false => self.rotate(head, position),
            }
        };
        let tokens = x.iter().enumerate();
        tokens
            .map(|(position, x)| {
                let all = self.linear(&format!("{layer}.self_attn.{part}_proj"), x);
                all.chunks(self.config.head_dim).map(|chunk| head(chunk, position)).collect()
            })
            .collect()
    }

    fn attention(&self, layer: &str, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let [q, k, v] = ["q", "k", "v"].map(|part| self.heads(layer, part, x));
        let group = self.config.num_attention_heads / self.config.num_key_value_heads;
        let token = |t: usize| {
            let mut context = Vec::new();
            for (h, query) in q[t].iter().enumerate() {
                let scale = (self.config.head_dim as f64).sqrt();
                let scores: Vec<f64> = (0..=t).map(|s| dot(query, &k[s][h / group]) / scale).collect();
                let most = scores.iter().copied().fold(f64::MIN, f64::max);
                let shares: Vec<f64> = scores.iter().map(|s| (s - most).exp()).collect();
                let sum: f64 = shares.iter().sum();
                let mut head = vec![0.0; self.config.head_dim];
                for (s, share) in shares.iter().enumerate() {
                    add(&mut head, &v[s][h / group], share / sum);
                }
                context.extend(head);
            }
            self.linear(&format!("{layer}.self_attn.o_proj"), &context)
        };
        (0..x.len()).map(token).collect()
    }

    fn mlp(&self, layer: &str, x: &[f64]) -> Vec<f64> {
        let gate = self.linear(&format!("{layer}.mlp.gate_proj"), x);
        let up = self.linear(&format!("{layer}.mlp.up_proj"), x);
        let inner: Vec<f64> = gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
        self.linear(&format!("{layer}.mlp.down_proj"), &inner)
    }

    /// Hidden states of every layer, 0 = embedding: `[layer][token]`.
    fn hidden(&self, ids: &[u32]) -> Vec<Vec<Vec<f64>>> {
        let table: Vec<&[f64]> =
            self.vector("model.embed_tokens.weight").chunks(self.config.hidden_size).collect();
        let mut x: Vec<Vec<f64>> = ids.iter().map(|&id| table[id as usize].to_vec()).collect();
        let mut all = vec![x.clone()];
        for n in 0..self.config.num_hidden_layers {
            let layer = format!("model.layers.{n}");
            let normed: Vec<_> =
                x.iter().map(|x| self.norm(&format!("{layer}.input_layernorm"), x)).collect();
            for (x, y) in x.iter_mut().zip(self.attention(&layer, &normed)) {
                add(x, &y, 1.0);
            }
            for x in &mut x {
                let y = self.mlp(&layer, &self.norm(&format!("{layer}.post_attention_layernorm"), x));
                add(x, &y, 1.0);
            }
            all.push(x.clone());
        }
        all
    }

    pub fn encode(&self, pass: &Encoded) -> Encoding {
        let hidden = self.hidden(&pass.ids);
        let mut latent = Vec::new();
        for &layer in &self.student.latents.layers {
            let mut mean = vec![0.0; self.config.hidden_size];
            for token in pass.text.clone() {
                add(&mut mean, &hidden[layer][token], 1.0 / pass.text.len() as f64);
            }
            latent.extend(mean);
        }
        let last = hidden.last().unwrap().last().unwrap();
        Encoding { latent, answer: self.norm("model.norm", last) }
    }

    /// `(W_T - W_F) . P(e, z)`, as `models::student` writes the formulas.
    pub fn score(&self, query: &Encoding, document: &Encoding) -> f64 {
        let standardised = |side: &str, x: &[f64]| -> Vec<f64> {
            let (mean, std) = (self.vector(&format!("{side}.mean")), self.vector(&format!("{side}.std")));
            x.iter().zip(mean).zip(std).map(|((x, mean), std)| (x - mean) / std).collect()
        };
        let x = standardised("query", &query.latent);
        let z = standardised("document", &document.latent);
        let (uq, ud) = (self.linear("query_proj", &x), self.linear("document_proj", &z));
        let joined: Vec<f64> = match self.student.form {
            Form::Relu => uq.iter().zip(&ud).map(|(q, d)| (q + d).max(0.0)).collect(),
            Form::Gated => {
                let gate = self.linear("gate_proj", &x);
                let gated: Vec<f64> = uq.iter().zip(gate).map(|(u, g)| u / (1.0 + (-g).exp())).collect();
                let spread = length(&self.linear("document_norm", &ud));
                let query = length(&gated);
                gated.iter().zip(ud).map(|(q, d)| q / query * (d / spread)).collect()
            }
        };
        let mut predicted = self.linear("output_proj", &joined);
        match self.student.residual {
            Residual::LastToken => add(&mut predicted, &query.answer, 1.0),
            Residual::Pooled => add(&mut predicted, &self.linear("residual_proj", &x), 1.0),
        }
        let choice = self.linear("choice", &predicted);
        choice[0] - choice[1]
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(x: &mut [f64], y: &[f64], scale: f64) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += scale * y);
}

fn length(x: &[f64]) -> f64 {
    dot(x, x).sqrt().max(1e-12)
}
