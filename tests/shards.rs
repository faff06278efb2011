//! `runtime encode` and `runtime index --from` as a cluster starts them: any number of shards makes the index that one machine
//! makes, byte for byte, and whatever is missing, double, foreign or damaged is refused by name.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use models::student::{Form, Residual};
use serde_json::json;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::OnceLock;
use tempfile::TempDir;
use tests::model::write_student;
use tests::program::{Finished, listing, program, run};

const SHARED: [&str; 3] = ["portable", "fused", "other"];

/// Three bundles: one that takes texts together, one that takes them one at a time, one of another student.
fn shared(name: &str) -> PathBuf {
    static SHARED_DIR: OnceLock<TempDir> = OnceLock::new();
    let dir = SHARED_DIR.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        for (name, graph, seed) in
            [("portable", "portable", 7), ("fused", "fused", 7), ("other", "portable", 8)]
        {
            let student = dir.path().join(format!("student-{name}"));
            write_student(&student, Form::Gated, Residual::Pooled, seed);
            let out = dir.path().join(name);
            let arguments = ["--onnx", "--student", text(&student), "--out", text(&out), "--graph", graph];
            // The fixture's golden numbers are zeros: the exporter is told so.
            run("export", &[&arguments[..], &["--allow-degraded"]].concat()).done();
        }
        dir
    });
    assert!(SHARED.contains(&name));
    dir.path().join(name)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Documents of many lengths, so that those that are encoded together differ, with metadata of every kind.
fn write_corpus(file: &Path, count: usize) {
    let words =
        ["spill", "crumbs", "bell", "dark", "wall", "clock", "cat", "bed", "tea", "soup", "rug", "key"];
    let line = |i: usize| {
        let mut state = i as u64;
        let mut next = |n: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % n
        };
        let body: Vec<&str> = (0..1 + next(24)).map(|_| words[next(words.len())]).collect();
        let metadata =
            json!({ "third": i % 3, "share": i as f64 / 7.0, "tags": ["ä", "\u{1f9f9}"], "no": null });
        json!({ "_id": format!("d{i}"), "title": format!("T{}", i % 5), "text": body.join(" "), "metadata": metadata })
            .to_string()
            + "\n"
    };
    fs::write(file, (0..count).map(line).collect::<String>()).unwrap();
}

fn index(bundle: &Path, documents: &Path, out: &Path, more: &[&str]) -> Finished {
    let arguments = ["index", "--bundle", text(bundle), "--documents", text(documents), "--out", text(out)];
    run("runtime", &[&arguments[..], more].concat())
}

fn encode(bundle: &Path, documents: &Path, shard: &str, out: &Path, more: &[&str]) -> Finished {
    let arguments = ["encode", "--bundle", text(bundle), "--documents", text(documents), "--shard", shard];
    run("runtime", &[&arguments[..], &["--out", text(out)], more].concat())
}

fn merge(bundle: &Path, shards: &[PathBuf], out: &Path, more: &[&str]) -> Finished {
    let mut arguments = vec!["index", "--bundle", text(bundle), "--out", text(out)];
    arguments.extend(more);
    arguments.push("--from");
    arguments.extend(shards.iter().map(|shard| text(shard)));
    run("runtime", &arguments)
}

/// Every shard of an input.
fn encode_all(bundle: &Path, documents: &Path, of: usize, dir: &Path) -> Vec<PathBuf> {
    let shard = |i: usize| {
        let out = dir.join(format!("shard-{i}-of-{of}.safetensors"));
        let done = encode(bundle, documents, &format!("{i}/{of}"), &out, &[]).done();
        assert_eq!(done.stdout.trim(), text(&out));
        out
    };
    (1..=of).map(shard).collect()
}

/// Name to bytes of every file.
fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
    listing(dir).keys().map(|path| (name(path), fs::read(path).unwrap())).collect()
}

/// Somebody who encodes on four machines instead of one must not get another index: not in what it holds, nor in its bytes.
#[test]
fn any_number_of_shards_makes_the_index_of_one_machine() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let corpus = at("corpus.jsonl");
    write_corpus(&corpus, 5 * 64 + 9);
    for name in ["portable", "fused"] {
        let bundle = shared(name);
        let one = at(&format!("{name}-one"));
        index(&bundle, &corpus, &one, &[]).done();
        // Seven shards of six batches: one is empty.
        for of in [1, 2, 4, 7] {
            let shards = at(&format!("{name}-{of}"));
            fs::create_dir(&shards).unwrap();
            let mut files = encode_all(&bundle, &corpus, of, &shards);
            assert_eq!(listing(&shards).len(), of, "something else was left");
            // Neither the order nor an absent ONNX Runtime matters.
            files.reverse();
            let many = at(&format!("{name}-{of}-index"));
            let merged = merge(&bundle, &files, &many, &["--ort-dylib", "/dev/null"]).done();
            assert!(merged.stderr.contains(&format!("329 documents from {of} shards")), "{}", merged.stderr);
            assert!(contents(&many) == contents(&one), "{name}: {of} shards make another index");
        }
    }
}

