//! The graph beside the rows, which nobody waits for: what it lacks is scored one by one, and linked in small steps between
//! queries; a whole one is built aside from copies, while the exact scan answers, and put in place when it is whole.

use super::RetrieverError;
use super::directory::{REBUILDING, SAVE_AFTER};
use crate::index::{Graph, GraphError, Measure, SIDECAR_NAME};
use crate::rows_file;
use crate::search::{self, Rows, Scored};
use crate::store::{Changes, Generation, Identity, IndexKey, Store, StoreError, Writer};
use fixedbitset::FixedBitSet;
use models::fold::FoldedQuery;
use parking_lot::{Mutex, RwLock, RwLockWriteGuard};
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Documents linked in one step, about a millisecond each: as long as that, queries wait.
const STEP: usize = 8;
/// How long whoever is in a hurry waits for a change to end.
const PATIENCE: Duration = Duration::from_millis(100);
/// Time between two tries to save while another process writes.
const BREAK: Duration = Duration::from_secs(1);
/// Documents copied and linked together while a graph is built aside.
const BLOCK: usize = 256;

/// Share of the documents that changed after which the file of the rows is saved again. Those since then are read
/// from the database when an index is opened, a hundred thousand a second.
const SNAPSHOT_SHARE: usize = 20;

/// What has changed in the rows since a graph had all of them.
#[derive(Debug, Default)]
pub(super) struct Since {
    /// Keys of rows that are new or have another vector.
    behind: BTreeSet<i64>,
    /// Keys of rows that are gone.
    gone: BTreeSet<i64>,
    /// Number of changes.
    changes: usize,
}

impl Since {
    pub(super) fn note(&mut self, changes: &Changes) {
        for key in &changes.removed {
            self.behind.remove(key);
            self.gone.insert(*key);
        }
        self.behind.extend(&changes.put);
        self.changes += changes.put.len() + changes.removed.len();
    }

    /// What came later, too.
    fn add(&mut self, later: Self) {
        self.note(&Changes {
            put: later.behind.into_iter().collect(),
            removed: later.gone.into_iter().collect(),
        });
    }

    fn is_empty(&self) -> bool {
        self.behind.is_empty() && self.gone.is_empty()
    }
}

/// A graph that answers, and what it lacks.
#[derive(Debug)]
pub(super) struct Linked {
    /// Locked after the state, or alone; for long by whoever saves it, who only reads.
    pub(super) graph: Arc<RwLock<Graph>>,
    since: Since,
    /// The moment up to which it lacks nothing.
    covers: Generation,
    /// Changes up to there that the graph on disk lacks.
    pub(super) unsaved: usize,
    /// Documents up to which the scan is the faster way.
    above: usize,
}

impl Linked {
    pub(super) fn new(graph: Graph, covers: Generation, since: Since, unsaved: usize, above: usize) -> Self {
        Self { graph: Arc::new(RwLock::new(graph)), since, covers, unsaved, above }
    }

    fn note(&mut self, changes: &Changes, now: &Generation) {
        self.since.note(changes);
        // While it is being saved, those that are gone stay in it, and are not shown.
        if let Some(mut graph) = self.graph.try_write() {
            self.since.gone.retain(|key| graph.forget(*key).is_err());
        }
        self.settled(now);
    }

    fn settled(&mut self, now: &Generation) {
        if self.since.is_empty() {
            self.unsaved += std::mem::take(&mut self.since.changes);
            self.covers.clone_from(now);
        }
    }

    fn link_some(&mut self, rows: &Rows, now: &Generation) -> Result<(), GraphError> {
        let put: Vec<i64> = self.since.behind.iter().take(STEP).copied().collect();
        let removed: Vec<i64> = self.since.gone.iter().copied().collect();
        self.graph.write().update(rows, &Changes { put: put.clone(), removed })?;
        self.since.gone.clear();
        for key in put {
            self.since.behind.remove(&key);
        }
        self.settled(now);
        Ok(())
    }

