//! The LLM in a rotated basis: the same function, without the outlier channels.
//!
//! Decoders have a few channels in the residual stream whose activations are far larger than all others; one scale for
//! all channels then leaves the others few steps. A rotation of the stream changes nothing (RMS norm depends on lengths only,
//! once its weight is folded into the linear layers behind it), can be multiplied into the weights for good, and spreads those
//! channels over all. The input of `o_proj` is rotated likewise, head by head. Behind the gate of a feed-forward block no
//! rotation is possible: there a calibration gives SmoothQuant scales. Latents are rotated back at the end, one row per text.

use crate::error::ExportError;
use crate::quantise::rotation::Rotation;
use models::config::DecoderConfig;
use models::weights::{Weights, WeightsError};

/// How a checkpoint's tensors are written in the rotated basis.
#[derive(Debug)]
pub struct RotatedBasis {
    /// Of the residual stream.
    pub stream: Rotation,
    /// Of one head of `v_proj`'s output.
    head: Rotation,
    /// Weights of each layer's two norms, which are folded into the linear layers behind them.
    norms: Vec<[Vec<f32>; 2]>,
    /// SmoothQuant scales of `down_proj`'s input channels, by layer; none where nothing is scaled.
    smoothquant: Vec<Vec<f32>>,
}

/// What the input or output of a linear layer is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    /// In the original basis.
    Original,
    /// The residual stream.
    Stream,
    /// The residual stream behind a norm of the layer: 0 before attention, 1 before the feed-forward block.
    Normed(usize),
    /// The heads of attention, side by side.
    Heads,
    /// The gated activations of the layer's feed-forward block.
    Gated,
}

impl RotatedBasis {
    /// For a checkpoint whose names and shapes have been checked. `smoothquant` are the scales of `down_proj`'s input channels
    /// by layer; layers without scales are not scaled.
    pub fn new(
        weights: &Weights,
        config: &DecoderConfig,
        smoothquant: Vec<Vec<f32>>,
    ) -> Result<Self, ExportError> {
        let weight = |layer: usize, norm: &str| -> Result<Vec<f32>, WeightsError> {
            Ok(weights.f32(&format!("model.layers.{layer}.{norm}.weight"))?.1)
        };
        let norms = (0..config.num_hidden_layers).map(|layer| {
            let input = weight(layer, "input_layernorm")?;
            Ok::<_, WeightsError>([input, weight(layer, "post_attention_layernorm")?])
        });
        Ok(Self {
            stream: Rotation::new(config.hidden_size),
            head: Rotation::new(config.head_dim),
            norms: norms.collect::<Result<_, _>>()?,
            smoothquant,
        })
    }

    /// Writes a tensor of the checkpoint, or of an adapter of it, in the rotated basis, in place. Its name says which it is.
    pub fn apply(&self, name: &str, shape: &[usize], values: &mut [f32]) {
        if name == "model.embed_tokens.weight" {
            values.chunks_exact_mut(self.stream.size()).for_each(|row| self.stream.apply(row));
            return;
        }
        let parts: Vec<&str> = name.split('.').collect();
        let ["model", "layers", layer, rest @ ..] = &parts[..] else { return };
        let Ok(layer) = layer.parse::<usize>() else { return };
        let Some(norms) = self.norms.get(layer) else { return };
        let scales = self.smoothquant.get(layer).map_or(&[][..], Vec::as_slice);
        let (projection, leaf) = match rest {
            ["input_layernorm" | "post_attention_layernorm", "weight"] => return values.fill(1.0),
            [_, projection, leaf] => (*projection, *leaf),
            [_, projection, leaf, "weight"] => (*projection, *leaf),
            _ => return,
        };
        let (input, output) = match projection {
            "q_proj" | "k_proj" => (Side::Normed(0), Side::Original),
            "v_proj" => (Side::Normed(0), Side::Heads),
            "o_proj" => (Side::Heads, Side::Stream),
            "gate_proj" => (Side::Normed(1), Side::Original),
            "up_proj" => (Side::Normed(1), Side::Gated),
            "down_proj" => (Side::Gated, Side::Stream),
            _ => return,
        };
        let columns = if shape.len() == 2 { shape[1] } else { 1 };
        if matches!(leaf, "weight" | "lora_A") {
            for row in values.chunks_exact_mut(columns.max(1)) {
                match input {
                    Side::Normed(norm) => {
                        row.iter_mut().zip(&norms[norm]).for_each(|(w, weight)| *w *= weight)
                    }
                    Side::Gated => row.iter_mut().zip(scales).for_each(|(w, scale)| *w *= scale),
                    _ => {}
                }
                self.rotate(input, row);
            }
        }
        if matches!(leaf, "weight" | "lora_B" | "bias") && output == Side::Gated {
            let rows = values.chunks_exact_mut(columns.max(1)).zip(scales);
            rows.for_each(|(row, scale)| row.iter_mut().for_each(|w| *w /= scale));
        } else if matches!(leaf, "weight" | "lora_B" | "bias") && output != Side::Original {
            let rows = values.len() / columns.max(1);
            let mut column = vec![0f32; rows];
            for index in 0..columns {
                let of_column = || (0..rows).map(|row| row * columns + index);
                column.iter_mut().zip(of_column()).for_each(|(to, from)| *to = values[from]);
                self.rotate(output, &mut column);
                column.iter().zip(of_column()).for_each(|(from, to)| values[to] = *from);
            }
        }
    }

