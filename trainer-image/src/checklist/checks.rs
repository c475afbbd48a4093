//! The checks of a promotion, from files. Reads files.

use std::path::PathBuf;

use codex_provenance::{ModelDigest, Sha256, manifest::Manifest, text::Printable};
use codex_verdict::{Gate, GateResult, Ring, Verdict};

use super::{
    Check, Findings, Subject,
    chain::{Chain, SignOff},
    quantity, survey,
};
use crate::{
    error::{CommandError, chain as causes},
    gating::Report,
    run_folder::{Part, RunFolder},
    verify::given::{Given, Outcome, Valid},
    wording::counted,
};

/// What is checked.
#[derive(Debug)]
pub(super) struct Inputs<'a> {
    /// The objects; without them, what needs them does not hold.
    pub(super) chain: Option<&'a Chain>,
    /// The ring to promote into.
    pub(super) ring: Ring,
    /// The folder of the run.
    pub(super) folder: RunFolder,
    /// Reports of evaluations from the command line, some with the name of their Evaluation.
    pub(super) reports: &'a [(Option<String>, PathBuf)],
    /// Outcomes of evaluations that gates compare with, by name.
    pub(super) references: &'a [(String, PathBuf)],
    /// The bundles and the key.
    pub(super) signatures: &'a Given,
    /// Whether signatures are left to the operator.
    pub(super) unsigned: bool,
    /// The survey; without it, those in the folder of the run are looked through.
    pub(super) survey: Option<PathBuf>,
}

/// What the checks read, and their results.
#[derive(Debug)]
pub(super) struct Checked {
    /// The digest of the model, if its files could be hashed.
    pub(super) model: Option<ModelDigest>,
    /// The results, without that of the status report.
    pub(super) checks: Vec<Check>,
    /// The evaluations that were judged.
    pub(super) judged: Vec<Judged>,
    /// Every report that was read.
    pub(super) reports: Vec<Report>,
}

/// An Evaluation with its gates.
#[derive(Debug)]
pub(super) struct Judged {
    /// Name of the Evaluation.
    pub(super) name: String,
    /// The gates and their results; empty if nothing was judged.
    pub(super) gates: Vec<(Gate, GateResult)>,
    /// Number of gates; 1 if they are unknown.
    pub(super) asked: usize,
    /// The digest of the report, if one was found.
    report: Option<Sha256>,
    /// The model of the report, if one was found.
    model: Option<ModelDigest>,
    /// Why nothing was judged.
    why: Option<String>,
}

impl Judged {
    fn without(name: &str, asked: usize, why: String) -> Self {
        Self { name: name.to_owned(), gates: Vec::new(), asked, report: None, model: None, why: Some(why) }
    }

    /// Returns the verdict over all gates; `None` if nothing was judged.
    fn verdict(&self) -> Option<Verdict> {
        self.gates.iter().map(|(_, result)| result.verdict).min()
    }
}

/// A report with the path and the name that it was found under.
struct Named {
    name: Option<String>,
    path: PathBuf,
    report: Report,
}

const NO_OBJECTS: &str = "no objects were given: name their file by --config";

/// Makes every check but that of the status report.
///
/// # Errors
/// Exit code 2: a file of the command line cannot be read or used.
pub(super) fn check(inputs: &Inputs<'_>) -> Result<Checked, CommandError> {
    let Inputs { chain, ring, folder, signatures, .. } = inputs;
    let manifest = folder.manifest(&signatures.inside(&folder.model));
    let model = manifest.found().map(Manifest::digest);
    let (reports, damaged) = read_reports(inputs)?;
    let names: Vec<&str> = chain.iter().flat_map(|chain| chain.evaluations()).collect();
    let judged: Vec<Judged> =
        names.iter().filter_map(|name| Some(judge((*chain)?, name, &reports, model, inputs))).collect();
    let outcome = match manifest.found() {
        Some(manifest) => signatures.verify(manifest, ring.name())?,
        None => Outcome::NotGiven,
    };
    let checks = vec![
        ring_of(*chain, *ring).finish(Subject::Ring),
        artifacts(folder, *chain).finish(Subject::Artifacts),
        parity(&manifest, *chain, &judged, &reports).finish(Subject::Manifest),
        evaluations(*chain, *ring, model, &judged, &damaged).finish(Subject::Evaluations),
        signed(&outcome, inputs.unsigned, &manifest).finish(Subject::Signatures),
        resources(*chain, &manifest).finish(Subject::Resources),
    ];
    Ok(Checked { model, checks, judged, reports: reports.into_iter().map(|named| named.report).collect() })
}

