//! A sample of what `make fuzz` does, in a few seconds and without a fuzzer: every input of the corpus, and a fixed
//! number of mutations of them. The numbers are always the same; `FUZZ_SEED` tries others.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use yurt_fuzz::{TARGETS, Target};

/// Mutations a target.
const INPUTS: u64 = 2000;
/// Bound of an input that is grown by mutation.
const MAX_INPUT: usize = 4096;

fn corpus(target: &Target) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name);
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{} has no inputs", folder.display());
    files.into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    fn byte(&mut self) -> u8 {
        // Bytes that mean something to a parser, more often than others.
        const SPECIAL: &[u8] = b"\0\x01\x7f\x80\xff\n\r\t \"\\/{}[],:;=&?%+-.0123456789azAZ$~";
        if self.below(3) == 0 { self.next() as u8 } else { SPECIAL[self.below(SPECIAL.len())] }
    }

    /// A piece of `bytes`, from where to where.
    fn piece(&mut self, bytes: &[u8]) -> std::ops::Range<usize> {
        let start = self.below(bytes.len() + 1);
        start..start + self.below((bytes.len() - start + 1).min(64))
    }
}

/// One to eight changes of a kind that parsers trip over.
fn mutate(random: &mut Random, mut input: Vec<u8>, other: &[u8]) -> Vec<u8> {
    for _ in 0..=random.below(8) {
        let piece = random.piece(&input);
        match random.below(7) {
            0 => drop(input.drain(piece)),
            1 => {
                let copy = input[piece].to_vec();
                let at = random.below(input.len() + 1);
                input.splice(at..at, copy);
            }
            2 => {
                let theirs = random.piece(other);
                input.splice(piece, other[theirs].iter().copied());
            }
            3 => input.truncate(piece.start),
            4 => {
                let byte = random.byte();
                input.insert(piece.start, byte);
            }
            5 if piece.start < input.len() => input[piece.start] ^= 1 << random.below(8),
            _ if piece.start < input.len() => input[piece.start] = random.byte(),
            _ => input.push(random.byte()),
        }
    }
    input.truncate(MAX_INPUT);
    input
}

/// Runs one input; a panic names it so that it can be put into the corpus.
fn run(target: &Target, from: &str, input: &[u8]) {
    if catch_unwind(AssertUnwindSafe(|| (target.run)(input))).is_err() {
        let mut text = String::new();
        input.iter().for_each(|byte| write!(text, "{}", std::ascii::escape_default(*byte)).unwrap());
        panic!("{} fails with {from}:\nprintf '%b' $'{text}'", target.name);
    }
}

#[test]
fn every_input_of_the_corpus_and_some_mutations_of_them_pass() {
    let seed = std::env::var("FUZZ_SEED").ok().map_or(0, |seed| seed.parse::<u64>().unwrap());
    let inputs = std::env::var("FUZZ_INPUTS").ok().map_or(INPUTS, |inputs| inputs.parse::<u64>().unwrap());
    for target in TARGETS {
        let corpus = corpus(target);
        for (path, input) in &corpus {
            run(target, &path.display().to_string(), input);
        }
        for number in 0..inputs {
            let mut random = Random(seed.wrapping_add(number).wrapping_mul(0x2545_f491_4f6c_dd1d));
            let input = match random.below(16) {
                0 => (0..random.below(256)).map(|_| random.byte()).collect(),
                _ => corpus[random.below(corpus.len())].1.clone(),
            };
            let other = &corpus[random.below(corpus.len())].1;
            let input = mutate(&mut random, input, other);
            run(target, &format!("FUZZ_SEED={seed}, input {number}"), &input);
        }
    }
}

#[test]
fn every_folder_of_the_corpus_is_a_targets() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for entry in std::fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name();
        assert!(TARGETS.iter().any(|target| name == target.name), "{name:?} is no target");
    }
}
