//! `codex status-report`: how ready runs are for a ring, as a survey in Markdown and JSON. Reads and writes files.

use std::path::{Path, PathBuf};

use clap::builder::PossibleValuesParser;
use codex_checklist::{Chain, Survey, Surveyed, Weights, surveys};
use codex_reports::exit;
use codex_verdict::Ring;
use jiff::{Timestamp, civil::Date, tz::TimeZone};

use super::{
    gather::{self, Inputs},
    objects, reports_of,
};
use crate::{
    arguments::{reference, whole},
    atomic_fs,
    error::CommandError,
    overlap::{self, Named},
    run_folder::RunFolder,
    verify::given::Given,
};

/// Survey how ready runs are for a ring, as Markdown and JSON.
///
/// Readiness is R = aE + bT + gD: E is the share of gates that passed, T the measured trace coverage, D the share of the checks of
/// codex deploy that hold. kubectl codex status-report surveys a cluster.
#[derive(Debug, clap::Args)]
pub struct StatusReport {
    /// Output directories of runs.
    #[arg(value_name = "RUN_DIR", required = true)]
    runs: Vec<PathBuf>,
    /// The objects, as for codex deploy: the ReasoningPod, its TrainingRun, its Evaluations, SignOffs, and policies, which may state
    /// the weights.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A file with the ResourceQuotas and LimitRanges of the namespace, if --config does not hold them; repeatable.
    #[arg(long, value_name = "FILE", requires = "config")]
    limits: Vec<PathBuf>,
    /// The ReasoningPod, if the file holds several.
    #[arg(long, value_name = "NAME", requires = "config")]
    pod: Option<String>,
    /// The ring to survey, if no objects say it.
    #[arg(long, conflicts_with = "config", value_parser = PossibleValuesParser::new(Ring::ALL.map(Ring::name)))]
    ring: Option<String>,
    /// An evaluation.json, beside those that lie in the folders of the runs; repeatable.
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
    /// The weights a, b and g, which sum to 1 [default: those of the policies in --config, else 0.5,0.2,0.3].
    #[arg(long, value_name = "A,B,G")]
    weights: Option<Weights>,
    /// The pull request that the survey is for.
    #[arg(long, value_name = "NUMBER", value_parser = whole::<u64>(1..=u64::MAX))]
    pr: Option<u64>,
    /// The date of the survey [default: today, UTC].
    #[arg(long, value_name = "DATE", value_parser = surveys::date)]
    date: Option<Date>,
    /// The directory to write survey-RING-PR-DATE.md and .json into.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// How the survey is printed.
    #[arg(long, value_name = "FORMAT", default_value = "markdown")]
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// Markdown for people.
    Markdown,
    /// JSON for programs.
    Json,
}

impl StatusReport {
    pub(crate) fn run(self) -> Result<i32, CommandError> {
        let survey = self.survey()?;
        let json = serde_json::to_string_pretty(&survey).map_err(CommandError::failed)?;
        let markdown = survey.markdown();
        if let Some(out) = &self.out {
            let written = self.write(out, &survey, &markdown)?;
            tracing::info!("wrote {} and the same as JSON", written.display());
        }
        atomic_fs::say(match self.format {
            Format::Markdown => markdown.trim_end(),
            Format::Json => &json,
        })?;
        Ok(exit::FINISHED)
    }

    /// Surveys the runs.
    ///
    /// # Errors
    /// Exit code 2: a file of the command line cannot be read or used, or nothing says the ring.
    pub(super) fn survey(&self) -> Result<Survey, CommandError> {
        let reports = reports_of(&self.evaluation)?;
        let config = self.config.as_deref();
        let chain = config.map(|path| objects::read(path, &self.limits, self.pod.as_deref())).transpose()?;
        let ring = match (&chain, &self.ring) {
            (Some(chain), _) => chain.ring,
            (None, Some(ring)) => ring.parse().map_err(CommandError::bad_input)?,
            (None, None) => {
                return Err(CommandError::bad_input("nothing says the ring: give --config FILE or --ring RING"));
            }
        };
        let stated = chain.as_ref().map(Chain::weights).transpose().map_err(CommandError::bad_input)?;
        let weights = Weights::chosen(self.weights, &stated.unwrap_or_default()).map_err(CommandError::bad_input)?;
        let mut runs = Vec::new();
        for path in &self.runs {
            let folder = RunFolder::locate("RUN_DIR", path).map_err(CommandError::bad_input)?;
            let name = folder.name();
            let facts = gather::facts(&Inputs {
                chain: chain.as_ref(),
                ring,
                folder,
                reports: &reports,
                references: &self.reference,
                signatures: &self.signatures,
                unsigned: self.unsigned,
            })?;
            runs.push(Surveyed { name, facts });
        }
        let today = || Timestamp::now().to_zoned(TimeZone::UTC).date();
        let date = self.date.unwrap_or_else(today).to_string();
        Ok(codex_checklist::survey(ring, self.pr, date, &weights, &runs))
    }

    /// Writes both files into `out`, and returns the path of the Markdown.
    fn write(&self, out: &Path, survey: &Survey, markdown: &str) -> Result<PathBuf, CommandError> {
        let models = self.runs.iter().filter_map(|run| RunFolder::locate("RUN_DIR", run).ok());
        let models: Vec<Named> = models.map(|folder| Named::new("a model of RUN_DIR", folder.model)).collect();
        overlap::check(&[Named::new("--out", out)], &models).map_err(CommandError::bad_input)?;
        let name = survey.file_name();
        let path = out.join(format!("{name}.md"));
        atomic_fs::make_directory(out)?;
        atomic_fs::write(&path, markdown.as_bytes())?;
        atomic_fs::write_json(&out.join(format!("{name}.json")), survey)?;
        Ok(path)
    }
}
