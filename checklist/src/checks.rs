//! The checks of a promotion. Pure.

use codex_provenance::{ModelDigest, Sha256, text::counted};
use codex_verdict::{Ring, Verdict};

use crate::{
    Check, Facts, Findings, Judged, Quantity, Record, Records, SignOff, Signatures, Subject, Survey, chain::Chain,
};

const NO_OBJECTS: &str = "no objects were given: name their file by --config";

/// Makes every check but that of the status report.
pub fn check(facts: &Facts<'_>) -> Vec<Check> {
    vec![
        ring_of(facts).finish(Subject::Ring),
        artifacts(&facts.records, facts.chain).finish(Subject::Artifacts),
        parity(facts).finish(Subject::Manifest),
        evaluations(facts).finish(Subject::Evaluations),
        signed(facts).finish(Subject::Signatures),
        resources(facts).finish(Subject::Resources),
    ]
}

fn ring_of(facts: &Facts<'_>) -> Findings {
    let (Some(chain), ring) = (facts.chain, facts.ring) else { return Findings::lacking(NO_OBJECTS) };
    let name = chain.run_name();
    let mut findings = Findings::default();
    match chain.run() {
        None => findings.reasons.push(format!(
            "the ring of the run is not declared: {} does not hold TrainingRun {name}; add it, with spec.rolloutRing",
            chain.place
        )),
        Some((of_run, _)) if of_run == ring.name() => {
            findings.found.push(format!("TrainingRun {name} and ReasoningPod {} are both in {ring}", chain.name));
        }
        Some((of_run, _)) => findings.reasons.push(format!(
            "TrainingRun {name} is in {of_run}, and ReasoningPod {} is in {ring}: change spec.rolloutRing of one of them",
            chain.name
        )),
    }
    findings
}

fn artifacts(records: &Records, chain: Option<&Chain>) -> Findings {
    let Records { lacks, run, sources: [identity, config_source, data_source] } = records;
    let mut findings = Findings { reasons: lacks.clone(), ..Findings::default() };
    let Some(Record { id, template, config, config_found, data, data_found }) = run else { return findings };
    if let Some(found) = config_found
        && found != config
    {
        findings.reasons.push(format!(
            "{config_source} has the digest {found}, but {identity} names {config}: one of them is of another run"
        ));
    }
    match (data, data_found) {
        (Some(named), Some(Ok(version))) if version != named => findings
            .reasons
            .push(format!("the data drifted: {data_source} gives the version {version}, but {identity} names {named}")),
        (_, Some(Err(why))) => findings.reasons.push(format!("{data_source}: {why}")),
        _ => {}
    }
    if let Some((_, of_run)) = chain.and_then(Chain::run)
        && of_run != template
    {
        findings.reasons.push(format!("the run is of the template {template}, but its TrainingRun has {of_run}"));
    }
    if findings.reasons.is_empty() {
        findings.found.push(format!(
            "{identity}, {config_source} and {data_source} agree: run {id}, template {template}, configuration {}",
            config.short()
        ));
    }
    findings
}

fn parity(facts: &Facts<'_>) -> Findings {
    let found = match &facts.model {
        Ok(found) => found,
        Err(why) => return Findings::lacking(why),
    };
    let model = found.digest;
    let mut findings = Findings::default();
    if let Some(recorded) = facts.chain.and_then(Chain::recorded_model)
        && recorded != model.to_string()
    {
        findings
            .reasons
            .push(format!("status.model.digest of the TrainingRun is {recorded}, but the files are {model}"));
    }
    let named: Vec<(String, ModelDigest)> = if facts.chain.is_some() {
        facts.judged.iter().filter_map(|one| Some((format!("Evaluation {}", one.name), one.model?))).collect()
    } else {
        facts.measured.clone()
    };
    for (name, measured) in named.iter().filter(|(_, measured)| *measured != model) {
        findings.reasons.push(format!(
            "{name} measured the model {measured}, but the files are {model}: evaluate these files, or restore the others"
        ));
    }
    if named.is_empty() {
        findings.reasons.push(format!("no evaluation was found whose model could be compared with {model}"));
    }
    if findings.reasons.is_empty() {
        findings.found.push(format!(
            "{} with {} bytes are the model that {} measured",
            counted(found.files, "file"),
            found.bytes,
            counted(named.len(), "evaluation")
        ));
    }
    findings
}

