//! The operators of calculations. Pure.

/// What a calculation does.
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

    /// The category of records, and the kind of keys.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Plus => "addition",
            Self::Minus => "subtraction",
        }
    }
}
