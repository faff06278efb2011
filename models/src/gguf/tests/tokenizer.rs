//! tokenizer.json from metadata.

use super::{Tiny, open, refusal};
use candle_core::quantized::gguf_file::Value;
use serde_json::json;
use std::str::FromStr;
use tokenizers::Tokenizer;

fn tokenizer(tiny: &Tiny) -> Tokenizer {
    Tokenizer::from_str(&open(&tiny.bytes()).unwrap().tokenizer.to_string()).unwrap()
}

fn pieces(tokenizer: &Tokenizer, text: &str) -> Vec<String> {
    tokenizer.encode(text, true).unwrap().get_tokens().to_vec()
}

/// A special token cut into pieces is plain text to the model: the prompt loses its structure.
#[test]
fn special_tokens_are_found_before_splitting_and_padding_is_left_out() {
    let tiny = Tiny::new("llama", 8);
    let tokenizer = tokenizer(&tiny);
    assert_eq!(pieces(&tokenizer, "<|bos|>ab a11<|eos|>"), ["<|bos|>", "ab", "Ġ", "a", "1", "1", "<|eos|>"]);
    let ids = tokenizer.encode("<|bos|>ab<|eos|>", true).unwrap().get_ids().to_vec();
    assert_eq!(ids, [0, 3, 7]);
    // Control tokens are special, user-defined ones are text that is never split.
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "ab<|eos|>");
    assert_eq!(tokenizer.token_to_id("[PAD6]"), None);
}

/// Each name stands for a way to cut text; the wrong one gives tokens the model never saw together.
#[test]
fn pre_names_choose_the_splitting() {
    // Digits one by one, with the space before them alone (smollm) or with them (gpt-2); up to three (llama-bpe).
    let cut = |pre: &str, text: &str| -> Vec<String> {
        let tiny = Tiny::new("llama", 8)
            .set_text("tokenizer.ggml.pre", pre)
            .set("tokenizer.ggml.add_bos_token", Value::Bool(false));
        let tokenizer = tokenizer(&tiny);
        let mut text = tokenizers::PreTokenizedString::from(text);
        tokenizers::PreTokenizer::pre_tokenize(tokenizer.get_pre_tokenizer().unwrap(), &mut text).unwrap();
        let splits = text.get_splits(tokenizers::OffsetReferential::Original, tokenizers::OffsetType::Byte);
        splits.into_iter().map(|(piece, ..)| piece.to_owned()).collect()
    };
    assert_eq!(cut("smollm", "it's 1234"), ["it", "'s", "Ġ", "1", "2", "3", "4"]);
    assert_eq!(cut("qwen2", "it's 1234"), ["it", "'s", "Ġ", "1", "2", "3", "4"]);
    assert_eq!(cut("llama-bpe", "it's 1234"), ["it", "'s", "Ġ", "123", "4"]);
    assert_eq!(cut("gpt-2", "it's 1234"), ["it", "'s", "Ġ1234"]);
    // A line end belongs to the punctuation before it in the newer two, and capitals have contractions, too.
    assert_eq!(cut("smollm", "IT'S.\n"), ["IT", "'", "S", ".", "Ċ"]);
    assert_eq!(cut("qwen2", "IT'S.\n"), ["IT", "'S", ".Ċ"]);
    assert_eq!(cut("llama-bpe", "IT'S.\n"), ["IT", "'S", ".Ċ"]);
    let message = refusal(&Tiny::new("llama", 8).set_text("tokenizer.ggml.pre", "tekken").bytes());
    assert!(message.contains("`tokenizer.ggml.pre` is `tekken`, supported: `smollm`, `qwen2`"), "{message}");
    // llama.cpp has digits in threes for it, and whatever the model was trained on is neither that nor GPT-2's.
    let message = refusal(&Tiny::new("llama", 8).set_text("tokenizer.ggml.pre", "default").bytes());
    assert!(message.contains("`tokenizer.ggml.pre` is `default`: a conversion"), "{message}");
    assert!(message.contains("Hugging Face folder"), "{message}");
}

