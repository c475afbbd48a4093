//! What a promotion statement says about an evaluation, and the check of it: the gates are judged again from the measurements.
//! Pure.

use std::collections::BTreeMap;

use codex_provenance::{
    DataDigest, GatesDigest, ModelDigest, ReportDigest,
    golden::{Golden, GoldenError},
    promotion::{self, Measured, Reference},
    text::Printable,
};

use crate::{
    Comparison, ComparisonSpec, Decimal, Gate, GateError, GateResult, GateSpec, MAX_GATES, Measurement, Unacceptable,
    Verdict, accept, decimal, gates_digest, judge, judge_one,
    measured::{read, stated_metrics},
    paired::{Inconsistent, agrees, reference_file},
    policy::{self, PROBLEMS},
    report_digest,
};

/// How far a stated number may be from the computed one: the statistics may round another way on another machine, and numbers are
/// shown with six decimals.
const TOLERANCE: f64 = 1.5e-6;

/// What a statement says about the measurements and the gates of an evaluation. Everything in it is computed from the
/// measurements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stated {
    /// Verdict over all gates.
    pub verdict: Verdict,
    /// Digest of the model, the data and the measurements.
    pub report_digest: ReportDigest,
    /// Digest of the gates.
    pub gates_digest: GatesDigest,
    /// The measurements.
    pub metrics: BTreeMap<String, Measured>,
    /// The gates with their verdicts, in the given order.
    pub gates: Vec<promotion::Gate>,
}

/// Why the statement about an evaluation is refused. Each message continues "evaluation NAME".
#[derive(Debug, thiserror::Error)]
pub enum Refuted {
    /// There is no gate.
    #[error("has no gates")]
    NoGates,
    /// There are too many gates.
    #[error("has {0} gates; at most {MAX_GATES} are allowed")]
    TooManyGates(usize),
    /// A gate is invalid.
    #[error("has an invalid gate: {0}")]
    Gate(#[from] GateError),
    /// A measurement is not a number.
    #[error("has a measurement of {} that is malformed", Printable(.0))]
    Malformed(String),
    /// The measurements are refused.
    #[error("has refused measurements: {0}")]
    Unacceptable(#[from] Unacceptable),
    /// The golden tokens are malformed.
    #[error("has malformed golden tokens: {0}")]
    Golden(#[from] GoldenError),
    /// The measurements have another digest.
    #[error("states reportDigest {stated}, but its measurements have {found}")]
    Report {
        /// The stated digest.
        stated: ReportDigest,
        /// The computed digest.
        found: ReportDigest,
    },
    /// The gates have another digest.
    #[error("states gatesDigest {stated}, but its gates have {found}")]
    Gates {
        /// The stated digest.
        stated: GatesDigest,
        /// The computed digest.
        found: GatesDigest,
    },
    /// A gate states something else than its measurement gives.
    #[error("states {field} {} of {}, but its measurements give {found}", Printable(stated), Printable(metric))]
    Contradicted {
        /// The metric.
        metric: String,
        /// The field of the gate.
        field: &'static str,
        /// What it states.
        stated: String,
        /// What the measurements give.
        found: String,
    },
    /// A gate compares with an evaluation of which the statement says nothing.
    #[error("compares with Evaluation {}, which is not among its references", Printable(.0))]
    NoReference(String),
    /// The evaluator was given other outcomes than those of the reference.
    #[error(
        "compares with Evaluation {}, whose outcomes have the digest {outcomes}, but the evaluator was given {}",
        Printable(reference),
        read.map_or_else(|| "none".to_owned(), |read| read.to_string())
    )]
    Outcomes {
        /// Name of the reference.
        reference: String,
        /// The digest of its outcomes.
        outcomes: DataDigest,
        /// The digest of what the evaluator was given.
        read: Option<DataDigest>,
    },
    /// The read of the problems is about other problems, or is none.
    #[error("states read {number} of the problems {problems}, but its data has {}",
        found.map_or_else(|| "none".to_owned(), |found| found.to_string()))]
    Reads {
        /// The stated number.
        number: u64,
        /// The stated digest of the problems.
        problems: DataDigest,
        /// The digest of its problems.
        found: Option<DataDigest>,
    },
    /// A budget of reads was not kept.
    #[error("states a budget of reads of {} that was not kept: {why}", Printable(policy))]
    Budget {
        /// Kind and name of the policy.
        policy: String,
        /// Why.
        why: String,
    },
    /// A comparison contradicts the measurements of the model or of the reference.
    #[error("has a comparison {} that is contradicted: {why}", Printable(name))]
    Comparison {
        /// Name of the comparison.
        name: String,
        /// Why.
        #[source]
        why: Inconsistent,
    },
    /// A gate does not pass.
    #[error("does not pass: {metric} is {verdict} ({message})")]
    NotPassed {
        /// The metric.
        metric: String,
        /// The verdict.
        verdict: Verdict,
        /// Why.
        message: String,
    },
}

