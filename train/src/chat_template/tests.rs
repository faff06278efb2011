//! Templates by the rules of real ones.

use super::*;

fn of(template: &str, bos: &str, eos: &str) -> Result<Turns> {
    Turns::of(template, Map::from_iter([("bos_token".into(), bos.into()), ("eos_token".into(), eos.into())]))
}

/// What the answer follows on.
fn slot(template: &str) -> String {
    of(template, "<s>", "</s>").unwrap_or_else(|error| panic!("{error:#}: {template}")).prompt().answer
}

/// A model asked in another model's turns still answers, only worse, and nobody would see why.
#[test]
fn turns_are_those_of_the_template() {
    let smollm = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n\
                  You are SmolLM<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + \
                  '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    let turns = of(smollm, "<|im_start|>", "<|im_end|>").unwrap();
    assert_eq!(turns, Turns::default());
    assert_eq!(turns.prompt(), PromptTemplate::default());

    let mistral = "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' + \
                   message['content'].strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ message['content'] + \
                   eos_token }}{% else %}{{ raise_exception('no') }}{% endif %}{% endfor %}";
    let turns = of(mistral, "<s>", "</s>").unwrap();
    let expected = Turns { user: "<s>[INST] ".into(), end: " [/INST]".into(), assistant: String::new() };
    assert_eq!(turns, expected);
    assert!(turns.prompt().instruction.ends_with("Yes or No?") && turns.prompt().answer == " [/INST]");

    let llama = "{{- bos_token }}{%- for message in messages %}{{- '<|start_header_id|>' + message['role'] + \
                 '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}{%- endfor %}{%- if \
                 add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}";
    let turns = of(llama, "<|begin_of_text|>", "<|eot_id|>").unwrap();
    assert_eq!(turns.user, "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n");
    assert_eq!((turns.end.as_str(), turns.assistant.len()), ("<|eot_id|>", 47));
    assert!(of("{{ messages[0] ", "", "").is_err() && of("hello", "", "").is_err());
}

/// ChatML turns with `more` in the loop's place for the model's turns, and `ask` as generation prompt.
fn chatml(model: &str, ask: &str) -> String {
    let turn = "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}";
    format!(
        "{{% for m in messages %}}{{% if m.role == 'assistant' %}}{model}{{% else %}}{turn}{{% endif %}}{{% endfor %}}\
         {{% if add_generation_prompt %}}{ask}{{% endif %}}"
    )
}

const PLAIN: &str = "{{ '<|im_start|>assistant\n' + m.content + '<|im_end|>\n' }}";
const ASK: &str = "{{ '<|im_start|>assistant\n' }}";

/// Inside a thought, or where the model would begin one, neither word comes next: scores would be noise, and nothing said.
/// Each template follows the rule of a real one, in words of our own.
#[test]
fn the_answer_slot_stands_behind_the_thought() {
    let empty = "<|im_start|>assistant\n<think>\n\n</think>\n\n";
    // Qwen3: the last turn shows a thought, an empty one if need be; a switch puts an empty one into the generation prompt.
    let shown = "{% set t = m.reasoning_content if m.reasoning_content is string else '' %}{% if loop.last %}\
                 {{ '<|im_start|>assistant\n<think>\n' + t + '\n</think>\n\n' + m.content }}{% else %}\
                 {{ '<|im_start|>assistant\n' + m.content.split('</think>')[-1].lstrip('\n') }}{% endif %}{{ '<|im_end|>\n' }}";
    let switch = "{{ '<|im_start|>assistant\n' }}{% if enable_thinking is defined and enable_thinking is false %}\
                  {{ '<think>\n\n</think>\n\n' }}{% endif %}";
    assert_eq!(slot(&chatml(shown, switch)), empty);
    // Qwen3-Thinking: always begun.
    assert_eq!(slot(&chatml(shown, "{{ '<|im_start|>assistant\n<think>\n' }}")), empty);
    // A thinking model without a switch that leaves it to the model to begin.
    assert_eq!(slot(&chatml(shown, ASK)), empty);
    // Qwen3.5 thinks unless told otherwise.
    let on = "{{ '<|im_start|>assistant\n' }}{% if enable_thinking is defined and not enable_thinking %}\
              {{ '<think>\n\n</think>\n\n' }}{% else %}{{ '<think>\n' }}{% endif %}";
    assert_eq!(slot(&chatml(shown, on)), empty);
    // SmolLM3: a mode, marks for training, one line end behind the thought.
    let mode =
        "{% set mode = '/think' if enable_thinking is not defined or enable_thinking else '/no_think' %}";
    let marked = "{% generation %}{% if mode == '/no_think' %}{{ '<|im_start|>assistant\n<think>\n\n</think>\n' + m.content }}\
                  {% else %}{{ '<|im_start|>assistant\n' + m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endgeneration %}";
    let ask = "{% if mode == '/no_think' %}{{ '<|im_start|>assistant\n<think>\n\n</think>\n' }}{% else %}{{ '<|im_start|>assistant\n' }}\
               {% endif %}";
    assert_eq!(
        slot(&(mode.to_owned() + &chatml(marked, ask))),
        "<|im_start|>assistant\n<think>\n\n</think>\n"
    );
    // DeepSeek-R1's distillations: begun, and taken out of earlier turns; older files only take out.
    let taken = "{% set c = m.content %}{% if '</think>' in c %}{% set c = c.split('</think>')[-1] %}{% endif %}\
                 {{ '<|im_start|>assistant\n' + c + '<|im_end|>\n' }}";
    assert_eq!(slot(&chatml(taken, "{{ '<|im_start|>assistant\n<think>\n' }}")), empty);
    assert_eq!(slot(&chatml(taken, ASK)), empty);
    // Nemotron: an empty thought on one line, as in earlier turns; GLM: and the answer on the next.
    let line = "{{ '<|im_start|>assistant\n<think></think>' + m.content + '<|im_end|>\n' }}";
    assert_eq!(slot(&chatml(line, ASK)), "<|im_start|>assistant\n<think></think>");
    let next = "{{ '<|im_start|>assistant\n<think></think>\n' + m.content + '<|im_end|>\n' }}";
    let ask = "{{ '<|im_start|>assistant\n' }}{{ '' if enable_thinking else '<think></think>' }}";
    assert_eq!(slot(&chatml(next, ask)), "<|im_start|>assistant\n<think></think>\n");
    // DeepSeek-V3.1: closed without having been begun, by a switch of another name.
    let bare = "{{ '<|im_start|>assistant\n</think>' + m.content + '<|im_end|>\n' }}";
    let ask = "{{ '<|im_start|>assistant\n' }}{{ '<think>' if thinking is not defined or thinking else '</think>' }}";
    assert_eq!(slot(&chatml(bare, ask)), "<|im_start|>assistant\n</think>");
    // Marks of other words, and a thought that is begun in words.
    for (begin, end) in [
        ("[THINK]", "[/THINK]"),
        ("<seed:think>", "</seed:think>"),
        ("<|begin_of_thought|>", "<|end_of_thought|>"),
        ("<|START_THINKING|>", "<|END_THINKING|>"),
    ] {
        let ask = format!("{{{{ '<|im_start|>assistant\n{begin}' }}}}");
        assert_eq!(slot(&chatml(PLAIN, &ask)), format!("<|im_start|>assistant\n{begin}{end}"));
    }
    let steps = "{{ '<|im_start|>assistant\n' + (m.thinking + '\nAnswer:\n' if m.thinking else '') + m.content + '<|im_end|>\n' }}";
    let ask = "{{ '<|im_start|>assistant\nStep by step:\n' }}";
    assert_eq!(slot(&chatml(steps, ask)), "<|im_start|>assistant\nStep by step:\n\nAnswer:\n");
}

