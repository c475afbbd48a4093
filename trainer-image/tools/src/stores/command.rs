//! The commands `fetch` and `push`. Use the network, read and write files.

use std::{path::PathBuf, sync::atomic::Ordering};

use codex::{
    arguments::whole,
    atomic_fs,
    error::CommandError,
    signals::{Stop, stop_flag_or_exit},
};
use codex_provenance::ModelDigest;
use codex_reports::exit;

use super::{Location, Remote, StoreError, fetch, push, registry};

/// Fetch a directory from an object store or a registry: a model, a base, a checkpoint or data.
///
/// A directory that codex-tools pushed is compared with its manifest, file by file. A transfer that was interrupted goes on from
/// DIR.partial. Credentials are read from the environment: `AWS_ACCESS_KEY_ID` and the other variables of AWS,
/// `GOOGLE_APPLICATION_CREDENTIALS` or `GOOGLE_SERVICE_ACCOUNT`, `AZURE_STORAGE_ACCOUNT_NAME` and the others of Azure; without any, those
/// of the machine or its workload identity. For registries: `CODEX_REGISTRY_USERNAME` and `CODEX_REGISTRY_PASSWORD`, else a file of
/// Docker's form, in `REGISTRY_AUTH_FILE`, `DOCKER_CONFIG` or the home directory. `HTTPS_PROXY` and `SSL_CERT_FILE` are respected.
#[derive(Debug, clap::Args)]
pub struct Fetch {
    /// The directory in the store, as `s3://BUCKET/PATH`, `gs://BUCKET/PATH`, `az://CONTAINER/PATH` or `file:///PATH`; one object;
    /// or a model in a registry, as `oci://REGISTRY/REPOSITORY:TAG` or `oci://REGISTRY/REPOSITORY@sha256:DIGEST`.
    #[arg(value_name = "URL", value_parser = clap::value_parser!(Location))]
    from: Location,
    /// The directory to write, which must not exist yet.
    #[arg(value_name = "DIR")]
    output: PathBuf,
    /// Digest that the files must have, as codex verify prints it.
    #[arg(long, value_name = "DIGEST")]
    digest: Option<ModelDigest>,
    /// Files that are transferred at once.
    #[arg(long, value_name = "COUNT", default_value_t = 4, value_parser = whole::<usize>(1..=64))]
    parallel: usize,
    /// Directory to write the bundles of Sigstore to that refer to a model in a registry.
    #[arg(long, value_name = "DIR")]
    bundles: Option<PathBuf>,
    /// Send requests to a registry without TLS. Registries of this machine are asked so anyway.
    #[arg(long)]
    plain_http: bool,
}

/// Push a directory, or a file, to an object store with a manifest of its files, or a model to a registry.
///
/// Files that the store has already are not sent again; large ones are sent in parts. The manifest is written last, so that a fetch
/// sees all or nothing. Credentials are read from the environment, as for fetch.
#[derive(Debug, clap::Args)]
pub struct Push {
    /// The directory, such as a model directory, or a file.
    #[arg(value_name = "DIR")]
    source: PathBuf,
    /// Where to, as `s3://BUCKET/PATH`, `gs://BUCKET/PATH`, `az://CONTAINER/PATH`, `oci://REGISTRY/REPOSITORY:TAG` or
    /// `file:///PATH`.
    #[arg(value_name = "URL", value_parser = clap::value_parser!(Location))]
    to: Location,
    /// Digest that the files must have, as codex verify prints it.
    #[arg(long, value_name = "DIGEST")]
    digest: Option<ModelDigest>,
    /// Replace another model at this address, and delete the files that the new one does not have.
    #[arg(long)]
    replace: bool,
    /// Files that are transferred at once.
    #[arg(long, value_name = "COUNT", default_value_t = 4, value_parser = whole::<usize>(1..=64))]
    parallel: usize,
    /// Bundle of Sigstore to attach to a model in a registry, such as that of its promotion. May be repeated.
    #[arg(long = "bundle", value_name = "FILE")]
    bundles: Vec<PathBuf>,
    /// Send requests to a registry without TLS. Registries of this machine are asked so anyway.
    #[arg(long)]
    plain_http: bool,
}

impl Fetch {
    /// Fetches the directory, and prints a line of JSON about it.
    ///
    /// # Errors
    /// Exit code 2: the address, the credentials or the digest are wrong. 1: the store fails.
    pub fn run(self) -> Result<i32, CommandError> {
        let remote = Remote::open(&self.from, self.plain_http)?;
        if self.bundles.is_some() && remote.artifact.is_none() {
            return Err(StoreError::NotRegistry { option: "--bundles", location: self.from.to_string() }.into());
        }
        finish(|runtime, stop| {
            let fetched = runtime.block_on(fetch(&remote, &self.output, self.digest, self.parallel, stop))?;
            let mut line = serde_json::json!({
                "directory": self.output, "from": self.from.to_string(), "digest": fetched.digest, "files": fetched.files,
                "bytes": fetched.bytes, "manifest": fetched.has_manifest,
            });
            if let Some(artifact) = &remote.artifact {
                line["artifact"] = artifact.digest().map(|digest| format!("sha256:{digest}")).into();
                if let Some(directory) = &self.bundles {
                    let files = runtime.block_on(registry::fetch_bundles(artifact, directory))?;
                    line["bundles"] = files.iter().map(|file| file.display().to_string()).collect();
                }
            }
            Ok(line)
        })
    }
}

impl Push {
    /// Pushes the directory, and prints a line of JSON about it.
    ///
    /// # Errors
    /// Exit code 2: the address, the credentials or the digest are wrong. 1: the store fails.
    pub fn run(self) -> Result<i32, CommandError> {
        let remote = Remote::open(&self.to, self.plain_http)?;
        let Self { source, digest, replace, bundles, parallel, .. } = &self;
        if !bundles.is_empty() && remote.artifact.is_none() {
            return Err(StoreError::NotRegistry { option: "--bundle", location: self.to.to_string() }.into());
        }
        finish(|runtime, stop| {
            let pushed = runtime.block_on(async {
                match &remote.artifact {
                    Some(artifact) => {
                        registry::push(source, artifact, *digest, *replace, bundles, *parallel, stop).await
                    }
                    None => push(source, &remote, *digest, *replace, *parallel, stop).await,
                }
            })?;
            let mut line = serde_json::json!({
                "to": self.to.to_string(), "digest": pushed.digest, "sent": pushed.sent, "there": pushed.there,
                "bytes": pushed.bytes,
            });
            if let Some(digest) = pushed.artifact {
                line["artifact"] = format!("sha256:{digest}").into();
            }
            Ok(line)
        })
    }
}

/// Runs a transfer until it ends or a signal arrives, and prints its line.
fn finish(
    transfer: impl FnOnce(&tokio::runtime::Runtime, Stop) -> Result<serde_json::Value, StoreError>,
) -> Result<i32, CommandError> {
    let stop = stop_flag_or_exit().map_err(CommandError::failed)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(CommandError::failed)?;
    let done = transfer(&runtime, &|| stop.load(Ordering::Relaxed));
    // A request that hangs must not hold up the end.
    runtime.shutdown_background();
    match done {
        Ok(line) => {
            atomic_fs::say(&line.to_string())?;
            Ok(exit::FINISHED)
        }
        Err(StoreError::Interrupted) => Ok(exit::INTERRUPTED),
        Err(error) => Err(error.into()),
    }
}
