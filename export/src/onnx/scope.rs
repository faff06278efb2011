//! Names: one scope gives a weight its key in the checkpoint and a node its name in the graph.

/// A place in the model: `layers.0` / `mlp` / `up_proj`.
#[derive(Debug, Clone, Default)]
pub struct Scope {
    parts: Vec<String>,
}

impl Scope {
    /// The whole model.
    pub fn root() -> Self {
        Self::default()
    }

    /// A part of this place.
    pub fn child(&self, part: &str) -> Self {
        Self { parts: self.parts.iter().cloned().chain([part.to_owned()]).collect() }
    }

    /// Key of a tensor of this place in the checkpoint: `layers.0.mlp.up_proj.weight`.
    pub fn key(&self, leaf: &str) -> String {
        self.child(leaf).parts.join(".")
    }

    /// Name of a node of this place: `/layers.0/mlp/up_proj/MatMul`.
    pub fn node(&self, op: &str) -> String {
        format!("/{}", self.child(op).parts.join("/"))
    }
}
