//! What is refused, and in which words: one clear sentence, and nothing half written.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use models::student::{PREDICTOR_FILE, QUERY_ADAPTER_FILE, Residual};
use serde_json::json;
use std::fs;
use std::process::{Command, Output};
use support::{Fixture, Plan, edit_json, edit_tensors, export, onnxruntime};

fn assert_says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
}

/// A diverged training run, exported, would answer every query with the same document.
#[test]
fn weights_that_are_not_finite_are_named() {
    for (file, name, value, word) in [
        ("model.safetensors", "model.layers.1.mlp.up_proj.weight", f32::NAN, "NaN"),
        ("model.safetensors", "model.embed_tokens.weight", f32::INFINITY, "inf"),
        (PREDICTOR_FILE, "output_proj.weight", f32::NEG_INFINITY, "-inf"),
    ] {
        let fixture = Fixture::new(&Plan::llama());
        edit_tensors(&fixture.file(file), |tensors| {
            let tensor = tensors.iter_mut().find(|(n, ..)| n == name).unwrap();
            tensor.2[5] = value;
        });
        assert_says(&fixture.refusal(), &[name, &format!("holds {word} at position 5"), file]);
    }
}

/// An export into a directory in use would mix two bundles.
#[test]
fn an_output_that_exists_is_left_alone() {
    let fixture = Fixture::new(&Plan::llama());
    let kept = fixture.options.out.join("kept");
    fs::create_dir_all(&fixture.options.out).unwrap();
    fs::write(&kept, "mine").unwrap();
    let message = export(&fixture.options).unwrap_err().to_string();
    assert_says(&message, &["already exists"]);
    assert_eq!(fs::read_to_string(kept).unwrap(), "mine");
    assert_eq!(fs::read_dir(fixture.options.out.parent().unwrap()).unwrap().count(), 1);
}

/// An adapter of another model or rank, half an adapter or more than one would be computed with as if it belonged here.
#[test]
fn an_adapter_that_does_not_fit_is_refused() {
    type Edit = fn(&Fixture);
    let cases: [(Edit, &[&str]); 5] = [
        (
            |f| {
                edit_json(&f.file("student.json"), |j| {
                    j["query_adapter"]["target_modules"] = json!(["q_proj"])
                })
            },
            &["query_adapter.safetensors", "lora_"],
        ),
        (
            |f| {
                edit_json(&f.file("student.json"), |j| {
                    j["query_adapter"]["layers_to_transform"] = json!([0, 1, 2]);
                });
            },
            &["query_adapter.safetensors", "model.layers.2.self_attn.q_proj.lora_A.weight"],
        ),
        (
            |f| {
                edit_tensors(&f.file(QUERY_ADAPTER_FILE), |tensors| {
                    let tensor =
                        tensors.iter_mut().find(|(n, ..)| n.ends_with("o_proj.lora_B.weight")).unwrap();
                    tensor.1[1] -= 1;
                    tensor.2.truncate(tensor.1[0] * tensor.1[1]);
                });
            },
            &["query_adapter.safetensors", "o_proj.lora_B.weight", "[16, 2]", "[16, 3]"],
        ),
        (
            |f| fs::remove_file(f.file(QUERY_ADAPTER_FILE)).unwrap(),
            &["query_adapter.safetensors", "No such file"],
        ),
        (
            |f| edit_json(&f.file("prompt.json"), |j| j["query"]["before"] = json!("document")),
            &["`query_adapter`", "begin alike"],
        ),
    ];
    for (edit, words) in cases {
        let fixture = Fixture::new(&Plan { query_adapter: true, ..Plan::llama() });
        edit(&fixture);
        assert_says(&fixture.refusal(), words);
    }
}

/// Parts of different students in one directory must be told apart before anything is computed from them.
#[test]
fn files_that_contradict_each_other_are_refused() {
    type Edit = fn(&Fixture);
    let cases: [(&str, Edit, &[&str]); 10] = [
        (
            "latent layer",
            |f| edit_json(&f.file("student.json"), |j| j["latents"]["layers"] = json!([1, 4])),
            &["student.json", "`latents.layers` is [1, 4]", "0 to 3"],
        ),
        (
            "no latents",
            |f| edit_json(&f.file("student.json"), |j| j["latents"]["layers"] = json!([])),
            &["`latents.layers` is []"],
        ),
        (
            "hidden size",
            |f| edit_json(&f.file("student.json"), |j| j["hidden_size"] = json!(32)),
            &["`hidden_size` is 32", "16 as in config.json"],
        ),
        (
            "weights against config",
            |f| edit_json(&f.file("config.json"), |j| j["intermediate_size"] = json!(32)),
            &["model.safetensors", "mlp.", "24"],
        ),
        (
            "predictor against student.json",
            |f| edit_json(&f.file("student.json"), |j| j["inner_dimensions"] = json!(11)),
            &["predictor.safetensors", "query_proj.weight"],
        ),
        (
            "tensor of another form",
            |f| {
                edit_tensors(&f.file(PREDICTOR_FILE), |t| {
                    t.push(("gate_proj.bias".into(), vec![1], vec![0.0]))
                })
            },
            &["predictor.safetensors", "`gate_proj.bias`", "different students"],
        ),
        (
            "tokenizer of another model",
            |f| edit_json(&f.file("tokenizer.json"), |j| j["model"]["vocab"]["far"] = json!(32)),
            &["tokenizer.json", "`far` has id 32", "32 rows"],
        ),
        (
            "prompt too long",
            |f| edit_json(&f.file("prompt.json"), |j| j["query"]["max_tokens"] = json!(200)),
            &["prompt.json", "at most 128"],
        ),
        (
            "choice of two tokens",
            |f| edit_json(&f.file("prompt.json"), |j| j["choices"]["negative"] = json!("No No")),
            &["`No No` is 2 tokens"],
        ),
        (
            "architecture",
            |f| edit_json(&f.file("config.json"), |j| j["architectures"] = json!(["GPT2LMHeadModel"])),
            &["`GPT2LMHeadModel` is not supported", "Qwen3ForCausalLM"],
        ),
    ];
    for (what, edit, parts) in cases {
        let fixture = Fixture::new(&Plan::llama());
        edit(&fixture);
        let message = fixture.refusal();
        assert_says(&format!("{what}: {message}"), parts);
    }
}

