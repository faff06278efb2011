use super::partial::Partial;
use super::*;
use crate::document::Metadata;
use models::student::Form;
use std::collections::BTreeSet;
use std::fs;
use std::io::Write;

const M: usize = 3;

fn about(place: Place, documents: usize) -> About {
    let input = Input { documents: 300, digest: "d".repeat(64) };
    let index = IndexKey { document_digest: "e".repeat(64), inner_dimensions: M, form: Form::Gated };
    About { place, documents, input, index }
}

fn place(text: &str) -> Place {
    text.parse().unwrap()
}

fn batch(number: usize, size: usize) -> Vec<Vec<f32>> {
    (0..size).map(|row| (0..M).map(|i| (100 * number + 10 * row + i) as f32).collect()).collect()
}

fn bytes(vectors: &[Vec<f32>]) -> Vec<u8> {
    vectors.iter().flatten().flat_map(|x| x.to_le_bytes()).collect()
}

/// A place that is counted from 0, or beyond the end, would leave a gap that shows at the merge, hours later.
#[test]
fn places_are_counted_from_one() {
    assert_eq!(place("2/4"), Place { shard: 2, of: 4 });
    assert_eq!(place("2/4").to_string(), "2/4");
    for (text, words) in [
        ("0/4", "no shard 0 of 4; they are counted from 1 to 4"),
        ("5/4", "no shard 5 of 4"),
        ("1/0", "there are no shards"),
        ("1", "expected I/N"),
        ("a/4", "expected I/N"),
        ("-1/4", "expected I/N"),
        ("1/2/3", "expected I/N"),
    ] {
        let refused = text.parse::<Place>().unwrap_err();
        assert!(refused.contains(words), "{text}: {refused}");
    }
}

/// A document in no shard would be lost, one in two refused; and each shard has whole batches, or its vectors would be others.
#[test]
fn shards_share_out_every_batch_once() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("d.jsonl");
    for (count, of) in [(1, 1), (1, 3), (BATCH * 3, 2), (BATCH * 7 + 5, 3), (BATCH * 2 + 1, 5)] {
        let mut out = fs::File::create(&file).unwrap();
        for i in 0..count {
            writeln!(out, "{{\"_id\": \"d{i}\", \"text\": \"text {i}\", \"metadata\": {{\"i\": {i}}}}}")
                .unwrap();
        }
        let source = Source::of(&file);
        let whole = source.read().unwrap();
        let (mut seen, mut inputs) = (BTreeSet::new(), Vec::new());
        for shard in 1..=of {
            let (documents, input) = read(&source, Place { shard, of }).unwrap();
            for (position, document) in documents.iter().enumerate() {
                let at = (position / BATCH * of + shard - 1) * BATCH + position % BATCH;
                assert_eq!(document, &whole[at], "{count} in {of}");
                assert!(seen.insert(at));
            }
            inputs.push(input);
        }
        assert_eq!(seen.len(), count);
        assert!(inputs.iter().all(|input| *input == inputs[0] && input.documents == count));
    }
}

/// Whatever of a document changes, it is another input: metadata and order too.
#[test]
fn the_inputs_digest_is_over_all_of_it() {
    let document = |id: &str, room: &str| Document {
        id: id.into(),
        text: "x".into(),
        metadata: Metadata::from_iter([("room".to_owned(), room.into())]),
        ..Document::default()
    };
    let digest = |documents: &[Document]| {
        let mut digest = InputDigest::default();
        documents.iter().for_each(|document| digest.take(document));
        digest.finish().digest
    };
    let (a, b) = (document("a", "bath"), document("b", "bath"));
    let digests = [
        digest(&[a.clone(), b.clone()]),
        digest(&[b.clone(), a.clone()]),
        digest(std::slice::from_ref(&a)),
        digest(&[a, document("b", "hall")]),
    ];
    assert_eq!(BTreeSet::from(digests.clone()).len(), digests.len());
}

