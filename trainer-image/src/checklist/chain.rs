//! The objects of a chain, as a file holds them: one ReasoningPod and what it names. Reads files.

use std::path::{Path, PathBuf};

use codex_configs::{Environment, Sources, TrainingSettings, explain_training};
use codex_provenance::{ModelDigest, Sha256, files, text::Printable};
use codex_validate::Validator;
use codex_verdict::{Gate, GateSpec, Ring};
use serde_json::Value;

use crate::error::CommandError;

/// The largest file of objects, in bytes.
const MAX_OBJECTS: usize = 64 << 20;
/// The group of the objects.
const GROUP: &str = "codex-ml.dev";

/// A ReasoningPod and the objects of its chain.
#[derive(Clone, Debug)]
pub(crate) struct Chain {
    /// The file, for messages.
    pub(crate) file: PathBuf,
    /// Name of the ReasoningPod.
    pub(crate) name: String,
    /// Ring of the ReasoningPod.
    pub(crate) ring: Ring,
    pod: Value,
    objects: Vec<Value>,
}

/// A SignOff.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SignOff {
    /// Its name.
    pub(crate) name: String,
    /// Who signed.
    pub(crate) by: String,
    /// Why.
    pub(crate) reason: String,
    /// The Evaluation that it is about; `None` for all of the ReasoningPod.
    pub(crate) evaluation: Option<String>,
    /// The ring that it is for; `None` for every ring.
    pub(crate) ring: Option<String>,
    /// The model that it names.
    pub(crate) model: Option<ModelDigest>,
    /// The report that it names.
    pub(crate) report: Option<Sha256>,
}

fn text<'a>(object: &'a Value, pointer: &str) -> Option<&'a str> {
    object.pointer(pointer).and_then(Value::as_str)
}

impl Chain {
    /// Reads the objects of a file and chooses its ReasoningPod, the one of this name if there are several.
    ///
    /// # Errors
    /// Exit code 2: the file cannot be read, an object is invalid, or there is not exactly one ReasoningPod to choose.
    pub(crate) fn read(path: &Path, chosen: Option<&str>) -> Result<Self, CommandError> {
        let shown = path.display().to_string();
        let wrong = |why: String| CommandError::bad_input(format!("--config: {}: {why}", Printable(&shown)));
        let bytes = files::read_start(path, MAX_OBJECTS).map_err(|why| wrong(why.to_string()))?;
        if bytes.len() > MAX_OBJECTS {
            return Err(wrong(format!("it has more than {MAX_OBJECTS} bytes: no manifest is that large")));
        }
        let text_of = String::from_utf8(bytes);
        let content = text_of.map_err(|_| wrong("it is not UTF-8 text: save it as UTF-8".to_owned()))?;
        // Nothing of a file is quoted before it is known to hold objects: it may be a token or a key.
        if !content.contains(GROUP) {
            return Err(wrong(format!("it holds no objects of {GROUP}: name the file of the ReasoningPod")));
        }
        let validator = Validator::new().map_err(|error| CommandError::failed(error.to_string()))?;
        let objects = validator.objects(&content).map_err(|findings| {
            let all: Vec<_> = findings.iter().map(|it| Printable(&it.to_string()).to_string()).collect();
            wrong(format!("{}: correct it (codex validate shows the same)", all.join("; ")))
        })?;
        let pods: Vec<&Value> = objects.iter().filter(|object| object["kind"] == "ReasoningPod").collect();
        let names: Vec<&str> = pods.iter().map(|pod| text(pod, "/metadata/name").unwrap_or_default()).collect();
        let listed = || names.iter().map(|name| Printable(name).to_string()).collect::<Vec<_>>().join(", ");
        let pod = match (&pods[..], chosen) {
            ([], _) => return Err(wrong("it holds no ReasoningPod: add the one to deploy".to_owned())),
            ([pod], None) => *pod,
            (_, None) => {
                return Err(wrong(format!("it holds several ReasoningPods: choose by --pod one of {}", listed())));
            }
            (_, Some(name)) => {
                let found: Vec<&Value> =
                    pods.iter().copied().filter(|pod| text(pod, "/metadata/name") == Some(name)).collect();
                match found[..] {
                    [pod] => pod,
                    [] => {
                        let why = format!("it holds no ReasoningPod {}: use one of {}", Printable(name), listed());
                        return Err(wrong(why));
                    }
                    _ => return Err(wrong(format!("it holds several ReasoningPods {}: keep one", Printable(name)))),
                }
            }
        };
        let ring = text(pod, "/spec/rolloutRing").unwrap_or_default();
        let ring: Ring = ring.parse().map_err(|why| wrong(format!("spec.rolloutRing: {why}")))?;
        let name = text(pod, "/metadata/name").unwrap_or_default().to_owned();
        Ok(Self { file: path.to_owned(), name, ring, pod: pod.clone(), objects })
    }

    /// Returns the object of this kind and name, in the namespace of the ReasoningPod if both name one.
    fn object(&self, kind: &str, name: &str) -> Option<&Value> {
        let own = text(&self.pod, "/metadata/namespace");
        let here = |object: &&Value| match (text(object, "/metadata/namespace"), own) {
            (Some(one), Some(other)) => one == other,
            _ => true,
        };
        self.objects
            .iter()
            .filter(|object| object["kind"] == kind && text(object, "/metadata/name") == Some(name))
            .find(here)
    }

