//! `--config FILE`: flags from a TOML file, so that a run is a file in somebody's repository.
//!
//! Keys are the flags' names (`-` or `_`), at the top for every command or in a table named as the command:
//! ```toml
//! data = ["data/home-robot", "data/other=0.5"]
//! dtype = "bf16"
//! [teacher]
//! steps = 400
//! [distill]
//! layers = [6, 12]
//! ```
//! What is typed on the command line wins.

use anyhow::{Context, Result, bail};
use clap::Command;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use toml::{Table, Value};

/// The flag.
const FLAG: &str = "config";

/// Arguments of the program with those of the config file put in before what was typed behind the subcommand.
pub fn expand(typed: Vec<OsString>, program: &Command) -> Result<Vec<OsString>> {
    let texts: Vec<String> = typed.iter().map(|text| text.to_string_lossy().into_owned()).collect();
    let Some(file) = value_of(&texts, FLAG) else { return Ok(typed) };
    // `train data check` is a command within a command.
    let (mut place, mut commands) = (0, vec![program]);
    for (i, text) in texts.iter().enumerate().skip(1) {
        if let Some(command) = commands.last().and_then(|command| command.find_subcommand(text)) {
            place = i;
            commands.push(command);
        }
    }
    if commands.len() == 1 {
        return Ok(typed);
    }
    let file = PathBuf::from(file);
    let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let table: Table = toml::from_str(&text).with_context(|| format!("{}: is no TOML", file.display()))?;
    let mut reading = Reading { program, commands: &commands, flags: BTreeMap::new() };
    reading.table(&table, program, 0).with_context(|| file.display().to_string())?;
    let mut expanded: Vec<OsString> = typed[..=place].to_vec();
    for (key, value) in reading.flags {
        if value_of(&texts, &key).is_none() && !texts.iter().any(|text| *text == format!("--{key}")) {
            let words = words(&key, &value).with_context(|| format!("{}: `{key}`", file.display()))?;
            expanded.extend(words.into_iter().map(OsString::from));
        }
    }
    expanded.extend_from_slice(&typed[place + 1..]);
    Ok(expanded)
}

/// A config file being read for the commands that were typed.
struct Reading<'a> {
    program: &'a Command,
    /// What was typed, the program first.
    commands: &'a [&'a Command],
    flags: BTreeMap<String, Value>,
}

impl Reading<'_> {
    /// Takes over what `table`, that of the command `owner` at `depth`, says for the command typed, and refuses what no
    /// command knows. A deeper table wins.
    fn table(&mut self, table: &Table, owner: &Command, depth: usize) -> Result<()> {
        let typed = self.commands.get(depth).is_some_and(|typed| typed.get_name() == owner.get_name());
        let (values, tables): (Vec<_>, Vec<_>) = table.iter().partition(|(_, value)| !value.is_table());
        for (key, value) in values {
            let key = key.replace('_', "-");
            // A key is for whichever commands below know it; for none, it is a slip of the pen.
            if !known_below(owner, &key) && !known(self.program, &key) {
                match depth {
                    0 => bail!("`{key}` is no flag of any command of `{}`", owner.get_name()),
                    _ => bail!(
                        "`{key}` is no flag of `{} {}`; see its --help",
                        self.program.get_name(),
                        owner.get_name()
                    ),
                }
            }
            let innermost = self.commands.last().is_some_and(|command| known(command, &key));
            if typed && (innermost || known(self.program, &key)) {
                self.flags.insert(key, value.clone());
            }
        }
        for (name, value) in tables {
            let (Some(command), Some(table)) = (owner.find_subcommand(name), value.as_table()) else {
                bail!("`[{name}]` is no command of `{}`", owner.get_name());
            };
            // Below a command that was not typed nothing was.
            self.table(table, command, if typed { depth + 1 } else { usize::MAX - 1 })?;
        }
        Ok(())
    }
}

fn known(command: &Command, key: &str) -> bool {
    command.get_arguments().any(|arg| arg.get_long() == Some(key))
}

fn known_below(command: &Command, key: &str) -> bool {
    known(command, key) || command.get_subcommands().any(|command| known_below(command, key))
}