impl Stated {
    /// Judges the measurements of `model`, of which no golden tokens are recorded, and states the result.
    ///
    /// # Errors
    /// A gate is invalid.
    pub fn of(
        model: ModelDigest,
        data: &BTreeMap<String, DataDigest>,
        metrics: &BTreeMap<String, Measurement>,
        specs: &[GateSpec],
    ) -> Result<Self, GateError> {
        Ok(judged(model, data, metrics, None, specs)?.0)
    }

    /// States `results`, which are what the measurements with `report_digest` give for each of `specs`, in their order, and
    /// the verdict over all of them.
    pub fn judged(
        verdict: Verdict,
        digests: (ReportDigest, GatesDigest),
        metrics: &BTreeMap<String, Measurement>,
        specs: &[GateSpec],
        results: &[GateResult],
    ) -> Self {
        Self {
            verdict,
            report_digest: digests.0,
            gates_digest: digests.1,
            metrics: stated_metrics(metrics),
            gates: specs.iter().zip(results).map(|(spec, result)| gate(spec, result)).collect(),
        }
    }
}

fn judged(
    model: ModelDigest,
    data: &BTreeMap<String, DataDigest>,
    metrics: &BTreeMap<String, Measurement>,
    golden: Option<&Golden>,
    specs: &[GateSpec],
) -> Result<(Stated, Vec<GateResult>), GateError> {
    let gates: Vec<Gate> = specs.iter().map(Gate::try_from).collect::<Result<_, _>>()?;
    let judgement = judge(&gates, metrics, Some(model), model);
    let digests = (report_digest(model, data, metrics, golden), gates_digest(&gates));
    Ok((Stated::judged(judgement.verdict, digests, metrics, specs, &judgement.gates), judgement.gates))
}

/// Returns a gate as a statement has it.
pub(crate) fn gate(spec: &GateSpec, result: &GateResult) -> promotion::Gate {
    let stated = |with: &ComparisonSpec| promotion::Comparison {
        evaluation: with.evaluation.clone(),
        by: with.by.as_ref().map(|by| by.0.clone()),
    };
    let text = |decimal: &Option<Decimal>| decimal.as_ref().map(|decimal| decimal.0.clone());
    let count = |count: Option<i64>| count.and_then(|count| u64::try_from(count).ok());
    promotion::Gate {
        metric: spec.metric.clone(),
        min: text(&spec.min),
        max: text(&spec.max),
        better_than: spec.better_than.as_ref().map(stated),
        not_worse_than: spec.not_worse_than.as_ref().map(stated),
        confidence: text(&spec.confidence),
        min_samples: count(spec.min_samples),
        value: text(&result.value),
        n: count(result.n),
        lower: text(&result.lower),
        upper: text(&result.upper),
        p_value: text(&result.p_value),
        approximate: result.approximate,
        verdict: result.verdict.to_string(),
    }
}

/// Returns the spec of a gate in a statement.
pub(crate) fn spec(gate: &promotion::Gate) -> GateSpec {
    let decimal = |text: &Option<String>| text.clone().map(Decimal);
    let comparison =
        |with: &promotion::Comparison| ComparisonSpec { evaluation: with.evaluation.clone(), by: decimal(&with.by) };
    GateSpec {
        metric: gate.metric.clone(),
        min: decimal(&gate.min),
        max: decimal(&gate.max),
        better_than: gate.better_than.as_ref().map(comparison),
        not_worse_than: gate.not_worse_than.as_ref().map(comparison),
        // A count that is too large is refused with the other invalid gates.
        min_samples: gate.min_samples.map(|count| i64::try_from(count).unwrap_or(i64::MAX)),
        confidence: decimal(&gate.confidence),
        margin: None,
    }
}

/// Judges the measurements of an evaluation in a statement about `model` again. Every gate must pass, and state what its
/// measurement gives.
///
/// # Errors
/// The first contradiction, or the first gate that does not pass.
pub fn recheck(model: ModelDigest, evaluation: &promotion::Evaluation) -> Result<(), Refuted> {
    let claimed = &evaluation.gates;
    if claimed.is_empty() {
        return Err(Refuted::NoGates);
    }
    if claimed.len() > MAX_GATES {
        return Err(Refuted::TooManyGates(claimed.len()));
    }
    let metrics = measurements(&evaluation.metrics)?;
    accept(&metrics)?;
    let specs: Vec<GateSpec> = claimed.iter().map(spec).collect();
    let golden = evaluation.golden_tokens.as_ref();
    golden.map(Golden::read).transpose()?;
    let (found, results) = judged(model, &evaluation.data, &metrics, golden, &specs)?;
    if evaluation.report_digest != found.report_digest {
        return Err(Refuted::Report { stated: evaluation.report_digest, found: found.report_digest });
    }
    if evaluation.gates_digest != found.gates_digest {
        return Err(Refuted::Gates { stated: evaluation.gates_digest, found: found.gates_digest });
    }
    check_references(evaluation, &metrics, &specs)?;
    if let Some(stated) = &evaluation.reads {
        let found = evaluation.data.get(PROBLEMS).copied();
        if stated.number == 0 || found != Some(stated.problems) {
            return Err(Refuted::Reads { number: stated.number, problems: stated.problems, found });
        }
        for divided in &stated.divided {
            check_divided(stated.number, divided, &metrics)?;
        }
    }
    for ((claimed, found), result) in claimed.iter().zip(&found.gates).zip(&results) {
        agree(claimed, found)?;
        passed(result)?;
    }
    Ok(())
}

