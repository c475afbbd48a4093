//! What the tools answer, without the protocol. Reads files.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use codex::{
    artifacts::ledger,
    error::{CommandError, chain},
    gating::{Report, read_gates},
    run_folder::{Part, RunFolder},
    verify::given::{Given, Outcome},
};
use codex_provenance::{Sha256, oms::SIGNATURE};
use codex_verdict::{Ring, Verdict};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// The deepest folder below the root in which runs are looked for.
const DEPTH: usize = 6;
/// The most runs of a list.
const RUNS: usize = 500;
/// The most rows of metrics.
const ROWS: usize = 1000;

/// Nothing can be answered.
#[derive(Debug, thiserror::Error)]
pub(super) enum LookError {
    /// The root is no directory.
    #[error("--root: {} is no directory: name the folder of runs", .0.display())]
    Root(PathBuf),
    /// The path does not exist.
    #[error("{field}: {path:?} does not exist below the root: use a path that list_runs returned")]
    Missing { field: &'static str, path: String },
    /// The path leads out of the root.
    #[error("{field}: {path:?} lies outside the root: use a path that list_runs returned")]
    Outside { field: &'static str, path: String },
    /// A value is invalid.
    #[error("{field}: {right}")]
    Value { field: &'static str, right: String },
    /// A part is missing or cannot be used.
    #[error("{0}")]
    Lack(String),
    /// A folder cannot be read.
    #[error("the folder cannot be listed")]
    List(#[source] io::Error),
}

impl LookError {
    fn of(error: &CommandError) -> Self {
        Self::Lack(error.sentence())
    }
}

/// The directory that clients may look at.
#[derive(Clone, Debug)]
pub(super) struct Root(PathBuf);

/// Which folder.
#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Folder {
    /// The folder to search, relative to the root; the root itself by default.
    #[serde(default)]
    pub(super) folder: Option<String>,
}

/// Which run.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Run {
    /// The run or the model, as a path that `list_runs` returned.
    pub(super) run: String,
}

/// Which rows of a run's metrics.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Rows {
    /// The run, as a path that `list_runs` returned.
    pub(super) run: String,
    /// Only rows of this metric, such as loss.
    #[serde(default)]
    pub(super) metric: Option<String>,
    /// Only rows of this split: train or val.
    #[serde(default)]
    pub(super) split: Option<String>,
    /// The number of rows, from 1 to 1000; 20 by default.
    #[serde(default)]
    pub(super) count: Option<usize>,
}

/// An evaluation and its gates.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Judging {
    /// The evaluation.json, as a path that `list_evaluations` returned.
    pub(super) evaluation: String,
    /// A YAML file below the root with gates, or an Evaluation.
    pub(super) gates: String,
}

/// A model and what it is verified with.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Verifying {
    /// The run or the model, as a path that `list_runs` returned.
    pub(super) run: String,
    /// The OpenSSF Model Signing bundle; the model.sig inside the model by default.
    #[serde(default)]
    pub(super) bundle: Option<String>,
    /// The file with the trusted public keys. Without it the digest is computed and no signature is checked.
    #[serde(default)]
    pub(super) key: Option<String>,
    /// The SHA-256 fingerprint that the key must have.
    #[serde(default)]
    pub(super) fingerprint: Option<String>,
    /// The promotion bundle.
    #[serde(default)]
    pub(super) promotion: Option<String>,
    /// The ring that the promotion must be for.
    #[serde(default)]
    pub(super) ring: Option<String>,
}

type Looked = Result<Value, LookError>;

impl Root {
    /// Opens a root.
    ///
    /// # Errors
    /// It is no directory.
    pub(super) fn new(path: &Path) -> Result<Self, LookError> {
        let whole = fs::canonicalize(path).ok().filter(|path| path.is_dir());
        whole.map(Self).ok_or_else(|| LookError::Root(path.to_owned()))
    }

    /// Returns the place of a path below the root, after following all links.
    fn inside(&self, field: &'static str, path: &str) -> Result<PathBuf, LookError> {
        let missing = |_| LookError::Missing { field, path: path.to_owned() };
        let whole = fs::canonicalize(self.0.join(path)).map_err(missing)?;
        if whole.starts_with(&self.0) {
            return Ok(whole);
        }
        Err(LookError::Outside { field, path: path.to_owned() })
    }

    /// Returns a path relative to the root.
    fn shown(&self, path: &Path) -> String {
        let relative = path.strip_prefix(&self.0).unwrap_or(path).to_string_lossy();
        if relative.is_empty() { ".".to_owned() } else { relative.into_owned() }
    }

    fn folder(&self, run: &str) -> Result<RunFolder, LookError> {
        let path = self.inside("run", run)?;
        let folder = RunFolder::locate("run", &path).map_err(|error| LookError::Lack(error.to_string()))?;
        self.contains(&folder)?;
        Ok(folder)
    }

