//! Which side of the score a text is on, and how vectors will be compared: said in a field, by the model's name where a
//! client can send nothing else, or by the server's defaults.

use super::error::ApiError;
use serde::de::{Error, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};
use std::fmt;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

/// Which side of the score a text is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Role {
    /// What is looked for.
    Query,
    /// What is found.
    Document,
}

/// What vectors are made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Similarity {
    /// As they are stored: their inner product ranks as `/query` does.
    InnerProduct,
    /// Of length 1: cosine, inner product and Euclidean distance rank as `/query` does.
    Cosine,
}

/// The words for a role, ours first.
const ROLES: [(&str, Role); 7] = [
    ("query", Role::Query),
    ("document", Role::Document),
    ("passage", Role::Document),
    ("search_query", Role::Query),
    ("search_document", Role::Document),
    ("retrieval.query", Role::Query),
    ("retrieval.passage", Role::Document),
];
const COSINE: &str = "-cosine";

/// What a request says about its vectors; the rest is the server's to choose.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Asked {
    role: Option<Role>,
    similarity: Option<Similarity>,
}

/// What holds where a request says nothing.
#[derive(Debug, Clone)]
pub struct Defaults {
    /// Name of the model that is served.
    pub model: String,
    /// Of texts.
    pub role: Role,
    /// Of vectors.
    pub similarity: Similarity,
}

impl Default for Defaults {
    fn default() -> Self {
        Self { model: "rabtriever".into(), role: Role::Document, similarity: Similarity::InnerProduct }
    }
}

impl Defaults {
    /// Names by which the model can be asked for, its own first; without `cosine` those that this bundle cannot give are
    /// left out.
    pub fn names(&self, cosine: bool) -> Vec<String> {
        let similarities = if cosine { &["", COSINE][..] } else { &[""] };
        let roles = ["", "-query", "-document"];
        let names =
            similarities.iter().flat_map(|end| roles.map(|role| format!("{}{role}{end}", self.model)));
        names.collect()
    }
}

impl Asked {
    /// By a model's name: `NAME-query`, `NAME-document`, each also with `-cosine` behind it, and `NAME-cosine`. NAME may be
    /// any: proxies rename models.
    pub fn of_model(name: Option<&str>) -> Self {
        let name = name.unwrap_or_default();
        let (name, similarity) = match name.strip_suffix(COSINE) {
            Some(name) => (name, Some(Similarity::Cosine)),
            None => (name, None),
        };
        let role = [("-query", Role::Query), ("-document", Role::Document)];
        let role = role.into_iter().find(|(end, _)| name.ends_with(end)).map(|(_, role)| role);
        Self { role, similarity }
    }

    /// By a word: a role, or one with `-cosine` behind it.
    fn of_word(word: &str) -> Option<Self> {
        let (word, similarity) = match word.strip_suffix(COSINE) {
            Some(word) => (word, Some(Similarity::Cosine)),
            None => (word, None),
        };
        let (_, role) = ROLES.iter().find(|(known, _)| *known == word)?;
        Some(Self { role: Some(*role), similarity })
    }

    /// What a field says beside a model's name; a contradiction is refused, because either would be somebody's mistake.
    pub fn and(self, model: Option<&str>, field: Option<Word>, name: &str) -> Result<Self, ApiError> {
        let Some(Word(said)) = field else { return Ok(self) };
        if let (Some(by_name), Some(by_field)) = (self.role, said.role)
            && by_name != by_field
        {
            let (model, other) = (model.unwrap_or_default(), by_field.name());
            let error = format!(
                "the model `{model}` takes one role and `{name}` says {other}; leave out one of both"
            );
            return Err(ApiError::validation(error).of(name));
        }
        Ok(Self { role: said.role.or(self.role), similarity: said.similarity.or(self.similarity) })
    }

    /// With the server's choice for what is left open.
    pub fn or(self, defaults: &Defaults) -> (Role, Similarity) {
        (self.role.unwrap_or(defaults.role), self.similarity.unwrap_or(defaults.similarity))
    }
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Query => "query",
            Self::Document => "document",
        }
    }
}

