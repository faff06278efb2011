//! Queries to measure with: somebody's, or the index's own documents.

use models::beir;
use runtime::retriever::Retriever;
use std::path::Path;

/// At most `most` query texts, spread evenly over a file (JSON lines with `_id` and `text`, or a folder in BEIR layout) or,
/// without one, over the index, whose documents are asked for by their own titles or texts.
pub fn query_texts(retriever: &Retriever, file: Option<&Path>, most: usize) -> anyhow::Result<Vec<String>> {
    let most = most.max(1);
    let Some(file) = file else {
        let documents = retriever.stats()?.documents;
        let mut texts = Vec::new();
        for offset in (0..documents).step_by(documents.div_ceil(most).max(1)) {
            for document in retriever.documents(offset, 1)? {
                texts.push(if document.title.is_empty() { document.text } else { document.title });
            }
        }
        return Ok(texts);
    };
    let file = if file.is_dir() { file.join("queries.jsonl") } else { file.to_owned() };
    let queries = beir::read_queries(&file)?;
    let step = queries.len().div_ceil(most).max(1);
    Ok(queries.into_iter().step_by(step).map(|query| query.text).collect())
}
