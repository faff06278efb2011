//! The structure of the crates: files that import each other in a circle can be understood, tested and moved only together.
//!
//! A file imports another of its crate by a `use` item, or a path in code, that begins with `crate`, `super`, `self` or a child
//! module. What is imported through a re-export comes from the file that defines it; the re-export itself is no import. Modules
//! under `#[cfg(test)]` and paths inside macro calls are not counted.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use syn::visit::{self, Visit};

const CRATES: [&str; 5] = ["models", "train", "train/c10d", "export", "runtime"];

/// Circles that are there today, each with all its files. No other circle may appear; whoever opens one removes its line, or
/// the files that have left it.
const KNOWN_CIRCLES: &[&[&str]] = &[
    &["models/src/gguf/config.rs", "models/src/gguf/rope.rs", "models/src/gguf/tensors.rs"],
    &["models/src/gguf/header.rs", "models/src/gguf/metadata.rs"],
    &["models/src/torch/cache.rs", "models/src/torch/decoder.rs"],
    &[
        "runtime/src/commands/apply.rs",
        "runtime/src/commands/bench/encode.rs",
        "runtime/src/commands/bench/mod.rs",
        "runtime/src/commands/bench/query.rs",
        "runtime/src/commands/bench/search.rs",
        "runtime/src/commands/check.rs",
        "runtime/src/commands/doctor.rs",
        "runtime/src/commands/encode.rs",
        "runtime/src/commands/index.rs",
        "runtime/src/commands/keygen.rs",
        "runtime/src/commands/query.rs",
        "runtime/src/commands/remove.rs",
        "runtime/src/commands/serve.rs",
        "runtime/src/commands/snapshot.rs",
        "runtime/src/commands/stats.rs",
        "runtime/src/main.rs",
    ],
    &[
        "runtime/src/document.rs",
        "runtime/src/filter.rs",
        "runtime/src/filter/foreign.rs",
        "runtime/src/filter/sent.rs",
        "runtime/src/filter/typed.rs",
    ],
    &["runtime/src/index.rs", "runtime/src/index/format.rs"],
    &[
        "runtime/src/ingest.rs",
        "runtime/src/postgres/mod.rs",
        "runtime/src/postgres/write.rs",
        "runtime/src/retriever.rs",
        "runtime/src/retriever/backend.rs",
        "runtime/src/retriever/directory.rs",
        "runtime/src/retriever/linked.rs",
        "runtime/src/retriever/recall.rs",
    ],
    &["runtime/src/reranker.rs", "runtime/src/selftest.rs"],
    &["runtime/src/serve/app.rs", "runtime/src/serve/batch.rs", "runtime/src/serve/work.rs"],
    &["runtime/src/serve/interface.rs", "runtime/src/serve/system.rs"],
    &["runtime/src/store.rs", "runtime/src/store/place.rs"],
    &["train/src/crew.rs", "train/src/features.rs"],
    &["train/src/evaluation/onnx_embedding.rs", "train/src/evaluation/onnx_folder.rs"],
    &[
        "train/src/fit.rs",
        "train/src/fit/state.rs",
        "train/src/optim.rs",
        "train/src/progress.rs",
        "train/src/ranks/join.rs",
        "train/src/ranks/mod.rs",
        "train/src/record/charts.rs",
        "train/src/record/events.rs",
        "train/src/record/metrics.rs",
        "train/src/record/mod.rs",
    ],
];

/// Modules of `export` in the order in which data flows through them: each uses only those before it.
const EXPORT: [&str; 8] = ["error", "matrix", "onnx", "quantise", "source", "emit", "verify", "bundle"];

/// A new circle makes two files one, and the next change to either a change to both.
#[test]
fn files_do_not_import_each_other_in_a_circle() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut found = BTreeSet::new();
    let mut edges = Edges::new();
    for name in CRATES {
        let of_crate = imports(&root, Path::new(name));
        found.extend(circles(&of_crate));
        edges.extend(of_crate);
    }
    let known: BTreeSet<BTreeSet<String>> =
        KNOWN_CIRCLES.iter().map(|files| files.iter().map(|file| (*file).to_owned()).collect()).collect();
    let list = |a: &BTreeSet<_>, b: &BTreeSet<_>| {
        a.difference(b).map(|circle| describe(circle, &edges)).collect::<Vec<_>>().join("\n")
    };
    let (new, gone) = (list(&found, &known), list(&known, &found));
    assert!(
        found == known,
        "circles of files that KNOWN_CIRCLES does not have:\n{new}\ncircles that it has and that are smaller or gone:\n{gone}"
    );
}

