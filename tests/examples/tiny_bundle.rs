//! Writes the tests' tiny bundle and some documents, for tests that are no Rust: `tiny_bundle DIR DOCUMENTS`.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use models::beir::Document;
use models::student::{Form, Residual};
use std::fs;
use std::path::Path;
use tests::data::{documents, write_documents};
use tests::model::write_student;
use tests::program::run;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [dir, count] = arguments.as_slice() else { panic!("expected DIR DOCUMENTS") };
    let (dir, count): (&Path, usize) = (dir.as_ref(), count.parse().unwrap());
    fs::create_dir_all(dir).unwrap();
    write_student(&dir.join("student"), Form::Gated, Residual::Pooled, 7);
    let (student, bundle) = (dir.join("student"), dir.join("bundle"));
    let (student, bundle) = (student.to_str().unwrap(), bundle.to_str().unwrap());
    // The fixture's golden numbers are zeros: the exporter is told so.
    run("export", &["--onnx", "--student", student, "--out", bundle, "--allow-degraded"]).done();
    let texts = documents();
    let document = |i: usize| {
        let Document { id, title, text } = &texts[i % texts.len()];
        Document { id: format!("{id}-{i}"), title: title.clone(), text: format!("{text} {i}") }
    };
    write_documents(&dir.join("corpus.jsonl"), &(0..count).map(document).collect::<Vec<_>>());
}
