//! AdamW (<https://arxiv.org/abs/1711.05101>) whose state can be saved, so that a resumed run is the same run
//! (tch's optimizer keeps its moments to itself).

use crate::ranks::Ranks;
use anyhow::Result;
use std::ops::Range;
use tch::{Device, Kind, Tensor, no_grad};

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;
const EPSILON: f64 = 1e-8;
/// Most parameters that are worked on at once on a GPU. Of larger models each operation outlasts its launch, and a second copy
/// of the gradients is memory that they need.
const JOINED_AT_MOST: i64 = 500_000_000;
/// Numbers that go between processes at once: PyTorch's 25 MB.
const BUCKET: i64 = 25 << 18;

/// One trained tensor with its moments.
struct Slot {
    name: String,
    parameter: Tensor,
    /// This process's part of the flat parameter: first number and how many. All of it where moments are not divided.
    part: (i64, i64),
    /// Gradient of the part, flat, as it is after [`AdamW::collect_gradients`].
    gradient: Option<Tensor>,
    /// Moments of the part, flat.
    first: Tensor,
    second: Tensor,
    decays: bool,
}

impl Slot {
    /// The part of a flat tensor like the parameter.
    fn part_of(&self, flat: &Tensor) -> Tensor {
        flat.narrow(0, self.part.0, self.part.1)
    }

    fn flat(&self) -> Tensor {
        self.parameter.detach().view([-1])
    }

    fn len(&self) -> i64 {
        self.parameter.numel() as i64
    }

    /// Longest part of any of `ranks` processes.
    fn longest_part(&self, ranks: i64) -> i64 {
        (self.len() + ranks - 1) / ranks
    }
}

/// AdamW over named parameters; matrices decay, vectors (biases, norms) do not.
///
/// On many processes gradients are summed over them; each keeps all moments, or with [`AdamW::divided`] a part of every
/// parameter's (ZeRO stage 1, <https://arxiv.org/abs/1910.02054>): the arithmetic is the same, and so is a saved state.
pub struct AdamW {
    slots: Vec<Slot>,
    /// Moments of all slots in one tensor each, in the slots' order: theirs are views of them.
    first: Tensor,
    second: Tensor,
    weight_decay: f64,
    step: u64,
    divided: bool,
    /// Whether many slots are worked on at once: a GPU waits for the launch of each operation, and an LLM has hundreds of
    /// parameters. On a CPU joining the gradients would be one more pass over memory.
    joined: bool,
    /// Where they are: gradients of each run of neighbours that have one.
    runs: Vec<(Range<usize>, Tensor)>,
}

impl AdamW {
    /// Moments start at zero. Parameters are f32, as all of this project's are.
    pub fn new(parameters: Vec<(String, Tensor)>, weight_decay: f64) -> Self {
        Self::of_parts(parameters, weight_decay, None)
    }

    /// The same with each process keeping the moments of its part alone.
    pub fn divided(parameters: Vec<(String, Tensor)>, weight_decay: f64, ranks: &Ranks) -> Self {
        let place = (ranks.rank() as i64, ranks.size() as i64);
        Self::of_parts(parameters, weight_decay, (!ranks.is_alone()).then_some(place))
    }

    fn of_parts(parameters: Vec<(String, Tensor)>, weight_decay: f64, place: Option<(i64, i64)>) -> Self {
        let part_of = |parameter: &Tensor| {
            let n = parameter.numel() as i64;
            place.map_or((0, n), |(rank, ranks)| {
                let longest = (n + ranks - 1) / ranks;
                let start = (rank * longest).min(n);
                (start, longest.min(n - start))
            })
        };
        let device = parameters.first().map_or(Device::Cpu, |(_, parameter)| parameter.device());
        let total: i64 = parameters.iter().map(|(_, parameter)| part_of(parameter).1).sum();
        let zeros = || Tensor::zeros([total], (Kind::Float, device));
        let (first, second) = (zeros(), zeros());
        let mut start = 0;
        let slots = parameters.into_iter().map(|(name, parameter)| {
            let part = part_of(&parameter);
            let view = |moments: &Tensor| moments.narrow(0, start, part.1);
            let (first, second, decays) = (view(&first), view(&second), parameter.dim() >= 2);
            start += part.1;
            Slot { name, part, gradient: None, first, second, decays, parameter }
        });
        let slots = slots.collect();
        let (divided, joined) = (place.is_some(), device.is_cuda() && total <= JOINED_AT_MOST);
        Self { slots, first, second, weight_decay, step: 0, divided, joined, runs: Vec::new() }
    }

