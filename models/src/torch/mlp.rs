//! Gated feed-forward block (SwiGLU, <https://arxiv.org/abs/2002.05202>): `down(silu(gate(x)) * up(x))`.

use tch::{Tensor, nn};

use super::layers::{Adapters, Linear};
use crate::config::DecoderConfig;
use crate::lora::LoraConfig;

/// Feed-forward block; fields are checkpoint keys.
#[derive(Debug)]
pub struct Mlp {
    pub(super) gate_proj: Linear,
    pub(super) up_proj: Linear,
    pub(super) down_proj: Linear,
}

impl Mlp {
    /// The block under `p`.
    pub fn new(p: &nn::Path, cfg: &DecoderConfig, lora: Option<&LoraConfig>) -> Self {
        let (hidden, inner, bias) = (cfg.hidden_size, cfg.intermediate_size, cfg.has_mlp_bias());
        Self {
            gate_proj: Linear::new(p / "gate_proj", hidden, inner, bias, lora),
            up_proj: Linear::new(p / "up_proj", hidden, inner, bias, lora),
            down_proj: Linear::new(p / "down_proj", inner, hidden, bias, lora),
        }
    }

    /// `[batch, seq, hidden_size]` in and out.
    pub fn forward(&self, x: &Tensor, adapters: Adapters) -> Tensor {
        let gated = self.gate_proj.forward(x, adapters).silu() * self.up_proj.forward(x, adapters);
        self.down_proj.forward(&gated, adapters)
    }
}
