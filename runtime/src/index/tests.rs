use super::*;
use crate::document::Metadata;
use crate::search;
use crate::testing::{Folding, Random};
use fixedbitset::FixedBitSet;
use std::fs;

const M: usize = 32;

/// Documents in clusters, as real ones are, stored as the bundle would store them.
fn clustered(folding: &Folding, n: usize, random: &mut Random) -> (Rows, Vec<Vec<f32>>) {
    let centres: Vec<Vec<f32>> = (0..n / 50 + 1).map(|_| random.normals(M)).collect();
    let mut rows = Rows::new(M);
    for i in 0..n {
        let centre = &centres[i % centres.len()];
        let latent: Vec<f32> = centre.iter().map(|x| x + 0.4 * random.normal()).collect();
        rows.push(i as i64 + 1, &format!("d{i}"), &folding.folded.document(&latent), &Metadata::new());
    }
    (rows, centres)
}

fn recall(graph: &Graph, rows: &Rows, queries: &[FoldedQuery]) -> f64 {
    const K: usize = 10;
    let mut found = 0;
    for (query, exact) in queries.iter().zip(search::exact(queries, rows, K, None)) {
        let candidates = graph.search(query, search::candidates(K, rows.len(), rows.len()), None).unwrap();
        let graph: Vec<usize> = search::rescore(query, rows, &candidates, K).iter().map(|s| s.row).collect();
        found += exact.iter().filter(|s| graph.contains(&s.row)).count();
    }
    found as f64 / (K * queries.len()) as f64
}

fn setup(form: Form, n: usize, seed: u64) -> (Measure, Rows, Vec<FoldedQuery>) {
    let mut random = Random::new(seed);
    let folding = Folding::new(form, M, &mut random);
    let (rows, _) = clustered(&folding, n, &mut random);
    let queries = (0..50).map(|_| folding.query(&mut random)).collect();
    (Measure::of(&folding.folded, M, M), rows, queries)
}

/// A graph searched under the wrong measure still answers, with documents that are merely near something.
#[test]
fn the_graph_finds_what_the_exact_scan_finds() {
    for (form, least) in [(Form::Gated, 0.97), (Form::Relu, 0.95)] {
        let (measure, rows, queries) = setup(form, 6000, 1);
        let graph = Graph::build(&rows, measure).unwrap();
        let recall = recall(&graph, &rows, &queries);
        eprintln!("{form:?}: recall@10 {recall:.3} of the exact scan, {} documents", rows.len());
        assert!(recall >= least, "{form:?}: recall@10 {recall} < {least}");
    }
}

/// The measure in the graph must be the score, but for the query's own constant.
#[test]
fn the_relu_distance_is_the_score() {
    let mut random = Random::new(2);
    for m in [1, 15, 16, 33, 512] {
        let folding = Folding::new(Form::Relu, m, &mut random);
        let Measure::Relu(join) = Measure::of(&folding.folded, m, m) else { panic!("not relu") };
        let query = folding.query(&mut random);
        let document = random.normals(m);
        let score = query.constant + relu_score(&join, &query.vector, &document);
        assert!((score - query.score(&document)).abs() <= 1e-3 * (1.0 + score.abs()), "{m}");
    }
}

/// usearch refuses a search when all its threads are taken; twice as many callers as threads must all be served.
#[test]
fn more_callers_than_threads_are_served() {
    for form in [Form::Gated, Form::Relu] {
        let (measure, rows, queries) = setup(form, 500, 3);
        let graph = Graph::build(&rows, measure).unwrap();
        let expected: Vec<Vec<i64>> = queries.iter().map(|q| graph.search(q, 20, None).unwrap()).collect();
        std::thread::scope(|scope| {
            for _ in 0..2 * rayon::current_num_threads() + 6 {
                scope.spawn(|| {
                    for (query, expected) in queries.iter().zip(&expected) {
                        assert_eq!(&graph.search(query, 20, None).unwrap(), expected);
                    }
                });
            }
        });
    }
}

