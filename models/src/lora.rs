//! Low-rank adapters (LoRA, <https://arxiv.org/abs/2106.09685>): what one is, for who trains it and who writes it down.

use serde::{Deserialize, Serialize};

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
    /// Layers that get them, counted from 0; all where none are named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers_to_transform: Option<Vec<usize>>,
}

impl Default for LoraConfig {
    /// Rank 16 on all projections.
    fn default() -> Self {
        let target_modules = PROJECTIONS.map(str::to_owned).to_vec();
        Self { rank: 16, alpha: 32.0, dropout: 0.05, target_modules, layers_to_transform: None }
    }
}

impl LoraConfig {
    /// What the product of both matrices is multiplied by.
    pub fn scale(&self) -> f64 {
        self.alpha / self.rank as f64
    }

    /// Whether this projection of this layer has an adapter.
    pub fn covers(&self, layer: usize, projection: &str) -> bool {
        self.layers_to_transform.as_ref().is_none_or(|layers| layers.contains(&layer))
            && self.target_modules.iter().any(|target| target == projection)
    }
}
