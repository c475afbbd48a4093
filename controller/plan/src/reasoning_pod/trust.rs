//! Which keys are trusted, and which of the recorded bundles count. Pure.

use std::{collections::BTreeMap, fmt};

use codex_crds::{Reason, bundle};
use codex_provenance::{Identity, Sha256, Untimely, Validity};
use codex_verdict::policy::{Lineage, Signatory, denials, may_sign};
use jiff::{SignedDuration, Timestamp};

use super::observed::{Bundle, ObservedReasoningPod, SignedModel, SignedPromotion, Signer, TrustedKey};

/// How long before a key or a root ends the status says so.
const NOTICE: SignedDuration = SignedDuration::from_hours(30 * 24);

/// The trusted keys of an object at a time.
#[derive(Clone, Copy)]
pub(crate) struct Trust<'a> {
    observed: &'a ObservedReasoningPod,
    now: Timestamp,
}

/// Why a key is not trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Distrust {
    /// The list of trusted keys does not have it.
    Unlisted,
    /// A policy denies it.
    Revoked,
    /// A policy does not name it among those who may sign in this ring.
    Barred,
    /// It has expired, or is not valid yet.
    Untimely(Untimely),
}

impl fmt::Display for Distrust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unlisted => f.write_str("is no longer listed"),
            Self::Revoked => f.write_str("is revoked by a promotion policy"),
            Self::Barred => f.write_str("is not among the signers that a promotion policy names for this ring"),
            Self::Untimely(untimely) => untimely.fmt(f),
        }
    }
}

/// What becomes of a statement that has to be signed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Chosen<T> {
    /// It is not known yet where it is recorded.
    Unknown,
    /// It is signed, and a key that is trusted signed it.
    Recorded { name: String, signed: T },
    /// It has to be signed, under this name. `instead` says why the bundle that exists no longer counts.
    Missing { name: String, instead: Option<String> },
    /// The bundle that exists cannot be used.
    Unusable { name: String, reason: Reason, why: String },
}

/// What a key signed.
pub(crate) trait SignedBy: Clone {
    /// Returns the fingerprint of the key.
    fn signer(&self) -> Sha256;
}

impl SignedBy for SignedModel {
    fn signer(&self) -> Sha256 {
        self.signer
    }
}

impl SignedBy for SignedPromotion {
    fn signer(&self) -> Sha256 {
        self.signer
    }
}

impl<T: SignedBy> Chosen<T> {
    /// Returns the fingerprint of the key that signed what counts.
    pub(crate) fn signer(&self) -> Option<Sha256> {
        if let Self::Recorded { signed, .. } = self { Some(signed.signer()) } else { None }
    }
}

impl<'a> Trust<'a> {
    pub(crate) fn of(observed: &'a ObservedReasoningPod, now: Timestamp) -> Self {
        Self { observed, now }
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.now
    }

    /// Returns the keys that the administrator trusts: the list, or else the pinned key alone, without a limit.
    pub(crate) fn listed(&self) -> Vec<TrustedKey> {
        let pinned = || self.observed.signer.fingerprint();
        match self.observed.trusted.as_slice() {
            [] => pinned()
                .map(|fingerprint| TrustedKey { fingerprint, validity: Validity::default(), identity: None })
                .into_iter()
                .collect(),
            listed => listed.to_vec(),
        }
    }

    fn validity(&self, key: Sha256) -> Option<Validity> {
        self.listed().into_iter().find(|trusted| trusted.fingerprint == key).map(|trusted| trusted.validity)
    }

