//! A tiny student of every family, random but seeded, whole on disk, with reference numbers by `reference`.

// Each test binary uses its own part of this.
#![allow(dead_code)]

pub mod graphs;
mod random;
pub mod reference;

use export::bundle::options::{MixedPrecision, Options};
use export::bundle::student;
use export::error::ExportError;
use export::matrix::Matrix;
use export::quantise::blocks::{BLOCK, Bits, quantise_blocks};
use models::config::DecoderConfig;
use models::lora::LoraConfig;
use models::manifest::{GraphKind, Manifest, Precision};
use models::prompt::Prompter;
use models::student::{Form, PREDICTOR_FILE, QUERY_ADAPTER_FILE, Residual, StudentConfig, tensors};
use models::weights::{DType, expected_tensors, write_safetensors};
use random::Random;
use reference::Reference;
use runtime::session::{self, SessionOptions};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Name, shape, numbers.
pub type Tensors = Vec<(String, Vec<usize>, Vec<f32>)>;

const WORDS: &[&str] = &[
    "<unk>", "user", "document", "query", "end", "may", "it", "answer", "Yes", "No", "red", "valve", "where",
    "is", "the", "stop", "button", "of", "line", "three", "coffee", "sponge", "dark", "light", "lamp", "on",
];

/// Texts of the reference numbers: lengths differ on purpose.
pub const QUERIES: &[&str] =
    &["red valve", "where is the stop button of line three", "coffee", "is it dark on the line"];
/// One per query.
pub const DOCUMENTS: &[&str] =
    &["valve", "stop button", "the sponge is red and it may answer the coffee", "light the lamp"];

/// The four families, each with what only it has; head_dim need not be hidden_size / heads, nor (portable graphs) a
/// multiple of 16.
pub fn configs() -> Vec<(&'static str, Value)> {
    let base = |class: &str, model_type: &str, more: Value| {
        let mut json = json!({
            "architectures": [class], "model_type": model_type, "hidden_size": 16, "intermediate_size": 24,
            "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 128, "vocab_size": WORDS.len() + 6, "tie_word_embeddings": true,
        });
        for (key, value) in more.as_object().unwrap() {
            json[key] = value.clone();
        }
        json
    };
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32});
    vec![
        ("llama", base("LlamaForCausalLM", "llama", json!({"rope_scaling": llama3, "rope_theta": 500.0}))),
        (
            "llama_biased",
            base(
                "LlamaForCausalLM",
                "llama",
                json!({"attention_bias": true, "mlp_bias": true, "num_key_value_heads": 4}),
            ),
        ),
        ("mistral", base("MistralForCausalLM", "mistral", json!({"head_dim": 6, "num_key_value_heads": 1}))),
        ("qwen2", base("Qwen2ForCausalLM", "qwen2", json!({"tie_word_embeddings": false}))),
        ("qwen3", base("Qwen3ForCausalLM", "qwen3", json!({"head_dim": 32}))),
    ]
}

/// What kind of student.
#[derive(Debug, Clone)]
pub struct Plan {
    /// `config.json`.
    pub config: Value,
    pub layers: Vec<usize>,
    pub form: Form,
    pub residual: Residual,
    /// Whether all matrices of the LLM can be expressed in 4 bits without loss.
    pub four_bits: bool,
    /// Whether queries are read through adapters, of rank 3 on some projections of the first two layers.
    pub query_adapter: bool,
    /// Whether layer 1's `down_proj` reads only zeros.
    pub idle_layer: bool,
    /// By how much one input channel of layer 1's `down_proj` is scaled up, and its weights down: an outlier channel if this is
    /// large, 1 for none.
    pub outlier_channel: f32,
}

impl Plan {
    /// A Llama, last-token residual, latents of layers 0, 2 and 3.
    pub fn llama() -> Self {
        let config = configs().swap_remove(0).1;
        Self {
            config,
            layers: vec![0, 2, 3],
            form: Form::Relu,
            residual: Residual::LastToken,
            four_bits: false,
            query_adapter: false,
            idle_layer: false,
            outlier_channel: 1.0,
        }
    }
}

