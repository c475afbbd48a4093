//! Configurations as command lines compose them: with environment variables, templates in files, and errors that name arguments. Reads
//! variables and files.

use std::{
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
};

use codex_configs::{
    ConfigError, Data, Environment, Resolved, ResolvedFile, Sources, TEMPLATES, Training, explain_training,
    is_settings, settings_groups,
};

use crate::atomic_fs::{self, FileError, Misnamed};

/// The most bytes of a template that are read. What composes them allows fewer, and says how many there are.
const MAX_TEMPLATE: u64 = 1 << 20;
/// The most characters of the name of a template, as of `spec.template`.
const MAX_NAME: usize = 63;
/// The argument that names a template, in errors.
const ARGUMENT: &str = "--template";

/// Returns the value of an environment variable.
pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// A template of training runs that a command line names.
#[derive(Clone, Debug)]
pub(crate) struct Template {
    /// Its name in the configuration.
    pub(crate) name: String,
    /// The file and its text, if the template is not included.
    pub(crate) own: Option<(PathBuf, String)>,
}

impl Template {
    /// Returns the included template of this name, if there is one.
    pub(crate) fn included(name: &str) -> Self {
        Self { name: name.to_owned(), own: None }
    }

    /// Returns what a user named: an included template, or one of the user's own in a file, whose name without the ending it has. Text with
    /// a slash or one of the endings of YAML is a file, unless an included template has that name.
    ///
    /// # Errors
    /// The file does not exist, cannot be read, or holds no settings.
    pub(crate) fn read<E: From<Misnamed> + From<FileError>>(given: &str) -> Result<Self, E> {
        let path = Path::new(given);
        let ending = path.extension().and_then(|ending| ending.to_str());
        let is_file = given.contains('/') || matches!(ending, Some("yaml" | "yml"));
        if TEMPLATES.contains(&given) || !is_file {
            return Ok(Self::included(given));
        }
        Self::of_file(ARGUMENT, path)
    }

    /// Returns the template in a file, whose name without the ending it has. `what` is the argument that names the file, in errors.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub(crate) fn of_file<E: From<Misnamed> + From<FileError>>(what: &str, path: &Path) -> Result<Self, E> {
        let misnamed = |wrong| Misnamed { what: what.to_owned(), path: path.to_owned(), wrong };
        let failed = |source| atomic_fs::named::<E>(what, path, source);
        let mut bytes = Vec::new();
        let file = File::open(path).map_err(failed)?;
        file.take(MAX_TEMPLATE).read_to_end(&mut bytes).map_err(failed)?;
        let text = String::from_utf8(bytes).map_err(|_| misnamed("is not UTF-8 text: save it as UTF-8"))?;
        // Nothing of a file is quoted before it is known to be one of settings: it may be a token or a key.
        if let Some(wrong) = foreign(&text) {
            return Err(misnamed(wrong).into());
        }
        let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
        if name.chars().count() > MAX_NAME || name.chars().any(char::is_control) {
            return Err(
                misnamed("has a name of more than 63 characters, or one with control characters: rename it").into()
            );
        }
        Ok(Self { name: name.to_owned(), own: Some((path.to_owned(), text)) })
    }

    /// Returns the file, if the template is not included.
    pub(crate) fn path(&self) -> Option<&Path> {
        self.own.as_ref().map(|(path, _)| path.as_path())
    }

    /// Returns the text, if the template is not included.
    pub(crate) fn text(&self) -> Option<&str> {
        self.own.as_ref().map(|(_, text)| text.as_str())
    }
}

/// Returns what is wrong with a text that is not a template.
fn foreign(text: &str) -> Option<&'static str> {
    if ResolvedFile::is_one(text) {
        return Some("is a resolved configuration: name it with --config");
    }
    if settings_groups(text).is_some_and(|groups| groups.iter().any(|group| group == "apiVersion")) {
        return Some("is a manifest: name a file with the settings alone");
    }
    (!is_settings(text)).then_some("has no settings: write keys such as `training:`, or a list `defaults:`")
}

/// Composes the configuration of a trainer, of the defaults if there is no template. `set` are the arguments of `--set`.
///
/// # Errors
/// [`ConfigError`] names the argument or key that is wrong and what to write instead.
pub(crate) fn compose(
    template: Option<&Template>,
    set: &[String],
    seed: u64,
    data: Vec<Data>,
) -> Result<Resolved<Training>, ConfigError> {
    let sources = Sources {
        group: template.map(|template| template.name.as_str()),
        own: template.and_then(Template::text),
        config: None,
        overrides: set,
        environment: Environment::of(&variable),
    };
    let explained = explain_training(&sources, seed, Some(data));
    explained.map(|explained| explained.resolved).map_err(|why| why.error.on_command_line(set))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::training::TrainError;

    fn read(given: &str) -> Result<Template, String> {
        Template::read::<TrainError>(given).map_err(|why| why.to_string())
    }

    #[test]
    fn a_template_is_an_included_one_or_a_file() {
        let included = read("cot-starter").unwrap();
        assert_eq!((included.name.as_str(), included.text()), ("cot-starter", None));
        // Composing names the included ones that are similar.
        assert_eq!(read("cot-startr").unwrap().text(), None);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ours.yaml");
        fs::write(&path, "defaults: [cot-plus]\ntraining: {max_steps: 7, warmup_steps: 0}\n").unwrap();
        let ours = read(path.to_str().unwrap()).unwrap();
        assert_eq!((ours.name.as_str(), ours.path()), ("ours", Some(path.as_path())));
        let resolved = compose(Some(&ours), &["training.batch_size=8".to_owned()], 1, Vec::new());
        let told = crate::error::chain(&resolved.unwrap_err());
        assert!(told.contains("name at least one file or synthetic task"), "{told}");
        let data: Vec<Data> = crate::training::default_data("ours").collect();
        let resolved = compose(Some(&ours), &["training.batch_size=8".to_owned()], 1, data).unwrap();
        let training = &resolved.spec().settings.training;
        assert_eq!((resolved.spec().template.as_str(), training.max_steps, training.batch_size), ("ours", 7, 8));
    }

    #[test]
    fn other_files_are_refused_and_not_quoted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ours.yaml");
        for (text, told) in [
            ("c2VjcmV0\n", "has no settings"),
            ("apiVersion: v1\nkind: Secret\ndata: {c2VjcmV0: c2VjcmV0}\n", "is a manifest"),
            ("schemaVersion: 1\nkind: TrainingRun\nspec: {}\n", "is a resolved configuration"),
        ] {
            fs::write(&path, text).unwrap();
            let refused = read(path.to_str().unwrap()).unwrap_err();
            assert!(refused.starts_with("--template: ") && refused.contains(told), "{refused}");
            assert!(!refused.contains("c2VjcmV0"), "{refused}");
        }
        fs::write(&path, b"training:\xff").unwrap();
        assert!(read(path.to_str().unwrap()).unwrap_err().contains("is not UTF-8 text"));
        assert!(read("nowhere.yaml").unwrap_err().contains("does not exist"));
        assert!(read(folder.path().to_str().unwrap()).unwrap_err().contains("is a directory"));
    }
}
