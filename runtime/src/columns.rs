//! Metadata of all documents by field, so that a filter asks each distinct value once and then reads one number a row.

use crate::document::Metadata;
use crate::filter::{Filter, flattened};
use fixedbitset::FixedBitSet;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};

/// Columns of metadata over rows numbered from 0. Memory follows what the rows have: values that no row has any more are
/// forgotten, and a field that few rows have takes room for those.
#[derive(Debug, Clone, Default)]
pub struct Columns {
    fields: BTreeMap<String, Column>,
    /// Rows that were ever set are below.
    rows: usize,
}

#[derive(Debug, Clone, Default)]
struct Column {
    /// Each with the number of rows that have it; without any, its place is free.
    values: Vec<(Value, u32)>,
    free: Vec<u32>,
    /// Place in `values` by the value as JSON.
    places: HashMap<String, u32>,
    /// One more than the value's place for each row that has the field.
    cells: Cells,
}

/// A number for some rows, none of them 0.
#[derive(Debug, Clone)]
enum Cells {
    /// 0 where there is none; rows past the end have none.
    Dense {
        rows: Vec<u32>,
        count: usize,
    },
    Sparse(BTreeMap<usize, u32>),
}

impl Columns {
    /// Sets a row's metadata; what it had before is forgotten.
    pub fn set(&mut self, row: usize, metadata: &Metadata) {
        self.clear(row);
        self.rows = self.rows.max(row + 1);
        for (name, value) in flattened(metadata) {
            self.fields.entry(name).or_default().set(row, value);
        }
    }

    /// Forgets a row's metadata.
    pub fn clear(&mut self, row: usize) {
        if row < self.rows {
            self.fields.retain(|_, column| {
                column.clear(row);
                column.cells.count() > 0
            });
        }
    }

    /// Rows below `rows` that pass.
    pub fn select(&self, filter: &Filter, rows: usize) -> FixedBitSet {
        let none = || FixedBitSet::with_capacity(rows);
        let all = || {
            let mut all = none();
            all.insert_range(..);
            all
        };
        match filter {
            Filter::All(filters) => filters.iter().fold(all(), |mut found, filter| {
                found.intersect_with(&self.select(filter, rows));
                found
            }),
            Filter::Any(filters) => filters.iter().fold(none(), |mut found, filter| {
                found.union_with(&self.select(filter, rows));
                found
            }),
            Filter::Not(filter) => {
                let mut found = self.select(filter, rows);
                found.toggle_range(..);
                found
            }
            Filter::Field { field, test } => {
                let mut found = none();
                if let Some(column) = self.fields.get(field) {
                    let passes = |(value, rows): &(Value, u32)| *rows > 0 && test.passes(value);
                    let passing: Vec<bool> = column.values.iter().map(passes).collect();
                    column.cells.each(rows, |row, value| {
                        if passing[value as usize - 1] {
                            found.insert(row);
                        }
                    });
                }
                found
            }
        }
    }

    /// Values of each field with the number of rows that have them, commonest first, at most `most` of a field; the items
    /// of a list count one by one. Rows outside `live` do not count.
    pub fn facets(&self, live: &FixedBitSet, most: usize) -> BTreeMap<String, Vec<(Value, usize)>> {
        let mut facets = BTreeMap::new();
        for (name, column) in &self.fields {
            let mut counts = vec![0usize; column.values.len()];
            column.cells.each(self.rows, |row, value| {
                counts[value as usize - 1] += usize::from(live.contains(row));
            });
            let mut items: HashMap<String, (Value, usize)> = HashMap::new();
            for ((value, _), &count) in column.values.iter().zip(&counts).filter(|(_, count)| **count > 0) {
                let each = match value {
                    Value::Array(values) => values.as_slice(),
                    value => std::slice::from_ref(value),
                };
                for value in each {
                    items.entry(value.to_string()).or_insert_with(|| (value.clone(), 0)).1 += count;
                }
            }
            let mut items: Vec<(String, (Value, usize))> = items.into_iter().collect();
            items.sort_by(|a, b| b.1.1.cmp(&a.1.1).then_with(|| a.0.cmp(&b.0)));
            items.truncate(most);
            if !items.is_empty() {
                facets.insert(name.clone(), items.into_iter().map(|(_, item)| item).collect());
            }
        }
        facets
    }

