//! `train distill`: a student from a teacher.

use super::run_args::{Pace, RunArgs, schedule};
use crate::cache::VectorCache;
use crate::calibration;
use crate::crew::Crew;
use crate::data_sets::{DataSet, DataSets};
use crate::device::DeviceArgs;
use crate::distillation::{DistillConfig, Distillation, Finished, QueryLatents, StudentSet, Targets};
use crate::features::{FeatureMaker, Side, StoredFeatures, cache_digest};
use crate::fit::{FitConfig, fit, write_tensors};
use crate::golden;
use crate::losses::{Divergence, JepaDistance, KlOver};
use crate::optim::AdamW;
use crate::ranks::{self, Ranks};
use crate::schedule::Decay;
use anyhow::{Context, Result, bail};
use clap::Args as ClapArgs;
use models::checkpoint::{self, copy_side_files, link_weights};
use models::config::DecoderConfig;
use models::files::{StagedDir, write_json};
use models::lora::LoraConfig;
use models::student::{self, Calibration, Form, LatentConfig, Pooling, Residual, StudentConfig};
use models::torch::spectral::Moments;
use models::torch::{Adapters, EncoderConfig, Predictor, Reranker};
use models::weights::DType;
use serde_json::json;
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

/// Queries and documents whose numbers travel with the student, for `export` to compare with.
const GOLDEN: usize = 8;
/// Texts that the latents' statistics are taken from.
const STATISTICS_ON: usize = 16_384;

/// Distil a teacher into a student that encodes queries and documents apart
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// Teacher directory, as written by `train teacher` (or `train import`)
    #[arg(long, value_name = "DIR")]
    teacher: PathBuf,
    #[command(flatten)]
    run: RunArgs,
    /// Student to start from: training goes on with its predictor, whose layers, form, residual and dimensions these are.
    /// Its LLM and the teacher should be of one family: a general student, and a teacher that was trained from it
    #[arg(long, value_name = "DIR", conflicts_with_all = ["layers", "form", "residual", "inner_dimensions"])]
    start: Option<PathBuf>,
    /// Layers whose mean over the text's tokens is the latent; default: evenly spaced at 1/5 to 4/5 of the depth
    #[arg(long, value_delimiter = ',')]
    layers: Vec<usize>,
    /// Predictor form
    #[arg(long, value_enum, default_value = "gated")]
    form: FormArg,
    /// Residual of the predictor: the paper's last token, or a learned map of the latent (shallower, faster encoder)
    #[arg(long, value_enum, default_value = "pooled")]
    residual: ResidualArg,
    /// Dimensions of a document's vector
    #[arg(long, default_value_t = 512)]
    inner_dimensions: usize,
    /// Steps
    #[arg(long, default_value_t = 600)]
    steps: usize,
    /// Queries per step
    #[arg(long, default_value_t = 64)]
    batch_queries: usize,
    /// Most documents that a query is contrasted with
    #[arg(long, default_value_t = 1024)]
    batch_documents: usize,
    /// Highest learning rate
    #[arg(long, default_value_t = 3e-4)]
    lr: f64,
    /// Steps of warm-up
    #[arg(long, default_value_t = 10)]
    warmup: usize,
    /// How the rate falls after the warm-up
    #[arg(long, value_enum, default_value = "cosine")]
    decay: Decay,
    /// Weight decay of matrices
    #[arg(long, default_value_t = 0.0)]
    weight_decay: f64,
    /// Pull of the gated form's maps back to where they started [default: 0.1 up to 128 training documents, with n of them
    /// 0.1 * sqrt(128 / n); of several sets the smallest counts]
    #[arg(long)]
    start_weight: Option<f64>,
    /// Keep plain unit length in the gated form: documents known from training then come first more often
    #[arg(long)]
    no_equalise: bool,
    /// Dropout of the latents
    #[arg(long, default_value_t = 0.1)]
    dropout: f64,
    /// Rank of adapters (LoRA) that are applied to queries only, trained with the predictor; 0 = none. Each step then runs the
    /// LLM over its queries
    #[arg(long, default_value_t = 0)]
    query_lora_rank: usize,
    /// The query adapters' scale is alpha / rank
    #[arg(long, default_value_t = 32.0)]
    query_lora_alpha: f64,
    /// Queries that get teacher targets, of all data sets together; 0 = none
    #[arg(long, default_value_t = 300)]
    target_queries: usize,
    /// Seed of which queries these are, where several runs should share the teacher's work; default: --seed
    #[arg(long)]
    target_seed: Option<u64>,
    /// Candidates per target query
    #[arg(long, default_value_t = 8)]
    candidates: usize,
    /// Rounds in which candidates are drawn from the student's current ranking
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Share of candidates drawn uniformly; 1 = off-policy
    #[arg(long, default_value_t = 0.25)]
    uniform: f64,
    /// Temperature of the student's ranking when candidates are drawn
    #[arg(long, default_value_t = 1.0)]
    sampling_temperature: f64,
    /// Weight of the JEPA distance
    #[arg(long, default_value_t = 1.0)]
    jepa_weight: f64,
    /// JEPA distance
    #[arg(long, value_enum, default_value = "smooth-l1")]
    jepa_distance: JepaDistance,
    /// Weight of the divergence of the LLM's logits
    #[arg(long, default_value_t = 1.0)]
    kl_weight: f64,
    /// Logits that are compared
    #[arg(long, value_enum, default_value = "choices")]
    kl_over: KlOver,
    /// Divergence of logits and of rankings
    #[arg(long, value_enum, default_value = "reverse-kl")]
    divergence: Divergence,
    /// Weight of the listwise divergence
    #[arg(long, default_value_t = 1.0)]
    listwise_weight: f64,
    /// Temperature of the listwise divergence
    #[arg(long, default_value_t = 1.0)]
    listwise_temperature: f64,
    /// Weight of the supervised contrastive term
    #[arg(long, default_value_t = 1.0)]
    supervised_weight: f64,
    /// Where latents and teacher targets are kept; default: beside the student
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Evaluate on dev every so many steps (and at the end) and keep the best; 0 = only at the end
    #[arg(long, default_value_t = 50)]
    eval_every: usize,
    /// Save the run's state every so many steps; 0 = never
    #[arg(long, default_value_t = 100)]
    save_every: usize,
}

