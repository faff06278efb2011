//! `train data` as users start it: every fault of a folder is found and nothing is found in a good one; what the
//! importers write is what was in the files, and passes the check.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use models::beir::{BeirData, Purpose};
use models::files::write_json;
use models::prompt::PromptTemplate;
use serde_json::{Value, json};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use tests::model::{copy_dir, tokenizer_json};
use tests::program::{Finished, listing, run};
use tests::repository;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn check(data: &Path, more: &[&str]) -> Finished {
    run("train", &[&["data", "check", "--data", text(data)], more].concat())
}

fn import(format: &str, flags: &[&str]) -> Finished {
    run("train", &[&["data", "import", format], flags].concat())
}

fn append(file: &Path, bytes: &[u8]) {
    OpenOptions::new().append(true).open(file).unwrap().write_all(bytes).unwrap();
}

/// Tokenizer and prompt, nothing else: that is all the check needs of a model.
fn write_prompt(dir: &Path, max_tokens: usize) {
    let mut template = PromptTemplate::default();
    (template.document.max_tokens, template.query.max_tokens) = (max_tokens, max_tokens);
    fs::create_dir_all(dir).unwrap();
    write_json(&dir.join("prompt.json"), &template).unwrap();
    write_json(&dir.join("tokenizer.json"), &tokenizer_json()).unwrap();
}

/// A check that cries wolf is switched off, and then the next leak is published as a result.
#[test]
fn nothing_is_found_in_good_data() {
    let dir = tempfile::tempdir().unwrap();
    write_prompt(dir.path(), 400);
    let found = check(&repository().join("data/home-robot"), &["--model", text(dir.path())]).done();
    assert_eq!(found.stdout, "");
    assert!(found.stderr.contains("130 documents, 2160 queries; train: 1300 queries"), "{}", found.stderr);
    assert!(found.stderr.contains("nothing is wrong"), "{}", found.stderr);
}

