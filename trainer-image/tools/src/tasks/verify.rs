//! Every model below a folder, and its signature. Reads files.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use codex::{
    atomic_fs::FileError,
    error::CommandError,
    verify::given::{Given, Outcome},
};
use codex_provenance::{ModelDigest, Sha256, manifest::Manifest, oms::SIGNATURE};

/// The file that every model directory has.
const CONFIG: &str = "config.json";

/// What a model is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Exactly what was signed.
    Signed {
        /// Its digest.
        digest: ModelDigest,
        /// Fingerprint of the key.
        signer: Sha256,
    },
    /// It has no signature inside.
    Unsigned(ModelDigest),
    /// It is not what was signed, or cannot be a model; and why.
    Refused(String),
}

/// Finds the model directories below a folder: those with `config.json` and a file of weights. Links are not followed.
///
/// # Errors
/// A folder cannot be read.
pub(super) fn models(folder: &Path) -> Result<Vec<PathBuf>, FileError> {
    let entries: io::Result<Vec<_>> = fs::read_dir(folder).and_then(Iterator::collect);
    let mut entries = entries.map_err(FileError::of("listing", folder))?;
    entries.sort_by_key(fs::DirEntry::file_name);
    let is = |name: &str| entries.iter().any(|entry| entry.file_name() == name);
    let weights = entries.iter().any(|entry| entry.file_name().to_string_lossy().ends_with(".safetensors"));
    if is(CONFIG) && weights {
        return Ok(vec![folder.to_owned()]);
    }
    let mut found = Vec::new();
    for entry in entries {
        let partial = entry.file_name().to_string_lossy().ends_with(".partial");
        if !partial && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(models(&entry.path())?);
        }
    }
    Ok(found)
}

/// Verifies a model by the signature inside it.
///
/// # Errors
/// Exit code 2: the key cannot be used.
pub(super) fn verify(model: &Path, key: &Path, fingerprint: Option<Sha256>) -> Result<Verdict, CommandError> {
    let manifest = match Manifest::of_dir_except(model, &BTreeSet::from([SIGNATURE.to_owned()])) {
        Ok(manifest) => manifest,
        Err(why) => return Ok(Verdict::Refused(codex::error::chain(&why))),
    };
    let bundle = model.join(SIGNATURE);
    if !bundle.is_file() {
        return Ok(Verdict::Unsigned(manifest.digest()));
    }
    let given = Given { bundle: Some(bundle), key: Some(key.to_owned()), fingerprint, ..Given::default() };
    Ok(match given.verify(&manifest, "") {
        Ok(Outcome::Valid(valid)) => Verdict::Signed { digest: valid.signed.model, signer: valid.signed.signer },
        Ok(Outcome::Refused(why)) => Verdict::Refused(why),
        Ok(Outcome::NotGiven) => Verdict::Unsigned(manifest.digest()),
        // A signature that is none refuses its model; a key that is none ends the task.
        Err(error) if error.sentence().starts_with("--key") => return Err(error),
        Err(error) => Verdict::Refused(error.sentence()),
    })
}
