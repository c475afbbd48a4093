//! What lies in the folder of a run, or of a model alone, as other commands left it. Reads files.
//!
//! A part that is missing or cannot be used is a value and no error: pages and checklists say so and go on.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use codex_configs::{Resolved, Training};
use codex_provenance::{
    files,
    manifest::{Manifest, ManifestError},
};
use serde::de::DeserializeOwned;

use crate::{
    artifacts::{
        environment::{self, Environment},
        ledger::{self, Ledger},
        metadata::{self, Checksums, RunMetadata},
    },
    training::CONFIG,
};

/// The largest file of JSON or YAML that is read, in bytes.
const MAX_FILE: usize = 64 << 20;
/// The name of an evaluation's results.
pub const EVALUATION: &str = "evaluation.json";

/// A part of a run.
#[derive(Clone, Debug)]
pub enum Part<T> {
    /// It was read.
    Found(T),
    /// Its file or folder does not exist.
    Missing(PathBuf),
    /// It cannot be used, and why.
    Invalid(PathBuf, String),
}

impl<T> Part<T> {
    /// Returns the part, if it was read.
    pub fn found(&self) -> Option<&T> {
        match self {
            Self::Found(part) => Some(part),
            Self::Missing(_) | Self::Invalid(..) => None,
        }
    }

    /// Returns what is lacking, in one sentence; `None` if the part was read.
    pub fn lack(&self) -> Option<String> {
        match self {
            Self::Found(_) => None,
            Self::Missing(path) => Some(format!("{} does not exist", path.display())),
            Self::Invalid(path, why) => Some(format!("{} cannot be used: {why}", path.display())),
        }
    }
}

/// The path is neither a run nor a model.
#[derive(Debug, thiserror::Error)]
#[error("{role}: {} {wrong}", path.display())]
pub struct NotAFolder {
    role: &'static str,
    path: PathBuf,
    wrong: &'static str,
}

/// The folder of a run, or of a model alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunFolder {
    /// The output directory of the run; the model directory for a model alone.
    pub root: PathBuf,
    /// The model directory, which may not exist.
    pub model: PathBuf,
    /// The directory of the run's artifacts, which may not exist.
    pub artifacts: PathBuf,
}

impl RunFolder {
    /// Finds out what a directory is: the output directory of a run, its `artifacts`, or a model directory. `role` is its argument.
    ///
    /// # Errors
    /// It is no directory, or none of these.
    pub fn locate(role: &'static str, path: &Path) -> Result<Self, NotAFolder> {
        let wrong = |wrong| NotAFolder { role, path: path.to_owned(), wrong };
        if !path.is_dir() {
            return Err(wrong("is no directory: name the output directory of a run, or a model directory"));
        }
        if path.join(metadata::FILE).is_file() {
            let root = fs::canonicalize(path).ok().and_then(|path| Some(path.parent()?.to_owned()));
            let root = root.ok_or_else(|| wrong("has no directory above it: name the output directory of the run"))?;
            return Ok(Self { model: root.join("model"), artifacts: path.to_owned(), root });
        }
        let (model, artifacts) = (path.join("model"), path.join("artifacts"));
        if model.is_dir() || artifacts.is_dir() {
            return Ok(Self { root: path.to_owned(), model, artifacts });
        }
        if path.join("config.json").is_file() {
            return Ok(Self { root: path.to_owned(), model: path.to_owned(), artifacts });
        }
        Err(wrong(
            "has no model, no artifacts and no config.json: name the output directory of a run, or a model directory",
        ))
    }

    /// Whether it is the folder of a run, and not a model alone.
    pub fn is_run(&self) -> bool {
        self.root != self.model
    }

    /// Returns a name for people: that of the directory.
    pub fn name(&self) -> String {
        let whole = fs::canonicalize(&self.root).unwrap_or_else(|_| self.root.clone());
        whole.file_name().map_or_else(|| "run".to_owned(), |name| name.to_string_lossy().into_owned())
    }

    /// Reads `run_metadata.json`.
    pub fn metadata(&self) -> Part<RunMetadata> {
        json(&self.artifacts.join(metadata::FILE))
    }

    /// Reads `environment.json`.
    pub fn environment(&self) -> Part<Environment> {
        json(&self.artifacts.join(environment::FILE))
    }

    /// Reads `dataset_checksums.json`.
    pub fn checksums(&self) -> Part<Checksums> {
        json(&self.artifacts.join(metadata::CHECKSUMS_FILE))
    }

