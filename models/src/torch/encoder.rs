//! The student's encoder: a frozen LLM read at chosen layers, mean over the text's own tokens
//! (Rabtriever, arXiv 2604.23336; which layers and why in ARCHITECTURE.md).

use super::batch::Batch;
use super::{Decoder, DecoderError, ForwardInput};
use crate::prompt::Encoded;
use crate::student::Residual;
use tch::{Kind, Tensor};

/// What is read from the LLM.
#[derive(Debug, Clone)]
pub struct EncoderConfig {
    /// Latent layers, see [`crate::student::LatentConfig`].
    pub layers: Vec<usize>,
    /// Decides how deep the pass goes.
    pub residual: Residual,
}

/// Latents of a batch of passes, f32.
#[derive(Debug)]
pub struct Latents {
    /// `[n, D]`.
    pub latent: Tensor,
    /// `[n, H]`, with [`Residual::LastToken`] only.
    pub answer: Option<Tensor>,
}

/// Encodes passes in one padded batch. Call under `tch::no_grad`: the student's LLM is frozen.
pub fn encode(
    decoder: &Decoder,
    config: &EncoderConfig,
    passes: &[Encoded],
) -> Result<Latents, DecoderError> {
    let rows: Vec<&[u32]> = passes.iter().map(|pass| pass.ids.as_slice()).collect();
    let batch = Batch::new(&rows, decoder.device());
    let deepest = config.layers.iter().copied().max().unwrap_or(0);
    let hidden = decoder.forward(ForwardInput {
        attention_mask: batch.attention_mask.as_ref(),
        keep_layers: &config.layers,
        max_layers: matches!(config.residual, Residual::Pooled).then_some(deepest),
        ..ForwardInput::new(&batch.input_ids)
    })?;
    let weights = pooling_weights(&batch, passes).to_device(decoder.device());
    let pooled = hidden.layers.iter().map(|layer| {
        // [n, 1, seq] x [n, seq, H]
        weights.unsqueeze(1).bmm(&layer.to_kind(Kind::Float)).squeeze_dim(1)
    });
    let latent = Tensor::cat(&pooled.collect::<Vec<_>>(), -1);
    let answer = match config.residual {
        Residual::Pooled => None,
        Residual::LastToken => Some(batch.last_of(hidden.last()?).to_kind(Kind::Float)),
    };
    Ok(Latents { latent, answer })
}

/// `[n, seq]`: one over the number of the text's tokens on those, zero elsewhere.
pub fn pooling_weights(batch: &Batch, passes: &[Encoded]) -> Tensor {
    let seq = batch.input_ids.size()[1] as usize;
    let mut weights = vec![0f32; passes.len() * seq];
    for (pass, row) in passes.iter().zip(weights.chunks_mut(seq.max(1))) {
        let share = 1.0 / pass.text.len().max(1) as f32;
        row[pass.text.clone()].fill(share);
    }
    Tensor::from_slice(&weights).reshape([passes.len() as i64, seq as i64])
}
