//! From a student directory to a bundle directory: checks first, then graphs and copies into a staged directory, then
//! the proof, and only then the name the user asked for. Whatever fails, nothing is left behind.

use crate::adapter::QueryAdapter;
use crate::calibrate::{self, Calibration};
use crate::card;
use crate::encoder::encoder;
use crate::error::ExportError;
use crate::graph::Graph;
use crate::keep::{Kept, KeptLayers, Search};
use crate::predictor::predictor;
use crate::prefix::{PrefixStates, prefix_states};
use crate::ranking::{Judged, RankingData, RankingProof};
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
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
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
    /// Data set whose texts decide how weights are rounded and, in int8, which neurons are divided.
    pub calibration: Option<PathBuf>,
    /// Layers that get more bits.
    pub keep: KeepLayers,
    /// Judged queries on which the ranking is held to that of the fp32 bundle.
    pub ranking: Option<RankingData>,
    /// How the proof runs the graphs.
    pub session: SessionOptions,
}

impl Options {
    /// Whether the graph is written in turned coordinates. What has one scale for a whole row gains by it always, blocks only where
    /// weights are rounded with regard to each other: on home-robot 4 bits then lose 0.006 instead of 0.019 of nDCG@10, and
    /// without calibration 0.080 instead of 0.067.
    fn turned(&self) -> bool {
        match self.precision {
            Precision::Fp32 | Precision::Fp16 => false,
            Precision::Int8 => true,
            Precision::Int4 => self.calibration.is_some(),
        }
    }
}

/// Which layers get more bits than the precision has ([`Precision::more`]).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum KeepLayers {
    /// With a calibration as few as hold the ranking, otherwise none.
    #[default]
    Search,
    /// These, counted from 0.
    These(KeptLayers),
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
        if student.query_adapter.is_some() && prefixes.len() < 2 {
            let expected = "none, as this prompt's queries and documents begin alike and the graph could not tell them apart";
            return refuse("query_adapter", "some".into(), expected.into());
        }
        Ok(Self { dir: dir.to_owned(), config, student, max_tokens: found, prefixes })
    }

    /// The LLM, and the adapter that queries are read with.
    ///
    /// In coordinates without outliers (see [`Turned`](crate::rotation::Turned)) where `turned`, which a calibration has a say in.
    fn source(
        &self,
        turned: bool,
        precision: Precision,
        graph: GraphKind,
        calibration: Option<&Rc<Calibration>>,
    ) -> Result<Source, ExportError> {
        let mut source = Source::open_llm(&self.dir, &self.config, precision, graph)?;
        if let Some(adapter) = &self.student.query_adapter {
            source.adapter = Some(Box::new(QueryAdapter::open(&self.dir, adapter)?));
        }
        if turned {
            source.turn(&self.config, calibration.cloned())?;
        }
        Ok(source)
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
                kept_layers: Vec::new(),
                float_layers: Vec::new(),
                prefixes: self.prefixes.clone(),
                batching: match graph {
                    // GroupQueryAttention continues a past for one row only (ONNX Runtime 1.32).
                    GraphKind::Fused => Batching::OneAtATime,
                    GraphKind::Portable => Batching::Free,
                },
                query_adapter_rank: student.query_adapter.as_ref().map(|adapter| adapter.rank),
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
    let keeps = matches!(&options.keep, KeepLayers::These(layers) if !layers.more.is_empty());
    if keeps && options.precision.more(options.graph).is_none() {
        return Err(ExportError::NothingToKeep { precision: options.precision });
    }
    let student = Student::open(&options.student)?;
    let head_dim = student.config.head_dim;
    if options.graph == GraphKind::Fused && !head_dim.is_multiple_of(16) {
        return Err(ExportError::HeadDim { file: options.student.join("config.json"), head_dim });
    }
    let reference = Reference::open(&options.student, &student.student)?;
    let staged = StagedDir::new(&options.out)?;
    let dir = staged.path();

    let fp32 = Fp32Bundle::beside(options);
    let writer = Writer::new(&student, options, dir, say)?;
    let kept = writer.kept_layers(&fp32, say)?;
    let mut manifest = writer.write(dir, &kept, say)?;

    let mut proof = verify::verify(dir, &reference, &options.session)?;
    say(&proof.to_string());
    let mut rankings = Vec::new();
    if let Some(data) = &options.ranking {
        let ranking = rank_as_fp32(options, data, dir, &fp32)?;
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

/// An fp32 bundle of the same student beside the output, written when it is first asked for and removed in the end.
struct Fp32Bundle<'a> {
    options: &'a Options,
    dir: PathBuf,
}

impl<'a> Fp32Bundle<'a> {
    fn beside(options: &'a Options) -> Self {
        let name = options.out.file_name().unwrap_or_default().to_string_lossy();
        let dir = options.out.with_file_name(format!(".{name}.fp32-{}", std::process::id()));
        Self { options, dir }
    }

    fn get(&self) -> Result<&Path, ExportError> {
        if !self.dir.exists() {
            let options = Options {
                precision: Precision::Fp32,
                calibration: None,
                keep: KeepLayers::Search,
                ranking: None,
                out: self.dir.clone(),
                ..self.options.clone()
            };
            export(&options, &mut |_| {})?;
        }
        Ok(&self.dir)
    }
}

impl Drop for Fp32Bundle<'_> {
    fn drop(&mut self) {
        // Where it was never written there is nothing to remove, and nothing else can be done about one that stays.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn rank_as_fp32(
    options: &Options,
    data: &RankingData,
    dir: &Path,
    fp32: &Fp32Bundle,
) -> Result<RankingProof, ExportError> {
    let judged = Judged::open(data)?;
    let after = judged.scores(dir, &options.session)?;
    let before = match options.precision {
        Precision::Fp32 => after.clone(),
        _ => judged.scores(fp32.get()?, &options.session)?,
    };
    Ok(judged.compare(&before, &after, options.precision))
}

/// Writes bundles of one student that differ in the layers which keep more bits.
struct Writer<'a> {
    student: &'a Student,
    options: &'a Options,
    prefix: Option<PrefixStates>,
    calibration: Option<Rc<Calibration>>,
}

