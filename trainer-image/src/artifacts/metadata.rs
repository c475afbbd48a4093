//! `run_metadata.json` and `dataset_checksums.json`: the identity of a run, and its data. Pure.

use std::{collections::BTreeMap, path::PathBuf};

use codex_configs::{CurriculumSettings, TrainingSettings};
use codex_provenance::{ConfigDigest, DataDigest, ModelDigest, Sha256};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The name of [`RunMetadata`]'s file.
pub const FILE: &str = "run_metadata.json";
/// The name of [`Checksums`]' file.
pub const CHECKSUMS_FILE: &str = "dataset_checksums.json";

/// The content of `run_metadata.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "run_metadata.json")]
pub struct RunMetadata {
    /// Owner, template and run.
    pub metadata: Metadata,
    /// The run and its attempt, as `run-attempt`.
    pub session_id: String,
    /// The directory of this file.
    pub artifacts_dir: PathBuf,
    /// The digest of the resolved configuration.
    pub config_digest: ConfigDigest,
    /// SHA-256 of the canonical JSON `{files, name}`, with the files of `dataset_checksums.json`.
    pub dataset_version: Sha256,
    /// The settings that control the run, as they took effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub knobs: Option<Knobs>,
    /// The curriculum of the run, as it took effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control_surface: Option<ControlSurface>,
    /// The base that the run started from, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<BaseModel>,
    /// The manifest digest of `artifacts/adapter/`, once a run that trains adapters has written it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<ModelDigest>,
    /// What a private run guarantees, as of its last attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub privacy: Option<PrivacyReport>,
    /// What safety rules did with the training data, if there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub safety: Option<SafetyReport>,
    /// The former run whose model the run adopted, so that it took no steps; absent if it trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adopted: Option<AdoptedModel>,
}

/// The former run that computed an adopted model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AdoptedModel {
    /// Name of the run.
    pub run: String,
    /// Uid of the run.
    pub uid: String,
    /// SHA-256 of the signed SLSA provenance that records it.
    pub provenance: Sha256,
}

/// Safety rules over the training data, and what they did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SafetyReport {
    /// SHA-256 of the file of rules, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<DataDigest>,
    /// Groups of known forms whose records are left out.
    pub block: Vec<String>,
    /// Groups of known forms that are replaced.
    pub redact: Vec<String>,
    /// Number of records that were left out.
    pub blocked: u64,
    /// Number of other records of which something was replaced.
    pub redacted: u64,
    /// Number of records that each rule hit, by its id.
    pub rules: BTreeMap<String, u64>,
}

/// The guarantee of a private run: (ε, δ)-differential privacy of the trained weights, for adding or removing one record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PrivacyReport {
    /// The ε that the steps have spent.
    pub epsilon: f64,
    /// The δ of the guarantee.
    pub delta: f64,
    /// The optimizer steps that are accounted for.
    pub steps: u64,
    /// Standard deviation of the noise, in units of `max_grad_norm`.
    pub noise_multiplier: f64,
    /// Maximum norm of the gradient of a record.
    pub max_grad_norm: f64,
    /// Probability with which a step takes a record.
    pub sampling_rate: f64,
    /// What the guarantee is about: `record`.
    pub unit: String,
    /// How steps draw records: `poisson`.
    pub sampling: String,
    /// How ε is computed: `rdp`.
    pub accountant: String,
    /// Whether records and noise were drawn from a secret key. Otherwise the guarantee holds only against those who do not know the
    /// seed of the run.
    pub secret: bool,
}

/// The settings that control a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Knobs {
    /// The curriculum whose phases the run trains in: `none`, its name, or `custom`.
    pub curriculum_preset: String,
    /// The source of reasoning traces that took effect: `disabled`, `weights` or `activations`; absent in files of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace_mode: Option<String>,
    /// The preset of the Evaluations that the run is meant for; absent if none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluation_preset: Option<String>,
    /// The deployment preset that the run is meant for; absent if none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deployment_preset: Option<String>,
}

/// What the settings that control a run lead to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ControlSurface {
    /// The curriculum.
    pub curriculum: CurriculumSurface,
    /// The Evaluations that the run is meant for; absent if no preset is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluation: Option<PresetSurface>,
    /// The deployment that the run is meant for; absent if no preset is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deployment: Option<PresetSurface>,
}

/// A preset that a run is meant for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PresetSurface {
    /// Its name.
    pub preset: String,
}

/// The curriculum of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CurriculumSurface {
    /// `curriculum.preset` of the configuration.
    pub preset: String,
    /// `curriculum.phase_schedule` of the configuration, which chooses the phases.
    pub phase_schedule: String,
    /// The ids of the phases, in their order.
    pub phases: Vec<String>,
}

impl ControlSurface {
    /// Returns the control surface of a configuration, and the knobs that took effect.
    pub fn of(settings: &TrainingSettings) -> (Self, Knobs) {
        let CurriculumSettings { preset, phase_schedule, phases } = &settings.curriculum;
        let phases = phases.iter().map(|phase| phase.id.clone()).collect();
        let curriculum = CurriculumSurface { preset: preset.clone(), phase_schedule: phase_schedule.clone(), phases };
        let [evaluation_preset, deployment_preset] =
            [&settings.evaluation, &settings.deployment].map(|intended| intended.preset.clone());
        let [evaluation, deployment] =
            [&evaluation_preset, &deployment_preset].map(|it| it.clone().map(|preset| PresetSurface { preset }));
        let knobs = Knobs {
            curriculum_preset: phase_schedule.clone(),
            trace_mode: Some(settings.trace_mode().name().to_owned()),
            evaluation_preset,
            deployment_preset,
        };
        (Self { curriculum, evaluation, deployment }, knobs)
    }
}

/// A model that a run started from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BaseModel {
    /// The manifest digest of its directory.
    pub digest: ModelDigest,
    /// The directory.
    pub source: PathBuf,
    /// The repository of a model hub that it was downloaded from, as owner and name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    /// The commit of the repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// The fingerprint of the key whose signature of the base was required and verified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signer: Option<Sha256>,
}

/// Owner, template and run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Metadata {
    /// The owner of the run.
    pub owner: String,
    /// The template of the configuration.
    pub template: String,
    /// The object's uid in a cluster, the output directory's name elsewhere.
    pub run_id: String,
}

/// The content of `dataset_checksums.json`: the SHA-256 of each data file by its name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(title = "dataset_checksums.json")]
pub struct Checksums(pub BTreeMap<String, DataDigest>);

impl Checksums {
    /// Returns the version of the data under this name: SHA-256 of the canonical JSON `{files, name}`.
    ///
    /// # Errors
    /// When encoding fails.
    pub fn version(&self, name: &str) -> Result<Sha256, serde_json::Error> {
        #[derive(Serialize)]
        struct Version<'a> {
            name: &'a str,
            files: &'a Checksums,
        }
        serde_json_canonicalizer::to_vec(&Version { name, files: self }).map(Sha256::of)
    }
}
