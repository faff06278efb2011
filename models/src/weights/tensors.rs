//! Which tensors a model has, and by which names a file may hold them.

use super::{DType, Weights, WeightsError};
use crate::config::DecoderConfig;
use std::collections::BTreeMap;

const EMBEDDINGS: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";
/// What stands before the names of a decoder that has a head.
const PREFIX: &str = "model.";

/// By which names a file holds the tensors of a model. transformers reads all of these as the same model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Naming {
    /// Without `model.`: saved from a decoder without its head (`LlamaModel`), as embedding models are.
    bare: bool,
    /// The embeddings, tied to the head, are stored under the head's name.
    embeddings_as_head: bool,
}

impl Naming {
    /// The naming of a file, read off the first layer's norm.
    pub fn of(weights: &Weights, config: &DecoderConfig) -> Self {
        let norm = "model.layers.0.input_layernorm.weight";
        let bare = Self { bare: true, embeddings_as_head: false };
        let naming = match weights.contains(norm) {
            false if weights.contains(bare.stored(norm)) => bare,
            _ => Self::default(),
        };
        let embeddings_as_head = config.tie_word_embeddings
            && !weights.contains(naming.stored(EMBEDDINGS))
            && weights.contains(HEAD);
        Self { embeddings_as_head, ..naming }
    }

    /// Whether names are those of a `ForCausalLM`, which everything after an import reads.
    pub fn is_usual(self) -> bool {
        self == Self::default()
    }

    /// The name in the file of the tensor that is `name` in a `ForCausalLM`.
    pub fn stored(self, name: &str) -> &str {
        match name {
            EMBEDDINGS if self.embeddings_as_head => HEAD,
            _ if self.bare => name.strip_prefix(PREFIX).unwrap_or(name),
            _ => name,
        }
    }
}

impl Weights {
    /// Checks that the file holds exactly the model `config` describes, in kinds we read. Beside that it may
    /// hold an `lm_head.weight` that is tied, and `rotary_emb.inv_freq`, which old checkpoints kept.
    pub fn check(&self, config: &DecoderConfig) -> Result<(), WeightsError> {
        self.check_named(config, Naming::default())
    }

    /// The same for a file with other names.
    pub fn check_named(&self, config: &DecoderConfig, naming: Naming) -> Result<(), WeightsError> {
        let expected = expected_tensors(config);
        let expected: BTreeMap<&str, &[usize]> =
            expected.iter().map(|(name, shape)| (naming.stored(name), shape.as_slice())).collect();
        for (&name, &expected) in &expected {
            let (shard, info) = match self.tensor(name) {
                Err(_) if name == HEAD => return Err(WeightsError::NoHead { file: self.file.clone() }),
                found => found?,
            };
            if info.shape != expected {
                return Err(WeightsError::Shape {
                    file: shard.file.clone(),
                    name: name.to_owned(),
                    found: info.shape.clone(),
                    expected: expected.to_vec(),
                });
            }
            if !matches!(info.dtype, DType::F32 | DType::F16 | DType::BF16) {
                return Err(self.wrong_dtype(name, info.dtype));
            }
        }
        let ignored = |name: &str| {
            name.ends_with("rotary_emb.inv_freq") || (config.tie_word_embeddings && name == HEAD)
        };
        match self.names().find(|name| !expected.contains_key(*name) && !ignored(name)) {
            Some(name) => {
                Err(WeightsError::Unused { file: self.shard(name)?.file.clone(), name: name.into() })
            }
            None => Ok(()),
        }
    }

    /// Refuses a head that differs from the embeddings it is said to be tied to: transformers 4 leaves it out,
    /// transformers 5 uses it, so that nobody knows which model is meant.
    pub fn check_tied_head(&self, config: &DecoderConfig, naming: Naming) -> Result<(), WeightsError> {
        let embeddings = naming.stored(EMBEDDINGS);
        if !config.tie_word_embeddings || embeddings == HEAD || !self.contains(HEAD) {
            return Ok(());
        }
        match self.raw(embeddings)? == self.raw(HEAD)? {
            true => Ok(()),
            false => Err(WeightsError::OtherHead { file: self.shard(HEAD)?.file.clone() }),
        }
    }
}

/// Names and shapes of all tensors of the model `config` describes, in the order of the forward pass.
pub fn expected_tensors(config: &DecoderConfig) -> Vec<(String, Vec<usize>)> {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let (queries, keys) =
        (config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim);
    let mut tensors = vec![(EMBEDDINGS.to_owned(), vec![config.vocab_size, hidden])];
    for layer in 0..config.num_hidden_layers {
        let mut add = |name: &str, shape: &[usize]| {
            tensors.push((format!("model.layers.{layer}.{name}"), shape.to_vec()));
        };
        add("input_layernorm.weight", &[hidden]);
        for (name, out) in [("q_proj", queries), ("k_proj", keys), ("v_proj", keys)] {
            add(&format!("self_attn.{name}.weight"), &[out, hidden]);
            if config.has_qkv_bias() {
                add(&format!("self_attn.{name}.bias"), &[out]);
            }
        }
        if config.has_qk_norm() {
            add("self_attn.q_norm.weight", &[config.head_dim]);
            add("self_attn.k_norm.weight", &[config.head_dim]);
        }
        add("self_attn.o_proj.weight", &[hidden, queries]);
        if config.has_o_bias() {
            add("self_attn.o_proj.bias", &[hidden]);
        }
        add("post_attention_layernorm.weight", &[hidden]);
        for (name, out, inputs) in
            [("gate_proj", inner, hidden), ("up_proj", inner, hidden), ("down_proj", hidden, inner)]
        {
            add(&format!("mlp.{name}.weight"), &[out, inputs]);
            if config.has_mlp_bias() {
                add(&format!("mlp.{name}.bias"), &[out]);
            }
        }
    }
    tensors.push(("model.norm.weight".into(), vec![hidden]));
    if !config.tie_word_embeddings {
        tensors.push((HEAD.into(), vec![config.vocab_size, hidden]));
    }
    tensors
}
