//! `runtime serve` as other servers' clients meet it: what they send unasked, what they cannot say, and what they do when
//! they are refused.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use serde_json::{Value, json};
use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};
use tests::data::documents;
use tests::server::{Server, shared, text};

fn numbers(vector: &Value) -> Vec<f64> {
    vector.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn contents() -> Vec<String> {
    documents().iter().map(|d| format!("{}\n{}", d.title, d.text)).collect()
}

fn openai(server: &Server, body: &Value) -> Vec<Vec<f64>> {
    let answer = server.post("/v1/embeddings", body).json();
    answer["data"].as_array().unwrap().iter().map(|one| numbers(&one["embedding"])).collect()
}

/// A client that can name nothing but a model embeds its queries as documents, and its users find half of what is there.
#[test]
fn a_models_name_a_field_or_the_server_says_which_side_a_text_is_on() {
    let server = Server::start(shared().path(), &["--model-name", "skills"]);
    let names = server.get("/v1/models").json();
    let names: Vec<&str> =
        names["data"].as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap()).collect();
    for name in ["skills", "skills-query", "skills-document", "skills-query-cosine", "skills-document-cosine"]
    {
        assert!(names.contains(&name), "{names:?}");
        assert_eq!(server.get(&format!("/v1/models/{name}")).json()["id"], name);
    }
    server.get("/v1/models/other").told(404, "model_not_found", "`other`");
    let need = "is that crumbs?";
    let by = |body: Value| openai(&server, &body).remove(0);
    let query = by(json!({ "input": need, "model": "skills-query" }));
    let document = by(json!({ "input": need, "model": "skills" }));
    assert_ne!(query, document);
    assert_eq!(document, by(json!({ "input": need, "model": "skills-document" })));
    assert_eq!(document, by(json!({ "input": need, "model": "m" })));
    for said in [
        json!({ "input": need, "model": "m", "input_type": "query" }),
        json!({ "input": [{ "text": need }], "task": "retrieval.query" }),
        json!({ "input": need, "model": "litellm/skills-query", "input_type": "query" }),
    ] {
        assert_eq!(query, by(said));
    }
    let cohere = |path: &str, role: &str| {
        let body =
            json!({ "texts": [need], "model": "skills", "input_type": role, "embedding_types": ["float"] });
        numbers(&server.post(path, &body).json()["embeddings"]["float"][0])
    };
    assert_eq!(
        [query.clone(), document.clone()],
        [cohere("/v2/embed", "search_query"), cohere("/v1/embed", "search_document")]
    );
    let plain = server.post("/v1/embed", &json!({ "texts": [need], "input_type": "search_query" })).json();
    assert_eq!(
        (&plain["response_type"], numbers(&plain["embeddings"][0])),
        (&json!("embeddings_floats"), query.clone())
    );
    let root = |server: &Server, body: Value| numbers(&server.post("/", &body).json()[0]);
    assert_eq!(query, root(&server, json!({ "inputs": need, "prompt_name": "query" })));
    assert_eq!(document, root(&server, json!({ "inputs": [need] })));
    let contradiction = json!({ "input": need, "model": "skills-query", "input_type": "passage" });
    server.post("/v1/embeddings", &contradiction).told(422, "Null", "leave out one");
    server.killed();

    let server = Server::start(shared().path(), &["--default-role", "query"]);
    assert_eq!(query, root(&server, json!({ "inputs": [need] })));
    assert_eq!(document, root(&server, json!({ "inputs": [need], "prompt_name": "document" })));
    server.killed();
}

/// Most vector stores compare by cosine or normalise: what they return first must be what `/query` returns first.
#[test]
fn vectors_for_cosine_rank_as_queries_are_answered() {
    let server = Server::start(shared().path(), &["--default-similarity", "cosine"]);
    let texts = contents();
    let rows = openai(&server, &json!({ "input": texts, "model": "rabtriever-document" }));
    for row in &rows {
        assert!((dot(row, row) - 1.0).abs() < 1e-4);
    }
    for need in ["oh dear, spill!", "is that crumbs?", "silent clock, and nobody cares."] {
        let asked = server.post("/query", &json!({ "query": need, "k": 50 })).json();
        let order: Vec<String> = asked["results"]
            .as_array()
            .unwrap()
            .iter()
            .map(|hit| format!("{}\n{}", hit["title"].as_str().unwrap(), hit["text"].as_str().unwrap()))
            .collect();
        let query = openai(&server, &json!({ "input": need, "model": "rabtriever-query" })).remove(0);
        let named = server.post("/embed", &json!({ "inputs": need, "prompt_name": "query-cosine" })).json();
        assert_eq!(query, numbers(&named[0]));
        let mut ranked: Vec<(f64, &String)> = rows.iter().map(|row| dot(&query, row)).zip(&texts).collect();
        ranked.sort_by(|a, b| b.0.total_cmp(&a.0));
        assert_eq!(ranked.iter().map(|(_, text)| (*text).clone()).collect::<Vec<_>>(), order, "{need}");
    }
    server.killed();
}

