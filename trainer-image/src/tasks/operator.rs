//! The operators of calculations. Pure.

/// The operator of a calculation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operator {
    /// left + right
    Plus,
    /// left − right
    Minus,
}

impl Operator {
    pub(super) fn sign(self) -> char {
        match self {
            Self::Plus => '+',
            Self::Minus => '-',
        }
    }

    /// Returns the category of its records, which is also the kind of its keys.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Plus => "addition",
            Self::Minus => "subtraction",
        }
    }
}
