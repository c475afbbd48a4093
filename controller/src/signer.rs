//! The signing key, or the identity that signs instead, and who is trusted: created on the first start, pinned or listed, and watched.
//!
//! The private key is in a Secret that only the controller reads. Its public key and fingerprint are pinned in an immutable
//! ConfigMap of the same name. Where the ConfigMap [`LIST`] exists, the keys in it are the trusted ones instead, each within its
//! validity, so that keys can be rotated while what earlier keys signed stays valid. If the private key is missing, unusable or
//! not trusted, nothing is signed until an administrator corrects that, and everything else goes on. If no key is pinned or listed
//! yet, the first usable one is pinned.
//!
//! With `--signing=keyless` the service account of the controller signs ([`crate::keyless`]). No key is created then; the identity is
//! trusted unless the list says otherwise, and so is a key that was pinned before. The list may name identities, whichever way this
//! controller signs: the trusted root in the ConfigMap [`keyless::NAME`] verifies them.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use codex_plan::reasoning_pod;
use codex_provenance::{Identity, IdentityPattern, Sha256, Validity};
use codex_signing::{
    key::{KeyError, PrivateKey, PublicKey, Signer as _},
    keyless::Keyless,
    trust::{self, TrustedIdentity, TrustedKey},
    verify::Trusted,
};
use futures::{StreamExt, pin_mut};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{
    Api, Client,
    runtime::{WatchStreamExt, watcher},
};
use tokio::time::sleep;
use tracing::{error, info, warn};

use crate::{
    api::create_once,
    backoff::Waits,
    error::{answered, chain, client_category, remedy},
    keyless::{self, Http, KeylessError, KeylessSigner, Rooted, Unfinished, trusted_root},
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
/// How often what signs without a key is read again: services begin and cease to be valid by themselves.
const AGAIN: Duration = Duration::from_mins(1);

/// How bundles are signed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Signing {
    /// With the private key in the Secret.
    #[default]
    Key,
    /// As the service account whose token is in this file.
    Keyless(PathBuf),
}

/// Why the signer cannot be loaded or does not sign.
#[derive(Debug, thiserror::Error)]
pub enum SignerError {
    /// A request to the API server failed.
    #[error("the {kind} {name} cannot be read or created: {source}{}", remedy(.source))]
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
    /// The services that sign without a key do not.
    #[error(transparent)]
    Keyless(#[from] KeylessError),
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
            Self::Keyless(_) => "signing_services",
            Self::Unavailable(_) => "signer_unavailable",
        }
    }
}

/// Statements that one key or identity signed.
pub struct Signed {
    /// The bundles, in JSON, in the order of the statements.
    pub bundles: Vec<Vec<u8>>,
    /// The public key that verifies them, in PEM; `None` if an identity signed.
    pub key: Option<String>,
}

/// What signs.
#[derive(Clone)]
enum Private {
    Key(Arc<PrivateKey>),
    Keyless(Arc<KeylessSigner>),
}

impl Private {
    fn fingerprint(&self) -> Sha256 {
        match self {
            Self::Key(key) => key.public().fingerprint(),
            Self::Keyless(signer) => signer.identity().fingerprint(),
        }
    }
}

/// What the controller trusts and signs with.
struct State {
    /// The trusted keys: those that are listed, or the pinned one.
    trusted: Vec<TrustedKey>,
    /// The trusted identities: those that are listed, or that of the controller.
    identities: Vec<TrustedIdentity>,
    /// Whether there is a list.
    is_listed: bool,
    root: Option<Rooted>,
    /// The private key, or the reason why it cannot be used. Plans check whether it has expired.
    private: Result<Private, String>,
}

/// The parts of a state whose change reconciles objects again.
type Noticed<'a> = (Vec<(Sha256, Validity)>, &'a [TrustedIdentity], bool, Option<Sha256>, Result<Sha256, &'a str>);

