//! From checkpoint to decoder and back, strictly: every tensor is filled, none is left over, each has its shape.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use tch::{Device, Kind, Tensor, nn};

use super::decoder::{Decoder, DecoderError};
use super::layers::Linear;
use crate::config::DecoderConfig;
use crate::lora::LoraConfig;
use crate::weights::{DType, SafetensorsWriter, Weights, WeightsError, expected_tensors};

/// What PEFT puts before the name of an adapter's tensor.
const PEFT_PREFIX: &str = "base_model.model.";

impl Decoder {
    /// Opens a model folder under `p`, on its device and in its kind.
    pub fn open(
        p: &nn::Path,
        dir: impl AsRef<Path>,
        lora: Option<&LoraConfig>,
    ) -> Result<Self, DecoderError> {
        let config = DecoderConfig::open(&dir)?;
        let weights = Weights::open(&dir)?;
        let decoder = Self::new(p, &config, lora)?;
        decoder.load(&weights)?;
        Ok(decoder)
    }

    /// Fills the parameters, converted to their kind and moved to their device one by one. A missing, unused
    /// or wrongly shaped tensor is an error, and then nothing is changed.
    pub fn load(&self, weights: &Weights) -> Result<(), DecoderError> {
        weights.check(self.config())?;
        for (name, parameter) in self.parameters() {
            copy(weights, &name, parameter)?;
        }
        Ok(())
    }

    /// Fills the adapters from a file as `lora_state` names them, or as PEFT does (`base_model.model.` before).
    pub fn load_lora(&self, weights: &Weights) -> Result<(), DecoderError> {
        let parameters = self.lora_parameters();
        let mut left: BTreeMap<&str, &str> =
            weights.names().map(|name| (name.strip_prefix(PEFT_PREFIX).unwrap_or(name), name)).collect();
        let mut found = Vec::with_capacity(parameters.len());
        for (name, parameter) in &parameters {
            let Some(stored) = left.remove(name.as_str()) else {
                return Err(WeightsError::Missing { file: weights.file().into(), name: name.clone() }.into());
            };
            let (_, shape, _) = weights.raw(stored)?;
            let expected: Vec<usize> = parameter.size().iter().map(|&size| size as usize).collect();
            if shape != expected {
                let (file, found) = (weights.file().into(), shape.to_vec());
                return Err(WeightsError::Shape { file, name: name.clone(), found, expected }.into());
            }
            found.push((stored, parameter));
        }
        if let Some(name) = left.into_values().next() {
            return Err(WeightsError::Unused { file: weights.file().into(), name: name.into() }.into());
        }
        found.into_iter().try_for_each(|(name, parameter)| copy(weights, name, parameter))
    }