/// An import against the flow of data would tie an early stage to a late one, and with it everything between them.
#[test]
fn modules_of_export_use_only_earlier_ones() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let module =
        |file: &str| file.trim_start_matches("export/src/").split(['/', '.']).next().unwrap().to_owned();
    let position = |file: &str| EXPORT.iter().position(|name| *name == module(file));
    let mut uses = 0;
    for (file, imported) in imports(&root, Path::new("export")) {
        if module(&file) == "lib" || module(&file) == "main" {
            continue;
        }
        let here = position(&file).unwrap_or_else(|| panic!("{file} is in no module of EXPORT"));
        for other in imported {
            assert!(position(&other).unwrap() <= here, "{file} imports {other}, which comes later");
            uses += 1;
        }
    }
    assert!(uses > 100, "only {uses} imports were read");
}

/// A check that overlooks imports would pass every circle.
#[test]
fn circles_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let src = dir.path().join("tiny/src");
    fs::create_dir_all(src.join("shop")).unwrap();
    let files = [
        ("lib.rs", "pub mod shop; pub mod till; pub mod coin; pub mod lamp; pub use shop::Shop;"),
        ("shop.rs", "mod shelf; pub use shelf::Shelf; pub struct Shop; fn pay() { crate::till::pay() }"),
        // Imports in a group, by `self` and through a re-export.
        ("till.rs", "use crate::{coin::Coin, shop::{self, Shelf}}; pub fn pay() {}"),
        ("shop/shelf.rs", "pub(super) struct Shelf(super::super::coin::Coin);"),
        // Tests may use everything, and a visibility is no import.
        ("coin.rs", "pub(crate) struct Coin; #[cfg(test)] mod tests { use super::*; use crate::till; }"),
        // Neither an inline module nor a local variable is another file.
        (
            "lamp.rs",
            "mod wick { pub fn light() { super::off() } } fn off() { let shop = 1; drop(shop); wick::light() }",
        ),
    ];
    for (file, text) in files {
        fs::write(src.join(file), text).unwrap();
    }
    let edges = imports(dir.path(), Path::new("tiny"));
    let of = |file: &str| edges[&format!("tiny/src/{file}")].iter().map(String::as_str).collect::<Vec<_>>();
    assert!(of("lib.rs").is_empty());
    assert_eq!(of("shop.rs"), ["tiny/src/till.rs"]);
    assert_eq!(of("till.rs"), ["tiny/src/coin.rs", "tiny/src/shop.rs", "tiny/src/shop/shelf.rs"]);
    assert_eq!(of("shop/shelf.rs"), ["tiny/src/coin.rs"]);
    assert!(of("coin.rs").is_empty() && of("lamp.rs").is_empty());
    let circle = BTreeSet::from(["tiny/src/shop.rs".to_owned(), "tiny/src/till.rs".to_owned()]);
    assert_eq!(circles(&edges), [circle]);
}

/// What each file imports.
type Edges = BTreeMap<String, BTreeSet<String>>;

/// Groups of files that reach each other.
fn circles(edges: &Edges) -> Vec<BTreeSet<String>> {
    let reached = |start: &String| {
        let (mut reached, mut next) = (BTreeSet::new(), vec![start]);
        while let Some(file) = next.pop() {
            for imported in &edges[file] {
                if reached.insert(imported.clone()) {
                    next.push(imported);
                }
            }
        }
        reached
    };
    let reached: BTreeMap<&String, BTreeSet<String>> =
        edges.keys().map(|file| (file, reached(file))).collect();
    let circle = |file: &&String| -> BTreeSet<String> {
        reached[file].iter().filter(|other| reached[other].contains(*file)).cloned().collect()
    };
    let all: BTreeSet<_> = edges.keys().map(|file| circle(&file)).collect();
    all.into_iter().filter(|circle| !circle.is_empty()).collect()
}

/// The line of KNOWN_CIRCLES, and which imports tie the circle.
fn describe(circle: &BTreeSet<String>, edges: &Edges) -> String {
    let mut text = format!("    &{:?},", Vec::from_iter(circle));
    for file in circle {
        let ties = edges.get(file).into_iter().flatten().filter(|other| circle.contains(*other));
        ties.for_each(|other| text += &format!("\n      {file} imports {other}"));
    }
    text
}

/// The imports of all files of a crate, library and program; `root` is where paths start.
fn imports(root: &Path, krate: &Path) -> Edges {
    let src = krate.join("src");
    let mut edges = Edges::new();
    for entry in ["lib.rs", "main.rs"] {
        let file = src.join(entry);
        if root.join(&file).exists() {
            let mut code = Crate::default();
            code.load(root, &file, &src, &[]);
            for (module, syntax) in &code.parsed {
                let (file, found) = (code.modules[module].clone(), BTreeSet::new());
                let mut reader = Reader { code: &code, module: module.clone(), file: file.clone(), found };
                reader.visit_file(syntax);
                edges.entry(file).or_default().extend(reader.found);
            }
        }
    }
    assert!(!edges.is_empty(), "{} has no source files", krate.display());
    edges
}

