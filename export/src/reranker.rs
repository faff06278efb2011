//! `export --reranker`: the teacher as one graph that reads documents and queries, and its bundle
//! ([`models::reranker_manifest`]).

use crate::bundle::{TOKENIZER_FILE, check_tokenizer, digests, directory_size};
use crate::encoder::{layer, turned_back, way_back};
use crate::error::ExportError;
use crate::graph::{Data, Dim, Graph, Scope, Value};
use crate::layers::attention::Shared;
use crate::layers::embedding::embedding;
use crate::layers::norm::{Stream, rms_norm};
use crate::layers::past::Past;
use crate::onnx::{AttributeProto, DataType};
use crate::prefix::prefix_states;
use crate::source::Source;
use crate::verify::{SCORES_FILE, Scores, same_first};
use models::checkpoint;
use models::config::DecoderConfig;
use models::files::{self, FileError, StagedDir};
use models::manifest::{Golden, GraphKind, Precision, names};
use models::metrics::spearman;
use models::prompt::{self, Prompter};
use models::reranker_manifest::{
    self as contract, DATA_FILE, GRAPH_FILE, PREFIX_FILE, PREFIX_TENSOR, RerankerManifest,
};
use models::weights::{DType, write_safetensors};
use runtime::reranker::Reranker;
use runtime::session::SessionOptions;
use serde_json::json;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Pairs that travel in the bundle.
const GOLDEN_PAIRS: usize = 4;

/// What to export, where to, and how.
#[derive(Debug, Clone)]
pub struct RerankerOptions {
    /// Model directory: a teacher, or any imported LLM (zero-shot).
    pub teacher: PathBuf,
    /// Bundle directory; must not exist, or be empty.
    pub out: PathBuf,
    /// Arithmetic.
    pub precision: Precision,
    /// Operators.
    pub graph: GraphKind,
    /// Whether a bundle that breaks the parity limits is written all the same.
    pub allow_degraded: bool,
    /// How the proof runs the graph.
    pub session: SessionOptions,
}

/// Emits the whole model; one text at a time.
/// ```text
/// past [1, 2 layers, heads, past, head_dim] ── Squeeze ── Split ── keys and values of each layer
/// input_ids ── embed_tokens ── layers ── last position ── norm ── MatMul(rows of the choices) ── choice_logits
///                                 └── keys and values ── Concat ── Reshape ── present
/// ```
pub fn reranker(
    g: &mut Graph,
    source: &mut Source,
    config: &DecoderConfig,
    choices: [u32; 2],
    max_tokens: usize,
) -> Result<(), ExportError> {
    let (root, layers) = (Scope::root(), config.num_hidden_layers);
    let model = root.child("model");
    let (heads, head_dim) = (config.num_key_value_heads, config.head_dim);
    let ids = g.input(names::INPUT_IDS, DataType::Int64, &[Dim::Size(1), Dim::Symbol("seq")])?;
    let states = |tokens| {
        [Dim::Size(1), Dim::Size(2 * layers), Dim::Size(heads), Dim::Symbol(tokens), Dim::Size(head_dim)]
    };
    let past = g.input(names::PAST, DataType::Float, &states("past"))?;

    let scope = root.child("past");
    let first = g.integers(&[0])?;
    let third = [AttributeProto::int("start", 3), AttributeProto::int("end", 4)];
    let length = g.op_with(&scope.child("length"), "Shape", &[&past], third)?;
    let past = g.op(&scope, "Squeeze", &[&past, &first])?;
    let endings: Vec<String> =
        (0..layers).flat_map(|layer| [format!(":key.{layer}"), format!(":value.{layer}")]).collect();
    let endings: Vec<&str> = endings.iter().map(String::as_str).collect();
    let parts = g.node(&scope, "Split", &[&past], vec![AttributeProto::int("axis", 0)], &endings)?;
    let of_layers = parts.chunks_exact(2).map(|pair| [pair[0].clone(), pair[1].clone()]).collect();
    let past = Past { length, layers: of_layers };

    let shared = Shared::new(g, &model, source, config, max_tokens, &ids, Some(past))?;
    let mut stream = Stream::new(embedding(g, &model.child("embed_tokens"), source, &ids)?);
    let mut present: Vec<Value> = Vec::new();
    for index in 0..layers {
        present.extend(layer(g, &model, source, config, &shared, index, &mut stream)?);
    }
    let scope = root.child("present");
    let present: Vec<&Value> = present.iter().collect();
    let all = g.op_with(&scope, "Concat", &present, [AttributeProto::int("axis", 0)])?;
    let shape = g.integers(&[1, 2 * layers as i64, heads as i64, -1, head_dim as i64])?;
    let all = g.op(&scope, "Reshape", &[&all, &shape])?;
    g.output(names::PRESENT, DataType::Float, &states("total"), all)?;

    let x = stream.value(g)?;
    let end = g.integer(-1)?;
    let last = [AttributeProto::int("axis", 1)];
    let last = g.op_with(&root.child("last_token"), "Gather", &[&x, &end], last)?;
    let back = way_back(g, &root, source)?;
    let last = turned_back(g, &root.child("last_token"), back.as_ref(), last)?;
    let last = rms_norm(g, &model.child("norm"), source, config.rms_norm_eps, &last)?;
    let head = if config.tie_word_embeddings { "model.embed_tokens.weight" } else { "lm_head.weight" };
    let head = source.unturned(head)?;
    let row = |id: u32| &head.values[id as usize * head.columns..(id as usize + 1) * head.columns];
    let columns: Vec<f32> =
        row(choices[0]).iter().zip(row(choices[1])).flat_map(|(yes, no)| [*yes, *no]).collect();
    let weight = g.initializer("choice.weight", &[head.columns, 2], Data::F32(&columns))?;
    let logits = g.op(&root.child("choice"), "MatMul", &[&last, &weight])?;
    g.output(names::CHOICE_LOGITS, DataType::Float, &[Dim::Size(1), Dim::Size(2)], logits)
}

