//! The tch decoder against Hugging Face transformers (`golden/make_decoder.py`), and against itself: batched and
//! alone, cached and at once, in bf16, with adapters.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use models::config::DecoderConfig;
use models::torch::{Adapters, Decoder, DecoderError, ForwardInput, KvCache, LoraConfig};
use models::weights::{DType, Weights, WeightsError, write_safetensors};
use tch::{Device, Kind, Tensor, nn};

const FAMILIES: [&str; 6] = ["llama", "llama3", "llama_biases", "mistral", "qwen2", "qwen3"];
/// Rows of every golden batch.
const LENGTHS: [i64; 3] = [24, 11, 3];
/// Hidden states and logits of two implementations in f32, as a share of the largest of them where it is above 1: how
/// far rounding carries depends on the processor's kernels.
const CLOSE: f64 = 2e-5;

fn folder(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/decoder").join(family)
}

fn open(family: &str, kind: Kind, lora: Option<&LoraConfig>) -> (nn::VarStore, Decoder) {
    let mut vs = nn::VarStore::new(Device::Cpu);
    vs.set_kind(kind);
    let decoder = Decoder::open(&vs.root(), folder(family), lora).unwrap();
    (vs, decoder)
}

struct Golden(Weights);

impl Golden {
    fn open(family: &str) -> Self {
        Self(Weights::open_file(folder(family).join("golden.safetensors")).unwrap())
    }

    fn tensor(&self, name: &str) -> Tensor {
        let (dtype, shape, bytes) = self.0.raw(name).unwrap();
        let kind = if dtype == DType::I64 { Kind::Int64 } else { Kind::Float };
        Tensor::from_data_size(bytes, &shape.iter().map(|&n| n as i64).collect::<Vec<_>>(), kind)
    }
}

/// Largest difference over the rows' own tokens, padding left out.
fn difference(a: &Tensor, b: &Tensor, lengths: &[i64]) -> f64 {
    assert_eq!(a.size(), b.size());
    let rows = lengths.iter().enumerate().map(|(row, &length)| {
        let own = |t: &Tensor| t.get(row as i64).narrow(0, 0, length).to_kind(Kind::Double);
        f64::try_from((own(a) - own(b)).abs().max()).unwrap()
    });
    rows.fold(0.0, |most, found| if found.is_nan() { f64::INFINITY } else { most.max(found) })
}

#[track_caller]
fn assert_close(what: &str, a: &Tensor, b: &Tensor, lengths: &[i64], tolerance: f64) {
    let largest = f64::try_from(b.abs().max()).unwrap().max(1.0);
    let found = difference(a, b, lengths) / largest;
    println!("{what}: {found:.1e} of {largest:.1}");
    assert!(found <= tolerance, "{what}: {found:.2e} apart, expected at most {tolerance:.0e}");
}

/// If one layer differs from transformers, every published checkpoint gives other answers here, plausible ones.
#[test]
fn hidden_states_and_logits_are_those_of_transformers() {
    let _guard = tch::no_grad_guard();
    for family in FAMILIES {
        let ((_vs, decoder), golden) = (open(family, Kind::Float, None), Golden::open(family));
        let (ids, mask) = (golden.tensor("input_ids"), golden.tensor("attention_mask"));
        let keep: Vec<usize> = (0..=decoder.config().num_hidden_layers).collect();
        let input =
            ForwardInput { attention_mask: Some(&mask), keep_layers: &keep, ..ForwardInput::new(&ids) };
        let hidden = decoder.forward(input).unwrap();
        for (layer, state) in hidden.layers.iter().enumerate() {
            let name = format!("hidden.{layer}");
            assert_close(&format!("{family} {name}"), state, &golden.tensor(&name), &LENGTHS, CLOSE);
        }
        let last = hidden.last().unwrap();
        assert_close(&format!("{family} last"), last, &golden.tensor("last"), &LENGTHS, CLOSE);
        let logits = decoder.logits(last);
        // A logit sums 48 products of states and weights around 1: rounding adds up.
        assert_close(&format!("{family} logits"), &logits, &golden.tensor("logits"), &LENGTHS, 2.0 * CLOSE);
        let rows = last.matmul(&decoder.choice_rows(&[7, 70]).unwrap().tr());
        let pair = logits.index_select(-1, &Tensor::from_slice(&[7_i64, 70]));
        assert_close(&format!("{family} choice rows"), &rows, &pair, &LENGTHS, CLOSE);
    }
}

