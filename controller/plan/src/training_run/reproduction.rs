//! A run that reproduces another one: what it is held to, and the verdict. Pure.
//!
//! Before its Job is created, the status pins what the other run recorded. From then on the other run does not matter: its deletion
//! changes neither the training nor the verdict.

use codex_crds::{
    BaseStatus, ComputationStatus, DataStatus, FileStatus, ModelStatus, Reason, ReproductionStatus, TrainingRun,
    TrainingRunSpec, TrainingRunStatus, WorkerPod,
};
use codex_provenance::{
    ConfigDigest, ModelDigest,
    promotion::Object,
    reproduction::{self, Computation, Evidence, Training},
};
use k8s_openapi::api::core::v1::{
    EnvVar, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PreferredSchedulingTerm,
};
use kube::ResourceExt;

use super::observed::ObservedTrainingRun;
use crate::{
    metadata::Component,
    text::truncate_chars,
    work::{WaitingForModel, WorkFailure, finished_model},
};

/// The field that names the run.
pub(crate) const FIELD: &str = "spec.reproduces.name";
/// The variable that limits the instruction set of kernels.
const MAX_CPU_ISA: &str = "CODEX_MAX_CPU_ISA";
/// The labels of Node Feature Discovery. The second one is on every node that it labels.
const INSTRUCTIONS: &str = "feature.node.kubernetes.io/cpu-cpuid.";
const LABELLED: &str = "feature.node.kubernetes.io/cpu-model.vendor_id";
const ARCHITECTURE: &str = "kubernetes.io/arch";
/// The characters of the reason that a status holds.
const MAX_REASON: usize = 2_000;

/// What a run that reproduces another one is held to.
#[derive(Debug)]
pub(crate) struct Reproduction<'a> {
    /// The name of the other run.
    pub(crate) name: &'a str,
    /// What the other run recorded, or what to wait for.
    pub(crate) target: Result<ReproductionStatus, WaitingForModel>,
    /// Whether the status has the target.
    pub(crate) is_pinned: bool,
    /// The settings of the pod, placed on a node of the right kind, another one where that is possible.
    pub(crate) worker: WorkerPod,
    /// The fields of the spec that must equal those of the other run, and do not.
    different: Vec<&'static str>,
    /// Whether the other run reproduces this one.
    circular: bool,
}

impl<'a> Reproduction<'a> {
    /// Returns what the run of an observation is held to; `None` without `spec.reproduces`. `status` is without the parts that
    /// were discarded.
    pub(crate) fn of(observed: &'a ObservedTrainingRun, status: &TrainingRunStatus) -> Option<Self> {
        let spec = &observed.object.spec;
        let name = spec.reproduces.as_ref()?.name.as_str();
        let other = observed.reproduced.as_ref();
        let pinned = status.reproduction.clone();
        let is_pinned = pinned.is_some();
        let target = pinned.map_or_else(|| recorded(other, observed), Ok);
        let of_target =
            other.filter(|other| target.as_ref().is_ok_and(|target| other.uid().as_ref() == Some(&target.uid)));
        let computation = target.as_ref().ok().and_then(|target| target.computation.as_ref());
        Some(Self {
            name,
            is_pinned,
            worker: computation.map_or_else(|| spec.pod.worker.clone(), |it| placed(&spec.pod.worker, it)),
            different: of_target.map(|other| different(spec, &other.spec)).unwrap_or_default(),
            circular: other
                .and_then(|other| other.spec.reproduces.as_ref())
                .is_some_and(|other| other.name == observed.object.name_any()),
            target,
        })
    }

    /// Returns a sentence if the spec is not that of a reproduction.
    pub(crate) fn invalid(&self) -> Option<String> {
        let name = self.name;
        if self.circular {
            return Some(format!(
                "{FIELD} and that of TrainingRun {name} name each other: create one of them without it"
            ));
        }
        let different = (!self.different.is_empty()).then(|| self.different.join(", "))?;
        Some(format!(
            "{different} must equal those of TrainingRun {name}, which {FIELD} names: create another TrainingRun with the same values"
        ))
    }

    /// Returns what the run waits for before its Job can be created, with the name of the other run.
    pub(crate) fn waiting(&self) -> Option<(&'a str, &WaitingForModel)> {
        self.target.as_ref().err().map(|waiting| (self.name, waiting))
    }

