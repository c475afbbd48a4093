//! The signing key: made on the first start, pinned, and watched. Talks to the API server.
//!
//! The private key lives in a Secret that only the controller reads. Its public half and fingerprint are pinned in a
//! ConfigMap of the same name, written once. A key that is gone, or is another than the pinned one, signs nothing: what
//! was signed before stays valid by the pinned public key, and a person decides.

use std::sync::{Arc, PoisonError, RwLock};

use codex_provenance::Sha256;
use codex_signing::key::{KeyError, PrivateKey, PublicKey, Signer as _};
use futures::{StreamExt, pin_mut};
use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Secret},
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
    runtime::{WatchStreamExt, watcher},
};
use tracing::{error, info, warn};

use crate::{
    MANAGER,
    error::{answered, chain, client_category},
};

/// The Secret with the private key, and the ConfigMap that pins its public half.
pub const NAME: &str = "codex-signing-key";
const PRIVATE: &str = "private.pem";
const PUBLIC: &str = "key.pem";
const FINGERPRINT: &str = "fingerprint";

/// Why the signer cannot be set up or does not sign.
#[derive(Debug, thiserror::Error)]
pub enum SignerError {
    /// The API server.
    #[error("the {kind} {NAME} cannot be read or created: {source}")]
    Client {
        /// Secret or ConfigMap.
        kind: &'static str,
        /// Why.
        #[source]
        source: kube::Error,
    },
    /// No randomness, say.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// What a person should know.
    #[error("the signer is not available: {0}")]
    Unavailable(String),
    /// Somebody changed the pin.
    #[error("the ConfigMap {NAME} holds no usable public key under {PUBLIC:?}: {0}")]
    Pin(String),
}

impl SignerError {
    /// A word for metric labels.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Client { source, .. } => client_category(source),
            Self::Key(_) => "key",
            Self::Unavailable(_) => "signer_unavailable",
            Self::Pin(_) => "pin",
        }
    }
}

/// The signer, as far as it is available.
pub struct Signer {
    api: Api<Secret>,
    pinned: PublicKey,
    private: RwLock<Result<Arc<PrivateKey>, String>>,
}

impl Signer {
    /// Loads the key, or makes it where neither key nor pin exist.
    ///
    /// # Errors
    /// When the API server does not answer, or the pin cannot be read.
    pub async fn load(client: Client, namespace: &str) -> Result<Self, SignerError> {
        let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
        let pins: Api<ConfigMap> = Api::namespaced(client, namespace);
        let in_secret = |source| SignerError::Client { kind: "Secret", source };
        let in_pin = |source| SignerError::Client { kind: "ConfigMap", source };
        let pin = pins.get_opt(NAME).await.map_err(in_pin)?;
        let mut secret = secrets.get_opt(NAME).await.map_err(in_secret)?;
        if secret.is_none() && pin.is_none() {
            secret = match secrets.create(&post(), &new_secret(&PrivateKey::generate()?)?).await {
                Ok(secret) => {
                    info!(secret = NAME, "made the signing key");
                    Some(secret)
                }
                Err(failure) if answered(&failure, 409) => secrets.get_opt(NAME).await.map_err(in_secret)?,
                Err(failure) => return Err(in_secret(failure)),
            };
        }
        let pin = if let Some(pin) = pin {
            pin
        } else {
            let key = secret.as_ref().map_or_else(|| Err("it is gone".to_owned()), read);
            let key = key.map_err(|why| SignerError::Unavailable(format!("the Secret {NAME}: {why}")))?;
            match pins.create(&post(), &new_pin(key.public())).await {
                Ok(pin) => pin,
                Err(failure) if answered(&failure, 409) => pins.get(NAME).await.map_err(in_pin)?,
                Err(failure) => return Err(in_pin(failure)),
            }
        };
        let text = pin.data.as_ref().and_then(|data| data.get(PUBLIC)).map(String::as_str).unwrap_or_default();
        let pinned = PublicKey::from_pem(text).map_err(|why| SignerError::Pin(chain(&why)))?;
        let signer = Self { api: secrets, private: RwLock::new(judge(secret.as_ref(), &pinned)), pinned };
        signer.say();
        Ok(signer)
    }

