//! Metadata of all documents by field, so that a filter asks each distinct value once and then reads one number a row.

use crate::document::Metadata;
use crate::filter::{Filter, flattened};
use fixedbitset::FixedBitSet;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};

/// Columns of metadata over rows numbered from 0.
#[derive(Debug, Clone, Default)]
pub struct Columns {
    fields: BTreeMap<String, Column>,
}

#[derive(Debug, Clone, Default)]
struct Column {
    values: Vec<Value>,
    /// Place in `values` by the value as JSON.
    places: HashMap<String, u32>,
    /// One more than the value's place for each row, 0 where it lacks the field; rows past the end lack it too.
    rows: Vec<u32>,
}

impl Columns {
    /// Sets a row's metadata; what it had before is forgotten.
    pub fn set(&mut self, row: usize, metadata: &Metadata) {
        for column in self.fields.values_mut() {
            if let Some(slot) = column.rows.get_mut(row) {
                *slot = 0;
            }
        }
        for (name, value) in flattened(metadata) {
            self.fields.entry(name).or_default().set(row, value);
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
                    let passing: Vec<bool> = column.values.iter().map(|value| test.passes(value)).collect();
                    for (row, &value) in column.rows.iter().enumerate().take(rows) {
                        if value != 0 && passing[value as usize - 1] {
                            found.insert(row);
                        }
                    }
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
            for (row, &value) in column.rows.iter().enumerate() {
                if value != 0 && live.contains(row) {
                    counts[value as usize - 1] += 1;
                }
            }
            let mut items: HashMap<String, (Value, usize)> = HashMap::new();
            for (value, &count) in column.values.iter().zip(&counts).filter(|(_, count)| **count > 0) {
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
    pub fn entries(&self) -> impl Iterator<Item = (&str, &[Value], Vec<[u32; 2]>)> {
        self.fields.iter().map(|(name, column)| {
            let having = column.rows.iter().enumerate().filter(|(_, value)| **value != 0);
            let entries = having.map(|(row, value)| [row as u32, value - 1]).collect();
            (name.as_str(), column.values.as_slice(), entries)
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
        for &[row, place] in entries {
            let row = row as usize;
            if row >= rows || place as usize >= values.len() || column.rows.len() > row {
                return false;
            }
            column.rows.resize(row, 0);
            column.rows.push(place + 1);
        }
        column.values = values;
        self.fields.insert(name, column).is_none()
    }

    /// The same columns over the rows that `live` holds, numbered anew.
    pub fn compacted(&self, live: &FixedBitSet) -> Self {
        let mut fields = BTreeMap::new();
        for (name, old) in &self.fields {
            let mut column = Column::default();
            for (row, from) in live.ones().enumerate() {
                if let Some(place) = old.rows.get(from).and_then(|value| value.checked_sub(1)) {
                    column.set(row, &old.values[place as usize]);
                }
            }
            if !column.rows.is_empty() {
                fields.insert(name.clone(), column);
            }
        }
        Self { fields }
    }
}

impl Column {
    fn set(&mut self, row: usize, value: &Value) {
        let next = self.values.len() as u32;
        let place = *self.places.entry(value.to_string()).or_insert(next);
        if place == next {
            self.values.push(value.clone());
        }
        if self.rows.len() <= row {
            self.rows.resize(row + 1, 0);
        }
        self.rows[row] = place + 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
        prop::collection::btree_map("[abc]", value(), 0..4).prop_map(|fields| fields.into_iter().collect())
    }

    fn filter() -> impl Strategy<Value = Filter> {
        let field = prop_oneof!["[abc]", Just("a.x".to_owned())];
        let test = prop_oneof![
            Just(json!({ "$exists": true })),
            prop::collection::vec(value(), 0..3).prop_map(|values| json!({ "$in": values })),
            ("\\$(gt|gte|lt|lte)", 0..4i64).prop_map(|(side, n)| json!({ side: n })),
            ("\\$(gt|gte|lt|lte)", "[ab]").prop_map(|(side, s)| json!({ side: s })),
        ];
        let leaf =
            (field, test).prop_map(|(field, test)| Filter::from_json(&json!({ field: test })).unwrap());
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
}