fn evaluations(facts: &Facts<'_>) -> Findings {
    let Some(chain) = facts.chain else { return Findings::lacking(NO_OBJECTS) };
    let (ring, model) = (facts.ring, facts.digest());
    let sign_offs = chain.sign_offs();
    let reports: Option<Vec<Sha256>> = facts.judged.iter().map(|one| one.report).collect();
    let whole = reports.and_then(whole_report);
    let mut findings = Findings::default();
    for one in &facts.judged {
        let name = &one.name;
        if one.verdict() == Some(Verdict::Passed) {
            findings.found.push(format!("{name}: {} of {} gates passed", one.passed(), one.gates.len()));
            continue;
        }
        let why = unmet(one);
        let mut voids = Vec::new();
        let mut counts = None;
        let about = |sign_off: &&SignOff| sign_off.evaluation.as_ref().is_none_or(|evaluation| evaluation == name);
        for sign_off in sign_offs.iter().filter(about) {
            let report = if sign_off.evaluation.is_some() { one.report } else { whole };
            match void(sign_off, report, ring, model) {
                None => counts = Some(sign_off),
                Some(why) => voids.push(format!("{name}: SignOff {} does not count: {why}", sign_off.name)),
            }
        }
        if let Some(SignOff { by, reason, .. }) = counts {
            findings.is_waived = true;
            findings.found.extend(why);
            findings.found.push(format!(
                "{name}: signed off by {by}: {reason} (the operator itself still rolls out passed Evaluations only)"
            ));
        } else {
            findings.reasons.extend(why);
            findings.reasons.extend(voids);
        }
    }
    if !findings.reasons.is_empty() {
        findings.reasons.extend(facts.damaged.iter().cloned());
    }
    findings
}

/// Returns why an Evaluation has not passed, in sentences.
fn unmet(one: &Judged) -> Vec<String> {
    let name = &one.name;
    let failed = one.gates.iter().filter(|result| result.verdict != Verdict::Passed);
    failed
        .map(|result| format!("{name}: {} {}: {}", result.metric, result.verdict, result.message))
        .chain(one.why.as_ref().map(|why| format!("{name}: {why}")))
        .collect()
}

/// Returns the digest over the reports of all Evaluations, as the operator computes `status.reportDigest` of a ReasoningPod.
fn whole_report(mut reports: Vec<Sha256>) -> Option<Sha256> {
    reports.sort_unstable();
    match reports[..] {
        [] => None,
        [one] => Some(one),
        _ => Some(Sha256::of(reports.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))),
    }
}

/// Returns why a SignOff does not count for a report; `None` if it counts.
fn void(sign_off: &SignOff, report: Option<Sha256>, ring: Ring, model: Option<ModelDigest>) -> Option<String> {
    if let Some(other) = sign_off.ring.as_deref().filter(|other| *other != ring.name()) {
        return Some(format!("it is for the ring {other}, and this is {ring}"));
    }
    let short = |digest: Option<Sha256>| digest.map_or_else(|| "unknown".to_owned(), |digest| digest.short());
    if model.is_none() || sign_off.model != model {
        let (named, here) = (sign_off.model.map(|it| it.0), model.map(|it| it.0));
        return Some(format!("it names the model {}, and the model is {}", short(named), short(here)));
    }
    (report.is_none() || sign_off.report != report)
        .then(|| format!("it names the report {}, and the report is {}", short(sign_off.report), short(report)))
}

