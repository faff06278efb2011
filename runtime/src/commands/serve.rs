//! `runtime serve`: answers over HTTP until it is told to stop.

use super::place::{DatabaseArgs, IndexArgs};
use crate::{Global, Outcome};
use anyhow::{Context, bail};
use runtime::retriever::Options;
use runtime::serve::{App, Connections, Defaults, Limits, Paths, Role, Signals, Similarity, serve};
use std::env::VarError;
use std::fs;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// Where the key is, if it is not in a file: on the command line, everybody could read it.
const API_KEY: &str = "RABTRIEVER_API_KEY";

/// Answer over HTTP: queries, documents, a page to try it, and the shapes of text-embeddings-inference, OpenAI and Cohere
///
/// Prints its address on stdout when it is ready. SIGHUP opens bundle and index anew without dropping a request, SIGTERM
/// ends it when what has begun is answered.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Bundle directory, as written by `export --onnx`
    #[arg(long, value_name = "DIR")]
    bundle: PathBuf,
    #[command(flatten)]
    index: IndexArgs,
    #[command(flatten)]
    database: DatabaseArgs,
    /// Reranker's bundle, as written by `export --reranker`: for `rerank` of a query, and for the rerank routes
    #[arg(long, value_name = "DIR")]
    reranker: Option<PathBuf>,
    /// Address; port 0 takes a free one. Other machines reach it only under an address of their network
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Name of the model, for clients that ask for one: NAME, and with -query or -document behind it, which say which side of the
    /// score texts are on; -cosine behind that says the same as --default-similarity cosine. GET /v1/models lists them
    #[arg(long, value_name = "NAME", default_value_t = Defaults::default().model)]
    model_name: String,
    /// Which side of the score texts are on where a request to embed does not say. Queries that are embedded as documents find
    /// much less
    #[arg(long, value_name = "ROLE", default_value = "document")]
    default_role: Role,
    /// What embeddings are made for where a request does not say: `inner-product` gives vectors as the index stores them, whose
    /// inner product ranks as `/query` does (by cosine they rank otherwise: better for known skills, MRR 0.439 for 0.404, and worse
    /// for unseen ones, 0.214 for 0.277, on data/home-robot); `cosine` gives vectors of length 1 that rank as `/query` does by any
    /// measure, for stores that normalise. Documents and queries must be of one kind
    #[arg(long, value_name = "SIMILARITY", default_value = "inner-product")]
    default_similarity: Similarity,
    /// File with a key that every request must bring as `Authorization: Bearer KEY` [default: the key is in
    /// RABTRIEVER_API_KEY, if there is one]
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Name, beside localhost, under which this server may be asked without a key (a proxy's)
    #[arg(long, value_name = "NAME")]
    allow_host: Vec<String>,
    /// Requests that are worked on or wait; more get status 429
    #[arg(long, value_name = "N", default_value_t = Limits::default().requests)]
    queue: usize,
    /// Most texts that are encoded together, where the bundle allows it
    #[arg(long, value_name = "N", default_value_t = Limits::default().batch)]
    batch: usize,
    /// Seconds for a request, and for a client that takes nothing of its answer. What would take longer is refused as soon as its
    /// pace tells, and work that nobody waits for ends
    #[arg(long, value_name = "SECONDS", default_value_t = 30.0)]
    timeout: f64,
    /// Bytes of a request's body
    #[arg(long, value_name = "BYTES", default_value_t = Limits::default().body)]
    max_body: usize,
    /// Most results, texts or documents of one request
    #[arg(long, value_name = "N", default_value_t = Limits::default().items)]
    max_items: usize,
    /// Most documents that the reranker reads for a query
    #[arg(long, value_name = "N", default_value_t = Limits::default().rerank)]
    max_rerank: usize,
    /// Most connections at once
    #[arg(long, value_name = "N", default_value_t = Connections::default().most)]
    connections: usize,
    /// Seconds for what has begun when the server is told to stop; told twice, it stops at once
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
    grace: f64,
}

