//! tokenizer.json and tokenizer_config.json from GGUF metadata, for byte-level BPE (`tokenizer.ggml.model` = `gpt2`).
//!
//! GGUF keeps vocabulary and merges, but of the text splitting only a name, `tokenizer.ggml.pre`. The rest comes from
//! the tokenizer.json files of the models that llama.cpp gave these names to.

use super::config::DecoderShape;
use super::error::GgufError;
use super::header::Header;
use super::metadata::Value;
use serde_json::{Map, Value as Json, json};
use std::str::FromStr;
use tokenizers::Tokenizer;

const TOKENS: &str = "tokenizer.ggml.tokens";
const TOKEN_TYPE: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";

// Values of `tokenizer.ggml.token_type`, enum `llama_token_type` of llama.cpp.
const CONTROL: i128 = 3;
const USER_DEFINED: i128 = 4;
const UNUSED: i128 = 5;

/// Words with one leading other character, digits one by one, punctuation, line ends, spaces.
const QWEN2_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The same with up to three digits together.
const LLAMA3_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// tokenizer.json and tokenizer_config.json; the first is known to load.
pub(super) fn read(header: &Header, shape: &DecoderShape) -> Result<(Json, Json), GgufError> {
    refuse_other_models(header)?;
    let splitting = Splitting::read(header)?;
    let tokens = header.texts(TOKENS)?;
    if tokens.len() > shape.vocab_size {
        let expected = format!("at most {}, the rows of `token_embd.weight`", shape.vocab_size);
        return Err(header.bad_value(TOKENS, &expected));
    }
    let (vocab, added_tokens) = vocabulary(header, tokens)?;
    let special = SpecialTokens::read(header, tokens, splitting)?;
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added_tokens,
        "normalizer": splitting.normalizer(),
        "pre_tokenizer": splitting.pre_tokenizer(),
        "post_processor": post_processor(splitting, &special),
        "decoder": byte_level(true, true, true),
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": splitting == Splitting::Llama3,
            "vocab": vocab,
            "merges": merges(header)?,
        },
    });
    Tokenizer::from_str(&tokenizer.to_string())
        .map_err(|source| GgufError::Tokenizer { file: header.file.clone(), source })?;
    let tokenizer_config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": shape.max_position_embeddings,
        "add_prefix_space": false,
        "clean_up_tokenization_spaces": false,
        "add_bos_token": special.prepended.is_some(),
        "add_eos_token": special.appended.is_some(),
        "bos_token": special.bos.map(|token| token.text),
        "eos_token": special.eos.map(|token| token.text),
        "unk_token": special_token(header, tokens, "unknown_token_id")?.map(|token| token.text),
        "pad_token": special_token(header, tokens, "padding_token_id")?.map(|token| token.text),
        "chat_template": header.text("tokenizer.chat_template")?,
    });
    Ok((tokenizer, tokenizer_config))
}

fn refuse_other_models(header: &Header) -> Result<(), GgufError> {
    const KEY: &str = "tokenizer.ggml.model";
    match header.required_text(KEY)? {
        "gpt2" => Ok(()),
        // SentencePiece normalisation and byte fallback do not come back out of a GGUF file unchanged.
        found => Err(GgufError::Unsupported {
            file: header.file.clone(),
            what: format!("metadata `{KEY}`"),
            found: if found == "llama" { "`llama` (SentencePiece)".to_owned() } else { format!("`{found}`") },
            supported: "`gpt2` (byte-level BPE)".to_owned(),
        }),
    }
}

const SPLITTINGS: &str = "`smollm`, `qwen2`, `llama-bpe`, `gpt-2`";

/// How text is cut before BPE: `tokenizer.ggml.pre`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Splitting {
    SmolLm,
    Qwen2,
    Llama3,
    Gpt2,
}

impl Splitting {
    fn read(header: &Header) -> Result<Self, GgufError> {
        const KEY: &str = "tokenizer.ggml.pre";
        match header.required_text(KEY)? {
            "smollm" => Ok(Self::SmolLm),
            "qwen2" => Ok(Self::Qwen2),
            "llama-bpe" => Ok(Self::Llama3),
            "gpt-2" => Ok(Self::Gpt2),
            // llama.cpp cuts such texts in a way of its own; what the model was trained on is not said.
            "default" => Err(GgufError::Unsupported {
                file: header.file.clone(),
                what: format!("metadata `{KEY}`"),
                found: "`default`: a conversion that did not know how the model cuts text".to_owned(),
                supported: SPLITTINGS.to_owned(),
            }),
            found => Err(GgufError::Unsupported {
                file: header.file.clone(),
                what: format!("metadata `{KEY}`"),
                found: format!("`{found}`"),
                supported: SPLITTINGS.to_owned(),
            }),
        }
    }

    fn normalizer(self) -> Json {
        if self == Self::Qwen2 { json!({ "type": "NFC" }) } else { Json::Null }
    }

    fn pre_tokenizer(self) -> Json {
        let split = |regex: &str| json!({ "type": "Split", "pattern": { "Regex": regex }, "behavior": "Isolated", "invert": false });
        let steps = match self {
            Self::Gpt2 => return byte_level(false, true, true),
            Self::SmolLm => {
                [json!({ "type": "Digits", "individual_digits": true }), byte_level(false, true, true)]
            }
            Self::Qwen2 => [split(QWEN2_SPLIT), byte_level(false, false, false)],
            Self::Llama3 => [split(LLAMA3_SPLIT), byte_level(false, true, false)],
        };
        json!({ "type": "Sequence", "pretokenizers": steps })
    }
}

