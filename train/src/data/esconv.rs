//! ESConv (Liu et al. 2021, <https://arxiv.org/abs/2106.01144>): conversations of a help-seeker and a supporter become
//! queries, the support strategies documents. Query = situation and the last turns before a supporter's utterance,
//! relevant = the strategy of that utterance.

use super::splits::Shares;
use super::text::fingerprint;
use super::writer::{BeirWriter, Judgements, Summary};
use anyhow::{Context, Result, anyhow, bail};
use models::beir::{Document, Query};
use serde::Deserialize;
use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::Path;

/// The strategies of ESConv's own list, described in our words. `Questions` and `Other` are their other spellings.
const STRATEGIES: [(&str, &str); 8] = [
    (
        "Question",
        "Ask the seeker about what happened or how it feels, so that the problem becomes clear to both.",
    ),
    (
        "Restatement or Paraphrasing",
        "Repeat what the seeker said in fewer or plainer words, so that they can look at it anew.",
    ),
    (
        "Reflection of feelings",
        "Put into words what the seeker seems to feel, so that they know they are understood.",
    ),
    (
        "Self-disclosure",
        "Tell of something similar in one's own life, or of one's own feelings, to be near the seeker.",
    ),
    (
        "Affirmation and Reassurance",
        "Praise what the seeker does well and is able to do, and give them courage.",
    ),
    ("Providing Suggestions", "Propose something that the seeker could do or change, without ordering it."),
    ("Information", "Give facts, resources or explanations that help the seeker with the problem."),
    ("Others", "Greet, thank, say goodbye or keep the talk going, where no other kind of support fits."),
];

/// One conversation; what else the file says of it is not used.
#[derive(Debug, Deserialize)]
struct Conversation {
    #[serde(default)]
    situation: String,
    dialog: Vec<Utterance>,
}

#[derive(Debug, Deserialize)]
struct Utterance {
    speaker: Speaker,
    #[serde(default)]
    annotation: Annotation,
    content: String,
}

/// `speaker` and `listener` are the names in ESConv's file of failed conversations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Speaker {
    #[serde(alias = "speaker")]
    Seeker,
    #[serde(alias = "listener")]
    Supporter,
}

#[derive(Debug, Default, Deserialize)]
struct Annotation {
    strategy: Option<String>,
}

/// What an import made of the file.
#[derive(Debug)]
pub struct Imported {
    /// Counts.
    pub summary: Summary,
    /// Supporter's utterances whose context has the words of an earlier one; they are left out.
    pub repeated: usize,
    /// Strategies that ESConv does not describe; their documents have a title only.
    pub undescribed: Vec<String>,
}

/// Writes the folder; splits are drawn by conversation. A query shows the last `turns` turns, all for 0.
pub fn import(from: &Path, out: &Path, turns: usize, shares: Shares, seed: u64) -> Result<Imported> {
    let text = fs::read_to_string(from).with_context(|| format!("cannot read {}", from.display()))?;
    let conversations: Vec<Conversation> = serde_json::from_str(&text).map_err(|error| {
        anyhow!("{}:{}: not a list of ESConv conversations: {error}", from.display(), error.line())
    })?;
    let split_of = shares.assign(conversations.len(), "conversations", seed)?;
    let mut writer = BeirWriter::create(out)?;
    for (title, text) in STRATEGIES {
        writer.document(&strategy(title, text))?;
    }
    let (mut seen, mut repeated, mut undescribed) = (HashSet::new(), 0, Vec::new());
    let mut splits: BTreeMap<String, Judgements> = BTreeMap::new();
    for (number, conversation) in conversations.iter().enumerate() {
        for asked in questions(conversation, turns) {
            // One context under two strategies or in two splits would be a leak, or a query with a wrong answer.
            if !seen.insert(fingerprint(&asked.text)) {
                repeated += 1;
                continue;
            }
            let document = strategy(canonical(asked.strategy), "");
            let (relevant, new) = writer.document(&document)?;
            if new {
                undescribed.push(document.title);
            }
            let id = format!("c{}-u{}", number + 1, asked.utterance);
            let (query, _) = writer.query(&Query { id, text: asked.text })?;
            splits.entry(split_of[number].to_owned()).or_default().push(query, relevant, 1);
        }
    }
    for split in split_of {
        if !splits.contains_key(split) {
            bail!(
                "{}: no conversation of the {split} split has a supporter's utterance with a strategy after the \
                 seeker has spoken",
                from.display()
            );
        }
    }
    Ok(Imported { summary: writer.finish(splits)?, repeated, undescribed })
}

