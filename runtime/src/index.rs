//! A usearch graph over the stored vectors: an accelerator that is never the truth; the only file that names `usearch`.
//!
//! It names candidates, which are then scored exactly (crate::search); it can always be rebuilt from the database. It is
//! built over `ud` under the squared Euclidean distance (near vectors score alike for any query) and searched under the
//! score itself: gated, an inner product, for which usearch has kernels; relu, `-v . relu(uq + ud)`, which is ours. Built
//! under the inner product, vectors of unequal length leave the short ones unlinked.
//!
//! On disk: `graph-*.usearch`, and `graph.json`, which says which file it is, what its SHA-256 is (usearch's own format has
//! no checksum) and what database generation it covers. What came after that generation is linked when it is opened. A
//! new graph is another file until `graph.json` names it: a whole one is there at any moment.

use crate::bundle::Bundle;
use crate::search::Rows;
use crate::store::{Changes, Generation};
use models::files::{self, FileError};
use models::fold::{Folded, FoldedQuery, relu_score};
use models::student::{Form, Residual};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use usearch::{Index, IndexOptions, MetricKind, ScalarKind};

/// Version of `graph.json` that this program reads and writes.
pub const FORMAT_VERSION: u32 = 2;
/// Names of graphs inside an index begin and end with this.
const FILE_NAME: (&str, &str) = ("graph-", ".usearch");
/// Description of the graph in use.
pub const SIDECAR_NAME: &str = "graph.json";

/// Links of a node.
const CONNECTIVITY: usize = 16;
/// Nodes looked at while a node is linked.
const EXPANSION_ADD: usize = 128;
/// Nodes looked at while searching, at least; usearch raises it to the number of candidates wanted.
const EXPANSION_SEARCH: usize = 128;
/// The same for the relu form: links by distance lead to the best scores less directly. Measured on 2,300 vectors of
/// which a quarter lies in no cluster: recall@10 0.87 with 128, 0.94 with 256, 0.99 with 512.
const EXPANSION_SEARCH_RELU: usize = 256;

/// Most nodes that are looked at for a query.
pub const WIDEST: usize = 8192;

mod format;

/// A graph that cannot be used or made; the database beside it is not concerned.
#[derive(Debug, thiserror::Error)]
pub enum GraphError {
    /// Reading or writing a file failed; a missing one means that no graph was saved.
    #[error(transparent)]
    File(#[from] FileError),
    /// The graph does not belong to this database.
    #[error("{file}: belongs to {what} {found}, documents.sqlite {expected}")]
    Stale {
        /// The description.
        file: PathBuf,
        /// `generation`, or what else differs.
        what: &'static str,
        /// The graph's.
        found: u64,
        /// What the database says about it.
        expected: String,
    },
    /// The graph's bytes are not those that were saved.
    #[error("{file}: damaged: its SHA-256 is not the one in graph.json")]
    Digest {
        /// The graph.
        file: PathBuf,
    },
    /// The file is not a graph as usearch writes them.
    #[error("{file}: damaged: {reason}")]
    Format {
        /// The graph.
        file: PathBuf,
        /// What was seen.
        reason: String,
    },
    /// usearch works with UTF-8 paths only.
    #[error("{dir}: is not UTF-8, which the graph's file name has to be; rename the directory")]
    Path {
        /// The index.
        dir: PathBuf,
    },
    /// usearch refuses.
    #[error("the graph cannot {what}: {message}")]
    Usearch {
        /// `be built` ...
        what: &'static str,
        /// Its words.
        message: String,
    },
}

/// `graph.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sidecar {
    format_version: u32,
    generation: u64,
    /// Digest of that generation in the database.
    digest: String,
    sha256: String,
    /// Nodes looked at for a query, where that was tuned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expansion: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    recall: Option<Recall>,
}

/// How much of what the exact scan finds a graph was seen to find.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recall {
    /// Results compared.
    pub k: usize,
    /// Queries.
    pub queries: usize,
    /// Share of the exact scan's results.
    pub share: f64,
}

/// How a graph is built and searched.
#[derive(Debug, Clone)]
pub enum Measure {
    /// Searched by the inner product.
    Gated,
    /// Searched by `v . relu(uq + ud)`; v, `[m]`.
    Relu(Arc<[f32]>),
}

impl Measure {
    /// The measure of a bundle's predictor.
    pub fn of_bundle(bundle: &Bundle) -> Self {
        let (d, h) = (bundle.manifest.encoder.dimensions, bundle.manifest.encoder.hidden_size);
        match bundle.manifest.predictor.residual {
            Residual::LastToken => Self::of(&bundle.folded, d, h),
            Residual::Pooled => Self::of(&bundle.folded, d, d),
        }
    }