/// Clients send what they know: `null` for what is not set, fields of other servers, routes of other servers.
#[test]
fn what_clients_send_unasked_is_taken() {
    let server = Server::start(shared().path(), &[]);
    let plain = server.post("/embed", &json!({ "inputs": "bell" })).json();
    let more = json!({
        "inputs": "bell", "truncate": null, "truncation_direction": "right", "normalize": null, "dimensions": null,
        "prompt_name": null, "encoding_format": "float", "top_n": 3, "parameters": {},
    });
    assert_eq!(plain, server.post("/embed", &more).json());
    assert_eq!(plain, server.post("/", &more).json());
    let texts = json!({ "query": "bell", "texts": ["a door", "a mop"], "top_n": 1, "truncation_direction": null, "model": "m" });
    let ranks = server.post("/rerank", &texts).json();
    assert_eq!(ranks.as_array().unwrap().len(), 2, "its route knows no top_n");
    let documents =
        json!({ "query": "bell", "documents": ["a door", { "text": "a mop" }], "top_n": 1, "model": "m" });
    let found = server.post("/rerank", &documents).json();
    assert_eq!((&found["model"], found["results"].as_array().unwrap().len()), (&json!("m"), 1));
    let best = &found["results"][0];
    assert_eq!((&best["index"], &best["relevance_score"]), (&ranks[0]["index"], &ranks[0]["score"]));
    assert_eq!(best["document"]["text"], ["a door", "a mop"][best["index"].as_u64().unwrap() as usize]);
    server.post("/rerank", &json!({ "query": "x", "texts": ["a"], "documents": ["a"] })).refused(
        422,
        "Validation",
        "both",
    );
    server.post("/rerank", &json!({ "query": "x" })).refused(422, "Validation", "`texts` (or `documents`)");
    let similar = json!({ "inputs": { "source_sentence": "bell", "sentences": ["a door", "a mop"] }, "parameters": null });
    let similar = server.post("/similarity", &similar).json();
    for rank in ranks.as_array().unwrap() {
        assert_eq!(rank["score"], similar[rank["index"].as_u64().unwrap() as usize]);
    }
    let tokens = server.post("/tokenize", &json!({ "inputs": " Tür  auf" })).json();
    let parts: String =
        tokens[0].as_array().unwrap().iter().map(|token| token["text"].as_str().unwrap()).collect();
    assert!(
        "Tür  auf".starts_with(parts.chars().next().unwrap()) && tokens[0][0]["start"].as_u64() >= Some(1),
        "{tokens}"
    );
    let info = server.get("/info").json();
    assert_eq!((&info["model_id"], &info["max_client_batch_size"]), (&json!("rabtriever"), &json!(1000)));
    assert_eq!(server.get("/ping").status, 200);
    assert_eq!(
        plain[0],
        server.post("/embeddings", &json!({ "input": "bell" })).json()["data"][0]["embedding"]
    );
    let fields = json!({ "query": "bell", "documents": [{ "title": "a", "body": "door" }], "rank_fields": ["title", "body"], "return_documents": true });
    assert_eq!(server.post("/v1/rerank", &fields).json()["results"][0]["document"]["text"], "a\ndoor");

    let metrics = |accept: &str| server.send("GET", "/metrics", accept, b"");
    let classic = metrics("Accept: text/plain;version=0.0.4\r\n");
    assert!(classic.head.contains("content-type: text/plain; version=0.0.4"), "{}", classic.head);
    assert!(classic.body.contains("# TYPE rabtriever_request_total counter"));
    let open = metrics("Accept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5\r\n");
    assert!(open.head.contains("content-type: application/openmetrics-text"), "{}", open.head);
    assert!(open.body.contains("# TYPE rabtriever_request counter") && open.body.ends_with("# EOF\n"));
    server.killed();
}

