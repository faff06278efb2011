//! Whether one system is better than another, or was only lucky in its queries: the paired bootstrap over queries
//! (Efron and Tibshirani 1993; for retrieval, Sakai, SIGIR 2006).

use super::run::{COLUMNS, Values};
use crate::sampling::rng;
use anyhow::{Result, bail};
use rand::RngExt;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// Resamples of the queries.
pub const RESAMPLES: usize = 10_000;
/// Share of the resamples below and above the interval: it covers 95 %.
const TAIL: f64 = 0.025;

/// How much a system differs from the baseline in one metric.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    /// The system.
    pub system: String,
    /// What it is compared to.
    pub baseline: String,
    /// One of [`COLUMNS`].
    pub metric: &'static str,
    /// Mean of system less baseline over the queries.
    pub difference: f64,
    /// Lower end of the 95 % interval.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// Share of resamples, shifted to mean zero, that differ at least as much (two-sided).
    pub p: f64,
}

/// A system's metrics by query id.
pub struct Measured<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its metrics.
    pub values: &'a BTreeMap<String, Values>,
}

/// Place of the baseline among the systems: the named one, or the first.
pub fn find_baseline(systems: &[&str], baseline: Option<&str>) -> Result<usize> {
    if let [] | [_] = systems {
        bail!("a significance test needs two systems or more, there are {}", systems.len());
    }
    let Some(name) = baseline else { return Ok(0) };
    match systems.iter().position(|system| *system == name) {
        Some(place) => Ok(place),
        None => bail!("--baseline `{name}`: no such system; there are `{}`", systems.join("`, `")),
    }
}

/// Differences of all systems to the one at place `baseline`, all metrics of a system in a row. A query that any system
/// has is compared on; where a system lacks it, it found nothing. Every metric and system sees the same resamples.
pub fn compare(systems: &[Measured], baseline: usize, seed: u64) -> Vec<Difference> {
    let queries: BTreeSet<&String> = systems.iter().flat_map(|system| system.values.keys()).collect();
    let value = |system: &Measured, query: &String, metric: usize| {
        system.values.get(query).map_or(0.0, |values| values[metric])
    };
    let mut names = Vec::new();
    // One column for each system and metric: system less baseline, query by query.
    let mut columns: Vec<Vec<f64>> = Vec::new();
    for (place, system) in systems.iter().enumerate().filter(|(place, _)| *place != baseline) {
        for metric in 0..COLUMNS.len() {
            names.push((place, metric));
            let base = &systems[baseline];
            columns.push(queries.iter().map(|q| value(system, q, metric) - value(base, q, metric)).collect());
        }
    }
    let means = resampled_means(&columns, queries.len(), seed);
    let differences = names.into_iter().zip(columns).zip(means).map(|(((system, metric), column), means)| {
        let mean = column.iter().sum::<f64>() / column.len().max(1) as f64;
        let (low, high, p) = interval(mean, means);
        let (system, baseline) = (systems[system].name.to_owned(), systems[baseline].name.to_owned());
        Difference { system, baseline, metric: COLUMNS[metric], difference: mean, low, high, p }
    });
    differences.collect()
}

/// Mean of each column over each resample of its rows, drawn with replacement.
fn resampled_means(columns: &[Vec<f64>], rows: usize, seed: u64) -> Vec<Vec<f64>> {
    let mut means = vec![Vec::with_capacity(RESAMPLES); columns.len()];
    if rows == 0 {
        return means;
    }
    let mut rng = rng(seed, "bootstrap", 0);
    let mut drawn = vec![0; rows];
    for _ in 0..RESAMPLES {
        drawn.iter_mut().for_each(|row| *row = rng.random_range(0..rows));
        for (column, means) in columns.iter().zip(&mut means) {
            means.push(drawn.iter().map(|row| column[*row]).sum::<f64>() / rows as f64);
        }
    }
    means
}

/// Percentile interval and p-value of an observed mean.
fn interval(mean: f64, mut means: Vec<f64>) -> (f64, f64, f64) {
    // Sums of the same numbers in another order differ in the last bits, and must count as equal.
    let extreme = means.iter().filter(|m| (*m - mean).abs() >= mean.abs() - 1e-12).count();
    // The observed sample counts as one of the resamples, so that no p-value is zero.
    let p = (extreme + 1) as f64 / (means.len() + 1) as f64;
    means.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let place = (share * means.len().saturating_sub(1) as f64).round() as usize;
        means.get(place).copied().unwrap_or(mean)
    };
    (at(TAIL), at(1.0 - TAIL), p)
}

