//! Ranking metrics as trec_eval computes them: graded gains, ties by document id (descending).

use std::collections::HashMap;

/// Judgements of one query: document id to gain (above zero = relevant).
pub type Judgements = HashMap<String, u32>;

/// Orders `(document id, score)` best first; equal scores by document id, descending (trec_eval's rule), so that a
/// written run file gives the same numbers there.
pub fn rank(results: &mut [(String, f32)]) {
    results.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| b.0.cmp(&a.0)));
}

/// Share of the relevant documents among the first `k`; `None` without relevant documents.
pub fn recall_at_k(ranked: &[&str], judgements: &Judgements, k: usize) -> Option<f64> {
    let relevant = judgements.values().filter(|gain| **gain > 0).count();
    let found = ranked.iter().take(k).filter(|id| gain(judgements, id) > 0).count();
    (relevant > 0).then(|| found as f64 / relevant as f64)
}

/// One over the rank of the first relevant document among the first `k`, else 0; `None` without relevant documents.
pub fn mrr_at_k(ranked: &[&str], judgements: &Judgements, k: usize) -> Option<f64> {
    judgements.values().any(|gain| *gain > 0).then(|| {
        let first = ranked.iter().take(k).position(|id| gain(judgements, id) > 0);
        first.map_or(0.0, |position| 1.0 / (position + 1) as f64)
    })
}

/// Discounted gain of the first `k` (gain / log2(1 + rank)) over that of the ideal order; `None` without relevant
/// documents.
pub fn ndcg_at_k(ranked: &[&str], judgements: &Judgements, k: usize) -> Option<f64> {
    let discounted = |gains: &mut dyn Iterator<Item = u32>| -> f64 {
        gains.take(k).enumerate().map(|(i, gain)| f64::from(gain) / (i as f64 + 2.0).log2()).sum()
    };
    let mut ideal: Vec<u32> = judgements.values().copied().collect();
    ideal.sort_unstable_by(|a, b| b.cmp(a));
    let best = discounted(&mut ideal.into_iter());
    (best > 0.0).then(|| discounted(&mut ranked.iter().map(|id| gain(judgements, id))) / best)
}

fn gain(judgements: &Judgements, id: &str) -> u32 {
    judgements.get(id).copied().unwrap_or(0)
}

/// Spearman's rank correlation of two rankings of the same things, equal values sharing their mean rank. Where a side does
/// not rank at all: 1 if neither does, else 0.
pub fn spearman(a: &[f32], b: &[f32]) -> f64 {
    let (a, b) = (ranks(a), ranks(b));
    let mean = (a.len() as f64 - 1.0) / 2.0;
    let product = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| (x - mean) * (y - mean)).sum::<f64>();
    let (of_a, of_b) = (product(&a, &a), product(&b, &b));
    match of_a * of_b > 0.0 {
        true => product(&a, &b) / (of_a * of_b).sqrt(),
        false => f64::from(u8::from(of_a == of_b)),
    }
}

fn ranks(values: &[f32]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
    let mut ranks = vec![0.0; values.len()];
    let mut start = 0;
    for group in order.chunk_by(|a, b| values[*a] == values[*b]) {
        let shared = start as f64 + (group.len() as f64 - 1.0) / 2.0;
        group.iter().for_each(|place| ranks[*place] = shared);
        start += group.len();
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(pairs: &[(&str, u32)]) -> Judgements {
        pairs.iter().map(|(id, gain)| ((*id).to_owned(), *gain)).collect()
    }

    /// A slip here would misreport every table.
    #[test]
    fn graded_metrics_agree_with_hand_computation() {
        let judgements = judged(&[("a", 3), ("b", 1), ("x", 0)]);
        let ranked = ["x", "b", "a"];
        assert_eq!(recall_at_k(&ranked, &judgements, 2), Some(0.5));
        assert_eq!(mrr_at_k(&ranked, &judgements, 10), Some(0.5));
        let expected = (1.0 / 3f64.log2() + 3.0 / 2.0) / (3.0 + 1.0 / 3f64.log2());
        assert!((ndcg_at_k(&ranked, &judgements, 3).unwrap() - expected).abs() < 1e-12);
        assert_eq!(mrr_at_k(&ranked, &judgements, 1), Some(0.0));
        assert_eq!(ndcg_at_k(&ranked, &judged(&[("x", 0)]), 10), None);
    }

    /// A system that scores everything alike must not look good because of the order of the corpus file.
    #[test]
    fn ties_are_ordered_by_id_descending() {
        let mut results = vec![("a".to_owned(), 1.0), ("c".to_owned(), 1.0), ("b".to_owned(), 2.0)];
        rank(&mut results);
        assert_eq!(results.iter().map(|r| r.0.as_str()).collect::<Vec<_>>(), ["b", "c", "a"]);
    }

    /// By hand (the textbook's formula 1 - 6 sum d^2 / n(n^2 - 1) holds without ties). A side that never ranks must not
    /// look like agreement.
    #[test]
    fn rank_correlation_is_spearmans() {
        assert!((spearman(&[1.0, 2.0, 3.0, 4.0], &[10.0, 30.0, 20.0, 40.0]) - 0.8).abs() < 1e-12);
        assert!((spearman(&[1.0, 2.0], &[5.0, 1.0]) + 1.0).abs() < 1e-12);
        assert_eq!(spearman(&[1.0, 1.0], &[5.0, 1.0]), 0.0);
        assert_eq!(spearman(&[1.0, 1.0], &[5.0, 5.0]), 1.0);
        assert_eq!(ranks(&[2.0, 1.0, 2.0]), [1.5, 0.0, 1.5]);
    }
}
