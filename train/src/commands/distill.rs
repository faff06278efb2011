//! `train distill`: a student from a teacher.

use super::teacher::{remove_state, state_file};
use crate::cache::VectorCache;
use crate::calibration;
use crate::device::DeviceArgs;
use crate::distillation::{DistillConfig, Distillation, Parts};
use crate::features::{FeatureMaker, Features, Side};
use crate::fit::{FitConfig, History, RunState, fit, write_tensors};
use crate::golden;
use crate::losses::{JepaDistance, KlOver};
use crate::optim::AdamW;
use crate::sampling::{TrainDocuments, TrainingSet};
use crate::schedule::{Decay, Schedule};
use anyhow::{Context, Result, bail};
use clap::Args as ClapArgs;
use models::beir::{BeirData, Document, Qrels};
use models::checkpoint::{self, copy_side_files, link_weights};
use models::files::{StagedDir, write_json};
use models::student::{self, Calibration, Form, LatentConfig, Pooling, Residual, StudentConfig};
use models::torch::{EncoderConfig, Predictor, Reranker};
use models::weights::DType;
use serde_json::json;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Dev queries, and documents, whose numbers travel with the student.
const GOLDEN: usize = 8;

/// Distil a teacher into a student that encodes queries and documents apart
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// Teacher directory, as written by `train teacher` (or `train import`)
    #[arg(long, value_name = "DIR")]
    teacher: PathBuf,
    /// Data set in BEIR layout
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Student directory to create
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Split to train on
    #[arg(long, default_value = "train")]
    split: String,
    /// Splits to choose on; the checkpoint with the best mean MRR@10 is kept
    #[arg(long, value_delimiter = ',', default_value = "dev")]
    dev_split: Vec<String>,
    /// Documents that take part: judged in the training split, or the whole corpus
    #[arg(long, value_enum, default_value = "judged")]
    documents: TrainDocuments,
    /// Layers whose mean over the text's tokens is the latent; default: evenly spaced at 1/5 to 4/5 of the depth
    #[arg(long, value_delimiter = ',')]
    layers: Vec<usize>,
    /// Predictor form
    #[arg(long, value_enum, default_value = "gated")]
    form: FormArg,
    /// Residual of the predictor: the paper's last token, or a learned map of the latent (shallower, faster encoder)
    #[arg(long, value_enum, default_value = "pooled")]
    residual: ResidualArg,
    /// Numbers stored per document
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
    /// Weight decay of matrices
    #[arg(long, default_value_t = 0.0)]
    weight_decay: f64,
    /// Pull of the gated form's maps back to where they started
    #[arg(long, default_value_t = 0.1)]
    start_weight: f64,
    /// Dropout of the latents
    #[arg(long, default_value_t = 0.1)]
    dropout: f64,
    /// Queries that get teacher targets; 0 = none
    #[arg(long, default_value_t = 300)]
    target_queries: usize,
    /// Candidates per target query
    #[arg(long, default_value_t = 8)]
    candidates: usize,
    /// Rounds in which candidates are drawn from the student's current ranking
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Share of candidates drawn uniformly
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
    /// Weight of the reverse KL on LLM logits
    #[arg(long, default_value_t = 1.0)]
    reverse_kl_weight: f64,
    /// Logits of the reverse KL
    #[arg(long, value_enum, default_value = "choices")]
    reverse_kl_over: KlOver,
    /// Weight of the listwise reverse KL
    #[arg(long, default_value_t = 1.0)]
    listwise_weight: f64,
    /// Temperature of the listwise reverse KL
    #[arg(long, default_value_t = 1.0)]
    listwise_temperature: f64,
    /// Weight of the supervised contrastive term
    #[arg(long, default_value_t = 1.0)]
    supervised_weight: f64,
    /// Where latents and teacher targets are kept; default: beside the student
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Judge on dev every so many steps
    #[arg(long, default_value_t = 50)]
    eval_every: usize,
    /// Save the run's state every so many steps; 0 = never
    #[arg(long, default_value_t = 100)]
    save_every: usize,
    /// Continue an interrupted run of the same settings
    #[arg(long)]
    resume: bool,
    /// Stop after this step and leave the state for --resume
    #[arg(long, value_name = "STEP")]
    stop_after: Option<usize>,
    /// Seed of everything random
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// [`Form`] on the command line.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum FormArg {
    /// r + W2 relu(Wq x + Wd z + b)
    Relu,
    /// r + W2 (n(gated query) * n(Wd z)): scores are inner products
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

