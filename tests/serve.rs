//! `runtime serve` as clients meet it: answers that are the command line's, shapes that other programs expect, every bad
//! request refused in one sentence, and nothing lost under load, reload, kill and end.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use models::beir::Document;
use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tests::data::{documents, write_documents};
use tests::program::run;
use tests::server::{Answer, Server, index, own, shared, text};

/// Over HTTP and on the command line, one question has one answer; filters hold; what was added is there after a kill.
#[test]
fn answers_are_the_command_lines_and_changes_are_durable() {
    let dir = own();
    let server = Server::start(dir.path(), &[]);
    let asked = server.post("/query", &json!({ "query": "oh dear, spill!", "k": 4, "explain": true })).json();
    let (bundle, index) = (dir.path().join("bundle"), dir.path().join("index"));
    let typed =
        ["query", "--bundle", text(&bundle), "--index", text(&index), "-k", "4", "--json", "--explain"];
    let typed = run("runtime", &[&typed[..], &["oh dear, spill!"]].concat()).done();
    let typed: Value = serde_json::from_str(&typed.stdout).unwrap();
    assert_eq!(asked["results"], typed["results"]);
    let parts = &asked["results"][0]["explanation"];
    let sum = parts["query"].as_f64().unwrap() + parts["pair"].as_f64().unwrap();
    assert!((sum - asked["results"][0]["score"].as_f64().unwrap()).abs() < 1e-4);

    let filter = json!({ "room": "bath", "floor": { "$gte": 1 } });
    let filtered = server.post("/query", &json!({ "query": "spill", "k": 50, "filter": filter })).json();
    let places: Vec<u64> = filtered["results"]
        .as_array()
        .unwrap()
        .iter()
        .map(|hit| hit["metadata"]["place"].as_u64().unwrap())
        .collect();
    let expected = (0..documents().len() as u64).filter(|i| i % 2 == 1 && i % 3 >= 1).count();
    assert!(places.len() == expected && places.iter().all(|i| i % 2 == 1 && i % 3 >= 1), "{places:?}");

    let new = json!({ "id": "a/b c", "title": "", "text": "The robot feeds the cat.", "metadata": { "room": "hall" } });
    let added = server.post("/documents", &json!({ "documents": [new] })).json();
    assert_eq!((&added["added"], &added["replaced"]), (&json!(1), &json!(0)));
    assert_eq!(server.get("/documents/a%2Fb%20c").json(), new);
    assert_eq!(server.get("/fields").json()["fields"]["room"]["hall"], 1);
    let found = server.post("/query", &json!({ "query": "x", "filter": "room=hall" })).json();
    assert_eq!(found["results"][0]["id"], "a/b c");
    assert_eq!(server.send("DELETE", "/documents/broom", "", b"").json()["removed"], 1);
    server.send("DELETE", "/documents/broom", "", b"").refused(404, "NotFound", "`broom`");
    // Another process adds; this server finds it.
    fs::write(dir.path().join("more.jsonl"), "{\"_id\":\"other\",\"text\":\"The robot waters plants.\"}\n")
        .unwrap();
    self::index(&bundle, &dir.path().join("more.jsonl"), &index);
    assert_eq!(server.get("/documents/other").json()["id"], "other");
    let all = server.get("/documents?offset=0&limit=100").json();
    server.killed();

    let server = Server::start(dir.path(), &[]);
    assert_eq!(server.get("/documents?offset=0&limit=100").json(), all);
    assert_eq!(all["total"], documents().len() + 1);
    let page = server.get("/documents?offset=2&limit=3").json();
    assert_eq!(page["documents"].as_array().unwrap()[..], all["documents"].as_array().unwrap()[2..5]);
    let removed = server.post("/documents/remove", &json!({ "ids": ["other", "unknown"] })).json();
    assert_eq!(removed["removed"], 1);
    server.killed();
}