/// Reads the reports of the command line, and those that lie in the folder of the run. Returns sentences about the latter that
/// cannot be used.
fn read_reports(inputs: &Inputs<'_>) -> Result<(Vec<Named>, Vec<String>), CommandError> {
    let (mut reports, mut damaged) = (Vec::new(), Vec::new());
    for (name, path) in inputs.reports {
        let report = Report::read("--evaluation", path, None, &[], None)?;
        reports.push(Named { name: name.clone(), path: path.clone(), report });
    }
    for path in inputs.folder.evaluations() {
        if inputs.reports.iter().any(|(_, given)| *given == path) {
            continue;
        }
        match Report::read("evaluation", &path, None, &[], None) {
            Ok(report) => {
                let folder = path.parent().and_then(|folder| folder.file_name());
                reports.push(Named { name: folder.map(|name| name.to_string_lossy().into_owned()), path, report });
            }
            Err(error) => damaged.push(causes(&error)),
        }
    }
    Ok((reports, damaged))
}

/// Finds the report of an Evaluation: the one under its name, else the only one of its preset about the model.
fn find<'a>(name: &str, preset: &str, reports: &'a [Named], model: Option<ModelDigest>) -> Result<&'a Named, String> {
    if let Some(named) = reports.iter().find(|report| report.name.as_deref() == Some(name)) {
        if named.report.preset() != preset {
            return Err(format!(
                "{} is of the preset {}, but the preset of the Evaluation is {preset}",
                named.path.display(),
                named.report.preset()
            ));
        }
        return Ok(named);
    }
    let about =
        |named: &&Named| named.report.preset() == preset && model.is_none_or(|model| named.report.model() == model);
    let found: Vec<&Named> = reports.iter().filter(about).collect();
    match found[..] {
        [one] => Ok(one),
        [] => Err(format!(
            "no evaluation.json of the preset {preset} is about the model: run codex evaluate --preset {preset}, or give \
             --evaluation {name}=FILE"
        )),
        _ => {
            let paths: Vec<_> = found.iter().map(|named| named.path.display().to_string()).collect();
            Err(format!("several files may be meant ({}): give --evaluation {name}=FILE", paths.join(", ")))
        }
    }
}

fn judge(chain: &Chain, name: &str, reports: &[Named], model: Option<ModelDigest>, inputs: &Inputs<'_>) -> Judged {
    let (preset, gates) = match chain.evaluation(name) {
        Some(Ok(found)) => found,
        Some(Err(why)) => return Judged::without(name, 1, why),
        None => {
            let why = format!("{} does not hold it, so its gates are unknown: add it", chain.file.display());
            return Judged::without(name, 1, why);
        }
    };
    let asked = gates.len();
    let named = match find(name, preset, reports, model) {
        Ok(named) => named,
        Err(why) => return Judged::without(name, asked, why),
    };
    let compared = |reference: &&(String, PathBuf)| {
        gates.iter().any(|gate| gate.bound.comparison().is_some_and(|with| with.evaluation == reference.0))
    };
    let references: Vec<(String, PathBuf)> = inputs.references.iter().filter(compared).cloned().collect();
    let judged = if references.is_empty() {
        named.report.judge(gates)
    } else {
        // The outcomes of both are compared, which reading alone does not do.
        Report::read("--evaluation", &named.path, None, &references, None).and_then(|report| report.judge(gates))
    };
    match judged {
        Ok(gates) => Judged {
            name: name.to_owned(),
            gates,
            asked,
            report: Some(named.report.digest().0),
            model: Some(named.report.model()),
            why: None,
        },
        Err(error) => Judged { model: Some(named.report.model()), ..Judged::without(name, asked, causes(&error)) },
    }
}

