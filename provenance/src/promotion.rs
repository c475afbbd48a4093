//! The promotion statement: the evidence that allows a model in a ring. Pure.
//!
//! It is an in-toto statement with a predicate type of this project. Its subject is the model digest. It holds what a verifier
//! needs to judge again: each gate with its limits, and the measurements. Times are those at which the evidence was complete,
//! not the time of signing, so that the same evidence gives the same bytes and the same [`PromotionDigest`]. Decimals are
//! strings, so that no reader rounds them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    canonical::canonical,
    digest::{
        ConfigDigest, DataDigest, GatesDigest, ModelDigest, OmsPayloadDigest, PromotionDigest, ReportDigest, Sha256,
    },
    evidence::EvidenceStrength,
    golden::Golden,
    statement,
};

/// The predicate type of promotion statements.
pub const PREDICATE_TYPE: &str = "https://codex-ml.dev/promotion/v2";
/// The predicate type of statements that hold no limits and no measurements.
const FORMER: &str = "https://codex-ml.dev/promotion/v1";

/// A statement that allows a model in a ring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Promotion {
    /// The model.
    pub model: ModelDigest,
    /// The ring and the evidence.
    pub reasons: Reasons,
}

/// The predicate of a promotion statement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Reasons {
    /// Name of the ring that the model is allowed in, such as `0D_base_`.
    pub ring: String,
    /// Namespace of the TrainingRun and the Evaluations.
    pub namespace: String,
    /// Digest of the payload of the OMS bundle over the files of the model.
    pub oms_payload: OmsPayloadDigest,
    /// The training of the model.
    pub training: Training,
    /// Evaluations that passed, ordered by name.
    pub evaluations: Vec<Evaluation>,
    /// Policies with a rule for the ring, all of which held when the promotion was signed. Absent if no policy has one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<HeldPolicy>,
    /// Earlier promotions of the model that these rules require. Absent if no rule requires one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier: Vec<Earlier>,
    /// Sign-offs for exactly this model and these reports, when the promotion was signed. Absent if nobody has signed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sign_offs: Vec<SignOff>,
    /// Parity that shadows with this model had proved, as these rules demand, when the promotion was signed. Absent if no rule
    /// demands it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parity: Vec<Parity>,
}

/// A policy whose rule for the ring held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeldPolicy {
    /// Kind of the policy: ClusterPromotionPolicy or PromotionPolicy.
    pub kind: String,
    /// Name of the policy.
    pub name: String,
    /// Uid of the policy.
    pub uid: String,
    /// SHA-256 of the canonical JSON of its rule for the ring.
    pub rule: Sha256,
}

/// An earlier promotion of the same model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Earlier {
    /// Ring of the promotion.
    pub ring: String,
    /// Digest of its statement.
    pub promotion: PromotionDigest,
    /// Time at which its ConfigMap was created (RFC 3339).
    pub since: String,
}

/// The comparison of a shadow that serves the same model with the ReasoningPod whose requests it was given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Parity {
    /// The ReasoningPod that was the shadow.
    pub shadow: Object,
    /// Name of the ReasoningPod that it was compared with.
    pub of: String,
    /// Model of that ReasoningPod. Absent if it was not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of_model: Option<ModelDigest>,
    /// Number of requests that were compared.
    pub compared: u64,
    /// Number of compared requests with the same final answer.
    pub agreed: u64,
    /// Greatest share of requests that the shadow may answer differently, as its spec stated it.
    pub max_divergence: String,
    /// Upper bound of the share of requests that it answers differently, by Clopper and Pearson with confidence 0.99, rounded up.
    pub bound: String,
}

/// The sign-off of a person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SignOff {
    /// Name of the SignOff.
    pub name: String,
    /// Uid of the SignOff.
    pub uid: String,
    /// User who signed.
    pub by: String,
    /// Groups of the user that the SignOff names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// Whether the API server authenticated the user when the SignOff was created, under admission policies that were in place.
    /// Otherwise another account, such as one of GitOps, created it for the user.
    pub authenticated: bool,
    /// Why the user signed.
    pub reason: String,
    /// Digest of the report that the sign-off names.
    pub report_digest: Sha256,
}

/// A Kubernetes object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Object {
    /// Name of the object.
    pub name: String,
    /// Uid of the object.
    pub uid: String,
}

/// The training of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Training {
    /// The TrainingRun.
    pub run: Object,
    /// What the controller knows of the training, and what it believes.
    pub attested: Attested,
    /// What the trainer said of itself. Its image may be any that the author of the TrainingRun chose. Absent if the controller's
    /// list of attested images names the image; `attested` then holds the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reported: Option<Reported>,
    /// The model from which the training started; absent if it started from initial weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<Base>,
    /// The device that computed the model, as the trainer said; attested if `data` is. Absent if the controller recorded none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<Device>,
}

