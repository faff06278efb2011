//! Folders as people have them.

use super::*;
use models::checkpoint::digest;
use models::error::sentence;
use models::weights::{WEIGHTS_INDEX_FILE, expected_tensors, write_safetensors};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use tempfile::TempDir;

const WORDS: &[&str] = &["Yes", "No", "is", "it", "dark", "?", "<|im_end|>", "<end>"];

/// A folder of a decoder with one layer and a vocabulary of words.
struct Tiny {
    dir: TempDir,
}

impl Tiny {
    fn new() -> Self {
        let tiny = Self { dir: tempfile::tempdir().unwrap() };
        fs::create_dir(tiny.folder()).unwrap();
        let config = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8, "intermediate_size": 12,
            "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 4096, "vocab_size": WORDS.len(),
            "tie_word_embeddings": true,
        });
        tiny.write("config.json", &config);
        let vocab: serde_json::Map<String, Value> =
            WORDS.iter().enumerate().map(|(id, word)| ((*word).to_owned(), id.into())).collect();
        let tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null, "decoder": null,
            "added_tokens": [added(6, "<|im_end|>"), added(7, "<end>")], "pre_tokenizer": { "type": "Whitespace" },
            "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "?" },
        });
        tiny.write("tokenizer.json", &tokenizer);
        tiny.write_weights("model.safetensors", 0.5, |name| Some(name.to_owned()));
        tiny
    }

    fn folder(&self) -> PathBuf {
        self.dir.path().join("hf")
    }

    fn write(&self, name: &str, value: &Value) {
        fs::write(self.folder().join(name), value.to_string()).unwrap();
    }

    fn edit(&self, name: &str, edit: impl FnOnce(&mut Value)) {
        let mut value: Value = serde_json::from_slice(&fs::read(self.folder().join(name)).unwrap()).unwrap();
        edit(&mut value);
        self.write(name, &value);
    }

    fn config(&self) -> DecoderConfig {
        DecoderConfig::open(self.folder()).unwrap()
    }

    /// All tensors whose name `named` gives, filled with one number.
    fn write_weights(&self, file: &str, number: f32, named: impl Fn(&str) -> Option<String>) {
        let tensors = expected_tensors(&self.config()).into_iter().filter_map(|(name, shape)| {
            let count = shape.iter().product();
            Some((named(&name)?, shape, vec![number; count]))
        });
        write_safetensors(self.folder().join(file), tensors, DType::F16, HashMap::new()).unwrap();
    }

    fn import(&self) -> Result<PathBuf> {
        let out = tempfile::tempdir_in(self.dir.path())?.keep();
        let source = Source::open(&self.folder())?;
        source.write(&self.folder(), &out)?;
        Ok(out)
    }

    /// What is said of a folder that is not imported.
    fn refusal(&self) -> String {
        let error = self.import().expect_err("imported");
        sentence(error.as_ref())
    }
}

fn added(id: usize, content: &str) -> Value {
    json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        "special": true })
}

fn number(dir: &Path) -> f32 {
    Weights::open(dir).unwrap().f32("model.norm.weight").unwrap().1[0]
}

