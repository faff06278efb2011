//! `runtime keygen`: a pair of keys for a fleet.

use crate::{Global, Outcome};
use anyhow::Context;
use runtime::keys;
use std::io::{self, Write};
use std::path::PathBuf;

/// Make a pair of keys: the private one signs snapshots, the public one goes to every robot
///
/// The same files as `openssl genpkey -algorithm ed25519` and `openssl pkey -pubout` write. Neither file may exist.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Private key to write, e.g. fleet.pem; only you may read it
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Public key to write [default: the private one's name with `.pub.pem`]
    #[arg(long, value_name = "FILE")]
    public: Option<PathBuf>,
}

/// Prints the public key's path.
pub fn run(args: &Args, _: &Global) -> anyhow::Result<Outcome> {
    let public = args.public.clone().unwrap_or_else(|| args.out.with_extension("pub.pem"));
    let key = keys::generate(&args.out, &public)?;
    eprintln!("runtime: key {}; {} stays with you", keys::name(&key), args.out.display());
    writeln!(io::stdout(), "{}", public.display()).context("cannot write to stdout")?;
    Ok(Outcome::Done)
}
