//! Shards into an index: the one that `runtime index` makes of the same documents on one machine.

use super::partial;
use super::{About, Input, InputDigest, ShardError, names};
use crate::bundle::Bundle;
use crate::document::Document;
use crate::ingest::{self, BATCH, Progress};
use crate::retriever::{self, Options};
use crate::sealed::{Kind, PartReader, Sealed};
use crate::store::{IndexKey, Record, Writer};
use models::files::StagedDir;
use safetensors::Dtype;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// Makes an index of all shards of an input at `index`, which must not exist (an empty directory is fine). It appears when it is
/// whole, or not at all. Nothing is encoded. Returns the number of documents.
pub fn merge(
    bundle: &Path,
    shards: &[PathBuf],
    index: &Path,
    notice: fn(&str),
    progress: &mut dyn FnMut(Progress),
) -> Result<usize, ShardError> {
    let bundle = Bundle::open(bundle)?;
    let key = ingest::index_key(&bundle);
    let opened = shards.iter().map(|file| Shard::open(file, &key)).collect::<Result<Vec<_>, _>>()?;
    let (mut shards, input) = arranged(opened)?;
    let staged = StagedDir::new(index)?;
    let mut writer = Writer::create(staged.path(), &key)?;
    let (mut digest, total) = (InputDigest::default(), input.documents);
    progress(Progress { done: 0, total });
    // Batch after batch, as they were dealt out.
    let of = shards.len();
    for batch in 0..total.div_ceil(BATCH) {
        let wanted = BATCH.min(total - digest.documents);
        let (documents, vectors) = shards[batch % of].next(wanted)?;
        documents.iter().for_each(|document| digest.take(document));
        let records = documents.iter().zip(vectors);
        let records: Vec<Record<'_>> =
            records.map(|(document, vector)| Record { document, vector: Some(vector) }).collect();
        writer.put(&records)?;
        progress(Progress { done: digest.documents, total });
    }
    shards.into_iter().try_for_each(Shard::finish)?;
    let found = digest.finish();
    if found != input {
        return Err(ShardError::NotTheInput { found: found.told(), expected: input.told() });
    }
    retriever::complete(staged, writer, &bundle, &Options { notice, ..Options::default() })?;
    Ok(total)
}

/// A shard that is read from its beginning to its end.
struct Shard {
    sealed: Sealed,
    about: About,
    vectors: BufReader<PartReader>,
    documents: BufReader<PartReader>,
}

impl Shard {
    /// Opens one of this encoder.
    fn open(file: &Path, key: &IndexKey) -> Result<Self, ShardError> {
        if partial::is_partial(file) {
            return Err(ShardError::Partial { file: file.to_owned() });
        }
        let sealed = Sealed::open(file, Kind::Shard)?;
        let about: About = sealed.about()?;
        if let Some((what, found, expected)) = about.index.difference(key) {
            return Err(ShardError::OtherEncoder { file: file.to_owned(), what, found, expected });
        }
        // Hundreds of them may be open.
        let reader = |part| BufReader::with_capacity(1 << 16, part);
        let shape = [about.documents, key.inner_dimensions];
        let vectors = reader(sealed.part(names::VECTORS, Dtype::F32, &shape)?);
        let documents = reader(sealed.lines(names::DOCUMENTS)?);
        Ok(Self { sealed, about, vectors, documents })
    }

    /// Its next documents with their vectors.
    fn next(&mut self, count: usize) -> Result<(Vec<Document>, Vec<Vec<f32>>), ShardError> {
        let damaged = |error: &dyn std::fmt::Display| self.sealed.damaged(error.to_string());
        let mut bytes = vec![0; self.about.index.inner_dimensions * size_of::<f32>()];
        let (mut documents, mut vectors, mut line) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..count {
            line.clear();
            self.documents.read_until(b'\n', &mut line).map_err(|error| damaged(&error))?;
            documents.push(serde_json::from_slice(&line).map_err(|error| damaged(&error))?);
            self.vectors.read_exact(&mut bytes).map_err(|error| damaged(&error))?;
            let numbers = bytes.as_chunks::<4>().0.iter();
            vectors.push(numbers.map(|four| f32::from_le_bytes(*four)).collect());
        }
        Ok((documents, vectors))
    }

    /// Refuses one that holds more, or was not what its digests say.
    fn finish(self) -> Result<(), ShardError> {
        self.sealed.finish(names::VECTORS, self.vectors.into_inner())?;
        Ok(self.sealed.finish(names::DOCUMENTS, self.documents.into_inner())?)
    }
}

/// The shards in their order: all of one input, none missing, none twice; each is read against its digests.
fn arranged(mut shards: Vec<Shard>) -> Result<(Vec<Shard>, Input), ShardError> {
    let Some(first) = shards.first() else {
        return Err(ShardError::Missing { missing: "all".into(), of: 0 });
    };
    let (file, about) = (first.sealed.file().to_owned(), first.about.clone());
    for other in &shards[1..] {
        let (second, first) = (other.sealed.file().to_owned(), file.clone());
        if other.about.input != about.input {
            let (found, expected) = (other.about.input.told(), about.input.told());
            return Err(ShardError::OtherInput { file: second, first, found, expected });
        }
        if other.about.place.of != about.place.of {
            let (found, expected) = (other.about.place, about.place);
            return Err(ShardError::OtherCut { file: second, first, found, expected });
        }
    }
    shards.sort_by_key(|shard| shard.about.place.shard);
    if let Some(two) = shards.windows(2).find(|two| two[0].about.place == two[1].about.place) {
        let (file, first) = (two[1].sealed.file().to_owned(), two[0].sealed.file().to_owned());
        return Err(ShardError::Double { file, first, place: two[1].about.place });
    }
    let of = about.place.of;
    let there = |number: &usize| shards.binary_search_by_key(number, |shard| shard.about.place.shard).is_ok();
    let missing: Vec<String> = (1..=of).filter(|number| !there(number)).map(|n| n.to_string()).collect();
    if !missing.is_empty() {
        return Err(ShardError::Missing { missing: shortened(&missing), of });
    }
    shards.iter().try_for_each(|shard| shard.sealed.check())?;
    Ok((shards, about.input))
}

/// A few of many numbers.
fn shortened(numbers: &[String]) -> String {
    const MOST: usize = 10;
    match numbers.len() {
        0..=MOST => numbers.join(", "),
        n => format!("{} and {} more", numbers[..MOST].join(", "), n - MOST),
    }
}