    /// The best `kept` of each query, of as many candidates as the best `k` want, or `None` where the scan over all rows is the
    /// faster way.
    pub(super) fn search(
        &self,
        queries: &[FoldedQuery],
        rows: &Rows,
        (k, kept): (usize, usize),
        selected: Option<&FixedBitSet>,
    ) -> Result<Option<Vec<Vec<Scored>>>, GraphError> {
        let among = selected.map_or(rows.len(), |selected| selected.count_ones(..));
        let count = search::candidates(k, among, rows.len()).max(kept) + self.since.gone.len();
        let behind = &self.since.behind;
        if among <= self.above || count + behind.len() >= among / 2 {
            return Ok(None);
        }
        let passes = |key: i64| rows.row(key).is_some_and(|row| selected.is_none_or(|s| s.contains(row)));
        let within: Option<&dyn Fn(i64) -> bool> = if selected.is_some() { Some(&passes) } else { None };
        let graph = self.graph.read();
        let best = |query: &FoldedQuery| {
            let mut candidates = graph.search(query, count, within)?;
            candidates.retain(|key| !behind.contains(key));
            candidates.extend(behind.iter().filter(|key| passes(**key)));
            Ok(search::rescore(query, rows, &candidates, kept))
        };
        queries.iter().map(best).collect::<Result<_, _>>().map(Some)
    }
}

/// The index in memory, as of a generation.
#[derive(Debug)]
pub(super) struct State {
    pub(super) rows: Rows,
    pub(super) generation: Generation,
    pub(super) graph: Option<Linked>,
    /// Changes since a graph began to be built.
    building: Option<Since>,
    /// Documents that the saved file of the rows lacks.
    unmapped: usize,
    /// usearch refused: what it refused once, it is not asked again.
    refused: bool,
}

impl State {
    pub(super) fn new(rows: Rows, generation: Generation, unmapped: usize) -> Self {
        Self { rows, generation, graph: None, building: None, unmapped, refused: false }
    }

    /// The rows have these changes and are of this generation now.
    pub(super) fn note(&mut self, changes: &Changes, now: Generation) {
        if let Some(building) = &mut self.building {
            building.note(changes);
        }
        if let Some(linked) = &mut self.graph {
            linked.note(changes, &now);
        }
        self.unmapped += changes.put.len() + changes.removed.len();
        self.generation = now;
        self.rows.compact();
    }

    /// Other rows altogether.
    pub(super) fn replace(&mut self, rows: Rows, now: Generation) {
        let unmapped = rows.len();
        *self = Self { refused: self.refused, ..Self::new(rows, now, unmapped) };
    }
}

/// What is to be done about the graph.
#[derive(Debug, PartialEq, Eq)]
enum Work {
    Build,
    Link,
    Nothing,
}

/// An index's memory, and the thread that keeps its graph.
#[derive(Debug)]
pub(super) struct Memory {
    pub(super) dir: PathBuf,
    pub(super) key: IndexKey,
    pub(super) identity: Identity,
    measure: Measure,
    notice: fn(&str),
    /// Documents above which a graph pays.
    pub(super) above: usize,
    pub(super) state: RwLock<State>,
    /// Whoever adds or removes, or saves the graph; shared by all that have this index open in this process.
    pub(super) changing: Arc<Mutex<()>>,
    /// Whoever builds or links.
    linking: Mutex<()>,
    linker: Mutex<Option<JoinHandle<()>>>,
    /// A large graph is still to be loaded.
    unloaded: AtomicBool,
    /// Nothing has been asked yet of an index whose graph is still to be loaded.
    first: AtomicBool,
    stopping: AtomicBool,
}

impl Memory {
    pub(super) fn new(
        dir: &Path,
        key: IndexKey,
        identity: Identity,
        measure: Measure,
        notice: fn(&str),
        above: usize,
        state: State,
    ) -> Arc<Self> {
        let (dir, changing) = (dir.to_owned(), turns(identity));
        let (state, linking, linker) = (RwLock::new(state), Mutex::new(()), Mutex::new(None));
        let [unloaded, first, stopping] = [false; 3].map(AtomicBool::new);
        Arc::new(Self {
            dir,
            key,
            identity,
            measure,
            notice,
            above,
            state,
            changing,
            linking,
            linker,
            unloaded,
            first,
            stopping,
        })
    }