/// Each fault here has cost somebody a week: it must be found, counted and named by its line, and none must hide
/// another.
#[test]
fn every_kind_of_fault_is_found_in_spoiled_data() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("spoiled");
    copy_dir(&repository().join("data/home-robot"), &data);
    append(
        &data.join("corpus.jsonl"),
        br#"{oops
{"_id": "put-out-fire", "title": "Sing", "text": "The robot sings."}
{"_id": "copy", "title": "ACCEPT a parcel", "text": "The robot meets the courier at the doorstep, signs for the package and keeps it safe until  the recipient comes back!"}
{"_id": "void", "title": "", "text": "  "}
"#,
    );
    let queries = fs::read_to_string(data.join("queries.jsonl")).unwrap();
    let fire: Value = queries
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .find(|q: &Value| q["_id"] == "need-0001")
        .unwrap();
    let again = json!({ "_id": "again", "text": fire["text"].as_str().unwrap().to_uppercase() });
    append(&data.join("queries.jsonl"), format!("{again}\n").as_bytes());
    append(
        &data.join("queries.jsonl"),
        b"{\"_id\": \"hm\", \"text\": \"Nobody knows.\"}\n\n{\"_id\": \"hm\"}\n\xff\n{\"_id\": \"hm\", \"text\": \"Nobody knows.\"}\n",
    );
    append(
        &data.join("qrels/train.tsv"),
        b"again\tput-out-fire\t1\nneed-0003\tvoid\t0\nnobody\tput-out-fire\t1\nagain\tsofa\t1\nagain put-out-fire\nneed-0003\tvoid\t1\n",
    );
    fs::write(data.join("qrels/dev.tsv"), "query-id\tcorpus-id\tscore\n").unwrap();
    write_prompt(&dir.path().join("model"), 100);

    let json = dir.path().join("report.json");
    let (model, json) = (text(&dir.path().join("model")).to_owned(), text(&json).to_owned());
    let found = check(&data, &["--model", &model, "--json", &json, "--examples", "2"]);
    assert_eq!(found.code, Some(1), "{}\n{}", found.stdout, found.stderr);
    let report: Value = serde_json::from_str(&fs::read_to_string(&json).unwrap()).unwrap();
    let findings: Vec<(&str, &str, u64, Vec<Option<u64>>)> = report["findings"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|finding| {
            let faults = ["broken-line", "duplicate-id", "empty", "leaked-query", "leaked-pair"];
            let severity =
                if faults.iter().any(|kind| finding["kind"] == *kind) { "fault" } else { "warning" };
            assert_eq!(finding["severity"], severity, "{finding}");
            finding["kind"] != "too-long"
        })
        .map(|finding| {
            let lines = finding["examples"].as_array().unwrap().iter().map(|e| e["line"].as_u64()).collect();
            let [kind, file] = ["kind", "file"].map(|key| finding[key].as_str().unwrap());
            (kind, file, finding["total"].as_u64().unwrap(), lines)
        })
        .collect();
    let test_line = |query: &str| {
        let test = fs::read_to_string(data.join("qrels/test.tsv")).unwrap();
        Some(1 + test.lines().position(|line| line.starts_with(&format!("{query}\t"))).unwrap() as u64)
    };
    let first_dev = |n: usize| {
        let dev = fs::read_to_string(repository().join("data/home-robot/qrels/dev.tsv")).unwrap();
        let ids: Vec<String> =
            dev.lines().skip(1).map(|line| format!("\"{}\"", line.split('\t').next().unwrap())).collect();
        let lines = queries.lines().enumerate().filter(|(_, q)| ids.iter().any(|id| q.contains(id)));
        lines.map(|(i, _)| Some(1 + i as u64)).take(n).collect::<Vec<_>>()
    };
    assert_eq!(
        findings,
        [
            ("broken-line", "corpus.jsonl", 1, vec![Some(131)]),
            ("broken-line", "qrels/train.tsv", 1, vec![Some(1306)]),
            ("broken-line", "queries.jsonl", 1, vec![Some(2165)]),
            ("duplicate-id", "corpus.jsonl", 1, vec![Some(132)]),
            ("duplicate-id", "queries.jsonl", 1, vec![Some(2164)]),
            ("empty", "qrels/dev.tsv", 1, vec![None]),
            ("leaked-query", "qrels/test.tsv", 2, vec![test_line("need-0001"), test_line("need-0003")]),
            ("leaked-pair", "qrels/test.tsv", 1, vec![test_line("need-0001")]),
            ("unknown-id", "qrels/train.tsv", 2, vec![Some(1304), Some(1305)]),
            ("empty-text", "corpus.jsonl", 1, vec![Some(134)]),
            ("repeated-line", "queries.jsonl", 1, vec![Some(2166)]),
            ("changed-judgement", "qrels/train.tsv", 1, vec![Some(1307)]),
            ("no-relevant-document", "queries.jsonl", 201, first_dev(2)),
            ("duplicate-text", "corpus.jsonl", 1, vec![Some(133)]),
            ("duplicate-text", "queries.jsonl", 1, vec![Some(2161)]),
        ],
        "{}",
        found.stdout
    );
    let corpus = data.join("corpus.jsonl");
    let train = data.join("qrels/train.tsv");
    for line in [
        format!(
            "{}: fault: 1 broken line\n  {}:131: not a JSON object with `_id` and `text`: ",
            text(&corpus),
            text(&corpus)
        ),
        format!("{}:132: id `put-out-fire` was used on line ", text(&corpus)),
        format!("{}:1304: query `nobody` is not in queries.jsonl\n", text(&train)),
        format!(
            "{}:1306: found \"again put-out-fire\", expected `query-id<TAB>corpus-id<TAB>score`, or TREC's",
            text(&train)
        ),
        "query `need-0001` (queries.jsonl:".to_owned(),
        ") has the text of the query in qrels/train.tsv:1302 (queries.jsonl:2161)\n".to_owned(),
        "query `need-0003` is asked in qrels/train.tsv:1303 too\n".to_owned(),
        "with document `put-out-fire` is judged in qrels/train.tsv:1302 too\n".to_owned(),
        ": warning: 201 queries without any relevant document\n".to_owned(),
        "  and 199 more\n".to_owned(),
        " tokens, the prompt keeps the first 100\n".to_owned(),
    ] {
        assert!(found.stdout.contains(&line), "lacks {line:?}\n{}", found.stdout);
    }
}