    /// Watches the Secret and calls `changed` whenever it came, went or changed.
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
                    warn!(error = chain(&failure), "the watch of the signing key failed; it is tried again");
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
                self.say();
                changed();
            }
        }
    }

    fn say(&self) {
        match self.private() {
            Ok(_) => info!(fingerprint = %self.fingerprint(), "the signer is available"),
            Err(why) => error!(fingerprint = %self.fingerprint(), "the signer is not available: {why}"),
        }
    }

    fn private(&self) -> Result<Arc<PrivateKey>, String> {
        self.private.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The key that bundles are checked with: the pinned one, whatever became of the private key.
    pub fn public(&self) -> &PublicKey {
        &self.pinned
    }

    /// The fingerprint of [`Signer::public`].
    pub fn fingerprint(&self) -> Sha256 {
        self.pinned.fingerprint()
    }

    /// Whether anything can be signed; if not, one sentence says why.
    ///
    /// # Errors
    /// The sentence.
    pub fn available(&self) -> Result<(), String> {
        self.private().map(|_| ())
    }

    /// Signs a statement and returns the bundle in JSON.
    ///
    /// # Errors
    /// When there is no key, or it does not sign.
    pub fn sign(&self, payload: &[u8]) -> Result<Vec<u8>, SignerError> {
        let key = self.private().map_err(SignerError::Unavailable)?;
        Ok(key.sign(payload)?)
    }
}

fn post() -> PostParams {
    PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() }
}

fn read(secret: &Secret) -> Result<PrivateKey, String> {
    let bytes = secret.data.as_ref().and_then(|data| data.get(PRIVATE)).ok_or(format!("it has no {PRIVATE:?}"))?;
    let text = std::str::from_utf8(&bytes.0).map_err(|_| format!("{PRIVATE:?} is no text"))?;
    PrivateKey::from_pem(text).map_err(|why| chain(&why))
}

/// What a Secret, or its absence, is worth beside the pin.
fn judge(secret: Option<&Secret>, pinned: &PublicKey) -> Result<Arc<PrivateKey>, String> {
    let advice = format!(
        "restore the key {}, or, to sign with another key from now on, delete the ConfigMap {NAME} and restart the controller",
        pinned.fingerprint()
    );
    let Some(secret) = secret else { return Err(format!("the Secret {NAME} is gone: {advice}")) };
    let key = read(secret).map_err(|why| format!("the Secret {NAME} holds no usable key ({why}): {advice}"))?;
    if key.public().fingerprint() != pinned.fingerprint() {
        let found = key.public().fingerprint();
        return Err(format!("the Secret {NAME} holds another key, {found}, than the pinned one: {advice}"));
    }
    Ok(Arc::new(key))
}

fn new_secret(key: &PrivateKey) -> Result<Secret, KeyError> {
    let data = [
        (PRIVATE.to_owned(), ByteString(key.to_pem()?.as_bytes().to_vec())),
        (PUBLIC.to_owned(), ByteString(key.public().to_pem().as_bytes().to_vec())),
    ];
    Ok(Secret { metadata: metadata(), type_: Some("Opaque".to_owned()), data: Some(data.into()), ..Secret::default() })
}

fn new_pin(key: &PublicKey) -> ConfigMap {
    let data = [(PUBLIC.to_owned(), key.to_pem().to_owned()), (FINGERPRINT.to_owned(), key.fingerprint().to_string())];
    ConfigMap { metadata: metadata(), immutable: Some(true), data: Some(data.into()), ..ConfigMap::default() }
}

fn metadata() -> ObjectMeta {
    ObjectMeta { name: Some(NAME.to_owned()), labels: Some(crate::labels("signer")), ..ObjectMeta::default() }
}

#[cfg(test)]
mod tests {
    use codex_signing::key::PrivateKey;

    use super::{judge, new_secret};

    #[test]
    fn a_lost_a_changed_and_a_broken_key_are_told_apart() {
        let key = PrivateKey::generate().unwrap();
        let other = PrivateKey::generate().unwrap();
        let secret = new_secret(&key).unwrap();
        assert_eq!(judge(Some(&secret), key.public()).unwrap().public().fingerprint(), key.public().fingerprint());
        let lost = judge(None, key.public()).unwrap_err();
        assert!(lost.contains("is gone") && lost.contains(&key.public().fingerprint().to_string()), "{lost}");
        let changed = judge(Some(&secret), other.public()).unwrap_err();
        assert!(
            changed.contains("another key") && changed.contains(&key.public().fingerprint().to_string()),
            "{changed}"
        );
        let mut broken = secret;
        broken.data = None;
        assert!(judge(Some(&broken), key.public()).unwrap_err().contains("private.pem"));
    }
}