    /// Returns the name of the TrainingRun.
    pub(crate) fn run_name(&self) -> &str {
        text(&self.pod, "/spec/trainingRun").unwrap_or_default()
    }

    /// Returns the ring and the template of the TrainingRun, if the file holds it.
    pub(crate) fn run(&self) -> Option<(&str, &str)> {
        let run = self.object("TrainingRun", self.run_name())?;
        Some((text(run, "/spec/rolloutRing")?, text(run, "/spec/template").unwrap_or_default()))
    }

    /// Returns the settings of the TrainingRun, and the phase of its curriculum that its status records, if the file has them.
    ///
    /// # Errors
    /// The configuration is refused; one sentence.
    pub(crate) fn settings(&self) -> Result<Option<(TrainingSettings, Option<&str>)>, String> {
        let Some(run) = self.object("TrainingRun", self.run_name()) else { return Ok(None) };
        let list = run["spec"]["overrides"].as_array().into_iter().flatten();
        let overrides: Vec<String> = list.filter_map(Value::as_str).map(str::to_owned).collect();
        let template = text(run, "/spec/template");
        let config = text(run, "/spec/config");
        let sources = Sources { group: template, config, overrides: &overrides, environment: Environment::ABSENT };
        let explained = explain_training(&sources, 1, None).map_err(|why| why.to_string())?;
        let settings = explained.resolved.spec().settings.clone();
        Ok(Some((settings, text(run, "/status/curriculum/phase"))))
    }

    /// Returns the model digest that the status of the TrainingRun records, if the file has it.
    pub(crate) fn recorded_model(&self) -> Option<&str> {
        text(self.object("TrainingRun", self.run_name())?, "/status/model/digest")
    }

    /// Returns the names of the Evaluations.
    pub(crate) fn evaluations(&self) -> impl Iterator<Item = &str> {
        self.pod["spec"]["evaluations"].as_array().into_iter().flatten().filter_map(Value::as_str)
    }

    /// Returns the preset and the gates of an Evaluation; `None` if the file does not hold it.
    ///
    /// # Errors
    /// A gate is invalid; one sentence.
    pub(crate) fn evaluation(&self, name: &str) -> Option<Result<(&str, Vec<Gate>), String>> {
        let evaluation = self.object("Evaluation", name)?;
        let gates = evaluation["spec"]["gates"].as_array().into_iter().flatten().enumerate().map(|(index, gate)| {
            let spec: GateSpec =
                serde_json::from_value(gate.clone()).map_err(|why| format!("gates[{index}]: {why}"))?;
            Gate::try_from(&spec).map_err(|why| format!("gates[{index}]: {why}"))
        });
        let gates: Result<Vec<Gate>, String> = gates.collect();
        Some(gates.map(|gates| (text(evaluation, "/spec/preset").unwrap_or_default(), gates)))
    }

    /// Returns the SignOffs of the ReasoningPod and of its Evaluations.
    pub(crate) fn sign_offs(&self) -> Vec<SignOff> {
        let own = |object: &&Value| {
            object["kind"] == "SignOff"
                && match (text(object, "/spec/evaluation"), text(object, "/spec/reasoningPod")) {
                    (Some(name), _) => self.evaluations().any(|evaluation| evaluation == name),
                    (None, pod) => pod == Some(self.name.as_str()),
                }
        };
        let read = |object: &Value| {
            let owned = |pointer: &str| text(object, pointer).map(str::to_owned);
            SignOff {
                name: owned("/metadata/name").unwrap_or_default(),
                by: owned("/spec/by").unwrap_or_default(),
                reason: owned("/spec/reason").unwrap_or_default(),
                evaluation: owned("/spec/evaluation"),
                ring: owned("/spec/ring"),
                model: text(object, "/spec/modelDigest").and_then(|digest| digest.parse().ok()),
                report: text(object, "/spec/reportDigest").and_then(|digest| digest.parse().ok()),
            }
        };
        self.objects.iter().filter(own).map(read).collect()
    }

    /// Whether the ReasoningPod is a dry run in the cluster.
    pub(crate) fn is_dry_run(&self) -> bool {
        self.pod["spec"]["dryRun"].as_bool().unwrap_or(true)
    }

    /// Returns the number of servers.
    pub(crate) fn replicas(&self) -> i64 {
        self.pod["spec"]["replicas"].as_i64().unwrap_or(1)
    }

    /// Returns a request or a limit of the servers, such as `limits` of `memory`.
    pub(crate) fn resource(&self, list: &str, name: &str) -> Option<&Value> {
        self.pod.pointer(&format!("/spec/pod/resources/{list}"))?.get(name)
    }

    /// Returns the names of all resources that have a request and a limit.
    pub(crate) fn bounded(&self) -> Vec<&str> {
        let requests = self.pod.pointer("/spec/pod/resources/requests").and_then(Value::as_object);
        let names = requests.into_iter().flatten().map(|(name, _)| name.as_str());
        names.filter(|name| self.resource("limits", name).is_some()).collect()
    }
}