/// A moment at which the supporter has to choose.
struct Asked<'a> {
    /// Number of the supporter's utterance, from 1.
    utterance: usize,
    text: String,
    strategy: &'a str,
}

fn questions(conversation: &Conversation, turns: usize) -> Vec<Asked<'_>> {
    let mut asked = Vec::new();
    // Utterances of one person in a row are one turn.
    let mut said: Vec<(Speaker, String)> = Vec::new();
    for (i, utterance) in conversation.dialog.iter().enumerate() {
        let strategy =
            utterance.annotation.strategy.as_deref().map(str::trim).filter(|name| !name.is_empty());
        let spoken = said.iter().any(|(speaker, _)| *speaker == Speaker::Seeker);
        if let (Speaker::Supporter, Some(strategy), true) = (utterance.speaker, strategy, spoken) {
            let text = context(&conversation.situation, &said, turns);
            asked.push(Asked { utterance: i + 1, text, strategy });
        }
        let content = single_spaced(&utterance.content);
        match said.last_mut() {
            _ if content.is_empty() => {}
            Some((speaker, turn)) if *speaker == utterance.speaker => *turn += &format!(" {content}"),
            _ => said.push((utterance.speaker, content)),
        }
    }
    asked
}

fn context(situation: &str, said: &[(Speaker, String)], turns: usize) -> String {
    let first = if turns == 0 { 0 } else { said.len().saturating_sub(turns) };
    let situation = single_spaced(situation);
    let mut lines = Vec::new();
    if !situation.is_empty() {
        lines.push(format!("Situation: {situation}"));
    }
    lines.extend(said[first..].iter().map(|(speaker, turn)| match speaker {
        Speaker::Seeker => format!("Seeker: {turn}"),
        Speaker::Supporter => format!("Supporter: {turn}"),
    }));
    lines.join("\n")
}

