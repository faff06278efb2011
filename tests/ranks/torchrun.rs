//! The same under PyTorch's own launcher, which starts the processes, serves their store, and starts them again when one
//! falls. `scripts/test-scale.sh torchrun` brings it and names it in TORCHRUN.

use super::{Ground, assert_same_run, wait, wait_for};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tests::program::{Finished, finish, program};

/// torchrun with two processes on this machine, on a port that it finds itself.
fn torchrun(flags: &[&str]) -> Command {
    let torchrun =
        std::env::var_os("TORCHRUN").expect("TORCHRUN is not set; run scripts/test-scale.sh torchrun");
    let mut command = Command::new(torchrun);
    command.args(["--standalone", "--nproc-per-node", "2"]).args(flags).arg("--no-python");
    command.env("OMP_NUM_THREADS", "1").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A teacher's training under it.
fn teach(ground: &Ground, flags: &[&str], out: &Path, more: &[&str]) -> Command {
    let mut command = torchrun(flags);
    command.arg(program("train").get_program());
    ground.teach(&mut command, out, more);
    command
}

/// The process of this rank that the launcher has started.
fn worker(launcher: &Child, rank: usize) -> u32 {
    let start = Instant::now();
    let wanted = format!("RANK={rank}");
    while start.elapsed() < Duration::from_secs(300) {
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Ok(process) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
            let read = |file: &str| fs::read(format!("/proc/{process}/{file}")).unwrap_or_default();
            let stat = String::from_utf8_lossy(&read("stat")).into_owned();
            let parent =
                stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1)?.parse::<u32>().ok());
            if parent == Some(launcher.id())
                && read("environ").split(|b| *b == 0).any(|v| v == wanted.as_bytes())
            {
                return process;
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("no process of rank {rank} under torchrun");
}

fn signal(name: &str, process: u32) {
    assert!(Command::new("kill").args([name, &process.to_string()]).status().unwrap().success());
}

fn state_of(out: &Path) -> PathBuf {
    let name = format!("{}.state.safetensors", out.file_name().unwrap().to_string_lossy());
    out.with_file_name(name)
}

/// What every user of PyTorch types must do what it does there.
#[test]
#[ignore = "needs torchrun: scripts/test-scale.sh torchrun"]
fn torchrun_trains_the_teacher_that_one_process_trains() {
    let ground = Ground::get();
    for (name, more) in [("torchrun", &[][..]), ("torchrun-sharded", &["--shard-optimizer"][..])] {
        let out = ground.path(name);
        finish(&mut teach(ground, &[], &out, more)).done();
        assert_same_run(&out, &ground.path("alone"));
    }
    let (one, two) = (ground.path("torchrun-student-1"), ground.path("torchrun-student-2"));
    ground.alone(|g, command| g.distil(command, &one)).done();
    let mut command = torchrun(&[]);
    command.arg(program("train").get_program());
    ground.distil(&mut command, &two);
    finish(&mut command).done();
    let bytes = |student: &Path| fs::read(student.join("predictor.safetensors")).unwrap();
    assert!(bytes(&one) == bytes(&two));
}

/// A machine that loses a process in the night must have the model in the morning, and the one it would have had.
#[test]
#[ignore = "needs torchrun: scripts/test-scale.sh torchrun"]
fn torchrun_goes_on_after_a_process_is_killed() {
    let ground = Ground::get();
    let out = ground.path("restarted");
    // No --resume: whoever is started again by the launcher goes on.
    let launcher = teach(ground, &["--max-restarts", "2"], &out, &["--shard-optimizer"]).spawn().unwrap();
    wait_for(&state_of(&out));
    signal("-KILL", worker(&launcher, 1));
    let finished = wait(launcher).done();
    assert!(finished.stderr.contains("continuing after step"), "{}", finished.stderr);
    assert_same_run(&out, &ground.path("alone"));
    assert!(!state_of(&out).exists());

    // One that only lends its hands to a distillation.
    let (one, two) = (ground.path("student"), ground.path("restarted-student"));
    ground.alone(|g, command| g.distil(command, &one)).done();
    let mut command = torchrun(&["--max-restarts", "2"]);
    command.arg(program("train").get_program());
    ground.distil(&mut command, &two);
    let launcher = command.spawn().unwrap();
    wait_for(&state_of(&two));
    signal("-KILL", worker(&launcher, 1));
    let finished = wait(launcher).done();
    assert!(finished.stderr.contains("continuing after step"), "{}", finished.stderr);
    let bytes = |student: &Path| fs::read(student.join("predictor.safetensors")).unwrap();
    assert!(bytes(&one) == bytes(&two));
}

/// A process that stops without ending would hold up the others, and a cluster's bill, for ever.
#[test]
#[ignore = "needs torchrun: scripts/test-scale.sh torchrun"]
fn torchrun_names_the_process_that_hangs() {
    let ground = Ground::get();
    for (rank, waiting) in [(1, 0), (0, 1)] {
        let out = ground.path(&format!("hangs-{rank}"));
        let launcher = teach(ground, &[], &out, &["--rank-timeout", "20"]).spawn().unwrap();
        wait_for(&state_of(&out));
        let stopped = worker(&launcher, rank);
        signal("-STOP", stopped);
        let finished = wait_after(launcher, stopped);
        let told = finished
            .stderr
            .lines()
            .find(|line| line.contains(&format!("process {waiting} of 2: waited 20 s")));
        assert!(
            told.is_some_and(|told| told.contains(&format!("for process {rank} of 2"))),
            "{}",
            finished.stderr
        );
    }
}

/// The launcher waits for its stopped process too, some time after it has asked it to end: then it is killed here.
fn wait_after(launcher: Child, stopped: u32) -> Finished {
    let finished = std::thread::spawn(move || wait(launcher));
    let start = Instant::now();
    while !finished.is_finished() && start.elapsed() < Duration::from_secs(40) {
        std::thread::sleep(Duration::from_millis(50));
    }
    // It may be gone already: the launcher kills what does not end.
    let _ = Command::new("kill").args(["-KILL", &stopped.to_string()]).stderr(Stdio::null()).status();
    finished.join().unwrap()
}

/// What differs between machines of a cluster is found before the first step.
#[test]
#[ignore = "needs torchrun: scripts/test-scale.sh torchrun"]
fn torchrun_refuses_processes_that_differ() {
    let ground = Ground::get();
    let mut command = torchrun(&[]);
    command.args(["sh", "-c", "exec \"$0\" \"$@\" --seed \"$RANK\""]).arg(program("train").get_program());
    ground.teach(&mut command, &ground.path("never"), &[]);
    let finished = finish(&mut command);
    assert_ne!(finished.code, Some(0));
    let told = "process 1 is not started as process 0 is (`seed` is 0 there and 1 in process 1)";
    assert!(finished.stderr.contains(told), "{}", finished.stderr);
    assert!(!ground.path("never").exists());
}
