//! Refusals: other models, and files that are not whole.

use super::{Folder, Tiny, open, refusal};
use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Value;

/// A model we have no code for must not be taken for one that happens to have the same tensor names.
#[test]
fn other_models_are_refused_by_name() {
    let message = refusal(&Tiny::new("gemma2", 8).bytes());
    assert!(
        message.contains("`general.architecture` is `gemma2`, supported are llama, mistral, qwen2, qwen3")
    );
    let experts = Tiny::new("llama", 8).set("llama.expert_count", Value::U32(8));
    assert!(
        refusal(&experts.bytes()).contains("`llama.expert_count` is 8, supported: models without experts")
    );
    let part = Tiny::new("llama", 8).set("split.count", Value::U16(3));
    assert!(refusal(&part.bytes()).contains("one of 3 parts"));
    let more = Tiny::new("llama", 8).tensor("blk.0.attn_sub_norm.weight", &[8], GgmlDType::F32);
    assert!(refusal(&more.bytes()).contains("`blk.0.attn_sub_norm.weight` has no place in a `llama` model"));
    let bias = Tiny::new("mistral", 8).tensor("blk.0.attn_q.bias", &[8], GgmlDType::F32);
    assert!(refusal(&bias.bytes()).contains("`blk.0.attn_q.bias` has no place in a `mistral` model"));
    let partial = Tiny::new("llama", 32).set("llama.rope.dimension_count", Value::U32(4));
    assert!(refusal(&partial.bytes()).contains("`llama.rope.dimension_count` is 4, expected 8"));
}

/// A reranker's score is its head's; read as a language model, it would be asked for words that it was not trained to say.
#[test]
fn rerankers_with_a_head_are_refused_with_the_way_out() {
    let head = Tiny::new("llama", 8).tensor("cls.output.weight", &[2, 8], GgmlDType::F32);
    let pooled = Tiny::new("llama", 8).set("llama.pooling_type", Value::U32(4));
    for (tiny, words) in [(head, "`cls.output.weight`"), (pooled, "`llama.pooling_type` is 4")] {
        let message = refusal(&tiny.bytes());
        assert!(message.contains(words) && message.contains("Hugging Face folder"), "{message}");
    }
    // Embedding models are pooled too, and are the language model that they were made of.
    assert!(open(&Tiny::new("llama", 8).set("llama.pooling_type", Value::U32(3)).bytes()).is_ok());
}

/// What config.json cannot say is told by the name of the file that was given, before the weights are written.
#[test]
fn sizes_that_no_model_has_are_refused_with_the_file() {
    let message = refusal(&Tiny::new("llama", 8).set("llama.context_length", Value::U32(1 << 30)).bytes());
    assert!(message.contains("max_position_embeddings") && message.contains(".gguf"), "{message}");
}

/// A missing or misshapen tensor is found at once, with its name, not after minutes of loading.
#[test]
fn missing_and_misshapen_tensors_are_named() {
    let missing = Tiny::new("llama", 8).without("blk.0.ffn_up.weight");
    assert!(refusal(&missing.bytes()).contains("tensor `blk.0.ffn_up.weight` is missing"));
    let layers = Tiny::new("llama", 8).set("llama.block_count", Value::U32(2_000_000_000));
    assert!(refusal(&layers.bytes()).contains("tensor `blk.1.attn_norm.weight` is missing"));
    let shape = Tiny::new("llama", 8).tensor("blk.0.ffn_up.weight", &[8, 16], GgmlDType::F32);
    assert!(
        refusal(&shape.bytes()).contains("`blk.0.ffn_up.weight` has shape [8, 16], metadata says [16, 8]")
    );
    let key = Tiny::new("llama", 8).without("llama.context_length");
    assert!(refusal(&key.bytes()).contains("`llama.context_length` is missing, expected a positive integer"));
    let heads = Tiny::new("llama", 8)
        .set("llama.attention.head_count", Value::Array(vec![Value::I32(4), Value::I32(2)]));
    assert!(refusal(&heads.bytes()).contains("`llama.attention.head_count` is an array of 2 integers"));
}

/// A type that candle cannot read is refused by the name under which it was downloaded.
#[test]
fn other_tensor_types_are_refused_by_name() {
    let name = b"blk.0.ffn_up.weight";
    let mut bytes = Tiny::new("llama", 8).bytes();
    let at = bytes.windows(name.len()).position(|window| window == name).unwrap();
    let kind = at + name.len() + 4 + 2 * 8; // rank, then two dimensions
    for (number, expected) in [(23u32, "is `IQ4_XS`, supported: F32"), (77, "is number 77, supported: F32")] {
        bytes[kind..kind + 4].copy_from_slice(&number.to_le_bytes());
        let message = refusal(&bytes);
        assert!(
            message.contains("type of tensor `blk.0.ffn_up.weight`") && message.contains(expected),
            "{message}"
        );
    }
}

#[test]
fn other_files_are_refused() {
    assert!(refusal(b"<html>404</html>").contains("starts with `<htm`, expected `GGUF`"));
    let mut bytes = Tiny::new("llama", 8).bytes();
    bytes[4..8].copy_from_slice(&3u32.to_be_bytes());
    assert!(refusal(&bytes).contains("GGUF version 0x3000000, expected little-endian version 2 or 3"));
    let nowhere = super::super::GgufModel::open(std::path::Path::new("no-such.gguf")).unwrap_err();
    assert!(nowhere.to_string().starts_with("no-such.gguf: "), "{nowhere}");
}

/// An interrupted download must be an error wherever it stopped: half a model would answer, and badly.
#[test]
fn a_file_cut_anywhere_is_an_error() {
    let folder = Folder::new();
    let whole = Tiny::new("llama", 8).bytes();
    folder.open(&whole).unwrap();
    // Padding follows the last tensor: 31 bytes that nobody needs.
    for len in 0..whole.len() - 31 {
        let message = folder.open(&whole[..len]).unwrap_err().to_string();
        assert!(message.contains("damaged or cut short"), "{len}: {message}");
    }
}

/// Damaged lengths, counts and types anywhere in the header end in an error or in a model that can be read: never in
/// a panic, never in an attempt to allocate what a nonsensical length says.
#[test]
fn a_damaged_header_never_panics() {
    let folder = Folder::new();
    let whole = Tiny::new("llama", 8).bytes();
    let header_end = whole.windows(11).rposition(|window| window == b"output_norm").unwrap() + 64;
    for at in 0..header_end {
        for damage in [[0xff; 8].as_slice(), &[0xff; 4], &[0; 8], &[0; 1], &[0x7f; 1]] {
            let mut bytes = whole.clone();
            bytes[at..at + damage.len()].copy_from_slice(damage);
            if let Ok(model) = folder.open(&bytes) {
                for name in model.tensor_names() {
                    let _ = model.tensor_f32(&name);
                }
            }
        }
    }
}

/// Alignment of zero would be a division by zero.
#[test]
fn nonsensical_alignment_is_refused() {
    for value in [0, 12, 1 << 20] {
        let tiny = Tiny::new("llama", 8).set("general.alignment", Value::U32(value));
        assert!(refusal(&tiny.bytes()).contains("`general.alignment`"));
    }
    assert!(open(&Tiny::new("llama", 8).set("general.alignment", Value::U32(32)).bytes()).is_ok());
}
