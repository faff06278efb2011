//! The real file that `make setup` fetches; without it these tests have nothing to say and pass.

use super::super::GgufModel;
use serde_json::json;
use std::path::Path;
use std::str::FromStr;
use tokenizers::Tokenizer;

fn smollm2() -> Option<GgufModel> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.deps/models/SmolLM2-135M-Instruct.Q4_1.gguf");
    if !path.exists() {
        eprintln!("skipped: {} is not there; `make setup` fetches it", path.display());
        return None;
    }
    Some(GgufModel::open(&path).unwrap())
}

/// Against config.json of HuggingFaceTB/SmolLM2-135M-Instruct.
#[test]
fn config_is_that_of_the_hugging_face_folder() {
    let Some(model) = smollm2() else { return };
    assert_eq!(
        model.config,
        json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536,
            "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64,
            "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 100000.0, "rope_scaling": null,
            "max_position_embeddings": 8192, "sliding_window": null, "vocab_size": 49152,
            "tie_word_embeddings": true, "attention_bias": false,
            "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32",
        })
    );
    assert_eq!(model.tensor_names().len(), 2 + 30 * 9);
    let config = &model.tokenizer_config;
    assert_eq!(
        (&config["bos_token"], &config["eos_token"], &config["unk_token"], &config["pad_token"]),
        (&json!("<|im_start|>"), &json!("<|im_end|>"), &json!("<|endoftext|>"), &json!("<|im_end|>"))
    );
    assert!(config["chat_template"].as_str().unwrap().contains("<|im_start|>"));
}

/// Golden ids from Python's tokenizers 0.23.3, and the same from a BPE of 20 lines with llama.cpp's own expressions.
#[test]
fn text_becomes_the_tokens_that_smollm2_was_trained_on() {
    let Some(model) = smollm2() else { return };
    let tokenizer = Tokenizer::from_str(&model.tokenizer.to_string()).unwrap();
    assert_eq!(tokenizer.get_vocab_size(true), 49152);
    let text = "I have 12 apples.";
    let encoding = tokenizer.encode(text, true).unwrap();
    assert_eq!(encoding.get_ids(), [57, 457, 216, 33, 34, 13855, 30]);
    assert_eq!(encoding.get_tokens(), ["I", "Ġhave", "Ġ", "1", "2", "Ġapples", "."]);
    assert_eq!(tokenizer.decode(encoding.get_ids(), true).unwrap(), text);
    let chat = tokenizer.encode("<|im_start|>user\nHi 2024<|im_end|>\n", true).unwrap();
    assert_eq!(chat.get_ids(), [1, 4093, 198, 26843, 216, 34, 32, 34, 36, 2, 198]);
    for text in ["Café naïve, 你好！ 😀", "def f(x):\n    return x ** 2  # c", "  two  spaces "] {
        let ids = tokenizer.encode(text, true).unwrap().get_ids().to_vec();
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), text);
    }
}

/// Golden numbers from Python's gguf 0.19.0: `w = gguf.dequantize(t.data, t.tensor_type).reshape(192, 576)` of
/// `blk.7.attn_k.weight`, then `w.reshape(3, 32, 2, 576).swapaxes(1, 2).reshape(192, 576)[row, column]`.
#[test]
fn key_rows_stand_in_hugging_face_order() {
    let Some(model) = smollm2() else { return };
    let (shape, values) = model.tensor_f32("model.layers.7.self_attn.k_proj.weight").unwrap();
    assert_eq!(shape, [192, 576]);
    for (row, column, expected) in [
        (0, 0, -0.002532959),
        (1, 0, -0.02798462),
        (33, 5, 0.14465332),
        (191, 575, -0.05456543),
        (65, 100, 0.009155273),
    ] {
        assert_eq!(values[row * 576 + column], expected, "row {row}, column {column}");
    }
}