/// Writes the whole student directory.
pub fn write_student(dir: &Path, plan: &Plan) {
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join("config.json"), plan.config.to_string()).unwrap();
    let config = DecoderConfig::open(dir).unwrap();
    let mut random = Random(7);
    let llm: Tensors = expected_tensors(&config)
        .into_iter()
        .map(|(name, shape)| {
            let numbers = (0..shape.iter().product()).map(|_| match shape.len() {
                1 if name.ends_with("norm.weight") => 1.0 + 0.3 * random.normal(),
                1 => 0.2 * random.normal(),
                _ => 0.4 * random.normal(),
            });
            let mut numbers: Vec<f32> = numbers.collect();
            if plan.idle_layer && name.starts_with("model.layers.1.mlp.up_proj") {
                numbers.fill(0.0);
            }
            match name.strip_prefix("model.layers.1.mlp.") {
                Some("up_proj.weight") => {
                    numbers[..shape[1]].iter_mut().for_each(|w| *w *= plan.outlier_channel);
                }
                Some("up_proj.bias") => numbers[0] *= plan.outlier_channel,
                Some("down_proj.weight") => {
                    numbers.iter_mut().step_by(shape[1]).for_each(|w| *w /= plan.outlier_channel);
                }
                _ => {}
            }
            if plan.four_bits && shape.len() == 2 {
                numbers = through_four_bits(&shape, numbers);
            }
            (name, shape, numbers)
        })
        .collect();
    write_tensors(&dir.join("model.safetensors"), &llm);

    let adapter = plan.query_adapter.then(|| adapter(&llm, &mut random));
    let mut student = json!({
        "format_version": 1, "latents": {"layers": plan.layers, "pooling": "mean"},
        "hidden_size": config.hidden_size, "form": plan.form, "inner_dimensions": 10, "residual": plan.residual,
        "calibration": {"scale": 1.0, "bias": 0.0}, "provenance": {"seed": 7},
    });
    if let Some((adapter, _)) = &adapter {
        student["format_version"] = json!(2);
        student["query_adapter"] = json!(adapter_config());
        write_tensors(&dir.join(QUERY_ADAPTER_FILE), adapter);
    }
    fs::write(dir.join("student.json"), student.to_string()).unwrap();
    let student = StudentConfig::open(dir).unwrap();
    let predictor = predictor_tensors(&student, &mut random);
    write_tensors(&dir.join(PREDICTOR_FILE), &predictor);

    let part = |before: &str, truncate: &str| json!({"before": before, "after": "end", "max_tokens": 24, "truncate": truncate});
    let prompt = json!({
        "format_version": 1, "prefix": "user", "document": part("document", "right"), "query": part("query", "left"),
        "instruction": "may it answer", "answer": "answer", "choices": {"positive": "Yes", "negative": "No"},
    });
    fs::write(dir.join("prompt.json"), prompt.to_string()).unwrap();
    let vocabulary: serde_json::Map<String, Value> =
        WORDS.iter().zip(0..).map(|(w, i)| (w.to_string(), json!(i))).collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    });
    fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let of = |llm: &Tensors| Reference::new(config.clone(), student.clone(), llm, &predictor);
    let documents = of(&llm);
    let queries = adapter.as_ref().map_or_else(|| of(&llm), |(_, merged)| of(merged));
    write_golden(dir, &queries, &documents);
}

fn adapter_config() -> LoraConfig {
    LoraConfig {
        rank: 3,
        alpha: 6.0,
        dropout: 0.0,
        target_modules: ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"].map(str::to_owned).to_vec(),
        layers_to_transform: Some(vec![0, 1]),
    }
}

/// A random adapter's tensors, and the LLM's with it merged in.
fn adapter(llm: &Tensors, random: &mut Random) -> (Tensors, Tensors) {
    let config = adapter_config();
    let (mut adapter, mut merged) = (Tensors::new(), llm.clone());
    for (name, shape, values) in &mut merged {
        let map = name.trim_end_matches(".weight").to_owned();
        let covered = (0..2).any(|layer| map.starts_with(&format!("model.layers.{layer}.")))
            && config.target_modules.iter().any(|module| map.ends_with(module.as_str()))
            && shape.len() == 2;
        if !covered {
            continue;
        }
        let (rows, columns, rank) = (shape[0], shape[1], config.rank);
        let mut matrix = |n: usize| -> Vec<f32> { (0..n).map(|_| 0.2 * random.normal()).collect() };
        let (a, b) = (matrix(rank * columns), matrix(rows * rank));
        for (i, value) in values.iter_mut().enumerate() {
            let branch = (0..rank).map(|r| b[i / columns * rank + r] * a[r * columns + i % columns]);
            *value += config.scale() as f32 * branch.sum::<f32>();
        }
        adapter.push((format!("{map}.lora_A.weight"), vec![rank, columns], a));
        adapter.push((format!("{map}.lora_B.weight"), vec![rows, rank], b));
    }
    (adapter, merged)
}

