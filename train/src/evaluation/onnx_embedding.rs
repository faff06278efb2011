//! Any embedding model that comes as ONNX, as sentence-transformers and optimum write it: `model.onnx` (or
//! `onnx/model.onnx`) and `tokenizer.json`.
//!
//! Inputs `input_ids`, `attention_mask` and maybe `token_type_ids`; outputs `sentence_embedding`, pooled by the graph, or
//! `token_embeddings` or `last_hidden_state`, pooled here. Texts go through the graph one by one: models in int8 let a
//! text's neighbours change its embedding, and nothing here tells them from others.

use super::cosine::Embed;
use super::onnx_folder::{
    configured_pooling, graph_file, refuse_more_modules, tokenizer_folder, truncating_tokenizer,
};
use crate::features::{Side, bar};
use anyhow::{Context, Result, bail};
use runtime::session::{Element, Graph, Outlet, Port, Session, SessionOptions, Tensor, Values};
use std::path::{Path, PathBuf};
use tokenizers::Tokenizer;

/// Inputs that can be filled, in the order in which they are; the last one is not in every model.
const INPUTS: [&str; 3] = ["input_ids", "attention_mask", "token_type_ids"];
/// A vector for each text.
pub(super) const POOLED: &str = "sentence_embedding";
/// A vector for each token, in order of preference.
const UNPOOLED: [&str; 2] = ["token_embeddings", "last_hidden_state"];

/// How token vectors become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Pooling {
    /// Mean over all tokens
    Mean,
    /// The first token
    Cls,
    /// The last token
    LastToken,
}

/// Which model, and how it wants to be asked.
#[derive(Debug, Clone)]
pub struct OnnxConfig {
    /// A directory with the model, or the graph itself.
    pub path: PathBuf,
    /// Pooling; without it the graph's own, `1_Pooling/config.json`'s, or the mean.
    pub pooling: Option<Pooling>,
    /// Put before every query, e.g. `query: `.
    pub query_prefix: String,
    /// Put before every document, e.g. `passage: `.
    pub document_prefix: String,
    /// How the graph is run.
    pub session: SessionOptions,
}

/// An opened model.
pub struct OnnxEmbedding {
    file: PathBuf,
    session: Session,
    tokenizer: Tokenizer,
    token_types: bool,
    /// None where the graph pools.
    pooling: Option<Pooling>,
    query_prefix: String,
    document_prefix: String,
}

impl OnnxEmbedding {
    /// Opens the model; a graph that takes or gives something else is refused by name.
    pub fn open(config: &OnnxConfig) -> Result<Self> {
        let file = graph_file(&config.path)?;
        let folder = tokenizer_folder(&file)?;
        let tokenizer = truncating_tokenizer(&folder)?;
        let graph = Graph::load(&file, &config.session)?;
        let inputs = input_ports(&file, &graph.inputs())?;
        let (output, pooled) = output_port(&file, &graph.outputs(), config.pooling.is_some())?;
        let pooling = match (pooled, config.pooling) {
            (true, _) => None,
            (false, Some(pooling)) => Some(pooling),
            (false, None) => Some(configured_pooling(&folder)?),
        };
        if pooling.is_some() {
            refuse_more_modules(&folder)?;
        }
        let token_types = inputs.len() == INPUTS.len();
        let session = graph.session(inputs, vec![output])?;
        let (query_prefix, document_prefix) = (config.query_prefix.clone(), config.document_prefix.clone());
        Ok(Self { file, session, tokenizer, token_types, pooling, query_prefix, document_prefix })
    }

    fn one(&self, text: &str) -> Result<Vec<f32>> {
        let file = self.file.display();
        let beginning: String = text.chars().take(40).collect();
        let encoding = match self.tokenizer.encode_fast(text, true) {
            Ok(encoding) => encoding,
            Err(error) => bail!("cannot tokenise {beginning:?} for {file}: {error}"),
        };
        let wide = |numbers: &[u32]| numbers.iter().map(|n| i64::from(*n)).collect::<Vec<i64>>();
        let (ids, types) = (wide(encoding.get_ids()), wide(encoding.get_type_ids()));
        if ids.is_empty() {
            bail!("the tokenizer of {file} makes no token of {beginning:?}; there is nothing to embed");
        }
        let (mask, shape) = (vec![1i64; ids.len()], [1, ids.len()]);
        let mut inputs: Vec<(Values, &[usize])> =
            vec![(Values::Int64(&ids), &shape), (Values::Int64(&mask), &shape)];
        if self.token_types {
            inputs.push((Values::Int64(&types), &shape));
        }
        let output = self.session.run(&inputs)?.pop().context("a session gives the output it promised")?;
        let Some(pooling) = self.pooling else { return Ok(output.values) };
        if output.shape[1] != ids.len() {
            bail!(
                "{file}: gives {} token vectors for {} tokens; this graph is not understood",
                output.shape[1],
                ids.len()
            );
        }
        Ok(pool(&output, pooling))
    }
}

impl Embed for OnnxEmbedding {
    fn embed(&mut self, side: Side, texts: &[&str]) -> Result<Vec<Vec<f32>>> {
        let prefix = match side {
            Side::Query => &self.query_prefix,
            Side::Document => &self.document_prefix,
        };
        let bar = bar(texts.len(), "ONNX embeddings");
        let embedded = texts.iter().map(|text| {
            bar.inc(1);
            self.one(&format!("{prefix}{text}"))
        });
        let embedded = embedded.collect();
        bar.finish_and_clear();
        embedded
    }
}

