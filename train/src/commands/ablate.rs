//! `train ablate`: students that differ in one choice each, with several seeds, side by side.

use super::distill;
use crate::agreement::{self, Agreement, PoolConfig};
use crate::cache::VectorCache;
use crate::data_sets::{DataArg, DataSets};
use crate::device::DeviceArgs;
use crate::evaluation::open_llm;
use crate::features::{FeatureMaker, cache_digest};
use crate::fit::first_difference;
use anyhow::{Context, Result, bail};
use clap::{Args as ClapArgs, Command, FromArgMatches};
use models::checkpoint;
use models::files::{write_atomic, write_json};
use models::student::StudentConfig;
use models::torch::{EncoderConfig, Reranker};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Each choice of the method on or off: name, and the flags of `train distill` that make it.
const VARIANTS: &[(&str, &[&str])] = &[
    ("default", &[]),
    ("no teacher targets", &["--target-queries", "0"]),
    ("no JEPA", &["--jepa-weight", "0"]),
    ("no KL on logits", &["--kl-weight", "0"]),
    ("KL over the vocabulary", &["--kl-over", "vocabulary"]),
    ("no listwise term", &["--listwise-weight", "0"]),
    ("no supervised term", &["--supervised-weight", "0"]),
    ("forward KL", &["--divergence", "forward-kl"]),
    ("Jensen-Shannon", &["--divergence", "jensen-shannon"]),
    ("off-policy candidates", &["--uniform", "1"]),
    ("JEPA cosine", &["--jepa-distance", "cosine"]),
    ("free maps", &["--start-weight", "0"]),
    ("unit length", &["--no-equalise"]),
    ("relu form", &["--form", "relu", "--lr", "1e-3", "--weight-decay", "0.05"]),
    ("1024 dimensions", &["--inner-dimensions", "1024"]),
    ("query adapters", &["--query-lora-rank", "16"]),
    ("128 dimensions", &["--inner-dimensions", "128"]),
];

/// Distil students that differ in one choice each, with several seeds, and compare them on dev
///
/// Students already in --out are not made again, so an interrupted ablation continues.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// Teacher directory
    #[arg(long, value_name = "DIR")]
    teacher: PathBuf,
    /// Data set in BEIR layout; several as for `train distill`
    #[arg(long, value_name = "DIR[=WEIGHT]", required = true)]
    data: Vec<DataArg>,
    /// Directory for the students, ablation.md and ablation.json
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Splits to choose on
    #[arg(long, value_delimiter = ',', default_value = "dev")]
    dev_split: Vec<String>,
    /// Seeds of each variant
    #[arg(long, default_value_t = 3)]
    seeds: u64,
    /// A variant instead of the built-in ones: its name and the flags of `train distill` that make it
    #[arg(long, value_name = "NAME: FLAGS")]
    variant: Vec<String>,
    /// Dev queries of each split on which student and teacher are compared; 0 = none
    #[arg(long, default_value_t = 30)]
    agreement_queries: usize,
    /// Documents of each of them
    #[arg(long, default_value_t = 20)]
    agreement_documents: usize,
    /// Flags of `train distill` for all variants
    #[arg(last = true, value_name = "FLAGS")]
    common: Vec<String>,
}

/// One student's numbers.
struct Student {
    /// Dev metrics, `split metric`.
    metrics: BTreeMap<String, f64>,
    agreement: Option<Agreement>,
}

/// Makes the students that are missing, then the table.
pub fn run(args: &Args, device: &DeviceArgs) -> Result<()> {
    let variants = variants(args)?;
    std::fs::create_dir_all(&args.out).with_context(|| format!("cannot create {}", args.out.display()))?;
    let cache = args.out.join("cache");
    let (mut missing, mut made) = (Vec::new(), Vec::new());
    for (name, flags) in &variants {
        for seed in 0..args.seeds {
            let out = student_dir(&args.out, name, seed);
            let distill = distill_args(args, flags, &out, &cache, seed);
            let distill = distill.with_context(|| format!("variant `{name}`"))?;
            match out.exists() {
                true => made.push((out, distill)),
                false => missing.push((format!("{name}, seed {seed}"), distill)),
            }
        }
    }
    let digest = checkpoint::digest(&args.teacher)?;
    for (out, run) in &made {
        check_made(out, &run.settings(device, &run.open_data()?, &digest)?)?;
    }
    let (names, runs): (Vec<String>, Vec<distill::Args>) = missing.into_iter().unzip();
    distill::encode_for_all(&runs, device)?;
    for (name, run) in names.iter().zip(&runs) {
        eprintln!("== {name}");
        distill::run(run, device)?;
    }
    let first = runs.first().or(made.first().map(|(_, run)| run)).context("no variants")?;
    let mut judge = Judge::new(args, device, first.open_data()?, &cache, &digest)?;
    let mut rows = Vec::new();
    for (name, flags) in &variants {
        let students = (0..args.seeds).map(|seed| judge.student(&student_dir(&args.out, name, seed)));
        rows.push((name.as_str(), flags, students.collect::<Result<Vec<_>>>()?));
    }
    let table = table(&rows);
    print!("{table}");
    let file = args.out.join("ablation.md");
    write_atomic(&file, |writer| writer.write_all(table.as_bytes()))
        .with_context(|| format!("cannot write {}", file.display()))?;
    let values: Vec<Value> = rows
        .iter()
        .map(|(name, flags, students)| {
            let students = students.iter().map(|student| {
                json!({
                    "metrics": student.metrics,
                    "teacher_top_1": student.agreement.map(|a| a.top_1),
                    "rank_correlation": student.agreement.map(|a| a.rank_correlation),
                })
            });
            json!({ "variant": name, "flags": flags, "seeds": students.collect::<Vec<_>>() })
        })
        .collect();
    Ok(write_json(&args.out.join("ablation.json"), &json!({ "common": args.common, "variants": values }))?)
}