/// Published sets have all of these: refused, nobody could keep the check in a script; not told, nobody would know.
#[test]
fn warnings_leave_the_exit_status_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("qrels")).unwrap();
    let queries: String =
        (0..100).map(|i| json!({ "_id": i, "text": format!("need {i}") }).to_string() + "\n").collect();
    let judged: String = (0..99).map(|i| format!("{i}\ta\t1\n")).collect();
    let corpus = "{\"_id\": \"a\", \"text\": \"Dust the shelf.\"}\n{\"_id\": \"b\", \"text\": \"\"}\n";
    fs::write(dir.path().join("corpus.jsonl"), corpus).unwrap();
    fs::write(dir.path().join("queries.jsonl"), queries).unwrap();
    fs::write(dir.path().join("qrels/test.tsv"), format!("{judged}99\tgone\t1\n")).unwrap();
    let found = check(dir.path(), &[]).done();
    for line in [
        "corpus.jsonl: warning: 1 empty text\n",
        "qrels/test.tsv: warning: 1 unknown id\n",
        "test.tsv:100: document `gone` is not in corpus.jsonl\n",
        "queries.jsonl: warning: 1 query without any relevant document\n",
    ] {
        assert!(found.stdout.contains(line), "lacks {line:?}\n{}", found.stdout);
    }
    assert!(found.stderr.contains("no fault; warnings need no repair"), "{}", found.stderr);
    append(&dir.path().join("qrels/test.tsv"), b"gone\ta\t1\n");
    let found = check(dir.path(), &[]);
    assert_eq!(found.code, Some(1), "{}", found.stdout);
    assert!(found.stdout.contains("qrels/test.tsv: fault: 2 unknown ids\n"), "{}", found.stdout);
}

/// A set with everything that published sets have is measured over all its judged queries, and what is passed over is told once:
/// left out of the mean, the queries that nobody can answer would make every system look better than it does elsewhere.
#[test]
fn a_set_with_the_peculiarities_of_published_ones_is_measured_as_trec_eval_does() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("qrels")).unwrap();
    let corpus = [("lamp", "lamp on"), ("mop", "mop the hall"), ("blank", ""), ("vase", "carry a vase")].map(
        |(id, text)| json!({ "_id": id, "title": null, "text": text, "metadata": {} }).to_string() + "\n",
    );
    let queries = [("1", "lamp"), ("2", "hall"), ("3", "vase"), ("lamp", "lamp on")]
        .map(|(id, text)| json!({ "_id": id, "text": text }).to_string() + "\n");
    // Query 1 is answered; of 2 the answer is missing, of 3 nothing is relevant; the last is a document itself.
    let judged = "1\tlamp\t2\n1\tblank\t-1\n2\tgone\t1\n3\tvase\t0\n3\tlamp\t-2\nlamp\tvase\t1\n9\tmop\t1\n";
    fs::write(dir.path().join("corpus.jsonl"), corpus.concat()).unwrap();
    fs::write(dir.path().join("queries.jsonl"), queries.concat()).unwrap();
    fs::write(dir.path().join("qrels/test.tsv"), judged).unwrap();
    let json = dir.path().join("report.json");
    let measured = |more: &[&str]| {
        let flags = ["eval", "--data", text(dir.path()), "--bm25", "--json", text(&json)];
        let told = run("train", &[&flags, more].concat()).done().stderr;
        let report: Value = serde_json::from_str(&fs::read_to_string(&json).unwrap()).unwrap();
        (report["splits"]["test"]["BM25"].clone(), told)
    };
    let (bm25, told) = measured(&[]);
    assert_eq!(bm25["queries"], 4);
    // Query `lamp` does not find itself, but the vase among the two others, which score the same.
    assert_eq!([&bm25["metrics"]["Recall@1"], &bm25["metrics"]["MRR@10"]], [0.5, 0.5]);
    for note in [
        "corpus.jsonl: 1 document has neither title nor text (first: `blank`, line 3); passed over",
        "test.tsv: 1 judgement names a query that queries.jsonl lacks (first: `9`, line 7)",
        "test.tsv: 1 judgement names a document that corpus.jsonl lacks (first: `gone`, line 3)",
    ] {
        assert_eq!(told.matches(note).count(), 1, "{note}\n{told}");
    }
    let (pooled, _) = measured(&["--pool", "2", "--relevance-level", "2"]);
    assert_eq!((&pooled["queries"], &pooled["metrics"]["Recall@1"]), (&json!(4), &json!(0.25)));
    assert_eq!(check(dir.path(), &[]).code, Some(1));
}

