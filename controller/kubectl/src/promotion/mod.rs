//! `deploy`, `status-report` and `repo-map`: what a promotion needs, from the objects of a cluster. Only reads the cluster; writes the
//! files of a survey.
//!
//! The checks, the numbers and the wording are those of [`codex_checklist`], which `codex` uses for files.

pub(crate) mod gather;
pub(crate) mod snapshot;

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
    str::FromStr,
};

use clap::{Args, ValueEnum, builder::PossibleValuesParser};
use codex_checklist::{Checklist, SECTIONS, Survey, Surveyed, Weights, as_json, settings, surveys, told};
use codex_crds::is_subdomain;
use jiff::{Timestamp, civil::Date, tz::TimeZone};

use crate::{
    cluster::{Cluster, Place},
    error::CommandError,
};
use snapshot::Policies;

/// A ReasoningPod of the cluster.
#[derive(Debug, Args)]
struct Target {
    /// ReasoningPod, as NAMESPACE/NAME, or NAME in the namespace of -n or of the context.
    #[arg(long, value_name = "NAMESPACE/NAME")]
    cluster: Named,
}

/// A name with or without a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Named {
    namespace: Option<String>,
    name: String,
}

impl FromStr for Named {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (namespace, name) = match text.split_once('/') {
            Some((namespace, name)) => (Some(namespace), name),
            None => (None, text),
        };
        if namespace.into_iter().chain([name]).any(|part| !is_subdomain(part)) {
            return Err("write the namespace and the name of a ReasoningPod, such as team/cot-rc".to_owned());
        }
        Ok(Self { namespace: namespace.map(str::to_owned), name: name.to_owned() })
    }
}

impl Target {
    async fn connect(&self, place: &Place) -> Result<Cluster, CommandError> {
        let named = self.cluster.namespace.clone();
        let namespace = match (named, &place.namespace) {
            (Some(named), Some(other)) if named != *other => {
                return Err(CommandError::BadInput(format!(
                    "--cluster names the namespace {named}, and --namespace is {other}: remove one of them"
                )));
            }
            (named, other) => named.or_else(|| other.clone()),
        };
        Cluster::connect(&Place { namespace, ..place.clone() }).await
    }
}

/// How a result is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Lines for people.
    Text,
    /// JSON for programs.
    Json,
}

/// How a survey is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum SurveyFormat {
    /// Markdown for people.
    Markdown,
    /// JSON for programs.
    Json,
}

