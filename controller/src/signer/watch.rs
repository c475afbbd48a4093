//! The watch of everything that signs and is trusted. Does I/O.

use std::{sync::atomic::Ordering, time::Duration};

use futures::{StreamExt, pin_mut};
use kube::runtime::{WatchStreamExt, watcher};
use tokio::time::sleep;
use tracing::warn;

use super::{LIST, NAME, Signer, Signing, Sources, State};
use crate::{backoff::Waits, error::chain, keyless};

/// How often what signs without a key is read again: services begin and cease to be valid by themselves.
const AGAIN: Duration = Duration::from_mins(1);

impl Signer {
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