    /// Forgets all gradients.
    pub fn zero_grad(&mut self) {
        self.runs.clear();
        for slot in &mut self.slots {
            slot.gradient = None;
            slot.parameter.zero_grad();
        }
    }

    /// Takes the gradients that went backward, summed over all processes, in buckets. A parameter that has none in any
    /// process stays without.
    pub fn collect_gradients(&mut self, ranks: &Ranks) -> Result<()> {
        let own = |slot: &Slot| {
            let gradient = slot.parameter.grad();
            gradient.defined().then(|| gradient.contiguous().view([-1]))
        };
        if ranks.is_alone() {
            for slot in &mut self.slots {
                slot.gradient = own(slot);
            }
            self.join_gradients();
            return Ok(());
        }
        let mine: Vec<bool> = self.slots.iter().map(|slot| slot.parameter.grad().defined()).collect();
        let all = ranks.exchange("parameters with a gradient", Ok(mine))?;
        let with: Vec<usize> = (0..self.slots.len()).filter(|i| all.iter().any(|of| of[*i])).collect();
        for bucket in self.buckets(&with) {
            let gradients: Vec<Tensor> = bucket
                .iter()
                .map(|i| own(&self.slots[*i]).unwrap_or_else(|| self.slots[*i].flat().zeros_like()))
                .collect();
            let summed = match self.divided {
                true => {
                    ranks.reduce_scatter("summing gradients", &self.in_rows(&bucket, &gradients, ranks))?
                }
                false => {
                    let mut flat = Tensor::cat(&gradients, 0);
                    ranks.all_reduce("summing gradients", &mut flat)?;
                    flat
                }
            };
            let mut start = 0;
            for i in bucket {
                let slot = &mut self.slots[i];
                slot.gradient = Some(summed.narrow(0, start, slot.part.1));
                start += if self.divided { slot.longest_part(ranks.size() as i64) } else { slot.len() };
            }
        }
        self.join_gradients();
        Ok(())
    }

    /// Makes the gradients of neighbours views of one tensor, where many are worked on at once.
    fn join_gradients(&mut self) {
        if !self.joined {
            return;
        }
        let has = |slot: &Slot| slot.gradient.is_some();
        let mut start = 0;
        for slots in self.slots.chunk_by_mut(|a, b| has(a) == has(b)) {
            let run = start..start + slots.len();
            start = run.end;
            let gradients: Vec<Tensor> = slots.iter_mut().filter_map(|slot| slot.gradient.take()).collect();
            if gradients.is_empty() {
                continue;
            }
            let joined = Tensor::cat(&gradients, 0);
            let lengths: Vec<i64> = slots.iter().map(|slot| slot.part.1).collect();
            for (slot, gradient) in slots.iter_mut().zip(joined.split_with_sizes(lengths, 0)) {
                slot.gradient = Some(gradient);
            }
            self.runs.push((run, joined));
        }
    }

