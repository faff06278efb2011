//! The prompt: one template file that travels with every checkpoint and bundle, and the only home of prompt text.
//!
//! The teacher reads `[prefix][document][query][instruction][answer]`; the document stands first, so its key/value
//! cache serves every query (RaHoRe, arXiv 2412.16615). Each piece is tokenised on its own, so the teacher's token
//! sequence *is* the concatenation of the pieces that the student encodes apart (Rabtriever, arXiv 2604.23336).
//!
//! Published rerankers that ask about the query first (Qwen3-Reranker) are templates too: `order` says what stands first,
//! and a part that is `joined` is tokenised in one go with the words around it, as they do it.

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

/// What the teacher reads first, and is cached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// `[prefix][document][query]`.
    #[default]
    DocumentFirst,
    /// `[prefix][query][document]`.
    QueryFirst,
}

impl Order {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
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
    /// Tokenise `before`, text and `after` as one string; they hold no special tokens then, and tokens may span their
    /// borders. A student cannot be made of such a prompt.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub joined: bool,
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
    /// What stands first; left out where it is the document.
    #[serde(default, skip_serializing_if = "Order::is_default")]
    pub order: Order,
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
            order: Order::DocumentFirst,
            prefix: "<|im_start|>user\n".into(),
            document: Part {
                before: "Document:\n".into(),
                after: "\n".into(),
                max_tokens: 256,
                truncate: Truncation::Right,
                joined: false,
            },
            query: Part {
                before: "Query:\n".into(),
                after: "\n".into(),
                max_tokens: 256,
                truncate: Truncation::Left,
                joined: false,
            },
            instruction: "Can the query be appropriately answered with the document? Yes or No?<|im_end|>\n"
                .into(),
            answer: "<|im_start|>assistant\n".into(),
            choices: Choices { positive: "Yes".into(), negative: "No".into() },
        }
    }
}

