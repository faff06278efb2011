//! The tables of an index in a database: made, brought up to date, and checked before anything is read from them.
//!
//! ```text
//! rabtriever_schema     version of the tables; one row, and the one table that every version of this program can read
//! rabtriever_index      what the vectors were made with, and counters; one row, which every change updates last
//! rabtriever_documents  a row a document, with a GIN index over `fields` and an HNSW graph over the vectors
//! ```
//! They lie in the first schema of the connection's search path. Making and migrating them is one transaction.

use super::connect::Connections;
use super::error::{Failure, PostgresError, words};
use super::measure::{EXPANSION, LINKS, MOST_STORED, Measure};
use crate::place::Access;
use crate::store::IndexKey;
use postgres::Transaction;
use postgres::error::SqlState;
use postgres::types::Type;

/// Version of the tables that this program makes.
pub(super) const VERSION: i32 = MIGRATIONS.len() as i32;
/// Oldest server and extension that will do: the extension has `halfvec` since then.
const LEAST_SERVER: i32 = 14;
const LEAST_EXTENSION: &str = "0.7.0";
/// From here on a graph is walked until enough documents have passed a filter.
const ITERATIVE_EXTENSION: (u32, u32) = (0, 8);
/// Nodes of the graph that are looked at while one is linked.
const LOOKED_AT: usize = 128;
/// Whoever makes or migrates the tables holds this lock; the number is arbitrary, and ours for ever.
const LOCK: i64 = 0x7261_6274_7269_6576;
pub(super) type Migration = fn(&Measure) -> String;

/// Step n brings version n to n + 1; what has once been released stays as it is.
const MIGRATIONS: [Migration; 1] = [first];

pub(super) fn first(measure: &Measure) -> String {
    let m = measure.dimensions;
    let features = measure.features_column().map_or(String::new(), |column| format!("{column} NOT NULL,"));
    // Vectors of a page's size are read as they lie there, without looking them up elsewhere.
    let plain = if m <= 1024 {
        "ALTER TABLE rabtriever_documents ALTER COLUMN vector SET STORAGE PLAIN;"
    } else {
        ""
    };
    let graph = measure.graph().map_or(String::new(), |(over, kind)| {
        format!(
            "CREATE INDEX rabtriever_documents_graph ON rabtriever_documents \
             USING hnsw ({over} {kind}_ip_ops) WITH (m = {LINKS}, ef_construction = {LOOKED_AT});"
        )
    });
    format!(
        "CREATE TABLE rabtriever_index (
             document_digest text NOT NULL,
             inner_dimensions text NOT NULL,
             form text NOT NULL,
             generation bigint NOT NULL DEFAULT 0,
             documents bigint NOT NULL DEFAULT 0,
             expansion integer NOT NULL DEFAULT {EXPANSION}
         );
         CREATE TABLE rabtriever_documents (
             key bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
             id text COLLATE \"C\" NOT NULL UNIQUE,
             fields jsonb NOT NULL,
             vector vector({m}) NOT NULL,
             {features}
             digest text NOT NULL,
             title text NOT NULL,
             text text NOT NULL,
             metadata text NOT NULL
         );
         {plain}
         CREATE INDEX rabtriever_documents_fields ON rabtriever_documents USING gin (fields jsonb_path_ops);
         {graph}",
    )
}

/// What is known about an opened index.
#[derive(Debug, Clone, Copy)]
pub(super) struct Abilities {
    /// Whether a graph is walked on until enough documents have passed a filter.
    pub iterative: bool,
}

/// The counters of an index at a moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct State {
    /// Number of the last change.
    pub generation: u64,
    pub documents: usize,
    /// Nodes of the graph that are looked at for a query.
    pub expansion: usize,
}

