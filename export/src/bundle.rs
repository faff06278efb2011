//! From a student directory to a bundle directory: checks first, then graphs and copies into a staged directory, then
//! the proof, and only then the name the user asked for. Whatever fails, nothing is left behind.

use crate::calibrate;
use crate::card;
use crate::encoder::encoder;
use crate::error::ExportError;
use crate::gptq::Curvature;
use crate::graph::Graph;
use crate::predictor::predictor;
use crate::prefix::{PrefixStates, prefix_states};
use crate::ranking::{self, RankingData, RankingProof};
use crate::source::Source;
use crate::verify::{self, Reference};
use models::config::DecoderConfig;
use models::files::{self, FileError, StagedDir};
use models::fold::{self, Folded};
use models::manifest::{self, Batching, EncoderInfo, GraphKind, Manifest, Precision, PredictorInfo};
use models::prompt::{self, Prompter};
use models::student::{self, StudentConfig};
use models::weights::DType;
use runtime::session::SessionOptions;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Tokenizer of students and bundles.
pub const TOKENIZER_FILE: &str = "tokenizer.json";

/// What to export, where to, and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// Student directory.
    pub student: PathBuf,
    /// Bundle directory; must not exist, or be empty.
    pub out: PathBuf,
    /// Arithmetic of the encoder graph.
    pub precision: Precision,
    /// Operators of the encoder graph.
    pub graph: GraphKind,
    /// Whether a bundle that breaks the parity limits is written all the same.
    pub allow_degraded: bool,
    /// Data set whose texts decide how weights are rounded.
    pub calibration: Option<PathBuf>,
    /// Judged queries on which the ranking is held to that of the fp32 bundle.
    pub ranking: Option<RankingData>,
    /// How the proof runs the graphs.
    pub session: SessionOptions,
}

/// A student that passed all checks which need no weights.
#[derive(Debug)]
struct Student {
    dir: PathBuf,
    config: DecoderConfig,
    student: StudentConfig,
    /// Longest pass of its prompt.
    max_tokens: usize,
    /// What its passes begin with.
    prefixes: Vec<Vec<u32>>,
}

impl Student {
    fn open(dir: &Path) -> Result<Self, ExportError> {
        let student = StudentConfig::open(dir)?;
        let config = DecoderConfig::open(dir)?;
        let refuse = |field, found: String, expected: String| {
            let file = dir.join(student::FILE_NAME);
            Err(ExportError::Student { file, field, found, expected })
        };
        if student.hidden_size != config.hidden_size {
            let expected = format!("{} as in config.json", config.hidden_size);
            return refuse("hidden_size", student.hidden_size.to_string(), expected);
        }
        let depth = config.num_hidden_layers;
        let layers = &student.latents.layers;
        if layers.is_empty() || layers.iter().any(|&layer| layer > depth) {
            return refuse("latents.layers", format!("{layers:?}"), format!("one or more of 0 to {depth}"));
        }
        if student.inner_dimensions == 0 {
            return refuse("inner_dimensions", "0".into(), "1 or more".into());
        }

        check_tokenizer(dir, &config)?;
        let prompter = Prompter::open(dir)?;
        let (found, expected) = (prompter.max_pass_tokens(), config.max_length());
        if found > expected {
            return Err(ExportError::TooLong { file: dir.join(prompt::FILE_NAME), found, expected });
        }
        let mut prefixes = prompter.before_texts().to_vec();
        // Queries and documents may begin alike, and without layers nothing is looked back on.
        prefixes.dedup();
        if student.encoder_layers(config.num_hidden_layers) == 0 || prefixes.iter().all(Vec::is_empty) {
            prefixes.clear();
        }
        Ok(Self { dir: dir.to_owned(), config, student, max_tokens: found, prefixes })
    }

    /// Everything of the manifest that is known before the files are.
    fn manifest(&self, precision: Precision, graph: GraphKind) -> Manifest {
        let (config, student) = (&self.config, &self.student);
        Manifest {
            format_version: manifest::FORMAT_VERSION,
            created_by: concat!("export ", env!("CARGO_PKG_VERSION")).into(),
            encoder: EncoderInfo {
                precision,
                graph,
                prefixes: self.prefixes.clone(),
                batching: match (graph, precision) {
                    // GroupQueryAttention continues a past for one row only (ONNX Runtime 1.32).
                    (GraphKind::Fused, _) | (_, Precision::Int8) => Batching::OneAtATime,
                    (GraphKind::Portable, _) => Batching::Free,
                },
                layers: student.encoder_layers(config.num_hidden_layers),
                dimensions: student.dimensions(),
                hidden_size: config.hidden_size,
                vocab_size: config.vocab_size,
                max_tokens: self.max_tokens,
            },
            predictor: PredictorInfo {
                form: student.form,
                residual: student.residual,
                inner_dimensions: student.inner_dimensions,
                latents: student.latents.clone(),
            },
            calibration: student.calibration,
            digests: BTreeMap::new(),
            document_digest: String::new(),
            parity: serde_json::Value::Null,
            golden: Vec::new(),
            provenance: student.provenance.clone(),
        }
    }
}

