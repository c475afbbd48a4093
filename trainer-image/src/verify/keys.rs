//! Trusted public keys from files: `codex verify --key`. Reads files.

use std::path::{Path, PathBuf};

use codex_provenance::{Sha256, text::Printable};
use codex_signing::{
    key::PublicKey,
    trust::{self, TrustedKey},
    verify::check_keys,
};
use jiff::Timestamp;

use super::{MAX_KEY, read, refused};
use crate::error::CommandError;

/// The keys that are trusted, at a time.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    trusted: Vec<TrustedKey>,
    public: Vec<PublicKey>,
    now: Timestamp,
}

impl Keys {
    /// Reads the keys of these files. If fingerprints are given, each key must have one of them.
    ///
    /// # Errors
    /// Exit code 2 if a file cannot be read or is no list of public keys, 1 if a key has another fingerprint.
    pub(super) fn read(paths: &[PathBuf], fingerprints: &[Sha256], now: Timestamp) -> Result<Self, CommandError> {
        let mut trusted = Vec::new();
        for path in paths {
            trusted.extend(of_file(path)?);
        }
        trust::check(&trusted).map_err(|error| CommandError::bad_input(format!("--key: {error}")))?;
        let public: Vec<PublicKey> = trusted.iter().map(|trusted| trusted.key.clone()).collect();
        if !fingerprints.is_empty() {
            check_keys(&public, fingerprints).map_err(refused)?;
        }
        Ok(Self { trusted, public, now })
    }

    /// Returns the number of keys.
    pub(super) fn len(&self) -> usize {
        self.public.len()
    }

    /// Checks that the key that signed something counts at the time, and returns when it ends to count.
    ///
    /// # Errors
    /// Exit code 1: the key has expired, or is not valid yet.
    pub(super) fn check(&self, signer: Sha256, signed: &str) -> Result<Option<Timestamp>, CommandError> {
        let validity = self.trusted.iter().find(|trusted| trusted.key.fingerprint() == signer);
        let Some(validity) = validity.map(|trusted| trusted.validity) else { return Ok(None) };
        match validity.at(self.now) {
            Ok(()) => Ok(validity.not_after),
            Err(untimely) => Err(CommandError::failed(format!(
                "the key {signer} signed {signed}, and it {untimely}: at {} its signatures do not count; have it signed again \
                 with a key that is valid",
                self.now
            ))),
        }
    }
}

impl AsRef<[PublicKey]> for Keys {
    fn as_ref(&self) -> &[PublicKey] {
        &self.public
    }
}

fn of_file(path: &Path) -> Result<Vec<TrustedKey>, CommandError> {
    let text = read("--key", path, MAX_KEY)?;
    trust::read(&String::from_utf8_lossy(&text)).map_err(|error| {
        let path = path.display().to_string();
        CommandError::bad_input(format!("--key: {}: {error}", Printable(&path)))
    })
}
