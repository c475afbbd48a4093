//! Files that a server reads again while it runs. Does I/O.

use std::{sync::Arc, time::Duration};

use super::{
    access::Access,
    errors::Errors,
    filter::Filter,
    shadow::{Mirror, Shadow},
    tls::Certificate,
};
use crate::artifacts::errors::ServerErrorSource;

/// What is read from files that may change.
#[derive(Clone)]
pub(super) struct Reloaded {
    pub(super) access: Arc<Access>,
    pub(super) filter: Option<Arc<Filter>>,
    pub(super) certificate: Option<Arc<Certificate>>,
    pub(super) mirror: Option<Arc<Mirror>>,
    pub(super) shadow: Option<Arc<Shadow>>,
    pub(super) errors: Arc<Errors>,
}

impl Reloaded {
    fn reload(&self) {
        let Self { access, filter, certificate, mirror, shadow, errors } = self;
        errors.reread(ServerErrorSource::ApiKeys, access.reload());
        if let Some(filter) = filter {
            errors.reread(ServerErrorSource::SafetyRules, filter.reload());
        }
        if let Some(certificate) = certificate {
            errors.reread(ServerErrorSource::Certificate, certificate.reload());
        }
        // A server has one of them.
        if let Some(mirror) = mirror {
            errors.reread(ServerErrorSource::Shadows, mirror.reload());
        }
        if let Some(shadow) = shadow {
            errors.reread(ServerErrorSource::Shadows, shadow.reload());
        }
    }
}

/// Reads files that may change again, forever.
pub(super) async fn reload(files: Reloaded, period: Duration) {
    loop {
        tokio::time::sleep(period).await;
        let files = files.clone();
        if tokio::task::spawn_blocking(move || files.reload()).await.is_err() {
            tracing::error!(
                "reading API keys, safety rules, certificate and shadows again failed: changes need a restart"
            );
            return;
        }
    }
}
