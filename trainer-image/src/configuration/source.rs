//! The configuration that arguments name: composed from layers, or read from a resolved file. Reads files.

use std::{
    io::Read as _,
    path::{Path, PathBuf},
};

use clap::Args;
use codex_configs::{
    Environment, Leaf, Located, Origin, ResolvedFile, Share, Sources, choose, explain_evaluation, explain_training,
    is_evaluation, is_settings, settings_groups,
};

use super::{Kind, error::ConfigurationError};
use crate::{atomic_fs, composing::Template};

/// The largest file that is read, in bytes. A resolved configuration is a ConfigMap, of 1 MiB at most.
const MAX_FILE: usize = 1 << 20;

/// What a configuration is composed from.
#[derive(Debug, Default, Args)]
pub(super) struct Composition {
    /// Template of a training run: an included one such as cot-starter, or a file such as ours.yaml. Without template and preset, the
    /// defaults of training alone.
    #[arg(long, value_name = "NAME|FILE", conflicts_with = "preset")]
    pub(super) template: Option<String>,
    /// Preset of an evaluation, such as cot-lite.
    #[arg(long, value_name = "NAME")]
    pub(super) preset: Option<String>,
    /// File of settings above the template or preset, as `spec.config` has them; or a resolved configuration alone.
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Override a key, such as `training.max_steps=200`; repeatable.
    #[arg(long, value_name = "KEY=VALUE")]
    pub(super) set: Vec<String>,
}

/// A configuration with the origin of each value.
#[derive(Clone, Debug)]
pub(super) struct View {
    /// What it is for.
    pub(super) kind: Kind,
    /// Its values, in the order of their keys.
    pub(super) leaves: Vec<Leaf>,
    /// Its layers, weakest first.
    pub(super) layers: Vec<Share>,
    /// The file of settings, or the resolved file.
    file: Option<PathBuf>,
    /// The file of the template.
    template: Option<PathBuf>,
    /// The overrides.
    set: Vec<String>,
}

impl Composition {
    /// Composes the configuration, or reads the resolved one. `environment` has the variables that values may refer to.
    pub(super) fn view(&self, environment: Environment<'_>) -> Result<View, ConfigurationError> {
        let text = self.config.as_deref().map(|path| read("--config", path)).transpose()?;
        if let (Some(path), Some(text)) = (&self.config, &text) {
            if ResolvedFile::is_one(text) {
                if self.template.is_some() || self.preset.is_some() || !self.set.is_empty() {
                    let why = format!(
                        "--config: {} is a resolved configuration, which nothing changes: leave --template, --preset and --set out",
                        path.display()
                    );
                    return Err(ConfigurationError::Arguments(why));
                }
                return resolved(path, text);
            }
            check(path, text)?;
        }
        let file = self.config.as_deref();
        let (preset, rest) = choose("preset", &self.set);
        let preset = preset.or_else(|| self.preset.clone());
        if preset.is_none() && text.as_deref().is_some_and(is_evaluation) {
            let why =
                format!("--preset: name the preset below these settings: one of {}", codex_configs::PRESETS.join(", "));
            return Err(ConfigurationError::Arguments(why));
        }
        if let Some(preset) = preset {
            let (group, config) = (Some(preset.as_str()), text.as_deref());
            let sources = Sources { group, config, overrides: &rest, environment, ..Sources::default() };
            let explained =
                explain_evaluation(&sources, 1, Vec::new()).map_err(|located| refuse(located, file, None, &rest))?;
            let (leaves, layers) = (explained.leaves, explained.layers);
            let (kind, file) = (Kind::Evaluation, self.config.clone());
            return Ok(View { kind, leaves, layers, file, template: None, set: rest });
        }
        let (template, rest) = choose("template", &self.set);
        let template = template.or_else(|| self.template.clone());
        let template = template.as_deref().map(Template::read::<ConfigurationError>).transpose()?;
        training(template.as_ref(), file.zip(text.as_deref()), rest, environment)
    }
}