/// Checks server, extension and tables, and makes what may be made.
pub(super) fn prepare(
    connections: &Connections,
    key: &IndexKey,
    access: Access,
) -> Result<Abilities, PostgresError> {
    let database = connections.database();
    if key.inner_dimensions > MOST_STORED {
        let (what, found) = ("the bundle's number of dimensions", key.inner_dimensions.to_string());
        let expected = format!("at most {MOST_STORED}");
        return Err(PostgresError::Unfit { database, what, found, expected, hint: "" });
    }
    connections.work(|client| {
        let mut transaction = client.transaction()?;
        limit(&mut transaction, connections)?;
        let server = transaction.query_typed_one(
            "SELECT current_setting('server_version_num')::integer / 10000, current_setting('server_encoding')",
            &[],
        )?;
        fits_server(&database, server.try_get(0)?, server.try_get(1)?)?;
        match (found_version(&mut transaction, &database)?, access) {
            (Some(VERSION), _) => {}
            (None, Access::Existing) => {
                return Err(PostgresError::NotAnIndex { database: database.clone() }.into());
            }
            _ => migrate(&mut transaction, connections, key, &MIGRATIONS)?,
        }
        let abilities = fits_extension(&mut transaction, &database)?;
        state(&mut transaction, key, &database)?;
        // A column that is missing is missed here, and not by the first query.
        transaction.query_typed(
            "SELECT key, id, fields, vector, digest, title, text, metadata FROM rabtriever_documents LIMIT 0",
            &[],
        )?;
        transaction.commit()?;
        Ok(abilities)
    })
}

/// How long statements of a transaction may take. Nothing is acknowledged before it is on the server's disk.
pub(super) fn limit(transaction: &mut Transaction<'_>, connections: &Connections) -> Result<(), Failure> {
    let milliseconds = connections.timeout().as_millis().clamp(1, i32::MAX as u128);
    Ok(transaction.batch_execute(&format!(
        "SET LOCAL statement_timeout = {milliseconds}; SET LOCAL lock_timeout = 0; SET LOCAL jit = off; \
         SET LOCAL client_min_messages = error; \
         SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off'"
    ))?)
}

/// The counters, if the tables are of this version and were made with this bundle.
pub(super) fn state(
    transaction: &mut Transaction<'_>,
    key: &IndexKey,
    database: &str,
) -> Result<State, Failure> {
    let database = || database.to_owned();
    let row = transaction.query_typed_opt(
        "SELECT version, document_digest, inner_dimensions, form, generation, documents, expansion \
         FROM rabtriever_schema, rabtriever_index",
        &[],
    )?;
    let Some(row) = row else {
        let (table, reason) = ("rabtriever_index".to_owned(), "it has no row".to_owned());
        return Err(PostgresError::Foreign { database: database(), table, reason }.into());
    };
    let version: i32 = row.try_get(0)?;
    if version != VERSION {
        // Another program has migrated it since it was opened.
        return Err(
            PostgresError::NewerSchema { database: database(), found: version, expected: VERSION }.into()
        );
    }
    for (place, (what, _, expected)) in (1..).zip(key.entries()) {
        let found: String = row.try_get(place)?;
        if found != expected {
            let short = |value: String| value.chars().take(12).collect();
            let (found, expected) = (short(found), short(expected));
            return Err(PostgresError::OtherBundle { database: database(), what, found, expected }.into());
        }
    }
    let count = |value: i64| u64::try_from(value).unwrap_or(0);
    Ok(State {
        generation: count(row.try_get(4)?),
        documents: usize::try_from(count(row.try_get(5)?)).unwrap_or(usize::MAX),
        expansion: usize::try_from(row.try_get::<_, i32>(6)?).unwrap_or(1).max(1),
    })
}