/// If the cache of a generated token is off by one position, texts fall apart after a few words.
#[test]
fn greedy_generation_is_that_of_transformers() {
    for family in FAMILIES {
        let ((_vs, decoder), golden) = (open(family, Kind::Float, None), Golden::open(family));
        let prompt = Vec::<i64>::try_from(golden.tensor("input_ids").get(0).narrow(0, 0, 5)).unwrap();
        let expected = Vec::<i64>::try_from(golden.tensor("generated")).unwrap();
        assert_eq!(decoder.generate(&prompt, 8, &[]).unwrap(), expected, "{family}");
        let first_end = expected.iter().position(|&token| token == expected[3]).unwrap();
        assert_eq!(decoder.generate(&prompt, 8, &[expected[3]]).unwrap(), expected[..first_end], "{family}");
    }
}

/// If padding leaks, a score depends on what happens to share its batch, and no error is seen.
#[test]
fn a_text_alone_is_the_text_in_a_batch() {
    let _guard = tch::no_grad_guard();
    for family in FAMILIES {
        let ((_vs, decoder), golden) = (open(family, Kind::Float, None), Golden::open(family));
        let (ids, mask) = (golden.tensor("input_ids"), golden.tensor("attention_mask"));
        let input = ForwardInput { attention_mask: Some(&mask), ..ForwardInput::new(&ids) };
        let batch = decoder.forward(input).unwrap().last.unwrap();
        // Other tokens in the padding must change nothing either.
        let noisy = decoder.forward(ForwardInput {
            attention_mask: Some(&mask),
            ..ForwardInput::new(&(&ids + mask.eq(0) * 9_i64))
        });
        assert_close("other padding", &noisy.unwrap().last.unwrap(), &batch, &LENGTHS, 1e-6);
        for (row, length) in (0..).zip(LENGTHS) {
            let own = |tensor: &Tensor| tensor.narrow(0, row, 1).narrow(1, 0, length);
            let alone = decoder.forward(ForwardInput::new(&own(&ids))).unwrap().last.unwrap();
            assert_close(&format!("{family} alone"), &alone, &own(&batch), &[length], 1e-5);
        }
    }
}

/// Token ids and mask, `[rows, seq]` both.
fn pad(rows: &[Vec<i64>]) -> (Tensor, Tensor) {
    let seq = rows.iter().map(Vec::len).max().unwrap();
    let padded = |fill: fn(i64) -> i64| {
        let rows: Vec<i64> =
            rows.iter().flat_map(|r| (0..seq).map(move |n| r.get(n).map_or(0, |&id| fill(id)))).collect();
        Tensor::from_slice(&rows).view([-1, seq as i64])
    };
    (padded(|id| id), padded(|_| 1))
}

fn tokens(seed: i64, length: usize) -> Vec<i64> {
    (0..length as i64).map(|n| 3 + (n * 31 + seed * 17 + n * n * seed) % 77).collect()
}

/// Last state of each document-query pair, read at once.
fn at_once(decoder: &Decoder, pairs: &[(&Vec<i64>, &Vec<i64>)]) -> Tensor {
    let last = pairs.iter().map(|(document, query)| {
        let ids = Tensor::from_slice(&[document.as_slice(), query].concat()).unsqueeze(0);
        decoder.forward(ForwardInput::new(&ids)).unwrap().last.unwrap().select(1, -1)
    });
    Tensor::cat(&last.collect::<Vec<_>>(), 0)
}

/// The same through a cache of documents.
fn through_cache(decoder: &Decoder, cache: &KvCache, queries: &[Vec<i64>]) -> Tensor {
    let (ids, mask) = pad(queries);
    let input = ForwardInput { attention_mask: Some(&mask), past: Some(cache), ..ForwardInput::new(&ids) };
    let last = decoder.forward(input).unwrap().last.unwrap();
    let ends = queries.iter().enumerate().map(|(row, q)| last.get(row as i64).get(q.len() as i64 - 1));
    Tensor::stack(&ends.collect::<Vec<_>>(), 0)
}

