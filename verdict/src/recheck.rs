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
    Comparison, ComparisonSpec, Decimal, Gate, GateError, GateResult, GateSpec, MAX_GATES, Measurement, Method,
    Unacceptable, Verdict, accept, decimal, gates_digest, judge, judge_one,
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

/// Returns measurements as a statement has them.
pub fn stated_metrics(metrics: &BTreeMap<String, Measurement>) -> BTreeMap<String, Measured> {
    metrics.iter().map(|(name, measurement)| (name.clone(), written(measurement))).collect()
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

/// Returns a measurement as a statement has it.
fn written(measurement: &Measurement) -> Measured {
    let text = |number: Option<f64>| number.filter(|number| number.is_finite()).map(|number| format!("{number:e}"));
    match *measurement {
        Measurement::Share { successes, n } => Measured::Share { successes, n },
        Measurement::Duel { wins, ties, losses } => Measured::Duel { wins, ties, losses },
        Measurement::Mean { n, sum, sum_of_squares } => {
            Measured::Mean { n, sum: text(sum), sum_of_squares: text(sum_of_squares) }
        }
        Measurement::Difference { n, sum, sum_of_squares } => {
            Measured::Difference { n, sum: text(sum), sum_of_squares: text(sum_of_squares) }
        }
        Measurement::Estimate { value, lower, upper, n, confidence, method } => Measured::Estimate {
            value: text(value),
            lower: text(lower),
            upper: text(upper),
            n,
            confidence: text(confidence),
            method: method.name().to_owned(),
        },
        Measurement::ClusterMean { n, items, sum, sum_of_squares } => {
            Measured::ClusterMean { n, items, sum: text(sum), sum_of_squares: text(sum_of_squares) }
        }
        Measurement::ClusterDifference { n, items, sum, sum_of_squares } => {
            Measured::ClusterDifference { n, items, sum: text(sum), sum_of_squares: text(sum_of_squares) }
        }
        Measurement::ClusterEstimate { value, lower, upper, n, items, confidence, method } => {
            Measured::ClusterEstimate {
                value: text(value),
                lower: text(lower),
                upper: text(upper),
                n,
                items,
                confidence: text(confidence),
                method: method.name().to_owned(),
            }
        }
    }
}

/// Returns the measurement of a statement; `None` if a number or the method is malformed.
fn read(measured: &Measured) -> Option<Measurement> {
    let float = |text: &Option<String>| match text {
        None => Some(None),
        Some(text) => text.parse().ok().map(Some),
    };
    Some(match measured {
        Measured::Share { successes, n } => Measurement::Share { successes: *successes, n: *n },
        Measured::Duel { wins, ties, losses } => Measurement::Duel { wins: *wins, ties: *ties, losses: *losses },
        Measured::Mean { n, sum, sum_of_squares } => {
            Measurement::Mean { n: *n, sum: float(sum)?, sum_of_squares: float(sum_of_squares)? }
        }
        Measured::Difference { n, sum, sum_of_squares } => {
            Measurement::Difference { n: *n, sum: float(sum)?, sum_of_squares: float(sum_of_squares)? }
        }
        Measured::Estimate { value, lower, upper, n, confidence, method } => Measurement::Estimate {
            value: float(value)?,
            lower: float(lower)?,
            upper: float(upper)?,
            n: *n,
            confidence: float(confidence)?,
            method: method_called(method)?,
        },
        Measured::ClusterMean { n, items, sum, sum_of_squares } => {
            Measurement::ClusterMean { n: *n, items: *items, sum: float(sum)?, sum_of_squares: float(sum_of_squares)? }
        }
        Measured::ClusterDifference { n, items, sum, sum_of_squares } => Measurement::ClusterDifference {
            n: *n,
            items: *items,
            sum: float(sum)?,
            sum_of_squares: float(sum_of_squares)?,
        },
        Measured::ClusterEstimate { value, lower, upper, n, items, confidence, method } => {
            Measurement::ClusterEstimate {
                value: float(value)?,
                lower: float(lower)?,
                upper: float(upper)?,
                n: *n,
                items: *items,
                confidence: float(confidence)?,
                method: method_called(method)?,
            }
        }
    })
}

fn method_called(name: &str) -> Option<Method> {
    Method::ALL.into_iter().find(|known| known.name() == name)
}

#[cfg(test)]
mod tests {
    use codex_provenance::{
        Sha256,
        golden::{GoldenPrompt, Tokens},
    };
    use proptest::prelude::*;

    use super::*;

    fn model() -> ModelDigest {
        ModelDigest(Sha256::of("model"))
    }

    fn spec_of(metric: &str, min: &str, confidence: Option<&str>, min_samples: Option<i64>) -> GateSpec {
        GateSpec {
            metric: metric.to_owned(),
            min: Some(Decimal(min.to_owned())),
            min_samples,
            confidence: confidence.map(|text| Decimal(text.to_owned())),
            ..GateSpec::default()
        }
    }

    fn evaluation(metrics: &BTreeMap<String, Measurement>, specs: &[GateSpec]) -> promotion::Evaluation {
        let data = BTreeMap::from([("problems".to_owned(), DataDigest(Sha256::of("problems")))]);
        let Stated { report_digest, gates_digest, metrics, gates, .. } =
            Stated::of(model(), &data, metrics, specs).expect("valid gates");
        promotion::Evaluation {
            name: "lite".to_owned(),
            uid: "uid".to_owned(),
            preset: "cot-lite".to_owned(),
            config_digest: None,
            report_digest,
            gates_digest,
            data,
            image_id: String::new(),
            completed_at: "2026-11-28T09:00:00Z".to_owned(),
            evidence: None,
            outcomes: None,
            golden_tokens: None,
            metrics,
            gates,
            references: Vec::new(),
            reads: None,
        }
    }

    fn good() -> promotion::Evaluation {
        let metrics = BTreeMap::from([
            ("exact_match".to_owned(), Measurement::Share { successes: 490, n: 500 }),
            (
                "trace_coverage".to_owned(),
                Measurement::Mean { n: 500, sum: Some(499.0 / 3.0 * 2.9), sum_of_squares: Some(480.123_456) },
            ),
        ]);
        let specs =
            [spec_of("exact_match", "0.95", Some("0.95"), Some(500)), spec_of("trace_coverage", "0.9", None, None)];
        evaluation(&metrics, &specs)
    }

    fn refuted(edit: impl FnOnce(&mut promotion::Evaluation)) -> String {
        let mut changed = good();
        edit(&mut changed);
        recheck(model(), &changed).expect_err("refuted").to_string()
    }

    #[test]
    fn what_a_controller_states_is_confirmed() {
        recheck(model(), &good()).expect("confirmed");
        assert_eq!(good().gates[0].min_samples, Some(500));
        let other = ModelDigest(Sha256::of("another"));
        assert!(recheck(other, &good()).expect_err("the digest covers the model").to_string().contains("reportDigest"));
    }

    #[test]
    fn golden_tokens_are_covered_by_the_report_digest() {
        let golden = || Golden {
            path: "cpu-f32".to_owned(),
            instruction_set: "avx2".to_owned(),
            kernels: 1,
            tolerance: "0.1".to_owned(),
            prompts: vec![GoldenPrompt::new(&Tokens {
                prompt: vec![1, 2],
                tokens: vec![3],
                log_probabilities: vec![-0.5],
            })],
        };
        assert!(refuted(|it| it.golden_tokens = Some(golden())).starts_with("states reportDigest "));
        let stated = |golden: Golden| {
            let metrics = measurements(&good().metrics).expect("measurements");
            let report_digest = report_digest(model(), &good().data, &metrics, Some(&golden));
            promotion::Evaluation { golden_tokens: Some(golden), report_digest, ..good() }
        };
        recheck(model(), &stated(golden())).expect("confirmed");
        let changed = promotion::Evaluation { golden_tokens: None, ..stated(golden()) };
        let told = recheck(model(), &changed).expect_err("refuted").to_string();
        assert!(told.starts_with("states reportDigest "), "{told}");
        let told =
            recheck(model(), &stated(Golden { prompts: Vec::new(), ..golden() })).expect_err("refuted").to_string();
        assert_eq!(told, "has malformed golden tokens: prompts has 0 prompts; 1 to 4 are allowed");
    }

    #[test]
    fn numbers_that_the_measurements_do_not_give_are_refuted() {
        let told = refuted(|it| it.gates[0].verdict = "banana".to_owned());
        assert_eq!(told, "states verdict banana of exact_match, but its measurements give Passed");
        let told = refuted(|it| it.gates[0].verdict = "Failed".to_owned());
        assert_eq!(told, "states verdict Failed of exact_match, but its measurements give Passed");
        let told = refuted(|it| it.gates[0].value = Some("1".to_owned()));
        assert_eq!(told, "states value 1 of exact_match, but its measurements give 0.98");
        let told = refuted(|it| it.gates[0].n = Some(1_000_000));
        assert_eq!(told, "states n 1000000 of exact_match, but its measurements give 500");
        let told = refuted(|it| it.gates[0].lower = None);
        assert!(told.starts_with("states lower nothing of exact_match, but its measurements give 0.9"), "{told}");
        let told = refuted(|it| it.gates[1].upper = Some("1".to_owned()));
        assert_eq!(told, "states upper 1 of trace_coverage, but its measurements give nothing");
        let told = refuted(|it| it.gates[0].value = Some("NaN".to_owned()));
        assert_eq!(told, "states value NaN of exact_match, but its measurements give 0.98");
    }

    #[test]
    fn other_gates_or_measurements_than_the_digests_cover_are_refuted() {
        assert_eq!(refuted(|it| it.gates.clear()), "has no gates");
        let told = refuted(|it| it.gates = vec![it.gates[0].clone(); MAX_GATES + 1]);
        assert_eq!(told, "has 33 gates; at most 32 are allowed");
        assert!(refuted(|it| drop(it.gates.pop())).starts_with("states gatesDigest "));
        assert!(refuted(|it| it.gates[0].min = Some("0.1".to_owned())).starts_with("states gatesDigest "));
        assert!(refuted(|it| it.gates[0].min_samples = None).starts_with("states gatesDigest "));
        let told = refuted(|it| it.gates[0].min = None);
        assert!(told.starts_with("has an invalid gate: the gate on exact_match has none of min"), "{told}");
        let told = refuted(|it| it.gates[0].min_samples = Some(u64::MAX));
        assert!(told.starts_with("has an invalid gate: the gate on exact_match has minSamples"), "{told}");
        let share = |successes, n| Measured::Share { successes, n };
        let told = refuted(|it| drop(it.metrics.insert("exact_match".to_owned(), share(500, 500))));
        assert!(told.starts_with("states reportDigest "), "{told}");
        let told = refuted(|it| drop(it.metrics.insert("more".to_owned(), share(1, 2))));
        assert!(told.starts_with("states reportDigest "), "{told}");
        let malformed = Measured::Mean { n: 5, sum: Some("much".to_owned()), sum_of_squares: None };
        let told = refuted(|it| drop(it.metrics.insert("trace\n".to_owned(), malformed)));
        assert_eq!(told, "has a measurement of trace\\n that is malformed");
        let told = refuted(|it| drop(it.metrics.insert("trace_coverage".to_owned(), share(1, 2))));
        assert!(
            told.starts_with("has refused measurements: its trace_coverage is a measurement of kind share"),
            "{told}"
        );
    }

    #[test]
    fn gates_are_judged_again_at_the_confidence_that_a_budget_applied() {
        let right = |successes| BTreeMap::from([("exact_match".to_owned(), Measurement::Share { successes, n: 500 })]);
        let divided = |at: &str, successes| {
            let spec = spec_of("exact_match", "0.9", Some(at), None);
            let Stated { gates, .. } =
                Stated::of(model(), &BTreeMap::new(), &right(successes), &[spec]).expect("a valid gate");
            promotion::Divided {
                policy: "ClusterPromotionPolicy guard".to_owned(),
                requirement: "m1".to_owned(),
                budget: 5,
                confidence: "0.95".to_owned(),
                gate: gates[0].clone(),
            }
        };
        let check = |number, successes, divided| {
            let mut stated = evaluation(&right(successes), &[spec_of("exact_match", "0.9", Some("0.95"), None)]);
            let problems = DataDigest(Sha256::of("problems"));
            stated.reads = Some(promotion::Read { problems, number, divided: vec![divided] });
            recheck(model(), &stated).map_err(|why| why.to_string())
        };
        assert_eq!(check(5, 470, divided("0.99", 470)), Ok(()));
        let policy = "states a budget of reads of ClusterPromotionPolicy guard that was not kept";
        let late = check(6, 470, divided("0.99", 470)).expect_err("late");
        assert_eq!(late, format!("{policy}: its budget is 5, but this is read 6"));
        let undivided = check(1, 470, divided("0.95", 470)).expect_err("not divided");
        assert!(undivided.starts_with(policy), "{undivided}");
        // 462 of 500 show 0.9 with confidence 0.95 and not with 0.99.
        let weak = check(1, 462, divided("0.99", 462)).expect_err("it does not pass");
        assert!(weak.starts_with("does not pass: exact_match is Inconclusive"), "{weak}");
        let other = check(1, 470, divided("0.99", 471)).expect_err("other numbers");
        assert!(other.starts_with("states value 0.942 of exact_match, but its measurements give 0.94"), "{other}");
    }

    fn paired(model: (u64, u64, u64), reference: u64) -> promotion::Evaluation {
        let (right, wins, losses) = model;
        let metrics = BTreeMap::from([
            ("exact_match".to_owned(), Measurement::Share { successes: right, n: 500 }),
            ("exact_match@before".to_owned(), Measurement::Duel { wins, ties: 500 - wins - losses, losses }),
        ]);
        let better = ComparisonSpec { evaluation: "before".to_owned(), by: None };
        let gate = GateSpec {
            metric: "exact_match".to_owned(),
            better_than: Some(better),
            confidence: Some(Decimal("0.95".to_owned())),
            ..GateSpec::default()
        };
        let outcomes = DataDigest(Sha256::of("outcomes"));
        let data = BTreeMap::from([("reference-before".to_owned(), outcomes)]);
        let stated = Stated::of(self::model(), &data, &metrics, &[gate]).expect("a valid gate");
        let before = Reference {
            name: "before".to_owned(),
            uid: "former".to_owned(),
            model: ModelDigest(Sha256::of("base")),
            outcomes,
            metrics: BTreeMap::from([("exact_match".to_owned(), Measured::Share { successes: reference, n: 500 })]),
        };
        promotion::Evaluation {
            report_digest: stated.report_digest,
            gates_digest: stated.gates_digest,
            data,
            metrics: stated.metrics,
            gates: stated.gates,
            references: vec![before],
            ..evaluation(&BTreeMap::new(), &[spec_of("exact_match", "0", None, None)])
        }
    }

    #[test]
    fn a_read_is_one_of_the_problems_of_the_evaluation() {
        let read = |text: &str, number| {
            let problems = DataDigest(Sha256::of(text));
            Some(promotion::Read { problems, number, divided: Vec::new() })
        };
        recheck(model(), &promotion::Evaluation { reads: read("problems", 3), ..good() }).expect("confirmed");
        assert!(refuted(|it| it.reads = read("others", 3)).starts_with("states read 3 of the problems "));
        assert!(refuted(|it| it.reads = read("problems", 0)).starts_with("states read 0 of the problems "));
    }

    #[test]
    fn a_comparison_is_confirmed_with_its_reference_only() {
        let good = || paired((400, 260, 20), 160);
        recheck(model(), &good()).expect("260 - 20 = 400 - 160");
        assert_eq!(good().gates[0].p_value.as_deref(), Some("0.000001"));
        let refuted = |edit: fn(&mut promotion::Evaluation)| {
            let mut changed = good();
            edit(&mut changed);
            recheck(model(), &changed).expect_err("refuted").to_string()
        };
        assert_eq!(
            refuted(|it| it.references.clear()),
            "compares with Evaluation before, which is not among its references"
        );
        assert!(refuted(|it| it.references[0].name = "after".to_owned()).contains("not among its references"));
        let told = refuted(|it| it.references[0].outcomes = DataDigest(Sha256::of("others")));
        assert!(told.starts_with("compares with Evaluation before, whose outcomes have the digest "), "{told}");
        assert!(refuted(|it| it.data.clear()).starts_with("states reportDigest "));
        assert!(refuted(|it| it.gates[0].better_than = None).contains("has none of min, max"));
        assert!(refuted(|it| it.gates[0].not_worse_than = it.gates[0].better_than.take()).contains("gatesDigest"));
        let told = refuted(|it| it.gates[0].p_value = Some("0.5".to_owned()));
        assert_eq!(told, "states pValue 0.5 of exact_match, but its measurements give 0.000001");
        let told = recheck(model(), &paired((400, 260, 20), 200)).expect_err("refuted").to_string();
        assert_eq!(
            told,
            "has a comparison exact_match@before that is contradicted: its difference is 0.48, but the model has 0.8 and the \
             reference 0.4"
        );
        recheck(model(), &paired((180, 30, 10), 160)).expect("30 of 40 prove it");
        let told = recheck(model(), &paired((165, 30, 25), 160)).expect_err("refuted").to_string();
        assert!(told.starts_with("does not pass: exact_match is Inconclusive ("), "{told}");
    }

    #[test]
    fn a_consistent_statement_that_does_not_pass_is_refuted() {
        let exact = |successes, n| BTreeMap::from([("exact_match".to_owned(), Measurement::Share { successes, n })]);
        for (metrics, spec, verdict) in [
            (exact(40, 500), spec_of("exact_match", "0.95", None, None), "Failed"),
            (exact(480, 500), spec_of("exact_match", "0.95", Some("0.95"), None), "Inconclusive"),
            (exact(9, 9), spec_of("exact_match", "0.95", None, Some(500)), "Inconclusive"),
            (exact(5, 4), spec_of("exact_match", "0.95", None, None), "Inconclusive"),
            (BTreeMap::new(), spec_of("exact_match", "0", None, None), "Inconclusive"),
        ] {
            let told = recheck(model(), &evaluation(&metrics, &[spec])).expect_err("refuted").to_string();
            assert!(told.starts_with(&format!("does not pass: exact_match is {verdict} (")), "{told}");
        }
    }

    proptest! {
        /// The statement of any evaluation is confirmed exactly if the evaluation passes.
        #[test]
        fn a_statement_is_confirmed_if_and_only_if_it_passes(
            successes in 0_u64..=300, n in 1_u64..=300, sum in 0.0_f64..=1.0, bound in 0_u32..=100,
            confidence in prop::option::of(Just("0.95")), least in prop::option::of(1_i64..=400),
        ) {
            let values: Vec<f64> = (0..n).map(|index| if index % 3 == 0 { sum } else { sum / 7.0 }).collect();
            let metrics = BTreeMap::from([
                ("exact_match".to_owned(), Measurement::Share { successes: successes.min(n), n }),
                ("reasoning.win_rate".to_owned(), Measurement::Duel { wins: successes, ties: n, losses: 3 }),
                ("trace_coverage".to_owned(), Measurement::Mean {
                    n,
                    sum: Some(values.iter().sum()),
                    sum_of_squares: Some(values.iter().map(|value| value * value).sum()),
                }),
            ]);
            let bound = format!("{:.2}", f64::from(bound) / 100.0);
            let specs: Vec<GateSpec> =
                metrics.keys().map(|metric| spec_of(metric, &bound, confidence, least)).collect();
            let evaluation = evaluation(&metrics, &specs);
            let text = serde_json::to_string(&evaluation).expect("JSON");
            let read: promotion::Evaluation = serde_json::from_str(&text).expect("what was written");
            prop_assert_eq!(&read, &evaluation);
            let passes = evaluation.gates.iter().all(|gate| gate.verdict == "Passed");
            prop_assert_eq!(recheck(model(), &read).is_ok(), passes);
        }
    }
}
