//! Everything that reads other people's bytes, as functions of bytes alone: none may panic, hang or take memory without bound,
//! whatever they are. The same functions are called by cargo-fuzz (`fuzz/`) and by the test below, which runs what is kept in
//! `fuzz/corpus/` and a bounded number of seeded changes of it.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "what fails here is the fuzzing itself")]

use crate::bundle::Bundle;
use crate::document;
use crate::filter::Filter;
use crate::index::{Graph, Measure};
use crate::store::{FILE_NAME, IndexKey, Record, Store, Writer};
use models::files::sha256_file;
use models::fold::{self, Folded, FoldedQuery};
use models::manifest::{self, Manifest};
use models::prompt::{self, PromptTemplate};
use models::student::{Form, Residual, StudentConfig};
use models::weights::{DType, write_safetensors};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fs;
use std::path::Path;

/// Reads some bytes.
pub type Target = fn(&[u8]);

/// Name, which is also that of its folder in `fuzz/corpus/`, and function.
pub const TARGETS: &[(&str, Target)] = &[
    ("manifest", manifest),
    ("fold", fold),
    ("database", database),
    ("graph", graph),
    ("graph_json", graph_json),
    ("filter", filter),
    ("documents", documents),
    #[cfg(feature = "serve")]
    ("requests", crate::serve::fuzz),
];

/// Numbers of a vector here.
const M: usize = 3;

/// The name of a target's function.
pub fn target(name: &str) -> Target {
    TARGETS.iter().find(|(known, _)| *known == name).expect("a target of this name").1
}

/// A bundle around a manifest, whose digests are made right if it is one: what stands behind them is to be read too.
fn manifest(bytes: &[u8]) {
    let dir = tempfile::tempdir().unwrap();
    let written = dir.path().join(manifest::FILE_NAME);
    fs::write(&written, bytes).unwrap();
    let _ = Bundle::open(dir.path());
    let Ok(mut manifest) = serde_json::from_slice::<Manifest>(bytes) else { return };
    write_parts(dir.path());
    manifest.digests = fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_name() != manifest::FILE_NAME)
        .map(|entry| (entry.file_name().into_string().unwrap(), sha256_file(&entry.path()).unwrap()))
        .collect();
    manifest.document_digest = manifest.expected_document_digest();
    fs::write(&written, serde_json::to_vec(&manifest).unwrap()).unwrap();
    if let Ok(bundle) = Bundle::open(dir.path()) {
        let _ = Measure::of_bundle(&bundle);
        let _ = bundle.prompter.document_pass("Yes No");
        bundle.folded.document(&vec![0.5; bundle.manifest.encoder.dimensions]);
    }
}

/// All files of a tiny bundle but its manifest.
fn write_parts(dir: &Path) {
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": { "type": "Whitespace" }, "post_processor": null, "decoder": null,
        "model": { "type": "WordLevel", "vocab": { "?": 0, "Yes": 1, "No": 2 }, "unk_token": "?" },
    });
    fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let prompt = serde_json::to_vec(&PromptTemplate::default()).unwrap();
    fs::write(dir.join(prompt::FILE_NAME), prompt).unwrap();
    write_fold(&dir.join(fold::FILE_NAME), Form::Gated);
    for name in [manifest::ENCODER_FILE, manifest::PREDICTOR_FILE] {
        fs::write(dir.join(name), "graph").unwrap();
    }
}

fn student(form: Form) -> StudentConfig {
    let config = json!({
        "format_version": 1, "latents": { "layers": [1, 2], "pooling": "mean" }, "hidden_size": 2, "form": form,
        "inner_dimensions": M, "residual": Residual::Pooled, "calibration": { "scale": 1.0, "bias": 0.0 },
        "provenance": null,
    });
    serde_json::from_value(config).unwrap()
}

fn write_fold(file: &Path, form: Form) {
    let d = student(form).dimensions();
    let mut tensors: Vec<(String, Vec<usize>, Vec<f32>)> = Vec::new();
    let mut tensor = |name: &str, shape: &[usize]| {
        let count: usize = shape.iter().product();
        tensors.push((name.to_owned(), shape.to_vec(), (0..count).map(|i| i as f32 * 0.25 - 0.5).collect()));
    };
    for side in ["query", "document"] {
        tensor(&format!("{side}.weight"), &[M, d]);
        tensor(&format!("{side}.bias"), &[M]);
    }
    if form == Form::Gated {
        tensor("gate.weight", &[M, d]);
        tensor("gate.bias", &[M]);
        tensor("document.norm", &[M, M]);
    }
    tensor("join", &[M]);
    tensor("residual", &[d]);
    tensor("offset", &[1]);
    write_safetensors(file, tensors, DType::F32, HashMap::new()).unwrap();
}

