//! What a promotion statement says about an evaluation: its measurements, and its gates with their verdicts. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    digest::{ConfigDigest, DataDigest, GatesDigest, ModelDigest, ReportDigest},
    evidence::EvidenceStrength,
    golden::Golden,
};

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

#[cfg(test)]
mod tests {
    use super::*;

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
