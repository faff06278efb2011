//! Names, shapes, types and row order.

use super::super::tensors::unpermute_rotary;
use super::{Folder, Tiny, open, refusal, values};
use crate::config::DecoderConfig;
use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Value;
use serde_json::{Value as Json, json};
use std::path::Path;

/// `LlamaModel.permute` of llama.cpp, literally: `w.reshape(heads, 2, half, columns).swapaxes(1, 2)`.
fn permute(w: &[f32], heads: usize, rows: usize) -> Vec<f32> {
    let (half, columns) = (rows / heads / 2, w.len() / rows);
    let mut out = Vec::new();
    for head in 0..heads {
        for i in 0..half {
            for which in 0..2 {
                let from = ((head * 2 + which) * half + i) * columns;
                out.extend_from_slice(&w[from..from + columns]);
            }
        }
    }
    out
}

fn assert_close(found: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= tolerance, "{what}: off by {worst}, allowed {tolerance}");
}

/// With rows in the wrong order attention still runs, and the model babbles.
#[test]
fn unpermute_undoes_permute() {
    for (heads, head_dim, columns) in [(1, 2, 1), (3, 8, 5), (4, 64, 1)] {
        let rows = heads * head_dim;
        let w = values("w", rows * columns);
        let stored = permute(&w, heads, rows);
        assert_eq!(unpermute_rotary(&stored, heads, rows), w);
    }
    // np.arange(8).reshape(1, 2, 4, 1).swapaxes(1, 2).ravel()
    let stored = [0., 4., 1., 5., 2., 6., 3., 7.];
    assert_eq!(permute(&[0., 1., 2., 3., 4., 5., 6., 7.], 1, 8), stored);
}

/// A type decoded with another's layout gives numbers of plausible size that mean nothing.
#[test]
fn every_supported_type_comes_back_within_its_error() {
    let cases = [
        (GgmlDType::F32, 0.0),
        (GgmlDType::F16, 5e-4),
        (GgmlDType::BF16, 4e-3),
        (GgmlDType::Q8_0, 6e-3),
        (GgmlDType::Q6K, 0.05),
        (GgmlDType::Q5_0, 0.07),
        (GgmlDType::Q5_1, 0.04),
        (GgmlDType::Q5K, 0.06),
        (GgmlDType::Q4_0, 0.13),
        (GgmlDType::Q4_1, 0.08),
        (GgmlDType::Q4K, 0.12),
        (GgmlDType::Q3K, 0.4),
        (GgmlDType::Q2K, 0.5),
    ];
    for (dtype, tolerance) in cases {
        let folder = Folder::new();
        let tiny = Tiny::new("llama", 256).tensor("blk.0.ffn_up.weight", &[512, 256], dtype);
        let model = folder.open(&tiny.bytes()).unwrap();
        let (shape, found) = model.tensor_f32("model.layers.0.mlp.up_proj.weight").unwrap();
        assert_eq!(shape, [512, 256]);
        assert_close(&found, &values("blk.0.ffn_up.weight", 512 * 256), tolerance, &format!("{dtype:?}"));
    }
}

/// The names are the contract with every loader; a name off by a letter is a missing tensor there.
#[test]
fn names_and_shapes_are_those_of_a_hugging_face_folder() {
    let model = open(&Tiny::new("llama", 8).bytes()).unwrap();
    let names = model.tensor_names();
    let expected = [
        "model.embed_tokens.weight",
        "model.layers.0.input_layernorm.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.self_attn.k_proj.weight",
        "model.layers.0.self_attn.v_proj.weight",
        "model.layers.0.self_attn.o_proj.weight",
        "model.layers.0.post_attention_layernorm.weight",
        "model.layers.0.mlp.gate_proj.weight",
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.0.mlp.down_proj.weight",
        "model.norm.weight",
    ];
    assert_eq!(names, expected);
    assert_eq!(model.tensor_shape("model.layers.0.mlp.down_proj.weight"), Some([8, 16].as_slice()));
    assert_eq!(model.tensor_shape("lm_head.weight"), None);
    let asked = model.tensor_f32("lm_head.weight").unwrap_err().to_string();
    assert!(asked.contains("no tensor `lm_head.weight`"), "{asked}");
    assert_eq!(
        model.config,
        json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8, "intermediate_size": 16,
            "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 2,
            "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 500000.0, "rope_scaling": null,
            "max_position_embeddings": 64, "sliding_window": null, "vocab_size": 8,
            "tie_word_embeddings": true, "attention_bias": false,
            "bos_token_id": 0, "eos_token_id": 7, "torch_dtype": "float32",
        })
    );
}