/// What stands behind `--flag` or `--flag=`.
fn value_of(texts: &[String], flag: &str) -> Option<String> {
    let (apart, joined) = (format!("--{flag}"), format!("--{flag}="));
    texts.iter().enumerate().find_map(|(i, text)| match text.strip_prefix(&joined) {
        Some(value) => Some(value.to_owned()),
        None if *text == apart => texts.get(i + 1).cloned(),
        None => None,
    })
}

/// A key and its value as they would be typed.
fn words(key: &str, value: &Value) -> Result<Vec<String>> {
    let flag = format!("--{key}");
    Ok(match value {
        Value::Boolean(true) => vec![flag],
        Value::Boolean(false) => Vec::new(),
        Value::Array(values) => {
            let mut all = Vec::new();
            for value in values {
                all.extend([flag.clone(), scalar(value)?]);
            }
            all
        }
        value => vec![flag, scalar(value)?],
    })
}

fn scalar(value: &Value) -> Result<String> {
    Ok(match value {
        Value::String(text) => text.clone(),
        Value::Integer(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        other => {
            bail!("found {}, expected a string, a number, true or false, or a list of them", other.type_str())
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Arg;

    fn program() -> Command {
        let flag = |name: &'static str| Arg::new(name).long(name);
        Command::new("train")
            .arg(flag("config").global(true))
            .arg(flag("dtype").global(true))
            .subcommand(Command::new("teacher").arg(flag("steps")).arg(flag("lora-rank")).arg(flag("resume")))
            .subcommand(Command::new("distill").arg(flag("steps")).arg(flag("layers")))
            .subcommand(
                Command::new("data")
                    .subcommand(Command::new("check").arg(flag("limit")))
                    .subcommand(Command::new("import").arg(flag("out"))),
            )
    }

    fn expanded(toml: &str, typed: &[&str]) -> Result<String> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("run.toml");
        std::fs::write(&file, toml).unwrap();
        let mut all: Vec<OsString> = typed.iter().map(OsString::from).collect();
        all.extend(["--config".into(), file.into_os_string()]);
        let words = expand(all, &program())?;
        let words: Vec<String> = words.iter().map(|word| word.to_string_lossy().into_owned()).collect();
        Ok(words[..words.len() - 2].join(" "))
    }

    /// The file stands for typing; what was really typed must win, or nobody could change one value of a run.
    #[test]
    fn the_command_line_wins_over_the_file() {
        let toml = "dtype = \"f32\"\n[teacher]\nsteps = 4\nlora_rank = 0\nresume = true\n[distill]\nlayers = [6, 12]\n";
        assert_eq!(
            expanded(toml, &["train", "teacher", "--steps", "9"]).unwrap(),
            "train teacher --dtype f32 --lora-rank 0 --resume --steps 9"
        );
        assert_eq!(
            expanded(toml, &["train", "distill"]).unwrap(),
            "train distill --dtype f32 --layers 6 --layers 12"
        );
    }

    /// `train data check` is as much a command as `train teacher`.
    #[test]
    fn commands_within_commands_have_tables_too() {
        let toml = "limit = 3\n[data.check]\nlimit = 5\n[data.import]\nout = \"x\"\n";
        assert_eq!(expanded(toml, &["train", "data", "check"]).unwrap(), "train data check --limit 5");
        assert_eq!(expanded(toml, &["train", "data", "import"]).unwrap(), "train data import --out x");
        assert_eq!(expanded(toml, &["train", "teacher"]).unwrap(), "train teacher");
        let refused = expanded("[data.check]\nout = 1", &["train", "data", "check"]).unwrap_err();
        assert!(format!("{refused:#}").contains("`out` is no flag of `train check`"), "{refused:#}");
    }

    /// A misspelt key that is passed over silently trains another model than the file says.
    #[test]
    fn unknown_keys_are_named() {
        let refused = |toml: &str| format!("{:#}", expanded(toml, &["train", "teacher"]).unwrap_err());
        assert!(refused("[teacher]\nstep = 4").contains("`step` is no flag of `train teacher`"));
        assert!(refused("stpes = 4").contains("`stpes` is no flag of any command"));
        assert!(refused("[tacher]\nsteps = 4").contains("`[tacher]` is no command"));
        assert!(refused("[teacher]\nsteps = 2020-01-01").contains("found datetime"));
        assert!(refused("steps = = 4").contains("is no TOML"));
    }
}