/// A library or program; paths start at its root.
#[derive(Default)]
struct Crate {
    /// The file of each module.
    modules: BTreeMap<Vec<String>, String>,
    /// What a `use` item calls by the name behind its module's path.
    names: BTreeMap<Vec<String>, Vec<String>>,
    parsed: Vec<(Vec<String>, syn::File)>,
}

impl Crate {
    /// Parses a file and those of its child modules, which are in `dir`.
    fn load(&mut self, root: &Path, file: &Path, dir: &Path, module: &[String]) {
        let syntax = syn::parse_file(&fs::read_to_string(root.join(file)).unwrap()).unwrap();
        self.add_items(root, file, dir, module, &syntax.items);
        self.parsed.push((module.to_owned(), syntax));
    }

    fn add_items(&mut self, root: &Path, file: &Path, dir: &Path, module: &[String], items: &[syn::Item]) {
        self.modules.insert(module.to_owned(), file.display().to_string());
        for item in items {
            match item {
                syn::Item::Use(item) => {
                    for (name, path) in used(&item.tree) {
                        self.names.insert([module, &[name]].concat(), path);
                    }
                }
                syn::Item::Mod(child) if !is_test(&child.attrs) => {
                    let name = child.ident.to_string();
                    let (dir, path) = (dir.join(&name), [module, &[name]].concat());
                    if let Some((_, items)) = &child.content {
                        self.add_items(root, file, &dir, &path, items);
                    } else {
                        let places = [dir.with_extension("rs"), dir.join("mod.rs")];
                        let place = places.iter().find(|place| root.join(place).exists());
                        let place = place.unwrap_or_else(|| panic!("{} does not exist", places[0].display()));
                        self.load(root, place, &dir, &path);
                    }
                }
                _ => {}
            }
        }
    }

    /// The file of this crate that defines what `module` calls `names`.
    fn resolve(&self, module: &[String], names: &[String]) -> Option<&String> {
        let (mut at, mut names) = (module.to_vec(), names);
        match names.first()?.as_str() {
            "crate" => (at, names) = (Vec::new(), &names[1..]),
            "self" => names = &names[1..],
            "super" => {
                while names.first().is_some_and(|name| name == "super") {
                    at.pop();
                    names = &names[1..];
                }
            }
            child => _ = self.modules.get(&[&at[..], &[child.to_owned()]].concat())?,
        }
        while let Some((name, after)) = names.split_first() {
            let next = [at.as_slice(), std::slice::from_ref(name)].concat();
            if !self.modules.contains_key(&next) {
                return match self.names.get(&next) {
                    // Behind a re-export.
                    Some(path) => self.resolve(&at, &[path.as_slice(), after].concat()),
                    None => self.modules.get(&at),
                };
            }
            (at, names) = (next, after);
        }
        self.modules.get(&at)
    }
}

fn is_test(attributes: &[syn::Attribute]) -> bool {
    let mut attributes = attributes.iter().filter(|attribute| attribute.path().is_ident("cfg"));
    attributes.any(|attribute| attribute.parse_args::<syn::Path>().is_ok_and(|path| path.is_ident("test")))
}

/// The names that a `use` item brings into scope, and the paths that they stand for.
fn used(tree: &syn::UseTree) -> Vec<(String, Vec<String>)> {
    let one = |name: &syn::Ident, path: &syn::Ident| vec![(name.to_string(), vec![path.to_string()])];
    match tree {
        syn::UseTree::Path(path) => {
            let start = path.ident.to_string();
            let with_start = |(name, rest): (String, Vec<String>)| match name.as_str() {
                "self" => (start.clone(), vec![start.clone()]),
                _ => (name, [vec![start.clone()], rest].concat()),
            };
            used(&path.tree).into_iter().map(with_start).collect()
        }
        syn::UseTree::Name(name) => one(&name.ident, &name.ident),
        syn::UseTree::Rename(name) => one(&name.rename, &name.ident),
        syn::UseTree::Glob(_) => vec![("*".into(), Vec::new())],
        syn::UseTree::Group(group) => group.items.iter().flat_map(used).collect(),
    }
}

/// Collects the files that one file imports.
struct Reader<'a> {
    code: &'a Crate,
    /// The module that is being read.
    module: Vec<String>,
    file: String,
    found: BTreeSet<String>,
}

impl Reader<'_> {
    fn add(&mut self, names: &[String]) {
        if let Some(file) = self.code.resolve(&self.module, names).filter(|file| **file != self.file) {
            self.found.insert(file.clone());
        }
    }
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        if matches!(item.vis, syn::Visibility::Inherited) {
            used(&item.tree).iter().for_each(|(_, path)| self.add(path));
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        // A single name is an item or a variable in scope.
        if path.segments.len() > 1 {
            let names: Vec<_> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
            self.add(&names);
        }
        visit::visit_path(self, path);
    }

    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        if module.content.is_some() && !is_test(&module.attrs) {
            self.module.push(module.ident.to_string());
            visit::visit_item_mod(self, module);
            self.module.pop();
        }
    }

    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {}
}