/// Programs written for other servers parse these answers; embeddings must rank as the retriever does.
#[test]
fn shapes_are_those_of_the_ecosystem() {
    let server = Server::start(shared().path(), &[]);
    let texts: Vec<String> = documents().iter().map(|d| format!("{}\n{}", d.title, d.text)).collect();
    let query = "is that crumbs?";
    let asked = server.post("/query", &json!({ "query": query, "k": 50 })).json();
    let order: Vec<String> = asked["results"]
        .as_array()
        .unwrap()
        .iter()
        .map(|hit| format!("{}\n{}", hit["title"].as_str().unwrap(), hit["text"].as_str().unwrap()))
        .collect();

    let ranks = server.post("/rerank", &json!({ "query": query, "texts": texts, "raw_scores": true, "return_text": true, "truncate": true })).json();
    let ranked: Vec<&str> =
        ranks.as_array().unwrap().iter().map(|rank| rank["text"].as_str().unwrap()).collect();
    assert_eq!(ranked, order);
    for (rank, hit) in ranks.as_array().unwrap().iter().zip(asked["results"].as_array().unwrap()) {
        let difference = rank["score"].as_f64().unwrap() - hit["score"].as_f64().unwrap();
        assert!(difference.abs() < 1e-4);
    }
    let objects: Vec<Value> = texts.iter().map(|text| json!({ "text": text })).collect();
    let v1 = json!({ "query": query, "documents": objects, "top_n": 3, "return_documents": true, "model": "m", "max_chunks_per_doc": 1 });
    let v1 = server.post("/v1/rerank", &v1).json();
    let v2 = server
        .post(
            "/v2/rerank",
            &json!({ "query": query, "documents": texts, "model": "m", "max_tokens_per_doc": 9 }),
        )
        .json();
    assert_eq!(v1["results"].as_array().unwrap().len(), 3);
    for (one, two) in v1["results"].as_array().unwrap().iter().zip(v2["results"].as_array().unwrap()) {
        assert_eq!((&one["index"], &one["relevance_score"]), (&two["index"], &two["relevance_score"]));
        assert!(two.get("document").is_none());
        assert_eq!(one["document"]["text"], texts[one["index"].as_u64().unwrap() as usize]);
    }
    assert_eq!(v2["meta"]["api_version"], json!({ "version": "2", "is_experimental": false }));
    assert_eq!(v2["meta"]["billed_units"]["search_units"], 1);

    let vectors =
        server.post("/embed", &json!({ "inputs": texts, "truncate": true, "normalize": false })).json();
    let numbers =
        |v: &Value| -> Vec<f64> { v.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect() };
    let asked_by =
        numbers(&server.post("/embed", &json!({ "inputs": query, "prompt_name": "query" })).json()[0]);
    let mut products: Vec<(f64, &String)> = vectors
        .as_array()
        .unwrap()
        .iter()
        .zip(&texts)
        .map(|(v, text)| (numbers(v).iter().zip(&asked_by).map(|(a, b)| a * b).sum(), text))
        .collect();
    products.sort_by(|a, b| b.0.total_cmp(&a.0));
    assert_eq!(products.iter().map(|(_, text)| (*text).clone()).collect::<Vec<_>>(), order);
    let unit = numbers(&server.post("/embed", &json!({ "inputs": "x", "normalize": true })).json()[0]);
    assert!((unit.iter().map(|x| x * x).sum::<f64>() - 1.0).abs() < 1e-5);

    let floats = server.post("/v1/embeddings", &json!({ "input": texts[..2], "model": "m" })).json();
    assert_eq!((&floats["object"], &floats["model"]), (&json!("list"), &json!("m")));
    assert_eq!(floats["data"][1]["index"], 1);
    assert_eq!(floats["data"][1]["embedding"], vectors[1]);
    assert!(floats["usage"]["prompt_tokens"].as_u64().unwrap() > 4);
    let coded = json!({ "input": texts[1], "model": "m", "encoding_format": "base64", "user": "u" });
    let coded = server.post("/v1/embeddings", &coded).json();
    let coded = coded["data"][0]["embedding"].as_str().unwrap().to_owned();
    let expected: Vec<u8> = numbers(&vectors[1]).iter().flat_map(|x| (*x as f32).to_le_bytes()).collect();
    assert_eq!(coded.len(), expected.len().div_ceil(3) * 4);
    let digit = |c: u8| {
        b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/".iter().position(|d| *d == c)
    };
    let first: Vec<usize> = coded.bytes().take(4).map(|c| digit(c).unwrap()).collect();
    assert_eq!((first[0] << 2 | first[1] >> 4) as u8, expected[0]);

    let page = server.get("/");
    assert!(
        page.status == 200 && page.head.contains("content-security-policy") && page.body.contains("<html")
    );
    assert_eq!(server.get("/openapi.json").json()["info"]["title"], "Rabtriever");
    let metrics = server.get("/metrics");
    for line in [
        "rabtriever_request_total{route=\"/query\",status=\"200\"} 1",
        "rabtriever_batch_size_bucket",
        "# EOF",
    ] {
        assert!(metrics.body.contains(line), "{} lacks {line}", metrics.body);
    }
    server.killed();
}

