//! Scores of texts that come with the query, in the shapes of text-embeddings-inference and Cohere: by the teacher where
//! one is loaded, else by the student.

use super::app::{App, Loaded};
use super::error::{ApiError, Body, ErrorBody};
use axum::Json;
use axum::extract::State;
use models::files::sha256_parts;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;

/// text-embeddings-inference's request.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TeiRequest {
    query: String,
    texts: Vec<String>,
    /// `log p(T) - log p(F)` instead of a probability.
    #[serde(default)]
    raw_scores: bool,
    #[serde(default)]
    return_text: bool,
    /// Texts are always cut as the prompt says.
    #[serde(default)]
    #[schema(required = false)]
    #[allow(dead_code, reason = "taken so that clients may send it")]
    truncate: bool,
    #[allow(dead_code, reason = "taken so that clients may send it")]
    truncation_direction: Option<String>,
}

/// One text's place.
#[derive(Debug, Serialize, ToSchema)]
pub struct TeiRank {
    index: usize,
    score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
}

/// Ranks texts, as text-embeddings-inference does.
#[utoipa::path(
    post, path = "/rerank", request_body = TeiRequest,
    responses((status = 200, description = "Best first", body = Vec<TeiRank>), (status = 422, description = "Not possible", body = ErrorBody))
)]
pub async fn tei(
    State(app): State<Arc<App>>,
    Body(request): Body<TeiRequest>,
) -> Result<Json<Vec<TeiRank>>, ApiError> {
    let TeiRequest { query, texts, raw_scores, return_text, .. } = request;
    let ranked = ranked(app, query, &texts).await?;
    let rank = |Ranked { index, score, probability }| TeiRank {
        index,
        score: if raw_scores { score } else { probability },
        text: return_text.then(|| texts[index].clone()),
    };
    Ok(Json(ranked.into_iter().map(rank).collect()))
}

/// A text, or an object with one.
#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(untagged)]
pub enum CohereDocument {
    /// A text.
    Text(String),
    /// An object.
    Object {
        /// Its text.
        text: String,
    },
}

impl CohereDocument {
    fn text(&self) -> &str {
        match self {
            Self::Text(text) | Self::Object { text } => text,
        }
    }
}

/// Cohere's request; fields of theirs that mean nothing here are ignored.
#[derive(Debug, Deserialize, ToSchema)]
pub struct CohereRequest {
    query: String,
    documents: Vec<CohereDocument>,
    top_n: Option<usize>,
    /// Version 1 only.
    #[serde(default)]
    return_documents: bool,
}

/// Cohere's answer.
#[derive(Debug, Serialize, ToSchema)]
pub struct CohereResponse {
    id: String,
    results: Vec<CohereRank>,
    meta: Meta,
}

/// One document's place.
#[derive(Debug, Serialize, ToSchema)]
pub struct CohereRank {
    index: usize,
    /// Probability that the document answers the query.
    relevance_score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<TextObject>,
}

/// A document told back.
#[derive(Debug, Serialize, ToSchema)]
pub struct TextObject {
    text: String,
}

/// About the answer.
#[derive(Debug, Serialize, ToSchema)]
pub struct Meta {
    api_version: ApiVersion,
    billed_units: BilledUnits,
}

/// Version of Cohere's interface.
#[derive(Debug, Serialize, ToSchema)]
pub struct ApiVersion {
    version: &'static str,
    is_experimental: bool,
}

/// Costs nothing, and is part of the shape.
#[derive(Debug, Serialize, ToSchema)]
pub struct BilledUnits {
    search_units: u32,
}

/// Ranks documents, as Cohere's version 1 does.
#[utoipa::path(
    post, path = "/v1/rerank", request_body = CohereRequest,
    responses((status = 200, description = "Best first", body = CohereResponse), (status = 422, description = "Not possible", body = ErrorBody))
)]
pub async fn cohere_v1(
    State(app): State<Arc<App>>,
    Body(request): Body<CohereRequest>,
) -> Result<Json<CohereResponse>, ApiError> {
    cohere(app, request, "1").await
}

/// Ranks documents, as Cohere's version 2 does.
#[utoipa::path(
    post, path = "/v2/rerank", request_body = CohereRequest,
    responses((status = 200, description = "Best first", body = CohereResponse), (status = 422, description = "Not possible", body = ErrorBody))
)]
pub async fn cohere_v2(
    State(app): State<Arc<App>>,
    Body(request): Body<CohereRequest>,
) -> Result<Json<CohereResponse>, ApiError> {
    cohere(app, CohereRequest { return_documents: false, ..request }, "2").await
}

async fn cohere(
    app: Arc<App>,
    request: CohereRequest,
    version: &'static str,
) -> Result<Json<CohereResponse>, ApiError> {
    let CohereRequest { query, documents, top_n, return_documents } = request;
    let texts: Vec<String> = documents.iter().map(|document| document.text().to_owned()).collect();
    let parts = std::iter::once(query.as_bytes()).chain(texts.iter().map(String::as_bytes));
    // The same request has the same id: nothing here is random.
    let id = sha256_parts(parts)[..32].to_owned();
    let ranked = ranked(app, query, &texts).await?;
    let rank = |Ranked { index, probability, .. }| CohereRank {
        index,
        relevance_score: probability,
        document: return_documents.then(|| TextObject { text: texts[index].clone() }),
    };
    let results = ranked.into_iter().take(top_n.unwrap_or(usize::MAX)).map(rank).collect();
    let api_version = ApiVersion { version, is_experimental: false };
    let meta = Meta { api_version, billed_units: BilledUnits { search_units: 1 } };
    Ok(Json(CohereResponse { id, results, meta }))
}

struct Ranked {
    index: usize,
    score: f32,
    probability: f32,
}

/// Best first; equal ones in the order in which they came.
async fn ranked(app: Arc<App>, query: String, texts: &[String]) -> Result<Vec<Ranked>, ApiError> {
    app.within("texts", texts.len())?;
    if texts.is_empty() {
        return Err(ApiError::Malformed("there are no texts to rank".into()));
    }
    let texts = texts.to_vec();
    app.work(move |loaded: &Arc<Loaded>, app| {
        let borrowed: Vec<&str> = texts.iter().map(String::as_str).collect();
        let scores: Vec<(f32, f32)> = match &loaded.reranker {
            Some(reranker) => {
                if texts.len() > app.limits.rerank {
                    let (found, most) = (texts.len(), app.limits.rerank);
                    let error = format!("{found} texts, the reranker reads at most {most} for a query");
                    return Err(ApiError::Validation(error));
                }
                let scores = reranker.scores(&query, &borrowed)?;
                scores.into_iter().map(|score| (score, 1.0 / (1.0 + (-score).exp()))).collect()
            }
            None => loaded.retriever.score(&query, &borrowed)?,
        };
        let mut ranked: Vec<Ranked> = scores
            .into_iter()
            .enumerate()
            .map(|(index, (score, probability))| Ranked { index, score, probability })
            .collect();
        ranked.sort_by(|a, b| b.score.total_cmp(&a.score));
        Ok(ranked)
    })
    .await
}
