//! `codex register`: an immutable record of a model, named by its digest. Reads and writes files.
//!
//! A record is made of nothing but the files: the same model gives the same bytes. It is linked into its place, so that it appears
//! whole, and never in the place of another one.

use std::{
    collections::BTreeMap,
    fs::{self, File, Permissions},
    io::{self, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use codex_provenance::{
    ModelDigest, OmsRoot, Sha256, files,
    manifest::{Manifest, ManifestError},
    text::Printable,
};
use codex_reports::exit;
use schemars::JsonSchema;
use serde::Serialize;

use crate::{
    atomic_fs::{self, FileError},
    error::CommandError,
    overlap::{self, Named, Overlap},
    verify::inside,
};

/// The version of the shape of a record.
const SCHEMA_VERSION: u32 = 1;
/// The largest expectation in bytes: a line for each of the most files of a model.
const MAX_EXPECTED: usize = 16 << 20;
/// Permissions of a record: nobody writes to it.
const READ_ONLY: u32 = 0o444;
/// Number of differences that a message lists.
const LISTED: usize = 5;
/// The folder of names in the directory of records.
const TAGS: &str = "tags";
/// The most characters of a name.
const MAX_TAG: usize = 128;

/// Record a model directory immutably, under the name of its digest.
///
/// The files must be exactly those of --expect. Registering the same model again changes nothing. Exit codes: 0 recorded, 1 the
/// files or the existing record differ, 2 bad input.
#[derive(Debug, clap::Args)]
pub struct Register {
    /// The model directory.
    #[arg(value_name = "DIR", required_unless_present = "bundle")]
    model: Option<PathBuf>,
    /// The same as DIR.
    #[arg(long, value_name = "DIR", conflicts_with = "model")]
    bundle: Option<PathBuf>,
    /// What the files must be: the model digest alone, or a line for each file as sha256sum writes it, with paths relative to DIR.
    #[arg(long, value_name = "FILE")]
    expect: PathBuf,
    /// The directory of records.
    #[arg(long, value_name = "DIR", default_value = "registry")]
    registry: PathBuf,
    /// A name for the model, such as reasoning/m0/bespoke: a file with the digest in the folder tags of the registry. A name that
    /// stands for another model is refused.
    #[arg(long, value_name = "NAME", value_parser = tag)]
    tag: Option<String>,
}

/// Reads a name: words that are separated by slashes.
fn tag(text: &str) -> Result<String, String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let is_word = |word: &str| word.starts_with(|c: char| c.is_ascii_alphanumeric()) && word.chars().all(is_part);
    if text.len() <= MAX_TAG && text.split('/').all(is_word) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "write at most {MAX_TAG} letters, digits, '.', '_' and '-', in words between slashes, such as reasoning/m0/bespoke"
    ))
}

/// A record of a model: `<registry>/<model digest>.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(title = "<registry>/<model digest>.json")]
pub struct Record {
    /// The version of the shape.
    #[schemars(extend("const" = SCHEMA_VERSION))]
    schema_version: u32,
    /// The digest of the model, which is the name of the file.
    model: ModelDigest,
    /// The root of `OpenSSF` Model Signing over the same files.
    oms_root: OmsRoot,
    /// Size of all files in bytes.
    size_bytes: u64,
    /// The files, in the order of the manifest.
    files: Vec<RecordedFile>,
}

/// A file of a recorded model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RecordedFile {
    /// POSIX path, relative to the model directory.
    path: String,
    /// Size in bytes.
    size: u64,
    /// SHA-256 of the contents.
    sha256: Sha256,
}

impl From<&Manifest> for Record {
    fn from(manifest: &Manifest) -> Self {
        let files = manifest.files.iter();
        Self {
            schema_version: SCHEMA_VERSION,
            model: manifest.digest(),
            oms_root: manifest.oms_root(),
            size_bytes: manifest.size_bytes(),
            files: files
                .map(|file| RecordedFile { path: file.path.clone(), size: file.size, sha256: file.sha256 })
                .collect(),
        }
    }
}

