//! The teacher on the device: a document is read once, its keys and values are kept, and every query continues them (or the
//! query is read once, where the prompt asks about it first).

use crate::selftest;
use crate::session::{Element, Port, Session, SessionError, SessionOptions, Tensor, Values};
use models::files::sha256_parts;
use models::manifest::{ManifestError, names};
use models::prompt::{PromptError, Prompter};
use models::reranker_manifest::{GRAPH_FILE, PREFIX_FILE, PREFIX_TENSOR, RerankerManifest};
use models::weights::{Weights, WeightsError};
use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Memory that keys and values of texts read may take.
const KEPT_BYTES: usize = 256 << 20;

/// A reranker that cannot be opened or asked.
#[derive(Debug, thiserror::Error)]
pub enum RerankerError {
    /// The manifest is unreadable, or a file is not the one it lists.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Template, tokenizer or text are refused.
    #[error(transparent)]
    Prompt(#[from] PromptError),
    /// The prompt's keys and values cannot be read.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The graph cannot be opened or run.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The bundle does not compute here what it computed where it was exported.
    #[error(
        "{dir}: a golden pair scores {found} on this machine, {expected} where it was exported (query {query:?}); try another ONNX Runtime library, or export again"
    )]
    Golden {
        /// The bundle.
        dir: PathBuf,
        /// Score here.
        found: f32,
        /// Score there.
        expected: f32,
        /// The query.
        query: String,
    },
    /// The files belong to different exports.
    #[error(
        "{file}: {what} differs from what reranker.json says; the files come from different exports, export again"
    )]
    Disagreement {
        /// The file.
        file: PathBuf,
        /// What differs.
        what: &'static str,
    },
}

/// A document (or, where the prompt asks about it first, a query) as the model has read it.
#[derive(Debug)]
pub struct Read {
    past: Vec<f32>,
    tokens: usize,
}

/// An opened reranker. Any thread may use it.
#[derive(Debug)]
pub struct Reranker {
    manifest: RerankerManifest,
    prompter: Prompter,
    prefix: Vec<f32>,
    session: Session,
    kept: Mutex<Kept>,
}

/// Texts read lately, by digest; the oldest leave first.
#[derive(Debug, Default)]
struct Kept {
    by_digest: HashMap<String, Arc<Read>>,
    order: VecDeque<String>,
    bytes: usize,
}

impl Reranker {
    /// Opens a bundle that `export --reranker` wrote; every file is checked.
    pub fn open(dir: &Path, options: &SessionOptions) -> Result<Self, RerankerError> {
        let manifest = RerankerManifest::open(dir)?;
        let prompter = Prompter::open(dir)?;
        let disagreement = |name: &str, what| RerankerError::Disagreement { file: dir.join(name), what };
        if prompter.choices() != manifest.choices || prompter.highest_token_id() >= manifest.vocab_size {
            return Err(disagreement("tokenizer.json", "the token of a choice, or the number of tokens,"));
        }
        if prompter.before_read() != manifest.prefix {
            return Err(disagreement("prompt.json", "what a prompt begins with"));
        }
        let (shape, prefix) = Weights::open_file(dir.join(PREFIX_FILE))?.f32(PREFIX_TENSOR)?;
        if shape != manifest.past_shape(manifest.prefix.len()) {
            return Err(disagreement(PREFIX_FILE, "the shape of the prompt's keys and values"));
        }
        let states = |tokens| {
            let [batch, parts, heads, _, numbers] = manifest.past_shape(0).map(Some);
            vec![batch, parts, heads, tokens, numbers]
        };
        let inputs = vec![
            Port::new(names::INPUT_IDS, Element::Int64, [Some(1), None]),
            Port::new(names::PAST, Element::Float32, states(None)),
        ];
        let outputs = vec![
            Port::new(names::CHOICE_LOGITS, Element::Float32, [Some(1), Some(2)]),
            Port::new(names::PRESENT, Element::Float32, states(None)),
        ];
        let session = Session::open(&dir.join(GRAPH_FILE), options, inputs, outputs)?;
        Ok(Self { manifest, prompter, prefix, session, kept: Mutex::default() })
    }

