//! Mirror of Hugging Face `config.json` for the decoders we run, field names unchanged:
//! Llama (<https://arxiv.org/abs/2302.13971>), Mistral (<https://arxiv.org/abs/2310.06825>),
//! Qwen2 (<https://arxiv.org/abs/2407.10671>) and Qwen3 (<https://arxiv.org/abs/2505.09388>).
//!
//! What the file leaves out is filled in here once (`head_dim`, `num_key_value_heads`, ...), so that nothing
//! after this file branches on an `Option`. Written back, the older spelling of rotary settings is used
//! (`rope_theta`, `rope_scaling`): every version of transformers reads it.

mod rope;
#[cfg(test)]
mod tests;

pub use rope::RopeScaling;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize};

/// Largest width, vocabulary or length accepted: keeps every product of two sizes inside an `i64`.
const MAX_SIZE: usize = 1 << 24;
/// Largest depth accepted: a typing error in `config.json` is answered instead of filling the memory.
const MAX_LAYERS: usize = 1 << 12;

/// The families of decoders this crate implements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// `LlamaForCausalLM`: Llama 2 and 3, SmolLM2.
    Llama,
    /// `MistralForCausalLM`.
    Mistral,
    /// `Qwen2ForCausalLM`: biases on the query, key and value projections.
    Qwen2,
    /// `Qwen3ForCausalLM`: a norm on each head's query and key.
    Qwen3,
}

impl Architecture {
    /// What a refusal names.
    pub const SUPPORTED: &'static str =
        "LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM";

    /// The class name as `architectures` spells it.
    pub fn class(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral => "MistralForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
        }
    }

    /// The name as `model_type` spells it.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }

    /// The decoder without its head: what embedding models are saved as. Its folder reads as that of a `ForCausalLM`.
    fn headless_class(self) -> &'static str {
        match self {
            Self::Llama => "LlamaModel",
            Self::Mistral => "MistralModel",
            Self::Qwen2 => "Qwen2Model",
            Self::Qwen3 => "Qwen3Model",
        }
    }

    const ALL: [Self; 4] = [Self::Llama, Self::Mistral, Self::Qwen2, Self::Qwen3];
}

/// Why a `config.json` is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is missing or unreadable.
    #[error(
        "{file}: cannot read the model's configuration: {source}\nhint: name a Hugging Face model folder, with config.json inside"
    )]
    Read {
        /// The file asked for.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is no JSON, or a field has another type.
    #[error("{file}: not a decoder's config.json: {source}")]
    Parse {
        /// The file read.
        file: PathBuf,
        /// What the parser said, with line and column.
        source: serde_json::Error,
    },
    /// Another family of models.
    #[error("{file}: architecture `{found}` is not supported; supported are {}", Architecture::SUPPORTED)]
    Architecture {
        /// The file read.
        file: PathBuf,
        /// The name found.
        found: String,
    },
    /// A field has a value this crate cannot run, or that contradicts another field.
    #[error("{file}: `{field}` is {found}, expected {expected}")]
    Field {
        /// The file read.
        file: PathBuf,
        /// Name of the field.
        field: &'static str,
        /// Its value.
        found: String,
        /// What would be accepted.
        expected: String,
    },
}

/// One token id or several, as `eos_token_id` comes; empty where the file says `null`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "RawTokenIds", into = "RawTokenIds")]
pub struct TokenIds(pub Vec<i64>);

#[derive(Clone, Serialize, Deserialize)]
#[serde(untagged)]
enum RawTokenIds {
    None(()),
    One(i64),
    Many(Vec<i64>),
}

impl From<RawTokenIds> for TokenIds {
    fn from(raw: RawTokenIds) -> Self {
        Self(match raw {
            RawTokenIds::None(()) => Vec::new(),
            RawTokenIds::One(id) => vec![id],
            RawTokenIds::Many(ids) => ids,
        })
    }
}

impl From<TokenIds> for RawTokenIds {
    fn from(TokenIds(ids): TokenIds) -> Self {
        match ids.as_slice() {
            [] => Self::None(()),
            [id] => Self::One(*id),
            _ => Self::Many(ids),
        }
    }
}

/// Shape and settings of a decoder: `config.json`, completed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "RawConfig")]
pub struct DecoderConfig {
    /// Class names; the first decides, `model_type` stands in where there is none.
    pub architectures: Vec<String>,
    /// `llama`, `mistral`, `qwen2`, `qwen3`.
    pub model_type: String,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the feed-forward block.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Number of query heads.
    pub num_attention_heads: usize,
    /// Number of key and value heads; default `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Width of one head; default `hidden_size / num_attention_heads`.
    pub head_dim: usize,
    /// Added to the mean square inside every norm.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Stretching of the rotary frequencies; none for `default`.
    pub rope_scaling: Option<RopeScaling>,
    /// Longest input.
    pub max_position_embeddings: usize,
    /// Number of tokens.
    pub vocab_size: usize,
    /// Whether the head is the embedding matrix.
    pub tie_word_embeddings: bool,
    /// Biases on all four projections of attention (Llama, Qwen3; the others do not read it).
    pub attention_bias: bool,
    /// Biases in the feed-forward block (Llama; the others do not read it).
    pub mlp_bias: bool,
    /// Activation; `silu` only.
    pub hidden_act: String,
    /// Width of local attention. We run full attention, which is the same up to this length: see `max_length`.
    pub sliding_window: Option<usize>,
    /// Qwen switches `sliding_window` off by this.
    pub use_sliding_window: bool,
    /// Token that opens a text.
    pub bos_token_id: TokenIds,
    /// Tokens that end a text.
    pub eos_token_id: TokenIds,
}

