//! The data sets of a run: one or several BEIR folders, each with its training queries, its dev splits and a weight.
//!
//! A micro-batch is of one set: documents of other sets would be candidates that are told apart by their subject alone.

use crate::sampling::{TrainDocuments, TrainingSet, batch_at, rng};
use anyhow::{Context, Result, bail};
use models::beir::{BeirData, Document, Purpose, Qrels, SplitQrels};
use rand::RngExt;
use rand::seq::SliceRandom;
use std::path::PathBuf;
use std::str::FromStr;

/// `DIR` or `DIR=WEIGHT` on the command line.
#[derive(Debug, Clone, PartialEq)]
pub struct DataArg {
    /// The BEIR folder.
    pub dir: PathBuf,
    /// How often each of its queries is seen, relative to the other sets'.
    pub weight: f64,
}

impl FromStr for DataArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let weighted =
            text.rsplit_once('=').and_then(|(dir, weight)| Some((dir, weight.parse::<f64>().ok()?)));
        let (dir, weight) = weighted.unwrap_or((text, 1.0));
        if !weight.is_finite() || weight <= 0.0 {
            return Err(format!("the weight of `{dir}` is {weight}, expected a number above 0"));
        }
        Ok(Self { dir: dir.into(), weight })
    }
}

/// One data set of a run.
pub struct DataSet {
    /// Last part of its path.
    pub name: String,
    /// The data.
    pub data: BeirData,
    /// What is read of each document.
    pub contents: Vec<String>,
    /// Training queries and documents.
    pub train: TrainingSet,
    /// Dev splits by name.
    pub dev: Vec<(String, Qrels)>,
    /// Length of each training query in bytes, by which batches are formed.
    pub lengths: Vec<usize>,
    weight: f64,
    /// Most queries that its share is counted by.
    cap: Option<usize>,
    digest: String,
}

/// All data sets of a run.
pub struct DataSets {
    /// In the order of the command line.
    pub sets: Vec<DataSet>,
}

/// Which splits of each set take part.
pub struct Splits<'a> {
    /// Training split; every set needs it.
    pub train: &'a str,
    /// Dev splits; a set may lack some, as long as it has one of them.
    pub dev: &'a [String],
    /// Documents that take part in training.
    pub documents: TrainDocuments,
    /// Most queries that a set's share of the run is counted by: all of a huge set's are seen, but less often.
    pub cap: Option<usize>,
    /// Most training queries of each set, and the seed that draws them.
    pub queries: Option<(usize, u64)>,
}

impl DataSets {
    /// Opens all folders.
    pub fn open(args: &[DataArg], splits: &Splits) -> Result<Self> {
        let sets =
            args.iter().map(|arg| DataSet::open(arg, splits, args.len() > 1)).collect::<Result<Vec<_>>>()?;
        for (i, set) in sets.iter().enumerate() {
            if sets[..i].iter().any(|other| other.name == set.name) {
                bail!("two data sets are called `{}`; rename one of the folders", set.name);
            }
        }
        Ok(Self { sets })
    }

    /// Digest of everything in them that shapes a run, with weights.
    pub fn settings(&self) -> serde_json::Value {
        let sets = self.sets.iter();
        let described = sets.map(|DataSet { name, digest, weight, cap, .. }| {
            serde_json::json!({ "name": name, "digest": digest, "weight": weight, "cap": cap })
        });
        described.collect()
    }

    /// One line for people.
    pub fn describe(&self) -> String {
        let sets = self.sets.iter().map(|set| {
            let (queries, documents) = (set.train.queries.len(), set.train.documents.len());
            format!("{queries} queries and {documents} documents of {}", set.data.dir.display())
        });
        sets.collect::<Vec<_>>().join("; ")
    }

    /// For each of `batches` micro-batches its set and its place among that set's micro-batches.
    pub fn plan(&self, batches: usize, seed: u64) -> Vec<(usize, usize)> {
        let total: f64 = self.sets.iter().map(DataSet::share).sum();
        let mut done = vec![0; self.sets.len()];
        let mut rng = rng(seed, "sets", 0);
        (0..batches)
            .map(|_| {
                let mut left: f64 = rng.random_range(0.0..total);
                let chosen = self.sets.iter().position(|set| {
                    left -= set.share();
                    left < 0.0
                });
                let chosen = chosen.unwrap_or(self.sets.len() - 1);
                done[chosen] += 1;
                (chosen, done[chosen] - 1)
            })
            .collect()
    }
}

