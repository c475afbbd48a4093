//! The three kinds in one form: what tree and why show of an object. Pure.

use codex_crds::{ConditionType, Evaluation, ReasoningPod, TrainingRun};
use codex_verdict::Verdict;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt;
use serde::Serialize;

use crate::{subject::Kind, text::Tone};

/// An object.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct View {
    pub(crate) kind: Kind,
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// The phase or the verdict.
    pub(crate) phase: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ring: Option<String>,
    /// What is known about it, as names and values.
    pub(crate) facts: Vec<Fact>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) gates: Vec<Gate>,
    pub(crate) conditions: Vec<State>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) blocked_by: Vec<String>,
    /// Whether the status describes the current spec; `None` without a status.
    pub(crate) current: Option<bool>,
}

/// A fact about an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Fact {
    pub(crate) name: &'static str,
    pub(crate) value: String,
}

/// A gate of an Evaluation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Gate {
    /// `None` until the gate is judged.
    pub(crate) verdict: Option<Verdict>,
    pub(crate) text: String,
}

/// A condition of an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct State {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) status: String,
    pub(crate) reason: String,
    pub(crate) message: String,
}

impl State {
    /// Whether the condition is one that is present only while something is wrong or in progress.
    pub(crate) fn is_exceptional(&self) -> bool {
        use ConditionType::{
            CheckpointLost, EndpointsWritten, ForeignPods, KeyExpires, ProgressStale, Reconciling, Revoked, Stalled,
            StatusDiscarded,
        };
        let exceptional = [
            Reconciling,
            Stalled,
            StatusDiscarded,
            ForeignPods,
            EndpointsWritten,
            CheckpointLost,
            ProgressStale,
            Revoked,
            KeyExpires,
        ];
        exceptional.iter().any(|kind| kind.name() == self.kind)
    }

    /// Returns its tone: good, bad or undecided.
    pub(crate) fn tone(&self) -> Tone {
        match (self.status.as_str(), self.is_exceptional()) {
            // Servers that run and servers that stopped while idle are equally well.
            ("True" | "False", _) if self.kind == ConditionType::Idle.name() => Tone::Good,
            ("True", true) if self.kind == ConditionType::Reconciling.name() => Tone::Waiting,
            ("True", false) | ("False", true) => Tone::Good,
            ("True", true) | ("False", false) => Tone::Bad,
            _ => Tone::Waiting,
        }
    }
}

impl View {
    /// Returns the condition of a type.
    pub(crate) fn condition(&self, kind: ConditionType) -> Option<&State> {
        self.conditions.iter().find(|state| state.kind == kind.name())
    }

    /// Whether the condition of a type is true.
    pub(crate) fn is(&self, kind: ConditionType) -> bool {
        self.condition(kind).is_some_and(|state| state.status == "True")
    }

    /// Returns the tone of the phase.
    pub(crate) fn tone(&self) -> Tone {
        match self.phase.as_str() {
            "Failed" | "Blocked" | "Stalled" => Tone::Bad,
            _ if self.is(ConditionType::Stalled) => Tone::Bad,
            _ if self.is(ConditionType::Ready) => Tone::Good,
            _ => Tone::Waiting,
        }
    }

    pub(crate) fn of_run(run: &TrainingRun) -> Self {
        let status = run.status.clone().unwrap_or_default();
        let mut facts = Facts::default();
        facts.add("model", status.model.as_ref().map(|model| model.short.clone()));
        facts.add("base", status.base.as_ref().map(|base| format!("{} from {}", base.short, base.source)));
        facts.add("reproduces", run.spec.reproduces.as_ref().map(|reproduces| reproduces.name.clone()));
        facts.add("kernels", status.computation.as_ref().map(|computation| computation.kernels.clone()));
        facts.add("device", status.device.as_ref().map(|device| device.name.clone()));
        facts.add("node", status.computation.as_ref().and_then(|computation| computation.node.clone()));
        facts.add("verdict", status.reproduction.as_ref().and_then(|reproduction| reproduction.bundle.clone()));
        facts.add("steps", status.progress.as_ref().map(|progress| progress.steps.clone()));
        facts
            .add("loss", status.progress.as_ref().and_then(|progress| progress.loss.as_ref()).map(ToString::to_string));
        facts.add("checkpoint", status.last_checkpoint.as_ref().map(|last| last.step.to_string()));
        facts.add(
            "attempts",
            status.work.attempts.filter(|attempts| *attempts > 1).map(|attempts| attempts.to_string()),
        );
        facts.add("configuration", status.config_digest.map(|digest| short(&digest.to_string())));
        Self {
            kind: Kind::TrainingRun,
            namespace: run.namespace().unwrap_or_default(),
            name: run.name_any(),
            phase: status.phase.map_or_else(|| "Pending".to_owned(), |phase| format!("{phase:?}")),
            ring: Some(run.spec.rollout_ring.to_string()),
            facts: facts.0,
            gates: Vec::new(),
            conditions: states(&status.conditions),
            blocked_by: Vec::new(),
            current: run.status.as_ref().map(|_| status.observed_generation == run.metadata.generation),
        }
    }

