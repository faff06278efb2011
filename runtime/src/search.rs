//! Query in, ranked documents out: the exact scan over all vectors, and the rescoring of a graph's candidates.
//!
//! Both score alike, so a result's number does not depend on the path that found it. Equal scores
//! are ordered by id, descending, as trec_eval and [`models::metrics::rank`] do.

use crate::columns::Columns;
use crate::document::Metadata;
use crate::filter::Filter;
use crate::vectors::{Precision, Vectors};
use fixedbitset::FixedBitSet;
use models::fold::FoldedQuery;
use rayon::prelude::*;
use std::borrow::Cow;
use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

/// Up to this many documents the exact scan answers; above, the graph names candidates.
pub const EXACT_LIMIT: usize = 20_000;
/// Candidates asked of the graph for each result wanted ...
const CANDIDATES_PER_RESULT: usize = 8;
/// ... and at least this many.
const LEAST_CANDIDATES: usize = 64;
/// Documents per block of the scan: about 1 MB of 256 to 512 numbers, which stays in a core's cache between queries.
const BLOCK: usize = 512;

/// All vectors of an index in one piece of memory, with key, id and metadata of each. A removed row keeps its place until
/// [`Rows::compact`].
#[derive(Debug)]
pub struct Rows {
    keys: Vec<i64>,
    ids: Vec<Box<str>>,
    vectors: Vectors,
    columns: Columns,
    live: FixedBitSet,
    removed: usize,
}

/// One row's score.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scored {
    /// Place in [`Rows`].
    pub row: usize,
    /// `log p(T) - log p(F)`.
    pub score: f32,
}

impl Rows {
    /// No rows, of `dimensions` numbers each.
    pub fn new(dimensions: usize) -> Self {
        Self::in_precision(dimensions, Precision::F32)
    }

    /// No rows, whose vectors will be kept in this precision.
    pub fn in_precision(dimensions: usize, precision: Precision) -> Self {
        Self {
            keys: Vec::new(),
            ids: Vec::new(),
            vectors: Vectors::new(dimensions, precision),
            columns: Columns::default(),
            live: FixedBitSet::new(),
            removed: 0,
        }
    }

    /// Rows as they were saved; `None` if the parts do not belong together.
    pub fn restored(keys: Vec<i64>, ids: Vec<Box<str>>, vectors: Vectors, columns: Columns) -> Option<Self> {
        let ascending = keys.is_sorted_by(|a, b| a < b);
        if !ascending || ids.len() != keys.len() || vectors.places() != keys.len() {
            return None;
        }
        let mut live = FixedBitSet::with_capacity(keys.len());
        live.insert_range(..);
        Some(Self { keys, ids, vectors, columns, live, removed: 0 })
    }

    /// Makes room for `additional` rows.
    pub fn reserve(&mut self, additional: usize) {
        self.keys.reserve(additional);
        self.ids.reserve(additional);
        self.vectors.reserve(additional);
    }

    /// Appends a row, or replaces the one with this key. Keys only ever grow; a vector of another length is cut or
    /// filled with zeros.
    pub fn push(&mut self, key: i64, id: &str, vector: &[f32], metadata: &Metadata) {
        let row = match self.row(key) {
            Some(row) => row,
            None => {
                self.keys.push(key);
                self.ids.push(id.into());
                self.vectors.grow();
                self.live.grow_and_insert(self.keys.len() - 1);
                self.keys.len() - 1
            }
        };
        self.columns.set(row, metadata);
        self.vectors.set(row, vector);
    }

    /// Removes the row with this key; tells whether it was there.
    pub fn remove(&mut self, key: i64) -> bool {
        let Some(row) = self.row(key) else { return false };
        self.live.set(row, false);
        self.columns.clear(row);
        self.removed += 1;
        true
    }