/// llama.cpp interleaves rows for `llama` and `mistral` and for no other: to undo what was not done is as wrong.
#[test]
fn only_query_and_key_rows_of_llama_and_mistral_are_reordered() {
    for (architecture, class, interleaved) in [
        ("llama", "LlamaForCausalLM", true),
        ("mistral", "MistralForCausalLM", true),
        ("qwen2", "Qwen2ForCausalLM", false),
        ("qwen3", "Qwen3ForCausalLM", false),
    ] {
        let mut tiny = Tiny::new(architecture, 32).tensor("output.weight", &[8, 32], GgmlDType::Q8_0);
        if architecture == "qwen2" {
            for (name, rows) in [("q", 32), ("k", 16), ("v", 16)] {
                tiny = tiny.tensor(&format!("blk.0.attn_{name}.bias"), &[rows], GgmlDType::F32);
            }
        }
        if architecture == "qwen3" {
            tiny = tiny.tensor("blk.0.attn_q_norm.weight", &[8], GgmlDType::F32).tensor(
                "blk.0.attn_k_norm.weight",
                &[8],
                GgmlDType::F32,
            );
        }
        let bytes = tiny.bytes_with(|name, shape| {
            let original = values(name, shape.iter().product());
            match name {
                "blk.0.attn_q.weight" if interleaved => permute(&original, 4, 32),
                "blk.0.attn_k.weight" if interleaved => permute(&original, 2, 16),
                _ => original,
            }
        });
        let folder = Folder::new();
        let model = folder.open(&bytes).unwrap();
        assert_eq!(model.config["architectures"], json!([class]));
        let config: DecoderConfig = serde_json::from_value(model.config.clone()).unwrap();
        config.validate(Path::new("config.json")).unwrap();
        assert_eq!(config.max_length(), 64);
        assert_eq!(model.config["tie_word_embeddings"], json!(false));
        assert_eq!(model.config["attention_bias"], json!(architecture == "qwen2"));
        for (hf, gguf, count) in [
            ("model.layers.0.self_attn.q_proj.weight", "blk.0.attn_q.weight", 32 * 32),
            ("model.layers.0.self_attn.k_proj.weight", "blk.0.attn_k.weight", 16 * 32),
            ("model.layers.0.self_attn.v_proj.weight", "blk.0.attn_v.weight", 16 * 32),
            ("model.layers.0.self_attn.o_proj.weight", "blk.0.attn_output.weight", 32 * 32),
        ] {
            assert_eq!(model.tensor_f32(hf).unwrap().1, values(gguf, count), "{architecture} {hf}");
        }
        let head = model.tensor_f32("lm_head.weight").unwrap().1;
        assert_close(&head, &values("output.weight", 8 * 32), 6e-3, architecture);
        let names = model.tensor_names();
        assert_eq!(names.iter().any(|n| n.ends_with("q_proj.bias")), architecture == "qwen2");
        assert_eq!(names.iter().any(|n| n.ends_with("k_norm.weight")), architecture == "qwen3");
    }
}

/// Biases of a Llama model are interleaved like the rows they belong to.
#[test]
fn biases_of_llama_are_reordered_too() {
    let mut tiny = Tiny::new("llama", 32);
    for (name, rows) in [("q", 32), ("k", 16), ("v", 16), ("output", 32)] {
        tiny = tiny.tensor(&format!("blk.0.attn_{name}.bias"), &[rows], GgmlDType::F32);
    }
    let bytes = tiny.bytes_with(|name, shape| {
        let original = values(name, shape.iter().product());
        if name == "blk.0.attn_q.bias" { permute(&original, 4, 32) } else { original }
    });
    let folder = Folder::new();
    let model = folder.open(&bytes).unwrap();
    assert_eq!(model.config["attention_bias"], json!(true));
    let (shape, bias) = model.tensor_f32("model.layers.0.self_attn.q_proj.bias").unwrap();
    assert_eq!((shape, bias), (vec![32], values("blk.0.attn_q.bias", 32)));
}

