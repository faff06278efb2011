//! Linear projection, with an optional low-rank adapter (LoRA, <https://arxiv.org/abs/2106.09685>):
//! `y = x Wᵀ + b + alpha / rank · dropout(x) Aᵀ Bᵀ`.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor, nn};

/// Projections of a layer, which an adapter can target.
pub const PROJECTIONS: [&str; 7] =
    ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// Low-rank adapters: field names of PEFT's `adapter_config.json` in the file, plain ones accepted too.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoraConfig {
    /// Inner width of an adapter.
    #[serde(rename = "r", alias = "rank")]
    pub rank: usize,
    /// The adapter's output is multiplied by `alpha / rank`.
    #[serde(rename = "lora_alpha", alias = "alpha")]
    pub alpha: f64,
    /// Share of the adapter's inputs set to zero in training.
    #[serde(rename = "lora_dropout", alias = "dropout", default)]
    pub dropout: f64,
    /// Which of [`PROJECTIONS`] get one.
    pub target_modules: Vec<String>,
}

impl Default for LoraConfig {
    /// Rank 16 on all projections.
    fn default() -> Self {
        let target_modules = PROJECTIONS.map(str::to_owned).to_vec();
        Self { rank: 16, alpha: 32.0, dropout: 0.05, target_modules }
    }
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
    /// `outputs` x `inputs` zeros, to be loaded; `p` ends with the projection's name. An adapter's A is drawn
    /// at random (uniform as PEFT's), B is zero, so that training starts from the base model exactly.
    pub fn new(p: nn::Path, inputs: usize, outputs: usize, bias: bool, lora: Option<&LoraConfig>) -> Self {
        let (inputs, outputs, options) = (inputs as i64, outputs as i64, (p.kind(), p.device()));
        let trainable = lora.is_none();
        let weight = p.add("weight", Tensor::zeros([outputs, inputs], options), trainable);
        let bias = bias.then(|| p.add("bias", Tensor::zeros([outputs], options), trainable));
        let name = p.components().last().unwrap_or_default();
        let lora = lora.filter(|lora| lora.target_modules.iter().any(|target| target == name));
        let lora = lora.map(|lora| {
            let (rank, options) = (lora.rank as i64, (Kind::Float, p.device()));
            let bound = 1.0 / (inputs as f64).sqrt();
            let a = Tensor::zeros([rank, inputs], options).uniform_(-bound, bound);
            Lora {
                a: (&p / "lora_A").add("weight", a, true),
                b: (&p / "lora_B").add("weight", Tensor::zeros([outputs, rank], options), true),
                scale: lora.alpha / lora.rank as f64,
                dropout: lora.dropout,
            }
        });
        Self { weight, bias, lora }
    }

    /// `[.., inputs]` to `[.., outputs]`, computed in the kind of `x`: f32 weights follow a bf16 input, which is
    /// mixed precision, and nothing is copied where the kinds agree. `train` switches the adapter's dropout on.
    pub fn forward(&self, x: &Tensor, train: bool) -> Tensor {
        let kind = x.kind();
        let bias = self.bias.as_ref().map(|bias| bias.to_kind(kind));
        let y = x.linear(&self.weight.to_kind(kind), bias);
        match &self.lora {
            None => y,
            Some(lora) => {
                let inner = match train && lora.dropout > 0.0 {
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