    /// All tensors of the plain model under their checkpoint names, adapters merged, in the order of the forward
    /// pass. Without adapters nothing is copied.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        self.merged().collect()
    }

    /// The adapters alone, under the names of the `VarStore`; none without a `LoraConfig`.
    pub fn lora_state(&self) -> Vec<(String, Tensor)> {
        self.lora_parameters().into_iter().map(|(name, tensor)| (name, tensor.detach())).collect()
    }

    /// Writes `state` as one safetensors file, tensor by tensor, atomically.
    pub fn save(
        &self,
        file: impl AsRef<Path>,
        dtype: DType,
        metadata: HashMap<String, String>,
    ) -> Result<(), DecoderError> {
        let mut writer = SafetensorsWriter::create(file, dtype)?;
        for (name, tensor) in self.merged() {
            let shape: Vec<usize> = tensor.size().iter().map(|&size| size as usize).collect();
            let flat = tensor.to_device(Device::Cpu).to_kind(Kind::Float).contiguous().view(-1);
            writer.push(&name, &shape, &Vec::<f32>::try_from(flat)?)?;
        }
        Ok(writer.finish(metadata)?)
    }

    /// `state`, one tensor at a time.
    fn merged(&self) -> impl Iterator<Item = (String, Tensor)> {
        let projections = self.projections().into_iter();
        let projections: HashMap<String, &Linear> =
            projections.map(|(name, linear)| (format!("{name}.weight"), linear)).collect();
        self.parameters().into_iter().map(move |(name, parameter)| {
            let tensor = projections.get(&name).map_or_else(|| parameter.detach(), |linear| linear.merge());
            (name, tensor)
        })
    }

    /// Parameters of the plain model by checkpoint name, in the order of `expected_tensors`.
    fn parameters(&self) -> Vec<(String, &Tensor)> {
        let mut all: HashMap<String, &Tensor> = HashMap::new();
        all.insert("model.embed_tokens.weight".into(), &self.embed_tokens);
        all.insert("model.norm.weight".into(), &self.norm.weight);
        if let Some(head) = &self.lm_head {
            all.insert("lm_head.weight".into(), head);
        }
        for (name, linear) in self.projections() {
            all.insert(format!("{name}.weight"), &linear.weight);
            if let Some(bias) = &linear.bias {
                all.insert(format!("{name}.bias"), bias);
            }
        }
        for (n, layer) in self.layers.iter().enumerate() {
            for (name, norm) in [
                ("input_layernorm", Some(&layer.input_layernorm)),
                ("post_attention_layernorm", Some(&layer.post_attention_layernorm)),
                ("self_attn.q_norm", layer.self_attn.q_norm.as_ref()),
                ("self_attn.k_norm", layer.self_attn.k_norm.as_ref()),
            ] {
                if let Some(norm) = norm {
                    all.insert(format!("model.layers.{n}.{name}.weight"), &norm.weight);
                }
            }
        }
        let names = expected_tensors(self.config()).into_iter();
        names.filter_map(|(name, _)| all.remove(&name).map(|tensor| (name, tensor))).collect()
    }

    fn lora_parameters(&self) -> Vec<(String, &Tensor)> {
        let adapters = self.projections().into_iter().filter_map(|(name, linear)| {
            let lora = linear.lora.as_ref()?;
            Some([(format!("{name}.lora_A.weight"), &lora.a), (format!("{name}.lora_B.weight"), &lora.b)])
        });
        adapters.flatten().collect()
    }

    /// All projections of all layers, `model.layers.0.self_attn.q_proj` and so on.
    fn projections(&self) -> Vec<(String, &Linear)> {
        let layers = self.layers.iter().enumerate().flat_map(|(n, layer)| {
            let (attention, mlp) = (&layer.self_attn, &layer.mlp);
            [
                ("self_attn.q_proj", &attention.q_proj),
                ("self_attn.k_proj", &attention.k_proj),
                ("self_attn.v_proj", &attention.v_proj),
                ("self_attn.o_proj", &attention.o_proj),
                ("mlp.gate_proj", &mlp.gate_proj),
                ("mlp.up_proj", &mlp.up_proj),
                ("mlp.down_proj", &mlp.down_proj),
            ]
            .map(|(name, linear)| (format!("model.layers.{n}.{name}"), linear))
        });
        layers.collect()
    }
}

/// Copies one stored tensor into a parameter, whose shape has been checked.
fn copy(weights: &Weights, name: &str, parameter: &Tensor) -> Result<(), DecoderError> {
    let (dtype, shape, bytes) = weights.raw(name)?;
    let kind = match dtype {
        DType::F32 => Kind::Float,
        DType::F16 => Kind::Half,
        DType::BF16 => Kind::BFloat16,
        found => {
            let file = weights.file().into();
            return Err(WeightsError::Dtype { file, name: name.into(), found }.into());
        }
    };
    let shape: Vec<i64> = shape.iter().map(|&size| size as i64).collect();
    let stored = Tensor::f_from_data_size(bytes, &shape, kind)?;
    tch::no_grad(|| parameter.shallow_clone().f_copy_(&stored))?;
    Ok(())
}
