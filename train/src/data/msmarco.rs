//! MS MARCO's passage files (<https://microsoft.github.io/msmarco/Datasets>) and everything made in their image:
//! `id<TAB>text` for documents and queries, TREC qrels, and training triples of ids or of texts.

use super::lines::{At, excerpt, first_line, for_each_line};
use super::text::{digest_id, fingerprint};
use super::writer::{BeirWriter, Id, Judgements, Summary};
use anyhow::{Result, bail};
use models::beir::{Document, Query};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use string_interner::Symbol;

/// Split that triples belong to.
const TRIPLES_SPLIT: &str = "train";

/// What to read.
#[derive(Debug, Clone, Default)]
pub struct Files {
    /// `docid<TAB>text`.
    pub collection: PathBuf,
    /// `qid<TAB>text`, one or several.
    pub queries: Vec<PathBuf>,
    /// Split and TREC qrels: `qid 0 docid rel`.
    pub qrels: Vec<(String, PathBuf)>,
    /// Query, positive, negative: ids, or the texts themselves.
    pub triples: Vec<PathBuf>,
}

/// What an import made of its files.
#[derive(Debug)]
pub struct Imported {
    /// Counts.
    pub summary: Summary,
    /// Queries that no judgement names; they are left out.
    pub unjudged: usize,
    /// Texts of triples that are in none of the other files; they were added.
    pub added: usize,
}

/// Documents and queries by their texts, for triples of texts.
#[derive(Default)]
struct ByText {
    documents: HashMap<u64, Id>,
    queries: HashMap<u64, Id>,
}

struct Import<'a> {
    files: &'a Files,
    writer: BeirWriter,
    splits: BTreeMap<String, Judgements>,
    added: usize,
}

/// Writes the folder.
pub fn import(files: &Files, out: &Path) -> Result<Imported> {
    if files.qrels.is_empty() && files.triples.is_empty() {
        bail!("nothing says which document answers which query: give --qrels or --triples");
    }
    let writer = BeirWriter::create(out)?;
    let mut import = Import { files, writer, splits: BTreeMap::new(), added: 0 };
    // Texts are kept by fingerprint only where triples of texts will ask for them.
    let mut by_text = match files.triples.iter().map(|file| holds_texts(file)).collect::<Result<Vec<_>>>()? {
        kinds if kinds.contains(&true) => Some(ByText::default()),
        _ => None,
    };
    import.read_texts(by_text.as_mut())?;
    for (split, file) in &files.qrels {
        import.read_qrels(split, file)?;
    }
    for file in &files.triples {
        match by_text.as_mut() {
            Some(by_text) if holds_texts(file)? => import.read_text_triples(file, by_text)?,
            _ => import.read_id_triples(file)?,
        }
    }
    import.finish()
}

