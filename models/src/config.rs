//! Mirror of Hugging Face `config.json` for the decoders we run, field names unchanged:
//! Llama (<https://arxiv.org/abs/2302.13971>), Mistral (<https://arxiv.org/abs/2310.06825>),
//! Qwen2 (<https://arxiv.org/abs/2407.10671>) and Qwen3 (<https://arxiv.org/abs/2505.09388>).
//!
//! What the file leaves out is filled in here once (`head_dim`, `num_key_value_heads`, ...), so that nothing
//! after this file branches on an `Option`. Written back, the older spelling of rotary settings is used
//! (`rope_theta`, `rope_scaling`): every version of transformers reads it.

use std::f64::consts::PI;
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

/// How the rotary frequencies are stretched beyond the length of pre-training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RopeScaling {
    /// `default`, `linear` or `llama3`; older files write `type`.
    #[serde(alias = "type", default = "default_rope_type")]
    pub rope_type: String,
    /// How many times longer (`linear`, `llama3`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub factor: Option<f64>,
    /// Wavelengths above `original_max_position_embeddings` over this are divided by `factor` (`llama3`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub low_freq_factor: Option<f64>,
    /// Wavelengths below `original_max_position_embeddings` over this stay (`llama3`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub high_freq_factor: Option<f64>,
    /// Length of pre-training (`llama3`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub original_max_position_embeddings: Option<f64>,
    /// The newer spelling keeps `rope_theta` in here; moved to `DecoderConfig::rope_theta` on reading.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_theta: Option<f64>,
    /// Share of each head that is rotated; only the whole head (1) is supported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partial_rotary_factor: Option<f64>,
}

fn default_rope_type() -> String {
    "default".into()
}

/// Shape and settings of a decoder: `config.json`, completed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "RawConfig")]
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
            Some(class) => Architecture::ALL.into_iter().find(|a| a.class() == class),
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

impl RopeScaling {
    fn validate(&self, file: &Path) -> Result<(), ConfigError> {
        let refuse = |field, found: String, expected: &str| {
            Err(ConfigError::Field { file: file.into(), field, found, expected: expected.into() })
        };
        let needed = match self.rope_type.as_str() {
            "default" => &[][..],
            "linear" => &[("rope_scaling.factor", self.factor)],
            "llama3" => &[
                ("rope_scaling.factor", self.factor),
                ("rope_scaling.low_freq_factor", self.low_freq_factor),
                ("rope_scaling.high_freq_factor", self.high_freq_factor),
                ("rope_scaling.original_max_position_embeddings", self.original_max_position_embeddings),
            ],
            other => {
                return refuse(
                    "rope_scaling.rope_type",
                    format!("`{other}`"),
                    "`default`, `linear` or `llama3`",
                );
            }
        };
        for &(field, found) in needed {
            match found {
                Some(value) if value.is_finite() && value > 0.0 => {}
                Some(value) => return refuse(field, value.to_string(), "a number above zero"),
                None => return refuse(field, "missing".into(), "a number above zero"),
            }
        }
        if self.rope_type == "llama3" && self.low_freq_factor >= self.high_freq_factor {
            let found = format!("{:?}", self.low_freq_factor.unwrap_or_default());
            return refuse("rope_scaling.low_freq_factor", found, "less than `high_freq_factor`");
        }
        match self.partial_rotary_factor {
            Some(share) if share != 1.0 => refuse("partial_rotary_factor", share.to_string(), "1"),
            _ => Ok(()),
        }
    }