    /// Returns the identity with a fingerprint; `None` if it is that of a key.
    pub(crate) fn identity(&self, key: Sha256) -> Option<&'a Identity> {
        let listed = self.observed.trusted.iter().find(|trusted| trusted.fingerprint == key);
        listed.and_then(|trusted| trusted.identity.as_ref())
    }

    /// Names a signer: "the key 0123456789ab", or "the identity" with its subject.
    pub(crate) fn name(&self, key: Sha256) -> String {
        match self.identity(key) {
            Some(identity) => format!("the identity {}", identity.subject),
            None => format!("the key {}", key.short()),
        }
    }

    /// Returns the digest of the trusted root, if one of these signers is an identity.
    pub(crate) fn root(&self, signers: [Sha256; 2]) -> Option<Sha256> {
        let needed = signers.iter().any(|signer| self.identity(*signer).is_some());
        self.observed.trusted_root.as_ref().filter(|_| needed).map(|root| root.digest)
    }

    /// Returns the listed key whose fingerprint begins with these digits.
    pub(crate) fn find(&self, digits: &str) -> Option<Sha256> {
        self.listed().into_iter().map(|trusted| trusted.fingerprint).find(|key| key.short() == digits)
    }

    /// Checks that a key is trusted now, and may sign in the ring of the object.
    pub(crate) fn check(&self, key: Sha256) -> Result<(), Distrust> {
        self.check_at(key, self.now)?;
        let signatory = Signatory { fingerprint: key, identity: self.identity(key) };
        let ring = self.observed.object.spec.rollout_ring;
        if may_sign(&self.observed.policies, ring, signatory).is_empty() { Ok(()) } else { Err(Distrust::Barred) }
    }

    /// Checks that a key is not denied now, and was trusted at `then`.
    pub(crate) fn check_at(&self, key: Sha256, then: Timestamp) -> Result<(), Distrust> {
        let validity = self.validity(key).ok_or(Distrust::Unlisted)?;
        if !denials(&self.observed.policies, &Lineage { key: Some(key.to_string()), ..Lineage::default() }).is_empty() {
            return Err(Distrust::Revoked);
        }
        validity.at(then).map_err(Distrust::Untimely)
    }

    /// Chooses among the bundles of a statement: the one under the name `first`, and those in which it was signed again. `recorded`
    /// are the first digits of the fingerprint of the key that the status names.
    pub(crate) fn choose<T: SignedBy>(
        &self,
        first: Option<String>,
        bundle: &Bundle<T>,
        again: &BTreeMap<Sha256, Bundle<T>>,
        recorded: Option<&str>,
    ) -> Chosen<T> {
        let Some(first) = first else { return Chosen::Unknown };
        let counts = |name: String, bundle: &Bundle<T>| match bundle {
            Bundle::Valid(signed) if self.check(signed.signer()).is_ok() => {
                Some(Chosen::Recorded { name, signed: signed.clone() })
            }
            _ => None,
        };
        let name_of = |key: Sha256| bundle::again(&first, &key.short());
        let current = match self.observed.signer {
            Signer::Available { fingerprint } => Some(fingerprint),
            Signer::Unavailable { .. } => None,
        };
        // What the present key signed comes before what other keys signed again, so that the choice does not depend on digits.
        let mine = current.and_then(|key| again.get_key_value(&key));
        let known = mine.into_iter().chain(again).map(|(key, bundle)| (name_of(*key), bundle));
        let recorded_bundle =
            std::iter::once((first.clone(), bundle)).chain(known).find_map(|(name, it)| counts(name, it));
        if let Some(recorded) = recorded_bundle {
            return recorded;
        }
        let instead = match bundle {
            Bundle::Absent => return Chosen::Missing { name: first, instead: None },
            Bundle::Valid(signed) => match self.check(signed.signer()) {
                Err(why) => format!("{} {why}", self.name(signed.signer())),
                Ok(()) => return Chosen::Recorded { name: first, signed: signed.clone() },
            },
            // The status says who signed it, and that key was taken from the list.
            Bundle::Foreign(_) if recorded.is_some_and(|digits| self.is_removed(digits)) => {
                format!("the key {} {}", recorded.unwrap_or_default(), Distrust::Unlisted)
            }
            unusable => return of_unusable(first, unusable),
        };
        let Some(current) = current else { return Chosen::Missing { name: first, instead: Some(instead) } };
        match again.get(&current) {
            None | Some(Bundle::Absent | Bundle::Valid(_)) => {
                Chosen::Missing { name: name_of(current), instead: Some(instead) }
            }
            Some(unusable) => of_unusable(name_of(current), unusable),
        }
    }

    /// Whether keys are listed, and none begins with these digits.
    fn is_removed(&self, digits: &str) -> bool {
        !self.listed().is_empty() && self.find(digits).is_none()
    }

    /// Returns why what the key with these digits signed no longer counts.
    pub(crate) fn distrusts(&self, digits: &str) -> Option<Distrust> {
        match self.find(digits) {
            None => self.is_removed(digits).then_some(Distrust::Unlisted),
            Some(key) => self.check(key).err(),
        }
    }

    /// Returns when a key expires, if that is within thirty days.
    pub(crate) fn expires(&self, key: Sha256) -> Option<Timestamp> {
        let end = self.validity(key)?.not_after?;
        (self.now < end && self.notices(end)).then_some(end)
    }

    /// Returns when the trusted root ends that verifies what this signer signs, if that is within thirty days or was before.
    pub(crate) fn root_ends(&self, signer: Sha256) -> Option<Timestamp> {
        self.root_end(&[signer]).filter(|end| self.notices(*end))
    }

    /// Returns when the trusted root ends, if one of these signers is an identity.
    fn root_end(&self, signers: &[Sha256]) -> Option<Timestamp> {
        let needed = signers.iter().any(|signer| self.identity(*signer).is_some());
        self.observed.trusted_root.as_ref().filter(|_| needed)?.ends
    }

    fn notices(&self, end: Timestamp) -> bool {
        noticed(end) <= self.now
    }

    /// Returns the next time at which something about one of these keys changes by itself.
    pub(crate) fn due(&self, keys: &[Sha256]) -> Option<Timestamp> {
        let windows = keys.iter().filter_map(|key| self.validity(*key));
        let times = windows.flat_map(|window| [window.not_before, window.not_after.map(noticed), window.not_after]);
        let root = self.root_end(keys).into_iter().flat_map(|end| [noticed(end), end]);
        times.flatten().chain(root).filter(|time| *time > self.now).min()
    }
}

/// Returns when the status begins to say that a key or a root ends at `end`.
fn noticed(end: Timestamp) -> Timestamp {
    end.checked_sub(NOTICE).unwrap_or(Timestamp::MIN)
}

/// Returns why a bundle that exists cannot be used.
fn of_unusable<T>(name: String, bundle: &Bundle<T>) -> Chosen<T> {
    let (reason, why) = match bundle {
        Bundle::Absent | Bundle::Valid(_) | Bundle::Unchecked => {
            (Reason::SignerUnavailable, "there is no key to verify it with".to_owned())
        }
        Bundle::Foreign(why) => (Reason::ForeignSignature, why.clone()),
        Bundle::Invalid(why) => (Reason::VerificationFailed, why.clone()),
    };
    Chosen::Unusable { name, reason, why }
}
