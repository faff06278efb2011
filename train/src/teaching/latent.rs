//! The latent loss: teaches the LLM's layers to place texts, so that a student that only reads them finds what was never
//! named in training.
//!
//! The student of the papers is its teacher, frozen (Rabtriever, arXiv 2604.23336): what the teacher's layers do not hold no
//! predictor can read off them. So queries and documents are read here exactly as a student will read them (its prompt, its
//! pooling, its layers, [`encode`]) and contrasted: the right document of a query against the documents of the others.
//! Every chosen layer learns by itself beside all of them together, so that shallow students are good as well (2D Matryoshka,
//! <https://arxiv.org/abs/2402.14776>). A text costs one pass; there are no pairs.

mod batch;
mod statistics;

pub use batch::LatentBatch;
use statistics::{SideStatistics, Standardisers};

use crate::data_sets::{DataSet, DataSets};
use crate::evaluation::{Run, measure};
use crate::features::Side;
use crate::fit::Metrics;
use crate::losses::{LossError, NOT_A_CANDIDATE, contrastive};
use crate::sampling::{draw, rng};
use crate::scoring::rows_of;
use anyhow::{Context, Result, bail};
use models::beir::Qrels;
use models::prompt::Encoded;
use models::student::Residual;
use models::torch::{Adapters, EncoderConfig, Reranker, encode, length_buckets};
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use tch::{Device, Kind, Tensor};

/// Tokens per pass where no gradient is kept, padding included.
const TOKENS_PER_BATCH: usize = 2048;

/// Settings of the latent loss.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LatentLossConfig {
    /// Weight beside the judgement's loss.
    pub weight: f64,
    /// Layers whose latents are taught, ascending.
    pub layers: Vec<usize>,
    /// Queries per micro-batch.
    pub queries: usize,
    /// Documents per micro-batch, the queries' positives among them.
    pub documents: usize,
    /// What cosines are divided by.
    pub temperature: f64,
    /// A document that nobody judged and that lies nearer to the query than its right one by more than this is taken to be
    /// relevant too, and left out.
    pub margin: f64,
    /// Most tokens whose activations are held at once; a larger batch is read twice (GradCache).
    pub tokens: usize,
    /// Steps between two measurements of the latents' mean and deviation.
    pub refresh: usize,
}

impl LatentLossConfig {
    /// How deep the LLM is read.
    pub fn depth(&self) -> usize {
        self.layers.iter().copied().max().unwrap_or(0)
    }
}

/// What a micro-batch of the latent loss gave; its gradients are with the parameters already.
pub struct LatentStep {
    /// The loss, without its weight.
    pub loss: f64,
    /// By what was contrasted.
    pub parts: Metrics,
    /// Tokens that were read, each counted once.
    pub tokens: usize,
}

/// What somebody said of the pairs of a micro-batch, `[queries, documents]` of 1 and 0 each.
struct Judged {
    /// The document is right for the query.
    relevant: Tensor,
    /// The document was judged not to be: a hard negative, however near it lies.
    negative: Tensor,
}

impl Judged {
    fn of(batch: &LatentBatch, device: Device) -> Self {
        Self {
            relevant: batch.relevant().to_device(device),
            negative: batch.judged_negative().to_device(device),
        }
    }

    /// Pairs that nobody judged.
    fn unjudged(&self) -> Tensor {
        self.relevant.eq(0).logical_and(&self.negative.eq(0))
    }
}

/// Loss and its parts from the latents of queries and documents.
type LossOf<'a> = dyn Fn(&Tensor, &Tensor) -> Result<(Tensor, Metrics)> + 'a;

/// Teaches latents.
pub struct LatentLoss<'a> {
    llm: &'a Reranker,
    sets: &'a DataSets,
    config: LatentLossConfig,
    encoder: EncoderConfig,
    /// Mean and deviation of both sides' latents, as a student will standardise them.
    standardisers: Option<Standardisers>,
    seed: u64,
}

impl<'a> LatentLoss<'a> {
    /// Checks that every set can be contrasted.
    pub fn new(llm: &'a Reranker, sets: &'a DataSets, config: LatentLossConfig, seed: u64) -> Result<Self> {
        for set in &sets.sets {
            let (name, documents) = (&set.name, set.train.documents.len());
            if documents < 2 {
                bail!(
                    "{name}: {documents} document takes part in training, expected at least 2 for a latent loss; give \
                     --documents corpus, or leave the set out"
                );
            }
            if set.train.relevant.iter().all(|relevant| relevant.len() >= documents) {
                bail!(
                    "{name}: every document is relevant to every training query, so that there is nothing to tell apart; give \
                     --documents corpus, or leave the set out"
                );
            }
        }
        let encoder = EncoderConfig { layers: config.layers.clone(), residual: Residual::Pooled };
        Ok(Self { llm, sets, config, encoder, standardisers: None, seed })
    }

