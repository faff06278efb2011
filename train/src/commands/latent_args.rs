//! Flags of the latent loss of `train teacher`.

use super::distill::default_layers;
use crate::teaching::latent::LatentLossConfig;
use anyhow::{Result, bail};
use clap::Args as ClapArgs;

/// Steps between two measurements of the latents' mean and deviation.
const REFRESH: usize = 100;

/// What is taught about the latents that a student will read.
#[derive(Debug, ClapArgs)]
pub struct LatentArgs {
    /// Weight of the latent loss beside the judgement: a contrastive term on the latents that a student will read, so that
    /// it finds documents that were never named in training; 0 = none
    #[arg(long, default_value_t = 0.0, value_name = "W")]
    pub latent_weight: f64,
    /// Teach latents and nothing else: a first stage on many data sets, at one pass a text and without pairs
    #[arg(long)]
    pub latent_only: bool,
    /// Layers whose latents are taught, all together and each by itself; default: those that `train distill` reads
    #[arg(long, value_delimiter = ',')]
    pub latent_layers: Vec<usize>,
    /// Queries per micro-batch of the latent loss
    #[arg(long, default_value_t = 32)]
    pub latent_queries: usize,
    /// Documents per micro-batch of the latent loss, a relevant one of each query among them
    #[arg(long, default_value_t = 48)]
    pub latent_documents: usize,
    /// Temperature of the latent loss
    #[arg(long, default_value_t = 0.05)]
    pub latent_temperature: f64,
    /// Unjudged documents whose cosine with the query is above its right document's by more than this are taken to be
    /// relevant too, and left out
    #[arg(long, default_value_t = 0.1)]
    pub latent_margin: f64,
    /// Most tokens of the latent loss whose activations are held at once; a larger batch is read twice (GradCache), so that
    /// memory stays bounded
    #[arg(long, default_value_t = 8192)]
    pub latent_tokens: usize,
}

impl LatentArgs {
    /// Settings of the latent loss for a model of `depth` layers; none where it has no weight.
    pub fn config(&self, depth: usize) -> Result<Option<LatentLossConfig>> {
        let weight = match self.latent_only {
            true if self.latent_weight == 0.0 => 1.0,
            _ => self.latent_weight,
        };
        if !weight.is_finite() || weight < 0.0 {
            bail!("--latent-weight is {weight}, expected a number of at least 0");
        }
        if weight == 0.0 {
            return match self.latent_layers.is_empty() {
                true => Ok(None),
                false => bail!("--latent-layers needs a latent loss: give --latent-weight or --latent-only"),
            };
        }
        let mut layers = match self.latent_layers.is_empty() {
            true => default_layers(depth),
            false => self.latent_layers.clone(),
        };
        layers.sort_unstable();
        if let Some(layer) = layers.iter().find(|layer| **layer == 0 || **layer > depth) {
            bail!("--latent-layers {layer}: this model has layers 1 to {depth}");
        }
        if let Some(twice) = layers.windows(2).find(|pair| pair[0] == pair[1]) {
            bail!("--latent-layers: {} is named twice, expected different layers", twice[0]);
        }
        if self.latent_queries == 0 || self.latent_documents < 2 || self.latent_tokens == 0 {
            bail!("--latent-queries and --latent-tokens must be at least 1, --latent-documents at least 2");
        }
        if !(self.latent_temperature > 0.0 && self.latent_temperature.is_finite()) {
            bail!("--latent-temperature is {}, expected a number above 0", self.latent_temperature);
        }
        if self.latent_margin.is_nan() || self.latent_margin < 0.0 {
            bail!("--latent-margin is {}, expected a number of at least 0", self.latent_margin);
        }
        Ok(Some(LatentLossConfig {
            weight,
            layers,
            queries: self.latent_queries,
            documents: self.latent_documents,
            temperature: self.latent_temperature,
            margin: self.latent_margin,
            tokens: self.latent_tokens,
            refresh: REFRESH,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        latent: LatentArgs,
    }

    fn config(flags: &[&str]) -> Result<Option<LatentLossConfig>> {
        let flags = std::iter::once("train").chain(flags.iter().copied());
        Command::try_parse_from(flags).unwrap().latent.config(30)
    }

    /// A layer that the model lacks must be told before hours of training, and so must a weight that teaches nothing.
    #[test]
    fn layers_and_weights_are_checked_before_anything_is_read() {
        assert!(config(&[]).unwrap().is_none());
        let only = config(&["--latent-only"]).unwrap().unwrap();
        assert_eq!((only.weight, only.layers, only.tokens), (1.0, vec![6, 12, 18, 24], 8192));
        let some = config(&["--latent-weight", "0.5", "--latent-layers", "12,6"]).unwrap().unwrap();
        assert_eq!((some.weight, some.depth()), (0.5, 12));
        let refused = |flags: &[&str]| config(flags).unwrap_err().to_string();
        assert!(refused(&["--latent-only", "--latent-layers", "6,31"]).contains("layers 1 to 30"));
        assert!(refused(&["--latent-only", "--latent-layers", "0"]).contains("layers 1 to 30"));
        assert!(refused(&["--latent-only", "--latent-layers", "6,6"]).contains("named twice"));
        assert!(refused(&["--latent-layers", "6"]).contains("--latent-weight"));
        assert!(refused(&["--latent-weight", "nan"]).contains("at least 0"));
        assert!(refused(&["--latent-only", "--latent-temperature", "0"]).contains("above 0"));
    }
}
