//! Metadata values, and typed access to them.

use super::error::GgufError;
use super::header::Header;

/// A metadata value, as far as an import needs it.
#[derive(Debug)]
pub(super) enum Value {
    Integer(i128),
    Float(f64),
    Bool(bool),
    Text(String),
    Integers(Vec<i128>),
    Texts(Vec<String>),
    /// An array of floats or booleans: no key that we read holds one.
    Other,
}

impl Value {
    /// The value as an error message shows it.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Integer(value) => value.to_string(),
            Self::Float(value) => value.to_string(),
            Self::Bool(value) => value.to_string(),
            Self::Text(value) if value.len() <= 80 => format!("`{value}`"),
            Self::Text(value) => format!("a string of {} bytes", value.len()),
            Self::Integers(values) => format!("an array of {} integers", values.len()),
            Self::Texts(values) => format!("an array of {} strings", values.len()),
            Self::Other => "an array of floats or booleans".to_owned(),
        }
    }
}

/// Typed access to metadata: absent is `None`, of another type or out of range is an error.
impl Header {
    /// The error for a value that is absent or makes no sense.
    pub(super) fn bad_value(&self, key: &str, expected: &str) -> GgufError {
        GgufError::Metadata {
            file: self.file.clone(),
            key: key.to_owned(),
            found: self.metadata.get(key).map_or_else(|| "missing".to_owned(), Value::describe),
            expected: expected.to_owned(),
        }
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&str>, GgufError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(_) => Err(self.bad_value(key, "a string")),
        }
    }

    pub(super) fn required_text(&self, key: &str) -> Result<&str, GgufError> {
        self.text(key)?.ok_or_else(|| self.bad_value(key, "a string"))
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>, GgufError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => Err(self.bad_value(key, "true or false")),
        }
    }

    pub(super) fn size_or_zero(&self, key: &str) -> Result<Option<usize>, GgufError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Integer(value @ 0..=0x7fff_ffff)) => Ok(Some(*value as usize)),
            Some(_) => Err(self.bad_value(key, "an integer from 0 to 2147483647")),
        }
    }

    pub(super) fn size(&self, key: &str) -> Result<Option<usize>, GgufError> {
        match self.size_or_zero(key)? {
            Some(0) => Err(self.bad_value(key, "a positive integer")),
            size => Ok(size),
        }
    }

    pub(super) fn required_size(&self, key: &str) -> Result<usize, GgufError> {
        self.size(key)?.ok_or_else(|| self.bad_value(key, "a positive integer"))
    }

    pub(super) fn positive(&self, key: &str) -> Result<Option<f64>, GgufError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Float(value)) if value.is_finite() && *value > 0.0 => Ok(Some(*value)),
            Some(_) => Err(self.bad_value(key, "a positive number")),
        }
    }

    pub(super) fn positive_or_zero(&self, key: &str) -> Result<Option<f64>, GgufError> {
        match self.metadata.get(key) {
            Some(Value::Float(0.0)) => Ok(Some(0.0)),
            _ => self.positive(key),
        }
    }

    pub(super) fn texts(&self, key: &str) -> Result<&[String], GgufError> {
        match self.metadata.get(key) {
            Some(Value::Texts(texts)) => Ok(texts),
            _ => Err(self.bad_value(key, "an array of strings")),
        }
    }
}
