//! Keys and values of texts already read, so that they are read once: a document is cached, its queries follow.

use tch::{Device, Kind, Tensor};

use super::attention::KeyValue;
use super::decoder::DecoderError;

/// Cached keys and values of a batch of texts, all layers.
#[derive(Debug)]
pub struct KvCache {
    /// One per layer that ran, `[batch, kv_heads, columns, head_dim]`.
    pub(super) layers: Vec<KeyValue>,
    /// Columns that hold a token, `[batch, columns]`, bool; none where all do.
    pub(super) valid: Option<Tensor>,
    /// Tokens of each row: the next one gets this position.
    pub(super) lengths: Vec<i64>,
    /// Whether each row's tokens stand at its beginning. Not so once texts of different lengths were continued:
    /// their padding then stands in the middle, masked.
    pub(super) compact: bool,
}

impl KvCache {
    /// Number of texts.
    pub fn batch(&self) -> usize {
        self.lengths.len()
    }

    /// Tokens of each text.
    pub fn lengths(&self) -> &[i64] {
        &self.lengths
    }

    /// Length of the longest row, padding included.
    pub fn columns(&self) -> i64 {
        self.layers.first().and_then(|layer| layer.key.size().get(2).copied()).unwrap_or(0)
    }

    /// Number of layers cached.
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// One text as a batch of `batch` equal ones: views, nothing is copied.
    pub fn expand(&self, batch: usize) -> Result<Self, DecoderError> {
        let &[length] = self.lengths.as_slice() else {
            return Err(DecoderError::PastBatch { found: self.batch(), batch });
        };
        let rows = batch as i64;
        let expand = |tensor: &Tensor| tensor.expand([rows, -1, -1, -1], false);
        Ok(Self {
            layers: self.map(expand),
            valid: self.valid.as_ref().map(|valid| valid.expand([rows, -1], false)),
            lengths: vec![length; batch],
            compact: self.compact,
        })
    }

    /// The texts at `rows`, in that order, repeats allowed; columns that none of them needs are left out.
    pub fn select(&self, rows: &[i64]) -> Result<Self, DecoderError> {
        let lengths = rows.iter().map(|&row| {
            let length = usize::try_from(row).ok().and_then(|row| self.lengths.get(row).copied());
            length.ok_or(DecoderError::Row { found: row, batch: self.batch() })
        });
        let lengths = lengths.collect::<Result<Vec<i64>, _>>()?;
        let columns = match self.compact {
            true => lengths.iter().copied().max().unwrap_or(0),
            false => self.columns(),
        };
        let index = Tensor::from_slice(rows).to_device(self.device());
        let select = |tensor: &Tensor| tensor.narrow(2, 0, columns).index_select(0, &index);
        let full = self.compact && lengths.iter().all(|&length| length == columns);
        let valid = self.valid.as_ref().filter(|_| !full);
        Ok(Self {
            layers: self.map(select),
            valid: valid.map(|valid| valid.narrow(1, 0, columns).index_select(0, &index)),
            lengths,
            compact: self.compact,
        })
    }

    /// Several caches as one batch, shorter ones padded.
    pub fn concat(caches: &[Self]) -> Result<Self, DecoderError> {
        let Some(first) = caches.first() else {
            return Ok(Self { layers: Vec::new(), valid: None, lengths: Vec::new(), compact: true });
        };
        let depth = first.layers();
        if let Some(other) = caches.iter().find(|cache| cache.layers() != depth) {
            return Err(DecoderError::PastLayers { found: other.layers(), expected: depth });
        }
        let columns = caches.iter().map(Self::columns).max().unwrap_or(0);
        let join = |layer: usize, part: fn(&KeyValue) -> &Tensor| {
            let parts = caches.iter().filter_map(|cache| {
                let pad = [0, 0, 0, columns - cache.columns()];
                cache.layers.get(layer).map(|layer| part(layer).constant_pad_nd(pad))
            });
            Tensor::cat(&parts.collect::<Vec<_>>(), 0)
        };
        let layers = (0..depth).map(|layer| KeyValue {
            key: join(layer, |layer| &layer.key),
            value: join(layer, |layer| &layer.value),
        });
        let valid = caches.iter().map(|cache| {
            let valid = cache.valid.as_ref().map(Tensor::shallow_clone).unwrap_or_else(|| {
                let size = [cache.batch() as i64, cache.columns()];
                Tensor::ones(size, (Kind::Bool, cache.device()))
            });
            valid.constant_pad_nd([0, columns - cache.columns()])
        });
        let valid = Tensor::cat(&valid.collect::<Vec<_>>(), 0);
        let lengths: Vec<i64> = caches.iter().flat_map(|cache| cache.lengths.iter().copied()).collect();
        let padded = lengths.iter().any(|&length| length != columns);
        Ok(Self {
            layers: layers.collect(),
            valid: padded.then_some(valid),
            lengths,
            compact: caches.iter().all(|cache| cache.compact),
        })
    }

    fn map(&self, change: impl Fn(&Tensor) -> Tensor) -> Vec<KeyValue> {
        let layers = self.layers.iter();
        layers.map(|layer| KeyValue { key: change(&layer.key), value: change(&layer.value) }).collect()
    }

    fn device(&self) -> Device {
        self.layers.first().map_or(Device::Cpu, |layer| layer.key.device())
    }
}