/// What clients send by mistake or on purpose is answered with a sentence, and the next request is served.
#[test]
fn bad_requests_are_refused_in_one_sentence() {
    let server = Server::start(shared().path(), &["--max-body", "20000", "--max-items", "60"]);
    let typed = "Content-Type: application/json\r\n";
    let query = |body: Value| server.post("/query", &body);
    query(json!({ "query": "" })).refused(422, "Validation", "the query is empty");
    query(json!({ "query": "x", "k": 0 })).refused(422, "Validation", "k is 0");
    query(json!({ "query": "x", "k": 61 })).refused(422, "Validation", "61 results, at most 60");
    query(json!({ "query": "x", "k": -1 })).refused(422, "Validation", "k");
    query(json!({ "query": "x", "top": 3 })).refused(422, "Validation", "unknown field `top`");
    query(json!({ "query": 7 })).refused(422, "Validation", "query");
    query(json!({ "query": "x", "filter": { "a": { "$near": 1 } } })).refused(422, "Validation", "`$near`");
    query(json!({ "query": "x", "filter": "a b=1" })).refused(422, "Validation", "one word");
    query(json!({ "query": "x", "rerank": 5 })).refused(422, "Validation", "no reranker is loaded");
    server.send("POST", "/query", typed, b"{oops").refused(400, "Malformed", "JSON");
    server.send("POST", "/query", typed, b"{\"query\": \"\xff\xfe\"}").refused(400, "Malformed", "JSON");
    server.send("POST", "/query", "", b"{\"query\": \"x\"}").refused(400, "Malformed", "application/json");
    server.get("/documents/%FF").refused(400, "Malformed", "UTF-8");
    let large = json!({ "query": "x".repeat(30_000) });
    query(large).refused(413, "Validation", "--max-body");
    let deep = format!("{{\"query\": \"x\", \"filter\": {}{}}}", "{\"$not\":".repeat(2000), "}".repeat(2000));
    assert!([400, 422].contains(&server.send("POST", "/query", typed, deep.as_bytes()).status));
    let many: Vec<Value> = (0..61).map(|i| json!({ "id": i.to_string(), "text": "x" })).collect();
    let add = |documents: Value| server.post("/documents", &json!({ "documents": documents }));
    add(json!(many)).refused(422, "Validation", "61 documents, at most 60");
    add(json!([{ "id": "", "text": "x" }])).refused(422, "Validation", "is empty");
    add(json!([{ "id": "e" }])).refused(422, "Validation", "`e` has neither title nor text");
    add(json!([{ "id": "e", "text": "x" }, { "id": "e", "text": "y" }])).refused(
        422,
        "Validation",
        "given twice",
    );
    add(json!([{ "id": "e", "text": "x", "metadata": 3 }])).refused(422, "Validation", "metadata");
    server.post("/embed", &json!({ "inputs": [] })).refused(400, "Malformed", "empty");
    server.post("/embed", &json!({ "inputs": "x", "dimensions": 3 })).refused(
        422,
        "Validation",
        "dimensions 3",
    );
    server.post("/embed", &json!({ "inputs": "x", "truncation_direction": "Left" })).refused(
        422,
        "Validation",
        "Left",
    );
    let long = json!({ "inputs": "spill ".repeat(2000), "truncate": false });
    server.post("/embed", &long).refused(422, "Validation", "tokens");
    server.post("/rerank", &json!({ "query": "x", "texts": [] })).refused(400, "Malformed", "no texts");
    server.get("/documents/nobody").refused(404, "NotFound", "`nobody`");
    server.get("/documents?limit=x").refused(400, "Malformed", "limit");
    server.get("/nothing").refused(404, "NotFound", "/openapi.json");
    server.get("/query").refused(405, "Method", "another method");
    assert_eq!(server.raw(b"\x16\x03\x01 this is not HTTP\r\n\r\n").status, 400);
    assert_eq!(server.raw(b"GET / HTTP/9.9\r\n\r\n").status, 400);
    assert_eq!(
        server.post("/query", &json!({ "query": "spill" })).json()["results"].as_array().unwrap().len(),
        5
    );
    assert_eq!(server.get("/documents?limit=0").json()["total"], documents().len());
    server.killed();
}

