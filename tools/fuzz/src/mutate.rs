//! Inputs from a seed: files of the corpus with a few things wrong, and bytes of no form at all. The same seed
//! and number always make the same input.

use fastrand::Rng;

/// No input is longer.
pub(crate) const LONGEST: usize = 64 << 10;

/// What these parsers trip over, if anything: numbers at the edges, words that mean something, escapes.
const WORDS: [&[u8]; 60] = [
    b"0",
    b"1",
    b"-1",
    b"+1",
    b"00",
    b"18446744073709551615",
    b"18446744073709551616",
    b"9223372036854775807",
    b"9223372036854771712",
    b"18014398509481984",
    b"4294967296",
    b"99999999999999999999999999",
    b"max",
    b"-0",
    b"nan",
    b"inf",
    b"1e308",
    b"1e-400",
    b"1e999",
    b"0.1",
    b"100.01",
    b"92%:86%",
    b"50%",
    b"%",
    b"off",
    b"K",
    b"KiB",
    b"kB",
    b"T",
    b"B",
    b"..",
    b"/..",
    b"/../..",
    b"/",
    b"//",
    b"//deleted",
    b" (deleted)",
    b" - ",
    b"- cgroup cgroup rw,memory",
    b" - cgroup2 cgroup2 rw",
    b":",
    b"::",
    b"0::/",
    b",",
    b"=",
    b"\\040",
    b"\\000",
    b"\\400",
    b"\\",
    b"\"",
    b"\n",
    b"\n\n",
    b"\t",
    b"\r\n",
    b"\0",
    b"\xff\xfe",
    b"\xc3\xa4",
    b"total_",
    b"Node 0, zone ",
    b"name=",
];

/// Input number `index` of `seed`, made from `corpus`.
pub(crate) fn input(seed: u64, index: u64, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut rng = Rng::with_seed(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ index);
    let rng = &mut rng;
    let mut bytes = match (rng.u8(..), corpus) {
        (0..16, _) | (_, []) => noise(rng),
        (16..24, _) => words(rng),
        _ => corpus[rng.usize(..corpus.len())].clone(),
    };
    // One in 256 is not changed, most a little, some much.
    let changes = match rng.u8(..) {
        0 => 0,
        1..200 => rng.usize(1..4),
        _ => rng.usize(4..24),
    };
    for _ in 0..changes {
        change(rng, &mut bytes, corpus);
        bytes.truncate(LONGEST);
    }
    bytes
}

fn noise(rng: &mut Rng) -> Vec<u8> {
    let most = if rng.u8(..) == 0 { LONGEST } else { 200 };
    let (length, ascii) = (rng.usize(..most), rng.bool());
    (0..length).map(|_| if ascii { rng.u8(b' '..=b'~') } else { rng.u8(..) }).collect()
}

fn words(rng: &mut Rng) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..rng.usize(..12) {
        bytes.extend(word(rng));
        if rng.bool() {
            bytes.push(b' ');
        }
    }
    bytes
}

fn word(rng: &mut Rng) -> &'static [u8] {
    WORDS[rng.usize(..WORDS.len())]
}

fn change(rng: &mut Rng, bytes: &mut Vec<u8>, corpus: &[Vec<u8>]) {
    if bytes.is_empty() {
        bytes.extend(word(rng));
        return;
    }
    let at = rng.usize(..bytes.len());
    match rng.u8(..14) {
        0 => bytes[at] = rng.u8(..),
        1 => bytes[at] ^= 1 << rng.u8(..8),
        2 | 3 => splice(bytes, at..at, word(rng)),
        // A word, or a number, by another.
        4 | 5 => {
            let span = span(bytes, at, |byte| !byte.is_ascii_whitespace());
            splice(bytes, span, word(rng));
        }
        6 | 7 => {
            let span = span(bytes, at, u8::is_ascii_digit);
            splice(bytes, span, word(rng));
        }
        8 => {
            bytes.drain(at..(at + rng.usize(..60)).min(bytes.len()));
        }
        9 => bytes.truncate(at),
        // A line gone, twice, or in another place.
        10 => {
            let span = span(bytes, at, |byte| *byte != b'\n');
            bytes.drain(span);
        }
        11 => {
            let line = bytes[span(bytes, at, |byte| *byte != b'\n')].to_vec();
            let to = rng.usize(..bytes.len());
            let to = span(bytes, to, |byte| *byte != b'\n').start;
            splice(bytes, to..to, &[&line[..], b"\n"].concat());
        }
        // A piece many times over: at times until the input is as long as can be.
        12 => {
            let piece = bytes[at..(at + rng.usize(1..200)).min(bytes.len())].to_vec();
            let most = if rng.u8(..32) == 0 { LONGEST } else { 2000 };
            let times = rng.usize(..=most / piece.len().max(1));
            splice(bytes, at..at, &piece.repeat(times));
        }
        _ => {
            let other =
                if corpus.is_empty() { &[] } else { &corpus[rng.usize(..corpus.len())][..] };
            let from = rng.usize(..=other.len());
            bytes.truncate(at);
            bytes.extend(&other[from..]);
        }
    }
}

/// The longest run around `at` whose bytes all are so; empty if the one at `at` is not.
fn span(bytes: &[u8], at: usize, is: impl Fn(&u8) -> bool) -> std::ops::Range<usize> {
    let start = bytes[..at].iter().rposition(|byte| !is(byte)).map_or(0, |before| before + 1);
    let length = bytes[at..].iter().position(|byte| !is(byte)).unwrap_or(bytes.len() - at);
    if length == 0 { at..at } else { start..at + length }
}

fn splice(bytes: &mut Vec<u8>, span: std::ops::Range<usize>, with: &[u8]) {
    bytes.splice(span, with.iter().copied());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_number_makes_the_same_input_and_others_differ() {
        let corpus = [b"MemTotal: 1 kB\nMemFree: 2 kB\n".to_vec()];
        let inputs: Vec<_> = (0..500).map(|index| input(7, index, &corpus)).collect();
        assert!((0..500).all(|index| inputs[index as usize] == input(7, index, &corpus)));
        let mut different = inputs.clone();
        different.sort();
        different.dedup();
        assert!(different.len() > 400, "{}", different.len());
        assert_ne!(inputs[0..20], (0..20).map(|i| input(8, i, &corpus)).collect::<Vec<_>>()[..]);
    }

    #[test]
    fn inputs_are_bounded_and_some_are_as_long_as_can_be() {
        let corpus = [b"usage 1\n".repeat(100)];
        let lengths = (0..20_000).map(|index| input(1, index, &corpus).len());
        assert_eq!(lengths.max(), Some(LONGEST));
    }
}
