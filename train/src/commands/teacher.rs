//! `train teacher`: supervised fine-tuning of a reranker on a BEIR folder.

use crate::device::DeviceArgs;
use crate::fit::{FitConfig, RunState, fit};
use crate::optim::AdamW;
use crate::sampling::{TrainDocuments, TrainingSet};
use crate::schedule::{Decay, Schedule};
use crate::sft::{Sft, SftConfig};
use anyhow::{Context, Result, bail};
use clap::Args as ClapArgs;
use models::beir::{BeirData, Qrels};
use models::checkpoint::{self, WEIGHTS_FILE, copy_side_files};
use models::files::{StagedDir, write_json};
use models::torch::{LoraConfig, Reranker};
use models::weights::DType;
use serde_json::json;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Teach a language model to judge documents (supervised fine-tuning of the binary choice)
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// Model directory to start from, as written by `train import`
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Data set in BEIR layout
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Teacher directory to create
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Split to train on
    #[arg(long, default_value = "train")]
    split: String,
    /// Splits to judge on while training; their metrics are averaged
    #[arg(long, value_delimiter = ',', default_value = "dev")]
    dev_split: Vec<String>,
    /// Documents that take part: judged in the training split, or the whole corpus
    #[arg(long, value_enum, default_value = "judged")]
    documents: TrainDocuments,
    /// Optimizer steps
    #[arg(long, default_value_t = 200)]
    steps: usize,
    /// Queries per micro-batch
    #[arg(long, default_value_t = 8)]
    batch_queries: usize,
    /// Documents per micro-batch; every query is scored against each of them
    #[arg(long, default_value_t = 8)]
    batch_documents: usize,
    /// Micro-batches per step
    #[arg(long, default_value_t = 1)]
    accumulate: usize,
    /// Highest learning rate (with adapters 5e-4 to 2e-3, without 1e-5 to 5e-5)
    #[arg(long, default_value_t = 1e-3)]
    lr: f64,
    /// Steps of warm-up
    #[arg(long, default_value_t = 10)]
    warmup: usize,
    /// How the rate falls after the warm-up
    #[arg(long, value_enum, default_value = "linear")]
    decay: Decay,
    /// Weight decay of matrices
    #[arg(long, default_value_t = 0.01)]
    weight_decay: f64,
    /// Longest gradient
    #[arg(long, default_value_t = 1.0)]
    max_grad_norm: f64,
    /// Weight of the listwise term over one query's candidates; 0 = the choice token alone
    #[arg(long, default_value_t = 1.0)]
    listwise_weight: f64,
    /// Rank of the adapters (LoRA); 0 = train all weights
    #[arg(long, default_value_t = 16)]
    lora_rank: usize,
    /// Adapters' scale is alpha / rank
    #[arg(long, default_value_t = 32.0)]
    lora_alpha: f64,
    /// Dropout of the adapters' inputs (slow on CPUs)
    #[arg(long, default_value_t = 0.0)]
    lora_dropout: f64,
    /// Judge on dev every so many steps (and at the end); 0 = only at the end
    #[arg(long, default_value_t = 0)]
    eval_every: usize,
    /// Dev queries judged; 0 = all
    #[arg(long, default_value_t = 32)]
    dev_queries: usize,
    /// Documents ranked per dev query (relevant ones and random others); 0 = the whole corpus
    #[arg(long, default_value_t = 20)]
    dev_candidates: usize,
    /// Save the run's state every so many steps; 0 = never
    #[arg(long, default_value_t = 50)]
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

/// Trains, then writes the teacher.
pub fn run(args: &Args, device: &DeviceArgs) -> Result<()> {
    if args.steps == 0 || args.batch_queries == 0 || args.batch_documents == 0 || args.accumulate == 0 {
        bail!("--steps, --batch-queries, --batch-documents and --accumulate must be at least 1");
    }
    let staged = StagedDir::new(&args.out)?;
    let data = BeirData::open(&args.data)?;
    let train = data.qrels(&args.split)?;
    let dev = args.dev_split.iter().map(|split| Ok(data.qrels(split)?)).collect::<Result<Vec<Qrels>>>()?;
    let lora = (args.lora_rank > 0).then(|| LoraConfig {
        rank: args.lora_rank,
        alpha: args.lora_alpha,
        dropout: args.lora_dropout,
        ..LoraConfig::default()
    });
    tch::manual_seed(args.seed as i64);
    let teacher = Reranker::open(&args.model, &device.open(lora.clone())?)?;
    let config = SftConfig {
        queries: args.batch_queries,
        documents: args.batch_documents,
        listwise_weight: args.listwise_weight,
        dev_queries: args.dev_queries,
        dev_candidates: args.dev_candidates,
        accumulate: args.accumulate,
        seed: args.seed,
    };
    let fit_config = FitConfig {
        schedule: Schedule { peak: args.lr, warmup: args.warmup, steps: args.steps, decay: args.decay },
        accumulate: args.accumulate,
        max_grad_norm: args.max_grad_norm,
        eval_every: args.eval_every,
        save_every: args.save_every,
        seed: args.seed,
    };
    let splits: Vec<&Qrels> = std::iter::once(&train).chain(&dev).collect();
    let settings = json!({
        "command": "teacher",
        "model_digest": checkpoint::digest(&args.model)?,
        "data_digest": data.digest(&splits),
        "split": args.split, "dev_split": args.dev_split, "documents": args.documents,
        "sft": config, "fit": fit_config, "weight_decay": args.weight_decay,
        "lora": lora, "dtype": device.compute().name(),
    });
    let training_set = TrainingSet::new(&data, &train, args.documents);
    eprintln!(
        "teaching on {} queries and {} documents of {}",
        training_set.queries.len(),
        training_set.documents.len(),
        args.data.display()
    );
    let mut adamw = AdamW::new(teacher.parameters(), args.weight_decay);
    let mut task = Sft::new(&teacher, &data, training_set, dev.iter().collect(), config);
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
    copy_side_files(&args.model, staged.path())?;
    teacher.decoder.save(
        staged.path().join(WEIGHTS_FILE),
        DType::F32,
        HashMap::from([("format".to_owned(), "pt".to_owned())]),
    )?;
    write_json(
        &staged.path().join("train_state.json"),
        &json!({ "settings": settings, "history": history }),
    )?;
    staged.commit()?;
    remove_state(&state.file)?;
    println!("{}", args.out.display());
    Ok(())
}

/// State of an unfinished run, beside its output.
pub fn state_file(out: &Path) -> PathBuf {
    let name = out.file_name().unwrap_or_default().to_string_lossy();
    out.with_file_name(format!("{name}.state.safetensors"))
}

/// Removes the state of a finished run.
pub fn remove_state(file: &Path) -> Result<()> {
    if file.exists() {
        std::fs::remove_file(file).with_context(|| format!("cannot remove {}", file.display()))?;
    }
    Ok(())
}
