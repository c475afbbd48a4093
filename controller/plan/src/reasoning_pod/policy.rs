//! What promotion policies and sign-offs say about a model, and about what is served. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use codex_crds::{ModelStatus, ReasoningPod, SignOff, SignOffStatus, annotation};
use codex_provenance::{ModelDigest, PromotionDigest, Sha256, attestation::AttestationKind, promotion};
use codex_verdict::policy::{
    Breach, Candidate, Demand, Earlier, Facts, Lineage, Policy, SignedOff, breaches, denials, divided, stated, told,
};
use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Pod, PodSpec},
};
use kube::ResourceExt;

use super::{
    observed::{ObservedReasoningPod, RecordedPromotion},
    parity,
    servers::keys,
    trust::Trust,
};
use crate::{
    evaluation::{gates::by_name, metrics::measured, proof::Proof},
    throttle::until,
};

/// The proofs of the Evaluations that an object names, by name.
type Proofs<'a> = BTreeMap<&'a str, Proof>;

/// What policies and sign-offs say.
#[derive(Clone, Debug, Default)]
pub(crate) struct Policies {
    /// The rules for the ring, as a statement names them.
    pub(crate) held: Vec<promotion::HeldPolicy>,
    /// The demands of these rules that the model does not meet, as far as they can be judged yet.
    pub(crate) unmet: Vec<Breach>,
    /// The entries of deny-lists that concern the model that would be served.
    pub(crate) denied: Vec<Breach>,
    /// The entries of deny-lists that concern what servers serve.
    pub(crate) revoked: Vec<Breach>,
    /// The entries of deny-lists that concern what a canary serves.
    pub(crate) canary_revoked: Vec<Breach>,
    /// Whether every demand can be judged.
    pub(crate) judged: bool,
    /// The earlier promotions that the rules require.
    pub(crate) earlier: Vec<promotion::Earlier>,
    /// The parity that the rules demand, as a statement names it.
    pub(crate) parity: Vec<promotion::Parity>,
    /// The gates that budgets of reads made stricter, as Evaluations passed them, by the name of the Evaluation.
    pub(crate) divided: BTreeMap<String, Vec<promotion::Divided>>,
    /// The sign-offs that count, as a statement names them.
    pub(crate) signed: Vec<promotion::SignOff>,
    /// Every SignOff that concerns the object.
    pub(crate) sign_offs: Vec<SignOffStatus>,
    /// The digest over the reports of all evaluations.
    pub(crate) report: Option<Sha256>,
}

impl Policies {
    /// `signer` is the key that would sign, if something has to be signed.
    pub(crate) fn of(
        observed: &ObservedReasoningPod,
        model: Option<&ModelStatus>,
        proofs: &Proofs<'_>,
        trust: Trust<'_>,
        signer: Option<Sha256>,
        now: Timestamp,
    ) -> Self {
        let object = &observed.object;
        let ring = object.spec.rollout_ring;
        let report = report(object, proofs);
        let (sign_offs, signed) = sign_offs(observed, model.map(|model| model.digest), proofs, report);
        let of_model: Vec<&RecordedPromotion> = observed
            .promotions
            .iter()
            .filter(|promoted| model.is_some_and(|model| promoted.lineage.model == Some(model.digest)))
            .filter(|promoted| counted(promoted, trust))
            .collect();
        let found = parity::found(observed, model.map(|model| model.digest), &of_model);
        let facts = Facts {
            ring,
            evaluations: candidates(observed),
            earlier: of_model.iter().map(|it| Earlier { ring: it.ring, since: it.since }).collect(),
            sign_offs: signed
                .iter()
                .map(|it| SignedOff { by: it.by.clone(), groups: it.groups.clone(), authenticated: it.authenticated })
                .collect(),
            parity: found.iter().map(|found| found.fact.clone()).collect(),
            // They are signed with the promotion. Those of a recorded one are verified with it.
            attestations: AttestationKind::ALL.into(),
            now,
        };
        let judged = report.is_some();
        let mut unmet = if judged {
            breaches(&observed.policies, &facts)
        } else {
            // The problems and how often they were read are known once the evaluations have reported.
            breaches(&without_problems(&observed.policies), &facts)
        };
        unmet.retain(|breach| match breach.demand {
            Demand::Rule | Demand::Evaluation | Demand::Denied | Demand::Signer | Demand::Attestation => true,
            Demand::Ring | Demand::Time | Demand::Parity => model.is_some(),
            Demand::SignOff => judged,
        });
        let policies = &observed.policies;
        let strict = |it: &Candidate| (it.name.clone(), divided(policies, ring, it));
        let divided: BTreeMap<_, _> = facts.evaluations.iter().filter(|_| judged).map(strict).collect();
        Self {
            divided,
            held: stated(policies, ring),
            unmet,
            denied: denials(policies, &target(observed, model, signer)),
            revoked: revoked(observed, served(observed)),
            canary_revoked: revoked(observed, served_by_canary(observed)),
            judged,
            earlier: required(policies, ring, &of_model),
            parity: parity::required(policies, ring, &found),
            signed,
            sign_offs,
            report,
        }
    }

