//! `train teacher`: fine-tuning of a reranker on BEIR folders.

use super::latent_args::LatentArgs;
use super::run_args::{Pace, RunArgs, schedule};
use crate::cache::VectorCache;
use crate::device::DeviceArgs;
use crate::fit::fit;
use crate::golden;
use crate::negatives::{Miner, Negatives, NegativesConfig};
use crate::optim::AdamW;
use crate::ranks::{self, Ranks};
use crate::schedule::Decay;
use crate::teaching::latent::LatentLossConfig;
use crate::teaching::{Objective, Teaching, TeachingConfig};
use anyhow::{Result, bail};
use clap::Args as ClapArgs;
use models::checkpoint::{self, WEIGHTS_FILE, copy_side_files};
use models::config::DecoderConfig;
use models::files::{StagedDir, write_json};
use models::lora::PROJECTIONS;
use models::torch::{LoraConfig, Reranker};
use models::weights::DType;
use serde_json::json;
use std::collections::HashMap;
use std::path::PathBuf;

/// Dev queries whose scores travel with the teacher: what an exported reranker is held to.
const GOLDEN: usize = 4;

/// Train a language model to judge documents (supervised fine-tuning of the binary choice, or DPO)
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// Model directory to start from, as written by `train import` or an earlier `train teacher`
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    #[command(flatten)]
    run: RunArgs,
    /// Training objective for a pair
    #[arg(long, value_enum, default_value = "sft")]
    objective: Objective,
    /// DPO: strength of the constraint towards the model that training starts from; smaller allows larger changes
    #[arg(long, default_value_t = 0.1)]
    beta: f64,
    /// DPO: share of judgements taken to be wrong
    #[arg(long, default_value_t = 0.0)]
    label_smoothing: f64,
    /// Weight of the listwise term over one query's candidates; 0 = the choice token alone
    #[arg(long, default_value_t = 1.0)]
    listwise_weight: f64,
    #[command(flatten)]
    latent: LatentArgs,
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
    /// Negatives other than the batch's own positives
    #[arg(long, value_enum, default_value = "random")]
    negatives: NegativesArg,
    /// TREC run on the training split to draw hard negatives from, as `train eval --split train --runs` writes it for a
    /// student or a teacher; may be given for each data set
    #[arg(long, value_name = "FILE")]
    negatives_run: Vec<PathBuf>,
    /// Share of the negatives that is hard
    #[arg(long, default_value_t = 0.5)]
    negatives_share: f64,
    /// First documents of a ranking to skip: unjudged, they are likely relevant
    #[arg(long, default_value_t = 0)]
    negatives_skip: usize,
    /// Ranks that hard negatives are drawn from
    #[arg(long, default_value_t = 30)]
    negatives_depth: usize,
    /// Run layers again for their gradient instead of keeping what they computed: a fifth to a third more time, about a
    /// quarter of the memory
    #[arg(long)]
    checkpointing: bool,
    /// Highest learning rate (with adapters 5e-4 to 2e-3, without 1e-5 to 1e-4)
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
    /// Rank of the adapters (LoRA); 0 = train all weights
    #[arg(long, default_value_t = 16)]
    lora_rank: usize,
    /// Adapters' scale is alpha / rank
    #[arg(long, default_value_t = 32.0)]
    lora_alpha: f64,
    /// Dropout of the adapters' inputs (slow on CPUs)
    #[arg(long, default_value_t = 0.0)]
    lora_dropout: f64,
    /// Projections that get an adapter
    #[arg(long, value_delimiter = ',', default_values = PROJECTIONS)]
    lora_targets: Vec<String>,
    /// With --lora-rank 0: leave the token embeddings as they are, and the head where it is the same matrix
    #[arg(long)]
    freeze_embeddings: bool,
    /// Evaluate on dev every so many steps (and at the end) and keep the best; 0 = only at the end
    #[arg(long, default_value_t = 0)]
    eval_every: usize,
    /// Dev queries judged of each split; 0 = all
    #[arg(long, default_value_t = 32)]
    dev_queries: usize,
    /// Documents ranked per dev query (relevant ones and random others); 0 = the whole corpus
    #[arg(long, default_value_t = 20)]
    dev_candidates: usize,
    /// Save the run's state every so many steps; 0 = never
    #[arg(long, default_value_t = 50)]
    save_every: usize,
    /// On many processes: each keeps the optimizer's state of its own part of the parameters only (ZeRO stage 1)
    #[arg(long)]
    shard_optimizer: bool,
}

