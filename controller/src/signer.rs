//! The signing key: created on the first start, pinned and watched.
//!
//! The private key is in a Secret that only the controller reads. Its public key and fingerprint are pinned in an
//! immutable ConfigMap of the same name. If the private key is missing or differs from the pinned one, nothing is signed
//! until an administrator restores the key or deletes the pin. Existing bundles stay valid under the pinned public key.

use std::sync::{Arc, PoisonError, RwLock};

use codex_provenance::Sha256;
use codex_signing::key::{KeyError, PrivateKey, PublicKey, Signer as _};
use futures::{StreamExt, pin_mut};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{
    Api, Client,
    runtime::{WatchStreamExt, watcher},
};
use tracing::{error, info, warn};

use crate::{
    api::create_once,
    error::{chain, client_category},
    secrets::{metadata, secret, value},
};

/// The name of the Secret with the private key and of the ConfigMap that pins its public key.
pub const NAME: &str = "codex-signing-key";
/// The key of a signed bundle in its ConfigMap.
pub const BUNDLE: &str = "bundle.json";
/// The key of the public key in the Secret, in the pin and in the ConfigMap of a bundle.
pub const PUBLIC: &str = "key.pem";
const PRIVATE: &str = "private.pem";
const FINGERPRINT: &str = "fingerprint";

/// Why the signer cannot be loaded or does not sign.
#[derive(Debug, thiserror::Error)]
pub enum SignerError {
    /// A request to the API server failed.
    #[error("the {kind} {NAME} cannot be read or created: {source}")]
    Client {
        /// Secret or ConfigMap.
        kind: &'static str,
        /// The client's error.
        #[source]
        source: kube::Error,
    },
    /// The key cannot be generated or does not sign.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The private key is missing, invalid or not the pinned one.
    #[error("the signer is unavailable: {0}")]
    Unavailable(String),
    /// The pinned public key is invalid.
    #[error("the ConfigMap {NAME} has no valid public key under {PUBLIC:?}: {0}")]
    Pin(String),
}

impl SignerError {
    /// Returns the category for metrics and logs.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Client { source, .. } => client_category(source),
            Self::Key(_) => "key",
            Self::Unavailable(_) => "signer_unavailable",
            Self::Pin(_) => "pin",
        }
    }
}

/// Signs with the private key while it matches the pinned public key.
pub struct Signer {
    api: Api<Secret>,
    pinned: PublicKey,
    private: RwLock<Result<Arc<PrivateKey>, String>>,
}

impl Signer {
    /// Loads the key and its pin. Creates both if neither exists.
    ///
    /// # Errors
    /// When a request fails, the pin is invalid, or it has to be created and the private key is invalid.
    pub async fn load(client: Client, namespace: &str) -> Result<Self, SignerError> {
        let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
        let pins: Api<ConfigMap> = Api::namespaced(client, namespace);
        let in_secret = |source| SignerError::Client { kind: "Secret", source };
        let in_pin = |source| SignerError::Client { kind: "ConfigMap", source };
        let pin = pins.get_opt(NAME).await.map_err(in_pin)?;
        let mut secret = secrets.get_opt(NAME).await.map_err(in_secret)?;
        if secret.is_none() && pin.is_none() {
            let generated = new_secret(&PrivateKey::generate()?)?;
            secret = Some(create_once(&secrets, &generated).await.map_err(in_secret)?);
        }
        let pin = if let Some(pin) = pin {
            pin
        } else {
            let key = secret.as_ref().map_or_else(|| Err("it does not exist".to_owned()), read);
            let key = key.map_err(|why| SignerError::Unavailable(format!("the Secret {NAME}: {why}")))?;
            create_once(&pins, &new_pin(key.public())).await.map_err(in_pin)?
        };
        let text = pin.data.as_ref().and_then(|data| data.get(PUBLIC)).map(String::as_str).unwrap_or_default();
        let pinned = PublicKey::from_pem(text).map_err(|why| SignerError::Pin(chain(&why)))?;
        let signer = Self { api: secrets, private: RwLock::new(judge(secret.as_ref(), &pinned)), pinned };
        signer.log();
        Ok(signer)
    }