impl PromptTemplate {
    /// Qwen3-Reranker's, as its model card asks for it (<https://huggingface.co/Qwen/Qwen3-Reranker-0.6B>), with the
    /// instruction that it calls the default.
    pub fn qwen3_reranker() -> Self {
        let part = |before: &str, after: &str, truncate, max_tokens| Part {
            before: before.into(),
            after: after.into(),
            max_tokens,
            truncate,
            joined: true,
        };
        Self {
            format_version: FORMAT_VERSION,
            order: Order::QueryFirst,
            prefix: "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the \
                     Instruct provided. Note that the answer can only be \"yes\" or \"no\".<|im_end|>\n<|im_start|>user\n\
                     <Instruct>: Given a web search query, retrieve relevant passages that answer the query\n"
                .into(),
            query: part("<Query>: ", "\n", Truncation::Right, 512),
            document: part("<Document>: ", "", Truncation::Right, 2048),
            instruction: "<|im_end|>\n".into(),
            answer: "<|im_start|>assistant\n<think>\n\n</think>\n\n".into(),
            choices: Choices { positive: "yes".into(), negative: "no".into() },
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
    /// There is no `tokenizer.json`.
    #[error(
        "{dir}: found no tokenizer.json{}\nhint: {}",
        .slow.map(|file| format!(", only a slow tokenizer ({file})")).unwrap_or_default(),
        match .slow {
            Some(_) => "write one with transformers: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)",
            None => "fetch it from where the model comes from",
        }
    )]
    NoTokenizer {
        /// The model's folder.
        dir: PathBuf,
        /// What a tokenizer in Python or SentencePiece has left there.
        slow: Option<&'static str>,
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
    /// A text of which nothing is read.
    #[error("prompt: `{what}` has max_tokens 0; at least 1 token of each text has to be read")]
    NoTokens {
        /// `document` or `query`.
        what: &'static str,
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

/// A token of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// The bytes of the text that it stands for.
    pub bytes: Range<usize>,
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
        for (what, part) in [("document", &template.document), ("query", &template.query)] {
            if part.max_tokens == 0 {
                return Err(PromptError::NoTokens { what });
            }
        }
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

    /// A text's own tokens, before anything is cut off and without the prompt.
    pub fn tokens(&self, text: &str) -> Result<Vec<Token>, PromptError> {
        let kept = text.trim();
        let before = text.len() - text.trim_start().len();
        let encoding = self.tokenizer.encode(kept, false).map_err(|error| refused(text, &error))?;
        let token =
            |(&id, &(start, end)): (&u32, &(usize, usize))| Token { id, bytes: before + start..before + end };
        Ok(encoding.get_ids().iter().zip(encoding.get_offsets()).map(token).collect())
    }

    /// Most tokens that any pass of the student can have.
    pub fn max_pass_tokens(&self) -> usize {
        let around = |part: &Part, (before, after): &(Vec<u32>, Vec<u32>)| {
            part.max_tokens.saturating_add(before.len() + after.len())
        };
        let document = around(&self.template.document, &self.document);
        let query = around(&self.template.query, &self.query).saturating_add(self.ending.len());
        document.max(query).saturating_add(self.prefix.len())
    }

    /// Most tokens that the teacher's prompt of a pair can have.
    pub fn max_pair_tokens(&self) -> usize {
        let (document, query) = (&self.template.document, &self.template.query);
        let around = self.document.0.len() + self.document.1.len() + self.query.0.len() + self.query.1.len();
        let texts = document.max_tokens.saturating_add(query.max_tokens);
        texts.saturating_add(self.prefix.len() + around + self.ending.len())
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

    /// Whether a student can be made of this prompt: its pieces must be the teacher's.
    pub fn has_pieces(&self) -> bool {
        !self.template.document.joined && !self.template.query.joined
    }

    /// What the teacher reads first.
    pub fn order(&self) -> Order {
        self.template.order
    }

    /// A pair in the order in which the teacher reads it.
    pub fn in_order<T>(&self, document: T, query: T) -> [T; 2] {
        match self.template.order {
            Order::DocumentFirst => [document, query],
            Order::QueryFirst => [query, document],
        }
    }

    /// `[prefix][first]`: the cached beginning of the teacher's prompts, a document's (or, query first, a query's).
    pub fn read_pass(&self, first: &str) -> Result<Encoded, PromptError> {
        match self.template.order {
            Order::DocumentFirst => self.document_pass(first),
            Order::QueryFirst => self.query_pass(first),
        }
    }

    /// Tokens before the first text in every prompt of the teacher.
    pub fn before_read(&self) -> Vec<u32> {
        let [query, document] = self.before_texts();
        let first = match self.template.order {
            Order::DocumentFirst => (document, self.template.document.joined),
            Order::QueryFirst => (query, self.template.query.joined),
        };
        // Joined, only the prefix is sure to be the same whatever the text.
        if first.1 { self.prefix.clone() } else { first.0 }
    }

    /// `[second][instruction][answer]`: what follows a cached pass in the teacher's prompt, a query (or a document).
    pub fn continuation(&self, second: &str) -> Result<Vec<u32>, PromptError> {
        let (document, query) = (&self.template.document, &self.template.query);
        let mut piece = match self.template.order {
            Order::DocumentFirst => self.pass(Vec::new(), "query", query, &self.query, second)?,
            Order::QueryFirst => self.pass(Vec::new(), "document", document, &self.document, second)?,
        };
        piece.ids.extend(&self.ending);
        Ok(piece.ids)
    }

    /// The teacher's whole prompt for one pair.
    pub fn pair(&self, document: &str, query: &str) -> Result<Vec<u32>, PromptError> {
        let [first, second] = self.in_order(document, query);
        let mut ids = self.read_pass(first)?.ids;
        ids.extend(self.continuation(second)?);
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
        if part.joined {
            return self.joined_pass(ids, what, part, text.trim());
        }
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

    fn joined_pass(
        &self,
        mut ids: Vec<u32>,
        what: &'static str,
        part: &Part,
        text: &str,
    ) -> Result<Encoded, PromptError> {
        let encode = |text: &str| self.tokenizer.encode(text, false).map_err(|error| refused(text, &error));
        let alone = encode(text)?;
        let offsets = alone.get_offsets();
        let most = part.max_tokens.max(1);
        let cut = offsets.len().saturating_sub(most);
        let kept = match (offsets.first(), offsets.last(), part.truncate) {
            (None, ..) | (_, None, _) => return Err(PromptError::Empty { what }),
            (Some(first), Some(last), _) if cut == 0 => first.0..last.1,
            (_, Some(last), Truncation::Left) => offsets[cut].0..last.1,
            (Some(first), _, Truncation::Right) => first.0..offsets[most - 1].1,
        };
        // A token's border can lie within a character.
        let kept = text.get(kept).unwrap_or(text);
        let whole = encode(&format!("{}{kept}{}", part.before, part.after))?;
        let (start, end) = (part.before.len(), part.before.len() + kept.len());
        let of_text = |(from, to): &(usize, usize)| *to > start && *from < end;
        let places = || whole.get_offsets().iter().enumerate().filter(|(_, offset)| of_text(offset));
        let first = places().next().map_or(0, |(place, _)| place);
        let behind = places().next_back().map_or(first, |(place, _)| place + 1);
        let before = ids.len();
        ids.extend(whole.get_ids());
        Ok(Encoded { ids, text: before + first..before + behind })
    }
}

/// Files of the tokenizers that transformers calls slow, from which it makes a `tokenizer.json`.
const SLOW_TOKENIZERS: &[&str] = &[
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "vocab.txt",
];

/// Reads `tokenizer.json` of a directory.
pub fn open_tokenizer(dir: &Path) -> Result<Tokenizer, PromptError> {
    let file = dir.join("tokenizer.json");
    if !files::present(&file)? && !file.exists() {
        let slow = SLOW_TOKENIZERS.iter().copied().find(|name| dir.join(name).exists());
        return Err(PromptError::NoTokenizer { dir: dir.to_owned(), slow });
    }
    Tokenizer::from_file(&file).map_err(|e| PromptError::Tokenizer { file, message: e.to_string() })
}

fn encode(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>, PromptError> {
    let encoding = tokenizer.encode_fast(text, false).map_err(|error| refused(text, &error))?;
    Ok(encoding.get_ids().to_vec())
}

fn refused(text: &str, error: &tokenizers::Error) -> PromptError {
    PromptError::Text { text: text.chars().take(40).collect(), message: error.to_string() }
}
