use super::*;
use ed25519_dalek::SigningKey;
use serde_json::{Value, json};
use std::fs;
use std::io::BufReader;

fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

fn write(file: &Path, kind: Kind, key: Option<&SigningKey>) {
    let mut sealing = Sealing::create(file, kind).unwrap();
    let numbers: Vec<u8> = (0..6).flat_map(|i| (i as f32).to_le_bytes()).collect();
    sealing.numbers::<FileError>("vectors", 3, |part| part.write(&numbers)).unwrap();
    let lines = |part: &mut PartWriter<'_>| (0..3).try_for_each(|i| part.line(&json!({ "line": i })));
    sealing.lines::<FileError>("documents", lines).unwrap();
    sealing.lines::<FileError>("removed", |_| Ok(())).unwrap();
    sealing.finish(&json!({ "what": "a test" }), key).unwrap();
}

/// The file with some of its bytes exchanged for as many others.
fn exchange(file: &Path, from: &str, to: &str) {
    let mut bytes = fs::read(file).unwrap();
    let place = bytes.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
    bytes[place..place + to.len()].copy_from_slice(to.as_bytes());
    fs::write(file, bytes).unwrap();
}

fn read_all(file: &Path, kind: Kind, trusted: &[VerifyingKey]) -> Result<Sealed, SealedError> {
    let sealed = Sealed::open(file, kind)?;
    sealed.check_signature(trusted)?;
    sealed.check()?;
    Ok(sealed)
}

/// What went in comes out, and whatever reads safetensors can look into it.
#[test]
fn contents_come_back_and_are_safetensors() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.safetensors");
    write(&file, Kind::Shard, None);
    let sealed = Sealed::open(&file, Kind::Shard).unwrap();
    sealed.check().unwrap();
    assert_eq!(sealed.about::<Value>().unwrap(), json!({ "what": "a test" }));
    let mut reader = BufReader::new(sealed.lines("documents").unwrap());
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "{\"line\":0}\n{\"line\":1}\n{\"line\":2}\n");
    sealed.finish("documents", reader.into_inner()).unwrap();
    // Not read to the end: it has not been seen to be whole.
    let unread = sealed.part("vectors", Dtype::F32, &[2, 3]).unwrap();
    assert!(sealed.finish("vectors", unread).is_err());
    for (name, dtype, shape) in
        [("vectors", Dtype::F32, [3, 2]), ("vectors", Dtype::U8, [2, 3]), ("absent", Dtype::F32, [2, 3])]
    {
        assert!(matches!(sealed.part(name, dtype, &shape), Err(SealedError::Damaged { .. })));
    }
    let foreign = models::weights::Weights::open_file(&file).unwrap();
    assert_eq!(foreign.f32("vectors").unwrap(), (vec![2, 3], vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0]));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "a temporary file was left");
}

/// The same contents are the same bytes: a shard that is encoded again can be compared by its digest.
#[test]
fn writing_again_writes_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let files = ["a", "b"].map(|name| dir.path().join(name));
    for file in &files {
        write(file, Kind::Delta, Some(&key(1)));
    }
    assert_eq!(fs::read(&files[0]).unwrap(), fs::read(&files[1]).unwrap());
}

/// A flipped bit anywhere, in the header, a digest, the signature or the data, must never be taken for what was written.
#[test]
fn every_flipped_bit_and_every_cut_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a");
    let trusted = [key(1).verifying_key()];
    write(&file, Kind::Delta, Some(&key(1)));
    let whole = fs::read(&file).unwrap();
    read_all(&file, Kind::Delta, &trusted).unwrap();
    // Spaces behind the header's last brace are nobody's.
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let padding = whole[..header].iter().rposition(|byte| *byte == b'}').unwrap() + 1;
    for place in 0..whole.len() {
        // Another bit of each byte: all bits would be a minute.
        let bit = place * 5 % 8;
        let mut bytes = whole.clone();
        bytes[place] ^= 1 << bit;
        fs::write(&file, bytes).unwrap();
        let taken = read_all(&file, Kind::Delta, &trusted).is_ok();
        assert!(!taken || (padding..header).contains(&place), "bit {bit} of byte {place} goes unseen");
    }
    for length in (0..whole.len()).step_by(7) {
        fs::write(&file, &whole[..length]).unwrap();
        let error = read_all(&file, Kind::Delta, &trusted).unwrap_err();
        assert!(matches!(error, SealedError::Length { .. }), "{length}: {error}");
    }
    fs::write(&file, [&whole[..], b"x"].concat()).unwrap();
    assert!(matches!(read_all(&file, Kind::Delta, &trusted), Err(SealedError::Length { .. })));
}

/// A robot must take its knowledge from nobody but those it was told to trust.
#[test]
fn only_trusted_signatures_are_taken() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a");
    let trusted = [key(1).verifying_key(), key(2).verifying_key()];
    let message = |key: Option<&SigningKey>| {
        write(&file, Kind::Delta, key);
        read_all(&file, Kind::Delta, &trusted).map(|_| ()).map_err(|error| error.to_string())
    };
    message(Some(&key(1))).unwrap();
    message(Some(&key(2))).unwrap();
    assert!(message(None).unwrap_err().contains("is not signed"));
    let stranger = message(Some(&key(3))).unwrap_err();
    for key in [key(1), key(2), key(3)] {
        let name = name_of(key.verifying_key().as_bytes());
        assert!(stranger.contains(&name), "{stranger}");
    }
    // A stranger's file under a trusted name, and a trusted signature of other contents.
    let names = [key(1), key(3)].map(|key| files::hex(key.verifying_key().as_bytes()));
    message(Some(&key(3))).unwrap_err();
    exchange(&file, &names[1], &names[0]);
    assert!(matches!(read_all(&file, Kind::Delta, &trusted), Err(SealedError::Forged { .. })));
}

/// The commonest mistake is a wrong path; and an old program must say so when it meets a newer file.
#[test]
fn other_files_are_refused_by_what_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a");
    let message = |kind| Sealed::open(&file, kind).unwrap_err().to_string();
    assert!(message(Kind::Shard).contains("No such file"));
    write(&file, Kind::Delta, None);
    assert!(message(Kind::Shard).contains("is not a shard (a delta)"));
    exchange(&file, "version\":\"1\"", "version\":\"2\"");
    assert!(message(Kind::Delta).contains("format version 2, this program reads version 1"));
    fs::write(&file, "{\"a\": \"longer than eight bytes\"}").unwrap();
    assert!(message(Kind::Delta).contains("does not begin as a safetensors file"));
    let tensors = [("w".to_owned(), vec![1], vec![1.0])];
    models::weights::write_safetensors(&file, tensors, Dtype::F32, HashMap::new()).unwrap();
    assert!(message(Kind::Delta).contains("a safetensors file of another program"));
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    assert!(message(Kind::Delta).contains("a directory"));
}
