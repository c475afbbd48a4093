//! The signing key and the keys that are trusted: created on the first start, pinned or listed, and watched.
//!
//! The private key is in a Secret that only the controller reads. Its public key and fingerprint are pinned in an immutable
//! ConfigMap of the same name. Where the ConfigMap [`LIST`] exists, the keys in it are the trusted ones instead, each within its
//! validity, so that keys can be rotated while what earlier keys signed stays valid. If the private key is missing, unusable or
//! not trusted, nothing is signed until an administrator corrects that, and everything else goes on. If no key is pinned or listed
//! yet, the first usable one is pinned.

use std::{
    path::Path,
    sync::{Arc, OnceLock, PoisonError, RwLock},
};

use codex_plan::reasoning_pod;
use codex_provenance::{Sha256, Validity};
use codex_signing::{
    key::{KeyError, PrivateKey, PublicKey, Signer as _},
    trust::{self, TrustedKey},
};
use futures::{StreamExt, pin_mut};
use jiff::Timestamp;
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
/// The name of the ConfigMap that lists the trusted keys.
pub const LIST: &str = "codex-trusted-keys";
/// The key of a signed bundle in its ConfigMap.
pub const BUNDLE: &str = "bundle.json";
/// The key of the public key in the Secret, in the pin and in the ConfigMap of a bundle.
pub const PUBLIC: &str = "key.pem";
const PRIVATE: &str = "private.pem";
/// The entries of a Secret as `cosign generate-key-pair k8s://NAMESPACE/NAME` writes them.
const COSIGN_PRIVATE: &str = "cosign.key";
const COSIGN_PASSWORD: &str = "cosign.password";
const FINGERPRINT: &str = "fingerprint";

/// Why the signer cannot be loaded or does not sign.
#[derive(Debug, thiserror::Error)]
pub enum SignerError {
    /// A request to the API server failed.
    #[error("the {kind} {name} cannot be read or created: {source}")]
    Client {
        /// Secret or ConfigMap.
        kind: &'static str,
        /// Its name.
        name: &'static str,
        /// The client's error.
        #[source]
        source: kube::Error,
    },
    /// The key cannot be generated or does not sign.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The private key is missing, invalid or not a trusted one.
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

/// A statement that was signed.
pub struct Signed {
    /// The bundle, in JSON.
    pub bundle: Vec<u8>,
    /// The public key that verifies it, in PEM.
    pub key: String,
}

/// What the controller trusts and signs with.
struct State {
    /// The trusted keys: those that are listed, or the pinned one.
    trusted: Vec<TrustedKey>,
    /// Whether there is a list.
    is_listed: bool,
    /// The private key, or why there is none. Plans check whether it has expired.
    private: Result<Arc<PrivateKey>, String>,
}

impl State {
    /// Returns what of the state somebody notices when it changes.
    fn noticed(&self) -> (Vec<(Sha256, Validity)>, bool, Result<Sha256, &str>) {
        let trusted = self.trusted.iter().map(|trusted| (trusted.key.fingerprint(), trusted.validity)).collect();
        let private = self.private.as_ref().map(|key| key.public().fingerprint()).map_err(String::as_str);
        (trusted, self.is_listed, private)
    }
}

/// Signs with the private key while a trusted public key belongs to it.
pub struct Signer {
    secrets: Api<Secret>,
    config_maps: Api<ConfigMap>,
    /// Why the pin cannot be used. It is read once.
    bad_pin: Option<String>,
    pinned: OnceLock<PublicKey>,
    state: RwLock<Arc<State>>,
}

impl Signer {
    /// Loads the key, its pin and the list of trusted keys. Creates key and pin if none of them exists. An unusable key, pin or list
    /// makes the signer unavailable.
    ///
    /// # Errors
    /// When a request fails, or no key can be generated.
    pub async fn load(client: Client, namespace: &str) -> Result<Self, SignerError> {
        let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
        let config_maps: Api<ConfigMap> = Api::namespaced(client, namespace);
        let in_secret = |source| SignerError::Client { kind: "Secret", name: NAME, source };
        let in_map = |name| move |source| SignerError::Client { kind: "ConfigMap", name, source };
        let pin = config_maps.get_opt(NAME).await.map_err(in_map(NAME))?;
        let list = config_maps.get_opt(LIST).await.map_err(in_map(LIST))?;
        let mut secret = secrets.get_opt(NAME).await.map_err(in_secret)?;
        if secret.is_none() && pin.is_none() && list.is_none() {
            let generated = new_secret(&PrivateKey::generate()?)?;
            secret = Some(create_once(&secrets, &generated).await.map_err(in_secret)?);
        }
        let (mut pinned, mut bad_pin) = (OnceLock::new(), None);
        match pin.as_ref().map(read_pin) {
            Some(Ok(key)) => pinned = key.into(),
            Some(Err(why)) => bad_pin = Some(why),
            None => {}
        }
        let empty = State { trusted: Vec::new(), is_listed: false, private: Err(String::new()) };
        let signer = Self { secrets, config_maps, bad_pin, pinned, state: RwLock::new(empty.into()) };
        let now = signer.judge(secret.as_ref(), list.as_ref()).await?;
        signer.set(now);
        signer.log();
        Ok(signer)
    }