impl Training {
    /// Returns the digests of the data files that the trainer read, by name.
    pub fn data(&self) -> Option<&BTreeMap<String, DataDigest>> {
        self.reported.as_ref().map(|reported| &reported.data).or(self.attested.data.as_ref())
    }

    /// Whether what the trainer said is attested: the controller's list of attested images names its image.
    pub fn is_attested(&self) -> bool {
        self.reported.is_none()
    }
}

/// What the controller knows of a training, and what it believes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Attested {
    /// Digest of the resolved configuration that the trainer was given.
    pub config_digest: ConfigDigest,
    /// Image that ran, as the node reported it. Empty, and absent from the statement, if the pod was gone before the controller
    /// observed it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub image_id: String,
    /// Time at which the controller recorded the model (RFC 3339), if its status records it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<String>,
    /// Digests of the data files that the trainer read, by name, if the controller's list of attested images names its image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<BTreeMap<String, DataDigest>>,
}

/// What a trainer said of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Reported {
    /// Digests of the data files that it read, by name.
    pub data: BTreeMap<String, DataDigest>,
}

/// The model from which a training started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Base {
    /// Digest of the model.
    pub model: ModelDigest,
    /// Where it came from, such as a path on a claim, or a repository of a model hub and its commit, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Fingerprint of the key whose signature of the base the TrainingRun required, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signer: Option<Sha256>,
}

/// The device that computed a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Device {
    /// Product name of the GPU, or model name of the processor.
    pub name: String,
    /// Code path of the engine, such as `cpu-f32` or `candle-cuda-bf16`.
    pub engine: String,
    /// Version of the GPU's driver. Absent for a processor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// Memory of the GPU in bytes. Absent for a processor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
}

/// An evaluation that passed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Evaluation {
    /// Name of the Evaluation.
    pub name: String,
    /// Uid of the Evaluation.
    pub uid: String,
    /// Preset of the Evaluation, such as `cot-lite`.
    pub preset: String,
    /// Digest of the resolved configuration, which every report named. Absent if it was judged by a controller that did not
    /// record it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_digest: Option<ConfigDigest>,
    /// Digest of the reported measurements.
    pub report_digest: ReportDigest,
    /// Digest of the gates.
    pub gates_digest: GatesDigest,
    /// Digests of the data files, by name.
    pub data: BTreeMap<String, DataDigest>,
    /// Image that ran, as the node reported it. Empty, and absent from the statement, if the pod was gone before the controller
    /// observed it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub image_id: String,
    /// Time at which the verdict was reached (RFC 3339).
    pub completed_at: String,
    /// Whether admission policies protected the evaluation. Absent if that was not observed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence: Option<EvidenceStrength>,
    /// Digest of the file with the outcome of each problem, from which the measurements can be computed again. Absent if the
    /// evaluator wrote none, or an earlier controller judged it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcomes: Option<DataDigest>,
    /// What the model generated for a few of the problems, which servers reproduce before they are ready. `report_digest` covers
    /// it. Absent if the evaluator recorded nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub golden_tokens: Option<Golden>,
    /// Every reported measurement, by metric. `report_digest` covers them.
    pub metrics: BTreeMap<String, Measured>,
    /// Gates and their verdicts, in the order of the spec.
    pub gates: Vec<Gate>,
    /// Evaluations that the gates compare with. Absent if no gate compares.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub references: Vec<Reference>,
    /// Which read of its problems the verdict was. Absent if it was judged by a controller that did not count reads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reads: Option<Read>,
}

/// A read of a set of problems by a verdict, as the ledger of the controller counted it before the verdict was published.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Read {
    /// Digest of the problems, the one in `data`.
    pub problems: DataDigest,
    /// Number of the read among all verdicts that read these problems, from 1.
    pub number: u64,
    /// Gates of policies whose errors a budget of reads divided, as they passed once more. Absent if no policy has a budget.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub divided: Vec<Divided>,
}

/// A gate of a policy whose error a budget of reads divided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Divided {
    /// Kind and name of the policy, which is one of `policies`.
    pub policy: String,
    /// Name of its requirement.
    pub requirement: String,
    /// Number of reads that may promote.
    pub budget: u32,
    /// Confidence that the policy asks of all these reads together.
    pub confidence: String,
    /// The gate at the confidence that was applied to this read: at least 1 - (1 - confidence) / budget.
    pub gate: Gate,
}

/// An evaluation of the same problems that gates compare with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Reference {
    /// Name of the Evaluation.
    pub name: String,
    /// Uid of the Evaluation.
    pub uid: String,
    /// Digest of the model that it scored.
    pub model: ModelDigest,
    /// Digest of its file of outcomes, which the evaluation that compares was given. `data` of that evaluation has it as
    /// `reference-<name>`.
    pub outcomes: DataDigest,
    /// Its measurements, by metric.
    pub metrics: BTreeMap<String, Measured>,
}

