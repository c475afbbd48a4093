//! Signing without a key: the controller's service-account token buys a certificate that is valid for minutes, and what it signs gets
//! a timestamp and an entry in a transparency log.
//!
//! [`Services`] sends the requests that [`codex_signing::services`] makes. A signature that is not finished is kept in memory and
//! continued when it is asked for again: a service that is away costs no second certificate and no second entry in the log.

mod config;
mod http;
mod services;
#[cfg(test)]
mod tests;
mod unfinished;

use std::{path::PathBuf, sync::Mutex, time::Duration};

use codex_provenance::{Identity, Sha256, text::Printable};
use codex_signing::{
    bundle::BundleError,
    services::{Draft, Ephemeral, LogVersion, Service, ServiceError},
    token::{MAX_TOKEN, Token, TokenError},
};
use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

pub use self::{
    config::{NAME, Rooted, Settings, trusted_root},
    http::Http,
    services::{Away, Services},
    unfinished::Unfinished,
};

#[cfg(test)]
pub(crate) use tests::token;

/// The file with the token, as `manifests/overlays/keyless` mounts it.
pub const TOKEN: &str = "/var/run/secrets/codex-ml.dev/sigstore/token";
/// How long before the end of a certificate nothing is begun with it.
const MARGIN: SignedDuration = SignedDuration::from_secs(30);
/// How long nobody is asked after a service did not answer. Objects have their own backoff, and it is longer.
const REST: Duration = Duration::from_secs(5);
/// How long a finished bundle that the trusted root refuses is kept, before it is made anew: each one is an entry in the log.
const REFUSED: Duration = Duration::from_hours(1);

