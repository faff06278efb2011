//! What stands in for databases where the program was built without them: a sentence.

use crate::bundle::Bundle;
use crate::place::{Access, DatabaseUrl};
use crate::retriever::backend::Backend;
use crate::retriever::{Options, RetrieverError};

/// Why there is no index in a database.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PostgresError {
    /// The program cannot talk to databases.
    #[error(
        "this program was built without databases; build it with `cargo build --release -p runtime --features postgres`"
    )]
    Absent,
}

impl PostgresError {
    /// Whether the same request may succeed a little later.
    pub fn is_unavailable(&self) -> bool {
        false
    }

    /// Whether what was asked for is at fault.
    pub fn is_invalid(&self) -> bool {
        false
    }
}

/// Refuses.
pub fn open(_: &Bundle, _: &DatabaseUrl, _: Access, _: &Options) -> Result<Box<dyn Backend>, RetrieverError> {
    Err(PostgresError::Absent.into())
}