    pub(super) fn measure(&self) -> Measure {
        self.measure.clone()
    }

    pub(super) fn wants_graph(&self, rows: &Rows) -> bool {
        rows.len() > self.above
    }

    /// `least`: documents that a graph may lack before it is worth the while to link them.
    fn work(&self, least: usize) -> Work {
        let state = self.state.read();
        match &state.graph {
            None if !state.refused && self.wants_graph(&state.rows) => Work::Build,
            // Linked one after another, so many would take longer than to build anew on several cores.
            Some(linked) if linked.since.behind.len() > state.rows.len() / 2 => {
                if self.wants_graph(&state.rows) { Work::Build } else { Work::Nothing }
            }
            Some(linked) if linked.since.behind.len() + linked.since.gone.len() >= least.max(1) => Work::Link,
            _ => Work::Nothing,
        }
    }

    /// Has a thread do what is to be done, unless one is at it.
    pub(super) fn link_aside(self: &Arc<Self>) {
        if self.work(SAVE_AFTER) == Work::Nothing && !self.wants_rows_saved(&self.state.read()) {
            return;
        }
        let mut linker = self.linker.lock();
        if linker.as_ref().is_some_and(|thread| !thread.is_finished()) {
            return;
        }
        let memory = Arc::clone(self);
        let thread = std::thread::Builder::new().name("link".into()).spawn(move || {
            loop {
                memory.link_all(SAVE_AFTER);
                match memory.save(false) {
                    // Another process adds; it may do so for hours, and there will be more to link.
                    Err(RetrieverError::Store(StoreError::Writer { .. })) if !memory.stops_within(BREAK) => {}
                    Err(error) => return (memory.notice)(&format!("the graph is not saved: {error}")),
                    Ok(()) => return,
                }
            }
        });
        // Without a thread, the graph stays as it is: the scan is the slower way to the same answers.
        *linker = thread.ok();
    }

    /// Builds or links until the graph lacks nothing, if it lacks at least so many documents.
    pub(super) fn link_all(&self, mut least: usize) {
        let _linking = self.linking.lock();
        while !self.stopping.load(Ordering::Relaxed) {
            let done = match self.work(least) {
                Work::Build => self.build(),
                Work::Link => self.link_some(),
                Work::Nothing => break,
            };
            if let Err(error) = done {
                let mut state = self.state.write();
                (state.graph, state.building, state.refused) = (None, None, true);
                drop(state);
                let until = "every document is scanned until the index is opened again";
                (self.notice)(&format!("{error}; {until}"));
                break;
            }
            least = 1;
        }
    }

    fn link_some(&self) -> Result<(), GraphError> {
        let mut state = self.state.write();
        let State { rows, generation, graph, .. } = &mut *state;
        let done = graph.as_mut().map_or(Ok(()), |linked| linked.link_some(rows, generation));
        // Those who wait come first.
        RwLockWriteGuard::unlock_fair(state);
        done
    }

    /// Has the saved graph loaded aside, after the first query.
    pub(super) fn load_later(&self) {
        self.unloaded.store(true, Ordering::Relaxed);
        self.first.store(true, Ordering::Relaxed);
    }

    /// Whether the saved graph has not been loaded yet.
    pub(super) fn is_unloaded(&self) -> bool {
        self.unloaded.load(Ordering::Relaxed)
    }

    /// Whether this is the query that a graph to be loaded is not loaded for.
    pub(super) fn is_first(&self) -> bool {
        self.first.swap(false, Ordering::Relaxed)
    }

