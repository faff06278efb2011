//! What tests read off exported graphs and manifests.

use export::onnx::proto::{GraphProto, ModelProto};
use models::manifest::Manifest;
use prost::Message;
use std::fs;
use std::path::Path;

/// The graph of an ONNX file.
pub fn graph(file: &Path) -> GraphProto {
    ModelProto::decode(fs::read(file).unwrap().as_slice()).unwrap().graph.unwrap()
}

/// Names of all nodes of a graph that have one.
pub fn node_names(graph: &GraphProto) -> Vec<&str> {
    graph.node.iter().filter_map(|node| node.name.as_deref()).collect()
}

/// A measured number of the manifest.
pub fn parity(manifest: &Manifest, what: &str) -> f64 {
    manifest.parity[what].as_f64().unwrap()
}

/// Whether ONNX Runtime's fused attention supports the heads of this configuration.
pub fn takes_fused(config: &serde_json::Value) -> bool {
    config["head_dim"].as_u64().is_some_and(|head_dim| head_dim.is_multiple_of(16))
}