/// The teacher reads each document once and every query behind it; a slip here makes it judge other pairs.
#[test]
fn documents_read_once_and_continued_are_read_as_one_text() {
    let _guard = tch::no_grad_guard();
    let documents: Vec<Vec<i64>> = [13, 5, 1, 9].iter().map(|&n| tokens(n, n as usize)).collect();
    let queries: Vec<Vec<i64>> = [4, 7, 1, 2].iter().map(|&n| tokens(n + 50, n as usize)).collect();
    for family in FAMILIES {
        let (_vs, decoder) = open(family, Kind::Float, None);
        let read = |documents: &[Vec<i64>]| {
            let (ids, mask) = pad(documents);
            let input =
                ForwardInput { attention_mask: Some(&mask), want_cache: true, ..ForwardInput::new(&ids) };
            decoder.forward(input).unwrap().cache.unwrap()
        };
        let check = |what: &str, cache: &KvCache, rows: &[usize], queries: &[Vec<i64>]| {
            let pairs: Vec<_> =
                rows.iter().zip(queries).map(|(&row, query)| (&documents[row], query)).collect();
            let (found, expected) = (through_cache(&decoder, cache, queries), at_once(&decoder, &pairs));
            let what = format!("{family} {what}");
            assert_close(&what, &found.unsqueeze(0), &expected.unsqueeze(0), &[rows.len() as i64], 1e-5);
        };
        let all = read(&documents);
        assert_eq!((all.lengths(), all.columns()), (&[13, 5, 1, 9][..], 13));
        check("batch of documents", &all, &[0, 1, 2, 3], &queries);
        let selected = all.select(&[3, 1, 1, 2]).unwrap();
        assert_eq!(selected.columns(), 9, "columns nobody needs are dropped");
        check("selected documents", &selected, &[3, 1, 1, 2], &queries);
        check("one document, all queries", &all.select(&[1]).unwrap(), &[1, 1, 1, 1], &queries);
        check("expanded", &read(&documents[..1]).expand(4).unwrap(), &[0, 0, 0, 0], &queries);
        let joined = KvCache::concat(&[read(&documents[..1]), read(&documents[1..])]).unwrap();
        check("joined", &joined, &[0, 1, 2, 3], &queries);

        // Continued twice: the padding of the first batch then stands in the middle.
        let (ids, mask) = pad(&queries);
        let input = ForwardInput {
            attention_mask: Some(&mask),
            past: Some(&all),
            want_cache: true,
            ..ForwardInput::new(&ids)
        };
        let twice = decoder.forward(input).unwrap().cache.unwrap();
        assert_eq!(twice.lengths(), [17, 12, 2, 11]);
        let longer: Vec<Vec<i64>> =
            documents.iter().zip(&queries).map(|(d, q)| [d.as_slice(), q].concat()).collect();
        let pairs: Vec<_> = longer.iter().zip(&queries).collect();
        let (found, expected) = (through_cache(&decoder, &twice, &queries), at_once(&decoder, &pairs));
        let what = format!("{family} continued twice");
        assert_close(&what, &found.unsqueeze(0), &expected.unsqueeze(0), &[4], 1e-5);
    }
}

/// bf16 halves memory and time on most devices; if it is not near, it is no option.
#[test]
fn bf16_is_near_f32() {
    let _guard = tch::no_grad_guard();
    for family in FAMILIES {
        let golden = Golden::open(family);
        let (ids, mask) = (golden.tensor("input_ids"), golden.tensor("attention_mask"));
        let input = ForwardInput { attention_mask: Some(&mask), ..ForwardInput::new(&ids) };
        let (_vs, decoder) = open(family, Kind::BFloat16, None);
        let last = decoder.forward(input).unwrap().last.unwrap();
        assert_eq!(last.kind(), Kind::BFloat16);
        let (_vs, mut mixed) = open(family, Kind::Float, None);
        mixed.set_compute_kind(Some(Kind::BFloat16));
        let mixed = mixed.forward(input).unwrap().last.unwrap();
        assert_eq!(mixed.kind(), Kind::Float);
        for (what, found) in [("bf16", &last), ("mixed", &mixed)] {
            let cosine =
                Tensor::cosine_similarity(&found.to_kind(Kind::Float), &golden.tensor("last"), -1, 1e-8);
            let own = cosine.masked_select(&mask.ne(0));
            let worst = f64::try_from(own.min()).unwrap();
            println!("{family} {what}: cosine {worst:.5}");
            // transformers' own bf16 reaches 0.9979 to 0.9996 on these (random weights amplify rounding).
            assert!(worst > 0.995, "{family} {what}: {worst}");
        }
    }
}

