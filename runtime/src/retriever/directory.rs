//! An index in a directory of this machine: documents in SQLite, vectors and graph in memory.

use super::backend::{Backend, Ranked};
use super::linked::{self, Memory, State};
use super::recall::GraphCheck;
use super::{Facets, Options, RetrieverError, SearchPath, Stats, Wanted};
use crate::bundle::Bundle;
use crate::document::Document;
use crate::encoder::Encoder;
use crate::filter::Filter;
use crate::index::{Graph, GraphError, Measure};
use crate::ingest::{self, AddReport, Progress};
use crate::rows_file::{self, RowsFileError};
use crate::search::{self, Scored};
use crate::store::{Store, StoreError, Writer};
use crate::vectors::Precision;
use fixedbitset::FixedBitSet;
use models::files::FileError;
use models::fold::FoldedQuery;
use parking_lot::RwLockReadGuard;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Changed documents after which the graph is brought up to date and saved again. Fewer are scored one by one beside what it
/// finds, which takes no time, where linking takes about a millisecond each.
pub(super) const SAVE_AFTER: usize = 500;
/// Bytes of a graph that opening an index waits for: a tenth of a second.
pub(super) const LOADED_ASIDE: u64 = 100_000_000;
/// What is done about a saved graph that is of no use.
pub(super) const REBUILDING: &str = "rebuilding the graph from documents.sqlite";

/// Key, id and score of a row.
type Found = (i64, String, f32);

/// An opened index directory. What any process has changed is found by the next query.
#[derive(Debug)]
pub struct Directory {
    options: Options,
    document_digest: String,
    /// Taken before the memory's locks, never after them.
    store: Mutex<Store>,
    pub(super) memory: Arc<Memory>,
}

impl Directory {
    /// Opens an index made with this bundle; what it holds is in memory when this returns, but for the graph
    /// ([`Directory::open_graph`]).
    pub fn open(dir: &Path, bundle: &Bundle, options: &Options) -> Result<Self, RetrieverError> {
        let key = ingest::index_key(bundle);
        let (store, state) = load(dir, Store::open(dir, &key)?, options)?;
        let memory = Memory::new(
            dir,
            key,
            store.identity(),
            Measure::of_bundle(bundle),
            options.notice,
            if options.exact { usize::MAX } else { options.graph_above },
            state,
        );
        let (options, document_digest) = (options.clone(), bundle.manifest.document_digest.clone());
        Ok(Self { options, document_digest, store: Mutex::new(store), memory })
    }

    /// Loads the saved graph, or says why a new one has to be built; what it lacks is linked aside. A large one is loaded
    /// aside too, after the first query: whoever asks only one would wait for it longer than for the scan.
    pub fn open_graph(&self) {
        if Graph::bytes(&self.memory.dir) > self.options.graph_waited_for {
            return self.memory.load_later();
        }
        let store = self.store();
        let mut state = self.memory.state.write();
        if self.memory.wants_graph(&state.rows) {
            match linked::saved_graph(&self.memory, &store, state.rows.len()) {
                Ok(linked) => state.graph = Some(linked),
                Err(reason) => (self.options.notice)(&format!("{reason}; {REBUILDING}")),
            }
        }
        drop((state, store));
        self.memory.link_aside();
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> RwLockReadGuard<'_, State> {
        self.memory.state.read()
    }

    /// Writes under the lock of the one writer; what was written is in memory when it returns.
    fn change<T>(
        &self,
        change: impl FnOnce(&mut Writer) -> Result<T, RetrieverError>,
    ) -> Result<T, RetrieverError> {
        let _changing = self.memory.changing.lock();
        let mut writer = self.memory.writer()?;
        let changed = change(&mut writer);
        // Also after an error: some batches may be in.
        self.refresh()?;
        let closed = writer.close();
        let changed = changed?;
        closed?;
        // What went into files that were taken away meanwhile must not be called durable.
        if self.memory.identity.is_at(&self.memory.dir) {
            Ok(changed)
        } else {
            Err(RetrieverError::Replaced { dir: self.memory.dir.clone() })
        }
    }

