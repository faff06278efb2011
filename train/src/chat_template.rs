//! The turns that a model was trained to speak in, read off its chat template (Hugging Face's `chat_template`, Jinja).
//!
//! A template is a program, not a form: it is rendered on a made-up conversation, and what stands around the last question
//! is taken. System turns that a template puts in by itself are left out: every document and every query would pay for them.

use anyhow::{Context, Result, bail};
use minijinja::{Environment, context};
use models::files::read_json;
use models::prompt::PromptTemplate;
use serde_json::{Value, json};
use std::path::Path;

/// What a user's turn looks like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turns {
    /// Before the user's text, the begin-of-text token included.
    pub user: String,
    /// After it.
    pub end: String,
    /// Before the model's answer; may be empty.
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
const REPLY: &str = "REPLY1";
const LAST: &str = "QUESTION2";

impl Turns {
    /// From a model directory; none if it has no chat template.
    pub fn open(dir: &Path) -> Result<Option<Self>> {
        let file = dir.join("tokenizer_config.json");
        let config: Value = if file.exists() { read_json(&file)? } else { Value::Null };
        let jinja = dir.join("chat_template.jinja");
        let template = match (jinja.exists(), &config["chat_template"]) {
            (true, _) => {
                std::fs::read_to_string(&jinja).with_context(|| format!("cannot read {}", jinja.display()))?
            }
            (false, Value::String(template)) => template.clone(),
            // Several templates by name: the one for plain conversation.
            (false, Value::Array(named)) => {
                let default = named.iter().find(|one| one["name"] == "default").or(named.first());
                match default.and_then(|one| one["template"].as_str()) {
                    Some(template) => template.to_owned(),
                    None => return Ok(None),
                }
            }
            _ => return Ok(None),
        };
        let turns = Self::of(&template, &token(&config, "bos_token"), &token(&config, "eos_token"));
        turns.map(Some).with_context(|| {
            format!("{}: the chat template cannot be read; give the prompt with --prompt", dir.display())
        })
    }

    fn of(template: &str, bos: &str, eos: &str) -> Result<Self> {
        let mut environment = Environment::new();
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.add_function("raise_exception", |text: String| -> Result<String, minijinja::Error> {
            Err(minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, text))
        });
        environment.add_function("strftime_now", |_: String| "01 January 2025".to_owned());
        let say = |role: &str, content: &str| json!({ "role": role, "content": content });
        let render = |messages: &[Value], add_generation_prompt: bool| -> Result<String> {
            let context = context! { messages, add_generation_prompt, bos_token => bos, eos_token => eos };
            Ok(environment.render_str(template, context)?)
        };
        let before = [say("user", QUESTION), say("assistant", REPLY)];
        let all = [before[0].clone(), before[1].clone(), say("user", LAST)];
        let (whole, asked) = (render(&all, false)?, render(&all, true)?);
        let replied = render(&before, false)?;
        let (_, after_reply) = replied.split_once(REPLY).context("it leaves the assistant's text out")?;
        let (_, between) = whole.split_once(REPLY).context("it leaves the assistant's text out")?;
        let (between, end) = between.split_once(LAST).context("it leaves the user's text out")?;
        let header = between.strip_prefix(after_reply).unwrap_or(between);
        let Some(assistant) = asked.strip_prefix(&whole) else {
            bail!("with a generation prompt it makes another text");
        };
        let begins = !bos.is_empty() && whole.starts_with(bos) && !header.starts_with(bos);
        let user = if begins { format!("{bos}{header}") } else { header.to_owned() };
        Ok(Self { user, end: end.to_owned(), assistant: assistant.to_owned() })
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

/// A special token of `tokenizer_config.json`: a string or an object.
fn token(config: &Value, name: &str) -> String {
    let token = &config[name];
    token.as_str().or_else(|| token["content"].as_str()).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A model asked in another model's turns still answers, only worse, and nobody would see why.
    #[test]
    fn turns_are_those_of_the_template() {
        let smollm = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n\
                      You are SmolLM<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + \
                      '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
        let turns = Turns::of(smollm, "<|im_start|>", "<|im_end|>").unwrap();
        assert_eq!(turns, Turns::default());
        assert_eq!(turns.prompt(), PromptTemplate::default());

        let mistral = "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' + \
                       message['content'].strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ message['content'] + \
                       eos_token }}{% else %}{{ raise_exception('no') }}{% endif %}{% endfor %}";
        let turns = Turns::of(mistral, "<s>", "</s>").unwrap();
        let expected = Turns { user: "<s>[INST] ".into(), end: " [/INST]".into(), assistant: String::new() };
        assert_eq!(turns, expected);
        assert!(turns.prompt().instruction.ends_with("Yes or No?") && turns.prompt().answer == " [/INST]");

        let llama = "{{- bos_token }}{%- for message in messages %}{{- '<|start_header_id|>' + message['role'] + \
                     '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}{%- endfor %}{%- if \
                     add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}";
        let turns = Turns::of(llama, "<|begin_of_text|>", "<|eot_id|>").unwrap();
        assert_eq!(turns.user, "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n");
        assert_eq!((turns.end.as_str(), turns.assistant.len()), ("<|eot_id|>", 47));
        assert!(Turns::of("{{ messages[0] ", "", "").is_err() && Turns::of("hello", "", "").is_err());
    }
}