    /// Refuses a run of which a part lies outside the root: parts may be links, too.
    fn contains(&self, folder: &RunFolder) -> Result<(), LookError> {
        let parts = [&folder.root, &folder.model, &folder.artifacts].into_iter().filter(|part| part.exists());
        parts.map(|part| self.inside("run", &part.to_string_lossy())).try_for_each(|part| part.map(drop))?;
        // So may the files in them be.
        let parts =
            [&folder.root, &folder.artifacts, &folder.model].into_iter().filter_map(|part| fs::read_dir(part).ok());
        let links = parts.flatten().flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_symlink()));
        links.map(|link| self.inside("run", &link.path().to_string_lossy())).try_for_each(|link| link.map(drop))
    }

    /// Lists the runs and models below a folder.
    pub(super) fn list_runs(&self, Folder { folder }: &Folder) -> Looked {
        let start = self.inside("folder", folder.as_deref().unwrap_or("."))?;
        let mut found = Vec::new();
        self.search(&start, DEPTH, &mut found)?;
        let more = found.len() > RUNS;
        found.truncate(RUNS);
        Ok(json!({ "runs": found, "more": more }))
    }

    fn search(&self, directory: &Path, depth: usize, found: &mut Vec<Value>) -> Result<(), LookError> {
        if found.len() > RUNS {
            return Ok(());
        }
        if let Ok(folder) = RunFolder::locate("run", directory)
            // The artifacts of a run are a part of it.
            && folder.root == directory
            && self.contains(&folder).is_ok()
        {
            let metadata = folder.metadata();
            let metadata = metadata.found();
            found.push(json!({
                "path": self.shown(directory),
                "kind": if folder.is_run() { "run" } else { "model" },
                "template": metadata.map(|metadata| &metadata.metadata.template),
                "owner": metadata.map(|metadata| &metadata.metadata.owner),
                "has_model": folder.model.is_dir(),
                "evaluations": folder.evaluations().len(),
            }));
            return Ok(());
        }
        if depth == 0 {
            return Ok(());
        }
        let entries: io::Result<Vec<_>> = fs::read_dir(directory).and_then(Iterator::collect);
        let mut entries = entries.map_err(LookError::List)?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            // Links are not followed: they may lead out of the root, or in a circle.
            let hidden = entry.file_name().to_string_lossy().starts_with('.');
            if !hidden && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                // A folder that may not be read is passed over.
                match self.search(&entry.path(), depth - 1, found) {
                    Ok(()) | Err(LookError::List(_)) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// Shows what lies in the folder of a run.
    pub(super) fn show_run(&self, Run { run }: &Run) -> Looked {
        let folder = self.folder(run)?;
        let config = folder.config();
        let ledger = folder.ledger();
        Ok(json!({
            "path": self.shown(&folder.root),
            "metadata": part(&folder.metadata()),
            "config_digest": config.found().map(codex_configs::Resolved::digest),
            "data": part(&folder.checksums()),
            "environment": part(&folder.environment()),
            "last_step": ledger.found().and_then(|ledger| ledger.rows.iter().map(|row| row.step).max()),
            "metrics": ledger.found().map(|ledger| {
                ledger.rows.iter().map(|row| row.metric.as_str()).collect::<BTreeSet<_>>()
            }),
            "has_model": folder.model.is_dir(),
            "evaluations": folder.evaluations().iter().map(|path| self.shown(path)).collect::<Vec<_>>(),
        }))
    }

    /// Returns the newest rows of a run's metrics.
    pub(super) fn tail_metrics(&self, Rows { run, metric, split, count }: &Rows) -> Looked {
        let count = count.unwrap_or(20);
        if !(1..=ROWS).contains(&count) {
            return Err(LookError::Value { field: "count", right: format!("use a number from 1 to {ROWS}") });
        }
        let folder = self.folder(run)?;
        let ledger = match folder.ledger() {
            Part::Found(ledger) => ledger,
            other => return Err(LookError::Lack(other.lack().unwrap_or_default())),
        };
        let taken = |row: &&ledger::Row| {
            metric.as_ref().is_none_or(|metric| row.metric == *metric)
                && split.as_ref().is_none_or(|split| row.split == *split)
        };
        let mut rows: Vec<&ledger::Row> = ledger.rows.iter().filter(taken).rev().take(count).collect();
        rows.reverse();
        Ok(json!({ "rows": rows, "invalid_lines": ledger.bad.len(), "unfinished_line": ledger.unfinished }))
    }

    /// Lists the evaluations of a run with their measurements. Each is compared with its own digest.
    pub(super) fn list_evaluations(&self, Run { run }: &Run) -> Looked {
        let folder = self.folder(run)?;
        let mut found = Vec::new();
        for path in folder.evaluations() {
            let shown = self.shown(&path);
            let path = self.inside("run", &path.to_string_lossy())?;
            found.push(match Report::read("evaluation", &path, None, &[], None) {
                Ok(report) => json!({
                    "path": shown, "preset": report.preset(), "model": report.model(), "report_digest": report.digest(),
                    "metrics": report.metrics(),
                    "data": report.data().map(|(name, digest)| (name.to_owned(), json!(digest)))
                        .collect::<serde_json::Map<_, _>>(),
                }),
                Err(why) => json!({ "path": shown, "invalid": chain(&why) }),
            });
        }
        Ok(json!({ "evaluations": found }))
    }

    /// Judges an evaluation by gates, as the controller does.
    pub(super) fn judge_evaluation(&self, Judging { evaluation, gates }: &Judging) -> Looked {
        let (path, gates) = (self.inside("evaluation", evaluation)?, self.inside("gates", gates)?);
        let invalid = |why: codex::gating::GatingError| LookError::Lack(chain(&why));
        let report = Report::read("evaluation", &path, None, &[], None).map_err(invalid)?;
        let judged = report.judge(read_gates(&gates).map_err(invalid)?).map_err(invalid)?;
        let results: Vec<_> = judged.iter().map(|(_, result)| result).collect();
        let any = |verdict| results.iter().any(|result| result.verdict == verdict);
        let verdict = match (any(Verdict::Failed), any(Verdict::Inconclusive)) {
            (true, _) => Verdict::Failed,
            (false, true) => Verdict::Inconclusive,
            (false, false) => Verdict::Passed,
        };
        Ok(json!({ "model": report.model(), "verdict": verdict, "gates": results }))
    }

    /// Computes the digest of a model, and checks its signature and its promotion.
    pub(super) fn verify_model(&self, asked: &Verifying) -> Looked {
        let folder = self.folder(&asked.run)?;
        let file = |field, path: &Option<String>| path.as_ref().map(|path| self.inside(field, path)).transpose();
        let key = file("key", &asked.key)?;
        let inside = folder.model.join(SIGNATURE);
        let bundle = file("bundle", &asked.bundle)?.or_else(|| inside.is_file().then_some(inside));
        let wrong = |field, right: &str| LookError::Value { field, right: right.to_owned() };
        let fingerprint: Option<Sha256> = asked
            .fingerprint
            .as_ref()
            .map(|text| text.parse())
            .transpose()
            .map_err(|_| wrong("fingerprint", "write 64 hexadecimal digits"))?;
        let promotion = file("promotion", &asked.promotion)?;
        if promotion.is_some() != asked.ring.is_some() {
            return Err(wrong("ring", "give promotion and ring together"));
        }
        if let Some(ring) = asked.ring.as_ref().filter(|ring| !Ring::ALL.iter().any(|known| known.name() == **ring)) {
            let names = Ring::ALL.map(Ring::name).join(", ");
            return Err(LookError::Value { field: "ring", right: format!("{ring:?} is no ring: use one of {names}") });
        }
        if key.is_none() && (promotion.is_some() || fingerprint.is_some() || asked.bundle.is_some()) {
            return Err(wrong("key", "give the file with the public key that a signature is checked with"));
        }
        if key.is_some() && bundle.is_none() {
            return Err(wrong("bundle", "the model has no model.sig inside: give the bundle"));
        }
        let given = Given { bundle, key: key.clone(), fingerprint, promotion, ..Given::default() };
        let manifest = match folder.manifest(&given.inside(&folder.model)) {
            Part::Found(manifest) => manifest,
            other => return Err(LookError::Lack(other.lack().unwrap_or_default())),
        };
        let mut answer = json!({
            "model": manifest.digest(), "files": manifest.files.len(), "bytes": manifest.size_bytes(),
        });
        let outcome = match given
            .verify(&manifest, asked.ring.as_deref().unwrap_or_default())
            .map_err(|error| LookError::of(&error))?
        {
            Outcome::NotGiven => json!({ "verified": false, "why": "no key was given, so no signature was checked" }),
            Outcome::Refused(why) => json!({ "verified": false, "why": why }),
            Outcome::Valid(valid) => json!({
                "verified": true, "signer": valid.signed.signer, "key_is_pinned": valid.is_pinned,
                "not_signed": valid.signed.skipped,
                "promoted_into": valid.promoted.as_ref().map(|promoted| &promoted.promotion.reasons.ring),
            }),
        };
        if let (Some(answer), Value::Object(outcome)) = (answer.as_object_mut(), outcome) {
            answer.extend(outcome);
        }
        Ok(answer)
    }
}

/// Returns a part of a run, or what is lacking.
fn part<T: Serialize>(part: &Part<T>) -> Value {
    match part {
        Part::Found(value) => json!(value),
        other => json!({ "lacking": other.lack() }),
    }
}
