//! Queries and documents of one micro-batch.

use crate::data_sets::DataSet;
use crate::negatives::Negatives;
use crate::sampling::rng;
use rand::seq::IndexedRandom;
use std::collections::BTreeSet;
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

    /// Which document is right for which query, `[queries, documents]` of 1 and 0: those judged to be, and those of the same
    /// text as one that is.
    pub fn relevant(&self) -> Tensor {
        self.judged_as(&self.set.train.relevant)
    }

    /// The same of documents judged not to be right (gain 0).
    pub fn judged_negative(&self) -> Tensor {
        self.judged_as(&self.set.train.negatives)
    }

    /// `[queries, documents]`: 1 where the document, or one of the same text, is among those that `judged` has for the query.
    fn judged_as(&self, judged: &[BTreeSet<usize>]) -> Tensor {
        let contents = &self.set.contents;
        let mut pairs = Vec::with_capacity(self.queries.len() * self.documents.len());
        for query in &self.queries {
            let of_query = &judged[*query];
            let texts: BTreeSet<&str> =
                of_query.iter().map(|document| contents[*document].as_str()).collect();
            let is_judged = |document: &usize| texts.contains(contents[*document].as_str());
            pairs.extend(self.documents.iter().map(|document| i64::from(is_judged(document))));
        }
        Tensor::from_slice(&pairs).reshape([self.queries.len() as i64, self.documents.len() as i64])
    }
}
