//! Mutations of inputs, drawn by a seed. Pure.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The longest input.
const LONGEST: usize = 1 << 20;

/// Pieces that readers treat in a special way.
const PIECES: &[&[u8]] = &[
    b"null",
    b"true",
    b"-1",
    b"1e999",
    b"-0.0",
    b"NaN",
    b"18446744073709551616",
    b"9223372036854775807",
    b"\"\"",
    b"[]",
    b"{}",
    b"{\"\":",
    b"[[[[[[[[",
    b"\\u0000",
    b"\\ud800",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\0",
    b"\r\n",
    b"\n",
    b",",
    b":",
    b"\"",
    b"'",
    b"<<: *a",
    b"&a [*a]",
    b"- ",
    b"---\n",
    b"!!binary",
    b"\t",
    b"../../etc/passwd",
    b"\xc3\x28",
    b"\xf0\x9f\x98\x80",
    b"e\xcc\x81",
    b"}}",
    b"]]",
    b"{% for x in y %}",
];

/// Draws mutations.
pub(super) struct Mutator(ChaCha8Rng);

impl Mutator {
    pub(super) fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    fn below(&mut self, bound: usize) -> usize {
        self.0.random_range(0..bound.max(1))
    }

    /// Returns a mutation of one of the seeds. Bytes behind `head` seldom change.
    pub(super) fn mutate(&mut self, seeds: &[Vec<u8>], head: usize) -> Vec<u8> {
        let chosen = self.below(seeds.len());
        let mut input = seeds[chosen].clone();
        let rounds = 1 + self.below(4) * self.below(4);
        for _ in 0..rounds {
            self.once(&mut input, seeds, head);
        }
        input.truncate(LONGEST.max(head));
        input
    }

    fn once(&mut self, input: &mut Vec<u8>, seeds: &[Vec<u8>], head: usize) {
        let reach = if self.below(20) == 0 { input.len() } else { input.len().min(head) };
        let at = self.below(reach);
        if input.is_empty() {
            input.push(self.0.random());
            return;
        }
        let until = (at + 1 + self.below(32)).min(input.len());
        match self.below(12) {
            0 => input[at] ^= 1 << self.below(8),
            1 => input[at] = self.0.random(),
            2 => input[at] = [0, 1, 0x7f, 0x80, 0xfe, 0xff][self.below(6)],
            3 => drop(input.drain(at..until)),
            4 => {
                let piece: Vec<u8> = input[at..until].to_vec();
                let to = self.below(reach);
                input.splice(to..to, piece);
            }
            5 | 6 => {
                let piece = PIECES[self.below(PIECES.len())];
                let end = if self.below(2) == 0 { at } else { (at + piece.len()).min(input.len()) };
                input.splice(at..end, piece.iter().copied());
            }
            7 => {
                // A number of 2, 4 or 8 bytes, little-endian as in binary headers.
                let number = [0, 1, u64::from(u16::MAX), u64::from(u32::MAX), u64::MAX, 1 << 31, 1 << 40, 1 << 63]
                    [self.below(8)];
                let width = [2, 4, 8][self.below(3)].min(input.len() - at);
                input[at..at + width].copy_from_slice(&number.to_le_bytes()[..width]);
            }
            8 => input.truncate(at),
            9 => {
                let other = &seeds[self.below(seeds.len())];
                let from = self.below(other.len().min(head));
                let piece = other[from..(from + 64).min(other.len())].to_vec();
                input.splice(at..at, piece);
            }
            10 => {
                // A digit of a number in text.
                if let Some(digit) = input[at..reach.max(at)].iter().position(u8::is_ascii_digit) {
                    let number = ["0", "-1", "4294967296", "1e400", "99999999999999999999", "0.5"][self.below(6)];
                    input.splice(at + digit..=at + digit, number.bytes());
                }
            }
            _ => {
                let times = 1 + self.below(200);
                let piece = input[at..until].repeat(times);
                input.splice(at..until, piece);
            }
        }
    }
}
