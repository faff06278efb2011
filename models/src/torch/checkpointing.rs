//! Gradient checkpointing (<https://arxiv.org/abs/1604.06174>): of each layer its input alone is kept, and the layer is
//! run again when its gradient is wanted. A third more arithmetic, a small part of the memory.
//!
//! libtorch offers no hook for this, so the way back is walked here, layer by layer: the gradient g of a layer's output
//! y becomes that of its input and parameters through the scalar `sum(y * g)`.

use super::attention::KeyValue;
use super::decoder::{Decoder, DecoderError, ForwardInput, Hidden, Run};
use super::layers::Adapters;
use tch::{Kind, Tensor};

/// The way back through one pass, to be walked once, after the loss's own `backward`.
#[derive(Debug)]
pub struct Recompute<'a> {
    decoder: &'a Decoder,
    run: Run,
    input_ids: Tensor,
    /// Input of each layer, and behind the last the leaf that the final norm was run on.
    inputs: Vec<Tensor>,
    /// Keys and values of earlier texts; gradients flow into them.
    past: Vec<KeyValue>,
    /// Keys and values as they were handed out, leaves.
    cached: Vec<KeyValue>,
    /// Dropout of layer n is seeded with this + n, so that it drops the same numbers again.
    seed: i64,
}

impl Decoder {
    /// As [`Decoder::forward`] through all layers, keeping no layer's inner numbers. What it returns are leaves: after
    /// the loss's `backward`, [`Recompute::backward`] brings their gradients to the parameters. Passes are walked back
    /// in the reverse of the order in which they were made: a past's gradient comes from those that continue it.
    pub fn forward_checkpointed(&self, input: ForwardInput) -> Result<(Hidden, Recompute<'_>), DecoderError> {
        let input = ForwardInput { keep_layers: &[], max_layers: None, ..input };
        let rows = self.check(&input)?;
        let input_ids = input.input_ids.to_device(self.device());
        let run = self.prepare(&input, &rows);
        let seed = match input.adapters {
            Adapters::Training => {
                Tensor::randint_low(0, 1 << 62, [1], (Kind::Int64, tch::Device::Cpu)).int64_value(&[0])
            }
            Adapters::On | Adapters::Off => 0,
        };
        let shared =
            |part: &KeyValue| KeyValue { key: part.key.shallow_clone(), value: part.value.shallow_clone() };
        let past: Vec<KeyValue> =
            input.past.into_iter().flat_map(|past| past.layers.iter().map(shared)).collect();
        let mut inputs = Vec::with_capacity(self.layers.len() + 1);
        let mut cached = Vec::new();
        tch::no_grad(|| -> Result<(), DecoderError> {
            let mut x = Tensor::f_embedding(&self.embed_tokens, &input_ids, -1, false, false)?;
            for (n, layer) in self.layers.iter().enumerate() {
                reseed(&run, seed, n);
                let (out, cache) = layer.forward(&x, &run, past.get(n));
                inputs.push(std::mem::replace(&mut x, out));
                if input.want_cache {
                    cached.push(cache);
                }
            }
            inputs.push(x);
            Ok(())
        })?;
        let leaf = |tensor: &Tensor| tensor.detach().set_requires_grad(true);
        let cached: Vec<KeyValue> =
            cached.iter().map(|part| KeyValue { key: leaf(&part.key), value: leaf(&part.value) }).collect();
        if let Some(top) = inputs.last_mut() {
            *top = leaf(top);
        }
        let last = inputs.last().map(|top| self.norm.forward(top, top.kind()));
        let handed_out = cached.iter().map(shared).collect();
        let hidden = Hidden {
            last,
            layers: Vec::new(),
            cache: input.want_cache.then(|| rows.cache(handed_out, &input, self.device())),
            layers_run: self.layers.len(),
        };
        Ok((hidden, Recompute { decoder: self, run, input_ids, inputs, past, cached, seed }))
    }
}

impl Recompute<'_> {
    /// Adds this pass's share to the gradients of parameters and past.
    pub fn backward(self) {
        let mut inputs = self.inputs;
        let mut gradient = inputs.pop().map(|top| top.grad()).filter(Tensor::defined);
        for (n, (layer, x)) in self.decoder.layers.iter().zip(inputs).enumerate().rev() {
            let x = x.detach().set_requires_grad(true);
            reseed(&self.run, self.seed, n);
            let (out, new) = layer.forward(&x, &self.run, self.past.get(n));
            let mut products = Vec::new();
            let mut pull = |output: &Tensor, gradient: Tensor| {
                if gradient.defined() {
                    products.push((output * gradient).sum(Kind::Float));
                }
            };
            if let Some(gradient) = gradient.take() {
                pull(&out, gradient);
            }
            if let Some(handed_out) = self.cached.get(n) {
                pull(&new.key, handed_out.key.grad());
                pull(&new.value, handed_out.value.grad());
            }
            if let Some(sum) = products.into_iter().reduce(|sum, product| sum + product) {
                sum.backward();
                gradient = Some(x.grad()).filter(Tensor::defined);
            }
        }
        if let Some(gradient) = gradient.filter(|_| self.decoder.embed_tokens.requires_grad()) {
            let x = Tensor::embedding(&self.decoder.embed_tokens, &self.input_ids, -1, false, false);
            (x * gradient).sum(Kind::Float).backward();
        }
    }
}

/// Only where something is random: the global generator stays as it is otherwise.
fn reseed(run: &Run, seed: i64, layer: usize) {
    if run.adapters == Adapters::Training {
        tch::manual_seed(seed.wrapping_add(layer as i64));
    }
}