/// A killed run goes on with what it had written whole, and never with a torn or a foreign batch.
#[test]
fn a_partial_shard_goes_on_where_it_was_whole() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("s.safetensors");
    let (sizes, about) = ([4, 4, 2], about(place("1/2"), 10));
    let open = |about: &About| Partial::open(&out, about, &sizes, || ());
    let replayed = |partial: &Partial| {
        let mut all = Vec::new();
        partial.replay(&sizes[..partial.batches], |vectors| {
            all.extend_from_slice(vectors);
            Ok(())
        })?;
        Ok::<_, ShardError>(all)
    };
    let mut partial = open(&about).unwrap();
    assert_eq!(partial.batches, 0);
    partial.push(&batch(0, 4)).unwrap();
    partial.push(&batch(1, 4)).unwrap();
    drop(partial);
    let file = partial_file(&out);
    let whole = fs::read(&file).unwrap();
    let two = [bytes(&batch(0, 4)), bytes(&batch(1, 4))].concat();
    let block = two.len() / 2 + 32;
    let start = whole.len() - 2 * block;
    for length in 0..=whole.len() {
        fs::write(&file, &whole[..length]).unwrap();
        let partial = open(&about).unwrap();
        let expected = length.saturating_sub(start) / block;
        assert_eq!(partial.batches, expected, "{length} of {} bytes", whole.len());
        assert_eq!(replayed(&partial).unwrap(), two[..expected * two.len() / 2]);
    }
    // Everything that follows a changed bit is encoded again.
    for place in start..whole.len() {
        let mut flipped = whole.clone();
        flipped[place] ^= 4;
        fs::write(&file, flipped).unwrap();
        assert_eq!(open(&about).unwrap().batches, (place - start) / block, "byte {place}");
    }
    // Batches out of their order are not theirs.
    let swapped = [&whole[..start], &whole[start + block..], &whole[start..start + block]].concat();
    fs::write(&file, swapped).unwrap();
    assert_eq!(open(&about).unwrap().batches, 0);

    fs::write(&file, &whole).unwrap();
    let mut partial = open(&about).unwrap();
    partial.push(&batch(2, 2)).unwrap();
    assert_eq!(replayed(&partial).unwrap(), [two, bytes(&batch(2, 2))].concat());
    drop(partial);
    let other = About { place: place("2/2"), ..about.clone() };
    let refused = open(&other).unwrap_err().to_string();
    assert!(refused.contains("holds shard 1/2") && refused.contains("not shard 2/2"), "{refused}");
    fs::write(&file, "something else that is longer than the first line ".repeat(20)).unwrap();
    assert!(open(&about).unwrap_err().to_string().contains("holds something else"));
    fs::write(&file, &whole).unwrap();
    open(&about).unwrap().remove().unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// A cluster may start a shard twice; two writers of one file would tear it.
#[test]
fn the_second_of_two_waits() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("s.safetensors");
    let about = about(place("1/2"), 4);
    let mut first = Partial::open(&out, &about, &[4], || panic!("nobody else is there")).unwrap();
    let (told, waiting) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let second =
            scope.spawn(|| Partial::open(&out, &about, &[4], || told.send(()).unwrap()).unwrap().batches);
        waiting.recv().unwrap();
        first.push(&batch(0, 4)).unwrap();
        drop(first);
        assert_eq!(second.join().unwrap(), 1);
    });
    // One that has been removed meanwhile is begun anew, under its own name.
    let first = Partial::open(&out, &about, &[4], || panic!("nobody else is there")).unwrap();
    let (told, waiting) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let second =
            scope.spawn(|| Partial::open(&out, &about, &[4], || told.send(()).unwrap()).unwrap().batches);
        waiting.recv().unwrap();
        first.remove().unwrap();
        assert_eq!(second.join().unwrap(), 0);
    });
    assert!(partial_file(&out).exists());
}