fn single_spaced(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// ESConv's spelling of a strategy, or the name as it is.
fn canonical(name: &str) -> &str {
    let name = match slug(name).as_str() {
        "questions" => "Question",
        "other" => "Others",
        _ => name,
    };
    STRATEGIES.iter().find(|(title, _)| slug(title) == slug(name)).map_or(name, |(title, _)| title)
}

fn strategy(title: &str, text: &str) -> Document {
    Document { id: slug(title), title: title.to_owned(), text: text.to_owned() }
}

/// `Affirmation and Reassurance` -> `affirmation-and-reassurance`.
fn slug(title: &str) -> String {
    let words = title.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    words.map(str::to_lowercase).collect::<Vec<_>>().join("-")
}

#[cfg(test)]
mod tests {
    use super::*;
    use models::beir::{BeirData, Purpose};
    use serde_json::{Value, json};

    fn conversation(i: usize) -> Value {
        let turn = |speaker: &str, strategy: Option<&str>, content: String| {
            let annotation = strategy.map_or(json!({}), |strategy| json!({ "strategy": strategy }));
            json!({ "speaker": speaker, "annotation": annotation, "content": content })
        };
        json!({
            "experience_type": "Previous Experience", "emotion_type": "anxiety", "problem_type": "job crisis",
            "situation": format!("I lost job  {i}.\n"), "survey_score": {},
            "dialog": [
                turn("supporter", Some("Question"), "Hello, how are you?".into()),
                turn("seeker", None, format!("Bad, {i}\n")),
                turn("seeker", None, "very bad.".into()),
                turn("supporter", Some("Reflection of feelings"), "That hurts.".into()),
                turn("supporter", Some("Questions"), "What happened?".into()),
                turn("seeker", None, "They closed.".into()),
                turn("supporter", Some("Other"), "I see.".into()),
            ],
        })
    }

    fn imported(file: &Value, shares: [f64; 2], turns: usize) -> (tempfile::TempDir, Result<Imported>) {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("ESConv.json");
        fs::write(&from, serde_json::to_string_pretty(file).unwrap()).unwrap();
        let shares = Shares::new(shares[0], shares[1]).unwrap();
        let made = import(&from, &dir.path().join("out"), turns, shares, 2);
        (dir, made)
    }

    /// A context that shows the answer, or too little of the talk, makes the hardest of our tasks trivial or hopeless.
    #[test]
    fn a_query_is_what_was_said_before_the_strategy() {
        let file = json!([conversation(1)]);
        let (dir, made) = imported(&file, [0.0, 0.0], 2);
        assert_eq!(made.unwrap().summary.splits, [("train".to_owned(), [3, 3, 0])]);
        let data = BeirData::open(&dir.path().join("out")).unwrap();
        assert_eq!(data.documents.len(), 8);
        let texts: Vec<(&str, &str)> =
            data.queries.iter().map(|query| (query.id.as_str(), query.text.as_str())).collect();
        assert_eq!(
            texts,
            [
                (
                    "c1-u4",
                    "Situation: I lost job 1.\nSupporter: Hello, how are you?\nSeeker: Bad, 1 very bad."
                ),
                ("c1-u5", "Situation: I lost job 1.\nSeeker: Bad, 1 very bad.\nSupporter: That hurts."),
                (
                    "c1-u7",
                    "Situation: I lost job 1.\nSupporter: That hurts. What happened?\nSeeker: They closed."
                ),
            ]
        );
        let qrels = data.qrels("train", Purpose::Training).unwrap().qrels;
        let relevant: Vec<&str> =
            qrels.values().flat_map(|judged| judged.keys().map(String::as_str)).collect();
        assert_eq!(relevant, ["reflection-of-feelings", "question", "others"]);
    }

    /// Turns of one conversation in train and test: the student would be praised for remembering.
    #[test]
    fn conversations_are_not_torn_apart() {
        let mut file: Vec<Value> = (0..20).map(conversation).collect();
        file.push(conversation(3));
        let (dir, made) = imported(&json!(file), [0.1, 0.2], 0);
        let made = made.unwrap();
        assert_eq!(made.repeated, 3);
        let data = BeirData::open(&dir.path().join("out")).unwrap();
        let conversations = |split: &str| -> HashSet<String> {
            let qrels = data.qrels(split, Purpose::Training).unwrap().qrels;
            qrels.keys().map(|id| id.split('-').next().unwrap().to_owned()).collect()
        };
        let [train, dev, test] = ["train", "dev", "test"].map(conversations);
        assert!(train.is_disjoint(&dev) && train.is_disjoint(&test) && dev.is_disjoint(&test));
        assert_eq!(train.len() + dev.len() + test.len(), 20);
    }

    /// Other people's strategies are kept under their names, and said aloud.
    #[test]
    fn strange_strategies_become_documents_and_strange_speakers_errors() {
        let mut file = json!([conversation(1)]);
        file[0]["dialog"][3]["annotation"]["strategy"] = json!("Collaborative Planning");
        let (_dir, made) = imported(&file, [0.0, 0.0], 4);
        let made = made.unwrap();
        assert_eq!(
            (made.summary.documents, made.undescribed),
            (9, vec!["Collaborative Planning".to_owned()])
        );

        // The names in the file of failed conversations.
        let listened =
            file.to_string().replace("\"seeker\"", "\"speaker\"").replace("\"supporter\"", "\"listener\"");
        let (_dir, made) = imported(&serde_json::from_str(&listened).unwrap(), [0.0, 0.0], 4);
        assert_eq!(made.unwrap().summary.queries, 3);

        file[0]["dialog"][1]["speaker"] = json!("bot");
        let message = imported(&file, [0.0, 0.0], 4).1.unwrap_err().to_string();
        // Line of the word in the pretty-printed file.
        let pretty = serde_json::to_string_pretty(&file).unwrap();
        let line = 1 + pretty.lines().position(|line| line.contains("\"bot\"")).unwrap();
        assert!(message.contains(&format!("ESConv.json:{line}: ")) && message.contains("bot"), "{message}");

        let message = imported(&json!({ "train": [] }), [0.0, 0.0], 4).1.unwrap_err().to_string();
        assert!(message.contains("ESConv.json:1: not a list of ESConv conversations"), "{message}");
        let silent = json!([{ "situation": "x", "dialog": [] }]);
        let message = imported(&silent, [0.0, 0.0], 4).1.unwrap_err().to_string();
        assert!(message.contains("no conversation of the train split has"), "{message}");
        assert!(imported(&json!([]), [0.0, 0.0], 4).1.unwrap_err().to_string().contains("0 conversations"));
    }
}
