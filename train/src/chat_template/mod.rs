//! The turns that a model was trained to speak in, read off its chat template (Hugging Face's `chat_template`, Jinja).
//!
//! A template is a program, not a form: it is rendered on a made-up conversation, and what stands around the last question
//! is taken. System turns that a template puts in by itself are left out: every document and every query would pay for them.
//! `environment` is the Jinja that templates are written for, `thoughts` finds where the answer of a model begins that thinks.

mod dialect;
mod environment;
#[cfg(test)]
mod tests;
mod thoughts;

use anyhow::{Context, Result};
use environment::Template;
use models::files::{present, read_json};
use models::prompt::PromptTemplate;
use serde_json::{Map, Value, json};
use std::path::Path;
use thoughts::Rendered;

/// What a user's turn looks like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turns {
    /// Before the user's text, the begin-of-text token included.
    pub user: String,
    /// After it.
    pub end: String,
    /// Before the model's answer, an empty thought included; may be empty.
    pub assistant: String,
}

impl Default for Turns {
    /// ChatML, as SmolLM2 and Qwen have it.
    fn default() -> Self {
        Self {
            user: "<|im_start|>user\n".into(),
            end: "<|im_end|>\n".into(),
            assistant: "<|im_start|>assistant\n".into(),
        }
    }
}

/// Texts that no template holds, so that they are found again in what it makes.
const QUESTION: &str = "QUESTION1";
const THOUGHT: &str = "THOUGHT1";
const REPLY: &str = "REPLY1";
const LAST: &str = "QUESTION2";