/// Why nothing was signed.
#[derive(Debug, thiserror::Error)]
pub enum KeylessError {
    /// The token cannot be used.
    #[error("the token {path:?} cannot be used: {why}")]
    Token {
        /// Its path.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// A service does not answer, or refuses.
    #[error(transparent)]
    Away(#[from] Away),
    /// An answer cannot be used.
    #[error(transparent)]
    Service(#[from] ServiceError),
    /// The bundle is not one that servers accept.
    #[error(
        "the signature was made, and the trusted root does not accept it: it {0}; let trusted_root.json in the ConfigMap {NAME} name \
         the authorities and the log that signing_config.json names"
    )]
    Root(#[source] BundleError),
    /// The bundle is for something else.
    #[error("the services made a bundle for {0}, which was not asked for")]
    Another(Identity),
}

impl KeylessError {
    /// Whether it may pass without a change by an administrator.
    pub fn waits(&self) -> bool {
        matches!(self, Self::Away(away) if away.waits())
    }
}

/// Signs as the identity of a service account.
pub struct KeylessSigner {
    identity: Identity,
    token: PathBuf,
    settings: Settings,
    services: Box<dyn Services>,
    unfinished: std::sync::Arc<Unfinished>,
    /// Until when nobody is asked, and why.
    rest: Mutex<Option<(Instant, Away)>>,
}

impl KeylessSigner {
    /// Returns a signer, if the token is one that the settings want.
    ///
    /// # Errors
    /// A sentence that says what is missing.
    pub async fn new(
        token: PathBuf,
        settings: Settings,
        services: Box<dyn Services>,
        unfinished: std::sync::Arc<Unfinished>,
    ) -> Result<Self, String> {
        let read = read_token(&token, &settings.audience).await.map_err(|why| {
            format!(
                "{why}; project the token of the controller's service account there, as manifests/overlays/keyless does"
            )
        })?;
        let identity = read.identity().clone();
        Ok(Self { identity, token, settings, services, unfinished, rest: Mutex::default() })
    }

    /// Returns the identity that certificates name.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Returns the settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Signs an in-toto statement, and returns the bundle in JSON: one that the trusted root accepts. Asked again for the same
    /// statement, it continues, and a finished bundle stays until it is [recorded](Self::recorded).
    ///
    /// # Errors
    /// When a service does not answer, or its answer is refused.
    pub async fn sign(&self, payload: &[u8]) -> Result<Vec<u8>, KeylessError> {
        let slot = self.unfinished.of(Sha256::of(payload));
        // Objects that share a model wait for one signature, and make none of their own.
        let mut slot = slot.lock().await;
        if let Some(bundle) = &slot.finished {
            return Ok(bundle.clone());
        }
        if let Some(away) = self.resting() {
            return Err(away.into());
        }
        let result = self.proceed(&mut slot, payload).await;
        match &result {
            Ok(bundle) => (slot.draft, slot.finished) = (None, Some(bundle.clone())),
            Err(KeylessError::Away(away)) if away.waits() => self.rest(away),
            Err(_) => {}
        }
        result
    }

    /// Forgets a bundle that is recorded.
    pub fn recorded(&self, payload: &[u8]) {
        self.unfinished.forget(Sha256::of(payload));
    }

    async fn proceed(&self, slot: &mut unfinished::Slot, payload: &[u8]) -> Result<Vec<u8>, KeylessError> {
        let version = self.settings.endpoints.version;
        let usable = |draft: &Draft| {
            // A log of the second version signs no time of its own: what has a timestamp can be entered at any time.
            let stamped = draft.is_stamped() && version == LogVersion::V2;
            draft.is_logged() || stamped || Timestamp::now() + MARGIN < draft.ends()
        };
        if slot.refused.is_some_and(|since| since.elapsed() >= REFUSED) || !slot.draft.as_ref().is_some_and(usable) {
            (slot.draft, slot.refused) = (None, None);
        }
        let mut draft = match slot.draft.take() {
            Some(draft) => draft,
            None => self.certified(payload).await?,
        };
        let finished = self.finish(&mut draft).await;
        // With status 409, the log has the entry already and does not tell it: another signature follows.
        if !matches!(&finished, Err(KeylessError::Away(Away::Refused { status: 409, .. }))) {
            slot.draft = Some(draft);
        }
        finished?;
        let Some(draft) = &slot.draft else { return Err(ServiceError::Bundle("it is lost".to_owned()).into()) };
        let bundle = draft.bundle()?;
        let (signed, identity) = self.settings.root.identify(&bundle).map_err(|why| {
            slot.refused.get_or_insert_with(Instant::now);
            KeylessError::Root(why)
        })?;
        if signed != payload || identity != self.identity {
            slot.draft = None;
            return Err(KeylessError::Another(identity));
        }
        Ok(bundle)
    }

    /// Asks for a certificate, and signs with its key.
    async fn certified(&self, payload: &[u8]) -> Result<Draft, KeylessError> {
        let token = read_token(&self.token, &self.settings.audience)
            .await
            .map_err(|why| KeylessError::Token { path: self.token.clone(), why })?;
        let key = Ephemeral::generate()?;
        let answer = self.services.ask(Service::Fulcio, key.certificate_request(&token)?).await?;
        Ok(key.sign(&answer, &token, payload)?)
    }

    /// Adds what is missing: first the timestamp, because nothing is removed from a log.
    async fn finish(&self, draft: &mut Draft) -> Result<(), KeylessError> {
        let endpoints = &self.settings.endpoints;
        if endpoints.timestamp.is_some() && !draft.is_stamped() {
            let answer = self.services.ask(Service::Timestamp, draft.stamp_request()?).await?;
            draft.stamped(answer)?;
        }
        if !draft.is_logged() {
            let answer = self.services.ask(Service::Rekor, draft.log_request(endpoints.version)?).await?;
            draft.logged(&answer, endpoints.version)?;
        }
        Ok(())
    }

    fn resting(&self) -> Option<Away> {
        let rest = self.rest.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        rest.as_ref().filter(|(until, _)| Instant::now() < *until).map(|(_, away)| away.clone())
    }

    fn rest(&self, away: &Away) {
        let mut rest = self.rest.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *rest = Some((Instant::now() + REST, away.clone()));
    }
}

/// Reads the token; the kubelet replaces the file before the token expires.
async fn read_token(path: &std::path::Path, audience: &str) -> Result<Token, String> {
    let unreadable = |why: std::io::Error| format!("the token {} cannot be read: {why}", path.display());
    let size = tokio::fs::metadata(path).await.map_err(unreadable)?.len();
    if size > MAX_TOKEN as u64 {
        return Err(format!("the token {} has {size} bytes, and is none", path.display()));
    }
    let text = tokio::fs::read_to_string(path).await.map_err(unreadable)?;
    let shown = path.display().to_string();
    Token::read(&text, audience).map_err(|why: TokenError| format!("the token {} is refused: {why}", Printable(&shown)))
}
