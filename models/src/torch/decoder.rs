//! Decoder-only language model: Llama, Mistral, Qwen2 and Qwen3 (sources in `config.rs`). Pre-norm residual
//! layers, rotary positions, a head that may be the embedding matrix.

use tch::{Device, Kind, Tensor, nn};

use super::attention::{Attention, KeyValue, Mask};
use super::cache::KvCache;
use super::layers::Adapters;
use super::mlp::Mlp;
use super::norm::RmsNorm;
use super::rotary::{Angles, Rotary};
use crate::config::{ConfigError, DecoderConfig};
use crate::lora::{LoraConfig, PROJECTIONS};
use crate::weights::WeightsError;

/// Why a decoder cannot be made or run.
#[derive(Debug, thiserror::Error)]
pub enum DecoderError {
    /// The configuration is refused.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The weights are refused.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// libtorch failed, for want of memory most often.
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
    /// An adapter's setting makes no sense.
    #[error("lora: `{field}` is {found}, expected {expected}")]
    Lora {
        /// Name of the setting.
        field: &'static str,
        /// Its value.
        found: String,
        /// What would be accepted.
        expected: String,
    },
    /// An input tensor has another shape or kind.
    #[error("decoder: `{input}` is {found}, expected {expected}")]
    Input {
        /// Which input.
        input: &'static str,
        /// Its shape and kind.
        found: String,
        /// What is expected.
        expected: String,
    },
    /// A token the vocabulary does not have.
    #[error(
        "decoder: token id {found} is outside the vocabulary of {vocab_size}\nhint: the tokenizer belongs to another model"
    )]
    Token {
        /// The id.
        found: i64,
        /// Number of tokens.
        vocab_size: usize,
    },
    /// A mask whose ones do not stand at the beginning of each row.
    #[error(
        "decoder: row {row} of `attention_mask` is not one or more ones followed by zeros; pad on the right"
    )]
    Padding {
        /// The row.
        row: usize,
    },
    /// More tokens than the model has positions for.
    #[error("decoder: {found} tokens, the model takes {max_length} at most")]
    TooLong {
        /// Number of tokens, cached ones included.
        found: i64,
        /// What `DecoderConfig::max_length` says.
        max_length: usize,
    },
    /// A layer that is not there, or not run.
    #[error("decoder: layer {found} was asked for, {layers} are run")]
    Layer {
        /// The layer.
        found: usize,
        /// Number of layers run.
        layers: usize,
    },
    /// The state after the final norm of a model that was stopped before.
    #[error("decoder: the final norm was asked for, but only {layers} layers were run")]
    NoLast {
        /// Number of layers run.
        layers: usize,
    },
    /// A cache whose rows do not match the batch.
    #[error("decoder: the cache has {found} rows, expected 1 or {batch}")]
    PastBatch {
        /// Rows of the cache.
        found: usize,
        /// Rows of the batch.
        batch: usize,
    },
    /// A cache made with fewer or more layers than are run now.
    #[error("decoder: the cache has {found} layers, expected {expected}")]
    PastLayers {
        /// Layers of the cache.
        found: usize,
        /// Layers run.
        expected: usize,
    },
    /// A row that is not in the cache.
    #[error("decoder: row {found} was asked for, the cache has {batch}")]
    Row {
        /// The row.
        found: i64,
        /// Rows of the cache.
        batch: usize,
    },
}

/// What goes into a forward pass: `ForwardInput::new(&input_ids)`, then set what differs.
#[derive(Debug, Clone, Copy)]
pub struct ForwardInput<'a> {
    /// Token ids, `[batch, seq]`, int64.
    pub input_ids: &'a Tensor,
    /// Ones, then zeros where a row is padded, `[batch, seq]`; none where no row is.
    pub attention_mask: Option<&'a Tensor>,
    /// Texts read before, which `input_ids` continue: as many rows as the batch, or one for all.
    pub past: Option<&'a KvCache>,
    /// Hidden states to return: 0 is the embeddings, n the output of layer n, before the final norm.
    pub keep_layers: &'a [usize],
    /// Stop after this many layers; the final norm runs only behind the last.
    pub max_layers: Option<usize>,
    /// Return keys and values, to continue from.
    pub want_cache: bool,
    /// Whether adapters take part, and their dropout.
    pub adapters: Adapters,
}

