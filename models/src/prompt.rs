//! The prompt: one template file that travels with every checkpoint and bundle, and the only home of prompt text.
//!
//! The teacher reads `[prefix][document][query][instruction][answer]`; the document stands first, so its key/value
//! cache serves every query (RaHoRe, arXiv 2412.16615). Each piece is tokenised on its own, so the teacher's token
//! sequence *is* the concatenation of the pieces that the student encodes apart (Rabtriever, arXiv 2604.23336).

use crate::files::{self, FileError};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::path::{Path, PathBuf};
use tokenizers::Tokenizer;

/// Version of `prompt.json` that this program reads and writes.
pub const FORMAT_VERSION: u32 = 1;
/// Name of the template inside a checkpoint or bundle.
pub const FILE_NAME: &str = "prompt.json";

/// Which end of a text is cut when it is too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Truncation {
    /// The beginning is dropped (conversations: the last turns matter).
    Left,
    /// The end is dropped.
    Right,
}

/// The words around one text, and how much of that text is read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Text before the document or query; may hold special tokens.
    pub before: String,
    /// Text after it.
    pub after: String,
    /// Most tokens of the text itself that are kept.
    pub max_tokens: usize,
    /// The end that is cut.
    pub truncate: Truncation,
}

/// The two answers to the binary-choice question; each must be a single token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Choices {
    /// T: the document answers the query.
    pub positive: String,
    /// F: it does not.
    pub negative: String,
}

/// `prompt.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromptTemplate {
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// First piece of every pass.
    pub prefix: String,
    /// Around the document.
    pub document: Part,
    /// Around the query.
    pub query: Part,
    /// The binary-choice question I.
    pub instruction: String,
    /// The answer slot: the choice is read off the position of its last token.
    pub answer: String,
    /// The choice tokens.
    pub choices: Choices,
}

impl Default for PromptTemplate {
    /// RaHoRe's form in the ChatML turns that SmolLM2 and Qwen use.
    fn default() -> Self {
        Self {
            format_version: FORMAT_VERSION,
            prefix: "<|im_start|>user\n".into(),
            document: Part {
                before: "Document:\n".into(),
                after: "\n".into(),
                max_tokens: 256,
                truncate: Truncation::Right,
            },
            query: Part {
                before: "Query:\n".into(),
                after: "\n".into(),
                max_tokens: 256,
                truncate: Truncation::Left,
            },
            instruction: "Can the query be appropriately answered with the document? Yes or No?<|im_end|>\n"
                .into(),
            answer: "<|im_start|>assistant\n".into(),
            choices: Choices { positive: "Yes".into(), negative: "No".into() },
        }
    }
}

/// A template that cannot be used with this tokenizer, or a text that cannot be asked about.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    /// Reading `prompt.json` failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// `tokenizer.json` cannot be read.
    #[error("{file}: {message}")]
    Tokenizer {
        /// The tokenizer file.
        file: PathBuf,
        /// What the tokenizer library said.
        message: String,
    },
    /// A choice word falls into several tokens.
    #[error(
        "prompt: choice `{choice}` is {found} tokens in this tokenizer, 1 is needed; choose a word that is a single token"
    )]
    ChoiceTokens {
        /// The word.
        choice: String,
        /// Its number of tokens.
        found: usize,
    },
    /// Both choices are the same token.
    #[error("prompt: choices `{positive}` and `{negative}` are the same token; choose two different words")]
    SameChoice {
        /// The positive word.
        positive: String,
        /// The negative word.
        negative: String,
    },
    /// The tokenizer failed on a text.
    #[error("cannot tokenise {text:?}: {message}")]
    Text {
        /// Beginning of the text.
        text: String,
        /// What the tokenizer library said.
        message: String,
    },
    /// Nothing to encode.
    #[error("the {what} is empty: it has no tokens to encode")]
    Empty {
        /// `document` or `query`.
        what: &'static str,
    },
}

impl PromptTemplate {
    /// Reads a template file.
    pub fn open(path: &Path) -> Result<Self, PromptError> {
        let template: Self = files::read_json(path)?;
        if template.format_version != FORMAT_VERSION {
            let (found, expected) = (template.format_version, FORMAT_VERSION);
            return Err(FileError::Version { file: path.to_owned(), found, expected }.into());
        }
        Ok(template)
    }
}

/// Token ids of one pass, and which of them are the text's own (the rest is prompt).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Positions of the text's own tokens in `ids`; never empty.
    pub text: Range<usize>,
}

/// A template joined to a tokenizer.
#[derive(Debug)]
pub struct Prompter {
    template: PromptTemplate,
    tokenizer: Tokenizer,
    prefix: Vec<u32>,
    document: (Vec<u32>, Vec<u32>),
    query: (Vec<u32>, Vec<u32>),
    ending: Vec<u32>,
    choices: [u32; 2],
}

impl Prompter {
    /// Reads `prompt.json` and `tokenizer.json` of a checkpoint or bundle.
    pub fn open(dir: &Path) -> Result<Self, PromptError> {
        Self::new(PromptTemplate::open(&dir.join(FILE_NAME))?, open_tokenizer(dir)?)
    }