/// Distils, then writes the student.
pub fn run(args: &Args, device: &DeviceArgs) -> Result<()> {
    check(args)?;
    let staged = StagedDir::new(&args.out)?;
    let data = BeirData::open(&args.data)?;
    let train = data.qrels(&args.split)?;
    let dev = args.dev_split.iter().map(|split| Ok(data.qrels(split)?)).collect::<Result<Vec<Qrels>>>()?;
    let mut teacher = Reranker::open(&args.teacher, &device.open(None)?)?;
    let mut student = describe(args, &teacher)?;
    let config = settings_of(args);
    let fit_config = FitConfig {
        schedule: Schedule {
            peak: args.lr,
            warmup: 10.min(args.steps / 10),
            steps: args.steps,
            decay: Decay::Cosine,
        },
        accumulate: 1,
        max_grad_norm: 1.0,
        eval_every: args.eval_every,
        save_every: args.save_every,
        seed: args.seed,
    };
    let splits: Vec<&Qrels> = std::iter::once(&train).chain(&dev).collect();
    let teacher_digest = checkpoint::digest(&args.teacher)?;
    let settings = json!({
        "command": "distill",
        "teacher_digest": teacher_digest,
        "data_digest": data.digest(&splits),
        "split": args.split, "dev_split": args.dev_split, "documents": args.documents,
        "latents": student.latents, "form": student.form, "residual": student.residual,
        "inner_dimensions": args.inner_dimensions, "dropout": args.dropout,
        "distill": config, "fit": fit_config, "weight_decay": args.weight_decay, "dtype": device.compute().name(),
    });
    let contents: Vec<String> = data.documents.iter().map(Document::contents).collect();
    let training_set = TrainingSet::new(&data, &train, args.documents);
    eprintln!(
        "distilling on {} queries and {} documents of {}",
        training_set.queries.len(),
        training_set.documents.len(),
        args.data.display()
    );
    let (predictor, history) = {
        let parts =
            prepare(args, device, &data, &contents, training_set, &dev, &teacher, &student, &teacher_digest)?;
        let mut adamw = AdamW::new(parts.predictor.parameters(), args.weight_decay);
        let mut task = Distillation::new(parts, config);
        let state = RunState {
            file: state_file(&args.out),
            resume: args.resume,
            stop_after: args.stop_after,
            settings: &settings,
        };
        let history = fit(&mut task, &mut adamw, &fit_config, &state)?;
        if !history.complete {
            eprintln!("stopped; continue with --resume (state in {})", state.file.display());
            return Ok(());
        }
        finish(task, history, args, &mut student)?
    };
    student.provenance = json!({ "settings": settings, "metrics": student.provenance });
    let golden_queries: Vec<&str> = dev
        .iter()
        .flat_map(|qrels| qrels.keys())
        .take(GOLDEN)
        .map(|id| data.queries[data.query_index[id]].text.as_str())
        .collect();
    let golden_documents = golden_documents(&data, &dev, &contents);
    golden::write(staged.path(), &mut teacher, &student, &predictor, &golden_queries, &golden_documents)?;
    write_tensors(
        &staged.path().join(student::PREDICTOR_FILE),
        predictor.state(),
        DType::F32,
        HashMap::new(),
    )?;
    copy_side_files(&args.teacher, staged.path())?;
    link_weights(&args.teacher, staged.path())?;
    write_json(&staged.path().join(student::FILE_NAME), &student)?;
    write_json(
        &staged.path().join("train_state.json"),
        &json!({ "settings": settings, "history": history }),
    )?;
    staged.commit()?;
    remove_state(&state_file(&args.out))?;
    println!("{}", args.out.display());
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
    Ok(())
}

fn describe(args: &Args, teacher: &Reranker) -> Result<StudentConfig> {
    let config = teacher.decoder.config();
    let depth = config.num_hidden_layers;
    let layers = if args.layers.is_empty() {
        let mut layers: Vec<usize> = (1..=4).map(|fifth| (depth * fifth / 5).max(1)).collect();
        layers.dedup();
        layers
    } else {
        args.layers.clone()
    };
    if let Some(layer) = layers.iter().find(|layer| **layer > depth) {
        bail!("--layers {layer}: this model has {depth} layers");
    }
    Ok(StudentConfig {
        format_version: student::FORMAT_VERSION,
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
        calibration: Calibration { scale: 1.0, bias: 0.0 },
        provenance: serde_json::Value::Null,
    })
}

fn settings_of(args: &Args) -> DistillConfig {
    DistillConfig {
        queries: args.batch_queries,
        documents: args.batch_documents,
        target_queries: args.target_queries,
        candidates: args.candidates,
        uniform: args.uniform,
        sampling_temperature: args.sampling_temperature,
        rounds: args.rounds,
        jepa_weight: args.jepa_weight,
        jepa_distance: args.jepa_distance,
        reverse_kl_weight: args.reverse_kl_weight,
        reverse_kl_over: args.reverse_kl_over,
        listwise_weight: args.listwise_weight,
        listwise_temperature: args.listwise_temperature,
        supervised_weight: args.supervised_weight,
        start_weight: args.start_weight,
        steps: args.steps,
        seed: args.seed,
    }
}

