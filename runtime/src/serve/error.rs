//! Why a request is not answered. Routes and extractors say it once; `refusal.rs` tells it in the words of whoever asked.

use crate::encoder::EncoderError;
use crate::reranker::RerankerError;
use crate::retriever::RetrieverError;
use crate::store::StoreError;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use models::error::sentence;
use models::prompt::PromptError;
use std::time::Duration;

/// What kind of refusal it is; each has a status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The body is not what it should be.
    Malformed,
    /// It is, but asks for something that is not possible.
    Validation,
    /// There is no key.
    NoKey,
    /// There is a key, and it is not this server's.
    WrongKey,
    /// The request means another machine.
    Host,
    /// No such path, document or model.
    NotFound,
    /// The path takes other methods.
    Method,
    /// More than is taken at once, or than can be done in time.
    TooLarge,
    /// All places are taken.
    Overloaded,
    /// It took too long, and would again.
    Timeout,
    /// It took too long, but what was changed stays: the rest is less.
    Unfinished,
    /// The server is stopping.
    Stopping,
    /// Another process writes, or has put another index in this one's place.
    Busy,
    /// The database does not answer now.
    Unavailable,
    /// Our fault.
    Backend,
}

impl Kind {
    /// The status that says it.
    pub fn status(self) -> StatusCode {
        match self {
            Self::Malformed => StatusCode::BAD_REQUEST,
            Self::Validation => StatusCode::UNPROCESSABLE_ENTITY,
            Self::NoKey | Self::WrongKey => StatusCode::UNAUTHORIZED,
            Self::Host => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Overloaded => StatusCode::TOO_MANY_REQUESTS,
            Self::Timeout | Self::Unfinished => StatusCode::GATEWAY_TIMEOUT,
            Self::Stopping | Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::Busy => StatusCode::CONFLICT,
            Self::Backend => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// Whether the same request can be answered in a moment.
    pub fn passes(self) -> bool {
        matches!(self, Self::Overloaded | Self::Stopping | Self::Unavailable)
    }
}

/// Why a request is not answered.
#[derive(Debug, Clone)]
pub struct ApiError {
    /// Which kind of refusal it is.
    pub kind: Kind,
    /// One sentence.
    pub message: String,
    /// The request's field that is to blame, where it is one.
    pub field: Option<String>,
}

impl ApiError {
    /// A refusal of any kind.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), field: None }
    }

    /// The body is not what it should be.
    pub fn malformed(message: impl Into<String>) -> Self {
        Self::new(Kind::Malformed, message)
    }

    /// It asks for something that is not possible.
    pub fn validation(message: impl Into<String>) -> Self {
        Self::new(Kind::Validation, message)
    }

    /// Our fault.
    pub fn backend(message: impl Into<String>) -> Self {
        Self::new(Kind::Backend, message)
    }

    /// All places are taken.
    pub fn overloaded() -> Self {
        Self::new(Kind::Overloaded, "all places are taken; try again in a moment")
    }

    /// The server is on its way out.
    pub fn stopping() -> Self {
        Self::new(Kind::Stopping, "the server is stopping")
    }

    /// No answer in time.
    pub fn timeout(limit: Duration) -> Self {
        let seconds = limit.as_secs_f64();
        let way = "ask for less at once, or start the server with a longer --timeout";
        Self::new(Kind::Timeout, format!("no answer within {seconds} s; {way}"))
    }

    /// A change that was not made in time; it is durable as far as it came.
    pub fn unfinished(limit: Duration) -> Self {
        let seconds = limit.as_secs_f64();
        let way = "what was stored by then stays, so send the same again, or less at once";
        Self::new(Kind::Unfinished, format!("not done within {seconds} s; {way}"))
    }

    /// Names the field that is to blame.
    pub fn of(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }

    /// Says which of a request's texts it is about, where there are several.
    pub fn text(mut self, place: usize, texts: usize, field: &str) -> Self {
        if texts > 1 {
            self.message = format!("text {place} of `{field}`, counted from 0: {}", self.message);
        }
        self.of(field)
    }
}

impl IntoResponse for ApiError {
    /// Status and reason; the body is written where it is known who asked ([`super::refusal`]).
    fn into_response(self) -> Response {
        let mut response = self.kind.status().into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<RetrieverError> for ApiError {
    fn from(error: RetrieverError) -> Self {
        let kind = match &error {
            RetrieverError::Encoder(EncoderError::Prompt(_))
            | RetrieverError::Document { .. }
            | RetrieverError::Duplicate { .. }
            | RetrieverError::ZeroResults => Kind::Validation,
            RetrieverError::Store(StoreError::Writer { .. } | StoreError::Locked { .. })
            | RetrieverError::Replaced { .. } => Kind::Busy,
            RetrieverError::Postgres(error) if error.is_invalid() => Kind::Validation,
            RetrieverError::Postgres(error) if error.is_unavailable() => Kind::Unavailable,
            _ => Kind::Backend,
        };
        Self::new(kind, sentence(&error))
    }
}

impl From<EncoderError> for ApiError {
    fn from(error: EncoderError) -> Self {
        RetrieverError::from(error).into()
    }
}

impl From<PromptError> for ApiError {
    fn from(error: PromptError) -> Self {
        Self::validation(sentence(&error))
    }
}

impl From<RerankerError> for ApiError {
    fn from(error: RerankerError) -> Self {
        let kind = match error {
            RerankerError::Prompt(_) => Kind::Validation,
            _ => Kind::Backend,
        };
        Self::new(kind, sentence(&error))
    }
}
