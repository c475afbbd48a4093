//! What a promotion policy demands, as its spec states it. `PromotionPolicy` and `ClusterPromotionPolicy` share it. Pure.

use codex_provenance::{DataDigest, Identity, IdentityPattern, ModelDigest, Sha256, attestation::AttestationKind};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Decimal, GateSpec, Ring, cel, decimal, policy::MAX_PERIOD};

/// The most rules of a policy: one for each ring.
pub const MAX_RULES: usize = Ring::ALL.len();
/// The most templates of required evaluations in a rule.
pub const MAX_TEMPLATES: usize = 8;
/// The most gates of a template.
pub const MAX_TEMPLATE_GATES: usize = 16;
/// The most names in `signOffs.by` and in `signOffs.byGroups`.
pub const MAX_SIGNERS: usize = 32;
/// The most digests in a list of `denied`.
pub const MAX_DENIED: usize = 256;
/// The longest issuer or subject of an identity.
pub const MAX_IDENTITY: usize = 1024;
/// The longest name of a user or group.
pub const MAX_USER: usize = 256;
/// The largest least number of requests that parity may need.
pub const MAX_PARITY_REQUESTS: u32 = 1_000_000;
/// The largest budget of reads.
pub const MAX_READS: u32 = 10_000;

/// What a policy demands and denies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicySpec {
    /// Demands, at most one rule for each ring.
    #[serde(default)]
    pub rules: Vec<PolicyRule>,
    /// Digests that must not be served, in any ring.
    #[serde(default)]
    pub denied: Denied,
}

/// What a model needs before it is promoted into a ring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline, extend("x-kubernetes-validations" = cel::ring_rule()))]
pub struct PolicyRule {
    /// Ring that the rule is for.
    pub ring: Ring,
    /// Templates of Evaluations. For each, an Evaluation in spec.evaluations of the ReasoningPod must be at least as strict.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_TEMPLATES), extend("x-kubernetes-validations" = cel::unique_templates()))]
    pub required_evaluations: Vec<RequiredEvaluation>,
    /// Ring in which the same model digest must have been promoted before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requires: Option<RequiredRing>,
    /// How long ago that promotion must be, such as 72h, 30m or 7d. Without it, any time is enough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = MAX_PERIOD), extend("x-kubernetes-validations" = cel::period("minimumTimeInRing")))]
    pub minimum_time_in_ring: Option<String>,
    /// Sign-offs by people that the model needs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sign_offs: Option<RequiredSignOffs>,
    /// Parity that a shadow with the same model must have proved in this ring. Without it, none is needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parity: Option<RequiredParity>,
    /// Keys and identities that may sign the model and its promotion. Without it, every trusted one may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signers: Option<RequiredSigners>,
    /// Attestations that must be signed beside the promotion: slsaProvenance, testResult, mlBom and verificationSummary. A server is
    /// rolled out only if each is there and valid.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = AttestationKind::ALL.len()))]
    pub attestations: Vec<AttestationKind>,
}

/// A template of an Evaluation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline, extend("x-kubernetes-validations" = cel::budget()))]
pub struct RequiredEvaluation {
    /// Name of the template, which messages quote.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Preset that the Evaluation must use. Without it, any preset is accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub preset: Option<String>,
    /// SHA-256 of the problems that the evaluator must have read. Without it, any problems are accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problems_sha256: Option<DataDigest>,
    /// Gates. For each, the Evaluation must have a gate on the same metric that is at least as strict in its bound, confidence and
    /// minSamples.
    #[schemars(length(min = 1, max = MAX_TEMPLATE_GATES))]
    pub gates: Vec<GateSpec>,
    /// How often a set of problems may be read for promotions. Without it, there is no limit, and each read is judged as if it were
    /// the only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reads: Option<ReadBudget>,
}

/// How often a set of problems may be read for promotions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct ReadBudget {
    /// Number of reads of a set of problems, by its digest, that may promote: a later read does not. The budget divides the error
    /// of the gates: each gate of the template is judged again at confidence 1 - (1 - confidence) / budget.
    #[schemars(with = "i32", range(min = 1, max = MAX_READS))]
    pub budget: u32,
}

/// The ring in which a model must have been promoted before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct RequiredRing {
    /// Ring of the earlier promotion. It must come before the ring of the rule.
    pub ring: Ring,
}