    /// Watches the Secret and calls `changed` whenever the signer becomes available or unavailable, or the reason for that
    /// changes.
    pub async fn watch(&self, changed: impl Fn()) {
        let only = watcher::Config::default().fields(&format!("metadata.name={NAME}"));
        let events = watcher(self.api.clone(), only).default_backoff();
        pin_mut!(events);
        let mut listed = None;
        while let Some(event) = events.next().await {
            let secret = match event {
                Ok(watcher::Event::Init) => {
                    listed = None;
                    continue;
                }
                Ok(watcher::Event::InitApply(secret)) => {
                    listed = Some(secret);
                    continue;
                }
                Ok(watcher::Event::InitDone) => listed.take(),
                Ok(watcher::Event::Apply(secret)) => Some(secret),
                Ok(watcher::Event::Delete(_)) => None,
                Err(failure) => {
                    warn!(error = chain(&failure), "the watch of the signing key failed and is retried");
                    continue;
                }
            };
            let now = judge(secret.as_ref(), &self.pinned);
            let differs = {
                let mut private = self.private.write().unwrap_or_else(PoisonError::into_inner);
                let differs = private.as_ref().map(|_| ()) != now.as_ref().map(|_| ());
                *private = now;
                differs
            };
            if differs {
                self.log();
                changed();
            }
        }
    }

    fn log(&self) {
        match self.private() {
            Ok(_) => info!(fingerprint = %self.fingerprint(), "the signer is available"),
            Err(why) => error!(fingerprint = %self.fingerprint(), "the signer is unavailable: {why}"),
        }
    }

    fn private(&self) -> Result<Arc<PrivateKey>, String> {
        self.private.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the key that verifies bundles: the pinned one, even without a private key.
    pub fn public(&self) -> &PublicKey {
        &self.pinned
    }

    /// Returns the fingerprint of [`Signer::public`].
    pub fn fingerprint(&self) -> Sha256 {
        self.pinned.fingerprint()
    }

    /// Returns `Ok` if the signer can sign.
    ///
    /// # Errors
    /// A sentence that says why it cannot.
    pub fn available(&self) -> Result<(), String> {
        self.private().map(|_| ())
    }

    /// Signs a statement and returns the bundle in JSON.
    ///
    /// # Errors
    /// When the signer is unavailable or signing fails.
    pub fn sign(&self, payload: &[u8]) -> Result<Vec<u8>, SignerError> {
        let key = self.private().map_err(SignerError::Unavailable)?;
        Ok(key.sign(payload)?)
    }
}

fn read(secret: &Secret) -> Result<PrivateKey, String> {
    let bytes = value(secret, PRIVATE).ok_or(format!("it has no {PRIVATE:?}"))?;
    let text = std::str::from_utf8(bytes).map_err(|_| format!("{PRIVATE:?} is not UTF-8"))?;
    PrivateKey::from_pem(text).map_err(|why| chain(&why))
}

/// Returns the private key if the Secret exists and holds the pinned key, or a sentence that says what is wrong.
fn judge(secret: Option<&Secret>, pinned: &PublicKey) -> Result<Arc<PrivateKey>, String> {
    let advice = format!(
        "restore the key {}, or, to sign with another key, delete the ConfigMap {NAME} and restart the controller",
        pinned.fingerprint()
    );
    let Some(secret) = secret else { return Err(format!("the Secret {NAME} does not exist: {advice}")) };
    let key = read(secret).map_err(|why| format!("the Secret {NAME} has no valid key ({why}): {advice}"))?;
    if key.public().fingerprint() != pinned.fingerprint() {
        let found = key.public().fingerprint();
        return Err(format!("the Secret {NAME} holds the key {found}, which is not the pinned one: {advice}"));
    }
    Ok(Arc::new(key))
}

fn new_secret(key: &PrivateKey) -> Result<Secret, KeyError> {
    let private = key.to_pem()?;
    Ok(secret(NAME, "signer", [(PRIVATE, private.as_bytes()), (PUBLIC, key.public().to_pem().as_bytes())]))
}

fn new_pin(key: &PublicKey) -> ConfigMap {
    let data = [(PUBLIC.to_owned(), key.to_pem().to_owned()), (FINGERPRINT.to_owned(), key.fingerprint().to_string())];
    ConfigMap {
        metadata: metadata(NAME, "signer"),
        immutable: Some(true),
        data: Some(data.into()),
        ..ConfigMap::default()
    }
}

#[cfg(test)]
mod tests {
    use codex_signing::key::PrivateKey;

    use super::{judge, new_secret};

    #[test]
    fn missing_changed_and_invalid_keys_are_distinguished() {
        let key = PrivateKey::generate().unwrap();
        let other = PrivateKey::generate().unwrap();
        let secret = new_secret(&key).unwrap();
        assert_eq!(judge(Some(&secret), key.public()).unwrap().public().fingerprint(), key.public().fingerprint());
        let lost = judge(None, key.public()).unwrap_err();
        assert!(lost.contains("does not exist") && lost.contains(&key.public().fingerprint().to_string()), "{lost}");
        let changed = judge(Some(&secret), other.public()).unwrap_err();
        assert!(
            changed.contains("not the pinned one") && changed.contains(&key.public().fingerprint().to_string()),
            "{changed}"
        );
        let mut broken = secret;
        broken.data = None;
        assert!(judge(Some(&broken), key.public()).unwrap_err().contains("private.pem"));
    }
}
