//! A teacher whose latents are taught, and a general student that is shipped as a difference from its LLM.

use super::{Chain, DISTIL, TEACH, distil, recorded, teach, text};
use models::files::read_json;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use tests::model::{copy_dir, edit_json};
use tests::program::{listing, run};

const LATENT: &[&str] = &["--latent-queries", "6", "--latent-documents", "8", "--latent-layers", "1,3"];

fn first_step(teacher: &Path) -> Value {
    let state: Value = read_json(&teacher.join("train_state.json")).unwrap();
    state["history"]["steps"][0].clone()
}

/// A latent stage runs for days beside other work: cut, it must end with the same bytes; and a batch that is read in parts for
/// want of memory must teach what the whole batch teaches.
#[test]
fn taught_latents_survive_interruption_and_small_memory() {
    let chain = Chain::get();
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (llm, data) = (chain.path("llm"), chain.path("data"));
    let train = |out: &str, more: &[&str]| {
        teach(&llm, &data, &at(out), &[LATENT, &["--latent-weight", "0.5"], more].concat()).done();
    };
    train("whole", &[]);
    train("cut", &["--stop-after", "3"]);
    train("cut", &["--resume"]);
    let weights = |name: &str| fs::read(at(name).join("model.safetensors")).unwrap();
    assert!(weights("whole") == weights("cut"));
    assert!(weights("whole") != fs::read(chain.path("teacher/model.safetensors")).unwrap());
    let step = first_step(&at("whole"));
    // Both losses, all layers together and each by itself, in the sum.
    let part = |name: &str| step[name].as_f64().unwrap();
    let latent = (part("latent") + (part("latent_1") + part("latent_3")) / 2.0) / 2.0;
    let whole = part("choice") + part("listwise") + 0.5 * latent;
    assert!((part("loss") - whole).abs() < 1e-5, "{step}");
    let records = recorded(&at("whole/run"));
    let dev = records.iter().find(|record| record["split"] == "dev").unwrap();
    assert!(dev["latent MRR@10 of layer 3"].as_f64().is_some() && dev["MRR@10"].as_f64().is_some(), "{dev}");

    train("parts", &["--latent-tokens", "20"]);
    let (parts, step) = (first_step(&at("parts")), first_step(&at("whole")));
    for name in ["loss", "grad_norm", "latent", "latent_1"] {
        let (a, b) = (parts[name].as_f64().unwrap(), step[name].as_f64().unwrap());
        assert!((a - b).abs() < 1e-4 * b.abs().max(1.0), "{name}: {a} in parts, {b} at once");
    }
}

/// The first stage on many sets: no pairs are judged, and what lies behind the deepest latent layer stays the LLM's. A student
/// of the taught layers finds more than one of the untaught.
#[test]
fn latents_alone_are_taught_up_to_their_deepest_layer() {
    let chain = Chain::get();
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (llm, data) = (chain.path("llm"), chain.path("data"));
    let only = ["--latent-only", "--lora-rank", "0", "--freeze-embeddings", "--cap", "5"];
    let few = [LATENT, &["--latent-only", "--train-queries", "7"]].concat();
    let few = teach(&llm, &data, &at("few"), &few).done();
    assert!(few.stderr.contains("teaching on 7 queries"), "{}", few.stderr);
    let out = at("taught");
    let paths = ["teacher", "--model", text(&llm), "--data", text(&data), "--out", text(&out)];
    // More steps than the others make: here something is to be learnt.
    let mut flags = TEACH.to_vec();
    flags[1] = "24";
    let rank = flags.iter().position(|flag| *flag == "--lora-rank").unwrap();
    flags.drain(rank..rank + 2);
    run("train", &[&paths, LATENT, &only, &flags].concat()).done();
    let open = |dir: &Path| models::weights::Weights::open(dir).unwrap();
    let (before, after) = (open(&llm), open(&at("taught")));
    for name in before.names() {
        let same = before.f32(name).unwrap() == after.f32(name).unwrap();
        let layer = name.strip_prefix("model.layers.").map(|rest| rest.split('.').next().unwrap());
        assert_eq!(same, !matches!(layer, Some("0" | "1" | "2")), "{name}");
    }
    let state: Value = read_json(&at("taught/train_state.json")).unwrap();
    let step = &state["history"]["steps"][0];
    assert!(step["choice"].is_null() && step["latent_3"].as_f64().is_some(), "{step}");
    let losses: Vec<f64> = state["history"]["steps"]
        .as_array()
        .unwrap()
        .iter()
        .map(|step| step["loss"].as_f64().unwrap())
        .collect();
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    assert!(mean(&losses[16..]) < mean(&losses[..8]), "{losses:?}");

    let refused = |more: &[&str], words: &[&str]| {
        let before = listing(dir.path());
        teach(&llm, &data, &at("out"), more).refused(words);
        assert_eq!(listing(dir.path()), before, "{words:?}");
    };
    refused(&["--latent-only", "--latent-layers", "2,9"], &["--latent-layers 9", "layers 1 to 4"]);
    refused(&["--latent-only", "--objective", "dpo"], &["--latent-only", "--objective dpo"]);
    // With the adapters that the other flags ask for.
    refused(&["--freeze-embeddings"], &["--freeze-embeddings", "--lora-rank 0"]);
    let single = at("single");
    copy_dir(&data, &single);
    let relevant = fs::read_to_string(data.join("qrels/train.tsv")).unwrap();
    let first: Vec<&str> = relevant.lines().take(2).collect();
    fs::write(single.join("qrels/train.tsv"), first.join("\n") + "\n").unwrap();
    let out = at("out");
    let paths =
        ["teacher", "--latent-only", "--model", text(&llm), "--data", text(&single), "--out", text(&out)];
    run("train", &[&paths, TEACH].concat()).refused(&["single", "at least 2", "--documents corpus"]);
}