    /// Closes the gaps when they are a quarter of all places; rows change their places then.
    pub fn compact(&mut self) {
        if self.removed * 4 <= self.keys.len() {
            return;
        }
        let places: Vec<usize> = self.live.ones().collect();
        let mut live = FixedBitSet::with_capacity(places.len());
        live.insert_range(..);
        *self = Self {
            keys: places.iter().map(|row| self.keys[*row]).collect(),
            ids: places.iter().map(|row| std::mem::take(&mut self.ids[*row])).collect(),
            vectors: self.vectors.compacted(&places),
            columns: self.columns.compacted(&self.live),
            live,
            removed: 0,
        };
    }

    /// Rows that pass a filter.
    pub fn select(&self, filter: &Filter) -> FixedBitSet {
        let mut selected = self.columns.select(filter, self.places());
        selected.intersect_with(&self.live);
        selected
    }

    /// Metadata by field.
    pub fn columns(&self) -> &Columns {
        &self.columns
    }

    /// Rows that are there.
    pub fn live(&self) -> &FixedBitSet {
        &self.live
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.keys.len() - self.removed
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Rows and gaps: every row's place is below.
    pub fn places(&self) -> usize {
        self.keys.len()
    }

    /// Numbers in each vector, m.
    pub fn dimensions(&self) -> usize {
        self.vectors.dimensions()
    }

    /// Precision of the vectors.
    pub fn precision(&self) -> Precision {
        self.vectors.precision()
    }

    /// All vectors, by place.
    pub fn vectors(&self) -> &Vectors {
        &self.vectors
    }

    /// Key of a row.
    pub fn key(&self, row: usize) -> i64 {
        self.keys[row]
    }

    /// Document id of a row.
    pub fn id(&self, row: usize) -> &str {
        &self.ids[row]
    }

    /// Vector of a row, `[m]`, as near as its precision keeps it.
    pub fn vector(&self, row: usize) -> Cow<'_, [f32]> {
        self.vectors.get(row)
    }

    /// The row with this key.
    pub fn row(&self, key: i64) -> Option<usize> {
        match self.keys.last() {
            Some(last) if *last >= key => {
                self.keys.binary_search(&key).ok().filter(|row| self.live.contains(*row))
            }
            _ => None,
        }
    }

    /// Memory taken by the vectors, in bytes.
    pub fn bytes(&self) -> usize {
        self.places() * self.precision().bytes(self.dimensions())
    }
}

/// A row on its way into the best k; greater is better.
#[derive(Debug, Clone, Copy)]
struct Ranked<'a> {
    scored: Scored,
    id: &'a str,
}

impl Ord for Ranked<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.scored.score.total_cmp(&other.scored.score).then_with(|| self.id.cmp(other.id))
    }
}

impl PartialOrd for Ranked<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Ranked<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Ranked<'_> {}

/// The best k so far, the worst of them on top.
struct Best<'a> {
    k: usize,
    heap: BinaryHeap<Reverse<Ranked<'a>>>,
}

impl<'a> Best<'a> {
    fn new(k: usize) -> Self {
        Self { k, heap: BinaryHeap::new() }
    }

    fn offer(&mut self, rows: &'a Rows, row: usize, score: f32) {
        let full = self.heap.len() >= self.k;
        // Nearly every row ends here, before its id is looked at.
        if full && self.heap.peek().is_none_or(|worst| score < worst.0.scored.score) {
            return;
        }
        self.keep(Ranked { scored: Scored { row, score }, id: rows.id(row) });
    }

    fn keep(&mut self, candidate: Ranked<'a>) {
        if self.heap.len() < self.k {
            self.heap.push(Reverse(candidate));
        } else if let Some(mut worst) = self.heap.peek_mut()
            && worst.0 < candidate
        {
            *worst = Reverse(candidate);
        }
    }

    fn merge(mut self, other: Self) -> Self {
        for Reverse(candidate) in other.heap {
            self.keep(candidate);
        }
        self
    }

    fn into_ranked(self) -> Vec<Scored> {
        self.heap.into_sorted_vec().into_iter().map(|Reverse(ranked)| ranked.scored).collect()
    }
}