    /// The measure of a folded predictor with latents of `dimensions` numbers and this many in the residual's source.
    fn of(folded: &Folded, dimensions: usize, residual_dimensions: usize) -> Self {
        match folded.form() {
            Form::Gated => Self::Gated,
            // v is the same for every query; any query carries it.
            Form::Relu => {
                let query = folded.query(&vec![0.0; dimensions], &vec![0.0; residual_dimensions]);
                Self::Relu(query.join.into())
            }
        }
    }

    fn expansion_search(&self) -> usize {
        match self {
            Self::Gated => EXPANSION_SEARCH,
            Self::Relu(_) => EXPANSION_SEARCH_RELU,
        }
    }

    /// Candidates are scored again from 32-bit vectors, so the graph's own copy may be rough where usearch has kernels
    /// for that; the relu measure is ours and reads 32-bit floats.
    fn scalar(&self) -> ScalarKind {
        match self {
            Self::Gated => ScalarKind::F16,
            Self::Relu(_) => ScalarKind::F32,
        }
    }
}

/// A graph in memory. Any number of threads may search; adding needs it alone.
pub struct Graph {
    index: Index,
    measure: Measure,
    permits: Permits,
    /// As it was last measured.
    recall: Option<Recall>,
}

impl Graph {
    /// Links all rows, on all cores.
    pub fn build(rows: &Rows, measure: Measure) -> Result<Self, GraphError> {
        let graph = Self::empty(rows.dimensions(), measure)?;
        let threads = graph.permits.total;
        graph.index.reserve_capacity_and_threads(rows.len(), threads).map_err(refused("be built"))?;
        // No more threads than were reserved: rayon's pool has exactly as many.
        let live: Vec<usize> = rows.live().ones().collect();
        live.into_par_iter()
            .try_for_each(|row| graph.index.add(rows.key(row).cast_unsigned(), &rows.vector(row)))
            .map_err(refused("be built"))?;
        graph.ready()
    }

    /// Links more rows, keys and vectors, on the cores of the caller's pool, which are at most rayon's. A graph that grows like
    /// this is searched when it is [`Graph::ready`].
    pub fn extend(&mut self, rows: &[(i64, Vec<f32>)]) -> Result<(), GraphError> {
        self.reserve(rows.len(), "be built")?;
        rows.par_iter()
            .try_for_each(|(key, vector)| self.index.add(key.cast_unsigned(), vector))
            .map_err(refused("be built"))
    }

    /// Length of the saved graph's file; 0 where none can be found.
    pub fn bytes(dir: &Path) -> u64 {
        let sidecar: Option<Sidecar> = files::read_json(&dir.join(SIDECAR_NAME)).ok();
        let file = sidecar.and_then(|sidecar| std::fs::metadata(dir.join(file_name(&sidecar.sha256))).ok());
        file.map_or(0, |file| file.len())
    }

    /// Loads a saved graph, byte for byte as saved, and tells which generation it covers.
    pub fn open(dir: &Path, dimensions: usize, measure: Measure) -> Result<(Self, Generation), GraphError> {
        let sidecar = || Ok(files::read_json(&dir.join(SIDECAR_NAME))?);
        following(sidecar, |sidecar: &Sidecar| {
            Self::open_named(dir, sidecar.clone(), dimensions, measure.clone())
        })
    }

    fn open_named(
        dir: &Path,
        sidecar: Sidecar,
        dimensions: usize,
        measure: Measure,
    ) -> Result<(Self, Generation), GraphError> {
        let sidecar_file = dir.join(SIDECAR_NAME);
        let file = dir.join(file_name(&sidecar.sha256));
        if sidecar.format_version != FORMAT_VERSION {
            let (found, expected) = (sidecar.format_version, FORMAT_VERSION);
            return Err(FileError::Version { file: sidecar_file, found, expected }.into());
        }
        if files::sha256_file(&file)? != sidecar.sha256 {
            return Err(GraphError::Digest { file });
        }
        let mut graph = Self::empty(dimensions, measure)?;
        graph.recall = sidecar.recall;
        // Its own loader trusts what it reads.
        format::check(&file, dimensions, graph.index.scalar_kind())?;
        graph.index.load(utf8(&file)?).map_err(refused("be loaded"))?;
        graph
            .index
            .reserve_capacity_and_threads(graph.index.size(), graph.permits.total)
            .map_err(refused("be loaded"))?;
        let expansion = sidecar.expansion.unwrap_or_else(|| graph.measure.expansion_search());
        graph.index.change_expansion_search(expansion.clamp(1, WIDEST));
        graph.index.change_expansion_add(EXPANSION_ADD);
        let generation = Generation { number: sidecar.generation, digest: sidecar.digest };
        Ok((graph.ready()?, generation))
    }