/// New and changed documents must be found at once, removed ones never, and the measure must be back in place.
#[test]
fn documents_added_later_are_found() {
    for form in [Form::Gated, Form::Relu] {
        let mut random = Random::new(4);
        let folding = Folding::new(form, M, &mut random);
        let (mut rows, _) = clustered(&folding, 2000, &mut random);
        let mut graph = Graph::build(&rows, Measure::of(&folding.folded, M, M)).unwrap();
        let mut changes = Changes::default();
        for key in 1..=100 {
            assert!(rows.remove(key));
            changes.removed.push(key);
        }
        for i in 0..600i64 {
            // Half of them replace, half are new.
            let key = 1700 + i;
            rows.push(key, &format!("n{i}"), &folding.folded.document(&random.normals(M)), &Metadata::new());
            changes.put.push(key);
        }
        graph.update(&rows, &changes).unwrap();
        assert_eq!(graph.len(), rows.len());
        let queries: Vec<FoldedQuery> = (0..50).map(|_| folding.query(&mut random)).collect();
        let fresh = Graph::build(&rows, Measure::of(&folding.folded, M, M)).unwrap();
        let (updated, fresh) = (recall(&graph, &rows, &queries), recall(&fresh, &rows, &queries));
        eprintln!("{form:?}: recall@10 {updated:.3} after an update, {fresh:.3} when built anew");
        assert!(updated >= fresh - 0.05, "{form:?}: recall@10 {updated} after an update, {fresh} built anew");
    }
}

/// A damaged graph must be rebuilt, never answered from; a sound one says which generation it is of.
#[test]
fn only_the_saved_graph_is_loaded() {
    for form in [Form::Gated, Form::Relu] {
        let (measure, rows, queries) = setup(form, 1500, 5);
        let dir = tempfile::tempdir().unwrap();
        let open = || Graph::open(dir.path(), M, measure.clone());
        assert!(matches!(open(), Err(GraphError::File(FileError::Io { .. }))));
        let built = Graph::build(&rows, measure.clone()).unwrap();
        let generation = Generation { number: 7, digest: "seven".into() };
        built.save(dir.path(), &generation).unwrap();
        let (loaded, of) = open().unwrap();
        assert_eq!(of, generation);
        for query in &queries {
            assert_eq!(loaded.search(query, 20, None).unwrap(), built.search(query, 20, None).unwrap());
        }
        let message = Graph::open(dir.path(), M + 1, measure.clone()).unwrap_err().to_string();
        assert!(message.contains("of 32 numbers, documents.sqlite has 33"), "{message}");

        // Another one takes its place.
        let later = Generation { number: 8, digest: "eight".into() };
        let mut built = built;
        let key = rows.key(0);
        built.update(&rows, &Changes { removed: vec![key], ..Changes::default() }).unwrap();
        built.save(dir.path(), &later).unwrap();
        assert_eq!(open().unwrap().1, later);
        let names = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path());
        let file = names.into_iter().find(|path| path.extension().is_some_and(|e| e == "usearch")).unwrap();
        let mut bytes = fs::read(&file).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&file, &bytes).unwrap();
        assert!(matches!(open(), Err(GraphError::Digest { .. })));
        fs::write(&file, &bytes[..middle]).unwrap();
        assert!(matches!(open(), Err(GraphError::Digest { .. })));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "no temporary file stays behind");
    }
}

/// A filter inside the graph must find what an exact scan over the filter's survivors finds.
#[test]
fn a_filtered_search_finds_the_best_of_what_passes() {
    for form in [Form::Gated, Form::Relu] {
        let (measure, rows, queries) = setup(form, 6000, 6);
        let graph = Graph::build(&rows, measure).unwrap();
        for share in [2, 10] {
            let selected: FixedBitSet = (0..rows.places()).filter(|row| row % share == 1).collect();
            let passes = |key: i64| rows.row(key).is_some_and(|row| selected.contains(row));
            let (mut found, mut all) = (0, 0);
            for (query, exact) in queries.iter().zip(search::exact(&queries, &rows, 10, Some(&selected))) {
                let count = search::candidates(10, selected.count_ones(..), rows.len());
                let candidates = graph.search(query, count, Some(&passes)).unwrap();
                assert!(candidates.iter().all(|key| passes(*key)));
                let best = search::rescore(query, &rows, &candidates, 10);
                all += exact.len();
                found += exact.iter().filter(|s| best.contains(s)).count();
            }
            let recall = found as f64 / all as f64;
            eprintln!("{form:?}: recall@10 {recall:.3} where one in {share} passes");
            assert!(recall >= 0.95, "{form:?}: recall@10 {recall} where one in {share} passes");
        }
    }
}

