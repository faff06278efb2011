//! Queries and documents of one micro-batch.

use crate::data_sets::DataSet;
use crate::negatives::Negatives;
use crate::sampling::rng;
use rand::seq::IndexedRandom;
use std::collections::{BTreeSet, HashMap};
use tch::Tensor;

/// Some training queries of one set and documents, a relevant one of each query among them.
pub struct LatentBatch<'a> {
    /// The set.
    pub set: &'a DataSet,
    /// Training queries, by place in the set's training set.
    pub queries: Vec<usize>,
    /// Documents, by place in the set.
    pub documents: Vec<usize>,
}

/// What was judged of a batch's pairs, `[queries, documents]` of 1 and 0 each.
pub struct Judged {
    /// Relevant.
    pub relevant: Tensor,
    /// Of gain 0: a negative, however near it lies.
    pub negative: Tensor,
}

impl<'a> LatentBatch<'a> {
    /// Micro-batch `index` of a run, the `place`-th of its set: a pure function of the seed.
    pub fn draw(
        set: &'a DataSet,
        negatives: &Negatives,
        [queries, documents]: [usize; 2],
        seed: u64,
        [index, place]: [usize; 2],
    ) -> Self {
        let queries = set.batch(queries, seed, place);
        let mut rng = rng(seed, "latent documents", index as u64);
        let mut chosen = BTreeSet::new();
        for query in &queries {
            let positives: Vec<usize> = set.train.relevant[*query].iter().copied().collect();
            chosen.extend(positives.choose(&mut rng));
        }
        // A query and no other document would have nothing to be told apart from.
        let wanted = documents.max(chosen.len() + 1);
        negatives.fill(&mut chosen, wanted, &queries, &set.train.documents, &mut rng);
        Self { set, queries, documents: chosen.into_iter().collect() }
    }

    /// Texts of the queries.
    pub fn query_texts(&self) -> Vec<&'a str> {
        self.queries.iter().map(|query| self.set.training_query(*query)).collect()
    }

    /// Texts of the documents.
    pub fn document_texts(&self) -> Vec<&'a str> {
        self.documents.iter().map(|document| self.set.contents[*document].as_str()).collect()
    }

    /// Which document is right for which query and which was judged not to be.
    pub fn judged(&self) -> Judged {
        let train = &self.set.train;
        let relevant = |query: usize| train.relevant[query].iter();
        Judged {
            relevant: self.marked(relevant),
            negative: self.marked(|query| train.negatives[query].iter()),
        }
    }

    /// `[queries, documents]`: 1 for the documents that `of` names for a query and for those of the same text, else 0.
    fn marked<'s, I: Iterator<Item = &'s usize>>(&'s self, of: impl Fn(usize) -> I) -> Tensor {
        let contents = &self.set.contents;
        let mut columns: HashMap<&str, Vec<usize>> = HashMap::new();
        for (column, document) in self.documents.iter().enumerate() {
            columns.entry(&contents[*document]).or_default().push(column);
        }
        let mut marked = vec![0i64; self.queries.len() * self.documents.len()];
        for (query, row) in self.queries.iter().zip(marked.chunks_mut(self.documents.len())) {
            for column in
                of(*query).filter_map(|document| columns.get(contents[*document].as_str())).flatten()
            {
                row[*column] = 1;
            }
        }
        Tensor::from_slice(&marked).reshape([self.queries.len() as i64, self.documents.len() as i64])
    }
}