/// [`Form`] on the command line.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum FormArg {
    /// r + W2 relu(Wq x + Wd z + b): the papers' predictor with a hidden layer
    Relu,
    /// r + W2 (n(gated query) * Wd z / |L Wd z|): scores are inner products; finds documents that come later
    Gated,
}

/// [`Residual`] on the command line.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum ResidualArg {
    /// Query pass's last token after all layers
    LastToken,
    /// Learned map of the query's latent
    Pooled,
}

impl Args {
    fn cache_dir(&self) -> PathBuf {
        self.cache.clone().unwrap_or_else(|| self.run.cache_beside())
    }

    /// Digest of the predictor to start from.
    fn start_digest(&self) -> Result<Option<String>> {
        let digest = |dir: &PathBuf| models::files::sha256_file(&dir.join(student::PREDICTOR_FILE));
        Ok(self.start.as_ref().map(digest).transpose()?)
    }

    /// Opens the data sets.
    pub fn open_data(&self) -> Result<DataSets> {
        self.run.open_data()
    }

    fn fit_config(&self) -> Result<FitConfig> {
        self.run.fit_config(Pace {
            schedule: schedule(self.lr, self.warmup.min(self.steps / 10), self.steps, self.decay),
            accumulate: 1,
            eval_every: self.eval_every,
            save_every: self.save_every,
        })
    }

    /// Everything that shapes the student.
    pub fn settings(
        &self,
        device: &DeviceArgs,
        sets: &DataSets,
        teacher_digest: &str,
    ) -> Result<serde_json::Value> {
        let student = describe(self, &DecoderConfig::open(&self.teacher)?)?;
        Ok(json!({
            "command": "distill",
            "teacher_digest": teacher_digest,
            "start": self.start_digest()?,
            "data": sets.settings(),
            "split": self.run.split, "dev_split": self.run.dev_split, "documents": self.run.documents,
            "latents": student.latents, "form": student.form, "residual": student.residual,
            "inner_dimensions": self.inner_dimensions, "dropout": self.dropout,
            "query_adapter": query_adapter(self)?, "distill": distill_config(self, sets), "fit": self.fit_config()?,
            "weight_decay": self.weight_decay, "dtype": device.compute().name(),
        }))
    }
}

