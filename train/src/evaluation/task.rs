//! What is asked: the queries of some splits, and the documents that each one's systems rank.

use super::run::is_itself;
use crate::sampling::{draw, rng};
use anyhow::Result;
use models::beir::{BeirData, Document, Purpose, Qrels, SplitQrels};
use models::metrics::Judgements;
use rand::seq::SliceRandom;
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// Parts of a data set to measure on.
#[derive(Debug, Clone, Copy)]
pub struct TaskConfig {
    /// Queries of each split, drawn; 0 = all.
    pub sample: usize,
    /// Documents that each query's systems rank: the relevant ones and others drawn; 0 = the whole corpus.
    pub pool: usize,
    /// Documents that a run keeps of each query.
    pub depth: usize,
    /// Seed of sample and pool.
    pub seed: u64,
}

/// One split's queries.
pub struct Split {
    /// Its name.
    pub name: String,
    /// Judgements of the queries that are measured on.
    pub qrels: Qrels,
    /// Documents that each query's systems rank, by query id; all where it is empty.
    pools: BTreeMap<String, BTreeSet<usize>>,
}

/// A data set with the splits to measure on.
pub struct Task<'a> {
    /// The data set.
    pub data: &'a BeirData,
    /// What is encoded of each document.
    pub contents: Vec<String>,
    /// Splits in the order asked for.
    pub splits: Vec<Split>,
    /// How much is measured.
    pub config: TaskConfig,
}

/// One query of one split.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// Place of the split.
    pub split: usize,
    /// Query id.
    pub id: &'a str,
    /// Place of the query in the data set.
    pub place: usize,
    /// What is asked.
    pub text: &'a str,
    pool: Option<&'a BTreeSet<usize>>,
    /// Place of the document that is the query itself, which is no answer.
    itself: Option<usize>,
}

impl Asked<'_> {
    /// Whether the document at this place is ranked for the query.
    pub fn ranks(&self, document: usize) -> bool {
        self.itself != Some(document) && self.pool.is_none_or(|pool| pool.contains(&document))
    }
}

impl<'a> Task<'a> {
    /// Reads the splits' judgements.
    pub fn new(data: &'a BeirData, splits: &[String], config: TaskConfig) -> Result<Self> {
        let splits = splits.iter().map(|name| {
            let SplitQrels { qrels, notes } = data.qrels(name, Purpose::Measuring)?;
            notes.iter().for_each(|note| eprintln!("{note}"));
            let qrels = sampled(qrels, config);
            let pools = pools(data, &qrels, config);
            Ok(Split { name: name.clone(), qrels, pools })
        });
        let splits = splits.collect::<Result<_>>()?;
        let contents = data.documents.iter().map(Document::contents).collect();
        Ok(Self { data, contents, splits, config })
    }

    /// Queries of all splits, split by split.
    pub fn asked(&self) -> Vec<Asked<'_>> {
        let mut all = Vec::new();
        for (split, parts) in self.splits.iter().enumerate() {
            for (id, judgements) in &parts.qrels {
                let place = self.data.query_index[id];
                let text = self.data.queries[place].text.as_str();
                let itself = self.data.document_index.get(id).copied();
                let itself = itself.filter(|_| is_itself(id, id, judgements));
                all.push(Asked { split, id, place, text, pool: parts.pools.get(id), itself });
            }
        }
        all
    }

    /// Places of the documents that some query ranks, texts of similar length together: a block is padded little.
    pub fn documents(&self) -> Vec<usize> {
        let pooled: HashSet<usize> =
            self.splits.iter().flat_map(|s| s.pools.values().flatten()).copied().collect();
        let mut places: Vec<usize> =
            (0..self.contents.len()).filter(|place| pooled.is_empty() || pooled.contains(place)).collect();
        places.sort_by_key(|place| (self.contents[*place].len(), *place));
        places
    }

    /// Places of the documents that are relevant to a query, as far as the corpus has them.
    pub fn relevant(&self, asked: &Asked) -> HashSet<usize> {
        let judgements = self.splits[asked.split].qrels.get(asked.id);
        judgements.into_iter().flat_map(|judgements| relevant(self.data, judgements)).collect()
    }

    /// How many documents each query's systems rank.
    pub fn ranked_documents(&self) -> usize {
        let all = self.contents.len();
        if self.config.pool > 0 { self.config.pool.min(all) } else { all }
    }
}