/// The best `k` rows of each query, by scoring all rows (of those `selected`): blocks of rows are shared out among all
/// cores, and each block serves all queries while it is in the cache.
pub fn exact<'a>(
    queries: &[FoldedQuery],
    rows: &'a Rows,
    k: usize,
    selected: Option<&FixedBitSet>,
) -> Vec<Vec<Scored>> {
    let selected = selected.or((rows.removed > 0).then_some(&rows.live));
    let empty = || -> Vec<Best<'a>> { queries.iter().map(|_| Best::new(k)).collect() };
    let scan = |mut best: Vec<Best<'a>>, block: usize| {
        let end = rows.places().min((block + 1) * BLOCK);
        for (query, best) in queries.iter().zip(&mut best) {
            for row in block * BLOCK..end {
                if selected.is_none_or(|selected| selected.contains(row)) {
                    best.offer(rows, row, rows.vectors.score(query, row));
                }
            }
        }
        best
    };
    let merge = |a: Vec<Best<'a>>, b: Vec<Best<'a>>| -> Vec<Best<'a>> {
        a.into_iter().zip(b).map(|(a, b)| a.merge(b)).collect()
    };
    let blocks = rows.places().div_ceil(BLOCK);
    let best = if blocks * queries.len() <= 1 {
        // Waking other threads takes longer than this.
        (0..blocks).fold(empty(), scan)
    } else {
        (0..blocks).into_par_iter().fold(empty, scan).reduce(empty, merge)
    };
    best.into_iter().map(Best::into_ranked).collect()
}

/// The best `k` of the rows with these keys; keys that are not there (any more) are skipped.
pub fn rescore(query: &FoldedQuery, rows: &Rows, candidates: &[i64], k: usize) -> Vec<Scored> {
    let mut best = Best::new(k);
    for row in candidates.iter().filter_map(|key| rows.row(*key)) {
        best.offer(rows, row, rows.vectors.score(query, row));
    }
    best.into_ranked()
}

/// How many candidates the graph is asked for when `k` results are wanted of the `among` of `all` rows that pass a filter:
/// the fewer pass, the farther apart they lie in the graph, and the more of them have to be seen.
pub fn candidates(k: usize, among: usize, all: usize) -> usize {
    let wanted = k.saturating_mul(CANDIDATES_PER_RESULT).max(LEAST_CANDIDATES);
    let sparse = (all.max(1) as f64 / among.clamp(1, all.max(1)) as f64).sqrt();
    (wanted as f64 * sparse) as usize
}