/// The flags of `deploy`.
#[derive(Debug, Args)]
pub(crate) struct Deploy {
    #[command(flatten)]
    target: Target,
    /// Leave the signatures to the operator, which signs at the rollout.
    #[arg(long)]
    unsigned: bool,
    /// The survey-*.json of status-report, if it does not lie in this directory.
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

/// The flags of `status-report`.
#[derive(Debug, Args)]
pub(crate) struct StatusReport {
    #[command(flatten)]
    target: Target,
    /// Leave the signatures to the operator, which signs at the rollout.
    #[arg(long)]
    unsigned: bool,
    /// The weights a, b and g, which sum to 1 [default: those of the promotion policies, else 0.5,0.2,0.3].
    #[arg(long, value_name = "A,B,G")]
    weights: Option<Weights>,
    /// The pull request that the survey is for.
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    pr: Option<u64>,
    /// The date of the survey [default: today, UTC].
    #[arg(long, value_name = "DATE", value_parser = surveys::date)]
    date: Option<Date>,
    /// The directory to write survey-RING-PR-DATE.md and .json into.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// How the survey is printed.
    #[arg(long, value_name = "FORMAT", default_value = "markdown")]
    format: SurveyFormat,
}

/// The flags of `repo-map`.
#[derive(Debug, Args)]
pub(crate) struct RepoMap {
    #[command(flatten)]
    target: Target,
    /// Print `reasoning_status`: trace mode, curriculum, preset of the evaluation, and the rings of the run and the server.
    #[arg(long, required = true)]
    reasoning: bool,
    /// Print these sections only; repeatable.
    #[arg(long, value_name = "SECTION", value_parser = PossibleValuesParser::new(SECTIONS))]
    include: Vec<String>,
    /// Show another value, such as `evaluation.preset=cot-hard`; repeatable.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// How the map is printed.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: Format,
}

impl Deploy {
    /// Prints the checklist, and returns 1 if a check does not hold.
    pub(crate) async fn run(self, place: &Place, out: &mut impl io::Write) -> Result<ExitCode, CommandError> {
        if self.no_dry_run {
            return Err(CommandError::BadInput(
                "--no-dry-run: this program only checks: apply the objects with kubectl or Argo CD".to_owned(),
            ));
        }
        let folder = env::current_dir()?;
        let refused = |why: String| CommandError::BadInput(format!("--status-report: {why}"));
        let surveys = surveys::at_hand(self.status_report.as_deref(), &folder).map_err(refused)?;
        let cluster = self.target.connect(place).await?;
        let snapshot = cluster.snapshot(&self.target.cluster.name).await?;
        let chain = gather::chain(&snapshot, &Policies::default())?;
        let facts = gather::facts(&snapshot, &chain, self.unsigned)?;
        let checklist = Checklist::of(&chain, &facts, &surveys, &folder.display().to_string());
        match self.format {
            Format::Text => writeln!(out, "{checklist}")?,
            Format::Json => writeln!(out, "{}", serde_json::to_string_pretty(&checklist)?)?,
        }
        Ok(if checklist.blocked { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }
}

impl StatusReport {
    /// Prints the survey, and writes what `--out` asks for.
    pub(crate) async fn run(self, place: &Place, out: &mut impl io::Write) -> Result<(), CommandError> {
        let cluster = self.target.connect(place).await?;
        let snapshot = cluster.snapshot(&self.target.cluster.name).await?;
        let chain = gather::chain(&snapshot, &cluster.policies(self.weights.is_some()).await?)?;
        let weights = chain.weights().and_then(|stated| Weights::chosen(self.weights, &stated));
        let weights = weights.map_err(CommandError::BadInput)?;
        let facts = gather::facts(&snapshot, &chain, self.unsigned)?;
        let run = Surveyed { name: chain.run_name().to_owned(), facts };
        let today = || Timestamp::now().to_zoned(TimeZone::UTC).date();
        let date = self.date.unwrap_or_else(today).to_string();
        let survey = codex_checklist::survey(chain.ring, self.pr, date, &weights, &[run]);
        let json = serde_json::to_string_pretty(&survey)?;
        let markdown = survey.markdown();
        if let Some(folder) = &self.out {
            write_both(folder, &survey, &markdown, &json)?;
        }
        match self.format {
            SurveyFormat::Markdown => writeln!(out, "{}", markdown.trim_end())?,
            SurveyFormat::Json => writeln!(out, "{json}")?,
        }
        Ok(())
    }
}

/// Writes a survey in both forms.
fn write_both(folder: &Path, survey: &Survey, markdown: &str, json: &str) -> Result<(), CommandError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| CommandError::Out { path, source }
    };
    fs::create_dir_all(folder).map_err(failed(folder))?;
    for (extension, content) in [("md", markdown), ("json", json)] {
        let path = folder.join(format!("{}.{extension}", survey.file_name()));
        // A reader sees the whole file or the former one.
        let part = path.with_extension(format!("{extension}.part"));
        fs::write(&part, content).map_err(failed(&part))?;
        fs::rename(&part, &path).map_err(failed(&path))?;
    }
    Ok(())
}

impl RepoMap {
    /// Prints the map.
    pub(crate) async fn run(self, place: &Place, out: &mut impl io::Write) -> Result<(), CommandError> {
        let cluster = self.target.connect(place).await?;
        let snapshot = cluster.snapshot(&self.target.cluster.name).await?;
        let chain = gather::chain(&snapshot, &Policies::default())?;
        let settings = settings(Some(&chain), &self.set, &self.include).map_err(CommandError::BadInput)?;
        match self.format {
            Format::Text => writeln!(out, "{}", told(&settings))?,
            Format::Json => writeln!(out, "{}", as_json(&settings))?,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Named;

    #[test]
    fn a_target_is_a_name_with_or_without_its_namespace() {
        let named: Named = "team/cot-rc".parse().unwrap();
        assert_eq!((named.namespace.as_deref(), named.name.as_str()), (Some("team"), "cot-rc"));
        assert_eq!("cot-rc".parse::<Named>().unwrap().namespace, None);
        for wrong in ["", "/rc", "team/", "a/b/c", "Team/rc"] {
            assert!(wrong.parse::<Named>().unwrap_err().contains("such as team/cot-rc"), "{wrong}");
        }
    }
}
