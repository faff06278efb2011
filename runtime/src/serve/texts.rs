//! Texts of a request: one or several, and nothing else that clients send in their place.

use serde::de::{Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::fmt;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, OneOfBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

/// What LangChain's OpenAI client sends where it is not told otherwise.
const TOKEN_IDS: &str = "token ids are of another model's tokenizer and mean nothing here; send texts \
     (LangChain: OpenAIEmbeddings(check_embedding_ctx_length=False))";

/// One text or several.
#[derive(Debug)]
pub struct Texts(pub Vec<String>);

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = Texts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or a list of texts")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Texts, E> {
                Ok(Texts(vec![text.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Texts, A::Error> {
                let mut texts = Vec::with_capacity(list.size_hint().unwrap_or(0));
                while let Some(Text(text)) = list.next_element()? {
                    texts.push(text);
                }
                Ok(Texts(texts))
            }
        }

        deserializer.deserialize_any(Either)
    }
}

/// One of several texts; an object's `text` counts as well, as Jina's clients write it.
#[derive(Debug)]
pub struct Text(pub String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct One;

        impl<'de> Visitor<'de> for One {
            type Value = Text;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Text, E> {
                Ok(Text(text.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Text, A::Error> {
                let mut text = None;
                while let Some(key) = object.next_key::<String>()? {
                    match key.as_str() {
                        "text" => text = Some(object.next_value()?),
                        _ => drop(object.next_value::<IgnoredAny>()?),
                    }
                }
                text.map(Text)
                    .ok_or_else(|| A::Error::custom("the object has no `text`, and nothing else is read"))
            }

            fn visit_u64<E: Error>(self, _: u64) -> Result<Text, E> {
                Err(E::custom(TOKEN_IDS))
            }

            fn visit_i64<E: Error>(self, _: i64) -> Result<Text, E> {
                Err(E::custom(TOKEN_IDS))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<Text, A::Error> {
                Err(A::Error::custom(TOKEN_IDS))
            }
        }

        deserializer.deserialize_any(One)
    }
}

fn text() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String)
}

impl PartialSchema for Text {
    fn schema() -> RefOr<Schema> {
        let object = ObjectBuilder::new().property("text", text()).required("text");
        OneOfBuilder::new().item(text()).item(object).into()
    }
}

impl ToSchema for Text {}

impl PartialSchema for Texts {
    fn schema() -> RefOr<Schema> {
        let list = ArrayBuilder::new().items(Text::schema()).min_items(Some(1));
        OneOfBuilder::new().item(text()).item(list).description(Some("One text or several")).into()
    }
}

impl ToSchema for Texts {}

#[cfg(test)]
mod tests {
    use super::super::extract::parse;
    use super::*;

    fn read(json: &str) -> Result<Vec<String>, String> {
        #[derive(Deserialize)]
        struct Request {
            input: Texts,
        }
        let request = parse::<Request>(format!("{{\"input\": {json}}}").as_bytes());
        request.map(|request| request.input.0).map_err(|error| error.message)
    }

    /// Programs written for four servers send these.
    #[test]
    fn texts_come_alone_in_lists_and_in_objects() {
        assert_eq!(read("\"a mop\"").unwrap(), ["a mop"]);
        assert_eq!(
            read("[\"a mop\", {\"text\": \"a lamp\", \"lang\": \"en\"}]").unwrap(),
            ["a mop", "a lamp"]
        );
        assert!(read("[]").unwrap().is_empty());
    }

    /// "did not match any variant" sends a user of LangChain to the source code; and numbers must never be read as text.
    #[test]
    fn token_ids_are_refused_by_what_they_are() {
        for ids in ["[9906, 11]", "[[9906, 11], [4435]]", "[\"a mop\", [9906]]", "[-1]"] {
            let told = read(ids).unwrap_err();
            assert!(
                told.contains("token ids") && told.contains("check_embedding_ctx_length=False"),
                "{ids}: {told}"
            );
        }
        assert!(read("[\"a mop\", null]").unwrap_err().starts_with("`input[1]`: invalid type: null"));
        assert!(read("{\"image\": \"x\"}").unwrap_err().contains("a text or a list of texts"));
        assert!(read("[{\"image\": \"x\"}]").unwrap_err().contains("has no `text`"));
        assert!(read("7").is_err());
    }
}