/// Refuses a tokenizer that makes tokens which the model has no embedding for.
pub fn check_tokenizer(dir: &Path, config: &DecoderConfig) -> Result<(), ExportError> {
    let vocabulary = prompt::open_tokenizer(dir)?.get_vocab(true);
    let highest = vocabulary.into_iter().max_by(|a, b| (a.1, &a.0).cmp(&(b.1, &b.0)));
    match highest.filter(|(_, id)| *id as usize >= config.vocab_size) {
        None => Ok(()),
        Some((token, id)) => {
            let (file, vocab_size) = (dir.join(TOKENIZER_FILE), config.vocab_size);
            Err(ExportError::TokenId { file, token, id, vocab_size })
        }
    }
}

/// Writes a bundle; `say` hears one line per step, for people.
pub fn export(options: &Options, say: &mut dyn FnMut(&str)) -> Result<Manifest, ExportError> {
    let start = Instant::now();
    if options.graph == GraphKind::Portable && matches!(options.precision, Precision::Fp16 | Precision::Int4)
    {
        return Err(ExportError::Portable { precision: options.precision });
    }
    if options.calibration.is_some() && !matches!(options.precision, Precision::Int8 | Precision::Int4) {
        return Err(ExportError::NothingToCalibrate { precision: options.precision });
    }
    let student = Student::open(&options.student)?;
    let head_dim = student.config.head_dim;
    if options.graph == GraphKind::Fused && !head_dim.is_multiple_of(16) {
        return Err(ExportError::HeadDim { file: options.student.join("config.json"), head_dim });
    }
    let reference = Reference::open(&options.student, &student.student)?;
    let staged = StagedDir::new(&options.out)?;
    let dir = staged.path();

    write_encoder(&student, options, dir, say)?;
    write_predictor(&student, options.precision, dir, say)?;
    for name in [prompt::FILE_NAME, TOKENIZER_FILE] {
        let from = student.dir.join(name);
        fs::copy(&from, dir.join(name)).map_err(FileError::io(&from))?;
    }
    let mut manifest = student.manifest(options.precision, options.graph);
    manifest.digests = digests(dir)?;
    manifest.document_digest = manifest.expected_document_digest();
    files::write_json(&dir.join(manifest::FILE_NAME), &manifest)?;

    let mut proof = verify::verify(dir, &reference, &options.session)?;
    say(&proof.to_string());
    let mut rankings = Vec::new();
    if let Some(data) = &options.ranking {
        let ranking = rank_as_fp32(options, data, dir)?;
        say(&ranking.to_string());
        proof.failed.extend(ranking.failed.iter().cloned());
        rankings.push(ranking.to_json());
    }
    if !proof.failed.is_empty() {
        if !options.allow_degraded {
            return Err(ExportError::Parity(proof.failed));
        }
        say(&format!("warning    parity is not held: {}", proof.failed.join("; ")));
    }
    manifest.parity = proof.to_json();
    manifest.parity["ranking"] = rankings.into();
    manifest.golden = proof.golden;
    let megabytes = directory_size(dir)?;
    let card_file = dir.join(manifest::CARD_FILE);
    fs::write(&card_file, card::card(&manifest, megabytes)).map_err(FileError::io(&card_file))?;
    manifest.digests.insert(manifest::CARD_FILE.to_owned(), files::sha256_file(&card_file)?);
    files::write_json(&dir.join(manifest::FILE_NAME), &manifest)?;
    staged.commit()?;
    say(&format!("bundle     {megabytes:.1} MB in {:.1} s", start.elapsed().as_secs_f64()));
    Ok(manifest)
}

/// Compares with an fp32 bundle of the same student, which is written beside the output and removed again.
fn rank_as_fp32(options: &Options, data: &RankingData, dir: &Path) -> Result<RankingProof, ExportError> {
    if options.precision == Precision::Fp32 {
        return ranking::compare(dir, dir, data, &options.session);
    }
    let name = options.out.file_name().unwrap_or_default().to_string_lossy();
    let out = options.out.with_file_name(format!(".{name}.fp32-{}", std::process::id()));
    let reference = Options {
        precision: Precision::Fp32,
        calibration: None,
        ranking: None,
        out: out.clone(),
        ..options.clone()
    };
    let found =
        export(&reference, &mut |_| {}).and_then(|_| ranking::compare(&out, dir, data, &options.session));
    if out.exists() {
        fs::remove_dir_all(&out).map_err(FileError::io(&out))?;
    }
    found
}

