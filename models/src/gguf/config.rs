//! config.json from GGUF metadata (keys: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>).

use super::error::GgufError;
use super::header::Header;
use super::rope;
use crate::config::Architecture;
use serde_json::{Value as Json, json};

const SUPPORTED: [Architecture; 4] =
    [Architecture::Llama, Architecture::Mistral, Architecture::Qwen2, Architecture::Qwen3];

/// `general.architecture`, by the same names as `model_type`. Mistral's files usually say `llama`: the two compute
/// the same.
fn architecture(header: &Header) -> Result<Architecture, GgufError> {
    let found = header.required_text("general.architecture")?;
    SUPPORTED.into_iter().find(|known| known.model_type() == found).ok_or_else(|| GgufError::Architecture {
        file: header.file.clone(),
        found: found.to_owned(),
        supported: SUPPORTED.map(Architecture::model_type).join(", "),
    })
}

/// The numbers that fix every tensor's shape. Each is positive and below 2^31, so products fit a `usize`.
#[derive(Debug)]
pub(super) struct DecoderShape {
    pub architecture: Architecture,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
    pub vocab_size: usize,
    pub max_position_embeddings: usize,
    pub tie_word_embeddings: bool,
    pub attention_bias: bool,
}

impl DecoderShape {
    /// Reads and checks the metadata; refuses what the Hugging Face classes cannot express.
    pub(super) fn read(header: &Header) -> Result<Self, GgufError> {
        refuse_parts(header)?;
        let architecture = architecture(header)?;
        let key = |suffix: &str| format!("{}.{suffix}", architecture.model_type());
        refuse_experts(header, &key("expert_count"))?;
        refuse_rerankers(header, &key("pooling_type"))?;
        let hidden_size = header.required_size(&key("embedding_length"))?;
        let num_attention_heads = header.required_size(&key("attention.head_count"))?;
        let num_key_value_heads =
            header.size(&key("attention.head_count_kv"))?.unwrap_or(num_attention_heads);
        if !num_attention_heads.is_multiple_of(num_key_value_heads) {
            return Err(header.bad_value(
                &key("attention.head_count_kv"),
                &format!("a divisor of the {num_attention_heads} heads"),
            ));
        }
        let head_dim = match header.size(&key("attention.key_length"))? {
            Some(length) => length,
            None if hidden_size.is_multiple_of(num_attention_heads) => hidden_size / num_attention_heads,
            None => {
                let expected = format!("a divisor of the {hidden_size} dimensions");
                return Err(header.bad_value(&key("attention.head_count"), &expected));
            }
        };
        // One head_dim for query, key, value and rotation, as in the Hugging Face classes; halves rotate as pairs.
        if !head_dim.is_multiple_of(2) {
            return Err(header.bad_value(&key("attention.key_length"), "an even number"));
        }
        for name in ["attention.value_length", "rope.dimension_count"] {
            if header.size(&key(name))?.is_some_and(|found| found != head_dim) {
                return Err(header.bad_value(&key(name), &format!("{head_dim}, the dimensions of one head")));
            }
        }
        let embeddings = header.tensors.get("token_embd.weight").ok_or_else(|| GgufError::MissingTensor {
            file: header.file.clone(),
            tensor: "token_embd.weight".to_owned(),
        })?;
        Ok(Self {
            architecture,
            hidden_size,
            intermediate_size: header.required_size(&key("feed_forward_length"))?,
            num_hidden_layers: header.required_size(&key("block_count"))?,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            vocab_size: embeddings.shape.dims()[0],
            max_position_embeddings: header.required_size(&key("context_length"))?,
            tie_word_embeddings: !header.tensors.contains_key("output.weight"),
            attention_bias: header.tensors.contains_key("blk.0.attn_q.bias"),
        })
    }

    /// llama.cpp rotates neighbouring rows for these, and therefore stores query and key rows interleaved.
    pub(super) fn interleaves_rotary_rows(&self) -> bool {
        matches!(self.architecture, Architecture::Llama | Architecture::Mistral)
    }