/// Without reference scores nothing checks the bundle; the refusal must say how to get them.
#[test]
fn a_student_without_goldens_is_refused() {
    let fixture = Fixture::new(&Plan::llama());
    fs::remove_file(fixture.file("golden.json")).unwrap();
    assert_says(&fixture.refusal(), &["golden.json", "train distill"]);

    let fixture = Fixture::new(&Plan::llama());
    edit_json(&fixture.file("golden.json"), |j| j["scores"][1] = json!([1.0]));
    assert_says(&fixture.refusal(), &["golden.json", "4 queries, 4 documents"]);

    let fixture = Fixture::new(&Plan::llama());
    edit_tensors(&fixture.file("golden.safetensors"), |t| t.retain(|(name, ..)| name != "answer"));
    assert_says(&fixture.refusal(), &["golden.safetensors", "`answer` is missing"]);
}

/// A bundle that ranks otherwise than its student must not reach a robot unless somebody says so.
#[test]
fn a_bundle_unlike_its_student_is_written_only_on_demand() {
    if !onnxruntime() {
        return;
    }
    let mut fixture = Fixture::new(&Plan { residual: Residual::Pooled, ..Plan::llama() });
    edit_json(&fixture.file("golden.json"), |j| {
        let score = j["scores"][0][0].as_f64().unwrap();
        j["scores"][0][0] = json!(score + 0.5);
    });
    assert_says(&fixture.refusal(), &["parity", "difference of a score", "--allow-degraded"]);
    fixture.options.allow_degraded = true;
    let manifest = export(&fixture.options).unwrap();
    assert_eq!(manifest.parity["held"], json!(false));
}

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_export")).args(arguments).output().unwrap()
}

/// Scripts read the exit status, and people one line.
#[test]
fn the_command_line_answers_in_one_line() {
    let output = run(&["--student", "nowhere", "--out", "x"]);
    assert_eq!(output.status.code(), Some(2));
    assert_says(&String::from_utf8_lossy(&output.stderr), &["--onnx"]);
    let output = run(&["--onnx", "--student", "nowhere", "--out", "x"]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2));
    assert!(error.starts_with("export: ") && error.lines().count() == 1, "{error}");
    assert_says(&error, &["nowhere/student.json"]);
    let output = run(&["--onnx", "--student", "x", "--out", "y", "--precision", "int3"]);
    assert_eq!(output.status.code(), Some(2));
    assert_says(&String::from_utf8_lossy(&output.stderr), &["int3", "fp32", "int8"]);
}

/// Scripts that name layers by the flag's old spelling would fail in the middle of the night after an update.
#[test]
fn the_old_spelling_of_mixed_precision_is_understood() {
    for flag in ["--mixed-precision", "--keep-layers"] {
        let int8 = ["--onnx", "--student", "nowhere", "--out", "x", "--precision", "int8"];
        let output = run(&[&int8[..], &[flag, "0, 5:fp32"]].concat());
        assert_says(&String::from_utf8_lossy(&output.stderr), &["nowhere/student.json"]);
        let output = run(&["--onnx", "--student", "nowhere", "--out", "x", flag, "0,fp32"]);
        assert_eq!(output.status.code(), Some(2));
        assert_says(
            &String::from_utf8_lossy(&output.stderr),
            &["0,fp32", "layer numbers separated by commas"],
        );
    }
    let help = String::from_utf8(run(&["--help"]).stdout).unwrap();
    assert!(help.contains("--mixed-precision") && !help.contains("--keep-layers"), "{help}");
}

/// The bundle's path is all that a script finds on stdout.
#[test]
fn the_command_line_prints_the_path() {
    if !onnxruntime() {
        return;
    }
    let fixture = Fixture::new(&Plan::llama());
    let (student, out) = (fixture.options.student.to_str().unwrap(), fixture.options.out.to_str().unwrap());
    let output = run(&["--onnx", "--student", student, "--out", out, "--precision", "int8"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{out}\n"));
    let progress = String::from_utf8_lossy(&output.stderr);
    assert_says(&progress, &["encoder", "down_proj", "parity", "top-1"]);
}
