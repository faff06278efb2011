//! The LLM's tensors and its query adapter's, in one basis.

use crate::error::ExportError;
use crate::quantise::basis::RotatedBasis;
use crate::source::adapter::QueryAdapter;
use crate::source::tensors::TensorSource;
use models::config::DecoderConfig;
use models::weights::Weights;
use std::path::Path;
use std::rc::Rc;

/// What the emitters of an LLM read.
pub struct Llm {
    /// The LLM itself.
    pub base: TensorSource,
    /// Branches that queries take.
    pub adapter: Option<QueryAdapter>,
}

impl Llm {
    /// The LLM of a model directory, without an adapter; names, shapes and types must be those that `config` describes.
    pub fn open(dir: &Path, config: &DecoderConfig) -> Result<Self, ExportError> {
        let weights = Weights::open(dir)?;
        weights.check(config)?;
        Ok(Self { base: TensorSource::new(weights), adapter: None })
    }

    /// Reads all tensors in the rotated basis from now on, the adapter's too. `smoothquant` are the scales of `down_proj`'s
    /// input channels by layer; none where nothing is scaled.
    pub fn rotate(&mut self, config: &DecoderConfig, smoothquant: Vec<Vec<f32>>) -> Result<(), ExportError> {
        let basis = Rc::new(RotatedBasis::new(self.base.weights(), config, smoothquant)?);
        if let Some(adapter) = &mut self.adapter {
            adapter.set_basis(&basis);
        }
        self.base.set_basis(&basis);
        Ok(())
    }
}