/// A cluster repeats jobs: one that is done costs nothing and changes nothing, and never is something else overwritten.
#[test]
fn a_whole_shard_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (bundle, corpus, shard) = (shared("portable"), at("corpus.jsonl"), at("s.safetensors"));
    write_corpus(&corpus, 200);
    encode(&bundle, &corpus, "1/2", &shard, &[]).done();
    let before = (fs::read(&shard).unwrap(), fs::metadata(&shard).unwrap().modified().unwrap());
    // Without ONNX Runtime nothing could be encoded.
    let again = encode(&bundle, &corpus, "1/2", &shard, &["--ort-dylib", "/dev/null"]).done();
    assert!(again.stderr.contains("shard 1/2 is whole already, 128 documents"), "{}", again.stderr);
    assert_eq!(again.stdout.trim(), text(&shard));
    let anew = at("anew.safetensors");
    encode(&bundle, &corpus, "1/2", &anew, &[]).done();
    assert!(fs::read(&anew).unwrap() == before.0, "the same shard has other bytes");

    let more = at("more.jsonl");
    write_corpus(&more, 201);
    let way_out = "name another --out";
    for refused in [
        encode(&bundle, &corpus, "2/2", &shard, &[]).refused(&[
            "s.safetensors",
            "shard 1/2",
            "shard 2/2",
            way_out,
        ]),
        encode(&bundle, &more, "1/2", &shard, &[]).refused(&["200 documents", "201 documents", way_out]),
        encode(&shared("other"), &corpus, "1/2", &shard, &[]).refused(&[
            "s.safetensors",
            "by encoder",
            way_out,
        ]),
        encode(&bundle, &corpus, "1/2", &corpus, &[]).refused(&["corpus.jsonl", "is not a shard"]),
        encode(&bundle, &corpus, "1/2", dir.path(), &[]).refused(&["is not a shard (a directory)"]),
    ] {
        assert!(refused.stderr.len() < 700);
    }
    let mut flipped = before.0.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    fs::write(&shard, flipped).unwrap();
    encode(&bundle, &corpus, "1/2", &shard, &[]).refused(&["s.safetensors: damaged"]);
    assert!(!at("s.safetensors.partial").exists());
}

/// Above 20,000 documents there is a graph. A machine that dies halfway leaves what it has done, and the result is the same.
#[test]
fn a_killed_shard_goes_on_and_makes_the_same_large_index() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (bundle, corpus, one) = (shared("portable"), at("corpus.jsonl"), at("one"));
    write_corpus(&corpus, 20_100);
    // Threads link the graph in the order in which they come to it: only one makes the same graph twice.
    index(&bundle, &corpus, &one, &["--threads", "1"]).done();

    let (first, second) = (at("1.safetensors"), at("2.safetensors"));
    let partial = at("1.safetensors.partial");
    let mut child = program("runtime")
        .args(["encode", "--bundle", text(&bundle), "--documents", text(&corpus), "--shard", "1/2"])
        .args(["--out", text(&first)])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // A line and three batches of 64 times 21 numbers.
    while fs::metadata(&partial).map_or(0, |partial| partial.len()) < 17_000 {
        assert!(child.try_wait().unwrap().is_none(), "it has ended before it could be killed");
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!first.exists() && partial.exists());
    merge(&bundle, std::slice::from_ref(&partial), &at("never"), &[])
        .refused(&["1.safetensors.partial", "under construction"]);
    encode(&bundle, &corpus, "2/2", &first, &[]).refused(&["1.safetensors.partial", "holds shard 1/2"]);
    let resumed = encode(&bundle, &corpus, "1/2", &first, &[]).done();
    assert!(resumed.stderr.contains("of them by an interrupted run"), "{}", resumed.stderr);
    assert!(!partial.exists());
    encode(&bundle, &corpus, "2/2", &second, &[]).done();
    merge(&bundle, &[first, second], &at("two"), &["--threads", "1"]).done();
    let (one, two) = (contents(&one), contents(&at("two")));
    assert_eq!(one.keys().collect::<Vec<_>>(), two.keys().collect::<Vec<_>>());
    assert!(one.keys().any(|name| name.ends_with(".usearch")), "{:?}", one.keys());
    assert!(one == two, "two shards make another index");
}

