//! The LLM in turned coordinates: the same function, without the few channels whose numbers dwarf all others.
//!
//! Decoders keep a handful of huge channels in the residual stream, and one scale for all channels leaves the others few
//! steps. A rotation of the stream changes nothing (RMS norm sees lengths only, once its gain is part of the maps
//! behind it), can be multiplied into the weights for good, and spreads those channels over all
//! (QuaRot, <https://arxiv.org/abs/2404.00456>). What attention hands to `o_proj` is turned likewise, head by head.
//! No rotation can stand behind the gate of a feed-forward block: neurons there are divided instead, where a calibration says so.
//! Latents are turned back at the end, one row for each text.

use crate::error::ExportError;
use models::config::DecoderConfig;
use models::weights::{Weights, WeightsError};
use std::f64::consts::{PI, SQRT_2};

/// An orthogonal map `x' = T x` that is quick to apply: signs, a cosine transform over the odd factor of the size, and a
/// Hadamard transform over its power of two. Every number of x reaches every number of x'.
#[derive(Debug, Clone)]
pub struct Rotation {
    signs: Vec<f32>,
    /// `[odd, odd]`, the odd factor's cosines.
    cosines: Vec<f32>,
    odd: usize,
}

impl Rotation {
    /// Of vectors of this size; the same for every model of that size.
    pub fn new(size: usize) -> Self {
        let odd = if size == 0 { 1 } else { size >> size.trailing_zeros() };
        let cosine = |row: usize, column: usize| {
            let angle = PI / odd as f64 * (column as f64 + 0.5) * row as f64;
            let length = (odd as f64).sqrt();
            (if row == 0 { 1.0 } else { SQRT_2 * angle.cos() }) / length
        };
        let cosines = (0..odd * odd).map(|i| cosine(i / odd, i % odd) as f32).collect();
        // Splitmix64: signs without a pattern of their own, always the same.
        let sign = |i: usize| {
            let mut z = (i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            if (z ^ (z >> 31)) & 1 == 0 { 1.0 } else { -1.0 }
        };
        Self { signs: (0..size).map(sign).collect(), cosines, odd }
    }

    /// Size of the vectors.
    pub fn size(&self) -> usize {
        self.signs.len()
    }

    /// Turns a vector in place.
    pub fn apply(&self, x: &mut [f32]) {
        x.iter_mut().zip(&self.signs).for_each(|(x, sign)| *x *= sign);
        if self.odd > 1 {
            let mut turned = vec![0f32; self.odd];
            for block in x.chunks_exact_mut(self.odd) {
                for (y, row) in turned.iter_mut().zip(self.cosines.chunks_exact(self.odd)) {
                    *y = row.iter().zip(&*block).map(|(c, x)| c * x).sum();
                }
                block.copy_from_slice(&turned);
            }
        }
        let power = x.len() / self.odd;
        let mut half = 1;
        while half < power {
            for start in (0..power).step_by(2 * half) {
                for block in start..start + half {
                    for i in 0..self.odd {
                        let (a, b) = (block * self.odd + i, (block + half) * self.odd + i);
                        (x[a], x[b]) = (x[a] + x[b], x[a] - x[b]);
                    }
                }
            }
            half *= 2;
        }
        let length = (power as f32).sqrt().recip();
        x.iter_mut().for_each(|x| *x *= length);
    }

    /// `[size, size]`, what a turned row vector is multiplied by from the right to be turned back.
    pub fn back(&self) -> Vec<f32> {
        let n = self.size();
        let mut matrix = vec![0f32; n * n];
        let mut unit = vec![0f32; n];
        for column in 0..n {
            unit.fill(0.0);
            unit[column] = 1.0;
            self.apply(&mut unit);
            for (row, value) in unit.iter().enumerate() {
                matrix[row * n + column] = *value;
            }
        }
        matrix
    }
}

/// A checkpoint in turned coordinates.
#[derive(Debug)]
pub struct Turned {
    /// Of the residual stream.
    pub stream: Rotation,
    /// Of what one head of `v_proj` makes.
    head: Rotation,
    /// Gains of each layer's two norms, which become part of the maps behind them.
    gains: Vec<[Vec<f32>; 2]>,
    /// By layer, what each neuron of the feed-forward block is divided by before `down_proj`; none where none is.
    neurons: Vec<Vec<f32>>,
}

/// One side of a linear map.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    /// As it was.
    Plain,
    /// The residual stream.
    Stream,
    /// The residual stream behind a norm of the layer: 0 before attention, 1 before the feed-forward block.
    Normed(usize),
    /// Heads one after the other.
    Heads,
    /// The gated neurons of the layer's feed-forward block.
    Neurons,
}

