//! Refusals in the shape that the client of a route knows: text-embeddings-inference's on its routes and our own, OpenAI's
//! under `/v1`, Cohere's on Cohere's. Anything else, and the client shows its user a stack of braces, or nothing.

use super::error::{ApiError, Kind};
use super::{cohere, openai, tei};
use axum::Json;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

/// What OpenAI's clients obey before the status: they repeat after every 5xx.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
/// OpenAI's and Cohere's clients look here first, because `Retry-After` knows whole seconds only.
const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");

/// Whose shape a path answers in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// text-embeddings-inference's, and our own.
    Tei,
    /// OpenAI's.
    OpenAi,
    /// Cohere's.
    Cohere,
}

impl Dialect {
    /// Also of paths that are none: a base URL with too much or too little in it is the commonest mistake.
    pub fn of(path: &str) -> Self {
        let below =
            |root: &str| path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        if ["/v1/rerank", "/v1/embed", "/v2"].into_iter().any(below) {
            Self::Cohere
        } else if ["/v1", "/embeddings", "/models"].into_iter().any(below) || path.ends_with("/embeddings") {
            Self::OpenAi
        } else {
            Self::Tei
        }
    }
}

/// Writes the body and headers of a refusal; other answers pass.
pub fn told(mut response: Response, dialect: Dialect) -> Response {
    let Some(error) = response.extensions_mut().remove::<ApiError>() else { return response };
    let status = response.status();
    let mut told = body(&error, status, dialect);
    *told.status_mut() = status;
    told.headers_mut().extend(std::mem::take(response.headers_mut()));
    mark(told.headers_mut(), &error);
    told
}

fn body(error: &ApiError, status: StatusCode, dialect: Dialect) -> Response {
    match dialect {
        Dialect::Tei => Json(tei::ErrorBody::of(error)).into_response(),
        Dialect::OpenAi => Json(openai::ErrorBody::of(error, status)).into_response(),
        Dialect::Cohere => Json(cohere::ErrorBody::of(error, status)).into_response(),
    }
}

/// Headers that a client acts on without reading the sentence.
fn mark(headers: &mut HeaderMap, error: &ApiError) {
    let challenge = match error.kind {
        Kind::NoKey => Some("Bearer realm=\"rabtriever\""),
        Kind::WrongKey => Some("Bearer realm=\"rabtriever\", error=\"invalid_token\""),
        _ => None,
    };
    if let Some(challenge) = challenge {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
    }
    if error.kind.passes() {
        // Clients that wait exactly as long as they are told would all come back in the same instant.
        let wait = 500 + u32::from(u16::from_le_bytes(random())) % 2500;
        headers.insert(header::RETRY_AFTER, HeaderValue::from(wait.div_ceil(1000)));
        headers.insert(RETRY_AFTER_MS, HeaderValue::from(wait));
    }
    // The same work takes as long, or fails, again.
    if matches!(error.kind, Kind::Backend | Kind::Timeout) {
        headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
    }
}

fn random() -> [u8; 2] {
    let mut bytes = [0; 2];
    // Without randomness, they come back together.
    let _ = getrandom::fill(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::time::Duration;

    /// A client that cannot parse a refusal shows nothing of it.
    #[test]
    fn a_path_answers_in_the_shape_of_its_clients() {
        for (path, dialect) in [
            ("/embed", Dialect::Tei),
            ("/", Dialect::Tei),
            ("/query", Dialect::Tei),
            ("/v1x", Dialect::Tei),
            ("/v1/embeddings", Dialect::OpenAi),
            ("/v1/models/rabtriever", Dialect::OpenAi),
            ("/v1/chat/completions", Dialect::OpenAi),
            ("/api/embeddings", Dialect::OpenAi),
            ("/v1/embed", Dialect::Cohere),
            ("/v1/rerank", Dialect::Cohere),
            ("/v2/embed", Dialect::Cohere),
            ("/v2/nothing", Dialect::Cohere),
        ] {
            assert_eq!(Dialect::of(path), dialect, "{path}");
        }
    }

    /// Sixty-four clients told to wait one second would come back as one.
    #[test]
    fn who_is_told_to_come_back_is_told_different_times() {
        let wait = || {
            let response = told(ApiError::overloaded().into_response(), Dialect::OpenAi);
            let number = |name: &str| response.headers()[name].to_str().unwrap().parse::<u32>().unwrap();
            let (seconds, milliseconds) = (number("retry-after"), number("retry-after-ms"));
            assert!((1..=3).contains(&seconds) && milliseconds.div_ceil(1000) == seconds);
            milliseconds
        };
        assert!((0..100).map(|_| wait()).collect::<BTreeSet<_>>().len() > 50);
    }

    /// OpenAI's clients repeat after every 5xx: a batch that takes too long would be computed three times for nobody.
    #[test]
    fn only_what_can_go_well_next_time_is_worth_repeating() {
        let limit = Duration::from_secs(1);
        let header = |error: ApiError| {
            told(error.into_response(), Dialect::OpenAi).headers().get("x-should-retry").cloned()
        };
        assert_eq!(header(ApiError::timeout(limit)).unwrap(), "false");
        assert_eq!(header(ApiError::backend("it broke")).unwrap(), "false");
        assert_eq!(header(ApiError::unfinished(limit)), None);
        assert_eq!(header(ApiError::overloaded()), None);
    }
}