/// `fold.safetensors`, read as either form.
fn fold(bytes: &[u8]) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(fold::FILE_NAME);
    fs::write(&file, bytes).unwrap();
    for form in [Form::Relu, Form::Gated] {
        let config = student(form);
        if let Ok(folded) = Folded::open(&config, &file) {
            let latent = vec![0.5; config.dimensions()];
            folded.query(&latent, &latent).score(&folded.document(&latent));
        }
    }
}

fn key() -> IndexKey {
    IndexKey { document_digest: "fuzz".into(), inner_dimensions: M, form: Form::Gated }
}

/// `documents.sqlite`, read and written.
fn database(bytes: &[u8]) {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(FILE_NAME), bytes).unwrap();
    if let Ok(store) = Store::open(dir.path(), &key()) {
        let _ = store.load().map(|(rows, _)| {
            for row in rows.live().ones() {
                let _ = store.document(rows.key(row));
            }
            rows.columns().facets(rows.live(), 5);
        });
        let _ = (store.documents(0, 10), store.changes_since(1), store.document_by_id("a"));
    }
    if let Ok(mut writer) = Writer::open(dir.path(), &key()) {
        let new = [document::Document { id: "a".into(), text: "new".into(), ..Default::default() }];
        let _ = writer.plan(&new);
        let _ = writer.put(&[Record { document: &new[0], vector: Some(vec![1.0; M]) }]);
        let _ = writer.remove(&["a", "b"]);
        let _ = writer.compact();
        let _ = writer.close();
    }
}

/// A graph's file beside a description that says it is whole: what usearch would read.
fn graph(bytes: &[u8]) {
    let dir = tempfile::tempdir().unwrap();
    let named = dir.path().join("any");
    fs::write(&named, bytes).unwrap();
    let sha256 = sha256_file(&named).unwrap();
    let file = dir.path().join(format!("graph-{}.usearch", &sha256[..16]));
    fs::rename(&named, &file).unwrap();
    let described = json!({ "format_version": 2, "generation": 1, "digest": "d", "sha256": sha256 });
    fs::write(dir.path().join("graph.json"), described.to_string()).unwrap();
    open_graph(dir.path());
}

/// `graph.json`.
fn graph_json(bytes: &[u8]) {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("graph.json"), bytes).unwrap();
    open_graph(dir.path());
}

fn open_graph(dir: &Path) {
    let query = |form| FoldedQuery::new(form, vec![0.5; M], vec![0.25; M], 0.0);
    let measures = [(Form::Gated, Measure::Gated), (Form::Relu, Measure::Relu(vec![0.25; M].into()))];
    for (form, measure) in measures {
        if let Ok((mut graph, _)) = Graph::open(dir, M, measure) {
            let _ = graph.search(&query(form), 10, None);
            let _ = graph.search(&query(form), 10, Some(&|key| key % 2 == 0));
            let mut rows = crate::search::Rows::new(M);
            rows.push(1, "a", &[1.0; M], &document::Metadata::new());
            let changes = crate::store::Changes { put: vec![1], removed: vec![2, 3] };
            let _ = graph.update(&rows, &changes);
            let _ = graph.search(&query(form), 10, None);
        }
    }
}

/// A condition as it is typed and as it is sent, held against some metadata.
fn filter(bytes: &[u8]) {
    let filters = [
        serde_json::from_slice::<Filter>(bytes).ok(),
        std::str::from_utf8(bytes).ok().and_then(|text| Filter::parse(text).ok()),
    ];
    let metadata =
        json!({ "room": "kitchen", "floor": 2, "tags": ["a", 1.5], "at": { "site": "x" }, "at.site": 3 });
    let Value::Object(metadata) = metadata else { unreachable!("it is an object") };
    let mut columns = crate::columns::Columns::default();
    columns.set(0, &metadata);
    for filter in filters.into_iter().flatten() {
        assert_eq!(columns.select(&filter, 1).contains(0), filter.passes(&metadata), "{filter:?}");
    }
}