    /// Adds to what a statement says about an evaluation which gates budgets of reads made stricter.
    pub(crate) fn with_divided(&self, mut evaluation: promotion::Evaluation) -> promotion::Evaluation {
        let divided = self.divided.get(&evaluation.name).cloned().unwrap_or_default();
        if let Some(read) = &mut evaluation.reads {
            read.divided = divided;
        }
        evaluation
    }

    /// Describes the confidence that budgets of reads made of that of gates; empty without a budget.
    pub(crate) fn applied(&self) -> String {
        let of = |divided: &promotion::Divided| format!("{} by {}", told(divided), divided.policy);
        let all: Vec<_> = self.divided.values().flatten().map(of).collect();
        if all.is_empty() { String::new() } else { format!("; reads.budget applied {}", all.join(", ")) }
    }

    /// Returns when a demand is met without a change.
    pub(crate) fn due(&self, now: Timestamp) -> Option<Duration> {
        let due = self.unmet.iter().filter_map(|breach| breach.due).min()?;
        Some(until(now, due))
    }
}

fn without_problems(policies: &[Policy]) -> Vec<Policy> {
    let mut policies = policies.to_vec();
    let rules = policies.iter_mut().flat_map(|policy| &mut policy.spec.rules);
    for template in rules.flat_map(|rule| &mut rule.required_evaluations) {
        (template.problems_sha256, template.reads) = (None, None);
    }
    policies
}

fn candidates(observed: &ObservedReasoningPod) -> Vec<Candidate> {
    let named = observed.object.spec.evaluations.iter().filter_map(|name| observed.evaluations.get(name));
    named
        .map(|evaluation| {
            let status = evaluation.status.as_ref();
            let data = status.map(|status| by_name(&status.data_digests)).unwrap_or_default();
            let read = status.and_then(|status| u64::try_from(status.reads.as_ref()?.number).ok());
            let metrics = status.and_then(|status| measured(&status.metrics)).unwrap_or_default();
            Candidate::new(evaluation.name_any(), evaluation.spec.preset.clone(), &evaluation.spec.gates, &data)
                .measured(read, metrics)
        })
        .collect()
}

/// Returns the digest over the reports of all evaluations, which a sign-off names; `None` until all have passed.
fn report(object: &ReasoningPod, proofs: &Proofs<'_>) -> Option<Sha256> {
    let reports: Option<Vec<Sha256>> =
        object.spec.evaluations.iter().map(|name| proofs.get(name.as_str()).map(|proof| proof.report.0)).collect();
    let mut reports = reports?;
    reports.sort_unstable();
    match reports[..] {
        [] => None,
        [one] => Some(one),
        _ => Some(Sha256::of(reports.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))),
    }
}

/// Whether the key that signed a promotion was trusted when the promotion was recorded, and is not denied now. What a key
/// promoted before it expired remains promoted.
fn counted(promoted: &RecordedPromotion, trust: Trust<'_>) -> bool {
    let key = promoted.lineage.key.as_ref().and_then(|key| key.parse().ok());
    key.is_none_or(|key| trust.check_at(key, promoted.since).is_ok())
}