    /// Scales all gradients so that their joint length is at most `max_norm`; gives the length before.
    pub fn clip_grad_norm(&mut self, max_norm: f64, ranks: &Ranks) -> Result<f64> {
        let _guard = tch::no_grad_guard();
        let squares: Vec<Tensor> = self.gradients().iter().map(|g| g.norm().square()).collect();
        let mut sum = match squares.is_empty() {
            true => 0.0,
            false => Tensor::stack(&squares, 0).sum(Kind::Double).double_value(&[]),
        };
        if self.divided {
            let mut all = Tensor::from_slice(&[sum]);
            ranks.all_reduce("length of the gradient", &mut all)?;
            sum = all.double_value(&[0]);
        }
        let norm = sum.sqrt();
        if norm.is_finite() && norm > max_norm {
            let scale = max_norm / (norm + 1e-6);
            for mut gradient in self.gradients() {
                let _ = gradient.g_mul_scalar_(scale);
            }
        }
        Ok(norm)
    }

    /// All gradients, in as few tensors as they are in.
    fn gradients(&self) -> Vec<Tensor> {
        let all: Vec<&Tensor> = match self.joined {
            true => self.runs.iter().map(|(_, gradients)| gradients).collect(),
            false => self.slots.iter().filter_map(|slot| slot.gradient.as_ref()).collect(),
        };
        all.into_iter().map(Tensor::shallow_clone).collect()
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
        // -lr * (m / c1) / (sqrt(v / c2) + eps), with all factors in the denominator and in place: on a CPU the optimizer is
        // bound by memory, and each pass over an LLM's weights counts.
        let scale = -correction1 / lr;
        let moments = |first: &mut Tensor, second: &mut Tensor, gradient: &Tensor| {
            let _ = first.lerp_(gradient, 1.0 - BETA1);
            let _ = second.g_mul_scalar_(BETA2);
            let _ = second.addcmul_(gradient, &gradient.g_mul_scalar(1.0 - BETA2));
            let mut denominator = second.sqrt();
            denominator.g_mul_scalar_(scale / correction2.sqrt()).g_add_scalar_(scale * EPSILON)
        };
        let decay = 1.0 - lr * self.weight_decay;
        let moved = |slot: &Slot, denominator: &Tensor| {
            let mut part = slot.part_of(&slot.flat());
            if slot.decays {
                let _ = part.g_mul_scalar_(decay);
            }
            let _ = part.addcdiv_(&slot.first, denominator);
        };
        no_grad(|| {
            if !self.joined {
                for slot in &mut self.slots {
                    let Some(gradient) = &slot.gradient else { continue };
                    let denominator = moments(&mut slot.first, &mut slot.second, gradient);
                    moved(slot, &denominator);
                }
                return;
            }
            let parts: Vec<i64> = self.slots.iter().map(|slot| slot.part.1).collect();
            for (run, gradients) in &self.runs {
                let (start, length) =
                    (parts[..run.start].iter().sum::<i64>(), parts[run.clone()].iter().sum::<i64>());
                let [mut first, mut second] =
                    [&self.first, &self.second].map(|moments| moments.narrow(0, start, length));
                let denominators = moments(&mut first, &mut second, gradients);
                let denominators = denominators.split_with_sizes(&parts[run.clone()], 0);
                self.slots[run.clone()].iter().zip(&denominators).for_each(|(slot, of)| moved(slot, of));
            }
        });
    }

    /// After a step with divided moments: every process gets the parts that the others have moved.
    pub fn share_parameters(&mut self, ranks: &Ranks) -> Result<()> {
        if !self.divided {
            return Ok(());
        }
        let _guard = tch::no_grad_guard();
        let moved: Vec<usize> = (0..self.slots.len()).filter(|i| self.slots[*i].gradient.is_some()).collect();
        for bucket in self.buckets(&moved) {
            let own: Vec<Tensor> = bucket
                .iter()
                .map(|i| self.padded_part(*i, &self.slots[*i].part_of(&self.slots[*i].flat()), ranks))
                .collect();
            let rows = ranks.all_gather("sharing parameters", &Tensor::cat(&own, 0))?;
            let mut start = 0;
            for i in bucket {
                let slot = &self.slots[i];
                let width = slot.longest_part(ranks.size() as i64);
                let whole = rows.narrow(1, start, width).reshape([-1]).narrow(0, 0, slot.len());
                let mut flat = slot.flat();
                flat.copy_(&whole);
                start += width;
            }
        }
        Ok(())
    }