    fn rotate(&self, side: Side, vector: &mut [f32]) {
        match side {
            Side::Original | Side::Gated => {}
            Side::Stream | Side::Normed(_) => self.stream.apply(vector),
            Side::Heads => {
                vector.chunks_exact_mut(self.head.size()).for_each(|head| self.head.apply(head));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where the output channel is divided, the input channel of the next layer must be multiplied, in the checkpoint and in
    /// an adapter of it alike: otherwise every document's latent changes.
    #[test]
    fn smoothquant_scales_do_not_change_the_function() {
        let basis = |smoothquant: Vec<Vec<f32>>| RotatedBasis {
            stream: Rotation::new(4),
            head: Rotation::new(2),
            norms: vec![[vec![1.0; 4], vec![0.5, 2.0, 1.5, 3.0]]],
            smoothquant,
        };
        let (hidden, inner, rank) = (4, 3, 2);
        let tensor = |basis: &RotatedBasis, name: &str, shape: &[usize]| {
            let size = shape.iter().product::<usize>();
            let mut values: Vec<f32> = (0..size).map(|i| ((i * 31 + name.len()) % 17) as f32 - 8.0).collect();
            basis.apply(&format!("model.layers.0.mlp.{name}"), shape, &mut values);
            values
        };
        let linear = |w: &[f32], x: &[f32]| -> Vec<f32> {
            w.chunks_exact(x.len()).map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
        };
        let x = [1.0, -2.0, 0.5, 3.0];
        let feed_forward = |basis: &RotatedBasis| -> [Vec<f32>; 2] {
            let branch = |leaf: &str, x: &[f32], rows: usize| {
                let a = tensor(basis, &format!("{leaf}.lora_A.weight"), &[rank, x.len()]);
                let b = tensor(basis, &format!("{leaf}.lora_B.weight"), &[rows, rank]);
                linear(&b, &linear(&a, x))
            };
            let sum =
                |a: Vec<f32>, b: Vec<f32>| -> Vec<f32> { a.iter().zip(b).map(|(a, b)| a + b).collect() };
            let up = linear(&tensor(basis, "up_proj.weight", &[inner, hidden]), &x);
            let up = sum(sum(up, tensor(basis, "up_proj.bias", &[inner])), branch("up_proj", &x, inner));
            let down = linear(&tensor(basis, "down_proj.weight", &[hidden, inner]), &up);
            let down = sum(down, branch("down_proj", &up, hidden));
            [up, down]
        };
        let [up, down] = feed_forward(&basis(Vec::new()));
        let scales = vec![4.0, 0.5, 2.0];
        let [scaled, same] = feed_forward(&basis(vec![scales.clone()]));
        let expected: Vec<f32> = up.iter().zip(&scales).map(|(up, scale)| up / scale).collect();
        let near = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-3);
        assert!(near(&scaled, &expected), "{scaled:?} {expected:?}");
        assert!(near(&same, &down), "{same:?} {down:?}");
        assert!(!near(&up, &scaled));
    }
}
