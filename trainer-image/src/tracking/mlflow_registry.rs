//! MLflow's model registry: a version of a registered model for the model of a run, through the server's REST API. Does blocking I/O.
//!
//! The server gets the digest of the model and no file. A model that has a version keeps it, so an attempt that is repeated changes
//! nothing.

use std::{path::Path, sync::mpsc::sync_channel, time::Duration};

use codex_configs::TrackingSettings;
use codex_provenance::ModelDigest;
use prometheus::IntCounter;
use serde_json::{Value, json};

use super::{
    Described, TrackingError,
    error::Failures,
    mlflow_server::{Client, NAME, Noted, pairs, text},
};
use crate::artifacts::environment::variable;

/// The variable with the name of the registered model.
const MODEL: &str = "MLFLOW_REGISTERED_MODEL_NAME";
/// The variable with the ring of the run. A pod does not know it otherwise: the ring is a field of the object and no setting.
const RING: &str = "MLFLOW_MODEL_RING";
/// How MLflow says that a model is registered already.
const EXISTS: &str = "RESOURCE_ALREADY_EXISTS";
/// Time that the end of a run waits for the registry.
const LAST: Duration = Duration::from_secs(10);

/// Registers the model with this digest, which the run with these `artifacts` wrote, if the environment names a registered model and the
/// run tracks at a server. Waits a few seconds at most. A failure is logged and counted by `counter`.
pub(crate) fn register(settings: TrackingSettings, artifacts: &Path, model: ModelDigest, counter: Option<IntCounter>) {
    let Some(name) = variable(MODEL) else { return };
    let failures = Failures::new(NAME, counter);
    let registered = if settings.mlflow.server {
        let asked = |client| Asked { client, name, ring: variable(RING), artifacts, model };
        Client::of_environment().and_then(|client| asked(client).register_within(LAST))
    } else {
        let right = "set tracking.mlflow.server=true, or remove the variable";
        Err(TrackingError::Variable { variable: MODEL, wrong: "is set, but the run does not track at a server", right })
    };
    if let Err(error) = registered {
        failures.unregistered(&error);
    }
}

/// What is registered.
pub(super) struct Asked<'a> {
    pub(super) client: Client,
    /// Name of the registered model.
    pub(super) name: String,
    pub(super) ring: Option<String>,
    /// The `artifacts` directory of the run.
    pub(super) artifacts: &'a Path,
    pub(super) model: ModelDigest,
}

impl Asked<'_> {
    /// Registers the model, and stops waiting after `limit`.
    ///
    /// # Errors
    /// The name is invalid, or the registry refuses a request or does not answer in time.
    pub(super) fn register_within(self, limit: Duration) -> Result<(), TrackingError> {
        let Self { client, name, ring, artifacts, model } = self;
        if name.contains(['\'', '"', '/', ':', '%']) {
            let right = "use a name without quotes, slashes, colons and percent signs";
            return Err(TrackingError::Variable {
                variable: MODEL,
                wrong: "holds a character that no name may have",
                right,
            });
        }
        let (run, _) = Described::read(artifacts, variable("CODEX_OBJECT_NAME"));
        let noted = Noted::read(artifacts).filter(|noted| client.is_at(&noted.tracking_uri));
        let mut tags = run.tags;
        tags.push(("codex.model_digest".to_owned(), model.to_string()));
        tags.extend(ring.map(|ring| ("codex.ring".to_owned(), ring)));
        let source = format!("codex://models/{model}");
        let version = Version { client, name, source, run: noted.map(|noted| noted.run_id), tags };
        let (done, result) = sync_channel(1);
        // The run may not wait any longer.
        let work = move || drop(done.send(version.register()));
        std::thread::Builder::new().name("mlflow-registry".to_owned()).spawn(work).map_err(TrackingError::Thread)?;
        let (name, version) = result.recv_timeout(limit).map_err(|_| TrackingError::Unregistered)??;
        tracing::info!(model = name, version, "registered with MLflow");
        Ok(())
    }
}

/// A version of a registered model.
struct Version {
    client: Client,
    name: String,
    /// What the registry says about where the model is: MLflow takes no file here.
    source: String,
    /// The run at the server, if it is known there.
    run: Option<String>,
    tags: Vec<(String, String)>,
}

impl Version {
    /// Creates the registered model and the version, unless they exist, and sets the tags. Returns the name and the version.
    fn register(self) -> Result<(String, String), TrackingError> {
        match self.client.post("registered-models/create", &json!({ "name": self.name })) {
            Err(TrackingError::Refused { told, .. }) if told.starts_with(EXISTS) => {}
            created => drop(created?),
        }
        let filter = format!("name='{}' and source_path='{}'", self.name, self.source);
        let known = self.client.get("model-versions/search", ("filter", &filter))?;
        let version = match text(&known, "/model_versions/0/version") {
            Some(version) => {
                for (key, value) in &self.tags {
                    let tag = json!({ "name": self.name, "version": version, "key": key, "value": value });
                    self.client.post("model-versions/set-tag", &tag)?;
                }
                version
            }
            None => self.create()?,
        };
        Ok((self.name, version))
    }

    fn create(&self) -> Result<String, TrackingError> {
        let mut body = json!({ "name": self.name, "source": self.source, "tags": pairs(&self.tags) });
        if let (Some(run), Value::Object(fields)) = (&self.run, &mut body) {
            fields.insert("run_id".to_owned(), json!(run));
        }
        let path = "model-versions/create";
        let created = self.client.post(path, &body)?;
        text(&created, "/model_version/version").ok_or_else(|| self.client.lacks(path, "version"))
    }
}
