//! The query adapter: low-rank branches (LoRA) beside the linear maps, which queries take and documents do not. One graph
//! serves both sides, so the bundle grows by the small matrices alone.

use crate::error::ExportError;
use crate::graph::{Graph, Scope, Value};
use crate::onnx::{AttributeProto, DataType};
use crate::rotation::Turned;
use crate::source::{Matrix, Source};
use models::lora::LoraConfig;
use models::manifest::Precision;
use models::student::QUERY_ADAPTER_FILE;
use std::path::Path;
use std::rc::Rc;

/// Place of the query's prompt among the manifest's prefixes ([`models::prompt::Prompter::before_texts`]).
pub const QUERY_PREFIX: usize = 0;

/// An adapter's tensors.
pub struct QueryAdapter {
    tensors: Source,
    config: LoraConfig,
    /// f32 or f16 `[1]`: 1 where the graph reads a query, 0 where it reads a document.
    switch: Option<Value>,
}

impl QueryAdapter {
    /// Of a student directory.
    pub fn open(dir: &Path, config: &LoraConfig) -> Result<Self, ExportError> {
        let tensors = Source::open_file(&dir.join(QUERY_ADAPTER_FILE))?;
        Ok(Self { tensors, config: config.clone(), switch: None })
    }

    /// Reads the branches in the coordinates of the maps beside them.
    pub fn turn(&mut self, turned: &Rc<Turned>) {
        self.tensors.turn_as(turned);
    }

    /// Refuses a file that holds more than the configuration says.
    pub fn all_read(&self) -> Result<(), ExportError> {
        self.tensors.all_read()
    }

    /// Whether a map called as in the checkpoint (`model.layers.0.self_attn.q_proj`) has a branch.
    fn covers(&self, map: &str) -> bool {
        let mut names = map.rsplit('.');
        let (projection, layer) = (names.next(), names.nth(1).and_then(|layer| layer.parse().ok()));
        projection.zip(layer).is_some_and(|(projection, layer)| self.config.covers(layer, projection))
    }

    /// `A [rank, inputs]` and `B [outputs, rank]` of one map, the scale in B; none where it has no branch.
    fn of(&mut self, map: &str) -> Result<Option<[Matrix; 2]>, ExportError> {
        if !self.covers(map) {
            return Ok(None);
        }
        let a = self.tensors.matrix(&format!("{map}.lora_A.weight"))?;
        let mut b = self.tensors.matrix(&format!("{map}.lora_B.weight"))?;
        if b.columns != a.rows {
            return Err(self.tensors.shape(
                &format!("{map}.lora_B.weight"),
                vec![b.rows, b.columns],
                vec![b.rows, a.rows],
            ));
        }
        let scale = self.config.scale() as f32;
        b.values.iter_mut().for_each(|value| *value *= scale);
        Ok(Some([a, b]))
    }

    /// Adds the branch of a map to its weight, as queries meet it.
    pub fn merge(&mut self, map: &str, weight: &mut Matrix) -> Result<(), ExportError> {
        let Some([a, b]) = self.of(map)? else { return Ok(()) };
        self.check(map, weight, &a, &b)?;
        for (row, branch) in
            weight.values.chunks_exact_mut(weight.columns).zip(b.values.chunks_exact(b.columns))
        {
            for (factor, a_row) in branch.iter().zip(a.values.chunks_exact(a.columns)) {
                row.iter_mut().zip(a_row).for_each(|(value, a)| *value += factor * a);
            }
        }
        Ok(())
    }

    fn check(&self, map: &str, weight: &Matrix, a: &Matrix, b: &Matrix) -> Result<(), ExportError> {
        match (a.columns == weight.columns, b.rows == weight.rows) {
            (true, true) => Ok(()),
            (false, _) => {
                let name = format!("{map}.lora_A.weight");
                Err(self.tensors.shape(&name, vec![a.rows, a.columns], vec![a.rows, weight.columns]))
            }
            (_, false) => {
                let name = format!("{map}.lora_B.weight");
                Err(self.tensors.shape(&name, vec![b.rows, b.columns], vec![weight.rows, b.columns]))
            }
        }
    }

