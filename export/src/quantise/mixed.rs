//! Mixed precision: layers that have a higher precision than the others.

use std::collections::BTreeSet;

/// Layers with a higher precision than the others, counted from 0.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MixedLayers {
    /// All of them; those that are not in `fp32` are in the format that [`Precision::more`](models::manifest::Precision::more) names.
    pub higher: BTreeSet<usize>,
    /// Those of them in fp32.
    pub fp32: BTreeSet<usize>,
}

impl MixedLayers {
    /// The same precision in all layers.
    pub fn none() -> Self {
        Self::default()
    }

    /// These layers in the next higher precision.
    pub fn higher(layers: impl IntoIterator<Item = usize>) -> Self {
        Self { higher: layers.into_iter().collect(), fp32: BTreeSet::new() }
    }

    /// These layers in fp32 besides.
    pub fn with_fp32(mut self, layers: impl IntoIterator<Item = usize>) -> Self {
        self.fp32.extend(layers);
        self.higher.extend(&self.fp32);
        self
    }

    /// As `--mixed-precision` takes it: `0,1,5:fp32`, or `none`.
    pub fn parse(text: &str) -> Option<Self> {
        if text == "none" {
            return Some(Self::none());
        }
        let mut mixed = Self::none();
        for layer in text.split(',') {
            let (layer, fp32) = match layer.trim().strip_suffix(":fp32") {
                Some(layer) => (layer, true),
                None => (layer.trim(), false),
            };
            let layer = layer.parse().ok()?;
            mixed.higher.insert(layer);
            if fp32 {
                mixed.fp32.insert(layer);
            }
        }
        Some(mixed)
    }

    /// For people; `higher` names the format of the layers that are not in fp32.
    pub fn describe(&self, higher: &str) -> String {
        let blocks: Vec<usize> = self.higher.difference(&self.fp32).copied().collect();
        let mut parts = Vec::new();
        if !blocks.is_empty() {
            parts.push(format!("{blocks:?} in {higher}"));
        }
        if !self.fp32.is_empty() {
            parts.push(format!("{:?} in fp32", Vec::from_iter(&self.fp32)));
        }
        parts.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Layers that are read as others than those typed would give a bundle that nobody asked for.
    #[test]
    fn mixed_layers_are_printed_as_they_are_typed() {
        let mixed = MixedLayers::parse("0, 7:fp32,3").unwrap();
        assert_eq!(mixed, MixedLayers::higher([0, 3]).with_fp32([7]));
        assert_eq!(mixed.describe("int8 in blocks"), "[0, 3] in int8 in blocks, [7] in fp32");
        assert_eq!(MixedLayers::parse("none"), Some(MixedLayers::none()));
        for wrong in ["", "1,", "a", "1:fp16", "-1"] {
            assert_eq!(MixedLayers::parse(wrong), None, "{wrong}");
        }
    }
}