impl Turned {
    /// Of a checkpoint whose names and shapes have been checked. `neurons` are divisors by layer (SmoothQuant,
    /// <https://arxiv.org/abs/2211.10438>, at the one place where no rotation can stand: behind the gate); fewer layers, or none,
    /// leave the rest as they are.
    pub fn new(
        weights: &Weights,
        config: &DecoderConfig,
        neurons: Vec<Vec<f32>>,
    ) -> Result<Self, ExportError> {
        let gain = |layer: usize, norm: &str| -> Result<Vec<f32>, WeightsError> {
            Ok(weights.f32(&format!("model.layers.{layer}.{norm}.weight"))?.1)
        };
        let gains = (0..config.num_hidden_layers).map(|layer| {
            Ok::<_, WeightsError>([gain(layer, "input_layernorm")?, gain(layer, "post_attention_layernorm")?])
        });
        Ok(Self {
            stream: Rotation::new(config.hidden_size),
            head: Rotation::new(config.head_dim),
            gains: gains.collect::<Result<_, _>>()?,
            neurons,
        })
    }

    /// Turns a tensor of the checkpoint, or of an adapter of it, in place; it is called by its name.
    pub fn turn(&self, name: &str, shape: &[usize], values: &mut [f32]) {
        if name == "model.embed_tokens.weight" {
            values.chunks_exact_mut(self.stream.size()).for_each(|row| self.stream.apply(row));
            return;
        }
        let parts: Vec<&str> = name.split('.').collect();
        let ["model", "layers", layer, rest @ ..] = &parts[..] else { return };
        let Ok(layer) = layer.parse::<usize>() else { return };
        let Some(gains) = self.gains.get(layer) else { return };
        let divisors = self.neurons.get(layer).map_or(&[][..], Vec::as_slice);
        let (projection, leaf) = match rest {
            ["input_layernorm" | "post_attention_layernorm", "weight"] => return values.fill(1.0),
            [_, projection, leaf] => (*projection, *leaf),
            [_, projection, leaf, "weight"] => (*projection, *leaf),
            _ => return,
        };
        let (input, output) = match projection {
            "q_proj" | "k_proj" => (Side::Normed(0), Side::Plain),
            "v_proj" => (Side::Normed(0), Side::Heads),
            "o_proj" => (Side::Heads, Side::Stream),
            "gate_proj" => (Side::Normed(1), Side::Plain),
            "up_proj" => (Side::Normed(1), Side::Neurons),
            "down_proj" => (Side::Neurons, Side::Stream),
            _ => return,
        };
        let columns = if shape.len() == 2 { shape[1] } else { 1 };
        if matches!(leaf, "weight" | "lora_A") {
            for row in values.chunks_exact_mut(columns.max(1)) {
                match input {
                    Side::Normed(norm) => row.iter_mut().zip(&gains[norm]).for_each(|(w, gain)| *w *= gain),
                    Side::Neurons => row.iter_mut().zip(divisors).for_each(|(w, divisor)| *w *= divisor),
                    _ => {}
                }
                self.along(input, row);
            }
        }
        if matches!(leaf, "weight" | "lora_B" | "bias") && output == Side::Neurons {
            let rows = values.chunks_exact_mut(columns.max(1)).zip(divisors);
            rows.for_each(|(row, divisor)| row.iter_mut().for_each(|w| *w /= divisor));
        } else if matches!(leaf, "weight" | "lora_B" | "bias") && output != Side::Plain {
            let rows = values.len() / columns.max(1);
            let mut column = vec![0f32; rows];
            for place in 0..columns {
                let of_column = || (0..rows).map(|row| row * columns + place);
                column.iter_mut().zip(of_column()).for_each(|(to, from)| *to = values[from]);
                self.along(output, &mut column);
                column.iter().zip(of_column()).for_each(|(from, to)| values[to] = *from);
            }
        }
    }