/// Distils, then writes the student.
pub fn run(args: &Args, device: &DeviceArgs) -> Result<()> {
    ranks::within(args.run.rank_timeout, device, |ranks| distil(args, device, ranks))
}

fn distil(args: &Args, device: &DeviceArgs, ranks: &Ranks) -> Result<()> {
    check(args)?;
    let staged = ranks.is_first().then(|| StagedDir::new(&args.run.out)).transpose()?;
    let sets = args.run.open_data()?;
    let adapter = query_adapter(args)?;
    tch::manual_seed(args.run.seed as i64);
    let mut teacher = Reranker::open(&args.teacher, &device.open(adapter.clone())?)?;
    // The adapters are the student's: its teacher and its documents know nothing of them.
    teacher.judging = Adapters::Off;
    let mut student = describe(args, teacher.decoder.config())?;
    student.query_adapter = adapter;
    let (config, fit_config) = (distill_config(args, &sets), args.fit_config()?);
    let teacher_digest = checkpoint::digest(&args.teacher)?;
    let settings = args.settings(device, &sets, &teacher_digest)?;
    if !teacher.prompter.has_pieces() {
        bail!(
            "{}: its prompt has `joined` parts, so that a student could not encode the teacher's own pieces; import the \
             model with another --prompt",
            args.teacher.display()
        );
    }
    let [before_query, before_document] = teacher.prompter.before_texts();
    if student.query_adapter.is_some() && before_query == before_document {
        bail!(
            "{}: --query-lora-rank needs a prompt whose queries and documents begin differently: that is how an encoder \
             graph tells them apart",
            args.teacher.display()
        );
    }
    ranks.agree(&settings)?;
    let encoder = EncoderConfig { layers: student.latents.layers.clone(), residual: student.residual };
    let Some(staged) = staged else { return Crew::new(ranks, &teacher, &sets, encoder).serve() };
    eprintln!("distilling on {}{}", sets.describe(), ranks.describe());
    let (predictor, history) = {
        let plan = sets.plan(args.steps, args.run.seed);
        let crew = Crew::new(ranks, &teacher, &sets, encoder.clone());
        let (latents, predictor, targets) =
            prepare(args, device, &sets, &crew, &teacher, &student, &encoder, &teacher_digest)?;
        let mut parameters = predictor.parameters();
        if student.query_adapter.is_some() {
            parameters.extend(teacher.parameters());
        }
        let mut adamw = AdamW::new(parameters, args.weight_decay);
        let mut task = Distillation::new(&teacher, &crew, latents, plan, predictor, targets, config);
        let state = args.run.state(&settings, ranks);
        let history = fit(&mut task, &mut adamw, &fit_config, &state, &Ranks::alone())?;
        crew.dismiss()?;
        if !history.complete {
            eprintln!("stopped; continue with --resume (state in {})", state.file.display());
            return Ok(());
        }
        (finish(task, &mut student)?, history)
    };
    student.provenance = json!({ "settings": settings, "metrics": student.provenance });
    let (queries, documents) = golden::texts(&sets, GOLDEN);
    golden::write(staged.path(), &mut teacher, &student, &predictor, &queries, &documents)?;
    write_tensors(
        &staged.path().join(student::PREDICTOR_FILE),
        predictor.state(),
        DType::F32,
        HashMap::new(),
    )?;
    if student.query_adapter.is_some() {
        let file = staged.path().join(student::QUERY_ADAPTER_FILE);
        write_tensors(&file, teacher.decoder.lora_state(), DType::F32, HashMap::new())?;
    }
    copy_side_files(&args.teacher, staged.path())?;
    link_weights(&args.teacher, staged.path())?;
    write_json(&staged.path().join(student::FILE_NAME), &student)?;
    write_json(
        &staged.path().join("train_state.json"),
        &json!({ "settings": settings, "history": history }),
    )?;
    args.run.records().keep(staged.path())?;
    staged.commit()?;
    args.run.remove_state()?;
    println!("{}", args.run.out.display());
    Ok(())
}

