//! Every refusal in text-embeddings-inference's shape: `{"error": "a sentence", "error_type": "Validation"}`.

use super::app::App;
use crate::encoder::EncoderError;
use crate::reranker::RerankerError;
use crate::retriever::RetrieverError;
use crate::store::StoreError;
use axum::Json;
use axum::extract::rejection::{BytesRejection, JsonRejection, PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use models::error::sentence;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use std::time::Duration;
use utoipa::ToSchema;

/// Why a request is not answered.
#[derive(Debug)]
pub enum ApiError {
    /// The body is not what it should be.
    Malformed(String),
    /// It is, but asks for something that is not possible.
    Validation(String),
    /// The key is missing or wrong.
    Unauthorized,
    /// The request means another machine.
    Host(String),
    /// No such path or document.
    NotFound(String),
    /// The path takes other methods.
    Method,
    /// The body is larger than the limit.
    TooLarge(String),
    /// All places are taken.
    Overloaded,
    /// It took too long.
    Timeout(Duration),
    /// The server is stopping.
    Stopping,
    /// Another process writes, or has put another index in this one's place.
    Busy(String),
    /// The database does not answer now.
    Unavailable(String),
    /// Our fault.
    Backend(String),
}

/// The body of a refusal.
#[derive(Serialize, ToSchema)]
pub struct ErrorBody {
    /// One sentence.
    error: String,
    /// `Empty`, `Validation`, `Overloaded`, `Backend`, ...
    error_type: &'static str,
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, error_type, error) = match self {
            Self::Malformed(error) => (StatusCode::BAD_REQUEST, "Malformed", error),
            Self::Validation(error) => (StatusCode::UNPROCESSABLE_ENTITY, "Validation", error),
            Self::Unauthorized => {
                let error = "a key is needed; send it as `Authorization: Bearer KEY`".to_owned();
                (StatusCode::UNAUTHORIZED, "Unauthorized", error)
            }
            Self::Host(host) => {
                let error = format!(
                    "the request means `{host}`, and this server answers this machine only; name it with --allow-host, or use an API key"
                );
                (StatusCode::FORBIDDEN, "Forbidden", error)
            }
            Self::NotFound(error) => (StatusCode::NOT_FOUND, "NotFound", error),
            Self::Method => {
                let error = "the path takes another method; GET /openapi.json lists them".to_owned();
                (StatusCode::METHOD_NOT_ALLOWED, "Method", error)
            }
            Self::TooLarge(error) => (StatusCode::PAYLOAD_TOO_LARGE, "Validation", error),
            Self::Overloaded => {
                let error = "all places are taken; try again in a second".to_owned();
                (StatusCode::TOO_MANY_REQUESTS, "Overloaded", error)
            }
            Self::Timeout(limit) => {
                let error = format!("no answer within {} s", limit.as_secs_f64());
                (StatusCode::GATEWAY_TIMEOUT, "Timeout", error)
            }
            Self::Stopping => {
                (StatusCode::SERVICE_UNAVAILABLE, "Unhealthy", "the server is stopping".to_owned())
            }
            Self::Busy(error) => (StatusCode::CONFLICT, "Busy", error),
            Self::Unavailable(error) => (StatusCode::SERVICE_UNAVAILABLE, "Unhealthy", error),
            Self::Backend(error) => (StatusCode::INTERNAL_SERVER_ERROR, "Backend", error),
        };
        (status, Json(ErrorBody { error, error_type })).into_response()
    }
}

impl From<RetrieverError> for ApiError {
    fn from(error: RetrieverError) -> Self {
        let text = sentence(&error);
        match error {
            RetrieverError::Encoder(EncoderError::Prompt(_))
            | RetrieverError::Document { .. }
            | RetrieverError::Duplicate { .. }
            | RetrieverError::ZeroResults => Self::Validation(text),
            RetrieverError::Store(StoreError::Writer { .. } | StoreError::Locked { .. })
            | RetrieverError::Replaced { .. } => Self::Busy(text),
            RetrieverError::Postgres(error) if error.is_invalid() => Self::Validation(text),
            RetrieverError::Postgres(error) if error.is_unavailable() => Self::Unavailable(text),
            _ => Self::Backend(text),
        }
    }
}

impl From<EncoderError> for ApiError {
    fn from(error: EncoderError) -> Self {
        RetrieverError::from(error).into()
    }
}

impl From<RerankerError> for ApiError {
    fn from(error: RerankerError) -> Self {
        match error {
            RerankerError::Prompt(_) => Self::Validation(sentence(&error)),
            _ => Self::Backend(sentence(&error)),
        }
    }
}

/// A JSON body.
pub struct Body<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Arc<App>> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &Arc<App>) -> Result<Self, ApiError> {
        let _place = state.body()?;
        match Json::<T>::from_request(request, state).await {
            Ok(Json(body)) => Ok(Self(body)),
            Err(JsonRejection::JsonDataError(error)) => Err(ApiError::Validation(error.body_text())),
            Err(JsonRejection::BytesRejection(error)) => Err(unread(&error)),
            Err(other) => Err(ApiError::Malformed(other.body_text())),
        }
    }
}

fn unread(error: &BytesRejection) -> ApiError {
    match error.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            ApiError::TooLarge("the body is larger than this server takes (--max-body)".into())
        }
        _ => ApiError::Malformed(error.body_text()),
    }
}

/// What stands in the path.
pub struct Part<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Part<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        axum::extract::Path::<T>::from_request_parts(parts, state)
            .await
            .map(|axum::extract::Path(part)| Self(part))
            .map_err(|error: PathRejection| ApiError::Malformed(error.body_text()))
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
            .map_err(|error: QueryRejection| ApiError::Malformed(error.body_text()))
    }
}