    /// Each field with its distinct values and, for each row that has it, row and place of its value, in order of rows.
    pub fn entries(&self) -> impl Iterator<Item = (&str, Vec<&Value>, Vec<[u32; 2]>)> {
        self.fields.iter().map(|(name, column)| {
            // Free places are left out.
            let mut places = vec![0; column.values.len()];
            let mut values = Vec::with_capacity(column.values.len());
            for (place, (value, _)) in column.values.iter().enumerate().filter(|(_, (_, rows))| *rows > 0) {
                places[place] = values.len() as u32;
                values.push(value);
            }
            let mut entries = Vec::with_capacity(column.cells.count());
            column.cells.each(self.rows, |row, value| entries.push([row as u32, places[value as usize - 1]]));
            (name.as_str(), values, entries)
        })
    }

    /// Puts a field back as [`Columns::entries`] told it; false if it cannot have been told so of `rows` rows.
    pub fn restore(&mut self, name: String, values: Vec<Value>, entries: &[[u32; 2]], rows: usize) -> bool {
        let mut column = Column::default();
        for (place, value) in values.iter().enumerate() {
            if column.places.insert(value.to_string(), place as u32).is_some() {
                return false;
            }
        }
        column.values = values.into_iter().map(|value| (value, 0)).collect();
        for &[row, place] in entries {
            let row = row as usize;
            let Some((_, having)) = column.values.get_mut(place as usize) else { return false };
            *having += 1;
            if row >= rows || column.cells.put(row, place + 1) != 0 {
                return false;
            }
        }
        self.rows = self.rows.max(rows);
        column.values.iter().all(|(_, having)| *having > 0) && self.fields.insert(name, column).is_none()
    }

    /// The same columns over the rows that `live` holds, numbered anew.
    pub fn compacted(&self, live: &FixedBitSet) -> Self {
        let mut anew = vec![usize::MAX; self.rows];
        let mut rows = 0;
        for old in live.ones().filter(|old| *old < self.rows) {
            anew[old] = rows;
            rows += 1;
        }
        let mut fields = BTreeMap::new();
        for (name, old) in &self.fields {
            let mut column = Column::default();
            old.cells.each(self.rows, |row, value| {
                if anew[row] != usize::MAX {
                    column.set(anew[row], &old.values[value as usize - 1].0);
                }
            });
            if column.cells.count() > 0 {
                fields.insert(name.clone(), column);
            }
        }
        Self { fields, rows }
    }
}

impl Column {
    fn set(&mut self, row: usize, value: &Value) {
        let written = value.to_string();
        let place = match self.places.get(&written) {
            Some(place) => *place,
            None => {
                let place = self.free.pop().unwrap_or(self.values.len() as u32);
                match self.values.get_mut(place as usize) {
                    Some(slot) => *slot = (value.clone(), 0),
                    None => self.values.push((value.clone(), 0)),
                }
                self.places.insert(written, place);
                place
            }
        };
        // Before the old one is forgotten: it may be the same.
        self.values[place as usize].1 += 1;
        let before = self.cells.put(row, place + 1);
        self.forget(before);
    }

    fn clear(&mut self, row: usize) {
        let before = self.cells.take(row);
        self.forget(before);
    }

    /// One row less has this value.
    fn forget(&mut self, before: u32) {
        let Some(place) = before.checked_sub(1) else { return };
        let (value, rows) = &mut self.values[place as usize];
        *rows -= 1;
        if *rows == 0 {
            self.places.remove(&value.to_string());
            *value = Value::Null;
            self.free.push(place);
        }
    }
}

impl Default for Cells {
    fn default() -> Self {
        Self::Sparse(BTreeMap::new())
    }
}

impl Cells {
    /// A number takes about four times as much room in a tree as in a row of all; a field stays what it is in between.
    const DENSE: usize = 4;
    const SPARSE: usize = 16;

    fn count(&self) -> usize {
        match self {
            Self::Dense { count, .. } => *count,
            Self::Sparse(cells) => cells.len(),
        }
    }

