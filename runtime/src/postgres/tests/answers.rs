//! Queries: answers are those of a directory, whichever way they were found.

use super::*;
use crate::search::{self, Rows};
use crate::testing::Folding;

/// `n` documents in clusters, some of them twins, in a database and in memory.
fn filled(database: &Database, form: Form, n: usize) -> (Rows, Vec<FoldedQuery>) {
    let mut random = Random::new(5);
    let folding = Folding::new(form, M, &mut random);
    let centres: Vec<Vec<f32>> = (0..n / 50 + 1).map(|_| random.normals(M)).collect();
    let (mut rows, mut documents, mut vectors) = (Rows::new(M), Vec::new(), Vec::new());
    for i in 0..n {
        let centre = &centres[i % centres.len()];
        let latent: Vec<f32> = centre.iter().map(|x| x + 0.4 * random.normal()).collect();
        let vector = match i {
            _ if i % 11 == 10 => Vec::clone(&vectors[i - 1]),
            _ => folding.folded.document(&latent),
        };
        let metadata = json!({ "place": i, "tenth": i % 10, "room": (["kitchen", "bath", "hall"][i % 3]) });
        let document = document(&format!("d{i}"), &format!("text {i}"), metadata);
        rows.push(i as i64 + 1, &document.id, &vector, &document.metadata);
        documents.push(document);
        vectors.push(vector);
    }
    put(database, &documents, &vectors);
    (rows, (0..40).map(|_| folding.query(&mut random)).collect())
}

fn found(ranked: &Ranked) -> Vec<(&str, f32)> {
    ranked.iter().map(|(document, score)| (document.id.as_str(), *score)).collect()
}

fn exact<'a>(rows: &'a Rows, query: &FoldedQuery, wanted: &Wanted) -> Vec<(&'a str, f32)> {
    let selected = wanted.filter.as_ref().map(|filter| rows.select(filter));
    let best = &search::exact(std::slice::from_ref(query), rows, wanted.k, selected.as_ref())[0];
    best.iter().map(|scored| (rows.id(scored.row), scored.score)).collect()
}

/// Servers must answer as a robot does: the same documents, the same order among equals, the same numbers to the last bit.
#[test]
fn a_scan_answers_as_an_index_in_a_directory() {
    let Some(scratch) = Scratch::new("scan") else { return };
    for form in BOTH {
        scratch.client().batch_execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public").unwrap();
        let database = scratch.open(form);
        let (rows, queries) = filled(&database, form, 700);
        for filter in [
            "",
            "room=bath",
            "tenth>=7",
            "place in 3,10,32,43",
            "!room",
            "{\"$or\": [{\"tenth\": 1}, {\"room\": {\"$ne\": \"hall\"}}]}",
        ] {
            for k in [1, 10, 1000] {
                let wanted = wanted(k, filter);
                let (path, ranked) = database.ranked(&queries, &wanted).unwrap();
                assert_eq!((path, ranked.len()), (SearchPath::Exact, queries.len()));
                for (query, ranked) in queries.iter().zip(&ranked) {
                    assert_eq!(found(ranked), exact(&rows, query, &wanted), "{form:?} {filter:?} {k}");
                }
            }
        }
        let facets = Backend::facets(&database, 3).unwrap();
        assert_eq!(facets, rows.columns().facets(rows.live(), 3));
    }
}

