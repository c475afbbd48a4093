//! The evaluations of a promotion, measured again from their outcomes. Pure.

use std::{collections::BTreeMap, path::Path};

use codex_provenance::{
    DataDigest, Sha256,
    promotion::{Evaluation, Reference},
    text::Printable,
};
use codex_verdict::measurements;

use super::{Outcomes, items::confirm};
use crate::error::CommandError;

/// Measures the evaluations again whose outcomes are given. Returns their names.
///
/// # Errors
/// A file is about no evaluation of the promotion or is malformed, or a signed measurement is not what its outcomes give.
pub(crate) fn measured_again(
    evaluations: &[Evaluation],
    files: &[(&Path, Vec<u8>)],
) -> Result<Vec<String>, CommandError> {
    let mut known = BTreeMap::new();
    for (path, bytes) in files {
        let (shown, digest) = (path.display().to_string(), DataDigest(Sha256::of(bytes)));
        let named = |it: &Evaluation| {
            it.outcomes == Some(digest) || it.references.iter().any(|reference| reference.outcomes == digest)
        };
        if !evaluations.iter().any(named) {
            let why = format!(
                "--outcomes: {}: no evaluation of the promotion has outcomes with its digest {digest}",
                Printable(&shown)
            );
            return Err(CommandError::failed(why));
        }
        let read = Outcomes::parse(bytes)
            .map_err(|why| CommandError::bad_input(format!("--outcomes: {}: {why}", Printable(&shown))))?;
        known.insert(digest, read);
    }
    let mut names = Vec::new();
    for evaluation in evaluations {
        let Some(own) = evaluation.outcomes.as_ref().and_then(|digest| known.get(digest)) else { continue };
        let mut found = own.measure(None);
        for Reference { name, outcomes, .. } in &evaluation.references {
            found.extend(known.get(outcomes).map(|other| other.compare(name, own, None)).unwrap_or_default());
        }
        let refuse = |why: String| CommandError::failed(format!("evaluation {} {why}", Printable(&evaluation.name)));
        let stated = measurements(&evaluation.metrics).map_err(|why| refuse(why.to_string()))?;
        confirm(&stated, &found).map_err(refuse)?;
        names.push(evaluation.name.clone());
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use codex_provenance::ModelDigest;
    use codex_verdict::{Decimal, GateSpec, Measurement, Stated};

    use super::*;

    fn outcomes(model: &str, right: usize) -> String {
        let items: Vec<String> = (1..=40)
            .map(|line| {
                let value = if line <= right { "1" } else { "0" };
                format!(
                    r#"{{"line":{line},"values":{{"exact_match":{value}.0}},"perplexity":{{"logProbability":-{line}.5,"tokens":{line}}}}}"#
                )
            })
            .collect();
        format!(
            r#"{{"schemaVersion":2,"model":"{model}","problems":"{}","settings":{{}},"bootstrap":{{"seed":7,"confidence":0.95}},"items":[{}]}}"#,
            Sha256::of("problems"),
            items.join(",")
        )
    }

    #[test]
    fn measurements_are_computed_again_from_outcomes() {
        let file = outcomes(&Sha256::of("model").to_string(), 39);
        let path = Path::new("outcomes.json");
        let metrics = Outcomes::parse(file.as_bytes()).unwrap().measure(None);
        let evaluation = |metrics: &BTreeMap<String, Measurement>| {
            let gate = GateSpec {
                metric: "perplexity".into(),
                max: Some(Decimal("5".into())),
                confidence: Some(Decimal("0.95".into())),
                ..GateSpec::default()
            };
            let model = ModelDigest(Sha256::of("model"));
            let stated = Stated::of(model, &BTreeMap::new(), metrics, &[gate]).unwrap();
            Evaluation {
                name: "lite".to_owned(),
                uid: "uid".to_owned(),
                preset: "cot-lite".to_owned(),
                config_digest: None,
                report_digest: stated.report_digest,
                gates_digest: stated.gates_digest,
                data: BTreeMap::new(),
                image_id: String::new(),
                completed_at: "2026-11-28T09:00:00Z".to_owned(),
                evidence: None,
                outcomes: Some(DataDigest(Sha256::of(&file))),
                golden_tokens: None,
                metrics: stated.metrics,
                gates: stated.gates,
                references: Vec::new(),
                reads: None,
            }
        };
        let good = evaluation(&metrics);
        assert!(good.gates[0].approximate && good.gates[0].verdict == "Passed", "{:?}", good.gates);
        let again = |evaluation: &Evaluation, bytes: &str| {
            measured_again(std::slice::from_ref(evaluation), &[(path, bytes.as_bytes().to_vec())])
                .map_err(|error| (error.exit, error.sentence()))
        };
        assert_eq!(again(&good, &file).unwrap(), ["lite"]);
        let (exit, told) = again(&good, &outcomes(&Sha256::of("model").to_string(), 40)).unwrap_err();
        assert_eq!(exit, 1);
        assert!(
            told.starts_with("--outcomes: outcomes.json: no evaluation of the promotion has outcomes with"),
            "{told}"
        );
        let mut better = metrics;
        if let Some(Measurement::Estimate { upper, value, .. }) = better.get_mut("perplexity") {
            *upper = *value;
        }
        let (exit, told) = again(&evaluation(&better), &file).unwrap_err();
        assert_eq!(exit, 1);
        assert!(
            told.starts_with("evaluation lite states {") && told.contains(" for perplexity, but its outcomes give"),
            "{told}"
        );
        let malformed = Evaluation { outcomes: Some(DataDigest(Sha256::of("{}"))), ..good };
        assert_eq!(again(&malformed, "{}").unwrap_err().0, 2);
    }
}