/// Latents of everything (from the cache where possible) and a fresh predictor.
#[allow(clippy::too_many_arguments)] // one call, all of different types
fn prepare<'a>(
    args: &Args,
    device: &DeviceArgs,
    data: &'a BeirData,
    contents: &'a [String],
    train: TrainingSet,
    dev: &'a [Qrels],
    teacher: &'a Reranker,
    student: &StudentConfig,
    teacher_digest: &str,
) -> Result<Parts<'a>> {
    let cache_dir = args.cache.clone().unwrap_or_else(|| cache_beside(&args.out));
    // bf16 and f32 give other numbers: they do not share a cache.
    let digest = models::files::sha256_parts([teacher_digest.as_bytes(), device.compute().name().as_bytes()]);
    let encoder = EncoderConfig { layers: student.latents.layers.clone(), residual: student.residual };
    let mut maker = FeatureMaker::new(teacher, encoder, Some((&cache_dir, &digest)))?;
    let documents: Vec<&str> = contents.iter().map(String::as_str).collect();
    let documents = maker.make(Side::Document, &documents)?;
    let texts: Vec<&str> = train.queries.iter().map(|place| data.queries[*place].text.as_str()).collect();
    let queries = maker.make(Side::Query, &texts)?;
    let dev = dev.iter().map(|qrels| {
        let texts: Vec<&str> =
            qrels.keys().map(|id| data.queries[data.query_index[id]].text.as_str()).collect();
        Ok((qrels, maker.make(Side::Query, &texts)?))
    });
    let dev = dev.collect::<Result<Vec<(&Qrels, Features)>>>()?;
    // Statistics of the training texts only: the student knows nothing of the other documents.
    let places: Vec<i64> = train.documents.iter().map(|place| *place as i64).collect();
    let places = tch::Tensor::from_slice(&places).to_device(teacher.device());
    let training_documents = documents.latent.index_select(0, &places);
    tch::manual_seed(args.seed as i64);
    let choice = teacher.choice_weight()?;
    let predictor = Predictor::new(student, &queries.latent, &training_documents, &choice, args.dropout);
    let hidden_size = teacher.decoder.config().hidden_size;
    let targets = VectorCache::open(&cache_dir, "targets", &digest, hidden_size + 1)?;
    Ok(Parts { teacher, data, contents, train, queries, documents, dev, predictor, targets })
}

/// Puts the best parameters back, measures and calibrates them.
fn finish(
    task: Distillation,
    history: History,
    args: &Args,
    student: &mut StudentConfig,
) -> Result<(Predictor, History)> {
    let target_pairs = task.target_pairs();
    let task = task.with_best();
    let pairs = task.dev_pairs()?;
    if let Some(calibration) = calibration::fit(&pairs) {
        student.calibration = calibration;
    }
    let mut metrics = serde_json::Map::new();
    for (split, values) in args.dev_split.iter().zip(task.dev_metrics()?) {
        let numbers: Vec<String> = values.iter().map(|(name, value)| format!("{name} {value:.3}")).collect();
        eprintln!("kept, {split}: {}", numbers.join(", "));
        metrics.insert(split.clone(), json!(values));
    }
    metrics.insert("target_pairs".into(), json!(target_pairs));
    student.provenance = serde_json::Value::Object(metrics);
    Ok((task.into_predictor(), history))
}

/// One relevant document for each golden query.
fn golden_documents<'a>(data: &BeirData, dev: &[Qrels], contents: &'a [String]) -> Vec<&'a str> {
    let relevant = dev.iter().flat_map(|qrels| qrels.values()).take(GOLDEN).filter_map(|judgements| {
        let best = judgements.iter().max_by_key(|(id, gain)| (**gain, std::cmp::Reverse((*id).clone())));
        best.map(|(id, _)| contents[data.document_index[id]].as_str())
    });
    relevant.collect()
}

/// Latents and targets of a student are kept beside it.
fn cache_beside(out: &Path) -> PathBuf {
    let name = out.file_name().unwrap_or_default().to_string_lossy();
    out.with_file_name(format!("{name}.cache"))
}

/// Opens a student's predictor.
pub fn open_predictor(dir: &Path, config: &StudentConfig, device: tch::Device) -> Result<Predictor> {
    let file = dir.join(student::PREDICTOR_FILE);
    Predictor::open(config, &file, device)
        .with_context(|| format!("cannot open the predictor of {}", dir.display()))
}