/// What was checked must be what is copied: beside an index of an earlier save lie its older shards, or none.
#[test]
fn the_single_file_is_the_model_whatever_an_index_says() {
    let tiny = Tiny::new();
    let index = json!({ "weight_map": { "model.norm.weight": "model-00001-of-00001.safetensors" } });
    tiny.write(WEIGHTS_INDEX_FILE, &index);
    assert_eq!(number(&tiny.import().unwrap()), 0.5);
    tiny.write_weights("model-00001-of-00001.safetensors", 0.25, |name| Some(name.to_owned()));
    let out = tiny.import().unwrap();
    assert_eq!(number(&out), 0.5);
    let mut files: Vec<_> = fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    files.sort();
    assert_eq!(files, ["config.json", "model.safetensors", "tokenizer.json"]);
    fs::write(out.join("prompt.json"), "{}").unwrap();
    let before = digest(&out).unwrap();
    fs::copy(tiny.folder().join(WEIGHTS_INDEX_FILE), out.join(WEIGHTS_INDEX_FILE)).unwrap();
    assert_eq!(digest(&out).unwrap(), before, "the digest follows the same rule");
    // Without the single file the shards are the model, and one that is not there is named.
    fs::remove_file(tiny.folder().join("model.safetensors")).unwrap();
    let map: serde_json::Map<String, Value> = expected_tensors(&tiny.config())
        .into_iter()
        .map(|(name, _)| (name, "model-00001-of-00001.safetensors".into()))
        .collect();
    tiny.write(WEIGHTS_INDEX_FILE, &json!({ "weight_map": map }));
    assert_eq!(number(&tiny.import().unwrap()), 0.25);
    fs::remove_file(tiny.folder().join("model-00001-of-00001.safetensors")).unwrap();
    assert!(tiny.refusal().contains("model-00001-of-00001.safetensors"), "{}", tiny.refusal());
}

/// A fine-tuning that goes on saves into the same folder; a teacher that changes with it has scores that nobody can repeat.
#[test]
fn what_is_done_to_the_source_later_does_not_reach_the_import() {
    let tiny = Tiny::new();
    let out = tiny.import().unwrap();
    let before = fs::read(out.join("model.safetensors")).unwrap();
    fs::write(tiny.folder().join("model.safetensors"), b"written in place").unwrap();
    fs::write(tiny.folder().join("config.json"), b"{}").unwrap();
    assert_eq!(fs::read(out.join("model.safetensors")).unwrap(), before);
    assert_eq!(DecoderConfig::open(&out).unwrap().hidden_size, 8);
}

/// A hub's cache is links to blobs elsewhere: the import must hold the bytes, and say so where a blob is gone.
#[test]
fn links_are_followed_and_must_lead_somewhere() {
    let tiny = Tiny::new();
    let blobs = tiny.dir.path().join("blobs");
    fs::create_dir(&blobs).unwrap();
    for name in ["config.json", "tokenizer.json", "model.safetensors", "tokenizer_config.json"] {
        let (file, blob) = (tiny.folder().join(name), blobs.join(name.replace('.', "")));
        if file.exists() {
            fs::rename(&file, &blob).unwrap();
        } else {
            fs::write(&blob, "{}").unwrap();
        }
        symlink(Path::new("..").join("blobs").join(blob.file_name().unwrap()), &file).unwrap();
    }
    let out = tiny.import().unwrap();
    for entry in fs::read_dir(&out).unwrap() {
        assert!(entry.unwrap().file_type().unwrap().is_file());
    }
    assert_eq!(number(&out), 0.5);
    // Left out silently, this file would take the model's chat template with it.
    fs::remove_file(blobs.join("tokenizer_configjson")).unwrap();
    assert!(tiny.refusal().contains("tokenizer_config.json: a link to "), "{}", tiny.refusal());
    fs::remove_file(blobs.join("modelsafetensors")).unwrap();
    assert!(tiny.refusal().contains("model.safetensors: a link to "), "{}", tiny.refusal());
}

/// transformers loads all of these as one model; after an import they are one.
#[test]
fn other_names_of_the_same_tensors_are_read() {
    let tiny = Tiny::new();
    let usual = fs::read(tiny.import().unwrap().join("model.safetensors")).unwrap();
    let bare = |name: &str| name.strip_prefix("model.").unwrap_or(name).to_owned();
    let as_head = |name: &str| match name {
        "model.embed_tokens.weight" => "lm_head.weight".to_owned(),
        name => name.to_owned(),
    };
    let namings: [&dyn Fn(&str) -> String; 3] = [&bare, &as_head, &|name| bare(&as_head(name))];
    for naming in namings {
        tiny.write_weights("model.safetensors", 0.5, |name| Some(naming(name)));
        let out = tiny.import().unwrap();
        assert_eq!(fs::read(out.join("model.safetensors")).unwrap(), usual);
    }
    tiny.edit("config.json", |config| config["architectures"] = json!(["LlamaModel"]));
    tiny.write_weights("model.safetensors", 0.5, |name| Some(bare(name)));
    assert_eq!(number(&tiny.import().unwrap()), 0.5);
    // A head of its own that is not there cannot be made up.
    tiny.edit("config.json", |config| config["tie_word_embeddings"] = json!(false));
    tiny.write_weights("model.safetensors", 0.5, |name| (name != "lm_head.weight").then(|| bare(name)));
    assert!(tiny.refusal().contains("`lm_head.weight` is missing"), "{}", tiny.refusal());
    tiny.write_weights("model.safetensors", 0.5, |name| Some(bare(name)));
    assert!(Weights::open(tiny.import().unwrap()).unwrap().contains("lm_head.weight"));
}

