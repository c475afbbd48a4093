//! The signing key: created on the first start, pinned and watched.
//!
//! The private key is in a Secret that only the controller reads. Its public key and fingerprint are pinned in an
//! immutable ConfigMap of the same name. If the private key is missing, unusable or differs from the pinned one, nothing is
//! signed until an administrator restores the key or deletes the pin, and everything else goes on. Existing bundles stay valid
//! under the pinned public key. If no key is pinned yet, the first usable one is.

use std::sync::{Arc, OnceLock, PoisonError, RwLock};

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
}

impl SignerError {
    /// Returns the category for metrics and logs.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Client { source, .. } => client_category(source),
            Self::Key(_) => "key",
            Self::Unavailable(_) => "signer_unavailable",
        }
    }
}

/// Signs with the private key while it matches the pinned public key.
pub struct Signer {
    secrets: Api<Secret>,
    pins: Api<ConfigMap>,
    /// Why the pin cannot be used. It is read once.
    bad_pin: Option<String>,
    pinned: OnceLock<PublicKey>,
    private: RwLock<Result<Arc<PrivateKey>, String>>,
}

impl Signer {
    /// Loads the key and its pin. Creates both if neither exists. An unusable key or pin makes the signer unavailable.
    ///
    /// # Errors
    /// When a request fails, or no key can be generated.
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
        let (mut pinned, mut bad_pin) = (OnceLock::new(), None);
        match pin.as_ref().map(read_pin) {
            Some(Ok(key)) => pinned = key.into(),
            Some(Err(why)) => bad_pin = Some(why),
            None => {}
        }
        let signer = Self { secrets, pins, bad_pin, pinned, private: RwLock::new(Err(String::new())) };
        let now = signer.judge(secret.as_ref()).await?;
        *signer.private.write().unwrap_or_else(PoisonError::into_inner) = now;
        signer.log();
        Ok(signer)
    }

    /// Returns the private key if the Secret exists and holds the pinned key, or a sentence that says what is wrong. Pins the key
    /// of the Secret if no key is pinned.
    ///
    /// # Errors
    /// When the pin cannot be created.
    async fn judge(&self, secret: Option<&Secret>) -> Result<Result<Arc<PrivateKey>, String>, SignerError> {
        if let Some(why) = &self.bad_pin {
            return Ok(Err(why.clone()));
        }
        if self.pinned.get().is_none() {
            let key = match secret.map(read) {
                Some(Ok(key)) => key,
                Some(Err(why)) => {
                    return Ok(Err(format!("the Secret {NAME} has no usable key, and none is pinned: {why}")));
                }
                None => return Ok(Err(format!("the Secret {NAME} does not exist, and no key is pinned: create it"))),
            };
            let created = create_once(&self.pins, &new_pin(key.public())).await;
            let pin = created.map_err(|source| SignerError::Client { kind: "ConfigMap", source })?;
            match read_pin(&pin) {
                // Only this task pins keys.
                Ok(key) => drop(self.pinned.set(key)),
                Err(why) => return Ok(Err(why)),
            }
        }
        Ok(match self.pinned.get() {
            Some(pinned) => judge(secret, pinned),
            None => Err("no key is pinned".to_owned()),
        })
    }

    /// Watches the Secret and calls `changed` whenever the signer becomes available or unavailable, or the reason for that
    /// changes.
    pub async fn watch(&self, changed: impl Fn()) {
        let only = watcher::Config::default().fields(&format!("metadata.name={NAME}"));
        let events = watcher(self.secrets.clone(), only).default_backoff();
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
            let now = match self.judge(secret.as_ref()).await {
                Ok(now) => now,
                // The next change of the Secret, or the next start, tries again.
                Err(failure) => Err(chain(&failure)),
            };
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
        let fingerprint = self.fingerprint().map_or_else(|| "none".to_owned(), |fingerprint| fingerprint.to_string());
        match self.private() {
            Ok(_) => info!(fingerprint, "the signer is available"),
            Err(why) => error!(fingerprint, "the signer is unavailable; everything else goes on: {why}"),
        }
    }

    fn private(&self) -> Result<Arc<PrivateKey>, String> {
        self.private.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the key that verifies bundles: the pinned one, even without a private key. `None` if no key is pinned.
    pub fn public(&self) -> Option<&PublicKey> {
        self.pinned.get()
    }

    /// Returns the fingerprint of [`Signer::public`].
    pub fn fingerprint(&self) -> Option<Sha256> {
        self.public().map(PublicKey::fingerprint)
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

fn read_pin(pin: &ConfigMap) -> Result<PublicKey, String> {
    let text = pin.data.as_ref().and_then(|data| data.get(PUBLIC)).map(String::as_str).unwrap_or_default();
    PublicKey::from_pem(text).map_err(|why| {
        format!(
            "the ConfigMap {NAME} has no valid public key under {PUBLIC:?} ({}): restore it, or delete it to have the key of the \
             Secret {NAME} pinned, and restart the controller",
            chain(&why)
        )
    })
}

/// Returns the private key if the Secret exists and holds the pinned key, or a sentence that says what is wrong.
fn judge(secret: Option<&Secret>, pinned: &PublicKey) -> Result<Arc<PrivateKey>, String> {
    let advice = format!(
        "restore the key {}, or, to sign with another key, put that key into the Secret, delete the ConfigMap {NAME} and restart \
         the controller",
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

/// Returns the Secret of a new key.
pub(crate) fn new_secret(key: &PrivateKey) -> Result<Secret, KeyError> {
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
