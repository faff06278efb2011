//! What the files around somebody else's graph say: where it is, how its texts are cut, how its tokens are pooled.

use super::onnx_embedding::{POOLED, Pooling};
use anyhow::{Context, Result, bail};
use models::files::read_json;
use models::prompt::open_tokenizer;
use serde_json::Value;
use std::path::{Path, PathBuf};
use tokenizers::{Tokenizer, TruncationParams};

/// Tokens of a text where no file of the model tells how many it reads; BERT's.
const DEFAULT_TOKENS: usize = 512;

/// The graph that is meant.
pub fn graph_file(path: &Path) -> Result<PathBuf> {
    if path.is_dir() {
        let found =
            ["model.onnx", "onnx/model.onnx"].map(|name| path.join(name)).into_iter().find(|f| f.is_file());
        return found.with_context(|| {
            format!("{}: has neither model.onnx nor onnx/model.onnx; name the graph itself", path.display())
        });
    }
    if !path.exists() {
        bail!("{}: no such file or folder", path.display());
    }
    Ok(path.to_owned())
}

/// The graph's folder or the one above, whichever has the tokenizer.
pub fn tokenizer_folder(file: &Path) -> Result<PathBuf> {
    let folder = match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let both = [folder.clone(), folder.join("..")];
    both.into_iter().find(|folder| folder.join("tokenizer.json").is_file()).with_context(|| {
        format!(
            "{}: has no tokenizer.json, nor has the folder above; it belongs beside the graph",
            folder.display()
        )
    })
}

/// The tokenizer, cutting texts where the model stops reading, special tokens kept.
pub fn truncating_tokenizer(folder: &Path) -> Result<Tokenizer> {
    let mut tokenizer = open_tokenizer(folder)?;
    // Some files pad every text to a fixed length.
    tokenizer.with_padding(None);
    let max_length = max_tokens(folder, &tokenizer)?;
    // The library takes the special tokens off what a text may have.
    let special = tokenizer.encode_fast("", true).map_or(0, |encoding| encoding.get_ids().len());
    if max_length <= special {
        bail!("{}: texts are cut to {max_length} tokens, which leaves none for text", folder.display());
    }
    let truncation = tokenizer.get_truncation().cloned().unwrap_or_default();
    let truncation = TruncationParams { max_length, stride: 0, ..truncation };
    if let Err(error) = tokenizer.with_truncation(Some(truncation)) {
        bail!(
            "{}: cannot cut texts to {max_length} tokens: {error}",
            folder.join("tokenizer.json").display()
        );
    }
    Ok(tokenizer)
}

/// As sentence-transformers decides: `sentence_bert_config.json`, else what tokenizer and model say.
fn max_tokens(folder: &Path, tokenizer: &Tokenizer) -> Result<usize> {
    let number = |name: &str, key: &str| -> Result<Option<usize>> {
        // `model_max_length` is 1e30 where nobody set it.
        let limit = |value: &Value| value.as_f64().filter(|n| (1.0..1e9).contains(n)).map(|n| n as usize);
        Ok(optional_json(&folder.join(name))?.and_then(|json| limit(&json[key])))
    };
    if let Some(limit) = number("sentence_bert_config.json", "max_seq_length")? {
        return Ok(limit);
    }
    if let Some(truncation) = tokenizer.get_truncation() {
        return Ok(truncation.max_length);
    }
    let limits = [
        number("tokenizer_config.json", "model_max_length")?,
        number("config.json", "max_position_embeddings")?,
    ];
    Ok(limits.into_iter().flatten().min().unwrap_or(DEFAULT_TOKENS))
}

fn optional_json(file: &Path) -> Result<Option<Value>> {
    Ok(if file.is_file() { Some(read_json(file)?) } else { None })
}

/// What `1_Pooling/config.json` says; without it the mean.
pub fn configured_pooling(folder: &Path) -> Result<Pooling> {
    let file = folder.join("1_Pooling/config.json");
    let Some(config) = optional_json(&file)? else { return Ok(Pooling::Mean) };
    // Since sentence-transformers 5.4 a word, or several that are put side by side; before, a truth value for each.
    let modes: Vec<&str> = match &config["pooling_mode"] {
        Value::String(mode) => vec![mode.as_str()],
        Value::Array(modes) => modes.iter().filter_map(Value::as_str).collect(),
        _ => config
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(key, value)| key.starts_with("pooling_mode") && value.as_bool() == Some(true))
            .map(|(key, _)| key.as_str())
            .collect(),
    };
    match modes[..] {
        ["pooling_mode_mean_tokens" | "mean"] => Ok(Pooling::Mean),
        ["pooling_mode_cls_token" | "cls"] => Ok(Pooling::Cls),
        ["pooling_mode_lasttoken" | "lasttoken"] => Ok(Pooling::LastToken),
        _ => bail!(
            "{}: pools by `{}`; mean, cls and last-token are known here, say with --onnx-pooling which comes nearest",
            file.display(),
            modes.join("` and `")
        ),
    }
}

