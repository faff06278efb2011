//! Against a real server: RABTRIEVER_TEST_DATABASE is the URL of a superuser with a password, RABTRIEVER_TEST_RESTART a
//! command that kills and restarts the server (`scripts/test-scale.sh postgres` sets both). Without the first these tests
//! say so and pass. Each has a database of its own.

use super::*;
use crate::filter::Filter;
use crate::ingest::Target;
use crate::place::DatabaseOptions;
use crate::store::Record;
use crate::testing::Random;
use ::postgres::{Client, NoTls};
use models::student::Form;
use serde_json::{Value, json};
use std::time::Duration;

mod answers;
mod changes;
mod filters;
mod refusals;

const SERVER: &str = "RABTRIEVER_TEST_DATABASE";
const RESTART: &str = "RABTRIEVER_TEST_RESTART";
const M: usize = 24;
const BOTH: [Form; 2] = [Form::Gated, Form::Relu];

/// A database that is gone with this.
struct Scratch {
    server: String,
    name: String,
}

impl Scratch {
    fn new(name: &str) -> Option<Self> {
        Self::with(name, "")
    }

    fn with(name: &str, how: &str) -> Option<Self> {
        let Ok(server) = std::env::var(SERVER) else {
            eprintln!("{name}: skipped, {SERVER} names no server");
            return None;
        };
        let name = format!("rabtriever_{name}_{}", std::process::id());
        let mut client = Client::connect(&server, NoTls).unwrap();
        client.batch_execute(&format!("DROP DATABASE IF EXISTS {name}")).unwrap();
        client.batch_execute(&format!("CREATE DATABASE {name} {how}")).unwrap();
        Some(Self { server, name })
    }

    /// Its URL, with parameters.
    fn url(&self, parameters: &str) -> String {
        format!("{}/{}{parameters}", self.server.rsplit_once('/').unwrap().0, self.name)
    }

    fn client(&self) -> Client {
        Client::connect(&self.url(""), NoTls).unwrap()
    }

    fn open_as(
        &self,
        key: IndexKey,
        parameters: &str,
        access: Access,
        database: DatabaseOptions,
    ) -> Result<Database, PostgresError> {
        let options = Options { database, ..Options::default() };
        Database::open(key, &self.url(parameters).parse().unwrap(), access, &options)
    }

    fn open(&self, form: Form) -> Database {
        self.open_as(key(form), "", Access::Create, patient()).unwrap()
    }

    fn refused(&self, key: IndexKey, parameters: &str, access: Access, words: &[&str]) {
        let refused = self.open_as(key, parameters, access, hasty()).unwrap_err().to_string();
        for word in words {
            assert!(refused.contains(word), "{refused:?} lacks {word:?}");
        }
        let password = self.server.split(['@', ':']).nth(2).unwrap();
        assert!(!refused.contains(password) && refused.len() < 500, "{refused}");
    }

    /// Relations that are there.
    fn tables(&self) -> Vec<String> {
        let rows = self
            .client()
            .query(
                "SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace ORDER BY 1",
                &[],
            )
            .unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Ok(mut client) = Client::connect(&self.server, NoTls) {
            let _ = client.batch_execute(&format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name));
        }
    }
}

fn patient() -> DatabaseOptions {
    DatabaseOptions { connections: 4, timeout: Duration::from_secs(60) }
}

fn hasty() -> DatabaseOptions {
    DatabaseOptions { connections: 1, timeout: Duration::from_secs(1) }
}

fn key(form: Form) -> IndexKey {
    IndexKey { document_digest: "d1".into(), inner_dimensions: M, form }
}

fn document(id: &str, text: &str, metadata: Value) -> Document {
    let metadata = metadata.as_object().unwrap().clone();
    Document { id: id.into(), title: format!("title of {id}"), text: text.into(), metadata }
}

/// Stores documents with these vectors.
fn put(mut database: &Database, documents: &[Document], vectors: &[Vec<f32>]) {
    for (documents, vectors) in documents.chunks(500).zip(vectors.chunks(500)) {
        let record = |(document, vector): (_, &Vec<f32>)| Record { document, vector: Some(vector.clone()) };
        let records: Vec<Record<'_>> = documents.iter().zip(vectors).map(record).collect();
        assert_eq!(database.put(&records).unwrap(), [0usize; 0]);
    }
}

fn wanted(k: usize, filter: &str) -> Wanted {
    let filter = (!filter.is_empty()).then(|| Filter::parse(filter).unwrap());
    Wanted { k, filter, explain: false }
}
