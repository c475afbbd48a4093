//! Stores, opened with the credentials of the environment. Reads the environment; uses the network later.

use std::{sync::Arc, time::Duration};

use codex::artifacts::environment::variable;
use object_store::{
    BackoffConfig, ObjectStore, ObjectStoreExt as _, RetryConfig, aws::AmazonS3Builder, azure::MicrosoftAzureBuilder,
    gcp::GoogleCloudStorageBuilder, local::LocalFileSystem, path::Path,
};

use super::{
    error::{StoreError, scrubbed},
    http::Connector,
    location::{Location, Scheme},
    registry::{Artifact, Client, Credentials},
};

/// A store, and the path of a directory in it.
#[derive(Clone, Debug)]
pub struct Remote {
    pub(super) store: Arc<dyn ObjectStore>,
    /// The address.
    pub(super) location: Location,
    /// The first wait after a cut connection.
    pub(super) pause: Duration,
    /// The store, if it is an artefact of a registry.
    pub(super) artifact: Option<Arc<Artifact>>,
}

impl Remote {
    /// Opens the store of an address. With `plain`, requests to a registry may travel in clear text.
    ///
    /// # Errors
    /// The environment lacks something, or holds something that is invalid.
    pub fn open(location: &Location, plain: bool) -> Result<Self, StoreError> {
        let wrong = |why: String| StoreError::Open { location: location.to_string(), why: scrubbed(&why) };
        let failed = |error: object_store::Error| wrong(codex::error::chain(&error));
        let connector = || {
            let certificates = variable("SSL_CERT_FILE").map(Into::into);
            Connector::new(certificates.as_ref()).map_err(|error| wrong(codex::error::chain(&error)))
        };
        let retry = RetryConfig {
            backoff: BackoffConfig {
                init_backoff: Duration::from_millis(200),
                max_backoff: Duration::from_secs(15),
                base: 2.0,
            },
            max_retries: 6,
            retry_timeout: Duration::from_secs(180),
        };
        let store: Arc<dyn ObjectStore> = match location.scheme {
            Scheme::S3 => {
                let builder = AmazonS3Builder::from_env().with_bucket_name(&location.bucket);
                // The command line of AWS reads this name, and the builder the other one.
                let region = variable("AWS_REGION").or_else(|| variable("AWS_DEFAULT_REGION"));
                let builder = builder.with_region(region.unwrap_or_else(|| "us-east-1".to_owned()));
                Arc::new(builder.with_retry(retry).with_http_connector(connector()?).build().map_err(failed)?)
            }
            Scheme::Gs => {
                let builder = GoogleCloudStorageBuilder::from_env().with_bucket_name(&location.bucket);
                Arc::new(builder.with_retry(retry).with_http_connector(connector()?).build().map_err(failed)?)
            }
            Scheme::Az => {
                let builder = MicrosoftAzureBuilder::from_env().with_container_name(&location.bucket);
                Arc::new(builder.with_retry(retry).with_http_connector(connector()?).build().map_err(failed)?)
            }
            Scheme::File => Arc::new(LocalFileSystem::new().with_fsync(true)),
            Scheme::Oci => {
                let credentials = Credentials::of_environment(&location.bucket).map_err(wrong)?;
                let client = Client::new(location, &connector()?, credentials, plain).map_err(wrong)?;
                return Self::of_registry(client, location);
            }
        };
        Ok(Self { store, location: location.clone(), pause: Duration::from_secs(1), artifact: None })
    }

    /// Returns the store of an artefact.
    pub(super) fn of_registry(client: Client, location: &Location) -> Result<Self, StoreError> {
        let why = || "end the address with :TAG or @sha256:DIGEST".to_owned();
        let version = location.version.clone();
        let version = version.ok_or_else(|| StoreError::Open { location: location.to_string(), why: why() })?;
        let artifact = Arc::new(Artifact::new(client, location.clone(), version));
        let store = Arc::clone(&artifact) as Arc<dyn ObjectStore>;
        let pause = Duration::from_secs(1);
        Ok(Self { store, location: location.clone(), pause, artifact: Some(artifact) })
    }

    /// Whether the store is a folder of this machine.
    pub(super) fn is_local(&self) -> bool {
        self.location.scheme == Scheme::File
    }

    /// Returns the path of a file of the directory.
    pub(super) fn path(&self, name: &str) -> Result<Path, StoreError> {
        let prefix = &self.location.prefix;
        let whole = if prefix.as_ref().is_empty() { name.to_owned() } else { format!("{prefix}/{name}") };
        Path::parse(&whole).map_err(|why| StoreError::Name {
            location: self.location.to_string(),
            name: name.to_owned(),
            why: why.to_string(),
        })
    }

    /// Returns a path for people.
    pub(super) fn shown(&self, path: &Path) -> String {
        Location { prefix: path.clone(), ..self.location.clone() }.to_string()
    }

    /// Reads an object of at most `limit` bytes; `None` if it does not exist.
    pub(super) async fn read(&self, path: &Path, limit: u64) -> Result<Option<bytes::Bytes>, StoreError> {
        let failed = |error| StoreError::of("reading", &self.shown(path), &error);
        let found = match self.store.get(path).await {
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            found => found.map_err(failed)?,
        };
        if found.meta.size > limit {
            let why = format!("it has {} bytes, more than {limit}", found.meta.size);
            return Err(StoreError::Manifest { location: self.shown(path), why });
        }
        found.bytes().await.map(Some).map_err(failed)
    }
}