/// A layer behind the pooling would be left out without a word.
pub fn refuse_more_modules(folder: &Path) -> Result<()> {
    let file = folder.join("modules.json");
    let known = ["Transformer", "Pooling", "Normalize"];
    let modules = optional_json(&file)?.unwrap_or_default();
    let kinds = modules.as_array().into_iter().flatten().filter_map(|module| module["type"].as_str());
    for kind in kinds {
        if !known.contains(&kind.rsplit('.').next().unwrap_or_default()) {
            bail!(
                "{}: has a module `{kind}`, which is not run here; export the whole model, so that its graph has an \
                 output `{POOLED}`",
                file.display()
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::fs;

    /// E5 pools by the mean and BGE by the first token; the folder says so, and says what is not known here.
    #[test]
    fn the_folder_says_how_to_pool_and_where_to_cut() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path();
        let write = |name: &str, value: Value| {
            let file = folder.join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, value.to_string()).unwrap();
        };
        assert_eq!(configured_pooling(folder).unwrap(), Pooling::Mean);
        write(
            "1_Pooling/config.json",
            json!({"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}),
        );
        assert_eq!(configured_pooling(folder).unwrap(), Pooling::Cls);
        write("1_Pooling/config.json", json!({"pooling_mode_max_tokens": true}));
        let message = configured_pooling(folder).unwrap_err().to_string();
        assert!(
            message.contains("`pooling_mode_max_tokens`") && message.contains("--onnx-pooling"),
            "{message}"
        );

        for (mode, pooling) in
            [("mean", Pooling::Mean), ("cls", Pooling::Cls), ("lasttoken", Pooling::LastToken)]
        {
            write(
                "1_Pooling/config.json",
                json!({"embedding_dimension": 8, "pooling_mode": mode, "include_prompt": true}),
            );
            assert_eq!(configured_pooling(folder).unwrap(), pooling);
        }
        // Converted by hand, a folder may hold both; sentence-transformers takes the word.
        write("1_Pooling/config.json", json!({"pooling_mode": "cls", "pooling_mode_mean_tokens": true}));
        assert_eq!(configured_pooling(folder).unwrap(), Pooling::Cls);
        write("1_Pooling/config.json", json!({"pooling_mode": ["mean", "max"]}));
        assert!(configured_pooling(folder).unwrap_err().to_string().contains("`mean` and `max`"));
        write("1_Pooling/config.json", json!({"pooling_mode": ["mean"]}));
        assert_eq!(configured_pooling(folder).unwrap(), Pooling::Mean);

        write("modules.json", json!([{"type": "sentence_transformers.models.Pooling"}]));
        refuse_more_modules(folder).unwrap();
        write("modules.json", json!([{"type": "sentence_transformers.models.Dense"}]));
        assert!(
            refuse_more_modules(folder).unwrap_err().to_string().contains("models.Dense`, which is not run")
        );

        let mut tokenizer = Tokenizer::new(tokenizers::models::wordlevel::WordLevel::default());
        assert_eq!(max_tokens(folder, &tokenizer).unwrap(), DEFAULT_TOKENS);
        write("tokenizer_config.json", json!({"model_max_length": 1e30}));
        write("config.json", json!({"max_position_embeddings": 300}));
        assert_eq!(max_tokens(folder, &tokenizer).unwrap(), 300);
        let truncation = TruncationParams { max_length: 128, ..Default::default() };
        tokenizer.with_truncation(Some(truncation)).unwrap();
        assert_eq!(max_tokens(folder, &tokenizer).unwrap(), 128);
        write("sentence_bert_config.json", json!({"max_seq_length": 256}));
        assert_eq!(max_tokens(folder, &tokenizer).unwrap(), 256);
    }

    /// The commonest mistake is a wrong path.
    #[test]
    fn graph_and_tokenizer_are_looked_for_beside_each_other_and_above() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path();
        assert!(
            graph_file(&folder.join("absent")).unwrap_err().to_string().contains("no such file or folder")
        );
        assert!(
            graph_file(folder).unwrap_err().to_string().contains("neither model.onnx nor onnx/model.onnx")
        );
        fs::create_dir(folder.join("onnx")).unwrap();
        let file = folder.join("onnx/model.onnx");
        fs::write(&file, "").unwrap();
        assert_eq!(graph_file(folder).unwrap(), file);
        assert!(tokenizer_folder(&file).unwrap_err().to_string().contains("has no tokenizer.json, nor has"));
        fs::write(folder.join("tokenizer.json"), "").unwrap();
        assert!(tokenizer_folder(&file).unwrap().join("tokenizer.json").is_file());
    }
}