/// A model cannot be recorded.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// The record would be inside the model.
    #[error(transparent)]
    Overlap(#[from] Overlap),
    /// The expectation cannot be read.
    #[error("--expect: {} cannot be read", .0.display())]
    Unreadable(PathBuf, #[source] io::Error),
    /// The expectation is none.
    #[error("--expect: {}: {why}", path.display())]
    Expectation {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what would be right.
        why: String,
    },
    /// The model cannot be hashed.
    #[error("DIR: {}: {why}", path.display())]
    Model {
        /// The directory.
        path: PathBuf,
        /// Why.
        why: ManifestError,
    },
    /// The files are not the expected ones.
    #[error("nothing was recorded, because the files differ from --expect: {}", .0.join("; "))]
    Different(Vec<String>),
    /// The record of this digest has other contents.
    #[error("{} exists with other contents: it was changed, or is of another version; restore it or use another --registry", .0.display())]
    Taken(PathBuf),
    /// The name stands for another model.
    #[error("--tag: {} is the name of another model: use another --tag, or another --registry", .0.display())]
    Tagged(PathBuf),
    /// The record cannot be written.
    #[error(transparent)]
    File(#[from] FileError),
}

impl From<RegisterError> for CommandError {
    fn from(error: RegisterError) -> Self {
        match error {
            RegisterError::File(error) => error.into(),
            RegisterError::Different(_) | RegisterError::Taken(_) | RegisterError::Tagged(_) => Self::failed(error),
            error => Self::bad_input(error),
        }
    }
}

/// What `--expect` says.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Expected {
    /// The digest of the model.
    Model(ModelDigest),
    /// The SHA-256 of each file, by path.
    Files(BTreeMap<String, Sha256>),
}

/// A recorded model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registered {
    /// The digest of the model.
    pub model: ModelDigest,
    /// The record.
    pub path: PathBuf,
    /// Whether the record is new; else it was there already, with the same bytes.
    pub is_new: bool,
}

impl Register {
    pub(crate) fn run(self) -> Result<i32, CommandError> {
        let Self { model, bundle, expect, registry, tag } = self;
        // One of the two is there.
        let model = bundle.or(model).unwrap_or_default();
        let Registered { model, path, is_new } = register(&model, &expect, &registry, tag.as_deref())?;
        let what = if is_new { "recorded" } else { "was recorded already" };
        let path = path.display().to_string();
        let named = tag.map(|tag| format!(", named {tag}")).unwrap_or_default();
        atomic_fs::say(&format!("{model} {what} in {}{named}", Printable(&path)))?;
        Ok(exit::FINISHED)
    }
}

/// Records the model in a directory, if its files are the expected ones, and gives it a name.
///
/// # Errors
/// The expectation or the model cannot be read, the files differ, the registry is inside the model, another record has this name, or
/// the record cannot be written. Nothing is recorded then. Or the name stands for another model.
pub fn register(model: &Path, expect: &Path, registry: &Path, tag: Option<&str>) -> Result<Registered, RegisterError> {
    overlap::check(&[Named::new("--registry", registry)], &[Named::new("DIR", model)])?;
    let bytes = files::read_start(expect, MAX_EXPECTED)
        .map_err(|source| RegisterError::Unreadable(expect.to_owned(), source))?;
    let expected = parse(&bytes).map_err(|why| RegisterError::Expectation { path: expect.to_owned(), why })?;
    // An expectation inside the directory is no file of the model.
    let inside = inside(expect, model);
    let manifest = Manifest::of_dir_except(model, &inside.into_iter().collect())
        .map_err(|why| RegisterError::Model { path: model.to_owned(), why })?;
    let differences = differences(&expected, &manifest);
    if !differences.is_empty() {
        return Err(RegisterError::Different(differences));
    }
    let digest = manifest.digest();
    let path = registry.join(format!("{digest}.json"));
    let mut bytes = serde_json::to_vec_pretty(&Record::from(&manifest))
        .map_err(io::Error::other)
        .map_err(FileError::of("encoding", &path))?;
    bytes.push(b'\n');
    let is_new = create(&path, &bytes)?;
    if let Some(tag) = tag {
        let name = registry.join(TAGS).join(format!("{tag}.sha256"));
        create(&name, format!("{digest}\n").as_bytes()).map_err(|error| match error {
            RegisterError::Taken(path) => RegisterError::Tagged(path),
            error => error,
        })?;
    }
    Ok(Registered { model: digest, path, is_new })
}