    /// As the Hugging Face classes have them: Mistral never, so that such a tensor is refused as one too many.
    pub(super) fn has_qkv_bias(&self) -> bool {
        match self.architecture {
            Architecture::Llama | Architecture::Qwen3 => self.attention_bias,
            Architecture::Mistral => false,
            Architecture::Qwen2 => true,
        }
    }

    /// Qwen2 has no fourth bias; `attention_bias` of the others covers all four projections.
    pub(super) fn has_o_bias(&self) -> bool {
        self.has_qkv_bias() && self.architecture != Architecture::Qwen2
    }
}

/// config.json as Hugging Face transformers would have written it.
pub(super) fn config_json(header: &Header, shape: &DecoderShape) -> Result<Json, GgufError> {
    let architecture = shape.architecture;
    let key = |suffix: &str| format!("{}.{suffix}", architecture.model_type());
    let epsilon_key = key("attention.layer_norm_rms_epsilon");
    let rms_norm_eps =
        header.positive(&epsilon_key)?.ok_or_else(|| header.bad_value(&epsilon_key, "a positive number"))?;
    // 10000 is what llama.cpp and transformers both take for granted.
    let rope_theta = header.positive(&key("rope.freq_base"))?.unwrap_or(10000.0);
    let window = header.size_or_zero(&key("attention.sliding_window"))?.filter(|&window| window > 0);
    Ok(json!({
        "architectures": [architecture.class()],
        "model_type": architecture.model_type(),
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_hidden_layers,
        "num_attention_heads": shape.num_attention_heads,
        "num_key_value_heads": shape.num_key_value_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": rms_norm_eps,
        "rope_theta": rope_theta,
        "rope_scaling": rope::scaling(header, shape, rope_theta)?,
        "max_position_embeddings": shape.max_position_embeddings,
        // Written even where it is null: `MistralConfig` takes an absent one for 4096.
        "sliding_window": window,
        "vocab_size": shape.vocab_size,
        "tie_word_embeddings": shape.tie_word_embeddings,
        "attention_bias": shape.attention_bias,
        "bos_token_id": header.size_or_zero("tokenizer.ggml.bos_token_id")?,
        "eos_token_id": header.size_or_zero("tokenizer.ggml.eos_token_id")?,
        "torch_dtype": "float32",
    }))
}

fn refuse_parts(header: &Header) -> Result<(), GgufError> {
    match header.size_or_zero("split.count")? {
        Some(parts) if parts > 1 => Err(GgufError::Unsupported {
            file: header.file.clone(),
            what: "the file".to_owned(),
            found: format!("one of {parts} parts"),
            supported: "whole files (`llama-gguf-split --merge` makes one)".to_owned(),
        }),
        _ => Ok(()),
    }
}

/// Mixtral's files say `llama`, too.
fn refuse_experts(header: &Header, key: &str) -> Result<(), GgufError> {
    match header.size_or_zero(key)? {
        Some(experts) if experts > 0 => Err(GgufError::Unsupported {
            file: header.file.clone(),
            what: format!("metadata `{key}`"),
            found: experts.to_string(),
            supported: "models without experts".to_owned(),
        }),
        _ => Ok(()),
    }
}

/// `LLAMA_POOLING_TYPE_RANK`: the score is the head `cls`, not a token's.
const POOLING_RANK: usize = 4;

fn refuse_rerankers(header: &Header, key: &str) -> Result<(), GgufError> {
    let head = header.tensors.keys().filter(|name| name.starts_with("cls.")).min();
    let what = match (head, header.size_or_zero(key)?) {
        (Some(name), _) => format!("tensor `{name}`"),
        (None, Some(POOLING_RANK)) => format!("metadata `{key}` is {POOLING_RANK} (rank)"),
        _ => return Ok(()),
    };
    Err(GgufError::Reranker { file: header.file.clone(), what })
}