/// Version of the tables that are there; refuses those that are not ours.
fn found_version(transaction: &mut Transaction<'_>, database: &str) -> Result<Option<i32>, Failure> {
    let foreign = |table: &str, reason: String| -> Failure {
        PostgresError::Foreign { database: database.to_owned(), table: table.to_owned(), reason }.into()
    };
    // In the schema where tables would be made: another index may lie further down the search path. A look into the catalogue,
    // because a name that was looked up before would not be found anew within a transaction.
    let there = |transaction: &mut Transaction<'_>, table: &str| -> Result<bool, Failure> {
        let found = transaction.query_typed_one(
            "SELECT EXISTS ( \
                 SELECT FROM pg_class WHERE relname = $1 AND relnamespace = current_schema()::regnamespace \
             )",
            &[(&table, Type::TEXT)],
        )?;
        Ok(found.try_get(0)?)
    };
    if !there(transaction, "rabtriever_schema")? {
        for table in ["rabtriever_index", "rabtriever_documents"] {
            if there(transaction, table)? {
                return Err(foreign(table, "without the table `rabtriever_schema` beside it".into()));
            }
        }
        return Ok(None);
    }
    let rows = transaction
        .query_typed("SELECT version FROM rabtriever_schema", &[])
        .map_err(|error| foreign("rabtriever_schema", words(&error)))?;
    let [row] = rows.as_slice() else {
        return Err(foreign("rabtriever_schema", format!("it has {} rows, not one", rows.len())));
    };
    let version: i32 = row.try_get(0).map_err(|error| foreign("rabtriever_schema", words(&error)))?;
    if version > VERSION {
        let database = database.to_owned();
        return Err(PostgresError::NewerSchema { database, found: version, expected: VERSION }.into());
    }
    Ok(Some(version))
}

/// Makes the extension and the tables, or brings the tables up to date, one program at a time.
pub(super) fn migrate(
    transaction: &mut Transaction<'_>,
    connections: &Connections,
    key: &IndexKey,
    migrations: &[Migration],
) -> Result<(), Failure> {
    let database = connections.database();
    transaction.query_typed("SELECT pg_advisory_xact_lock($1)", &[(&LOCK, Type::INT8)])?;
    // A graph over a large table takes its time.
    transaction.batch_execute("SET LOCAL statement_timeout = 0")?;
    // Somebody else may have done it meanwhile.
    let found = found_version(transaction, &database)?;
    if found.is_none() {
        create_extension(transaction, connections)?;
        transaction.batch_execute(
            "CREATE TABLE rabtriever_schema (version integer NOT NULL); INSERT INTO rabtriever_schema VALUES (0)",
        )?;
    }
    let measure = Measure::new(key);
    let done = usize::try_from(found.unwrap_or(0)).unwrap_or(0);
    for migration in migrations.iter().skip(done) {
        transaction.batch_execute(&migration(&measure))?;
    }
    let version = migrations.len() as i32;
    transaction.execute_typed("UPDATE rabtriever_schema SET version = $1", &[(&version, Type::INT4)])?;
    if found.is_none() {
        let values: Vec<String> = key.entries().map(|(_, _, value)| value).collect();
        transaction.execute_typed(
            "INSERT INTO rabtriever_index (document_digest, inner_dimensions, form) VALUES ($1, $2, $3)",
            &[(&values[0], Type::TEXT), (&values[1], Type::TEXT), (&values[2], Type::TEXT)],
        )?;
    }
    Ok(())
}

fn create_extension(transaction: &mut Transaction<'_>, connections: &Connections) -> Result<(), Failure> {
    let database = connections.database();
    let there = transaction.query_typed("SELECT FROM pg_extension WHERE extname = 'vector'", &[])?;
    if !there.is_empty() {
        fits_extension(transaction, &database)?;
        return Ok(());
    }
    transaction.batch_execute("CREATE EXTENSION IF NOT EXISTS vector").map_err(|error| {
        match error.code() {
            Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
                let (database, user) = (database.clone(), connections.user().to_owned());
                PostgresError::MayNotExtend { database, user }.into()
            }
            Some(&SqlState::FEATURE_NOT_SUPPORTED | &SqlState::UNDEFINED_FILE) => {
                PostgresError::NoExtension { database: database.clone(), least: LEAST_EXTENSION }.into()
            }
            _ => Failure::from(error),
        }
    })?;
    fits_extension(transaction, &database)?;
    Ok(())
}