impl DecoderConfig {
    /// Reads and checks `config.json` in a model folder.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, ConfigError> {
        let file = dir.as_ref().join("config.json");
        let text = fs::read(&file).map_err(|source| ConfigError::Read { file: file.clone(), source })?;
        let config: Self = serde_json::from_slice(&text)
            .map_err(|source| ConfigError::Parse { file: file.clone(), source })?;
        config.validate(&file)?;
        Ok(config)
    }

    /// The family, or nothing for one we do not run (`validate` says so in words).
    pub fn architecture(&self) -> Option<Architecture> {
        match self.architectures.first() {
            Some(class) => {
                Architecture::ALL.into_iter().find(|a| a.class() == class || a.headless_class() == class)
            }
            None => Architecture::ALL.into_iter().find(|a| a.model_type() == self.model_type),
        }
    }

    /// Whether the query, key and value projections have biases.
    pub fn has_qkv_bias(&self) -> bool {
        self.architecture() == Some(Architecture::Qwen2) || self.has_o_bias()
    }

    /// Whether the output projection of attention has a bias.
    pub fn has_o_bias(&self) -> bool {
        self.attention_bias && matches!(self.architecture(), Some(Architecture::Llama | Architecture::Qwen3))
    }

    /// Whether the feed-forward projections have biases.
    pub fn has_mlp_bias(&self) -> bool {
        self.mlp_bias && self.architecture() == Some(Architecture::Llama)
    }

    /// Whether each head's query and key are normed before rotation.
    pub fn has_qk_norm(&self) -> bool {
        self.architecture() == Some(Architecture::Qwen3)
    }

    /// Longest input that full attention computes exactly: `max_position_embeddings`, or the sliding window
    /// where one is switched on and shorter (inside the window, local and full attention are the same).
    pub fn max_length(&self) -> usize {
        let sliding = match self.architecture() {
            Some(Architecture::Mistral) => true,
            Some(Architecture::Qwen2 | Architecture::Qwen3) => self.use_sliding_window,
            Some(Architecture::Llama) | None => false,
        };
        let window = self.sliding_window.filter(|_| sliding).unwrap_or(usize::MAX);
        self.max_position_embeddings.min(window)
    }

    /// Checks that this crate runs the model and that the sizes agree; `file` names the origin in errors.
    pub fn validate(&self, file: &Path) -> Result<(), ConfigError> {
        if self.architecture().is_none() {
            let found = self.architectures.first().unwrap_or(&self.model_type).clone();
            return Err(ConfigError::Architecture { file: file.into(), found });
        }
        let refuse = |field, found: String, expected: String| {
            Err(ConfigError::Field { file: file.into(), field, found, expected })
        };
        for (field, found, most) in [
            ("hidden_size", self.hidden_size, MAX_SIZE),
            ("intermediate_size", self.intermediate_size, MAX_SIZE),
            ("num_hidden_layers", self.num_hidden_layers, MAX_LAYERS),
            ("num_attention_heads", self.num_attention_heads, MAX_SIZE),
            ("num_key_value_heads", self.num_key_value_heads, MAX_SIZE),
            ("head_dim", self.head_dim, MAX_SIZE),
            ("max_position_embeddings", self.max_position_embeddings, MAX_SIZE),
            ("vocab_size", self.vocab_size, MAX_SIZE),
            ("sliding_window", self.sliding_window.unwrap_or(1), MAX_SIZE),
        ] {
            if found == 0 || found > most {
                return refuse(field, found.to_string(), format!("1 to {most}"));
            }
        }
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            let expected = format!("a divisor of `num_attention_heads` ({})", self.num_attention_heads);
            return refuse("num_key_value_heads", self.num_key_value_heads.to_string(), expected);
        }
        if !self.head_dim.is_multiple_of(2) {
            let expected = "an even number (rotary embedding turns pairs)".into();
            return refuse("head_dim", self.head_dim.to_string(), expected);
        }
        if self.num_attention_heads * self.head_dim > MAX_SIZE {
            let expected =
                format!("at most {} for this number of heads", MAX_SIZE / self.num_attention_heads);
            return refuse("head_dim", self.head_dim.to_string(), expected);
        }
        if self.hidden_act != "silu" {
            return refuse("hidden_act", format!("`{}`", self.hidden_act), "`silu`".into());
        }
        for (field, found) in [("rms_norm_eps", self.rms_norm_eps), ("rope_theta", self.rope_theta)] {
            if !(found.is_finite() && found > 0.0) {
                return refuse(field, found.to_string(), "a number above zero".into());
            }
        }
        self.rope_scaling.as_ref().map_or(Ok(()), |scaling| scaling.validate(file))
    }

    /// Rotary frequencies, radians per position, `[head_dim / 2]`; the torch model and the ONNX exporter share
    /// them. Formula of transformers' `modeling_rope_utils.py`, `_compute_{default,linear_scaling,llama3}_...`.
    pub fn inverse_frequencies(&self) -> Vec<f32> {
        let frequencies = (0..self.head_dim / 2).map(|pair| {
            let exponent = (2 * pair) as f32 / self.head_dim as f32;
            1.0 / self.rope_theta.powf(exponent.into()) as f32
        });
        match &self.rope_scaling {
            Some(scaling) => frequencies.map(|frequency| scaling.stretch(frequency)).collect(),
            None => frequencies.collect(),
        }
    }
}