/// A web page must not reach a robot's server under a name of its own, and a key is a key.
#[test]
fn only_who_may_is_answered() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("key"), "s3cret\n").unwrap();
    let server = Server::start(shared().path(), &["--api-key-file", text(&dir.path().join("key"))]);
    for header in [
        "",
        "Authorization: Bearer wrong\r\n",
        "Authorization: Basic s3cret\r\n",
        "Authorization: Bearer\r\n",
    ] {
        server.send("GET", "/stats", header, b"").refused(401, "Unauthorized", "Bearer");
    }
    let key = "Authorization: Bearer s3cret\r\nHost: robot.example\r\n";
    assert_eq!(server.send("GET", "/stats", key, b"").json()["documents"], documents().len());
    // The scheme's name may be written in any case.
    assert_eq!(server.send("GET", "/stats", &key.replace("Bearer", "bearer"), b"").status, 200);
    for path in ["/", "/health", "/ready", "/openapi.json"] {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
    server.killed();

    let server = Server::start(
        shared().path(),
        &["--allow-host", "proxy.example", "--allow-host", "other.example:8443"],
    );
    for host in [
        "localhost",
        "localhost:9",
        "127.0.0.1:8080",
        "[::1]:8080",
        "[::1]",
        "PROXY.example:443",
        "other.example:8443",
    ] {
        assert_eq!(server.send("GET", "/stats", &format!("Host: {host}\r\n"), b"").status, 200, "{host}");
    }
    for host in
        ["attacker.example", "other.example:443", "localhost.attacker.example", "attacker.example:8080", ""]
    {
        server.send("GET", "/stats", &format!("Host: {host}\r\n"), b"").refused(
            403,
            "Forbidden",
            "--allow-host",
        );
    }
    server.killed();
}

/// Wrong turns at the start are one sentence.
#[test]
fn a_server_that_cannot_serve_says_why() {
    let (bundle, index) = (shared().path().join("bundle"), shared().path().join("index"));
    let serve = |more: &[&str]| {
        run("runtime", &[&["serve", "--bundle", text(&bundle), "--index", text(&index)], more].concat())
    };
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    serve(&["--listen", &taken]).refused(&[&taken, "--listen"]);
    serve(&["--listen", "127.0.0.1:0", "--queue", "0"]).refused(&["--queue is 0"]);
    serve(&["--listen", "127.0.0.1:0", "--timeout=-1"]).refused(&["--timeout -1"]);
    serve(&["--listen", "127.0.0.1:0", "--api-key-file", "/nonexistent"]).refused(&["/nonexistent"]);
    serve(&["--listen", "nowhere"]).refused(&["nowhere"]);
    serve(&["--listen", "127.0.0.1:0", "--reranker", text(&bundle)]).refused(&["cannot use the reranker"]);
}

/// What every query's answer is when nothing else happens.
fn expected(server: &Server, queries: &[String]) -> Vec<Value> {
    queries
        .iter()
        .map(|query| server.post("/query", &json!({ "query": query })).json()["results"].clone())
        .collect()
}

/// Same documents in the same order, scores within the rounding of another batch.
fn same(found: &Value, expected: &Value) -> bool {
    let (found, expected) = (found.as_array().unwrap(), expected.as_array().unwrap());
    found.len() == expected.len()
        && found.iter().zip(expected).all(|(f, e)| {
            f["id"] == e["id"] && (f["score"].as_f64().unwrap() - e["score"].as_f64().unwrap()).abs() < 1e-3
        })
}

