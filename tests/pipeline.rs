//! The whole chain as users start it: on a tiny model in every detail, and once on the real language model.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

#[path = "pipeline/latent.rs"]
mod latent;

use models::beir::{BeirData, Purpose};
use models::files::read_json;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tests::data::write_data;
use tests::model::{copy_dir, edit_json, write_hugging_face, write_model};
use tests::onnx::write_onnx_embedding;
use tests::program::{Finished, listing, program, run};
use tests::repository;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A tiny teacher's flags: a few seconds, every part of the loop.
const TEACH: &[&str] = &[
    "--steps",
    "6",
    "--warmup",
    "2",
    "--accumulate",
    "2",
    "--batch-queries",
    "3",
    "--batch-documents",
    "4",
    "--lr",
    "1e-3",
    "--lora-rank",
    "4",
    "--eval-every",
    "3",
    "--dev-queries",
    "4",
    "--dev-candidates",
    "5",
    "--save-every",
    "2",
    "--dtype",
    "f32",
    "--threads",
    "1",
];

/// A tiny student's flags.
const DISTIL: &[&str] = &[
    "--steps",
    "30",
    "--batch-queries",
    "8",
    "--target-queries",
    "12",
    "--candidates",
    "4",
    "--rounds",
    "2",
    "--inner-dimensions",
    "16",
    "--eval-every",
    "10",
    "--save-every",
    "7",
    "--dtype",
    "f32",
    "--threads",
    "1",
];

fn teach(model: &Path, data: &Path, out: &Path, more: &[&str]) -> Finished {
    let paths = ["teacher", "--model", text(model), "--data", text(data), "--out", text(out)];
    run("train", &[&paths, TEACH, more].concat())
}

fn distil(teacher: &Path, data: &Path, out: &Path, more: &[&str]) -> Finished {
    let paths = ["distill", "--teacher", text(teacher), "--data", text(data), "--out", text(out)];
    run("train", &[&paths, DISTIL, more].concat())
}

/// Model, data, teacher and student, made once.
struct Chain {
    dir: TempDir,
}