fn sampled(mut qrels: Qrels, config: TaskConfig) -> Qrels {
    if config.sample > 0 && config.sample < qrels.len() {
        let mut ids: Vec<String> = qrels.keys().cloned().collect();
        ids.shuffle(&mut rng(config.seed, "sample", 0));
        ids.truncate(config.sample);
        let ids: HashSet<String> = ids.into_iter().collect();
        qrels.retain(|id, _| ids.contains(id));
    }
    qrels
}

/// The relevant documents of each query and others drawn at random; empty where the whole corpus is ranked.
fn pools(data: &BeirData, qrels: &Qrels, config: TaskConfig) -> BTreeMap<String, BTreeSet<usize>> {
    if config.pool == 0 || config.pool >= data.documents.len() {
        return BTreeMap::new();
    }
    let all: Vec<usize> = (0..data.documents.len()).collect();
    let pool = |(query, judgements): (&String, &Judgements)| {
        let mut chosen: BTreeSet<usize> = relevant(data, judgements).collect();
        let missing = config.pool.saturating_sub(chosen.len());
        let mut rng = rng(config.seed, "pool", data.query_index[query] as u64);
        chosen.extend(draw(&all, missing, &chosen, &mut rng));
        (query.clone(), chosen)
    };
    qrels.iter().map(pool).collect()
}

/// Places of the documents that are judged to be relevant; those that the corpus lacks have none.
fn relevant(data: &BeirData, judgements: &Judgements) -> impl Iterator<Item = usize> {
    let relevant = judgements.iter().filter(|(_, gain)| **gain > 0);
    relevant.filter_map(|(id, _)| data.document_index.get(id).copied())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn open(dir: &std::path::Path, qrels: &str) -> BeirData {
        fs::create_dir(dir.join("qrels")).unwrap();
        let documents = ["lamp", "mop", "rake", "oven", "vase"];
        let corpus = documents.map(|id| format!("{{\"_id\":\"{id}\",\"text\":\"use the {id}\"}}\n")).concat();
        let queries =
            ["a", "b", "c"].map(|id| format!("{{\"_id\":\"{id}\",\"text\":\"need {id}\"}}\n")).concat();
        fs::write(dir.join("corpus.jsonl"), corpus).unwrap();
        fs::write(dir.join("queries.jsonl"), queries).unwrap();
        fs::write(dir.join("qrels/test.tsv"), qrels).unwrap();
        BeirData::open(dir).unwrap()
    }

    /// ArguAna judges documents that its corpus lacks, and some queries have no right answer at all: a pool must be drawn for both,
    /// and both count in the mean, as trec_eval counts them.
    #[test]
    fn queries_whose_answers_are_missing_are_asked_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let data = open(dir.path(), "a\tlamp\t1\na\tgone\t1\nb\tgone\t2\nc\tmop\t0\n");
        let config = TaskConfig { sample: 0, pool: 3, depth: 10, seed: 7 };
        let task = Task::new(&data, &["test".to_owned()], config).unwrap();
        let asked = task.asked();
        assert_eq!(asked.iter().map(|asked| asked.id).collect::<Vec<_>>(), ["a", "b", "c"]);
        for (asked, relevant) in asked.iter().zip([vec![0], vec![], vec![]]) {
            assert_eq!(task.relevant(asked), HashSet::from_iter(relevant));
            assert_eq!((0..5).filter(|document| asked.ranks(*document)).count(), 3, "{asked:?}");
        }
        assert!(asked[0].ranks(0));
        assert_eq!(
            Task::new(&data, &["test".to_owned()], TaskConfig { sample: 2, ..config }).unwrap().asked().len(),
            2
        );
    }
}