    /// Reads what this or any other process has changed.
    pub(super) fn refresh(&self) -> Result<(), RetrieverError> {
        let mut store = self.store();
        store.follow(&self.memory.key);
        let since = self.state().generation.clone();
        // Digests too: another index with as many changes may have been put into the same file.
        if store.generation()? != since {
            let mut state = self.memory.state.write();
            match store.update(&mut state.rows, &since) {
                Ok((changes, now)) => state.note(&changes, now),
                Err(StoreError::Forgotten { .. }) => {
                    // Others go on with what there was.
                    drop(state);
                    let precision = self.state().rows.precision();
                    let (rows, now) = store.load_in(precision)?;
                    self.memory.state.write().replace(rows, now);
                }
                Err(error) => return Err(error.into()),
            }
        }
        drop(store);
        if !self.memory.is_first() {
            self.memory.link_aside();
        }
        Ok(())
    }

    /// The best `k` of what a rough scan found, by their vectors as they were stored.
    fn scored_exactly(
        &self,
        query: &FoldedQuery,
        found: Vec<Found>,
        k: usize,
    ) -> Result<Vec<Found>, RetrieverError> {
        let store = self.store();
        let mut scored = Vec::with_capacity(found.len());
        for (key, id, _) in found {
            if let Some((_, vector)) = store.vector(key)?.filter(|(stored, _)| *stored == id) {
                scored.push((key, id, query.score(&vector)));
            }
        }
        scored.sort_by(|a, b| b.2.total_cmp(&a.2).then_with(|| b.1.cmp(&a.1)));
        scored.truncate(k);
        Ok(scored)
    }
}

impl Backend for Directory {
    fn place(&self) -> String {
        self.memory.dir.display().to_string()
    }

    fn search(
        &self,
        queries: &[FoldedQuery],
        wanted: &Wanted,
    ) -> Result<(SearchPath, Vec<Ranked>), RetrieverError> {
        self.refresh()?;
        let (path, rough, mut ranked) = {
            let state = self.state();
            let rough = state.rows.precision() != Precision::F32;
            let kept = if rough { search::rough_results(wanted.k) } else { wanted.k };
            let (path, ranked) = state.search(queries, (wanted.k, kept), wanted.filter.as_ref())?;
            let keyed = |found: &Vec<Scored>| -> Vec<Found> {
                let rows = &state.rows;
                let found = found.iter().map(|s| (rows.key(s.row), rows.id(s.row).to_owned(), s.score));
                found.collect()
            };
            (path, rough, ranked.iter().map(keyed).collect::<Vec<_>>())
        };
        if rough {
            for (query, ranked) in queries.iter().zip(&mut ranked) {
                *ranked = self.scored_exactly(query, std::mem::take(ranked), wanted.k)?;
            }
        }
        let store = self.store();
        let mut documents = Vec::with_capacity(ranked.len());
        for ranked in ranked {
            let mut found = Vec::with_capacity(ranked.len());
            for (key, id, score) in ranked {
                // What was removed meanwhile is not shown, nor another index's document with its key.
                if let Some(document) = store.document(key)?.filter(|document| document.id == id) {
                    found.push((document, score));
                }
            }
            documents.push(found);
        }
        Ok((path, documents))
    }

    fn add(
        &self,
        encoder: &Encoder,
        documents: &[Document],
        progress: &mut dyn FnMut(Progress),
    ) -> Result<AddReport, RetrieverError> {
        self.change(|writer| ingest::ingest(encoder, writer, documents, progress))
    }

    fn remove(&self, ids: &[&str]) -> Result<usize, RetrieverError> {
        self.change(|writer| Ok(writer.remove(ids)?.len()))
    }

    fn compact(&self) -> Result<(), RetrieverError> {
        self.change(|writer| Ok(writer.compact()?))?;
        self.memory.state.write().graph = None;
        self.settle(true);
        Ok(())
    }

    fn document(&self, id: &str) -> Result<Option<Document>, RetrieverError> {
        Ok(self.store().document_by_id(id)?)
    }

    fn documents(&self, offset: usize, limit: usize) -> Result<Vec<Document>, RetrieverError> {
        Ok(self.store().documents(offset, limit)?)
    }

