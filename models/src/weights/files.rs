//! Which files of a folder are the model.

use super::WeightsError;
use crate::files::{present, read_json};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Weights in one file.
pub const WEIGHTS_FILE: &str = "model.safetensors";
/// Index of weights in several files.
pub const WEIGHTS_INDEX_FILE: &str = "model.safetensors.index.json";

/// The files that hold a folder's weights, for everybody who reads, copies or digests them.
///
/// The rule is that of transformers' `from_pretrained`: `model.safetensors` where there is one, whatever an index beside it
/// says (an earlier save in shards leaves its index behind), else the shards that the index names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightFiles {
    /// The single file, or the index: what an error about the whole names.
    pub file: PathBuf,
    /// Each tensor's shard by the index; empty for a single file.
    pub weight_map: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl WeightFiles {
    /// Those of a folder; shards that are not there are an error.
    pub fn of(dir: &Path) -> Result<Self, WeightsError> {
        let (single, index) = (dir.join(WEIGHTS_FILE), dir.join(WEIGHTS_INDEX_FILE));
        if present(&single)? {
            return Ok(Self { file: single, weight_map: BTreeMap::new() });
        }
        if !present(&index)? {
            return Err(WeightsError::NoWeights { dir: dir.into() });
        }
        let Index { weight_map } = read_json(&index)?;
        if weight_map.is_empty() {
            return Err(WeightsError::Header { file: index, reason: "its weight_map names no shard".into() });
        }
        for shard in weight_map.values() {
            // A shard lies beside its index; a name with folders in it could point anywhere.
            let beside = Path::new(shard).file_name() == Some(shard.as_ref());
            if !beside || !present(&index.with_file_name(shard))? {
                return Err(WeightsError::MissingShard { file: index, shard: shard.clone() });
            }
        }
        Ok(Self { file: index, weight_map })
    }

    /// The safetensors files, each once, sorted.
    pub fn parts(&self) -> Vec<PathBuf> {
        if self.weight_map.is_empty() {
            return vec![self.file.clone()];
        }
        let shards: BTreeSet<&String> = self.weight_map.values().collect();
        shards.into_iter().map(|shard| self.file.with_file_name(shard)).collect()
    }

    /// All files, an index first.
    pub fn all(&self) -> Vec<PathBuf> {
        let index = (!self.weight_map.is_empty()).then(|| self.file.clone());
        index.into_iter().chain(self.parts()).collect()
    }
}