/// Hard negatives, titles and splits must arrive where training and evaluation look for them.
#[test]
fn pairs_become_a_folder_that_passes_the_check() {
    let dir = tempfile::tempdir().unwrap();
    let (from, out) = (dir.path().join("pairs.jsonl"), dir.path().join("beir"));
    let lines: String = (0..30)
        .map(|i| json!({ "query": format!("need {i}"), "pos": [format!("skill {}", i % 7)], "neg": ["skill 1", "skill 9"] }).to_string() + "\n")
        .collect();
    fs::write(&from, lines).unwrap();
    let flags = ["--from", text(&from), "--out", text(&out), "--dev-share", "0.1", "--test-share", "0.2"];
    let made = import("pairs", &flags).done();
    assert_eq!(made.stdout.trim(), text(&out));
    assert!(made.stderr.contains("8 documents, 30 queries"), "{}", made.stderr);
    check(&out, &[]).done();
    let data = BeirData::open(&out).unwrap();
    let text_of = |id: &str| data.documents[data.document_index[id]].text.clone();
    let mut queries = 0;
    for (split, count) in [("train", 21), ("dev", 3), ("test", 6)] {
        let qrels = data.qrels(split, Purpose::Training).unwrap().qrels;
        assert_eq!(qrels.len(), count, "{split}");
        for (query, judged) in qrels {
            let number: usize = data.queries[data.query_index[&query]].text[5..].parse().unwrap();
            let right = format!("skill {}", number % 7);
            for (document, gain) in judged {
                assert_eq!(gain == 1, text_of(&document) == right, "{query} {document}");
            }
            queries += 1;
        }
    }
    assert_eq!(queries, 30);
    // The same command gives the same bytes: an import can be repeated on another machine.
    let again = dir.path().join("again");
    import(
        "pairs",
        &["--from", text(&from), "--out", text(&again), "--dev-share", "0.1", "--test-share", "0.2"],
    )
    .done();
    for file in ["corpus.jsonl", "queries.jsonl", "qrels/train.tsv", "qrels/dev.tsv", "qrels/test.tsv"] {
        assert_eq!(fs::read(out.join(file)).unwrap(), fs::read(again.join(file)).unwrap(), "{file}");
    }
}

/// MS MARCO is what people train on first: ids, gains and negatives come through unchanged.
#[test]
fn msmarco_files_become_a_folder_that_passes_the_check() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let write = |name: &str, lines: &str| {
        fs::write(at(name), lines).unwrap();
        text(&at(name)).to_owned()
    };
    let collection =
        write("collection.tsv", "0\tThe robot wipes.\n1\tThe robot makes light.\n2\tThe robot sweeps.\r\n");
    let train = write("queries.train.tsv", "10\tspilled coffee\n11\tcrumbs\n12\tnever asked\n");
    let dev = write("queries.dev.tsv", "20\tit is dusk\n");
    let of_train = format!("train={}", write("qrels.train.tsv", "10\t0\t0\t1\n"));
    let of_dev = format!("dev={}", write("qrels.dev.tsv", "20 0 1 3\n20 0 2 0\n"));
    let triples = write("triples.tsv", "11\t2\t1\n10\t0\t1\n");
    let out = at("beir");
    let made = import(
        "msmarco",
        &[
            "--collection",
            &collection,
            "--queries",
            &train,
            "--queries",
            &dev,
            "--qrels",
            &of_train,
            "--qrels",
            &of_dev,
            "--triples",
            &triples,
            "--out",
            text(&out),
        ],
    )
    .done();
    assert_eq!(made.stdout.trim(), text(&out));
    assert!(made.stderr.contains("left out: 1 queries without a judgement"), "{}", made.stderr);
    check(&out, &[]).done();
    let read = |name: &str| fs::read_to_string(out.join(name)).unwrap();
    assert_eq!(
        read("qrels/train.tsv"),
        "query-id\tcorpus-id\tscore\n10\t0\t1\n10\t1\t0\n11\t1\t0\n11\t2\t1\n"
    );
    assert_eq!(read("qrels/dev.tsv"), "query-id\tcorpus-id\tscore\n20\t1\t3\n20\t2\t0\n");
    let data = BeirData::open(&out).unwrap();
    assert_eq!(data.documents[2].text, "The robot sweeps.");
    assert_eq!(data.queries.iter().map(|query| query.id.as_str()).collect::<Vec<_>>(), ["10", "11", "20"]);
}

