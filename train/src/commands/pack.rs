//! `train pack`: what training changed in an LLM, in few bits, as a folder that can be shipped.

use anyhow::Result;
use clap::Args as ClapArgs;
use models::pretrained::pack;
use std::path::PathBuf;

/// Pack a teacher or a student as its difference from the LLM it was trained from (4 bits a weight), to be shipped without
/// that LLM's weights
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// Teacher or student directory. A student whose golden numbers should hold is distilled from a teacher that was packed
    /// and imported before, since packing rounds
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// The LLM that it was trained from, as written by `train import`
    #[arg(long, value_name = "DIR")]
    base: PathBuf,
    /// What that LLM is called: who has another one is told
    #[arg(long, value_name = "NAME")]
    base_name: String,
    /// Folder to create
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// Packs, prints the folder's path.
pub fn run(args: &Args) -> Result<()> {
    let packed = pack(&args.model, &args.base, &args.base_name, &args.out)?;
    for name in packed.files.keys() {
        let bytes = std::fs::metadata(args.out.join(name)).map_or(0, |found| found.len());
        eprintln!("{name}: {:.1} MB", bytes as f64 / 1e6);
    }
    println!("{}", args.out.display());
    Ok(())
}
