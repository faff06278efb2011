use super::*;
use std::fs;

/// A folder of these texts with judgements in `qrels/test.tsv`.
fn folder(corpus: &str, queries: &str, qrels: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("qrels")).unwrap();
    for (name, text) in [(CORPUS, corpus), (QUERIES, queries), ("qrels/test.tsv", qrels)] {
        fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

fn read(dir: &tempfile::TempDir, purpose: Purpose) -> Result<SplitQrels, DataError> {
    BeirData::open(dir.path())?.qrels("test", purpose)
}

fn gains(qrels: &Qrels, query: &str) -> Vec<(String, u32)> {
    let mut gains: Vec<_> = qrels[query].iter().map(|(id, gain)| (id.clone(), *gain)).collect();
    gains.sort();
    gains
}

const CORPUS_OF_ONE: &str = "{\"_id\":\"d1\",\"title\":\"Tide\",\"text\":\"The sea falls and rises.\"}\n";
const QUERY_OF_ONE: &str = "{\"_id\":\"q1\",\"text\":\"when is low water\"}\n";

/// A bad line must be found by its number, not by bisecting a million lines.
#[test]
fn errors_name_the_line() {
    let twice = format!("{CORPUS_OF_ONE}{{\"_id\":\"d1\",\"text\":\"Another text.\"}}\n");
    let bad = [
        ("{\"_id\":\"d1\",\"text\":\"x\"}\n\n{oops\n", QUERY_OF_ONE, "", "corpus.jsonl:3:"),
        (&twice, QUERY_OF_ONE, "", "corpus.jsonl:2: id `d1` was used on line 1 already, with another text"),
        ("{\"_id\":\"d1\"}\n", QUERY_OF_ONE, "", "corpus.jsonl: holds no documents"),
        (
            "{\"_id\":\"d1\",\"id\":\"d2\",\"text\":\"x\"}\n",
            QUERY_OF_ONE,
            "",
            "`_id` is `d1` and `id` is `d2`",
        ),
        ("{\"text\":\"x\"}\n", QUERY_OF_ONE, "", "missing field `_id`"),
        (
            "{\"_id\":1.5,\"text\":\"x\"}\n",
            QUERY_OF_ONE,
            "",
            "`_id` is 1.5, expected a text or a whole number",
        ),
        (CORPUS_OF_ONE, "{\"_id\":\"q1\",\"text\":null}\n", "", "queries.jsonl: holds no queries"),
        ("", QUERY_OF_ONE, "", "corpus.jsonl: holds no documents"),
        (CORPUS_OF_ONE, QUERY_OF_ONE, "query-id\tcorpus-id\tscore\nq1\td1\n", "test.tsv:2: found `q1\td1`"),
        (
            CORPUS_OF_ONE,
            QUERY_OF_ONE,
            "q1\td1\t0.5\n",
            "expected `query-id<TAB>corpus-id<TAB>score`, or TREC's",
        ),
        (CORPUS_OF_ONE, QUERY_OF_ONE, "q1 Q0 d1 1 0.5 run\n", "test.tsv:1: found `q1 Q0 d1 1 0.5 run`"),
        (
            CORPUS_OF_ONE,
            QUERY_OF_ONE,
            "q1\td9\t1\nq1\td1\t1\n",
            "test.tsv:1: document `d9` is not in corpus.jsonl",
        ),
        (
            CORPUS_OF_ONE,
            QUERY_OF_ONE,
            "q1\td1\t1\nq9\td1\t1\n",
            "test.tsv:2: query `q9` is not in queries.jsonl; 1 of 2",
        ),
        (CORPUS_OF_ONE, QUERY_OF_ONE, "query-id\tcorpus-id\tscore\n", "test.tsv: holds no judgements"),
    ];
    for (corpus, queries, qrels, expected) in bad {
        let message = read(&folder(corpus, queries, qrels), Purpose::Training).unwrap_err().to_string();
        assert!(message.contains(expected), "{message:?} lacks {expected:?}");
    }
}

/// FiQA has documents without a word, ArguAna and NFCorpus judge what is not there, TREC-COVID and the first Touché have gains
/// below 0, data frames write null, `id` and numbers: refused, these sets could not be measured; counted otherwise than trec_eval
/// does, no number could be compared.
#[test]
fn what_is_harmless_in_published_sets_is_passed_over_and_told_once() {
    let corpus = "{\"_id\":\"d1\",\"id\":\"d1\",\"title\":null,\"text\":\"Ebb.\",\"metadata\":{\"year\":2017}}\n\
                  {\"_id\":\"d2\",\"title\":\"\",\"text\":null,\"metadata\":null}\n{\"_id\":3,\"title\":\"Flood\"}\n\
                  {\"id\":\"d4\",\"text\":\"Spring tide.\"}\n{\"_id\":\"d4\",\"text\":\"Spring tide.\"}\n";
    let queries = format!("{QUERY_OF_ONE}{{\"_id\":\"q2\",\"text\":\" \"}}\n{QUERY_OF_ONE}");
    let dir = folder(
        corpus,
        &queries,
        "q1\td1\t1\nq1\td2\t1\nq1\t3\t-2\nq1\td8\t2\nq1\td9\t1\nq7\td1\t1\nq2\td1\t1\n",
    );
    let data = BeirData::open(dir.path()).unwrap();
    let ids: Vec<&str> = data.documents.iter().map(|document| document.id.as_str()).collect();
    assert_eq!(ids, ["d1", "3", "d4"]);
    assert!(data.is_empty_document("d2") && !data.is_empty_document("d9"));
    let notes = data.notes.join("\n");
    for note in [
        "corpus.jsonl: 1 document has neither title nor text (first: `d2`, line 2); passed over",
        "corpus.jsonl: 1 line repeats a document (first: `d4`, line 5); passed over",
        "queries.jsonl: 1 query has no text (first: `q2`, line 2); passed over",
        "queries.jsonl: 1 line repeats a query (first: `q1`, line 3); passed over",
    ] {
        assert!(notes.contains(note), "{notes} lacks {note}");
    }
    assert_eq!(data.notes.len(), 4);
    let SplitQrels { qrels, notes } = data.qrels("test", Purpose::Measuring).unwrap();
    assert_eq!(qrels.keys().collect::<Vec<_>>(), ["q1"]);
    let expected = [("3", 0), ("d1", 1), ("d2", 1), ("d8", 2), ("d9", 1)];
    assert_eq!(gains(&qrels, "q1"), expected.map(|(id, gain)| (id.to_owned(), gain)));
    for (note, expected) in notes.iter().zip([
        "1 judgement names a query that queries.jsonl lacks (first: `q7`, line 6)",
        "2 judgements name documents that corpus.jsonl lacks (first: `d8`, line 4)",
        "2 judgements name empty texts (first: `d2`, line 2)",
    ]) {
        assert!(note.contains(expected), "{note} lacks {expected}");
    }
    assert_eq!(notes.len(), 3);
}

/// One id of a thousand that leads nowhere is a slip that costs nothing; one of ten is another version of the corpus, and the
/// model would learn from what happens to be left.
#[test]
fn training_tolerates_one_judgement_in_a_hundred_that_points_nowhere() {
    let queries: String = (0..100).map(|i| format!("{{\"_id\":\"q{i}\",\"text\":\"tide {i}\"}}\n")).collect();
    let corpus = format!("{CORPUS_OF_ONE}{{\"_id\":\"blank\"}}\n");
    let judged: String = (0..98).map(|i| format!("q{i}\td1\t1\n")).collect();
    let slip = folder(&corpus, &queries, &format!("{judged}q98\tgone\t1\nq98\tblank\t0\n"));
    let SplitQrels { qrels, notes } = read(&slip, Purpose::Training).unwrap();
    assert_eq!(qrels.len(), 98);
    assert!(notes[0].ends_with(
        "1 judgement names a document that corpus.jsonl lacks (first: `gone`, line 99); left out"
    ));
    assert!(
        notes[1].ends_with("1 judgement names an empty text (first: `blank`, line 100); left out"),
        "{notes:?}"
    );
    let two = folder(&corpus, &queries, &format!("{judged}q98\tgone\t1\nq400\td1\t0\n"));
    let message = read(&two, Purpose::Training).unwrap_err().to_string();
    let expected = "test.tsv:99: document `gone` is not in corpus.jsonl; 2 of 100 judgements point nowhere, training allows \
                    1 in 100: `train data check` lists them";
    assert!(message.ends_with(expected), "{message}");
    assert!(read(&two, Purpose::Measuring).is_ok());
}

/// Touché was published with judgements of another version of its corpus for a while: every system would have scored 0.
#[test]
fn judgements_of_another_data_set_are_refused() {
    let dir = folder(CORPUS_OF_ONE, QUERY_OF_ONE, "q1\tS197beaca\t1\nq1\tS1b03f390\t0\n");
    let message = read(&dir, Purpose::Measuring).unwrap_err().to_string();
    assert!(
        message.contains("test.tsv: none of 2 judgements names a query of queries.jsonl and a document"),
        "{message}"
    );
    assert!(message.contains("(the first: `q1` and `S197beaca`)"), "{message}");
}

/// The same judgements come with and without a header, in TREC's four columns, from Windows, from pandas, and with ids between
/// quotation marks (BEIR's tables are written by Python's `csv`): read differently, a set would lose queries.
#[test]
fn judgements_are_read_in_every_shape_they_are_written_in() {
    let queries = format!("{QUERY_OF_ONE}{{\"_id\":2,\"text\":\"how high is the flood\"}}\n");
    let corpus =
        format!("{CORPUS_OF_ONE}{{\"_id\":\"\\\"Heroes\\\"_(album)\",\"text\":\"By David Bowie.\"}}\n");
    let expected = |qrels: &Qrels| {
        assert_eq!(gains(qrels, "q1"), [("\"Heroes\"_(album)".to_owned(), 0), ("d1".to_owned(), 3)]);
        assert_eq!(gains(qrels, "2"), [("d1".to_owned(), 1)]);
    };
    for (shape, qrels) in [
        ("BEIR", "query-id\tcorpus-id\tscore\nq1\td1\t3\nq1\t\"\"\"Heroes\"\"_(album)\"\t0\n2\td1\t1\n"),
        ("no header", "q1\td1\t3\nq1\t\"Heroes\"_(album)\t0\n2\td1\t1\n"),
        ("other header", "\u{feff}qid\tdocid\tRelevance\nq1\td1\t3\nq1\t\"Heroes\"_(album)\t-1\n2\td1\t1\n"),
        ("Windows", "query-id\tcorpus-id\tscore\r\nq1\td1\t3\r\nq1\t\"Heroes\"_(album)\t0\r\n2\td1\t1\r\n"),
        ("pandas", "query-id\tcorpus-id\tscore\nq1\td1\t3.0\nq1\t\"Heroes\"_(album)\t0.0\n2\td1\t1.0\n"),
        ("TREC", "q1 0 d1 3\nq1 0 \"Heroes\"_(album) -2\n2 Q0 d1 1\n"),
        ("TREC with tabs", "q1\t0\td1\t3\nq1\t0\t\"Heroes\"_(album)\t-2\n2\t0\td1\t1\n"),
        ("said again", "q1\td1\t3\nq1\td1\t3\nq1\t\"Heroes\"_(album)\t0\n2\td1\t1\n"),
    ] {
        let read = read(&folder(&corpus, &queries, qrels), Purpose::Training).expect(shape);
        expected(&read.qrels);
        assert_eq!(read.notes, Vec::<String>::new(), "{shape}");
    }
    for id in ["\"Heroes\"_(album)", "d1", "\"", "\"\"", "a\"b"] {
        let line = format!("q\t{}\t1", quoted(id));
        let JudgementLine::Judgement(judgement) = JudgementLine::parse(&line, 1) else { panic!("{line}") };
        assert_eq!(judgement.document, id);
    }
    let changed = folder(CORPUS_OF_ONE, QUERY_OF_ONE, "q1\td1\t3\nq1\td1\t0\n");
    let SplitQrels { qrels, notes } = read(&changed, Purpose::Measuring).unwrap();
    assert_eq!(gains(&qrels, "q1"), [("d1".to_owned(), 0)]);
    assert!(
        notes[0].contains("1 judgement contradicts an earlier one")
            && notes[0].contains("the last one counts")
    );
}

/// CQADupStack is a folder of twelve sets, archives unpack into a folder of their own name, and Hugging Face's copies are
/// compressed: "no such file" would send people looking for a broken download.
#[test]
fn folders_that_are_not_quite_a_data_set_are_told_what_they_are() {
    let dir = folder(CORPUS_OF_ONE, QUERY_OF_ONE, "q1\td1\t1\n");
    let parent = tempfile::tempdir().unwrap();
    for name in ["gaming", "android"] {
        fs::create_dir(parent.path().join(name)).unwrap();
        fs::copy(dir.path().join(CORPUS), parent.path().join(name).join(CORPUS)).unwrap();
    }
    let message = BeirData::open(parent.path()).unwrap_err().to_string();
    assert!(
        message
            .ends_with("holds no corpus.jsonl but 2 data sets (android, gaming); name one folder at a time"),
        "{message}"
    );
    let data = BeirData::open(dir.path()).unwrap();
    let message = data.qrels("dev", Purpose::Measuring).unwrap_err().to_string();
    assert!(message.ends_with("dev.tsv: no such split; there is `test`"), "{message}");
    fs::rename(dir.path().join(CORPUS), dir.path().join("corpus.jsonl.gz")).unwrap();
    let message = BeirData::open(dir.path()).unwrap_err().to_string();
    assert!(
        message.ends_with("corpus.jsonl: not there, corpus.jsonl.gz is; unpack it with `gunzip`"),
        "{message}"
    );
    fs::remove_file(dir.path().join("corpus.jsonl.gz")).unwrap();
    assert!(BeirData::open(dir.path()).unwrap_err().to_string().contains("corpus.jsonl: No such file"));
}

/// Somebody asks these queries one by one: an empty one has no answer, and its place would be taken by the next.
#[test]
fn queries_to_be_asked_are_not_passed_over() {
    let dir = folder(CORPUS_OF_ONE, &format!("{QUERY_OF_ONE}{{\"_id\":\"q2\"}}\n"), "");
    let message = read_queries(&dir.path().join(QUERIES)).unwrap_err().to_string();
    assert!(message.ends_with("queries.jsonl:2: `q2` has no text; there is nothing to ask"), "{message}");
}

/// One line or two of each of BEIR's sets in the shapes and with the peculiarities they are published with, in other words. A set
/// that does not load is a set that nobody compares on.
#[test]
fn every_set_of_beir_loads_as_published() {
    let document = |id: &str, title: &str, more: &str| {
        format!("{{\"_id\": \"{id}\", \"title\": \"{title}\", \"text\": \"Some text about {id}.\"{more}}}\n")
    };
    let query = |id: &str, more: &str| format!("{{\"_id\": \"{id}\", \"text\": \"what of {id}\"{more}}}\n");
    let header = "query-id\tcorpus-id\tscore\n";
    let metadata = ", \"metadata\": {}";
    let science = ", \"metadata\": {\"authors\": [\"1\", \"2\"], \"year\": null, \"cited_by\": [], \"references\": [\"b\"]}";
    let argument = "test-free-speech-debate-con03a";
    let cases = [
        // Queries of three splits in one file; test has gains from 0 to 3.
        (
            "msmarco",
            document("7", "", metadata),
            query("1", "") + &query("2", ""),
            "1\t7\t3\n1\t8\t0\n",
            [1, 1, 1],
        ),
        (
            "trec-covid",
            document("ug7v", "T", ", \"metadata\": {\"url\": \"u\", \"pubmed_id\": \"1\"}"),
            query("1", ", \"metadata\": {\"narrative\": \"n\"}"),
            "1\tug7v\t-1\n",
            [1, 1, 0],
        ),
        // Some copies judge queries that are not there.
        (
            "nfcorpus",
            document("MED-10", "T", metadata),
            query("PLAIN-3", metadata),
            "PLAIN-2\tMED-10\t2\nPLAIN-3\tMED-10\t1\n",
            [1, 1, 1],
        ),
        ("nq", document("doc0", "T", ""), query("test0", ""), "test0\tdoc0\t1\n", [1, 1, 0]),
        (
            "hotpotqa",
            document("12", "T", metadata),
            query("5a8b", ", \"metadata\": {\"answer\": \"yes\"}"),
            "5a8b\t12\t1\n",
            [1, 1, 0],
        ),
        (
            "fiqa",
            document("3", "", metadata)
                + "{\"_id\": \"7915\", \"title\": \"\", \"text\": \"\", \"metadata\": {}}\n",
            query("0", metadata),
            "0\t3\t1\n",
            [1, 1, 1],
        ),
        // The query is a document too, and one of the judged documents is missing.
        (
            "arguana",
            document(argument, "", ""),
            query(argument, ""),
            "test-free-speech-debate-con03a\ttest-free-speech-debate-con03b\t1\ntest-free-speech-debate-con03a\ttest-free-speech-debate-con03a\t0\n",
            [1, 1, 1],
        ),
        (
            "webis-touche2020",
            document("c67482ba-00000-000", "T", ", \"metadata\": {\"stance\": \"CON\"}"),
            query("1", ", \"metadata\": {\"description\": \"d\"}"),
            "1\tc67482ba-00000-000\t-2\n",
            [1, 1, 0],
        ),
        (
            "cqadupstack/gaming",
            document("51829", "T", ", \"metadata\": {\"tags\": [\"pc\"]}"),
            query("80550", ", \"metadata\": {\"tags\": []}"),
            "80550\t51829\t1\n",
            [1, 1, 0],
        ),
        (
            "quora",
            document("318", "", "") + &document("46", "", ""),
            query("318", ""),
            "318\t46\t1\n",
            [2, 1, 0],
        ),
        (
            "dbpedia-entity",
            document("<dbpedia:Tide_(sea)>", "T", metadata),
            query("INEX_LD-20120112", ""),
            "INEX_LD-20120112\t<dbpedia:Tide_(sea)>\t2\n",
            [1, 1, 0],
        ),
        (
            "scidocs",
            document("a1", "T", science) + &document("b", "T", science),
            query("q", science),
            "q\ta1\t1\nq\tb\t0\n",
            [2, 1, 0],
        ),
        (
            "fever",
            document("\\\"Heroes\\\"", "\\\"Heroes\\\"", metadata)
                + "{\"_id\": \"Ebb\", \"title\": \"Ebb\", \"text\": \"\"}\n",
            query("75397", metadata),
            "75397\t\"\"\"Heroes\"\"\"\t1\n75397\tEbb\t1\n",
            [2, 1, 0],
        ),
        ("climate-fever", document("Habitat", "T", ""), query("0", ""), "0\tHabitat\t1\n", [1, 1, 0]),
        // Queries whose claim no document supports are in the file, but not judged.
        (
            "scifact",
            document("4983", "T", ", \"metadata\": {}"),
            query("1", metadata) + &query("0", metadata),
            "1\t4983\t1\n",
            [1, 1, 0],
        ),
    ];
    for (name, corpus, queries, judged, [documents, judged_queries, notes]) in cases {
        let dir = folder(&corpus, &queries, &format!("{header}{judged}"));
        let data = BeirData::open(dir.path()).expect(name);
        let read = data.qrels("test", Purpose::Measuring).expect(name);
        let found = [data.documents.len(), read.qrels.len(), data.notes.len() + read.notes.len()];
        assert_eq!(found, [documents, judged_queries, notes], "{name}: {:?} {:?}", data.notes, read.notes);
    }
}
