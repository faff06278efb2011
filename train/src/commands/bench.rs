//! `train bench`: what a training step, a reranked pair and a retrieved pair cost on this machine.

use crate::device::DeviceArgs;
use crate::losses::choice_cross_entropy;
use crate::optim::AdamW;
use crate::ranks::Ranks;
use crate::record::plot::{Axis, LineChart, Series};
use anyhow::{Result, bail};
use clap::{Args as ClapArgs, Subcommand};
use models::config::DecoderConfig;
use models::files::write_json;
use models::student::Residual;
use models::torch::{Adapters, EncoderConfig, ForwardInput, LoraConfig, OpenOptions, Reranker, encode};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Instant;
use tch::{Device, Kind, Tensor};

/// Measure what training and reranking cost on this machine
#[derive(Debug, ClapArgs)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    Step(StepArgs),
    Rerank(RerankArgs),
}

/// A training step of the teacher, all weights against adapters (scripts/compare_transformers.py measures the same step)
#[derive(Debug, ClapArgs)]
struct StepArgs {
    /// Model directory
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Texts per step
    #[arg(long, default_value_t = 8)]
    batch: i64,
    /// Tokens per text
    #[arg(long, default_value_t = 128)]
    tokens: i64,
    /// Rank of the adapters
    #[arg(long, default_value_t = 16)]
    lora_rank: usize,
    /// Steps measured, after one to warm up; the fastest counts
    #[arg(long, default_value_t = 3)]
    repeats: usize,
    /// Write the numbers as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Milliseconds per pair over document lengths: teacher from scratch, teacher with the document's cache shared, student
#[derive(Debug, ClapArgs)]
struct RerankArgs {
    /// Model directory
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Document lengths in tokens
    #[arg(long, value_delimiter = ',', default_values_t = [32, 64, 128, 256, 512, 1024, 2048])]
    lengths: Vec<usize>,
    /// Queries that each document is scored with
    #[arg(long, default_value_t = 32)]
    queries: usize,
    /// The student's latent layers; default: as `train distill`
    #[arg(long, value_delimiter = ',')]
    layers: Vec<usize>,
    /// Write table.md, cost.svg and cost.json here
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Measures and prints.
pub fn run(args: &Args, device: &DeviceArgs) -> Result<()> {
    match &args.what {
        What::Step(args) => step(args, device),
        What::Rerank(args) => rerank(args, device),
    }
}

fn step(args: &StepArgs, device: &DeviceArgs) -> Result<()> {
    if args.batch < 1 || args.tokens < 1 || args.repeats == 0 || args.lora_rank == 0 {
        bail!("--batch, --tokens, --repeats and --lora-rank must be at least 1");
    }
    let full = step_seconds(args, device, None)?;
    let lora = LoraConfig { rank: args.lora_rank, dropout: 0.0, ..LoraConfig::default() };
    let adapters = step_seconds(args, device, Some(lora))?;
    let tokens = (args.batch * args.tokens) as f64;
    let name = device.compute().name();
    println!("step of {} x {} tokens, {name}", args.batch, args.tokens);
    println!("all weights   {full:.4} s, {:.0} tokens/s", tokens / full);
    println!("adapters, {:<3} {adapters:.4} s, {:.0} tokens/s", args.lora_rank, tokens / adapters);
    println!("ratio         {:.2}", full / adapters);
    let rate = product_rate(device)?;
    let config = DecoderConfig::open(&args.model)?;
    let share = step_operations(&config, args.batch, args.tokens) / full / rate;
    println!(
        "all weights   {:.0} % of this device's own matrix product of {name}, {:.1} TFLOP/s",
        share * 100.0,
        rate / 1e12
    );
    if let Some(file) = &args.json {
        let numbers = json!({
            "batch": args.batch, "tokens": args.tokens, "dtype": name, "full_seconds": full,
            "lora_seconds": adapters, "lora_rank": args.lora_rank, "product_flops": rate, "utilisation": share,
        });
        write_json(file, &numbers)?;
    }
    Ok(())
}

/// Floating-point operations of a training step that are matrix products: 6 for each weight of the layers and token (2 forward, 4
/// backward) and those of attention, of which causality spares half. The head is left out: it reads one token a text.
fn step_operations(config: &DecoderConfig, batch: i64, tokens: i64) -> f64 {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let queries = config.num_attention_heads * config.head_dim;
    let keys = config.num_key_value_heads * config.head_dim;
    let weights = hidden * (2 * queries + 2 * keys + 3 * inner);
    let (rows, length) = (batch as f64, tokens as f64);
    let attention = 6.0 * queries as f64 * rows * length * length;
    config.num_hidden_layers as f64 * (6.0 * weights as f64 * rows * length + attention)
}

/// Operations a second of one large matrix product in the arithmetic of training: what the device can do at best.
fn product_rate(device: &DeviceArgs) -> Result<f64> {
    let OpenOptions { device, compute, .. } = device.open(None)?;
    let size: i64 = if device.is_cuda() { 8192 } else { 2048 };
    let _guard = tch::no_grad_guard();
    let [a, b] = [(); 2].map(|()| Tensor::randn([size, size], (Kind::Float, device)).to_kind(compute));
    let mut fastest = f64::INFINITY;
    for _ in 0..6 {
        let start = Instant::now();
        let _product = a.matmul(&b);
        wait_for(device);
        fastest = fastest.min(start.elapsed().as_secs_f64());
    }
    Ok(2.0 * (size as f64).powi(3) / fastest)
}

/// Seconds of the fastest step: forward, loss on the last token, backward, clipping, AdamW.
fn step_seconds(args: &StepArgs, device: &DeviceArgs, lora: Option<LoraConfig>) -> Result<f64> {
    let model = Reranker::open(&args.model, &device.open(lora)?)?;
    let mut adamw = AdamW::new(model.parameters(), 0.01);
    tch::manual_seed(0);
    let vocabulary = model.decoder.config().vocab_size as i64;
    let ids = Tensor::randint(vocabulary, [args.batch, args.tokens], (Kind::Int64, model.device()));
    let positive = Tensor::zeros([args.batch], (Kind::Int64, model.device()));
    let targets = &positive + model.choice_ids()[1];
    let alone = Ranks::alone();
    let mut fastest = f64::INFINITY;
    for repeat in 0..=args.repeats {
        let start = Instant::now();
        adamw.zero_grad();
        let hidden = model
            .decoder
            .forward(ForwardInput { adapters: Adapters::Training, ..ForwardInput::new(&ids) })?;
        let last = hidden.last()?.select(1, -1);
        choice_cross_entropy(&model.decoder.logits(&last), &targets, &positive)?.backward();
        adamw.collect_gradients(&alone)?;
        adamw.clip_grad_norm(1.0, &alone)?;
        adamw.step(1e-6);
        wait_for(model.device());
        if repeat > 0 {
            fastest = fastest.min(start.elapsed().as_secs_f64());
        }
    }
    Ok(fastest)
}

/// Waits for what a GPU has been told to do.
fn wait_for(device: Device) {
    if let Device::Cuda(index) = device {
        tch::Cuda::synchronize(index as i64);
    }
}

/// One document length's milliseconds per pair.
struct Cost {
    length: usize,
    scratch: f64,
    cached: f64,
    student: f64,
}

fn rerank(args: &RerankArgs, device: &DeviceArgs) -> Result<()> {
    if args.queries == 0 || args.lengths.contains(&0) {
        bail!("--queries and --lengths must be at least 1");
    }
    let model = Reranker::open(&args.model, &device.open(None)?)?;
    let depth = model.decoder.config().num_hidden_layers;
    let layers = match args.layers.is_empty() {
        true => super::distill::default_layers(depth),
        false => args.layers.clone(),
    };
    let query = model.prompter.continuation("Somebody has spilled coffee all over the table and left.")?;
    let longest = model.decoder.config().max_length() - query.len();
    if let Some(length) = args.lengths.iter().find(|length| **length > longest) {
        bail!("--lengths {length}: with a query of {} tokens this model reads up to {longest}", query.len());
    }
    let mut costs = Vec::new();
    for &length in &args.lengths {
        let cost = cost(&model, &layers, length, &query, args.queries)?;
        eprintln!("{length} tokens: {:.1}, {:.1}, {:.2} ms a pair", cost.scratch, cost.cached, cost.student);
        costs.push(cost);
    }
    let table = table(&costs, args.queries, query.len());
    print!("{table}");
    if let Some(dir) = &args.out {
        std::fs::create_dir_all(dir)?;
        models::files::write_atomic(&dir.join("table.md"), |writer| {
            std::io::Write::write_all(writer, table.as_bytes())
        })?;
        chart(&costs).write(&dir.join("cost.svg"))?;
        let rows: Vec<Value> = costs
            .iter()
            .map(|c| json!({ "tokens": c.length, "scratch_ms": c.scratch, "cached_ms": c.cached, "student_ms": c.student }))
            .collect();
        write_json(
            &dir.join("cost.json"),
            &json!({ "queries": args.queries, "layers": layers, "rows": rows }),
        )?;
    }
    Ok(())
}

/// Milliseconds per pair of one document with all queries.
fn cost(model: &Reranker, layers: &[usize], length: usize, query: &[u32], queries: usize) -> Result<Cost> {
    let _guard = tch::no_grad_guard();
    let device = model.device();
    let vocabulary = model.decoder.config().vocab_size as i64;
    let ids = Tensor::randint(vocabulary, [1, length as i64], (Kind::Int64, device));
    let tail: Vec<i64> = query.iter().map(|id| i64::from(*id)).collect();
    let tail = Tensor::from_slice(&tail).unsqueeze(0).to_device(device);
    let milliseconds = |f: &dyn Fn() -> Result<Tensor>, pairs: usize| -> Result<f64> {
        let mut fastest = f64::INFINITY;
        for _ in 0..3 {
            let start = Instant::now();
            let _computed = f()?;
            wait_for(model.device());
            fastest = fastest.min(start.elapsed().as_secs_f64());
        }
        Ok(fastest * 1e3 / pairs as f64)
    };
    let whole = Tensor::cat(&[&ids, &tail], 1);
    let scratch = milliseconds(
        &|| {
            let hidden = model.decoder.forward(ForwardInput::new(&whole))?;
            Ok(model.score(&hidden.last()?.select(1, -1))?)
        },
        1,
    )?;
    let batch: Vec<&[u32]> = vec![query; queries];
    let cached = milliseconds(
        &|| {
            let read = model.decoder.forward(ForwardInput { want_cache: true, ..ForwardInput::new(&ids) })?;
            let Some(cache) = read.cache else { bail!("the decoder gave no cache") };
            Ok(model.score(&model.hidden(&cache, &batch)?)?)
        },
        queries,
    )?;
    let document: Vec<u32> = Vec::<i64>::try_from(ids.view(-1))?.iter().map(|id| *id as u32).collect();
    let text = 0..document.len();
    let pass = models::prompt::Encoded { ids: document, text };
    let encoder = EncoderConfig { layers: layers.to_vec(), residual: Residual::Pooled };
    let student = milliseconds(
        &|| Ok(encode(&model.decoder, &encoder, std::slice::from_ref(&pass), Adapters::Off)?.latent),
        queries,
    )?;
    Ok(Cost { length, scratch, cached, student })
}

fn chart(costs: &[Cost]) -> LineChart {
    let series = |name: &str, of: fn(&Cost) -> f64| {
        Series::new(name, costs.iter().map(|cost| (cost.length as f64, of(cost))).collect())
    };
    LineChart {
        title: "What a pair costs".into(),
        x: Axis::log("document tokens"),
        y: Axis::log("milliseconds per pair"),
        series: vec![
            series("teacher, from scratch", |cost| cost.scratch),
            series("teacher, shared cache", |cost| cost.cached),
            series("student", |cost| cost.student),
        ],
    }
}

fn table(costs: &[Cost], queries: usize, query_tokens: usize) -> String {
    let mut text = format!(
        "Milliseconds per pair, {queries} queries of {query_tokens} tokens (instruction included) with each document; the student's \
         is its encoding of the document, shared by the queries.\n\n\
         | document tokens | teacher, from scratch | teacher, shared cache | saving | student | saving |\n\
         | ---: | ---: | ---: | ---: | ---: | ---: |\n"
    );
    for cost in costs {
        text += &format!(
            "| {} | {:.1} | {:.1} | {:.1}x | {:.2} | {:.0}x |\n",
            cost.length,
            cost.scratch,
            cost.cached,
            cost.scratch / cost.cached,
            cost.student,
            cost.scratch / cost.student
        );
    }
    text
}