/// Composes a training run from a template, a file of settings and its text, and overrides.
fn training(
    template: Option<&Template>,
    config: Option<(&Path, &str)>,
    set: Vec<String>,
    environment: Environment<'_>,
) -> Result<View, ConfigurationError> {
    let (file, text) = config.unzip();
    let path = template.and_then(Template::path);
    let sources = Sources {
        group: template.map(|template| template.name.as_str()),
        own: template.and_then(Template::text),
        config: text,
        overrides: &set,
        environment,
    };
    let explained = explain_training(&sources, 1, None).map_err(|located| refuse(located, file, path, &set))?;
    let (leaves, layers) = (explained.leaves, explained.layers);
    let (file, template) = (file.map(Path::to_owned), path.map(Path::to_owned));
    Ok(View { kind: Kind::Training, leaves, layers, file, template, set })
}

/// Composes the template in a file. `what` is the argument that names the file, in errors.
pub(super) fn of_template(what: &str, path: &Path) -> Result<View, ConfigurationError> {
    let template = Template::of_file::<ConfigurationError>(what, path)?;
    training(Some(&template), None, Vec::new(), Environment::ABSENT)
}

/// Reads a resolved configuration.
pub(super) fn resolved(path: &Path, text: &str) -> Result<View, ConfigurationError> {
    let file = ResolvedFile::read(text).map_err(|located| refuse(located, Some(path), None, &[]))?;
    let kind = match &file {
        ResolvedFile::Training(..) => Kind::Training,
        ResolvedFile::Evaluation(..) => Kind::Evaluation,
    };
    let leaves = file.leaves().to_vec();
    let (sets, in_effect) = (leaves.len(), leaves.len());
    let share = Share { origin: Origin::Resolved, within: Vec::new(), sets, in_effect };
    let file = Some(path.to_owned());
    Ok(View { kind, leaves, layers: vec![share], file, template: None, set: Vec::new() })
}

impl View {
    /// Returns the file of an origin.
    pub(super) fn file(&self, origin: &Origin) -> Option<String> {
        match origin {
            Origin::Group(name) => Some((*name).to_owned()),
            Origin::Config | Origin::Resolved => self.file.as_ref().map(|path| path.display().to_string()),
            Origin::Template => self.template.as_ref().map(|path| path.display().to_string()),
            Origin::Override(_) | Origin::Set(_) => None,
        }
    }

    /// Returns an origin in words: a file, or an override.
    pub(super) fn name(&self, origin: &Origin) -> String {
        self.file(origin).unwrap_or_else(|| origin.clone().on_command_line(&self.set).to_string())
    }

    /// Returns where a value comes from in words: a file with the line, or an override.
    pub(super) fn place(&self, leaf: &Leaf) -> String {
        let name = self.name(&leaf.origin);
        leaf.line.map_or_else(|| name.clone(), |line| format!("{name}:{line}"))
    }
}

/// Reads a text file that a user named.
pub(super) fn read(what: &str, path: &Path) -> Result<String, ConfigurationError> {
    let failed = |source| atomic_fs::named::<ConfigurationError>(what, path, source);
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(MAX_FILE as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > MAX_FILE {
        return Err(ConfigurationError::Large { path: path.to_owned(), most: MAX_FILE });
    }
    String::from_utf8(bytes).map_err(|_| ConfigurationError::NotText(path.to_owned()))
}

/// Checks that a text is one of settings, so that messages may quote it.
pub(super) fn check(path: &Path, text: &str) -> Result<(), ConfigurationError> {
    if settings_groups(text).is_some_and(|groups| groups.iter().any(|group| group == "apiVersion")) {
        return Err(ConfigurationError::Manifest(path.to_owned()));
    }
    if is_settings(text) {
        return Ok(());
    }
    let keys = "model, training, data, curriculum, response, metadata, evaluation".to_owned();
    Err(ConfigurationError::Foreign { path: path.to_owned(), keys })
}

/// Turns a refusal into an error of the command line, with file and line. `file` has the settings, and `template` the template.
pub(super) fn refuse(
    located: Located,
    file: Option<&Path>,
    template: Option<&Path>,
    set: &[String],
) -> ConfigurationError {
    let Located { error, origin, line } = located;
    let name = match origin {
        Some(Origin::Group(name)) => Some(name.to_owned()),
        Some(Origin::Config | Origin::Resolved) => file.map(|path| path.display().to_string()),
        Some(Origin::Template) => template.map(|path| path.display().to_string()),
        _ => None,
    };
    let place = match (name, line) {
        (Some(name), Some(line)) => format!("{name}:{line}: "),
        (Some(name), None) => format!("{name}: "),
        (None, _) => String::new(),
    };
    ConfigurationError::Refused { place, error: Box::new(error.on_command_line(set)) }
}
