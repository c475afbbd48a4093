//! The configuration that a Job's pods mount. Pure.

use codex_configs::{Data, Spec};
use codex_provenance::ConfigDigest;
use k8s_openapi::api::batch::v1::Job;

use super::{composed::Outcome, job_status::config_digest};

/// The configuration of a Job's pods.
pub(crate) struct Config {
    pub(crate) digest: ConfigDigest,
    /// The resolved file. `None` if the Job runs with another configuration than this controller composes: the mounted
    /// file stays as it is.
    pub(crate) file: Option<String>,
    /// The data files, as far as this controller knows them.
    pub(crate) data: Vec<Data>,
}

impl Config {
    /// Returns the configuration to mount: `composed`, unless `job` already runs with another one. `started_with` is the
    /// digest of a configuration that pods have run with, also after their Job is gone.
    ///
    /// # Errors
    /// One sentence that says what to change.
    pub(crate) fn of<T: Spec>(
        composed: Outcome<T>,
        job: Option<&Job>,
        started_with: Option<ConfigDigest>,
        data: impl Fn(&T) -> &[Data],
    ) -> Result<Self, String> {
        if let Some(digest) = job.and_then(config_digest) {
            // A controller upgrade must not change a running Job.
            let same = composed.ok().filter(|composed| composed.resolved.digest() == digest);
            let data = same.as_ref().map(|composed| data(composed.resolved.spec()).to_vec()).unwrap_or_default();
            return Ok(Self { digest, file: same.and_then(|composed| composed.file.clone().ok()), data });
        }
        let composed = composed?;
        let digest = composed.resolved.digest();
        match started_with {
            Some(started) if started != digest => Err(format!(
                "pods ran with the configuration {started}, but this controller composes {digest}: create another object"
            )),
            _ => Ok(Self { digest, file: Some(composed.file.clone()?), data: data(composed.resolved.spec()).to_vec() }),
        }
    }
}