/// Reads an expectation. Its values are not quoted, because the file may be another than was meant.
fn parse(bytes: &[u8]) -> Result<Expected, String> {
    let right = "write the model digest alone, or a line for each file, as sha256sum writes it";
    if bytes.len() > MAX_EXPECTED {
        return Err(format!("it has more than {MAX_EXPECTED} bytes: {right}"));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| format!("it is not UTF-8 text: {right}"))?;
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    if let [line] = lines[..]
        && let Ok(digest) = line.trim().parse()
    {
        return Ok(Expected::Model(ModelDigest(digest)));
    }
    let mut files = BTreeMap::new();
    for (line, number) in lines.iter().zip(1..) {
        let wrong = |why: &str| format!("line {number} {why}: {right}");
        // `sha256sum --binary` marks the path by an asterisk.
        let parts = line.split_once("  ").or_else(|| line.split_once(" *"));
        let (digest, path) = parts.ok_or_else(|| wrong("has no digest and path"))?;
        let digest: Sha256 = digest.trim().parse().map_err(|_| wrong("does not begin with a SHA-256 digest"))?;
        let path = path.strip_prefix("./").unwrap_or(path);
        if files.insert(path.to_owned(), digest).is_some() {
            return Err(wrong("names a file again"));
        }
    }
    if files.is_empty() { Err(format!("it is empty: {right}")) } else { Ok(Expected::Files(files)) }
}

/// Whether bytes are an expectation.
#[cfg(test)]
pub(crate) fn is_expectation(bytes: &[u8]) -> bool {
    parse(bytes).is_ok()
}

/// Returns what differs, in sentences; the first few and the number of the others.
fn differences(expected: &Expected, manifest: &Manifest) -> Vec<String> {
    let mut all = Vec::new();
    match expected {
        Expected::Model(digest) if *digest == manifest.digest() => {}
        Expected::Model(digest) => {
            all.push(format!("the model digest is {}, but {digest} is expected", manifest.digest()));
        }
        Expected::Files(files) => {
            for file in &manifest.files {
                let path = Printable(&file.path);
                match files.get(&file.path) {
                    Some(sha256) if *sha256 == file.sha256 => {}
                    Some(sha256) => {
                        all.push(format!("{path} hashes to {}, not {}", file.sha256.short(), sha256.short()));
                    }
                    None => all.push(format!("{path} is not expected")),
                }
            }
            let here = |path: &String| manifest.files.iter().any(|file| file.path == *path);
            all.extend(files.keys().filter(|path| !here(path)).map(|path| format!("{} is missing", Printable(path))));
        }
    }
    if all.len() > LISTED {
        let more = all.len() - LISTED;
        all.truncate(LISTED);
        all.push(format!("and {more} more"));
    }
    all
}

