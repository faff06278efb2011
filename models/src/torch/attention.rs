//! Causal self-attention with grouped queries (<https://arxiv.org/abs/2305.13245>): several query heads share one
//! key and value head. Qwen3 norms each head's query and key before rotation.

use tch::{Device, Kind, Tensor, nn};

use super::layers::{Adapters, Linear};
use super::norm::RmsNorm;
use super::rotary::Angles;
use crate::config::DecoderConfig;
use crate::lora::LoraConfig;

/// Which keys a query sees.
#[derive(Debug)]
pub enum Mask {
    /// Query i sees keys 0 to i. Right padding needs nothing more: a text's own tokens stand before it.
    Causal,
    /// Every query sees every key: one new token behind an unpadded past.
    Full,
    /// Added to the scores, `[1 or batch, 1, seq, keys]`: 0 or minus infinity.
    Additive(Tensor),
}

impl Mask {
    /// Mask for `seq` new tokens behind a past of `past` columns, of which `valid` (`[batch, past]`, bool) hold a
    /// token; none where all do.
    pub fn behind_past(valid: Option<&Tensor>, past: i64, seq: i64, options: (Kind, tch::Device)) -> Self {
        if valid.is_none() && seq == 1 {
            return Self::Full;
        }
        let bool = (Kind::Bool, options.1);
        let past = match valid {
            Some(valid) => valid.unsqueeze(1).unsqueeze(1).expand([-1, -1, seq, -1], false),
            None => Tensor::ones([1, 1, seq, past], bool),
        };
        let batch = past.size().first().copied().unwrap_or(1);
        let new = Tensor::ones([seq, seq], bool).tril(0).expand([batch, 1, seq, seq], false);
        let seen = Tensor::cat(&[past, new], -1);
        Self::Additive(
            Tensor::zeros(seen.size(), options).masked_fill(&seen.logical_not(), f64::NEG_INFINITY),
        )
    }
}

/// Keys and values of one layer, `[batch, kv_heads, keys, head_dim]`, keys already turned.
#[derive(Debug)]
pub struct KeyValue {
    /// Keys.
    pub key: Tensor,
    /// Values.
    pub value: Tensor,
}

/// Attention block; fields are checkpoint keys.
#[derive(Debug)]
pub struct Attention {
    pub(super) q_proj: Linear,
    pub(super) k_proj: Linear,
    pub(super) v_proj: Linear,
    pub(super) o_proj: Linear,
    pub(super) q_norm: Option<RmsNorm>,
    pub(super) k_norm: Option<RmsNorm>,
    head_dim: i64,
    queries_per_key: i64,
}

impl Attention {
    /// The block under `p`.
    pub fn new(p: &nn::Path, cfg: &DecoderConfig, lora: Option<&LoraConfig>) -> Self {
        let (hidden, bias) = (cfg.hidden_size, cfg.has_qkv_bias());
        let (queries, keys) =
            (cfg.num_attention_heads * cfg.head_dim, cfg.num_key_value_heads * cfg.head_dim);
        let norm = |name| {
            cfg.has_qk_norm()
                .then(|| RmsNorm::new(&(p / name), cfg.head_dim, cfg.rms_norm_eps, lora.is_none()))
        };
        Self {
            q_proj: Linear::new(p / "q_proj", hidden, queries, bias, lora),
            k_proj: Linear::new(p / "k_proj", hidden, keys, bias, lora),
            v_proj: Linear::new(p / "v_proj", hidden, keys, bias, lora),
            o_proj: Linear::new(p / "o_proj", queries, hidden, cfg.has_o_bias(), lora),
            q_norm: norm("q_norm"),
            k_norm: norm("k_norm"),
            head_dim: cfg.head_dim as i64,
            queries_per_key: (cfg.num_attention_heads / cfg.num_key_value_heads) as i64,
        }
    }

    /// `[batch, seq, hidden_size]` in and out, with the keys and values of past and new tokens together.
    pub fn forward(
        &self,
        x: &Tensor,
        angles: &Angles,
        mask: &Mask,
        past: Option<&KeyValue>,
        adapters: Adapters,
    ) -> (Tensor, KeyValue) {
        let query = angles.rotate(&self.heads(&self.q_proj, self.q_norm.as_ref(), x, adapters));
        let key = angles.rotate(&self.heads(&self.k_proj, self.k_norm.as_ref(), x, adapters));
        let value = self.heads(&self.v_proj, None, x, adapters);
        let new = match past {
            None => KeyValue { key, value },
            Some(past) => past.append(&key, &value),
        };
        let bias = match mask {
            Mask::Additive(bias) => Some(bias),
            Mask::Causal | Mask::Full => None,
        };
        let causal = matches!(mask, Mask::Causal);
        let context = self.attend(&query, &new, bias, causal);
        let context = context.transpose(1, 2).flatten(2, 3);
        (self.o_proj.forward(&context, adapters), new)
    }

    /// `softmax(query keyᵀ / sqrt(head_dim) + bias) value`, `[batch, heads, seq, head_dim]` as `query`.
    fn attend(&self, query: &Tensor, cached: &KeyValue, bias: Option<&Tensor>, causal: bool) -> Tensor {
        let kind = query.kind();
        if query.device() == Device::Cpu && matches!(kind, Kind::Half | Kind::BFloat16) {
            // The processor's kernel for halves goes backward more slowly than the one for f32, which is exact besides.
            let wide = |x: &Tensor| x.to_kind(Kind::Float);
            let cached = KeyValue { key: wide(&cached.key), value: wide(&cached.value) };
            return self.attend(&wide(query), &cached, bias.map(wide).as_ref(), causal).to_kind(kind);
        }
        // On CUDA grouped queries are known to the flash kernel alone (half precision, no bias); all else would
        // fall back to one that holds all scores in memory. With repeated heads the memory-efficient one serves.
        let flash = bias.is_none() && matches!(query.kind(), Kind::Half | Kind::BFloat16);
        let grouped = !query.device().is_cuda() || flash;
        let (key, value) = match grouped {
            true => (cached.key.shallow_clone(), cached.value.shallow_clone()),
            false => {
                let repeat = |x: &Tensor| x.repeat_interleave_self_int(self.queries_per_key, 1, None);
                (repeat(&cached.key), repeat(&cached.value))
            }
        };
        Tensor::scaled_dot_product_attention(query, &key, &value, bias, 0.0, causal, None, grouped)
    }

    /// `[batch, seq, hidden_size]` to `[batch, heads, seq, head_dim]`.
    fn heads(&self, projection: &Linear, norm: Option<&RmsNorm>, x: &Tensor, adapters: Adapters) -> Tensor {
        let heads = projection.forward(x, adapters).unflatten(2, [-1, self.head_dim]);
        match norm {
            Some(norm) => norm.forward(&heads, heads.kind()).transpose(1, 2),
            None => heads.transpose(1, 2),
        }
    }
}

impl KeyValue {
    /// Past tokens, then new ones; a past of one row serves every row of the new batch.
    fn append(&self, key: &Tensor, value: &Tensor) -> Self {
        let join = |past: &Tensor, new: &Tensor| {
            let batch = new.size().first().copied().unwrap_or(1);
            Tensor::cat(&[&past.to_kind(new.kind()).expand([batch, -1, -1, -1], false), new], 2)
        };
        Self { key: join(&self.key, key), value: join(&self.value, value) }
    }
}