    /// Reads `config.yaml`, and checks its digest.
    pub fn config(&self) -> Part<Resolved<Training>> {
        read(&self.artifacts.join(CONFIG), |bytes| Resolved::from_yaml(bytes).map_err(|why| why.to_string()))
    }

    /// Reads `metrics.ndjson`. Invalid lines are counted in it.
    pub fn ledger(&self) -> Part<Ledger> {
        let path = self.artifacts.join(ledger::FILE);
        match Ledger::read(&path) {
            Ok(ledger) => Part::Found(ledger),
            Err(error) if error.source.kind() == io::ErrorKind::NotFound => Part::Missing(path),
            Err(error) => Part::Invalid(path, error.source.to_string()),
        }
    }

    /// Hashes the files of the model, without a signature inside the directory.
    pub fn manifest(&self, except: &BTreeSet<String>) -> Part<Manifest> {
        match Manifest::of_dir_except(&self.model, except) {
            Ok(manifest) => Part::Found(manifest),
            Err(ManifestError::Unreadable { source, .. })
                if source.kind() == io::ErrorKind::NotFound && !self.model.exists() =>
            {
                Part::Missing(self.model.clone())
            }
            Err(why) => Part::Invalid(self.model.clone(), why.to_string()),
        }
    }

    /// Lists the results of evaluations: `evaluation.json` of the run's folder, of `evaluation/`, and of the folders in
    /// `evaluations/`, in the order of their names.
    pub fn evaluations(&self) -> Vec<PathBuf> {
        if !self.is_run() {
            return Vec::new();
        }
        let inside = fs::read_dir(self.root.join("evaluations")).into_iter().flatten();
        let mut folders: Vec<PathBuf> = inside.filter_map(|entry| Some(entry.ok()?.path())).collect();
        folders.sort();
        let folders = [self.root.clone(), self.root.join("evaluation")].into_iter().chain(folders);
        folders.map(|folder| folder.join(EVALUATION)).filter(|path| path.is_file()).collect()
    }
}

/// Reads a file of JSON.
pub fn json<T: DeserializeOwned>(path: &Path) -> Part<T> {
    read(path, |bytes| codex_json::from_slice(bytes).map_err(|why| why.to_string()))
}