/// A measurement, exactly as it was reported. Numbers that are not counts are texts that parse to the reported float; they are
/// absent if it was not finite.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum Measured {
    /// A share of items.
    Share {
        /// Number of items that count as a success.
        successes: u64,
        /// Number of items.
        n: u64,
    },
    /// Comparisons with a baseline.
    Duel {
        /// Number of comparisons won.
        wins: u64,
        /// Number of comparisons tied.
        ties: u64,
        /// Number of comparisons lost.
        losses: u64,
    },
    /// A mean of values from 0 to 1.
    Mean {
        /// Number of items.
        n: u64,
        /// Sum of the values.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sum: Option<String>,
        /// Sum of the squared values.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sum_of_squares: Option<String>,
    },
    /// Differences from a reference, from -1 to 1.
    Difference {
        /// Number of items.
        n: u64,
        /// Sum of the differences.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sum: Option<String>,
        /// Sum of the squared differences.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sum_of_squares: Option<String>,
    },
    /// A mean over clusters of items.
    ClusterMean {
        /// Number of clusters.
        n: u64,
        /// Number of items in all clusters.
        items: u64,
        /// Sum of the clusters' values, each the mean of its items.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sum: Option<String>,
        /// Sum of the clusters' squared values.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sum_of_squares: Option<String>,
    },
    /// Differences from a reference over clusters of items.
    ClusterDifference {
        /// Number of clusters.
        n: u64,
        /// Number of items in all clusters.
        items: u64,
        /// Sum of the clusters' differences, each the mean of its items.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sum: Option<String>,
        /// Sum of the clusters' squared differences.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sum_of_squares: Option<String>,
    },
    /// A number whose bounds come from drawing clusters of items.
    ClusterEstimate {
        /// The number.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        value: Option<String>,
        /// One-sided lower bound.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        lower: Option<String>,
        /// One-sided upper bound.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        upper: Option<String>,
        /// Number of clusters.
        n: u64,
        /// Number of items in all clusters.
        items: u64,
        /// One-sided confidence of each bound.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        confidence: Option<String>,
        /// How the bounds were computed, such as `bootstrap`.
        method: String,
    },
    /// A number with its own bounds.
    Estimate {
        /// The number.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        value: Option<String>,
        /// One-sided lower bound.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        lower: Option<String>,
        /// One-sided upper bound.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        upper: Option<String>,
        /// Number of items.
        n: u64,
        /// Confidence level of each bound.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        confidence: Option<String>,
        /// Method that computed the bounds.
        method: String,
    },
}

/// A gate and its verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Gate {
    /// Name of the metric.
    pub metric: String,
    /// Lowest value that passes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<String>,
    /// Highest value that passes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<String>,
    /// Evaluation than which the model must be better.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub better_than: Option<Comparison>,
    /// Evaluation than which the model must not be worse.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_worse_than: Option<Comparison>,
    /// Confidence level of the one-sided bounds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confidence: Option<String>,
    /// Minimum number of scored items.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_samples: Option<u64>,
    /// Measured value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Number of scored items.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n: Option<u64>,
    /// One-sided lower bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lower: Option<String>,
    /// One-sided upper bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upper: Option<String>,
    /// One-sided p-value of McNemar's exact test.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p_value: Option<String>,
    /// Whether the bounds are approximate, because they are bootstrapped.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub approximate: bool,
    /// Verdict, such as `Passed`.
    pub verdict: String,
}

/// The evaluation that a gate compares with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Comparison {
    /// Name of the Evaluation, one of the references.
    pub evaluation: String,
    /// Least or most difference; 0 if it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
}

impl Promotion {
    /// Returns the bytes to sign. Evaluations are sorted by name and uid, so that their order in a spec does not matter.
    pub fn payload(&self) -> Vec<u8> {
        let mut reasons = self.reasons.clone();
        reasons.evaluations.sort_by(|a, b| (&a.name, &a.uid).cmp(&(&b.name, &b.uid)));
        reasons.sign_offs.sort_by(|a, b| (&a.name, &a.uid).cmp(&(&b.name, &b.uid)));
        reasons.parity.sort_by(|a, b| (&a.shadow.name, &a.shadow.uid).cmp(&(&b.shadow.name, &b.shadow.uid)));
        statement::write("model", self.model.0, PREDICATE_TYPE, &reasons)
    }

    /// Returns the digest of [`Promotion::payload`].
    pub fn digest(&self) -> PromotionDigest {
        payload_digest(&self.payload())
    }

