//! `export --reranker`: from a teacher directory to a bundle ([`models::reranker_manifest`]).

use crate::bundle::files::{copy_prompt_and_tokenizer, digests, directory_megabytes};
use crate::emit::context::EmitContext;
use crate::emit::reranker::reranker;
use crate::error::ExportError;
use crate::onnx::graph::GraphBuilder;
use crate::source::llm::Llm;
use crate::source::prefix::prefix_states;
use crate::source::tokenizer::check_tokenizer;
use crate::verify::reranker::verify_reranker;
use models::checkpoint;
use models::config::DecoderConfig;
use models::files::{self, StagedDir};
use models::manifest::{GraphKind, Precision};
use models::prompt::{self, Prompter};
use models::reranker_manifest::{
    self as contract, DATA_FILE, GRAPH_FILE, PREFIX_FILE, PREFIX_TENSOR, RerankerManifest,
};
use models::weights::{DType, write_safetensors};
use runtime::session::SessionOptions;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::Instant;

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
    /// Whether a bundle that exceeds the parity limits is written all the same.
    pub allow_degraded: bool,
    /// How the parity check runs the graph.
    pub session: SessionOptions,
}

/// Writes a reranker's bundle; `progress` is called with one line per step, for people.
pub fn export(
    options: &RerankerOptions,
    progress: &mut dyn FnMut(&str),
) -> Result<RerankerManifest, ExportError> {
    let start = Instant::now();
    let (config, prompter) = open(options)?;
    let teacher = &options.teacher;
    let staged = StagedDir::new(&options.out)?;
    let dir = staged.path();

    let prefix = prompter.before_read();
    write_graph(options, &config, &prompter, &prefix, dir, progress)?;
    copy_prompt_and_tokenizer(teacher, dir)?;
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
    check_parity(options, dir, &mut manifest, progress)?;
    files::write_json(&dir.join(contract::FILE_NAME), &manifest)?;
    let megabytes = directory_megabytes(dir)?;
    staged.commit()?;
    progress(&format!("bundle     {megabytes:.1} MB in {:.1} s", start.elapsed().as_secs_f64()));
    Ok(manifest)
}

/// Refuses options that contradict each other, and a model that they do not fit.
fn open(options: &RerankerOptions) -> Result<(DecoderConfig, Prompter), ExportError> {
    let (teacher, precision) = (&options.teacher, options.precision);
    let config = DecoderConfig::open(teacher)?;
    if precision == Precision::Fp16 {
        return Err(ExportError::RerankerPrecision);
    }
    if options.graph == GraphKind::Portable && precision == Precision::Int4 {
        return Err(ExportError::Portable { precision });
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
    Ok((config, prompter))
}

/// Writes the graph, and the keys and values of the prompt `prefix` that each pass begins with.
fn write_graph(
    options: &RerankerOptions,
    config: &DecoderConfig,
    prompter: &Prompter,
    prefix: &Vec<u32>,
    dir: &Path,
    progress: &mut dyn FnMut(&str),
) -> Result<(), ExportError> {
    let mut llm = Llm::open(&options.teacher, config)?;
    if matches!(options.precision, Precision::Int8 | Precision::Int4) {
        llm.rotate(config, Vec::new())?;
    }
    let layers = config.num_hidden_layers;
    let states = prefix_states(&mut llm, config, layers, std::slice::from_ref(prefix))?;
    let past = (PREFIX_TENSOR.to_owned(), states.shape.to_vec(), states.values);
    write_safetensors(dir.join(PREFIX_FILE), [past], DType::F32, HashMap::new())?;
    let mut ctx = EmitContext::new(llm, options.precision, options.graph);
    let mut graph = GraphBuilder::with_external_data("reranker", &dir.join(DATA_FILE))?;
    reranker(&mut graph, &mut ctx, config, prompter.choices(), prompter.max_pair_tokens())?;
    let nodes = graph.len();
    graph.finish(&dir.join(GRAPH_FILE))?;
    progress(&format!("reranker   {layers} layers, {nodes} nodes"));
    if !ctx.errors.is_empty() {
        progress(&format!("quantised weights, error relative to the matrix:\n{}", ctx.errors));
    }
    Ok(())
}

/// Compares the bundle's scores with the teacher's, and stores the result in the manifest.
fn check_parity(
    options: &RerankerOptions,
    dir: &Path,
    manifest: &mut RerankerManifest,
    progress: &mut dyn FnMut(&str),
) -> Result<(), ExportError> {
    let Some(parity) = verify_reranker(dir, &options.teacher, options.precision, &options.session)? else {
        progress(
            "parity     not checked: the model has no reference scores (golden.json, which `train teacher` writes)",
        );
        return Ok(());
    };
    progress(&parity.to_string());
    if !parity.failed.is_empty() {
        if !options.allow_degraded {
            return Err(ExportError::Parity(parity.failed));
        }
        progress(&format!("warning    parity is not reached: {}", parity.failed.join("; ")));
    }
    manifest.parity = parity.to_json();
    manifest.golden = parity.golden;
    Ok(())
}