/// Returns where the model comes from that would be served, and the key that would sign it.
fn target(observed: &ObservedReasoningPod, model: Option<&ModelStatus>, signer: Option<Sha256>) -> Lineage {
    let status = observed.run.as_ref().and_then(|run| run.status.as_ref());
    let trained = status.into_iter().flat_map(|status| &status.data_digests).map(|file| file.sha256);
    let judged = observed.evaluations.values().filter_map(|evaluation| evaluation.status.as_ref());
    let judged = judged.flat_map(|status| &status.data_digests).map(|file| file.sha256);
    Lineage {
        model: model.map(|model| model.digest),
        base: status.and_then(|status| status.base.as_ref()).map(|base| base.digest),
        data: trained.chain(judged).collect(),
        key: signer.map(|key| key.to_string()),
    }
}

/// Returns the entries of deny-lists that concern what is served.
fn revoked(observed: &ObservedReasoningPod, served: BTreeSet<Served>) -> Vec<Breach> {
    let mut found: Vec<Breach> = Vec::new();
    for Served { model, promotion, keys } in served {
        let mut lineages = vec![recorded(observed, model)];
        let keys = if keys.is_empty() { signers(observed, model) } else { keys };
        lineages.extend(keys.into_iter().map(|key| Lineage {
            model: Some(model),
            key: Some(key),
            ..Lineage::default()
        }));
        // A promotion may have been signed again since: what counts are the keys that the servers accept.
        let bundles = observed.promotions.iter().filter(|it| Some(it.digest) == promotion);
        lineages.extend(bundles.map(|it| Lineage { key: None, ..it.lineage.clone() }));
        for breach in lineages.iter().flat_map(|lineage| denials(&observed.policies, lineage)) {
            if !found.contains(&breach) {
                found.push(breach);
            }
        }
    }
    found
}

/// What servers serve.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Served {
    model: ModelDigest,
    promotion: Option<PromotionDigest>,
    /// The fingerprints of the keys that the servers accept.
    keys: BTreeSet<String>,
}

impl Served {
    /// Returns what the annotations and the pod template of a Deployment or a pod name.
    fn of(annotations: &BTreeMap<String, String>, template: Option<&PodSpec>) -> Option<Self> {
        Some(Self {
            model: annotations.get(annotation::MODEL_DIGEST)?.parse().ok()?,
            promotion: annotations.get(annotation::PROMOTION_DIGEST).and_then(|digest| digest.parse().ok()),
            keys: keys(template).iter().map(ToString::to_string).collect(),
        })
    }

    fn of_all<'a>(deployment: Option<&Deployment>, pods: impl Iterator<Item = &'a Pod>) -> BTreeSet<Self> {
        let pods = pods.filter_map(|pod| Self::of(pod.annotations(), pod.spec.as_ref()));
        let deployment = deployment.into_iter().filter_map(|live| {
            Self::of(live.annotations(), live.spec.as_ref().and_then(|spec| spec.template.spec.as_ref()))
        });
        deployment.chain(pods).collect()
    }
}

/// Returns what a canary serves.
fn served_by_canary(observed: &ObservedReasoningPod) -> BTreeSet<Served> {
    Served::of_all(observed.canary.as_ref(), observed.canary_pods.iter())
}

/// Returns what servers serve: those of the Deployment and every pod, and what the status records if the template was modified.
fn served(observed: &ObservedReasoningPod) -> BTreeSet<Served> {
    let pods = observed.pods.iter().chain(&observed.former_pods);
    let mut served = Served::of_all(observed.deployment.as_ref(), pods);
    if observed.tampered
        && let Some(status) = observed.object.status.as_ref().filter(|_| observed.seal == crate::StatusSeal::Valid)
        && let Some(manifest) = &status.manifest
    {
        served.insert(Served {
            model: manifest.digest,
            promotion: status.promotion.as_ref().map(|promotion| promotion.digest),
            keys: signers(observed, manifest.digest),
        });
    }
    served
}

/// Returns the first digits of the fingerprints of the keys that signed a served model, as the status records them.
fn signers(observed: &ObservedReasoningPod, model: ModelDigest) -> BTreeSet<String> {
    let status = observed.object.status.as_ref().filter(|_| observed.seal == crate::StatusSeal::Valid);
    let Some(status) = status.filter(|status| status.manifest.as_ref().is_some_and(|it| it.digest == model)) else {
        return BTreeSet::new();
    };
    let manifest = status.manifest.iter().map(|manifest| manifest.signer.clone());
    manifest.chain(status.promotion.iter().filter_map(|promotion| promotion.signer.clone())).collect()
}