/// Opens everything before it listens: whoever gets through gets answers.
pub fn run(args: &Args, global: &Global) -> anyhow::Result<Outcome> {
    let positive = [("--queue", args.queue), ("--batch", args.batch), ("--connections", args.connections)];
    if let Some((flag, _)) = positive.iter().find(|(_, value)| *value == 0) {
        bail!("{flag} is 0; it must be at least 1");
    }
    let seconds = |flag: &str, value: f64| {
        Duration::try_from_secs_f64(value).with_context(|| format!("{flag} {value} is not a time in seconds"))
    };
    let timeout = seconds("--timeout", args.timeout)?;
    let connections = Connections {
        most: args.connections,
        grace: seconds("--grace", args.grace)?,
        headers: timeout.min(Connections::default().headers),
        answers: timeout,
    };
    let key = api_key(args.api_key_file.as_deref())?;
    let loopback = args.listen.ip().is_loopback();
    if key.is_none() && !loopback {
        eprintln!(
            "runtime: everybody who reaches {} may read and change the index; --api-key-file asks for a key",
            args.listen
        );
    }
    let hosts = if loopback {
        let own = ["localhost", "127.0.0.1", "[::1]"].map(str::to_owned);
        let own = own.into_iter().chain([args.listen.ip().to_string()]);
        own.chain(args.allow_host.iter().cloned()).collect()
    } else {
        args.allow_host.clone()
    };
    let limits = Limits {
        requests: args.queue,
        batch: args.batch,
        timeout,
        body: args.max_body,
        items: args.max_items,
        rerank: args.max_rerank,
    };
    let defaults = defaults(args)?;
    let (bundle, index, reranker) = (args.bundle.clone(), args.index.place()?, args.reranker.clone());
    let paths = Paths { bundle, index, reranker };
    let options = Options { database: args.database.options()?, ..global.options() };
    let workers = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        // A thread for each place, and some for what the server itself has to do.
        .max_blocking_threads(args.queue + 4)
        .enable_all()
        .build()
        .context("cannot start threads")?;
    // Listening comes first, so that a port in use is known before a bundle is read.
    let listener = workers
        .block_on(TcpListener::bind(args.listen))
        .with_context(|| format!("cannot listen on {} (--listen)", args.listen))?;
    let app = Arc::new(App::open(paths, options, limits, defaults, key.as_deref(), hosts)?);
    let signals = Signals::default();
    workers.block_on(async {
        listen_to_signals(&signals)?;
        let address = listener.local_addr().context("cannot tell the address")?;
        writeln!(io::stdout(), "http://{address}").context("cannot write to stdout")?;
        serve(listener, app, connections, signals).await.context("cannot serve")
    })?;
    // Work whose client gave up may still be at a text; its changes are durable or not made.
    workers.shutdown_timeout(Duration::from_millis(100));
    Ok(Outcome::Done)
}

/// A name that ends as roles do would mean two things.
fn defaults(args: &Args) -> anyhow::Result<Defaults> {
    let model = args.model_name.clone();
    let ends = ["-query", "-document", "-cosine"].into_iter().find(|end| model.ends_with(end));
    if let Some(end) = ends {
        bail!(
            "--model-name {model}: ends in {end}, which clients put behind the name to say what they embed"
        );
    }
    if model.trim() != model || model.is_empty() {
        bail!("--model-name {model:?}: is empty, or begins or ends with a space");
    }
    Ok(Defaults { model, role: args.default_role, similarity: args.default_similarity })
}

fn api_key(file: Option<&Path>) -> anyhow::Result<Option<String>> {
    let (text, place) = match file {
        Some(file) => {
            let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
            (text, file.display().to_string())
        }
        None => match std::env::var(API_KEY) {
            Ok(text) => (text, API_KEY.to_owned()),
            Err(VarError::NotPresent) => return Ok(None),
            Err(error) => bail!("{API_KEY}: {error}"),
        },
    };
    match text.trim() {
        "" => bail!("{place}: holds no key"),
        key => Ok(Some(key.to_owned())),
    }
}

fn listen_to_signals(signals: &Signals) -> anyhow::Result<()> {
    let mut hangup = signal(SignalKind::hangup()).context("cannot listen to SIGHUP")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen to SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen to SIGINT")?;
    let Signals { stop, reload } = signals.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = hangup.recv() => reload.notify_one(),
                _ = terminate.recv() => stop.notify_one(),
                _ = interrupt.recv() => stop.notify_one(),
            }
        }
    });
    Ok(())
}