/// A head that is said to be the embeddings and differs is left out by transformers 4 and used by transformers 5.
#[test]
fn a_tied_head_must_be_the_embeddings() {
    let tiny = Tiny::new();
    let with_head = |number: f32| {
        let mut tensors: Vec<_> = expected_tensors(&tiny.config());
        tensors.push(("lm_head.weight".into(), tensors[0].1.clone()));
        let filled = tensors.into_iter().map(|(name, shape)| {
            let value = if name == "lm_head.weight" { number } else { 0.5 };
            let values = vec![value; shape.iter().product()];
            (name, shape, values)
        });
        write_safetensors(tiny.folder().join("model.safetensors"), filled, DType::F16, HashMap::new())
            .unwrap();
    };
    with_head(0.5);
    tiny.import().unwrap();
    with_head(0.75);
    assert!(tiny.refusal().contains("`tie_word_embeddings`"), "{}", tiny.refusal());
}

/// Fine-tuning adds a token for padding and often leaves the embeddings as they are; the model never sees it.
#[test]
fn a_padding_token_behind_the_last_row_is_left_out() {
    let tiny = Tiny::new();
    let untouched = fs::read(tiny.folder().join("tokenizer.json")).unwrap();
    assert_eq!(fs::read(tiny.import().unwrap().join("tokenizer.json")).unwrap(), untouched);
    tiny.edit("tokenizer.json", |tokenizer| {
        tokenizer["added_tokens"].as_array_mut().unwrap().push(added(8, "<pad>"));
        tokenizer["padding"] = json!({ "strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 8, "pad_type_id": 0, "pad_token": "<pad>" });
    });
    let source = Source::open(&tiny.folder()).unwrap();
    assert_eq!(source.left_out(), ["<pad>"]);
    let out = tiny.import().unwrap();
    let tokenizer = models::prompt::open_tokenizer(&out).unwrap();
    assert_eq!((tokenizer.token_to_id("<pad>"), tokenizer.token_to_id("<end>")), (None, Some(7)));
    assert!(tokenizer.get_padding().is_none());
    // A prompt that needs the token would be cut into letters instead.
    let mut prompt = PromptTemplate::default();
    refuse_left_out(source.left_out(), &prompt, &tiny.folder()).unwrap();
    prompt.answer = "<pad>".into();
    let told = refuse_left_out(source.left_out(), &prompt, &tiny.folder()).unwrap_err().to_string();
    assert!(told.contains("`<pad>`"), "{told}");
    // Any other token out of reach is of another model: one with a gap before it, or a word that texts become.
    tiny.edit("tokenizer.json", |tokenizer| tokenizer["added_tokens"][2]["id"] = 12.into());
    assert!(tiny.refusal().contains("different models"), "{}", tiny.refusal());
    tiny.edit("tokenizer.json", |tokenizer| {
        tokenizer["added_tokens"].as_array_mut().unwrap().pop();
        tokenizer["model"]["vocab"]["lamp"] = 8.into();
    });
    assert!(tiny.refusal().contains("different models"), "{}", tiny.refusal());
}

/// "Tensor such-and-such is missing" does not tell somebody with a 4-bit download that no 4-bit download will do.
#[test]
fn weights_in_few_bits_are_refused_by_what_they_are() {
    let tiny = Tiny::new();
    let also = |names: &[&str]| {
        let extra =
            names.iter().map(|name| (format!("model.layers.0.mlp.up_proj.{name}"), vec![1], vec![1.0]));
        let tensors = expected_tensors(&tiny.config()).into_iter().map(|(name, shape)| {
            let values = vec![0.5; shape.iter().product()];
            (name, shape, values)
        });
        write_safetensors(
            tiny.folder().join("model.safetensors"),
            tensors.chain(extra),
            DType::F16,
            HashMap::new(),
        )
        .unwrap();
    };
    for (tensors, method, words) in [
        (&["weight.absmax", "weight.quant_map"][..], json!({"quant_method": "bitsandbytes"}), "bitsandbytes"),
        (&["qweight", "qzeros", "scales", "g_idx"], Value::Null, "GPTQ"),
        (&["qweight", "qzeros", "scales"], json!({"quant_method": "awq", "bits": 4}), "awq, 4 bits"),
        (
            &["weight_packed", "weight_scale"],
            json!({"quant_method": "compressed-tensors"}),
            "compressed-tensors",
        ),
        (&["weight_scale_inv"], json!({"quant_method": "fp8"}), "fp8"),
    ] {
        also(tensors);
        tiny.edit("config.json", |config| config["quantization_config"] = method);
        let told = tiny.refusal();
        assert!(told.contains(words) && told.contains("quantised") && told.contains("made from"), "{told}");
    }
    // Whole weights stay whole when a config.json says what they were loaded as.
    also(&[]);
    tiny.edit("config.json", |config| {
        config["quantization_config"] = json!({"quant_method": "bitsandbytes"})
    });
    tiny.import().unwrap();
}

/// Numbers of 8 bits under the usual names read as F16 would be noise.
#[test]
fn weights_of_eight_bits_are_refused_by_what_they_are() {
    let tiny = Tiny::new();
    let file = tiny.folder().join("model.safetensors");
    let bytes = fs::read(&file).unwrap();
    let length = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let up = &mut header["model.layers.0.mlp.up_proj.weight"];
    up["dtype"] = json!("F8_E4M3");
    up["shape"] = json!([24, 8]);
    let mut text = header.to_string();
    text += &" ".repeat(length - text.len());
    fs::write(&file, [&bytes[..8], text.as_bytes(), &bytes[8 + length..]].concat()).unwrap();
    assert!(tiny.refusal().contains("quantised (FP8"), "{}", tiny.refusal());
}

/// The first error of somebody who names the wrong folder must name the right one.
#[test]
fn folders_that_are_no_model_are_refused_with_the_way_out() {
    type Damage = fn(&Path);
    let cases: [(Damage, &[&str]); 5] = [
        (
            |hf| {
                fs::remove_file(hf.join("tokenizer.json")).unwrap();
                fs::write(hf.join("tokenizer.model"), "x").unwrap();
            },
            &["slow tokenizer (tokenizer.model)", "save_pretrained"],
        ),
        (|hf| fs::remove_file(hf.join("tokenizer.json")).unwrap(), &["found no tokenizer.json", "fetch it"]),
        (
            |hf| {
                fs::rename(hf.join("config.json"), hf.join("adapter_config.json")).unwrap();
            },
            &["adapter", "merge_and_unload"],
        ),
        (
            |hf| {
                fs::remove_file(hf.join("config.json")).unwrap();
                fs::create_dir_all(hf.join("snapshots/0a1b")).unwrap();
            },
            &["cache", "snapshots/0a1b"],
        ),
        (
            |hf| {
                let mut config: Value =
                    serde_json::from_slice(&fs::read(hf.join("config.json")).unwrap()).unwrap();
                config["transformers_weights"] = json!("best.safetensors");
                fs::write(hf.join("config.json"), config.to_string()).unwrap();
            },
            &["`transformers_weights` is `best.safetensors`"],
        ),
    ];
    for (damage, words) in cases {
        let tiny = Tiny::new();
        damage(&tiny.folder());
        let told = tiny.refusal();
        assert!(words.iter().all(|word| told.contains(word)), "{told}");
    }
}