/// The paper's conversation task, made from the file that its authors publish.
#[test]
fn esconv_becomes_a_folder_that_passes_the_check() {
    let dir = tempfile::tempdir().unwrap();
    let (from, out) = (dir.path().join("ESConv.json"), dir.path().join("beir"));
    let conversations: Vec<Value> = (0..10)
        .map(|i| {
            json!({
                "experience_type": "Previous Experience", "emotion_type": "fear", "problem_type": "job crisis",
                "situation": format!("My job number {i} is gone."),
                "dialog": [
                    { "speaker": "seeker", "annotation": {}, "content": format!("I lost job {i}.\n") },
                    { "speaker": "supporter", "annotation": { "strategy": "Question" }, "content": "How?" },
                    { "speaker": "seeker", "annotation": { "feedback": "5" }, "content": "They closed." },
                    { "speaker": "supporter", "annotation": { "strategy": "Providing Suggestions" }, "content": "Rest." },
                ],
            })
        })
        .collect();
    fs::write(&from, json!(conversations).to_string()).unwrap();
    let made = import("esconv", &["--from", text(&from), "--out", text(&out), "--dev-share", "0.2"]).done();
    assert_eq!(made.stdout.trim(), text(&out));
    assert!(made.stderr.contains("8 documents, 20 queries; dev: 4 queries"), "{}", made.stderr);
    check(&out, &[]).done();
    let data = BeirData::open(&out).unwrap();
    let asked = &data.queries[data.query_index["c3-u4"]].text;
    assert_eq!(
        asked,
        "Situation: My job number 2 is gone.\nSeeker: I lost job 2.\nSupporter: How?\nSeeker: They closed."
    );
}

/// Wrong turns, each one sentence with exit code 2; nothing appears, nothing stays half written.
#[test]
fn wrong_turns_are_refused_in_one_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let write = |name: &str, lines: &str| {
        fs::write(at(name), lines).unwrap();
        text(&at(name)).to_owned()
    };
    let good = write("good.jsonl", "{\"query\": \"a\", \"pos\": \"b\"}\n");
    let bad = write("bad.jsonl", "{\"query\": \"a\", \"pos\": \"b\"}\n{\"query\": \"c\"}\n");
    let collection = write("collection.tsv", "0\ta b\n");
    let queries = write("queries.tsv", "1\tc d\n");
    let qrels = write("qrels.tsv", "1 0 7 1\n");
    let esconv = write("ESConv.json", "[{\"situation\": \"x\",\n \"dialog\": [{\"speaker\": \"bot\"}]}]\n");
    write_prompt(&at("model"), 100);
    let before = listing(dir.path());
    let (out, absent, root) = (at("out"), at("absent"), text(dir.path()).to_owned());
    let (out, absent) = (text(&out), text(&absent));

    fs::create_dir_all(at("twelve/gis")).unwrap();
    fs::write(at("twelve/gis/corpus.jsonl"), "").unwrap();
    check(&at("twelve"), &[])
        .refused(&["holds no corpus.jsonl but 1 data set (gis); name one folder at a time"]);
    fs::remove_dir_all(at("twelve")).unwrap();
    check(&at("absent"), &[]).refused(&["absent/corpus.jsonl", "No such file"]);
    let robot = repository().join("data/home-robot");
    check(&robot, &["--model", absent]).refused(&["absent/prompt.json", "No such file"]);
    check(&robot, &["--examples", "x"]).refused(&["--examples"]);
    import("pairs", &["--from", absent, "--out", out]).refused(&["cannot read", "absent", "No such file"]);
    import("pairs", &["--from", &bad, "--out", out]).refused(&["bad.jsonl:2: holds no positive for \"c\""]);
    import("pairs", &["--from", &good, "--out", &root]).refused(&["already exists"]);
    import("pairs", &["--from", &good, "--out", out, "--dev-share", "0.5"])
        .refused(&["1 queries cannot be split"]);
    import("pairs", &["--from", &good, "--out", out, "--dev-share", "1.5"]).refused(&["--dev-share is 1.5"]);
    let marco = |more: &[&str]| {
        let flags = ["--collection", &collection, "--queries", &queries, "--out", out];
        import("msmarco", &[&flags, more].concat())
    };
    marco(&[]).refused(&["give --qrels or --triples"]);
    marco(&["--qrels", &qrels]).refused(&["--qrels", "expected SPLIT=FILE"]);
    marco(&["--qrels", "../x=y"]).refused(&["--qrels", "expected SPLIT=FILE"]);
    marco(&["--qrels", &format!("dev={qrels}")]).refused(&["qrels.tsv:1: document `7` is not in the file"]);
    import("esconv", &["--from", &esconv, "--out", out, "--dev-share", "0", "--test-share", "0"])
        .refused(&["ESConv.json:2: not a list of ESConv conversations", "`bot`"]);
    import("tevatron", &["--from", &good, "--out", out]).refused(&["tevatron"]);
    assert_eq!(listing(dir.path()), before);
}