    /// Measures the latents' mean and deviation anew where it is time to.
    pub fn before_step(&mut self, step: usize) -> Result<()> {
        if self.standardisers.is_none() || step.is_multiple_of(self.config.refresh) {
            self.standardisers = Some(self.measure()?);
        }
        Ok(())
    }

    /// Mean and deviation of the latents as they are now.
    fn measure(&self) -> Result<Standardisers> {
        let sample = statistics::sample(self.sets, self.seed);
        Ok(Standardisers {
            query: SideStatistics::of(&self.encode_frozen(Side::Query, &sample.queries)?),
            document: SideStatistics::of(&self.encode_frozen(Side::Document, &sample.documents)?),
        })
    }

    /// Reads the batch, and adds the gradient of `scale` times its loss to the parameters.
    pub fn backward(&self, batch: &LatentBatch, scale: f64, seed: i64) -> Result<LatentStep> {
        let queries = self.passes(Side::Query, &batch.query_texts())?;
        let documents = self.passes(Side::Document, &batch.document_texts())?;
        // What all texts begin with is read once for a whole bucket.
        let read: usize = queries.iter().chain(&documents).map(|pass| pass.text.len()).sum();
        let judged = Judged::of(batch, self.llm.device());
        let loss_of = |queries: &Tensor, documents: &Tensor| -> Result<(Tensor, Metrics)> {
            let standardisers =
                self.standardisers.as_ref().context("latents are taught before they were measured")?;
            let (queries, documents) =
                (standardisers.query.apply(queries), standardisers.document.apply(documents));
            Ok(self.loss(&queries, &documents, &judged)?)
        };
        let (loss, parts) = if read <= self.config.tokens {
            tch::manual_seed(seed);
            let (loss, parts) = loss_of(&self.read(&queries)?, &self.read(&documents)?)?;
            (&loss * scale).backward();
            (loss, parts)
        } else {
            self.backward_in_parts([&queries, &documents], scale, seed, &loss_of)?
        };
        Ok(LatentStep { loss: loss.double_value(&[]), parts, tokens: read })
    }

    /// GradCache (<https://arxiv.org/abs/2101.06983>): the loss needs all latents at once, but the LLM's gradient only that
    /// of the latents it makes. So all are made without a graph, the loss goes back as far as them, and then each part is read
    /// again, with the same dropout, to take its share further back.
    fn backward_in_parts(
        &self,
        sides: [&[Encoded]; 2],
        scale: f64,
        seed: i64,
        loss_of: &LossOf,
    ) -> Result<(Tensor, Metrics)> {
        let parts: Vec<(usize, Vec<usize>)> = (0..2)
            .flat_map(|side| {
                let buckets = self.buckets(sides[side], self.config.tokens);
                buckets.into_iter().map(move |bucket| (side, bucket))
            })
            .collect();
        let read = |part: usize| {
            let (side, bucket) = &parts[part];
            tch::manual_seed(seed.wrapping_add((part as i64) << 40));
            let passes: Vec<Encoded> = bucket.iter().map(|place| sides[*side][*place].clone()).collect();
            Ok::<_, anyhow::Error>(
                encode(&self.llm.decoder, &self.encoder, &passes, Adapters::Training)?.latent,
            )
        };
        let places = |part: usize| Tensor::from_slice(&to_i64(&parts[part].1)).to_device(self.llm.device());
        let mut latents = sides.map(|passes| {
            let shape = [passes.len() as i64, self.dimensions() as i64];
            Tensor::zeros(shape, (Kind::Float, self.llm.device()))
        });
        for part in 0..parts.len() {
            let latent = tch::no_grad(|| read(part))?;
            let _ = latents[parts[part].0].index_copy_(0, &places(part), &latent);
        }
        let latents = latents.map(|side| side.set_requires_grad(true));
        let (loss, metrics) = loss_of(&latents[0], &latents[1])?;
        (&loss * scale).backward();
        for part in 0..parts.len() {
            let gradient = latents[parts[part].0].grad().index_select(0, &places(part));
            (read(part)? * gradient).sum(Kind::Float).backward();
        }
        Ok((loss, metrics))
    }

