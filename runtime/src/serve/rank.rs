//! Scores of texts that come with the query, whoever asks for them: by the teacher where one is loaded, else by the student.

use super::app::App;
use super::embed;
use super::error::ApiError;
use super::role::Role;
use super::work::Job;
use std::sync::Arc;

/// A text's place among those that came with it.
#[derive(Debug, Clone, Copy)]
pub struct Ranked {
    /// Its place in the request.
    pub index: usize,
    /// `log p(T) - log p(F)`.
    pub score: f32,
    /// Probability that it answers the query.
    pub probability: f32,
}

/// Best first; equal ones in the order in which they came. `field` is where the texts came in.
pub async fn ranked(
    app: Arc<App>,
    query: String,
    texts: Arc<[String]>,
    field: &'static str,
) -> Result<Vec<Ranked>, ApiError> {
    embed::some(&app, texts.len(), field)?;
    app.work(move |job| sorted(job, &query, &texts, field)).await
}

/// The same, and the tokens of query and texts before anything is cut off.
pub async fn counted(
    app: Arc<App>,
    query: String,
    texts: Arc<[String]>,
    field: &'static str,
) -> Result<(Vec<Ranked>, usize), ApiError> {
    embed::some(&app, texts.len(), field)?;
    app.work(move |job| {
        let ranked = sorted(job, &query, &texts, field)?;
        let prompter = &job.loaded.retriever.encoder().bundle().prompter;
        let mut tokens = prompter.count_tokens(&query)?;
        for text in texts.iter() {
            tokens += prompter.count_tokens(text)?;
        }
        Ok((ranked, tokens))
    })
    .await
}

fn sorted(job: &Job, query: &str, texts: &[String], field: &str) -> Result<Vec<Ranked>, ApiError> {
    let mut ranked = scores(job, query, texts, field)?;
    ranked.sort_by(|a, b| b.score.total_cmp(&a.score));
    Ok(ranked)
}

/// In the order in which the texts came.
fn scores(job: &Job, query: &str, texts: &[String], field: &str) -> Result<Vec<Ranked>, ApiError> {
    let scores = match &job.loaded.reranker {
        Some(_) => teacher(job, query, texts, field)?,
        None => student(job, query, texts, field)?,
    };
    let ranked = |(index, (score, probability))| Ranked { index, score, probability };
    Ok(scores.into_iter().enumerate().map(ranked).collect())
}

/// By the teacher, text by text: between two, it is seen whether anybody still waits.
fn teacher(job: &Job, query: &str, texts: &[String], field: &str) -> Result<Vec<(f32, f32)>, ApiError> {
    let Some(reranker) = &job.loaded.reranker else { return Ok(Vec::new()) };
    let (found, most) = (texts.len(), job.app.limits.rerank);
    if found > most {
        let error = format!("{found} texts, the reranker reads at most {most} for a query (--max-rerank)");
        return Err(ApiError::validation(error).of(field));
    }
    let mut scores = Vec::with_capacity(texts.len());
    for (place, text) in texts.iter().enumerate() {
        job.wanted()?;
        let score = reranker
            .scores(query, &[text])
            .map_err(|error| about(error.into(), query, place, texts, field))?;
        scores.extend(score.into_iter().map(|score| (score, 1.0 / (1.0 + (-score).exp()))));
        job.in_time((place + 1) as f64 / texts.len() as f64, texts.len())?;
    }
    Ok(scores)
}

/// By the student: score and calibrated probability.
pub fn student(job: &Job, query: &str, texts: &[String], field: &str) -> Result<Vec<(f32, f32)>, ApiError> {
    let mut passes = vec![embed::pass(job, Role::Query, query).map_err(|error| error.of("query"))?];
    for (place, text) in texts.iter().enumerate() {
        let pass = embed::pass(job, Role::Document, text);
        passes.push(pass.map_err(|error| error.text(place, texts.len(), field))?);
    }
    let encoder = job.loaded.retriever.encoder();
    let embeddings = job.encode(&passes)?;
    // encode() gives an embedding for each pass, and the query's is the first.
    let Some((query, documents)) = embeddings.split_first() else { return Ok(Vec::new()) };
    let (query, bundle) = (encoder.fold_query(query), encoder.bundle());
    let score = |embedding: &crate::encoder::Embedding| {
        let score = query.score(&bundle.folded.document(&embedding.latent));
        (score, bundle.manifest.calibration.probability(score - query.constant))
    };
    Ok(documents.iter().map(score).collect())
}

/// Blames the text, unless it is the query that cannot be read.
fn about(error: ApiError, query: &str, place: usize, texts: &[String], field: &str) -> ApiError {
    if query.trim().is_empty() { error.of("query") } else { error.text(place, texts.len(), field) }
}
