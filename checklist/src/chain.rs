//! The objects of a chain: one ReasoningPod and what it names, as files or a cluster hold them. Pure.

use codex_configs::{Environment, Sources, TrainingSettings, deployment_preset, explain_training};
use codex_provenance::{ModelDigest, Sha256, text::Printable};
use codex_verdict::{Gate, GateSpec, Ring, policy::ReadinessWeights};
use serde_json::Value;

use crate::{Allowances, Weights};

/// The deployment preset of a ReasoningPod that differs from every preset.
const CUSTOM: &str = "custom";

/// A ReasoningPod and the objects of its chain.
#[derive(Clone, Debug)]
pub struct Chain {
    /// What holds the objects, for messages: a file or a namespace.
    pub place: String,
    /// Name of the ReasoningPod.
    pub name: String,
    /// Ring of the ReasoningPod.
    pub ring: Ring,
    pod: Value,
    objects: Vec<Value>,
    /// The text of the run's template, if a user gave it.
    template: Option<String>,
}

/// A SignOff.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignOff {
    /// Its name.
    pub name: String,
    /// Who signed.
    pub by: String,
    /// Why.
    pub reason: String,
    /// The Evaluation that it is about; `None` for all of the ReasoningPod.
    pub evaluation: Option<String>,
    /// The ring that it is for; `None` for every ring.
    pub ring: Option<String>,
    /// The model that it names.
    pub model: Option<ModelDigest>,
    /// The report that it names.
    pub report: Option<Sha256>,
}

fn text<'a>(object: &'a Value, pointer: &str) -> Option<&'a str> {
    object.pointer(pointer).and_then(Value::as_str)
}

impl Chain {
    /// Chooses a ReasoningPod among valid objects, the one of this name if there are several. Objects of other kinds than those of
    /// `codex-ml.dev`, `ResourceQuota` and `LimitRange` are ignored.
    ///
    /// # Errors
    /// There is not exactly one ReasoningPod to choose, or its ring is unknown; one sentence.
    pub fn of(place: &str, objects: Vec<Value>, chosen: Option<&str>) -> Result<Self, String> {
        let pods: Vec<&Value> = objects.iter().filter(|object| object["kind"] == "ReasoningPod").collect();
        let names: Vec<&str> = pods.iter().map(|pod| text(pod, "/metadata/name").unwrap_or_default()).collect();
        let listed = || names.iter().map(|name| Printable(name).to_string()).collect::<Vec<_>>().join(", ");
        let pod = match (&pods[..], chosen) {
            ([], _) => return Err("it holds no ReasoningPod: add the one to deploy".to_owned()),
            ([pod], None) => *pod,
            (_, None) => return Err(format!("it holds several ReasoningPods: choose by --pod one of {}", listed())),
            (_, Some(name)) => {
                let found: Vec<&Value> =
                    pods.iter().copied().filter(|pod| text(pod, "/metadata/name") == Some(name)).collect();
                match found[..] {
                    [pod] => pod,
                    [] => return Err(format!("it holds no ReasoningPod {}: use one of {}", Printable(name), listed())),
                    _ => return Err(format!("it holds several ReasoningPods {}: keep one", Printable(name))),
                }
            }
        };
        let ring = text(pod, "/spec/rolloutRing").unwrap_or_default();
        let ring: Ring = ring.parse().map_err(|why| format!("spec.rolloutRing: {why}"))?;
        let name = text(pod, "/metadata/name").unwrap_or_default().to_owned();
        Ok(Self { place: place.to_owned(), name, ring, pod: pod.clone(), objects, template: None })
    }

    /// Adds the text of the template that `spec.templateFrom` of the TrainingRun pins, which is used if no ConfigMap of that name is
    /// among the objects.
    #[must_use]
    pub fn with_template(mut self, text: String) -> Self {
        self.template = Some(text);
        self
    }

    /// Whether an object is in the namespace of the ReasoningPod, or one of the two names none.
    fn is_here(&self, object: &Value) -> bool {
        match (text(object, "/metadata/namespace"), text(&self.pod, "/metadata/namespace")) {
            (Some(one), Some(other)) => one == other,
            _ => true,
        }
    }

    /// Returns the object of this kind and name, in the namespace of the ReasoningPod if both name one.
    fn object(&self, kind: &str, name: &str) -> Option<&Value> {
        self.objects
            .iter()
            .filter(|object| object["kind"] == kind && text(object, "/metadata/name") == Some(name))
            .find(|object| self.is_here(object))
    }

    /// Returns the name of the TrainingRun.
    pub fn run_name(&self) -> &str {
        text(&self.pod, "/spec/trainingRun").unwrap_or_default()
    }

    /// Returns the ring and the template of the TrainingRun, if it is there.
    pub fn run(&self) -> Option<(&str, &str)> {
        let run = self.object("TrainingRun", self.run_name())?;
        Some((text(run, "/spec/rolloutRing")?, text(run, "/spec/template").unwrap_or_default()))
    }

    /// Returns the settings of the TrainingRun, and the phase of its curriculum that its status records, if they are there.
    ///
    /// # Errors
    /// The configuration is refused; one sentence.
    pub fn settings(&self) -> Result<Option<(TrainingSettings, Option<&str>)>, String> {
        let Some(run) = self.object("TrainingRun", self.run_name()) else { return Ok(None) };
        let own = match run.pointer("/spec/templateFrom") {
            Some(from) => Some(self.own_template(from)?),
            None => None,
        };
        let list = run["spec"]["overrides"].as_array().into_iter().flatten();
        let overrides: Vec<String> = list.filter_map(Value::as_str).map(str::to_owned).collect();
        let template = text(run, "/spec/template");
        let config = text(run, "/spec/config");
        let environment = Environment::ABSENT;
        let sources = Sources { group: template, own, config, overrides: &overrides, environment };
        let explained = explain_training(&sources, 1, None).map_err(|why| why.to_string())?;
        let settings = explained.resolved.spec().settings.clone();
        Ok(Some((settings, text(run, "/status/curriculum/phase"))))
    }

