//! Which graphs a GPU runs whole: an operator that its execution provider lacks is computed on the CPU, with a copy there
//! and back in every layer. No GPU is needed to know: the providers' own documentation is data here.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use export::onnx::proto::ModelProto;
use models::manifest::{GraphKind, Precision};
use models::student::{Form, Residual};
use prost::Message;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use support::{Fixture, Plan, export, onnxruntime};

/// Operators of a graph that `provider` does not have for numbers of this kind.
fn falling_back(graph: &Path, provider: &str, kind: &str) -> BTreeSet<String> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/providers.json");
    let data: Value = serde_json::from_str(&fs::read_to_string(data).unwrap()).unwrap();
    let known = &data[provider]["operators"];
    let graph = ModelProto::decode(fs::read(graph).unwrap().as_slice()).unwrap().graph.unwrap();
    let names = graph.node.iter().map(|node| {
        let operator = node.op_type.clone().unwrap();
        match &node.domain {
            Some(domain) => format!("{domain}.{operator}"),
            None => operator,
        }
    });
    let has = |name: &String| {
        known[name].as_array().is_some_and(|kinds| kinds.iter().any(|k| k.as_str() == Some(kind)))
    };
    names.filter(|name| !has(name)).collect()
}

/// README says which graph to take for a GPU; a node added tomorrow must not make that wrong.
#[test]
fn gpus_run_their_graphs_whole() {
    if !onnxruntime() {
        return;
    }
    for (form, residual) in [(Form::Gated, Residual::Pooled), (Form::Relu, Residual::LastToken)] {
        let found = |precision, graph, provider: &str, kind: &str| {
            let mut fixture = Fixture::new(&Plan { form, residual, ..Plan::llama() });
            fixture.options.precision = precision;
            fixture.options.graph = graph;
            fixture.options.allow_degraded = true;
            export(&fixture.options).unwrap();
            falling_back(&fixture.options.out.join("encoder.onnx"), provider, kind)
        };
        let none = BTreeSet::new();
        assert_eq!(found(Precision::Fp16, GraphKind::Fused, "CUDA", "float16"), none);
        assert_eq!(found(Precision::Fp32, GraphKind::Portable, "CUDA", "float"), none);
        assert_eq!(found(Precision::Fp32, GraphKind::Portable, "TensorRT", "float"), none);
        // These are for CPUs, and README says so.
        let attention = BTreeSet::from(["com.microsoft.GroupQueryAttention".to_owned()]);
        assert_eq!(found(Precision::Fp32, GraphKind::Fused, "CUDA", "float"), attention);
        let int8 = |graph| found(Precision::Int8, graph, "CUDA", "float");
        assert!(int8(GraphKind::Portable).contains("MatMulInteger"));
        assert!(int8(GraphKind::Fused).contains("DynamicQuantizeLinear"));
    }
}