fn adapters() -> LoraConfig {
    LoraConfig { rank: 4, alpha: 8.0, dropout: 0.5, ..LoraConfig::default() }
}

/// Training must start from the base model, and what is saved must be what was trained.
#[test]
fn an_adapter_starts_as_nothing_and_merges_exactly() {
    let _guard = tch::no_grad_guard();
    for family in FAMILIES {
        let golden = Golden::open(family);
        let (ids, mask) = (golden.tensor("input_ids"), golden.tensor("attention_mask"));
        let input = ForwardInput { attention_mask: Some(&mask), ..ForwardInput::new(&ids) };
        let (vs, decoder) = open(family, Kind::Float, Some(&adapters()));
        let base = decoder.forward(input).unwrap().last.unwrap();
        assert_close(&format!("{family} fresh adapter"), &base, &golden.tensor("last"), &LENGTHS, CLOSE);
        assert!(vs.variables().contains_key("model.layers.0.self_attn.q_proj.lora_A.weight"));
        let trainable = vs.trainable_variables().len();
        assert_eq!(trainable, 2 * 7 * decoder.config().num_hidden_layers, "only adapters are trained");

        for (name, mut tensor) in vs.variables() {
            if name.contains("lora_B") {
                let _ = tensor.normal_(0.0, 0.1);
            }
        }
        let adapted = decoder.forward(input).unwrap().last.unwrap();
        assert!(difference(&adapted, &base, &LENGTHS) > 0.01, "the adapter does nothing");
        let off = decoder.forward(ForwardInput { adapters: Adapters::Off, ..input }).unwrap().last.unwrap();
        assert_close(&format!("{family} without its adapter"), &off, &base, &LENGTHS, 1e-6);
        let dropped =
            decoder.forward(ForwardInput { adapters: Adapters::Training, ..input }).unwrap().last.unwrap();
        assert!(difference(&adapted, &dropped, &LENGTHS) > 0.01, "no dropout in training");

        let dir = tempfile::tempdir().unwrap();
        decoder.save(dir.path().join("model.safetensors"), DType::F32, HashMap::new()).unwrap();
        fs::copy(folder(family).join("config.json"), dir.path().join("config.json")).unwrap();
        let merged_vs = nn::VarStore::new(Device::Cpu);
        let plain = Decoder::open(&merged_vs.root(), dir.path(), None).unwrap();
        let merged = plain.forward(input).unwrap().last.unwrap();
        assert_close(&format!("{family} merged adapter"), &merged, &adapted, &LENGTHS, CLOSE);

        let file = dir.path().join("adapter_model.safetensors");
        let state = decoder.lora_state().into_iter().map(|(name, tensor)| {
            let shape = tensor.size().iter().map(|&n| n as usize).collect();
            (format!("base_model.model.{name}"), shape, Vec::try_from(tensor.view(-1)).unwrap())
        });
        write_safetensors(&file, state, DType::F32, HashMap::new()).unwrap();
        let (_vs, again) = open(family, Kind::Float, Some(&adapters()));
        again.load_lora(&Weights::open_file(&file).unwrap()).unwrap();
        let resumed = again.forward(input).unwrap().last.unwrap();
        assert_close(&format!("{family} resumed adapter"), &resumed, &adapted, &LENGTHS, 1e-6);
        let error = again.load_lora(&Weights::open(folder(family)).unwrap()).unwrap_err();
        assert!(error.to_string().contains("lora_A"), "{error}");
    }
}