impl<'a> ForwardInput<'a> {
    /// An unpadded batch through all layers, nothing kept.
    pub fn new(input_ids: &'a Tensor) -> Self {
        Self {
            input_ids,
            attention_mask: None,
            past: None,
            keep_layers: &[],
            max_layers: None,
            want_cache: false,
            adapters: Adapters::On,
        }
    }
}

/// What comes out. At padded positions the numbers are finite and mean nothing.
#[derive(Debug)]
pub struct Hidden {
    /// After the final norm, `[batch, seq, hidden_size]`; none where `max_layers` stopped before it.
    pub last: Option<Tensor>,
    /// As `keep_layers` asked for, in that order, `[batch, seq, hidden_size]` each.
    pub layers: Vec<Tensor>,
    /// Past and new tokens together, where `want_cache` asked for it.
    pub cache: Option<KvCache>,
    /// How many layers were run.
    pub layers_run: usize,
}

impl Hidden {
    /// The state after the final norm, or an error where the model was stopped before.
    pub fn last(&self) -> Result<&Tensor, DecoderError> {
        self.last.as_ref().ok_or(DecoderError::NoLast { layers: self.layers_run })
    }
}

/// One layer: attention and feed-forward block, each behind a norm and added to the residual stream.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) input_layernorm: RmsNorm,
    pub(super) self_attn: Attention,
    pub(super) post_attention_layernorm: RmsNorm,
    pub(super) mlp: Mlp,
}

impl Layer {
    fn new(p: &nn::Path, cfg: &DecoderConfig, lora: Option<&LoraConfig>) -> Self {
        let norm = |name| RmsNorm::new(&(p / name), cfg.hidden_size, cfg.rms_norm_eps, lora.is_none());
        Self {
            input_layernorm: norm("input_layernorm"),
            self_attn: Attention::new(&(p / "self_attn"), cfg, lora),
            post_attention_layernorm: norm("post_attention_layernorm"),
            mlp: Mlp::new(&(p / "mlp"), cfg, lora),
        }
    }

    /// `[batch, seq, hidden_size]` in and out. The residual stream keeps its kind, blocks compute in `run.kind`.
    pub(super) fn forward(&self, x: &Tensor, run: &Run, past: Option<&KeyValue>) -> (Tensor, KeyValue) {
        let normed = self.input_layernorm.forward(x, run.kind);
        let (attended, cache) = self.self_attn.forward(&normed, &run.angles, &run.mask, past, run.adapters);
        let x = x + attended;
        let normed = self.post_attention_layernorm.forward(&x, run.kind);
        (&x + self.mlp.forward(&normed, run.adapters), cache)
    }
}

/// What all layers of one pass share.
#[derive(Debug)]
pub(super) struct Run {
    kind: Kind,
    angles: Angles,
    mask: Mask,
    pub(super) adapters: Adapters,
}

/// The model. Parameters live in the `VarStore` of the path it was made under, named as in the checkpoint.
#[derive(Debug)]
pub struct Decoder {
    config: DecoderConfig,
    pub(super) embed_tokens: Tensor,
    pub(super) layers: Vec<Layer>,
    pub(super) norm: RmsNorm,
    /// None where the head is `embed_tokens`.
    pub(super) lm_head: Option<Tensor>,
    rotary: Rotary,
    compute_kind: Option<Kind>,
}