    /// Puts a number there, and returns the one before it.
    fn put(&mut self, row: usize, number: u32) -> u32 {
        let places = match self {
            Self::Dense { rows, .. } => rows.len().max(row + 1),
            Self::Sparse(cells) => cells.last_key_value().map_or(0, |(last, _)| last + 1).max(row + 1),
        };
        let count = self.count() + 1;
        match self {
            Self::Dense { .. } if count * Self::SPARSE < places => self.make_sparse(),
            Self::Sparse(_) if count * Self::DENSE > places => self.make_dense(places),
            _ => {}
        }
        match self {
            Self::Sparse(cells) => cells.insert(row, number).unwrap_or(0),
            Self::Dense { rows, count } => {
                if rows.len() <= row {
                    rows.resize(row + 1, 0);
                }
                let before = std::mem::replace(&mut rows[row], number);
                *count += usize::from(before == 0);
                before
            }
        }
    }

    /// Takes the number away that is there; 0 if there is none.
    fn take(&mut self, row: usize) -> u32 {
        match self {
            Self::Sparse(cells) => cells.remove(&row).unwrap_or(0),
            Self::Dense { rows, count } => {
                let before = rows.get_mut(row).map_or(0, std::mem::take);
                *count -= usize::from(before != 0);
                if *count * Self::SPARSE < rows.len() {
                    self.make_sparse();
                }
                before
            }
        }
    }

    /// Row and number of each row below `end` that has one.
    fn each(&self, end: usize, mut with: impl FnMut(usize, u32)) {
        match self {
            Self::Dense { rows, .. } => {
                for (row, &number) in rows.iter().enumerate().take(end) {
                    if number != 0 {
                        with(row, number);
                    }
                }
            }
            Self::Sparse(cells) => cells.range(..end).for_each(|(row, number)| with(*row, *number)),
        }
    }

    fn make_sparse(&mut self) {
        let mut cells = BTreeMap::new();
        self.each(usize::MAX, |row, number| {
            cells.insert(row, number);
        });
        *self = Self::Sparse(cells);
    }