fn write_encoder(
    student: &Student,
    options: &Options,
    dir: &Path,
    say: &mut dyn FnMut(&str),
) -> Result<(), ExportError> {
    let start = Instant::now();
    let config = &student.config;
    let mut source = Source::open_llm(&student.dir, config, options.precision, options.graph)?;
    let layers = student.student.encoder_layers(config.num_hidden_layers);
    let prefix = match student.prefixes.is_empty() {
        true => None,
        false => Some(prefix_states(&mut source, config, layers, &student.prefixes)?),
    };
    if let Some(data) = &options.calibration {
        source.curvatures = calibrate(student, data, prefix.as_ref(), dir, &options.session)?;
        say(&format!("calibrated on {}, {:.1} s", data.display(), start.elapsed().as_secs_f64()));
    }
    let data = dir.join(manifest::ENCODER_DATA_FILE);
    let mut graph = Graph::with_external_data("encoder", &data)?;
    encoder(&mut graph, &mut source, config, &student.student, student.max_tokens, prefix.as_ref())?;
    let nodes = graph.len();
    let file = dir.join(manifest::ENCODER_FILE);
    graph.finish(&file)?;
    let megabytes = megabytes(&file)? + megabytes(&data)?;
    let depth = config.num_hidden_layers;
    let seconds = start.elapsed().as_secs_f64();
    say(&format!("encoder    {layers} of {depth} layers, {nodes} nodes, {megabytes:.1} MB, {seconds:.1} s"));
    if !source.errors.is_empty() {
        say(&format!("weights in few bits, error relative to the matrix:\n{}", source.errors));
    }
    Ok(())
}

/// Has the fp32 graph tell what its maps read. It lies in the staged directory while it is needed.
fn calibrate(
    student: &Student,
    data: &Path,
    prefix: Option<&PrefixStates>,
    dir: &Path,
    session: &SessionOptions,
) -> Result<HashMap<String, Curvature>, ExportError> {
    let config = &student.config;
    let mut source = Source::open_llm(&student.dir, config, Precision::Fp32, GraphKind::Fused)?;
    source.observed = Some(Vec::new());
    let (file, weights) = (dir.join("observed.onnx"), dir.join("observed.onnx_data"));
    let mut graph = Graph::with_external_data("observed", &weights)?;
    encoder(&mut graph, &mut source, config, &student.student, student.max_tokens, prefix)?;
    graph.finish(&file)?;
    let observed = source.observed.unwrap_or_default();
    let passes = calibrate::passes(data, &Prompter::open(&student.dir)?, student.student.residual)?;
    let manifest = student.manifest(Precision::Fp32, GraphKind::Fused);
    let found = calibrate::curvatures(&file, &manifest, &observed, &passes, session);
    for file in [file, weights] {
        fs::remove_file(&file).map_err(FileError::io(&file))?;
    }
    found
}

fn write_predictor(
    student: &Student,
    precision: Precision,
    dir: &Path,
    say: &mut dyn FnMut(&str),
) -> Result<(), ExportError> {
    let from = student.dir.join(student::PREDICTOR_FILE);
    // Folding checks all shapes, so that the graph need not.
    let folded = Folded::from_predictor(&student.student, &from)?;
    let mut graph = Graph::new("predictor");
    let mut source = Source::open_file(&from)?;
    // Beside an encoder of fewer bits, weights in f32 would be a third of the bundle and gain nothing.
    let dtype = if precision == Precision::Fp32 { DType::F32 } else { DType::F16 };
    if dtype == DType::F16 {
        source.precision = Precision::Fp16;
    }
    predictor(&mut graph, &mut source, &student.student)?;
    let (file, fold) = (dir.join(manifest::PREDICTOR_FILE), dir.join(fold::FILE_NAME));
    graph.finish(&file)?;
    folded.write(&fold, dtype)?;
    let (unfolded, folded) = (megabytes(&file)?, megabytes(&fold)?);
    let (form, m) = (student.student.form, student.student.inner_dimensions);
    say(&format!("predictor  {form:?}, {m} numbers per document, {unfolded:.1} MB, folded {folded:.1} MB"));
    Ok(())
}

/// SHA-256 of every file of a directory, by name.
pub fn digests(dir: &Path) -> Result<BTreeMap<String, String>, ExportError> {
    let mut digests = BTreeMap::new();
    for entry in fs::read_dir(dir).map_err(FileError::io(dir))? {
        let entry = entry.map_err(FileError::io(dir))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        digests.insert(name, files::sha256_file(&entry.path())?);
    }
    Ok(digests)
}

fn megabytes(file: &Path) -> Result<f64, ExportError> {
    Ok(fs::metadata(file).map_err(FileError::io(file))?.len() as f64 / 1e6)
}

/// Megabytes of all files of a directory.
pub fn directory_size(dir: &Path) -> Result<f64, ExportError> {
    let mut sum = 0.0;
    for entry in fs::read_dir(dir).map_err(FileError::io(dir))? {
        sum += megabytes(&entry.map_err(FileError::io(dir))?.path())?;
    }
    Ok(sum)
}
