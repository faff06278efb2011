//! A tiny language model and a tiny student, seeded: four layers, grouped-query attention, a byte-level tokenizer with
//! ChatML tokens, so that the default prompt works and nothing has to be fetched.

use models::config::DecoderConfig;
use models::files::{read_json, write_json};
use models::prompt::{self, PromptTemplate};
use models::student::{
    self, Calibration, Form, LatentConfig, Pooling, Residual, StudentConfig, tensors as names,
};
use models::weights::{DType, expected_tensors, write_safetensors};
use serde_json::{Value, json};
use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::Path;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

/// Numbers stored per document by [`write_student`]'s students: no multiple of a vector register's width.
pub const INNER_DIMENSIONS: usize = 21;
/// Both predictor forms with both residuals: four students, which export, runtime and training must agree on.
pub const KINDS: [(Form, Residual); 4] = [
    (Form::Relu, Residual::LastToken),
    (Form::Relu, Residual::Pooled),
    (Form::Gated, Residual::LastToken),
    (Form::Gated, Residual::Pooled),
];

/// Words that become one token, so that texts are not read byte by byte; the choices come first and stay whole.
const WORDS: &[&str] = &[
    "Yes",
    "No",
    "Document",
    "Query",
    "user",
    "assistant",
    "Can",
    "Ġthe",
    "Ġquery",
    "Ġbe",
    "Ġdocument",
    "Ġwith",
    "Ġor",
    "Ġanswered",
    "Ġrobot",
    "Ġand",
    "The",
    "Ġa",
    "Ġis",
    "Ġin",
    "Ġmy",
];

/// Normally distributed numbers from a seed (SplitMix64, Box-Muller): the same on every machine and for ever.
#[derive(Debug, Clone)]
pub struct Normal(u64);

impl Normal {
    /// Starts the sequence of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// The next number, mean 0, deviation 1.
    pub fn next_number(&mut self) -> f32 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        (radius * (std::f64::consts::TAU * self.uniform()).cos()) as f32
    }

    /// `n` numbers of this deviation.
    pub fn vector(&mut self, n: usize, deviation: f32) -> Vec<f32> {
        (0..n).map(|_| deviation * self.next_number()).collect()
    }
}

/// `tokenizer.json` of a byte-level BPE like SmolLM2's: any text is some tokens, none is unknown.
pub fn tokenizer_json() -> Value {
    let special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
    let mut tokens: Vec<String> = special.map(str::to_owned).to_vec();
    let bytes: BTreeSet<char> = ByteLevel::alphabet().into_iter().collect();
    tokens.extend(bytes.into_iter().map(String::from));
    let mut merges = Vec::new();
    for word in WORDS {
        let letters: Vec<char> = word.chars().collect();
        for end in 1..letters.len() {
            let (left, right) = (letters[..end].iter().collect::<String>(), letters[end].to_string());
            let token = format!("{left}{right}");
            if !tokens.contains(&token) {
                tokens.push(token);
                merges.push(json!([left, right]));
            }
        }
    }
    let vocabulary: serde_json::Map<String, Value> =
        tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
    let added: Vec<Value> = special
        .iter()
        .enumerate()
        .map(|(id, content)| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true})
        })
        .collect();
    let byte_level = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers":
            [{"type": "Digits", "individual_digits": true}, byte_level(true)]},
        "post_processor": null, "decoder": byte_level(true),
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocabulary, "merges": merges},
    })
}

/// `config.json` of the tiny model: two key/value heads for four query heads, tied embeddings.
pub fn config_json(vocabulary: usize) -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "max_position_embeddings": 1024, "vocab_size": vocabulary,
        "tie_word_embeddings": true, "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2,
    })
}

/// Writes a folder as it comes from Hugging Face: config.json, tokenizer.json, model.safetensors; no prompt yet.
pub fn write_hugging_face(dir: &Path, seed: u64) {
    fs::create_dir_all(dir).unwrap();
    let tokenizer = tokenizer_json();
    let vocabulary = tokenizer["model"]["vocab"].as_object().unwrap().len();
    write_json(&dir.join("tokenizer.json"), &tokenizer).unwrap();
    write_json(&dir.join("config.json"), &config_json(vocabulary)).unwrap();
    let config = DecoderConfig::open(dir).unwrap();
    let mut normal = Normal::new(seed);
    let tensors: Vec<_> = expected_tensors(&config)
        .into_iter()
        .map(|(name, shape)| {
            let n = shape.iter().product();
            let numbers = match shape[..] {
                // A norm's weights lie around 1.
                [_] => normal.vector(n, 0.1).into_iter().map(|w| 1.0 + w).collect(),
                _ if name.contains("embed_tokens") => normal.vector(n, 0.2),
                _ => normal.vector(n, 1.0 / (shape[1] as f32).sqrt()),
            };
            (name, shape, numbers)
        })
        .collect();
    write_safetensors(dir.join("model.safetensors"), tensors, DType::F32, HashMap::new()).unwrap();
}

