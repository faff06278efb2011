//! `runtime keygen`, `snapshot`, `apply` and `stats` as those type them who look after many robots: everything is carried as files,
//! everything that must not be taken is refused by name, and a robot answers from what it has whatever happens to it.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use models::student::{Form, Residual};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Instant;
use tempfile::TempDir;
use tests::model::{copy_dir, write_student};
use tests::program::{Finished, program, run};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Two bundles, `bundle` and `other`, and a pair of keys.
fn shared(name: &str) -> PathBuf {
    static SHARED: OnceLock<TempDir> = OnceLock::new();
    let dir = SHARED.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        for (name, seed) in [("bundle", 7), ("other", 8)] {
            let student = dir.path().join(format!("student-{name}"));
            write_student(&student, Form::Gated, Residual::Pooled, seed);
            let out = dir.path().join(name);
            // The fixture's golden numbers are zeros: the exporter is told so.
            let arguments = ["--onnx", "--student", text(&student), "--out", text(&out), "--allow-degraded"];
            run("export", &arguments).done();
        }
        run("runtime", &["keygen", "--out", text(&dir.path().join("fleet.pem"))]).done();
        dir
    });
    dir.path().join(name)
}

/// A directory with a source in it and what is done to it.
struct Office {
    dir: TempDir,
}

