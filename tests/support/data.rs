//! A tiny data set in BEIR layout: twelve skills of a robot, five needs each, three to learn from, one to choose on and
//! one to be judged by.

use models::beir::Document;
use serde_json::json;
use std::fmt::Write;
use std::fs;
use std::path::Path;

/// Id, text and the needs' own words.
const SKILLS: [(&str, &str, &str); 12] = [
    ("sponge", "The robot wipes up what was spilled.", "coffee"),
    ("lamp", "The robot switches on a light.", "dusk"),
    ("blanket", "The robot brings a warm blanket.", "shivering"),
    ("window", "The robot opens a window.", "stuffy"),
    ("ladder", "The robot fetches the ladder and holds it.", "gutter"),
    ("plaster", "The robot brings the first-aid box and a plaster.", "blood"),
    ("umbrella", "The robot hands out an umbrella.", "clouds"),
    ("kettle", "The robot boils water for tea.", "thirsty"),
    ("broom", "The robot sweeps the floor.", "crumbs"),
    ("hammer", "The robot hangs up a picture.", "bare wall"),
    ("battery", "The robot changes an empty battery.", "silent clock"),
    ("door", "The robot answers the door.", "bell"),
];

/// What is said around a need's own word.
const FRAMES: [&str; 5] =
    ["Oh dear, {}!", "It is {} again in here.", "My sister says {}.", "{}, and nobody cares.", "Is that {}?"];

/// Documents, also to be added to an index later.
pub fn documents() -> Vec<Document> {
    let document = |(id, text, _): (&str, &str, &str)| Document {
        id: id.to_owned(),
        title: id[..1].to_uppercase() + &id[1..],
        text: text.to_owned(),
    };
    SKILLS.into_iter().map(document).collect()
}

/// Writes `corpus.jsonl`, `queries.jsonl` and `qrels/{train,dev,test}.tsv`; the last judgement of test is graded.
pub fn write_data(dir: &Path) {
    fs::create_dir_all(dir.join("qrels")).unwrap();
    write_documents(&dir.join("corpus.jsonl"), &documents());
    let mut queries = String::new();
    let mut qrels = [(); 3].map(|()| "query-id\tcorpus-id\tscore\n".to_owned());
    for (i, (id, _, word)) in SKILLS.iter().enumerate() {
        for (j, frame) in FRAMES.iter().enumerate() {
            let query = format!("q{i:02}-{j}");
            let text = frame.replace("{}", word);
            writeln!(queries, "{}", json!({ "_id": query, "text": text })).unwrap();
            let split = j.saturating_sub(2);
            writeln!(qrels[split], "{query}\t{id}\t{}", 1 + usize::from(j == 4 && i == 11)).unwrap();
        }
    }
    fs::write(dir.join("queries.jsonl"), queries).unwrap();
    for (split, text) in ["train", "dev", "test"].iter().zip(qrels) {
        fs::write(dir.join("qrels").join(format!("{split}.tsv")), text).unwrap();
    }
}

/// Writes documents as JSON lines.
pub fn write_documents(file: &Path, documents: &[Document]) {
    let lines: Vec<String> = documents.iter().map(|d| serde_json::to_string(d).unwrap() + "\n").collect();
    fs::write(file, lines.concat()).unwrap();
}