impl DataSet {
    fn open(arg: &DataArg, splits: &Splits, one_of_several: bool) -> Result<Self> {
        let data = BeirData::open(&arg.dir)?;
        let SplitQrels { qrels: mut train, notes } = data.qrels(splits.train, Purpose::Training)?;
        data.notes.iter().chain(&notes).for_each(|note| eprintln!("{note}"));
        if let Some((most, seed)) = splits.queries
            && train.len() > most
        {
            let mut ids: Vec<String> = train.keys().cloned().collect();
            ids.shuffle(&mut rng(seed, "training queries", 0));
            ids[most..].iter().for_each(|id| drop(train.remove(id)));
        }
        let mut dev = Vec::new();
        for split in splits.dev {
            // A set among others need not have every dev split; alone it is asked for exactly these.
            let file = arg.dir.join("qrels").join(format!("{split}.tsv"));
            if !one_of_several || file.exists() {
                let SplitQrels { qrels, notes } = data.qrels(split, Purpose::Measuring)?;
                notes.iter().for_each(|note| eprintln!("{note}"));
                dev.push((split.clone(), qrels));
            }
        }
        if dev.is_empty() && !splits.dev.is_empty() {
            bail!("{}: none of the dev splits {} is in qrels/", arg.dir.display(), splits.dev.join(", "));
        }
        let all: Vec<&Qrels> = std::iter::once(&train).chain(dev.iter().map(|(_, qrels)| qrels)).collect();
        let digest = data.digest(&all);
        let contents = data.documents.iter().map(Document::contents).collect();
        let train = TrainingSet::new(&data, &train, splits.documents);
        if train.queries.is_empty() {
            let file = arg.dir.join("qrels").join(format!("{}.tsv", splits.train));
            bail!("{}: no query has a relevant document: there is nothing to learn from", file.display());
        }
        let lengths = train.queries.iter().map(|query| data.queries[*query].text.len()).collect();
        let path = arg.dir.canonicalize().with_context(|| format!("cannot open {}", arg.dir.display()))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { name, data, contents, train, dev, lengths, weight: arg.weight, cap: splits.cap, digest })
    }

    /// What it has of the run, relative to the other sets' shares.
    pub fn share(&self) -> f64 {
        let queries = self.train.queries.len();
        self.weight * self.cap.map_or(queries, |cap| queries.min(cap)) as f64
    }

    /// Texts of all queries, by place.
    pub fn query_texts(&self) -> Vec<&str> {
        self.data.queries.iter().map(|query| query.text.as_str()).collect()
    }

    /// Texts of all documents, by place.
    pub fn document_texts(&self) -> Vec<&str> {
        self.contents.iter().map(String::as_str).collect()
    }

    /// Text of a training query, by its place in the training set.
    pub fn training_query(&self, place: usize) -> &str {
        &self.data.queries[self.train.queries[place]].text
    }

    /// Text of a query by its id, which must be one of the set's.
    pub fn query(&self, id: &str) -> &str {
        &self.data.queries[self.data.query_index[id]].text
    }

    /// Ids of training queries, for messages.
    pub fn ids(&self, places: &[usize]) -> Vec<String> {
        places.iter().map(|place| self.data.queries[self.train.queries[*place]].id.clone()).collect()
    }

    /// Training queries of this set's micro-batch `index`.
    pub fn batch(&self, size: usize, seed: u64, index: usize) -> Vec<usize> {
        batch_at(&self.lengths, size, seed, index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A path may hold `=`; a weight that is none must not become part of it unseen.
    #[test]
    fn a_weight_stands_behind_the_last_equals_sign() {
        let parse = |text: &str| text.parse::<DataArg>();
        assert_eq!(parse("data/x").unwrap(), DataArg { dir: "data/x".into(), weight: 1.0 });
        assert_eq!(parse("a=b=0.5").unwrap(), DataArg { dir: "a=b".into(), weight: 0.5 });
        assert_eq!(parse("run=best").unwrap().dir, PathBuf::from("run=best"));
        assert!(parse("x=0").unwrap_err().contains("above 0") && parse("x=-1").is_err());
    }

    /// Twice the weight, twice the batches; and every set's batches are counted from its own start, so that each
    /// goes through all of its queries.
    #[test]
    fn sets_are_drawn_by_weight_and_number_of_queries() {
        let set = |name: &str, queries: usize, weight: f64| DataSet {
            name: name.into(),
            data: BeirData::default(),
            contents: Vec::new(),
            train: TrainingSet { queries: vec![0; queries], ..TrainingSet::default() },
            dev: Vec::new(),
            lengths: Vec::new(),
            weight,
            cap: None,
            digest: String::new(),
        };
        let sets = DataSets { sets: vec![set("a", 100, 1.0), set("b", 50, 4.0)] };
        let plan = sets.plan(3000, 1);
        let of_a: Vec<usize> = plan.iter().filter(|(set, _)| *set == 0).map(|(_, place)| *place).collect();
        assert!((900..1100).contains(&of_a.len()), "{} of 3000, expected about 1000", of_a.len());
        assert_eq!(of_a, (0..of_a.len()).collect::<Vec<_>>());
        assert_eq!(plan[..100], sets.plan(100, 1)[..]);
        // A cap takes the huge set's share, not the small one's.
        let capped = |set: DataSet| DataSet { cap: Some(50), ..set };
        let sets = DataSets { sets: vec![capped(set("a", 5000, 1.0)), capped(set("b", 40, 1.0))] };
        assert_eq!(sets.sets.iter().map(DataSet::share).collect::<Vec<_>>(), [50.0, 40.0]);
    }
}