    /// Mean of the loss over all layers together and of its mean over each layer by itself, from standardised latents
    /// `[queries, D]` and `[documents, D]`.
    fn loss(
        &self,
        queries: &Tensor,
        documents: &Tensor,
        judged: &Judged,
    ) -> Result<(Tensor, Metrics), LossError> {
        let of = |queries: &Tensor, documents: &Tensor| {
            let cosines = unit(queries).matmul(&unit(documents).tr());
            let scores = without_false_negatives(&cosines, judged, self.config.margin);
            contrastive(&(scores / self.config.temperature), &judged.relevant)
        };
        let together = of(queries, documents)?;
        let mut parts = Metrics::from([("latent".to_owned(), together.double_value(&[]))]);
        let layers = &self.config.layers;
        if layers.len() == 1 {
            return Ok((together, parts));
        }
        let width = self.dimensions() as i64 / layers.len() as i64;
        let mut alone = Vec::new();
        for (place, layer) in layers.iter().enumerate() {
            let slice = |side: &Tensor| side.narrow(1, place as i64 * width, width);
            let loss = of(&slice(queries), &slice(documents))?;
            parts.insert(format!("latent_{layer}"), loss.double_value(&[]));
            alone.push(loss);
        }
        Ok(((together + Tensor::stack(&alone, 0).mean(Kind::Float)) * 0.5, parts))
    }

    /// Metrics of the dev splits when documents are ranked by the cosine of latents, all layers together and, behind the
    /// layer's number, each by itself. A split's queries share their candidates: their relevant documents and
    /// `candidates` random others (0: the whole corpus).
    pub fn evaluate(&self, queries: usize, candidates: usize) -> Result<Metrics> {
        // As a student's are when it is made; those of the training step stay what they are.
        let standardisers = self.measure()?;
        let mut metrics = Metrics::new();
        let splits: usize = self.sets.sets.iter().map(|set| set.dev.len()).sum();
        for set in &self.sets.sets {
            for (_, qrels) in &set.dev {
                for (name, value) in self.dev_metrics(&standardisers, set, qrels, [queries, candidates])? {
                    *metrics.entry(name).or_default() += value / splits as f64;
                }
            }
        }
        Ok(metrics)
    }

    fn dev_metrics(
        &self,
        standardisers: &Standardisers,
        set: &DataSet,
        qrels: &Qrels,
        [queries, candidates]: [usize; 2],
    ) -> Result<Metrics> {
        let (data, mut rng) = (&set.data, rng(self.seed, "latent dev", 0));
        let mut ids: Vec<&String> = qrels.keys().filter(|id| data.query_index.contains_key(*id)).collect();
        if queries > 0 && queries < ids.len() {
            ids.shuffle(&mut rng);
            ids.truncate(queries);
        }
        let relevant = ids.iter().flat_map(|id| qrels[*id].keys());
        let mut pool: BTreeSet<usize> =
            relevant.filter_map(|id| data.document_index.get(id).copied()).collect();
        let all: Vec<usize> = (0..data.documents.len()).collect();
        let more = if candidates == 0 { all.len() } else { candidates };
        pool.extend(draw(&all, more, &pool, &mut rng));
        let pool: Vec<usize> = pool.into_iter().collect();
        let query_texts: Vec<&str> = ids.iter().map(|id| set.query(id)).collect();
        let document_texts: Vec<&str> = pool.iter().map(|place| set.contents[*place].as_str()).collect();
        let queries = standardisers.query.apply(&self.encode_frozen(Side::Query, &query_texts)?);
        let documents = standardisers.document.apply(&self.encode_frozen(Side::Document, &document_texts)?);
        let ranked = |queries: &Tensor, documents: &Tensor| {
            let mut run = Run::default();
            for (id, scores) in ids.iter().zip(rows_of(&unit(queries).matmul(&unit(documents).tr()))?) {
                for (place, score) in pool.iter().zip(scores) {
                    run.add(id, &data.documents[*place].id, score);
                }
            }
            let judged: Qrels = ids.iter().map(|id| ((*id).clone(), qrels[*id].clone())).collect();
            Ok::<_, anyhow::Error>(measure(&run, &judged))
        };
        let mut metrics: Metrics = ranked(&queries, &documents)?.into_iter().collect();
        let layers = &self.config.layers;
        let width = self.dimensions() as i64 / layers.len() as i64;
        for (place, layer) in layers.iter().enumerate().filter(|_| layers.len() > 1) {
            let slice = |side: &Tensor| side.narrow(1, place as i64 * width, width);
            let alone = ranked(&slice(&queries), &slice(&documents))?;
            metrics
                .extend(alone.into_iter().map(|(name, value)| (format!("{name} of layer {layer}"), value)));
        }
        Ok(metrics)
    }

    /// Latents of `texts` `[n, D]`, without a gradient.
    fn encode_frozen(&self, side: Side, texts: &[&str]) -> Result<Tensor> {
        let _guard = tch::no_grad_guard();
        self.read_by(&self.passes(side, texts)?, TOKENS_PER_BATCH, Adapters::On)
    }

    /// Latents of the passes `[n, D]`, gradients and dropout on.
    fn read(&self, passes: &[Encoded]) -> Result<Tensor> {
        self.read_by(passes, TOKENS_PER_BATCH.max(self.config.tokens / 4), Adapters::Training)
    }

