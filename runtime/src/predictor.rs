//! The predictor before folding, `predictor.onnx`: a second opinion on every score, for self-tests and explanations.

use crate::bundle::Bundle;
use crate::encoder::Embedding;
use crate::session::{Element, Port, Session, SessionError, SessionOptions, Values};
use models::manifest::{PREDICTOR_FILE, names};
use models::student::Residual;

/// The unfolded predictor of a bundle.
#[derive(Debug)]
pub struct Predictor {
    session: Session,
    with_answer: bool,
}

impl Predictor {
    /// Opens `predictor.onnx`; inputs, outputs and sizes must be those of the manifest.
    pub fn open(bundle: &Bundle, options: &SessionOptions) -> Result<Self, SessionError> {
        let (d, h) = (bundle.manifest.encoder.dimensions, bundle.manifest.encoder.hidden_size);
        let matrix = |name, size| Port::new(name, Element::Float32, [None, Some(size)]);
        let mut inputs = vec![matrix(names::QUERY_EMBEDDING, d), matrix(names::DOCUMENT_EMBEDDING, d)];
        let with_answer = bundle.manifest.predictor.residual == Residual::LastToken;
        if with_answer {
            inputs.push(matrix(names::ANSWER_EMBEDDING, h));
        }
        let score = Port::new(names::SCORE, Element::Float32, [None]);
        let outputs = vec![score, matrix(names::PREDICTED_HIDDEN, h)];
        let session = Session::open(&bundle.dir.join(PREDICTOR_FILE), options, inputs, outputs)?;
        Ok(Self { session, with_answer })
    }

    /// `log p(T) - log p(F)` of a pair.
    pub fn score(&self, query: &Embedding, document: &Embedding) -> Result<f32, SessionError> {
        let answer = query.answer.as_deref().filter(|_| self.with_answer);
        let values: Vec<&[f32]> = [Some(query.latent.as_slice()), Some(document.latent.as_slice()), answer]
            .into_iter()
            .flatten()
            .collect();
        let shapes: Vec<[usize; 2]> = values.iter().map(|values| [1, values.len()]).collect();
        let inputs: Vec<_> = values
            .iter()
            .zip(&shapes)
            .map(|(values, shape)| (Values::Float32(values), shape.as_slice()))
            .collect();
        let outputs = self.session.run(&inputs)?;
        // Session::run checked that `score` is there, with one number per pair.
        Ok(outputs.first().and_then(|score| score.values.first()).copied().unwrap_or(f32::NAN))
    }
}
