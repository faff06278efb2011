//! A matrix of f32, row-major.

/// A matrix `[rows, columns]`, row-major: rows are output channels, as in `nn.Linear.weight`.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix {
    /// Output channels.
    pub rows: usize,
    /// Input channels.
    pub columns: usize,
    /// Elements.
    pub values: Vec<f32>,
}

impl Matrix {
    /// Elements of the transposed matrix, `[columns, rows]`.
    pub fn transposed(&self) -> Vec<f32> {
        transpose(&self.values, self.rows, self.columns)
    }
}

/// `[rows, columns]` to `[columns, rows]`, in blocks that stay in the cache.
pub fn transpose<T: Copy + Default>(values: &[T], rows: usize, columns: usize) -> Vec<T> {
    const BLOCK: usize = 32;
    let mut out = vec![T::default(); values.len()];
    for row_block in (0..rows).step_by(BLOCK) {
        for column_block in (0..columns).step_by(BLOCK) {
            for row in row_block..rows.min(row_block + BLOCK) {
                for column in column_block..columns.min(column_block + BLOCK) {
                    out[column * rows + row] = values[row * columns + column];
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// ONNX multiplies from the other side than the checkpoint: a wrong transposition gives plausible noise.
    #[test]
    fn transposing_twice_gives_the_matrix_back() {
        let (rows, columns) = (37, 70);
        let values: Vec<i32> = (0..(rows * columns) as i32).collect();
        let transposed = transpose(&values, rows, columns);
        assert_eq!(transposed[5 * rows + 3], values[3 * columns + 5]);
        assert_eq!(transpose(&transposed, columns, rows), values);
    }
}
