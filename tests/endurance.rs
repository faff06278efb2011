//! What a server meets in years: clients that never read, indexes that are replaced under it, reloads amid changes, and an end
//! that is wanted at once.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use serde_json::{Value, json};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tests::data::{documents, write_documents};
use tests::server::{Server, index, own, shared};

/// Asks again until it is so, or a minute is over.
fn wait_until(what: &str, mut so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !so() {
        assert!(started.elapsed() < Duration::from_secs(60), "{what}: not within a minute");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn add(server: &Server, id: &str) -> tests::server::Answer {
    server
        .post("/documents", &json!({ "documents": [{ "id": id, "text": format!("The robot knows {id}.") }] }))
}

/// Clients that ask and never read their answers must not keep everybody else out for ever.
#[test]
fn who_reads_no_answers_loses_the_connection() {
    let server = Server::start(shared().path(), &["--connections", "2", "--timeout", "2"]);
    let request = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(2000);
    let deaf: Vec<TcpStream> = (0..2)
        .map(|_| {
            let mut stream = TcpStream::connect(&server.address).unwrap();
            // The server takes no more requests when it is rid of no more answers.
            stream.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
            let _ = stream.write_all(&request);
            stream
        })
        .collect();
    assert_eq!(server.get("/health").status, 200);
    drop(deaf);
    server.killed();
}

/// A new index moved into the place of the one that is open: until the server is told, it answers from the old one and takes no
/// change, which would be in an index that nobody has open; then all is the new one's.
#[test]
fn a_replaced_index_takes_no_changes_until_the_reload() {
    let dir = own();
    let server = Server::start(dir.path(), &[]);
    let total = || server.get("/documents?limit=1").json()["total"].as_u64().unwrap();
    assert_eq!(add(&server, "before").status, 200);
    write_documents(&dir.path().join("one.jsonl"), &documents()[..1]);
    index(&dir.path().join("bundle"), &dir.path().join("one.jsonl"), &dir.path().join("other"));
    fs::rename(dir.path().join("index"), dir.path().join("old")).unwrap();
    fs::rename(dir.path().join("other"), dir.path().join("index")).unwrap();

    add(&server, "lost").refused(409, "Busy", "another index has been put in its place");
    server.send("DELETE", "/documents/before", "", b"").refused(409, "Busy", "SIGHUP");
    assert_eq!(total(), documents().len() as u64 + 1);
    let found = server.post("/query", &json!({ "query": "spill", "k": 50 })).json();
    assert_eq!(found["results"].as_array().unwrap().len(), documents().len() + 1);

    server.signal("-HUP");
    wait_until("the new index", || total() == 1);
    assert_eq!(add(&server, "kept").status, 200);
    assert_eq!(server.get("/documents/kept").status, 200);
    // Removed altogether, it is the same; and nothing to reload leaves what there is.
    fs::remove_dir_all(dir.path().join("index")).unwrap();
    add(&server, "lost").refused(409, "Busy", "or it was removed");
    server.signal("-HUP");
    assert_eq!(total(), 2);
    server.signal("-TERM");
    let said = server.ended();
    assert!(said.contains("loaded anew"), "{said}");
}

/// Two retrievers of one server, the old one still adding and the new one asked to add, are not two programs in each other's way.
#[test]
fn changes_amid_a_reload_are_not_refused() {
    let dir = own();
    let server = Server::start(dir.path(), &[]);
    let bulk: Vec<Value> = (0..1000)
        .map(|i| json!({ "id": format!("bulk-{i}"), "text": format!("the robot carries {i} {}", "crumbs ".repeat(9)) }))
        .collect();
    let added = std::thread::scope(|scope| {
        let bulk = scope.spawn(|| server.post("/documents", &json!({ "documents": bulk })));
        let mut small = Vec::new();
        // They come while the old retriever adds, before, amid and after the reload. The server has places for so many.
        while !bulk.is_finished() && small.len() < 20 {
            server.signal("-HUP");
            std::thread::sleep(Duration::from_millis(100));
            let (server, id) = (&server, format!("small-{}", small.len()));
            small.push(scope.spawn(move || add(server, &id)));
        }
        assert_eq!(bulk.join().unwrap().status, 200);
        let added = small.len();
        for answer in small.into_iter().map(|small| small.join().unwrap()) {
            assert_eq!(answer.status, 200, "{answer:?}");
        }
        added
    });
    assert!(added > 0);
    let total = server.get("/documents?limit=1").json()["total"].as_u64().unwrap();
    assert_eq!(total as usize, documents().len() + bulk.len() + added);
    server.killed();
}

/// Who says it twice means it: a request that never ends must not keep a robot from being switched off.
#[test]
fn told_twice_it_stops_at_once() {
    let server = Server::start(shared().path(), &["--grace", "600", "--timeout", "600"]);
    let mut half = TcpStream::connect(&server.address).unwrap();
    half.write_all(b"POST /query HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nExpect: 100-continue\r\nContent-Length: 99\r\n\r\n")
        .unwrap();
    // It has begun to read the body when it says that it wants it.
    let mut go_on = [0; 25];
    half.read_exact(&mut go_on).unwrap();
    assert!(go_on.starts_with(b"HTTP/1.1 100"), "{}", String::from_utf8_lossy(&go_on));
    server.signal("-TERM");
    wait_until("no new connections", || TcpStream::connect(&server.address).is_err());
    let mut server = server;
    assert!(server.child.try_wait().unwrap().is_none(), "it did not wait for what has begun");
    server.signal("-TERM");
    wait_until("the end", || server.child.try_wait().unwrap().is_some());
    assert!(server.ended().contains("told to stop twice"));
}

/// What is sent by mistake or on purpose; the status that it must have, or any refusal.
fn nonsense(server: &Server, which: usize) {
    let json = "Content-Type: application/json\r\n";
    let post = |body: &[u8]| server.send("POST", "/query", json, body);
    let [refused, malformed] = [&[400, 413, 422, 429][..], &[400, 422, 429]];
    let (answer, expected) = match which % 8 {
        0 => (post(b"{\"query\": \"spill\""), malformed),
        1 => (post(b"{\"query\": \"\xc3\x28\xff\"}"), malformed),
        2 => (post(&b"[".repeat(20_000)), malformed),
        3 => (server.send("POST", "/documents", json, &b"x".repeat(60_000)), refused),
        // Larger than the limit, and it does not say so beforehand.
        4 => {
            let head = "POST /query HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
            let chunk = [b"8000\r\n", &b"x".repeat(0x8000)[..], b"\r\n"].concat();
            (server.raw(&[head.as_bytes(), &chunk.repeat(3), b"0\r\n\r\n"].concat()), refused)
        }
        5 => {
            (server.raw(b"POST /query HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n"), malformed)
        }
        6 => (server.send("POST", "/embed", json, br#"{"inputs": [1, null, {}]}"#), malformed),
        _ => (server.send("GET", "/documents/%C3%28", "", b""), malformed),
    };
    // A connection that is closed while its body is still sent may lose the answer.
    assert!(answer.status == 0 || expected.contains(&answer.status), "{which}: {answer:?}");
}

/// All at once: questions, changes, nonsense, clients that send a byte at a time and clients that take nothing. Every answer is the
/// right one or an honest refusal, nothing panics, and memory does not grow with what was sent.
#[test]
fn a_day_of_everything_at_once() {
    const TURNS: usize = 48;
    let dir = own();
    let server = Server::start(
        dir.path(),
        &["--queue", "12", "--connections", "80", "--max-body", "50000", "--timeout", "60"],
    );
    // What is added stands in a room of its own, so that the answers are known.
    let ask = |server: &Server, query: &str| {
        server.post("/query", &json!({ "query": query, "k": 4, "filter": { "place": { "$exists": true } } }))
    };
    let queries = ["spill", "crumbs on the floor", "the bell", "it is dark", "a bare wall"];
    let expected: Vec<Value> =
        queries.iter().map(|query| ask(&server, query).json()["results"].clone()).collect();
    let (right, later) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let round = |clients: usize| {
        std::thread::scope(|scope| {
            for client in 0..clients {
                let (server, expected, right, later, ask) = (&server, &expected, &right, &later, &ask);
                scope.spawn(move || {
                    let mut slow = Vec::new();
                    for turn in 0..TURNS {
                        match (client + turn) % 6 {
                            0 => nonsense(server, client + turn / 6),
                            1 => {
                                let id = format!("new-{client}");
                                let answer = if turn % 2 == 0 {
                                    add(server, &id)
                                } else {
                                    server.send("DELETE", &format!("/documents/{id}"), "", b"")
                                };
                                assert!([200, 404, 429].contains(&answer.status), "{answer:?}");
                            }
                            2 if turn < 6 => {
                                // Begun and never ended; some also ask for much and take nothing.
                                let mut stream = TcpStream::connect(&server.address).unwrap();
                                stream.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
                                if client % 2 == 0 {
                                    let _ = stream.write_all(b"POST /query HTTP/1.1\r\nHost: localhost\r\nContent-Length: 40\r\n\r\n{");
                                } else {
                                    let many = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(300);
                                    let _ = stream.write_all(&many);
                                }
                                slow.push(stream);
                            }
                            _ => {
                                let which = (client * 7 + turn) % queries.len();
                                let answer = ask(server, queries[which]);
                                if answer.status == 429 {
                                    later.fetch_add(1, Ordering::Relaxed);
                                } else {
                                    assert!(same(&answer.json()["results"], &expected[which]), "{answer:?}");
                                    right.fetch_add(1, Ordering::Relaxed);
                                }
                            }
                        }
                    }
                });
            }
        });
    };
    round(6);
    let before = server.resident_megabytes();
    round(16);
    round(16);
    let after = server.resident_megabytes();
    let (right, later) = (right.into_inner(), later.into_inner());
    eprintln!(
        "{right} right, {later} told to come back; {before:.0} MB resident before, {after:.0} MB after"
    );
    assert!(right > TURNS, "{right} answers");
    assert!(after < before + 40.0, "{before:.0} MB resident before, {after:.0} MB after");
    for (query, expected) in queries.iter().zip(&expected) {
        assert!(same(&ask(&server, query).json()["results"], expected));
    }
    server.signal("-TERM");
    let said = server.ended();
    assert!(!said.contains("panicked"), "{said}");
}

/// Same documents in the same order, scores within the rounding of another batch.
fn same(found: &Value, expected: &Value) -> bool {
    let (found, expected) = (found.as_array().unwrap(), expected.as_array().unwrap());
    let near =
        |f: &Value, e: &Value| (f["score"].as_f64().unwrap() - e["score"].as_f64().unwrap()).abs() < 1e-3;
    found.len() == expected.len() && found.iter().zip(expected).all(|(f, e)| f["id"] == e["id"] && near(f, e))
}
