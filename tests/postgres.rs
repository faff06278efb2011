//! An index in PostgreSQL as people use it: the same answers as from a directory, several servers on one database, restarts
//! and kills, and every wrong turn refused in one sentence.
//!
//! RABTRIEVER_TEST_DATABASE is the URL of a superuser with a password, RABTRIEVER_TEST_RESTART a command that kills and
//! restarts that server; `scripts/test-scale.sh postgres` sets both. Without them these tests say so and pass.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use models::student::{Form, Residual};
use postgres::{Client, NoTls};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tests::model::write_student;
use tests::program::{Finished, finish, program, run};
use tests::repository;
use tests::server::Server;

const SERVER: &str = "RABTRIEVER_TEST_DATABASE";
const RESTART: &str = "RABTRIEVER_TEST_RESTART";

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A database that is gone with this.
struct Scratch {
    server: String,
    name: String,
}

impl Scratch {
    fn new(name: &str) -> Option<Self> {
        let Ok(server) = std::env::var(SERVER) else {
            eprintln!("{name}: skipped, {SERVER} names no server");
            return None;
        };
        let name = format!("rabtriever_cli_{name}_{}", std::process::id());
        let mut client = Client::connect(&server, NoTls).unwrap();
        client.batch_execute(&format!("DROP DATABASE IF EXISTS {name}")).unwrap();
        client.batch_execute(&format!("CREATE DATABASE {name}")).unwrap();
        Some(Self { server, name })
    }

    fn url(&self) -> String {
        format!("{}/{}", self.server.rsplit_once('/').unwrap().0, self.name)
    }

    /// The URL without its password, and the password.
    fn parts(&self) -> (String, String) {
        let url = self.url();
        let (user, rest) = url.split_once('@').unwrap();
        let (user, password) = user.rsplit_once(':').unwrap();
        (format!("{user}@{rest}"), password.to_owned())
    }

    fn count(&self, sql: &str) -> i64 {
        Client::connect(&self.url(), NoTls).unwrap().query_one(sql, &[]).unwrap().get(0)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Ok(mut client) = Client::connect(&self.server, NoTls) {
            let _ = client.batch_execute(&format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name));
        }
    }
}

/// Bundles of both forms, the sample corpus with metadata, and an index of it in a directory for each bundle.
struct Shared(TempDir);

impl Shared {
    fn get() -> &'static Self {
        static SHARED: OnceLock<Shared> = OnceLock::new();
        SHARED.get_or_init(|| {
            let shared = Self(tempfile::tempdir().unwrap());
            let corpus = fs::read_to_string(repository().join("data/home-robot/corpus.jsonl")).unwrap();
            let line = |(i, line): (usize, &str)| {
                let mut document: Value = serde_json::from_str(line).unwrap();
                document["metadata"] = json!({
                    "room": (["kitchen", "bath", "hall", "garden"][i % 4]), "floor": i % 3, "place": i,
                    "tags": (["wet", "hot", "heavy"][..i % 4]), "at": {"site": (["a", "b"][i % 2])}
                });
                document.to_string() + "\n"
            };
            fs::write(shared.corpus(), corpus.lines().enumerate().map(line).collect::<String>()).unwrap();
            for form in [Form::Gated, Form::Relu] {
                let (bundle, student) =
                    (shared.bundle(form), shared.0.path().join(format!("student-{form:?}")));
                write_student(&student, form, Residual::Pooled, 7);
                let arguments = ["--onnx", "--student", text(&student), "--out", text(&bundle)];
                run("export", &[&arguments[..], &["--graph", "portable", "--allow-degraded"]].concat())
                    .done();
                index(&bundle, &shared.corpus(), &["--out", text(&shared.index(form))]).done();
            }
            shared
        })
    }

    fn corpus(&self) -> PathBuf {
        self.0.path().join("corpus.jsonl")
    }

    fn bundle(&self, form: Form) -> PathBuf {
        self.0.path().join(format!("bundle-{form:?}"))
    }

    fn index(&self, form: Form) -> PathBuf {
        self.0.path().join(format!("index-{form:?}"))
    }
}