    /// Loads the saved graph while queries and changes go on.
    fn load(&self) -> Result<(), RetrieverError> {
        self.state.write().building = Some(Since::default());
        let loaded = Store::open(&self.dir, &self.key).map_err(RetrieverError::from).and_then(|store| {
            let documents = self.state.read().rows.len();
            saved_graph(self, &store, documents)
        });
        let mut state = self.state.write();
        let since = state.building.take();
        let mut linked = loaded?;
        // None if the rows were replaced by others meanwhile.
        if let Some(since) = since {
            linked.since.add(since);
            state.graph = Some(linked);
        }
        Ok(())
    }

    fn build(&self) -> Result<(), GraphError> {
        if self.unloaded.swap(false, Ordering::Relaxed) {
            match self.load() {
                Ok(()) => return Ok(()),
                Err(reason) => (self.notice)(&format!("{reason}; {REBUILDING}")),
            }
        }
        let (dimensions, documents, from) = {
            let mut state = self.state.write();
            (state.graph, state.building) = (None, Some(Since::default()));
            (state.rows.dimensions(), state.rows.len(), state.generation.clone())
        };
        (self.notice)(&format!("building the graph over {documents} documents"));
        let threads = pool()?;
        let mut growing = Graph::empty(dimensions, self.measure())?;
        let mut after = i64::MIN;
        loop {
            // A copy, so that rows can change meanwhile; not of all of them.
            let block = next_rows(&self.state.read().rows, after, BLOCK);
            let Some((last, _)) = block.last() else { break };
            after = *last;
            threads.install(|| growing.extend(&block))?;
            if self.stopping.load(Ordering::Relaxed) {
                self.state.write().building = None;
                return Ok(());
            }
        }
        let graph = growing.ready()?;
        let mut state = self.state.write();
        // None if the rows were replaced by others meanwhile.
        if let Some(since) = state.building.take() {
            let mut linked = Linked::new(graph, from, since, SAVE_AFTER, self.above);
            let now = state.generation.clone();
            linked.settled(&now);
            state.graph = Some(linked);
        }
        Ok(())
    }

    /// Opens the index for writing, if its path still leads to what is in memory.
    pub(super) fn writer(&self) -> Result<Writer, RetrieverError> {
        self.opened(Writer::open)
    }

    fn opened(
        &self,
        open: impl FnOnce(&Path, &IndexKey) -> Result<Writer, StoreError>,
    ) -> Result<Writer, RetrieverError> {
        let replaced = || RetrieverError::Replaced { dir: self.dir.clone() };
        if !self.identity.is_at(&self.dir) {
            return Err(replaced());
        }
        let writer = open(&self.dir, &self.key)?;
        if writer.store().identity() == self.identity { Ok(writer) } else { Err(replaced()) }
    }

    fn wants_rows_saved(&self, state: &State) -> bool {
        self.wants_graph(&state.rows) && state.unmapped > state.rows.len() / SNAPSHOT_SHARE
    }

    /// Saves graph and rows, each if it has changed much; `now`: unless somebody changes the index at this moment.
    pub(super) fn save(&self, now: bool) -> Result<(), RetrieverError> {
        let _changing = loop {
            match self.changing.try_lock_for(PATIENCE) {
                Some(changing) => break changing,
                None if now || self.stopping.load(Ordering::Relaxed) => return Ok(()),
                None => {}
            }
        };
        // Asked in turn: who waited for another one's saving has nothing to save, and finds the index free.
        let (graph, rows) = {
            let state = self.state.read();
            let unsaved = state.graph.as_ref().map_or(0, |linked| linked.unsaved);
            (unsaved >= SAVE_AFTER, self.wants_rows_saved(&state))
        };
        if !graph && !rows {
            return Ok(());
        }
        // Whoever writes now has no need to wait for this, nor this for it.
        let writer = self.opened(|dir, key| Writer::open_within(dir, key, Duration::ZERO))?;
        if graph {
            self.save_graph()?;
        }
        if rows {
            self.save_rows()?;
        }
        Ok(writer.close()?)
    }