impl<'a> Writer<'a> {
    /// Runs the prompt and, where asked for, the calibration, which needs some room in `dir` meanwhile.
    fn new(
        student: &'a Student,
        options: &'a Options,
        dir: &Path,
        say: &mut dyn FnMut(&str),
    ) -> Result<Self, ExportError> {
        let start = Instant::now();
        let config = &student.config;
        let layers = student.student.encoder_layers(config.num_hidden_layers);
        let prefix = match student.prefixes.is_empty() {
            true => None,
            false => {
                let mut source = student.source(options.turned(), Precision::Fp32, options.graph, None)?;
                Some(prefix_states(&mut source, config, layers, &student.prefixes)?)
            }
        };
        let mut calibration = None;
        if let Some(data) = &options.calibration {
            let made = calibrate(student, options, data, prefix.as_ref(), dir)?;
            say(&format!("calibrated on {}, {:.1} s", data.display(), start.elapsed().as_secs_f64()));
            calibration = Some(Rc::new(made));
        }
        Ok(Self { student, options, prefix, calibration })
    }

    /// The layers asked for, or those that the calibration's data set shows to need more bits.
    fn kept_layers(&self, fp32: &Fp32Bundle, say: &mut dyn FnMut(&str)) -> Result<KeptLayers, ExportError> {
        let options = self.options;
        let depth = self.student.student.encoder_layers(self.student.config.num_hidden_layers);
        let data = match (&options.keep, &options.calibration) {
            (KeepLayers::These(layers), _) => {
                return match layers.more.last().filter(|layer| **layer >= depth) {
                    Some(&layer) => Err(ExportError::KeptLayer { layer, depth }),
                    None => Ok(layers.clone()),
                };
            }
            (KeepLayers::Search, None) => return Ok(KeptLayers::none()),
            (KeepLayers::Search, Some(data)) => data,
        };
        let start = Instant::now();
        let (precision, more) =
            (options.precision, options.precision.more(options.graph).unwrap_or_default());
        let staged = StagedDir::new(&fp32.dir.with_extension("search"))?;
        let search = Search {
            data,
            fp32: fp32.get()?,
            layers: depth,
            precision,
            between: more != Precision::Fp32.name(),
            session: &options.session,
        };
        let Kept { layers, proof } = search.run(|kept| {
            self.write(staged.path(), kept, &mut |_| {})?;
            Ok(staged.path())
        })?;
        let seconds = start.elapsed().as_secs_f64();
        let kept = match layers.more.is_empty() {
            true => format!("all hold in {}", precision.name()),
            false => layers.describe(more),
        };
        say(&format!("layers     {kept}, {seconds:.1} s\n{proof}"));
        Ok(layers)
    }

