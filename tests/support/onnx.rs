//! A tiny embedding model as sentence-transformers and optimum write them: `onnx/model.onnx` with token vectors, a tokenizer
//! that pads and cuts, and how to pool.

use crate::model::{Normal, tokenizer_json};
use export::onnx::graph::GraphBuilder;
use export::onnx::proto::{AttributeProto, DataType};
use export::onnx::scope::Scope;
use export::onnx::tensor::TensorData;
use export::onnx::value::Dim;
use models::files::write_json;
use serde_json::json;
use std::fs;
use std::path::Path;

/// Numbers of an embedding.
const HIDDEN_SIZE: usize = 16;

/// Writes the folder. A token's vector is its row of a table, zero where it is padding; `input` is an input more, which no
/// text model has.
pub fn write_onnx_embedding(dir: &Path, input: Option<&str>) {
    fs::create_dir_all(dir.join("onnx")).unwrap();
    fs::create_dir_all(dir.join("1_Pooling")).unwrap();
    let mut tokenizer = tokenizer_json();
    tokenizer["truncation"] =
        json!({"direction": "Right", "max_length": 24, "strategy": "LongestFirst", "stride": 0});
    tokenizer["padding"] = json!({"strategy": {"Fixed": 24}, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>"});
    let vocabulary = tokenizer["model"]["vocab"].as_object().unwrap().len();
    write_json(&dir.join("tokenizer.json"), &tokenizer).unwrap();
    write_json(&dir.join("1_Pooling/config.json"), &json!({ "pooling_mode_mean_tokens": true })).unwrap();

    let shape = [Dim::Symbol("batch"), Dim::Symbol("sequence")];
    let mut g = GraphBuilder::new("embedding");
    let ids = g.input("input_ids", DataType::Int64, &shape).unwrap();
    let mut mask = g.input("attention_mask", DataType::Int64, &shape).unwrap();
    let (types, root) = (g.input("token_type_ids", DataType::Int64, &shape).unwrap(), Scope::root());
    // Types are 0 throughout; here they only have to be fed.
    mask = g.op(&root.child("types"), "Sub", &[&mask, &types]).unwrap();
    if let Some(name) = input {
        let more = g.input(name, DataType::Int64, &shape).unwrap();
        mask = g.op(&root.child("more"), "Mul", &[&mask, &more]).unwrap();
    }
    let table = Normal::new(5).vector(vocabulary * HIDDEN_SIZE, 1.0);
    let table =
        g.initializer("embeddings.weight", &[vocabulary, HIDDEN_SIZE], TensorData::F32(&table)).unwrap();
    let rows = g.op(&root, "Gather", &[&table, &ids]).unwrap();
    let cast = [AttributeProto::int("to", DataType::Float as i64)];
    let mask = g.op_with(&root, "Cast", &[&mask], cast).unwrap();
    let last = g.integers(&[-1]).unwrap();
    let mask = g.op(&root, "Unsqueeze", &[&mask, &last]).unwrap();
    let states = g.op(&root, "Mul", &[&rows, &mask]).unwrap();
    let shape = [shape[0], shape[1], Dim::Size(HIDDEN_SIZE)];
    g.output("last_hidden_state", DataType::Float, &shape, states).unwrap();
    g.finish(&dir.join("onnx/model.onnx")).unwrap();
}