    pub(crate) fn of_evaluation(evaluation: &Evaluation) -> Self {
        let status = evaluation.status.clone().unwrap_or_default();
        let mut facts = Facts::default();
        facts.add("preset", Some(evaluation.spec.preset.clone()));
        facts.add("gates", status.gates_passed.clone());
        facts.add("model", status.model.as_ref().map(|model| model.short.clone()));
        facts.add("device", status.device.as_ref().map(|device| device.name.clone()));
        facts.add("evidence", status.evidence.map(|evidence| format!("{evidence:?}").to_lowercase()));
        facts.add("report", status.report_digest.map(|digest| short(&digest.to_string())));
        facts.add("page", status.page.as_ref().map(|page| format!("{}/{}", page.claim_name, page.path)));
        let pending = status.phase.map_or_else(|| "Pending".to_owned(), |phase| format!("{phase:?}"));
        let planned = evaluation.spec.gates.iter().map(|gate| {
            let limit = |name: &str, limit: &Option<codex_verdict::Decimal>| {
                limit.as_ref().map(|limit| format!("{name} {limit}")).unwrap_or_default()
            };
            let text = format!("{} {}{}", gate.metric, limit("at least", &gate.min), limit("at most", &gate.max));
            Gate { verdict: None, text }
        });
        let judged = status.gates.iter().map(|gate| Gate { verdict: Some(gate.verdict), text: gate.message.clone() });
        let gates = if status.gates.is_empty() { planned.collect() } else { judged.collect() };
        Self {
            kind: Kind::Evaluation,
            namespace: evaluation.namespace().unwrap_or_default(),
            name: evaluation.name_any(),
            phase: status.verdict.map_or(pending, |verdict| verdict.to_string()),
            ring: None,
            facts: facts.0,
            gates,
            conditions: states(&status.conditions),
            blocked_by: Vec::new(),
            current: evaluation.status.as_ref().map(|_| status.observed_generation == evaluation.metadata.generation),
        }
    }

    pub(crate) fn of_pod(pod: &ReasoningPod) -> Self {
        let status = pod.status.clone().unwrap_or_default();
        let mut facts = Facts::default();
        facts.add("ready", status.ready.clone());
        facts.add("model", status.model.clone());
        facts.add("verified by", status.verified.as_ref().map(|verified| verified.by.clone()));
        facts.add("device", status.device.as_ref().map(|device| device.name.clone()));
        facts.add("signed by", status.manifest.as_ref().map(|manifest| manifest.signer.clone()));
        let promotion = status.promotion.as_ref();
        facts.add("promotion", promotion.map(|promotion| short(&promotion.digest.to_string())));
        facts.add("promoted to", promotion.map(|promotion| promotion.ring.to_string()));
        facts.add("evidence", status.evidence.map(|evidence| format!("{evidence:?}").to_lowercase()));
        let signed: Vec<_> = status.sign_offs.iter().filter(|it| it.counts).map(|it| it.by.clone()).collect();
        facts.add("signed off by", (!signed.is_empty()).then(|| signed.join(", ")));
        facts.add("report", status.report_digest.map(|digest| short(&digest.to_string())));
        facts.add("url", status.url.clone());
        facts.add("serves", status.current.as_ref().map(|current| current.training_run.clone()));
        let redeploy = status.redeploy.as_ref();
        facts.add("next cycle", redeploy.and_then(|it| it.next_schedule_time.as_ref()).map(|time| time.0.to_string()));
        let overrides = redeploy.filter(|it| it.promoted > 0).map(|it| it.manual_overrides.to_string());
        facts.add("manual overrides", overrides);
        Self {
            kind: Kind::ReasoningPod,
            namespace: pod.namespace().unwrap_or_default(),
            name: pod.name_any(),
            phase: status.phase.map_or_else(|| "Pending".to_owned(), |phase| format!("{phase:?}")),
            ring: Some(pod.spec.rollout_ring.to_string()),
            facts: facts.0,
            gates: Vec::new(),
            conditions: states(&status.conditions),
            blocked_by: status.blocked_by,
            current: pod.status.as_ref().map(|_| status.observed_generation == pod.metadata.generation),
        }
    }
}

#[derive(Default)]
struct Facts(Vec<Fact>);

impl Facts {
    fn add(&mut self, name: &'static str, value: Option<String>) {
        self.0.extend(value.map(|value| Fact { name, value }));
    }
}

/// Returns the first twelve digits of a digest.
fn short(digest: &str) -> String {
    digest.strip_prefix("sha256:").unwrap_or(digest).chars().take(12).collect()
}

fn states(conditions: &[Condition]) -> Vec<State> {
    let state = |condition: &Condition| State {
        kind: condition.type_.clone(),
        status: condition.status.clone(),
        reason: condition.reason.clone(),
        message: condition.message.clone(),
    };
    conditions.iter().map(state).collect()
}