impl State {
    fn unusable(why: String) -> Self {
        Self { trusted: Vec::new(), identities: Vec::new(), is_listed: false, root: None, private: Err(why) }
    }

    fn noticed(&self) -> Noticed<'_> {
        let trusted = self.trusted.iter().map(|trusted| (trusted.key.fingerprint(), trusted.validity)).collect();
        let private = self.private.as_ref().map(Private::fingerprint).map_err(String::as_str);
        (trusted, &self.identities, self.is_listed, self.root.as_ref().map(|(root, _)| root.digest()), private)
    }

    /// Returns when signatures of an identity count, if it is trusted at some time: of several entries, the one that is not a pattern.
    fn validity(&self, identity: &Identity) -> Option<Validity> {
        let admits = self.identities.iter().filter(|it| it.pattern.admits(identity));
        admits.min_by_key(|it| it.pattern.exact().is_none()).map(|it| it.validity)
    }
}

/// What a state is made from.
#[derive(Default)]
struct Sources {
    secret: Option<Secret>,
    list: Option<ConfigMap>,
    sigstore: Option<ConfigMap>,
}

/// Signs with the private key while a trusted public key belongs to it.
pub struct Signer {
    secrets: Api<Secret>,
    config_maps: Api<ConfigMap>,
    /// Why the pin cannot be used. It is read once.
    bad_pin: OnceLock<String>,
    pinned: OnceLock<PublicKey>,
    /// Whether everything was read once.
    is_read: AtomicBool,
    signing: Signing,
    unfinished: Arc<Unfinished>,
    state: RwLock<Arc<State>>,
}

impl Signer {
    /// Loads the key, its pin, the list of trusted keys and what signs without a key. Creates key and pin if none of them exists and
    /// a key is to sign. An unusable key, pin, list or configuration makes the signer unavailable.
    ///
    /// # Errors
    /// When a request fails, or no key can be generated.
    pub async fn load(client: Client, namespace: &str, signing: Signing) -> Result<Self, SignerError> {
        let signer = Self::unread(client, namespace, signing);
        signer.read().await?;
        Ok(signer)
    }

    /// Loads as [`Self::load`] does, but goes on without a right that the controller lacks: the signer is unavailable then, says which
    /// one it is, and [`Self::watch`] tries again.
    ///
    /// # Errors
    /// As [`Self::load`], but for missing rights.
    pub async fn load_or_wait(client: Client, namespace: &str, signing: Signing) -> Result<Self, SignerError> {
        let signer = Self::unread(client, namespace, signing);
        match signer.read().await {
            Err(SignerError::Client { kind, name, source }) if answered(&source, 403) => {
                signer.set(State::unusable(SignerError::Client { kind, name, source }.to_string()));
                signer.log();
            }
            read => {
                read?;
            }
        }
        Ok(signer)
    }

    fn unread(client: Client, namespace: &str, signing: Signing) -> Self {
        Self {
            secrets: Api::namespaced(client.clone(), namespace),
            config_maps: Api::namespaced(client, namespace),
            bad_pin: OnceLock::new(),
            pinned: OnceLock::new(),
            is_read: AtomicBool::new(false),
            signing,
            unfinished: Arc::default(),
            state: RwLock::new(State::unusable(String::new()).into()),
        }
    }