/// Writes a reranker's bundle; `say` hears one line per step, for people.
pub fn export(options: &RerankerOptions, say: &mut dyn FnMut(&str)) -> Result<RerankerManifest, ExportError> {
    let start = Instant::now();
    let (teacher, config) = (&options.teacher, DecoderConfig::open(&options.teacher)?);
    if options.precision == Precision::Fp16 {
        return Err(ExportError::RerankerPrecision);
    }
    if options.graph == GraphKind::Portable && options.precision == Precision::Int4 {
        return Err(ExportError::Portable { precision: options.precision });
    }
    if options.graph == GraphKind::Fused && !config.head_dim.is_multiple_of(16) {
        return Err(ExportError::HeadDim { file: teacher.join("config.json"), head_dim: config.head_dim });
    }
    check_tokenizer(teacher, &config)?;
    let prompter = Prompter::open(teacher)?;
    let (found, expected) = (prompter.max_pair_tokens(), config.max_length());
    if found > expected {
        return Err(ExportError::TooLong { file: teacher.join(prompt::FILE_NAME), found, expected });
    }
    let staged = StagedDir::new(&options.out)?;
    let dir = staged.path();

    let mut source = Source::open_llm(teacher, &config, options.precision, options.graph)?;
    if matches!(options.precision, Precision::Int8 | Precision::Int4) {
        source.turn(&config, None)?;
    }
    let prefix = prompter.before_read();
    let states =
        prefix_states(&mut source, &config, config.num_hidden_layers, std::slice::from_ref(&prefix))?;
    let past = (PREFIX_TENSOR.to_owned(), states.shape.to_vec(), states.values);
    write_safetensors(dir.join(PREFIX_FILE), [past], DType::F32, HashMap::new())?;
    let mut graph = Graph::with_external_data("reranker", &dir.join(DATA_FILE))?;
    reranker(&mut graph, &mut source, &config, prompter.choices(), prompter.max_pair_tokens())?;
    let nodes = graph.len();
    graph.finish(&dir.join(GRAPH_FILE))?;
    for name in [prompt::FILE_NAME, TOKENIZER_FILE] {
        let from = teacher.join(name);
        fs::copy(&from, dir.join(name)).map_err(FileError::io(&from))?;
    }
    say(&format!("reranker   {} layers, {nodes} nodes", config.num_hidden_layers));
    if !source.errors.is_empty() {
        say(&format!("weights in few bits, error relative to the matrix:\n{}", source.errors));
    }
    let mut manifest = RerankerManifest {
        format_version: contract::FORMAT_VERSION,
        created_by: concat!("export ", env!("CARGO_PKG_VERSION")).into(),
        precision: options.precision,
        graph: options.graph,
        layers: config.num_hidden_layers,
        key_value_heads: config.num_key_value_heads,
        head_dim: config.head_dim,
        vocab_size: config.vocab_size,
        max_tokens: prompter.max_pair_tokens(),
        prefix,
        choices: prompter.choices(),
        digests: BTreeMap::new(),
        parity: serde_json::Value::Null,
        golden: Vec::new(),
        model_digest: checkpoint::digest(teacher)?,
    };
    manifest.digests = digests(dir)?;
    files::write_json(&dir.join(contract::FILE_NAME), &manifest)?;
    prove(options, dir, &mut manifest, say)?;
    files::write_json(&dir.join(contract::FILE_NAME), &manifest)?;
    let megabytes = directory_size(dir)?;
    staged.commit()?;
    say(&format!("bundle     {megabytes:.1} MB in {:.1} s", start.elapsed().as_secs_f64()));
    Ok(manifest)
}