    /// Opens a bundle and measures so many of its golden pairs, before anybody relies on it.
    pub fn open_proven(dir: &Path, options: &SessionOptions, golden: usize) -> Result<Self, RerankerError> {
        let reranker = Self::open(dir, options)?;
        for measured in selftest::measure_reranker(&reranker, golden)? {
            if !measured.passed {
                let (found, expected) = (measured.folded, measured.golden.score);
                let (dir, query) = (dir.to_owned(), measured.golden.query);
                return Err(RerankerError::Golden { dir, found, expected, query });
            }
        }
        Ok(reranker)
    }

    /// What it was exported as.
    pub fn manifest(&self) -> &RerankerManifest {
        &self.manifest
    }

    /// `log p(T) - log p(F)` of several documents for one query; what stands first in the prompt, each document or the
    /// query, is read once and kept for a while.
    pub fn scores(&self, query: &str, documents: &[&str]) -> Result<Vec<f32>, RerankerError> {
        let score = |document: &&str| {
            let [first, second] = self.prompter.in_order(*document, query);
            let read = self.read(first)?;
            let ids = self.prompter.continuation(second)?;
            let [logits, _] = self.run(&ids, &read.past, read.tokens)?;
            Ok(logits.values[0] - logits.values[1])
        };
        documents.iter().map(score).collect()
    }

    /// Reads what stands first, or remembers it.
    fn read(&self, first: &str) -> Result<Arc<Read>, RerankerError> {
        let digest = sha256_parts([first.as_bytes()]);
        let lock = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(read) = lock().by_digest.get(&digest) {
            return Ok(Arc::clone(read));
        }
        let pass = self.prompter.read_pass(first)?;
        let ids = &pass.ids[self.manifest.prefix.len()..];
        let [_, present] = self.run(ids, &self.prefix, self.manifest.prefix.len())?;
        let read = Arc::new(Read { tokens: pass.ids.len(), past: present.values });
        lock().keep(digest, &read);
        Ok(read)
    }

    fn run(&self, ids: &[u32], past: &[f32], tokens: usize) -> Result<[Tensor; 2], RerankerError> {
        let ids: Vec<i64> = ids.iter().map(|id| i64::from(*id)).collect();
        let (shape, past_shape) = ([1, ids.len()], self.manifest.past_shape(tokens));
        let inputs = [(Values::Int64(&ids), &shape[..]), (Values::Float32(past), &past_shape[..])];
        let outputs = self.session.run(&inputs)?;
        // Session::run gives what was asked for at open.
        outputs.try_into().map_err(|_| RerankerError::Disagreement {
            file: PathBuf::from(GRAPH_FILE),
            what: "the number of outputs",
        })
    }
}

impl Kept {
    fn keep(&mut self, digest: String, read: &Arc<Read>) {
        let size = |read: &Read| size_of_val(read.past.as_slice());
        if self.by_digest.insert(digest.clone(), Arc::clone(read)).is_none() {
            self.order.push_back(digest);
            self.bytes += size(read);
        }
        while self.bytes > KEPT_BYTES && self.order.len() > 1 {
            let oldest = self.order.pop_front().and_then(|digest| self.by_digest.remove(&digest));
            self.bytes -= oldest.map_or(0, |read| size(&read));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A robot that reranks for years must not remember every document it ever saw.
    #[test]
    fn what_is_kept_is_bounded_and_the_newest_stay() {
        let mut kept = Kept::default();
        let third = KEPT_BYTES / 3 / size_of::<f32>() + 1;
        for name in ["a", "b", "c", "c"] {
            kept.keep(name.into(), &Arc::new(Read { past: vec![0.0; third], tokens: 1 }));
        }
        assert!(kept.bytes <= KEPT_BYTES);
        let mut names: Vec<_> = kept.by_digest.keys().cloned().collect();
        names.sort();
        assert_eq!(names, ["b", "c"]);
    }
}
