//! Mean and deviation of latents while they are taught: a student standardises them, so the loss has to as well.

use crate::data_sets::DataSets;
use crate::sampling::rng;
use crate::scoring::rows_of;
use anyhow::{Context, Result, bail};
use rand::RngExt;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

/// Texts of each side that they are measured on.
const SAMPLE: usize = 512;

/// Texts that statistics are measured on.
pub struct Sample<'a> {
    /// Training queries.
    pub queries: Vec<&'a str>,
    /// Documents that take part in training.
    pub documents: Vec<&'a str>,
}

/// Texts of all sets, each set's in its share of the run; the same however often a run asks.
pub fn sample(sets: &DataSets, seed: u64) -> Sample<'_> {
    let mut rng = rng(seed, "latent statistics", 0);
    let mut sample = Sample { queries: Vec::new(), documents: Vec::new() };
    for (index, _) in sets.plan(SAMPLE, seed) {
        let set = &sets.sets[index];
        sample.queries.push(set.training_query(rng.random_range(0..set.train.queries.len())));
        let document = set.train.documents[rng.random_range(0..set.train.documents.len())];
        sample.documents.push(&set.contents[document]);
    }
    sample
}

/// Mean and deviation of one side's latents, `[D]` each.
#[derive(Debug)]
pub struct SideStatistics {
    mean: Tensor,
    deviation: Tensor,
}

/// Both sides'.
#[derive(Debug)]
pub struct Standardisers {
    /// Queries'.
    pub query: SideStatistics,
    /// Documents'.
    pub document: SideStatistics,
}

/// The same as numbers, for the state of a run.
#[derive(Debug, Serialize, Deserialize)]
struct Values {
    query: [Vec<f32>; 2],
    document: [Vec<f32>; 2],
}

impl SideStatistics {
    /// Of rows `[n, D]`; a dimension that never varies is divided by 1.
    pub fn of(rows: &Tensor) -> Self {
        let rows = rows.to_kind(Kind::Double);
        let deviation = rows.std_dim([0i64].as_slice(), false, false);
        let deviation = deviation.where_self(&deviation.gt(1e-6), &deviation.ones_like());
        let mean = rows.mean_dim([0i64].as_slice(), false, Kind::Double);
        Self { mean: mean.to_kind(Kind::Float), deviation: deviation.to_kind(Kind::Float) }
    }

    /// `(x - mean) / deviation` for `[n, D]`.
    pub fn apply(&self, rows: &Tensor) -> Tensor {
        (rows - &self.mean) / &self.deviation
    }

    fn values(&self) -> Result<[Vec<f32>; 2]> {
        let row = |values: &Tensor| Ok::<_, anyhow::Error>(rows_of(&values.unsqueeze(0))?.remove(0));
        Ok([row(&self.mean)?, row(&self.deviation)?])
    }

    fn restored([mean, deviation]: [Vec<f32>; 2], dimensions: usize, device: Device) -> Result<Self> {
        if mean.len() != dimensions || deviation.len() != dimensions {
            bail!("damaged state: latents of {} dimensions, expected {dimensions}", mean.len());
        }
        let tensor = |values: &[f32]| Tensor::from_slice(values).to_device(device);
        Ok(Self { mean: tensor(&mean), deviation: tensor(&deviation) })
    }
}

impl Standardisers {
    /// As JSON, exactly.
    pub fn values(&self) -> Result<serde_json::Value> {
        Ok(serde_json::to_value(Values { query: self.query.values()?, document: self.document.values()? })?)
    }

    /// From [`Self::values`]; none from null.
    pub fn restored(state: &serde_json::Value, dimensions: usize, device: Device) -> Result<Option<Self>> {
        let values: Option<Values> =
            serde_json::from_value(state.clone()).context("damaged state: latent statistics")?;
        let Some(values) = values else { return Ok(None) };
        let side = |values| SideStatistics::restored(values, dimensions, device);
        Ok(Some(Self { query: side(values.query)?, document: side(values.document)? }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A resumed run that standardises by other numbers, be it in the last bit, does not end with the same bytes.
    #[test]
    fn statistics_survive_a_saved_state_to_the_bit() {
        tch::manual_seed(5);
        let rows = Tensor::randn([40, 7], (Kind::Float, Device::Cpu)) * 3.0 + 1.0;
        let side = || SideStatistics::of(&rows);
        let both = Standardisers { query: side(), document: side() };
        let text = serde_json::to_string(&both.values().unwrap()).unwrap();
        let state = serde_json::from_str(&text).unwrap();
        let back = Standardisers::restored(&state, 7, Device::Cpu).unwrap().unwrap();
        assert_eq!(back.query.mean, both.query.mean);
        assert_eq!(back.document.deviation, both.document.deviation);
        assert!(Standardisers::restored(&state, 8, Device::Cpu).is_err());
        assert!(Standardisers::restored(&serde_json::Value::Null, 7, Device::Cpu).unwrap().is_none());
        let standardised = both.query.apply(&rows);
        assert!((standardised.std(false).double_value(&[]) - 1.0).abs() < 1e-3);
    }
}