/// `[1, seq, hidden]` to `[hidden]`; one text alone has no padding to leave out.
fn pool(tokens: &Tensor, pooling: Pooling) -> Vec<f32> {
    let (seq, hidden) = (tokens.shape[1], tokens.shape[2]);
    let row = |n: usize| &tokens.values[n * hidden..(n + 1) * hidden];
    match pooling {
        Pooling::Cls => row(0).to_vec(),
        Pooling::LastToken => row(seq - 1).to_vec(),
        Pooling::Mean => {
            let sum = |i| (0..seq).map(|n| f64::from(row(n)[i])).sum::<f64>();
            (0..hidden).map(|i| (sum(i) / seq as f64) as f32).collect()
        }
    }
}

/// The graph's inputs in the order of [`INPUTS`].
fn input_ports(file: &Path, found: &[Outlet]) -> Result<Vec<Port>> {
    if let Some(outlet) = found.iter().find(|outlet| !INPUTS.contains(&outlet.name.as_str())) {
        bail!(
            "{}: has an input `{}`; a text embedding model takes `{}`, and nothing is known to put into another",
            file.display(),
            outlet.name,
            INPUTS.join("`, `")
        );
    }
    let mut ports = Vec::new();
    for (place, name) in INPUTS.into_iter().enumerate() {
        let Some(outlet) = found.iter().find(|outlet| outlet.name == name) else {
            if place + 1 == INPUTS.len() {
                continue;
            }
            bail!("{}: has no input `{name}`, only {}", file.display(), names(found));
        };
        if outlet.element != Some(Element::Int64) || !matches!(outlet.dims[..], [None | Some(1), None]) {
            let (file, description) = (file.display(), &outlet.description);
            bail!("{file}: input `{name}` is {description}, expected int64 [?, ?] (batch, sequence)");
        }
        ports.push(Port::new(name, Element::Int64, outlet.dims.clone()));
    }
    Ok(ports)
}

/// The output that is read, and whether the graph has pooled it; `unpooled` asks for token vectors.
fn output_port(file: &Path, found: &[Outlet], unpooled: bool) -> Result<(Port, bool)> {
    let kinds = [(POOLED, 2), (UNPOOLED[0], 3), (UNPOOLED[1], 3)];
    let wanted = kinds.into_iter().filter(|(name, _)| !unpooled || *name != POOLED);
    for (name, rank) in wanted {
        let Some(outlet) = found.iter().find(|outlet| outlet.name == name) else { continue };
        if outlet.element != Some(Element::Float32) || outlet.dims.len() != rank {
            let expected =
                if rank == 2 { "[?, ?] (batch, hidden)" } else { "[?, ?, ?] (batch, sequence, hidden)" };
            let (file, description) = (file.display(), &outlet.description);
            bail!("{file}: output `{name}` is {description}, expected float {expected}");
        }
        return Ok((Port::new(name, Element::Float32, outlet.dims.clone()), rank == 2));
    }
    let expected = if unpooled { UNPOOLED.to_vec() } else { [&[POOLED], &UNPOOLED[..]].concat() };
    bail!("{}: has the outputs {}, expected `{}`", file.display(), names(found), expected.join("` or `"))
}

fn names(found: &[Outlet]) -> String {
    found.iter().map(|outlet| format!("`{}`", outlet.name)).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outlet(name: &str, element: Option<Element>, dims: &[Option<usize>]) -> Outlet {
        Outlet { name: name.into(), element, dims: dims.to_vec(), description: "as described".into() }
    }

    /// A wrong row pooled is a plausible, worse model.
    #[test]
    fn pooling_takes_the_tokens_it_says() {
        let tokens = Tensor { shape: vec![1, 3, 2], values: vec![1.0, 2.0, 3.0, 5.0, 8.0, 11.0] };
        assert_eq!(pool(&tokens, Pooling::Mean), [4.0, 6.0]);
        assert_eq!(pool(&tokens, Pooling::Cls), [1.0, 2.0]);
        assert_eq!(pool(&tokens, Pooling::LastToken), [8.0, 11.0]);
    }

    /// Somebody else's graph is understood or refused, never guessed at.
    #[test]
    fn graphs_of_other_kinds_are_refused_by_name() {
        let free = [None, None];
        let int = |name| outlet(name, Some(Element::Int64), &free);
        let file = Path::new("m.onnx");
        let refused = |found: &[Outlet], words: &str| {
            let message = input_ports(file, found).unwrap_err().to_string();
            assert!(message.contains(words), "{message:?} lacks {words:?}");
        };
        let ports =
            input_ports(file, &[int("token_type_ids"), int("attention_mask"), int("input_ids")]).unwrap();
        assert_eq!(ports.iter().map(|port| port.name.as_ref()).collect::<Vec<_>>(), INPUTS);
        refused(&[int("input_ids"), int("pixel_values")], "m.onnx: has an input `pixel_values`");
        refused(&[int("input_ids")], "has no input `attention_mask`, only `input_ids`");
        let fixed = outlet("input_ids", Some(Element::Int64), &[Some(8), Some(128)]);
        refused(&[fixed, int("attention_mask")], "input `input_ids` is as described, expected int64 [?, ?]");

        let float = |name, dims: &[Option<usize>]| outlet(name, Some(Element::Float32), dims);
        let outputs = [float("token_embeddings", &[None; 3]), float("sentence_embedding", &[None, Some(8)])];
        let (port, pooled) = output_port(file, &outputs, false).unwrap();
        assert!(pooled && port.name == "sentence_embedding");
        let (port, pooled) = output_port(file, &outputs, true).unwrap();
        assert!(!pooled && port.name == "token_embeddings");
        let message = output_port(file, &[float("logits", &free)], false).unwrap_err().to_string();
        assert!(message.contains("the outputs `logits`, expected `sentence_embedding` or"), "{message}");
        let half = outlet("last_hidden_state", None, &[None; 3]);
        assert!(output_port(file, &[half], false).unwrap_err().to_string().contains("expected float"));
    }
}
