//! `codex config validate`: checks files of settings and resolved configurations. Reads files; prints.

use std::path::{Path, PathBuf};

use clap::Args;
use codex_configs::Environment;
use codex_provenance::text::{Printable, counted};
use codex_reports::exit;

use super::{
    error::ConfigurationError,
    source::{Composition, View, of_template, read},
};
use crate::atomic_fs;

/// Check files of settings and resolved configurations.
///
/// A file of settings is composed over the template or preset as the controller does; environment variables cannot be read. A file whose
/// defaults list names a template is a template itself, and is composed alone.
/// Prints what is wrong with file, line, key, value and what would be right. Exit code 0 if all files are good, else 2.
#[derive(Debug, Args)]
pub(super) struct Validate {
    /// Files of settings, templates, or resolved configurations.
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Template below settings of a training run, an included one or a file [default: the defaults of training alone].
    #[arg(long, value_name = "NAME|FILE", conflicts_with = "preset")]
    template: Option<String>,
    /// Preset below settings of an evaluation.
    #[arg(long, value_name = "NAME")]
    preset: Option<String>,
}

impl Validate {
    pub(super) fn run(self) -> Result<i32, ConfigurationError> {
        let mut refused = 0;
        for path in &self.files {
            match self.check(path) {
                Ok(view) => {
                    let values = counted(view.leaves.len(), "value");
                    atomic_fs::say(&format!("{}: valid, {values}", path.display()))?;
                }
                Err(ConfigurationError::File(error)) => return Err(error.into()),
                Err(error) => {
                    refused += 1;
                    atomic_fs::say(&Printable(&error.to_string()).to_string())?;
                }
            }
        }
        Ok(if refused == 0 { exit::FINISHED } else { exit::BAD_INPUT })
    }

    /// Composes a file.
    pub(super) fn check(&self, path: &Path) -> Result<View, ConfigurationError> {
        let text = read("FILE", path)?;
        if self.preset.is_none() && codex_configs::names_template(&text) {
            if self.template.is_some() {
                let why = "is a template, because its defaults list names one: leave --template out";
                return Err(ConfigurationError::Arguments(format!("{} {why}", path.display())));
            }
            return of_template("FILE", path);
        }
        let config = Some(path.to_owned());
        let composition = if codex_configs::ResolvedFile::is_one(&text) {
            Composition { config, ..Composition::default() }
        } else {
            let (template, preset) = (self.template.clone(), self.preset.clone());
            Composition { template, preset, config, set: Vec::new() }
        };
        composition.view(Environment::ABSENT)
    }
}