/// Qwen sees composed letters only; Llama 3 takes whole words from its vocabulary before it merges.
#[test]
fn normaliser_and_ignored_merges_follow_the_name() {
    let model = |pre: &str| open(&Tiny::new("llama", 8).set_text("tokenizer.ggml.pre", pre).bytes()).unwrap();
    assert_eq!(model("qwen2").tokenizer["normalizer"], json!({ "type": "NFC" }));
    assert!(model("smollm").tokenizer["normalizer"].is_null());
    assert_eq!(model("llama-bpe").tokenizer["model"]["ignore_merges"], json!(true));
    assert_eq!(model("smollm").tokenizer["model"]["ignore_merges"], json!(false));
}

/// Llama 3 without its first token scores noticeably worse; others with one, too.
#[test]
fn bos_and_eos_are_added_where_the_model_wants_them() {
    let with = |pre: &str, flags: &[(&str, bool)]| {
        let tiny = Tiny::new("llama", 8).set_text("tokenizer.ggml.pre", pre);
        flags
            .iter()
            .fold(tiny, |tiny, (key, flag)| tiny.set(&format!("tokenizer.ggml.{key}"), Value::Bool(*flag)))
    };
    assert_eq!(pieces(&tokenizer(&with("smollm", &[])), "a"), ["a"]);
    assert_eq!(pieces(&tokenizer(&with("llama-bpe", &[])), "a"), ["<|bos|>", "a"]);
    assert_eq!(pieces(&tokenizer(&with("llama-bpe", &[("add_bos_token", false)])), "a"), ["a"]);
    let both = tokenizer(&with("qwen2", &[("add_bos_token", true), ("add_eos_token", true)]));
    assert_eq!(pieces(&both, "a"), ["<|bos|>", "a", "<|eos|>"]);
    let pair = both.encode(("a", "b"), true).unwrap();
    assert_eq!(pair.get_tokens(), ["<|bos|>", "a", "<|eos|>", "<|bos|>", "b", "<|eos|>"]);
    let nameless = with("llama-bpe", &[]).without("tokenizer.ggml.bos_token_id");
    assert!(refusal(&nameless.bytes()).contains("`tokenizer.ggml.bos_token_id` is missing"));
    let config = open(&with("llama-bpe", &[]).bytes()).unwrap().tokenizer_config;
    assert_eq!(config["add_bos_token"], json!(true));
    assert_eq!((&config["bos_token"], &config["pad_token"]), (&json!("<|bos|>"), &json!(null)));
}

/// Rebuilt approximately, a SentencePiece tokenizer gives slightly other tokens, which nobody notices.
#[test]
fn sentencepiece_is_refused_with_a_way_out() {
    let message = refusal(&Tiny::new("llama", 8).set_text("tokenizer.ggml.model", "llama").bytes());
    assert!(message.contains("is `llama` (SentencePiece), supported: `gpt2`"), "{message}");
    assert!(message.contains("use the model's Hugging Face folder instead"), "{message}");
}

#[test]
fn contradictions_in_the_vocabulary_are_refused() {
    let tiny = || Tiny::new("llama", 8);
    let texts =
        |values: &[&str]| Value::Array(values.iter().map(|v| Value::String((*v).to_owned())).collect());
    let merge = tiny().set("tokenizer.ggml.merges", texts(&["a b c"]));
    assert!(refusal(&merge.bytes()).contains("`a b c`, expected two tokens with one space between"));
    let unknown = tiny().set("tokenizer.ggml.merges", texts(&["a z"]));
    assert!(refusal(&unknown.bytes()).contains("no tokenizer can be built"));
    let twice =
        tiny().set("tokenizer.ggml.tokens", texts(&["<|bos|>", "a", "b", "ab", "Ġ", "1", "[PAD6]", "a"]));
    assert!(refusal(&twice.bytes()).contains("`a` under both 1 and 7"));
    let many = tiny().set("tokenizer.ggml.tokens", texts(&["a"; 9]));
    assert!(refusal(&many.bytes()).contains("at most 8, the rows of `token_embd.weight`"));
    let types = tiny().without("tokenizer.ggml.token_type");
    assert!(refusal(&types.bytes()).contains("`tokenizer.ggml.token_type` is missing"));
    let eos = tiny().set("tokenizer.ggml.eos_token_id", Value::U32(8));
    assert!(refusal(&eos.bytes()).contains("`tokenizer.ggml.eos_token_id` is 8, expected a token's number"));
}