    fn save_graph(&self) -> Result<(), RetrieverError> {
        let state = self.state.read();
        let Some(Linked { graph, covers, unsaved, .. }) = &state.graph else { return Ok(()) };
        let (graph, covers, saved) = (Arc::clone(graph), covers.clone(), *unsaved);
        let reading = graph.read();
        // Queries and changes go on meanwhile.
        drop(state);
        reading.save(&self.dir, &covers)?;
        drop(reading);
        if let Some(linked) = &mut self.state.write().graph
            && Arc::ptr_eq(&linked.graph, &graph)
        {
            linked.unsaved = linked.unsaved.saturating_sub(saved);
        }
        Ok(())
    }

    fn save_rows(&self) -> Result<(), RetrieverError> {
        let saved = {
            // Queries go on meanwhile; the one that is the first after a change waits, a second for a million documents.
            let state = self.state.read();
            rows_file::save(&self.dir, &state.rows, &state.generation)?;
            state.unmapped
        };
        let mut state = self.state.write();
        state.unmapped = state.unmapped.saturating_sub(saved);
        Ok(())
    }

    fn stops_within(&self, time: Duration) -> bool {
        let started = Instant::now();
        while started.elapsed() < time && !self.stopping.load(Ordering::Relaxed) {
            std::thread::sleep(PATIENCE);
        }
        self.stopping.load(Ordering::Relaxed)
    }

    /// Ends the thread. What it has not linked is linked when the index is opened again.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        if let Some(thread) = self.linker.lock().take() {
            // It ends abruptly only with a bug, which has been told on stderr.
            let _ = thread.join();
        }
    }
}

/// The graph on disk and what it lacks; an error says why it is of no use.
pub(super) fn saved_graph(
    memory: &Memory,
    store: &Store,
    documents: usize,
) -> Result<Linked, RetrieverError> {
    let (graph, generation) = Graph::open(&memory.dir, store.dimensions(), memory.measure())?;
    let stale = |expected| {
        let (file, found) = (memory.dir.join(SIDECAR_NAME), generation.number);
        RetrieverError::Graph(GraphError::Stale { file, what: "generation", found, expected })
    };
    if !store.has_been_at(&generation)? {
        return Err(stale("has never been there, or long ago".into()));
    }
    let changes = store.changes_since(generation.number)?;
    let changed = changes.put.len() + changes.removed.len();
    if changed > documents / 2 {
        return Err(stale(format!("has {changed} changes since")));
    }
    let mut since = Since::default();
    since.note(&changes);
    Ok(Linked::new(graph, generation, since, 0, memory.above))
}

/// Keys and vectors of the next rows after a key.
fn next_rows(rows: &Rows, after: i64, most: usize) -> Vec<(i64, Vec<f32>)> {
    let (mut low, mut high) = (0, rows.places());
    while low < high {
        let middle = low + (high - low) / 2;
        if rows.key(middle) <= after { low = middle + 1 } else { high = middle }
    }
    let live = (low..rows.places()).filter(|row| rows.live().contains(*row));
    live.take(most).map(|row| (rows.key(row), rows.vector(row).to_vec())).collect()
}

/// Half of the cores: the others answer.
fn pool() -> Result<ThreadPool, GraphError> {
    let threads = (rayon::current_num_threads() / 2).max(1);
    ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|n| format!("build-{n}"))
        .build()
        .map_err(|error| GraphError::Usearch { what: "be built", message: error.to_string() })
}

/// One turn after another for all that have one index open in this process, as a server has that reloads.
fn turns(identity: Identity) -> Arc<Mutex<()>> {
    static TURNS: Mutex<Vec<(Identity, Weak<Mutex<()>>)>> = Mutex::new(Vec::new());
    let mut turns = TURNS.lock();
    turns.retain(|(_, turn)| turn.strong_count() > 0);
    if let Some(turn) =
        turns.iter().find(|(known, _)| *known == identity).and_then(|(_, turn)| turn.upgrade())
    {
        return turn;
    }
    let turn = Arc::new(Mutex::new(()));
    turns.push((identity, Arc::downgrade(&turn)));
    turn
}
