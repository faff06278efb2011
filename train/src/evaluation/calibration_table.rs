//! Whether probabilities can be believed: of the documents that are given 30 %, are 30 % relevant?
//!
//! Reliability bins of equal width, the expected calibration error (Naeini et al., AAAI 2015) and the Brier score.

use serde::Serialize;

/// Bins over `[0, 1]`.
const BINS: usize = 10;

#[derive(Debug, Clone, Copy, Default)]
struct Bin {
    pairs: u64,
    predicted: f64,
    relevant: u64,
}

/// Predicted probabilities and what came of them, as sums: millions of pairs take no memory.
#[derive(Debug, Clone, Default)]
pub struct Reliability {
    bins: [Bin; BINS],
    squared: f64,
}

/// One line of the table.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BinRow {
    /// Lower end of the bin.
    pub from: f64,
    /// Upper end.
    pub to: f64,
    /// Mean of the predicted probabilities.
    pub predicted: f64,
    /// Share that is relevant.
    pub observed: f64,
    /// Pairs.
    pub pairs: u64,
}

/// The table.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// Pairs of a query and a document.
    pub pairs: u64,
    /// Mean over pairs of the distance between predicted and observed in their bin.
    pub expected_calibration_error: f64,
    /// Mean squared distance of the probability from what came of it.
    pub brier_score: f64,
    /// Bins that hold a pair.
    pub bins: Vec<BinRow>,
}

impl Reliability {
    /// Takes one pair in.
    pub fn add(&mut self, probability: f32, relevant: bool) {
        let probability = probability.clamp(0.0, 1.0);
        // In f32, where 0.9 times ten is nine.
        let bin = &mut self.bins[((probability * BINS as f32) as usize).min(BINS - 1)];
        let probability = f64::from(probability);
        bin.pairs += 1;
        bin.predicted += probability;
        bin.relevant += u64::from(relevant);
        self.squared += (probability - f64::from(u8::from(relevant))).powi(2);
    }

    /// What the pairs say.
    pub fn summary(&self) -> Summary {
        let pairs: u64 = self.bins.iter().map(|bin| bin.pairs).sum();
        let total = pairs.max(1) as f64;
        let rows = self.bins.iter().enumerate().filter(|(_, bin)| bin.pairs > 0).map(|(i, bin)| {
            let n = bin.pairs as f64;
            let (from, to) = (i as f64 / BINS as f64, (i + 1) as f64 / BINS as f64);
            BinRow {
                from,
                to,
                predicted: bin.predicted / n,
                observed: bin.relevant as f64 / n,
                pairs: bin.pairs,
            }
        });
        let bins: Vec<BinRow> = rows.collect();
        let errors = bins.iter().map(|bin| bin.pairs as f64 / total * (bin.predicted - bin.observed).abs());
        let expected_calibration_error = errors.sum();
        Summary { pairs, expected_calibration_error, brier_score: self.squared / total, bins }
    }
}

/// A table in Markdown with its two numbers below.
pub fn table(title: &str, summary: &Summary) -> String {
    let width = title.len().max(12);
    let mut text = format!("| {title:width$} | predicted | observed |    pairs |\n");
    text += &format!("| {} | --------: | -------: | -------: |\n", "-".repeat(width));
    for bin in &summary.bins {
        let range = format!("{:.1} to {:.1}", bin.from, bin.to);
        text += &format!(
            "| {range:width$} | {:>9.3} | {:>8.3} | {:>8} |\n",
            bin.predicted, bin.observed, bin.pairs
        );
    }
    text + &format!(
        "\nexpected calibration error {:.4}, Brier score {:.4}, {} pairs\n",
        summary.expected_calibration_error, summary.brier_score, summary.pairs
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A robot acts on these probabilities: an error that is told too small is trusted. By hand: bin 0.2 to 0.3 holds 0.2
    /// and 0.28 (mean 0.24), one of two relevant; bin 0.9 to 1.0 holds 0.9 and 1.0 (mean 0.95), both relevant.
    #[test]
    fn errors_agree_with_hand_computation() {
        let mut reliability = Reliability::default();
        for (probability, relevant) in [(0.2, false), (0.28, true), (0.9, true), (1.0, true)] {
            reliability.add(probability, relevant);
        }
        let summary = reliability.summary();
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-6, "{a} for {b}");
        close(summary.expected_calibration_error, 0.5 * 0.26 + 0.5 * 0.05);
        close(summary.brier_score, (0.04 + 0.5184 + 0.01) / 4.0);
        assert_eq!(summary.bins.iter().map(|bin| bin.pairs).collect::<Vec<_>>(), [2, 2]);
        close(summary.bins[0].predicted, 0.24);
        close(summary.bins[0].observed, 0.5);
        close(summary.bins[1].to, 1.0);
        let empty = Reliability::default().summary();
        assert_eq!((empty.pairs, empty.expected_calibration_error, empty.brier_score), (0, 0.0, 0.0));
    }
}
