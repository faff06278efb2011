//! `train generate`: let an imported model speak, to see with one's own eyes that the import is right.

use crate::chat_template::Turns;
use crate::device::DeviceArgs;
use anyhow::Result;
use clap::Args as ClapArgs;
use models::prompt::open_tokenizer;
use models::torch::Reranker;
use std::path::PathBuf;

/// Answer one question with a model directory, greedily
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// Model directory, as written by `train import` or `train teacher`
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Most tokens to generate
    #[arg(long, default_value_t = 64)]
    max_new_tokens: usize,
    /// What the user says; put into the turns of the model's chat template
    question: String,
}

/// Prints the answer.
pub fn run(args: &Args, device: &DeviceArgs) -> Result<()> {
    let model = Reranker::open(&args.model, &device.open(None)?)?;
    let tokenizer = open_tokenizer(&args.model)?;
    let turns = Turns::open(&args.model)?.unwrap_or_default();
    let prompt = format!("{}{}{}{}", turns.user, args.question, turns.end, turns.assistant);
    let encoding = tokenizer.encode(prompt, false).map_err(|e| anyhow::anyhow!("cannot tokenise: {e}"))?;
    let ids: Vec<i64> = encoding.get_ids().iter().map(|id| i64::from(*id)).collect();
    let mut end = model.decoder.config().eos_token_id.0.clone();
    end.extend(tokenizer.token_to_id(turns.end.trim()).map(i64::from));
    let answer: Vec<u32> = model
        .decoder
        .generate(&ids, args.max_new_tokens, &end)?
        .into_iter()
        .filter_map(|id| u32::try_from(id).ok())
        .collect();
    let text = tokenizer.decode(&answer, true).map_err(|e| anyhow::anyhow!("cannot decode: {e}"))?;
    println!("{}", text.trim());
    Ok(())
}