    /// Returns the reason if the other run cannot be repeated with the configuration `composed`, which matters only while the Job has to
    /// be created.
    pub(crate) fn impossible(&self, composed: Option<ConfigDigest>) -> Option<String> {
        let (target, name) = (self.target.as_ref().ok()?, self.name);
        let Some(computation) = &target.computation else {
            return Some(format!(
                "the status of TrainingRun {name} does not say which program and instructions computed its model: it was trained \
                 by an earlier version, or on a GPU"
            ));
        };
        if computation.mixed == Some(true) {
            return Some(format!(
                "the attempts of TrainingRun {name} computed with different programs or instructions, which no single run repeats"
            ));
        }
        let composed = composed.filter(|composed| *composed != target.config_digest)?;
        Some(format!(
            "this version of the controller composes the configuration {composed}, but TrainingRun {name} was trained with {}, and its \
             ConfigMap is gone",
            target.config_digest
        ))
    }

    /// Returns the configuration file of the other run, if this controller composes another one, and a ConfigMap still has it. The
    /// trainer computes its digest again.
    pub(crate) fn former_file(
        &self,
        composed: Option<ConfigDigest>,
        observed: &ObservedTrainingRun,
    ) -> Option<(ConfigDigest, String)> {
        let wanted = self.target.as_ref().ok()?.config_digest;
        let file = observed.reproduced_config.as_ref().filter(|file| file.contains(&wanted.to_string()))?;
        (composed != Some(wanted)).then(|| (wanted, file.clone()))
    }

    /// Returns the arguments of `codex train` that hold it to the target.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let Some(it) = self.target.as_ref().ok().and_then(|target| target.computation.as_ref()) else {
            return Vec::new();
        };
        let all = [
            ("--require-program", it.program.to_string()),
            ("--require-engine", it.engine.clone()),
            ("--require-kernels", it.kernels.clone()),
        ];
        all.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect()
    }

    /// Returns the variable that holds kernels to the instruction set of the target.
    pub(crate) fn variable(&self) -> Option<EnvVar> {
        let isa = instructions(self.target.as_ref().ok()?.computation.as_ref()?).1;
        Some(EnvVar { name: MAX_CPU_ISA.to_owned(), value: Some(isa.to_owned()), ..EnvVar::default() })
    }

    /// Returns the reason if a trainer read or computes something else than the other run did. What is not reported yet is `None`.
    pub(crate) fn deviation(
        &self,
        read: &[DataStatus],
        base: Option<&BaseStatus>,
        computation: Option<&ComputationStatus>,
    ) -> Option<String> {
        let (target, name) = (self.target.as_ref().ok()?, self.name);
        let data = read.iter().find_map(|file| {
            let then = target.data_digests.iter().find(|then| then.name == file.name)?.sha256;
            let (file, now) = (&file.name, file.sha256);
            (then != now)
                .then(|| format!("the data {file} has the SHA-256 {now} now, and had {then} for TrainingRun {name}"))
        });
        let base = base.filter(|base| target.base != Some(base.digest)).map(|base| {
            format!("the base is the model {} now, and was another one for TrainingRun {name}", base.digest)
        });
        let computes = |it: &ComputationStatus| (it.program, it.engine.clone(), it.kernels.clone());
        let other = computation
            .filter(|now| now.mixed == Some(true) || target.computation.as_ref().map(computes) != Some(computes(now)));
        let computed = other.map(|now| {
            format!(
                "the trainer computes with the program {}, the engine {} and the kernels {}, and not as TrainingRun {name} did: its \
                 word contradicts its arguments",
                now.program.short(), now.engine, now.kernels
            )
        });
        data.or(base).or(computed)
    }

    /// Returns the message about a failure of the Job which says that the recorded conditions cannot be had.
    pub(crate) fn excused(failure: &WorkFailure, has_started: bool) -> Option<String> {
        let of_inputs = [Reason::Unreproducible, Reason::DataMismatch, Reason::BaseMismatch].contains(&failure.reason);
        let without_node = failure.reason == Reason::DeadlineExceeded && !has_started && no_such_node(&failure.message);
        (of_inputs || without_node).then(|| failure.message.clone())
    }

    /// Returns `status.reproduction` of a run whose model is `model`, once it has one.
    pub(crate) fn status(
        &self,
        observed: &ObservedTrainingRun,
        model: Option<&ModelStatus>,
        unreproducible: Option<&str>,
        bundle: Option<String>,
    ) -> Option<ReproductionStatus> {
        let target = self.target.as_ref().ok()?.clone();
        let other = observed.reproduced.as_ref().filter(|other| other.uid().as_ref() == Some(&target.uid));
        let differs = model
            .filter(|model| model.digest != target.model)
            .and_then(|model| first_difference(&model.files, &finished_model(other?)?.files));
        Some(ReproductionStatus {
            first_difference: target.first_difference.or(differs),
            unreproducible: unreproducible.map(|why| truncate_chars(why, MAX_REASON)).or(target.unreproducible),
            bundle: bundle.or(target.bundle),
            ..target
        })
    }
}