/// Returns what the statuses say about where a served model comes from.
fn recorded(observed: &ObservedReasoningPod, model: ModelDigest) -> Lineage {
    let mut lineage = Lineage { model: Some(model), ..Lineage::default() };
    let run = observed.run.as_ref().and_then(|run| run.status.as_ref());
    if let Some(run) = run.filter(|run| run.model.as_ref().is_some_and(|trained| trained.digest == model)) {
        lineage.base = run.base.as_ref().map(|base| base.digest);
        lineage.data = run.data_digests.iter().map(|file| file.sha256).collect();
    }
    lineage
}

/// Returns the earliest promotion of the model in each ring that a rule for `ring` requires.
fn required(
    policies: &[Policy],
    ring: codex_verdict::Ring,
    of_model: &[&RecordedPromotion],
) -> Vec<promotion::Earlier> {
    let rings: BTreeSet<_> = policies
        .iter()
        .filter_map(|policy| policy.rule(ring)?.requires.as_ref().map(|required| required.ring))
        .collect();
    rings
        .into_iter()
        .filter_map(|ring| of_model.iter().filter(|it| it.ring == ring).min_by_key(|it| (it.since, it.digest)))
        .map(|it| promotion::Earlier {
            ring: it.ring.name().to_owned(),
            promotion: it.digest,
            since: it.since.to_string(),
        })
        .collect()
}

/// Returns the SignOffs that concern an object, and those that count.
fn sign_offs(
    observed: &ObservedReasoningPod,
    model: Option<ModelDigest>,
    proofs: &Proofs<'_>,
    report: Option<Sha256>,
) -> (Vec<SignOffStatus>, Vec<promotion::SignOff>) {
    let namespace = observed.object.namespace().unwrap_or_default();
    let (mut all, mut counted) = (Vec::new(), Vec::new());
    for object in &observed.sign_offs {
        let spec = &object.spec;
        let created = object.metadata.creation_timestamp.as_ref().map(|time| time.0);
        let authenticated = spec.authenticated && observed.admission.protected_since(created, &namespace).is_ok();
        let void = void(observed, object, model, proofs, report);
        if void.is_none() {
            counted.push(promotion::SignOff {
                name: object.name_any(),
                uid: object.uid().unwrap_or_default(),
                by: spec.by.clone(),
                groups: spec.groups.clone(),
                authenticated,
                reason: spec.reason.clone(),
                report_digest: spec.report_digest,
            });
        }
        let counts = void.is_none();
        all.push(SignOffStatus { name: object.name_any(), by: spec.by.clone(), authenticated, counts, void });
    }
    (all, counted)
}

/// Returns why a SignOff does not count.
fn void(
    observed: &ObservedReasoningPod,
    object: &SignOff,
    model: Option<ModelDigest>,
    proofs: &Proofs<'_>,
    report: Option<Sha256>,
) -> Option<String> {
    let spec = &object.spec;
    if object.metadata.deletion_timestamp.is_some() {
        return Some("it is being deleted".to_owned());
    }
    let ring = observed.object.spec.rollout_ring;
    if let Some(other) = spec.ring.filter(|signed| *signed != ring) {
        return Some(format!("it is for the ring {other}, and this ReasoningPod is in {ring}"));
    }
    let Some(model) = model else { return Some("there is no model yet".to_owned()) };
    if model != spec.model_digest {
        return Some(format!(
            "it names the model {}, and the model is now {}",
            spec.model_digest.short(),
            model.short()
        ));
    }
    let (found, of) = match &spec.evaluation {
        Some(name) => (proofs.get(name.as_str()).map(|proof| proof.report.0), format!("of Evaluation {name}")),
        None => (report, "over all Evaluations".to_owned()),
    };
    match found {
        None => Some(format!("there is no passed report {of} yet")),
        Some(found) if found != spec.report_digest => Some(format!(
            "it names the report {}, and the report {of} is now {}",
            spec.report_digest.short(),
            found.short()
        )),
        Some(_) => None,
    }
}
