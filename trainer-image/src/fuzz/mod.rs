//! Mutated inputs for everything that reads bytes of others. A reader may refuse an input; it must not panic, hang, or ask for
//! memory without bound.
//!
//! The inputs are mutations of valid ones: bits, bytes, numbers and pieces change, and inputs are cut, repeated and mixed. There is
//! no feedback from coverage, which would need a nightly toolchain. Every test run tries a few inputs of fixed seeds;
//! `make fuzz` tries new ones for `CODEX_FUZZ_SECONDS` a target. An input that fails is kept beside the sentence about it.

mod mutate;
mod targets;

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    time::{Duration, Instant},
};

use mutate::Mutator;

/// The inputs that a plain test run tries, of each target.
const INPUTS: u64 = 60;
/// An input takes longer only if its reader hangs.
const LONGEST: Duration = Duration::from_secs(20);

/// Returns whether it accepted an input.
type Reader = Box<dyn Fn(&[u8]) -> bool>;

/// Something that reads bytes of others.
struct Target {
    name: &'static str,
    /// Valid inputs.
    seeds: Vec<Vec<u8>>,
    /// Bytes behind this position are seldom changed: they are weights.
    head: usize,
    read: Reader,
}

/// Returns where an input that fails is kept.
fn kept(target: &str) -> PathBuf {
    let folder = std::env::temp_dir().join("codex-fuzz");
    fs::create_dir_all(&folder).unwrap();
    folder.join(target)
}

/// Tries one input.
fn check(target: &Target, input: &[u8], seed: u64) -> bool {
    let place = kept(target.name);
    // Written before it is read: a reader that ends the process leaves it, too.
    fs::write(&place, input).unwrap();
    let began = Instant::now();
    let result = catch_unwind(AssertUnwindSafe(|| (target.read)(input)));
    let took = began.elapsed();
    let failed = result.is_err() || took > LONGEST;
    assert!(!failed, "{} failed on the input {seed} after {took:?}; it is kept in {}", target.name, place.display());
    fs::remove_file(&place).unwrap();
    result.unwrap_or_default()
}

fn fuzz(target: &Target) {
    for seed in &target.seeds {
        assert!(check(target, seed, 0), "{} refuses a valid input", target.name);
    }
    let long = std::env::var("CODEX_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).map(Duration::from_secs);
    // Without a time, the same inputs each time.
    let first = if long.is_some() { rand::random::<u64>() >> 1 } else { 0 };
    let (began, mut tried, mut accepted) = (Instant::now(), 0_u64, 0_u64);
    while long.map_or(tried < INPUTS, |long| began.elapsed() < long) {
        let seed = first.wrapping_add(tried);
        let input = Mutator::new(seed).mutate(&target.seeds, target.head);
        accepted += u64::from(check(target, &input, seed));
        tried += 1;
    }
    println!("{}: {tried} inputs, {accepted} accepted", target.name);
}

macro_rules! targets {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            fuzz(&targets::$name());
        })*
    };
}

targets! {
    json reports manifests configurations overrides gguf model_directories model_configurations tokenizers records tables
    parquet predictions bundles statements attestations logs keys requests copies expectations surveys
}

/// The loop finds what it looks for.
#[test]
fn a_reader_that_panics_is_found() {
    let target = Target {
        name: "panics",
        seeds: vec![b"abcd".to_vec()],
        head: usize::MAX,
        read: Box::new(|bytes| {
            assert_ne!(bytes.first(), Some(&0xff), "it cannot read this byte");
            true
        }),
    };
    let mut found = None;
    for seed in 0..5_000 {
        let input = Mutator::new(seed).mutate(&target.seeds, target.head);
        if catch_unwind(AssertUnwindSafe(|| (target.read)(&input))).is_err() {
            found = Some(input);
            break;
        }
    }
    assert_eq!(found.unwrap()[0], 0xff);
}
