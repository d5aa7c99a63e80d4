//! Inputs made from inputs, in the order that a seed decides.

use fastrand::Rng;

/// The longest input.
const LENGTH_MAX: usize = 64 * 1024;
/// Mutations on one input at most.
const MUTATIONS_MAX: usize = 6;

/// Bytes that mean something to at least one of the parsers.
const TELLING: &[&[u8]] = &[
    b"%2F",
    b"%",
    b"%00",
    b"%ff",
    b"/",
    b"//",
    b"?",
    b"&",
    b"=",
    b",",
    b";",
    b"\\",
    b"\"",
    b"'",
    b"\0",
    b"\n",
    b"\r\n",
    b" ",
    b"\t",
    b"-",
    b"_",
    b".",
    b"..",
    b"!",
    b"!=",
    b"==",
    b" in (",
    b" notin ()",
    b"*/*",
    b";q=0.5",
    b";as=Table",
    b"1e309",
    b"18446744073709551616",
    b"-1",
    b"0",
    b"1.5",
    b"h",
    b"\xc2\xb5s",
    b"null",
    b"true",
    b"{}",
    b"[]",
    b"[[[[",
    b"{\"a\":",
    b"\"\\ud800\"",
    b"\xef\xbb\xbf",
    b"\xff",
    b"\xe2\x80\xa8",
    b"---\n",
    b"&a ",
    b"*a",
    b"<<: *a",
    b"!!binary ",
    b"apiVersion: ",
    b"kind: ",
    b"items: ",
    b"metadata: ",
    b"eyJ",
    b"e30",
    b"e30.e30.e30",
];

/// One input from one or two others.
pub(crate) fn mutated(rng: &mut Rng, corpus: &[Vec<u8>]) -> Vec<u8> {
    let pick =
        |rng: &mut Rng| corpus.get(rng.usize(..corpus.len().max(1))).map_or(&[][..], Vec::as_slice);
    let mut input = pick(rng).to_vec();
    for _ in 0..rng.usize(1..=MUTATIONS_MAX) {
        let at = rng.usize(..=input.len());
        let end = (at + rng.usize(..=16)).min(input.len());
        match rng.u8(..10) {
            0 => drop(input.drain(at..end)),
            1 => splice(&mut input, at..end, pick_word(rng)),
            2 => splice(&mut input, at..at, pick_word(rng)),
            3 => set(&mut input, at, |byte| byte ^ (1 << rng.u8(..8))),
            4 => set(&mut input, at, |_| rng.u8(..)),
            5 => set(&mut input, at, |byte| byte.wrapping_add(1)),
            // A part again, in the same place or in another.
            6 => {
                let from = rng.usize(..=input.len());
                let part = input[from..(from + rng.usize(..=64)).min(input.len())].to_vec();
                splice(&mut input, at..at, &part);
            }
            // The beginning of this one with the end of another.
            7 => {
                let other = pick(rng);
                let from = rng.usize(..=other.len());
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            8 => input.truncate(at),
            // The same many times, for what grows with the square of it.
            _ => {
                let part = input[at..end].to_vec();
                for _ in 0..rng.usize(..64) {
                    splice(&mut input, at..at, &part);
                }
            }
        }
    }
    input.truncate(LENGTH_MAX);
    input
}

fn pick_word(rng: &mut Rng) -> &'static [u8] {
    TELLING[rng.usize(..TELLING.len())]
}

fn set(input: &mut [u8], at: usize, change: impl FnOnce(u8) -> u8) {
    if let Some(byte) = input.get_mut(at) {
        *byte = change(*byte);
    }
}

fn splice(input: &mut Vec<u8>, range: std::ops::Range<usize>, part: &[u8]) {
    input.splice(range, part.iter().copied());
}

#[test]
fn a_seed_decides_all_inputs_and_they_differ() {
    let corpus = [b"/apis/apps/v1?watch=1".to_vec(), b"a in (b,c)".to_vec()];
    let of = |seed| {
        let mut rng = Rng::with_seed(seed);
        (0..500).map(|_| mutated(&mut rng, &corpus)).collect::<Vec<_>>()
    };
    assert_eq!(of(1), of(1));
    let distinct: std::collections::BTreeSet<_> = of(1).into_iter().chain(of(2)).collect();
    assert!(distinct.len() > 800, "{}", distinct.len());
}