/// A model that does not think must be asked as before: an empty thought would be words that it has never seen.
#[test]
fn models_that_do_not_think_are_asked_as_they_were() {
    let header = "<|im_start|>assistant\n";
    assert_eq!(slot(&chatml(PLAIN, ASK)), header);
    assert!(!of(&chatml(PLAIN, ASK), "", "").unwrap().skips_a_thought());
    assert!(of(&chatml(PLAIN, "{{ '<think>\n' }}"), "", "").unwrap().skips_a_thought());
    // Words in a comment are no rule.
    assert_eq!(slot(&("{# no </think> here #}".to_owned() + &chatml(PLAIN, ASK))), header);
    // A blank before the reply belongs to the answer's first token.
    let vicuna = "{% for m in messages %}{{ ('USER: ' if m.role == 'user' else ' ASSISTANT: ') + m.content }}{% endfor %}\
                  {% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}";
    assert_eq!(slot(vicuna), " ASSISTANT:");
    // Phi-3 closes what asks for no answer with the end of text.
    let phi = "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}\
               {{ '<|assistant|>\n' if add_generation_prompt else eos_token }}";
    let turns = of(phi, "<s>", "</s>").unwrap();
    assert_eq!(
        (turns.user.as_str(), turns.end.as_str(), slot(phi)),
        ("<|user|>\n", "<|end|>\n", "<|assistant|>\n".into())
    );
    // A channel for the answer, where the model's own turns have one.
    let channel = "{{ '<|im_start|>assistant\n<|answer|>' + m.content + '<|im_end|>\n' }}";
    assert_eq!(slot(&chatml(channel, ASK)), "<|im_start|>assistant\n<|answer|>");
}

/// Templates of models that also see pictures take apart what they are given; the text must still be found in it.
#[test]
fn texts_in_parts_are_read_too() {
    let parts = "{% for m in messages %}<{{ m.role }}>{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}\
                 {% endfor %};{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";
    let expected = Turns { user: "<user>".into(), end: ";".into(), assistant: "<assistant>".into() };
    assert_eq!(of(parts, "", "").unwrap(), expected);
}

/// A folder's template may stand in one of three places, and its special tokens in two.
#[test]
fn a_template_is_found_where_transformers_looks() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    assert_eq!(Turns::open(dir.path()).unwrap(), None);
    let template = |mark: &str| {
        format!(
            "{{{{ bos_token }}}}{{% for m in messages %}}{mark}{{{{ m.content }}}}{{{{ eos_token }}}}{{% endfor %}}"
        )
    };
    write("chat_template.jinja", &template("~"));
    write("special_tokens_map.json", r#"{"bos_token": {"content": "<b>"}, "eos_token": "<e>"}"#);
    assert_eq!(Turns::open(dir.path()).unwrap().unwrap().user, "<b>~");
    let named = json!({ "chat_template": [
        {"name": "tool_use", "template": "no"}, {"name": "default", "template": template("+")}], "eos_token": "<e>" });
    write("tokenizer_config.json", &named.to_string());
    assert_eq!(Turns::open(dir.path()).unwrap().unwrap().user, "<b>~", "the file of its own counts");
    std::fs::remove_file(dir.path().join("chat_template.jinja")).unwrap();
    let turns = Turns::open(dir.path()).unwrap().unwrap();
    assert_eq!((turns.user.as_str(), turns.end.as_str()), ("<b>+", "<e>"));
}
