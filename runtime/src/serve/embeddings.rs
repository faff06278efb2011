//! Embeddings in the shapes of text-embeddings-inference and OpenAI.
//!
//! A document's embedding is what the index stores of it, a query's is its side of the score: with a gated predictor their
//! inner product ranks as `/query` does (the score, less what all of a query's documents share). Hence they are not
//! normalised unless that is asked for.

use super::app::{App, Loaded};
use super::error::{ApiError, Body, ErrorBody};
use axum::Json;
use axum::extract::State;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use models::prompt::Encoded;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;

/// One text or several.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum Texts {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

impl Texts {
    fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text],
            Self::Many(texts) => texts,
        }
    }
}

/// Which side of the score a text is on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// What is looked for.
    #[serde(alias = "search_query")]
    Query,
    /// What is found.
    #[default]
    #[serde(alias = "passage", alias = "search_document")]
    Document,
}

/// text-embeddings-inference's request.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EmbedRequest {
    inputs: Texts,
    /// Whether texts longer than the prompt allows may be cut; otherwise they are refused.
    #[serde(default = "yes")]
    truncate: bool,
    /// Only the prompt's own direction is possible, which is what it takes by default.
    truncation_direction: Option<String>,
    /// `query` or `document` (the default).
    #[serde(default)]
    prompt_name: Role,
    /// Unit length; false by default, unlike there.
    #[serde(default)]
    normalize: bool,
    /// Only the full length is possible.
    dimensions: Option<usize>,
}

fn yes() -> bool {
    true
}

/// OpenAI's request.
#[derive(Debug, Deserialize, ToSchema)]
pub struct OpenAiRequest {
    input: Texts,
    /// Told back.
    #[serde(default)]
    model: String,
    #[serde(default)]
    encoding_format: Format,
    dimensions: Option<usize>,
    /// `query` or `document` (the default); not OpenAI's.
    #[serde(default)]
    input_type: Role,
}

/// How numbers are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// As numbers.
    #[default]
    Float,
    /// As little-endian 32-bit floats in base64.
    Base64,
}

/// OpenAI's answer.
#[derive(Debug, Serialize, ToSchema)]
pub struct OpenAiResponse {
    object: &'static str,
    data: Vec<OpenAiEmbedding>,
    model: String,
    usage: Usage,
}

/// One text's embedding.
#[derive(Debug, Serialize, ToSchema)]
pub struct OpenAiEmbedding {
    object: &'static str,
    index: usize,
    #[schema(value_type = Object)]
    embedding: Numbers,
}

/// An embedding, as it was asked for.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Numbers {
    /// As numbers.
    Float(Vec<f32>),
    /// In base64.
    Base64(String),
}

/// Tokens read.
#[derive(Debug, Serialize, ToSchema)]
pub struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
}

/// Embeddings, as text-embeddings-inference gives them.
#[utoipa::path(
    post, path = "/embed", request_body = EmbedRequest,
    responses((status = 200, description = "A vector for each text", body = Vec<Vec<f32>>), (status = 422, description = "Not possible", body = ErrorBody))
)]
pub async fn embed(
    State(app): State<Arc<App>>,
    Body(request): Body<EmbedRequest>,
) -> Result<Json<Vec<Vec<f32>>>, ApiError> {
    let texts = request.inputs.into_vec();
    app.within("texts", texts.len())?;
    if texts.is_empty() {
        return Err(ApiError::Malformed("`inputs` is empty".into()));
    }
    let wanted =
        Asked { role: request.prompt_name, truncate: request.truncate, dimensions: request.dimensions };
    if let Some(direction) = request.truncation_direction
        && !direction.eq_ignore_ascii_case("right")
    {
        let error = format!("truncation_direction `{direction}`: prompt.json alone says which end is cut");
        return Err(ApiError::Validation(error));
    }
    let (mut vectors, _) = app.work(move |loaded, app| vectors(app, loaded, &texts, wanted)).await?;
    if request.normalize {
        for vector in &mut vectors {
            let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
            vector.iter_mut().for_each(|x| *x /= length);
        }
    }
    Ok(Json(vectors))
}

/// Embeddings, as OpenAI gives them.
#[utoipa::path(
    post, path = "/v1/embeddings", request_body = OpenAiRequest,
    responses((status = 200, description = "A vector for each text", body = OpenAiResponse), (status = 422, description = "Not possible", body = ErrorBody))
)]
pub async fn openai(
    State(app): State<Arc<App>>,
    Body(request): Body<OpenAiRequest>,
) -> Result<Json<OpenAiResponse>, ApiError> {
    let texts = request.input.into_vec();
    app.within("texts", texts.len())?;
    if texts.is_empty() {
        return Err(ApiError::Malformed("`input` is empty".into()));
    }
    let wanted = Asked { role: request.input_type, truncate: true, dimensions: request.dimensions };
    let (vectors, tokens) = app.work(move |loaded, app| vectors(app, loaded, &texts, wanted)).await?;
    let written = |vector: Vec<f32>| match request.encoding_format {
        Format::Float => Numbers::Float(vector),
        Format::Base64 => {
            Numbers::Base64(STANDARD.encode(vector.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>()))
        }
    };
    let data = vectors.into_iter().enumerate().map(|(index, vector)| OpenAiEmbedding {
        object: "embedding",
        index,
        embedding: written(vector),
    });
    let usage = Usage { prompt_tokens: tokens, total_tokens: tokens };
    Ok(Json(OpenAiResponse { object: "list", data: data.collect(), model: request.model, usage }))
}

/// What both ask.
#[derive(Clone, Copy)]
struct Asked {
    role: Role,
    truncate: bool,
    dimensions: Option<usize>,
}

/// A vector for each text, and the number of tokens.
fn vectors(
    app: &App,
    loaded: &Arc<Loaded>,
    texts: &[String],
    Asked { role, truncate, dimensions }: Asked,
) -> Result<(Vec<Vec<f32>>, usize), ApiError> {
    let encoder = loaded.retriever.encoder();
    let bundle = encoder.bundle();
    let m = bundle.manifest.predictor.inner_dimensions;
    if let Some(dimensions) = dimensions.filter(|&dimensions| dimensions != m) {
        return Err(ApiError::Validation(format!("dimensions {dimensions}: this bundle's vectors have {m}")));
    }
    let mut passes: Vec<Encoded> = Vec::with_capacity(texts.len());
    for (place, text) in texts.iter().enumerate() {
        let pass = match role {
            Role::Query => encoder.query_pass(text)?,
            Role::Document => bundle.prompter.document_pass(text)?,
        };
        let (whole, kept) = (bundle.prompter.count_tokens(text)?, pass.text.len());
        if !truncate && whole > kept {
            let error = format!("text {place} has {whole} tokens, the prompt takes {kept}; send `truncate`");
            return Err(ApiError::Validation(error));
        }
        passes.push(pass);
    }
    let embeddings = app.encode(loaded, passes)?;
    let tokens = embeddings.iter().map(|embedding| embedding.tokens).sum();
    let vector = |embedding| match role {
        Role::Query => encoder.fold_query(embedding).vector,
        Role::Document => bundle.folded.document(&embedding.latent),
    };
    Ok((embeddings.iter().map(vector).collect(), tokens))
}