    /// Returns what is trusted and signed with. Pins the key of the Secret if no key is pinned or listed.
    ///
    /// # Errors
    /// When the pin cannot be created.
    async fn judge(&self, secret: Option<&Secret>, list: Option<&ConfigMap>) -> Result<State, SignerError> {
        if let Some(list) = list {
            let (trusted, wrong) = read_list(list);
            let private = wrong.map_or_else(|| of_list(secret, &trusted), Err);
            return Ok(State { trusted, is_listed: true, private });
        }
        let unusable = |why: String| State { trusted: Vec::new(), is_listed: false, private: Err(why) };
        if let Some(why) = &self.bad_pin {
            return Ok(unusable(why.clone()));
        }
        if self.pinned.get().is_none() {
            let key = match secret.map(read) {
                Some(Ok(key)) => key,
                Some(Err(why)) => {
                    return Ok(unusable(format!("the Secret {NAME} has no usable key, and none is pinned: {why}")));
                }
                None => {
                    return Ok(unusable(format!("the Secret {NAME} does not exist, and no key is pinned: create it")));
                }
            };
            let created = create_once(&self.config_maps, &new_pin(key.public())).await;
            let pin = created.map_err(|source| SignerError::Client { kind: "ConfigMap", name: NAME, source })?;
            match read_pin(&pin) {
                // Only this task pins keys.
                Ok(key) => drop(self.pinned.set(key)),
                Err(why) => return Ok(unusable(why)),
            }
        }
        let Some(pinned) = self.pinned.get() else { return Ok(unusable("no key is pinned".to_owned())) };
        let private = of_pin(secret, pinned);
        let trusted = vec![TrustedKey { key: pinned.clone(), validity: Validity::default() }];
        Ok(State { trusted, is_listed: false, private })
    }

    /// Reads Secret and list once, as the watch does.
    #[cfg(test)]
    pub(crate) async fn refresh(&self) {
        let list = self.config_maps.get_opt(LIST).await.unwrap();
        let secret = self.secrets.get_opt(NAME).await.unwrap();
        let now = self.judge(secret.as_ref(), list.as_ref()).await.unwrap();
        self.set(now);
    }

    /// Watches the Secret and the list, and calls `changed` whenever what is trusted, or whether the signer is available and why,
    /// changes.
    pub async fn watch(&self, changed: impl Fn()) {
        let only = |name: &str| watcher::Config::default().fields(&format!("metadata.name={name}"));
        let secrets = watcher(self.secrets.clone(), only(NAME)).default_backoff();
        let lists = watcher(self.config_maps.clone(), only(LIST)).default_backoff();
        pin_mut!(secrets, lists);
        let (mut secret, mut list) = (Latest::default(), Latest::default());
        loop {
            tokio::select! {
                Some(event) = secrets.next() => secret.take(event),
                Some(event) = lists.next() => list.take(event),
                else => return,
            }
            if !(secret.is_known && list.is_known) {
                continue;
            }
            let now = match self.judge(secret.object.as_ref(), list.object.as_ref()).await {
                Ok(now) => now,
                // The next change, or the next start, tries again.
                Err(failure) => State { trusted: Vec::new(), is_listed: false, private: Err(chain(&failure)) },
            };
            if self.set(now) {
                self.log();
                changed();
            }
        }
    }