/// A role as a field names it.
#[derive(Debug, Clone, Copy)]
pub struct Word(Asked);

impl<'de> Deserialize<'de> for Word {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Name;

        impl Visitor<'_> for Name {
            type Value = Word;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`query` or `document` (or `search_query`, `search_document`, `passage`, ...): the score has these two sides")
            }

            fn visit_str<E: Error>(self, word: &str) -> Result<Word, E> {
                Asked::of_word(word).map(Word).ok_or_else(|| E::invalid_value(Unexpected::Str(word), &self))
            }
        }

        deserializer.deserialize_str(Name)
    }
}

impl PartialSchema for Word {
    fn schema() -> RefOr<Schema> {
        let words = ROLES.iter().flat_map(|(word, _)| [(*word).to_owned(), format!("{word}{COSINE}")]);
        ObjectBuilder::new()
            .schema_type(Type::String)
            .description(Some(
                "Which side of the score a text is on. Plain vectors rank as /query does by inner product; where a store compares \
                 by cosine, or normalises, that is another ranking. Those of a word that ends in -cosine have length 1 and rank as \
                 /query does by cosine, inner product and Euclidean distance alike; both sides have to be asked for as such",
            ))
            .enum_values(Some(words.collect::<Vec<_>>()))
            .into()
    }
}

impl ToSchema for Word {}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(word: &str) -> Option<Word> {
        serde_json::from_value(serde_json::json!(word)).ok()
    }

    /// A client that can send nothing but a model's name embeds its queries as documents, and finds half.
    #[test]
    fn a_models_name_chooses_the_role() {
        let defaults = Defaults::default();
        let chosen = |name: &str| Asked::of_model(Some(name)).or(&defaults);
        assert_eq!(chosen("rabtriever"), (Role::Document, Similarity::InnerProduct));
        assert_eq!(chosen("rabtriever-query"), (Role::Query, Similarity::InnerProduct));
        assert_eq!(chosen("openai/rabtriever-query-cosine"), (Role::Query, Similarity::Cosine));
        assert_eq!(chosen("rabtriever-document-cosine"), (Role::Document, Similarity::Cosine));
        assert_eq!(chosen("text-embedding-3-small"), (Role::Document, Similarity::InnerProduct));
        let queries = Defaults { role: Role::Query, similarity: Similarity::Cosine, ..Defaults::default() };
        assert_eq!(Asked::of_model(None).or(&queries), (Role::Query, Similarity::Cosine));
        assert_eq!(Asked::of_model(Some("m-document")).or(&queries).0, Role::Document);
        // Every name that is listed means what it says.
        for name in defaults.names(true) {
            let (role, similarity) = chosen(&name);
            assert_eq!(role == Role::Query, name.contains("-query"), "{name}");
            assert_eq!(similarity == Similarity::Cosine, name.contains("-cosine"), "{name}");
        }
        assert_eq!(defaults.names(false), ["rabtriever", "rabtriever-query", "rabtriever-document"]);
    }

    /// Two answers to one question: whichever is taken, one half of an application would search with the wrong side.
    #[test]
    fn a_field_beside_a_name_must_not_contradict_it() {
        let both = |model: &str, role: &str| {
            Asked::of_model(Some(model))
                .and(Some(model), word(role), "input_type")
                .map(|asked| asked.or(&Defaults::default()))
        };
        assert_eq!(both("m", "search_query").unwrap(), (Role::Query, Similarity::InnerProduct));
        assert_eq!(both("m-cosine", "passage").unwrap(), (Role::Document, Similarity::Cosine));
        assert_eq!(both("m-query", "query-cosine").unwrap(), (Role::Query, Similarity::Cosine));
        let refused = both("m-query", "search_document").unwrap_err();
        assert!(
            refused.message.contains("`m-query`") && refused.message.contains("`input_type`"),
            "{refused:?}"
        );
        for unknown in ["clustering", "classification", "image", "Query", "", "cosine"] {
            assert!(word(unknown).is_none(), "{unknown}");
        }
    }
}