    /// Reads everything for the first time, and creates key and pin if none of them exists. Returns whether the state differs.
    async fn read(&self) -> Result<bool, SignerError> {
        let Self { secrets, config_maps, .. } = self;
        let in_secret = |source| SignerError::Client { kind: "Secret", name: NAME, source };
        let in_map = |name| move |source| SignerError::Client { kind: "ConfigMap", name, source };
        let pin = config_maps.get_opt(NAME).await.map_err(in_map(NAME))?;
        let list = config_maps.get_opt(LIST).await.map_err(in_map(LIST))?;
        let sigstore = config_maps.get_opt(keyless::NAME).await.map_err(in_map(keyless::NAME))?;
        let mut secret = secrets.get_opt(NAME).await.map_err(in_secret)?;
        if self.signing == Signing::Key && secret.is_none() && pin.is_none() && list.is_none() {
            let generated = new_secret(&PrivateKey::generate()?)?;
            secret = Some(create_once(secrets, &generated).await.map_err(in_secret)?);
        }
        match pin.as_ref().map(read_pin) {
            // Only the first reading of the pin counts.
            Some(Ok(key)) => drop(self.pinned.set(key)),
            Some(Err(why)) => drop(self.bad_pin.set(why)),
            None => {}
        }
        let now = self.judge(&Sources { secret, list, sigstore }).await?;
        let differs = self.set(now);
        self.is_read.store(true, Ordering::Relaxed);
        self.log();
        Ok(differs)
    }