/// Writes a model directory as `train import` makes one: the same, with the default prompt.
pub fn write_model(dir: &Path, seed: u64) {
    write_hugging_face(dir, seed);
    write_json(&dir.join(prompt::FILE_NAME), &PromptTemplate::default()).unwrap();
}

/// The description of [`write_student`]'s students.
pub fn student_config(form: Form, residual: Residual) -> StudentConfig {
    StudentConfig {
        format_version: student::PLAIN_VERSION,
        latents: LatentConfig { layers: vec![1, 3], pooling: Pooling::Mean },
        hidden_size: 64,
        form,
        inner_dimensions: INNER_DIMENSIONS,
        residual,
        query_adapter: None,
        calibration: Calibration { scale: 0.5, bias: -1.0 },
        provenance: json!({ "made_by": "tests" }),
    }
}

/// Writes a student directory with a random predictor on a tiny model. Its golden numbers are zeros, which only
/// `export --allow-degraded` accepts; tests with torch put the true ones there.
pub fn write_student(dir: &Path, form: Form, residual: Residual, seed: u64) {
    write_model(dir, 1);
    let config = student_config(form, residual);
    write_json(&dir.join(student::FILE_NAME), &config).unwrap();
    write_predictor(&dir.join(student::PREDICTOR_FILE), &config, seed);
    let texts = ["The robot takes a sponge.", "The robot lights a lamp."];
    write_json(
        &dir.join("golden.json"),
        &json!({ "queries": texts, "documents": texts, "scores": [[0.0, 0.0], [0.0, 0.0]] }),
    )
    .unwrap();
    let (n, d, h) = (texts.len(), config.dimensions(), config.hidden_size);
    let mut tensors = vec![
        ("query".to_owned(), vec![n, d], vec![1.0; n * d]),
        ("document".to_owned(), vec![n, d], vec![1.0; n * d]),
    ];
    if residual == Residual::LastToken {
        tensors.push(("answer".into(), vec![n, h], vec![1.0; n * h]));
    }
    write_safetensors(dir.join("golden.safetensors"), tensors, DType::F32, HashMap::new()).unwrap();
}

/// Writes a random `predictor.safetensors`: every term of the formula is there and none is zero.
pub fn write_predictor(file: &Path, config: &StudentConfig, seed: u64) {
    let (d, m, h) = (config.dimensions(), config.inner_dimensions, config.hidden_size);
    let mut normal = Normal::new(seed);
    let mut tensors = Vec::new();
    let mut add = |name: &str, shape: &[usize], deviation: f32, offset: f32| {
        let numbers = normal.vector(shape.iter().product(), deviation);
        tensors.push((name.to_owned(), shape.to_vec(), numbers.into_iter().map(|x| offset + x).collect()));
    };
    for (mean, std) in [(names::QUERY_MEAN, names::QUERY_STD), (names::DOCUMENT_MEAN, names::DOCUMENT_STD)] {
        add(mean, &[d], 0.3, 0.0);
        add(std, &[d], 0.02, 0.5);
    }
    add(names::QUERY_WEIGHT, &[m, d], 0.1, 0.0);
    add(names::QUERY_BIAS, &[m], 0.3, 0.0);
    if config.form == Form::Gated {
        add(names::GATE_WEIGHT, &[m, d], 0.1, 0.0);
        add(names::GATE_BIAS, &[m], 0.3, 0.0);
    }
    add(names::DOCUMENT_WEIGHT, &[m, d], 0.1, 0.0);
    if config.form == Form::Gated {
        add(names::DOCUMENT_NORM, &[m, m], 0.3, 0.0);
    }
    add(names::OUTPUT_WEIGHT, &[h, m], 0.3, 0.0);
    add(names::OUTPUT_BIAS, &[h], 0.3, 0.0);
    if config.residual == Residual::Pooled {
        add(names::RESIDUAL_WEIGHT, &[h, d], 0.1, 0.0);
    }
    add(names::CHOICE_WEIGHT, &[2, h], 0.3, 0.0);
    write_safetensors(file, tensors, DType::F32, HashMap::new()).unwrap();
}

/// Changes one JSON file in place.
pub fn edit_json(file: &Path, change: impl FnOnce(&mut Value)) {
    let mut value: Value = read_json(file).unwrap();
    change(&mut value);
    write_json(file, &value).unwrap();
}

/// Copies a directory's files; none of these tests nests them deeper than `qrels/`.
pub fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}