/// Checks that a gate passed.
fn passed(result: &GateResult) -> Result<(), Refuted> {
    if result.verdict == Verdict::Passed {
        return Ok(());
    }
    let GateResult { metric, verdict, message, .. } = result;
    Err(Refuted::NotPassed { metric: metric.clone(), verdict: *verdict, message: message.clone() })
}

/// Judges a gate again at the confidence that a budget of reads made of a policy's.
fn check_divided(
    number: u64,
    divided: &promotion::Divided,
    metrics: &BTreeMap<String, Measurement>,
) -> Result<(), Refuted> {
    policy::check_stated(number, divided).map_err(|why| Refuted::Budget { policy: divided.policy.clone(), why })?;
    let spec = spec(&divided.gate);
    let result = judge_one(&Gate::try_from(&spec)?, metrics);
    agree(&divided.gate, &gate(&spec, &result))?;
    passed(&result)
}

/// Returns the measurements of a statement.
///
/// # Errors
/// The name of the first one whose numbers are malformed.
pub fn measurements(measured: &BTreeMap<String, Measured>) -> Result<BTreeMap<String, Measurement>, Refuted> {
    let read = |(name, measured): (&String, &Measured)| {
        read(measured).map(|measurement| (name.clone(), measurement)).ok_or_else(|| Refuted::Malformed(name.clone()))
    };
    measured.iter().map(read).collect()
}

/// Checks the references that gates compare with: the evaluator was given their outcomes, and each comparison agrees with the
/// measurements of both models.
fn check_references(
    evaluation: &promotion::Evaluation,
    metrics: &BTreeMap<String, Measurement>,
    specs: &[GateSpec],
) -> Result<(), Refuted> {
    for gate in specs.iter().map(Gate::try_from) {
        let gate = gate?;
        let Some(Comparison { evaluation: name, .. }) = gate.bound.comparison() else { continue };
        let reference = evaluation.references.iter().find(|reference| reference.name == *name);
        let Reference { outcomes, metrics: others, .. } =
            reference.ok_or_else(|| Refuted::NoReference(name.clone()))?;
        let read = evaluation.data.get(&reference_file(name)).copied();
        if read != Some(*outcomes) {
            return Err(Refuted::Outcomes { reference: name.clone(), outcomes: *outcomes, read });
        }
        check_comparison(&gate, metrics, &measurements(others)?)
            .map_err(|(name, why)| Refuted::Comparison { name, why })?;
    }
    Ok(())
}

/// Checks that what a gate compares agrees with the measurements of the model (`metrics`) and of the reference (`others`). A
/// gate that compares nothing, and one whose measurements are missing, which never passes, are not checked.
///
/// # Errors
/// The name of the comparison, and the contradiction.
pub fn check_comparison(
    gate: &Gate,
    metrics: &BTreeMap<String, Measurement>,
    others: &BTreeMap<String, Measurement>,
) -> Result<(), (String, Inconsistent)> {
    let name = gate.measurement();
    let metric = gate.metric.name();
    match (metrics.get(&name), metrics.get(metric), others.get(metric)) {
        (Some(pairs), Some(model), Some(reference)) if gate.bound.comparison().is_some() => {
            agrees(pairs, model, reference, gate.metric.is_lower_better()).map_err(|why| (name, why))
        }
        _ => Ok(()),
    }
}

/// Compares the numbers and the verdict that a gate states with the computed ones.
fn agree(claimed: &promotion::Gate, found: &promotion::Gate) -> Result<(), Refuted> {
    let shown = |text: &Option<String>| text.clone().unwrap_or_else(|| "nothing".to_owned());
    let refuse = |field, stated: String, found: String| {
        Err(Refuted::Contradicted { metric: claimed.metric.clone(), field, stated, found })
    };
    if claimed.n != found.n {
        let count = |n: Option<u64>| shown(&n.map(|n| n.to_string()));
        return refuse("n", count(claimed.n), count(found.n));
    }
    for (field, stated, computed) in [
        ("value", &claimed.value, &found.value),
        ("lower", &claimed.lower, &found.lower),
        ("upper", &claimed.upper, &found.upper),
        ("pValue", &claimed.p_value, &found.p_value),
    ] {
        let number = |text: &Option<String>| text.as_deref().and_then(decimal::parse);
        let close = match (number(stated), number(computed)) {
            (Some(stated), Some(computed)) => (stated - computed).abs() <= TOLERANCE,
            _ => stated == computed,
        };
        if !close {
            return refuse(field, shown(stated), shown(computed));
        }
    }
    if claimed.approximate != found.approximate {
        return refuse("approximate", claimed.approximate.to_string(), found.approximate.to_string());
    }
    if claimed.verdict != found.verdict {
        return refuse("verdict", claimed.verdict.clone(), found.verdict.clone());
    }
    Ok(())
}

#[cfg(test)]
mod tests;