    /// Texts of like lengths are read together; the latents are in the order of the passes.
    fn read_by(&self, passes: &[Encoded], tokens: usize, adapters: Adapters) -> Result<Tensor> {
        let buckets = self.buckets(passes, tokens);
        let mut latents = Vec::with_capacity(buckets.len());
        for bucket in &buckets {
            let of_bucket: Vec<Encoded> = bucket.iter().map(|place| passes[*place].clone()).collect();
            latents.push(encode(&self.llm.decoder, &self.encoder, &of_bucket, adapters)?.latent);
        }
        let mut place_of = vec![0i64; passes.len()];
        buckets.iter().flatten().enumerate().for_each(|(row, place)| place_of[*place] = row as i64);
        Ok(Tensor::cat(&latents, 0)
            .index_select(0, &Tensor::from_slice(&place_of).to_device(self.llm.device())))
    }

    fn buckets(&self, passes: &[Encoded], tokens: usize) -> Vec<Vec<usize>> {
        let lengths: Vec<usize> = passes.iter().map(|pass| pass.text.end).collect();
        length_buckets(&lengths, tokens)
    }

    fn passes(&self, side: Side, texts: &[&str]) -> Result<Vec<Encoded>> {
        let pass = |text: &&str| crate::features::pass(self.llm, Residual::Pooled, side, text);
        Ok(texts.iter().map(pass).collect::<Result<_, _>>()?)
    }

    fn dimensions(&self) -> usize {
        self.config.layers.len() * self.llm.decoder.config().hidden_size
    }

    /// What a resumed run needs.
    pub fn save(&self) -> Result<serde_json::Value> {
        Ok(serde_json::to_value(self.standardisers.as_ref().map(Standardisers::values).transpose()?)?)
    }

    /// Puts back what [`Self::save`] gave.
    pub fn restore(&mut self, state: &serde_json::Value) -> Result<()> {
        self.standardisers = Standardisers::restored(state, self.dimensions(), self.llm.device())?;
        Ok(())
    }
}

/// Rows at unit length.
fn unit(rows: &Tensor) -> Tensor {
    let length = rows.square().sum_dim_intlist([-1i64].as_slice(), true, Kind::Float).sqrt();
    rows / length.clamp_min(1e-12)
}

/// Leaves out what is likely relevant although nobody says so: documents that nobody judged and that lie nearer to the query
/// than the nearest of its right ones by more than `margin`.
fn without_false_negatives(cosines: &Tensor, judged: &Judged, margin: f64) -> Tensor {
    let known = cosines.detach();
    let right = known.masked_fill(&judged.relevant.eq(0), -2.0).amax([-1i64].as_slice(), true);
    let false_negative = known.gt_tensor(&(right + margin)).logical_and(&judged.unjudged());
    cosines.masked_fill(&false_negative, NOT_A_CANDIDATE)
}

fn to_i64(places: &[usize]) -> Vec<i64> {
    places.iter().map(|place| *place as i64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(relevant: [i64; 4], negative: [i64; 4]) -> Judged {
        let of = |row| Tensor::from_slice2(&[row]);
        Judged { relevant: of(relevant), negative: of(negative) }
    }

    fn kept(cosines: [f32; 4], judged: &Judged) -> Vec<f32> {
        rows_of(&without_false_negatives(&Tensor::from_slice2(&[cosines]), judged, 0.1)).unwrap().remove(0)
    }

    /// In a batch of household needs two ask for the same thing in other words: pushed apart, the layers unlearn exactly what
    /// they are taught. A document that is merely hard must stay.
    #[test]
    fn a_far_nearer_document_is_no_negative() {
        let cosines = [0.5, 0.55, 0.9, 0.1];
        let masked = NOT_A_CANDIDATE as f32;
        assert_eq!(kept(cosines, &judged([1, 0, 0, 0], [0; 4])), [0.5, 0.55, masked, 0.1]);
        // A relevant document is never left out, however near.
        assert_eq!(kept(cosines, &judged([1, 0, 1, 0], [0; 4])), cosines);
    }

    /// Somebody looked at this pair and said no: the nearer the document lies, the more there is to learn from it. Taken for a
    /// false negative, the hardest of the hard negatives would never be learnt.
    #[test]
    fn a_document_that_was_judged_to_be_a_negative_stays_one() {
        let masked = NOT_A_CANDIDATE as f32;
        let cosines = [0.2, 0.95, 0.9, 0.1];
        assert_eq!(kept(cosines, &judged([1, 0, 0, 0], [0, 1, 0, 0])), [0.2, 0.95, masked, 0.1]);
        assert_eq!(kept(cosines, &judged([1, 0, 0, 0], [0, 1, 1, 1])), cosines);
    }
}