    /// Returns the text of the template that `spec.templateFrom` names.
    ///
    /// # Errors
    /// The text is not at hand, or has another digest; one sentence.
    fn own_template(&self, from: &Value) -> Result<&str, String> {
        let (name, key) = (text(from, "/configMap/name").unwrap_or_default(), text(from, "/configMap/key"));
        let (run, key) = (self.run_name(), key.unwrap_or_default());
        let held = self.object("ConfigMap", name).and_then(|object| object["data"][key].as_str());
        let text = held.or(self.template.as_deref()).ok_or_else(|| {
            format!(
                "the template of TrainingRun {run} is the key {key} of the ConfigMap {name}, which {} does not hold: add it",
                self.place
            )
        })?;
        let (found, pinned) = (Sha256::of(text).to_string(), from["sha256"].as_str().unwrap_or_default());
        if found == pinned {
            return Ok(text);
        }
        Err(format!(
            "the template of TrainingRun {run} has the SHA-256 {found}, but spec.templateFrom.sha256 is {pinned}: restore the text"
        ))
    }

    /// Returns the deployment preset that decides number, size and limits of the servers, or `custom` if they are those of no preset.
    pub fn deployment_preset(&self) -> &'static str {
        deployment_preset(&self.pod["spec"]).unwrap_or(CUSTOM)
    }

    /// Returns the model digest that the status of the TrainingRun records, if it is there.
    pub fn recorded_model(&self) -> Option<&str> {
        text(self.object("TrainingRun", self.run_name())?, "/status/model/digest")
    }

    /// Returns the names of the Evaluations.
    pub fn evaluations(&self) -> impl Iterator<Item = &str> {
        self.pod["spec"]["evaluations"].as_array().into_iter().flatten().filter_map(Value::as_str)
    }

    /// Returns the preset and the gates of an Evaluation; `None` if it is not there.
    ///
    /// # Errors
    /// A gate is invalid; one sentence.
    pub fn evaluation(&self, name: &str) -> Option<Result<(&str, Vec<Gate>), String>> {
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
    pub fn sign_offs(&self) -> Vec<SignOff> {
        let own = |object: &&Value| {
            object["kind"] == "SignOff"
                && self.is_here(object)
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

    /// Returns the weights of readiness that the policies of the ReasoningPod's namespace and of the cluster state, each with the
    /// name of its policy.
    ///
    /// # Errors
    /// Weights are no decimals from 0 to 1 that sum to 1; one sentence.
    pub fn weights(&self) -> Result<Vec<(String, Weights)>, String> {
        let policies = self.objects.iter().filter(|object| {
            object["kind"] == "ClusterPromotionPolicy" || (object["kind"] == "PromotionPolicy" && self.is_here(object))
        });
        let stated = policies.filter_map(|policy| Some((policy, policy.pointer("/spec/readiness")?)));
        stated
            .map(|(policy, weights)| {
                let (kind, name) = (text(policy, "/kind"), text(policy, "/metadata/name"));
                let label = format!("{} {}", kind.unwrap_or_default(), name.unwrap_or_default());
                let read = serde_json::from_value::<ReadinessWeights>(weights.clone()).map_err(|why| why.to_string());
                let weights = read.and_then(|weights| Weights::try_from(&weights));
                weights.map(|weights| (label.clone(), weights)).map_err(|why| format!("{label}: spec.readiness: {why}"))
            })
            .collect()
    }

    /// Returns the limits of the namespace: the `ResourceQuota`s and `LimitRange`s among the objects.
    ///
    /// # Errors
    /// A quantity cannot be read; one sentence.
    pub fn allowances(&self) -> Result<Allowances, String> {
        Allowances::of(self.objects.iter().filter(|object| self.is_here(object)))
    }

    /// Whether the ReasoningPod is a dry run in the cluster.
    pub fn is_dry_run(&self) -> bool {
        self.pod["spec"]["dryRun"].as_bool().unwrap_or(true)
    }

    /// Returns the number of servers.
    pub fn replicas(&self) -> i64 {
        self.pod["spec"]["replicas"].as_i64().unwrap_or(1)
    }

    /// Returns the name of the PriorityClass of the servers.
    pub fn priority_class(&self) -> Option<&str> {
        text(&self.pod, "/spec/pod/priorityClassName")
    }

    /// Returns a request or a limit of the servers, such as `limits` of `memory`.
    pub fn resource(&self, list: &str, name: &str) -> Option<&Value> {
        self.pod.pointer(&format!("/spec/pod/resources/{list}"))?.get(name)
    }

    /// Returns the names and quantities of all requests or limits of the servers.
    pub fn resources(&self, list: &str) -> impl Iterator<Item = (&str, &Value)> {
        let all = self.pod.pointer(&format!("/spec/pod/resources/{list}")).and_then(Value::as_object);
        all.into_iter().flatten().map(|(name, quantity)| (name.as_str(), quantity))
    }

    /// Returns the names of all resources that have a request and a limit.
    pub fn bounded(&self) -> Vec<&str> {
        let names = self.resources("requests").map(|(name, _)| name);
        names.filter(|name| self.resource("limits", name).is_some()).collect()
    }
}
