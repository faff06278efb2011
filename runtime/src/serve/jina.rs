//! The answer of Jina, vLLM and Infinity to `documents` on `/rerank`.

use super::app::App;
use super::error::ApiError;
use super::rank::{self, Ranked};
use super::texts::Text;
use serde::Serialize;
use std::sync::Arc;
use utoipa::ToSchema;

/// What is asked for beside the texts.
#[derive(Debug)]
pub struct Wanted {
    /// `log p(T) - log p(F)` instead of a probability.
    pub raw: bool,
    /// Most documents in the answer.
    pub top_n: Option<usize>,
    /// Whether documents are told back.
    pub return_documents: bool,
    /// Told back.
    pub model: Option<String>,
}

/// Documents, best first.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = JinaRerankResponse)]
pub struct RerankResponse {
    model: String,
    object: &'static str,
    usage: Usage,
    results: Vec<Rank>,
}

/// Tokens of query and documents, before anything is cut off.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = JinaUsage)]
pub struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
}

/// One document's place.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = JinaRank)]
pub struct Rank {
    index: usize,
    relevance_score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    document: Option<TextObject>,
}

/// A document told back.
#[derive(Debug, Serialize, ToSchema)]
pub struct TextObject {
    /// Its text.
    pub text: String,
}

/// Ranks documents.
pub async fn reranked(
    app: Arc<App>,
    query: String,
    documents: Vec<Text>,
    wanted: Wanted,
) -> Result<RerankResponse, ApiError> {
    let texts: Arc<[String]> = documents.into_iter().map(|Text(text)| text).collect();
    let (ranked, tokens) = rank::counted(Arc::clone(&app), query, Arc::clone(&texts), "documents").await?;
    let rank = |Ranked { index, score, probability }| Rank {
        index,
        relevance_score: if wanted.raw { score } else { probability },
        document: wanted.return_documents.then(|| TextObject { text: texts[index].clone() }),
    };
    let results = ranked.into_iter().take(wanted.top_n.unwrap_or(usize::MAX)).map(rank).collect();
    let model = wanted.model.unwrap_or_else(|| app.defaults.model.clone());
    let usage = Usage { prompt_tokens: tokens, total_tokens: tokens };
    Ok(RerankResponse { model, object: "list", usage, results })
}
