//! From token ids of several lengths to right-padded tensors.

use tch::{Device, Kind, Tensor};

/// A right-padded batch.
#[derive(Debug)]
pub struct Batch {
    /// int64 `[batch, seq]`.
    pub input_ids: Tensor,
    /// int64 `[batch, seq]`, ones then zeros; none where no row is padded.
    pub attention_mask: Option<Tensor>,
    /// Tokens of each row.
    pub lengths: Vec<i64>,
}

impl Batch {
    /// Pads with token 0, which the mask hides.
    pub fn new<R: AsRef<[u32]>>(rows: &[R], device: Device) -> Self {
        let lengths: Vec<i64> = rows.iter().map(|row| row.as_ref().len() as i64).collect();
        let seq = lengths.iter().copied().max().unwrap_or(0);
        let mut ids = vec![0i64; rows.len() * seq as usize];
        for (row, ids) in rows.iter().zip(ids.chunks_mut((seq as usize).max(1))) {
            for (slot, id) in ids.iter_mut().zip(row.as_ref()) {
                *slot = i64::from(*id);
            }
        }
        let shape = [rows.len() as i64, seq];
        let input_ids = Tensor::from_slice(&ids).reshape(shape).to_device(device);
        let padded = lengths.iter().any(|length| *length != seq);
        let attention_mask = padded.then(|| {
            let ends = Tensor::from_slice(&lengths).unsqueeze(1);
            Tensor::arange(seq, (Kind::Int64, Device::Cpu))
                .lt_tensor(&ends)
                .to_kind(Kind::Int64)
                .to_device(device)
        });
        Self { input_ids, attention_mask, lengths }
    }

    /// The last real position of each row: `[batch, seq, H]` to `[batch, H]`.
    pub fn last_of(&self, hidden: &Tensor) -> Tensor {
        let ends: Vec<i64> = self.lengths.iter().map(|length| length - 1).collect();
        let width = *hidden.size().last().unwrap_or(&0);
        let index = Tensor::from_slice(&ends)
            .to_device(hidden.device())
            .view([-1, 1, 1])
            .expand([-1, 1, width], false);
        hidden.gather(1, &index, false).squeeze_dim(1)
    }

    /// Tokens without padding.
    pub fn tokens(&self) -> usize {
        self.lengths.iter().sum::<i64>() as usize
    }
}

/// Cuts `0..lengths.len()` into batches of near-equal lengths with at most `max_tokens` tokens, padding included
/// (at least one row each), so that little is computed on padding.
pub fn length_buckets(lengths: &[usize], max_tokens: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|row| (lengths[*row], *row));
    let mut buckets: Vec<Vec<usize>> = Vec::new();
    for row in order {
        match buckets.last_mut() {
            // Rows come by rising length: this row's length is the bucket's.
            Some(bucket) if (bucket.len() + 1) * lengths[row] <= max_tokens => bucket.push(row),
            _ => buckets.push(vec![row]),
        }
    }
    buckets
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bucket over the limit is out of memory on the device; a row left out is a document that cannot be found.
    #[test]
    fn buckets_hold_every_row_once_within_the_limit() {
        let lengths = [5, 1, 9, 3, 3, 30, 2];
        let buckets = length_buckets(&lengths, 12);
        let mut seen: Vec<usize> = buckets.concat();
        seen.sort_unstable();
        assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());
        for bucket in buckets {
            let longest = bucket.iter().map(|row| lengths[*row]).max().unwrap();
            assert!(bucket.len() == 1 || bucket.len() * longest <= 12);
        }
    }

    /// The choice is read at the last token: one off, and the teacher answers about the padding.
    #[test]
    fn last_of_takes_each_rows_own_end() {
        let batch = Batch::new(&[vec![7u32, 8, 9], vec![5]], Device::Cpu);
        assert_eq!(Vec::<i64>::try_from(batch.input_ids.get(1)).unwrap(), [5, 0, 0]);
        let last = batch.last_of(&batch.input_ids.unsqueeze(-1).to_kind(Kind::Float));
        assert_eq!(Vec::<f32>::try_from(last.squeeze_dim(1)).unwrap(), [9.0, 5.0]);
        assert_eq!(batch.tokens(), 4);
    }
}