    /// Replaces the state; whether it differs.
    fn set(&self, now: State) -> bool {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let differs = state.noticed() != now.noticed();
        *state = now.into();
        differs
    }

    fn log(&self) {
        let state = self.state();
        let fingerprint = self.fingerprint().map_or_else(|| "none".to_owned(), |fingerprint| fingerprint.to_string());
        let trusted = state.trusted.len();
        match &state.private {
            Ok(_) => info!(fingerprint, trusted, "the signer is available"),
            Err(why) => error!(fingerprint, trusted, "the signer is unavailable; everything else goes on: {why}"),
        }
    }

    fn state(&self) -> Arc<State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the keys that verify bundles, those included that do not count now: the listed ones, or the pinned one, even
    /// without a private key.
    pub fn keys(&self) -> Vec<PublicKey> {
        self.state().trusted.iter().map(|trusted| trusted.key.clone()).collect()
    }

    /// Returns the list of trusted keys; empty if there is none.
    pub fn listed(&self) -> Vec<reasoning_pod::TrustedKey> {
        let state = self.state();
        let listed = state.trusted.iter().filter(|_| state.is_listed);
        listed
            .map(|TrustedKey { key, validity }| reasoning_pod::TrustedKey {
                fingerprint: key.fingerprint(),
                validity: *validity,
            })
            .collect()
    }

    /// Returns the fingerprint of the key that signs, or else of the pinned one. `None` if the signer is unavailable and keys are
    /// listed, or no key is pinned.
    pub fn fingerprint(&self) -> Option<Sha256> {
        let state = self.state();
        match &state.private {
            Ok(key) => Some(key.public().fingerprint()),
            Err(_) => state.trusted.first().filter(|_| !state.is_listed).map(|trusted| trusted.key.fingerprint()),
        }
    }

    /// Returns `Ok` if the signer has a private key that is trusted at some time.
    ///
    /// # Errors
    /// A sentence that says why it has none.
    pub fn available(&self) -> Result<(), String> {
        self.state().private.as_ref().map(|_| ()).map_err(Clone::clone)
    }

    /// Whether the signer can sign now.
    pub fn signs_at(&self, now: Timestamp) -> bool {
        let state = self.state();
        let Ok(key) = &state.private else { return false };
        let key = key.public().fingerprint();
        state.trusted.iter().any(|trusted| trusted.key.fingerprint() == key && trusted.validity.at(now).is_ok())
    }

    /// Returns when the signing key expires, and when the first of the other keys does that has not expired at `now`.
    pub fn expiries(&self, now: Timestamp) -> Expiries {
        let state = self.state();
        let signing = state.private.as_ref().ok().map(|key| key.public().fingerprint());
        let (own, others): (Vec<_>, Vec<_>) =
            state.trusted.iter().partition(|trusted| Some(trusted.key.fingerprint()) == signing);
        Expiries {
            signing: own.iter().find_map(|trusted| trusted.validity.not_after),
            others: others.iter().filter_map(|trusted| trusted.validity.not_after).filter(|end| *end > now).min(),
        }
    }

    /// Signs a statement.
    ///
    /// # Errors
    /// When the signer is unavailable or signing fails.
    pub fn sign(&self, payload: &[u8]) -> Result<Signed, SignerError> {
        let state = self.state();
        let key = state.private.as_ref().map_err(|why| SignerError::Unavailable(why.clone()))?;
        Ok(Signed { bundle: key.sign(payload)?, key: key.public().to_pem().to_owned() })
    }
}

/// When keys expire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expiries {
    /// The signing key.
    pub signing: Option<Timestamp>,
    /// The first of the other trusted keys.
    pub others: Option<Timestamp>,
}

/// The object that a watch of one name shows.
struct Latest<K> {
    /// Whether the watch has listed: before that, the object is not known.
    is_known: bool,
    object: Option<K>,
    listed: Option<K>,
}

