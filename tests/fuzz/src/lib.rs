//! Mutated inputs for everything that reads bytes of others. A reader may refuse an input; it must not panic, hang, or ask for
//! memory without bound.
//!
//! The inputs are mutations of valid ones: bits, bytes, numbers and pieces change, and inputs are cut, repeated and mixed. There is
//! no feedback from coverage, which would need a nightly toolchain. Every test run tries a few inputs of fixed seeds;
//! `make fuzz` tries new ones for `CODEX_FUZZ_SECONDS` a target. An input that fails is kept beside the sentence about it.

mod mutate;

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
/// As `head` of a [`Target`]: an input that is text, all of which may change.
pub const TEXT: usize = usize::MAX;

/// Returns whether it accepted an input.
type Reader = Box<dyn Fn(&[u8]) -> bool>;

/// Something that reads bytes of others.
pub struct Target {
    name: &'static str,
    /// Valid inputs.
    seeds: Vec<Vec<u8>>,
    /// Bytes behind this position are seldom changed: they are weights.
    head: usize,
    read: Reader,
}

impl Target {
    /// Returns a target. `seeds` are inputs that `read` accepts; their bytes behind `head` are seldom changed.
    ///
    /// # Panics
    /// There are no seeds.
    pub fn new(name: &'static str, seeds: Vec<Vec<u8>>, head: usize, read: impl Fn(&[u8]) -> bool + 'static) -> Self {
        assert!(!seeds.is_empty(), "{name} has no inputs to change");
        Self { name, seeds, head, read: Box::new(read) }
    }

    /// Tries one input.
    fn check(&self, input: &[u8], seed: u64) -> bool {
        let place = kept(self.name);
        // Written before it is read: a reader that ends the process leaves it, too.
        assert!(fs::write(&place, input).is_ok(), "{} cannot be written", place.display());
        let began = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(|| (self.read)(input)));
        let took = began.elapsed();
        let failed = result.is_err() || took > LONGEST;
        assert!(!failed, "{} failed on the input {seed} after {took:?}; it is kept in {}", self.name, place.display());
        drop(fs::remove_file(&place));
        result.unwrap_or_default()
    }

    /// Tries the seeds, and mutations of them.
    ///
    /// # Panics
    /// A seed is refused, or the reader panics or hangs on an input.
    pub fn fuzz(&self) {
        for seed in &self.seeds {
            assert!(self.check(seed, 0), "{} refuses a valid input", self.name);
        }
        let long = std::env::var("CODEX_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).map(Duration::from_secs);
        // Without a time, the same inputs each time.
        let first = if long.is_some() { rand::random::<u64>() >> 1 } else { 0 };
        let (began, mut tried, mut accepted) = (Instant::now(), 0_u64, 0_u64);
        while long.map_or(tried < INPUTS, |long| began.elapsed() < long) {
            let seed = first.wrapping_add(tried);
            let input = Mutator::new(seed).mutate(&self.seeds, self.head);
            accepted += u64::from(self.check(&input, seed));
            tried += 1;
        }
        println!("{}: {tried} inputs, {accepted} accepted", self.name);
    }
}

/// Returns where an input that fails is kept.
fn kept(target: &str) -> PathBuf {
    let folder = std::env::temp_dir().join("codex-fuzz");
    // If the folder cannot be created, writing into it reports the error.
    drop(fs::create_dir_all(&folder));
    folder.join(target)
}

/// Makes a test of each function of `targets`, which returns a [`Target`].
#[macro_export]
macro_rules! tests {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            targets::$name().fuzz();
        })*
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The loop finds what it looks for.
    #[test]
    fn a_reader_that_panics_is_found() {
        let target = Target::new("panics", vec![b"abcd".to_vec()], TEXT, |bytes| {
            assert_ne!(bytes.first(), Some(&0xff), "it cannot read this byte");
            true
        });
        let mut found = None;
        for seed in 0..5_000 {
            let input = Mutator::new(seed).mutate(&target.seeds, target.head);
            if catch_unwind(AssertUnwindSafe(|| (target.read)(&input))).is_err() {
                found = Some(input);
                break;
            }
        }
        assert_eq!(found.and_then(|input| input.first().copied()), Some(0xff));
    }
}