/// A robot's server meets more clients than it has places, slow ones, and nonsense: every answer is right or an honest
/// refusal, and memory does not grow.
#[test]
fn under_pressure_answers_are_right_or_refused() {
    const CLIENTS: usize = 24;
    const EACH: usize = 60;
    let server =
        Server::start(shared().path(), &["--queue", "8", "--connections", "64", "--max-body", "50000"]);
    let queries: Vec<String> = ["spill", "crumbs", "bell", "dark", "bare wall", "silent clock"]
        .iter()
        .flat_map(|word| {
            [
                format!("oh dear, {word}!"),
                format!("{word}, and nobody cares {}.", "at all ".repeat(word.len())),
            ]
        })
        .collect();
    let expected = expected(&server, &queries);
    let (right, refused, wrong) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let load = |clients: usize| {
        std::thread::scope(|scope| {
            for client in 0..clients {
                let (server, queries, expected) = (&server, &queries, &expected);
                let (right, refused, wrong) = (&right, &refused, &wrong);
                scope.spawn(move || {
                    for turn in 0..EACH {
                        let which = (client * 7 + turn) % queries.len();
                        match turn % 12 {
                            // Nonsense, half a request and a large one, among the others.
                            3 => drop(server.send(
                                "POST",
                                "/query",
                                "Content-Type: application/json\r\n",
                                b"{\"query\"",
                            )),
                            5 => {
                                let mut stream = TcpStream::connect(&server.address).unwrap();
                                let _ = stream
                                    .write_all(b"POST /query HTTP/1.1\r\nHost: localhost\r\nContent-Le");
                            }
                            7 => drop(server.post("/query", &json!({ "query": "x".repeat(60_000) }))),
                            _ => {
                                let answer = server.post("/query", &json!({ "query": queries[which] }));
                                match answer.status {
                                    200 if same(&answer.json()["results"], &expected[which]) => {
                                        right.fetch_add(1, Ordering::Relaxed)
                                    }
                                    429 => {
                                        let wait = answer
                                            .head
                                            .lines()
                                            .find_map(|line| line.strip_prefix("retry-after: "));
                                        let wait: u32 = wait.unwrap().trim().parse().unwrap();
                                        assert!((1..=3).contains(&wait), "{answer:?}");
                                        refused.fetch_add(1, Ordering::Relaxed)
                                    }
                                    _ => {
                                        eprintln!("{answer:?}");
                                        wrong.fetch_add(1, Ordering::Relaxed)
                                    }
                                };
                            }
                        }
                    }
                });
            }
        });
    };
    load(CLIENTS / 4);
    let before = server.resident_megabytes();
    load(CLIENTS);
    load(CLIENTS);
    let after = server.resident_megabytes();
    let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
    eprintln!(
        "{} right, {} told to come back, {} wrong; {before:.0} MB resident before, {after:.0} MB after",
        count(&right),
        count(&refused),
        count(&wrong)
    );
    assert_eq!(count(&wrong), 0);
    assert!(count(&right) > CLIENTS * EACH / 4, "{} answers", count(&right));
    assert!(after < before + 30.0, "{before:.0} MB resident before the load, {after:.0} MB after it");
    // Slow ones hold their own connection only, and not for ever.
    let slow: Vec<TcpStream> = (0..30).map(|_| TcpStream::connect(&server.address).unwrap()).collect();
    for mut stream in &slow {
        stream.write_all(b"POST /query HTTP/1.1\r\nHost: localhost\r\n").unwrap();
    }
    assert!(same(&server.post("/query", &json!({ "query": queries[0] })).json()["results"], &expected[0]));
    server.killed();
}

/// A new index is taken up while clients ask, and none of them notices; a broken one is not taken up.
#[test]
fn reloading_drops_no_request() {
    let dir = own();
    let server = Server::start(dir.path(), &[]);
    let (stop, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let answer = server.post("/query", &json!({ "query": "spill", "k": 50 })).json();
                    let found = answer["results"].as_array().unwrap().len();
                    assert!(found == documents().len() || found == 1, "{found} results");
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        // Another index in the place of this one.
        let other = dir.path().join("other");
        write_documents(&dir.path().join("one.jsonl"), &documents()[..1]);
        index(&dir.path().join("bundle"), &dir.path().join("one.jsonl"), &other);
        let total = || server.get("/documents?limit=1").json()["total"].as_u64().unwrap();
        assert_eq!(total(), documents().len() as u64);
        fs::rename(dir.path().join("index"), dir.path().join("old")).unwrap();
        fs::rename(&other, dir.path().join("index")).unwrap();
        server.signal("-HUP");
        let started = Instant::now();
        while total() != 1 {
            assert!(started.elapsed() < Duration::from_secs(30), "the new index is not taken up");
            std::thread::sleep(Duration::from_millis(20));
        }
        // A bundle that cannot be read changes nothing.
        fs::write(dir.path().join("bundle/manifest.json"), "{").unwrap();
        server.signal("-HUP");
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(total(), 1);
        stop.store(true, Ordering::Relaxed);
    });
    assert!(answered.load(Ordering::Relaxed) > 10);
    server.signal("-TERM");
    let said = server.ended();
    assert!(said.contains("loaded anew") && said.contains("goes on with what is loaded"), "{said}");
}

