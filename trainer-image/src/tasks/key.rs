//! The split between training and held-out problems. A keyed hash over canonical keys decides, so that no list is needed and
//! all renderings of a problem, in every task, are on the same side. Pure.

use clap::ValueEnum;
use sha2::{Digest as _, Sha256};

use super::operator::Operator;

/// One in this many keys is held out.
pub const HELD_OUT_SHARE: u32 = 16;

/// A side of the split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum)]
pub enum Split {
    /// For training: no calculation of the problem is held out.
    Train,
    /// Never trained on: every calculation of the problem is held out, except subtractions from powers of ten.
    HeldOut,
}

impl Split {
    /// Returns the side of a problem whose solution has the calculations `inner`; `None` if they are on both sides.
    pub fn of(inner: &[Key]) -> Option<Self> {
        let held_out = inner.iter().filter(|key| key.is_held_out()).count();
        match held_out {
            0 => Some(Self::Train),
            all if all == inner.len() => Some(Self::HeldOut),
            _ => None,
        }
    }
}

/// The canonical key of a problem: what is computed, on which operands; the same for swapped operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// The computation.
    pub kind: &'static str,
    /// The operands in canonical order, filled up with 0.
    pub operands: [u32; 4],
}

impl Key {
    /// Makes a key of up to four operands.
    pub(super) fn new(kind: &'static str, given: &[u32]) -> Self {
        let mut operands = [0; 4];
        for (operand, given) in operands.iter_mut().zip(given) {
            *operand = *given;
        }
        Self { kind, operands }
    }

    /// Returns whether this is a subtraction from a power of ten. Every negative result needs one, whatever its operands, so
    /// these are part of the method, as columns are, and never held out.
    pub fn is_complement(&self) -> bool {
        let [first, ..] = self.operands;
        self.kind == Operator::Minus.name() && first > 1 && 10_u32.pow(first.ilog10()) == first
    }

    /// Returns whether this key is held out: one in [`HELD_OUT_SHARE`] is, except complements.
    pub fn is_held_out(&self) -> bool {
        if self.is_complement() {
            return false;
        }
        let [first, second, ..] = self.operands;
        // Calculations have two operands. The constant is the key of the hash: changing it, or dropping the 0 after the
        // operands, would change the split.
        let digest = Sha256::digest(format!("codex held-out 1\0{} {first} {second} 0", self.kind));
        let [a, b, c, d, ..]: [u8; 32] = digest.into();
        let number: u32 = u32::from_be_bytes([a, b, c, d]);
        number.is_multiple_of(HELD_OUT_SHARE)
    }
}