    /// Writes graph and description, each through a temporary file; the caller is the index's only writer.
    pub fn save(&self, dir: &Path, generation: &Generation) -> Result<(), GraphError> {
        let temporary = dir.join(format!("{}new.tmp", FILE_NAME.0));
        let write = || -> Result<(String, PathBuf), GraphError> {
            self.index.save(utf8(&temporary)?).map_err(refused("be saved"))?;
            File::open(&temporary).and_then(|f| f.sync_all()).map_err(FileError::io(&temporary))?;
            let sha256 = files::sha256_file(&temporary)?;
            let file = dir.join(file_name(&sha256));
            std::fs::rename(&temporary, &file).map_err(FileError::io(&file))?;
            Ok((sha256, file))
        };
        let (sha256, file) = write().inspect_err(|_| {
            // Best effort: the error that matters is the one being reported.
            let _ = std::fs::remove_file(&temporary);
        })?;
        let Generation { number: generation, digest } = generation.clone();
        // Its writer syncs the directory, which both renames are in.
        let tuned = self.expansion() != self.measure.expansion_search();
        let sidecar = Sidecar {
            format_version: FORMAT_VERSION,
            generation,
            digest,
            sha256,
            expansion: tuned.then(|| self.expansion()),
            recall: self.recall.clone(),
        };
        files::write_json(&dir.join(SIDECAR_NAME), &sidecar)?;
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let is_graph = |name: &str| name.starts_with(FILE_NAME.0) && name.ends_with(FILE_NAME.1);
            if name.to_str().is_some_and(is_graph) && entry.path() != file {
                // Best effort: a graph that nothing names costs room, no more.
                let _ = std::fs::remove_file(entry.path());
            }
        }
        Ok(())
    }

    /// Adds the rows with these keys, or links them anew where their vectors changed, and forgets removed ones. After an
    /// error the graph must be dropped: it may lack some of them.
    pub fn update(&mut self, rows: &Rows, changes: &Changes) -> Result<(), GraphError> {
        for key in &changes.removed {
            self.forget(*key)?;
        }
        if changes.put.is_empty() {
            return Ok(());
        }
        // Linking goes by the building metric.
        self.index.change_metric_kind(MetricKind::L2sq).map_err(refused("take new documents"))?;
        let linked = self.link(rows, &changes.put);
        self.install_measure()?;
        linked
    }

    /// Finds a document no more; at once, unlike linking one.
    pub fn forget(&mut self, key: i64) -> Result<(), GraphError> {
        self.index.remove(key.cast_unsigned()).map(drop).map_err(refused("forget documents"))
    }

    /// Makes room for so many more.
    fn reserve(&self, more: usize, what: &'static str) -> Result<(), GraphError> {
        let needed = self.index.size() + more;
        if needed <= self.index.capacity() {
            return Ok(());
        }
        let capacity = needed.max(self.index.capacity() / 4 * 5);
        self.index.reserve_capacity_and_threads(capacity, self.permits.total).map_err(refused(what))
    }

    fn link(&self, rows: &Rows, keys: &[i64]) -> Result<(), GraphError> {
        const WHAT: &str = "take new documents";
        self.reserve(keys.len(), WHAT)?;
        for row in keys.iter().filter_map(|key| rows.row(*key)) {
            let key = rows.key(row).cast_unsigned();
            self.index.remove(key).map_err(refused(WHAT))?;
            self.index.add(key, &rows.vector(row)).map_err(refused(WHAT))?;
        }
        Ok(())
    }

    /// Keys of about the best `count` documents of a query, best first; of those only that `passes` lets through.
    pub fn search(
        &self,
        query: &FoldedQuery,
        count: usize,
        passes: Option<&dyn Fn(i64) -> bool>,
    ) -> Result<Vec<i64>, GraphError> {
        let _permit = self.permits.take();
        let found = match passes {
            None => self.index.search(&query.vector, count),
            Some(passes) => {
                self.index.filtered_search(&query.vector, count, |key: u64| passes(key.cast_signed()))
            }
        };
        Ok(found.map_err(refused("be searched"))?.keys.into_iter().map(u64::cast_signed).collect())
    }

    /// Nodes that are looked at for a query.
    pub fn expansion(&self) -> usize {
        self.index.expansion_search()
    }

    /// Changes that: more find more, and take longer.
    pub fn set_expansion(&mut self, nodes: usize) {
        self.index.change_expansion_search(nodes);
    }

    /// As it was last measured.
    pub fn recall(&self) -> Option<&Recall> {
        self.recall.as_ref()
    }

    /// Keeps a measurement.
    pub fn set_recall(&mut self, recall: Recall) {
        self.recall = Some(recall);
    }

    /// Number of vectors.
    pub fn len(&self) -> usize {
        self.index.size()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A graph of nothing, to be extended.
    pub fn empty(dimensions: usize, measure: Measure) -> Result<Self, GraphError> {
        let options = IndexOptions {
            dimensions,
            metric: MetricKind::L2sq,
            quantization: measure.scalar(),
            connectivity: CONNECTIVITY,
            expansion_add: EXPANSION_ADD,
            expansion_search: measure.expansion_search(),
            multi: false,
        };
        let index = Index::new(&options).map_err(refused("be made"))?;
        Ok(Self { index, measure, permits: Permits::new(rayon::current_num_threads().max(1)), recall: None })
    }

    /// Ends the linking of a new graph: from here on it can be searched.
    pub fn ready(mut self) -> Result<Self, GraphError> {
        self.install_measure()?;
        Ok(self)
    }

    /// From here on searches go by the measure. usearch drops no earlier closure, so this is not done per query: the
    /// closure needs v alone, and finds the query where usearch passes it, as one of the two vectors.
    fn install_measure(&mut self) -> Result<(), GraphError> {
        let Measure::Relu(join) = &self.measure else {
            return self.index.change_metric_kind(MetricKind::IP).map_err(refused("be searched"));
        };
        let join = Arc::clone(join);
        self.index.change_metric::<f32>(Box::new(move |a, b| {
            let m = join.len();
            // Smaller is better, as a distance has to be; the sum does not care which of the two is the query. This runs
            // inside a C++ search, where a panic would end the process.
            // SAFETY: usearch calls a metric with two vectors of the index's scalar kind (f32) and dimensions (m,
            // which is what `Graph::empty` and `Graph::open` made sure of), the query's or its own copies, which
            // lie at multiples of 8 bytes and outlive the call.
            let (a, b) = unsafe { (std::slice::from_raw_parts(a, m), std::slice::from_raw_parts(b, m)) };
            -relu_score(&join, a, b)
        }));
        Ok(())
    }
}