/// Scores the teacher's golden pairs with the runtime, as a robot will.
fn prove(
    options: &RerankerOptions,
    dir: &Path,
    manifest: &mut RerankerManifest,
    say: &mut dyn FnMut(&str),
) -> Result<(), ExportError> {
    let file = options.teacher.join(SCORES_FILE);
    if !file.exists() {
        say(
            "parity     not proven: the model brings no numbers of its own (golden.json, which `train teacher` writes)",
        );
        return Ok(());
    }
    let Scores { queries, documents, scores: expected } = files::read_json(&file)?;
    let runs = |error: &dyn std::error::Error| ExportError::Runtime(error.to_string());
    let reranker = Reranker::open(dir, &options.session).map_err(|e| runs(&e))?;
    let mut found: Vec<Vec<f32>> = vec![Vec::new(); queries.len()];
    let texts: Vec<&str> = documents.iter().map(String::as_str).collect();
    for (query, scores) in queries.iter().zip(&mut found) {
        *scores = reranker.scores(query, &texts).map_err(|e| runs(&e))?;
    }
    let pairs = || expected.iter().zip(&found);
    let most = pairs().flat_map(|(a, b)| a.iter().zip(b)).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
    let n = queries.len().max(1) as f64;
    let top1 = pairs().filter(|(a, b)| same_first(a, b)).count() as f64 / n;
    let correlation = pairs().map(|(a, b)| spearman(a, b)).sum::<f64>() / n;
    say(&format!(
        "parity     {} pairs: scores {most:.1e}, top-1 {:.1}%, rank correlation {correlation:.4}",
        queries.len() * documents.len(),
        100.0 * top1
    ));
    let failed = match options.precision {
        Precision::Fp32 if most > 1e-2 => {
            vec![format!("difference of a score is {most}, expected at most 0.01")]
        }
        Precision::Fp32 | Precision::Fp16 => Vec::new(),
        Precision::Int8 | Precision::Int4 if correlation < 0.8 => {
            vec![format!("rank correlation is {correlation:.3}, expected at least 0.8")]
        }
        Precision::Int8 | Precision::Int4 => Vec::new(),
    };
    if !failed.is_empty() {
        if !options.allow_degraded {
            return Err(ExportError::Parity(failed));
        }
        say(&format!("warning    parity is not held: {}", failed.join("; ")));
    }
    manifest.parity = json!({
        "held": failed.is_empty(), "failed": failed, "pairs": queries.len() * documents.len(),
        "score_difference_max": most, "top1_agreement": top1, "rank_correlation": correlation,
    });
    manifest.golden = (0..queries.len().min(documents.len()).min(GOLDEN_PAIRS))
        .map(|i| Golden { query: queries[i].clone(), document: documents[i].clone(), score: found[i][i] })
        .collect();
    Ok(())
}