fn byte_level(add_prefix_space: bool, trim_offsets: bool, use_regex: bool) -> Json {
    json!({
        "type": "ByteLevel",
        "add_prefix_space": add_prefix_space,
        "trim_offsets": trim_offsets,
        "use_regex": use_regex,
    })
}

/// The model's vocabulary, special tokens included, and the `added_tokens` that are found before any splitting.
/// Tokens that the converter only padded the vocabulary with are left out, as in the original tokenizer.json.
fn vocabulary(header: &Header, tokens: &[String]) -> Result<(Map<String, Json>, Vec<Json>), GgufError> {
    let types = match header.metadata.get(TOKEN_TYPE) {
        Some(Value::Integers(types)) if types.len() == tokens.len() => types,
        _ => return Err(header.bad_value(TOKEN_TYPE, &format!("an array of {} integers", tokens.len()))),
    };
    let (mut vocab, mut added_tokens) = (Map::new(), Vec::new());
    for (id, (token, &kind)) in tokens.iter().zip(types).enumerate() {
        if kind == UNUSED {
            continue;
        }
        if let Some(first) = vocab.insert(token.clone(), json!(id)) {
            return Err(GgufError::Metadata {
                file: header.file.clone(),
                key: TOKENS.to_owned(),
                found: format!("`{token}` under both {first} and {id}"),
                expected: "each token once".to_owned(),
            });
        }
        if kind == CONTROL || kind == USER_DEFINED {
            added_tokens.push(json!({
                "id": id,
                "content": token,
                "single_word": false,
                "lstrip": false,
                "rstrip": false,
                "normalized": false,
                "special": kind == CONTROL,
            }));
        }
    }
    Ok((vocab, added_tokens))
}

fn merges(header: &Header) -> Result<Vec<Json>, GgufError> {
    let pair = |merge: &String| match merge.split_once(' ') {
        Some((left, right)) if !left.is_empty() && !right.is_empty() && !right.contains(' ') => {
            Ok(json!([left, right]))
        }
        _ => Err(GgufError::Metadata {
            file: header.file.clone(),
            key: MERGES.to_owned(),
            found: format!("`{merge}`"),
            expected: "two tokens with one space between".to_owned(),
        }),
    };
    header.texts(MERGES)?.iter().map(pair).collect()
}

#[derive(Debug, Clone, Copy)]
struct Token<'a> {
    id: usize,
    text: &'a str,
}

/// The tokens that may begin and end every text.
struct SpecialTokens<'a> {
    bos: Option<Token<'a>>,
    eos: Option<Token<'a>>,
    prepended: Option<Token<'a>>,
    appended: Option<Token<'a>>,
}

impl<'a> SpecialTokens<'a> {
    fn read(header: &Header, tokens: &'a [String], splitting: Splitting) -> Result<Self, GgufError> {
        let wanted = |flag: &str, default: bool, token: Option<Token<'a>>, id_key: &str| match (
            header.flag(flag)?.unwrap_or(default),
            token,
        ) {
            (false, _) => Ok(None),
            (true, Some(token)) => Ok(Some(token)),
            (true, None) => Err(header.bad_value(&format!("tokenizer.ggml.{id_key}"), "a token's number")),
        };
        let bos = special_token(header, tokens, "bos_token_id")?;
        let eos = special_token(header, tokens, "eos_token_id")?;
        // llama.cpp, too, has Llama 3 start every text with the bos token where the file does not say.
        let bos_by_default = splitting == Splitting::Llama3;
        let prepended = wanted("tokenizer.ggml.add_bos_token", bos_by_default, bos, "bos_token_id")?;
        let appended = wanted("tokenizer.ggml.add_eos_token", false, eos, "eos_token_id")?;
        Ok(Self { bos, eos, prepended, appended })
    }
}

fn special_token<'a>(
    header: &Header,
    tokens: &'a [String],
    name: &str,
) -> Result<Option<Token<'a>>, GgufError> {
    let key = format!("tokenizer.ggml.{name}");
    let Some(id) = header.size_or_zero(&key)? else { return Ok(None) };
    match tokens.get(id) {
        Some(text) => Ok(Some(Token { id, text })),
        None => Err(header.bad_value(&key, &format!("a token's number, below {}", tokens.len()))),
    }
}

/// Offsets without the leading space where the original has them so; bos and eos where the model wants them.
fn post_processor(splitting: Splitting, special: &SpecialTokens) -> Json {
    let offsets = match splitting {
        Splitting::Qwen2 => byte_level(false, false, false),
        Splitting::SmolLm => byte_level(true, true, true),
        Splitting::Llama3 | Splitting::Gpt2 => byte_level(true, false, true),
    };
    let ends = [special.prepended, special.appended];
    if ends.iter().all(Option::is_none) {
        return offsets;
    }
    let special_tokens: Map<String, Json> = ends
        .iter()
        .flatten()
        .map(|t| (t.text.to_owned(), json!({ "id": t.text, "ids": [t.id], "tokens": [t.text] })))
        .collect();
    let text = |sequence: &str, type_id: u8| -> Vec<Json> {
        let end = |token: Option<Token>| {
            token.map(|t| json!({ "SpecialToken": { "id": t.text, "type_id": type_id } }))
        };
        let body = json!({ "Sequence": { "id": sequence, "type_id": type_id } });
        [end(special.prepended), Some(body), end(special.appended)].into_iter().flatten().collect()
    };
    let pair = [text("A", 0), text("B", 1)].concat();
    let template = json!({
        "type": "TemplateProcessing",
        "single": text("A", 0),
        "pair": pair,
        "special_tokens": special_tokens,
    });
    json!({ "type": "Sequence", "processors": [offsets, template] })
}