impl Office {
    /// With a source of these documents.
    fn new(documents: std::ops::Range<usize>) -> Self {
        let office = Self { dir: tempfile::tempdir().unwrap() };
        office.add(documents);
        office
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn add(&self, documents: std::ops::Range<usize>) {
        self.add_to("source", documents, "skill");
    }

    fn add_to(&self, index: &str, documents: std::ops::Range<usize>, word: &str) {
        let file = self.path("documents.jsonl");
        let line = |i: usize| {
            let (id, text) =
                (format!("d{i}"), format!("The robot has {word} {i} and knows what to do with it."));
            json!({ "_id": id, "text": text, "metadata": { "number": i } }).to_string() + "\n"
        };
        fs::write(&file, documents.map(line).collect::<String>()).unwrap();
        let (bundle, out) = (shared("bundle"), self.path(index));
        let arguments = ["index", "--bundle", text(&bundle), "--documents", text(&file), "--out", text(&out)];
        run("runtime", &arguments).done();
    }

    fn remove(&self, id: &str) {
        let (bundle, index) = (shared("bundle"), self.path("source"));
        run("runtime", &["remove", "--bundle", text(&bundle), "--index", text(&index), id]).done();
    }

    fn snapshot(&self, since: u64, name: &str) -> Finished {
        self.snapshot_with(since, name, &shared("fleet.pem"))
    }

    fn snapshot_with(&self, since: u64, name: &str, key: &Path) -> Finished {
        let (index, out, since) = (self.path("source"), self.path(name), since.to_string());
        let arguments = ["snapshot", "--index", text(&index), "--since", &since, "--out", text(&out)];
        run("runtime", &[&arguments[..], &["--key", text(key)]].concat())
    }

    fn apply(&self, robot: &str, deltas: &[&str], more: &[&str]) -> Finished {
        let (index, trust) = (self.path(robot), shared("fleet.pub.pem"));
        let deltas: Vec<PathBuf> = deltas.iter().map(|delta| self.path(delta)).collect();
        let mut arguments = vec!["apply", "--index", text(&index), "--trust", text(&trust)];
        arguments.extend(more);
        arguments.extend(deltas.iter().map(|delta| text(delta)));
        run("runtime", &arguments)
    }

    fn stats(&self, index: &str) -> Value {
        run("runtime", &["stats", "--index", text(&self.path(index))]).done().json()
    }

    fn generation(&self, index: &str) -> u64 {
        self.stats(index)["generation"].as_u64().unwrap()
    }

    /// What a robot answers, whatever it says about time.
    fn answer(&self, index: &str) -> Value {
        let (bundle, index) = (shared("bundle"), self.path(index));
        let question = "Which robot has something to do?";
        let arguments =
            ["query", "--bundle", text(&bundle), "--index", text(&index), "-k", "500", "--json", question];
        run("runtime", &arguments).done().json()["results"].clone()
    }
}

/// The way of a fleet: a full snapshot, a delta, a robot that was away for long and catches up with a chain or in one go.
#[test]
fn robots_come_into_step() {
    let office = Office::new(0..150);
    let said = office.snapshot(0, "full").done();
    assert_eq!(said.stdout.trim(), text(&office.path("full")));
    for words in ["generations 0 to 3", "150 documents", "signed with key"] {
        assert!(said.stderr.contains(words), "{}", said.stderr);
    }
    for robot in ["near", "far", "away"] {
        let begun = office.apply(robot, &["full"], &[]).done();
        assert!(begun.stderr.contains("a new index of 150 documents at generation 3"), "{}", begun.stderr);
        assert_eq!(begun.stdout.trim(), text(&office.path(robot)));
    }
    let mut deltas = Vec::new();
    for week in 0..4 {
        let then = office.generation("source");
        office.add(150 + 10 * week..165 + 10 * week);
        office.remove(&format!("d{}", 7 * week));
        let name = format!("week-{week}");
        office.snapshot(then, &name).done();
        office.apply("near", &[&name], &[]).done();
        assert_eq!(office.stats("near"), office.stats("source"));
        deltas.push(name);
    }
    assert_eq!(office.stats("source")["documents"], 191);
    let chain: Vec<&str> = deltas.iter().map(String::as_str).collect();
    let caught_up = office.apply("far", &chain, &["--bundle", text(&shared("bundle"))]).done();
    assert_eq!(caught_up.stderr.matches("from generation").count(), 4, "{}", caught_up.stderr);
    office.snapshot(3, "all-weeks").done();
    office.apply("away", &["all-weeks"], &[]).done();
    let answer = office.answer("source");
    assert_eq!(answer.as_array().unwrap().len(), 191);
    for robot in ["near", "far", "away"] {
        assert_eq!(office.stats(robot), office.stats("source"));
        assert_eq!(office.answer(robot), answer);
        let again = office.apply(robot, &["full", "week-3", "all-weeks"], &[]).done();
        assert_eq!(again.stderr.matches("applied already").count(), 3, "{}", again.stderr);
    }
    let (bundle, index) = (shared("bundle"), office.path("far"));
    let doctor = run("runtime", &["doctor", "--bundle", text(&bundle), "--index", text(&index)]);
    let stats = office.stats("source");
    let generation = format!(
        "191 documents, generation {} with digest {}",
        stats["generation"],
        &stats["generation_digest"].as_str().unwrap()[..12]
    );
    assert!(doctor.stdout.contains(&generation), "{}", doctor.stdout);
    let nothing = office.snapshot(stats["generation"].as_u64().unwrap(), "nothing");
    assert_eq!((nothing.code, nothing.stdout.as_str()), (Some(1), ""));
    assert!(nothing.stderr.contains("there is nothing to send"), "{}", nothing.stderr);
    assert!(!office.path("nothing").exists());
}

/// Everything that must not reach a robot's answers, each refused in a sentence that says what to do.
#[test]
fn what_must_not_be_taken_is_refused_by_name() {
    let office = Office::new(0..70);
    office.snapshot(0, "full").done();
    office.apply("robot", &["full"], &[]).done();
    let answer = office.answer("robot");
    let then = office.generation("source");
    office.add(70..90);
    let between = office.generation("source");
    office.snapshot(then, "first").done();
    office.add(90..110);
    office.snapshot(between, "second").done();
    office.snapshot(0, "full-now").done();
    let refused = |robot: &str, deltas: &[&str], more: &[&str], words: &[&str]| {
        let refused = office.apply(robot, deltas, more).refused(words);
        assert_eq!(office.generation("robot"), then, "{}", refused.command);
    };
    refused("robot", &["second"], &[], &["second", "out of order", "--since 2"]);
    refused("nowhere", &["second"], &[], &["nowhere", "there is no index", "--since 0"]);
    refused("robot", &["absent"], &[], &["absent", "No such file"]);
    refused("robot", &["documents.jsonl"], &[], &["documents.jsonl", "is not a delta"]);
    refused(
        "robot",
        &["first"],
        &["--bundle", text(&shared("other"))],
        &["first", "for another encoder", "bundle"],
    );
    refused("robot", &["first"], &["--replace"], &["first", "only a full snapshot"]);
    let whole = fs::read(office.path("first")).unwrap();
    for place in [whole.len() - 1, whole.len() / 2, whole.len() / 3, 150] {
        let mut bytes = whole.clone();
        bytes[place] ^= 0x10;
        fs::write(office.path("damaged"), bytes).unwrap();
        refused("robot", &["damaged"], &[], &["damaged"]);
        fs::write(office.path("damaged"), &whole[..place]).unwrap();
        refused("robot", &["damaged"], &[], &["damaged", "the copy was cut off"]);
    }
    let version = b"format_version\":\"";
    let place = whole.windows(version.len()).position(|bytes| bytes == version).unwrap() + version.len();
    let mut newer = whole.clone();
    newer[place] = b'2';
    fs::write(office.path("newer"), newer).unwrap();
    refused("robot", &["newer"], &[], &["newer", "format version 2, this program reads version 1"]);
    // Somebody else's signature, and none at all.
    let stranger = office.path("stranger.pem");
    run("runtime", &["keygen", "--out", text(&stranger)]).done();
    office.snapshot_with(then, "strange", &stranger).done();
    refused("robot", &["strange"], &[], &["strange", "is not trusted here"]);
    let (index, deltas) = (office.path("robot"), office.path("first"));
    run("runtime", &["apply", "--index", text(&index), text(&deltas)]).refused(&["--trust"]);

    // Learned by itself: given up only on demand.
    assert_eq!(office.answer("robot"), answer);
    copy_dir(&office.path("robot"), &office.path("own"));
    office.add_to("own", 500..501, "an idea of its own for");
    let own = office.answer("own");
    for delta in ["first", "full-now"] {
        office.apply("own", &[delta], &[]).refused(&["own", "has changes of its own", "--replace"]);
    }
    assert_eq!(office.answer("own"), own);
    office.apply("own", &["full-now"], &["--replace"]).done();
    assert_eq!(office.stats("own"), office.stats("source"));
    office.apply("robot", &["first", "second"], &[]).done();
    assert_eq!(office.answer("robot"), office.answer("own"));

    let last = office.generation("source");
    office.snapshot(last + 1, "future").refused(&[
        "source",
        "remembers no generation",
        "0 for a full snapshot",
    ]);
    office.snapshot(0, "full").refused(&["full", "already exists"]);
    office
        .snapshot_with(0, "new", &shared("fleet.pub.pem"))
        .refused(&["fleet.pub.pem", "holds a public key"]);
    office
        .snapshot_with(0, "new", &office.path("documents.jsonl"))
        .refused(&["documents.jsonl", "is not a key"]);
    let private = ["apply", "--index", text(&index), "--trust", text(&stranger), text(&deltas)];
    run("runtime", &private).refused(&["stranger.pem", "holds a private key"]);
    run("runtime", &["stats", "--index", text(&office.path("nowhere"))])
        .refused(&["nowhere", "is not an index"]);
    assert!(!office.path("new").exists() && !office.path("nowhere").exists());
}

/// Keys are what a fleet's trust hangs on: readable for their owner alone, never printed, and openssl's own files.
#[test]
fn keys_are_private_and_openssls() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let made = run("runtime", &["keygen", "--out", text(&at("fleet.pem"))]).done();
    assert_eq!(made.stdout.trim(), text(&at("fleet.pub.pem")));
    assert_eq!(fs::metadata(at("fleet.pem")).unwrap().permissions().mode() & 0o777, 0o600);
    let secret = fs::read_to_string(at("fleet.pem")).unwrap();
    let secret = secret.lines().nth(1).unwrap();
    assert!(!made.stdout.contains(secret) && !made.stderr.contains(secret));
    run("runtime", &["keygen", "--out", text(&at("fleet.pem"))]).refused(&["fleet.pem", "already exists"]);
    let openssl = |arguments: &[&str]| Command::new("openssl").args(arguments).output();
    if openssl(&["version"]).is_err() {
        eprintln!("skipped: openssl is not installed");
        return;
    }
    // Ours is read there, and means the same pair.
    let public = openssl(&["pkey", "-in", text(&at("fleet.pem")), "-pubout"]).unwrap();
    assert_eq!(public.stdout, fs::read(at("fleet.pub.pem")).unwrap(), "{public:?}");
    // Theirs is read here.
    let (key, public) = (at("key.pem"), at("public.pem"));
    assert!(openssl(&["genpkey", "-algorithm", "ed25519", "-out", text(&key)]).unwrap().status.success());
    assert!(
        openssl(&["pkey", "-in", text(&key), "-pubout", "-out", text(&public)]).unwrap().status.success()
    );
    let office = Office::new(0..3);
    office.snapshot_with(0, "full", &key).done();
    let (robot, full) = (office.path("robot"), office.path("full"));
    run("runtime", &["apply", "--index", text(&robot), "--trust", text(&public), text(&full)]).done();
    assert_eq!(office.stats("robot"), office.stats("source"));
    let rsa = at("rsa.pem");
    assert!(openssl(&["genpkey", "-algorithm", "rsa", "-out", text(&rsa)]).unwrap().status.success());
    let refused = office.snapshot_with(0, "rsa", &rsa).refused(&["rsa.pem", "of another kind", "ed25519"]);
    assert!(!refused.stderr.contains(fs::read_to_string(&rsa).unwrap().lines().nth(1).unwrap()));
}