/// [`Miner`] on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum NegativesArg {
    /// Random documents
    Random,
    /// Half of them by BM25 (see --negatives-share)
    Bm25,
}

/// Trains, then writes the teacher.
pub fn run(args: &Args, device: &DeviceArgs) -> Result<()> {
    ranks::within(args.run.rank_timeout, device, |ranks| teach(args, device, ranks))
}

fn teach(args: &Args, device: &DeviceArgs, ranks: &Ranks) -> Result<()> {
    check(args, ranks)?;
    let staged = ranks.is_first().then(|| StagedDir::new(&args.run.out)).transpose()?;
    let latent = args.latent.config(DecoderConfig::open(&args.model)?.num_hidden_layers)?;
    let sets = args.run.open_data()?;
    // Beyond the deepest latent layer nothing is learnt where latents are all that is taught.
    let trained_layers = latent.as_ref().filter(|_| args.latent.latent_only).map(LatentLossConfig::depth);
    let lora = (args.lora_rank > 0).then(|| LoraConfig {
        rank: args.lora_rank,
        alpha: args.lora_alpha,
        dropout: args.lora_dropout,
        target_modules: args.lora_targets.clone(),
        layers_to_transform: trained_layers.map(|layers| (0..layers).collect()),
    });
    tch::manual_seed(args.run.seed as i64);
    let mut teacher = Reranker::open(&args.model, &device.open(lora.clone())?)?;
    if let Some(layers) = trained_layers {
        teacher.freeze_above(layers);
    }
    if args.freeze_embeddings {
        teacher.freeze_embeddings();
    }
    let (config, negatives) = (teaching_config(args, latent), negatives_config(args));
    let fit_config = args.run.fit_config(Pace {
        schedule: schedule(args.lr, args.warmup, args.steps, args.decay),
        accumulate: args.accumulate,
        eval_every: args.eval_every,
        save_every: args.save_every,
    })?;
    let model_digest = checkpoint::digest(&args.model)?;
    let run_digests = args.negatives_run.iter().map(|file| models::files::sha256_file(file));
    let run_digests = run_digests.collect::<Result<Vec<_>, _>>()?;
    let settings = json!({
        "command": "teacher",
        "model_digest": model_digest,
        "data": sets.settings(),
        "split": args.run.split, "dev_split": args.run.dev_split, "documents": args.run.documents,
        "teaching": config, "negatives": negatives, "negatives_runs": run_digests,
        "fit": fit_config, "weight_decay": args.weight_decay,
        "lora": lora, "freeze_embeddings": args.freeze_embeddings, "dtype": device.compute().name(),
    });
    ranks.agree(&json!({ "settings": settings, "shard_optimizer": args.shard_optimizer }))?;
    if ranks.is_first() {
        eprintln!("teaching on {}{}", sets.describe(), ranks.describe());
    }
    let mined = Negatives::mine(&sets.sets, &negatives)?;
    if negatives.miner == Miner::Bm25 && ranks.is_first() {
        for (set, _) in sets.sets.iter().zip(&mined).filter(|(_, mined)| mined.is_empty()) {
            eprintln!("{}; they are drawn at random", Negatives::none_for(set, &negatives));
        }
    }
    let reference = (args.objective == Objective::Dpo).then(|| {
        let parts = [model_digest.as_bytes(), device.compute().name().as_bytes()];
        // Each process has the scores of its own micro-batches.
        let name = match ranks.rank() {
            0 => "reference".to_owned(),
            rank => format!("reference-{rank}"),
        };
        VectorCache::open(&args.run.cache_beside(), &name, &models::files::sha256_parts(parts), 1)
    });
    let mut task = Teaching::new(&teacher, &sets, mined, reference.transpose()?, ranks, config)?;
    let mut adamw = match args.shard_optimizer {
        true => AdamW::divided(teacher.parameters(), args.weight_decay, ranks),
        false => AdamW::new(teacher.parameters(), args.weight_decay),
    };
    let history = fit(&mut task, &mut adamw, &fit_config, &args.run.state(&settings, ranks), ranks)?;
    drop(task);
    let Some(staged) = staged else { return Ok(()) };
    if !history.complete {
        eprintln!("stopped; continue with --resume");
        return Ok(());
    }
    let (queries, documents) = golden::texts(&sets, GOLDEN);
    golden::write_teacher(staged.path(), &mut teacher, &queries, &documents)?;
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
    args.run.records().keep(staged.path())?;
    staged.commit()?;
    args.run.remove_state()?;
    println!("{}", args.run.out.display());
    Ok(())
}

