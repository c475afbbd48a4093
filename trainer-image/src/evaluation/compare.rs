//! The arguments of `codex evaluate` that compare with an earlier evaluation. Pure.

use std::path::{Path, PathBuf};

use codex_verdict::{ComparisonSpec, Decimal, Gate, GateSpec, Metric, reference_file};

use super::{EvaluateError, outcomes};

/// The confidence of a comparison, unless it is given.
const CONFIDENCE: &str = "0.95";
/// The longest name of a reference.
const LONGEST: usize = 52;

/// Gates that compare with an earlier evaluation of the same problems.
#[derive(Debug, Default, clap::Args)]
pub(super) struct Compare {
    /// The output directory of an earlier evaluation of the same problems than which this one must be better, problem by
    /// problem. The exit code is 1 if that is not proven.
    #[arg(long, value_name = "DIRECTORY", conflicts_with = "config")]
    better_than: Option<PathBuf>,
    /// The output directory of an earlier evaluation of the same problems than which this one must not be worse.
    #[arg(long, value_name = "DIRECTORY", conflicts_with = "config")]
    not_worse_than: Option<PathBuf>,
    /// The metric that --better-than and --not-worse-than compare; by default the share of right answers.
    #[arg(long, value_name = "METRIC")]
    metric: Option<Metric>,
    /// The least difference for --better-than, the most for --not-worse-than, such as 0.02 [default: 0].
    #[arg(long, value_name = "DECIMAL")]
    by: Option<String>,
    /// The confidence of --better-than and --not-worse-than, such as 0.95 [default: 0.95].
    #[arg(long, value_name = "DECIMAL")]
    confidence: Option<String>,
}

/// What the arguments add to an evaluation.
#[derive(Debug, Default)]
pub(super) struct Comparisons {
    /// Files of outcomes, by the name of their data.
    pub(super) files: Vec<(String, PathBuf)>,
    /// The gates.
    pub(super) gates: Vec<Gate>,
}

impl Compare {
    /// Returns the gates, and the files that they need.
    ///
    /// # Errors
    /// When the arguments do not go together, or one is malformed.
    pub(super) fn comparisons(&self) -> Result<Comparisons, EvaluateError> {
        let mut all = Comparisons::default();
        let each = [("--better-than", &self.better_than), ("--not-worse-than", &self.not_worse_than)];
        for (argument, directory) in each {
            let Some(directory) = directory else { continue };
            let name = name_of(directory);
            let file = (reference_file(&name), directory.join(outcomes::FILE));
            match all.files.iter().find(|(known, _)| *known == file.0) {
                Some((_, path)) if *path == file.1 => {}
                Some(_) => {
                    return Err(EvaluateError::Arguments(format!(
                        "{argument}: two directories are called {name}: rename one of them"
                    )));
                }
                None => all.files.push(file),
            }
            let with = ComparisonSpec { evaluation: name, by: self.by.clone().map(Decimal) };
            let (better_than, not_worse_than) =
                if argument == "--better-than" { (Some(with), None) } else { (None, Some(with)) };
            let spec = GateSpec {
                metric: self.metric.unwrap_or(Metric::ExactMatch).to_string(),
                better_than,
                not_worse_than,
                confidence: Some(Decimal(self.confidence.clone().unwrap_or_else(|| CONFIDENCE.to_owned()))),
                ..GateSpec::default()
            };
            let gate = Gate::try_from(&spec).map_err(|why| EvaluateError::Arguments(format!("{argument}: {why}")))?;
            all.gates.push(gate);
        }
        let alone = [
            ("--metric", self.metric.is_some()),
            ("--by", self.by.is_some()),
            ("--confidence", self.confidence.is_some()),
        ];
        match alone.iter().find(|(_, given)| *given) {
            Some((argument, _)) if all.gates.is_empty() => Err(EvaluateError::Arguments(format!(
                "{argument} belongs to --better-than or --not-worse-than: add one of them, or remove {argument}"
            ))),
            _ => Ok(all),
        }
    }
}

/// Returns the name of the evaluation in a directory, as gates name evaluations.
fn name_of(directory: &Path) -> String {
    let last = directory.file_name().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
    let plain: String =
        last.chars().map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' }).collect();
    let plain = plain.trim_start_matches(|c: char| !c.is_ascii_lowercase());
    let short = plain.get(..LONGEST.min(plain.len())).unwrap_or_default().trim_end_matches('-');
    if short.is_empty() { "reference".to_owned() } else { short.to_owned() }
}

#[cfg(test)]
mod tests {
    use codex_verdict::Bound;

    use super::*;

    #[test]
    fn directories_name_references() {
        for (directory, name) in [
            ("out/before", "before"),
            ("/results/Base Model.1/", "base-model-1"),
            ("2026-11-28", "reference"),
            ("..", "reference"),
            ("/", "reference"),
            ("é", "reference"),
        ] {
            assert_eq!(name_of(Path::new(directory)), name, "{directory}");
        }
        assert_eq!(name_of(Path::new(&"a".repeat(80))).len(), LONGEST);
    }

    #[test]
    fn arguments_become_gates_and_files() {
        let compare = Compare {
            better_than: Some("out/before".into()),
            not_worse_than: Some("out/before".into()),
            by: Some("0.02".to_owned()),
            ..Compare::default()
        };
        let Comparisons { files, gates } = compare.comparisons().unwrap();
        assert_eq!(files, [("reference-before".to_owned(), PathBuf::from("out/before/outcomes.json"))]);
        assert!(
            matches!(&gates[0].bound, Bound::BetterThan(with) if with.evaluation == "before" && (with.by - 0.02).abs() < 1e-12)
        );
        assert!(matches!(&gates[1].bound, Bound::NotWorseThan(_)));
        assert_eq!((gates[0].metric, gates[0].confidence), (Metric::ExactMatch, Some(0.95)));
        let refused = |compare: Compare| compare.comparisons().unwrap_err().to_string();
        let two = Compare { not_worse_than: Some("other/before".into()), ..compare };
        assert_eq!(refused(two), "--not-worse-than: two directories are called before: rename one of them");
        let told = refused(Compare { by: Some("0.1".to_owned()), ..Compare::default() });
        assert!(told.starts_with("--by belongs to --better-than or --not-worse-than"), "{told}");
        let confidence = Some("95".to_owned());
        let told = refused(Compare { better_than: Some("a".into()), confidence, ..Compare::default() });
        assert!(told.starts_with("--better-than: the gate on exact_match has confidence \"95\""), "{told}");
    }
}