    /// Finds out when the graph runs which side it reads; `which` is int64 `[1]`.
    /// ```text
    /// which ── Equal(query's) ── Cast ── switch
    /// ```
    pub fn begin(
        &mut self,
        g: &mut Graph,
        scope: &Scope,
        precision: Precision,
        which: &Value,
    ) -> Result<(), ExportError> {
        let query = g.integers(&[QUERY_PREFIX as i64])?;
        let is_query = g.op(scope, "Equal", &[which, &query])?;
        let kind = if precision == Precision::Fp16 { DataType::Float16 } else { DataType::Float };
        let to = [AttributeProto::int("to", kind as i64)];
        self.switch = Some(g.op_with(scope, "Cast", &[&is_query], to)?);
        Ok(())
    }
}

/// `y` and the branches of the maps `parts`, whose outputs stand side by side in it; `weights` are theirs.
/// ```text
/// x ── MatMul(A^T) ── Mul(switch) ── MatMul(B^T) ── Add ── y
/// ```
pub fn branch(
    g: &mut Graph,
    scope: &Scope,
    source: &mut Source,
    parts: &[String],
    x: &Value,
    y: Value,
) -> Result<Value, ExportError> {
    let Some(mut adapter) = source.adapter.take() else { return Ok(y) };
    let joined = join(source, &mut adapter, parts);
    let switch = adapter.switch.clone();
    source.adapter = Some(adapter);
    let (Some([a, b]), Some(switch)) = (joined?, switch) else { return Ok(y) };
    let (down, up) = (a.transposed(), b.transposed());
    let a = g.initializer(&scope.key("lora_A.weight"), &[a.columns, a.rows], source.activation(&down))?;
    let b = g.initializer(&scope.key("lora_B.weight"), &[b.columns, b.rows], source.activation(&up))?;
    let scope = scope.child("lora");
    let inner = g.op(&scope.child("A"), "MatMul", &[x, &a])?;
    let inner = g.op(&scope, "Mul", &[&inner, &switch])?;
    let branch = g.op(&scope.child("B"), "MatMul", &[&inner, &b])?;
    g.op(&scope, "Add", &[&y, &branch])
}

/// Branches of several maps of one input as one: A one below the other, B along the diagonal.
fn join(
    source: &Source,
    adapter: &mut QueryAdapter,
    parts: &[String],
) -> Result<Option<[Matrix; 2]>, ExportError> {
    let mut branches = Vec::with_capacity(parts.len());
    for part in parts {
        let shape = source.shape_of(&format!("{part}.weight"))?;
        let weight = Matrix { rows: shape[0], columns: shape[1], values: Vec::new() };
        let found = adapter.of(part)?;
        if let Some([a, b]) = &found {
            adapter.check(part, &weight, a, b)?;
        }
        branches.push((weight.rows, weight.columns, found));
    }
    let ranks: usize = branches.iter().filter_map(|(.., found)| found.as_ref()).map(|[a, _]| a.rows).sum();
    if ranks == 0 {
        return Ok(None);
    }
    let outputs: usize = branches.iter().map(|(rows, ..)| rows).sum();
    let mut a = Matrix { rows: ranks, columns: branches[0].1, values: Vec::new() };
    let mut b = Matrix { rows: outputs, columns: ranks, values: vec![0.0; outputs * ranks] };
    let (mut first_row, mut first_rank) = (0, 0);
    for (rows, _, found) in branches {
        if let Some([part_a, part_b]) = found {
            for (row, values) in part_b.values.chunks_exact(part_b.columns).enumerate() {
                let start = (first_row + row) * ranks + first_rank;
                b.values[start..start + part_b.columns].copy_from_slice(values);
            }
            first_rank += part_a.rows;
            a.values.extend(part_a.values);
        }
        first_row += rows;
    }
    Ok(Some([a, b]))
}