impl<K> Default for Latest<K> {
    fn default() -> Self {
        Self { is_known: false, object: None, listed: None }
    }
}

impl<K> Latest<K> {
    fn take(&mut self, event: Result<watcher::Event<K>, watcher::Error>) {
        match event {
            Ok(watcher::Event::Init) => self.listed = None,
            Ok(watcher::Event::InitApply(object)) => self.listed = Some(object),
            Ok(watcher::Event::InitDone) => (self.is_known, self.object) = (true, self.listed.take()),
            Ok(watcher::Event::Apply(object)) => self.object = Some(object),
            Ok(watcher::Event::Delete(_)) => self.object = None,
            Err(failure) => warn!(error = chain(&failure), "the watch of the signing keys failed and is retried"),
        }
    }
}

/// Reads the private key of a Secret: its own form, or cosign's.
fn read(secret: &Secret) -> Result<PrivateKey, String> {
    let (name, bytes) = match (value(secret, PRIVATE), value(secret, COSIGN_PRIVATE)) {
        (Some(bytes), None) => (PRIVATE, bytes),
        (None, Some(bytes)) => (COSIGN_PRIVATE, bytes),
        (None, None) => return Err(format!("it has no {PRIVATE:?} and no {COSIGN_PRIVATE:?}")),
        (Some(_), Some(_)) => return Err(format!("it has both {PRIVATE:?} and {COSIGN_PRIVATE:?}: remove one")),
    };
    let text = std::str::from_utf8(bytes).map_err(|_| format!("{name:?} is not UTF-8"))?;
    let password = value(secret, COSIGN_PASSWORD).unwrap_or_default();
    PrivateKey::from_pem(text, password).map_err(|why| {
        format!("{name:?}: {}; the password of an encrypted key is read from {COSIGN_PASSWORD:?}", chain(&why))
    })
}

/// Reads the list of trusted keys: those that can be read, and what is wrong with the first entry that cannot.
fn read_list(list: &ConfigMap) -> (Vec<TrustedKey>, Option<String>) {
    let (mut trusted, mut wrong) = (Vec::new(), None);
    let named = |name: &str| Path::new(name).extension().is_some_and(|end| end == "pub" || end == "pem");
    for (name, text) in list.data.iter().flatten() {
        let read = match trust::read(text) {
            _ if !named(name) => Err("its name must end in .pub or .pem".to_owned()),
            read => read.map_err(|why| chain(&why)),
        };
        match read {
            Ok(keys) => trusted.extend(keys),
            Err(why) => drop(wrong.get_or_insert_with(|| format!("the entry {name:?} of the ConfigMap {LIST}: {why}"))),
        }
    }
    if trusted.is_empty() && wrong.is_none() {
        wrong = Some(format!(
            "the ConfigMap {LIST} lists no key: list the trusted ones, or delete it to trust the pinned key"
        ));
    }
    if let Err(why) = trust::check(&trusted) {
        wrong = wrong.or_else(|| Some(format!("the ConfigMap {LIST}: {why}")));
    }
    (trusted, wrong.map(|why| format!("{why}; nothing is signed before the list is right")))
}

