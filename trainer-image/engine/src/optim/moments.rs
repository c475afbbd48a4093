//! The moments of an optimizer, in 32 or in 8 bits. Pure.

use super::eight::{EightBit, Sign};
use crate::{EngineError, Layout};

/// How moments are kept between steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MomentFormat {
    /// `f32`: 8 bytes for each trained parameter.
    #[default]
    F32,
    /// Eight bits, quantized in blocks: about 2 bytes for each trained parameter.
    EightBit,
}

/// Running means of the gradients (first moments) and of their squares (second moments), one of each for each trained parameter.
#[derive(Clone, Debug, PartialEq)]
pub enum Moments {
    /// As they are computed.
    F32 {
        /// The first moments.
        first: Vec<f32>,
        /// The second moments.
        second: Vec<f32>,
    },
    /// Quantized in blocks.
    EightBit {
        /// The first moments.
        first: EightBit,
        /// The second moments.
        second: EightBit,
    },
}

impl Moments {
    /// Returns moments of 0 for this many parameters.
    pub fn zero(count: usize) -> Self {
        Self::F32 { first: vec![0.0; count], second: vec![0.0; count] }
    }

    /// Returns moments of 0 in eight bits.
    pub fn zero_in_eight_bits(layout: &Layout) -> Self {
        Self::EightBit { first: EightBit::zero(layout, Sign::Signed), second: EightBit::zero(layout, Sign::Unsigned) }
    }

    /// Returns how they are kept.
    pub fn format(&self) -> MomentFormat {
        match self {
            Self::F32 { .. } => MomentFormat::F32,
            Self::EightBit { .. } => MomentFormat::EightBit,
        }
    }

    /// Keeps the moments in another format. Eight bits lose some of their precision.
    pub(crate) fn convert(&mut self, layout: &Layout, format: MomentFormat) {
        *self = match (&*self, format) {
            (Self::F32 { first, second }, MomentFormat::EightBit) => Self::EightBit {
                first: EightBit::of(layout, Sign::Signed, first),
                second: EightBit::of(layout, Sign::Unsigned, second),
            },
            (Self::EightBit { first, second }, MomentFormat::F32) => {
                Self::F32 { first: first.numbers(layout, Sign::Signed), second: second.numbers(layout, Sign::Unsigned) }
            }
            _ => return,
        };
    }

    /// Checks that there is one of each for each parameter.
    ///
    /// # Errors
    /// A vector has another length.
    pub(crate) fn check(&self, layout: &Layout) -> Result<(), EngineError> {
        let expected = layout.size();
        match self {
            Self::F32 { first, second } => {
                for (what, found) in [("first moments", first.len()), ("second moments", second.len())] {
                    if found != expected {
                        return Err(EngineError::State { what, found, expected });
                    }
                }
                Ok(())
            }
            Self::EightBit { first, second } => {
                for (what, moments) in [("first moments", first), ("second moments", second)] {
                    if !moments.is_of(layout) {
                        return Err(EngineError::State { what, found: moments.bytes(), expected });
                    }
                }
                Ok(())
            }
        }
    }

    /// Returns the bytes of the moments.
    pub fn bytes(&self) -> usize {
        match self {
            Self::F32 { first, second } => size_of_val(first.as_slice()) + size_of_val(second.as_slice()),
            Self::EightBit { first, second } => first.bytes() + second.bytes(),
        }
    }

    /// Copies other moments into these vectors.
    pub(crate) fn copy_from(&mut self, other: &Self) {
        match (&mut *self, other) {
            (Self::F32 { first, second }, Self::F32 { first: a, second: b }) => {
                first.clone_from(a);
                second.clone_from(b);
            }
            (Self::EightBit { first, second }, Self::EightBit { first: a, second: b }) => {
                first.copy_from(a);
                second.copy_from(b);
            }
            _ => *self = other.clone(),
        }
    }
}
