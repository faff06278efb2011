//! Rotary position embedding (RoFormer, <https://arxiv.org/abs/2104.09864>), in the half-split layout of Hugging
//! Face checkpoints: number i of a head turns together with number i + head_dim / 2.

use tch::{Device, Kind, Tensor};

use crate::config::DecoderConfig;

/// Frequencies of one model.
#[derive(Debug)]
pub struct Rotary {
    /// `[head_dim / 2]`, f32.
    inverse_frequencies: Tensor,
}

/// Cosine and sine of every position of a batch, computed once and shared by all layers.
#[derive(Debug)]
pub struct Angles {
    /// `[1 or batch, 1, seq, head_dim / 2]`, as `sin`.
    cos: Tensor,
    sin: Tensor,
}

impl Rotary {
    /// Frequencies as `config.json` asks for (`inverse_frequencies`).
    pub fn new(cfg: &DecoderConfig, device: Device) -> Self {
        Self { inverse_frequencies: Tensor::from_slice(&cfg.inverse_frequencies()).to_device(device) }
    }

    /// `positions` is `[1 or batch, seq]`. The angle is computed in f32 (bf16 counts only to 256 exactly), its
    /// cosine and sine are then rounded to `kind`.
    pub fn angles(&self, positions: &Tensor, kind: Kind) -> Angles {
        let positions = positions.to_kind(Kind::Float).unsqueeze(1).unsqueeze(-1);
        let angles = positions * &self.inverse_frequencies;
        Angles { cos: angles.cos().to_kind(kind), sin: angles.sin().to_kind(kind) }
    }
}

impl Angles {
    /// Turns queries or keys `[batch, heads, seq, head_dim]`.
    pub fn rotate(&self, x: &Tensor) -> Tensor {
        let half = x.size().last().map_or(0, |size| size / 2);
        let (first, second) = (x.narrow(-1, 0, half), x.narrow(-1, half, half));
        let turned_first = &first * &self.cos - &second * &self.sin;
        let turned_second = second * &self.cos + first * &self.sin;
        Tensor::cat(&[turned_first, turned_second], -1)
    }
}
