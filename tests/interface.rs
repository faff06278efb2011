//! `/openapi.json` is true: every route is called, and every request and answer held to what is said of it.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use tests::server::{Answer, Server, own, shared, text};

/// A described interface.
struct Described(Value);

impl Described {
    fn of(server: &Server) -> Self {
        Self(server.get("/openapi.json").json())
    }

    /// Holds a value to a schema of the document.
    #[track_caller]
    fn hold(&self, schema: &Value, value: &Value, whose: &str) {
        let whole = json!({ "allOf": [schema], "components": self.0["components"] });
        let validator = jsonschema::validator_for(&whole).unwrap();
        let faults: Vec<String> = validator.iter_errors(value).map(|fault| fault.to_string()).collect();
        assert!(faults.is_empty(), "{whose}: {value} is not as described: {faults:?}");
    }

    /// Holds an answer to what is said of this route and status; returns its body.
    #[track_caller]
    fn answered(&self, method: &str, route: &str, answer: &Answer) -> Value {
        let responses = &self.0["paths"][route][method.to_lowercase()]["responses"];
        let described = &responses[answer.status.to_string()];
        let whose = format!("{method} {route} {}", answer.status);
        assert!(described.is_object(), "{whose} is not described: {answer:?}");
        let kind =
            answer.head.lines().find_map(|line| line.strip_prefix("content-type: ")).unwrap_or_default();
        let kind = kind.split(';').next().unwrap();
        let schema = &described["content"][kind]["schema"];
        assert!(schema.is_object(), "{whose} is said to be of another type than {kind:?}");
        let body = match kind {
            "application/json" => serde_json::from_str(&answer.body).unwrap(),
            _ => json!(answer.body),
        };
        self.hold(schema, &body, &whose);
        body
    }

    fn routes(&self) -> BTreeSet<(String, String)> {
        let paths = self.0["paths"].as_object().unwrap().iter();
        let methods = |(path, item): (&String, &Value)| {
            let methods = item.as_object().unwrap().keys();
            methods.map(|method| (method.to_uppercase(), path.clone())).collect::<Vec<_>>()
        };
        paths.flat_map(methods).collect()
    }
}

/// Bodies that each route takes, optional fields set, unset and null among them.
fn bodies(route: &str) -> Vec<Value> {
    match route {
        "/query" => vec![
            json!({ "query": "spill", "k": 2, "explain": true, "filter": { "room": "bath" } }),
            json!({ "query": "spill", "k": null, "explain": null, "filter": null, "rerank": null }),
        ],
        "/documents" => vec![
            json!({ "documents": [{ "id": "kettle", "title": "Kettle", "text": "The robot makes tea." }] }),
        ],
        "/documents/remove" => vec![json!({ "ids": ["kettle", "nobody"] })],
        "/" => vec![
            json!({ "inputs": "spill" }),
            json!({ "inputs": { "source_sentence": "spill", "sentences": ["a sponge", "a bell"] } }),
            json!({ "query": "spill", "texts": ["a sponge", "a bell"] }),
        ],
        "/embed" => vec![
            json!({ "inputs": ["spill", "bell"], "prompt_name": "query-cosine", "normalize": true, "truncate": true }),
            json!({ "inputs": "spill", "prompt_name": null, "normalize": null, "truncate": null, "dimensions": null, "truncation_direction": null }),
        ],
        "/similarity" => vec![json!({ "inputs": { "source_sentence": "spill", "sentences": ["a sponge"] } })],
        "/rerank" => vec![
            json!({ "query": "spill", "texts": ["a sponge", "a bell"], "return_text": true, "raw_scores": true }),
            json!({ "query": "spill", "documents": ["a sponge", { "text": "a bell" }], "top_n": 1, "model": "m" }),
            json!({ "query": "spill", "documents": ["a sponge"], "return_documents": false }),
        ],
        "/tokenize" => vec![json!({ "inputs": ["two words", "one"] })],
        "/v1/embeddings" => vec![
            json!({ "input": ["spill"], "model": "rabtriever-query", "encoding_format": "base64" }),
            json!({ "input": "spill", "model": null, "encoding_format": null, "dimensions": null }),
        ],
        "/v1/embed" => vec![
            json!({ "texts": ["spill"], "input_type": "search_query", "truncate": "END" }),
            json!({ "texts": ["spill"], "embedding_types": ["float"], "truncate": null, "input_type": null, "model": null }),
        ],
        "/v2/embed" => vec![
            json!({ "texts": ["spill"], "model": "m", "input_type": "search_document", "embedding_types": ["float", "base64"] }),
            json!({ "inputs": [{ "content": [{ "type": "text", "text": "spill" }] }], "model": "m-cosine" }),
        ],
        "/v1/rerank" => vec![
            json!({ "query": "spill", "documents": ["a sponge", { "text": "a bell" }], "return_documents": true, "top_n": null }),
        ],
        "/v2/rerank" => {
            vec![json!({ "query": "spill", "documents": ["a sponge"], "model": "m", "top_n": 1 })]
        }
        _ => Vec::new(),
    }
}

