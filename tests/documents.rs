//! The documents hold what they promise: links lead somewhere, flags exist, messages are those of the programs, and what is to be
//! read in one sitting is short.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use tests::markdown::{Help, Page, pages, target};
use tests::repository;

fn page(name: &str) -> Page {
    pages().into_iter().find(|page| page.path.ends_with(name)).unwrap_or_else(|| panic!("no {name}"))
}

/// A reader who follows a dead link gives up on the document, and then on the project.
#[test]
fn every_link_and_anchor_resolves() {
    let pages = pages();
    let anchors: BTreeMap<_, _> = pages.iter().map(|page| (page.path.clone(), page.anchors())).collect();
    let mut dead = Vec::new();
    let mut links = 0;
    for page in &pages {
        for link in page.links() {
            links += 1;
            let (file, anchor) = target(&page.path, &link);
            let there = repository().join(&file).exists();
            let named =
                anchor.is_none_or(|anchor| anchors.get(&file).is_some_and(|known| known.contains(&anchor)));
            if !there || !named {
                dead.push(format!("{}: {link}", page.path.display()));
            }
        }
    }
    assert!(links > 50, "only {links} links were found");
    assert!(dead.is_empty(), "dead links:\n{}", dead.join("\n"));
}

/// A command that is copied from a document and refused is the first thing that a newcomer sees of the project.
#[test]
fn flags_of_export_and_runtime_exist() {
    flags_exist(&["export", "runtime"], 100);
}

/// Fails for every flag that a document shows behind one of these programs and that it does not have.
fn flags_exist(programs: &[&str], least: usize) {
    let helps: BTreeMap<&str, Help> = programs.iter().map(|program| (*program, Help::of(program))).collect();
    let (mut seen, mut wrong) = (0, Vec::new());
    for page in pages() {
        for invocation in page.invocations() {
            let Some(help) = helps.get(invocation.program.as_str()) else { continue };
            seen += invocation.flags.len();
            let unknown = invocation.flags.iter().filter(|flag| !help.knows(&invocation.words, flag));
            wrong.extend(unknown.map(|flag| format!("{}: {flag} of {invocation:?}", page.path.display())));
        }
    }
    assert!(seen >= least, "only {seen} flags were found");
    assert!(wrong.is_empty(), "flags that do not exist:\n{}", wrong.join("\n"));
}

/// Whoever looks up a message searches for its words: with others, the remedy is not found.
#[test]
fn messages_in_troubleshooting_are_those_of_the_programs() {
    let mut sources = String::new();
    let mut waiting: Vec<PathBuf> =
        ["models", "train", "export", "runtime", "scripts"].map(Into::into).to_vec();
    while let Some(path) = waiting.pop() {
        let path = repository().join(path);
        if path.is_dir() && !path.ends_with("target") {
            waiting.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|kind| kind == "rs" || kind == "py") {
            sources.push_str(&fs::read_to_string(path).unwrap());
        }
    }
    let sources = spoken(&sources);
    let page = page("troubleshooting.md");
    let rows = page.text.lines().filter(|line| line.starts_with("| `"));
    let mut unknown = Vec::new();
    let mut messages = 0;
    for row in rows.filter(|row| !row.contains("finds no libtorch") && !row.starts_with("| `cargo")) {
        let message = row.split('`').nth(1).unwrap();
        messages += 1;
        if let Some(words) = message.split('…').find(|words| !sources.contains(words.trim())) {
            unknown.push(format!("{message}: no program says `{words}`"));
        }
    }
    assert!(messages > 50, "only {messages} messages were found");
    assert!(unknown.is_empty(), "{}", unknown.join("\n"));
}

/// Source text with strings that go on over several lines in one piece, as they are printed.
fn spoken(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut lines = source.lines();
    while let Some(line) = lines.next() {
        let mut line = line.to_owned();
        while let Some(begun) = line.strip_suffix('\\') {
            line = format!("{begun}{}", lines.next().unwrap_or_default().trim_start());
        }
        text.push_str(&line.replace("\\\"", "\""));
        text.push('\n');
    }
    text
}

/// A README that has to be scrolled through and an architecture that takes an afternoon are read by nobody.
#[test]
fn what_is_read_first_is_short() {
    for (name, most) in [("README.md", 130), ("ARCHITECTURE.md", 170)] {
        let lines = fs::read_to_string(repository().join(name)).unwrap().lines().count();
        assert!(lines <= most, "{name} has {lines} lines, at most {most} are wanted");
    }
}

/// What needs `train`, and so libtorch.
#[cfg(feature = "torch")]
mod with_train {
    use super::*;

    /// As above, of the program that a researcher starts with.
    #[test]
    fn flags_of_train_exist() {
        flags_exist(&["train"], 100);
    }

    /// A flag that is named in a sentence is typed as well.
    #[test]
    fn flags_in_sentences_exist() {
        const OF_OTHERS: [&str; 2] = ["--features", "--no-default-features"];
        let helps = ["train", "export", "runtime"].map(Help::of);
        let mut wrong = Vec::new();
        for page in pages() {
            for span in page.code_spans().iter().filter(|span| span.starts_with("--")) {
                let flag = span.split([' ', '=']).next().unwrap();
                let known = OF_OTHERS.contains(&flag) || helps.iter().any(|help| help.knows(&[], flag));
                if !known && flag != "--" {
                    wrong.push(format!("{}: {span}", page.path.display()));
                }
            }
        }
        assert!(wrong.is_empty(), "flags that no program has:\n{}", wrong.join("\n"));
    }
}
