//! Files written, cut, damaged and in shards.

use super::*;
use std::collections::HashMap;
use std::fs;

fn numbers() -> Vec<(String, Vec<usize>, Vec<f32>)> {
    vec![
        ("b".into(), vec![2, 3], vec![0.0, -1.5, 2.0, 1e-3, 65504.0, -0.0]),
        ("a".into(), vec![], vec![3.25]),
        ("empty".into(), vec![0, 4], vec![]),
    ]
}

fn write(path: &Path, dtype: DType) {
    write_safetensors(path, numbers(), dtype, HashMap::from([("k".into(), "v".into())])).unwrap();
}

/// A checkpoint that changes its numbers by being saved would drift with every resume.
#[test]
fn every_dtype_comes_back_as_written() {
    let dir = tempfile::tempdir().unwrap();
    for (dtype, relative) in [(DType::F32, 0.0), (DType::F16, 1e-3), (DType::BF16, 1e-2)] {
        let path = dir.path().join("model.safetensors");
        write(&path, dtype);
        let weights = Weights::open(dir.path()).unwrap();
        assert_eq!(weights.names().collect::<Vec<_>>(), ["a", "b", "empty"]);
        assert_eq!((weights.metadata("k"), weights.metadata("format")), (Some("v"), Some("pt")));
        for (name, shape, expected) in numbers() {
            let (found_shape, found) = weights.f32(&name).unwrap();
            assert_eq!(found_shape, shape);
            assert_eq!(found.len(), expected.len());
            for (f, e) in found.iter().zip(&expected) {
                assert!((f - e).abs() <= relative * e.abs(), "{dtype}: {name}: {f} {e}");
            }
        }
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "a temporary file was left");
}

/// A half-copied file must say so, not be read as noise or end the process.
#[test]
fn a_file_cut_anywhere_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    write(&path, DType::F32);
    let whole = fs::read(&path).unwrap();
    for length in 0..whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        let error = Weights::open(dir.path()).unwrap_err();
        assert!(matches!(error, WeightsError::Truncated { .. }), "{length}: {error}");
    }
    fs::write(&path, [&whole[..], b"x"].concat()).unwrap();
    assert!(matches!(Weights::open(dir.path()), Err(WeightsError::Truncated { .. })));
    for byte in 0..whole.len().min(200) {
        let mut broken = whole.clone();
        broken[byte] ^= 0x41;
        fs::write(&path, broken).unwrap();
        let _ = Weights::open(dir.path()).map(|weights| weights.f32("b").map(|_| ()));
    }
}

/// Large models come in shards; one that is not there must be named.
#[test]
fn shards_are_joined_and_a_missing_one_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let shard = |name: &str, tensor: &str| {
        let tensors = [(tensor.to_owned(), vec![1], vec![1.0])];
        write_safetensors(dir.path().join(name), tensors, DType::F32, HashMap::new()).unwrap();
    };
    let index = |map: &str| {
        let text = format!(r#"{{"metadata": {{}}, "weight_map": {map}}}"#);
        fs::write(dir.path().join("model.safetensors.index.json"), text).unwrap();
    };
    index(r#"{"x": "1.safetensors", "y": "2.safetensors"}"#);
    shard("1.safetensors", "x");
    let error = Weights::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("2.safetensors"), "{error}");
    shard("2.safetensors", "y");
    assert_eq!(Weights::open(dir.path()).unwrap().f32("y").unwrap().1, [1.0]);
    shard("2.safetensors", "z");
    assert!(matches!(Weights::open(dir.path()), Err(WeightsError::Missing { name, .. }) if name == "y"));
    shard("2.safetensors", "x");
    assert!(matches!(Weights::open(dir.path()), Err(WeightsError::Duplicate { .. })));
    index(r#"{"x": "../1.safetensors"}"#);
    assert!(matches!(Weights::open(dir.path()), Err(WeightsError::MissingShard { .. })));
}

/// A wrong count would shift every tensor behind it.
#[test]
fn a_tensor_of_another_size_than_its_shape_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let tensors = [("x".to_owned(), vec![2, 2], vec![1.0])];
    let error = write_safetensors(&path, tensors, DType::F32, HashMap::new()).unwrap_err();
    assert!(error.to_string().contains("`x`"), "{error}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}
