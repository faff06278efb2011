//! Opens a bundle and refuses one whose parts do not fit together, by name, before anything is answered from it.

use models::fold::{self, FoldError, Folded};
use models::manifest::{self, Manifest, ManifestError};
use models::prompt::{self, PromptError, PromptTemplate, Prompter};
use std::path::{Path, PathBuf};

/// A bundle that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// There is no such directory, or no bundle in it.
    #[error("{dir}: is not a bundle ({reason}); name a directory written by `export --onnx`")]
    NotABundle {
        /// The directory.
        dir: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The manifest is unreadable, or a file is not the one it lists.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Template or tokenizer cannot be used.
    #[error(transparent)]
    Prompt(#[from] PromptError),
    /// The folded weights do not fit the manifest.
    #[error(transparent)]
    Fold(#[from] FoldError),
    /// Two files of the bundle contradict each other.
    #[error(
        "{file}: {what} is {found}, manifest.json says {expected}; the two files come from different exports, export again into an empty directory"
    )]
    Disagreement {
        /// The file.
        file: PathBuf,
        /// What they disagree on.
        what: &'static str,
        /// The file's number.
        found: String,
        /// The manifest's.
        expected: String,
    },
}

/// An opened bundle: everything but the graphs.
pub struct Bundle {
    /// The directory.
    pub dir: PathBuf,
    /// Its manifest; all digests were checked.
    pub manifest: Manifest,
    /// Template and tokenizer.
    pub prompter: Prompter,
    /// Folded predictor.
    pub folded: Folded,
}

impl Bundle {
    /// Reads a bundle directory, every file against its digest, and all sizes against the manifest.
    pub fn open(dir: &Path) -> Result<Self, BundleError> {
        let not_a_bundle = |reason| BundleError::NotABundle { dir: dir.to_owned(), reason };
        if !dir.is_dir() {
            return Err(not_a_bundle(if dir.exists() { "a file" } else { "no such directory" }));
        }
        let manifest_file = dir.join(manifest::FILE_NAME);
        if !manifest_file.exists() {
            return Err(not_a_bundle("it has no manifest.json"));
        }
        let manifest = Manifest::open(dir)?;
        let student = manifest.student();
        let disagreement = |file: &str, what, found: usize, expected: usize| BundleError::Disagreement {
            file: dir.join(file),
            what,
            found: found.to_string(),
            expected: expected.to_string(),
        };
        if student.dimensions() != manifest.encoder.dimensions {
            let what = "the number of latent layers times hidden_size";
            let (found, expected) = (student.dimensions(), manifest.encoder.dimensions);
            return Err(disagreement(manifest::FILE_NAME, what, found, expected));
        }
        let tokenizer = prompt::open_tokenizer(dir)?;
        let (tokens, rows) = (tokenizer.get_vocab_size(true), manifest.encoder.vocab_size);
        if tokens > rows {
            return Err(disagreement("tokenizer.json", "the number of tokens", tokens, rows));
        }
        let prompter = Prompter::new(PromptTemplate::open(&dir.join(prompt::FILE_NAME))?, tokenizer)?;
        let (longest, limit) = (prompter.max_pass_tokens(), manifest.encoder.max_tokens);
        if longest > limit {
            return Err(disagreement(prompt::FILE_NAME, "the longest pass in tokens", longest, limit));
        }
        let folded = Folded::open(&student, &dir.join(fold::FILE_NAME))?;
        Ok(Self { dir: dir.to_owned(), manifest, prompter, folded })
    }
}

impl std::fmt::Debug for Bundle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bundle").field("dir", &self.dir).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The commonest mistake is a wrong path; it must not read like a damaged bundle.
    #[test]
    fn a_directory_that_is_no_bundle_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let message = |path: &Path| Bundle::open(path).unwrap_err().to_string();
        assert!(message(&dir.path().join("absent")).contains("no such directory"));
        assert!(message(dir.path()).contains("has no manifest.json"));
        std::fs::write(dir.path().join("manifest.json"), "{").unwrap();
        assert!(message(dir.path()).contains("manifest.json: not the JSON expected here"));
    }
}