fn fits_server(database: &str, version: i32, encoding: &str) -> Result<(), PostgresError> {
    let unfit = |what, found: String, expected: String, hint| {
        Err(PostgresError::Unfit { database: database.to_owned(), what, found, expected, hint })
    };
    if version < LEAST_SERVER {
        let expected = format!("{LEAST_SERVER} or newer");
        return unfit("the server's PostgreSQL version", version.to_string(), expected, "");
    }
    if encoding != "UTF8" {
        let hint = "; make a database with ENCODING 'UTF8'";
        return unfit("the database's encoding", encoding.to_owned(), "UTF8".to_owned(), hint);
    }
    Ok(())
}

fn fits_extension(transaction: &mut Transaction<'_>, database: &str) -> Result<Abilities, Failure> {
    let found = transaction.query_typed(
        "SELECT extversion, nspname::text, to_regtype('halfvec') IS NOT NULL \
         FROM pg_extension JOIN pg_namespace ON pg_namespace.oid = extnamespace WHERE extname = 'vector'",
        &[],
    )?;
    let database = || database.to_owned();
    let Some(row) = found.first() else {
        return Err(PostgresError::NoExtension { database: database(), least: LEAST_EXTENSION }.into());
    };
    let (version, schema, reachable): (String, String, bool) =
        (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    let (found, least) = (major_minor(&version), major_minor(LEAST_EXTENSION));
    if found < least {
        let (what, expected) =
            ("the version of the extension `vector`", format!("{LEAST_EXTENSION} or newer"));
        let hint = "; ALTER EXTENSION vector UPDATE brings it up to what is installed";
        return Err(
            PostgresError::Unfit { database: database(), what, found: version, expected, hint }.into()
        );
    }
    if !reachable {
        let (what, expected) =
            ("the schema of the extension `vector`", "a schema of the search path".to_owned());
        let hint = "; add it to search_path (?options=-csearch_path%3DNAME,public)";
        return Err(PostgresError::Unfit { database: database(), what, found: schema, expected, hint }.into());
    }
    Ok(Abilities { iterative: found >= Some(ITERATIVE_EXTENSION) })
}

fn major_minor(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.').map(|part| part.parse::<u32>().ok());
    Some((parts.next()??, parts.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Servers too old fail in the middle of something, with words about syntax; none is at hand, so the check is asked itself.
    #[test]
    fn old_servers_and_other_encodings_are_refused_by_name() {
        assert!(fits_server("d", 14, "UTF8").is_ok() && fits_server("d", 18, "UTF8").is_ok());
        let old = fits_server("d", 13, "UTF8").unwrap_err().to_string();
        assert!(old.contains("PostgreSQL version is 13") && old.contains("14 or newer"), "{old}");
        let latin = fits_server("d", 16, "LATIN1").unwrap_err().to_string();
        assert!(latin.contains("LATIN1"), "{latin}");
        assert!(major_minor("0.6.2") < major_minor(LEAST_EXTENSION));
        assert!(major_minor("0.10.0") > Some(ITERATIVE_EXTENSION) && major_minor("new").is_none());
    }

    /// Graphs have limits on dimensions; a table that asked for more could not be made at all.
    #[test]
    fn tables_fit_the_limits_of_graphs() {
        use models::student::Form::{Gated, Relu};
        let of = |form, dimensions| first(&Measure { form, dimensions });
        assert!(of(Gated, 2000).contains("hnsw (vector vector_ip_ops)"));
        assert!(of(Gated, 2001).contains("hnsw ((vector::halfvec(2001)) halfvec_ip_ops)"));
        assert!(
            of(Relu, 2000).contains("features halfvec(4000)")
                && of(Relu, 2000).contains("hnsw (features halfvec_ip_ops)")
        );
        for (form, dimensions) in [(Gated, 4001), (Relu, 2001)] {
            assert!(
                !of(form, dimensions).contains("hnsw") && !of(form, dimensions).contains("features halfvec")
            );
        }
    }
}