fn index(bundle: &Path, documents: &Path, place: &[&str]) -> Finished {
    let arguments = ["index", "--bundle", text(bundle), "--documents", text(documents), "--skip-self-test"];
    run("runtime", &[&arguments[..], place].concat())
}

fn query(bundle: &Path, more: &[&str]) -> Finished {
    run("runtime", &[&["query", "--bundle", text(bundle), "--skip-self-test"], more].concat())
}

/// All sample queries, with and without filters: the run files are the same to the last byte, whichever form.
#[test]
fn all_answers_are_those_of_a_directory() {
    let Some(scratch) = Scratch::new("answers") else { return };
    let shared = Shared::get();
    let queries = repository().join("data/home-robot");
    let few = shared.0.path().join("few.jsonl");
    let lines = fs::read_to_string(queries.join("queries.jsonl")).unwrap();
    fs::write(&few, lines.lines().step_by(20).collect::<Vec<_>>().join("\n")).unwrap();
    let filters = [
        "room=kitchen",
        "room!=bath",
        "floor>=1",
        "tags=hot",
        "!owner",
        "at.site=a",
        "room in bath,hall",
        "place not in 3,4",
        r#"{"$or": [{"floor": 2}, {"$not": {"tags": {"$in": ["wet"]}}}]}"#,
    ];
    for form in [Form::Gated, Form::Relu] {
        let url = format!("{}?options=-csearch_path%3D{form:?},public", scratch.url()).to_lowercase();
        let mut client = Client::connect(&scratch.url(), NoTls).unwrap();
        client
            .batch_execute(&format!("CREATE EXTENSION IF NOT EXISTS vector; CREATE SCHEMA {form:?}"))
            .unwrap();
        let bundle = shared.bundle(form);
        let made = index(&bundle, &shared.corpus(), &["--store", &url]).done();
        assert!(made.stderr.contains("130 added"), "{}", made.stderr);
        let ask = |place: [&str; 2], queries: &Path, more: &[&str]| {
            let arguments = ["--queries", text(queries), "-k", "10", place[0], place[1]];
            query(&bundle, &[&arguments[..], more].concat()).done().stdout
        };
        let directory = shared.index(form);
        let same = |queries: &Path, more: &[&str]| {
            let expected = ask(["--index", text(&directory)], queries, more);
            assert_eq!(ask(["--store", &url], queries, more), expected, "{form:?} {more:?}");
            expected.lines().count()
        };
        assert_eq!(same(&queries, &[]), 21_600);
        for filter in filters {
            assert!(same(&few, &["--filter", filter]) > 500, "{filter}");
        }
        assert_eq!(same(&few, &["--exact"]), 1080);
    }
}