/// The sign-offs that a model needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct RequiredSignOffs {
    /// Number of people who must sign.
    #[schemars(with = "i32", range(min = 1, max = 16))]
    pub count: u32,
    /// User names whose sign-offs count. If by and byGroups are empty, every sign-off counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_SIGNERS), inner(length(min = 1, max = MAX_USER)))]
    pub by: Vec<String>,
    /// Groups whose members' sign-offs count.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_SIGNERS), inner(length(min = 1, max = MAX_USER)))]
    pub by_groups: Vec<String>,
    /// Whether only sign-offs count that the person created, and not a GitOps account for them. Defaults to false.
    #[serde(default)]
    pub authenticated: bool,
}

/// The parity that a shadow must have proved: its status has `ParityHolding` with True.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct RequiredParity {
    /// Least number of compared requests.
    #[schemars(with = "i32", extend("x-kubernetes-validations" = cel::parity_requests()))]
    pub min_requests: u32,
    /// Greatest share of requests that may be answered differently, such as 0.01. Without it, spec.shadow.maxDivergence of the shadow
    /// decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), extend("x-kubernetes-validations" = cel::parity_divergence()))]
    pub max_divergence: Option<String>,
}

/// The keys and identities that may sign.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline, extend("x-kubernetes-validations" = cel::some_signer()))]
pub struct RequiredSigners {
    /// Fingerprints of keys: SHA-256 of the public key's PEM text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_SIGNERS))]
    pub keys: Vec<Sha256>,
    /// Identities that certificates name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_SIGNERS))]
    pub identities: Vec<SignerIdentity>,
}

/// Identities of one issuer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct SignerIdentity {
    /// Issuer of the tokens, exactly as they name it.
    #[schemars(length(min = 1, max = MAX_IDENTITY), extend("x-kubernetes-validations" = cel::exact_issuer()))]
    pub issuer: String,
    /// Subject of the certificates, such as `https://kubernetes.io/namespaces/codex-system/serviceaccounts/codex-controller`. In it, *
    /// stands for any characters but /.
    #[schemars(length(min = 1, max = MAX_IDENTITY))]
    pub subject: String,
}

impl SignerIdentity {
    /// Whether an identity is meant. An entry that is invalid means none.
    pub fn admits(&self, identity: &Identity) -> bool {
        IdentityPattern::new(&self.issuer, &self.subject).is_ok_and(|pattern| pattern.admits(identity))
    }
}

/// The weights of readiness, R = aE + bT + gD, with which `status-report` surveys runs. They sum to 1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline, extend("x-kubernetes-validations" = cel::readiness()))]
pub struct ReadinessWeights {
    /// a, the weight of the share of gates that passed, as a decimal in quotes, such as "0.5".
    pub evidence: Decimal,
    /// b, the weight of the measured trace coverage, as a decimal in quotes, such as "0.2".
    pub traces: Decimal,
    /// g, the weight of the share of checks that hold, as a decimal in quotes, such as "0.3".
    pub deployment: Decimal,
}

impl ReadinessWeights {
    /// Returns the weights as numbers.
    ///
    /// # Errors
    /// They are no decimals from 0 to 1, or do not sum to 1; one sentence.
    pub fn numbers(&self) -> Result<[f64; 3], String> {
        let weights = [&self.evidence, &self.traces, &self.deployment];
        let numbers = weights.map(|Decimal(text)| decimal::parse(text).filter(|number| (0.0..=1.0).contains(number)));
        match numbers {
            [Some(a), Some(b), Some(g)] if (a + b + g - 1.0).abs() < cel::WEIGHTS_TOLERANCE => Ok([a, b, g]),
            _ => {
                let found = weights.map(ToString::to_string).join(", ");
                Err(format!("{found} are invalid: {}", cel::RIGHT_WEIGHTS))
            }
        }
    }
}

/// Digests that must not be served.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct Denied {
    /// Digests of models.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_DENIED))]
    pub models: Vec<ModelDigest>,
    /// Digests of models from which a training started. What was trained from them is denied.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_DENIED))]
    pub bases: Vec<ModelDigest>,
    /// SHA-256 of data files. What was trained on them or judged with them is denied.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_DENIED))]
    pub data: Vec<DataDigest>,
    /// Fingerprints of signing keys: SHA-256 of the public key's PEM text. Or of an identity: SHA-256 of issuer, line feed and
    /// subject. What they signed is denied.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_DENIED))]
    pub keys: Vec<Sha256>,
}