/// A graph that is replaced between reading which one it is and reading it must not make a reader build one of its own.
#[test]
fn a_graph_that_is_replaced_meanwhile_is_followed() {
    let missing = |name: &u32| GraphError::Path { dir: name.to_string().into() };
    let named = |names: &[u32]| {
        let mut names = names.to_vec();
        names.reverse();
        move || Ok(if names.len() > 1 { names.remove(names.len() - 1) } else { names[0] })
    };
    // 1 is named, and gone when it is looked for: 2 has taken its place.
    let opened = following(named(&[1, 2]), |name| if *name == 2 { Ok(*name) } else { Err(missing(name)) });
    assert_eq!(opened.unwrap(), 2);
    // What is broken and stays so is told at once.
    let mut tries = 0;
    let refused = following(named(&[1]), |name| -> Result<(), _> {
        tries += 1;
        Err(missing(name))
    });
    assert!(refused.is_err() && tries == 1);
}

/// usearch reads what a file says without asking whether it can be: wherever a number is wrong, the file has to be refused before.
#[test]
fn a_file_that_is_no_graph_is_refused_before_usearch_reads_it() {
    for form in [Form::Gated, Form::Relu] {
        let (measure, rows, queries) = setup(form, 200, 8);
        let dir = tempfile::tempdir().unwrap();
        let built = Graph::build(&rows, measure.clone()).unwrap();
        built.save(dir.path(), &Generation::default()).unwrap();
        let names = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path());
        let file = names.into_iter().find(|path| path.extension().is_some_and(|e| e == "usearch")).unwrap();
        let whole = fs::read(&file).unwrap();
        // The description goes along: what is asked here is not whether damage is noticed.
        let open = |bytes: &[u8]| {
            let sha256 = files::sha256(bytes).iter().map(|b| format!("{b:02x}")).collect::<String>();
            fs::write(dir.path().join(file_name(&sha256)), bytes).unwrap();
            let sidecar = Sidecar {
                format_version: FORMAT_VERSION,
                generation: 0,
                digest: String::new(),
                sha256: sha256.clone(),
                expansion: None,
                recall: None,
            };
            files::write_json(&dir.path().join(SIDECAR_NAME), &sidecar).unwrap();
            let opened = Graph::open(dir.path(), M, measure.clone());
            fs::remove_file(dir.path().join(file_name(&sha256))).unwrap();
            opened
        };
        assert_eq!(open(&whole).unwrap().0.len(), rows.len());
        let (mut refused, mut random) = (0, Random::new(9));
        for _ in 0..400 {
            let mut bytes = whole.clone();
            match random.next() % 3 {
                0 => bytes.truncate(random.next() as usize % whole.len()),
                _ => {
                    let place = random.next() as usize % whole.len();
                    let many = (random.next() % 8) as usize + 1;
                    let end = (place + many).min(bytes.len());
                    bytes[place..end].fill([0x00, 0xff, 0x7f, 0x80][random.next() as usize % 4]);
                }
            }
            match open(&bytes) {
                // A vector or a key of another value: nothing that a search could stumble over.
                Ok((graph, _)) => drop(graph.search(&queries[0], 20, None).unwrap()),
                Err(error) => {
                    let message = error.to_string();
                    assert!(message.contains("damaged"), "{message}");
                    refused += 1;
                }
            }
        }
        assert!(refused > 100, "{refused}");
    }
}