/// The way a user goes: index, ask, add, remove, look, with the password out of sight.
#[test]
fn documents_come_and_go() {
    let Some(scratch) = Scratch::new("documents") else { return };
    let (shared, dir) = (Shared::get(), tempfile::tempdir().unwrap());
    let bundle = shared.bundle(Form::Gated);
    let (url, password) = scratch.parts();
    let with_password = |arguments: &[&str]| {
        let mut command = program("runtime");
        finish(command.args(arguments).args(["--store", &url]).env("PGPASSWORD", &password))
    };
    let bundle = text(&bundle);
    let ask =
        |more: &[&str]| with_password(&[&["query", "--bundle", bundle, "--skip-self-test"], more].concat());
    ask(&["it is dark"]).refused(&[&url, "holds no index", "runtime index --store"]);
    let add = |documents: &Path| {
        with_password(&["index", "--bundle", bundle, "--skip-self-test", "--documents", text(documents)])
    };
    let made = add(&shared.corpus()).done();
    assert_eq!((made.stdout.trim(), made.stderr.contains("130 added")), (url.as_str(), true), "{made:?}");
    assert!(!format!("{made:?}").replace("PGPASSWORD", "").contains(&format!(":{password}@")));

    let corpus = fs::read_to_string(shared.corpus()).unwrap();
    let mut lines: Vec<Value> = corpus.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    lines[0]["text"] = "The robot does something else.".into();
    lines[1]["metadata"]["room"] = "attic".into();
    lines.push(json!({"_id": "new", "text": "The robot feeds the cat.", "metadata": {"big": u64::MAX, "x": 1e300, "nested": {"deep": [1, 2.0]}}}));
    let changed = dir.path().join("changed.jsonl");
    fs::write(&changed, lines.iter().map(|line| line.to_string() + "\n").collect::<String>()).unwrap();
    let added = add(&changed).done();
    assert!(added.stderr.contains("1 added, 2 replaced, 128 unchanged"), "{}", added.stderr);

    let answer = ask(&["--json", "-k", "3", "--filter", "room=attic", "who is there?"]).done().json();
    assert_eq!(
        (answer["results"].as_array().unwrap().len(), answer["path"].as_str()),
        (1, Some("exact")),
        "{answer}"
    );
    assert_eq!(answer["results"][0]["id"], lines[1]["_id"]);
    let answer = ask(&["--json", "--filter", &format!("big={}", u64::MAX), "the cat"]).done().json();
    assert_eq!(answer["results"][0]["metadata"], lines[130]["metadata"]);
    assert_eq!(ask(&["--filter", "room=nowhere", "the cat"]).code, Some(1));

    let removed = with_password(&["remove", "--bundle", bundle, "--compact", "new", "nobody"]).done();
    assert!(removed.stderr.contains("1 removed, 1 were not there"), "{}", removed.stderr);
    assert_eq!(with_password(&["remove", "--bundle", bundle, "new"]).code, Some(1));
    assert_eq!(scratch.count("SELECT count(*) FROM rabtriever_documents"), 130);
    let checked = with_password(&["check", "--bundle", bundle]).done();
    assert!(checked.stdout.contains("130 documents: the exact scan answers"), "{}", checked.stdout);
    let doctor = with_password(&["doctor", "--bundle", bundle]);
    assert!(doctor.stdout.contains(&format!("pass  index        {url}, 130 documents")), "{}", doctor.stdout);
}

/// Nobody should need the source to find out what is wrong, and nobody should read a password.
#[test]
fn wrong_turns_are_refused_in_one_sentence() {
    let Some(scratch) = Scratch::new("wrong") else { return };
    let shared = Shared::get();
    let (gated, relu) = (shared.bundle(Form::Gated), shared.bundle(Form::Relu));
    let (url, (plain, password)) = (scratch.url(), scratch.parts());
    let ask = |url: &str, more: &[&str]| query(&gated, &[&["--store", url, "it is dark"], more].concat());
    let refused = |finished: Finished, words: &[&str]| {
        assert!(
            !finished.stderr.contains(&password) && !finished.stderr.contains("s3cret"),
            "{}",
            finished.stderr
        );
        finished.refused(words);
    };
    let hasty = ["--store-timeout", "1"];
    refused(
        ask("postgres://robot:s3cret@127.0.0.1:1/x", &hasty),
        &["postgres://robot@127.0.0.1:1/x", "cannot be reached"],
    );
    refused(
        ask("postgres://robot:s3cret@host.invalid/x", &hasty),
        &["postgres://robot@host.invalid:5432/x", "cannot be reached"],
    );
    refused(
        ask("mysql://robot:s3cret@127.0.0.1/x", &[]),
        &["URL cannot be read", "postgres://USER@HOST:PORT/DATABASE", "PGPASSWORD"],
    );
    refused(ask("postgres://robot:s3cret@127.0.0.1:port/x", &[]), &["URL cannot be read"]);
    refused(ask("postgres://robot@127.0.0.1/x?s3cret=1", &[]), &["URL cannot be read"]);
    refused(ask(&url.replace(&password, "s3cret"), &[]), &["password authentication failed", "PGPASSWORD"]);
    refused(ask(&plain, &[]), &[&plain, "password"]);
    refused(ask(&url.replace(&scratch.name, "nowhere"), &[]), &["\"nowhere\" does not exist"]);
    refused(ask(&format!("{url}?sslmode=require"), &[]), &["cannot be reached", "TLS"]);
    refused(ask(&url, &["--index", "x"]), &["--index", "--store"]);
    refused(ask(&url, &["--store-timeout", "0"]), &["--store-timeout 0"]);
    refused(ask(&url, &["--store-connections", "0"]), &["--store-connections is 0"]);
    refused(query(&gated, &["it is dark"]), &["--index", "--store"]);
    index(&gated, &shared.corpus(), &["--store", &url]).done();
    refused(query(&relu, &["--store", &url, "it is dark"]), &["made with another bundle"]);
    refused(index(&relu, &shared.corpus(), &["--store", &url]), &["made with another bundle"]);
    let nul = shared.0.path().join("nul.jsonl");
    fs::write(&nul, "{\"_id\": \"ok\", \"text\": \"x\"}\n{\"_id\": \"n\", \"text\": \"x\\u0000y\"}\n")
        .unwrap();
    refused(index(&gated, &nul, &["--store", &url]), &["document `n`", "NUL"]);
    assert_eq!(scratch.count("SELECT count(*) FROM rabtriever_documents"), 130);
}

