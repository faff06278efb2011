//! Seeded numbers and made-up foldings for the tests of this crate.

use models::fold::{Folded, FoldedQuery};
use models::student::{Calibration, Form, LatentConfig, Pooling, Residual, StudentConfig};
use models::weights::{DType, write_safetensors};
use std::collections::HashMap;

/// SplitMix64: the same numbers on every machine.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In `[0, 1)`.
    pub fn uniform(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 24) as f32
    }

    /// Mean 0, deviation 1 (Box-Muller).
    pub fn normal(&mut self) -> f32 {
        let radius = (-2.0 * self.uniform().max(1e-9).ln()).sqrt();
        radius * (std::f32::consts::TAU * self.uniform()).cos()
    }

    pub fn normals(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.normal()).collect()
    }
}

/// A folded predictor with random weights, D = m.
pub struct Folding {
    pub folded: Folded,
    m: usize,
}

impl Folding {
    pub fn new(form: Form, m: usize, random: &mut Random) -> Self {
        let config = StudentConfig {
            format_version: models::student::PLAIN_VERSION,
            latents: LatentConfig { layers: vec![1], pooling: Pooling::Mean },
            hidden_size: m,
            form,
            inner_dimensions: m,
            residual: Residual::Pooled,
            query_adapter: None,
            calibration: Calibration { scale: 1.0, bias: 0.0 },
            provenance: serde_json::Value::Null,
        };
        let mut tensors = Vec::new();
        for side in ["query", "document", "gate"] {
            if side != "gate" || form == Form::Gated {
                let scale = (m as f32).sqrt().recip();
                let weight = random.normals(m * m).into_iter().map(|x| x * scale).collect();
                tensors.push((format!("{side}.weight"), vec![m, m], weight));
                tensors.push((format!("{side}.bias"), vec![m], random.normals(m)));
            }
        }
        if form == Form::Gated {
            // Near the identity: documents are near unit length, as those of a trained student are.
            let noise = 0.1 * (m as f32).sqrt().recip();
            let norm = random.normals(m * m).into_iter().enumerate();
            let norm = norm.map(|(i, x)| noise * x + f32::from(u8::from(i % (m + 1) == 0)));
            tensors.push(("document.norm".to_owned(), vec![m, m], norm.collect()));
        }
        tensors.push(("join".to_owned(), vec![m], random.normals(m)));
        tensors.push(("residual".to_owned(), vec![m], random.normals(m)));
        tensors.push(("offset".to_owned(), vec![1], random.normals(1)));
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("fold.safetensors");
        write_safetensors(&file, tensors, DType::F32, HashMap::new()).unwrap();
        Self { folded: Folded::open(&config, &file).unwrap(), m }
    }

    /// A query from a random latent.
    pub fn query(&self, random: &mut Random) -> FoldedQuery {
        self.query_near(&random.normals(self.m))
    }

    /// A query from this latent.
    pub fn query_near(&self, latent: &[f32]) -> FoldedQuery {
        self.folded.query(latent, latent)
    }
}