fn variants(args: &Args) -> Result<Vec<(String, Vec<String>)>> {
    if args.seeds == 0 {
        bail!("--seeds must be at least 1");
    }
    if args.variant.is_empty() {
        let owned = |flags: &[&str]| flags.iter().map(|flag| (*flag).to_owned()).collect();
        return Ok(VARIANTS.iter().map(|(name, flags)| ((*name).to_owned(), owned(flags))).collect());
    }
    let parse = |text: &String| {
        let Some((name, flags)) = text.split_once(':') else {
            bail!("--variant `{text}`: expected a name, a colon and flags of `train distill`");
        };
        Ok((name.trim().to_owned(), flags.split_whitespace().map(str::to_owned).collect()))
    };
    let variants: Vec<(String, Vec<String>)> = args.variant.iter().map(parse).collect::<Result<_>>()?;
    for (i, (name, _)) in variants.iter().enumerate() {
        let same = |other: &&(String, Vec<String>)| {
            student_dir(&args.out, &other.0, 0) == student_dir(&args.out, name, 0)
        };
        if let Some((other, _)) = variants[..i].iter().find(same) {
            bail!(
                "--variant: `{other}` and `{name}` would have one directory; give them names of other letters"
            );
        }
    }
    Ok(variants)
}

/// Whether the student in `out` is what these settings would make.
fn check_made(out: &Path, settings: &Value) -> Result<()> {
    let was = StudentConfig::open(out)?.provenance["settings"].clone();
    if was == *settings {
        return Ok(());
    }
    bail!(
        "{}: made with other settings ({}); remove it, or give another --out",
        out.display(),
        match first_difference(&was, settings) {
            Some([setting, was, is]) => format!("`{setting}` was {was}, is {is}"),
            None => "shape of the settings".into(),
        }
    )
}

fn student_dir(out: &Path, name: &str, seed: u64) -> PathBuf {
    let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    out.join(format!("{}-{seed}", name.to_lowercase()))
}

/// As if it had been typed; later flags win.
fn distill_args(args: &Args, flags: &[String], out: &Path, cache: &Path, seed: u64) -> Result<distill::Args> {
    // A student that was interrupted goes on.
    let mut words: Vec<String> = vec!["distill".into(), "--resume".into()];
    let mut add = |flag: &str, value: String| words.extend([flag.to_owned(), value]);
    add("--teacher", args.teacher.display().to_string());
    for data in &args.data {
        add("--data", format!("{}={}", data.dir.display(), data.weight));
    }
    add("--out", out.display().to_string());
    add("--cache", cache.display().to_string());
    add("--dev-split", args.dev_split.join(","));
    add("--seed", seed.to_string());
    words.extend(args.common.iter().chain(flags).cloned());
    let command = <distill::Args as ClapArgs>::augment_args(Command::new("distill")).args_override_self(true);
    let matches = command.try_get_matches_from(words).map_err(|error| {
        let text = error.to_string();
        anyhow::anyhow!(
            "{}",
            text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
        )
    })?;
    Ok(distill::Args::from_arg_matches(&matches)?)
}

/// Reads students' numbers and holds them to the teacher.
struct Judge<'a> {
    args: &'a Args,
    device: &'a DeviceArgs,
    teacher: Reranker,
    sets: DataSets,
    /// By set.
    pools: Vec<Vec<agreement::Pool>>,
    cache: &'a Path,
    digest: String,
}

impl<'a> Judge<'a> {
    fn new(
        args: &'a Args,
        device: &'a DeviceArgs,
        sets: DataSets,
        cache: &'a Path,
        teacher_digest: &str,
    ) -> Result<Self> {
        let teacher = Reranker::open(&args.teacher, &device.open(None)?)?;
        let digest = cache_digest(teacher_digest, device);
        let mut scores = VectorCache::open(cache, "agreement", &digest, 1)?;
        let config =
            PoolConfig { queries: args.agreement_queries, documents: args.agreement_documents, seed: 0 };
        let mut pools = Vec::new();
        for set in &sets.sets {
            let mut of_set = Vec::new();
            for (_, qrels) in set.dev.iter().filter(|_| config.queries > 0) {
                of_set.extend(agreement::pools(&teacher, set, qrels, config, &mut scores)?);
            }
            pools.push(of_set);
        }
        Ok(Self { args, device, teacher, sets, pools, cache, digest })
    }

