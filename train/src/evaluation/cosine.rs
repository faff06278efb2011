//! Ranking by the cosine of two embeddings, and the baseline of an untaught language model: what its hidden states are
//! worth before anything is distilled from or into them.

use super::first_stage::FirstStage;
use crate::device::tokens_per_pass;
use crate::features::{Side, bar};
use crate::scoring::rows_of;
use anyhow::{Context, Result, bail};
use models::config::DecoderConfig;
use models::torch::encoder::pooling_weights;
use models::torch::{Batch, ForwardInput, Reranker, length_buckets};
use ndarray::Array2;
use tch::Kind;

/// Makes a vector of a text.
pub trait Embed {
    /// An embedding for each text, in order, all of one length.
    fn embed(&mut self, side: Side, texts: &[&str]) -> Result<Vec<Vec<f32>>>;
}

/// Ranks by cosine.
pub struct Cosine<E> {
    embed: E,
    queries: Array2<f32>,
}

impl<E: Embed> Cosine<E> {
    /// With the queries still to come.
    pub fn new(embed: E) -> Self {
        Self { embed, queries: Array2::zeros((0, 0)) }
    }
}

impl<E: Embed> FirstStage for Cosine<E> {
    type Documents = Array2<f32>;

    fn read_queries(&mut self, texts: &[&str]) -> Result<()> {
        self.queries = unit_rows(self.embed.embed(Side::Query, texts)?)?;
        Ok(())
    }

    fn read_documents(&mut self, texts: &[&str]) -> Result<Array2<f32>> {
        unit_rows(self.embed.embed(Side::Document, texts)?)
    }

    fn score(&self, documents: &Array2<f32>) -> Result<Array2<f32>> {
        Ok(self.queries.dot(&documents.t()))
    }
}

/// `[n, h]`, rows at unit length; a zero row stays zero.
fn unit_rows(rows: Vec<Vec<f32>>) -> Result<Array2<f32>> {
    let shape = (rows.len(), rows.first().map_or(0, Vec::len));
    let mut matrix =
        Array2::from_shape_vec(shape, rows.concat()).context("embeddings of different lengths")?;
    for mut row in matrix.outer_iter_mut() {
        let length = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt().max(1e-30);
        row.mapv_inplace(|x| (f64::from(x) / length) as f32);
    }
    Ok(matrix)
}

/// Whether a model has this layer.
pub fn check_layer(config: &DecoderConfig, layer: Option<usize>) -> Result<()> {
    let depth = config.num_hidden_layers;
    match layer {
        Some(layer) if layer > depth => {
            bail!("--llm-cosine-layer {layer}: this model has {depth} layers (0 is the embeddings)")
        }
        _ => Ok(()),
    }
}

/// Mean over a text's own tokens of a language model's hidden states. The texts stand in the same prompt as for the student.
pub struct MeanPooled<'a> {
    llm: &'a Reranker,
    layer: Option<usize>,
}

impl<'a> MeanPooled<'a> {
    /// Of a layer's output (0 = the embeddings), or without one of what the model's head reads: the last layer's output
    /// behind the final norm.
    pub fn new(llm: &'a Reranker, layer: Option<usize>) -> Result<Self> {
        check_layer(llm.decoder.config(), layer)?;
        Ok(Self { llm, layer })
    }
}

impl Embed for MeanPooled<'_> {
    fn embed(&mut self, side: Side, texts: &[&str]) -> Result<Vec<Vec<f32>>> {
        let (decoder, prompter) = (&self.llm.decoder, &self.llm.prompter);
        let mut passes = Vec::with_capacity(texts.len());
        for text in texts {
            passes.push(match side {
                Side::Document => prompter.document_pass(text)?,
                Side::Query => prompter.query_pass(text)?,
            });
        }
        let lengths: Vec<usize> = passes.iter().map(|pass| pass.ids.len()).collect();
        let mut found = vec![Vec::new(); texts.len()];
        let bar = bar(texts.len(), "LLM embeddings");
        let _guard = tch::no_grad_guard();
        for bucket in length_buckets(&lengths, tokens_per_pass(decoder.device())) {
            let passes: Vec<_> = bucket.iter().map(|place| passes[*place].clone()).collect();
            let rows: Vec<&[u32]> = passes.iter().map(|pass| pass.ids.as_slice()).collect();
            let batch = Batch::new(&rows, decoder.device());
            let hidden = decoder.forward(ForwardInput {
                attention_mask: batch.attention_mask.as_ref(),
                keep_layers: self.layer.as_slice(),
                max_layers: self.layer,
                ..ForwardInput::new(&batch.input_ids)
            })?;
            let states = match hidden.layers.first() {
                Some(layer) => layer,
                None => hidden.last()?,
            };
            let weights = pooling_weights(&batch, &passes, 0).to_device(decoder.device());
            let pooled = weights.unsqueeze(1).bmm(&states.to_kind(Kind::Float)).squeeze_dim(1);
            for (place, row) in bucket.iter().zip(rows_of(&pooled)?) {
                found[*place] = row;
            }
            bar.inc(bucket.len() as u64);
        }
        bar.finish_and_clear();
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Embeds a text of two numbers as those numbers.
    struct Numbers;

    impl Embed for Numbers {
        fn embed(&mut self, _: Side, texts: &[&str]) -> Result<Vec<Vec<f32>>> {
            let numbers = |text: &&str| text.split(' ').map(|x| x.parse().unwrap()).collect();
            Ok(texts.iter().map(numbers).collect())
        }
    }

    /// Long vectors must not win by their length, and an empty one must not be NaN, which would sort above all.
    #[test]
    fn cosines_do_not_depend_on_lengths() {
        let mut cosine = Cosine::new(Numbers);
        cosine.read_queries(&["3 4", "0 2"]).unwrap();
        let documents = cosine.read_documents(&["300 400", "0 0.1", "0 0"]).unwrap();
        let scores = cosine.score(&documents).unwrap();
        for (found, expected) in scores.iter().zip([1.0, 0.8, 0.0, 0.8, 1.0, 0.0]) {
            assert!((found - expected).abs() < 1e-6, "{scores}");
        }
    }
}
