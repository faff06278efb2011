//! The project's documents as a reader meets them: links and where they lead, and the command lines they show.

use crate::program::run;
use crate::repository;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A Markdown file of the repository.
pub struct Page {
    /// Path below the repository.
    pub path: PathBuf,
    /// Its text.
    pub text: String,
}

/// A command line of ours that a document shows.
#[derive(Debug, PartialEq, Eq)]
pub struct Invocation {
    /// `train`, `export` or `runtime`.
    pub program: String,
    /// The words behind it up to the first flag; the subcommand is among the first of them.
    pub words: Vec<String>,
    /// Long flags, without values.
    pub flags: Vec<String>,
}

/// Every Markdown file of the repository.
pub fn pages() -> Vec<Page> {
    let mut found = Vec::new();
    let mut waiting = vec![repository().to_path_buf()];
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_symlink() || name.starts_with('.') || name == "target" {
                continue;
            }
            if path.is_dir() {
                waiting.push(path);
            } else if name.ends_with(".md") {
                let text = fs::read_to_string(&path).unwrap();
                found.push(Page { path: path.strip_prefix(repository()).unwrap().to_owned(), text });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

impl Page {
    /// Lines outside code blocks, and the code blocks.
    fn parts(&self) -> (Vec<&str>, Vec<Vec<&str>>) {
        let (mut prose, mut blocks, mut block) = (Vec::new(), Vec::new(), None::<Vec<&str>>);
        for line in self.text.lines() {
            match (&mut block, line.trim_start().starts_with("```")) {
                (None, true) => block = Some(Vec::new()),
                (None, false) => prose.push(line),
                (Some(lines), false) => lines.push(line),
                (Some(_), true) => blocks.extend(block.take()),
            }
        }
        (prose, blocks)
    }

    /// Text between backticks, outside code blocks. A span may go on in the next line of its paragraph.
    pub fn code_spans(&self) -> Vec<String> {
        let (prose, _) = self.parts();
        let paragraphs = prose.split(|line| line.trim().is_empty());
        let spans = |lines: &[&str]| {
            let text = lines.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ");
            text.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>()
        };
        paragraphs.flat_map(spans).collect()
    }

    /// Targets of links and pictures that lead to files or headings of the repository.
    pub fn links(&self) -> Vec<String> {
        let (prose, _) = self.parts();
        let mut found = Vec::new();
        for line in prose {
            let plain: String = line.split('`').step_by(2).collect();
            for rest in plain.split("](").skip(1) {
                let target = rest.split(')').next().unwrap().split(' ').next().unwrap();
                if !target.contains("://") && !target.starts_with("mailto:") {
                    found.push(target.to_owned());
                }
            }
        }
        found
    }

    /// What a link can name behind `#`, as GitHub makes it of headings.
    pub fn anchors(&self) -> BTreeSet<String> {
        let (prose, _) = self.parts();
        let mut seen = BTreeMap::<String, usize>::new();
        let mut anchors = BTreeSet::new();
        for line in prose {
            let Some((marks, heading)) = line.split_once(' ') else { continue };
            if marks.is_empty() || marks.len() > 6 || marks.bytes().any(|byte| byte != b'#') {
                continue;
            }
            let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
            let slug: String = heading.trim().to_lowercase().chars().filter(kept).collect();
            let slug = slug.replace(' ', "-");
            let before = seen.entry(slug.clone()).or_default();
            anchors.insert(if *before == 0 { slug } else { format!("{slug}-{before}") });
            *before += 1;
        }
        anchors
    }

    /// All command lines of ours, in code blocks and between backticks.
    pub fn invocations(&self) -> Vec<Invocation> {
        let (_, blocks) = self.parts();
        let mut lines = Vec::new();
        for block in blocks {
            let mut line = String::new();
            for part in block {
                let part = part.strip_prefix("$ ").unwrap_or(part);
                match part.strip_suffix('\\') {
                    Some(begun) => line.push_str(begun),
                    None => lines.push(std::mem::take(&mut line) + part),
                }
            }
            lines.push(line);
        }
        lines.extend(self.code_spans());
        lines.iter().flat_map(|line| invocations(line)).collect()
    }
}

/// Words of a line as a shell would split it, each pipeline's part by itself; a comment ends the line.
fn commands(line: &str) -> Vec<Vec<String>> {
    let mut commands = vec![Vec::new()];
    let (mut word, mut quote) = (String::new(), None);
    let mut end = |word: &mut String, next: bool| {
        if !word.is_empty() {
            commands.last_mut().unwrap().push(std::mem::take(word));
        }
        if next {
            commands.push(Vec::new());
        }
    };
    for c in line.chars() {
        match (quote, c) {
            (Some(open), _) if c == open => quote = None,
            // What is quoted is a value, whatever it begins with.
            (Some(_), _) => word.push(if c == '-' { '_' } else { c }),
            (None, '\'' | '"') => quote = Some(c),
            (None, '#') if word.is_empty() => break,
            (None, '|' | ';' | '&' | '(' | ')') => end(&mut word, true),
            (None, c) if c.is_whitespace() => end(&mut word, false),
            (None, c) => word.push(c),
        }
    }
    end(&mut word, false);
    commands
}

/// The command lines of ours in a line, also behind torchrun.
fn invocations(line: &str) -> Vec<Invocation> {
    let mut found = Vec::new();
    for words in commands(line) {
        let ours = |word: &String| {
            let name = word.rsplit('/').next().unwrap();
            matches!(name, "train" | "export" | "runtime").then(|| name.to_owned())
        };
        let launched = words.first().is_some_and(|word| word == "torchrun");
        let place = if launched { words.iter().position(|word| ours(word).is_some()) } else { Some(0) };
        let Some((program, place)) = place.and_then(|at| Some((ours(words.get(at)?)?, at))) else { continue };
        let mut rest = words[place + 1..].split(|word| word == "--");
        let own = rest.next().unwrap_or_default();
        let begin = own.iter().position(|word| word.starts_with('-')).unwrap_or(own.len());
        let flags = |words: &[String]| {
            let long = words.iter().filter(|word| word.starts_with("--"));
            long.map(|word| word.split('=').next().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let subcommand = own[..begin].to_vec();
        // What stands behind `--` of an ablation is for each of its distillations.
        if let (Some(more), Some("ablate")) = (rest.next(), subcommand.first().map(String::as_str)) {
            let words = vec!["distill".to_owned()];
            found.push(Invocation { program: program.clone(), words, flags: flags(more) });
        }
        found.push(Invocation { program, words: subcommand, flags: flags(own) });
    }
    found
}

/// What a program's `--help` tells: the flags of each of its subcommands, by their words.
pub struct Help(BTreeMap<Vec<String>, BTreeSet<String>>);

impl Help {
    /// Asks the program, and all of its subcommands.
    pub fn of(program: &str) -> Self {
        let mut told = BTreeMap::new();
        let mut waiting = vec![Vec::<String>::new()];
        while let Some(words) = waiting.pop() {
            let asked: Vec<&str> = words.iter().map(String::as_str).chain(["--help"]).collect();
            let help = run(program, &asked).done().stdout;
            let (flags, subcommands) = read(&help);
            let below = subcommands.into_iter().map(|name| [&words[..], &[name]].concat());
            waiting.extend(below);
            told.insert(words, flags);
        }
        Self(told)
    }

    /// Whether a subcommand (the longest that `words` begin with) has a flag; of the program alone, any of them.
    pub fn knows(&self, words: &[String], flag: &str) -> bool {
        let named = (1..=words.len()).rev().find_map(|end| self.0.get(&words[..end]));
        match named {
            Some(flags) => flags.contains(flag),
            None => self.0.values().any(|flags| flags.contains(flag)),
        }
    }
}

/// Flags and subcommands that a help text lists.
fn read(help: &str) -> (BTreeSet<String>, Vec<String>) {
    let (mut flags, mut subcommands, mut listed) = (BTreeSet::new(), Vec::new(), false);
    for line in help.lines() {
        if !line.starts_with(' ') {
            listed = line == "Commands:";
        }
        let entry = line.trim_start();
        if entry.starts_with('-') && !entry.starts_with("- ") {
            let long = entry.split([' ', ',']).filter(|word| word.starts_with("--"));
            flags.extend(long.map(str::to_owned));
        } else if listed && line.starts_with("  ") && !line.starts_with("   ") {
            let name = entry.split(' ').next().unwrap();
            subcommands.extend((name != "help").then(|| name.to_owned()));
        }
    }
    (flags, subcommands)
}

/// Where a link of a page leads, and the heading it names.
pub fn target(page: &Path, link: &str) -> (PathBuf, Option<String>) {
    let (file, anchor) = match link.split_once('#') {
        Some((file, anchor)) => (file, Some(anchor.to_owned())),
        None => (link, None),
    };
    let file = if file.is_empty() { page.to_owned() } else { page.parent().unwrap().join(file) };
    let mut plain = PathBuf::new();
    for part in file.components() {
        match part {
            std::path::Component::ParentDir => assert!(plain.pop(), "{link} leads out of the repository"),
            part => plain.push(part),
        }
    }
    (plain, anchor)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(text: &str) -> Page {
        Page { path: "docs/a.md".into(), text: text.into() }
    }

    /// Tests of the documents that overlook command lines pass while a reader types flags that do not exist.
    #[test]
    fn command_lines_are_found_where_a_reader_sees_them() {
        let text = "Ask by `runtime query --k9 \"--quoted\"`; `cargo build -p runtime --features x` is cargo's.\n\n\
                    ```sh\nx=1\necho '--a' | target/release/runtime index \\\n  --documents=d - # --none\n\
                    torchrun --standalone train ablate --out o -- --steps 3\n```\n";
        let found = page(text).invocations();
        let told: Vec<_> =
            found.iter().map(|i| (i.program.as_str(), i.words.join(" "), i.flags.join(" "))).collect();
        let expected = [
            ("runtime", "index", "--documents"),
            ("train", "distill", "--steps"),
            ("train", "ablate", "--out"),
            ("runtime", "query", "--k9"),
        ];
        assert_eq!(told, expected.map(|(program, words, flags)| (program, words.into(), flags.into())));
    }

    /// An anchor that is computed otherwise than GitHub does lets dead links pass.
    #[test]
    fn links_and_anchors_are_read_as_github_does() {
        let page = page(
            "# A `b`: c, d's & e\n## Same\n## Same\n[x](../b.md#s) `[y](no.md)` ![z](i/z.svg \"t\") <https://a>\n",
        );
        let anchors = ["a-b-c-ds--e", "same", "same-1"].map(str::to_owned);
        assert_eq!(page.anchors(), BTreeSet::from(anchors));
        assert_eq!(page.links(), ["../b.md#s", "i/z.svg"]);
        assert_eq!(target(&page.path, "../b.md#s"), ("b.md".into(), Some("s".into())));
    }

    /// A subcommand that is read past would lend its flags to all others.
    #[test]
    fn help_lists_flags_and_subcommands() {
        let help = "Does\n\nUsage: p\n\nCommands:\n  one   Does one\n        and more\n  help  Helps\n\nOptions:\n  \
                    -k, --kind <K>\n          Kind, not --other\n          - a: --b\n      --long\n";
        let (flags, subcommands) = read(help);
        assert_eq!(flags, BTreeSet::from(["--kind", "--long"].map(str::to_owned)));
        assert_eq!(subcommands, ["one"]);
    }
}
