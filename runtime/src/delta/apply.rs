//! A delta into an index: all of it or nothing.

use super::{About, DeltaError, names};
use crate::sealed::{BUFFER, Kind, PartReader, Sealed};
use crate::store::{self, Generation, IndexKey, RemovedDocument, Replica, Store, StoredDocument, Writer};
use ed25519_dalek::VerifyingKey;
use models::files::StagedDir;
use safetensors::Dtype;
use serde::de::DeserializeOwned;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

/// How a delta is applied.
#[derive(Debug, Clone, Default)]
pub struct Apply {
    /// Keys whose signature is taken.
    pub trusted: Vec<VerifyingKey>,
    /// What the index has to be keyed to, where that is known beforehand.
    pub expected: Option<IndexKey>,
    /// Give up what the index holds. Only with a full snapshot.
    pub replace: bool,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Applied {
    /// The index was there already; it is at this generation.
    Already(Generation),
    /// The index went from one generation to that of the delta; from none where there was no index.
    From(Option<Generation>),
}

/// Puts a delta into an index, or makes the index of a full snapshot. Everything is checked before anything is changed; after an
/// error, and after a kill at any moment, the index is what it was.
pub fn apply(index: &Path, file: &Path, options: &Apply) -> Result<(Applied, About), DeltaError> {
    let sealed = Sealed::open(file, Kind::Delta)?;
    sealed.check_signature(&options.trusted)?;
    let about: About = sealed.about()?;
    if let Some(expected) = &options.expected {
        same_encoder(file, &about, expected, "this bundle's")?;
    }
    if options.replace && about.base.number > 0 {
        return Err(DeltaError::NotFull { file: file.to_owned(), base: about.base.number });
    }
    let delta = Delta { file, index, about: &about, sealed: &sealed };
    let Err(reason) = store::existing(index) else { return delta.follow(options.replace) };
    // An absent or empty directory is where an index can begin.
    let empty = index.read_dir().map_or(!index.exists(), |mut entries| entries.next().is_none());
    if !empty {
        return Err(reason.into());
    }
    if about.base.number > 0 {
        let (index, file, base) = (index.to_owned(), file.to_owned(), about.base.number);
        return Err(DeltaError::NoIndex { index, file, base });
    }
    delta.begin()
}

fn same_encoder(
    file: &Path,
    about: &About,
    expected: &IndexKey,
    whose: &'static str,
) -> Result<(), DeltaError> {
    match about.index.difference(expected) {
        None => Ok(()),
        Some((what, found, expected)) => {
            Err(DeltaError::OtherEncoder { file: file.to_owned(), what, found, whose, expected })
        }
    }
}

/// A delta whose signature was checked, and where it goes.
struct Delta<'a> {
    file: &'a Path,
    index: &'a Path,
    about: &'a About,
    sealed: &'a Sealed,
}