/// A client shows what it finds where it looks: a refusal in another's shape is a stack of braces, or nothing at all.
#[test]
fn refusals_are_told_where_each_client_looks() {
    let server = Server::start(shared().path(), &[]);
    let openai = |body: Value| server.post("/v1/embeddings", &body);
    for ids in [json!([[9906, 11], [4435]]), json!([9906, 11])] {
        openai(json!({ "input": ids, "model": "m" })).told(422, "Null", "check_embedding_ctx_length=False");
    }
    openai(json!({ "input": ["a bell", " ", "a mop"], "model": "m" })).told(422, "Null", "text 1 of `input`");
    openai(json!({ "model": "m" })).told(422, "Null", "missing field `input`");
    openai(json!({ "input": "x", "dimensions": 3 })).told(422, "Null", "dimensions 3");
    server.get("/v1/chat/completions").told(404, "Null", "/openapi.json");
    server.get("/v1/embeddings").told(405, "Null", "another method");
    let refused = openai(json!({ "input": [] }));
    let body: Value = serde_json::from_str(&refused.body).unwrap();
    assert_eq!(
        (&body["error"]["param"], &body["error"]["type"]),
        (&json!("input"), &json!("invalid_request_error"))
    );
    for path in ["/v1/embed", "/v2/embed"] {
        for (body, says) in [
            (json!({ "texts": ["a", ""] }), "text 1 of `texts`"),
            (json!({ "texts": ["a"], "input_type": "clustering" }), "clustering"),
            (
                json!({ "texts": ["a"], "embedding_types": ["ubinary"] }),
                "`ubinary`, expected `float` or `base64`",
            ),
            (json!({ "texts": [], "images": ["data:"] }), "only texts"),
            (json!({ "texts": ["a"], "truncate": "START" }), "beginning"),
            (json!({ "texts": ["spill ".repeat(900)], "truncate": "NONE" }), "tokens"),
        ] {
            let answer = server.post(path, &body);
            let told: Value = serde_json::from_str(&answer.body).unwrap();
            assert!(
                answer.status == 422 && told["message"].as_str().unwrap().contains(says),
                "{path} {body}: {answer:?}"
            );
        }
    }
    server.post("/rerank", &json!({ "query": "x", "texts": ["a", "", "b"] })).refused(
        422,
        "Validation",
        "text 1 of `texts`",
    );
    server.post("/embed", &json!({ "inputs": [1, 2] })).refused(422, "Validation", "token ids");
    server.post("/", &json!({ "inputs": ["a", null] })).refused(422, "Validation", "`inputs[1]`");
    for (path, body) in [("/embed", json!({ "inputs": ["a", ""] })), ("/query", json!({ "query": 7 }))] {
        let said = server.post(path, &body).body;
        assert!(!said.contains("tmp") && !said.contains(text(shared().path())), "{said}");
    }
    server.killed();
}

/// A batch that nobody waits for keeps a core from those who do; and clients that hang up ask again.
#[test]
fn work_ends_with_the_request() {
    let texts: Vec<String> = (0..1000).map(|i| format!("{i} {}", "spill crumbs ".repeat(140))).collect();
    let body = json!({ "input": texts, "model": "m" });
    // A client that hangs up.
    let server = Server::start(shared().path(), &["--timeout", "120"]);
    let encoded = |server: &Server| -> u64 {
        let metrics = server.get("/metrics").body;
        let line = metrics
            .lines()
            .find(|line| line.starts_with("rabtriever_encode_duration_seconds_count"))
            .unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    let sent = body.to_string();
    let head = format!(
        "POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        sent.len()
    );
    let mut stream = TcpStream::connect(&server.address).unwrap();
    stream.write_all(&[head.as_bytes(), sent.as_bytes()].concat()).unwrap();
    let started = Instant::now();
    while encoded(&server) == 0 {
        assert!(started.elapsed() < Duration::from_secs(60), "nothing is encoded");
    }
    drop(stream);
    while !server.get("/metrics").body.contains("rabtriever_queue_size 0") {
        assert!(started.elapsed() < Duration::from_secs(100), "its place is not given back");
    }
    let then = encoded(&server);
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(encoded(&server), then);
    assert!(then < 1000 / 16, "all {then} slices were encoded");
    server.killed();

    // One that asks for more than there is time for.
    let server = Server::start(shared().path(), &["--timeout", "0.5"]);
    let answer = server.post("/v1/embeddings", &body);
    let told: Value = serde_json::from_str(&answer.body).unwrap();
    let (said, code) = (told["error"]["message"].as_str().unwrap(), &told["error"]["code"]);
    match answer.status {
        413 => assert!(
            said.contains("at once") && said.contains("--timeout") && code == "request_too_large",
            "{said}"
        ),
        504 => assert!(answer.head.contains("x-should-retry: false") && code == "timeout", "{answer:?}"),
        _ => panic!("{answer:?}"),
    }
    let after = encoded(&server);
    std::thread::sleep(Duration::from_secs(1));
    assert!(encoded(&server) <= after + 1, "work goes on for nobody");
    server.killed();
}
