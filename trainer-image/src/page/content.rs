//! What a page shows. Reads files.

use std::path::{Path, PathBuf};

use codex_configs::{Resolved, Training};
use codex_provenance::{ModelDigest, manifest::Manifest};
use codex_verdict::{Gate, GateResult};

use super::examples::Examples;
use crate::{
    artifacts::{
        environment::Environment,
        ledger::Ledger,
        metadata::{Checksums, RunMetadata},
    },
    error::{CommandError, chain},
    evaluation::RECORDS,
    gating::{self, Report},
    run_folder::{Part, RunFolder},
    verify::given::{Given, Outcome},
};

/// Number of right and of wrong answers on the page of an evaluator.
const EXAMPLES: usize = 5;

/// What a page shows.
#[derive(Debug)]
pub(super) struct Content {
    /// Name of the directory.
    pub(super) name: String,
    /// Whether it is a run, and not a model alone.
    pub(super) is_run: bool,
    /// The files of the model.
    pub(super) manifest: Part<Manifest>,
    /// The run.
    pub(super) metadata: Part<RunMetadata>,
    /// Its configuration.
    pub(super) config: Part<Resolved<Training>>,
    /// Its data.
    pub(super) checksums: Part<Checksums>,
    /// Its machine and program.
    pub(super) environment: Part<Environment>,
    /// Its metrics.
    pub(super) ledger: Part<Ledger>,
    /// The evaluations.
    pub(super) evaluations: Vec<Evaluated>,
    /// Sentences about evaluations that lie in the folder and cannot be used.
    pub(super) damaged: Vec<String>,
    /// What the bundles say.
    pub(super) signatures: Outcome,
    /// The command line that verifies the model.
    pub(super) command: String,
    /// The command line of the `OpenSSF`'s tool, if a bundle was given.
    pub(super) openssf_command: Option<String>,
}

/// An evaluation.
#[derive(Debug)]
pub(super) struct Evaluated {
    /// The path of its results.
    pub(super) path: PathBuf,
    /// Its results.
    pub(super) report: Report,
    /// Its gates and their results, or why they cannot be judged; `None` without gates.
    pub(super) gates: Option<Result<Vec<(Gate, GateResult)>, String>>,
    /// Answers that are right and wrong.
    pub(super) examples: Part<Examples>,
}

impl Content {
    /// Reads everything that the command names and that lies in the folder.
    ///
    /// # Errors
    /// Exit code 2: a file of the command line cannot be read or used.
    pub(super) fn read(command: &super::Report, folder: &RunFolder) -> Result<Self, CommandError> {
        let gates = command.gates.as_deref().map(gating::read_gates).transpose()?;
        let evaluated = |argument, path: &Path| {
            let report = Report::read(argument, path, None, &command.reference, None)?;
            let gates = gates.clone().map(|gates| report.judge(gates).map_err(|why| chain(&why)));
            let examples = Examples::read(&path.with_file_name(RECORDS), command.examples);
            Ok::<_, gating::GatingError>(Evaluated { path: path.to_owned(), report, gates, examples })
        };
        let (mut evaluations, mut damaged) = (Vec::new(), Vec::new());
        for path in &command.evaluation {
            evaluations.push(evaluated("--evaluation", path)?);
        }
        for path in folder.evaluations() {
            if command.evaluation.contains(&path) {
                continue;
            }
            match evaluated("evaluation", &path) {
                Ok(found) => evaluations.push(found),
                Err(why) => damaged.push(chain(&why)),
            }
        }
        let signatures = &command.signatures;
        let manifest = folder.manifest(&signatures.inside(&folder.model));
        let ring = command.ring.as_deref();
        let outcome = match manifest.found() {
            Some(manifest) => signatures.verify(manifest, ring.unwrap_or_default())?,
            None => Outcome::NotGiven,
        };
        Ok(Self {
            name: folder.name(),
            is_run: folder.is_run(),
            manifest,
            metadata: folder.metadata(),
            config: folder.config(),
            checksums: folder.checksums(),
            environment: folder.environment(),
            ledger: folder.ledger(),
            evaluations,
            damaged,
            signatures: outcome,
            command: signatures.command(&folder.model, ring),
            openssf_command: signatures.openssf_command(&folder.model),
        })
    }

    /// Reads the results of an evaluation of the model with this manifest. Of a run, nothing but the model is known.
    ///
    /// # Errors
    /// The results cannot be read.
    pub(super) fn of_evaluation(
        model: &Path,
        manifest: &Manifest,
        path: &Path,
        gates: &[Gate],
        references: &[(String, PathBuf)],
    ) -> Result<Self, gating::GatingError> {
        let report = Report::read("evaluation", path, None, references, None)?;
        let gates = report.judge(gates.to_vec()).map_err(|why| chain(&why));
        let examples = Examples::read(&path.with_file_name(RECORDS), EXAMPLES);
        let folder = RunFolder { root: model.to_owned(), model: model.to_owned(), artifacts: model.join("artifacts") };
        Ok(Self {
            name: manifest.digest().short(),
            is_run: false,
            metadata: folder.metadata(),
            config: folder.config(),
            checksums: folder.checksums(),
            environment: folder.environment(),
            ledger: folder.ledger(),
            manifest: Part::Found(manifest.clone()),
            evaluations: vec![Evaluated { path: path.to_owned(), report, gates: Some(gates), examples }],
            damaged: Vec::new(),
            signatures: Outcome::NotGiven,
            command: Given::default().command(model, None),
            openssf_command: None,
        })
    }

    /// Returns the digest of the model, if its files could be hashed.
    pub(super) fn digest(&self) -> Option<ModelDigest> {
        self.manifest.found().map(Manifest::digest)
    }
}
