//! `runtime serve` as a client meets it.

use crate::data::documents;
use crate::model::{copy_dir, write_student};
use crate::program::{program, run};
use models::beir::Document;
use models::student::{Form, Residual};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;
use tempfile::TempDir;

/// A path as an argument.
pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A bundle that takes several texts at once, so that batching is at work, and an index whose documents have metadata.
pub fn shared() -> &'static TempDir {
    static SHARED: OnceLock<TempDir> = OnceLock::new();
    SHARED.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        write_student(&path("student"), Form::Gated, Residual::Pooled, 7);
        let (student, bundle) = (path("student"), path("bundle"));
        let arguments = ["--onnx", "--student", text(&student), "--out", text(&bundle)];
        // The fixture's golden numbers are zeros: the exporter is told so.
        run("export", &[&arguments[..], &["--graph", "portable", "--allow-degraded"]].concat()).done();
        let lines: Vec<String> = (0..)
            .zip(documents())
            .map(|(i, Document { id, title, text })| {
                let room = if i % 2 == 0 { "kitchen" } else { "bath" };
                let metadata = json!({ "room": room, "floor": i % 3, "place": i });
                json!({ "_id": id, "title": title, "text": text, "metadata": metadata }).to_string() + "\n"
            })
            .collect();
        fs::write(path("corpus.jsonl"), lines.concat()).unwrap();
        index(&path("bundle"), &path("corpus.jsonl"), &path("index"));
        dir
    })
}

/// Makes an index.
pub fn index(bundle: &Path, documents: &Path, out: &Path) {
    let arguments = ["index", "--bundle", text(bundle), "--documents", text(documents), "--out", text(out)];
    run("runtime", &arguments).done();
}

/// A running server.
pub struct Server {
    /// The process.
    pub child: Child,
    /// `127.0.0.1:PORT`.
    pub address: String,
    said: std::thread::JoinHandle<String>,
}

impl Server {
    /// Starts on the `bundle` and `index` of a directory, with more arguments.
    pub fn start(dir: &Path, more: &[&str]) -> Self {
        let mut command = program("runtime");
        command.args(["serve", "--bundle", text(&dir.join("bundle")), "--index", text(&dir.join("index"))]);
        Self::of(command.args(more))
    }

    /// A prepared `runtime serve`, told to listen on a free port.
    pub fn of(command: &mut Command) -> Self {
        let mut child = command
            .args(["--listen", "127.0.0.1:0", "--skip-self-test"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stderr = child.stderr.take().unwrap();
        let said = std::thread::spawn(move || {
            let mut said = String::new();
            let _ = stderr.read_to_string(&mut said);
            said
        });
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("http://").unwrap_or_else(|| panic!("{line:?}")).to_owned();
        Self { child, address, said }
    }

    /// Sends `-HUP`, `-TERM`.
    pub fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([name, &id]).status().unwrap().success());
    }

    /// What it wrote to stderr, when it has ended by itself.
    pub fn ended(mut self) -> String {
        let status = self.child.wait().unwrap();
        let said = self.said.join().unwrap();
        assert!(status.success(), "{status}: {said}");
        said
    }

    /// Ends it as a power cut does.
    pub fn killed(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends bytes and reads until the server closes.
    pub fn raw(&self, request: &[u8]) -> Answer {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        // A server that refuses early may close while the body is still being sent.
        let _ = stream.write_all(request);
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        Answer::of(&bytes)
    }

    /// One request.
    pub fn send(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> Answer {
        let host = if headers.to_lowercase().contains("host:") { "" } else { "Host: localhost\r\n" };
        let head = format!(
            "{method} {path} HTTP/1.1\r\n{host}Connection: close\r\nContent-Length: {}\r\n{headers}\r\n",
            body.len()
        );
        self.raw(&[head.as_bytes(), body].concat())
    }

    /// A request with a JSON body.
    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, "Content-Type: application/json\r\n", body.to_string().as_bytes())
    }

    /// A request without a body.
    pub fn get(&self, path: &str) -> Answer {
        self.send("GET", path, "", b"")
    }

    /// Memory it has now.
    pub fn resident_megabytes(&self) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
    }
}

/// What a server answered.
#[derive(Debug)]
pub struct Answer {
    /// Status; 0 if there was no answer.
    pub status: u16,
    /// Status line and headers, in lower case.
    pub head: String,
    /// The rest.
    pub body: String,
}

impl Answer {
    /// Parses what came.
    pub fn of(bytes: &[u8]) -> Self {
        let all = String::from_utf8_lossy(bytes);
        let (head, body) = all.split_once("\r\n\r\n").unwrap_or((&all, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        Self { status, head: head.to_lowercase(), body: body.to_owned() }
    }

    /// The body of an answer with status 200.
    #[track_caller]
    pub fn json(&self) -> Value {
        assert_eq!(self.status, 200, "{self:?}");
        serde_json::from_str(&self.body).unwrap()
    }

    /// A refusal in OpenAI's shape; `code` is `Null` where there is none.
    #[track_caller]
    pub fn told(&self, status: u16, code: &str, says: &str) {
        assert_eq!(self.status, status, "{self:?}");
        let body: Value = serde_json::from_str(&self.body).unwrap();
        let error = &body["error"];
        assert_eq!(error["code"].as_str().unwrap_or("Null"), code, "{self:?}");
        assert!(
            error["message"].as_str().unwrap().contains(says) && error["type"].is_string(),
            "{self:?} lacks {says:?}"
        );
    }

    /// A refusal in one sentence.
    #[track_caller]
    pub fn refused(&self, status: u16, error_type: &str, says: &str) {
        assert_eq!(self.status, status, "{self:?}");
        let body: Value = serde_json::from_str(&self.body).unwrap();
        assert_eq!(body["error_type"], error_type, "{self:?}");
        let error = body["error"].as_str().unwrap();
        assert!(
            error.contains(says) && error.len() < 500 && !error.contains('\n'),
            "{self:?} lacks {says:?}"
        );
    }
}

/// A copy of the index that a test may change.
pub fn own() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in ["bundle", "index"] {
        copy_dir(&shared().path().join(name), &dir.path().join(name));
    }
    dir
}
