//! Tiny GGUF files, written by candle's own writer, which shares no code with the reader under test.

mod damage;
mod smollm2;
mod tokenizer;
mod weights;

use super::{GgufError, GgufModel};
use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use std::io::Cursor;
use tempfile::TempDir;

/// A decoder of one layer, four heads over two, with a vocabulary of eight, to be changed by a test before writing.
struct Tiny {
    metadata: Vec<(String, Value)>,
    /// GGUF name, shape (rows first), type.
    tensors: Vec<(String, Vec<usize>, GgmlDType)>,
}

impl Tiny {
    fn new(architecture: &str, hidden: usize) -> Self {
        let (query, key_value, inner, vocab) = (hidden, hidden / 2, 2 * hidden, TOKENS.len());
        let text = |value: &str| Value::String(value.to_owned());
        let texts = |values: &[&str]| Value::Array(values.iter().map(|v| text(v)).collect());
        let size = |value: usize| Value::U32(value as u32);
        let metadata = vec![
            ("general.architecture".to_owned(), text(architecture)),
            (format!("{architecture}.block_count"), size(1)),
            (format!("{architecture}.context_length"), size(64)),
            (format!("{architecture}.embedding_length"), size(hidden)),
            (format!("{architecture}.feed_forward_length"), size(inner)),
            (format!("{architecture}.attention.head_count"), size(4)),
            (format!("{architecture}.attention.head_count_kv"), size(2)),
            (format!("{architecture}.attention.layer_norm_rms_epsilon"), Value::F32(1e-6)),
            (format!("{architecture}.rope.freq_base"), Value::F32(500000.0)),
            ("tokenizer.ggml.model".to_owned(), text("gpt2")),
            ("tokenizer.ggml.pre".to_owned(), text("smollm")),
            ("tokenizer.ggml.tokens".to_owned(), texts(&TOKENS)),
            ("tokenizer.ggml.token_type".to_owned(), Value::Array(TYPES.map(Value::I32).to_vec())),
            ("tokenizer.ggml.merges".to_owned(), texts(&["a b"])),
            ("tokenizer.ggml.bos_token_id".to_owned(), size(0)),
            ("tokenizer.ggml.eos_token_id".to_owned(), size(7)),
        ];
        let tensors = [
            ("token_embd.weight", vec![vocab, hidden]),
            ("blk.0.attn_norm.weight", vec![hidden]),
            ("blk.0.attn_q.weight", vec![query, hidden]),
            ("blk.0.attn_k.weight", vec![key_value, hidden]),
            ("blk.0.attn_v.weight", vec![key_value, hidden]),
            ("blk.0.attn_output.weight", vec![hidden, query]),
            ("blk.0.ffn_norm.weight", vec![hidden]),
            ("blk.0.ffn_gate.weight", vec![inner, hidden]),
            ("blk.0.ffn_up.weight", vec![inner, hidden]),
            ("blk.0.ffn_down.weight", vec![hidden, inner]),
            ("output_norm.weight", vec![hidden]),
        ];
        let tensors =
            tensors.into_iter().map(|(name, shape)| (name.to_owned(), shape, GgmlDType::F32)).collect();
        Self { metadata, tensors }
    }

    /// Replaces a metadata value, or adds it.
    fn set(mut self, key: &str, value: Value) -> Self {
        self.metadata.retain(|(name, _)| name != key);
        self.metadata.push((key.to_owned(), value));
        self
    }

    fn set_text(self, key: &str, value: &str) -> Self {
        self.set(key, Value::String(value.to_owned()))
    }

    /// Replaces a tensor, or adds it.
    fn tensor(mut self, name: &str, shape: &[usize], dtype: GgmlDType) -> Self {
        self.tensors.retain(|(other, ..)| other != name);
        self.tensors.push((name.to_owned(), shape.to_vec(), dtype));
        self
    }

    fn without(mut self, name: &str) -> Self {
        self.metadata.retain(|(key, _)| key != name);
        self.tensors.retain(|(other, ..)| other != name);
        self
    }

    /// The file, every tensor filled with its [`values`].
    fn bytes(&self) -> Vec<u8> {
        self.bytes_with(|name, shape| values(name, shape.iter().product()))
    }

    fn bytes_with(&self, fill: impl Fn(&str, &[usize]) -> Vec<f32>) -> Vec<u8> {
        let metadata: Vec<(&str, &Value)> = self.metadata.iter().map(|(key, v)| (key.as_str(), v)).collect();
        let tensors: Vec<(&str, QTensor)> = self
            .tensors
            .iter()
            .map(|(name, shape, dtype)| {
                let tensor = Tensor::from_vec(fill(name, shape), shape.as_slice(), &Device::Cpu).unwrap();
                (name.as_str(), QTensor::quantize(&tensor, *dtype).unwrap())
            })
            .collect();
        let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(name, t)| (*name, t)).collect();
        let mut bytes = Cursor::new(Vec::new());
        gguf_file::write(&mut bytes, &metadata, &tensors).unwrap();
        bytes.into_inner()
    }
}

const TOKENS: [&str; 8] = ["<|bos|>", "a", "b", "ab", "Ġ", "1", "[PAD6]", "<|eos|>"];
const TYPES: [i32; 8] = [3, 1, 1, 1, 1, 1, 5, 4];

/// A directory with one file in it.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn open(&self, bytes: &[u8]) -> Result<GgufModel, GgufError> {
        let path = self.0.path().join("model.gguf");
        std::fs::write(&path, bytes).unwrap();
        GgufModel::open(&path)
    }
}

/// Opens the bytes as a file; tensors must be read before the folder goes.
fn open(bytes: &[u8]) -> Result<GgufModel, GgufError> {
    Folder::new().open(bytes)
}

/// The message of a refusal.
fn refusal(bytes: &[u8]) -> String {
    open(bytes).unwrap_err().to_string()
}

/// Values in -1..1, the same for the same name, without regularity that a wrong order of rows could hide behind.
fn values(name: &str, count: usize) -> Vec<f32> {
    let mut state =
        name.bytes().fold(0x9e37_79b9_7f4a_7c15_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}