    fn along(&self, side: Side, vector: &mut [f32]) {
        match side {
            Side::Plain | Side::Neurons => {}
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

    /// Were it not orthogonal, every latent of every few-bit bundle would be off, by little enough to go unnoticed.
    #[test]
    fn rotations_keep_lengths_reach_everywhere_and_have_a_way_back() {
        for size in [1, 2, 6, 64, 96, 576] {
            let rotation = Rotation::new(size);
            let back = rotation.back();
            let vector: Vec<f32> = (0..size).map(|i| ((i * 7919) % 31) as f32 - 15.0).collect();
            let mut turned = vector.clone();
            rotation.apply(&mut turned);
            let square = |x: &[f32]| x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
            assert!((square(&turned) / square(&vector) - 1.0).abs() < 1e-5, "{size}");
            for (column, expected) in vector.iter().enumerate() {
                let found: f32 =
                    turned.iter().enumerate().map(|(row, x)| x * back[row * size + column]).sum();
                assert!((found - expected).abs() < 1e-4, "{size}: {found} instead of {expected}");
            }
            // The one huge channel that all of this is about.
            let mut huge = vec![0f32; size];
            huge[size / 2] = 1000.0;
            rotation.apply(&mut huge);
            let most = huge.iter().fold(0f32, |most, x| most.max(x.abs()));
            assert!(most <= 1000.0 * SQRT_2 as f32 / (size as f32).sqrt() + 1e-3, "{size}: {most}");
        }
    }

    /// What divides a neuron must multiply whatever reads it, in the checkpoint as in an adapter of it.
    #[test]
    fn divided_neurons_leave_the_function() {
        let of = |neurons: Vec<Vec<f32>>| Turned {
            stream: Rotation::new(4),
            head: Rotation::new(2),
            gains: vec![[vec![1.0; 4], vec![0.5, 2.0, 1.5, 3.0]]],
            neurons,
        };
        let (hidden, neurons, rank) = (4, 3, 2);
        let tensor = |turned: &Turned, name: &str, shape: &[usize]| {
            let size = shape.iter().product::<usize>();
            let mut values: Vec<f32> = (0..size).map(|i| ((i * 31 + name.len()) % 17) as f32 - 8.0).collect();
            turned.turn(&format!("model.layers.0.mlp.{name}"), shape, &mut values);
            values
        };
        let map = |w: &[f32], x: &[f32]| -> Vec<f32> {
            w.chunks_exact(x.len()).map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
        };
        let x = [1.0, -2.0, 0.5, 3.0];
        let feed_forward = |turned: &Turned| -> [Vec<f32>; 2] {
            let branch = |leaf: &str, x: &[f32], rows: usize| {
                let a = tensor(turned, &format!("{leaf}.lora_A.weight"), &[rank, x.len()]);
                let b = tensor(turned, &format!("{leaf}.lora_B.weight"), &[rows, rank]);
                map(&b, &map(&a, x))
            };
            let sum =
                |a: Vec<f32>, b: Vec<f32>| -> Vec<f32> { a.iter().zip(b).map(|(a, b)| a + b).collect() };
            let up = map(&tensor(turned, "up_proj.weight", &[neurons, hidden]), &x);
            let up = sum(sum(up, tensor(turned, "up_proj.bias", &[neurons])), branch("up_proj", &x, neurons));
            let down = map(&tensor(turned, "down_proj.weight", &[hidden, neurons]), &up);
            let down = sum(down, branch("down_proj", &up, hidden));
            [up, down]
        };
        let [up, down] = feed_forward(&of(Vec::new()));
        let divisors = vec![4.0, 0.5, 2.0];
        let [divided, same] = feed_forward(&of(vec![divisors.clone()]));
        let expected: Vec<f32> = up.iter().zip(&divisors).map(|(up, divisor)| up / divisor).collect();
        let near = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-3);
        assert!(near(&divided, &expected), "{divided:?} {expected:?}");
        assert!(near(&same, &down), "{same:?} {down:?}");
        assert!(!near(&up, &divided));
    }
}
