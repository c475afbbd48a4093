//! The time in which the signatures of a key count. Pure.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The time in which the signatures of a key count: from `not_before` until just before `not_after`. A bound that is missing
/// never ends it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Validity {
    /// The first moment of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Timestamp>,
    /// The first moment after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<Timestamp>,
}

/// Why a key does not count at some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Untimely {
    /// Before the validity.
    #[error("is not valid before {0}")]
    NotYet(Timestamp),
    /// After the validity.
    #[error("expired at {0}")]
    Expired(Timestamp),
}

impl Validity {
    /// Checks that a key counts at `now`.
    ///
    /// # Errors
    /// Why it does not.
    pub fn at(&self, now: Timestamp) -> Result<(), Untimely> {
        match (self.not_before, self.not_after) {
            (_, Some(end)) if end <= now => Err(Untimely::Expired(end)),
            (Some(begin), _) if now < begin => Err(Untimely::NotYet(begin)),
            _ => Ok(()),
        }
    }

    /// Whether there is a moment in it.
    pub fn is_possible(&self) -> bool {
        self.not_before.zip(self.not_after).is_none_or(|(begin, end)| begin < end)
    }
}

#[cfg(test)]
mod tests {
    use super::{Untimely, Validity};

    #[test]
    fn the_first_moment_counts_and_the_last_does_not() {
        let at = |second| jiff::Timestamp::from_second(second).unwrap();
        let window = Validity { not_before: Some(at(10)), not_after: Some(at(20)) };
        assert_eq!(window.at(at(9)), Err(Untimely::NotYet(at(10))));
        assert_eq!((window.at(at(10)), window.at(at(19))), (Ok(()), Ok(())));
        assert_eq!(window.at(at(20)), Err(Untimely::Expired(at(20))));
        assert_eq!(Validity::default().at(at(0)), Ok(()));
        assert!(window.is_possible() && Validity::default().is_possible());
        assert!(!Validity { not_before: Some(at(20)), not_after: Some(at(20)) }.is_possible());
        assert_eq!(Untimely::Expired(at(20)).to_string(), "expired at 1970-01-01T00:00:20Z");
    }
}
