//! BM25 (Robertson and Zaragoza 2009), the lexical baseline: lower-cased alphanumeric words, English stop words
//! dropped, no stemming; k1 = 0.9, b = 0.4 as in BEIR's runs with Anserini.

use std::collections::{BTreeSet, HashMap};

const K1: f64 = 0.9;
const B: f64 = 0.4;

/// Lucene's English stop words.
const STOP_WORDS: &str = "a an and are as at be but by for if in into is it no not of on or such that the their then \
                          there these they this to was will with";

/// Inverted statistics of a corpus.
pub struct Bm25 {
    /// Word to (document, occurrences).
    postings: HashMap<String, Vec<(usize, u32)>>,
    lengths: Vec<f64>,
    mean_length: f64,
}

impl Bm25 {
    /// Counts the words of each document.
    pub fn new<'a>(documents: impl IntoIterator<Item = &'a str>) -> Self {
        let mut postings: HashMap<String, Vec<(usize, u32)>> = HashMap::new();
        let mut lengths = Vec::new();
        for (document, text) in documents.into_iter().enumerate() {
            let mut counts: HashMap<String, u32> = HashMap::new();
            let mut length = 0u32;
            for word in words(text) {
                *counts.entry(word).or_default() += 1;
                length += 1;
            }
            lengths.push(f64::from(length));
            for (word, count) in counts {
                postings.entry(word).or_default().push((document, count));
            }
        }
        let mean_length = lengths.iter().sum::<f64>() / lengths.len().max(1) as f64;
        Self { postings, lengths, mean_length: mean_length.max(1.0) }
    }

    /// Score of every document, in corpus order.
    pub fn scores(&self, query: &str) -> Vec<f32> {
        let n = self.lengths.len() as f64;
        let mut scores = vec![0f64; self.lengths.len()];
        // In an order that is always the same: sums in another one end in other ties.
        for word in words(query).collect::<BTreeSet<_>>() {
            let Some(postings) = self.postings.get(&word) else { continue };
            let df = postings.len() as f64;
            let idf = (1.0 + (n - df + 0.5) / (df + 0.5)).ln();
            for &(document, count) in postings {
                let (tf, relative) = (f64::from(count), self.lengths[document] / self.mean_length);
                scores[document] += idf * tf * (K1 + 1.0) / (tf + K1 * (1.0 - B + B * relative));
            }
        }
        scores.into_iter().map(|score| score as f32).collect()
    }
}

fn words(text: &str) -> impl Iterator<Item = String> + '_ {
    text.split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
        .filter(|word| !STOP_WORDS.split_whitespace().any(|stop| stop == word))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A baseline that is broken makes everything else look good.
    #[test]
    fn rare_words_count_more_and_absent_ones_nothing() {
        let bm25 = Bm25::new(["the red valve", "the red door", "a red window"]);
        let scores = bm25.scores("the red Valve!");
        assert!(scores[0] > scores[1] && scores[1] > 0.0 && (scores[1] - scores[2]).abs() < 1e-6);
        let idf = (1.0f64 + 2.5 / 1.5).ln() + (1.0f64 + 0.5 / 3.5).ln();
        assert!((f64::from(scores[0]) - idf).abs() < 1e-5, "tf 1 at mean length is idf alone: {}", scores[0]);
        assert_eq!(bm25.scores("the of and"), vec![0.0; 3]);
    }
    /// Two documents with the same words in another order are equally good; a sum whose order changes would order them.
    #[test]
    fn equal_documents_score_alike_every_time() {
        let words =
            ["red", "valve", "under", "sink", "leaks", "again", "tonight", "kitchen", "water", "drips"];
        let (forth, back) = (words.join(" "), words.iter().rev().copied().collect::<Vec<_>>().join(" "));
        let more = ["red red valve", "water under the sink", "kitchen", "drips again and again"];
        let bm25 = Bm25::new([forth.as_str(), back.as_str()].into_iter().chain(more));
        let first = bm25.scores(&forth);
        assert_eq!(first[0], first[1]);
        for _ in 0..20 {
            assert_eq!(bm25.scores(&back), first);
        }
    }
}