impl Chain {
    fn get() -> &'static Self {
        static CHAIN: OnceLock<Chain> = OnceLock::new();
        CHAIN.get_or_init(|| {
            let chain = Self { dir: tempfile::tempdir().unwrap() };
            write_hugging_face(&chain.path("hf"), 1);
            write_data(&chain.path("data"));
            let imported = run(
                "train",
                &["import", "--from", text(&chain.path("hf")), "--out", text(&chain.path("llm"))],
            )
            .done();
            assert_eq!(imported.stdout.trim(), text(&chain.path("llm")));
            teach(&chain.path("llm"), &chain.path("data"), &chain.path("teacher"), &[]).done();
            distil(&chain.path("teacher"), &chain.path("data"), &chain.path("student"), &[]).done();
            chain
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

/// Import, teach, distil, measure, export, index, ask: what one program writes, the next one reads, and the student that
/// `eval` measures is the one that answers.
#[test]
fn every_program_reads_what_the_one_before_wrote() {
    let chain = Chain::get();
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let measured = run(
        "train",
        &[
            "eval",
            "--data",
            text(&chain.path("data")),
            "--split",
            "dev,test",
            "--bm25",
            "--zero-shot",
            text(&chain.path("llm")),
            "--teacher",
            text(&chain.path("teacher")),
            "--student",
            text(&chain.path("student")),
            "--json",
            text(&at("eval.json")),
            "--runs",
            text(&at("runs")),
            "--dtype",
            "f32",
        ],
    )
    .done();
    for system in ["BM25", "student", "teacher zero-shot", "teacher"] {
        assert!(measured.stdout.contains(&format!("| {system}")), "{}", measured.stdout);
    }
    let numbers: Value = models::files::read_json(&at("eval.json")).unwrap();
    for system in ["BM25", "student", "teacher zero-shot", "teacher"] {
        for split in ["dev", "test"] {
            let entry = &numbers["splits"][split][system];
            assert_eq!(entry["queries"], 12, "{numbers}");
            for metric in ["Recall@1", "Recall@3", "Recall@10", "MRR@10", "nDCG@10"] {
                let value = entry["metrics"][metric].as_f64().unwrap();
                assert!((0.0..=1.0).contains(&value), "{system} {metric} {value}");
            }
        }
    }
    // The needs name no skill: a lexical search can only guess.
    assert!(numbers["splits"]["test"]["BM25"]["metrics"]["Recall@1"].as_f64().unwrap() < 0.5, "{numbers}");

    for form in ["", "int8"] {
        let (bundle, index) = (at(&format!("bundle{form}")), at(&format!("index{form}")));
        let precision = if form.is_empty() { "fp32" } else { form };
        // A random model has rankings that eight bits move; that is not what is looked at here.
        let degraded: &[&str] = if form.is_empty() { &[] } else { &["--allow-degraded"] };
        let student = chain.path("student");
        let flags = ["--onnx", "--student", text(&student), "--out", text(&bundle), "--precision", precision];
        run("export", &[&flags, degraded].concat()).done();
        let corpus = chain.path("data").join("corpus.jsonl");
        run(
            "runtime",
            &["index", "--bundle", text(&bundle), "--documents", text(&corpus), "--out", text(&index)],
        )
        .done();
    }
    let (teacher, reranker) = (chain.path("teacher"), at("reranker"));
    let flags = ["--onnx", "--reranker", text(&teacher), "--out", text(&reranker)];
    let exported = run("export", &flags).done();
    assert!(exported.stderr.contains("top-1 agreement 100.0%"), "{}", exported.stderr);
    // The same rankings from the run files that libtorch wrote and from the runtime.
    let data = BeirData::open(&chain.path("data")).unwrap();
    let (bundle, index) = (at("bundle"), at("index"));
    let reranked = ["--reranker", text(&reranker), "--rerank", "12"];
    for (system, score, more) in [("student", "score", &[][..]), ("teacher", "rerank_score", &reranked[..])] {
        let lines = run_file(&at("runs"), &format!("test-{system}"));
        for id in ["q00-4", "q07-4", "q11-4"] {
            let query = &data.queries[data.query_index[id]].text;
            let ask =
                ["query", "--bundle", text(&bundle), "--index", text(&index), query, "-k", "12", "--json"];
            let answer = run("runtime", &[&ask, more].concat()).done().json();
            let found: Vec<(String, f64)> = answer["results"]
                .as_array()
                .unwrap()
                .iter()
                .map(|hit| (hit["id"].as_str().unwrap().to_owned(), hit[score].as_f64().unwrap()))
                .collect();
            let expected: Vec<(String, f64)> = lines
                .lines()
                .map(|line| line.split(' ').collect::<Vec<_>>())
                .filter(|fields| fields[0] == id)
                .map(|fields| (fields[2].to_owned(), fields[4].parse().unwrap()))
                .collect();
            assert_eq!((found.len(), expected.len()), (12, 12));
            for ((found, score), (expected, target)) in found.iter().zip(&expected) {
                let near = (score - target).abs();
                assert!(near <= 1e-3 * (1.0 + target.abs()), "{system}, {id}: {score} for {target}");
                assert!(found == expected || near < 1e-4, "{system}, {id}: {found} for {expected}");
            }
        }
    }
}

/// The run file of this name that `train eval --runs` wrote.
fn run_file(runs: &Path, name: &str) -> String {
    fs::read_to_string(runs.join(format!("{name}.trec"))).unwrap()
}

/// A run that was killed, at any moment, ends with the same bytes as one that was not; else no long run could be trusted.
#[test]
fn a_killed_run_ends_with_the_same_bytes() {
    let chain = Chain::get();
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (llm, data, teacher) = (chain.path("llm"), chain.path("data"), chain.path("teacher"));
    let bytes = |path: PathBuf| fs::read(path).unwrap();

    teach(&llm, &data, &at("teacher"), &["--stop-after", "3"]).done();
    assert!(!at("teacher").exists() && at("teacher.state.safetensors").exists());
    teach(&llm, &data, &at("teacher"), &[]).refused(&["unfinished run", "--resume"]);
    teach(&llm, &data, &at("teacher"), &["--resume", "--seed", "5"]).refused(&["other settings", "seed"]);
    teach(&llm, &data, &at("teacher"), &["--resume"]).done();
    assert!(!at("teacher.state.safetensors").exists());
    assert!(bytes(at("teacher/model.safetensors")) == bytes(teacher.join("model.safetensors")));

    for (command, state, file) in [("teacher", "killed", "model"), ("distill", "student", "predictor")] {
        let from = if command == "teacher" { ("--model", &llm) } else { ("--teacher", &teacher) };
        let flags = if command == "teacher" { TEACH } else { DISTIL };
        let out = at(state);
        let start = || {
            let mut process = program("train");
            process.args([command, from.0, text(from.1), "--data", text(&data), "--out", text(&out)]);
            process.args(flags).arg("--resume").stdout(Stdio::null()).stderr(Stdio::null());
            process.spawn().unwrap()
        };
        let mut child = start();
        wait_for(&at(&format!("{state}.state.safetensors")));
        // SIGKILL: no handler, no clean-up.
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!out.exists(), "{command} ended before it was killed");
        assert!(start().wait().unwrap().success());
        let undisturbed = chain.path(if command == "teacher" { "teacher" } else { "student" });
        let name = format!("{file}.safetensors");
        assert!(bytes(out.join(&name)) == bytes(undisturbed.join(&name)), "{command}");
    }
}

/// Preferences, mined negatives, two data sets, averaged parameters and a config file: each changes what is trained, and
/// none may be lost by an interruption.
#[test]
fn a_teacher_by_preference_from_a_config_file_survives_an_interruption() {
    let chain = Chain::get();
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    copy_dir(&chain.path("data"), &at("others"));
    let config = at("run.toml");
    let data = [text(&chain.path("data")).to_owned(), format!("{}=2", text(&at("others")))];
    let toml = format!(
        "data = [{:?}, {:?}]\nmodel = {:?}\nobjective = \"dpo\"\nbeta = 0.5\nlabel_smoothing = 0.1\nnegatives = \"bm25\"\n\
         ema_decay = 0.5\nsteps = 4\nwarmup = 1\nbatch_queries = 3\nbatch_documents = 4\nlora_rank = 2\n\
         lora_targets = [\"q_proj\", \"v_proj\"]\neval_every = 2\ndev_queries = 4\ndev_candidates = 5\nsave_every = 1\n\
         dtype = \"f32\"\nthreads = 1\n",
        data[0],
        data[1],
        text(&chain.path("teacher"))
    );
    fs::write(&config, toml).unwrap();
    let train = |out: &str, more: &[&str]| {
        let out = at(out);
        let flags = ["teacher", "--config", text(&config), "--out", text(&out)];
        run("train", &[&flags, more].concat())
    };
    train("whole", &[]).done();
    train("cut", &["--stop-after", "3"]).done();
    // The reference is what the run started from, not what it had become when it was cut.
    fs::remove_dir_all(at("cut.cache")).unwrap();
    train("cut", &["--resume"]).done();
    let weights = |name: &str| fs::read(at(name).join("model.safetensors")).unwrap();
    assert!(weights("whole") == weights("cut"));
    assert!(weights("whole") != fs::read(chain.path("teacher/model.safetensors")).unwrap());
    let state: Value = models::files::read_json(&at("whole/train_state.json")).unwrap();
    let first = &state["history"]["steps"][0];
    // At the start policy and reference are one model: every preference is at ln 2.
    assert!((first["dpo"].as_f64().unwrap() - 2f64.ln()).abs() < 1e-4, "{first}");
    assert_eq!(state["settings"]["data"][1]["weight"], 2.0);
    assert!(state["history"]["best_step"].as_u64().is_some());

    train("other", &["--patience", "1", "--eval-every", "0"]).refused(&["--patience 1", "--eval-every"]);
    train("other", &["--ema-decay", "1.5"]).refused(&["--ema-decay is 1.5"]);
    train("other", &["--data", text(&at("others")), "--data", text(&at("others"))])
        .refused(&["two data sets are called `others`"]);
    train("other", &["--lora-targets", "q_porj"]).refused(&["q_porj"]);
    let slip = at("slip.toml");
    fs::write(&slip, "[teacher]\nstpes = 4\n").unwrap();
    run("train", &["teacher", "--config", text(&slip)]).refused(&["slip.toml", "`stpes` is no flag"]);
}

/// `metrics.jsonl` without what depends on the machine and the hour.
fn recorded(run: &Path) -> Vec<Value> {
    let lines = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let mut records: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for record in &mut records {
        let fields = record.as_object_mut().unwrap();
        assert!(fields.remove("seconds").is_some() && fields.remove("time").is_some(), "{lines}");
        fields.remove("tokens_per_second");
    }
    records
}

/// Interrupted runs have recorded steps that they make again; were these kept, or others lost, the curves that decisions
/// are taken by would tell of a run that never was. And what was recorded is what `train compare` shows.
#[test]
fn an_interrupted_run_has_the_records_of_an_undisturbed_one() {
    let chain = Chain::get();
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (llm, data, teacher) = (chain.path("llm"), chain.path("data"), chain.path("teacher"));
    for (name, evaluations, steps) in [("teacher", 2, 6), ("student", 3, 30)] {
        let start = |more: &[&str]| {
            if name == "teacher" {
                teach(&llm, &data, &at(name), more)
            } else {
                distil(&teacher, &data, &at(name), more)
            }
        };
        let unfinished = at(&format!("{name}.run"));
        start(&["--stop-after", "3"]).done();
        assert!(unfinished.join("config.json").exists() && !at(name).exists());
        // As if the run had gone on after its last saved state, and been killed in the middle of a line.
        let file = unfinished.join("metrics.jsonl");
        let lost = fs::read_to_string(&file).unwrap()
            + "{\"step\":4,\"split\":\"train\",\"loss\":99.0}\n{\"step\":5,\"sp";
        fs::write(&file, lost).unwrap();
        start(&["--resume"]).done();
        assert!(!unfinished.exists());

        let undisturbed = recorded(&chain.path(name).join("run"));
        assert_eq!(undisturbed.len(), evaluations + steps);
        assert_eq!(undisturbed.last().unwrap()["split"], "dev");
        assert_eq!(recorded(&at(name).join("run")), undisturbed);
        let files = listing(&at(name).join("run"));
        let has = |part: &str| files.keys().any(|file| text(file).contains(part));
        assert!(
            has("loss.svg") && has("dev.svg") && has("events.out.tfevents.") && files.len() == 5,
            "{files:?}"
        );
    }

    teach(&llm, &data, &at("heavier"), &["--weight-decay", "0.5"]).done();
    let (resumed, heavier, run_dir) = (at("teacher"), at("heavier"), chain.path("teacher").join("run"));
    let runs = [text(&resumed), text(&heavier), text(&run_dir)];
    let (report, plot) = (at("compared.json"), at("compared.svg"));
    let outputs = ["--json", text(&report), "--plot", text(&plot), "--metric", "nDCG@10"];
    let shown = run("train", &[&["compare"], &runs[..], &outputs].concat()).done().stdout;
    let row = |name: &str| shown.lines().find(|line| line.starts_with(&format!("| {name} ")));
    let decays: Vec<&str> = row("weight_decay").unwrap().split_whitespace().collect();
    assert_eq!(decays, ["|", "weight_decay", "|", "0.01", "|", "0.5", "|", "0.01", "|"]);
    assert!(row("fit.seed").is_none() && row("final loss").is_some(), "{shown}");
    let compared: Value = models::files::read_json(&report).unwrap();
    assert_eq!(compared["runs"][1]["settings"], json!({ "weight_decay": 0.5 }));
    let last = recorded(&run_dir).pop().unwrap();
    assert_eq!(compared["runs"][0]["results"]["dev"]["MRR@10"]["last"]["value"], last["MRR@10"]);
    assert!(fs::read_to_string(&plot).unwrap().contains(text(&heavier)));
    run("train", &["compare", text(&data)]).refused(&["no records of a run", "metrics.jsonl"]);
    let unknown = ["compare", runs[0], "--plot", text(&plot), "--metric", "MAP"];
    run("train", &unknown).refused(&["--metric MAP", "MRR@10"]);
}

/// Baselines, costs, differences and probabilities in one table, and the same differences from the run files: numbers that
/// a paper or a purchase is decided on, so every part of them must be there, agree with the others, and come twice alike.
#[test]
fn a_table_says_what_systems_are_worth_and_whether_they_differ() {
    let chain = Chain::get();
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (data, llm, student) = (chain.path("data"), chain.path("llm"), chain.path("student"));
    write_onnx_embedding(&at("embedding"), None);
    let reranked = "teacher, reranking student top 4";
    let measure = |json: &str, more: &[&str]| {
        let (json, lines, runs) = (at(json), at("queries.jsonl"), at("runs"));
        let (teacher, embedding) = (chain.path("teacher"), at("embedding"));
        let flags = ["eval", "--data", text(&data), "--split", "dev,test", "--bm25", "--dtype", "f32"];
        let systems =
            ["--llm-cosine", text(&llm), "--onnx-embedding", text(&embedding), "--student", text(&student)];
        let rerank = ["--teacher", text(&teacher), "--candidates", "4"];
        let out = ["--json", text(&json), "--per-query", text(&lines), "--runs", text(&runs)];
        run("train", &[&flags[..], &systems, &rerank, &out, more].concat())
    };
    let told = measure("eval.json", &["--significance", "--baseline", "student", "--calibration"]).done();
    for words in
        ["ms/query", "dev, against student", "expected calibration error", "test, student's first 10"]
    {
        assert!(told.stdout.contains(words), "lacks {words:?}\n{}", told.stdout);
    }
    let numbers: Value = models::files::read_json(&at("eval.json")).unwrap();
    let systems = ["BM25", "LLM cosine", "ONNX embedding", "student", reranked];
    let lines = fs::read_to_string(at("queries.jsonl")).unwrap();
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2 * systems.len() * 12);
    for system in systems {
        let entry = &numbers["splits"]["test"][system];
        let of_system = lines.iter().filter(|line| line["split"] == "test" && line["system"] == system);
        let sum: f64 = of_system.map(|line| line["nDCG@10"].as_f64().unwrap()).sum();
        assert!((entry["metrics"]["nDCG@10"].as_f64().unwrap() - sum / 12.0).abs() < 1e-9, "{system}");
        assert!(entry["milliseconds_per_query"].as_f64().unwrap() > 0.0, "{system}");
    }
    // What the teacher was not shown stays where the student had put it: twelve documents, four of them read.
    let recall = |system: &str| numbers["splits"]["test"][system]["metrics"]["Recall@10"].as_f64().unwrap();
    assert_eq!(recall(reranked), recall("student"), "{numbers}");
    let trec = |name: &str| at("runs").join(format!("test-{name}.trec"));
    let run_of = |name: &str| -> Vec<Vec<String>> {
        let split = |line: &str| line.split(' ').map(str::to_owned).collect();
        fs::read_to_string(trec(name)).unwrap().lines().map(split).collect()
    };
    let (first, both) = (run_of("student"), run_of("teacher--reranking-student-top-4"));
    for (first, both) in first.chunks(12).zip(both.chunks(12)) {
        let ids = |lines: &[Vec<String>]| lines.iter().map(|fields| fields[2].clone()).collect::<Vec<_>>();
        assert_eq!(ids(&first[4..]), ids(&both[4..]));
        let sorted = |mut ids: Vec<String>| {
            ids.sort();
            ids
        };
        assert_eq!(sorted(ids(&first[..4])), sorted(ids(&both[..4])));
    }
    let calibration = &numbers["calibration"]["splits"]["test"];
    assert_eq!((&calibration["all"]["pairs"], &calibration["top"]["pairs"]), (&json!(144), &json!(120)));
    let share = |bin: &Value| bin["observed"].as_f64().unwrap() * bin["pairs"].as_f64().unwrap();
    let relevant: f64 = calibration["all"]["bins"].as_array().unwrap().iter().map(share).sum();
    assert!((relevant - 12.0).abs() < 1e-9, "{calibration}");

    let tested = at("significance.json");
    let (a, b) = (trec("student"), trec("bm25"));
    let flags = ["significance", "--data", text(&data), "--json", text(&tested), text(&a), text(&b)];
    run("train", &flags).done();
    let from_files: Value = models::files::read_json(&tested).unwrap();
    let found = numbers["significance"]["splits"]["test"].as_array().unwrap();
    let found: Vec<&Value> = found.iter().filter(|difference| difference["system"] == "BM25").collect();
    assert_eq!(found.len(), 5);
    for (found, read) in found.into_iter().zip(from_files["differences"].as_array().unwrap()) {
        for key in ["metric", "difference", "low", "high", "p"] {
            assert_eq!(found[key], read[key], "{key}");
        }
    }
    measure("again.json", &["--significance", "--baseline", "student", "--calibration"]).done();
    let again: Value = models::files::read_json(&at("again.json")).unwrap();
    assert_eq!(
        (&again["significance"], &again["calibration"]),
        (&numbers["significance"], &numbers["calibration"])
    );

    measure("no.json", &["--significance", "--baseline", "bm25"]).refused(&[
        "--baseline `bm25`: no such system",
        "`BM25`",
        reranked,
    ]);
    measure("no.json", &["--llm-cosine-layer", "9"]).refused(&["--llm-cosine-layer 9", "4 layers"]);
    let eval = |flags: &[&str]| run("train", &[&["eval", "--data", text(&data)], flags].concat());
    eval(&["--bm25", "--significance"]).refused(&["needs two systems or more, there are 1"]);
    eval(&["--bm25", "--calibration"]).refused(&["--student"]);
    write_onnx_embedding(&at("image"), Some("pixel_values"));
    let onnx = |path: &Path, more: &[&str]| eval(&[&["--onnx-embedding", text(path)], more].concat());
    onnx(&at("image"), &[]).refused(&["model.onnx: has an input `pixel_values`", "`token_type_ids`"]);
    onnx(&at("runs"), &[]).refused(&["runs: has neither model.onnx nor onnx/model.onnx"]);
    onnx(&at("eval.json"), &[]).refused(&["has no tokenizer.json"]);
    fs::write(at("embedding/onnx/model.onnx"), "no graph").unwrap();
    onnx(&at("embedding"), &[]).refused(&["model.onnx: ONNX Runtime cannot load the graph"]);

    let lines = fs::read_to_string(&a).unwrap();
    let compare = |line: &str| {
        let other = at("other.trec");
        fs::write(&other, lines.clone() + line).unwrap();
        run("train", &["significance", "--data", text(&data), text(&a), text(&other)])
    };
    compare("q00-4 Q0 sofa 13 0.5 x\n").refused(&["other.trec:145", "document `sofa`", "corpus.jsonl"]);
    compare("q99-4 Q0 lamp 13 0.5 x\n").refused(&["other.trec:145", "query `q99-4`", "queries.jsonl"]);
    compare("q00-4 Q0 lamp 13 high x\n")
        .refused(&["other.trec:145", "expected `qid Q0 docno rank sim run_id`"]);
    let split = ["significance", "--data", text(&data), "--split", "train", text(&a), text(&b)];
    run("train", &split).refused(&["test-student.trec", "no query of split `train`"]);
}

fn wait_for(file: &Path) {
    let started = Instant::now();
    while !file.exists() {
        assert!(started.elapsed() < Duration::from_secs(120), "{} never came", file.display());
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Both forms and both residuals go all the way, and a second run finds its latents and targets on disk.
#[test]
fn every_kind_of_student_is_distilled_and_exported() {
    let chain = Chain::get();
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("cache");
    for (form, residual) in [("relu", "last-token"), ("relu", "pooled"), ("gated", "last-token")] {
        let (student, bundle) = (dir.path().join(format!("{form}-{residual}")), dir.path().join("bundle"));
        let flags = ["--form", form, "--residual", residual, "--cache", text(&cache)];
        distil(&chain.path("teacher"), &chain.path("data"), &student, &flags).done();
        run("export", &["--onnx", "--student", text(&student), "--out", text(&bundle)]).done();
        fs::remove_dir_all(&bundle).unwrap();
    }
    // The papers' own student learns from the teacher alone, from its first step on.
    let (alone, bundle) = (dir.path().join("teacher-alone"), dir.path().join("bundle"));
    let flags = ["--supervised-weight", "0", "--cache", text(&cache)];
    distil(&chain.path("teacher"), &chain.path("data"), &alone, &flags).done();
    run("export", &["--onnx", "--student", text(&alone), "--out", text(&bundle)]).done();
    let nothing = dir.path().join("nothing");
    let (teacher, data) = (chain.path("teacher"), chain.path("data"));
    let paths = ["distill", "--teacher", text(&teacher), "--data", text(&data), "--out", text(&nothing)];
    let flags =
        ["--supervised-weight", "0", "--target-queries", "0", "--steps", "4", "--cache", text(&cache)];
    run("train", &[&paths[..], &flags].concat()).refused(&["there is nothing to learn"]);
    assert!(!nothing.exists());
    // With adapters on the query side each step runs the LLM; what is stored of it stays the frozen one's.
    let (adapted, bundle) = (dir.path().join("adapted"), dir.path().join("adapted-bundle"));
    let flags = ["--query-lora-rank", "2", "--cache", text(&cache)];
    distil(&chain.path("teacher"), &chain.path("data"), &adapted, &flags).done();
    assert!(adapted.join("query_adapter.safetensors").exists());
    run("export", &["--onnx", "--student", text(&adapted), "--out", text(&bundle)]).done();
    let data = chain.path("data");
    let eval = ["eval", "--data", text(&data), "--split", "dev", "--student", text(&adapted)];
    let printed = run("train", &eval).done().stdout;
    let kept: Value = read_json(&adapted.join("student.json")).unwrap();
    let recall = kept["provenance"]["metrics"]["dev"]["Recall@1"].as_f64().unwrap();
    // Measured by whoever reads the directory as by the run that wrote it.
    assert!(printed.contains(&format!("{recall:.3}")), "Recall@1 {recall}: {printed}");
    let sizes = |dir: &Path| listing(dir).into_values().collect::<Vec<_>>();
    let before = sizes(&cache);
    // Evaluation finds what training kept, but for queries that adapters read in their own way; the rankings are the same.
    let lines = |name: &str| fs::read_to_string(data.join(name)).unwrap().lines().count();
    let asked: HashSet<String> = fs::read_to_string(data.join("qrels/dev.tsv"))
        .unwrap()
        .lines()
        .skip(1)
        .map(|line| line.split('\t').next().unwrap().to_owned())
        .collect();
    for (student, queries) in [(&adapted, 0), (&dir.path().join("relu-pooled"), asked.len())] {
        let eval = |name: &str, flags: &[&str]| {
            let runs = dir.path().join(name);
            let paths = ["eval", "--data", text(&data), "--split", "dev", "--student", text(student)];
            let said = run("train", &[&paths[..], &["--runs", text(&runs)], flags].concat()).done().stderr;
            let run_file = fs::read_to_string(runs.join("dev-student.trec")).unwrap();
            fs::remove_dir_all(&runs).unwrap();
            (said, run_file)
        };
        let (said, cached) = eval("cached", &["--cache", text(&cache)]);
        let texts = lines("corpus.jsonl") + queries;
        assert!(said.contains(&format!("{texts} texts' latents from")), "{texts}: {said}");
        let (said, anew) = eval("anew", &[]);
        assert!(!said.contains("latents from"), "{said}");
        // Other batches, other roundings.
        for (a, b) in cached.lines().zip(anew.lines()) {
            let fields = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
            let (a, b) = (fields(a), fields(b));
            assert_eq!(a[..4], b[..4]);
            let score = |fields: &[String]| fields[4].parse::<f64>().unwrap();
            assert!((score(&a) - score(&b)).abs() < 1e-4, "{a:?} {b:?}");
        }
        assert_eq!(cached.lines().count(), anew.lines().count());
    }
    assert_eq!(sizes(&cache), before, "evaluation computed what training had kept");
    let again = dir.path().join("again");
    let flags = ["--form", "relu", "--residual", "pooled", "--cache", text(&cache)];
    distil(&chain.path("teacher"), &chain.path("data"), &again, &flags).done();
    assert_eq!(sizes(&cache), before, "the second run computed what the first had kept");
    let same = |name: &str| fs::read(dir.path().join(name).join("predictor.safetensors")).unwrap();
    assert!(same("again") == same("relu-pooled"));
}

/// An ablation that was interrupted goes on, and a table never shows a student under flags that did not make it.
#[test]
fn an_ablation_goes_on_and_knows_its_students() {
    let chain = Chain::get();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("ablation");
    let (teacher, data) = (chain.path("teacher"), chain.path("data"));
    let common = &DISTIL[..DISTIL.len() - 4];
    assert_eq!(DISTIL[DISTIL.len() - 4], "--dtype");
    let ablate = |variants: &[&str], more: &[&str]| {
        let paths = ["ablate", "--teacher", text(&teacher), "--data", text(&data), "--out", text(&out)];
        let few = ["--seeds", "1", "--dtype", "f32", "--threads", "1", "--agreement-queries", "4"];
        let variants: Vec<&str> = variants.iter().flat_map(|variant| ["--variant", variant]).collect();
        run("train", &[&paths[..], &few, &variants, &["--"], common, more].concat())
    };
    let stopped = ablate(&["plain:", "small: --inner-dimensions 8"], &["--stop-after", "7"]);
    assert_ne!(stopped.code, Some(0), "{}", stopped.stderr);
    assert!(out.join("plain-0.state.safetensors").exists());
    let table = ablate(&["plain:", "small: --inner-dimensions 8"], &[]).done().stdout;
    assert!(table.contains("| plain |") && table.contains("| small |"), "{table}");
    // What one run made in one go is what two made.
    let alone = dir.path().join("alone");
    distil(&teacher, &data, &alone, &[]).done();
    let predictor = |dir: &Path| fs::read(dir.join("predictor.safetensors")).unwrap();
    assert!(predictor(&alone) == predictor(&out.join("plain-0")));
    let before = listing(&out);
    let again = ablate(&["plain:", "small: --inner-dimensions 8"], &[]).done().stdout;
    assert!(table.ends_with(&again) && again.starts_with("| variant |"), "{table}{again}");
    assert_eq!(
        before.keys().collect::<Vec<_>>(),
        listing(&out).keys().collect::<Vec<_>>(),
        "students were made again"
    );
    ablate(&["plain: --form relu"], &[]).refused(&["plain-0", "`form` was \"gated\"", "another --out"]);
    ablate(&["lr 1e-4:", "lr 1e/4:"], &[]).refused(&["`lr 1e-4`", "`lr 1e/4`", "one directory"]);
}

/// Every wrong turn of `train`, each one sentence; nothing appears, nothing stays half written.
#[test]
fn wrong_turns_are_refused_in_one_sentence() {
    let chain = Chain::get();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let absent = dir.path().join("absent");
    let (llm, data, teacher) = (chain.path("llm"), chain.path("data"), chain.path("teacher"));
    let import = |from: &Path| run("train", &["import", "--from", text(from), "--out", text(&out)]);

    import(&absent).refused(&["absent", "no such file or folder"]);
    type Damage = fn(&Path);
    let folders: [(Damage, &[&str]); 5] = [
        (|hf| fs::remove_file(hf.join("config.json")).unwrap(), &["config.json"]),
        (
            |hf| {
                edit_json(&hf.join("config.json"), |c| {
                    c["architectures"] = json!(["GPT2LMHeadModel"]);
                    c["model_type"] = json!("gpt2");
                })
            },
            &["GPT2LMHeadModel", "LlamaForCausalLM", "Qwen3ForCausalLM"],
        ),
        (|hf| edit_json(&hf.join("config.json"), |c| c["vocab_size"] = json!(7)), &["embed_tokens"]),
        (|hf| shorten(&hf.join("model.safetensors")), &["model.safetensors"]),
        (
            |hf| {
                edit_json(&hf.join("tokenizer.json"), |t| {
                    t["added_tokens"].as_array_mut().unwrap().push(json!({
                "id": 99_999, "content": "<far>", "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true,
            }));
                })
            },
            &["tokenizer.json", "different models"],
        ),
    ];
    for (number, (damage, words)) in folders.into_iter().enumerate() {
        let hf = dir.path().join(format!("hf{number}"));
        write_hugging_face(&hf, 1);
        damage(&hf);
        let before = listing(dir.path());
        import(&hf).refused(words);
        assert_eq!(listing(dir.path()), before, "{words:?}");
    }
    let gguf = dir.path().join("cut.gguf");
    fs::write(&gguf, b"GGUF\x03\0\0\0\x10").unwrap();
    import(&gguf).refused(&["cut.gguf"]);

    let with = |name: &str, damage: &dyn Fn(&Path)| {
        let folder = dir.path().join(name);
        copy_dir(&data, &folder);
        damage(&folder);
        folder
    };
    let append = |file: PathBuf, line: &str| {
        let text = fs::read_to_string(&file).unwrap() + line;
        fs::write(file, text).unwrap();
    };
    let broken = with("broken", &|d| append(d.join("queries.jsonl"), "{\"_id\": \"x\", \n"));
    let twice = with("twice", &|d| append(d.join("corpus.jsonl"), "{\"_id\": \"lamp\", \"text\": \"x\"}\n"));
    let empty = with("empty", &|d| fs::write(d.join("corpus.jsonl"), "").unwrap());
    let unknown = with("unknown", &|d| append(d.join("qrels/train.tsv"), "q00-0\tsofa\t1\n"));
    let blank =
        with("blank", &|d| fs::write(d.join("qrels/train.tsv"), "query-id\tcorpus-id\tscore\n").unwrap());
    for (folder, words) in [
        (&absent, vec!["absent"]),
        (&broken, vec!["queries.jsonl:61", "not a JSON object"]),
        (&twice, vec!["corpus.jsonl:13", "`lamp`", "line 2"]),
        (&empty, vec!["corpus.jsonl", "no documents"]),
        (&unknown, vec!["train.tsv:38", "`sofa`", "corpus.jsonl"]),
        (&blank, vec!["train.tsv", "no judgements"]),
    ] {
        teach(&llm, folder, &out, &[]).refused(&words);
        distil(&teacher, folder, &out, &[]).refused(&words);
    }
    run("train", &["eval", "--data", text(&broken), "--bm25"]).refused(&["queries.jsonl:61"]);
    run("train", &["eval", "--data", text(&data)]).refused(&["nothing to measure"]);
    run("train", &["eval", "--data", text(&data), "--bm25", "--split", "nights"]).refused(&["nights.tsv"]);
    run("train", &["eval", "--data", text(&data), "--student", text(&llm)]).refused(&["student.json"]);

    let late = run("train", &["eval", "--data", text(&data), "--bm25", "--teacher", text(&absent)]);
    late.refused(&["cannot measure teacher", "absent"]);
    let run_file = |name: &str, lines: &str| {
        let file = dir.path().join(name);
        fs::write(&file, lines).unwrap();
        file
    };
    let strange = run_file("strange.trec", "q00-0 Q0 sofa 1 2.0 x\n");
    teach(&llm, &data, &out, &["--negatives-run", text(&strange)]).refused(&["strange.trec:1", "`sofa`"]);
    // All that it ranks is relevant: nothing to tell apart from.
    let relevant = fs::read_to_string(data.join("qrels/train.tsv")).unwrap();
    let fields: Vec<&str> = relevant.lines().nth(1).unwrap().split('\t').collect();
    let useless = run_file("useless.trec", &format!("{} Q0 {} 1 2.0 x\n", fields[0], fields[1]));
    teach(&llm, &data, &out, &["--negatives-run", text(&useless)]).refused(&["no hard negatives for data"]);
    distil(&teacher, &data, &out, &["--layers", "1,1"]).refused(&["--layers", "1 is named twice"]);
    distil(&teacher, &data, &out, &["--dropout", "1.5"]).refused(&["--dropout is 1.5"]);

    teach(&absent, &data, &out, &[]).refused(&["absent"]);
    teach(&llm, &data, &out, &["--device", "warp:1"]).refused(&["warp:1", "cuda"]);
    distil(&teacher, &data, &out, &["--layers", "2,9"]).refused(&["--layers 9", "4 layers"]);
    distil(&teacher, &data, &out, &["--batch-documents", "1"]).refused(&["at least 2"]);
    let words = dir.path().join("words");
    write_model(&words, 1);
    edit_json(&words.join("prompt.json"), |p| p["choices"]["positive"] = json!("Yes and no"));
    teach(&words, &data, &out, &[]).refused(&["choice `Yes and no`", "single token"]);
    teach(&llm, &data, &teacher, &[]).refused(&["teacher", "exists"]);
    assert!(!out.exists());
}

fn shorten(file: &Path) {
    let bytes = fs::read(file).unwrap();
    fs::write(file, &bytes[..bytes.len() * 2 / 3]).unwrap();
}

/// A few skills of the sample corpus, and their needs in the splits of it.
fn write_part(from: &Path, to: &Path, skills: usize) {
    let data = BeirData::open(from).unwrap();
    let train = data.qrels("train", Purpose::Training).unwrap().qrels;
    let chosen: Vec<&String> = {
        let mut ids: Vec<&String> = train.values().flat_map(|judged| judged.keys()).collect();
        ids.sort();
        ids.dedup();
        ids.into_iter().step_by(4).take(skills).collect()
    };
    fs::create_dir_all(to.join("qrels")).unwrap();
    let corpus: Vec<_> =
        data.documents.iter().filter(|document| chosen.contains(&&document.id)).cloned().collect();
    tests::data::write_documents(&to.join("corpus.jsonl"), &corpus);
    let mut queries = String::new();
    for split in ["train", "dev", "test"] {
        let mut lines = "query-id\tcorpus-id\tscore\n".to_owned();
        for (query, judged) in data.qrels(split, Purpose::Training).unwrap().qrels {
            for (document, gain) in judged.into_iter().filter(|(document, _)| chosen.contains(&document)) {
                lines += &format!("{query}\t{document}\t{gain}\n");
                let text = &data.queries[data.query_index[&query]].text;
                queries += &format!("{}\n", json!({ "_id": query, "text": text }));
            }
        }
        fs::write(to.join("qrels").join(format!("{split}.tsv")), lines).unwrap();
    }
    fs::write(to.join("queries.jsonl"), queries).unwrap();
}

/// The real thing: SmolLM2 knows its capitals, and a student made of it from a few hundred needs answers needs that it
/// has not seen, far better than words in common do. Everything before may be right and this be wrong.
#[test]
fn a_student_of_the_real_language_model_answers_new_needs() {
    let gguf = repository().join(".deps/models/SmolLM2-135M-Instruct.Q4_1.gguf");
    assert!(gguf.exists(), "{}: not there; run `make setup`", gguf.display());
    let dir = tempfile::tempdir().unwrap();
    let [llm, folder, teacher, student, bundle, index] =
        ["llm", "data", "teacher", "student", "bundle", "index"].map(|name| dir.path().join(name));
    let report = dir.path().join("eval.json");
    run("train", &["import", "--from", text(&gguf), "--out", text(&llm)]).done();
    let said = run(
        "train",
        &["generate", "--model", text(&llm), "What is the capital of France?", "--dtype", "f32"],
    )
    .done();
    assert!(said.stdout.contains("Paris"), "{}", said.stdout);

    write_part(&repository().join("data/home-robot"), &folder, 20);
    let flags = ["--steps", "2", "--warmup", "1", "--batch-queries", "4", "--batch-documents", "4"];
    let more = ["--lr", "5e-4", "--dev-queries", "2", "--dev-candidates", "4", "--save-every", "0"];
    let paths = ["teacher", "--model", text(&llm), "--data", text(&folder), "--out", text(&teacher)];
    run("train", &[&paths[..], &flags, &more].concat()).done();
    let paths = ["distill", "--teacher", text(&teacher), "--data", text(&folder), "--out", text(&student)];
    let flags = ["--target-queries", "6", "--candidates", "4", "--rounds", "2", "--steps", "200"];
    run("train", &[&paths[..], &flags].concat()).done();
    let flags = ["eval", "--data", text(&folder), "--bm25", "--student", text(&student)];
    run("train", &[&flags[..], &["--json", text(&report)]].concat()).done();
    let numbers: Value = models::files::read_json(&report).unwrap();
    let recall = |system: &str| numbers["splits"]["test"][system]["metrics"]["Recall@1"].as_f64().unwrap();
    // Measured: 0.47 against 0.18; guessing finds 0.05.
    assert!(recall("student") >= 2.0 * recall("BM25"), "{numbers}");

    run("export", &["--onnx", "--student", text(&student), "--out", text(&bundle)]).done();
    let corpus = folder.join("corpus.jsonl");
    let paths = ["--bundle", text(&bundle), "--documents", text(&corpus), "--out", text(&index)];
    run("runtime", &[&["index"], &paths[..]].concat()).done();
    let data = BeirData::open(&folder).unwrap();
    let test = data.qrels("test", Purpose::Training).unwrap().qrels;
    let right = test.iter().filter(|(query, judged)| {
        let need = &data.queries[data.query_index[*query]].text;
        let paths = ["--bundle", text(&bundle), "--index", text(&index), "-k", "1", "--json"];
        let answer = run("runtime", &[&["query", need], &paths[..]].concat()).done().json();
        judged.contains_key(answer["results"][0]["id"].as_str().unwrap())
    });
    let found = right.count() as f64 / test.len() as f64;
    // What answers on the robot is what was measured where it was trained, but for bf16 there and f32 here.
    assert!((found - recall("student")).abs() <= 0.05, "runtime {found}, eval {}", recall("student"));
}
