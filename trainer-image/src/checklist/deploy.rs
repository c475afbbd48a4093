//! `codex deploy`: the checklist of a promotion. Reads files; prints.

use std::path::PathBuf;

use codex_checklist::{Checklist, surveys};
use codex_provenance::text::Printable;
use codex_reports::exit;

use super::{
    gather::{self, Inputs},
    objects, reports_of,
};
use crate::{
    arguments::{Format, reference},
    atomic_fs,
    error::CommandError,
    run_folder::RunFolder,
    verify::given::Given,
};

/// Check from files that a ReasoningPod may roll out; nothing is created.
///
/// Prints the checklist, or DEPLOYMENT BLOCKED with every reason. Exit codes: 0 every check holds or is waived, 1 blocked, 2 bad
/// input. kubectl codex deploy checks the same in a cluster.
#[derive(Debug, clap::Args)]
pub struct Deploy {
    /// The objects, as kubectl apply takes them: the ReasoningPod, its TrainingRun, its Evaluations, and SignOffs. Those of the kinds
    /// ResourceQuota and LimitRange limit the servers.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// A file with the ResourceQuotas and LimitRanges of the namespace, if --config does not hold them; repeatable.
    #[arg(long, value_name = "FILE")]
    limits: Vec<PathBuf>,
    /// The ReasoningPod, if the file holds several.
    #[arg(long, value_name = "NAME")]
    pod: Option<String>,
    /// The output directory of the run, or its artifacts.
    #[arg(long, value_name = "DIR", default_value = ".")]
    run_metadata_dir: PathBuf,
    /// An evaluation.json, beside those that lie in the folder of the run; repeatable.
    #[arg(long, value_name = "[EVALUATION=]FILE")]
    evaluation: Vec<String>,
    /// The outcomes.json of an Evaluation that gates compare with; repeatable.
    #[arg(long, value_name = "EVALUATION=FILE", value_parser = reference("EVALUATION"))]
    reference: Vec<(String, PathBuf)>,
    #[command(flatten)]
    signatures: Given,
    /// Leave the signatures to the operator, which signs at the rollout.
    #[arg(long, conflicts_with = "bundle")]
    unsigned: bool,
    /// The survey-*.json of codex status-report, if it does not lie in the folder of the run.
    #[arg(long, value_name = "FILE")]
    status_report: Option<PathBuf>,
    /// Only check, which is the default and all that this program can do.
    #[arg(long, conflicts_with = "no_dry_run")]
    dry_run: bool,
    /// Refused: kubectl and Argo CD apply objects.
    #[arg(long)]
    no_dry_run: bool,
    /// How the checklist is printed.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: Format,
}

impl Deploy {
    pub(crate) fn run(self) -> Result<i32, CommandError> {
        let checklist = self.check()?;
        match self.format {
            Format::Text => atomic_fs::say(&checklist.to_string()),
            Format::Json => atomic_fs::say(&serde_json::to_string_pretty(&checklist).map_err(CommandError::bad_input)?),
        }
        // Exit code 1 means that the checklist blocks.
        .map_err(CommandError::bad_input)?;
        Ok(if checklist.blocked { exit::FAILED } else { exit::FINISHED })
    }

    /// Makes every check.
    ///
    /// # Errors
    /// Exit code 2: a file of the command line cannot be read or used, or `--no-dry-run` is given.
    pub(super) fn check(&self) -> Result<Checklist, CommandError> {
        if self.no_dry_run {
            return Err(CommandError::bad_input(
                "--no-dry-run: this program has no client of a cluster and only checks: apply the objects with kubectl or Argo CD",
            ));
        }
        let reports = reports_of(&self.evaluation)?;
        let chain = objects::read(&self.config, &self.limits, self.pod.as_deref())?;
        let folder =
            RunFolder::locate("--run-metadata-dir", &self.run_metadata_dir).map_err(CommandError::bad_input)?;
        let refused = |why: String| CommandError::bad_input(format!("--status-report: {}", Printable(&why)));
        let surveys = surveys::at_hand(self.status_report.as_deref(), &folder.root).map_err(refused)?;
        let place = folder.root.display().to_string();
        let facts = gather::facts(&Inputs {
            chain: Some(&chain),
            ring: chain.ring,
            folder,
            reports: &reports,
            references: &self.reference,
            signatures: &self.signatures,
            unsigned: self.unsigned,
        })?;
        Ok(Checklist::of(&chain, &facts, &surveys, &place))
    }
}