/// What has begun is answered before the end, and then nobody is.
#[test]
fn the_end_waits_for_what_has_begun() {
    // Other tests run beside this one: how long it may take is not what this is about.
    let server = Server::start(shared().path(), &["--grace", "60", "--timeout", "60"]);
    let texts: Vec<String> = (0..1000).map(|i| format!("{i} {}", "spill crumbs ".repeat(140))).collect();
    let address = server.address.clone();
    let answer = std::thread::scope(|scope| {
        let asked = scope.spawn(|| server.post("/embed", &json!({ "inputs": texts })));
        let started = Instant::now();
        while !server.get("/metrics").body.contains("rabtriever_queue_size 1") {
            assert!(
                started.elapsed() < Duration::from_secs(30) && !asked.is_finished(),
                "too fast to be interrupted"
            );
        }
        server.signal("-TERM");
        asked.join().unwrap()
    });
    assert_eq!(answer.json().as_array().unwrap().len(), 1000);
    server.ended();
    assert!(TcpStream::connect(address).is_err());
}

/// Somebody who has hundreds of texts encoded, or adds as many documents, must not keep a robot's question waiting for all of
/// them, nor take every place.
#[test]
fn bulk_work_lets_queries_between() {
    let dir = own();
    let server = Server::start(dir.path(), &["--queue", "8"]);
    let words = |i: usize| format!("the robot carries {i} {}", "crumbs of bread ".repeat(6));
    let texts: Vec<String> = (0..400).map(words).collect();
    let added: Vec<Value> =
        (0..1000).map(|i| json!({ "id": format!("new-{i}"), "text": words(i) })).collect();
    type Bulk = Box<dyn Fn(&Server) -> Answer + Send + Sync>;
    let bulks: [(&str, Bulk); 2] = [
        ("embed", Box::new(move |server| server.post("/embed", &json!({ "inputs": texts })))),
        ("add", Box::new(move |server| server.post("/documents", &json!({ "documents": added })))),
    ];
    for (name, bulk) in &bulks {
        let working = AtomicBool::new(true);
        let (answered, slowest, whole) = std::thread::scope(|scope| {
            let (server, working) = (&server, &working);
            let start = Instant::now();
            scope.spawn(move || {
                assert_eq!(bulk(server).status, 200, "{name}");
                working.store(false, Ordering::Relaxed);
            });
            let (mut answered, mut slowest) = (0, Duration::ZERO);
            while working.load(Ordering::Relaxed) {
                let asked = Instant::now();
                assert_eq!(server.post("/query", &json!({ "query": "crumbs on the floor" })).status, 200);
                slowest = slowest.max(asked.elapsed());
                answered += 1;
            }
            (answered, slowest, start.elapsed())
        });
        eprintln!("{name}: {answered} queries in {whole:?}, the slowest in {slowest:?}");
        assert!(answered >= 5 && slowest < whole / 2, "{name}: {answered} in {whole:?}, slowest {slowest:?}");
    }
    // More changes than half the places are told to come back; whoever asks or watches is not.
    let refused = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for client in 0..16 {
            let (server, refused) = (&server, &refused);
            scope.spawn(move || {
                let text = words(client);
                let documents: Vec<Value> = (0..200)
                    .map(|i| json!({ "id": format!("c{client}-{i}"), "text": format!("{text} {i}") }))
                    .collect();
                match server.post("/documents", &json!({ "documents": documents })).status {
                    200 => {}
                    429 => drop(refused.fetch_add(1, Ordering::Relaxed)),
                    status => panic!("{status}"),
                }
            });
        }
        for _ in 0..5 {
            assert_eq!(server.get("/metrics").status, 200);
            assert_eq!(server.post("/query", &json!({ "query": "crumbs on the floor" })).status, 200);
        }
    });
    assert!(refused.into_inner() > 0, "sixteen changes at once found eight places");
    server.killed();
}