/// What is left of a matrix in 4-bit blocks.
fn through_four_bits(shape: &[usize], values: Vec<f32>) -> Vec<f32> {
    let matrix = Matrix { rows: shape[0], columns: shape[1], values };
    let blocks = quantise_blocks(&matrix, Bits::Four);
    let whole = |row: usize, column: usize| {
        let place = (row * blocks.blocks * BLOCK) + column;
        let q = (blocks.packed[place / 2] >> (4 * (place % 2))) & 15;
        (f32::from(q) - 8.0) * blocks.scales[place / BLOCK]
    };
    (0..shape[0])
        .flat_map(|row| (0..shape[1]).map(move |column| (row, column)))
        .map(|(r, c)| whole(r, c))
        .collect()
}

fn predictor_tensors(student: &StudentConfig, random: &mut Random) -> Tensors {
    let (m, d, h) = (student.inner_dimensions, student.dimensions(), student.hidden_size);
    let mut all = Vec::new();
    let mut add = |name: &str, shape: &[usize], mean: f32, spread: f32| {
        let numbers = (0..shape.iter().product()).map(|_| mean + spread * random.normal()).collect();
        all.push((name.to_owned(), shape.to_vec(), numbers));
    };
    add(tensors::QUERY_MEAN, &[d], 0.0, 0.3);
    add(tensors::QUERY_STD, &[d], 1.5, 0.1);
    add(tensors::DOCUMENT_MEAN, &[d], 0.0, 0.3);
    add(tensors::DOCUMENT_STD, &[d], 1.5, 0.1);
    add(tensors::QUERY_WEIGHT, &[m, d], 0.0, 0.3);
    add(tensors::QUERY_BIAS, &[m], 0.0, 0.3);
    add(tensors::DOCUMENT_WEIGHT, &[m, d], 0.0, 0.3);
    if student.form == Form::Gated {
        add(tensors::DOCUMENT_NORM, &[m, m], 0.0, 0.3);
    }
    add(tensors::OUTPUT_WEIGHT, &[h, m], 0.0, 0.5);
    add(tensors::OUTPUT_BIAS, &[h], 0.0, 0.1);
    add(tensors::CHOICE_WEIGHT, &[2, h], 0.0, 0.5);
    if student.form == Form::Gated {
        add(tensors::GATE_WEIGHT, &[m, d], 0.0, 0.3);
        add(tensors::GATE_BIAS, &[m], 0.0, 0.3);
    }
    if student.residual == Residual::Pooled {
        add(tensors::RESIDUAL_WEIGHT, &[h, d], 0.0, 0.1);
    }
    all
}

fn write_golden(dir: &Path, of_queries: &Reference, of_documents: &Reference) {
    let prompter = Prompter::open(dir).unwrap();
    let with_answer = of_queries.student.residual == Residual::LastToken;
    let queries: Vec<_> = QUERIES
        .iter()
        .map(|text| match with_answer {
            true => prompter.query_answer_pass(text).unwrap(),
            false => prompter.query_pass(text).unwrap(),
        })
        .map(|pass| of_queries.encode(&pass))
        .collect();
    let documents: Vec<_> =
        DOCUMENTS.iter().map(|text| of_documents.encode(&prompter.document_pass(text).unwrap())).collect();
    let scores: Vec<Vec<f64>> =
        queries.iter().map(|q| documents.iter().map(|d| of_documents.score(q, d)).collect()).collect();
    let golden = json!({"queries": QUERIES, "documents": DOCUMENTS, "scores": scores});
    fs::write(dir.join("golden.json"), golden.to_string()).unwrap();
    let rows = |name: &str, rows: Vec<&Vec<f64>>| {
        let shape = vec![rows.len(), rows[0].len()];
        (name.to_owned(), shape, rows.into_iter().flatten().map(|v| *v as f32).collect())
    };
    let mut latents = vec![
        rows("query", queries.iter().map(|q| &q.latent).collect()),
        rows("document", documents.iter().map(|d| &d.latent).collect()),
    ];
    if with_answer {
        latents.push(rows("answer", queries.iter().map(|q| &q.answer).collect()));
    }
    write_tensors(&dir.join("golden.safetensors"), &latents);
}

