//! What can be wrong with a database, in sentences. Passwords are in none of them.

use postgres::error::SqlState;
use std::error::Error as _;

/// Why an index in a database cannot be opened, asked or changed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PostgresError {
    /// Not a URL that can be read. What was read is not shown: part of it may be a password.
    #[error(
        "the database's URL cannot be read; expected postgres://USER@HOST:PORT/DATABASE, with the password in PGPASSWORD or, percent-encoded, behind USER: (parameters: sslmode, connect_timeout, application_name, options, ...)"
    )]
    Url,
    /// Nobody answers, or not in PostgreSQL's language.
    #[error(
        "{database}: cannot be reached: {reason}; is the server running, and do host, port and sslmode fit?"
    )]
    Unreachable {
        /// The database.
        database: String,
        /// The system's words.
        reason: String,
    },
    /// The server does not let this user in.
    #[error(
        "{database}: refuses the connection: {reason}; check user, password (PGPASSWORD) and database name"
    )]
    Refused {
        /// The database.
        database: String,
        /// The server's words.
        reason: String,
    },
    /// The server or its database lacks something.
    #[error("{database}: {what} is {found}, {expected} is needed{hint}")]
    Unfit {
        /// The database.
        database: String,
        /// What is wrong.
        what: &'static str,
        /// As it is.
        found: String,
        /// As it should be.
        expected: String,
        /// The way out, behind a semicolon.
        hint: &'static str,
    },
    /// pgvector is not installed on the server.
    #[error(
        "{database}: the server does not have pgvector (extension `vector`); install version {least} or newer there"
    )]
    NoExtension {
        /// The database.
        database: String,
        /// Oldest version that will do.
        least: &'static str,
    },
    /// pgvector is not in this database, and this user may not put it there.
    #[error(
        "{database}: user `{user}` may not create the extension `vector`; have an administrator run CREATE EXTENSION vector in this database"
    )]
    MayNotExtend {
        /// The database.
        database: String,
        /// Who asked.
        user: String,
    },
    /// There are no tables of ours.
    #[error("{database}: holds no index; make one with `runtime index --store`")]
    NotAnIndex {
        /// The database.
        database: String,
    },
    /// A table of our name that somebody else made, or changed.
    #[error(
        "{database}: there is a table `{table}` that is not this program's ({reason}); give the index a schema of its own (?options=-csearch_path%3DNAME,public) or another database"
    )]
    Foreign {
        /// The database.
        database: String,
        /// The table.
        table: String,
        /// How that was seen.
        reason: String,
    },
    /// Written by a newer version of this program.
    #[error(
        "{database}: schema version {found}, this program knows versions up to {expected}; update the program"
    )]
    NewerSchema {
        /// The database.
        database: String,
        /// Version found.
        found: i32,
        /// Newest version known here.
        expected: i32,
    },
    /// Vectors of two bundles must not be compared.
    #[error(
        "{database}: was made with another bundle ({what} {found}, this bundle's is {expected}); index the documents again into another database or schema, or use the bundle it was made with"
    )]
    OtherBundle {
        /// The database.
        database: String,
        /// What differs.
        what: &'static str,
        /// The index's.
        found: String,
        /// The bundle's.
        expected: String,
    },
    /// All connections are taken.
    #[error(
        "{database}: all {connections} connections of this program were in use for {seconds} s; try again, or allow more with --store-connections"
    )]
    Exhausted {
        /// The database.
        database: String,
        /// Most connections.
        connections: u32,
        /// How long one was waited for.
        seconds: f64,
    },
    /// A statement took too long.
    #[error("{database}: no answer within {seconds} s; try again, or allow more with --store-timeout")]
    Timeout {
        /// The database.
        database: String,
        /// The limit.
        seconds: f64,
    },
    /// The transaction met another one, or the server stopped, more often than was waited for.
    #[error("{database}: gave up after {seconds} s: {reason}")]
    Interrupted {
        /// The database.
        database: String,
        /// The limit.
        seconds: f64,
        /// The server's or the system's words.
        reason: String,
    },
    /// PostgreSQL cannot hold this.
    #[error("document `{id}`: {reason}")]
    Unstorable {
        /// The document.
        id: String,
        /// Why.
        reason: String,
    },
    /// PostgreSQL cannot compare with this.
    #[error("filter: a field or value holds a NUL character, which no document in PostgreSQL can have")]
    Filter,
    /// Any other refusal.
    #[error("{database}: {message}")]
    Sql {
        /// The database.
        database: String,
        /// The server's words.
        message: String,
    },
}