impl std::fmt::Debug for Graph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Graph").field("vectors", &self.len()).finish_non_exhaustive()
    }
}

/// Opens what the description names. A writer may put another graph in its place in between, and takes the old one away: then
/// the new description is followed.
fn following<D: PartialEq, T>(
    mut describe: impl FnMut() -> Result<D, GraphError>,
    mut open: impl FnMut(&D) -> Result<T, GraphError>,
) -> Result<T, GraphError> {
    let mut description = describe()?;
    for _ in 0..3 {
        let opened = open(&description);
        if opened.is_ok() {
            return opened;
        }
        let now = describe()?;
        if now == description {
            return opened;
        }
        description = now;
    }
    open(&description)
}

fn file_name(sha256: &str) -> String {
    let (start, end) = FILE_NAME;
    format!("{start}{}{end}", sha256.get(..16).unwrap_or_default())
}

fn refused<E: std::fmt::Display>(what: &'static str) -> impl Fn(E) -> GraphError {
    move |error| GraphError::Usearch { what, message: error.to_string() }
}

fn utf8(path: &Path) -> Result<&str, GraphError> {
    path.to_str().ok_or_else(|| GraphError::Path { dir: path.to_owned() })
}

/// More searches at once than usearch reserved threads for is an error there; here the next one waits.
struct Permits {
    total: usize,
    free: Mutex<usize>,
    returned: Condvar,
}

impl Permits {
    fn new(total: usize) -> Self {
        Self { total, free: Mutex::new(total), returned: Condvar::new() }
    }

    fn take(&self) -> Permit<'_> {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free =
            self.returned.wait_while(free, |free| *free == 0).unwrap_or_else(PoisonError::into_inner);
        *free -= 1;
        Permit(self)
    }
}

struct Permit<'a>(&'a Permits);

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        *self.0.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.0.returned.notify_one();
    }
}

#[cfg(test)]
mod tests;
