//! The verdict. Pure.

use std::collections::BTreeMap;

use codex_provenance::ModelDigest;
use codex_reports::Measurement;
use serde::{Deserialize, Serialize};

use crate::{Bound, Bounds, Gate, Rounding, Sample, bounds, needed::needed};

/// What gates say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Verdict {
    /// It does not hold.
    Failed,
    /// Too little is known to say either.
    Inconclusive,
    /// It holds.
    Passed,
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Failed => "Failed",
            Self::Inconclusive => "Inconclusive",
            Self::Passed => "Passed",
        })
    }
}

/// A judged gate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GateResult {
    /// The metric's name.
    pub metric: String,
    /// The value as counted, a decimal rounded to the gate's disadvantage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Items.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n: Option<u64>,
    /// The one-sided lower bound at the gate's confidence, a decimal rounded down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lower: Option<String>,
    /// The one-sided upper bound at the gate's confidence, a decimal rounded up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upper: Option<String>,
    /// What the gate says.
    pub verdict: Verdict,
    /// Why, in one sentence.
    pub message: String,
}

/// The verdict over all gates.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Judgement {
    /// Passed only if every gate passed and there is one; Failed if any failed.
    pub verdict: Verdict,
    /// Gates that passed.
    pub passed: usize,
    /// Gates.
    pub total: usize,
    /// Every gate, in the order they were given.
    pub gates: Vec<GateResult>,
}

/// Judges what was measured on `judged`, the model that the evaluator hashed, as a verdict about `expected`.
pub fn judge(
    gates: &[Gate],
    metrics: &BTreeMap<String, Measurement>,
    judged: Option<ModelDigest>,
    expected: ModelDigest,
) -> Judgement {
    let foreign = match judged {
        Some(judged) if judged == expected => None,
        Some(judged) => Some(format!("the numbers are about model {judged}, not about {expected}")),
        None => Some(format!("the numbers do not say which model they are about; {expected} is to be judged")),
    };
    let gates: Vec<GateResult> = gates
        .iter()
        .map(|gate| foreign.as_ref().map_or_else(|| one(gate, metrics), |why| unknown(gate, why.clone())))
        .collect();
    let passed = gates.iter().filter(|gate| gate.verdict == Verdict::Passed).count();
    let verdict = gates.iter().map(|gate| gate.verdict).min().unwrap_or(Verdict::Inconclusive);
    Judgement { verdict, passed, total: gates.len(), gates }
}

fn unknown(gate: &Gate, message: String) -> GateResult {
    let metric = gate.metric.clone();
    GateResult { metric, value: None, n: None, lower: None, upper: None, verdict: Verdict::Inconclusive, message }
}

fn one(gate: &Gate, metrics: &BTreeMap<String, Measurement>) -> GateResult {
    let Some(measurement) = metrics.get(&gate.metric) else {
        let measured: Vec<&str> = metrics.keys().map(String::as_str).collect();
        let measured = if measured.is_empty() { "nothing".to_owned() } else { measured.join(", ") };
        return unknown(gate, format!("it was not measured; measured were {measured}"));
    };
    let sample = match Sample::of(measurement) {
        Ok(sample) => sample,
        Err(why) => return unknown(gate, format!("what was reported cannot be: {why}")),
    };
    let bounds = gate.confidence.map(|confidence| bounds(&sample, confidence));
    let (verdict, message) = decide(gate, &sample, bounds);
    let value = show_value(gate, &sample);
    GateResult {
        metric: gate.metric.clone(),
        value: Some(value),
        n: Some(sample.n()),
        lower: bounds.map(|bounds| Rounding::Down.show(bounds.lower)),
        upper: bounds.map(|bounds| Rounding::Up.show(bounds.upper)),
        verdict,
        message,
    }
}

/// To the gate's disadvantage, so that a value that misses its gate never looks as if it met it.
fn show_value(gate: &Gate, sample: &Sample) -> String {
    match gate.bound {
        Bound::Min(_) => Rounding::Down.show(sample.value()),
        Bound::Max(_) => Rounding::Up.show(sample.value()),
    }
}

fn decide(gate: &Gate, sample: &Sample, bounds: Option<Bounds>) -> (Verdict, String) {
    let (bound, n, value) = (gate.bound, sample.n(), show_value(gate, sample));
    if let Some(fewest) = gate.min_samples
        && n < fewest
    {
        return (Verdict::Inconclusive, format!("{value} over {n} items; minSamples asks for {fewest} items"));
    }
    let (Some(confidence), Some(Bounds { lower, upper })) = (gate.confidence, bounds) else {
        let holds = match bound {
            Bound::Min(least) => sample.value() >= least,
            Bound::Max(most) => sample.value() <= most,
        };
        let verdict = if holds { Verdict::Passed } else { Verdict::Failed };
        return (verdict, format!("{value} over {n} items; the gate asks for {bound}"));
    };
    let (clears, misses) = match bound {
        Bound::Min(least) => (lower >= least, upper < least),
        Bound::Max(most) => (upper <= most, lower > most),
    };
    let at_least = format!("at least {}", Rounding::Down.show(lower));
    let at_most = format!("at most {}", Rounding::Up.show(upper));
    let (towards, against) = match bound {
        Bound::Min(_) => (at_least, at_most),
        Bound::Max(_) => (at_most, at_least),
    };
    let says = |known: &str| {
        format!("{value} over {n} items, so {known} with confidence {confidence}; the gate asks for {bound}")
    };
    if clears {
        return (Verdict::Passed, says(&towards));
    }
    if misses {
        return (Verdict::Failed, says(&against));
    }
    let more = needed(gate, sample, confidence).map_or_else(
        || "no number of items would decide at this value".to_owned(),
        |items| format!("about {items} items would decide if they went on like this"),
    );
    (Verdict::Inconclusive, format!("{}, and {more}", says(&format!("only {towards}"))))
}