/// Returns the path of the first file that is not the same in both models.
fn first_difference(own: &[FileStatus], other: &[FileStatus]) -> Option<String> {
    let differs = |file: &&FileStatus| !(own.contains(file) && other.contains(file));
    own.iter().chain(other).find(differs).map(|file| file.path.clone())
}

/// Returns the statement that the model of a run which reproduced another one was trained again; `None` if it was not, or the status
/// of the run does not say everything. The status must carry a valid seal.
pub fn statement(run: &TrainingRun) -> Option<reproduction::Reproduction> {
    let status = run.status.as_ref()?;
    let (target, model) = (status.reproduction.as_ref()?, finished_model(run)?);
    let own = status.computation.as_ref()?;
    let equal = model.digest == target.model && target.computation.is_some();
    let training =
        |name: &str, uid: &str, computation: &ComputationStatus, image: Option<&String>, attested| Training {
            run: Object { name: name.to_owned(), uid: uid.to_owned() },
            node: computation.node.clone(),
            image_id: image.cloned(),
            attested: attested == Some(true),
        };
    let original = &run.spec.reproduces.as_ref()?.name;
    equal.then_some(reproduction::Reproduction {
        model: model.digest,
        evidence: Evidence {
            namespace: run.namespace()?,
            config_digest: target.config_digest,
            data: status.data_digests.iter().map(|file| (file.name.clone(), file.sha256)).collect(),
            base: status.base.as_ref().map(|base| base.digest),
            computation: Computation { program: own.program, engine: own.engine.clone(), kernels: own.kernels.clone() },
            original: training(
                original,
                &target.uid,
                target.computation.as_ref()?,
                target.image_id.as_ref(),
                target.attested,
            ),
            again: training(&run.name_any(), &run.uid()?, own, status.work.image_id.as_ref(), status.attested),
        },
    })
}

/// Whether an obstacle of a pod is that no node is of the kind that it needs.
pub(crate) fn no_such_node(obstacle: &str) -> bool {
    obstacle.contains("node affinity") && !obstacle.contains("Insufficient")
}

/// Returns what the run that is reproduced records, or what to wait for.
fn recorded(
    other: Option<&TrainingRun>,
    observed: &ObservedTrainingRun,
) -> Result<ReproductionStatus, WaitingForModel> {
    let other = other.ok_or(WaitingForModel::Missing)?;
    if other.metadata.deletion_timestamp.is_some() {
        return Err(WaitingForModel::Deleting);
    }
    let model: ModelDigest = finished_model(other).ok_or_else(|| WaitingForModel::for_run(other))?.digest;
    let waiting = || WaitingForModel::Unfinished;
    let status = other.status.as_ref().ok_or_else(waiting)?;
    Ok(ReproductionStatus {
        uid: other.uid().unwrap_or_default(),
        model,
        config_digest: status.config_digest.ok_or_else(waiting)?,
        data_digests: status.data_digests.clone(),
        base: status.base.as_ref().map(|base| base.digest),
        computation: status.computation.clone(),
        image_id: status.work.image_id.clone(),
        image: image(other, observed),
        attested: status.attested,
        first_difference: None,
        unreproducible: None,
        bundle: None,
    })
}

/// Returns the image of another run: by the digest that its node reported, if that is one of the same repository. Nodes name images
/// that were loaded without a registry by other names.
fn image(other: &TrainingRun, observed: &ObservedTrainingRun) -> Option<String> {
    let named = match &other.spec.pod.image {
        Some(image) => image.clone(),
        None => observed.settings.image(Component::Trainer, &other.spec.pod.worker, None).ok()?.to_owned(),
    };
    let last = |name: &str| {
        let path = name.split('@').next().unwrap_or_default();
        let last = path.rsplit('/').next().unwrap_or_default();
        last.split(':').next().unwrap_or_default().to_owned()
    };
    let reported = other.status.as_ref()?.work.image_id.as_deref().unwrap_or_default();
    let reported = reported.rsplit("://").next().unwrap_or_default();
    let pinned = reported.contains("@sha256:") && last(reported) == last(&named);
    Some(if pinned { reported.to_owned() } else { named })
}