impl Decoder {
    /// A model of zeros under `p` (the root of a `VarStore`, for checkpoint names), on its device and in its
    /// kind; `load` fills it. With `lora` everything but the adapters is frozen.
    pub fn new(p: &nn::Path, cfg: &DecoderConfig, lora: Option<&LoraConfig>) -> Result<Self, DecoderError> {
        cfg.validate("config.json".as_ref())?;
        if let Some(lora) = lora {
            check_lora(lora)?;
        }
        let (model, options) = (p / "model", (p.kind(), p.device()));
        let matrix = |p: nn::Path| {
            let zeros = Tensor::f_zeros([cfg.vocab_size as i64, cfg.hidden_size as i64], options)?;
            Ok::<_, DecoderError>(p.add("weight", zeros, lora.is_none()))
        };
        let layers = &model / "layers";
        Ok(Self {
            embed_tokens: matrix(&model / "embed_tokens")?,
            layers: (0..cfg.num_hidden_layers).map(|n| Layer::new(&(&layers / n), cfg, lora)).collect(),
            norm: RmsNorm::new(&(&model / "norm"), cfg.hidden_size, cfg.rms_norm_eps, lora.is_none()),
            lm_head: (!cfg.tie_word_embeddings).then(|| matrix(p / "lm_head")).transpose()?,
            rotary: Rotary::new(cfg, p.device()),
            compute_kind: None,
            config: cfg.clone(),
        })
    }

    /// What it was made from.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Where it runs.
    pub fn device(&self) -> Device {
        self.embed_tokens.device()
    }

    /// Mixed precision: blocks compute in `kind` (bf16) while parameters and residual stream keep theirs (f32).
    /// None, the start, computes in the parameters' kind.
    pub fn set_compute_kind(&mut self, kind: Option<Kind>) {
        self.compute_kind = kind;
    }

    /// Runs the layers; see [`ForwardInput`] and [`Hidden`]. Callers wrap it in `tch::no_grad` for inference.
    pub fn forward(&self, input: ForwardInput) -> Result<Hidden, DecoderError> {
        let rows = self.check(&input)?;
        let depth = input.max_layers.unwrap_or(self.layers.len());
        let input_ids = input.input_ids.to_device(self.device());
        let mut x = Tensor::f_embedding(&self.embed_tokens, &input_ids, -1, false, false)?;
        let run = self.prepare(&input, &rows);
        let mut kept: Vec<Option<Tensor>> = input.keep_layers.iter().map(|_| None).collect();
        let mut keep = |layer: usize, x: &Tensor| {
            for (slot, _) in kept.iter_mut().zip(input.keep_layers).filter(|(_, asked)| **asked == layer) {
                *slot = Some(x.shallow_clone());
            }
        };
        keep(0, &x);
        let mut cached = Vec::new();
        for (n, layer) in self.layers.iter().take(depth).enumerate() {
            let past = input.past.and_then(|past| past.layers.get(n));
            let (out, cache) = layer.forward(&x, &run, past);
            x = out;
            keep(n + 1, &x);
            if input.want_cache {
                cached.push(cache);
            }
        }
        let last = (depth == self.layers.len()).then(|| self.norm.forward(&x, x.kind()));
        Ok(Hidden {
            last,
            layers: kept.into_iter().flatten().collect(),
            cache: input.want_cache.then(|| rows.cache(cached, &input, self.device())),
            layers_run: depth,
        })
    }

    /// Logits of hidden states after the final norm, `[.., hidden_size]` to `[.., vocab_size]`. Take out the
    /// positions that matter before: over all of them this costs as much as many layers.
    pub fn logits(&self, hidden: &Tensor) -> Tensor {
        hidden.linear(&self.head().to_kind(hidden.kind()), None::<&Tensor>)
    }

    /// Rows of the head for some tokens, `[ids, hidden_size]`: the logits of a choice are their products with h.
    pub fn choice_rows(&self, ids: &[i64]) -> Result<Tensor, DecoderError> {
        if let Some(&found) = ids.iter().find(|&&id| id < 0 || id >= self.config.vocab_size as i64) {
            return Err(DecoderError::Token { found, vocab_size: self.config.vocab_size });
        }
        Ok(self.head().index_select(0, &Tensor::from_slice(ids).to_device(self.device())))
    }

