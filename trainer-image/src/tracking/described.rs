//! What trackers show of a run beside its metrics: identity, settings, data. Reads files.

use std::{fs, path::Path};

use codex_configs::{Resolved, Training};
use codex_provenance::Sha256;
use serde_json::Value;

use crate::{artifacts::metadata::RunMetadata, run_folder::RunFolder};

/// The most characters of a parameter's value, as MLflow limits them.
const MOST: usize = 6000;

/// The description of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Described {
    /// 32 hexadecimal digits. Those of the object's uid in a cluster, a hash of the run's name and directory elsewhere.
    pub(super) id: String,
    /// Name for people.
    pub(super) name: String,
    /// Owner of the run.
    pub(super) owner: String,
    /// Settings by their keys, in the order of the configuration.
    pub(super) params: Vec<(String, String)>,
    /// Whether the model of the run is written.
    pub(super) has_model: bool,
    /// Digests of the configuration and the data, and whatever else is a fact about the run.
    pub(super) tags: Vec<(String, String)>,
}

impl Described {
    /// Reads `run_metadata.json` and `config.yaml` in the `artifacts` directory of a run, and returns a sentence for each of them
    /// that is missing or damaged. `name` replaces the name of the run's directory.
    pub(super) fn read(artifacts: &Path, name: Option<String>) -> (Self, Vec<String>) {
        let whole = fs::canonicalize(artifacts).unwrap_or_else(|_| artifacts.to_owned());
        let root = whole.parent().filter(|_| whole.ends_with("artifacts")).unwrap_or(&whole).to_owned();
        let folder = RunFolder { model: root.join("model"), root, artifacts: whole.clone() };
        let (metadata, config) = (folder.metadata(), folder.config());
        let lacking = [metadata.lack(), config.lack()].into_iter().flatten().collect();
        let name = name.unwrap_or_else(|| folder.name());
        let described = Self::of(&name, &whole, metadata.found(), config.found());
        (Self { has_model: folder.model.is_dir(), ..described }, lacking)
    }

    /// Describes the run of this name with these artifacts.
    fn of(name: &str, artifacts: &Path, metadata: Option<&RunMetadata>, config: Option<&Resolved<Training>>) -> Self {
        let run = metadata.map_or(name, |metadata| metadata.metadata.run_id.as_str());
        // Trackers show lines.
        let line = |text: &str| text.chars().map(|letter| if letter.is_control() { '?' } else { letter }).collect();
        let mut described = Self {
            id: id(run, artifacts),
            name: line(name),
            owner: metadata.map(|metadata| line(&metadata.metadata.owner)).unwrap_or_default(),
            ..Self::default()
        };
        if let Some(config) = config {
            let training = config.spec();
            described.param("template", &training.template);
            described.param("seed", &training.seed.to_string());
            let names: Vec<&str> = training.data.iter().map(|data| data.name.as_str()).collect();
            described.param("data", &names.join("+"));
            if let Ok(settings) = serde_json::to_value(&training.settings) {
                described.leaves("", &settings);
            }
        }
        if let Some(metadata) = metadata {
            described.tag("codex.run_id", line(&metadata.metadata.run_id));
            described.tag("codex.config_digest", metadata.config_digest.to_string());
            described.tag("codex.dataset_version", metadata.dataset_version.to_string());
            if let Some(base) = &metadata.base {
                described.tag("codex.base_digest", base.digest.to_string());
            }
        }
        described
    }

    fn param(&mut self, key: &str, value: &str) {
        self.params.push((key.to_owned(), value.chars().take(MOST).collect()));
    }

    fn tag(&mut self, key: &str, value: String) {
        self.tags.push((key.to_owned(), value));
    }

    /// Adds the settings below `path`. Lists are one value, as JSON.
    fn leaves(&mut self, path: &str, value: &Value) {
        match value {
            Value::Object(map) => {
                for (key, value) in map {
                    let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                    self.leaves(&path, value);
                }
            }
            Value::String(text) => self.param(path, text),
            other => self.param(path, &other.to_string()),
        }
    }
}

/// Returns the id of a run.
fn id(run: &str, artifacts: &Path) -> String {
    let digits = run.replace('-', "").to_ascii_lowercase();
    if digits.len() == 32 && digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return digits;
    }
    let mut id = Sha256::of(format!("{run}\0{}", artifacts.display())).to_string();
    id.truncate(32);
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_has_an_id_of_32_digits() {
        let path = Path::new("/runs/a/artifacts");
        assert_eq!(id("0B6F1C52-9d7e-4a3b-8c21-5f0e6d7a9b10", path), "0b6f1c529d7e4a3b8c215f0e6d7a9b10");
        let named = id("a", path);
        assert!(named.len() == 32 && named.bytes().all(|digit| digit.is_ascii_hexdigit()), "{named}");
        assert_ne!(named, id("b", path));
        assert_ne!(named, id("a", Path::new("/other/a/artifacts")));
    }

    #[test]
    fn settings_are_leaves_with_their_keys() {
        let root = tempfile::tempdir().unwrap();
        crate::run_folder::tests::run(root.path());
        let (described, lacking) = Described::read(&root.path().join("artifacts"), Some("a\nb".to_owned()));
        assert_eq!(lacking, [""; 0]);
        assert_eq!((described.name.as_str(), described.owner.as_str()), ("a?b", "team"));
        let value = |key: &str| described.params.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str());
        assert_eq!(value("training.scheduler_timescale"), Some("null"));
        assert_eq!(value("data.languages"), Some("[]"));
        assert_eq!(value("metadata.owner").map(str::is_empty), Some(false));
        assert!(value("template").is_some() && value("seed").is_some() && value("model").is_none());
        fs::remove_file(root.path().join("artifacts/config.yaml")).unwrap();
        let (described, lacking) = Described::read(&root.path().join("artifacts"), None);
        assert!(lacking.len() == 1 && lacking[0].ends_with("config.yaml does not exist"), "{lacking:?}");
        assert!(described.params.is_empty() && !described.tags.is_empty());
    }
}
