//! AdamW (<https://arxiv.org/abs/1711.05101>) whose state can be saved, so that a resumed run is the same run
//! (tch's optimizer keeps its moments to itself).

use tch::{Kind, Tensor, no_grad};

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;
const EPSILON: f64 = 1e-8;

/// One trained tensor with its moments.
struct Slot {
    name: String,
    parameter: Tensor,
    first: Tensor,
    second: Tensor,
    decays: bool,
}

/// AdamW over named parameters; matrices decay, vectors (biases, norms) do not.
pub struct AdamW {
    slots: Vec<Slot>,
    weight_decay: f64,
    step: u64,
}

impl AdamW {
    /// Moments start at zero. Parameters are f32, as all of this project's are.
    pub fn new(parameters: Vec<(String, Tensor)>, weight_decay: f64) -> Self {
        let slots = parameters.into_iter().map(|(name, parameter)| {
            let zeros = || Tensor::zeros(parameter.size(), (Kind::Float, parameter.device()));
            let (first, second, decays) = (zeros(), zeros(), parameter.dim() >= 2);
            Slot { name, first, second, decays, parameter }
        });
        Self { slots: slots.collect(), weight_decay, step: 0 }
    }

    /// Forgets all gradients.
    pub fn zero_grad(&mut self) {
        for slot in &mut self.slots {
            slot.parameter.zero_grad();
        }
    }

    /// Scales all gradients so that their joint length is at most `max_norm`; gives the length before.
    pub fn clip_grad_norm(&mut self, max_norm: f64) -> f64 {
        no_grad(|| {
            let squares: Vec<Tensor> = self.gradients().map(|g| g.norm().square()).collect();
            if squares.is_empty() {
                return 0.0;
            }
            let norm = Tensor::stack(&squares, 0).sum(Kind::Double).sqrt().double_value(&[]);
            if norm.is_finite() && norm > max_norm {
                let scale = max_norm / (norm + 1e-6);
                for mut gradient in self.gradients() {
                    let _ = gradient.g_mul_scalar_(scale);
                }
            }
            norm
        })
    }

    fn gradients(&self) -> impl Iterator<Item = Tensor> + '_ {
        self.slots.iter().map(|slot| slot.parameter.grad()).filter(Tensor::defined)
    }

    /// One update with rate `lr`; parameters without a gradient stay.
    pub fn step(&mut self, lr: f64) {
        self.step += 1;
        if lr == 0.0 {
            // The last step of a schedule that falls to zero moves nothing, and would divide by it.
            return;
        }
        let correction1 = 1.0 - BETA1.powf(self.step as f64);
        let correction2 = 1.0 - BETA2.powf(self.step as f64);
        no_grad(|| {
            for slot in &mut self.slots {
                let gradient = slot.parameter.grad();
                if !gradient.defined() {
                    continue;
                }
                let _ = slot.first.lerp_(&gradient, 1.0 - BETA1);
                let _ = slot.second.g_mul_scalar_(BETA2);
                let _ = slot.second.addcmul_(&gradient, &gradient.g_mul_scalar(1.0 - BETA2));
                if slot.decays {
                    let _ = slot.parameter.g_mul_scalar_(1.0 - lr * self.weight_decay);
                }
                // -lr * (m / c1) / (sqrt(v / c2) + eps), with all factors in the denominator and in place: on a CPU the
                // optimizer is bound by memory, and each pass over an LLM's weights counts.
                let scale = -correction1 / lr;
                let mut denominator = slot.second.sqrt();
                let _ = denominator.g_mul_scalar_(scale / correction2.sqrt()).g_add_scalar_(scale * EPSILON);
                let _ = slot.parameter.addcdiv_(&slot.first, &denominator);
            }
        });
    }

    /// A copy of all parameters, by name.
    pub fn snapshot(&self) -> Vec<(String, Tensor)> {
        self.slots.iter().map(|slot| (slot.name.clone(), slot.parameter.detach().copy())).collect()
    }

    /// Overwrites all parameters with a [`AdamW::snapshot`].
    pub fn load(&mut self, snapshot: &[(String, Tensor)]) {
        no_grad(|| {
            for (slot, (_, saved)) in self.slots.iter_mut().zip(snapshot) {
                slot.parameter.copy_(saved);
            }
        });
    }

    /// Moves a snapshot towards the parameters: `decay * snapshot + (1 - decay) * parameters`.
    pub fn follow(&self, snapshot: &mut [(String, Tensor)], decay: f64) {
        no_grad(|| {
            for (slot, (_, average)) in self.slots.iter().zip(snapshot) {
                let _ = average.lerp_(&slot.parameter.to_kind(average.kind()), 1.0 - decay);
            }
        });
    }

    /// Parameters and moments by name, for a checkpoint.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        self.slots
            .iter()
            .flat_map(|slot| {
                [("parameter", &slot.parameter), ("first", &slot.first), ("second", &slot.second)]
                    .map(|(what, tensor)| (format!("{what}.{}", slot.name), tensor.detach()))
            })
            .collect()
    }

    /// Puts back a saved state; `load` gives a tensor by name. The names and shapes are those of [`AdamW::state`].
    pub fn restore<E>(
        &mut self,
        step: u64,
        mut load: impl FnMut(&str) -> Result<Tensor, E>,
    ) -> Result<(), E> {
        self.step = step;
        no_grad(|| {
            for slot in &mut self.slots {
                for (what, tensor) in [
                    ("parameter", &mut slot.parameter),
                    ("first", &mut slot.first),
                    ("second", &mut slot.second),
                ] {
                    let saved = load(&format!("{what}.{}", slot.name))?;
                    tensor.copy_(&saved);
                }
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three steps by hand, in f64: a wrong moment or correction still trains, only worse, and nobody would see it.
    #[test]
    fn follows_the_formula() {
        let parameter = Tensor::from_slice2(&[[1.0f32]]).set_requires_grad(true);
        let mut adamw = AdamW::new(vec![("p".into(), parameter.shallow_clone())], 0.1);
        let (mut p, mut m, mut v) = (1f64, 0f64, 0f64);
        for t in 1..=3 {
            adamw.zero_grad();
            parameter.square().sum(Kind::Float).backward();
            adamw.step(0.01);
            let g = 2.0 * p;
            m = 0.9 * m + 0.1 * g;
            v = 0.999 * v + 0.001 * g * g;
            p *= 1.0 - 0.01 * 0.1;
            p -= 0.01 * (m / (1.0 - 0.9f64.powi(t))) / ((v / (1.0 - 0.999f64.powi(t))).sqrt() + 1e-8);
        }
        assert!((parameter.double_value(&[0, 0]) - p).abs() < 1e-6);
    }

    /// Clipping must keep the direction and report the length it found.
    #[test]
    fn clips_by_the_joint_norm() {
        let a = Tensor::from_slice(&[3f32]).set_requires_grad(true);
        let b = Tensor::from_slice(&[4f32]).set_requires_grad(true);
        let mut adamw =
            AdamW::new(vec![("a".into(), a.shallow_clone()), ("b".into(), b.shallow_clone())], 0.0);
        ((&a * 3.0) + (&b * 4.0)).sum(Kind::Float).backward();
        assert!((adamw.clip_grad_norm(1.0) - 5.0).abs() < 1e-6);
        assert!((b.grad().double_value(&[0]) - 0.8).abs() < 1e-4);
    }
}