fn check(args: &Args) -> Result<()> {
    if args.steps == 0 || args.batch_queries == 0 || args.inner_dimensions == 0 || args.rounds == 0 {
        bail!("--steps, --batch-queries, --inner-dimensions and --rounds must be at least 1");
    }
    if args.batch_documents < 2 || (args.target_queries > 0 && args.candidates < 2) {
        bail!("--batch-documents and --candidates must be at least 2: one candidate cannot be ranked");
    }
    if !(0.0..=1.0).contains(&args.uniform)
        || args.sampling_temperature <= 0.0
        || args.listwise_temperature <= 0.0
    {
        bail!("--uniform must be between 0 and 1, and the temperatures above 0");
    }
    if !(0.0..1.0).contains(&args.dropout) {
        bail!("--dropout is {}, expected 0 up to, not including, 1", args.dropout);
    }
    Ok(())
}

/// Latent layers where none are asked for: evenly spaced, the last fifth of the depth left out.
pub fn default_layers(depth: usize) -> Vec<usize> {
    let mut layers: Vec<usize> = (1..=4).map(|fifth| (depth * fifth / 5).max(1)).collect();
    layers.dedup();
    layers
}

/// The adapters that --query-lora-rank asks for: on the layers that the student's encoder runs.
fn query_adapter(args: &Args) -> Result<Option<LoraConfig>> {
    if args.query_lora_rank == 0 {
        return Ok(None);
    }
    let student = describe(args, &DecoderConfig::open(&args.teacher)?)?;
    let layers = student.encoder_layers(DecoderConfig::open(&args.teacher)?.num_hidden_layers);
    if layers == 0 {
        bail!(
            "--query-lora-rank {}: with --layers 0 no layer is run that could be adapted",
            args.query_lora_rank
        );
    }
    Ok(Some(LoraConfig {
        rank: args.query_lora_rank,
        alpha: args.query_lora_alpha,
        dropout: 0.0,
        layers_to_transform: Some((0..layers).collect()),
        ..LoraConfig::default()
    }))
}

fn describe(args: &Args, config: &DecoderConfig) -> Result<StudentConfig> {
    let depth = config.num_hidden_layers;
    if let Some(dir) = &args.start {
        return describe_start(args, dir, config);
    }
    let layers = if args.layers.is_empty() { default_layers(depth) } else { args.layers.clone() };
    if let Some(layer) = layers.iter().find(|layer| **layer > depth) {
        bail!("--layers {layer}: this model has {depth} layers");
    }
    if let Some(layer) = layers.iter().enumerate().find(|(i, layer)| layers[..*i].contains(layer)) {
        bail!("--layers: {} is named twice, expected different layers", layer.1);
    }
    Ok(StudentConfig {
        format_version: if args.query_lora_rank == 0 {
            student::PLAIN_VERSION
        } else {
            student::FORMAT_VERSION
        },
        latents: LatentConfig { layers, pooling: Pooling::Mean },
        hidden_size: config.hidden_size,
        form: match args.form {
            FormArg::Relu => Form::Relu,
            FormArg::Gated => Form::Gated,
        },
        inner_dimensions: args.inner_dimensions,
        residual: match args.residual {
            ResidualArg::LastToken => Residual::LastToken,
            ResidualArg::Pooled => Residual::Pooled,
        },
        query_adapter: None,
        calibration: Calibration { scale: 1.0, bias: 0.0 },
        provenance: serde_json::Value::Null,
    })
}

/// What a student is that goes on from the one in `dir`.
fn describe_start(args: &Args, dir: &Path, config: &DecoderConfig) -> Result<StudentConfig> {
    let start = StudentConfig::open(dir).with_context(|| format!("--start {}", dir.display()))?;
    let deepest = start.latents.layers.iter().copied().max().unwrap_or(0);
    if start.hidden_size != config.hidden_size || deepest > config.num_hidden_layers {
        bail!(
            "--start {}: reads layer {deepest} of hidden size {}, {} has {} layers of hidden size {}; start from a student of \
             this LLM",
            dir.display(),
            start.hidden_size,
            args.teacher.display(),
            config.num_hidden_layers,
            config.hidden_size
        );
    }
    if start.query_adapter.is_some() {
        bail!(
            "--start {}: its queries are read through adapters, which do not go on learning; start from a student without, \
             and give --query-lora-rank for new ones",
            dir.display()
        );
    }
    let calibration = Calibration { scale: 1.0, bias: 0.0 };
    let format_version =
        if args.query_lora_rank == 0 { student::PLAIN_VERSION } else { student::FORMAT_VERSION };
    Ok(StudentConfig { format_version, calibration, provenance: serde_json::Value::Null, ..start })
}