/// The file as it comes: what may be missing is an `Option`.
#[derive(Deserialize)]
struct RawConfig {
    #[serde(default)]
    architectures: Option<Vec<String>>,
    #[serde(default)]
    model_type: String,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    rms_norm_eps: Option<f64>,
    rope_theta: Option<f64>,
    rope_scaling: Option<RopeScaling>,
    rope_parameters: Option<RopeScaling>,
    partial_rotary_factor: Option<f64>,
    max_position_embeddings: usize,
    vocab_size: usize,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    hidden_act: Option<String>,
    /// Missing and `null` differ: `MistralConfig` takes 4096 for missing, no window for `null`.
    #[serde(default, deserialize_with = "present")]
    sliding_window: Option<Option<usize>>,
    #[serde(default)]
    use_sliding_window: bool,
    #[serde(default)]
    bos_token_id: TokenIds,
    #[serde(default)]
    eos_token_id: TokenIds,
}

fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<usize>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

impl RawConfig {
    /// Base and stretching of the rotary frequencies, from both spellings.
    fn rope(&mut self) -> Result<(Option<f64>, Option<RopeScaling>), String> {
        let base = self.rope_theta;
        let whole = self.partial_rotary_factor;
        let read = |spelling: Option<RopeScaling>| {
            spelling.map(|mut rope| {
                let theta = rope.rope_theta.take().or(base);
                rope.partial_rotary_factor = rope.partial_rotary_factor.or(whole);
                (theta, rope)
            })
        };
        match (read(self.rope_scaling.take()), read(self.rope_parameters.take())) {
            // transformers 5 goes by the older spelling and forgets the base that stands in the newer one.
            (Some(older), Some(newer)) if older != newer => {
                Err("`rope_scaling` and `rope_parameters` differ, expected the same or one of them"
                    .to_owned())
            }
            (Some((theta, rope)), _) | (None, Some((theta, rope))) => Ok((theta, Some(rope))),
            (None, None) => {
                let rope = RopeScaling {
                    rope_type: "default".into(),
                    partial_rotary_factor: whole,
                    ..Default::default()
                };
                Ok((base, Some(rope)))
            }
        }
    }
}

impl TryFrom<RawConfig> for DecoderConfig {
    type Error = String;

    fn try_from(mut raw: RawConfig) -> Result<Self, String> {
        let (rope_theta, rope) = raw.rope()?;
        let mut config = Self {
            architectures: raw.architectures.unwrap_or_default(),
            model_type: raw.model_type,
            hidden_size: raw.hidden_size,
            intermediate_size: raw.intermediate_size,
            num_hidden_layers: raw.num_hidden_layers,
            num_attention_heads: raw.num_attention_heads,
            num_key_value_heads: raw.num_key_value_heads.unwrap_or(raw.num_attention_heads),
            head_dim: raw
                .head_dim
                .unwrap_or_else(|| raw.hidden_size.checked_div(raw.num_attention_heads).unwrap_or(0)),
            rms_norm_eps: raw.rms_norm_eps.unwrap_or(1e-6),
            rope_theta: rope_theta.unwrap_or(10_000.0),
            rope_scaling: rope.filter(|rope| !rope.is_plain()),
            max_position_embeddings: raw.max_position_embeddings,
            vocab_size: raw.vocab_size,
            tie_word_embeddings: raw.tie_word_embeddings,
            attention_bias: raw.attention_bias,
            mlp_bias: raw.mlp_bias,
            hidden_act: raw.hidden_act.unwrap_or_else(|| "silu".into()),
            sliding_window: None,
            use_sliding_window: raw.use_sliding_window,
            bos_token_id: raw.bos_token_id,
            eos_token_id: raw.eos_token_id,
        };
        let missing = (config.architecture() == Some(Architecture::Mistral)).then_some(4096);
        config.sliding_window = raw.sliding_window.unwrap_or(missing);
        Ok(config)
    }
}