/// A graph that is not used costs a scan a query; one that is used under the wrong measure finds the wrong documents.
#[test]
fn the_graph_is_used_and_finds_what_the_scan_finds() {
    let Some(scratch) = Scratch::new("graph") else { return };
    for (form, least) in [(Form::Gated, 0.97), (Form::Relu, 0.95)] {
        scratch.client().batch_execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public").unwrap();
        let mut database = scratch.open(form);
        database.exact_limit = 500;
        let (rows, queries) = filled(&database, form, 4000);
        for filter in ["", "room!=bath", "tenth>=5"] {
            let wanted = wanted(10, filter);
            let (path, ranked) = database.ranked(&queries, &wanted).unwrap();
            assert_eq!(path, SearchPath::Graph, "{filter}");
            let mut same = 0;
            for (query, ranked) in queries.iter().zip(&ranked) {
                let exact = exact(&rows, query, &wanted);
                assert_eq!(ranked.len(), 10);
                same += found(ranked).iter().filter(|hit| exact.contains(hit)).count();
            }
            let recall = same as f64 / (10 * queries.len()) as f64;
            eprintln!("{form:?} {filter:?}: recall@10 {recall:.3} of the scan, {} documents", rows.len());
            assert!(recall >= least, "{form:?} {filter}: {recall}");
        }
        // A filter that leaves few is scanned, and leaves no fewer than there are.
        let few = wanted(10, "place in 3,10,32,43");
        let (path, ranked) = database.ranked(&queries[..1], &few).unwrap();
        assert_eq!((path, ranked[0].len()), (SearchPath::Exact, 4));
        database.exact = true;
        assert_eq!(database.ranked(&queries[..1], &wanted(10, "")).unwrap().0, SearchPath::Exact);
        database.exact = false;

        for filter in ["", "room!=bath"] {
            let wanted = wanted(10, filter);
            let (sql, condition) = database.graph_sql(&wanted, 80).unwrap().unwrap();
            let probe = vec![0.5f32; if form == Form::Relu { 2 * M } else { M }];
            let plan = database.read(|transaction, _| {
                transaction.batch_execute("SET LOCAL enable_seqscan = off")?;
                let parameters = condition.after(&[(&probe, Type::FLOAT4_ARRAY)]);
                let rows = transaction.query_typed(&format!("EXPLAIN {sql}"), &parameters)?;
                Ok(rows.iter().map(|row| row.get::<_, String>(0)).collect::<Vec<_>>().join("\n"))
            });
            let plan = plan.unwrap();
            assert!(plan.contains("Index Scan using rabtriever_documents_graph"), "{plan}");
        }
        let check = Backend::check_graph(&database, &queries, 10, Some(1.0)).unwrap().unwrap();
        assert!(check.recall.share >= least && check.expansion >= measure::EXPANSION, "{check:?}");
        // What was widened is kept, and for every server.
        let other = scratch.open(form);
        assert_eq!(other.read(|_, state| Ok(state.expansion)).unwrap(), check.expansion);
    }
}

/// Not a test: prints the table of docs/scale.md. `cargo test --release -p runtime --features postgres --lib measures_recall --
/// --ignored --nocapture`
#[test]
#[ignore = "a measurement, minutes long"]
fn measures_recall() {
    const N: usize = 21_000;
    for m in [64, 512] {
        for form in BOTH {
            let Some(scratch) = Scratch::new("recall") else { return };
            let key = IndexKey { inner_dimensions: m, ..key(form) };
            let database = scratch.open_as(key, "", Access::Create, patient()).unwrap();
            let mut random = Random::new(3);
            let folding = Folding::new(form, m, &mut random);
            let centres: Vec<Vec<f32>> = (0..N / 50).map(|_| random.normals(m)).collect();
            let latent = |i: usize, random: &mut Random| -> Vec<f32> {
                centres[i % centres.len()].iter().map(|x| x + 0.4 * random.normal()).collect()
            };
            // Linked in one go, which is quicker than one by one.
            let mut client = scratch.client();
            let graph = "SELECT pg_get_indexdef('rabtriever_documents_graph'::regclass)";
            let graph: String = client.query_one(graph, &[]).unwrap().get(0);
            client.batch_execute("DROP INDEX rabtriever_documents_graph").unwrap();
            for start in (0..N).step_by(500) {
                let documents: Vec<Document> =
                    (start..start + 500).map(|i| document(&format!("d{i}"), "x", json!({}))).collect();
                let vectors: Vec<Vec<f32>> =
                    (start..start + 500).map(|i| folding.folded.document(&latent(i, &mut random))).collect();
                put(&database, &documents, &vectors);
            }
            let started = std::time::Instant::now();
            client.batch_execute(&format!("SET maintenance_work_mem = '1GB'; {graph}")).unwrap();
            let seconds = started.elapsed().as_secs_f64();
            let anywhere: Vec<FoldedQuery> = (0..100).map(|_| folding.query(&mut random)).collect();
            let near: Vec<FoldedQuery> =
                (0..100).map(|i| folding.query_near(&latent(i * 7, &mut random))).collect();
            for (which, queries) in [("anywhere", anywhere), ("near", near)] {
                let check = Backend::check_graph(&database, &queries, 10, None).unwrap().unwrap();
                eprintln!(
                    "| {form:?} | {m} | {which} | {:.3} | {:.1} | {:.1} | {:.0} |",
                    check.recall.share,
                    check.graph_ms,
                    check.exact_ms,
                    N as f64 / seconds
                );
            }
        }
    }
}
