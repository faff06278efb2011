//! The query adapter's tensors: low-rank branches (LoRA) beside the linear layers, which queries take and documents do not.

use crate::error::ExportError;
use crate::matrix::Matrix;
use crate::quantise::basis::RotatedBasis;
use crate::source::tensors::TensorSource;
use models::lora::LoraConfig;
use models::student::QUERY_ADAPTER_FILE;
use std::path::Path;
use std::rc::Rc;

/// Position of the query's prompt among the manifest's prefixes ([`models::prompt::Prompter::before_texts`]).
pub const QUERY_PREFIX: usize = 0;

/// An adapter's tensors.
pub struct QueryAdapter {
    tensors: TensorSource,
    config: LoraConfig,
}

impl QueryAdapter {
    /// The adapter of a student directory.
    pub fn open(dir: &Path, config: &LoraConfig) -> Result<Self, ExportError> {
        let tensors = TensorSource::open_file(&dir.join(QUERY_ADAPTER_FILE))?;
        Ok(Self { tensors, config: config.clone() })
    }

    /// Reads the branches in the basis of the layers beside them.
    pub fn set_basis(&mut self, basis: &Rc<RotatedBasis>) {
        self.tensors.set_basis(basis);
    }

    /// Refuses a file that holds more than the configuration says.
    pub fn all_read(&self) -> Result<(), ExportError> {
        self.tensors.all_read()
    }

    /// Whether a layer called as in the checkpoint (`model.layers.0.self_attn.q_proj`) has a branch.
    fn covers(&self, linear: &str) -> bool {
        let mut names = linear.rsplit('.');
        let (projection, layer) = (names.next(), names.nth(1).and_then(|layer| layer.parse().ok()));
        projection.zip(layer).is_some_and(|(projection, layer)| self.config.covers(layer, projection))
    }

    /// `A [rank, inputs]` and `B [outputs, rank]` of one layer whose weight is `[outputs, inputs]`, the scale in B; none where
    /// it has no branch.
    fn branch(
        &mut self,
        linear: &str,
        [outputs, inputs]: [usize; 2],
    ) -> Result<Option<[Matrix; 2]>, ExportError> {
        if !self.covers(linear) {
            return Ok(None);
        }
        let (a_name, b_name) = (format!("{linear}.lora_A.weight"), format!("{linear}.lora_B.weight"));
        let a = self.tensors.matrix(&a_name)?;
        let mut b = self.tensors.matrix(&b_name)?;
        for (name, matrix, expected) in [
            (&b_name, &b, [b.rows, a.rows]),
            (&a_name, &a, [a.rows, inputs]),
            (&b_name, &b, [outputs, b.columns]),
        ] {
            let found = [matrix.rows, matrix.columns];
            if found != expected {
                return Err(self.tensors.wrong_shape(name, found.into(), expected.into()));
            }
        }
        let scale = self.config.scale() as f32;
        b.values.iter_mut().for_each(|value| *value *= scale);
        Ok(Some([a, b]))
    }

    /// Adds the branch of a layer to its weight, as queries use it.
    pub fn merge(&mut self, linear: &str, weight: &mut Matrix) -> Result<(), ExportError> {
        let Some([a, b]) = self.branch(linear, [weight.rows, weight.columns])? else { return Ok(()) };
        for (row, branch) in
            weight.values.chunks_exact_mut(weight.columns).zip(b.values.chunks_exact(b.columns))
        {
            for (factor, a_row) in branch.iter().zip(a.values.chunks_exact(a.columns)) {
                row.iter_mut().zip(a_row).for_each(|(value, a)| *value += factor * a);
            }
        }
        Ok(())
    }

    /// The branches of several layers of one input as one: A one below the other, B along the diagonal. `base` has the layers'
    /// own weights.
    pub fn joined(
        &mut self,
        base: &TensorSource,
        linears: &[String],
    ) -> Result<Option<[Matrix; 2]>, ExportError> {
        let mut branches = Vec::with_capacity(linears.len());
        for linear in linears {
            let name = format!("{linear}.weight");
            let shape = base.shape_of(&name)?;
            let [outputs, inputs] = shape[..] else { return Err(base.wrong_shape(&name, shape, vec![0, 0])) };
            branches.push((outputs, inputs, self.branch(linear, [outputs, inputs])?));
        }
        let ranks: usize =
            branches.iter().filter_map(|(.., branch)| branch.as_ref()).map(|[a, _]| a.rows).sum();
        if ranks == 0 {
            return Ok(None);
        }
        let outputs: usize = branches.iter().map(|(outputs, ..)| outputs).sum();
        let mut a = Matrix { rows: ranks, columns: branches[0].1, values: Vec::new() };
        let mut b = Matrix { rows: outputs, columns: ranks, values: vec![0.0; outputs * ranks] };
        let (mut first_row, mut first_rank) = (0, 0);
        for (outputs, _, branch) in branches {
            if let Some([part_a, part_b]) = branch {
                for (row, values) in part_b.values.chunks_exact(part_b.columns).enumerate() {
                    let start = (first_row + row) * ranks + first_rank;
                    b.values[start..start + part_b.columns].copy_from_slice(values);
                }
                first_rank += part_a.rows;
                a.values.extend(part_a.values);
            }
            first_row += outputs;
        }
        Ok(Some([a, b]))
    }
}