/// If gradients do not reach every parameter, part of the model silently stays as it was.
#[test]
fn gradients_reach_every_trainable_parameter() {
    for family in FAMILIES {
        for lora in [None, Some(adapters())] {
            let golden = Golden::open(family);
            let (ids, mask) = (golden.tensor("input_ids"), golden.tensor("attention_mask"));
            let (vs, mut decoder) = open(family, Kind::Float, lora.as_ref());
            for kind in [None, Some(Kind::BFloat16)] {
                decoder.set_compute_kind(kind);
                let input = ForwardInput {
                    attention_mask: Some(&mask),
                    adapters: Adapters::Training,
                    ..ForwardInput::new(&ids)
                };
                let last = decoder.forward(input).unwrap().last.unwrap();
                decoder.logits(&last.select(1, 2)).logsumexp([-1], false).sum(Kind::Float).backward();
                for (name, tensor) in vs.variables() {
                    if !tensor.requires_grad() {
                        assert!(!tensor.grad().defined(), "{family}: frozen {name} has a gradient");
                        continue;
                    }
                    let gradient = tensor.grad();
                    assert!(gradient.defined(), "{family}: {name} has no gradient");
                    let size = f64::try_from(gradient.abs().sum(Kind::Float)).unwrap();
                    // B is zero at the start, so A has no slope yet; a key's bias shifts all scores alike.
                    let flat = name.contains("lora_A") || name.ends_with("k_proj.bias");
                    assert!(size.is_finite() && (size > 0.0 || flat), "{family}: {name}: gradient {size}");
                }
            }
        }
    }
}

/// An exported encoder stops early; it must see what the whole model saw at that depth.
#[test]
fn stopping_early_gives_the_state_of_the_full_run() {
    let _guard = tch::no_grad_guard();
    let ((_vs, decoder), golden) = (open("llama", Kind::Float, None), Golden::open("llama"));
    let ids = golden.tensor("input_ids");
    let full = decoder.forward(ForwardInput { keep_layers: &[3, 2, 0], ..ForwardInput::new(&ids) }).unwrap();
    let early = ForwardInput { keep_layers: &[2], max_layers: Some(2), ..ForwardInput::new(&ids) };
    let early = decoder.forward(early).unwrap();
    assert_close("layer 2", &early.layers[0], &full.layers[1], &[24; 3], 0.0);
    assert!(matches!(early.last(), Err(DecoderError::NoLast { layers: 2 })));
    assert_close("embeddings", &full.layers[2], &golden.tensor("hidden.0"), &LENGTHS, 0.0);
}

/// A wrong input must be answered in a sentence: an operator's panic ends a robot's process.
#[test]
fn wrong_inputs_are_refused_in_words() {
    let _guard = tch::no_grad_guard();
    let (_vs, decoder) = open("mistral", Kind::Float, None);
    let ids = Tensor::from_slice(&[5_i64, 6, 7, 8]).view([2, 2]);
    let said = |input: ForwardInput| decoder.forward(input).unwrap_err().to_string();
    let mask = |ones: &[i64], size: &[i64]| Tensor::from_slice(ones).view(size);
    let with_mask =
        |mask: &Tensor| said(ForwardInput { attention_mask: Some(mask), ..ForwardInput::new(&ids) });
    assert!(with_mask(&mask(&[0, 1, 1, 1], &[2, 2])).contains("row 0"));
    assert!(with_mask(&mask(&[1, 1, 0, 0], &[2, 2])).contains("row 1"));
    assert!(with_mask(&mask(&[1, 1], &[1, 2])).contains("attention_mask"));
    assert!(said(ForwardInput::new(&(&ids * 100_i64))).contains("token id 500"));
    assert!(said(ForwardInput::new(&(&ids - 6_i64))).contains("token id -1"));
    assert!(said(ForwardInput::new(&ids.to_kind(Kind::Float))).contains("Int64"));
    assert!(said(ForwardInput::new(&ids.view(-1))).contains("[batch, seq]"));
    assert!(said(ForwardInput::new(&ids.narrow(1, 0, 0))).contains("at least one"));
    // The window of 32 is shorter than the 64 positions: beyond it full attention would not be Mistral's.
    let long = said(ForwardInput::new(&Tensor::ones([1, 33], (Kind::Int64, Device::Cpu))));
    assert!(long.contains("33 tokens") && long.contains("32"), "{long}");
    assert!(said(ForwardInput { keep_layers: &[3], ..ForwardInput::new(&ids) }).contains("layer 3"));
    assert!(said(ForwardInput { max_layers: Some(9), ..ForwardInput::new(&ids) }).contains("layer 9"));
    let three = Tensor::ones([3, 4], (Kind::Int64, Device::Cpu));
    let past = decoder.forward(ForwardInput { want_cache: true, ..ForwardInput::new(&three) });
    let past = past.unwrap().cache.unwrap();
    assert!(said(ForwardInput { past: Some(&past), ..ForwardInput::new(&ids) }).contains("3 rows"));
    assert!(past.select(&[3]).is_err() && past.select(&[-1]).is_err() && past.expand(2).is_err());
    let first = ForwardInput { want_cache: true, max_layers: Some(1), ..ForwardInput::new(&ids) };
    let short = decoder.forward(first).unwrap().cache.unwrap();
    assert!(said(ForwardInput { past: Some(&short), ..ForwardInput::new(&ids) }).contains("1 layers"));
    assert!(KvCache::concat(&[past, short]).is_err());
    assert!(decoder.choice_rows(&[3, 80]).is_err());
    assert!(decoder.generate(&[], 3, &[]).is_err());
    for wrong in [
        LoraConfig { rank: 0, ..LoraConfig::default() },
        LoraConfig { dropout: 1.0, ..LoraConfig::default() },
        LoraConfig { target_modules: vec!["query".into()], ..LoraConfig::default() },
    ] {
        let vs = nn::VarStore::new(Device::Cpu);
        assert!(matches!(
            Decoder::new(&vs.root(), decoder.config(), Some(&wrong)),
            Err(DecoderError::Lora { .. })
        ));
    }
}