    fn student(&mut self, dir: &Path) -> Result<Student> {
        let config = StudentConfig::open(dir)?;
        let predictor = distill::open_predictor(dir, &config, self.teacher.device())?;
        let mut metrics = BTreeMap::new();
        let dev = config.provenance["metrics"].as_object().cloned().unwrap_or_default();
        for (split, values) in dev.iter().filter_map(|(split, values)| Some((split, values.as_object()?))) {
            for name in ["Recall@1", "MRR@10", "nDCG@10"] {
                metrics.insert(
                    format!("{split} {name}"),
                    values.get(name).and_then(Value::as_f64).unwrap_or(0.0),
                );
            }
        }
        let encoder = EncoderConfig { layers: config.latents.layers.clone(), residual: config.residual };
        let adapted = match config.query_adapter {
            Some(_) => Some(open_llm(dir, &config, self.device)?),
            None => None,
        };
        let mut maker = match &adapted {
            Some(llm) => FeatureMaker::new(llm, encoder, None)?,
            None => FeatureMaker::new(&self.teacher, encoder, Some((self.cache, &self.digest)))?,
        };
        let mut all = Vec::new();
        for (set, pools) in self.sets.sets.iter().zip(&self.pools).filter(|(_, pools)| !pools.is_empty()) {
            all.push(agreement::measure(pools, set, &mut maker, &predictor)?);
        }
        let mean = |of: fn(&Agreement) -> f64| all.iter().map(of).sum::<f64>() / all.len() as f64;
        let agreement = (!all.is_empty() && self.args.agreement_queries > 0)
            .then(|| Agreement { top_1: mean(|a| a.top_1), rank_correlation: mean(|a| a.rank_correlation) });
        Ok(Student { metrics, agreement })
    }
}

/// Mean and, behind a sign, half the spread between the seeds.
fn table(rows: &[(&str, &Vec<String>, Vec<Student>)]) -> String {
    let columns: Vec<String> = rows
        .first()
        .and_then(|(.., students)| students.first())
        .map(|student| student.metrics.keys().cloned().collect())
        .unwrap_or_default();
    let mut text = format!("| variant | {} | teacher's top 1 | rank correlation |\n", columns.join(" | "));
    let _ = writeln!(text, "| --- |{}", " ---: |".repeat(columns.len() + 2));
    for (name, _, students) in rows {
        let mut cells: Vec<String> = columns
            .iter()
            .map(|column| cell(students.iter().filter_map(|student| student.metrics.get(column).copied())))
            .collect();
        cells.push(cell(students.iter().filter_map(|student| student.agreement.map(|a| a.top_1))));
        cells.push(cell(students.iter().filter_map(|student| student.agreement.map(|a| a.rank_correlation))));
        let _ = writeln!(text, "| {name} | {} |", cells.join(" | "));
    }
    text
}

fn cell(values: impl Iterator<Item = f64>) -> String {
    let values: Vec<f64> = values.collect();
    if values.is_empty() {
        return "".into();
    }
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let most = values.iter().copied().fold(f64::MIN, f64::max);
    let least = values.iter().copied().fold(f64::MAX, f64::min);
    format!("{mean:.3} ±{:.3}", (most - least) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A variant that its flags do not make, for a slip in the list above, would stand in the table under a wrong name.
    #[test]
    fn every_variant_is_flags_of_distill() {
        let parsed = |common: &[&str], flags: &[&str]| {
            let owned = |flags: &[&str]| flags.iter().map(|flag| (*flag).to_owned()).collect::<Vec<_>>();
            let args = Args {
                teacher: "t".into(),
                data: vec![DataArg { dir: "d".into(), weight: 1.0 }],
                out: "o".into(),
                dev_split: vec!["dev".into()],
                seeds: 1,
                variant: Vec::new(),
                agreement_queries: 0,
                agreement_documents: 0,
                common: owned(common),
            };
            distill_args(&args, &owned(flags), Path::new("o/x"), Path::new("o/cache"), 3)
        };
        for (name, flags) in VARIANTS {
            assert!(parsed(&["--steps", "5"], flags).is_ok(), "{name}");
        }
        // A variant's flags win over the common ones.
        let args = format!("{:?}", parsed(&["--steps", "5"], &["--steps", "7"]).unwrap());
        assert!(args.contains("steps: 7"), "{args}");
        assert!(parsed(&[], &["--stpes", "7"]).unwrap_err().to_string().contains("--stpes"));
    }

    /// The spread decides whether a difference is one.
    #[test]
    fn cells_show_mean_and_half_the_spread() {
        assert_eq!(cell([0.5, 0.7, 0.6].into_iter()), "0.600 ±0.100");
        assert_eq!(cell(std::iter::empty()), "");
    }
}