impl PostgresError {
    /// Whether the same request may succeed a little later.
    pub fn is_unavailable(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. }
                | Self::Exhausted { .. }
                | Self::Timeout { .. }
                | Self::Interrupted { .. }
        )
    }

    /// Whether what was asked for is at fault.
    pub fn is_invalid(&self) -> bool {
        matches!(self, Self::Unstorable { .. } | Self::Filter)
    }
}

/// What went wrong within a unit of work.
#[derive(Debug)]
pub(super) enum Failure {
    /// The client's or the server's own error.
    Postgres(postgres::Error),
    /// One with a sentence.
    Told(PostgresError),
}

impl From<postgres::Error> for Failure {
    fn from(error: postgres::Error) -> Self {
        Self::Postgres(error)
    }
}

impl From<PostgresError> for Failure {
    fn from(error: PostgresError) -> Self {
        Self::Told(error)
    }
}

impl Failure {
    /// Whether the whole unit of work may be done again: it met another transaction, or the server went away. Every unit
    /// of ours may be: what it writes is the same the second time.
    pub fn is_transient(&self) -> bool {
        let Self::Postgres(error) = self else { return false };
        match error.code() {
            Some(code) => transient(code),
            // Without the server's own words it is the connection that failed.
            None => error.is_closed() || error.source().is_some_and(|cause| cause.is::<std::io::Error>()),
        }
    }
}

fn transient(code: &SqlState) -> bool {
    const CODES: [SqlState; 6] = [
        SqlState::T_R_SERIALIZATION_FAILURE,
        SqlState::T_R_DEADLOCK_DETECTED,
        SqlState::ADMIN_SHUTDOWN,
        SqlState::CRASH_SHUTDOWN,
        SqlState::CANNOT_CONNECT_NOW,
        SqlState::TOO_MANY_CONNECTIONS,
    ];
    // Class 08 is all that can befall a connection.
    CODES.contains(code) || code.code().starts_with("08")
}

/// The words of the server, or of whatever came between; never those of a statement or its parameters.
pub(super) fn words(error: &postgres::Error) -> String {
    match error.as_db_error() {
        Some(error) => error.message().to_owned(),
        None => models::error::sentence(error),
    }
}

/// Where errors happen, for their sentences.
#[derive(Debug, Clone)]
pub(super) struct Scene {
    /// Host, port and name, without the password.
    pub database: String,
    /// Limit of a statement.
    pub seconds: f64,
}

impl Scene {
    /// A refusal while a connection is made.
    pub fn connecting(&self, error: &postgres::Error) -> PostgresError {
        let (database, mut reason) = (self.database.clone(), words(error));
        if reason.contains("certificate") {
            reason +=
                " (SSL_CERT_FILE names a file of authorities to trust, sslmode=disable goes without TLS)";
        }
        // The one thing that the client misses by itself.
        let no_password = reason.contains("password missing");
        match error.code() {
            Some(code) if transient(code) => PostgresError::Unreachable { database, reason },
            Some(_) => PostgresError::Refused { database, reason },
            None if no_password => PostgresError::Refused { database, reason: "a password is needed".into() },
            None => PostgresError::Unreachable { database, reason },
        }
    }

    /// A refusal of a statement.
    pub fn statement(&self, failure: Failure) -> PostgresError {
        let transient = failure.is_transient();
        let error = match failure {
            Failure::Told(error) => return error,
            Failure::Postgres(error) => error,
        };
        let (database, seconds, message) = (self.database.clone(), self.seconds, words(&error));
        match error.code() {
            _ if transient => PostgresError::Interrupted { database, seconds, reason: message },
            Some(&SqlState::QUERY_CANCELED | &SqlState::LOCK_NOT_AVAILABLE) => {
                PostgresError::Timeout { database, seconds }
            }
            Some(&SqlState::UNDEFINED_TABLE) => PostgresError::NotAnIndex { database },
            Some(&SqlState::UNDEFINED_COLUMN) => {
                let table = "rabtriever_documents".to_owned();
                PostgresError::Foreign { database, table, reason: message }
            }
            Some(&SqlState::READ_ONLY_SQL_TRANSACTION) => {
                let message = format!("{message}: it can be asked but not changed (a replica?)");
                PostgresError::Sql { database, message }
            }
            _ => PostgresError::Sql { database, message },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Retrying what cannot succeed keeps clients waiting; not retrying a restart loses their work.
    #[test]
    fn what_passes_is_tried_again_and_nothing_else() {
        for code in ["40001", "40P01", "57P01", "57P02", "57P03", "53300", "08006", "08P01"] {
            assert!(transient(&SqlState::from_code(code)), "{code}");
        }
        for code in ["57014", "42501", "23505", "28P01", "53100", "XX000"] {
            assert!(!transient(&SqlState::from_code(code)), "{code}");
        }
    }
}