    /// Reads the payload of a verified bundle.
    ///
    /// # Errors
    /// Fails if the payload is not a promotion statement.
    pub fn read(payload: &[u8]) -> Result<Self, String> {
        if statement::predicate_type(payload).as_deref() == Some(FORMER) {
            return Err(format!(
                "its predicate type is {FORMER:?}, which holds neither limits nor measurements to check: update the controller, \
                 which then signs a new one; status.promotion of the ReasoningPod names its ConfigMap"
            ));
        }
        let (model, reasons): (_, Reasons) = statement::read(payload, PREDICATE_TYPE)?;
        if reasons.training.reported.is_some() == reasons.training.attested.data.is_some() {
            return Err("it must state the data of the training either as reported or as attested".to_owned());
        }
        Ok(Self { model: ModelDigest(model), reasons })
    }

    /// The key of this promotion. The name of its bundle derives from [`PromotionKey::digest`].
    pub fn key(&self) -> PromotionKey {
        let evaluations = &self.reasons.evaluations;
        PromotionKey {
            predicate_type: PREDICATE_TYPE,
            model: self.model,
            ring: self.reasons.ring.clone(),
            evaluations: evaluations.iter().map(|passed| (passed.report_digest, passed.gates_digest)).collect(),
            policies: self.reasons.policies.iter().map(PolicyKey::of).collect(),
        }
    }
}

/// Identifies a promotion: the predicate type, the model, the ring, the report and gates digests of its evaluations, and the rules
/// of policies that held. Names and uids of evaluations, their times and reads, images, sign-offs and numbers of parity do not
/// count. A controller that writes another predicate type looks for its bundles under other names, and so signs every promotion
/// again after an upgrade.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PromotionKey {
    /// The predicate type, [`PREDICATE_TYPE`].
    pub predicate_type: &'static str,
    /// The model.
    pub model: ModelDigest,
    /// The ring.
    pub ring: String,
    /// Report and gates of each evaluation, in any order.
    pub evaluations: Vec<(ReportDigest, GatesDigest)>,
    /// The rules of policies for the ring, in any order. Absent if there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<PolicyKey>,
}

/// Identifies the rule of a policy. A policy that is created again with the same rule is the same.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct PolicyKey {
    /// Kind of the policy.
    pub kind: String,
    /// Name of the policy.
    pub name: String,
    /// SHA-256 of its rule.
    pub rule: Sha256,
}

impl PolicyKey {
    /// Returns the key of a rule that held.
    pub fn of(held: &HeldPolicy) -> Self {
        Self { kind: held.kind.clone(), name: held.name.clone(), rule: held.rule }
    }
}

impl PromotionKey {
    /// SHA-256 of its canonical JSON; the order of the evaluations does not count.
    pub fn digest(&self) -> Sha256 {
        let mut sorted = self.clone();
        sorted.evaluations.sort_unstable();
        sorted.policies.sort_unstable();
        Sha256::of(canonical(&sorted))
    }
}

/// Returns the digest of the payload of a promotion statement.
pub fn payload_digest(payload: &[u8]) -> PromotionDigest {
    PromotionDigest(Sha256::of(payload))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_promotion_of_another_type_has_another_name() {
        let key = PromotionKey {
            predicate_type: PREDICATE_TYPE,
            model: ModelDigest(Sha256::of("model")),
            ring: "main".to_owned(),
            evaluations: vec![(ReportDigest(Sha256::of("report")), GatesDigest(Sha256::of("gates")))],
            policies: Vec::new(),
        };
        assert_ne!(key.digest(), PromotionKey { predicate_type: FORMER, ..key.clone() }.digest());
        let rule = |text: &str| PolicyKey {
            kind: "PromotionPolicy".to_owned(),
            name: "team".to_owned(),
            rule: Sha256::of(text),
        };
        let under =
            |rules: &[&str]| PromotionKey { policies: rules.iter().map(|text| rule(text)).collect(), ..key.clone() };
        assert_ne!(key.digest(), under(&["a"]).digest());
        assert_ne!(under(&["a"]).digest(), under(&["b"]).digest());
        assert_eq!(under(&["a", "b"]).digest(), under(&["b", "a"]).digest());
    }

    #[test]
    fn a_measurement_is_read_strictly() {
        let read = serde_json::from_str::<Measured>;
        let share = r#"{"kind":"share","successes":9,"n":10}"#;
        assert_eq!(serde_json::to_string(&read(share).unwrap()).unwrap(), share);
        let mean = r#"{"kind":"mean","n":3,"sum":"1e0","sumOfSquares":"5e-1"}"#;
        assert_eq!(serde_json::to_string(&read(mean).unwrap()).unwrap(), mean);
        for wrong in [
            r#"{"kind":"share","successes":9,"n":10,"wins":1}"#,
            r#"{"kind":"share","successes":9}"#,
            r#"{"kind":"mean","n":3,"sum":1.0}"#,
            r#"{"kind":"banana","n":3}"#,
        ] {
            read(wrong).unwrap_err();
        }
    }
}