    /// One frequency stretched, in f32 as transformers does it: the same bits, so the same angles at any length.
    /// A missing parameter leaves it alone: `validate` has refused that before.
    fn stretch(&self, frequency: f32) -> f32 {
        let Some(factor) = self.factor.map(|factor| factor as f32) else { return frequency };
        match (
            self.rope_type.as_str(),
            self.low_freq_factor,
            self.high_freq_factor,
            self.original_max_position_embeddings,
        ) {
            ("linear", ..) => frequency / factor,
            ("llama3", Some(low), Some(high), Some(length)) => {
                let wavelength = (2.0 * PI) as f32 / frequency;
                if wavelength < (length / high) as f32 {
                    frequency
                } else if wavelength > (length / low) as f32 {
                    frequency / factor
                } else {
                    let smooth = (length as f32 / wavelength - low as f32) / (high - low) as f32;
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
            }
            _ => frequency,
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

impl From<RawConfig> for DecoderConfig {
    fn from(raw: RawConfig) -> Self {
        let mut rope = raw.rope_parameters.or(raw.rope_scaling);
        let rope_theta = rope.as_mut().and_then(|rope| rope.rope_theta.take()).or(raw.rope_theta);
        let plain = |rope: &RopeScaling| {
            rope.rope_type == "default" && rope.partial_rotary_factor.unwrap_or(1.0) == 1.0
        };
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
            rope_scaling: rope.filter(|rope| !plain(rope)),
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
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(changes: serde_json::Value) -> DecoderConfig {
        let mut json = serde_json::json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
            "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
            "max_position_embeddings": 128, "vocab_size": 80, "unknown_field": {"a": 1},
        });
        for (key, value) in changes.as_object().unwrap() {
            json[key] = value.clone();
        }
        serde_json::from_value(json).unwrap()
    }

    fn refusal(changes: serde_json::Value) -> String {
        parse(changes).validate(Path::new("config.json")).unwrap_err().to_string()
    }

    /// A default that differs from transformers' gives another model without any message.
    #[test]
    fn missing_fields_get_the_defaults_of_transformers() {
        let config = parse(serde_json::json!({}));
        assert_eq!((config.num_key_value_heads, config.head_dim), (4, 16));
        assert_eq!((config.rms_norm_eps, config.rope_theta, config.rope_scaling), (1e-6, 10_000.0, None));
        assert_eq!(config.eos_token_id, TokenIds(vec![]));
        let mistral = |window| {
            parse(serde_json::json!({"architectures": ["MistralForCausalLM"],
                "max_position_embeddings": 32768, "sliding_window": window}))
        };
        assert_eq!(mistral(serde_json::Value::Null).max_length(), 32768);
        assert_eq!(mistral(512.into()).max_length(), 512);
        let silent = parse(
            serde_json::json!({"architectures": ["MistralForCausalLM"], "max_position_embeddings": 32768}),
        );
        assert_eq!(silent.max_length(), 4096);
    }

    /// transformers 5 writes `rope_parameters`; read as nothing, every position would be wrong.
    #[test]
    fn both_spellings_of_rotary_settings_mean_the_same() {
        let llama3 = serde_json::json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 32});
        let mut newer = llama3.clone();
        newer["rope_theta"] = 500_000.0.into();
        let old = parse(serde_json::json!({"rope_theta": 500_000.0, "rope_scaling": llama3}));
        let new = parse(serde_json::json!({"rope_parameters": newer}));
        assert_eq!(old, new);
        let plain = parse(serde_json::json!({"rope_theta": 500_000.0}));
        assert_ne!(old.inverse_frequencies(), plain.inverse_frequencies());
        assert_eq!(old.inverse_frequencies()[0], 1.0);
        let defaults =
            serde_json::json!({"rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}});
        assert_eq!(parse(defaults), plain);
    }

    /// A checkpoint we write must be read back as the same model.
    #[test]
    fn what_is_written_is_read_back_the_same() {
        let config = parse(serde_json::json!({"eos_token_id": [2, 7], "bos_token_id": 1,
            "rope_scaling": {"type": "linear", "factor": 2.0}}));
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<DecoderConfig>(&text).unwrap(), config);
        assert!(text.contains(r#""bos_token_id":1,"eos_token_id":[2,7]"#), "{text}");
    }

    /// A model we cannot run must be refused in words before its weights are read.
    #[test]
    fn what_we_cannot_run_is_refused_in_one_sentence() {
        let gemma = refusal(serde_json::json!({"architectures": ["GemmaForCausalLM"]}));
        assert!(gemma.contains("GemmaForCausalLM") && gemma.contains("Qwen3ForCausalLM"), "{gemma}");
        for (changes, words) in [
            (serde_json::json!({"num_key_value_heads": 3}), "`num_key_value_heads` is 3"),
            (serde_json::json!({"head_dim": 15}), "`head_dim` is 15"),
            (serde_json::json!({"num_attention_heads": 0}), "`num_attention_heads` is 0"),
            (serde_json::json!({"hidden_act": "gelu"}), "`hidden_act` is `gelu`"),
            (serde_json::json!({"rope_scaling": {"rope_type": "yarn", "factor": 4}}), "`yarn`"),
            (serde_json::json!({"rope_scaling": {"rope_type": "linear"}}), "missing"),
            (serde_json::json!({"num_hidden_layers": 1_000_000}), "`num_hidden_layers` is 1000000"),
        ] {
            let said = refusal(changes);
            assert!(said.contains(words), "{said}");
        }
    }
}