/// A few documents are learnt by heart, and later ones then go unfound: the maps are held near their start. Many say
/// themselves what is common to all. On home-robot (100 documents) 0.1 is best, on e-CARE (13,051) a tenth of it: dev MRR@10
/// 0.199, where 0.1 gave 0.162 and a hundredth 0.187. Of both together, skills that training did not know: 0.403 with 0.1,
/// 0.313 with a tenth of it.
fn default_start_weight(documents: usize) -> f64 {
    0.1 * (128.0 / documents.max(1) as f64).sqrt().min(1.0)
}

fn distill_config(args: &Args, sets: &DataSets) -> DistillConfig {
    // Of several sets the smallest is the one that would be learnt by heart.
    let documents = sets.sets.iter().map(|set| set.train.documents.len()).min().unwrap_or(0);
    DistillConfig {
        queries: args.batch_queries,
        documents: args.batch_documents,
        target_queries: args.target_queries,
        target_seed: args.target_seed.unwrap_or(args.run.seed),
        candidates: args.candidates,
        uniform: args.uniform,
        sampling_temperature: args.sampling_temperature,
        rounds: args.rounds,
        jepa_weight: args.jepa_weight,
        jepa_distance: args.jepa_distance,
        kl_weight: args.kl_weight,
        kl_over: args.kl_over,
        divergence: args.divergence,
        listwise_weight: args.listwise_weight,
        listwise_temperature: args.listwise_temperature,
        supervised_weight: args.supervised_weight,
        start_weight: args.start_weight.unwrap_or_else(|| default_start_weight(documents)),
        equalise: !args.no_equalise,
        steps: args.steps,
        seed: args.run.seed,
    }
}

/// Latents of everything (from the cache where possible), a fresh predictor, and the cache of teacher targets.
#[allow(clippy::too_many_arguments, reason = "all that a student is made of")]
fn prepare<'a>(
    args: &Args,
    device: &DeviceArgs,
    sets: &'a DataSets,
    crew: &'a Crew<'a>,
    teacher: &'a Reranker,
    student: &StudentConfig,
    encoder: &EncoderConfig,
    teacher_digest: &str,
) -> Result<(Vec<StudentSet<'a>>, Predictor, Targets)> {
    let cache_dir = args.cache_dir();
    let digest = cache_digest(teacher_digest, device);
    let maker = FeatureMaker::new(teacher, encoder.clone(), Some((&cache_dir, &digest)))?;
    let mut maker = maker.with_crew(crew);
    let mut latents = sets.sets.iter().map(|set| latents_of(&mut maker, set)).collect::<Result<Vec<_>>>()?;
    // Statistics of the training texts only: the student knows nothing of the other documents.
    let most = STATISTICS_ON / latents.len().max(1);
    let mut queries = Moments::new(student.dimensions(), teacher.device());
    let mut documents = Moments::new(student.dimensions(), teacher.device());
    for set in &latents {
        let all: Vec<usize> = (0..set.queries.len()).collect();
        take_in(&mut queries, set.queries.stored(), &all, most)?;
        take_in(&mut documents, &set.documents, &set.set.train.documents, most)?;
    }
    if student.query_adapter.is_some() {
        latents.iter_mut().for_each(|set| adapt(set, teacher, encoder));
    }
    tch::manual_seed(args.run.seed as i64);
    let choice = teacher.choice_weight()?;
    let predictor = match &args.start {
        None => Predictor::new(student, &queries, &documents, &choice, args.dropout),
        Some(dir) => {
            let file = dir.join(student::PREDICTOR_FILE);
            Predictor::continued(student, &file, &choice, args.dropout)
                .with_context(|| format!("--start {}", dir.display()))?
        }
    };
    let hidden_size = teacher.decoder.config().hidden_size;
    let targets = VectorCache::open(&cache_dir, "targets", &digest, hidden_size + 1)?;
    let targets = Targets::new(targets, latents.len());
    Ok((latents, predictor, targets))
}

