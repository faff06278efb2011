//! The student's encoder: a frozen LLM read at chosen layers, mean over the text's own tokens
//! (Rabtriever, arXiv 2604.23336; which layers and why in ARCHITECTURE.md).

use super::batch::Batch;
use super::{Adapters, Decoder, DecoderError, ForwardInput};
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

/// Encodes passes in one padded batch. Call under `tch::no_grad`, except where adapters of the query side learn: the
/// student's LLM is frozen. Documents are read with [`Adapters::Off`].
///
/// What all passes begin with (the prompt before the text) is read once for the batch, and nothing behind a text where
/// nobody looks there: of a ten-token sentence in its prompt that is two fifths of the work.
pub fn encode(
    decoder: &Decoder,
    config: &EncoderConfig,
    passes: &[Encoded],
    adapters: Adapters,
) -> Result<Latents, DecoderError> {
    let pooled = config.residual == Residual::Pooled;
    let read = |pass: &Encoded| if pooled { pass.text.end } else { pass.ids.len() };
    let shared = shared_prefix(passes);
    let max_layers = pooled.then(|| config.layers.iter().copied().max().unwrap_or(0));
    let past = match passes.first().filter(|_| shared > 0) {
        None => None,
        Some(pass) => {
            let prefix = Batch::new(&[&pass.ids[..shared]], decoder.device());
            let input = ForwardInput {
                max_layers,
                want_cache: true,
                adapters,
                ..ForwardInput::new(&prefix.input_ids)
            };
            decoder.forward(input)?.cache
        }
    };
    let rows: Vec<&[u32]> = passes.iter().map(|pass| &pass.ids[shared..read(pass)]).collect();
    let batch = Batch::new(&rows, decoder.device());
    let hidden = decoder.forward(ForwardInput {
        attention_mask: batch.attention_mask.as_ref(),
        past: past.as_ref(),
        keep_layers: &config.layers,
        max_layers,
        adapters,
        ..ForwardInput::new(&batch.input_ids)
    })?;
    let weights = pooling_weights(&batch, passes, shared).to_device(decoder.device());
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

/// Number of tokens before the text that all passes share; none where there is but one, which gains nothing.
fn shared_prefix(passes: &[Encoded]) -> usize {
    let [first, others @ ..] = passes else { return 0 };
    if others.is_empty() {
        return 0;
    }
    let before = passes.iter().map(|pass| pass.text.start).min().unwrap_or(0);
    let same = |place: &usize| others.iter().all(|pass| pass.ids.get(*place) == first.ids.get(*place));
    (0..before).take_while(same).count()
}

/// `[n, seq]`: one over the number of the text's tokens on those, zero elsewhere; column 0 is token `first`.
pub fn pooling_weights(batch: &Batch, passes: &[Encoded], first: usize) -> Tensor {
    let seq = batch.input_ids.size()[1] as usize;
    let mut weights = vec![0f32; passes.len() * seq];
    for (pass, row) in passes.iter().zip(weights.chunks_mut(seq.max(1))) {
        let share = 1.0 / pass.text.len().max(1) as f32;
        row[pass.text.start - first..pass.text.end - first].fill(share);
    }
    Tensor::from_slice(&weights).reshape([passes.len() as i64, seq as i64])
}