    /// All processes begin with process 0's parameters.
    pub fn begin_together(&mut self, ranks: &Ranks) -> Result<()> {
        if ranks.is_alone() {
            return Ok(());
        }
        let _guard = tch::no_grad_guard();
        let all: Vec<usize> = (0..self.slots.len()).collect();
        for bucket in self.buckets(&all) {
            let flat: Vec<Tensor> = bucket.iter().map(|i| self.slots[*i].flat()).collect();
            let mut joined = Tensor::cat(&flat, 0);
            ranks.tensor_from_first("first parameters", &mut joined)?;
            let mut start = 0;
            for mut flat in flat {
                let n = flat.numel() as i64;
                flat.copy_(&joined.narrow(0, start, n));
                start += n;
            }
        }
        Ok(())
    }

    /// These slots in groups of about a bucket's size.
    fn buckets(&self, slots: &[usize]) -> Vec<Vec<usize>> {
        let mut buckets: Vec<Vec<usize>> = Vec::new();
        let mut room = 0;
        for i in slots {
            let n = self.slots[*i].len();
            match buckets.last_mut() {
                Some(bucket) if n <= room => bucket.push(*i),
                _ => {
                    buckets.push(vec![*i]);
                    room = BUCKET;
                }
            }
            room -= n;
        }
        buckets
    }

    /// Flat gradients as `[ranks, ...]`: in each row one process's parts of all of them, with zeros where a part is shorter.
    fn in_rows(&self, bucket: &[usize], flat: &[Tensor], ranks: &Ranks) -> Tensor {
        let n = ranks.size() as i64;
        let rows: Vec<Tensor> = bucket
            .iter()
            .zip(flat)
            .map(|(i, flat)| {
                let width = self.slots[*i].longest_part(n);
                padded(flat, n * width).view([n, width])
            })
            .collect();
        Tensor::cat(&rows, 1)
    }

    fn padded_part(&self, slot: usize, part: &Tensor, ranks: &Ranks) -> Tensor {
        padded(part, self.slots[slot].longest_part(ranks.size() as i64))
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

    /// Parameters and whole moments by name, for a checkpoint: the same whatever the number of processes, all of which must
    /// ask for it. It comes to process 0; the others get an empty one.
    pub fn state(&self, ranks: &Ranks) -> Result<Vec<(String, Tensor)>> {
        let mut state = Vec::new();
        for (i, slot) in self.slots.iter().enumerate() {
            let whole = |moment: &Tensor| -> Result<Tensor> {
                if !self.divided {
                    return Ok(moment.view(slot.parameter.size().as_slice()));
                }
                let rows = ranks.all_gather("saving moments", &self.padded_part(i, moment, ranks))?;
                let flat = rows.view([-1]).narrow(0, 0, slot.len());
                Ok(flat.view(slot.parameter.size().as_slice()).to_device(Device::Cpu))
            };
            let (first, second) = (whole(&slot.first)?, whole(&slot.second)?);
            if ranks.is_first() {
                for (what, tensor) in
                    [("parameter", slot.parameter.detach()), ("first", first), ("second", second)]
                {
                    state.push((format!("{what}.{}", slot.name), tensor));
                }
            }
        }
        Ok(state)
    }

    /// Puts back a saved state; `load` gives a tensor by name, of the shape of the one it is given. The names and shapes are
    /// those of [`AdamW::state`].
    pub fn restore<E>(
        &mut self,
        step: u64,
        mut load: impl FnMut(&str, &Tensor) -> Result<Tensor, E>,
    ) -> Result<(), E> {
        self.step = step;
        no_grad(|| {
            for slot in &mut self.slots {
                let mut read = |what: &str| load(&format!("{what}.{}", slot.name), &slot.parameter);
                let (parameter, first, second) = (read("parameter")?, read("first")?, read("second")?);
                slot.parameter.copy_(&parameter);
                let first = slot.part_of(&first.view([-1]));
                slot.first.copy_(&first);
                let second = slot.part_of(&second.view([-1]));
                slot.second.copy_(&second);
            }
            Ok(())
        })
    }
}

/// A flat tensor with zeros after it.
fn padded(flat: &Tensor, length: i64) -> Tensor {
    match length - flat.numel() as i64 {
        0 => flat.shallow_clone(),
        missing => Tensor::cat(&[flat, &Tensor::zeros([missing], (flat.kind(), flat.device()))], 0),
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
            adamw.collect_gradients(&Ranks::alone()).unwrap();
            adamw.step(0.01);
            let g = 2.0 * p;
            m = 0.9 * m + 0.1 * g;
            v = 0.999 * v + 0.001 * g * g;
            p *= 1.0 - 0.01 * 0.1;
            p -= 0.01 * (m / (1.0 - 0.9f64.powi(t))) / ((v / (1.0 - 0.999f64.powi(t))).sqrt() + 1e-8);
        }
        assert!((parameter.double_value(&[0, 0]) - p).abs() < 1e-6);
    }

