//! Rows of numbers as bytes, for the way between processes.

use anyhow::{Context, Result};
use models::error::sentence;

/// What divided work gives: some numbers, and two more that say whose they are.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Row {
    /// Places of what the numbers belong to.
    pub of: [u64; 2],
    /// The numbers.
    pub values: Vec<f32>,
}

/// A piece of work's rows, piece by piece, or why there are none.
pub fn to_bytes(pieces: &Result<Vec<Vec<Row>>>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let number = |n: u64, bytes: &mut Vec<u8>| bytes.extend(n.to_le_bytes());
    let pieces = match pieces {
        Ok(pieces) => pieces,
        Err(error) => {
            bytes.push(1);
            bytes.extend(sentence(error.as_ref()).into_bytes());
            return bytes;
        }
    };
    bytes.push(0);
    number(pieces.len() as u64, &mut bytes);
    for rows in pieces {
        number(rows.len() as u64, &mut bytes);
        for row in rows {
            row.of.iter().for_each(|of| number(*of, &mut bytes));
            number(row.values.len() as u64, &mut bytes);
            bytes.extend(row.values.iter().flat_map(|value| value.to_le_bytes()));
        }
    }
    bytes
}

/// The way back. The outer error is of damaged bytes, the inner one the sender's.
pub fn from_bytes(bytes: &[u8]) -> Result<Result<Vec<Vec<Row>>, String>> {
    let (kind, mut rest) = bytes.split_first().context("an empty message")?;
    if *kind == 1 {
        return Ok(Err(String::from_utf8_lossy(rest).into_owned()));
    }
    let mut pieces = Vec::new();
    for _ in 0..number(&mut rest)? {
        let mut rows = Vec::new();
        for _ in 0..number(&mut rest)? {
            let of = [number(&mut rest)?, number(&mut rest)?];
            let length =
                usize::try_from(number(&mut rest)?)?.checked_mul(4).context("a length beyond all memory")?;
            let values =
                take(&mut rest, length)?.as_chunks::<4>().0.iter().map(|value| f32::from_le_bytes(*value));
            rows.push(Row { of, values: values.collect() });
        }
        pieces.push(rows);
    }
    Ok(Ok(pieces))
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(length).context("a message that ends too early")?;
    *rest = left;
    Ok(taken)
}

fn number(rest: &mut &[u8]) -> Result<u64> {
    let bytes = take(rest, 8)?;
    Ok(u64::from_le_bytes(bytes.try_into()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A teacher's score that changes on the way would be cached for good.
    #[test]
    fn rows_arrive_as_they_were_sent() {
        let row = |of, values: &[f32]| Row { of, values: values.to_vec() };
        let pieces =
            vec![vec![row([3, u64::MAX], &[1.5, f32::MIN_POSITIVE, -0.0])], vec![], vec![row([0, 1], &[])]];
        let bytes = to_bytes(&Ok(pieces.clone()));
        assert_eq!(from_bytes(&bytes).unwrap(), Ok(pieces));
        for length in 0..bytes.len() {
            assert!(from_bytes(&bytes[..length]).is_err(), "{length}");
        }
        let failed = to_bytes(&Err(anyhow::anyhow!("no such file")));
        assert_eq!(from_bytes(&failed).unwrap(), Err("no such file".to_owned()));
    }
}