/// A gap, a double or a foreign part would become an index that answers plausibly and wrongly.
#[test]
fn what_does_not_make_one_whole_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (bundle, other, corpus, out) = (shared("portable"), shared("other"), at("corpus.jsonl"), at("index"));
    write_corpus(&corpus, 300);
    let more = at("more.jsonl");
    write_corpus(&more, 301);
    for name in ["a", "b", "c", "d"] {
        fs::create_dir(at(name)).unwrap();
    }
    let mine = encode_all(&bundle, &corpus, 3, &at("a"));
    let halves = encode_all(&bundle, &corpus, 2, &at("a"));
    let foreign = encode_all(&other, &corpus, 3, &at("b"));
    let another = encode_all(&bundle, &more, 3, &at("c"));
    let pick = |files: &[&PathBuf]| files.iter().map(|file| (*file).clone()).collect::<Vec<_>>();
    let merged = |files: &[&PathBuf]| merge(&bundle, &pick(files), &out, &[]);
    merged(&[&mine[0], &mine[2]]).refused(&["shards 2 of 3 are missing"]);
    merged(&[&mine[1]]).refused(&["shards 1, 3 of 3 are missing"]);
    let copy = at("d/copy.safetensors");
    fs::copy(&mine[1], &copy).unwrap();
    merged(&[&mine[0], &mine[1], &mine[2], &copy]).refused(&[
        "copy.safetensors",
        "shard 2/3",
        "name each once",
    ]);
    merged(&[&mine[0], &foreign[1], &mine[2]]).refused(&[
        "shard-2-of-3",
        "another encoder",
        "document digest",
    ]);
    merged(&[&mine[0], &another[1], &mine[2]]).refused(&["c/shard-2-of-3", "another input", "301 documents"]);
    merged(&[&mine[0], &halves[1], &mine[1], &mine[2]]).refused(&[
        "shard-2-of-2",
        "cut in two ways, which overlap",
        "2/2",
        "1/3",
    ]);
    merged(&[&mine[0], &mine[1], &corpus]).refused(&["corpus.jsonl", "is not a shard"]);
    merged(&[&mine[0], &mine[1], &bundle.join("fold.safetensors")])
        .refused(&["fold.safetensors", "is not a shard (a safetensors file of another program)"]);
    merged(&[&mine[0], &mine[1], &at("absent")]).refused(&["absent", "No such file"]);

    let whole = fs::read(&mine[1]).unwrap();
    let damaged = at("d/damaged");
    let three = [&mine[0], &damaged, &mine[2]];
    for place in [whole.len() - 1, whole.len() / 2, whole.len() / 3, 100] {
        let mut bytes = whole.clone();
        bytes[place] ^= 0x10;
        fs::write(&damaged, bytes).unwrap();
        merged(&three).refused(&["d/damaged"]);
        fs::write(&damaged, &whole[..place]).unwrap();
        merged(&three).refused(&["d/damaged", "the copy was cut off"]);
    }
    let version = b"format_version\":\"";
    let place = whole.windows(version.len()).position(|bytes| bytes == version).unwrap() + version.len();
    let mut newer = whole.clone();
    newer[place] = b'2';
    fs::write(&damaged, newer).unwrap();
    merged(&three).refused(&[
        "d/damaged",
        "format version 2, this program reads version 1",
        "update the program",
    ]);

    for (shard, words) in [
        ("0/3", "no shard 0 of 3; they are counted from 1 to 3"),
        ("4/3", "no shard 4 of 3"),
        ("1/0", "there are no shards"),
        ("half", "expected I/N"),
    ] {
        encode(&bundle, &corpus, shard, &at("d/new"), &[]).refused(&["--shard", words]);
    }
    encode(&bundle, &at("absent.jsonl"), "1/2", &at("d/new"), &[]).refused(&["absent.jsonl", "No such file"]);
    encode(&at("absent"), &corpus, "1/2", &at("d/new"), &[]).refused(&["absent", "is not a bundle"]);
    encode(&bundle, &corpus, "1/2", &at("absent/new"), &[]).refused(&["absent/new", "No such file"]);
    run("runtime", &["index", "--bundle", text(&bundle), "--out", text(&out)])
        .refused(&["--documents", "--from"]);
    let both = ["--documents", text(&corpus)];
    merge(&bundle, &mine, &out, &both).refused(&["cannot be used with"]);
    assert!(!out.exists() && !at("d/new").exists() && !at("d/new.partial").exists());

    merged(&[&mine[2], &mine[0], &mine[1]]).done();
    // Into what is there nothing is merged.
    merged(&[&mine[2], &mine[0], &mine[1]]).refused(&["index", "already exists"]);
}
