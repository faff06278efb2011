//! Root mean square norm (<https://arxiv.org/abs/1910.07467>): `x / sqrt(mean(x²) + eps) * weight`.

use tch::{Kind, Tensor, nn};

/// Norm over the last dimension, or over each head's numbers where the input is `[.., heads, head_dim]`.
#[derive(Debug)]
pub struct RmsNorm {
    pub(super) weight: Tensor,
    eps: f64,
}

impl RmsNorm {
    /// A norm over `size` numbers.
    pub fn new(p: &nn::Path, size: usize, eps: f64, trainable: bool) -> Self {
        let weight = p.add("weight", Tensor::ones([size as i64], (p.kind(), p.device())), trainable);
        Self { weight, eps }
    }

    /// `[.., size]` in and out, out in `kind`. Mean and root are taken in f32 whatever the input is: the few
    /// massive dimensions of a language model overflow f16 when squared.
    pub fn forward(&self, x: &Tensor, kind: Kind) -> Tensor {
        let weight = self.weight.to_kind(x.kind());
        x.rms_norm(self.weight.size(), Some(weight), self.eps).to_kind(kind)
    }
}
