//! Who is trusted to have signed: public keys from files, or an identity of a Sigstore instance. Reads files.

use std::path::PathBuf;

use codex_provenance::{Sha256, text::counted};
use codex_signing::{
    bundle::{BundleError, Opened},
    keyless::{self, Keyless},
    verify::Trusts,
};
use jiff::Timestamp;

use super::{keys::Keys, read};
use crate::error::CommandError;

/// The identity that is trusted instead of keys.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct IdentityArguments {
    /// The identity that must have signed instead of a key, as its certificate names it, such as
    /// `https://kubernetes.io/namespaces/codex-system/serviceaccounts/codex-controller`. Exact, or with * for
    /// a run of characters other than /.
    #[arg(long, value_name = "IDENTITY", requires_all = ["certificate_oidc_issuer", "trusted_root"])]
    pub(crate) certificate_identity: Option<String>,
    /// The issuer of the token with which the identity signed; exact.
    #[arg(long, value_name = "URL", requires_all = ["certificate_identity", "trusted_root"])]
    pub(crate) certificate_oidc_issuer: Option<String>,
    /// The trusted root of the Sigstore instance, in JSON: its certificate authorities, logs and timestamp authorities. Nothing is
    /// downloaded.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["key", "fingerprint"],
        requires_all = ["certificate_identity", "certificate_oidc_issuer"])]
    pub(crate) trusted_root: Option<PathBuf>,
}

impl IdentityArguments {
    /// Whether an identity is given.
    pub(crate) fn is_given(&self) -> bool {
        self.trusted_root.is_some()
    }

    /// Reads who is trusted: the identity if one is given, else the keys of these files.
    ///
    /// # Errors
    /// Exit code 2 if a file cannot be read or used, 1 if a key has another fingerprint.
    pub(super) fn trusted(
        &self,
        keys: &[PathBuf],
        fingerprints: &[Sha256],
        now: Timestamp,
    ) -> Result<Trusted, CommandError> {
        let (Some(path), Some(identity), Some(issuer)) =
            (&self.trusted_root, &self.certificate_identity, &self.certificate_oidc_issuer)
        else {
            return Keys::read(keys, fingerprints, now).map(Trusted::Keys);
        };
        let root = read("--trusted-root", path, keyless::MAX_ROOT)?;
        let keyless =
            Keyless::new(&String::from_utf8_lossy(&root), identity, issuer).map_err(CommandError::bad_input)?;
        Ok(Trusted::Identity(Box::new(keyless)))
    }
}

/// Who is trusted to have signed.
pub(super) enum Trusted {
    /// Public keys.
    Keys(Keys),
    /// An identity.
    Identity(Box<Keyless>),
}

impl Trusts for Trusted {
    fn open(&self, bundle: &[u8]) -> Result<Opened, BundleError> {
        match self {
            Self::Keys(keys) => keys.open(bundle),
            Self::Identity(keyless) => keyless.open(bundle),
        }
    }

    fn fingerprints(&self) -> Vec<Sha256> {
        match self {
            Self::Keys(keys) => keys.fingerprints(),
            Self::Identity(keyless) => keyless.fingerprints(),
        }
    }
}

impl Trusted {
    /// Returns what it is, for people.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Keys(_) => "keys",
            Self::Identity(_) => "trusted root",
        }
    }

    /// Says what was read.
    pub(super) fn told(&self, is_pinned: bool) -> String {
        match self {
            Self::Keys(keys) => {
                let pinned = if is_pinned { "all have a fingerprint of --fingerprint" } else { "none is pinned" };
                format!("{}, {pinned}", counted(keys.len(), "public key"))
            }
            Self::Identity(_) => "it names authorities and logs".to_owned(),
        }
    }

    /// As [`Keys::check`]. When an identity signed, its certificate was valid; nothing ends afterwards.
    pub(super) fn check(&self, signer: Sha256, signed: &str) -> Result<Option<Timestamp>, CommandError> {
        match self {
            Self::Keys(keys) => keys.check(signer, signed),
            Self::Identity(_) => Ok(None),
        }
    }

    /// Returns why a signature counts.
    pub(super) fn counted(&self, signer: &str, now: Timestamp) -> String {
        match self {
            Self::Keys(_) => format!("{signer} counts at {now}"),
            Self::Identity(_) => "the certificate was valid when a timestamp was made over the signature".to_owned(),
        }
    }
}