/// How many of the best by rough vectors are scored again where `k` are wanted: those among the best `k` that rounding had
/// put behind others must be among them.
pub fn rough_results(k: usize) -> usize {
    k.saturating_mul(2).saturating_add(32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Folding, Random};
    use models::student::Form;

    fn rows(random: &mut Random, n: usize, m: usize, shared: usize) -> Rows {
        let mut rows = Rows::new(m);
        for i in 0..n {
            // Vectors repeat, so that there are equal scores to be ordered.
            let mut vector = Random::new((i % shared) as u64);
            let vector: Vec<f32> = (0..m).map(|_| vector.normal()).collect();
            rows.push(i as i64 + 1, &format!("{:x}", random.next()), &vector, &Metadata::new());
        }
        rows
    }

    /// A row lost or misplaced between blocks, threads and heaps is a wrong answer that nobody sees.
    #[test]
    fn exact_search_is_scoring_everything_and_sorting() {
        let mut random = Random::new(7);
        for form in [Form::Relu, Form::Gated] {
            for (n, m, k) in [(0, 4, 3), (1, 4, 3), (5, 3, 9), (700, 8, 10), (1024, 17, 1), (3001, 16, 50)] {
                let folding = Folding::new(form, m, &mut random);
                let rows = rows(&mut random, n, m, n.max(3) / 3);
                let queries: Vec<FoldedQuery> = (0..3).map(|_| folding.query(&mut random)).collect();
                let found = exact(&queries, &rows, k, None);
                for (query, found) in queries.iter().zip(found) {
                    let mut all: Vec<(String, f32)> =
                        (0..n).map(|row| (rows.id(row).to_owned(), query.score(&rows.vector(row)))).collect();
                    models::metrics::rank(&mut all);
                    all.truncate(k);
                    let found: Vec<(String, f32)> =
                        found.iter().map(|s| (rows.id(s.row).to_owned(), s.score)).collect();
                    assert_eq!(found, all, "{form:?} {n} rows, {k} wanted");
                }
            }
        }
    }

    /// Rescoring all rows must be the exact search, or the two paths would rank differently.
    #[test]
    fn rescoring_agrees_with_the_scan() {
        let mut random = Random::new(8);
        let folding = Folding::new(Form::Relu, 8, &mut random);
        let rows = rows(&mut random, 300, 8, 50);
        let query = folding.query(&mut random);
        let mut keys: Vec<i64> = (0..300).map(|row| rows.key(row)).collect();
        keys.reverse();
        keys.extend([0, -4, 301, i64::MAX]);
        assert_eq!(rescore(&query, &rows, &keys, 20), exact(&[query], &rows, 20, None)[0]);
    }

    /// A replaced document that stayed in memory beside its new self would be found by its old text.
    #[test]
    fn pushing_a_known_key_replaces_the_vector() {
        let mut rows = Rows::new(2);
        let none = Metadata::new();
        rows.push(3, "a", &[1.0, 2.0], &none);
        rows.push(7, "b", &[3.0, 4.0], &none);
        rows.push(3, "a", &[5.0, 6.0], &none);
        assert_eq!(
            (rows.len(), &*rows.vector(0), rows.row(7), rows.row(4)),
            (2, [5.0, 6.0].as_slice(), Some(1), None)
        );
        assert_eq!(rows.bytes(), 16);
    }

    /// A removed document that is still found, or one that moved over another, is a wrong answer; so is a document that a
    /// filter should have kept out, at any selectivity.
    #[test]
    fn removals_and_filters_leave_the_others_as_they_were() {
        let mut random = Random::new(9);
        let folding = Folding::new(Form::Gated, 8, &mut random);
        let query = folding.query(&mut random);
        let metadata = |i: i64| -> Metadata { [("tenth".to_owned(), (i % 10).into())].into_iter().collect() };
        let mut rows = Rows::new(8);
        for i in 1..=1500 {
            rows.push(i, &format!("d{i}"), &random.normals(8), &metadata(i));
        }
        let answer = |rows: &Rows, filter: &Filter, k: usize| -> Vec<(i64, f32)> {
            let selected = rows.select(filter);
            let found = &exact(std::slice::from_ref(&query), rows, k, Some(&selected))[0];
            found.iter().map(|s| (rows.key(s.row), s.score)).collect()
        };
        let everything = answer(&rows, &Filter::everything(), usize::MAX);
        let mut there: Vec<i64> = (1..=1500).collect();
        for round in 0..6 {
            for key in (round + 1..=1500).step_by(7) {
                let was = there.contains(&key);
                assert_eq!(rows.remove(key), was);
                there.retain(|k| *k != key);
            }
            rows.compact();
            assert_eq!(rows.len(), there.len());
            let unfiltered = &exact(std::slice::from_ref(&query), &rows, usize::MAX, None)[0];
            assert_eq!(unfiltered.len(), there.len());
            for wanted in ["tenth=3", "tenth<9", "tenth=12", "!tenth"] {
                let filter = Filter::parse(wanted).unwrap();
                let passes = |key: &i64| there.contains(key) && filter.passes(&metadata(*key));
                let expected: Vec<(i64, f32)> =
                    everything.iter().filter(|(key, _)| passes(key)).copied().collect();
                assert_eq!(answer(&rows, &filter, usize::MAX), expected, "{wanted} in round {round}");
            }
        }
        assert!(rows.places() < 1500, "gaps are closed");
    }
}
