//! Training on many processes, started as a launcher starts them: two are one, and one that fails, comes twice, or belongs
//! to another run is named. The tests called `torchrun_...` need PyTorch's launcher: `scripts/test-scale.sh torchrun`.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

#[path = "ranks/torchrun.rs"]
mod torchrun;

use models::files::read_json;
use safetensors::SafeTensors;
use serde_json::Value;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tests::data::write_data;
use tests::model::{copy_dir, write_model};
use tests::program::{Finished, finish, program};

/// A tiny teacher's flags: twenty steps of three micro-batches, which two processes cannot divide evenly.
const TEACH: &str = "--steps 20 --warmup 2 --accumulate 3 --batch-queries 3 --batch-documents 4 --eval-every 10 \
                     --dev-queries 4 --dev-candidates 5 --save-every 2 --dtype f32 --threads 1";
/// What it trains, for most tests.
const ADAPTERS: &str = "--lr 1e-3 --lora-rank 4 --lora-dropout 0.1";
/// A tiny student's flags.
const DISTIL: &str = "--steps 60 --save-every 3 --batch-queries 8 --target-queries 12 --candidates 4 --rounds 2 --inner-dimensions 16 \
                      --eval-every 20 --dtype f32 --threads 1";

/// Model and data, and what one process makes of them.
struct Ground {
    dir: TempDir,
}

