//! Vectors of texts, whoever asks for them.
//!
//! A document's vector is what the index stores of it, a query's is its side of the score: with a gated predictor their
//! inner product ranks as `/query` does (the score, less what all of a query's documents share). For stores that compare by
//! cosine, or normalise, there are vectors of length 1 that rank the same ([`models::cosine`]).

use super::app::App;
use super::error::ApiError;
use super::role::{Role, Similarity};
use super::work::Job;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use models::prompt::{Encoded, PromptError, Prompter, Truncation};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How texts are to be made vectors.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// Which side of the score they are on, and how vectors will be compared.
    pub side: (Role, Similarity),
    /// Whether texts longer than the prompt allows are cut; otherwise they are refused.
    pub truncate: bool,
    /// The end that may be cut, where the request names one.
    pub end: Option<End>,
    /// Only the full length is possible.
    pub dimensions: Option<usize>,
    /// The field that the texts came in.
    pub field: &'static str,
}

/// An end of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
pub enum End {
    /// The beginning.
    #[serde(alias = "left")]
    Left,
    /// The end.
    #[serde(alias = "right")]
    Right,
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

/// A vector as it was asked for: numbers, or little-endian 32-bit floats in base64.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum Numbers {
    /// As numbers.
    Float(Vec<f32>),
    /// In base64.
    Base64(String),
}

impl Format {
    /// Writes a vector.
    pub fn write(self, vector: Vec<f32>) -> Numbers {
        match self {
            Self::Float => Numbers::Float(vector),
            Self::Base64 => Numbers::Base64(base64(&vector)),
        }
    }
}

/// Little-endian 32-bit floats in base64.
pub fn base64(vector: &[f32]) -> String {
    STANDARD.encode(vector.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())
}

/// Refuses no texts, and more than are taken at once.
pub fn some(app: &App, texts: usize, field: &str) -> Result<(), ApiError> {
    if texts == 0 {
        return Err(ApiError::malformed(format!("`{field}` is empty: there are no texts")).of(field));
    }
    app.within("texts", texts).map_err(|error| error.of(field))
}

/// A vector for each text, and the number of tokens read.
pub fn vectors(job: &Job, texts: &[String], wanted: Wanted) -> Result<(Vec<Vec<f32>>, usize), ApiError> {
    let encoder = job.loaded.retriever.encoder();
    let bundle = encoder.bundle();
    let m = bundle.manifest.predictor.inner_dimensions;
    if let Some(dimensions) = wanted.dimensions.filter(|&dimensions| dimensions != m) {
        let error = format!("dimensions {dimensions}: this bundle's vectors have {m}");
        return Err(ApiError::validation(error).of("dimensions"));
    }
    let (role, similarity) = wanted.side;
    let cosine = match similarity {
        Similarity::InnerProduct => None,
        Similarity::Cosine => Some(job.loaded.cosine()?),
    };
    check_end(&bundle.prompter, role, wanted.end)?;
    let mut passes: Vec<Encoded> = Vec::with_capacity(texts.len());
    for (place, text) in texts.iter().enumerate() {
        let refused = |error: ApiError| error.text(place, texts.len(), wanted.field);
        let pass = pass(job, role, text).map_err(refused)?;
        if !wanted.truncate {
            let (whole, kept) = (bundle.prompter.count_tokens(text)?, pass.text.len());
            if whole > kept {
                let error = format!(
                    "the text has {whole} tokens, the prompt takes {kept}; let it be cut (`truncate`)"
                );
                return Err(refused(ApiError::validation(error)));
            }
        }
        passes.push(pass);
    }
    let embeddings = job.encode(&passes)?;
    let tokens = embeddings.iter().map(|embedding| embedding.tokens).sum();
    let vector = |embedding| match (role, cosine) {
        (Role::Query, None) => encoder.fold_query(embedding).vector,
        (Role::Query, Some(cosine)) => cosine.query(&encoder.fold_query(embedding)),
        (Role::Document, None) => bundle.folded.document(&embedding.latent),
        (Role::Document, Some(cosine)) => cosine.document(&bundle.folded.document(&embedding.latent)),
    };
    Ok((embeddings.iter().map(vector).collect(), tokens))
}

/// A text's pass.
pub fn pass(job: &Job, role: Role, text: &str) -> Result<Encoded, ApiError> {
    let encoder = job.loaded.retriever.encoder();
    Ok(match role {
        Role::Query => encoder.query_pass(text)?,
        Role::Document => match encoder.bundle().prompter.document_pass(text) {
            // Whose it is, is not what its sender calls it.
            Err(PromptError::Empty { .. }) => {
                return Err(ApiError::validation("the text is empty: it has no tokens to encode"));
            }
            pass => pass?,
        },
    })
}

/// Which end of a text is cut is the prompt's to say. The end is what clients name unasked, because it is the default of those
/// they were written for; who names the beginning means it.
fn check_end(prompter: &Prompter, role: Role, wanted: Option<End>) -> Result<(), ApiError> {
    let part = match role {
        Role::Query => &prompter.template().query,
        Role::Document => &prompter.template().document,
    };
    if wanted == Some(End::Left) && part.truncate == Truncation::Right {
        let error =
            "texts cannot be cut at their beginning (`Left`, `START`): this bundle's prompt cuts their end";
        return Err(ApiError::validation(error));
    }
    Ok(())
}

/// Scales a vector to length 1.
pub fn normalise(vector: &mut [f32]) {
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
    vector.iter_mut().for_each(|x| *x /= length);
}