/// A table in Markdown.
pub fn table(title: &str, differences: &[Difference]) -> String {
    let Some(first) = differences.first() else { return String::new() };
    let title = format!("{title}, against {}", first.baseline);
    let names = differences.iter().map(|d| d.system.len()).chain([title.len()]);
    let width = names.max().unwrap_or(0);
    let mut text = format!("| {title:width$} | metric    | difference |    95% interval  | p      |\n");
    text += &format!("| {} | --------- | ---------: | ---------------: | -----: |\n", "-".repeat(width));
    for d in differences {
        text += &format!(
            "| {:width$} | {:9} | {:>+10.3} | {:>+7.3}, {:>+7.3} | {:.4} |\n",
            d.system, d.metric, d.difference, d.low, d.high, d.p
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(recalls: &[f64]) -> BTreeMap<String, Values> {
        recalls.iter().enumerate().map(|(i, r)| (format!("q{i:03}"), [*r; 5])).collect()
    }

    fn compared(a: &[f64], b: &[f64], seed: u64) -> Difference {
        let (a, b) = (values(a), values(b));
        let systems = [Measured { name: "a", values: &a }, Measured { name: "b", values: &b }];
        let found = compare(&systems, 0, seed);
        assert_eq!(found.iter().map(|d| d.metric).collect::<Vec<_>>(), COLUMNS);
        found.into_iter().next().unwrap()
    }

    /// A system must not be told to be better than itself.
    #[test]
    fn identical_runs_do_not_differ() {
        let recalls: Vec<f64> = (0..50).map(|i| f64::from(i % 3) / 2.0).collect();
        let found = compared(&recalls, &recalls, 1);
        assert_eq!((found.difference, found.low, found.high, found.p), (0.0, 0.0, 0.0, 1.0));
    }

    /// 100 queries, 30 gained and 10 lost: the difference is 0.2, its deviation sqrt((0.4 - 0.04) / 100) = 0.06, so the
    /// interval is about 0.2 -+ 1.96 * 0.06, and a difference of 3.3 deviations comes by chance once in a thousand times.
    #[test]
    fn a_known_difference_is_found_with_its_interval() {
        let mut a = vec![0.0; 100];
        let mut b = vec![0.0; 100];
        b[..30].fill(1.0);
        a[30..40].fill(1.0);
        let found = compared(&a, &b, 7);
        assert!((found.difference - 0.2).abs() < 1e-12);
        assert!((found.low - 0.0824).abs() < 0.015 && (found.high - 0.3176).abs() < 0.015, "{found:?}");
        assert!(found.p < 0.003, "{found:?}");
        assert_eq!(found, compared(&a, &b, 7), "equal seeds give equal numbers");
        let back = compared(&b, &a, 7);
        assert_eq!((back.difference, back.low, back.p), (-0.2, -found.high, found.p));
        // Two gained and one lost of a hundred: chance.
        b = a.clone();
        b[..2].fill(1.0);
        b[30] = 0.0;
        assert!(compared(&a, &b, 7).p > 0.4);
    }

    /// A query for which one system returned nothing is that system's failure, not a reason to leave the query out.
    #[test]
    fn a_missing_query_counts_as_nothing_found() {
        let found = compared(&[1.0, 1.0], &[1.0], 0);
        assert_eq!(found.difference, -0.5);
    }

    /// A slip in the baseline's name must not compare with another system.
    #[test]
    fn the_baseline_is_named_or_first() {
        assert_eq!(find_baseline(&["BM25", "student"], Some("student")).unwrap(), 1);
        assert_eq!(find_baseline(&["BM25", "student"], None).unwrap(), 0);
        let error = find_baseline(&["BM25", "student"], Some("bm25")).unwrap_err().to_string();
        assert!(error.contains("`bm25`: no such system; there are `BM25`, `student`"), "{error}");
        assert!(find_baseline(&["BM25"], None).unwrap_err().to_string().contains("needs two systems"));
    }
}