/// Creates a record or a name. Returns whether it is new; false if it exists with the same bytes.
///
/// # Errors
/// It exists with other bytes, or the file system returns an error.
fn create(path: &Path, bytes: &[u8]) -> Result<bool, RegisterError> {
    let same = |path: &Path| match files::read_start(path, bytes.len()) {
        Ok(there) if there == bytes => Ok(false),
        Ok(_) => Err(RegisterError::Taken(path.to_owned())),
        Err(source) => Err(FileError::of("reading", path)(source).into()),
    };
    // A link that points nowhere exists, too.
    if fs::symlink_metadata(path).is_ok() {
        return same(path);
    }
    let directory = path.parent().unwrap_or(Path::new("."));
    atomic_fs::make_directory(directory)?;
    // The process is part of the name, so that two of them do not write into one file.
    let temporary = path.with_added_extension(format!("{}.partial", std::process::id()));
    let written = File::create(&temporary).and_then(|mut file| {
        file.write_all(bytes)?;
        file.set_permissions(Permissions::from_mode(READ_ONLY))?;
        file.sync_all()
    });
    let linked = written
        .map_err(FileError::of("writing", &temporary))
        // A rename would replace a record that another process has just made; a link does not.
        .and_then(|()| match fs::hard_link(&temporary, path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(FileError::of("creating", path)(error)),
        });
    // A partial file only takes space.
    let _ = fs::remove_file(&temporary);
    if !linked? {
        return same(path);
    }
    atomic_fs::sync_directory(directory)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// A model of two files, and its manifest.
    fn model() -> (tempfile::TempDir, PathBuf, Manifest) {
        let root = tempfile::tempdir().unwrap();
        let model = root.path().join("model");
        fs::create_dir(&model).unwrap();
        fs::write(model.join("config.json"), "{}").unwrap();
        fs::write(model.join("model.safetensors"), "weights").unwrap();
        let manifest = Manifest::of_dir(&model).unwrap();
        (root, model, manifest)
    }

    fn expecting(root: &Path, text: &str) -> PathBuf {
        let path = root.join("manifest.sha256");
        fs::write(&path, text).unwrap();
        path
    }

    fn sums(manifest: &Manifest) -> String {
        let lines = manifest.files.iter().map(|file| format!("{}  ./{}\n", file.sha256, file.path));
        lines.collect::<Vec<_>>().concat()
    }

    #[test]
    fn a_model_is_recorded_once_under_its_digest() {
        let (root, model, manifest) = model();
        let registry = root.path().join("records/of/models");
        let expect = expecting(root.path(), &format!("{}\n", manifest.digest()));
        let first = register(&model, &expect, &registry, None).unwrap();
        assert!(first.is_new && first.model == manifest.digest());
        assert_eq!(first.path, registry.join(format!("{}.json", manifest.digest())));
        let bytes = fs::read(&first.path).unwrap();
        let record: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(record["model"], manifest.digest().to_string());
        assert_eq!((&record["files"][1]["path"], &record["sizeBytes"]), (&"model.safetensors".into(), &9.into()));
        assert_eq!(fs::metadata(&first.path).unwrap().permissions().mode() & 0o777, READ_ONLY);
        let again = register(&model, &expecting(root.path(), &sums(&manifest)), &registry, None).unwrap();
        assert_eq!(again, Registered { is_new: false, ..first });
        assert_eq!(fs::read(&again.path).unwrap(), bytes);
        assert_eq!(fs::read_dir(&registry).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn other_files_are_not_recorded() {
        let (root, model, manifest) = model();
        let registry = root.path().join("registry");
        let refused = |text: &str| {
            let expect = expecting(root.path(), text);
            let error = CommandError::from(register(&model, &expect, &registry, Some("a")).unwrap_err());
            assert_eq!(error.exit, exit::FAILED, "{}", error.sentence());
            error.sentence()
        };
        let told = refused(&"0".repeat(64));
        assert!(told.contains(&format!("the model digest is {}, but 000000", manifest.digest())), "{told}");
        let other = sums(&manifest).replace(&manifest.files[0].sha256.to_string(), &"1".repeat(64));
        assert!(refused(&other).contains("config.json hashes to 44136fa355b3, not 111111111111"));
        let more = format!("{}{}  vocabulary.txt\n", sums(&manifest), "2".repeat(64));
        assert!(refused(&more).ends_with("vocabulary.txt is missing"));
        let fewer = sums(&manifest).lines().next().unwrap().to_owned();
        assert!(refused(&fewer).ends_with("model.safetensors is not expected"));
        assert!(!registry.exists());
    }

    #[test]
    fn an_existing_record_is_never_replaced() {
        let (root, model, manifest) = model();
        let registry = root.path().join("registry");
        let expect = expecting(root.path(), &manifest.digest().to_string());
        fs::create_dir(&registry).unwrap();
        let path = registry.join(format!("{}.json", manifest.digest()));
        fs::write(&path, "another record").unwrap();
        let error = CommandError::from(register(&model, &expect, &registry, Some("a")).unwrap_err());
        assert!(error.exit == exit::FAILED && error.sentence().contains("exists with other contents"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "another record");
        assert_eq!(fs::read_dir(&registry).unwrap().count(), 1);
    }

    #[test]
    fn unusable_input_is_refused() {
        let (root, model, manifest) = model();
        let registry = root.path().join("registry");
        let refused = |model: &Path, expect: &Path, registry: &Path| {
            let error = CommandError::from(register(model, expect, registry, None).unwrap_err());
            assert_eq!(error.exit, exit::BAD_INPUT, "{}", error.sentence());
            error.sentence()
        };
        for (text, why) in [
            ("", "it is empty: write the model digest alone"),
            ("token\n", "line 1 has no digest and path"),
            ("abc  config.json\n", "line 1 does not begin with a SHA-256 digest"),
        ] {
            let told = refused(&model, &expecting(root.path(), text), &registry);
            assert!(told.starts_with("--expect: ") && told.contains(why) && !told.contains("token"), "{told}");
        }
        let twice = sums(&manifest).lines().next().unwrap().to_owned();
        let told = refused(&model, &expecting(root.path(), &format!("{twice}\n{twice}\n")), &registry);
        assert!(told.contains("line 2 names a file again"), "{told}");
        let right = expecting(root.path(), &manifest.digest().to_string());
        assert!(refused(&model, &root.path().join("nowhere"), &registry).contains("cannot be read"));
        assert!(refused(&root.path().join("nowhere"), &right, &registry).starts_with("DIR: "));
        assert!(refused(&model, &right, &model.join("registry")).contains("is inside DIR"));
        std::os::unix::fs::symlink("config.json", model.join("link")).unwrap();
        assert!(refused(&model, &right, &registry).contains("is a symbolic link"));
        assert!(!registry.exists());
    }

    #[test]
    fn a_name_stands_for_one_model() {
        let (root, model, manifest) = model();
        let registry = root.path().join("registry");
        let record = |tag: &str| {
            let digest = Manifest::of_dir(&model).unwrap().digest().to_string();
            register(&model, &expecting(root.path(), &digest), &registry, Some(tag)).map_err(CommandError::from)
        };
        let name = registry.join("tags/reasoning/m0/bespoke.sha256");
        for is_new in [true, false] {
            assert_eq!(record("reasoning/m0/bespoke").unwrap().is_new, is_new);
            assert_eq!(fs::read_to_string(&name).unwrap(), format!("{}\n", manifest.digest()));
        }
        fs::write(model.join("config.json"), "{ }").unwrap();
        let refused = record("reasoning/m0/bespoke").unwrap_err();
        assert_eq!(refused.exit, exit::FAILED);
        assert!(refused.sentence().contains("bespoke.sha256 is the name of another model"), "{}", refused.sentence());
        assert_eq!(fs::read_to_string(&name).unwrap(), format!("{}\n", manifest.digest()));
        // A record without its name does no harm.
        assert!(!record("reasoning/m0/other").unwrap().is_new);
        for wrong in ["", "/a", "a/", "a//b", "../a", "a b", ".a", &"a".repeat(MAX_TAG + 1)] {
            assert!(tag(wrong).unwrap_err().contains("such as reasoning/m0/bespoke"), "{wrong}");
        }
        assert_eq!(tag("reasoning/m0/v1.2_b-3").unwrap(), "reasoning/m0/v1.2_b-3");
    }

    #[test]
    fn an_expectation_inside_the_model_is_no_file_of_it() {
        let (root, model, manifest) = model();
        let expect = model.join("manifest.sha256");
        fs::write(&expect, manifest.digest().to_string()).unwrap();
        let registered = register(&model, &expect, &root.path().join("registry"), None).unwrap();
        assert_eq!(
            registered.model,
            Manifest::of_dir_except(&model, &BTreeSet::from(["manifest.sha256".to_owned()])).unwrap().digest()
        );
    }
}