/// Name, shape and numbers of each tensor.
type Tensors = Vec<(String, Vec<usize>, Vec<f32>)>;

/// A checkpoint that does not fit must not be loaded half: the model would answer, and answer wrongly.
#[test]
fn weights_that_do_not_fit_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let config = DecoderConfig::open(folder("llama")).unwrap();
    let weights = Weights::open(folder("llama")).unwrap();
    let load = |change: &dyn Fn(&mut Tensors)| {
        let mut tensors: Tensors = weights
            .names()
            .map(|name| {
                let (shape, numbers) = weights.f32(name).unwrap();
                (name.to_owned(), shape, numbers)
            })
            .collect();
        change(&mut tensors);
        write_safetensors(dir.path().join("model.safetensors"), tensors, DType::F32, HashMap::new()).unwrap();
        let vs = nn::VarStore::new(Device::Cpu);
        let decoder = Decoder::new(&vs.root(), &config, None).unwrap();
        decoder.load(&Weights::open(dir.path()).unwrap())
    };
    let key = "model.layers.1.mlp.up_proj.weight";
    load(&|_| {}).unwrap();
    let error = load(&|tensors| tensors.retain(|(name, ..)| name != key)).unwrap_err();
    assert!(
        matches!(&error, DecoderError::Weights(WeightsError::Missing { name, .. }) if name == key),
        "{error}"
    );
    let error = load(&|tensors| tensors.push(("model.extra".into(), vec![1], vec![0.0]))).unwrap_err();
    assert!(error.to_string().contains("`model.extra`"), "{error}");
    let transpose = |tensors: &mut Tensors| {
        tensors.iter_mut().filter(|(name, ..)| name == key).for_each(|(_, shape, _)| shape.reverse());
    };
    let error = load(&transpose).unwrap_err().to_string();
    assert!(error.contains(key) && error.contains("[48, 64]") && error.contains("[64, 48]"), "{error}");
    // What older checkpoints carry along is no reason to refuse them.
    load(&|tensors| {
        tensors.push(("lm_head.weight".into(), vec![1], vec![0.0]));
        tensors.push(("model.layers.0.self_attn.rotary_emb.inv_freq".into(), vec![1], vec![0.0]));
    })
    .unwrap();
    let whole = fs::read(dir.path().join("model.safetensors")).unwrap();
    fs::write(dir.path().join("model.safetensors"), &whole[..whole.len() - 1]).unwrap();
    fs::copy(folder("llama").join("config.json"), dir.path().join("config.json")).unwrap();
    let vs = nn::VarStore::new(Device::Cpu);
    let error = Decoder::open(&vs.root(), dir.path(), None).unwrap_err();
    assert!(matches!(error, DecoderError::Weights(WeightsError::Truncated { .. })), "{error}");
}