impl Ground {
    fn get() -> &'static Self {
        static GROUND: OnceLock<Ground> = OnceLock::new();
        GROUND.get_or_init(|| {
            let ground = Self { dir: tempfile::tempdir().unwrap() };
            write_model(&ground.path("llm"), 1);
            write_data(&ground.path("data"));
            ground.alone(|g, command| g.teach(command, &g.path("alone"), &[])).done();
            ground
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A teacher's training on adapters; `more` are further flags.
    fn teach(&self, command: &mut Command, out: &Path, more: &[&str]) {
        let adapters: Vec<&str> = ADAPTERS.split(' ').collect();
        self.train(command, out, &[&adapters, more].concat());
    }

    fn train(&self, command: &mut Command, out: &Path, more: &[&str]) {
        command.arg("teacher").arg("--model").arg(self.path("llm")).arg("--data").arg(self.path("data"));
        command.arg("--out").arg(out).args(TEACH.split_whitespace()).args(more);
    }

    fn distil(&self, command: &mut Command, out: &Path) {
        command.arg("distill").arg("--teacher").arg(self.path("alone")).arg("--data").arg(self.path("data"));
        command.arg("--out").arg(out).args(DISTIL.split_whitespace());
    }

    /// In one process, to its end.
    fn alone(&self, prepare: impl Fn(&Self, &mut Command)) -> Finished {
        let mut command = program("train");
        prepare(self, &mut command);
        finish(&mut command)
    }
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

/// A command as process `rank` of `size`, process 0 serving the store.
fn as_rank(command: &mut Command, rank: usize, size: usize, port: u16) -> &mut Command {
    let variables =
        [("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", size), ("MASTER_PORT", port.into())];
    command.envs(variables.map(|(name, value)| (name, value.to_string()))).env("MASTER_ADDR", "127.0.0.1");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped())
}

/// Starts `size` processes, each as `prepare` makes it.
fn start(size: usize, prepare: impl Fn(usize, &mut Command)) -> Vec<Child> {
    let port = free_port();
    let start = |rank| {
        let mut command = program("train");
        prepare(rank, &mut command);
        as_rank(&mut command, rank, size, port).spawn().unwrap()
    };
    (0..size).map(start).collect()
}

fn wait(child: Child) -> Finished {
    let output = child.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Finished {
        command: "a process of several".into(),
        code: output.status.code(),
        stdout: text(&output.stdout),
        stderr: text(&output.stderr),
    }
}

fn wait_all(children: Vec<Child>) -> Vec<Finished> {
    children.into_iter().map(wait).collect()
}

fn losses(teacher: &Path) -> Vec<f64> {
    let state: Value = read_json(&teacher.join("train_state.json")).unwrap();
    let steps = state["history"]["steps"].as_array().unwrap();
    steps.iter().map(|step| step["loss"].as_f64().unwrap()).collect()
}

/// Largest difference of any weight of two models.
fn apart(a: &Path, b: &Path) -> f32 {
    let [a, b] = [a, b].map(|dir| fs::read(dir.join("model.safetensors")).unwrap());
    let [a, b] = [&a, &b].map(|bytes| SafeTensors::deserialize(bytes).unwrap());
    assert_eq!(a.names().len(), b.names().len());
    let number = |bytes: &[u8]| f32::from_le_bytes(bytes.try_into().unwrap());
    let mut most = 0f32;
    for (name, tensor) in a.tensors() {
        let other = b.tensor(&name).unwrap();
        assert_eq!(tensor.shape(), other.shape());
        for (a, b) in tensor.data().chunks(4).zip(other.data().chunks(4)) {
            let difference = (number(a) - number(b)).abs();
            assert!(difference.is_finite(), "{name}");
            most = most.max(difference);
        }
    }
    most
}

/// Fails unless both runs saw the same losses and came to the same weights, to 1e-5.
#[track_caller]
fn assert_same_run(found: &Path, expected: &Path) {
    let (a, b) = (losses(found), losses(expected));
    assert_eq!((a.len(), b.len()), (20, 20));
    for (step, (a, b)) in a.iter().zip(&b).enumerate() {
        assert!((a - b).abs() <= 1e-5, "step {}: {a} for {b}", step + 1);
    }
    let most = apart(found, expected);
    assert!(most <= 1e-5, "weights {most:e} apart");
    // And training did something: the comparison is not of two untouched models.
    assert!(a[19] < a[0], "{a:?}");
}

/// A larger machine must change the time a run takes and nothing else, or its settings mean something else on each.
#[test]
fn two_processes_train_the_teacher_that_one_trains() {
    let ground = Ground::get();
    for (name, more) in [("plain", &[][..]), ("sharded", &["--shard-optimizer"][..])] {
        let out = ground.path(name);
        let both = wait_all(start(2, |_, command| {
            ground.teach(command, &out, more);
        }));
        let [first, second] = both.try_into().unwrap();
        let first = first.done();
        assert_eq!(first.stdout.trim(), out.to_str().unwrap());
        assert!(first.stderr.contains("on 2 processes"), "{}", first.stderr);
        // One voice: the others write nothing, not even talk.
        assert_eq!((second.code, second.stdout, second.stderr), (Some(0), String::new(), String::new()));
        assert_same_run(&out, &ground.path("alone"));
        assert!(!out.with_file_name(format!("{name}.state.safetensors")).exists());
    }
}

/// All that full fine-tuning moves: tied embeddings, norms, matrices that no process can cut evenly.
#[test]
fn three_processes_share_all_weights_of_a_preference() {
    let ground = Ground::get();
    let flags = "--lora-rank 0 --objective dpo --lr 1e-4 --checkpointing --ema-decay 0.5 --shard-optimizer";
    let flags: Vec<&str> = flags.split(' ').collect();
    let (one, three) = (ground.path("dpo-1"), ground.path("dpo-3"));
    ground.alone(|g, command| g.train(command, &one, &flags)).done();
    let all = wait_all(start(3, |_, command| ground.train(command, &three, &flags)));
    for process in all {
        process.done();
    }
    assert_same_run(&three, &one);
}

/// Latents and targets that two processes made are those that one makes, to the bit: caches may be shared by both.
#[test]
fn two_processes_distil_the_student_that_one_distils() {
    let ground = Ground::get();
    let (one, two) = (ground.path("student-1"), ground.path("student-2"));
    ground.alone(|g, command| g.distil(command, &one)).done();
    let both = wait_all(start(2, |_, command| {
        ground.distil(command, &two);
    }));
    assert_eq!(both[1].stderr, "");
    for process in both {
        process.done();
    }
    let bytes = |student: &Path| fs::read(student.join("predictor.safetensors")).unwrap();
    assert!(bytes(&one) == bytes(&two));
}

/// A process with other data trains on, and the model is of neither: each is refused before the first step, and told why.
#[test]
fn processes_that_differ_are_refused_by_name() {
    let ground = Ground::get();
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    // The same name and size: only its digest tells it apart.
    copy_dir(&ground.path("data"), &at("data"));
    let corpus = fs::read_to_string(at("data/corpus.jsonl"))
        .unwrap()
        .replace("coffee", "toffee")
        .replace("warm", "cold");
    fs::write(at("data/corpus.jsonl"), corpus).unwrap();
    write_model(&at("llm"), 2);
    // A program that does the same and is not the same.
    let build = at("train");
    let binary = program("train").get_program().to_owned();
    let mut bytes = fs::read(&binary).unwrap();
    bytes.push(0);
    fs::write(&build, bytes).unwrap();
    fs::set_permissions(&build, fs::metadata(&binary).unwrap().permissions()).unwrap();

    let prepare = |command: &mut Command, model: &Path, data: &Path, seed: &str| {
        command.arg("teacher").arg("--model").arg(model).arg("--data").arg(data);
        command.arg("--out").arg(at("teacher")).args(TEACH.split_whitespace()).args(["--seed", seed]);
    };
    let (llm, data) = (ground.path("llm"), ground.path("data"));
    let cases: [(&str, &Path, &Path, &str, bool); 4] = [
        ("digest", &llm, &at("data"), "0", false),
        ("`model_digest`", &at("llm"), &data, "0", false),
        ("`seed`", &llm, &data, "5", false),
        ("`program`", &llm, &data, "0", true),
    ];
    for (what, other_model, other_data, other_seed, other_build) in cases {
        let port = free_port();
        let mut first = program("train");
        prepare(&mut first, &llm, &data, "0");
        let mut second = if other_build { Command::new(&build) } else { program("train") };
        prepare(&mut second, other_model, other_data, other_seed);
        let first = as_rank(&mut first, 0, 2, port).spawn().unwrap();
        let second = as_rank(&mut second, 1, 2, port).spawn().unwrap();
        for (rank, process) in wait_all(vec![first, second]).into_iter().enumerate() {
            let who = format!("train: process {rank} of 2: ");
            process.refused(&[&who, "process 1 is not started as process 0 is", what]);
        }
        assert!(!at("teacher").exists() && !at("teacher.run").exists(), "{what}");
    }
}

/// Launchers are set up by hand, and wrongly: each slip is one sentence, and none a run that waits for ever.
#[test]
fn wrong_environments_are_refused() {
    let ground = Ground::get();
    let out = ground.path("never");
    let with = |more: &[&str], change: &dyn Fn(&mut Command)| {
        let mut command = program("train");
        ground.teach(&mut command, &out, more);
        as_rank(&mut command, 1, 2, free_port());
        change(&mut command);
        finish(&mut command)
    };
    with(&[], &|c| {
        c.env("RANK", "2");
    })
    .refused(&["RANK is 2 and WORLD_SIZE 2", "from 0 to 1"]);
    with(&[], &|c| {
        c.env_remove("MASTER_ADDR");
    })
    .refused(&["MASTER_ADDR", "torchrun"]);
    with(&[], &|c| {
        c.env("MASTER_PORT", "x");
    })
    .refused(&["MASTER_PORT is `x`"]);
    with(&["--rank-timeout", "1"], &|_| ()).refused(&["process 0 does not answer", "127.0.0.1", "after 1 s"]);
    with(&["--rank-timeout", "1"], &|c| {
        c.env("RANK", "0");
    })
    .refused(&["waited 1 s", "RANK 1 of 2", "did not come"]);
    let taken = TcpListener::bind(("0.0.0.0", 0)).unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    with(&[], &|c| {
        c.env("RANK", "0").env("MASTER_PORT", &port);
    })
    .refused(&["MASTER_PORT", &port, "in use"]);
    assert!(!out.exists());

    // More processes than a step has micro-batches: each of them says so.
    let all = wait_all(start(4, |_, command| {
        ground.teach(command, &out, &["--rank-timeout", "60"]);
    }));
    for process in all {
        process.refused(&["--accumulate 3: 4 processes"]);
    }
    // Not every command divides its work.
    let mut command = program("train");
    command.args(["eval", "--data"]).arg(ground.path("data")).arg("--bm25");
    finish(as_rank(&mut command, 0, 2, free_port()))
        .refused(&["WORLD_SIZE is 2", "`train eval` runs in one process"]);
}

/// What ends one process ends the run, and whoever reads the other's output is sent to the cause.
#[test]
fn the_reason_of_one_process_is_told_by_all() {
    let ground = Ground::get();
    let out = ground.path("never");
    let without_data = |rank: usize, command: &mut Command| {
        let data = ground.path(["data", "lost"][rank]);
        command.arg("teacher").arg("--model").arg(ground.path("llm")).arg("--data").arg(data);
        command.arg("--out").arg(&out).args(TEACH.split_whitespace());
    };
    let [first, second] = wait_all(start(2, without_data)).try_into().unwrap();
    second.refused(&["train: process 1 of 2: ", "lost/corpus.jsonl"]);
    first.refused(&["process 1 of 2 failed: ", "lost/corpus.jsonl"]);
    // Process 0 serves the store and stays until its reason was read.
    let taken = ground.path("alone");
    let both = wait_all(start(2, |_, command| ground.teach(command, &taken, &[])));
    let [first, second] = both.try_into().unwrap();
    first.refused(&["train: process 0 of 2: ", "already exists"]);
    second.refused(&["train: process 1 of 2: process 0 of 2 failed: ", "already exists"]);
    // Two opinions of how many they are.
    let port = free_port();
    let start = |rank, size| {
        let mut command = program("train");
        ground.teach(&mut command, &out, &[]);
        as_rank(&mut command, rank, size, port).spawn().unwrap()
    };
    let mut both = wait_all(vec![start(0, 3), start(1, 2)]);
    both.remove(0).refused(&["WORLD_SIZE is 3 here and 2 in the process with RANK 1"]);
    assert_eq!((both[0].code, out.exists()), (Some(2), false));
}

/// Two processes of one rank would train on the same micro-batches, and none on some others.
#[test]
fn a_rank_is_given_once() {
    let ground = Ground::get();
    let port = free_port();
    let start = |rank| {
        let mut command = program("train");
        ground.teach(&mut command, &ground.path("never"), &[]);
        as_rank(&mut command, rank, 3, port).spawn().unwrap()
    };
    let first = start(0);
    let mut twins = vec![start(1), start(1)];
    // Rank 2 never comes: one of the twins waits for it, the other is sent away.
    let away = loop {
        if let Some(twin) = twins.iter_mut().position(|twin| twin.try_wait().unwrap().is_some()) {
            break twins.remove(twin);
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    wait(away).refused(&["process 1 of 3", "RANK 1 is taken"]);
    twins.push(first);
    for mut child in twins {
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

/// One process is killed in the middle: the other ends and names it, and both go on from the saved state to the same model.
#[test]
fn a_killed_process_ends_the_run_and_the_run_goes_on() {
    let ground = Ground::get();
    let out = ground.path("killed");
    let flags = ["--resume", "--shard-optimizer", "--rank-timeout", "600"];
    let mut both = start(2, |_, command| {
        ground.teach(command, &out, &flags);
    });
    wait_for(&ground.path("killed.state.safetensors"));
    let mut second = both.remove(1);
    // SIGKILL: no handler, no last word.
    second.kill().unwrap();
    second.wait().unwrap();
    let first = wait(both.remove(0));
    assert!(!out.exists(), "the run ended before it was killed");
    assert_eq!(first.code, Some(2), "{}", first.stderr);
    assert!(
        first.stderr.contains("train: process 0 of 2: lost the connection to process 1 of 2"),
        "{}",
        first.stderr
    );
    // Whoever has one machine left continues in one process.
    for state in [2, 1] {
        let (name, out) = (format!("went-on-{state}"), ground.path(&format!("went-on-{state}")));
        fs::copy(ground.path("killed.state.safetensors"), ground.path(&format!("{name}.state.safetensors")))
            .unwrap();
        let all = if state == 2 {
            wait_all(start(2, |_, command| {
                ground.teach(command, &out, &flags);
            }))
        } else {
            vec![ground.alone(|g, command| g.teach(command, &out, &["--resume"]))]
        };
        for (rank, process) in all.into_iter().enumerate() {
            let process = process.done();
            assert_eq!(process.stderr.contains("continuing after step"), rank == 0, "{}", process.stderr);
        }
        assert_same_run(&out, &ground.path("alone"));
    }
}

fn wait_for(file: &Path) {
    let start = Instant::now();
    while !file.exists() {
        assert!(start.elapsed() < Duration::from_secs(300), "{} did not appear", file.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}