fn serve(bundle: &Path, url: &str, more: &[&str]) -> Server {
    let mut command = program("runtime");
    command.args(["serve", "--bundle", text(bundle), "--store", url]).args(more);
    Server::of(&mut command)
}

/// Servers beside one another are one index: what one acknowledged the other answers with, both may write, and one that is
/// killed takes nothing with it.
#[test]
fn servers_share_a_database() {
    let Some(scratch) = Scratch::new("servers") else { return };
    let shared = Shared::get();
    let (bundle, url) = (shared.bundle(Form::Gated), scratch.url());
    index(&bundle, &shared.corpus(), &["--store", &url]).done();
    let servers = [serve(&bundle, &url, &[]), serve(&bundle, &url, &["--store-connections", "2"])];
    let add = |server: &Server, id: &str, text: &str| {
        server.post(
            "/documents",
            &json!({"documents": [{"id": id, "text": text, "metadata": {"made": "here"}}]}),
        )
    };
    assert_eq!(add(&servers[0], "cat", "The robot feeds the cat.").json()["added"], 1);
    assert_eq!(servers[1].get("/documents/cat").json()["text"], "The robot feeds the cat.");
    let body = json!({"query": "the cat", "k": 200, "filter": {"made": "here"}});
    let answers = [servers[0].post("/query", &body).json(), servers[1].post("/query", &body).json()];
    assert_eq!(answers[0]["results"], answers[1]["results"]);
    assert_eq!(answers[0]["results"].as_array().unwrap().len(), 1);
    assert_eq!(servers[1].send("DELETE", "/documents/cat", "", b"").json()["removed"], 1);
    servers[0].get("/documents/cat").refused(404, "NotFound", "`cat`");
    assert_eq!(servers[0].get("/fields").json(), servers[1].get("/fields").json());
    assert_eq!(servers[0].get("/stats").json()["documents"], 130);
    servers[0].post("/query", &json!({"query": "x", "filter": {"a": "\u{0}"}})).refused(
        422,
        "Validation",
        "NUL",
    );

    // Both write the same ids and ids of their own; nobody is told to come back.
    std::thread::scope(|scope| {
        for (number, server) in servers.iter().enumerate() {
            scope.spawn(move || {
                for round in 0..25 {
                    add(server, &format!("own-{number}-{round}"), "The robot waits.").json();
                    let text = format!("The robot waits {number} times.");
                    add(server, &format!("both-{}", round % 5), &text).json();
                }
            });
        }
    });
    for server in &servers {
        assert_eq!(server.get("/stats").json()["documents"], 130 + 50 + 5);
    }
    assert_eq!(scratch.count("SELECT count(*) FROM rabtriever_documents"), 185);

    // Killed in the middle of it.
    let [first, second] = servers;
    let acknowledged = std::thread::scope(|scope| {
        let writing = scope.spawn(|| {
            let mut acknowledged = Vec::new();
            for number in 0..2000 {
                let id = format!("late-{number}");
                if add(&first, &id, "The robot waits.").status != 200 {
                    break;
                }
                acknowledged.push(id);
            }
            acknowledged
        });
        // Some are in, and the next one is on its way.
        while second.get("/documents/late-20").status != 200 {
            std::thread::sleep(Duration::from_millis(10));
        }
        first.signal("-KILL");
        writing.join().unwrap()
    });
    assert!(!acknowledged.is_empty() && acknowledged.len() < 2000);
    for id in &acknowledged {
        assert_eq!(second.get(&format!("/documents/{id}")).status, 200, "{id}");
    }
    second.signal("-TERM");
    assert_eq!(second.ended(), "");
}