/// Special tokens that a template may name.
const SPECIAL_TOKENS: &[&str] =
    &["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

impl Turns {
    /// From a model's folder; none if it has no chat template.
    pub fn open(dir: &Path) -> Result<Option<Self>> {
        let read = |name: &str| -> Result<Value> {
            let file = dir.join(name);
            Ok(if present(&file)? { read_json(&file)? } else { Value::Null })
        };
        let mut settings = read("tokenizer_config.json")?;
        let jinja = dir.join("chat_template.jinja");
        if present(&jinja)? {
            let template = std::fs::read_to_string(&jinja)
                .with_context(|| format!("cannot read {}", jinja.display()))?;
            if !settings.is_object() {
                settings = json!({});
            }
            settings["chat_template"] = template.into();
        }
        Self::of_settings(&settings, &read("special_tokens_map.json")?, dir)
    }

    /// From what `tokenizer_config.json` holds, and special tokens that it may leave to another file; `from` names the model
    /// in errors.
    pub fn of_settings(settings: &Value, more_tokens: &Value, from: &Path) -> Result<Option<Self>> {
        let template = match &settings["chat_template"] {
            Value::String(template) => Some(template.as_str()),
            // Several templates by name: the one for plain conversation.
            Value::Array(named) => {
                let default = named.iter().find(|one| one["name"] == "default").or(named.first());
                default.and_then(|one| one["template"].as_str())
            }
            _ => None,
        };
        let Some(template) = template else { return Ok(None) };
        let token = |name: &&str| {
            let token = token(settings, name).or_else(|| token(more_tokens, name))?;
            Some(((*name).to_owned(), Value::from(token)))
        };
        Self::of(template, SPECIAL_TOKENS.iter().filter_map(token).collect()).map(Some).with_context(|| {
            format!("{}: the chat template cannot be read; give the prompt with --prompt", from.display())
        })
    }

    fn of(source: &str, special_tokens: Map<String, Value>) -> Result<Self> {
        let template = Template::parse(source)?;
        let texts = Self::rendered(source, &template, &special_tokens, |content| json!(content));
        // Templates of models that also see pictures read a text as a list of one part.
        let parts = |content: &str| json!([{ "type": "text", "text": content }]);
        texts.or_else(|error| Self::rendered(source, &template, &special_tokens, parts).map_err(|_| error))
    }

    fn rendered(
        source: &str,
        template: &Template,
        special_tokens: &Map<String, Value>,
        content: impl Fn(&str) -> Value,
    ) -> Result<Self> {
        let render = |messages: &[Value], add_generation_prompt: bool, thinking: bool| -> Result<String> {
            let mut context = special_tokens.clone();
            let given = json!({
                "messages": messages, "tools": null, "documents": null, "add_generation_prompt": add_generation_prompt,
                // The switches that templates have for it: the choice is to be the first word.
                "enable_thinking": thinking, "thinking": thinking,
            });
            context.extend(given.as_object().cloned().unwrap_or_default());
            Ok(template.render(minijinja::Value::from_serialize(&context))?)
        };
        let say = |role: &str, text: &str| json!({ "role": role, "content": content(text) });
        let before = [say("user", QUESTION), say("assistant", REPLY)];
        let all = [before[0].clone(), before[1].clone(), say("user", LAST)];
        let (whole, asked) = (render(&all, false, false)?, render(&all, true, false)?);
        let replied = render(&before, false, false)?;
        let (before_reply, after_reply) =
            replied.split_once(REPLY).context("it leaves the assistant's text out")?;
        let (_, between) = whole.split_once(REPLY).context("it leaves the assistant's text out")?;
        let (between, end) = between.split_once(LAST).context("it leaves the user's text out")?;
        let (_, asked) = asked.split_once(LAST).context("it leaves the user's text out")?;
        let token = |name: &str| special_tokens.get(name).and_then(Value::as_str).unwrap_or_default();
        // Some close a conversation that asks for no answer with the end of text.
        let header =
            with_and_without(after_reply, token("eos_token")).find_map(|after| between.strip_prefix(after));
        let header = header.unwrap_or(between);
        let (end, assistant) = with_and_without(end, token("eos_token"))
            .find_map(|end| asked.strip_prefix(end).map(|assistant| (end, assistant)))
            // Turns of another kind with a generation prompt: the whole is what the answer follows on.
            .unwrap_or((asked, ""));
        let mut assistant = assistant.to_owned();
        if let (false, Some((_, before_reply))) = (assistant.is_empty(), before_reply.split_once(QUESTION)) {
            let thoughtful = json!({ "role": "assistant", "content": content(REPLY), "reasoning_content": THOUGHT,
                "thinking": THOUGHT, "reasoning": THOUGHT });
            // Many templates have no place for thoughts, and some refuse them.
            let thought = render(&[before[0].clone(), thoughtful], false, true).unwrap_or_default();
            let around_thought = thought.split_once(QUESTION).and_then(|(_, turn)| turn.split_once(THOUGHT));
            let around_thought =
                around_thought.and_then(|(before, rest)| Some((before, rest.split_once(REPLY)?.0)));
            let rendered = Rendered { asked, before_reply, around_thought };
            assistant += &thoughts::missing(&rendered, &dialect::without_comments(source));
        }
        let bos = token("bos_token");
        let begins = !bos.is_empty() && whole.starts_with(bos) && !header.starts_with(bos);
        let user = if begins { format!("{bos}{header}") } else { header.to_owned() };
        Ok(Self { user, end: end.to_owned(), assistant })
    }

    /// Whether the answer stands behind a thought, left empty, of a model that thinks before it answers.
    pub fn skips_a_thought(&self) -> bool {
        thoughts::ends_behind_thought(&self.assistant)
    }

    /// RaHoRe's prompt in these turns.
    pub fn prompt(&self) -> PromptTemplate {
        let default = PromptTemplate::default();
        let chatml = Self::default();
        let question = default.instruction.trim_end_matches(&chatml.end).to_owned();
        let (instruction, answer) = match self.assistant.is_empty() {
            // No answer header: the end of the question is what the answer follows on.
            true => (question, self.end.clone()),
            false => (question + &self.end, self.assistant.clone()),
        };
        PromptTemplate { prefix: self.user.clone(), instruction, answer, ..default }
    }
}

fn with_and_without<'a>(text: &'a str, eos: &str) -> impl Iterator<Item = &'a str> {
    [Some(text), text.strip_suffix(eos)].into_iter().flatten()
}

/// A special token of `tokenizer_config.json`: a string or an object.
fn token(config: &Value, name: &str) -> Option<String> {
    let token = &config[name];
    token.as_str().or_else(|| token["content"].as_str()).map(str::to_owned)
}