/// Documents as JSON lines and as CSV.
fn documents(bytes: &[u8]) {
    for read in [document::read_jsonl, document::read_csv] {
        for document in read(bytes).unwrap_or_default() {
            let written = serde_json::to_vec(&document).unwrap();
            let again: document::Document = serde_json::from_slice(&written).unwrap();
            assert_eq!(again, document);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;
    use std::path::PathBuf;

    /// Changes of a corpus; the real fuzzer tries millions.
    const CHANGES: usize = 400;

    fn corpus(name: &str) -> Vec<Vec<u8>> {
        let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus")).join(name);
        let mut files: Vec<PathBuf> = fs::read_dir(&folder)
            .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
            .map(|entry| entry.unwrap().path())
            .collect();
        files.sort();
        files.iter().map(|file| fs::read(file).unwrap()).collect()
    }

    fn changed(seeds: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
        const VALUES: [u8; 8] = [0x00, 0x01, 0x7f, 0x80, 0xff, b'"', b'{', b'9'];
        let mut any = |below: usize| (random.next() % below.max(1) as u64) as usize;
        let mut bytes = seeds[any(seeds.len())].clone();
        for _ in 0..=any(4) {
            let (place, value) = (any(bytes.len()), VALUES[any(8)]);
            let end = (place + 1 + any(8)).min(bytes.len());
            match any(6) {
                0 if !bytes.is_empty() => bytes[place] ^= 1 << any(8),
                1 => bytes[place..end].fill(value),
                2 => drop(bytes.splice(place..place, std::iter::repeat_n(value, 1 + any(8)))),
                3 => drop(bytes.drain(place..end)),
                4 => bytes.truncate(place),
                _ => {
                    let other = &seeds[any(seeds.len())];
                    let from = any(other.len());
                    let piece = other[from..(from + any(64)).min(other.len())].to_vec();
                    drop(bytes.splice(place..end, piece));
                }
            }
        }
        bytes
    }

    /// Bytes from elsewhere that end a robot's program, or keep it busy for ever, end its service.
    #[test]
    fn no_bytes_end_a_program() {
        for (name, read) in TARGETS {
            let seeds = corpus(name);
            assert!(!seeds.is_empty(), "{name}");
            seeds.iter().for_each(|bytes| read(bytes));
            let mut random = Random::new(11);
            // What a database acknowledges is on the disk, which takes its time.
            let changes = if *name == "database" { CHANGES / 10 } else { CHANGES };
            for _ in 0..changes {
                read(&changed(&seeds, &mut random));
            }
        }
    }

    /// A corpus whose files are all refused at the first byte would try nothing.
    #[test]
    fn the_corpus_has_what_is_read_to_its_end() {
        let first = |name: &str| corpus(name).swap_remove(0);
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE_NAME), first("database")).unwrap();
        assert_eq!(Store::open(dir.path(), &key()).unwrap().load().unwrap().0.len(), 3);
        let file = dir.path().join(fold::FILE_NAME);
        fs::write(&file, first("fold")).unwrap();
        Folded::open(&student(Form::Gated), &file).unwrap();
        let manifest: Manifest = serde_json::from_slice(&first("manifest")).unwrap();
        assert_eq!(manifest.student().dimensions(), manifest.encoder.dimensions);
        assert!(!document::read_jsonl(&first("documents")).unwrap().is_empty());
        serde_json::from_slice::<Filter>(&first("filter")).unwrap();
    }

    /// Writes the files of the corpus that no editor can: run it by name after a change of their formats.
    #[test]
    #[ignore = "writes into the repository"]
    fn write_corpus() {
        let folder = |name: &str| {
            let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus")).join(name);
            fs::create_dir_all(&folder).unwrap();
            folder
        };
        for (name, form) in [("gated", Form::Gated), ("relu", Form::Relu)] {
            write_fold(&folder("fold").join(name), form);
        }
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::create(dir.path(), &key()).unwrap();
        for (i, id) in ["a", "b", "c", "d"].into_iter().enumerate() {
            let Value::Object(metadata) = json!({ "room": id, "floor": i, "at": { "site": [i, "x"] } })
            else {
                unreachable!("it is an object")
            };
            let (title, text) = (format!("Title {i}"), "The robot knows. ".repeat(i + 1));
            let document = document::Document { id: id.into(), title, text, metadata };
            writer.put(&[Record { document: &document, vector: Some(vec![i as f32; M]) }]).unwrap();
        }
        writer.remove(&["d"]).unwrap();
        writer.close().unwrap();
        let file = dir.path().join(FILE_NAME);
        // Small pages: changes hit what is read.
        let connection = rusqlite::Connection::open(&file).unwrap();
        connection
            .execute_batch(
                "PRAGMA journal_mode = DELETE; PRAGMA page_size = 512; VACUUM; PRAGMA journal_mode = WAL;",
            )
            .unwrap();
        connection.close().unwrap();
        fs::copy(&file, folder("database").join("small")).unwrap();
        let mut random = Random::new(3);
        let mut rows = crate::search::Rows::new(M);
        for i in 1..=20 {
            rows.push(i, &i.to_string(), &random.normals(M), &document::Metadata::new());
        }
        for (name, measure) in [("gated", Measure::Gated), ("relu", Measure::Relu(vec![0.25; M].into()))] {
            let dir = tempfile::tempdir().unwrap();
            Graph::build(&rows, measure)
                .unwrap()
                .save(dir.path(), &crate::store::Generation::default())
                .unwrap();
            for entry in fs::read_dir(dir.path()).unwrap() {
                let path = entry.unwrap().path();
                let of = if path.ends_with("graph.json") { "graph_json" } else { "graph" };
                fs::copy(&path, folder(of).join(name)).unwrap();
            }
        }
    }
}