fn signed(facts: &Facts<'_>) -> Findings {
    match &facts.signatures {
        Signatures::Missing(_) if facts.unsigned => Findings {
            found: vec!["not checked (--unsigned): the operator signs at the rollout".to_owned()],
            is_waived: true,
            ..Findings::default()
        },
        Signatures::Missing(why) => Findings::lacking(why),
        Signatures::Given { found, reasons } => {
            Findings { found: found.clone(), reasons: reasons.clone(), is_waived: false }
        }
    }
}

fn resources(facts: &Facts<'_>) -> Findings {
    let Some(chain) = facts.chain else { return Findings::lacking(NO_OBJECTS) };
    let mut findings = Findings::default();
    for (list, name, example) in
        [("requests", "cpu", "200m"), ("requests", "memory", "128Mi"), ("limits", "memory", "512Mi")]
    {
        let field = format!("spec.pod.resources.{list}.{name}");
        match chain.resource(list, name) {
            None => findings.reasons.push(format!("{field} is not set: write a quantity, such as {example}")),
            Some(quantity) if Quantity::of(quantity).is_none_or(|number| number <= Quantity::ZERO) => {
                findings.reasons.push(format!("{field} is {quantity}: write a quantity above 0, such as {example}"));
            }
            Some(_) => {}
        }
    }
    let number = |list: &str, name: &str| chain.resource(list, name).and_then(Quantity::of);
    for name in chain.bounded() {
        if let (Some(request), Some(limit)) = (number("requests", name), number("limits", name))
            && request > limit
        {
            findings.reasons.push(format!(
                "spec.pod.resources.requests.{name} is above its limit: the API server refuses such a pod; lower the request"
            ));
        }
    }
    if let (Some(limit), Ok(model)) = (number("limits", "memory"), &facts.model)
        && limit < Quantity::whole(model.bytes)
    {
        findings.reasons.push(format!(
            "spec.pod.resources.limits.memory is below the size of the model ({} bytes), which a server keeps in memory: raise it",
            model.bytes
        ));
    }
    if chain.replicas() == 0 {
        findings.reasons.push("spec.replicas is 0, so that nothing would serve: write 1 or more".to_owned());
    }
    findings.reasons.extend(facts.allowances.refusals(chain));
    if findings.reasons.is_empty() {
        let shown =
            |list, name| chain.resource(list, name).map_or_else(String::new, |it| it.to_string().replace('"', ""));
        findings.found.push(format!(
            "{} with {} cores and {} of memory, at most {}{}",
            counted(chain.replicas().max(0), "server"),
            shown("requests", "cpu"),
            shown("requests", "memory"),
            shown("limits", "memory"),
            if chain.is_dry_run() { "; spec.dryRun is true, so that the operator only checks" } else { "" }
        ));
        findings.found.push(format!("deployment.preset is {}", chain.deployment_preset()));
        findings.found.extend(facts.allowances.told(chain));
    }
    findings
}

/// Checks that a survey is about this model in this ring. The surveys are sorted, the oldest first, and have the names of their
/// files; `place` is where they were looked for.
pub fn status_report(ring: Ring, model: Option<ModelDigest>, surveys: &[(String, Survey)], place: &str) -> Check {
    let mut findings = Findings::default();
    let about = |survey: &Survey| {
        let run = survey.runs.iter().find(|run| run.model.is_some() && run.model == model)?;
        (survey.ring == ring).then_some(run.readiness)
    };
    let found = surveys.iter().rev().find_map(|(name, survey)| Some((name, survey, about(survey)?)));
    match found {
        Some((name, survey, readiness)) => {
            findings.found.push(format!("{name} of {}: readiness {readiness}", survey.date));
        }
        None if surveys.is_empty() => findings
            .reasons
            .push(format!("{place} has no survey-*.json: write one by codex status-report --out {place}")),
        None => findings
            .reasons
            .push(format!("no survey is about this model in the ring {ring}: write one by codex status-report")),
    }
    findings.finish(Subject::StatusReport)
}
