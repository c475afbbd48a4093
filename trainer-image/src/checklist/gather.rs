//! What is known about a run from its folder, its objects and the command line. Reads files.

use std::path::PathBuf;

use codex_checklist::{Chain, Facts, Judged, Model, Record, Records, Signatures};
use codex_configs::Resolved;
use codex_provenance::{ModelDigest, manifest::Manifest};
use codex_verdict::{Metric, Ring, Sample};

use crate::{
    artifacts::metadata,
    error::{CommandError, chain as causes},
    gating::Report,
    run_folder::{Part, RunFolder},
    training::CONFIG,
    verify::given::{Given, Outcome, Valid},
};

/// What is read.
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
}

/// A report with the path and the name that it was found under.
struct Named {
    name: Option<String>,
    path: PathBuf,
    report: Report,
}

/// Reads everything about a run.
///
/// # Errors
/// Exit code 2: a file of the command line cannot be read or used.
pub(super) fn facts<'a>(inputs: &Inputs<'a>) -> Result<Facts<'a>, CommandError> {
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
    let covered = Metric::TraceCoverage.name();
    let about = reports.iter().map(|named| &named.report).filter(|report| Some(report.model()) == model);
    let coverage =
        about.filter_map(|report| Some(Sample::named(covered, report.metrics().get(covered)?).ok()?.value()));
    let allowances = chain.map(Chain::allowances).transpose().map_err(CommandError::bad_input)?.unwrap_or_default();
    Ok(Facts {
        chain: *chain,
        ring: *ring,
        records: records(folder),
        signatures: stated(&outcome, &manifest),
        model: match &manifest {
            Part::Found(manifest) => {
                let (files, bytes) = (manifest.files.len(), manifest.size_bytes());
                Ok(Model { digest: manifest.digest(), files, bytes })
            }
            lacking => Err(lacking.lack().unwrap_or_default()),
        },
        judged,
        measured: reports.iter().map(|named| (named.path.display().to_string(), named.report.model())).collect(),
        damaged,
        coverage: coverage.collect(),
        unsigned: inputs.unsigned,
        allowances,
    })
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
            let why = format!("{} does not hold it, so its gates are unknown: add it", chain.place);
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
            gates: gates.into_iter().map(|(_, result)| result).collect(),
            asked,
            report: Some(named.report.digest().0),
            model: Some(named.report.model()),
            why: None,
        },
        Err(error) => Judged { model: Some(named.report.model()), ..Judged::without(name, asked, causes(&error)) },
    }
}

/// Reads the records of a run.
fn records(folder: &RunFolder) -> Records {
    let (metadata, config, checksums) = (folder.metadata(), folder.config(), folder.checksums());
    let lacks = [metadata.lack(), config.lack(), checksums.lack()].into_iter().flatten().collect();
    let run = metadata.found().map(|metadata| {
        let template = metadata.metadata.template.clone();
        let version = |checksums: &metadata::Checksums| checksums.version(&template).map_err(|why| why.to_string());
        Record {
            id: metadata.metadata.run_id.clone(),
            config: metadata.config_digest,
            config_found: config.found().map(Resolved::digest),
            data: Some(metadata.dataset_version),
            data_found: checksums.found().map(version),
            template,
        }
    });
    Records { lacks, run, sources: [metadata::FILE, CONFIG, metadata::CHECKSUMS_FILE].map(str::to_owned) }
}

/// Says what the bundles say.
fn stated(outcome: &Outcome, manifest: &Part<Manifest>) -> Signatures {
    match outcome {
        Outcome::NotGiven if manifest.found().is_none() => {
            Signatures::Missing("without the files of the model, no signature can be checked".to_owned())
        }
        Outcome::NotGiven => Signatures::Missing(
            "no bundle was given: name it by --bundle, --key and --fingerprint, or by --bundle, --trusted-root and the identity, or \
             give --unsigned if the operator is to sign at the rollout"
                .to_owned(),
        ),
        Outcome::Refused(why) => Signatures::Given { found: Vec::new(), reasons: vec![why.clone()] },
        Outcome::Valid(valid) => {
            let Valid { signed, is_pinned, promoted } = &**valid;
            let mut reasons = Vec::new();
            if !is_pinned {
                reasons.push(format!(
                    "the bundles are valid, but the key {} is not pinned: give --fingerprint from a source that you trust",
                    signed.signer
                ));
            }
            if !signed.skipped.is_empty() {
                reasons.push(format!(
                    "the signature leaves out {}: a server needs every file signed",
                    signed.skipped.join(", ")
                ));
            }
            let promotion = match promoted {
                Some(promoted) => {
                    format!("promoted into {} by the statement {}", promoted.promotion.reasons.ring, promoted.digest)
                }
                None => "no promotion was given: the operator signs it at the rollout".to_owned(),
            };
            let found = vec![format!("the files are exactly what {} signed", valid.signer()), promotion];
            Signatures::Given { found, reasons }
        }
    }
}