/// Leaves all that runs of one teacher and data will ask of the LLM's layers in their common cache: read one after the
/// other, students of other layers would each run the LLM over every text.
pub fn encode_for_all(runs: &[Args], device: &DeviceArgs) -> Result<()> {
    let Some(first) = runs.first() else { return Ok(()) };
    let teacher = Reranker::open(&first.teacher, &device.open(None)?)?;
    let mut layers = BTreeSet::new();
    for run in runs {
        layers.extend(describe(run, teacher.decoder.config())?.latents.layers);
    }
    let digest = cache_digest(&checkpoint::digest(&first.teacher)?, device);
    let encoder = EncoderConfig { layers: layers.into_iter().collect(), residual: Residual::Pooled };
    let mut maker = FeatureMaker::new(&teacher, encoder, Some((&first.cache_dir(), &digest)))?;
    for set in &first.run.open_data()?.sets {
        latents_of(&mut maker, set)?;
    }
    Ok(())
}

fn latents_of<'a>(maker: &mut FeatureMaker, set: &'a DataSet) -> Result<StudentSet<'a>> {
    let documents = maker.store(Side::Document, &set.document_texts())?;
    let texts: Vec<&str> = (0..set.train.queries.len()).map(|place| set.training_query(place)).collect();
    let queries = QueryLatents::frozen(maker.store(Side::Query, &texts)?);
    let dev = set.dev.iter().map(|(_, qrels)| {
        let texts: Vec<&str> = qrels.keys().map(|id| set.query(id)).collect();
        Ok(QueryLatents::frozen(maker.store(Side::Query, &texts)?))
    });
    let dev = dev.collect::<Result<Vec<_>>>()?;
    Ok(StudentSet { set, lengths: queries.lengths(), queries, documents, dev })
}

/// From now on the set's queries are read through the adapters of `llm`.
fn adapt<'a>(set: &mut StudentSet<'a>, llm: &'a Reranker, encoder: &EncoderConfig) {
    let data = set.set;
    let texts = (0..data.train.queries.len()).map(|place| data.training_query(place)).collect();
    set.queries.adapt(llm, encoder, texts);
    set.lengths = set.queries.lengths();
    for (dev, (_, qrels)) in set.dev.iter_mut().zip(&data.dev) {
        dev.adapt(llm, encoder, qrels.keys().map(|id| data.query(id)).collect());
    }
}

/// Moments of at most `most` of the texts at these places, evenly spaced.
fn take_in(moments: &mut Moments, features: &StoredFeatures, places: &[usize], most: usize) -> Result<()> {
    let step = places.len().div_ceil(most.max(1)).max(1);
    let some: Vec<usize> = places.iter().copied().step_by(step).collect();
    for block in some.chunks(2048) {
        moments.add(&features.gather(block)?.latent);
    }
    Ok(())
}

/// Measures and calibrates the parameters that the run ended with.
fn finish(task: Distillation, student: &mut StudentConfig) -> Result<Predictor> {
    let Finished { predictor, dev, judged, target_pairs } = task.finish()?;
    if let Some(calibration) = calibration::fit(&judged) {
        student.calibration = calibration;
    }
    let mut metrics = serde_json::Map::new();
    for (split, values) in dev {
        let numbers: Vec<String> = values.iter().map(|(name, value)| format!("{name} {value:.3}")).collect();
        eprintln!("kept, {split}: {}", numbers.join(", "));
        metrics.insert(split, json!(values));
    }
    metrics.insert("target_pairs".into(), json!(target_pairs));
    student.provenance = serde_json::Value::Object(metrics);
    Ok(predictor)
}

/// Opens a student's predictor.
pub fn open_predictor(dir: &Path, config: &StudentConfig, device: tch::Device) -> Result<Predictor> {
    let file = dir.join(student::PREDICTOR_FILE);
    Predictor::open(config, &file, device)
        .with_context(|| format!("cannot open the predictor of {}", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Few documents need the whole pull, thousands almost none.
    #[test]
    fn the_pull_falls_with_the_root_of_the_documents() {
        assert_eq!([0, 1, 100, 128].map(default_start_weight), [0.1; 4]);
        assert!((default_start_weight(12_800) - 0.01).abs() < 1e-12);
    }
}