    /// A GPU works on many parameters at once: the numbers must be those of one after the other, to the bit, also where a
    /// parameter between others has no gradient.
    #[test]
    fn joined_or_one_by_one_is_the_same() {
        let options = (Kind::Float, Device::Cpu);
        let run = |joined: bool| {
            tch::manual_seed(3);
            let shapes: [&[i64]; 5] = [&[4, 3], &[7], &[2, 2], &[5], &[3, 3]];
            let parameters: Vec<Tensor> =
                shapes.iter().map(|shape| Tensor::randn(*shape, options).set_requires_grad(true)).collect();
            let named = parameters.iter().enumerate().map(|(i, p)| (i.to_string(), p.shallow_clone()));
            let mut adamw = AdamW::new(named.collect(), 0.1);
            adamw.joined = joined;
            for step in 0..4 {
                adamw.zero_grad();
                let with_gradient =
                    parameters.iter().enumerate().filter(|(i, _)| *i != 2 || step == 3).map(|(_, p)| p);
                let sums: Vec<Tensor> = with_gradient.map(|p| p.square().sum(Kind::Float)).collect();
                Tensor::stack(&sums, 0).sum(Kind::Float).backward();
                adamw.collect_gradients(&Ranks::alone()).unwrap();
                adamw.step(0.01);
            }
            let flat: Vec<Tensor> = parameters.iter().map(|p| p.detach().view([-1])).collect();
            Vec::<f32>::try_from(Tensor::cat(&flat, 0)).unwrap()
        };
        assert_eq!(run(true), run(false));
    }

    /// Clipping must keep the direction and report the length it found.
    #[test]
    fn clips_by_the_joint_norm() {
        let a = Tensor::from_slice(&[3f32]).set_requires_grad(true);
        let b = Tensor::from_slice(&[4f32]).set_requires_grad(true);
        let mut adamw =
            AdamW::new(vec![("a".into(), a.shallow_clone()), ("b".into(), b.shallow_clone())], 0.0);
        ((&a * 3.0) + (&b * 4.0)).sum(Kind::Float).backward();
        let alone = Ranks::alone();
        adamw.collect_gradients(&alone).unwrap();
        assert!((adamw.clip_grad_norm(1.0, &alone).unwrap() - 5.0).abs() < 1e-6);
        let clipped: Vec<f64> =
            adamw.gradients().iter().map(|gradient| gradient.double_value(&[0])).collect();
        assert!((clipped[0] - 0.6).abs() < 1e-4 && (clipped[1] - 0.8).abs() < 1e-4, "{clipped:?}");
    }
}
