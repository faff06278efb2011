//! `train import`: a language model from a Hugging Face folder or a GGUF file.

use crate::chat_template::Turns;
use anyhow::{Context, Result, bail};
use clap::Args as ClapArgs;
use models::checkpoint::{WEIGHTS_FILE, copy_side_files, link_weights};
use models::config::DecoderConfig;
use models::files::{StagedDir, write_json};
use models::gguf::GgufModel;
use models::pretrained::{self, Pretrained};
use models::prompt::{self, PromptTemplate, Prompter};
use models::weights::{DType, SafetensorsWriter, Weights};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Import a language model: a Hugging Face folder or a GGUF file becomes a model directory with a prompt
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// Hugging Face folder (config.json, safetensors, tokenizer.json) or .gguf file
    #[arg(long, value_name = "PATH")]
    from: PathBuf,
    /// Model directory to create
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// The LLM that a pretrained folder (--from) belongs to: a model directory or its .gguf file
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
        let Some(base) = &args.base else {
            let name = Pretrained::open(&args.from)?.base.name;
            bail!(
                "{}: a pretrained folder; give the LLM it belongs to, {name}, with --base",
                args.from.display()
            );
        };
        if args.prompt.is_some() {
            bail!(
                "{}: a pretrained folder brings the prompt it was trained with; leave --prompt out",
                args.from.display()
            );
        }
        pretrained::assemble(&args.from, base, staged.path())?;
    } else if args.base.is_some() {
        bail!("--base is for pretrained folders; {} is none", args.from.display());
    } else if args.from.is_dir() {
        copy_side_files(&args.from, staged.path())?;
        let config = DecoderConfig::open(&args.from)?;
        Weights::open(&args.from)?.check(&config)?;
        link_weights(&args.from, staged.path())?;
    } else {
        from_gguf(&args.from, staged.path())?;
    }
    let template_file = staged.path().join(prompt::FILE_NAME);
    match &args.prompt {
        Some(name) if name.as_os_str() == "qwen3-reranker" => {
            write_json(&template_file, &PromptTemplate::qwen3_reranker())?;
        }
        Some(file) => write_json(&template_file, &PromptTemplate::open(file)?)?,
        None if !template_file.exists() => {
            let turns = Turns::open(staged.path())?;
            if turns.is_none() {
                eprintln!(
                    "no chat template: the prompt is written in ChatML turns; give another with --prompt"
                );
            }
            write_json(&template_file, &turns.unwrap_or_default().prompt())?;
        }
        None => {}
    }
    let config = DecoderConfig::open(staged.path())?;
    let prompter = Prompter::open(staged.path())
        .with_context(|| format!("{}: tokenizer and prompt do not fit", args.from.display()))?;
    if prompter.highest_token_id() >= config.vocab_size {
        bail!(
            "{}: tokenizer.json has token id {}, config.json says vocab_size {}; they belong to different models",
            args.from.display(),
            prompter.highest_token_id(),
            config.vocab_size
        );
    }
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

fn from_gguf(from: &Path, out: &Path) -> Result<()> {
    let model = GgufModel::open(from)?;
    write_json(&out.join("config.json"), &model.config)?;
    write_json(&out.join("tokenizer.json"), &model.tokenizer)?;
    write_json(&out.join("tokenizer_config.json"), &model.tokenizer_config)?;
    let mut writer = SafetensorsWriter::create(out.join(WEIGHTS_FILE), DType::F32)?;
    for name in model.tensor_names() {
        let (shape, values) = model.tensor_f32(&name)?;
        writer.push(&name, &shape, &values)?;
    }
    writer.finish(HashMap::from([("format".to_owned(), "pt".to_owned())]))?;
    Weights::open(out)?.check(&DecoderConfig::open(out)?)?;
    Ok(())
}
