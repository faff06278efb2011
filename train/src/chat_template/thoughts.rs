//! Models that think before they answer: where, behind the generation prompt, does the answer begin?
//!
//! The choice is read off one position. Inside a thought, or before one that the model would begin, neither word is what comes
//! next, and the scores are noise. So the thought is closed, empty, as the template itself writes one where it does.

/// What a template makes of a conversation, each text from behind the question on.
pub(super) struct Rendered<'a> {
    /// With a generation prompt.
    pub asked: &'a str,
    /// Up to the reply of a last turn.
    pub before_reply: &'a str,
    /// Up to the thought of such a turn, and between thought and reply, where the template shows thoughts.
    pub around_thought: Option<(&'a str, &'a str)>,
}

/// What is missing behind the generation prompt before the answer begins. `source` is the template, without comments.
pub(super) fn missing(rendered: &Rendered, source: &str) -> String {
    let Rendered { asked, before_reply, around_thought } = *rendered;
    let last = tags(asked).last();
    let closed = last.as_ref().is_some_and(|tag| tag.closes);
    // The template's own way to begin a reply, past the generation prompt: an empty thought, a channel. Blanks alone count
    // only behind a thought; elsewhere tokenizers put them into the answer's first token.
    if let Some(rest) = before_reply.strip_prefix(asked)
        && (closed || !rest.trim().is_empty())
    {
        return rest.to_owned();
    }
    if closed {
        return String::new();
    }
    if let Some(tag) = last {
        return around_thought.map_or_else(|| tag.closing(asked), |(_, after)| after.to_owned());
    }
    // A thought without marks, begun in words.
    let begun = asked.strip_prefix(before_reply).is_some_and(|rest| !rest.trim().is_empty());
    if let (true, Some((_, after))) = (begun, around_thought) {
        return after.to_owned();
    }
    // The generation prompt leaves it to the model. One whose earlier thoughts are taken out begins with a new one.
    if let Some((before, after)) = around_thought
        && let Some(opening) = before.strip_prefix(asked)
        && tags(opening).last().is_some_and(|tag| !tag.closes)
    {
        return format!("{opening}{after}");
    }
    let taken_out = tags(source).find(|tag| tag.closes && tag.text.starts_with("</"));
    taken_out
        .map_or_else(String::new, |tag| format!("{}\n\n{}\n\n", tag.text.replacen("</", "<", 1), tag.text))
}

/// Whether a text ends behind a thought.
pub(super) fn ends_behind_thought(text: &str) -> bool {
    tags(text).last().is_some_and(|tag| tag.closes)
}

/// A mark that begins or ends a thought: `<think>`, `</seed:think>`, `[THINK]`, `<|begin_of_thought|>`.
struct Tag<'a> {
    text: &'a str,
    closes: bool,
}

impl Tag<'_> {
    /// The end of the thought that this mark began, after `before`.
    fn closing(&self, before: &str) -> String {
        let pairs = [("begin", "end"), ("BEGIN", "END"), ("start", "end"), ("START", "END")];
        let spelled = pairs.iter().find(|(begin, _)| self.text.contains(begin));
        let mark = match spelled {
            Some((begin, end)) => self.text.replacen(begin, end, 1),
            None => format!("{}/{}", &self.text[..1], &self.text[1..]),
        };
        // Marks on lines of their own, or none of them.
        if before.ends_with('\n') { format!("\n{mark}\n\n") } else { mark }
    }
}

fn tags(text: &str) -> impl DoubleEndedIterator<Item = Tag<'_>> {
    let found: Vec<Tag> = text
        .char_indices()
        .filter_map(|(at, open)| {
            let close = match open {
                '<' => '>',
                '[' => ']',
                _ => return None,
            };
            let inner = &text[at + 1..];
            let end = inner.find(close).filter(|end| *end < 40)?;
            let name = inner[..end].to_ascii_lowercase();
            let plain = name.chars().all(|c| c.is_alphanumeric() || "/|:_-".contains(c));
            let thought = ["think", "thought", "reason"].iter().any(|word| name.contains(word));
            let closes = name.starts_with('/') || name.starts_with("|/") || name.contains("end");
            (plain && thought).then(|| Tag { text: &text[at..at + 1 + end + 1], closes })
        })
        .collect();
    found.into_iter()
}