    /// Tokenises the fixed pieces once and checks the choice tokens.
    pub fn new(template: PromptTemplate, mut tokenizer: Tokenizer) -> Result<Self, PromptError> {
        // Lengths are the template's business, and padding the batch's.
        tokenizer.with_padding(None);
        let _ = tokenizer.with_truncation(None);
        let fixed = |text: &str| encode(&tokenizer, text);
        let choice = |word: &str| match fixed(word)?.as_slice() {
            [id] => Ok(*id),
            ids => Err(PromptError::ChoiceTokens { choice: word.to_owned(), found: ids.len() }),
        };
        let choices = [choice(&template.choices.positive)?, choice(&template.choices.negative)?];
        if choices[0] == choices[1] {
            let Choices { positive, negative } = template.choices;
            return Err(PromptError::SameChoice { positive, negative });
        }
        let prefix = fixed(&template.prefix)?;
        let document = (fixed(&template.document.before)?, fixed(&template.document.after)?);
        let query = (fixed(&template.query.before)?, fixed(&template.query.after)?);
        let ending = [fixed(&template.instruction)?, fixed(&template.answer)?].concat();
        // From here on texts are data: `<|im_end|>` in a document is seven characters, not the end of a turn.
        tokenizer.set_encode_special_tokens(true);
        Ok(Self { template, tokenizer, prefix, document, query, ending, choices })
    }

    /// The template.
    pub fn template(&self) -> &PromptTemplate {
        &self.template
    }

    /// Highest token id that the tokenizer can make; the model's embedding must reach it.
    pub fn highest_token_id(&self) -> usize {
        self.tokenizer.get_vocab(true).into_values().max().unwrap_or(0) as usize
    }

    /// Token ids of the positive and the negative choice.
    pub fn choices(&self) -> [u32; 2] {
        self.choices
    }

    /// Tokens of a text before anything is cut off.
    pub fn count_tokens(&self, text: &str) -> Result<usize, PromptError> {
        Ok(encode(&self.tokenizer, text.trim())?.len())
    }

    /// Most tokens that any pass of the student can have.
    pub fn max_pass_tokens(&self) -> usize {
        let around = |part: &Part, (before, after): &(Vec<u32>, Vec<u32>)| {
            part.max_tokens + before.len() + after.len()
        };
        let document = around(&self.template.document, &self.document);
        let query = around(&self.template.query, &self.query) + self.ending.len();
        self.prefix.len() + document.max(query)
    }

    /// Most tokens that the teacher's prompt of a pair can have.
    pub fn max_pair_tokens(&self) -> usize {
        let (document, query) = (&self.template.document, &self.template.query);
        let around = self.document.0.len() + self.document.1.len() + self.query.0.len() + self.query.1.len();
        self.prefix.len() + document.max_tokens + query.max_tokens + around + self.ending.len()
    }

    /// What every query pass and every document pass begins with, before the text, in this order.
    pub fn before_texts(&self) -> [Vec<u32>; 2] {
        [&self.query.0, &self.document.0].map(|before| [self.prefix.as_slice(), before].concat())
    }

    /// `[prefix][document]`: the student's document pass and the cached beginning of every teacher prompt.
    pub fn document_pass(&self, text: &str) -> Result<Encoded, PromptError> {
        self.pass(self.prefix.clone(), "document", &self.template.document, &self.document, text)
    }

    /// `[prefix][query]`: the student's query pass where only the query's own latents are needed.
    pub fn query_pass(&self, text: &str) -> Result<Encoded, PromptError> {
        self.pass(self.prefix.clone(), "query", &self.template.query, &self.query, text)
    }

    /// `[prefix][query][instruction][answer]`: the student's query pass when its last token is read.
    pub fn query_answer_pass(&self, text: &str) -> Result<Encoded, PromptError> {
        let mut pass = self.query_pass(text)?;
        pass.ids.extend(&self.ending);
        Ok(pass)
    }

    /// `[query][instruction][answer]`: what follows a cached document pass in the teacher's prompt.
    pub fn continuation(&self, query: &str) -> Result<Vec<u32>, PromptError> {
        let mut piece = self.pass(Vec::new(), "query", &self.template.query, &self.query, query)?;
        piece.ids.extend(&self.ending);
        Ok(piece.ids)
    }

    /// The teacher's whole prompt for one pair.
    pub fn pair(&self, document: &str, query: &str) -> Result<Vec<u32>, PromptError> {
        let mut ids = self.document_pass(document)?.ids;
        ids.extend(self.continuation(query)?);
        Ok(ids)
    }

    fn pass(
        &self,
        mut ids: Vec<u32>,
        what: &'static str,
        part: &Part,
        (before, after): &(Vec<u32>, Vec<u32>),
        text: &str,
    ) -> Result<Encoded, PromptError> {
        let tokens = encode(&self.tokenizer, text.trim())?;
        if tokens.is_empty() {
            return Err(PromptError::Empty { what });
        }
        let kept = tokens.len().min(part.max_tokens);
        let tokens = match part.truncate {
            Truncation::Left => &tokens[tokens.len() - kept..],
            Truncation::Right => &tokens[..kept],
        };
        ids.extend(before);
        let text = ids.len()..ids.len() + tokens.len();
        ids.extend(tokens);
        ids.extend(after);
        Ok(Encoded { ids, text })
    }
}

/// Reads `tokenizer.json` of a directory.
pub fn open_tokenizer(dir: &Path) -> Result<Tokenizer, PromptError> {
    let file = dir.join("tokenizer.json");
    Tokenizer::from_file(&file).map_err(|e| PromptError::Tokenizer { file, message: e.to_string() })
}

fn encode(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>, PromptError> {
    let encoding = tokenizer
        .encode_fast(text, false)
        .map_err(|e| PromptError::Text { text: text.chars().take(40).collect(), message: e.to_string() })?;
    Ok(encoding.get_ids().to_vec())
}