    fn make_dense(&mut self, places: usize) {
        let mut rows = vec![0; places];
        self.each(usize::MAX, |row, number| rows[row] = number);
        *self = Self::Dense { rows, count: self.count() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::{Side, Test};
    use proptest::prelude::*;
    use serde_json::json;

    fn value() -> impl Strategy<Value = Value> {
        let scalar = prop_oneof![
            (0..4i64).prop_map(|n| json!(n)),
            (0..4i64).prop_map(|n| json!(n as f64 / 2.0)),
            "[ab]".prop_map(|s| json!(s)),
            any::<bool>().prop_map(|b| json!(b)),
        ];
        prop_oneof![
            4 => scalar.clone(),
            1 => prop::collection::vec(scalar.clone(), 0..3).prop_map(|items| json!(items)),
            1 => scalar.prop_map(|inner| json!({ "x": inner })),
        ]
    }

    fn metadata() -> impl Strategy<Value = Metadata> {
        // `a.x` is also what a nested object's field is called.
        prop::collection::btree_map("[abc]|a\\.x|c", value(), 0..4)
            .prop_map(|fields| fields.into_iter().collect())
    }

    fn filter() -> impl Strategy<Value = Filter> {
        let field = prop_oneof!["[abc]", Just("a.x".to_owned())];
        let side = || prop::sample::select(vec![Side::Less, Side::AtMost, Side::Greater, Side::AtLeast]);
        let test = prop_oneof![
            Just(Test::Exists),
            prop::collection::vec(value(), 0..3).prop_map(Test::In),
            (side(), 0..4i64).prop_map(|(side, n)| Test::Compare(side, json!(n))),
            (side(), "[ab]").prop_map(|(side, s)| Test::Compare(side, json!(s))),
        ];
        let leaf = (field, test).prop_map(|(field, test)| Filter::Field { field, test });
        leaf.prop_recursive(3, 12, 3, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Filter::All),
                prop::collection::vec(inner.clone(), 0..3).prop_map(Filter::Any),
                inner.prop_map(|filter| Filter::Not(Box::new(filter))),
            ]
        })
    }

    proptest! {
        /// Columns are a faster way to ask the documents, never another answer: after changes and compaction too.
        #[test]
        fn columns_answer_as_the_documents_do(
            rows in prop::collection::vec((metadata(), metadata(), any::<bool>()), 0..20),
            filter in filter(),
        ) {
            let mut columns = Columns::default();
            for (row, (before, _, _)) in rows.iter().enumerate() {
                columns.set(row, before);
            }
            for (row, (_, after, _)) in rows.iter().enumerate() {
                columns.set(row, after);
            }
            let expected: Vec<usize> =
                (0..rows.len()).filter(|&row| filter.passes(&rows[row].1)).collect();
            prop_assert_eq!(columns.select(&filter, rows.len()).ones().collect::<Vec<_>>(), expected);

            for (row, (_, after, _)) in rows.iter().enumerate().filter(|(_, row)| !row.2) {
                prop_assert_eq!(columns.select(&Filter::everything(), rows.len()).contains(row), true);
                let had = columns.select(&filter, rows.len()).contains(row);
                prop_assert_eq!(had, filter.passes(after));
                columns.clear(row);
                prop_assert_eq!(
                    columns.select(&filter, rows.len()).contains(row),
                    filter.passes(&Metadata::new())
                );
            }
            let live: FixedBitSet = (0..rows.len()).filter(|&row| rows[row].2).collect();
            let kept: Vec<&Metadata> = rows.iter().filter(|row| row.2).map(|row| &row.1).collect();
            let expected: Vec<usize> = (0..kept.len()).filter(|&row| filter.passes(kept[row])).collect();
            let found = columns.compacted(&live).select(&filter, kept.len());
            prop_assert_eq!(found.ones().collect::<Vec<_>>(), expected);
        }
    }

    /// The counts beside a filter are what choosing it would leave.
    #[test]
    fn facets_count_what_a_filter_would_leave() {
        let mut columns = Columns::default();
        let rows = [
            json!({"r": "a"}),
            json!({"r": "b", "t": [1, 2]}),
            json!({"r": "b", "t": [2]}),
            json!({"r": "b"}),
        ];
        for (row, metadata) in rows.iter().enumerate() {
            columns.set(row, metadata.as_object().unwrap());
        }
        let live: FixedBitSet = [0, 1, 2].into_iter().collect();
        let facets = columns.facets(&live, 50);
        assert_eq!(facets["r"], [(json!("b"), 2), (json!("a"), 1)]);
        assert_eq!(facets["t"], [(json!(2), 2), (json!(1), 1)]);
        assert_eq!(columns.facets(&live, 1)["r"].len(), 1);
    }
    /// Values and numbers of rows that are kept.
    fn kept(columns: &Columns) -> (usize, usize) {
        let cells = |cells: &Cells| match cells {
            Cells::Dense { rows, .. } => rows.capacity(),
            Cells::Sparse(cells) => 4 * cells.len(),
        };
        let fields = columns.fields.values();
        fields.fold((0, 0), |(v, c), column| (v + column.values.len(), c + cells(&column.cells)))
    }

    /// A robot that notes when it last saw a thing changes one document's metadata every minute for years.
    #[test]
    fn values_that_no_row_has_are_forgotten() {
        let mut columns = Columns::default();
        for time in 0..10_000 {
            columns.set(time % 3, json!({ "seen": time, "by": "robot" }).as_object().unwrap());
        }
        assert_eq!(kept(&columns).0, 4, "three rows have three times and one name");
        let all: FixedBitSet = (0..3).collect();
        assert_eq!(columns.facets(&all, 9)["seen"].len(), 3);
        for row in 0..3 {
            columns.clear(row);
        }
        assert_eq!((columns.fields.len(), kept(&columns)), (0, (0, 0)));
    }

    /// Documents of many kinds, each kind with fields of its own, must take memory for what they have, and not documents times
    /// fields.
    #[test]
    fn fields_that_few_rows_have_take_little_room() {
        let (mut columns, rows) = (Columns::default(), 4000);
        for row in 0..rows {
            let own = format!("own-{row}");
            columns.set(row, json!({ own: 1, "all": row % 7 }).as_object().unwrap());
        }
        let (_, cells) = kept(&columns);
        assert!(cells <= 8 * 2 * rows, "{cells} cells for {} numbers", 2 * rows);
        let found = columns.select(&Filter::parse("own-77").unwrap(), rows);
        assert_eq!(found.ones().collect::<Vec<_>>(), [77]);
        // Few are left of many: the room goes with them.
        for row in 0..rows - 2 {
            columns.clear(row);
        }
        let (_, cells) = kept(&columns);
        assert!(cells <= 8 * 4, "{cells} cells for 4 numbers");
        assert_eq!(columns.select(&Filter::parse("all>=0").unwrap(), rows).count_ones(..), 2);
        assert_eq!(columns.fields.len(), 3);
    }
}