/// Whoever generates a client believes the description: what is wrong in it fails there, at run time.
#[test]
fn every_route_answers_as_it_is_described() {
    let dir = own();
    let server = Server::start(dir.path(), &["--max-body", "40000", "--max-items", "60"]);
    let described = Described::of(&server);
    let typed = "Content-Type: application/json\r\n";
    for (method, route) in described.routes() {
        let path = route.replace("{id}", "sponge").replace("{model}", "rabtriever");
        if method != "POST" {
            // A document is read before it is removed: methods come in the order of their names, and DELETE before GET.
            if method == "DELETE" {
                described.answered("GET", &route, &server.get(&path));
            }
            let answer = server.send(&method, &path, "", b"");
            if method == "GET" && route == "/documents/{id}" {
                assert_eq!(answer.status, 404);
            } else {
                assert_eq!(answer.status, 200, "{method} {route} {answer:?}");
            }
            described.answered(&method, &route, &answer);
            continue;
        }
        let bodies = bodies(&route);
        assert!(!bodies.is_empty(), "{route} is not called");
        let request =
            &described.0["paths"][&route]["post"]["requestBody"]["content"]["application/json"]["schema"];
        for body in &bodies {
            described.hold(request, body, &route);
            let answer = server.post(&path, body);
            assert_eq!(answer.status, 200, "{route} {body}: {answer:?}");
            described.answered("POST", &route, &answer);
        }
        let large = json!({ "query": "x".repeat(50_000) }).to_string();
        for (status, headers, body) in [
            (400, typed, "{"),
            (400, "", "{}"),
            (422, typed, "{\"unheard\": 1}"),
            (422, typed, "[7]"),
            (413, typed, large.as_str()),
        ] {
            let answer = server.send("POST", &path, headers, body.as_bytes());
            assert_eq!(answer.status, status, "POST {route} {body:.40}: {answer:?}");
            let told = described.answered("POST", &route, &answer);
            let sentence = ["error", "message"].iter().find_map(|name| told[*name].as_str());
            let sentence = sentence.or(told["error"]["message"].as_str()).unwrap();
            assert!(
                !sentence.is_empty() && !sentence.contains('\n') && !sentence.contains("untagged"),
                "{answer:?}"
            );
        }
    }
    server.killed();
}

/// Whoever has no key learns that one is needed; whoever has a wrong one must not look for where to put it.
#[test]
fn a_wrong_key_is_told_from_none_on_every_route() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("key"), "k3ttle\n").unwrap();
    let server = Server::start(shared().path(), &["--api-key-file", text(&dir.path().join("key"))]);
    let described = Described::of(&server);
    for (method, route) in described.routes() {
        let path = route.replace("{id}", "sponge").replace("{model}", "rabtriever");
        let asked = |key: &str| server.send(&method, &path, key, b"");
        if described.0["paths"][&route][method.to_lowercase()]["security"].is_null() {
            assert_eq!(asked("").status, 200, "{route}");
            continue;
        }
        for (key, wrong) in [
            ("", false),
            ("Authorization: Basic k3ttle\r\n", false),
            ("Authorization: Bearer cattle\r\n", true),
        ] {
            let answer = asked(key);
            assert_eq!(answer.status, 401, "{method} {route} {key}");
            described.answered(&method, &route, &answer);
            assert!(answer.head.contains("www-authenticate: bearer realm="), "{answer:?}");
            assert_eq!(answer.head.contains("invalid_token"), wrong, "{answer:?}");
            assert_eq!(answer.body.contains("not this server's"), wrong, "{answer:?}");
        }
        assert_ne!(asked("Authorization: Bearer k3ttle\r\n").status, 401, "{method} {route}");
    }
    server.killed();
}