/// Returns the private key if the Secret exists and its public key is listed, or a sentence that says what is wrong.
fn of_list(secret: Option<&Secret>, trusted: &[TrustedKey]) -> Result<Arc<PrivateKey>, String> {
    let advice = format!("put a key into it whose public key the ConfigMap {LIST} lists");
    let Some(secret) = secret else { return Err(format!("the Secret {NAME} does not exist: {advice}")) };
    let key = read(secret).map_err(|why| format!("the Secret {NAME} has no valid key ({why}): {advice}"))?;
    let found = key.public().fingerprint();
    if trusted.iter().any(|trusted| trusted.key.fingerprint() == found) {
        return Ok(Arc::new(key));
    }
    Err(format!(
        "the Secret {NAME} holds the key {found}, which the ConfigMap {LIST} does not list: list its public key, or {advice}"
    ))
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
fn of_pin(secret: Option<&Secret>, pinned: &PublicKey) -> Result<Arc<PrivateKey>, String> {
    let advice = format!(
        "restore the key {}, or, to sign with another key, list both public keys in the ConfigMap {LIST}",
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
    use codex_signing::{key::PrivateKey, trust};
    use k8s_openapi::{ByteString, api::core::v1::ConfigMap};

    use super::{COSIGN_PASSWORD, COSIGN_PRIVATE, PRIVATE, new_secret, of_list, of_pin, read, read_list};

    fn list(entries: &[(&str, &str)]) -> ConfigMap {
        let data = entries.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        ConfigMap { data: Some(data), ..ConfigMap::default() }
    }

    #[test]
    fn missing_changed_and_invalid_keys_are_distinguished() {
        let key = PrivateKey::generate().unwrap();
        let other = PrivateKey::generate().unwrap();
        let secret = new_secret(&key).unwrap();
        assert_eq!(of_pin(Some(&secret), key.public()).unwrap().public().fingerprint(), key.public().fingerprint());
        let lost = of_pin(None, key.public()).unwrap_err();
        assert!(lost.contains("does not exist") && lost.contains(&key.public().fingerprint().to_string()), "{lost}");
        let changed = of_pin(Some(&secret), other.public()).unwrap_err();
        assert!(
            changed.contains("not the pinned one") && changed.contains(&key.public().fingerprint().to_string()),
            "{changed}"
        );
        let trusted = trust::read(&format!("{}{}", other.public().to_pem(), key.public().to_pem())).unwrap();
        assert!(of_list(Some(&secret), &trusted).is_ok());
        let foreign = of_list(Some(&secret), &trusted[..1]).unwrap_err();
        assert!(
            foreign.contains("does not list") && foreign.contains(&key.public().fingerprint().to_string()),
            "{foreign}"
        );
        assert!(of_list(None, &trusted).unwrap_err().contains("does not exist"));
        let mut broken = secret;
        broken.data = None;
        assert!(of_pin(Some(&broken), key.public()).unwrap_err().contains("private.pem"));
    }

    #[test]
    fn a_secret_may_have_the_form_of_cosign() {
        let key = PrivateKey::generate().unwrap();
        let mut secret = new_secret(&key).unwrap();
        let data = secret.data.as_mut().unwrap();
        let plain = data.remove(PRIVATE).unwrap();
        let encrypted = key.to_encrypted_pem(b"secret").unwrap();
        data.insert(COSIGN_PRIVATE.to_owned(), ByteString(encrypted.as_bytes().to_vec()));
        let told = read(&secret).unwrap_err();
        assert!(told.contains("encrypted by cosign") && told.contains(COSIGN_PASSWORD), "{told}");
        secret.data.as_mut().unwrap().insert(COSIGN_PASSWORD.to_owned(), ByteString(b"secret".to_vec()));
        assert_eq!(read(&secret).unwrap().public().fingerprint(), key.public().fingerprint());
        secret.data.as_mut().unwrap().insert(PRIVATE.to_owned(), plain);
        assert!(read(&secret).unwrap_err().contains("has both"));
    }

    #[test]
    fn a_wrong_entry_is_named_and_the_others_count() {
        let key = PrivateKey::generate().unwrap();
        let pem = key.public().to_pem();
        let (trusted, wrong) = read_list(&list(&[("2026.pub", pem)]));
        assert_eq!((trusted.len(), wrong), (1, None));
        for (name, text, why) in [
            ("2027.pub", "notAfter: soon\n", "the entry \"2027.pub\" of the ConfigMap codex-trusted-keys: line 1: "),
            ("2027", pem, "its name must end in .pub or .pem"),
            ("2027.pub", pem, "is listed twice"),
        ] {
            let (trusted, wrong) = read_list(&list(&[("2026.pub", pem), (name, text)]));
            let wrong = wrong.unwrap();
            assert!(!trusted.is_empty() && wrong.contains(why) && wrong.contains("nothing is signed"), "{wrong}");
        }
        let (trusted, wrong) = read_list(&ConfigMap::default());
        assert!(trusted.is_empty() && wrong.unwrap().contains("lists no key"));
    }
}
