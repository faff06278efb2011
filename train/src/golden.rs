//! Reference numbers that travel with a teacher or student: what tch computes, for `export` to hold its graphs to.

use crate::data_sets::DataSets;
use crate::features::{FeatureMaker, Features, Side};
use crate::fit::write_tensors;
use crate::scoring::rows_of;
use anyhow::Result;
use models::files::write_json;
use models::student::StudentConfig;
use models::torch::{EncoderConfig, Predictor, Reranker};
use models::weights::DType;
use serde_json::json;
use std::collections::HashMap;
use std::path::Path;
use tch::Tensor;

/// Writes `golden.json` (texts and scores of all pairs) and `golden.safetensors` (latents), computed in f32, each text
/// alone and unpadded; queries through the adapters of `llm`, where it has some.
pub fn write(
    dir: &Path,
    llm: &mut Reranker,
    config: &StudentConfig,
    predictor: &Predictor,
    queries: &[&str],
    documents: &[&str],
) -> Result<()> {
    llm.decoder.set_compute_kind(None);
    let encoder = EncoderConfig { layers: config.latents.layers.clone(), residual: config.residual };
    let mut maker = FeatureMaker::new(llm, encoder, None)?;
    let query = alone(&mut maker, Side::Query, queries)?;
    let document = alone(&mut maker, Side::Document, documents)?;
    let scores = tch::no_grad(|| {
        let side = predictor.query_side(&predictor.query.apply(&query.latent), query.answer.as_ref(), false);
        let inner = predictor.document_side(&predictor.document.apply(&document.latent), false);
        // Through P and the head, not the short cut: this is what folding is held to.
        let logits = predictor.predict(&side, &inner).matmul(&predictor.choice().tr());
        rows_of(&(logits.select(-1, 0) - logits.select(-1, 1)))
    })?;
    write_json(
        &dir.join("golden.json"),
        &json!({ "queries": queries, "documents": documents, "scores": scores }),
    )?;
    let mut tensors = vec![("query".to_owned(), query.latent), ("document".to_owned(), document.latent)];
    tensors.extend(query.answer.map(|answer| ("answer".to_owned(), answer)));
    write_tensors(&dir.join("golden.safetensors"), tensors, DType::F32, HashMap::new())
}

/// Writes a teacher's `golden.json`: texts and scores of all pairs, each prompt whole, in f32.
pub fn write_teacher(dir: &Path, teacher: &mut Reranker, queries: &[&str], documents: &[&str]) -> Result<()> {
    teacher.decoder.set_compute_kind(None);
    let _guard = tch::no_grad_guard();
    let mut scores = Vec::with_capacity(queries.len());
    for query in queries {
        let of_query = documents.iter().map(|document| {
            let hidden = teacher.hidden_uncached(document, query)?;
            Ok(teacher.score(&hidden)?.double_value(&[0]) as f32)
        });
        scores.push(of_query.collect::<Result<Vec<f32>>>()?);
    }
    write_json(
        &dir.join("golden.json"),
        &json!({ "queries": queries, "documents": documents, "scores": scores }),
    )?;
    Ok(())
}

/// The first judged dev queries, each with its best document.
pub fn texts(sets: &DataSets, most: usize) -> (Vec<&str>, Vec<&str>) {
    let judged = sets.sets.iter().flat_map(|set| {
        let queries = set.dev.iter().flat_map(|(_, qrels)| qrels);
        queries.map(move |(query, judgements)| {
            // The corpus of a published set may lack documents that somebody judged.
            let places = judgements
                .iter()
                .filter_map(|(id, gain)| Some((id, gain, *set.data.document_index.get(id)?)));
            let best = places.max_by_key(|(id, gain, _)| (**gain, std::cmp::Reverse((*id).clone())));
            let document = best.map(|(_, _, place)| set.contents[place].as_str());
            (set.query(query), document)
        })
    });
    let (queries, documents): (Vec<&str>, Vec<Option<&str>>) = judged.take(most).unzip();
    (queries, documents.into_iter().flatten().collect())
}

fn alone(maker: &mut FeatureMaker, side: Side, texts: &[&str]) -> Result<Features> {
    let each = texts.iter().map(|text| maker.make(side, &[text])).collect::<Result<Vec<_>>>()?;
    let latents: Vec<&Tensor> = each.iter().map(|features| &features.latent).collect();
    let answers: Vec<&Tensor> = each.iter().filter_map(|features| features.answer.as_ref()).collect();
    let answer = (!answers.is_empty()).then(|| Tensor::cat(&answers, 0));
    Ok(Features { latent: Tensor::cat(&latents, 0), answer })
}