fn check(args: &Args, ranks: &Ranks) -> Result<()> {
    if args.steps == 0 || args.batch_queries == 0 || args.batch_documents == 0 || args.accumulate == 0 {
        bail!("--steps, --batch-queries, --batch-documents and --accumulate must be at least 1");
    }
    if args.accumulate < ranks.size() {
        bail!(
            "--accumulate {}: {} processes divide the micro-batches of a step, so there must be at least as many; a step sees \
             --batch-queries times --accumulate queries, whatever the number of processes",
            args.accumulate,
            ranks.size()
        );
    }
    if args.beta <= 0.0 || !(0.0..0.5).contains(&args.label_smoothing) {
        bail!("--beta must be above 0 and --label-smoothing from 0 up to, not including, 0.5");
    }
    if !(0.0..=1.0).contains(&args.negatives_share) || args.negatives_depth == 0 {
        bail!("--negatives-share must be between 0 and 1 and --negatives-depth at least 1");
    }
    if args.latent.latent_only && args.objective == Objective::Dpo {
        bail!(
            "--latent-only judges no pairs, so that there is nothing for --objective dpo to prefer: give one of them"
        );
    }
    if args.freeze_embeddings && args.lora_rank > 0 {
        bail!("--freeze-embeddings needs --lora-rank 0: with adapters nothing but these is trained");
    }
    if args.negatives == NegativesArg::Bm25 && !args.negatives_run.is_empty() {
        bail!("--negatives bm25 and --negatives-run are two sources of hard negatives: give one of them");
    }
    Ok(())
}

fn teaching_config(args: &Args, latent: Option<LatentLossConfig>) -> TeachingConfig {
    TeachingConfig {
        objective: args.objective,
        beta: args.beta,
        label_smoothing: args.label_smoothing,
        queries: args.batch_queries,
        documents: args.batch_documents,
        listwise_weight: args.listwise_weight,
        dev_queries: args.dev_queries,
        dev_candidates: args.dev_candidates,
        checkpointing: args.checkpointing,
        judgement: !args.latent.latent_only,
        latent,
        accumulate: args.accumulate,
        steps: args.steps,
        seed: args.run.seed,
    }
}

fn negatives_config(args: &Args) -> NegativesConfig {
    let miner = match (args.negatives, args.negatives_run.is_empty()) {
        (_, false) => Miner::Runs(args.negatives_run.clone()),
        (NegativesArg::Bm25, true) => Miner::Bm25,
        (NegativesArg::Random, true) => Miner::Random,
    };
    NegativesConfig {
        miner,
        share: args.negatives_share,
        skip: args.negatives_skip,
        depth: args.negatives_depth,
    }
}