impl Delta<'_> {
    /// An index that was not there before.
    fn begin(&self) -> Result<(Applied, About), DeltaError> {
        self.sealed.check()?;
        let staged = StagedDir::new(self.index)?;
        let mut writer = Writer::create(staged.path(), &self.about.index)?;
        writer.follow(|replica| self.fill(replica, 0))?;
        writer.close()?;
        staged.commit()?;
        Ok((Applied::From(None), self.about.clone()))
    }

    fn follow(&self, replace: bool) -> Result<(Applied, About), DeltaError> {
        let key = Store::open_any(self.index)?.1;
        same_encoder(self.file, self.about, &key, "the index's")?;
        self.sealed.check()?;
        let mut writer = Writer::open(self.index, &key)?;
        // Nobody else writes from here on.
        let at = writer.store().generation()?;
        if replace {
            writer.follow(|replica| {
                replica.clear()?;
                self.fill(replica, 0)
            })?;
        } else if self.has_it(writer.store(), &at)? {
            return Ok((Applied::Already(at), self.about.clone()));
        } else {
            writer.follow(|replica| self.fill(replica, at.number))?;
        }
        writer.close()?;
        Ok((Applied::From(Some(at)), self.about.clone()))
    }

    /// Whether the index has everything of it already; refuses one that cannot be continued.
    fn has_it(&self, store: &Store, at: &Generation) -> Result<bool, DeltaError> {
        let About { base, generation: end, .. } = self.about;
        let diverged = |at| DeltaError::Diverged { index: self.index.into(), at, file: self.file.into() };
        if at.number >= end.number {
            return if store.has_been_at(end)? { Ok(true) } else { Err(diverged(end.number)) };
        }
        if at.number < base.number {
            let (file, base) = (self.file.to_owned(), base.number);
            return Err(DeltaError::Gap { file, base, index: self.index.to_owned(), at: at.number });
        }
        let mut known = at == base;
        self.lines(names::GENERATIONS, |generation: Generation| {
            known |= generation == *at;
            Ok(())
        })?;
        if known { Ok(false) } else { Err(diverged(at.number)) }
    }

    /// All rows that came after a generation. Every part is digested again while it is read: what counts is what was read here.
    fn fill(&self, replica: &Replica<'_>, since: u64) -> Result<(), DeltaError> {
        let About { documents, removed, index, total, last_key, generation: end, .. } = self.about;
        // A document that was removed and came again has another key: room for its id first.
        let found = self.lines(names::REMOVED, |line: RemovedDocument| {
            if line.generation > since { Ok(replica.remove(&line)?) } else { Ok(()) }
        })?;
        self.counted("removed documents", found, *removed)?;
        let shape = [*documents, index.inner_dimensions];
        let mut vectors = self.reader(self.sealed.part(names::VECTORS, Dtype::F32, &shape)?);
        let mut vector = vec![0; index.inner_dimensions * size_of::<f32>()];
        let found = self.lines(names::DOCUMENTS, |line: StoredDocument| {
            vectors.read_exact(&mut vector).map_err(|error| self.sealed.damaged(error.to_string()))?;
            if line.generation > since { Ok(replica.put(&line, &vector)?) } else { Ok(()) }
        })?;
        self.counted("documents", found, *documents)?;
        self.sealed.finish(names::VECTORS, vectors.into_inner())?;
        let mut last = None;
        self.lines(names::GENERATIONS, |line: Generation| {
            if line.number > since {
                replica.generation(&line)?;
            }
            last = Some(line);
            Ok(())
        })?;
        if last.as_ref() != Some(end) {
            return Err(self.sealed.damaged("its generations do not lead to its end".into()).into());
        }
        replica.last_key(*last_key)?;
        let found = replica.count()?;
        if found != *total {
            let (index, file, expected) = (self.index.to_owned(), self.file.to_owned(), *total);
            return Err(DeltaError::Rows { index, found, file, expected });
        }
        Ok(())
    }

    fn counted(&self, what: &str, found: usize, expected: usize) -> Result<(), DeltaError> {
        if found == expected {
            return Ok(());
        }
        Err(self.sealed.damaged(format!("it holds {found} {what}, expected {expected}")).into())
    }

    fn reader(&self, part: PartReader) -> BufReader<PartReader> {
        BufReader::with_capacity(BUFFER, part)
    }

    /// Every line of a tensor of lines; returns their number.
    fn lines<T: DeserializeOwned>(
        &self,
        name: &str,
        mut each: impl FnMut(T) -> Result<(), DeltaError>,
    ) -> Result<usize, DeltaError> {
        let mut reader = self.reader(self.sealed.lines(name)?);
        let (mut line, mut count) = (Vec::new(), 0);
        let damaged = |error: &dyn std::fmt::Display| self.sealed.damaged(format!("`{name}`: {error}"));
        while reader.read_until(b'\n', &mut line).map_err(|error| damaged(&error))? > 0 {
            each(serde_json::from_slice(&line).map_err(|error| damaged(&error))?)?;
            line.clear();
            count += 1;
        }
        self.sealed.finish(name, reader.into_inner())?;
        Ok(count)
    }
}
