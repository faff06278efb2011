//! `train import`: a language model from a Hugging Face folder or a GGUF file.

use crate::importing::{Source, refuse_left_out};
use anyhow::{Context, Result, bail};
use clap::Args as ClapArgs;
use models::config::DecoderConfig;
use models::files::{StagedDir, write_json};
use models::pretrained::{self, Pretrained};
use models::prompt::{self, PromptTemplate, Prompter};
use std::path::PathBuf;

/// Import a language model: a Hugging Face folder or a GGUF file becomes a model directory with a prompt
///
/// The weights are copied (where the file system can, as a copy that takes no room), so that what is done to the source later
/// does not reach them. What cannot be imported exactly is refused before anything is written.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// Hugging Face folder (config.json, safetensors, tokenizer.json), also one in the hub's cache, or .gguf file
    #[arg(long, value_name = "PATH")]
    from: PathBuf,
    /// Model directory to create
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// LLM that a pretrained folder (--from) belongs to: a model directory, as this command writes it, or its .gguf file
    #[arg(long, value_name = "PATH")]
    base: Option<PathBuf>,
    /// Prompt template to use instead of the folder's own, or of the default in the turns of the model's chat template: a
    /// file like prompt.json, or `qwen3-reranker` for that model
    #[arg(long, value_name = "FILE")]
    prompt: Option<PathBuf>,
}

/// Reads, checks everything, then writes.
pub fn run(args: &Args) -> Result<()> {
    if !args.from.exists() {
        bail!("{}: no such file or folder", args.from.display());
    }
    let staged = StagedDir::new(&args.out)?;
    if Pretrained::is_one(&args.from) {
        return unpack(args, staged);
    }
    if args.base.is_some() {
        bail!("--base is for pretrained folders; {} is none", args.from.display());
    }
    let source = Source::open(&args.from)?;
    let config = source.config()?;
    let template = template(args, &source)?;
    refuse_left_out(source.left_out(), &template, &args.from)?;
    let prompter = Prompter::new(template, source.tokenizer(&args.from)?)
        .with_context(|| format!("{}: tokenizer and prompt do not fit", args.from.display()))?;
    if prompter.highest_token_id() >= config.vocab_size {
        bail!(
            "{}: tokenizer.json has token id {}, config.json says vocab_size {}; they belong to different models",
            args.from.display(),
            prompter.highest_token_id(),
            config.vocab_size
        );
    }
    for token in source.left_out() {
        eprintln!("tokenizer.json: left out `{token}`, for which the model has no embedding");
    }
    source.write(&args.from, staged.path())?;
    if args.prompt.is_some() || source.prompt().is_none() {
        write_json(&staged.path().join(prompt::FILE_NAME), prompter.template())?;
    }
    done(args, staged, &config)
}

/// A pretrained folder and the LLM that it belongs to.
fn unpack(args: &Args, staged: StagedDir) -> Result<()> {
    let from = args.from.display();
    let Some(base) = &args.base else {
        let name = Pretrained::open(&args.from)?.base.name;
        bail!("{from}: a pretrained folder; give the LLM it belongs to, {name}, with --base");
    };
    if args.prompt.is_some() {
        bail!("{from}: a pretrained folder brings the prompt it was trained with; leave --prompt out");
    }
    pretrained::assemble(&args.from, base, staged.path())?;
    let config = DecoderConfig::open(staged.path())?;
    Prompter::open(staged.path()).with_context(|| format!("{from}: tokenizer and prompt do not fit"))?;
    done(args, staged, &config)
}

fn done(args: &Args, staged: StagedDir, config: &DecoderConfig) -> Result<()> {
    staged.commit()?;
    eprintln!(
        "{}: {} layers, hidden size {}, {} tokens",
        config.architectures.join(", "),
        config.num_hidden_layers,
        config.hidden_size,
        config.vocab_size
    );
    println!("{}", args.out.display());
    Ok(())
}

/// The prompt that was asked for, the model's own, or the default one in the model's turns.
fn template(args: &Args, source: &Source) -> Result<PromptTemplate> {
    match &args.prompt {
        Some(name) if name.as_os_str() == "qwen3-reranker" => return Ok(PromptTemplate::qwen3_reranker()),
        Some(file) => return Ok(PromptTemplate::open(file)?),
        None => {}
    }
    if let Some(own) = source.prompt() {
        return Ok(own.clone());
    }
    let turns = source.turns(&args.from)?;
    match &turns {
        None => {
            eprintln!("no chat template: the prompt is written in ChatML turns; give another with --prompt")
        }
        Some(turns) if turns.skips_a_thought() => {
            eprintln!("the model thinks before it answers: the choice is read behind an empty thought");
        }
        Some(_) => {}
    }
    Ok(turns.unwrap_or_default().prompt())
}