/// The database is killed and restarted under two servers' load: requests wait, and nothing that was acknowledged is gone.
#[test]
fn a_restarted_database_is_waited_for() {
    let Some(scratch) = Scratch::new("restart") else { return };
    let Ok(restart) = std::env::var(RESTART) else {
        eprintln!("skipped, {RESTART} does not say how to restart the server");
        return;
    };
    let shared = Shared::get();
    let (bundle, url) = (shared.bundle(Form::Gated), scratch.url());
    index(&bundle, &shared.corpus(), &["--store", &url]).done();
    let patient = ["--store-timeout", "60", "--timeout", "60"];
    let servers = [serve(&bundle, &url, &patient), serve(&bundle, &url, &patient)];
    let (stop, steps) = (AtomicBool::new(false), [AtomicUsize::new(0), AtomicUsize::new(0)]);
    // Until both have come on: a database that has just been started may take its time.
    let go_on = || {
        let started = Instant::now();
        let before = steps.each_ref().map(|step| step.load(Ordering::Relaxed));
        while steps.iter().zip(before).any(|(step, before)| step.load(Ordering::Relaxed) < before + 5) {
            assert!(started.elapsed() < Duration::from_secs(180), "nothing comes on");
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    let acknowledged: Vec<String> = std::thread::scope(|scope| {
        let write = |number: usize| {
            let (server, stop, step) = (&servers[number], &stop, &steps[number]);
            scope.spawn(move || {
                let mut acknowledged = Vec::new();
                for round in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let id = format!("d-{number}-{round}");
                    let body = json!({"documents": [{"id": id, "text": "The robot waits."}]});
                    server.post("/documents", &body).json();
                    acknowledged.push(id);
                    let body = json!({"query": "who waits?", "k": 3});
                    assert_eq!(server.post("/query", &body).json()["results"].as_array().unwrap().len(), 3);
                    step.fetch_add(1, Ordering::Relaxed);
                }
                acknowledged
            })
        };
        let writers = [write(0), write(1)];
        for _ in 0..3 {
            go_on();
            assert!(Command::new("sh").args(["-c", &restart]).status().unwrap().success());
        }
        go_on();
        stop.store(true, Ordering::Relaxed);
        writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect()
    });
    eprintln!("{} documents acknowledged over 3 restarts", acknowledged.len());
    for id in &acknowledged {
        assert_eq!(servers[0].get(&format!("/documents/{id}")).status, 200, "{id}");
    }
    assert_eq!(scratch.count("SELECT count(*) FROM rabtriever_documents"), 130 + acknowledged.len() as i64);
    for server in servers {
        server.killed();
    }
}

/// A database that is gone answers 503 in a sentence, within the time that was allowed, and the server goes on.
#[test]
fn a_locked_database_costs_a_request_and_no_more() {
    let Some(scratch) = Scratch::new("locked") else { return };
    let shared = Shared::get();
    let (bundle, url) = (shared.bundle(Form::Relu), scratch.url());
    index(&bundle, &shared.corpus(), &["--store", &url]).done();
    let server = serve(&bundle, &url, &["--store-timeout", "0.5", "--store-connections", "1"]);
    let mut locker = Client::connect(&url, NoTls).unwrap();
    let mut lock = locker.transaction().unwrap();
    lock.batch_execute("LOCK TABLE rabtriever_documents").unwrap();
    let started = Instant::now();
    server.post("/query", &json!({"query": "x"})).refused(503, "Unhealthy", "no answer within 0.5 s");
    assert!(started.elapsed() < Duration::from_secs(20));
    drop(lock);
    assert_eq!(server.post("/query", &json!({"query": "x"})).json()["results"].as_array().unwrap().len(), 5);
    server.killed();
}
