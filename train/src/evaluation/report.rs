//! The table of systems, and all numbers of each query.

use super::run::{COLUMNS, Values};
use crate::fit::Metrics;
use anyhow::Result;
use models::files::write_atomic;
use serde_json::json;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

/// One line of the table.
pub struct Row {
    /// System.
    pub name: String,
    /// Queries judged.
    pub queries: usize,
    /// By name of [`COLUMNS`].
    pub metrics: Metrics,
    /// Seconds that all of it took, documents included.
    pub seconds: f64,
    /// Milliseconds that each query took once the documents were encoded.
    pub milliseconds: f64,
}

/// A table in Markdown, which terminals show well too.
pub fn table(title: &str, rows: &[Row]) -> String {
    let width = rows.iter().map(|row| row.name.len()).chain([title.len()]).max().unwrap_or(0);
    let mut text = format!("| {title:width$} | queries | {} | seconds | ms/query |\n", COLUMNS.join(" | "));
    let dashes = COLUMNS.map(|name| "-".repeat(name.len() - 1) + ":").join(" | ");
    text += &format!("| {} | ------: | {dashes} | ------: | -------: |\n", "-".repeat(width));
    for row in rows {
        let values: Vec<String> = COLUMNS
            .iter()
            .map(|name| format!("{:>1$.3}", row.metrics.get(*name).copied().unwrap_or(0.0), name.len()))
            .collect();
        let (name, queries, values) = (&row.name, row.queries, values.join(" | "));
        let (seconds, milliseconds) = (row.seconds, row.milliseconds);
        text +=
            &format!("| {name:width$} | {queries:>7} | {values} | {seconds:>7.1} | {milliseconds:>8.2} |\n");
    }
    text
}

/// Metrics of one system on one split's queries.
pub struct SystemValues<'a> {
    /// Split.
    pub split: &'a str,
    /// System.
    pub system: &'a str,
    /// By query id.
    pub values: &'a BTreeMap<String, Values>,
}

/// Writes a JSON object for each system and query, one a line.
pub fn write_per_query(file: &Path, systems: &[SystemValues]) -> Result<()> {
    write_atomic(file, |writer| {
        for system in systems {
            for (query, values) in system.values {
                let mut line = json!({ "split": system.split, "system": system.system, "query": query });
                for (name, value) in COLUMNS.iter().zip(values) {
                    line[*name] = json!(value);
                }
                writeln!(writer, "{line}")?;
            }
        }
        Ok(())
    })?;
    Ok(())
}
