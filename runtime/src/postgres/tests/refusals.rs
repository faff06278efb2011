//! Refusals: each in a sentence that helps, without a password, and nothing is left half done.

use super::*;
use std::sync::mpsc;

/// Every way in which a database can be the wrong one is told in a sentence, and leaves it as it was.
#[test]
fn wrong_databases_are_refused_and_left_alone() {
    let Some(scratch) = Scratch::new("wrong") else { return };
    let gated = || key(Form::Gated);
    scratch.refused(gated(), "", Access::Existing, &["holds no index", "runtime index --store"]);
    let mut client = scratch.client();
    let user = format!("{}_plain", scratch.name);
    client.batch_execute(&format!("DROP ROLE IF EXISTS {user}; CREATE ROLE {user} LOGIN PASSWORD 'p1ain'; GRANT ALL ON SCHEMA public TO {user}")).unwrap();
    let (_, host) = scratch.server.split_once('@').unwrap();
    let as_user = |password: &str| {
        let url =
            format!("postgres://{user}:{password}@{}/{}", host.split('/').next().unwrap(), scratch.name);
        let options = Options { database: hasty(), ..Options::default() };
        Database::open(gated(), &url.parse().unwrap(), Access::Create, &options).unwrap_err().to_string()
    };
    let refused = as_user("p1ain");
    assert!(refused.contains(&format!("user `{user}` may not create the extension `vector`")), "{refused}");
    let refused = as_user("wr0ng");
    assert!(
        refused.contains("password authentication failed") && refused.contains("PGPASSWORD"),
        "{refused}"
    );
    assert!(!refused.contains("wr0ng"), "{refused}");
    assert_eq!(scratch.tables(), [""; 0]);
    client.batch_execute(&format!("REVOKE ALL ON SCHEMA public FROM {user}; DROP ROLE {user}")).unwrap();

    let version: i32 =
        client.query_one("SELECT current_setting('server_version_num')::integer", &[]).unwrap().get(0);
    if version >= 180_000 {
        let nowhere = "?options=-cextension_control_path%3D/nowhere";
        scratch.refused(gated(), nowhere, Access::Create, &["does not have pgvector", "0.7.0"]);
    }
    client.batch_execute("CREATE TABLE rabtriever_documents (x integer)").unwrap();
    let words = ["table `rabtriever_documents` that is not this program's", "search_path"];
    scratch.refused(gated(), "", Access::Create, &words);
    client.batch_execute("ALTER TABLE rabtriever_documents RENAME TO rabtriever_schema").unwrap();
    scratch.refused(gated(), "", Access::Create, &["table `rabtriever_schema` that is not", "version"]);
    assert_eq!(scratch.tables(), ["rabtriever_schema"]);
    client.batch_execute("DROP TABLE rabtriever_schema").unwrap();

    drop(scratch.open(Form::Gated));
    let tables = scratch.tables();
    let other = IndexKey { document_digest: "another encoder's digest".into(), ..gated() };
    let words = ["made with another bundle", "document digest d1", "another enco"];
    scratch.refused(other, "", Access::Create, &words);
    scratch.refused(
        IndexKey { inner_dimensions: 8, ..gated() },
        "",
        Access::Create,
        &["number of dimensions 24", "8"],
    );
    scratch.refused(key(Form::Relu), "", Access::Existing, &["predictor form gated", "relu"]);
    let wide = IndexKey { inner_dimensions: 16_001, ..gated() };
    scratch.refused(wide, "", Access::Create, &["16001", "at most 16000"]);
    client.batch_execute("UPDATE rabtriever_schema SET version = 7").unwrap();
    scratch.refused(gated(), "", Access::Create, &["schema version 7", "up to 1", "update the program"]);
    client.batch_execute("UPDATE rabtriever_schema SET version = 1; ALTER TABLE rabtriever_documents RENAME digest TO hash").unwrap();
    scratch.refused(gated(), "", Access::Existing, &["`rabtriever_documents`", "digest"]);
    client.batch_execute("ALTER TABLE rabtriever_documents RENAME hash TO digest; UPDATE pg_extension SET extversion = '0.6.2' WHERE extname = 'vector'").unwrap();
    scratch.refused(
        gated(),
        "",
        Access::Existing,
        &["extension `vector` is 0.6.2", "0.7.0 or newer", "ALTER EXTENSION"],
    );
    client
        .batch_execute(
            "UPDATE pg_extension SET extversion = '0.8.5' WHERE extname = 'vector'; CREATE SCHEMA apart",
        )
        .unwrap();
    scratch.refused(
        gated(),
        "?options=-csearch_path%3Dapart",
        Access::Create,
        &["schema of the extension", "search path"],
    );
    assert_eq!(scratch.tables(), tables);

    // A schema of its own is a second index in the same database.
    let apart =
        scratch.open_as(key(Form::Relu), "?options=-csearch_path%3Dapart,public", Access::Create, patient());
    assert_eq!(apart.unwrap().measure.form, Form::Relu);
    let Some(latin) = Scratch::with("latin", "ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0") else {
        return;
    };
    latin.refused(gated(), "", Access::Create, &["encoding is LATIN1", "UTF8"]);
}

/// A database that does not answer must not take a server's threads with it.
#[test]
fn waiting_has_an_end() {
    let Some(scratch) = Scratch::new("waiting") else { return };
    drop(scratch.open(Form::Gated));
    let database = scratch.open_as(key(Form::Gated), "", Access::Existing, hasty()).unwrap();
    let mut locker = scratch.client();
    let mut lock = locker.transaction().unwrap();
    lock.batch_execute("LOCK TABLE rabtriever_documents").unwrap();
    let query = FoldedQuery::new(Form::Gated, vec![0.1; M], Vec::new(), 0.0);
    let ask = || database.ranked(std::slice::from_ref(&query), &wanted(3, "")).unwrap_err();
    let refused = ask();
    assert!(refused.is_unavailable() && refused.to_string().contains("no answer within 1 s"), "{refused}");
    drop(lock);
    let refused = std::thread::scope(|scope| {
        let ((taken, has_taken), (release, released)) = (mpsc::channel(), mpsc::channel());
        let database = &database;
        let holder = scope.spawn(move || {
            database.connections.work(|_| {
                taken.send(()).unwrap();
                released.recv().unwrap();
                Ok(())
            })
        });
        has_taken.recv().unwrap();
        let refused = ask();
        release.send(()).unwrap();
        holder.join().unwrap().unwrap();
        refused
    });
    let said = refused.to_string();
    assert!(refused.is_unavailable() && said.contains("all 1 connections") && said.contains("1 s"), "{said}");
    assert_eq!(database.ranked(&[query], &wanted(3, "")).unwrap().1, [vec![]]);
}