    /// Continues `ids` by the likeliest token until one of `eos` or `max_new` tokens; returns the new ones,
    /// without the end token.
    pub fn generate(&self, ids: &[i64], max_new: usize, eos: &[i64]) -> Result<Vec<i64>, DecoderError> {
        tch::no_grad(|| {
            let mut new = Vec::new();
            let mut next = Tensor::from_slice(ids).unsqueeze(0);
            let mut cache = None;
            while new.len() < max_new && ids.len() + new.len() < self.config.max_length() {
                let input =
                    ForwardInput { past: cache.as_ref(), want_cache: true, ..ForwardInput::new(&next) };
                let hidden = self.forward(input)?;
                let token = self.logits(&hidden.last()?.select(1, -1)).argmax(-1, false);
                let token = i64::try_from(token)?;
                if eos.contains(&token) {
                    break;
                }
                new.push(token);
                next = Tensor::from_slice(&[token]).unsqueeze(0);
                cache = hidden.cache;
            }
            Ok(new)
        })
    }

    fn head(&self) -> &Tensor {
        self.lm_head.as_ref().unwrap_or(&self.embed_tokens)
    }

    /// Everything a user's input can get wrong, before an operator panics on it.
    pub(super) fn check(&self, input: &ForwardInput) -> Result<Rows, DecoderError> {
        let size = input.input_ids.size();
        let described = |tensor: &Tensor| format!("{:?} {:?}", tensor.size(), tensor.f_kind().ok());
        let (&[batch, seq], Ok(Kind::Int64)) = (size.as_slice(), input.input_ids.f_kind()) else {
            let expected = "[batch, seq] of Int64".into();
            return Err(DecoderError::Input {
                input: "input_ids",
                found: described(input.input_ids),
                expected,
            });
        };
        if batch == 0 || seq == 0 {
            let expected = "at least one token".into();
            return Err(DecoderError::Input {
                input: "input_ids",
                found: described(input.input_ids),
                expected,
            });
        }
        let (least, most) = input.input_ids.f_aminmax(None, false)?;
        for found in [i64::try_from(least)?, i64::try_from(most)?] {
            if found < 0 || found >= self.config.vocab_size as i64 {
                return Err(DecoderError::Token { found, vocab_size: self.config.vocab_size });
            }
        }
        let lengths = match input.attention_mask {
            None => vec![seq; batch as usize],
            Some(mask) if mask.size() == size => mask_lengths(mask)?,
            Some(mask) => {
                let expected = format!("{size:?} as `input_ids`");
                return Err(DecoderError::Input {
                    input: "attention_mask",
                    found: described(mask),
                    expected,
                });
            }
        };
        let depth = input.max_layers.unwrap_or(self.layers.len());
        if depth > self.layers.len() {
            return Err(DecoderError::Layer { found: depth, layers: self.layers.len() });
        }
        if let Some(&found) = input.keep_layers.iter().find(|&&layer| layer > depth) {
            return Err(DecoderError::Layer { found, layers: depth });
        }
        let mut before = vec![0; batch as usize];
        if let Some(past) = input.past {
            if past.batch() != 1 && past.batch() != before.len() {
                return Err(DecoderError::PastBatch { found: past.batch(), batch: before.len() });
            }
            if past.layers() < depth {
                return Err(DecoderError::PastLayers { found: past.layers(), expected: depth });
            }
            before = past.lengths().iter().cycle().take(before.len()).copied().collect();
        }
        let found = before.iter().zip(&lengths).map(|(before, new)| before + new).max().unwrap_or(0);
        if found > self.config.max_length() as i64 {
            return Err(DecoderError::TooLong { found, max_length: self.config.max_length() });
        }
        Ok(Rows { seq, before, lengths })
    }

