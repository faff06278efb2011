//! Configurations as people have them.

use super::*;

fn parse(changes: serde_json::Value) -> DecoderConfig {
    let mut json = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
        "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 128, "vocab_size": 80, "unknown_field": {"a": 1},
    });
    for (key, value) in changes.as_object().unwrap() {
        json[key] = value.clone();
    }
    serde_json::from_value(json).unwrap()
}

fn refusal(changes: serde_json::Value) -> String {
    parse(changes).validate(Path::new("config.json")).unwrap_err().to_string()
}

/// A default that differs from transformers' gives another model without any message.
#[test]
fn missing_fields_get_the_defaults_of_transformers() {
    let config = parse(serde_json::json!({}));
    assert_eq!((config.num_key_value_heads, config.head_dim), (4, 16));
    assert_eq!((config.rms_norm_eps, config.rope_theta, config.rope_scaling), (1e-6, 10_000.0, None));
    assert_eq!(config.eos_token_id, TokenIds(vec![]));
    let mistral = |window| {
        parse(serde_json::json!({"architectures": ["MistralForCausalLM"],
            "max_position_embeddings": 32768, "sliding_window": window}))
    };
    assert_eq!(mistral(serde_json::Value::Null).max_length(), 32768);
    assert_eq!(mistral(512.into()).max_length(), 512);
    let silent =
        parse(serde_json::json!({"architectures": ["MistralForCausalLM"], "max_position_embeddings": 32768}));
    assert_eq!(silent.max_length(), 4096);
}

/// transformers 5 writes `rope_parameters`; read as nothing, every position would be wrong.
#[test]
fn both_spellings_of_rotary_settings_mean_the_same() {
    let llama3 = serde_json::json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 32});
    let mut newer = llama3.clone();
    newer["rope_theta"] = 500_000.0.into();
    let old = parse(serde_json::json!({"rope_theta": 500_000.0, "rope_scaling": llama3}));
    let new = parse(serde_json::json!({"rope_parameters": newer}));
    assert_eq!(old, new);
    let plain = parse(serde_json::json!({"rope_theta": 500_000.0}));
    assert_ne!(old.inverse_frequencies(), plain.inverse_frequencies());
    assert_eq!(old.inverse_frequencies()[0], 1.0);
    let defaults = serde_json::json!({"rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}});
    assert_eq!(parse(defaults), plain);
}

/// transformers 4.43 and later wrote both names of the type; two that differ have no one meaning.
#[test]
fn both_names_of_a_rope_type_are_read_and_must_agree() {
    let scaled = |scaling| parse(serde_json::json!({ "rope_scaling": scaling }));
    let linear = scaled(serde_json::json!({"type": "linear", "factor": 3.0}));
    assert_eq!(scaled(serde_json::json!({"type": "linear", "rope_type": "linear", "factor": 3})), linear);
    assert_eq!(scaled(serde_json::json!({"type": null, "rope_type": "linear", "factor": 3})), linear);
    assert_eq!(scaled(serde_json::json!({"type": "default", "rope_type": "default"})).rope_scaling, None);
    let unclear = |changes: &[(&str, serde_json::Value)]| {
        let mut json = serde_json::to_value(parse(serde_json::json!({}))).unwrap();
        for (name, value) in changes {
            json[*name] = value.clone();
        }
        serde_json::from_value::<DecoderConfig>(json).unwrap_err().to_string()
    };
    let told = unclear(&[("rope_scaling", serde_json::json!({"type": "linear", "rope_type": "llama3"}))]);
    assert!(told.contains("`llama3`") && told.contains("`linear`"), "{told}");
    let layers = serde_json::json!({"full_attention": {"rope_type": "linear", "factor": 2.0}});
    let told = unclear(&[("rope_parameters", layers)]);
    assert!(told.contains("`full_attention`"), "{told}");
    let told = unclear(&[
        ("rope_scaling", serde_json::json!({"type": "linear", "factor": 2.0})),
        ("rope_parameters", serde_json::json!({"rope_type": "linear", "factor": 4.0})),
    ]);
    assert!(told.contains("`rope_scaling` and `rope_parameters` differ"), "{told}");
    let same =
        parse(serde_json::json!({"rope_theta": 7.0, "rope_scaling": {"type": "linear", "factor": 3.0},
        "rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 7.0}}));
    assert_eq!((same.rope_scaling, same.rope_theta), (linear.rope_scaling, 7.0));
    assert!(
        refusal(serde_json::json!({"partial_rotary_factor": 0.5})).contains("`partial_rotary_factor` is 0.5")
    );
}

/// Embedding models are saved without a head, under the name of the bare decoder, and are the same decoder.
#[test]
fn a_decoder_without_head_is_of_its_family() {
    let bare = parse(serde_json::json!({"architectures": ["Qwen3Model"], "model_type": "qwen3"}));
    assert_eq!(bare.architecture(), Some(Architecture::Qwen3));
    let classifier = refusal(serde_json::json!({"architectures": ["LlamaForSequenceClassification"]}));
    assert!(classifier.contains("`LlamaForSequenceClassification`"), "{classifier}");
}

/// A checkpoint we write must be read back as the same model.
#[test]
fn what_is_written_is_read_back_the_same() {
    let config = parse(serde_json::json!({"eos_token_id": [2, 7], "bos_token_id": 1,
        "rope_scaling": {"type": "linear", "factor": 2.0}}));
    let text = serde_json::to_string(&config).unwrap();
    assert_eq!(serde_json::from_str::<DecoderConfig>(&text).unwrap(), config);
    assert!(text.contains(r#""bos_token_id":1,"eos_token_id":[2,7]"#), "{text}");
}

/// A model we cannot run must be refused in words before its weights are read.
#[test]
fn what_we_cannot_run_is_refused_in_one_sentence() {
    let gemma = refusal(serde_json::json!({"architectures": ["GemmaForCausalLM"]}));
    assert!(gemma.contains("GemmaForCausalLM") && gemma.contains("Qwen3ForCausalLM"), "{gemma}");
    for (changes, words) in [
        (serde_json::json!({"num_key_value_heads": 3}), "`num_key_value_heads` is 3"),
        (serde_json::json!({"head_dim": 15}), "`head_dim` is 15"),
        (serde_json::json!({"num_attention_heads": 0}), "`num_attention_heads` is 0"),
        (serde_json::json!({"hidden_act": "gelu"}), "`hidden_act` is `gelu`"),
        (serde_json::json!({"rope_scaling": {"rope_type": "yarn", "factor": 4}}), "`yarn`"),
        (serde_json::json!({"rope_scaling": {"rope_type": "linear"}}), "missing"),
        (serde_json::json!({"num_hidden_layers": 1_000_000}), "`num_hidden_layers` is 1000000"),
    ] {
        let said = refusal(changes);
        assert!(said.contains(words), "{said}");
    }
}
