//! Linear projection, with an optional low-rank adapter (LoRA, <https://arxiv.org/abs/2106.09685>):
//! `y = x Wᵀ + b + alpha / rank · dropout(x) Aᵀ Bᵀ`.

use crate::lora::LoraConfig;
use tch::{Device, Kind, Tensor, nn};

/// What a pass makes of the adapters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Adapters {
    /// As if there were none: the base model.
    Off,
    /// As they are.
    On,
    /// With their dropout.
    Training,
}

/// `A [rank, inputs]`, `B [outputs, rank]`, always f32: steps of an optimiser vanish in bf16.
#[derive(Debug)]
pub(super) struct Lora {
    pub(super) a: Tensor,
    pub(super) b: Tensor,
    scale: f64,
    dropout: f64,
}

/// A projection named as in the checkpoint. With a [`LoraConfig`] its own weights are frozen.
#[derive(Debug)]
pub struct Linear {
    pub(super) weight: Tensor,
    pub(super) bias: Option<Tensor>,
    pub(super) lora: Option<Lora>,
}

impl Linear {
    /// `outputs` x `inputs` zeros, to be loaded; `p` ends with layer, block and the projection's name. An adapter's A is
    /// drawn at random (uniform as PEFT's), B is zero, so that training starts from the base model exactly.
    pub fn new(p: nn::Path, inputs: usize, outputs: usize, bias: bool, lora: Option<&LoraConfig>) -> Self {
        let (inputs, outputs, options) = (inputs as i64, outputs as i64, (p.kind(), p.device()));
        let trainable = lora.is_none();
        let weight = p.add("weight", Tensor::zeros([outputs, inputs], options), trainable);
        let bias = bias.then(|| p.add("bias", Tensor::zeros([outputs], options), trainable));
        let names: Vec<&str> = p.components().collect();
        let layer = names.iter().rev().nth(2).and_then(|layer| layer.parse().ok()).unwrap_or(0);
        let lora = lora.filter(|lora| lora.covers(layer, names.last().copied().unwrap_or_default()));
        let lora = lora.map(|lora| {
            let (rank, options) = (lora.rank as i64, (Kind::Float, p.device()));
            let bound = 1.0 / (inputs as f64).sqrt();
            // Drawn on the CPU: a seed starts the same run on every device.
            let a = Tensor::zeros([rank, inputs], (Kind::Float, Device::Cpu)).uniform_(-bound, bound);
            let a = a.to_device(p.device());
            Lora {
                a: (&p / "lora_A").add("weight", a, true),
                b: (&p / "lora_B").add("weight", Tensor::zeros([outputs, rank], options), true),
                scale: lora.scale(),
                dropout: lora.dropout,
            }
        });
        Self { weight, bias, lora }
    }

    /// `[.., inputs]` to `[.., outputs]`, computed in the kind of `x`: f32 weights follow a bf16 input, which is
    /// mixed precision, and nothing is copied where the kinds agree.
    pub fn forward(&self, x: &Tensor, adapters: Adapters) -> Tensor {
        let kind = x.kind();
        let bias = self.bias.as_ref().map(|bias| bias.to_kind(kind));
        let y = x.linear(&self.weight.to_kind(kind), bias);
        match self.lora.as_ref().filter(|_| adapters != Adapters::Off) {
            None => y,
            Some(lora) => {
                let inner = match adapters == Adapters::Training && lora.dropout > 0.0 {
                    true => x.dropout(lora.dropout, true),
                    false => x.shallow_clone(),
                };
                let inner = inner.linear(&lora.a.to_kind(kind), None::<&Tensor>);
                // The scale goes into the small matrix and the sum into the product: two passes over y less.
                let b = (&lora.b * lora.scale).to_kind(kind);
                let (rank, outputs) = (lora.a.size()[0], lora.b.size()[0]);
                y.reshape([-1, outputs]).addmm(&inner.reshape([-1, rank]), &b.tr()).reshape(y.size())
            }
        }
    }

    /// The weight with the adapter added, `W + alpha / rank · B A`, as a plain model would have it.
    pub fn merge(&self) -> Tensor {
        match &self.lora {
            None => self.weight.detach(),
            Some(lora) => {
                let delta = lora.b.detach().matmul(&lora.a.detach()) * lora.scale;
                (self.weight.detach().to_kind(Kind::Float) + delta).to_kind(self.weight.kind())
            }
        }
    }
}