/// Batteries end whenever they like.
#[test]
fn a_robot_that_dies_while_it_takes_a_delta_takes_it_again() {
    let office = Office::new(0..300);
    office.snapshot(0, "full").done();
    office.apply("before", &["full"], &[]).done();
    let then = office.generation("source");
    office.add(200..900);
    office.remove("d3");
    office.snapshot(then, "delta").done();
    let (before, after) = (office.stats("before"), office.stats("source"));
    let (robot, trust, delta) = (office.path("robot"), shared("fleet.pub.pem"), office.path("delta"));
    let start = || {
        copy_dir(&office.path("before"), &robot);
        let mut command = program("runtime");
        command.args(["apply", "--index", text(&robot), "--trust", text(&trust), text(&delta)]);
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    let started = Instant::now();
    assert!(start().wait().unwrap().success());
    let whole = started.elapsed();
    assert_eq!(office.stats("robot"), after);
    let expected = office.answer("source");
    let mut ended = [0; 2];
    for kill in 0..25u32 {
        fs::remove_dir_all(&robot).unwrap();
        let mut child = start();
        std::thread::sleep(whole * kill / 22);
        child.kill().unwrap();
        child.wait().unwrap();
        let found = office.stats("robot");
        assert!(found == before || found == after, "kill {kill}: {found}");
        ended[usize::from(found == after)] += 1;
        office.apply("robot", &["delta"], &[]).done();
        assert_eq!(office.stats("robot"), after);
        if kill % 8 == 0 {
            assert_eq!(office.answer("robot"), expected);
        }
    }
    eprintln!("killed {} times before and {} times after", ended[0], ended[1]);
}
