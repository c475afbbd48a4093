//! What is held out: a keyed hash over canonical keys decides, so no list has to be carried along and every rendering of
//! a problem, in whatever task, falls on the same side. Pure.

use clap::ValueEnum;
use sha2::{Digest as _, Sha256};

use super::operator::Operator;

/// One key in this many is held out.
pub const HELD_OUT_SHARE: u32 = 16;

/// The side of the split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum)]
pub enum Split {
    /// May be trained on: no calculation in it is held out.
    Train,
    /// Never trained on: every calculation in it is held out, but for complements ([`Key::is_complement`]).
    HeldOut,
}

impl Split {
    /// The side of a problem whose solution goes through the calculations `inner`; none when it mixes both sides.
    pub fn of(inner: &[Key]) -> Option<Self> {
        let held_out = inner.iter().filter(|key| key.is_held_out()).count();
        match held_out {
            0 => Some(Self::Train),
            all if all == inner.len() => Some(Self::HeldOut),
            _ => None,
        }
    }
}

/// The canonical tuple of a problem: what is computed and on which operands, commutation folded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// What is computed.
    pub kind: &'static str,
    /// The operands in canonical order; those that the kind does not have are 0.
    pub operands: [u32; 4],
}

impl Key {
    /// A key of up to four operands.
    pub(super) fn new(kind: &'static str, given: &[u32]) -> Self {
        let mut operands = [0; 4];
        for (operand, given) in operands.iter_mut().zip(given) {
            *operand = *given;
        }
        Self { kind, operands }
    }

    /// Whether this is a subtraction from a power of ten. Every negative result is written through one, whatever its own
    /// operands are, so these belong to the way of solving, as columns do, and none is held out.
    pub fn is_complement(&self) -> bool {
        let [first, ..] = self.operands;
        self.kind == Operator::Minus.name() && first > 1 && 10_u32.pow(first.ilog10()) == first
    }

    /// Whether this key is held out: one in [`HELD_OUT_SHARE`] is, but for complements.
    pub fn is_held_out(&self) -> bool {
        if self.is_complement() {
            return false;
        }
        let [first, second, ..] = self.operands;
        // Only calculations decide, and they have two operands. The constant is the key of the hash: another one, or a text
        // without the 0 behind the operands, would be another split.
        let digest = Sha256::digest(format!("codex held-out 1\0{} {first} {second} 0", self.kind));
        let [a, b, c, d, ..]: [u8; 32] = digest.into();
        let number: u32 = u32::from_be_bytes([a, b, c, d]);
        number.is_multiple_of(HELD_OUT_SHARE)
    }
}