fn ring_of(chain: Option<&Chain>, ring: Ring) -> Findings {
    let Some(chain) = chain else { return Findings::lacking(NO_OBJECTS) };
    let name = chain.run_name();
    let mut findings = Findings::default();
    match chain.run() {
        None => findings.reasons.push(format!(
            "the ring of the run is not declared: {} does not hold TrainingRun {name}; add it, with spec.rolloutRing",
            chain.file.display()
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

fn artifacts(folder: &RunFolder, chain: Option<&Chain>) -> Findings {
    let (metadata, config, checksums) = (folder.metadata(), folder.config(), folder.checksums());
    let lacks = [metadata.lack(), config.lack(), checksums.lack()];
    let mut findings = Findings { reasons: lacks.into_iter().flatten().collect(), ..Findings::default() };
    let Some(metadata) = metadata.found() else { return findings };
    let template = &metadata.metadata.template;
    if let Some(config) = config.found()
        && config.digest() != metadata.config_digest
    {
        findings.reasons.push(format!(
            "config.yaml has the digest {}, but run_metadata.json names {}: one of them is of another run",
            config.digest(),
            metadata.config_digest
        ));
    }
    if let Some(checksums) = checksums.found() {
        match checksums.version(template) {
            Ok(version) if version == metadata.dataset_version => {}
            Ok(version) => findings.reasons.push(format!(
                "the data drifted: dataset_checksums.json gives the version {version}, but run_metadata.json names {}",
                metadata.dataset_version
            )),
            Err(why) => findings.reasons.push(format!("dataset_checksums.json: {why}")),
        }
    }
    if let Some((_, of_run)) = chain.and_then(Chain::run)
        && of_run != template
    {
        findings.reasons.push(format!("the run is of the template {template}, but its TrainingRun has {of_run}"));
    }
    if findings.reasons.is_empty() {
        findings.found.push(format!(
            "run_metadata.json, config.yaml and dataset_checksums.json agree: run {}, template {template}, configuration {}",
            metadata.metadata.run_id,
            metadata.config_digest.short()
        ));
    }
    findings
}

fn parity(manifest: &Part<Manifest>, chain: Option<&Chain>, judged: &[Judged], reports: &[Named]) -> Findings {
    let Some(found) = manifest.found() else {
        return Findings::lacking(manifest.lack().unwrap_or_default());
    };
    let model = found.digest();
    let mut findings = Findings::default();
    if let Some(recorded) = chain.and_then(Chain::recorded_model)
        && recorded != model.to_string()
    {
        findings
            .reasons
            .push(format!("status.model.digest of the TrainingRun is {recorded}, but the files are {model}"));
    }
    let named: Vec<(String, ModelDigest)> = if chain.is_some() {
        judged.iter().filter_map(|one| Some((format!("Evaluation {}", one.name), one.model?))).collect()
    } else {
        reports.iter().map(|named| (named.path.display().to_string(), named.report.model())).collect()
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
            counted(found.files.len(), "file"),
            found.size_bytes(),
            counted(named.len(), "evaluation")
        ));
    }
    findings
}

fn evaluations(
    chain: Option<&Chain>,
    ring: Ring,
    model: Option<ModelDigest>,
    judged: &[Judged],
    damaged: &[String],
) -> Findings {
    let Some(chain) = chain else { return Findings::lacking(NO_OBJECTS) };
    let sign_offs = chain.sign_offs();
    let reports: Option<Vec<Sha256>> = judged.iter().map(|one| one.report).collect();
    let whole = reports.and_then(whole_report);
    let mut findings = Findings::default();
    for one in judged {
        let name = &one.name;
        let (passed, all) = (one.gates.iter().filter(|(_, it)| it.verdict == Verdict::Passed).count(), one.gates.len());
        if one.verdict() == Some(Verdict::Passed) {
            findings.found.push(format!("{name}: {passed} of {all} gates passed"));
            continue;
        }
        let failed = one.gates.iter().filter(|(_, result)| result.verdict != Verdict::Passed);
        let why: Vec<String> = failed
            .map(|(gate, result)| format!("{name}: {} {}: {}", gate.metric, result.verdict, result.message))
            .chain(one.why.as_ref().map(|why| format!("{name}: {why}")))
            .collect();
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
        findings.reasons.extend(damaged.iter().cloned());
    }
    findings
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

fn signed(outcome: &Outcome, unsigned: bool, manifest: &Part<Manifest>) -> Findings {
    let mut findings = Findings::default();
    match outcome {
        Outcome::NotGiven if unsigned => {
            findings.is_waived = true;
            findings.found.push("not checked (--unsigned): the operator signs at the rollout".to_owned());
        }
        Outcome::NotGiven if manifest.found().is_none() => {
            findings.reasons.push("without the files of the model, no signature can be checked".to_owned());
        }
        Outcome::NotGiven => findings.reasons.push(
            "no bundle was given: name it by --bundle, --key and --fingerprint, or by --bundle, --trusted-root and the identity, or \
             give --unsigned if the operator is to sign at the rollout"
                .to_owned(),
        ),
        Outcome::Refused(why) => findings.reasons.push(why.clone()),
        Outcome::Valid(valid) => {
            let Valid { signed, is_pinned, promoted } = &**valid;
            if !is_pinned {
                findings.reasons.push(format!(
                    "the bundles are valid, but the key {} is not pinned: give --fingerprint from a source that you trust",
                    signed.signer
                ));
            }
            if !signed.skipped.is_empty() {
                findings.reasons.push(format!(
                    "the signature leaves out {}: a server needs every file signed",
                    signed.skipped.join(", ")
                ));
            }
            findings.found.push(format!("the files are exactly what {} signed", valid.signer()));
            findings.found.push(match promoted {
                Some(promoted) => {
                    format!("promoted into {} by the statement {}", promoted.promotion.reasons.ring, promoted.digest)
                }
                None => "no promotion was given: the operator signs it at the rollout".to_owned(),
            });
        }
    }
    findings
}

fn resources(chain: Option<&Chain>, manifest: &Part<Manifest>) -> Findings {
    let Some(chain) = chain else { return Findings::lacking(NO_OBJECTS) };
    let mut findings = Findings::default();
    for (list, name, example) in
        [("requests", "cpu", "200m"), ("requests", "memory", "128Mi"), ("limits", "memory", "512Mi")]
    {
        let field = format!("spec.pod.resources.{list}.{name}");
        match chain.resource(list, name) {
            None => findings.reasons.push(format!("{field} is not set: write a quantity, such as {example}")),
            Some(quantity) if quantity::parse(quantity).is_none_or(|number| number <= 0.0) => {
                findings.reasons.push(format!("{field} is {quantity}: write a quantity above 0, such as {example}"));
            }
            Some(_) => {}
        }
    }
    let number = |list: &str, name: &str| chain.resource(list, name).and_then(quantity::parse);
    for name in chain.bounded() {
        if let (Some(request), Some(limit)) = (number("requests", name), number("limits", name))
            && request > limit
        {
            findings.reasons.push(format!(
                "spec.pod.resources.requests.{name} is above its limit: the API server refuses such a pod; lower the request"
            ));
        }
    }
    if let (Some(limit), Some(manifest)) = (number("limits", "memory"), manifest.found())
        && limit < manifest.size_bytes() as f64
    {
        findings.reasons.push(format!(
            "spec.pod.resources.limits.memory is below the size of the model ({} bytes), which a server keeps in memory: raise it",
            manifest.size_bytes()
        ));
    }
    if chain.replicas() == 0 {
        findings.reasons.push("spec.replicas is 0, so that nothing would serve: write 1 or more".to_owned());
    }
    if findings.reasons.is_empty() {
        let shown =
            |list, name| chain.resource(list, name).map_or_else(String::new, |it| it.to_string().replace('"', ""));
        findings.found.push(format!(
            "{} with {} cores and {} of memory, at most {}{}",
            counted(usize::try_from(chain.replicas()).unwrap_or_default(), "server"),
            shown("requests", "cpu"),
            shown("requests", "memory"),
            shown("limits", "memory"),
            if chain.is_dry_run() { "; spec.dryRun is true, so that the operator only checks" } else { "" }
        ));
    }
    findings
}

/// Checks that a survey is about this model in this ring.
///
/// # Errors
/// Exit code 2: the survey of the command line cannot be used.
pub(super) fn status_report(inputs: &Inputs<'_>, model: Option<ModelDigest>) -> Result<Check, CommandError> {
    let mut findings = Findings::default();
    let surveys = match &inputs.survey {
        Some(path) => match survey::read(path) {
            Part::Found(survey) => vec![(path.clone(), survey)],
            lacking => {
                let why = lacking.lack().unwrap_or_default();
                return Err(CommandError::bad_input(format!("--status-report: {}", Printable(&why))));
            }
        },
        None => survey::in_folder(&inputs.folder.root),
    };
    let about = |survey: &survey::Survey| {
        let run = survey.runs.iter().find(|run| run.model.is_some() && run.model == model)?;
        (survey.ring == inputs.ring).then_some(run.readiness)
    };
    let found = surveys.iter().rev().find_map(|(path, survey)| Some((path, survey, about(survey)?)));
    match found {
        Some((path, survey, readiness)) => findings.found.push(format!(
            "{} of {}: readiness {readiness}",
            path.file_name().unwrap_or_default().to_string_lossy(),
            survey.date
        )),
        None if surveys.is_empty() => findings.reasons.push(format!(
            "{} has no survey-*.json: write one by codex status-report --out {0}",
            inputs.folder.root.display()
        )),
        None => findings.reasons.push(format!(
            "no survey is about this model in the ring {}: write one by codex status-report",
            inputs.ring
        )),
    }
    Ok(findings.finish(Subject::StatusReport))
}
