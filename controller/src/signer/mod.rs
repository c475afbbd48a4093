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

mod keys;
mod watch;

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

use codex_plan::reasoning_pod;
use codex_provenance::{Identity, IdentityPattern, Sha256, Validity};
use codex_signing::{
    key::{KeyError, PrivateKey, PublicKey, Signer as _},
    keyless::Keyless,
    trust::{TrustedIdentity, TrustedKey},
    verify::Trusted,
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{Api, Client};
use tracing::{error, info};

pub(crate) use self::keys::new_secret;
use self::keys::{Listed, admitted, new_pin, of_list, of_pin, only, read, read_list, read_pin};
use crate::{
    api::create_once,
    error::{answered, client_category, remedy},
    keyless::{self, Http, KeylessError, KeylessSigner, Rooted, Unfinished, trusted_root},
};

/// The name of the Secret with the private key and of the ConfigMap that pins its public key.
pub const NAME: &str = "codex-signing-key";
/// The name of the ConfigMap that lists the trusted keys.
pub const LIST: &str = "codex-trusted-keys";
/// The key of a signed bundle in its ConfigMap.
pub const BUNDLE: &str = "bundle.json";
/// The key of the public key in the Secret, in the pin and in the ConfigMap of a bundle.
pub const PUBLIC: &str = "key.pem";

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
