//! For tests: the recorded files of `testdata/`, and hostile variants of them.

use proptest::prelude::*;
use proptest::sample::Index;
use std::path::Path;

/// The sample at `name` under `testdata/`.
pub(crate) fn read(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata").join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every sample in directory `name` under `testdata/`, sorted.
pub(crate) fn names(name: &str) -> Vec<String> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata").join(name);
    let mut names: Vec<_> = std::fs::read_dir(&dir)
        .unwrap_or_else(|error| panic!("{}: {error}", dir.display()))
        .map(|entry| format!("{name}/{}", entry.unwrap().file_name().into_string().unwrap()))
        .collect();
    names.sort();
    names
}

#[derive(Debug, Clone)]
enum Mutation {
    Set(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    Repeat(Index, usize),
    Truncate(Index),
}

/// `name` with a few bytes set, inserted, removed, repeated or cut off: what a parser that indexes or
/// trusts a count would trip over.
pub(crate) fn mutated(name: &str) -> impl Strategy<Value = Vec<u8>> + use<> {
    let sample = read(name);
    // Bytes that mean something to these parsers are likelier than others.
    let byte = || prop_oneof![prop::sample::select(b" \t\n\\:,/.-=_09\0\"".to_vec()), any::<u8>()];
    let mutation = prop_oneof![
        (any::<Index>(), byte()).prop_map(|(at, byte)| Mutation::Set(at, byte)),
        (any::<Index>(), prop::collection::vec(byte(), 1..12))
            .prop_map(|(at, bytes)| Mutation::Insert(at, bytes)),
        (any::<Index>(), 1usize..60).prop_map(|(at, len)| Mutation::Remove(at, len)),
        (any::<Index>(), 1usize..200).prop_map(|(at, len)| Mutation::Repeat(at, len)),
        any::<Index>().prop_map(Mutation::Truncate),
    ];
    prop::collection::vec(mutation, 1..8).prop_map(move |mutations| {
        let mut content = sample.clone();
        for mutation in mutations {
            apply(&mut content, mutation);
        }
        content
    })
}

fn apply(content: &mut Vec<u8>, mutation: Mutation) {
    let end = |at: usize, len: usize, content: &[u8]| (at + len).min(content.len());
    if content.is_empty() {
        return;
    }
    let size = content.len();
    match mutation {
        Mutation::Set(at, byte) => content[at.index(size)] = byte,
        Mutation::Insert(at, bytes) => {
            let at = at.index(size);
            content.splice(at..at, bytes);
        }
        Mutation::Remove(at, len) => {
            let at = at.index(size);
            content.drain(at..end(at, len, content));
        }
        Mutation::Repeat(at, len) => {
            let at = at.index(size);
            let piece = content[at..end(at, len, content)].to_vec();
            content.splice(at..at, piece);
        }
        Mutation::Truncate(at) => content.truncate(at.index(size)),
    }
}