impl Import<'_> {
    /// Writes the collection; queries are announced only, because it is not known yet which of them are judged.
    fn read_texts(&mut self, mut by_text: Option<&mut ByText>) -> Result<()> {
        let writer = &mut self.writer;
        for_each_line(&self.files.collection, |at, line| {
            let (id, text) = id_and_text(at, line)?;
            let document = Document { id: id.to_owned(), title: String::new(), text: text.to_owned() };
            let (place, new) = writer.document(&document)?;
            if !new {
                bail!("{at}: document `{id}` has been before; ids must be unique");
            }
            if let Some(by_text) = &mut by_text {
                by_text.documents.entry(fingerprint(text)).or_insert(place);
            }
            Ok(())
        })?;
        for file in &self.files.queries {
            for_each_line(file, |at, line| {
                let (id, text) = id_and_text(at, line)?;
                let (place, new) = writer.announce_query(id);
                if !new {
                    bail!("{at}: query `{id}` has been before; ids must be unique");
                }
                if let Some(by_text) = &mut by_text {
                    by_text.queries.entry(fingerprint(text)).or_insert(place);
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    fn read_qrels(&mut self, split: &str, file: &Path) -> Result<()> {
        let judgements = self.splits.entry(split.to_owned()).or_default();
        let writer = &self.writer;
        let mut lines = 0;
        for_each_line(file, |at, line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let parsed = match fields[..] {
                [query, _, document, gain] => gain.parse::<i64>().ok().map(|gain| (query, document, gain)),
                _ => None,
            };
            let Some((query, document, gain)) = parsed else {
                bail!(
                    "{at}: found {:?}, expected `qid 0 docid rel` with a whole number as rel",
                    excerpt(line)
                );
            };
            let (query, document) = (known_query(writer, at, query)?, known_document(writer, at, document)?);
            judgements.push(query, document, u32::try_from(gain).unwrap_or(0));
            lines += 1;
            Ok(())
        })?;
        if lines == 0 {
            bail!("{}: holds no judgements", file.display());
        }
        Ok(())
    }

    fn read_id_triples(&mut self, file: &Path) -> Result<()> {
        let judgements = self.splits.entry(TRIPLES_SPLIT.to_owned()).or_default();
        let writer = &self.writer;
        for_each_line(file, |at, line| {
            let [query, positive, negative] = three(at, line)?;
            let query = known_query(writer, at, query)?;
            judgements.push(query, known_document(writer, at, positive)?, 1);
            judgements.push(query, known_document(writer, at, negative)?, 0);
            Ok(())
        })
    }

    fn read_text_triples(&mut self, file: &Path, by_text: &mut ByText) -> Result<()> {
        let judgements = self.splits.entry(TRIPLES_SPLIT.to_owned()).or_default();
        let (writer, added) = (&mut self.writer, &mut self.added);
        for_each_line(file, |at, line| {
            let [query, positive, negative] = three(at, line)?;
            let query = match by_text.queries.get(&fingerprint(query)) {
                Some(query) => *query,
                None => {
                    let (id, text) = (digest_id("q", query), query.to_owned());
                    *added += 1;
                    let place = writer.query(&Query { id, text })?.0;
                    by_text.queries.insert(fingerprint(query), place);
                    place
                }
            };
            for (text, gain) in [(positive, 1), (negative, 0)] {
                let document = match by_text.documents.get(&fingerprint(text)) {
                    Some(document) => *document,
                    None => {
                        let (id, title) = (digest_id("d", text), String::new());
                        *added += 1;
                        let place = writer.document(&Document { id, title, text: text.to_owned() })?.0;
                        by_text.documents.insert(fingerprint(text), place);
                        place
                    }
                };
                judgements.push(query, document, gain);
            }
            Ok(())
        })
    }

    /// Reads the queries a second time and writes those that some judgement names.
    fn finish(self) -> Result<Imported> {
        let Self { files, mut writer, mut splits, added } = self;
        let mut judged = vec![false; writer.announced()];
        for judgements in splits.values_mut() {
            judgements.compact();
            for (query, ..) in judgements.rows() {
                judged[query.to_usize()] = true;
            }
        }
        let mut unjudged = 0;
        for file in &files.queries {
            for_each_line(file, |at, line| {
                let (id, text) = id_and_text(at, line)?;
                if writer.find_query(id).is_some_and(|query| judged[query.to_usize()]) {
                    writer.write_query(&Query { id: id.to_owned(), text: text.to_owned() })?;
                } else {
                    unjudged += 1;
                }
                Ok(())
            })?;
        }
        Ok(Imported { summary: writer.finish(splits)?, unjudged, added })
    }
}

/// Ids have no white space in them, passages have; the first line tells.
fn holds_texts(file: &Path) -> Result<bool> {
    let texts = first_line(file, |at, line| {
        Ok(three(at, line)?.iter().any(|field| field.contains(char::is_whitespace)))
    })?;
    let Some(texts) = texts else { bail!("{}: holds no triples", file.display()) };
    Ok(texts)
}

fn id_and_text<'a>(at: At, line: &'a str) -> Result<(&'a str, &'a str)> {
    match line.split('\t').collect::<Vec<_>>()[..] {
        [id, text] if !id.trim().is_empty() && !text.trim().is_empty() => Ok((id.trim(), text.trim())),
        [_, _] => bail!("{at}: id or text is empty in {:?}", excerpt(line)),
        ref fields => {
            bail!("{at}: {} fields between tabs in {:?}, expected `id<TAB>text`", fields.len(), excerpt(line))
        }
    }
}

fn three<'a>(at: At, line: &'a str) -> Result<[&'a str; 3]> {
    let fields: Vec<&str> = line.split('\t').map(str::trim).collect();
    match fields[..] {
        [query, positive, negative] if fields.iter().all(|field| !field.is_empty()) => {
            Ok([query, positive, negative])
        }
        _ => bail!("{at}: found {:?}, expected `query<TAB>positive<TAB>negative`", excerpt(line)),
    }
}

fn known_query(writer: &BeirWriter, at: At, query: &str) -> Result<Id> {
    match writer.find_query(query) {
        Some(query) => Ok(query),
        None => bail!("{at}: query `{}` is in no file given with --queries", excerpt(query)),
    }
}

fn known_document(writer: &BeirWriter, at: At, document: &str) -> Result<Id> {
    match writer.find_document(document) {
        Some(document) => Ok(document),
        None => bail!("{at}: document `{}` is not in the file given with --collection", excerpt(document)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use models::beir::{BeirData, Purpose};
    use std::fs;

    const COLLECTION: &str =
        "p1\tThe robot wipes the table.\np2\tThe robot makes light.\np3\tThe robot sweeps.\n";
    const QUERIES: &str = "1\tspilled coffee\n2\tit is dusk\n3\tnever judged\n";

    struct Case {
        dir: tempfile::TempDir,
        files: Files,
    }

    impl Case {
        fn new(qrels: &str, triples: Option<&str>) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let write = |name: &str, text: &str| {
                fs::write(dir.path().join(name), text).unwrap();
                dir.path().join(name)
            };
            let files = Files {
                collection: write("collection.tsv", COLLECTION),
                queries: vec![write("queries.tsv", QUERIES)],
                qrels: vec![("dev".into(), write("qrels.tsv", qrels))],
                triples: triples.map(|text| write("triples.tsv", text)).into_iter().collect(),
            };
            Self { dir, files }
        }

        fn import(&self) -> Result<Imported> {
            import(&self.files, &self.dir.path().join("out"))
        }

        fn train(&self) -> Vec<(String, String, u32)> {
            let data = BeirData::open(&self.dir.path().join("out")).unwrap();
            let rows = data.qrels("train", Purpose::Training).unwrap().qrels.into_iter().flat_map(
                |(query, judgements)| {
                    let mut judged: Vec<_> = judgements.into_iter().collect();
                    judged.sort();
                    judged.into_iter().map(move |(document, gain)| (query.clone(), document, gain))
                },
            );
            rows.collect()
        }
    }

    fn rows(rows: &[(&str, &str, u32)]) -> Vec<(String, String, u32)> {
        rows.iter().map(|(q, d, gain)| ((*q).to_owned(), (*d).to_owned(), *gain)).collect()
    }

    /// Triples of ids and triples of texts say the same; told apart wrongly, numbers would become documents.
    #[test]
    fn triples_of_ids_and_of_texts_become_judgements() {
        let ids = "2\tp2\tp1\n2\tp2\tp3\n";
        let texts = "It is dusk\tThe robot makes light.\tThe robot wipes the table.\n\
                     it is dusk\tThe robot makes  light\tThe robot sweeps.\n";
        for triples in [ids, texts] {
            let case = Case::new("1 0 p1 2\n1 Q0 p3 -1\n", Some(triples));
            let made = case.import().unwrap();
            assert_eq!((made.unjudged, made.added), (1, 0));
            assert_eq!((made.summary.documents, made.summary.queries), (3, 2));
            assert_eq!(case.train(), rows(&[("2", "p1", 0), ("2", "p2", 1), ("2", "p3", 0)]));
            let data = BeirData::open(&case.dir.path().join("out")).unwrap();
            let dev = data.qrels("dev", Purpose::Training).unwrap().qrels;
            assert_eq!((dev["1"]["p1"], dev["1"]["p3"]), (2, 0));
        }
        let strange = "too cold\tThe robot heats.\tThe robot makes light.\ntoo cold\tThe robot heats.\tThe robot sweeps.\n";
        let case = Case::new("1\t0\tp1\t1\n", Some(strange));
        let made = case.import().unwrap();
        assert_eq!((made.added, made.summary.documents, made.summary.queries), (2, 4, 2));
        assert_eq!(case.train().iter().map(|row| row.2).sum::<u32>(), 1);
        assert_eq!(case.train().len(), 3);
    }

    /// Every one of these files was met in the wild; each needs its line and what was expected of it.
    #[test]
    fn bad_lines_are_named() {
        for (qrels, triples, words) in [
            ("1 0 p1\n", None, "qrels.tsv:1: found \"1 0 p1\", expected `qid 0 docid rel`"),
            ("1 0 p1 1\n1 0 p1 0.5\n", None, "qrels.tsv:2: found \"1 0 p1 0.5\""),
            ("9 0 p1 1\n", None, "qrels.tsv:1: query `9` is in no file given with --queries"),
            ("1 0 p9 1\n", None, "qrels.tsv:1: document `p9` is not in the file given with --collection"),
            ("\n", None, "qrels.tsv: holds no judgements"),
            ("1 0 p1 1\n", Some(""), "triples.tsv: holds no triples"),
            (
                "1 0 p1 1\n",
                Some("1\tp1\n"),
                "triples.tsv:1: found \"1\\tp1\", expected `query<TAB>positive<TAB>negative`",
            ),
            ("1 0 p1 1\n", Some("1\tp1\tp2\n1\tp1\tp9\n"), "triples.tsv:2: document `p9`"),
        ] {
            let case = Case::new(qrels, triples);
            let message = case.import().unwrap_err().to_string();
            assert!(message.contains(words), "{message:?} lacks {words:?}");
            assert!(fs::read_dir(case.dir.path()).unwrap().all(|entry| entry.unwrap().path().is_file()));
        }
        for (collection, words) in [
            (
                "p1\ta\tb\n",
                "collection.tsv:1: 3 fields between tabs in \"p1\\ta\\tb\", expected `id<TAB>text`",
            ),
            ("p1\ta\n\np1\tb\n", "collection.tsv:3: document `p1` has been before"),
            ("p1\t \n", "collection.tsv:1: id or text is empty"),
        ] {
            let case = Case::new("1 0 p1 1\n", None);
            fs::write(&case.files.collection, collection).unwrap();
            let message = case.import().unwrap_err().to_string();
            assert!(message.contains(words), "{message:?} lacks {words:?}");
        }
        let mut case = Case::new("1 0 p1 1\n", None);
        case.files.qrels.clear();
        assert!(case.import().unwrap_err().to_string().contains("give --qrels or --triples"));
    }
}
