//! What requests bring: a JSON body, parts of the path, what stands behind the `?`. Refusals name the field.

use super::app::App;
use super::error::{ApiError, Kind};
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use serde::de::DeserializeOwned;
use serde_json::error::Category;
use std::sync::Arc;

/// A JSON body.
pub struct Body<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Arc<App>> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &Arc<App>) -> Result<Self, ApiError> {
        let _place = state.body()?;
        // Not only for order's sake: what a web page may send without being asked is of other types.
        if !is_json(request.headers()) {
            return Err(ApiError::malformed("the body's Content-Type must be application/json"));
        }
        let bytes = Bytes::from_request(request, state).await.map_err(|error| unread(&error))?;
        parse(&bytes).map(Self)
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let Some(kind) = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()) else {
        return false;
    };
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    kind == "application/json" || kind.starts_with("application/") && kind.ends_with("+json")
}

fn unread(error: &BytesRejection) -> ApiError {
    match error.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            let error = "the body is larger than this server takes (--max-body); send less at once";
            ApiError::new(Kind::TooLarge, error)
        }
        _ => ApiError::malformed(error.body_text()),
    }
}

/// Reads a body; what is wrong with it is told by field.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        refused(error.inner(), &path)
    })?;
    json.end().map_err(|error| refused(&error, "."))?;
    Ok(value)
}

/// Reads what was JSON already, with the same refusals.
pub fn read<T: DeserializeOwned>(value: serde_json::Value) -> Result<T, ApiError> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        refused(error.inner(), &path)
    })
}

fn refused(error: &serde_json::Error, path: &str) -> ApiError {
    let told = error.to_string();
    if error.classify() != Category::Data {
        return ApiError::malformed(format!("the body is not JSON: {told}"));
    }
    // Bodies are one line: which column it is helps nobody.
    let told = told.rsplit_once(" at line ").map_or(told.as_str(), |(told, _)| told);
    let field: String = path.split(['.', '[']).next().unwrap_or_default().to_owned();
    if field.is_empty() {
        // `missing field `texts``, `unknown field `top`, expected ...`
        let named = told.split_once("field `").and_then(|(_, rest)| rest.split_once('`'));
        let error = ApiError::validation(told);
        return match named {
            Some((name, _)) => error.of(name),
            None => error,
        };
    }
    ApiError::validation(format!("`{path}`: {told}")).of(field)
}

/// What stands in the path.
pub struct Part<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Part<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        axum::extract::Path::<T>::from_request_parts(parts, state)
            .await
            .map(|axum::extract::Path(part)| Self(part))
            .map_err(|error: PathRejection| ApiError::malformed(error.body_text()))
    }
}

/// What stands behind the `?`.
pub struct Parameters<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Parameters<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        axum::extract::Query::<T>::from_request_parts(parts, state)
            .await
            .map(|axum::extract::Query(parameters)| Self(parameters))
            .map_err(|error: QueryRejection| ApiError::malformed(error.body_text()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    struct Order {
        #[allow(dead_code, reason = "what is wrong with it is what is looked at")]
        dishes: Vec<String>,
    }

    /// Whoever sends a thousand texts has to learn which field, and which of them, is to blame.
    #[test]
    fn a_refusal_names_the_place() {
        let refused = |body: &str| parse::<Order>(body.as_bytes()).unwrap_err();
        let error = refused(r#"{"dishes": ["soup", 7]}"#);
        assert_eq!((error.kind, error.field.as_deref()), (Kind::Validation, Some("dishes")));
        assert!(error.message.starts_with("`dishes[1]`: invalid type: integer `7`"), "{error:?}");
        assert!(!error.message.contains("column"), "{error:?}");
        let error = refused("{}");
        assert_eq!(
            (error.message.as_str(), error.field.as_deref()),
            ("missing field `dishes`", Some("dishes"))
        );
        for broken in ["{", "{\"dishes\": []} and more", "\"\u{1}\""] {
            assert_eq!(refused(broken).kind, Kind::Malformed, "{broken}");
        }
    }

    /// A web page can make a browser send text to this machine without asking first, but not JSON.
    #[test]
    fn only_json_is_json() {
        let is = |kind: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, kind.parse().unwrap());
            is_json(&headers)
        };
        assert!(is("application/json") && is("Application/JSON; charset=utf-8") && is("application/ld+json"));
        assert!(!is("text/plain") && !is("application/x-www-form-urlencoded") && !is("text/json"));
        assert!(!is_json(&HeaderMap::new()));
    }
}