pub fn write_tensors(file: &Path, tensors: &Tensors) {
    write_safetensors(file, tensors.clone(), DType::F32, HashMap::new()).unwrap();
}

/// Reads tensors back, changes them, writes them again.
pub fn edit_tensors(file: &Path, edit: impl FnOnce(&mut Tensors)) {
    let weights = models::weights::Weights::open_file(file).unwrap();
    let mut tensors: Tensors = weights
        .names()
        .map(|name| {
            let (shape, numbers) = weights.f32(name).unwrap();
            (name.to_owned(), shape, numbers)
        })
        .collect();
    edit(&mut tensors);
    write_tensors(file, &tensors);
}

/// Changes one JSON file.
pub fn edit_json(file: &Path, edit: impl FnOnce(&mut Value)) {
    let mut json: Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    edit(&mut json);
    fs::write(file, json.to_string()).unwrap();
}

pub fn options(student: &Path, out: &Path) -> Options {
    Options {
        student: student.to_owned(),
        out: out.to_owned(),
        precision: Precision::Fp32,
        graph: GraphKind::Fused,
        calibration: None,
        mixed_precision: MixedPrecision::Search,
        ranking: None,
        allow_degraded: false,
        session: SessionOptions { threads: 1, ..SessionOptions::default() },
    }
}

/// Exports without progress output.
pub fn export(options: &Options) -> Result<Manifest, ExportError> {
    student::export(options, &mut |_| {})
}

/// A student beside the place of its bundle.
pub struct Fixture {
    root: tempfile::TempDir,
    pub options: Options,
}

impl Fixture {
    pub fn new(plan: &Plan) -> Self {
        let root = tempfile::tempdir().unwrap();
        let student = root.path().join("student");
        write_student(&student, plan);
        let options = options(&student, &root.path().join("out/bundle"));
        Self { root, options }
    }

    /// A file of the student.
    pub fn file(&self, name: &str) -> PathBuf {
        self.options.student.join(name)
    }

    /// A small data set in BEIR layout: the reference texts, each query's answer the document of its place.
    pub fn write_data(&self) -> PathBuf {
        let dir = self.root.path().join("data");
        fs::create_dir_all(dir.join("qrels")).unwrap();
        let lines = |texts: &[&str], prefix: &str| -> String {
            let line = |(i, text): (usize, &&str)| {
                json!({"_id": format!("{prefix}{i}"), "text": text}).to_string() + "\n"
            };
            texts.iter().enumerate().map(line).collect()
        };
        fs::write(dir.join("corpus.jsonl"), lines(DOCUMENTS, "d")).unwrap();
        fs::write(dir.join("queries.jsonl"), lines(QUERIES, "q")).unwrap();
        let rows: String = (0..QUERIES.len()).map(|i| format!("q{i}\td{i}\t1\n")).collect();
        fs::write(dir.join("qrels/dev.tsv"), format!("query-id\tcorpus-id\tscore\n{rows}")).unwrap();
        dir
    }

    /// The refusal, in words; nothing of a bundle may be left, hidden or not.
    pub fn refusal(&self) -> String {
        let message = export(&self.options).unwrap_err().to_string();
        let left = fs::read_dir(self.root.path().join("out")).map_or(0, |entries| entries.count());
        assert_eq!(left, 0, "something was left behind: {message}");
        message
    }
}

/// Whether ONNX Runtime is there; says so where a test is skipped.
pub fn onnxruntime() -> bool {
    match session::load(None) {
        Ok(_) => true,
        Err(error) => {
            eprintln!("skipped: {error}");
            false
        }
    }
}