    fn facets(&self, most: usize) -> Result<Facets, RetrieverError> {
        self.refresh()?;
        let state = self.state();
        Ok(state.rows.columns().facets(state.rows.live(), most))
    }

    fn stats(&self) -> Result<Stats, RetrieverError> {
        self.refresh()?;
        let state = self.state();
        Ok(Stats {
            documents: state.rows.len(),
            dimensions: state.rows.dimensions(),
            vector_bytes: state.rows.bytes(),
            vector_precision: state.rows.precision(),
            generation: state.generation.number,
            generation_digest: Some(state.generation.digest.clone()),
            graph_vectors: state.graph.as_ref().map(|linked| linked.graph.read().len()),
            document_digest: self.document_digest.clone(),
        })
    }

    fn save(&self) -> Result<(), RetrieverError> {
        self.memory.save(true)
    }

    fn settle(&self, unread: bool) {
        if unread || !self.memory.is_unloaded() {
            self.memory.link_all(SAVE_AFTER);
        }
        // The documents are safe; the graph will be caught up with, or built again.
        if let Err(error) = self.memory.save(false) {
            (self.options.notice)(&format!("the graph is not saved: {error}"));
        }
    }

    fn check_graph(
        &self,
        queries: &[FoldedQuery],
        k: usize,
        least: Option<f64>,
    ) -> Result<Option<GraphCheck>, RetrieverError> {
        self.measure_graph(queries, k, least)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        self.memory.stop();
    }
}

impl State {
    fn search(
        &self,
        queries: &[FoldedQuery],
        (k, kept): (usize, usize),
        filter: Option<&Filter>,
    ) -> Result<(SearchPath, Vec<Vec<Scored>>), GraphError> {
        let rows = &self.rows;
        let selected: Option<FixedBitSet> = filter.map(|filter| rows.select(filter));
        let selected = selected.as_ref();
        if let Some(linked) = &self.graph
            && let Some(ranked) = linked.search(queries, rows, (k, kept), selected)?
        {
            return Ok((SearchPath::Graph, ranked));
        }
        Ok((SearchPath::Exact, search::exact(queries, rows, kept, selected)))
    }
}

/// Precision of an index of this many documents.
pub(super) fn precision(options: &Options, documents: usize) -> Precision {
    let fitting = if documents > options.graph_above { Precision::Int8 } else { Precision::F32 };
    options.vectors.unwrap_or(fitting)
}

/// The rows: of a large index from its rows file and what came after it, else, and of any other, from the database.
fn load(dir: &Path, store: Store, options: &Options) -> Result<(Store, State), RetrieverError> {
    let count = store.count()?;
    let mut unmapped = count;
    if count > options.graph_above {
        match saved_rows(dir, &store, options.vectors) {
            Ok(Some(state)) => return Ok((store, state)),
            Ok(None) => (),
            // It serves those who did not ask for another; so it is left as it is.
            Err(RetrieverError::RowsFile(RowsFileError::Precision { .. })) => unmapped = 0,
            Err(reason) => (options.notice)(&format!("{reason}; reading all vectors from documents.sqlite")),
        }
    }
    let (rows, generation) = store.load_in(precision(options, count))?;
    Ok((store, State::new(rows, generation, unmapped)))
}

/// The rows file brought up to date; `None` where there is none, an error says why it is of no use.
fn saved_rows(
    dir: &Path,
    store: &Store,
    precision: Option<Precision>,
) -> Result<Option<State>, RetrieverError> {
    let (mut rows, generation) = match rows_file::open(dir, store.dimensions(), precision) {
        Err(RowsFileError::File(FileError::Io { source, .. })) if source.kind() == ErrorKind::NotFound => {
            return Ok(None);
        }
        opened => opened?,
    };
    if !store.has_been_at(&generation)? {
        let reason = format!(
            "of generation {}, where documents.sqlite has never been, or long ago",
            generation.number
        );
        return Err(RowsFileError::Unfit { file: dir.join(rows_file::FILE_NAME), reason }.into());
    }
    let (changes, now) = store.update(&mut rows, &generation)?;
    rows.compact();
    Ok(Some(State::new(rows, now, changes.put.len() + changes.removed.len())))
}