    pub(super) fn prepare(&self, input: &ForwardInput, rows: &Rows) -> Run {
        let (seq, device) = (rows.seq, self.device());
        let kind = self.compute_kind.unwrap_or(self.embed_tokens.kind());
        // Equal positions are computed once and broadcast.
        let before = match rows.before.as_slice() {
            [first, others @ ..] if others.iter().all(|other| other == first) => &rows.before[..1],
            all => all,
        };
        let positions = Tensor::from_slice(before).unsqueeze(-1).to_device(device)
            + Tensor::arange(seq, (Kind::Int64, device));
        let mask = match input.past {
            None => Mask::Causal,
            Some(past) => Mask::behind_past(past.valid.as_ref(), past.columns(), seq, (kind, device)),
        };
        Run { kind, angles: self.rotary.angles(&positions, kind), mask, adapters: input.adapters }
    }
}

/// Lengths of a checked batch.
pub(super) struct Rows {
    seq: i64,
    /// Cached tokens of each row.
    before: Vec<i64>,
    /// New tokens of each row, padding left out.
    lengths: Vec<i64>,
}

impl Rows {
    pub(super) fn cache(&self, layers: Vec<KeyValue>, input: &ForwardInput, device: Device) -> KvCache {
        let batch = self.lengths.len() as i64;
        let padded = self.lengths.iter().any(|&length| length != self.seq);
        let lengths = self.before.iter().zip(&self.lengths).map(|(before, new)| before + new).collect();
        let ones = |columns| Tensor::ones([batch, columns], (Kind::Bool, device));
        let new = input.attention_mask.filter(|_| padded).map(|mask| mask.ne(0).to_device(device));
        let past_valid = input.past.and_then(|past| past.valid.as_ref());
        let valid = match (input.past, past_valid, new) {
            (None, _, new) => new,
            (Some(_), None, None) => None,
            (Some(past), old, new) => {
                let old = old.map_or_else(|| ones(past.columns()), |old| old.expand([batch, -1], false));
                Some(Tensor::cat(&[old, new.unwrap_or_else(|| ones(self.seq))], 1))
            }
        };
        KvCache { layers, valid, lengths, compact: past_valid.is_none() }
    }
}

/// Number of ones in each row of a right-padded mask.
fn mask_lengths(mask: &Tensor) -> Result<Vec<i64>, DecoderError> {
    let mask = mask.to_device(Device::Cpu).ne(0).to_kind(Kind::Int64);
    let rows = Vec::<Vec<i64>>::try_from(&mask)?;
    let lengths = rows.iter().enumerate().map(|(row, mask)| {
        let ones = mask.iter().take_while(|&&one| one == 1).count();
        let right = ones > 0 && mask.iter().skip(ones).all(|&one| one == 0);
        right.then_some(ones as i64).ok_or(DecoderError::Padding { row })
    });
    lengths.collect()
}

fn check_lora(lora: &LoraConfig) -> Result<(), DecoderError> {
    let refuse = |field, found: String, expected: String| Err(DecoderError::Lora { field, found, expected });
    if lora.rank == 0 || lora.rank > 4096 {
        return refuse("rank", lora.rank.to_string(), "1 to 4096".into());
    }
    if !(0.0..1.0).contains(&lora.dropout) {
        return refuse("dropout", lora.dropout.to_string(), "0 up to, not including, 1".into());
    }
    if !lora.alpha.is_finite() {
        return refuse("alpha", lora.alpha.to_string(), "a number".into());
    }
    let unknown = lora.target_modules.iter().find(|target| !PROJECTIONS.contains(&target.as_str()));
    match unknown {
        Some(target) => refuse("target_modules", format!("`{target}`"), PROJECTIONS.join(", ")),
        None if lora.target_modules.is_empty() => {
            refuse("target_modules", "empty".into(), PROJECTIONS.join(", "))
        }
        None => Ok(()),
    }
}