/// Where a bundle takes several texts at once, clients that ask together are answered sooner than one after the other.
#[test]
fn what_waits_together_is_encoded_together() {
    let server = Server::start(shared().path(), &[]);
    std::thread::scope(|scope| {
        for client in 0..8 {
            let server = &server;
            scope.spawn(move || {
                for turn in 0..40 {
                    let query = format!("spill {} {}", client, "crumbs ".repeat(turn % 9));
                    assert_eq!(server.post("/query", &json!({ "query": query })).status, 200);
                }
            });
        }
    });
    let metrics = server.get("/metrics").body;
    let number = |name: &str| -> f64 {
        let line = metrics.lines().find(|line| line.starts_with(name)).unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    let mean = number("rabtriever_batch_size_sum") / number("rabtriever_batch_size_count");
    eprintln!("{mean:.2} texts together in the mean");
    assert!(mean > 1.1, "{mean:.2} texts were encoded together in the mean");
    server.killed();
}

/// A robot's server that went on answering from last week's skills would make a fleet that is never in step; and nobody restarts it.
#[test]
fn a_delta_is_answered_from_at_the_next_query() {
    let (office, robot) = (own(), own());
    let at = |dir: &TempDir, name: &str| dir.path().join(name);
    let (key, trust) = (at(&office, "fleet.pem"), at(&office, "fleet.pub.pem"));
    run("runtime", &["keygen", "--out", text(&key)]).done();
    let server = Server::start(robot.path(), &[]);
    let stats = |name: &str| server.get("/stats").json()[name].clone();
    let (generation, digest) = (stats("generation").as_u64().unwrap(), stats("generation_digest"));
    let ask = || server.post("/query", &json!({ "query": "It smells of smoke!", "k": 50 })).json();
    let ids = |answer: &Value| -> Vec<String> {
        let results = answer["results"].as_array().unwrap();
        results.iter().map(|hit| hit["id"].as_str().unwrap().to_owned()).collect()
    };
    assert!(!ids(&ask()).contains(&"alarm".to_owned()));

    let document =
        Document { id: "alarm".into(), title: String::new(), text: "The robot rings the alarm.".into() };
    write_documents(&at(&office, "more.jsonl"), &[document]);
    index(&at(&office, "bundle"), &at(&office, "more.jsonl"), &at(&office, "index"));
    let (bundle, source) = (at(&office, "bundle"), at(&office, "index"));
    run("runtime", &["remove", "--bundle", text(&bundle), "--index", text(&source), "sponge"]).done();
    let snapshot = |since: u64, name: &str| {
        let (out, since) = (at(&office, name), since.to_string());
        let arguments = ["snapshot", "--index", text(&source), "--key", text(&key), "--since", &since];
        run("runtime", &[&arguments[..], &["--out", text(&out)]].concat()).done();
        out
    };
    let apply = |delta: &Path, more: &[&str]| {
        let robot = at(&robot, "index");
        let arguments = ["apply", "--index", text(&robot), "--trust", text(&trust), text(delta)];
        run("runtime", &[&arguments[..], more].concat())
    };
    let delta = snapshot(generation, "delta");
    let mut damaged = fs::read(&delta).unwrap();
    let last = damaged.len() - 1;
    damaged[last] ^= 1;
    fs::write(at(&office, "damaged"), damaged).unwrap();
    apply(&at(&office, "damaged"), &[]).refused(&["damaged"]);
    assert_eq!(
        (stats("generation").as_u64(), stats("generation_digest")),
        (Some(generation), digest.clone())
    );

    apply(&delta, &[]).done();
    let now = ids(&ask());
    assert!(now.contains(&"alarm".to_owned()) && !now.contains(&"sponge".to_owned()), "{now:?}");
    assert_eq!(stats("generation").as_u64(), Some(generation + 2));
    assert_ne!(stats("generation_digest"), digest);

    // The robot goes a way of its own, to a higher number, and is called back to a lower one.
    for i in 0..3 {
        let body =
            json!({ "documents": [{ "id": format!("own{i}"), "text": "The robot found a shortcut." }] });
        assert_eq!(server.post("/documents", &body).status, 200);
    }
    run("runtime", &["remove", "--bundle", text(&bundle), "--index", text(&source), "lamp"]).done();
    let full = snapshot(0, "full");
    apply(&full, &[]).refused(&["has changes of its own"]);
    assert!(ids(&ask()).contains(&"own2".to_owned()));
    apply(&full, &["--replace"]).done();
    let left: Vec<String> = now.into_iter().filter(|id| id != "lamp").collect();
    assert_eq!(ids(&ask()), left);
    let in_step = run("runtime", &["stats", "--index", text(&source)]).done().json();
    assert_eq!(stats("generation_digest"), in_step["generation_digest"]);
    assert_eq!(stats("generation").as_u64(), Some(generation + 3));
    server.killed();
}