    /// Returns what is trusted and signed with. Pins the key of the Secret if no key is pinned or listed and a key is to sign.
    ///
    /// # Errors
    /// When the pin cannot be created.
    async fn judge(&self, sources: &Sources) -> Result<State, SignerError> {
        let (secret, sigstore) = (sources.secret.as_ref(), sources.sigstore.as_ref());
        let (root, bad_root) = match trusted_root(sigstore) {
            Ok(root) => (root, None),
            Err(why) => (None, Some(why)),
        };
        if let Some(list) = &sources.list {
            let Listed { keys, identities, wrong } = read_list(list);
            let rootless = || {
                let why = bad_root.clone().unwrap_or_else(|| {
                    format!("the ConfigMap {} has no trusted root: add trusted_root.json", keyless::NAME)
                });
                format!("the ConfigMap {LIST} names identities, and nothing verifies them: {why}")
            };
            let wrong = wrong.or_else(|| (root.is_none() && !identities.is_empty()).then(rootless));
            let private = match (wrong, &self.signing) {
                (Some(why), _) => Err(why),
                (None, Signing::Key) => of_list(secret, &keys).map(Private::Key),
                (None, Signing::Keyless(token)) => match self.keyless(token, sigstore, root.as_ref(), bad_root).await {
                    Ok(signer) => admitted(signer, &identities).map(Private::Keyless),
                    Err(why) => Err(why),
                },
            };
            return Ok(State { trusted: keys, identities, is_listed: true, root, private });
        }
        if let Signing::Keyless(token) = &self.signing {
            // What an earlier key signed stays valid.
            let pinned = self.pinned.get().map(|key| TrustedKey { key: key.clone(), validity: Validity::default() });
            let trusted = pinned.into_iter().collect();
            let private = self.keyless(token, sigstore, root.as_ref(), bad_root).await.map(Private::Keyless);
            let identities = match &private {
                Ok(Private::Keyless(signer)) => vec![only(signer.identity())],
                _ => Vec::new(),
            };
            return Ok(State { trusted, identities, is_listed: false, root, private });
        }
        let unusable = State::unusable;
        if let Some(why) = self.bad_pin.get() {
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
        let private = of_pin(secret, pinned).map(Private::Key);
        let trusted = vec![TrustedKey { key: pinned.clone(), validity: Validity::default() }];
        Ok(State { trusted, identities: Vec::new(), is_listed: false, root, private })
    }

    /// Returns what signs without a key: the present one, if nothing changed.
    async fn keyless(
        &self,
        token: &Path,
        sigstore: Option<&ConfigMap>,
        root: Option<&Rooted>,
        bad_root: Option<String>,
    ) -> Result<Arc<KeylessSigner>, String> {
        if let Some(why) = bad_root {
            return Err(why);
        }
        let settings = keyless::Settings::read(sigstore, root.map(|(root, _)| Arc::clone(root)))?;
        let http = Box::new(Http::new(&settings)?);
        let signer = KeylessSigner::new(token.to_owned(), settings, http, Arc::clone(&self.unfinished)).await?;
        match &self.state().private {
            Ok(Private::Keyless(present))
                if present.settings() == signer.settings() && present.identity() == signer.identity() =>
            {
                Ok(Arc::clone(present))
            }
            _ => Ok(Arc::new(signer)),
        }
    }

    /// Reads everything once, as the watch does.
    #[cfg(test)]
    pub(crate) async fn refresh(&self) {
        let list = self.config_maps.get_opt(LIST).await.unwrap();
        let secret = self.secrets.get_opt(NAME).await.unwrap();
        let sigstore = self.config_maps.get_opt(keyless::NAME).await.unwrap();
        let now = self.judge(&Sources { secret, list, sigstore }).await.unwrap();
        self.set(now);
    }

    /// Watches the Secret, the list and the configuration of Sigstore, and calls `changed` whenever what is trusted, or whether the
    /// signer is available and why, changes.
    pub async fn watch(&self, changed: impl Fn()) {
        let mut waits = Waits::default();
        while !self.is_read.load(Ordering::Relaxed) {
            sleep(waits.after_failure()).await;
            match self.read().await {
                Ok(differs) => {
                    if differs {
                        changed();
                    }
                }
                Err(failure) => {
                    if self.set(State::unusable(failure.to_string())) {
                        changed();
                    }
                    self.log();
                }
            }
        }
        let only = |name: &str| watcher::Config::default().fields(&format!("metadata.name={name}"));
        let secrets = watcher(self.secrets.clone(), only(NAME)).default_backoff();
        let lists = watcher(self.config_maps.clone(), only(LIST)).default_backoff();
        let roots = watcher(self.config_maps.clone(), only(keyless::NAME)).default_backoff();
        pin_mut!(secrets, lists, roots);
        let (mut secret, mut list, mut sigstore) = (Latest::default(), Latest::default(), Latest::default());
        let mut again = tokio::time::interval(AGAIN);
        loop {
            tokio::select! {
                Some(event) = secrets.next() => secret.take(event),
                Some(event) = lists.next() => list.take(event),
                Some(event) = roots.next() => sigstore.take(event),
                _ = again.tick(), if self.signing != Signing::Key => {}
                else => return,
            }
            if !(secret.is_known && list.is_known && sigstore.is_known) {
                continue;
            }
            let sources =
                Sources { secret: secret.object.clone(), list: list.object.clone(), sigstore: sigstore.object.clone() };
            // After a failure, the next change or the next start tries again.
            let now = self.judge(&sources).await.unwrap_or_else(|failure| State::unusable(chain(&failure)));
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
        let trusted = state.trusted.len() + state.identities.len();
        match &state.private {
            Ok(_) => info!(fingerprint, trusted, "the signer is available"),
            Err(why) => error!(fingerprint, trusted, "the signer is unavailable; everything else goes on: {why}"),
        }
    }

    fn state(&self) -> Arc<State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns who verifies bundles, those included that do not count now: the listed ones, or the pinned key, even without a
    /// private key.
    pub fn trusted(&self) -> Trusted {
        let state = self.state();
        let patterns: Vec<IdentityPattern> = state.identities.iter().map(|it| it.pattern.clone()).collect();
        let root = state.root.as_ref().filter(|_| !patterns.is_empty());
        Trusted {
            keys: state.trusted.iter().map(|trusted| trusted.key.clone()).collect(),
            identities: root.map(|(root, _)| Keyless::of(Arc::clone(root), patterns)).into_iter().collect(),
        }
    }

    /// Returns the list of trusted keys and identities. Without a list it is empty, and only the pinned key is trusted. Of a pattern for
    /// identities, it has the controller's own and those of `met` that match.
    pub fn listed(&self, met: &[Identity]) -> Vec<reasoning_pod::TrustedKey> {
        let state = self.state();
        if !state.is_listed && state.identities.is_empty() {
            return Vec::new();
        }
        let keys = state.trusted.iter().map(|TrustedKey { key, validity }| reasoning_pod::TrustedKey {
            fingerprint: key.fingerprint(),
            validity: *validity,
            identity: None,
        });
        let mut listed: Vec<_> = keys.collect();
        let exact = state.identities.iter().filter_map(|it| it.pattern.exact());
        let own = state.private.iter().filter_map(|private| match private {
            Private::Keyless(signer) => Some(signer.identity().clone()),
            Private::Key(_) => None,
        });
        for identity in exact.chain(own).chain(met.iter().cloned()) {
            let fingerprint = identity.fingerprint();
            if let Some(validity) = state.validity(&identity)
                && listed.iter().all(|known| known.fingerprint != fingerprint)
            {
                listed.push(reasoning_pod::TrustedKey { fingerprint, validity, identity: Some(identity) });
            }
        }
        listed
    }

    /// Returns the trusted root that verifies signatures by identities, if identities are trusted.
    pub fn trusted_root(&self) -> Option<Arc<reasoning_pod::TrustedRoot>> {
        let state = self.state();
        state.root.as_ref().filter(|_| !state.identities.is_empty()).map(|(_, root)| Arc::clone(root))
    }

    /// Returns the fingerprint of the key or identity that signs, or else of the pinned key. `None` if the signer is unavailable and
    /// keys are listed, or no key is pinned.
    pub fn fingerprint(&self) -> Option<Sha256> {
        let state = self.state();
        match &state.private {
            Ok(private) => Some(private.fingerprint()),
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
        match &state.private {
            Err(_) => false,
            Ok(Private::Keyless(signer)) => state.validity(signer.identity()).is_some_and(|it| it.at(now).is_ok()),
            Ok(Private::Key(key)) => {
                let key = key.public().fingerprint();
                state.trusted.iter().any(|trusted| trusted.key.fingerprint() == key && trusted.validity.at(now).is_ok())
            }
        }
    }

    /// Returns when the signing key, or the trusted root that verifies its signatures, expires, and when the first of the other keys does
    /// that has not expired at `now`.
    pub fn expiries(&self, now: Timestamp) -> Expiries {
        let state = self.state();
        let signing = state.private.as_ref().ok().map(Private::fingerprint);
        let listed = self.listed(&[]);
        let pinned = state.trusted.iter().filter(|_| listed.is_empty());
        let all = listed.iter().map(|it| (it.fingerprint, it.validity));
        let all = all.chain(pinned.map(|it| (it.key.fingerprint(), it.validity)));
        let (own, others): (Vec<_>, Vec<_>) = all.partition(|(fingerprint, _)| Some(*fingerprint) == signing);
        let root = match &state.private {
            Ok(Private::Keyless(signer)) => signer.settings().root.ends(),
            _ => None,
        };
        let own = own.iter().find_map(|(_, validity)| validity.not_after);
        Expiries {
            signing: own.into_iter().chain(root).min(),
            others: others.iter().filter_map(|(_, validity)| validity.not_after).filter(|end| *end > now).min(),
        }
    }

    /// Signs statements, all with the same key or identity, even if the key is replaced meanwhile.
    ///
    /// # Errors
    /// When the signer is unavailable or signing fails.
    pub async fn sign(&self, payloads: &[&[u8]]) -> Result<Signed, SignerError> {
        let private = self.state().private.clone().map_err(SignerError::Unavailable)?;
        let mut bundles = Vec::with_capacity(payloads.len());
        for payload in payloads {
            bundles.push(match &private {
                Private::Key(key) => key.sign(payload)?,
                Private::Keyless(signer) => signer.sign(payload).await?,
            });
        }
        let key = match private {
            Private::Key(key) => Some(key.public().to_pem().to_owned()),
            Private::Keyless(_) => None,
        };
        Ok(Signed { bundles, key })
    }

    /// Forgets a bundle that is recorded: without a key, a finished one is kept until then, so that nothing is signed twice.
    pub fn recorded(&self, payload: &[u8]) {
        if let Ok(Private::Keyless(signer)) = &self.state().private {
            signer.recorded(payload);
        }
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

/// The list of trusted keys and identities.
#[derive(Default)]
struct Listed {
    keys: Vec<TrustedKey>,
    identities: Vec<TrustedIdentity>,
    /// What is wrong with the first entry that cannot be read.
    wrong: Option<String>,
}

/// Reads the list of trusted keys and identities: those that can be read, and what is wrong with the first entry that cannot.
fn read_list(list: &ConfigMap) -> Listed {
    let Listed { mut keys, mut identities, mut wrong } = Listed::default();
    for (name, text) in list.data.iter().flatten() {
        let read = match Path::new(name).extension().and_then(|end| end.to_str()) {
            Some("pub" | "pem") => trust::read(text).map(|read| keys.extend(read)).map_err(|why| chain(&why)),
            Some("identity") => trust::read_identity(text).map(|read| identities.push(read)).map_err(|why| chain(&why)),
            _ => Err("its name must end in .pub, .pem or .identity".to_owned()),
        };
        if let Err(why) = read {
            wrong.get_or_insert_with(|| format!("the entry {name:?} of the ConfigMap {LIST}: {why}"));
        }
    }
    if keys.is_empty() && identities.is_empty() && wrong.is_none() {
        wrong = Some(format!(
            "the ConfigMap {LIST} lists no key and no identity: list the trusted ones, or delete it to trust the pinned key"
        ));
    }
    if let Err(why) = trust::check(&keys) {
        wrong = wrong.or_else(|| Some(format!("the ConfigMap {LIST}: {why}")));
    }
    Listed { keys, identities, wrong: wrong.map(|why| format!("{why}; nothing is signed before the list is right")) }
}

/// Returns the identity alone as a trusted one, without a limit.
fn only(identity: &Identity) -> TrustedIdentity {
    TrustedIdentity { pattern: identity.into(), validity: Validity::default() }
}

/// Returns the signer if the list names its identity, or a sentence that says what is wrong.
fn admitted(signer: Arc<KeylessSigner>, listed: &[TrustedIdentity]) -> Result<Arc<KeylessSigner>, String> {
    let identity = signer.identity();
    if listed.iter().any(|it| it.pattern.admits(identity)) {
        return Ok(signer);
    }
    Err(format!(
        "the controller signs as {identity}, which the ConfigMap {LIST} does not list: add an entry such as controller.identity \
         with the lines \"issuer: {}\" and \"subject: {}\"",
        identity.issuer, identity.subject
    ))
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
        let identity =
            "issuer: https://kubernetes.default.svc\nsubject: https://kubernetes.io/namespaces/a/serviceaccounts/*";
        let read = read_list(&list(&[("2026.pub", pem), ("tenants.identity", identity)]));
        assert_eq!((read.keys.len(), read.identities.len(), read.wrong), (1, 1, None));
        for (name, text, why) in [
            ("2027.pub", "notAfter: soon\n", "the entry \"2027.pub\" of the ConfigMap codex-trusted-keys: line 1: "),
            ("2027", pem, "its name must end in .pub, .pem or .identity"),
            ("2027.pub", pem, "is listed twice"),
            ("2027.identity", "issuer: a", "identity of the certificate is empty"),
        ] {
            let read = read_list(&list(&[("2026.pub", pem), (name, text)]));
            let wrong = read.wrong.unwrap();
            assert!(!read.keys.is_empty() && wrong.contains(why) && wrong.contains("nothing is signed"), "{wrong}");
        }
        let read = read_list(&ConfigMap::default());
        assert!(read.keys.is_empty() && read.wrong.unwrap().contains("lists no key"));
    }
}
