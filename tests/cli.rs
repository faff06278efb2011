//! `export` and `runtime` as users start them, without libtorch: the way through, and every wrong turn refused in one
//! sentence that leaves nothing half written.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use models::beir::Document;
use models::student::{Form, Residual};
use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use tempfile::TempDir;
use tests::data::{documents, write_documents};
use tests::model::{copy_dir, edit_json, write_student};
use tests::program::{Finished, finish, listing, program, run};
use tests::repository;

/// A bundle that is made once and copied for every test.
struct Shared {
    dir: TempDir,
}

impl Shared {
    fn get() -> &'static Self {
        static SHARED: OnceLock<Shared> = OnceLock::new();
        SHARED.get_or_init(|| {
            let shared = Self { dir: tempfile::tempdir().unwrap() };
            write_student(&shared.path("student"), Form::Gated, Residual::Pooled, 7);
            write_documents(&shared.path("corpus.jsonl"), &documents());
            // The fixture's golden numbers are zeros: the exporter is told so.
            export(&shared.path("student"), &shared.path("bundle"), &["--allow-degraded"]).done();
            index(&shared.path("bundle"), &shared.path("corpus.jsonl"), &shared.path("index")).done();
            shared
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

/// A fresh directory with `names` of the shared ones in it.
fn fresh(names: &[&str]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in names {
        copy_dir(&Shared::get().path(name), &dir.path().join(name));
    }
    dir
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn export(student: &Path, out: &Path, more: &[&str]) -> Finished {
    run("export", &[&["--onnx", "--student", text(student), "--out", text(out)], more].concat())
}

fn index(bundle: &Path, documents: &Path, out: &Path) -> Finished {
    run("runtime", &["index", "--bundle", text(bundle), "--documents", text(documents), "--out", text(out)])
}

fn query(bundle: &Path, index: &Path, more: &[&str]) -> Finished {
    run("runtime", &[&["query", "--bundle", text(bundle), "--index", text(index)], more].concat())
}

/// The way a user goes: index, ask, add, ask again; paths on stdout, one JSON object with `--json`.
#[test]
fn documents_are_indexed_asked_for_and_added() {
    let dir = fresh(&["bundle"]);
    let (bundle, out) = (dir.path().join("bundle"), dir.path().join("index"));
    let (first, all) = (dir.path().join("first.jsonl"), dir.path().join("all.jsonl"));
    let mut corpus = documents();
    write_documents(&first, &corpus[..9]);
    let made = index(&bundle, &first, &out).done();
    assert_eq!(made.stdout.trim(), text(&out));
    assert!(made.stderr.contains("9 added, 0 replaced, 0 unchanged"), "{}", made.stderr);

    corpus[0].text = "The robot mops the floor.".into();
    write_documents(&all, &corpus);
    let added = index(&bundle, &all, &out).done();
    assert!(added.stderr.contains("3 added, 1 replaced, 8 unchanged"), "{}", added.stderr);

    let answer = query(&bundle, &out, &["Oh dear, coffee!", "-k", "12", "--json"]).done().json();
    let results = answer["results"].as_array().unwrap();
    assert_eq!(results.len(), 12);
    let scores: Vec<f64> = results.iter().map(|hit| hit["score"].as_f64().unwrap()).collect();
    assert!(scores.is_sorted_by(|a, b| a >= b), "{scores:?}");
    // The fixture's calibration is sigma(0.5 x - 1) of the score less what all of a query's scores have in common.
    let odds = |hit: &Value| {
        let probability = hit["probability"].as_f64().unwrap();
        (probability / (1.0 - probability)).ln()
    };
    for (hit, score) in results.iter().zip(&scores) {
        let (found, expected) = (odds(&results[0]) - odds(hit), 0.5 * (scores[0] - score));
        assert!((found - expected).abs() < 1e-3, "{hit}: {found} for {expected}");
    }
    let sponge = results.iter().find(|hit| hit["id"] == "sponge").unwrap();
    assert_eq!(sponge["text"], "The robot mops the floor.");
    for part in ["tokenise", "encode", "search"] {
        assert!(answer["timing_ms"][part].as_f64().unwrap() >= 0.0, "{answer}");
    }
    let page = query(&bundle, &out, &["Oh dear, coffee!", "-k", "2"]).done();
    assert_eq!(page.stdout.matches(" %  ").count(), 2, "{}", page.stdout);
    assert!(page.stderr.contains("search"), "{}", page.stderr);
}

/// A robot's process speaks lines; a bad line in the middle must cost an error line and nothing else.
#[test]
fn a_stream_answers_a_line_for_each_line() {
    let shared = Shared::get();
    let mut command = program("runtime");
    command
        .args(["query", "--stdin", "--warm-up", "--bundle", text(&shared.path("bundle"))])
        .args(["--index", text(&shared.path("index")), "-k", "2"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let lines: [&[u8]; 7] = [
        br#"{"query": "It is dusk again in here.", "k": 3, "id": 41}"#,
        b"",
        br#"{"query": "#,
        br#"{"query": "   "}"#,
        br#"{"query": "blood", "k": 0, "id": "z"}"#,
        b"\xff\xfe",
        br#"{"query": "blood"}"#,
    ];
    input.write_all(&lines.join(&b'\n')).unwrap();
    drop(input);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let answers: Vec<Value> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(answers.len(), 6, "{answers:?}");
    assert_eq!((answers[0]["id"].as_i64(), answers[0]["results"].as_array().unwrap().len()), (Some(41), 3));
    for (answer, line, words) in [
        (&answers[1], 3, "line 3: not a JSON object"),
        (&answers[2], 4, "the query is empty"),
        (&answers[3], 5, "k is 0"),
        (&answers[4], 6, "line 6: not a JSON object"),
    ] {
        assert_eq!(answer["line"], line, "{answer}");
        assert!(answer["error"].as_str().unwrap().contains(words), "{answer}");
    }
    assert_eq!(answers[3]["id"], "z");
    assert_eq!(answers[5]["results"].as_array().unwrap().len(), 2);
}

/// A flipped byte in any file of a bundle would change answers without a word; a missing file would crash.
#[test]
fn a_damaged_bundle_is_refused_by_file() {
    let shared = Shared::get();
    let files = listing(&shared.path("bundle"));
    let names: Vec<String> =
        files.keys().map(|file| file.file_name().unwrap().to_string_lossy().into_owned()).collect();
    assert!(names.len() >= 6, "{names:?}");
    for name in &names {
        for damage in ["flipped", "cut short", "missing"] {
            let dir = fresh(&["bundle"]);
            let bundle = dir.path().join("bundle");
            let file = bundle.join(name);
            let mut bytes = fs::read(&file).unwrap();
            let middle = bytes.len() / 2;
            match damage {
                "flipped" => {
                    bytes[middle] ^= 0x10;
                    fs::write(&file, bytes).unwrap();
                }
                "cut short" => fs::write(&file, &bytes[..middle]).unwrap(),
                _ => fs::remove_file(&file).unwrap(),
            }
            let asked = query(&bundle, &shared.path("index"), &["dusk"]);
            assert_eq!(asked.code, Some(2), "{name} {damage}: {}{}", asked.stdout, asked.stderr);
            asked.refused(&["bundle"]);
        }
    }
}

/// Everything that can be typed wrongly or lie about wrongly, each with the words that help.
#[test]
fn wrong_turns_are_refused_in_one_sentence() {
    let shared = Shared::get();
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let write = |name: &str, text: &str| {
        fs::write(at(name), text).unwrap();
        at(name)
    };
    let good = r#"{"_id": "a", "title": "A", "text": "x"}"#;
    let (bundle, corpus) = (shared.path("bundle"), shared.path("corpus.jsonl"));
    let out = at("out");
    let broken = write("broken.jsonl", &format!("{good}\n{{\"_id\": \"b\", \"text\": \n"));
    let twice = write("twice.jsonl", &format!("{good}\n\n{good}\n"));
    let blank = write("blank.jsonl", "{\"_id\": \"a\", \"text\": \"  \"}\n");
    let empty = write("empty.jsonl", "");
    for (documents, words) in [
        (&at("absent.jsonl"), vec!["absent.jsonl", "No such file"]),
        (&broken, vec!["broken.jsonl:2", "not a JSON object"]),
        (&twice, vec!["twice.jsonl:3", "`a`", "line 1"]),
        (&blank, vec!["blank.jsonl:1", "nothing to encode"]),
        (&empty, vec!["empty.jsonl", "no documents"]),
    ] {
        index(&bundle, documents, &out).refused(&words);
    }
    index(&at("nowhere"), &corpus, &out).refused(&["nowhere", "bundle"]);
    index(&shared.path("student"), &corpus, &out).refused(&["student", "manifest.json"]);
    query(&bundle, &at("nowhere"), &["dusk"]).refused(&["nowhere", "no such directory"]);
    query(&bundle, &bundle, &["dusk"]).refused(&["documents.sqlite"]);
    query(&bundle, &shared.path("index"), &["  "]).refused(&["the query is empty"]);
    query(&bundle, &shared.path("index"), &["dusk", "-k", "0"]).refused(&["-k is 0"]);
    query(&bundle, &shared.path("index"), &[]).refused(&["TEXT"]);
    let store = ["query", "--bundle", text(&bundle), "--store", "postgres://robot:s3cret@db/skills", "dusk"];
    let refused = run("runtime", &store);
    assert!(!refused.stderr.contains("s3cret"), "{}", refused.stderr);
    refused.refused(&["built without databases", "--features postgres"]);
    query(&bundle, &shared.path("index"), &["dusk", "--ort-dylib", text(&corpus)])
        .refused(&["corpus.jsonl", "cannot be loaded as ONNX Runtime"]);
    query(&bundle, &shared.path("index"), &["dusk", "--ort-dylib", text(&at("lib.so"))])
        .refused(&["lib.so", "there is no such file"]);
    assert!(!out.exists());
}

/// An index answers for the encoder that made it and no other.
#[test]
fn an_index_of_another_bundle_is_refused() {
    let shared = Shared::get();
    let dir = tempfile::tempdir().unwrap();
    write_student(&dir.path().join("student"), Form::Gated, Residual::Pooled, 8);
    let other = dir.path().join("bundle");
    export(&dir.path().join("student"), &other, &["--allow-degraded"]).done();
    query(&other, &shared.path("index"), &["dusk"]).refused(&["index", "document digest"]);
    let more = dir.path().join("more.jsonl");
    let document = Document { id: "new".into(), title: String::new(), text: "x".into() };
    write_documents(&more, &[document]);
    let index_dir = fresh(&["index"]);
    let before = listing(index_dir.path());
    index(&other, &more, &index_dir.path().join("index")).refused(&["document digest"]);
    assert_eq!(listing(index_dir.path()).keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>());
}

/// Flipped bits on a robot's card must not become answers.
#[test]
fn a_damaged_index_is_refused_or_answers_as_before() {
    let shared = Shared::get();
    let bundle = shared.path("bundle");
    let ask = |index: &Path| query(&bundle, index, &["Is that crumbs?", "-k", "12", "--json"]);
    let expected = ask(&shared.path("index")).done().json()["results"].clone();
    let database = shared.path("index").join("documents.sqlite");
    let bytes = fs::read(&database).unwrap();
    let mut refused = 0;
    for part in 0..24 {
        let dir = fresh(&["index"]);
        let mut bytes = bytes.clone();
        let place = bytes.len() * (2 * part + 1) / 48;
        bytes[place] ^= 0x41;
        fs::write(dir.path().join("index/documents.sqlite"), bytes).unwrap();
        let asked = ask(&dir.path().join("index"));
        if asked.code == Some(0) {
            // Free space of a page: nobody reads it.
            assert_eq!(asked.json()["results"], expected, "byte {place}");
        } else {
            asked.refused(&["documents.sqlite"]);
            refused += 1;
        }
    }
    assert!(refused > 0, "no flipped byte was noticed");
    let dir = fresh(&["index"]);
    fs::write(dir.path().join("index/documents.sqlite"), &bytes[..bytes.len() / 2]).unwrap();
    ask(&dir.path().join("index")).refused(&["documents.sqlite"]);
}

/// A student that contradicts itself would become a bundle that answers plausibly and wrongly.
#[test]
fn export_refuses_what_it_cannot_stand_for() {
    type Damage = fn(&Path);
    let cases: [(&str, Damage, &[&str]); 7] = [
        (
            "architecture",
            |dir| {
                edit_json(&dir.join("config.json"), |c| {
                    c["architectures"] = json!(["GPT2LMHeadModel"]);
                    c["model_type"] = json!("gpt2");
                })
            },
            &["GPT2LMHeadModel", "LlamaForCausalLM"],
        ),
        (
            "shape",
            |dir| edit_json(&dir.join("config.json"), |c| c["intermediate_size"] = json!(72)),
            &["mlp.", "72"],
        ),
        ("cut weights", |dir| shorten(&dir.join("model.safetensors")), &["model.safetensors"]),
        ("cut predictor", |dir| shorten(&dir.join("predictor.safetensors")), &["predictor.safetensors"]),
        ("tokenizer", |dir| fs::write(dir.join("tokenizer.json"), "{}").unwrap(), &["tokenizer.json"]),
        (
            "choice",
            |dir| {
                edit_json(&dir.join("prompt.json"), |p| {
                    p["choices"]["positive"] = json!("Yes, certainly and without doubt");
                })
            },
            &["choice", "tokens"],
        ),
        ("no student", |dir| fs::remove_file(dir.join("student.json")).unwrap(), &["student.json"]),
    ];
    for (name, damage, words) in cases {
        let dir = fresh(&["student"]);
        damage(&dir.path().join("student"));
        let before = listing(dir.path());
        let ended = export(&dir.path().join("student"), &dir.path().join("bundle"), &["--allow-degraded"]);
        assert_eq!(ended.code, Some(2), "{name}: {}", ended.stderr);
        ended.refused(words);
        assert_eq!(listing(dir.path()), before, "{name}");
    }
    let dir = fresh(&["student"]);
    // Zeros as golden numbers: parity is not held, and without the flag nothing is written.
    export(&dir.path().join("student"), &dir.path().join("bundle"), &[]).refused(&["parity"]);
    assert!(!dir.path().join("bundle").exists());
    fs::create_dir(dir.path().join("bundle")).unwrap();
    fs::write(dir.path().join("bundle/mine.txt"), "x").unwrap();
    export(&dir.path().join("student"), &dir.path().join("bundle"), &["--allow-degraded"])
        .refused(&["bundle"]);
    assert_eq!(fs::read(dir.path().join("bundle/mine.txt")).unwrap(), b"x");
}

fn shorten(file: &Path) {
    let bytes = fs::read(file).unwrap();
    fs::write(file, &bytes[..bytes.len() * 2 / 3]).unwrap();
}

/// ONNX Runtime reads more than the standard allows; other engines and tools do not.
#[test]
fn graphs_keep_the_rules_of_the_onnx_checker() {
    let packages = repository().join(".deps/python");
    if !packages.exists() {
        eprintln!("skipped: no ONNX checker in .deps/python, run `make setup-python-tests`");
        return;
    }
    let shared = Shared::get();
    let dir = tempfile::tempdir().unwrap();
    let int8 = dir.path().join("int8");
    export(&shared.path("student"), &int8, &["--precision", "int8", "--allow-degraded"]).done();
    for bundle in [&shared.path("bundle"), &int8] {
        let mut command = Command::new(std::env::var_os("PYTHON").unwrap_or_else(|| "python3".into()));
        command.env("PYTHONPATH", &packages).arg(repository().join("tests/check_onnx.py"));
        command.args([bundle.join("encoder.onnx"), bundle.join("predictor.onnx")]);
        let checked = finish(&mut command).done();
        assert_eq!(checked.stdout.lines().count(), 2, "{}", checked.stdout);
    }
}

/// `doctor` is what support asks for first: a line for each thing, and an exit code for scripts.
#[test]
fn doctor_tells_what_works_and_what_does_not() {
    let shared = Shared::get();
    let doctor = |bundle: &Path, more: &[&str]| {
        run(
            "runtime",
            &[&["doctor", "--bundle", text(bundle), "--index", text(&shared.path("index"))], more].concat(),
        )
    };
    let well = doctor(&shared.path("bundle"), &[]);
    for line in ["pass  processor", "pass  onnxruntime", "pass  bundle", "pass  encoder", "pass  index"] {
        assert!(well.stdout.contains(line), "{}\n{}", well.stdout, well.stderr);
    }
    let dir = fresh(&["bundle"]);
    fs::write(dir.path().join("bundle/encoder.onnx"), "x").unwrap();
    let ill = doctor(&dir.path().join("bundle"), &[]);
    assert_eq!(ill.code, Some(2));
    assert!(ill.stdout.contains("fail  bundle") && ill.stdout.contains("encoder.onnx"), "{}", ill.stdout);
    let without = doctor(&shared.path("bundle"), &["--ort-dylib", "/dev/null"]);
    assert_eq!(without.code, Some(2));
    assert!(without.stdout.contains("fail  onnxruntime"), "{}", without.stdout);
}

/// What `--help` promises must exist, and a pipe that closes early is no error.
#[test]
fn help_names_every_command() {
    for (name, commands) in [
        (
            "runtime",
            &[
                "index", "encode", "query", "remove", "serve", "keygen", "snapshot", "apply", "stats",
                "check", "doctor", "bench",
            ][..],
        ),
        ("export", &["--onnx", "--precision"]),
    ] {
        let help = run(name, &["--help"]).done();
        for command in commands {
            assert!(help.stdout.contains(command), "{name} --help lacks {command}:\n{}", help.stdout);
        }
        let version = run(name, &["--version"]).done();
        assert!(version.stdout.contains(env!("CARGO_PKG_VERSION")), "{}", version.stdout);
        let mut command = program(name);
        command.arg("--no-such-flag");
        finish(&mut command).refused(&["--no-such-flag"]);
    }
}

/// What is measured must be what is said: every search finds the exact scan's documents, and times are times.
#[test]
fn benches_tell_what_searching_and_answering_cost() {
    let dir = tempfile::tempdir().unwrap();
    let numbers = dir.path().join("numbers.json");
    let read = || -> Value { serde_json::from_str(&fs::read_to_string(&numbers).unwrap()).unwrap() };
    for form in ["gated", "relu"] {
        let shape = ["--documents", "300", "--dimensions", "24", "--queries", "9", "--form", form];
        let found =
            run("runtime", &[&["bench", "search", "--json", text(&numbers)], &shape[..]].concat()).done();
        let lines = read().as_array().unwrap().clone();
        let searches: Vec<&str> = lines.iter().map(|line| line["search"].as_str().unwrap()).collect();
        assert_eq!(searches, ["exact, f32", "exact, f16", "exact, int8", "graph, f16"]);
        for line in &lines {
            assert!(found.stdout.contains(line["search"].as_str().unwrap()), "{}", found.stdout);
            assert!(
                line["recall"].as_f64().unwrap() >= 0.95 && line["latency_ms"]["p50"].as_f64().unwrap() > 0.0,
                "{line}"
            );
        }
        let bytes = |line: usize| lines[line]["file_bytes_per_document"].as_f64().unwrap();
        assert!(bytes(2) < bytes(1) && bytes(1) < bytes(0));
    }
    let shared = Shared::get();
    let (bundle, index) = (shared.path("bundle"), shared.path("index"));
    let query =
        ["bench", "query", "--bundle", text(&bundle), "--index", text(&index), "--json", text(&numbers)];
    run("runtime", &[&query[..], &["--seconds", "0.1", "--batch", "3"]].concat()).done();
    let told = read();
    for number in ["first_answer_seconds", "p50_ms", "queries_per_second", "queries_per_second_in_batches"] {
        assert!(told[number].as_f64().unwrap() > 0.0, "{told}");
    }
    assert!(told["p99_ms"].as_f64() >= told["p50_ms"].as_f64() && told["documents"] == 12, "{told}");
    run("runtime", &[&query[..], &["--batch", "0"]].concat()).refused(&["--batch must be at least 1"]);
}

/// Above 20,000 documents the graph answers, through changes, filters and a damaged file, and says how well.
#[test]
fn a_large_index_is_answered_from_the_graph() {
    let dir = fresh(&["bundle"]);
    let (bundle, documents, out) =
        (dir.path().join("bundle"), dir.path().join("d.jsonl"), dir.path().join("index"));
    let words = [
        "spill", "crumbs", "bell", "dark", "wall", "clock", "cat", "bed", "tea", "soup", "rug", "key", "lamp",
    ];
    let line = |i: usize| {
        // Words and their number by a small generator, so that hardly any two documents have the same ones.
        let mut state = i as u64;
        let mut next = |n: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % n
        };
        let text: Vec<&str> = (0..4 + next(9)).map(|_| words[next(words.len())]).collect();
        let metadata = json!({ "third": i % 3 });
        json!({ "_id": format!("d{i}"), "text": text.join(" "), "metadata": metadata }).to_string() + "\n"
    };
    fs::write(&documents, (0..20_300).map(line).collect::<String>()).unwrap();
    index(&bundle, &documents, &out).done();
    let asked = |more: &[&str]| -> Value {
        let found = query(&bundle, &out, &[&["--json", "-k", "5", "spill bell"], more].concat()).done();
        serde_json::from_str(&found.stdout).unwrap()
    };
    let (graph, exact) = (asked(&[]), asked(&["--exact"]));
    assert_eq!((&graph["path"], &exact["path"]), (&json!("graph"), &json!("exact")));
    assert_eq!(graph["results"][0], exact["results"][0]);
    // In whatever precision documents are searched, the same ones are found with the same scores.
    for precision in ["f32", "f16", "int8"] {
        for (path, asked) in [
            ("graph", asked(&["--vectors", precision])),
            ("exact", asked(&["--vectors", precision, "--exact"])),
        ] {
            assert_eq!((&asked["path"], &asked["results"]), (&json!(path), &exact["results"]), "{precision}");
        }
    }
    // A filter that leaves few is answered by the scan.
    let third = asked(&["--filter", "third=1"]);
    assert_eq!(third["path"], "exact");
    assert!(third["results"].as_array().unwrap().iter().all(|hit| hit["metadata"]["third"] == 1));

    let arguments = |command: &'static str| {
        [command, "--bundle", text(&bundle), "--index", text(&out)].map(str::to_owned)
    };
    let check = |more: &[&str]| {
        let all: Vec<String> =
            arguments("check").into_iter().chain(more.iter().map(|s| (*s).to_owned())).collect();
        run("runtime", &all)
    };
    let found = check(&["--sample", "30", "--recall", "0.9"]);
    eprintln!("{}", found.stdout);
    let found = found.done();
    assert!(found.stdout.contains("recall@10 ") && found.stdout.contains("30 queries"), "{}", found.stdout);
    check(&["--recall", "1.5"]).refused(&["--recall 1.5"]);
    let doctor = || run("runtime", &arguments("doctor")).done().stdout;
    assert!(
        doctor().contains("0 generations behind, recall 0.9") || doctor().contains("recall 1.0"),
        "{}",
        doctor()
    );

    // What is removed is not found, what is added is; the graph catches up without being built anew.
    let best = graph["results"][0]["id"].as_str().unwrap().to_owned();
    let removed: Vec<String> = arguments("remove").into_iter().chain([best.clone()]).collect();
    run("runtime", &removed).done();
    fs::write(&documents, line(77_777)).unwrap();
    let said = index(&bundle, &documents, &out).done().stderr;
    assert!(!said.contains("building"), "{said}");
    let after = asked(&[]);
    assert!(
        after["path"] == "graph"
            && after["results"].as_array().unwrap().iter().all(|hit| hit["id"] != best.as_str())
    );
    assert!(doctor().contains("2 generations behind"), "{}", doctor());

    // A damaged graph is built anew and said so.
    let files = fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().path());
    let file = files.into_iter().find(|path| path.extension().is_some_and(|e| e == "usearch")).unwrap();
    shorten(&file);
    let rebuilt = query(&bundle, &out, &["--json", "-k", "5", "spill bell"]).done();
    assert!(
        rebuilt.stderr.contains("damaged") && rebuilt.stderr.contains("rebuilding"),
        "{}",
        rebuilt.stderr
    );
    let rebuilt: Value = serde_json::from_str(&rebuilt.stdout).unwrap();
    assert_eq!(rebuilt["results"][0], after["results"][0]);
    // So are the vectors that are mapped; once, then they are as they were.
    shorten(&out.join("rows.safetensors"));
    for damaged in [true, false] {
        let read = query(&bundle, &out, &["--json", "-k", "5", "spill bell"]).done();
        assert_eq!(read.stderr.contains("rows.safetensors: damaged"), damaged, "{}", read.stderr);
        let read: Value = serde_json::from_str(&read.stdout).unwrap();
        assert_eq!(read["results"], rebuilt["results"]);
    }
    assert!(doctor().contains("0 generations behind"), "{}", doctor());
}