/// What is shipped must be what was measured: packed, unpacked on another machine's copy of the LLM, and packed again it is the
/// same to the last bit; with any other LLM it would answer plausibly and wrongly, so that is refused.
#[test]
fn a_packed_student_is_itself_again_beside_its_own_llm_only() {
    let chain = Chain::get();
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let pack = |model: &Path, out: &Path| {
        let (llm, flags) = (chain.path("llm"), ["pack", "--base-name", "Tiny-1"]);
        run(
            "train",
            &[&flags[..], &["--model", text(model), "--base", text(&llm), "--out", text(out)]].concat(),
        )
    };
    let import = |from: &Path, base: &Path, out: &Path| {
        run("train", &["import", "--from", text(from), "--base", text(base), "--out", text(out)])
    };
    // A teacher first: what is packed is rounded, and the student must be distilled from what will be there.
    pack(&chain.path("teacher"), &at("packed-teacher")).done();
    import(&at("packed-teacher"), &chain.path("llm"), &at("teacher")).done();
    distil(&at("teacher"), &chain.path("data"), &at("student"), &[]).done();
    pack(&at("student"), &at("packed")).done();
    import(&at("packed"), &chain.path("llm"), &at("again")).done();
    for file in
        ["model.safetensors", "predictor.safetensors", "student.json", "golden.safetensors", "prompt.json"]
    {
        let bytes = |dir: &str| fs::read(at(dir).join(file)).unwrap();
        assert!(bytes("again") == bytes("student"), "{file}");
    }
    let small = |file: &str| fs::metadata(at("packed").join(file)).unwrap().len();
    let whole = fs::metadata(at("student/model.safetensors")).unwrap().len();
    assert!(small("delta.safetensors") * 3 < whole, "{} of {whole} bytes", small("delta.safetensors"));

    // A student from it goes on from its maps; the start must be of the same shape.
    let start = |more: &[&str]| {
        let (teacher, data, student, out) = (at("teacher"), chain.path("data"), at("student"), at("further"));
        let flags = [
            "--teacher",
            text(&teacher),
            "--data",
            text(&data),
            "--start",
            text(&student),
            "--out",
            text(&out),
        ];
        let flags: Vec<&str> = ["distill"].into_iter().chain(flags).chain(more.iter().copied()).collect();
        // Its own dimensions, not those of the flags.
        let place = DISTIL.iter().position(|flag| *flag == "--inner-dimensions").unwrap();
        run("train", &[&flags, &DISTIL[..place], &DISTIL[place + 2..]].concat())
    };
    start(&[]).done();
    let config = |name: &str| read_json::<Value>(&at(name).join("student.json")).unwrap();
    assert_eq!(config("further")["latents"], config("student")["latents"]);
    assert!(
        fs::read(at("further/predictor.safetensors")).unwrap()
            != fs::read(at("student/predictor.safetensors")).unwrap()
    );

    let other = at("other");
    copy_dir(&chain.path("teacher"), &other);
    let before = listing(dir.path());
    import(&at("packed"), &other, &at("wrong")).refused(&["not the LLM", "Tiny-1"]);
    let none = run("train", &["import", "--from", text(&at("packed")), "--out", text(&at("wrong"))]);
    none.refused(&["Tiny-1", "--base"]);
    import(&chain.path("hf"), &chain.path("llm"), &at("wrong"))
        .refused(&["--base is for pretrained folders"]);
    assert_eq!(listing(dir.path()), before);
    let damaged = at("damaged");
    copy_dir(&at("packed"), &damaged);
    let mut delta = fs::read(damaged.join("delta.safetensors")).unwrap();
    *delta.last_mut().unwrap() ^= 1;
    fs::write(damaged.join("delta.safetensors"), delta).unwrap();
    import(&damaged, &chain.path("llm"), &at("wrong")).refused(&["delta.safetensors", "damaged"]);
    edit_json(&damaged.join("pretrained.json"), |p| p["format_version"] = json!(9));
    import(&damaged, &chain.path("llm"), &at("wrong")).refused(&["pretrained.json", "version 9"]);
    assert!(!at("wrong").exists());
}