fn read<T>(path: &Path, parse: impl FnOnce(&[u8]) -> Result<T, String>) -> Part<T> {
    let path = path.to_owned();
    match files::read_start(&path, MAX_FILE) {
        Ok(bytes) if bytes.len() > MAX_FILE => Part::Invalid(path, format!("it has more than {MAX_FILE} bytes")),
        Ok(bytes) => match parse(&bytes) {
            Ok(part) => Part::Found(part),
            Err(why) => Part::Invalid(path, why),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Part::Missing(path),
        Err(error) => Part::Invalid(path, error.to_string()),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use codex_configs::{Data, Synthetic, compose_training};
    use codex_provenance::{DataDigest, ModelDigest, Sha256};
    use codex_verdict::{Measurement, report_digest};
    use serde_json::json;

    use super::*;
    use crate::artifacts::metadata::Metadata;

    /// Writes the folder of a run whose model is two small files, and returns the digest of the model.
    pub(crate) fn run(root: &Path) -> ModelDigest {
        let folder = |name: &str| {
            let path = root.join(name);
            fs::create_dir_all(&path).unwrap();
            path
        };
        let (model, artifacts) = (folder("model"), folder("artifacts"));
        fs::write(model.join("config.json"), "{}").unwrap();
        fs::write(model.join("model.safetensors"), "weights").unwrap();
        let synthetic = Some(Synthetic { task: "arithmetic".to_owned(), seed: 1, count: 1000 });
        let data = Data { name: "arithmetic".to_owned(), sha256: None, synthetic };
        let resolved = compose_training("cot-starter", &[], None, 1, vec![data]).unwrap();
        fs::write(artifacts.join(CONFIG), resolved.to_yaml().unwrap()).unwrap();
        let checksums = Checksums(BTreeMap::from([("arithmetic".to_owned(), DataDigest(Sha256::of("records")))]));
        let metadata = RunMetadata {
            metadata: Metadata {
                owner: "team".to_owned(),
                template: "cot-starter".to_owned(),
                run_id: "r1".to_owned(),
            },
            session_id: "r1-1".to_owned(),
            artifacts_dir: "artifacts".into(),
            config_digest: resolved.digest(),
            dataset_version: checksums.version("cot-starter").unwrap(),
            knobs: None,
            control_surface: None,
            base: None,
            adapter: None,
            privacy: None,
            safety: None,
            adopted: None,
        };
        let write = |name: &str, text: String| fs::write(artifacts.join(name), text).unwrap();
        write(metadata::CHECKSUMS_FILE, serde_json::to_string(&checksums).unwrap());
        write(metadata::FILE, serde_json::to_string(&metadata).unwrap());
        Manifest::of_dir(&model).unwrap().digest()
    }

    /// Writes the results of an evaluation of `model` with `right` of 1000 answers right, and returns the path of its report.
    pub(crate) fn evaluation(root: &Path, name: &str, model: ModelDigest, right: u64) -> PathBuf {
        let folder = root.join("evaluations").join(name);
        fs::create_dir_all(&folder).unwrap();
        let metrics = BTreeMap::from([
            ("exact_match".to_owned(), Measurement::Share { successes: right, n: 1000 }),
            ("trace_coverage".to_owned(), Measurement::Mean { n: 1000, sum: Some(900.0), sum_of_squares: Some(850.0) }),
        ]);
        let data = BTreeMap::from([("problems".to_owned(), DataDigest(Sha256::of("problems")))]);
        let report = json!({
            "schemaVersion": 2, "preset": "cot-lite", "seed": 1, "model": { "digest": model, "sizeBytes": 9 },
            "dataFiles": [{ "name": "problems", "sha256": Sha256::of("problems"), "size": 1 }],
            "metrics": metrics, "reportDigest": report_digest(model, &data, &metrics, None),
        });
        let path = folder.join(EVALUATION);
        fs::write(&path, report.to_string()).unwrap();
        path
    }

    #[test]
    fn a_folder_is_a_run_its_artifacts_or_a_model() {
        let root = tempfile::tempdir().unwrap();
        let digest = run(root.path());
        let found = RunFolder::locate("DIR", root.path()).unwrap();
        assert!(found.is_run() && found.metadata().found().is_some() && found.config().found().is_some());
        assert_eq!(found.manifest(&BTreeSet::new()).found().unwrap().digest(), digest);
        let found = RunFolder::locate("DIR", &root.path().join("artifacts")).unwrap();
        assert!(found.is_run() && found.manifest(&BTreeSet::new()).found().is_some());
        let found = RunFolder::locate("DIR", &root.path().join("model")).unwrap();
        assert!(!found.is_run() && found.evaluations().is_empty());
        assert!(found.metadata().lack().unwrap().ends_with("run_metadata.json does not exist"));
        for (path, why) in [
            (root.path().join("nowhere"), "is no directory"),
            (root.path().join("model/config.json"), "is no directory"),
        ] {
            let told = RunFolder::locate("DIR", &path).unwrap_err().to_string();
            assert!(told.starts_with("DIR: ") && told.contains(why), "{told}");
        }
        let empty = tempfile::tempdir().unwrap();
        let told = RunFolder::locate("DIR", empty.path()).unwrap_err().to_string();
        assert!(told.contains("has no model, no artifacts and no config.json"), "{told}");
    }

    #[test]
    fn evaluations_are_found_in_the_order_of_their_names() {
        let root = tempfile::tempdir().unwrap();
        let digest = run(root.path());
        let (second, first) = (evaluation(root.path(), "b", digest, 990), evaluation(root.path(), "a", digest, 990));
        let found = RunFolder::locate("DIR", root.path()).unwrap().evaluations();
        assert_eq!(found, [first, second]);
    }

    #[test]
    fn a_damaged_part_says_why() {
        let root = tempfile::tempdir().unwrap();
        run(root.path());
        let folder = RunFolder::locate("DIR", root.path()).unwrap();
        fs::write(root.path().join("artifacts/run_metadata.json"), "{\"secret\": 1").unwrap();
        let told = folder.metadata().lack().unwrap();
        assert!(told.contains("run_metadata.json cannot be used: "), "{told}");
        let config = root.path().join("artifacts").join(CONFIG);
        let changed = fs::read_to_string(&config).unwrap().replace("seed: 1", "seed: 2");
        fs::write(&config, changed).unwrap();
        assert!(folder.config().lack().unwrap().contains("config.yaml cannot be used: "));
        fs::remove_dir_all(root.path().join("model")).unwrap();
        assert!(folder.manifest(&BTreeSet::new()).lack().unwrap().ends_with("model does not exist"));
    }
}