    /// Writes everything but the proof; files of an earlier call are replaced.
    fn write(
        &self,
        dir: &Path,
        kept: &KeptLayers,
        say: &mut dyn FnMut(&str),
    ) -> Result<Manifest, ExportError> {
        let (student, options) = (self.student, self.options);
        self.write_encoder(dir, kept, say)?;
        write_predictor(student, options.precision, dir, say)?;
        for name in [prompt::FILE_NAME, TOKENIZER_FILE] {
            let from = student.dir.join(name);
            fs::copy(&from, dir.join(name)).map_err(FileError::io(&from))?;
        }
        let mut manifest = student.manifest(options.precision, options.graph);
        manifest.encoder.kept_layers = kept.more.iter().copied().collect();
        manifest.encoder.float_layers = kept.floats.iter().copied().collect();
        manifest.digests = digests(dir)?;
        manifest.digests.remove(manifest::FILE_NAME);
        manifest.document_digest = manifest.expected_document_digest();
        files::write_json(&dir.join(manifest::FILE_NAME), &manifest)?;
        Ok(manifest)
    }

    fn write_encoder(
        &self,
        dir: &Path,
        kept: &KeptLayers,
        say: &mut dyn FnMut(&str),
    ) -> Result<(), ExportError> {
        let start = Instant::now();
        let (student, options) = (self.student, self.options);
        let config = &student.config;
        let mut source =
            student.source(options.turned(), options.precision, options.graph, self.calibration.as_ref())?;
        source.kept.clone_from(kept);
        let layers = student.student.encoder_layers(config.num_hidden_layers);
        let data = dir.join(manifest::ENCODER_DATA_FILE);
        let mut graph = Graph::with_external_data("encoder", &data)?;
        encoder(&mut graph, &mut source, config, &student.student, student.max_tokens, self.prefix.as_ref())?;
        if let Some(adapter) = &source.adapter {
            adapter.all_read()?;
        }
        let nodes = graph.len();
        let file = dir.join(manifest::ENCODER_FILE);
        graph.finish(&file)?;
        let megabytes = megabytes(&file)? + megabytes(&data)?;
        let depth = config.num_hidden_layers;
        let seconds = start.elapsed().as_secs_f64();
        say(&format!(
            "encoder    {layers} of {depth} layers, {nodes} nodes, {megabytes:.1} MB, {seconds:.1} s"
        ));
        if !source.errors.is_empty() {
            say(&format!("weights in few bits, error relative to the matrix:\n{}", source.errors));
        }
        Ok(())
    }
}

/// Has the fp32 graph tell what its maps read. It lies in the staged directory while it is needed.
fn calibrate(
    student: &Student,
    options: &Options,
    data: &Path,
    prefix: Option<&PrefixStates>,
    dir: &Path,
) -> Result<Calibration, ExportError> {
    let config = &student.config;
    let mut source = student.source(true, Precision::Fp32, GraphKind::Fused, None)?;
    source.observed = Some(Vec::new());
    let (file, weights) = (dir.join("observed.onnx"), dir.join("observed.onnx_data"));
    let mut graph = Graph::with_external_data("observed", &weights)?;
    encoder(&mut graph, &mut source, config, &student.student, student.max_tokens, prefix)?;
    graph.finish(&file)?;
    let observed = source.observed.take().unwrap_or_default();
    // The checkpoint's file need not lie in memory beside the graph's.
    drop(source);
    let passes = calibrate::passes(data, &Prompter::open(&student.dir)?, student.student.residual)?;
    let manifest = student.manifest(Precision::Fp32, GraphKind::Fused);
    // Blocks of 4 bits lose more in the weights than their activations gain.
    let divide = options.precision == Precision::Int8;
    let found = calibrate::see(&file, &manifest, &observed, divide, &passes, &options.session);
    for file in [file, weights] {
        fs::remove_file(&file).map_err(FileError::io(&file))?;
    }
    Ok(Calibration::new(found?))
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
