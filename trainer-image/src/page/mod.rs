//! `codex report`: one page of HTML about a run or a model, for people, and its ML-BOM. Reads files; writes both.
//!
//! The page loads nothing: no scripts, fonts or pictures, and a policy in it forbids them. Text from files is escaped. A part that is
//! missing is said to be missing. The same files give the same bytes.

mod bom;
mod content;
mod draw;
mod examples;
mod render;
#[cfg(test)]
mod tests;

use std::{
    path::{Path, PathBuf},
    str::FromStr,
};

use clap::builder::PossibleValuesParser;
use codex_provenance::manifest::Manifest;
use codex_reports::exit;
use codex_verdict::{Gate, GateSpec, Ring};

use self::content::Content;
use crate::{
    arguments::{reference, whole},
    atomic_fs,
    error::CommandError,
    gating::GatingError,
    overlap::{self, Named},
    run_folder::RunFolder,
    verify::given::Given,
};

/// Write a page about a run or a model: chain, gates, examples, loss, data, environment, signatures.
///
/// The page is one HTML file that loads nothing. What is missing is said on it.
#[derive(Debug, clap::Args)]
pub struct Report {
    /// The output directory of a run, or a model directory.
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// An evaluation.json, beside those that lie in the folder of the run; repeatable.
    #[arg(long, value_name = "FILE")]
    evaluation: Vec<PathBuf>,
    /// A YAML file with gates, by which every evaluation is judged: a list as in spec.gates of an Evaluation, a mapping with gates,
    /// or a whole Evaluation.
    #[arg(long, value_name = "FILE")]
    gates: Option<PathBuf>,
    /// The outcomes.json of an Evaluation that gates compare with; repeatable.
    #[arg(long, value_name = "EVALUATION=FILE", requires = "gates", value_parser = reference("EVALUATION"))]
    reference: Vec<(String, PathBuf)>,
    #[command(flatten)]
    signatures: Given,
    /// The ring that the promotion must be for.
    #[arg(long, requires = "promotion", value_parser = PossibleValuesParser::new(Ring::ALL.map(Ring::name)))]
    ring: Option<String>,
    /// Number of right and of wrong answers that each evaluation shows.
    #[arg(long, value_name = "COUNT", default_value = "5", value_parser = whole::<usize>(0..=1000))]
    examples: usize,
    /// The page to write.
    #[arg(long, value_name = "FILE", default_value = "report.html")]
    out: PathBuf,
    /// Also write a `CycloneDX` ML-BOM of the model: its data, base and measurements with their bounds.
    #[arg(long, value_name = "FILE")]
    ml_bom: Option<PathBuf>,
}

/// The name of a page beside the results of an evaluation.
pub(crate) const FILE: &str = "report.html";

/// The gates of a page, as JSON.
#[derive(Clone, Debug)]
pub struct PageGates(pub Vec<Gate>);

impl FromStr for PageGates {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let specs: Vec<GateSpec> = codex_json::from_str(text).map_err(|why| {
            format!("{why}: write a JSON list of gates as in spec.gates of an Evaluation, such as []")
        })?;
        let gates: Result<Vec<Gate>, _> = specs.iter().map(Gate::try_from).collect();
        gates.map(Self).map_err(|why| why.to_string())
    }
}

/// Returns the page about the results of an evaluation that has just ended: `report` is its evaluation.json, `manifest` that of the
/// model, which is not hashed again.
///
/// # Errors
/// The results cannot be read.
pub(crate) fn of_evaluation(
    model: &Path,
    manifest: &Manifest,
    report: &Path,
    gates: &[Gate],
    references: &[(String, PathBuf)],
) -> Result<String, GatingError> {
    Ok(render::page(&Content::of_evaluation(model, manifest, report, gates, references)?).into_string())
}

impl Report {
    pub(crate) fn run(self) -> Result<i32, CommandError> {
        let (page, bom) = self.written()?;
        atomic_fs::make_parents(&self.out)?;
        atomic_fs::write(&self.out, page.as_bytes())?;
        atomic_fs::say(&self.out.display().to_string())?;
        if let Some((path, bom)) = self.ml_bom.as_ref().zip(bom) {
            atomic_fs::make_parents(path)?;
            atomic_fs::write_json(path, &bom)?;
            atomic_fs::say(&path.display().to_string())?;
        }
        Ok(exit::FINISHED)
    }

    #[cfg(test)]
    fn page(&self) -> Result<String, CommandError> {
        self.written().map(|(page, _)| page)
    }

    /// Reads everything and returns the page, and the ML-BOM if one is asked for.
    ///
    /// # Errors
    /// Exit code 2: a file of the command line cannot be read or used, or the page would change an input.
    fn written(&self) -> Result<(String, Option<serde_json::Value>), CommandError> {
        if self.signatures.promotion.is_some() && self.ring.is_none() {
            return Err(CommandError::bad_input("--promotion needs --ring: the ring that the promotion must be for"));
        }
        let folder = RunFolder::locate("DIR", &self.directory).map_err(CommandError::bad_input)?;
        atomic_fs::check_output_file("--out", &self.out).map_err(CommandError::bad_input)?;
        if let Some(path) = &self.ml_bom {
            atomic_fs::check_output_file("--ml-bom", path).map_err(CommandError::bad_input)?;
        }
        self.check_overlap(&folder)?;
        let content = Content::read(self, &folder)?;
        let bom = self.ml_bom.as_ref().map(|_| bom::document(&content)).transpose().map_err(CommandError::bad_input)?;
        Ok((render::page(&content).into_string(), bom))
    }

    fn check_overlap(&self, folder: &RunFolder) -> Result<(), CommandError> {
        let Given { bundle, key, promotion, identity, .. } = &self.signatures;
        let given = [
            ("--bundle", bundle),
            ("--key", key),
            ("--trusted-root", &identity.trusted_root),
            ("--promotion", promotion),
            ("--gates", &self.gates),
        ];
        let mut inputs: Vec<Named> =
            given.into_iter().filter_map(|(role, path)| Some(Named::new(role, path.as_ref()?))).collect();
        inputs.push(Named::new("the model", &folder.model));
        inputs.push(Named::new("the artifacts", &folder.artifacts));
        let reports = self.evaluation.iter().cloned().chain(folder.evaluations());
        inputs.extend(reports.map(|path| Named::new("an evaluation", path)));
        let bom = self.ml_bom.iter().map(|path| Named::new("--ml-bom", path));
        let outputs: Vec<Named> = std::iter::once(Named::new("--out", &self.out)).chain(bom).collect();
        overlap::check(&outputs, &inputs).map_err(CommandError::bad_input)
    }
}