/// Returns the names of the fields that define the result and differ.
fn different(own: &TrainingRunSpec, other: &TrainingRunSpec) -> Vec<&'static str> {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let fields = [
        ("spec.template", own.template == other.template),
        ("spec.templateFrom", own.template_from == other.template_from),
        ("spec.overrides", own.overrides == other.overrides),
        ("spec.config", text(&own.config) == text(&other.config)),
        ("spec.seed", own.seed == other.seed),
        ("spec.data", own.data == other.data),
        ("spec.base", own.base == other.base),
    ];
    fields.into_iter().filter(|(_, equal)| !equal).map(|(field, _)| field).collect()
}

/// Returns the architecture of a computation as nodes name it, and its instruction set as the trainer names it.
fn instructions(it: &ComputationStatus) -> (&str, &str) {
    let (architecture, isa) = it.kernels.split_once(' ').unwrap_or((&it.kernels, "portable"));
    let architecture = match architecture {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    (architecture, if it.engine.ends_with("-amx") { "amx" } else { isa })
}

/// Returns the settings of a pod that has to compute as another one did: on a node of its architecture and, where Node Feature Discovery
/// labels nodes, with its instructions; rather on another node than on the same.
fn placed(worker: &WorkerPod, it: &ComputationStatus) -> WorkerPod {
    let requirement = |key: &str, operator: &str, values: &[&str]| NodeSelectorRequirement {
        key: key.to_owned(),
        operator: operator.to_owned(),
        values: (!values.is_empty()).then(|| values.iter().map(|value| (*value).to_owned()).collect()),
    };
    let (architecture, isa) = instructions(it);
    let of_arch = requirement(ARCHITECTURE, "In", &[architecture]);
    let feature = match (it.engine.as_str(), isa) {
        (_, "amx") => Some("AMXBF16"),
        ("cpu-bf16-avx512", _) => Some("AVX512BF16"),
        (_, "avx512") => Some("AVX512F"),
        (_, "avx2") => Some("AVX2"),
        _ => None,
    };
    let ways = match feature {
        Some(feature) => vec![
            vec![of_arch.clone(), requirement(&format!("{INSTRUCTIONS}{feature}"), "Exists", &[])],
            vec![of_arch, requirement(LABELLED, "DoesNotExist", &[])],
        ],
        None => vec![vec![of_arch]],
    };
    let mut affinity = worker.affinity.clone().unwrap_or_default();
    let mut of_nodes = affinity.node_affinity.take().unwrap_or_default();
    let own = of_nodes.required_during_scheduling_ignored_during_execution.take();
    let own = own.map(|own| own.node_selector_terms).filter(|terms| !terms.is_empty());
    let own = own.unwrap_or_else(|| vec![NodeSelectorTerm::default()]);
    let both = |term: &NodeSelectorTerm, way: &Vec<NodeSelectorRequirement>| {
        let mut term = term.clone();
        term.match_expressions.get_or_insert_default().extend(way.iter().cloned());
        term
    };
    let terms = own.iter().flat_map(|term| ways.iter().map(move |way| both(term, way))).collect();
    let elsewhere = it.node.as_deref().map(|node| PreferredSchedulingTerm {
        weight: 100,
        preference: NodeSelectorTerm {
            match_fields: Some(vec![requirement("metadata.name", "NotIn", &[node])]),
            ..NodeSelectorTerm::default()
        },
    });
    let mut preferred = of_nodes.preferred_during_scheduling_ignored_during_execution.take().unwrap_or_default();
    preferred.extend(elsewhere);
    affinity.node_affinity = Some(NodeAffinity {
        required_during_scheduling_ignored_during_execution: Some(NodeSelector { node_selector_terms: terms }),
        preferred_during_scheduling_ignored_during_execution: Some(preferred).filter(|terms| !terms.is_empty()),
    });
    WorkerPod { affinity: Some(affinity), ..worker.clone() }
}
