//! `codex fetch`: downloads a model from a hub into a directory. Does I/O.

use std::{collections::BTreeSet, path::PathBuf, sync::atomic::Ordering};

use codex_provenance::{ModelDigest, manifest::Manifest, oms::SIGNATURE};
use codex_reports::exit;

use super::{Hub, HubError, Repository, download};
use crate::{
    atomic_fs,
    error::CommandError,
    signals::{Stop, stop_flag_or_exit},
};

/// Download a model from Hugging Face, or a mirror of it.
///
/// Takes `config.json`, `generation_config.json`, the tokenizer, the chat template, `model.sig` and the weights as safetensors, and
/// no file that could run code. A download that was interrupted goes on from DIR.partial. The token of a private or gated
/// repository is read from `HF_TOKEN`. `HTTPS_PROXY` and `SSL_CERT_FILE` are respected.
#[derive(Debug, clap::Args)]
pub struct Fetch {
    /// The repository, as OWNER/NAME or OWNER/NAME@REVISION, with a branch, a tag or a commit [default revision: main].
    #[arg(value_name = "REPOSITORY", value_parser = clap::value_parser!(Repository))]
    repository: Repository,
    /// The directory to write, which must not exist yet.
    #[arg(value_name = "DIR")]
    output: PathBuf,
    /// Digest that the model must have, as `codex verify` prints it.
    #[arg(long, value_name = "DIGEST")]
    digest: Option<ModelDigest>,
    /// Address of the hub [default: that of Hugging Face].
    #[arg(long, value_name = "URL", env = "HF_ENDPOINT")]
    endpoint: Option<String>,
}

impl Fetch {
    pub(crate) fn run(self) -> Result<i32, CommandError> {
        let stop = stop_flag_or_exit().map_err(CommandError::failed)?;
        let hub = Hub::of_environment(self.endpoint.as_deref())?;
        match self.fetch(&hub, &|| stop.load(Ordering::Relaxed)) {
            Ok(line) => {
                atomic_fs::say(&line)?;
                Ok(exit::FINISHED)
            }
            Err(HubError::Interrupted) => Ok(exit::INTERRUPTED),
            Err(error) => Err(error.into()),
        }
    }

    /// Downloads the model, and returns the line about it.
    pub(super) fn fetch(&self, hub: &Hub, stop: Stop) -> Result<String, HubError> {
        if std::fs::symlink_metadata(&self.output).is_ok() {
            return Err(HubError::Exists(self.output.clone()));
        }
        let listing = hub.retry(stop, || 0, || hub.list(&self.repository, &self.repository.revision))?;
        download::snapshot(hub, &self.repository, &listing, &self.output, stop)?;
        let except = BTreeSet::from([SIGNATURE.to_owned()]);
        let found = Manifest::of_dir_except(&self.output, &except)?.digest();
        if let Some(expected) = self.digest.filter(|expected| *expected != found) {
            let (repository, path) = (self.repository.to_string(), self.output.clone());
            return Err(HubError::Digest { repository, path, found, expected });
        }
        let line = serde_json::json!({
            "model": self.output,
            "digest": found,
            "repository": self.repository.name,
            "commit": listing.sha,
        });
        Ok(line.to_string())
    }
}
