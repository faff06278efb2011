//! What an index belongs to.

use models::student::Form;
use serde::{Deserialize, Serialize};

/// What an index is keyed to: everything that shapes a document vector.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexKey {
    /// The bundle's `document_digest`.
    pub document_digest: String,
    /// Numbers per document, m.
    pub inner_dimensions: usize,
    /// Predictor form.
    pub form: Form,
}

impl IndexKey {
    /// What differs in words, name in the table, value.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&'static str, &'static str, String)> {
        [
            ("document digest", "document_digest", self.document_digest.clone()),
            ("number of dimensions", "inner_dimensions", self.inner_dimensions.to_string()),
            ("predictor form", "form", form_name(self.form).to_owned()),
        ]
        .into_iter()
    }

    /// The first thing in which another one differs, in words: what, this one's, the other's.
    pub fn difference(&self, other: &Self) -> Option<(&'static str, String, String)> {
        let short = |value: String| value.chars().take(12).collect();
        let mut pairs = self.entries().zip(other.entries());
        let found = pairs.find(|((.., mine), (.., theirs))| mine != theirs);
        found.map(|((what, _, mine), (.., theirs))| (what, short(mine), short(theirs)))
    }
}

pub(super) fn form_name(form: Form) -> &'static str {
    match form {
        Form::Relu => "relu",
        Form::Gated => "gated",
    }
}