/// Llama 3.1 without its frequency factors reads short texts well and long ones badly.
#[test]
fn llama3_frequency_factors_become_rope_scaling() {
    let head_dim = 64;
    let tiny = Tiny::new("llama", 4 * head_dim).tensor("rope_freqs.weight", &[head_dim / 2], GgmlDType::F32);
    // `generate_extra_tensors` of convert_hf_to_gguf.py, factor 32 as in Llama 3.2.
    let factors = |name: &str, shape: &[usize]| {
        if name != "rope_freqs.weight" {
            return values(name, shape.iter().product());
        }
        let factor = |i: usize| {
            let wavelen =
                2.0 * std::f64::consts::PI / (1.0 / 500000f64.powf(2.0 * i as f64 / head_dim as f64));
            let smooth = (8192.0 / wavelen - 1.0) / 3.0;
            match wavelen {
                short if short < 2048.0 => 1.0,
                long if long > 8192.0 => 32.0,
                _ => 1.0 / ((1.0 - smooth) / 32.0 + smooth),
            }
        };
        (0..shape[0]).map(|i| factor(i) as f32).collect()
    };
    let model = open(&tiny.bytes_with(factors)).unwrap();
    assert_eq!(
        model.config["rope_scaling"],
        json!({
            "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        })
    );
    assert!(!model.tensor_names().iter().any(|name| name.contains("rope")));
    let config: DecoderConfig = serde_json::from_value(model.config.clone()).unwrap();
    for (i, frequency) in config.inverse_frequencies().into_iter().enumerate() {
        let unscaled = 1.0 / 500000f64.powf(2.0 * i as f64 / head_dim as f64);
        let expected = unscaled / f64::from(factors("rope_freqs.weight", &[head_dim / 2])[i]);
        assert!(
            (f64::from(frequency) / expected - 1.0).abs() < 1e-5,
            "pair {i}: {frequency}, expected {expected}"
        );
    }
    let ones = tiny.bytes_with(|name, shape| match name {
        "rope_freqs.weight" => vec![1.0; shape[0]],
        _ => values(name, shape.iter().product()),
    });
    assert!(open(&ones).unwrap().config["rope_scaling"].is_null());
    let message = refusal(&tiny.bytes());
    assert!(message.contains("rope_freqs.weight") && message.contains("llama3"), "{message}");
}

/// A scaling parameter dropped on the way changes every position of a long text.
#[test]
fn rope_scaling_is_passed_on_or_refused() {
    let scaled = |keys: &[(&str, Value)]| {
        let tiny = Tiny::new("llama", 32);
        keys.iter().fold(tiny, |tiny, (key, value)| tiny.set(&format!("llama.rope.{key}"), value.clone()))
    };
    let text = |text: &str| Value::String(text.to_owned());
    let linear = json!({ "rope_type": "linear", "factor": 2.5 });
    // Without a type llama.cpp takes `linear`; files of 2023 name the factor by an older key, which the newer one replaces.
    for (keys, expected) in [
        (&[("scaling.type", text("linear")), ("scaling.factor", Value::F32(2.5))][..], &linear),
        (&[("scaling.factor", Value::F32(2.5))], &linear),
        (&[("scale_linear", Value::F32(2.5))], &linear),
        (&[("scaling.type", text("linear")), ("scale_linear", Value::F32(2.5))], &linear),
        (&[("scaling.factor", Value::F32(2.5)), ("scale_linear", Value::F32(9.0))], &linear),
        (&[("scaling.type", text("none")), ("scaling.factor", Value::F32(2.5))], &Json::Null),
        (&[("scaling.factor", Value::F32(1.0))], &Json::Null),
        (&[("scaling.type", text("linear")), ("scaling.factor", Value::F32(0.0))], &Json::Null),
        (&[("scale_linear", Value::F32(0.0))], &Json::Null),
        (&[], &Json::Null),
    ] {
        let model = open(&scaled(keys).bytes()).unwrap();
        assert_eq!(&model.config["rope_scaling"], expected, "{keys:?}");
    }
    for (keys, words) in [
        (
            &[("scaling.type", text("yarn")), ("scaling.factor", Value::F32(4.0))][..],
            "`llama.rope.scaling.type` is `yarn`",
        ),
        (&[("scaling.type", text("longrope"))], "`llama.rope.scaling.type` is `longrope`"),
        (&[("scaling.factor", Value::F32(-1.0))], "`llama.rope.scaling.factor` is -1"),
        (&[("scale_linear", text("2"))], "`llama.rope.scale_linear` is `2`"),
        (&[("scaling.attn_factor", Value::F32(1.5))], "`llama.rope.scaling.attn_factor`"),
    ] {
        let message = refusal(&scaled(keys).bytes());
        assert!(message.contains(words), "{message}");
    }
}
