//! `codex sign`: an OpenSSF Model Signing bundle over the files of a model, made with a key of the user. Reads and writes files.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use codex_provenance::{
    ModelDigest, Sha256, files,
    manifest::{Manifest, ManifestError},
    oms::{self, SIGNATURE},
    text::{Printable, counted},
};
use codex_reports::exit;
use codex_signing::key::{KeyError, PrivateKey, Signer as _};
use zeroize::Zeroizing;

use crate::{
    atomic_fs::{self, FileError},
    error::CommandError,
};

/// The environment variable with the password of an encrypted key, as cosign reads it.
const PASSWORD: &str = "COSIGN_PASSWORD";
/// Maximum size of a key file in bytes.
const MAX_KEY: usize = 64 << 10;

/// Sign a model directory: write an OpenSSF Model Signing bundle over exactly its files, which `codex verify` and `model_signing` verify.
///
/// A signature says who made the files, and promotes nothing: only the controller signs promotions. The password of an encrypted
/// key is read from `COSIGN_PASSWORD`. Exit codes: 0 signed, 1 the bundle cannot be written, 2 bad input.
#[derive(Clone, Debug, clap::Args)]
pub struct Sign {
    /// The model directory.
    #[arg(value_name = "DIR")]
    model: PathBuf,
    /// The private key: ECDSA on P-256 in PEM, unencrypted (PRIVATE KEY or EC PRIVATE KEY) or as cosign encrypts it.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Where to write the bundle. The file must not exist [default: model.sig in DIR].
    #[arg(long, value_name = "FILE")]
    bundle: Option<PathBuf>,
    /// Where to write the public key too. The file must not exist.
    #[arg(long, value_name = "FILE")]
    public_key: Option<PathBuf>,
}

/// A model cannot be signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The key cannot be read.
    #[error("--key: {} cannot be read", Printable(&.0.display().to_string()))]
    Unreadable(PathBuf, #[source] io::Error),
    /// The key is unusable.
    #[error("--key: {}: {why}; the password of an encrypted key is read from {PASSWORD}", Printable(&path.display().to_string()))]
    Key {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        why: KeyError,
    },
    /// The model cannot be hashed.
    #[error("DIR: {}: {why}", Printable(&path.display().to_string()))]
    Model {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        why: ManifestError,
    },
    /// An output exists.
    #[error("{argument}: {} exists: remove it, or choose another path", Printable(&path.display().to_string()))]
    Exists {
        /// The argument.
        argument: &'static str,
        /// The path.
        path: PathBuf,
    },
    /// The public key would be a file of the model that is not signed.
    #[error("--public-key: {} is inside the model, and no file that the signature covers: choose a path outside DIR", Printable(&.0.display().to_string()))]
    Inside(PathBuf),
    /// The key does not sign.
    #[error(transparent)]
    Sign(KeyError),
    /// An output cannot be written.
    #[error(transparent)]
    File(#[from] FileError),
}

impl From<SignError> for CommandError {
    fn from(error: SignError) -> Self {
        match error {
            SignError::File(error) => error.into(),
            SignError::Sign(_) => Self::failed(error),
            error => Self::bad_input(error),
        }
    }
}

/// A signed model.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Signed {
    model: ModelDigest,
    files: usize,
    signer: Sha256,
    bundle: PathBuf,
}

impl Sign {
    pub(crate) fn run(self) -> Result<i32, CommandError> {
        let password = Zeroizing::new(std::env::var(PASSWORD).unwrap_or_default());
        let Signed { model, files, signer, bundle } = self.sign(password.as_bytes())?;
        let bundle = bundle.display().to_string();
        atomic_fs::say(&format!(
            "signed     {}, the model {model}\nbundle     {}\nsigned by  {signer}",
            counted(files, "file"),
            Printable(&bundle)
        ))?;
        Ok(exit::FINISHED)
    }

    fn sign(&self, password: &[u8]) -> Result<Signed, SignError> {
        let bundle = self.bundle.clone().unwrap_or_else(|| self.model.join(SIGNATURE));
        absent("--bundle", &bundle)?;
        if let Some(path) = &self.public_key {
            absent("--public-key", path)?;
            if is_inside(path, &self.model) {
                return Err(SignError::Inside(path.clone()));
            }
        }
        let text = files::read_start(&self.key, MAX_KEY).map_err(|why| SignError::Unreadable(self.key.clone(), why))?;
        let text = Zeroizing::new(text);
        let key = std::str::from_utf8(&text).unwrap_or_default();
        let key = PrivateKey::from_pem(key, password).map_err(|why| SignError::Key { path: self.key.clone(), why })?;
        let unread = |why| SignError::Model { path: self.model.clone(), why };
        let manifest = Manifest::of_dir(&self.model).map_err(unread)?;
        let signed = key.sign(&oms::payload(&manifest, &name(&self.model))).map_err(SignError::Sign)?;
        if let Some(path) = &self.public_key {
            atomic_fs::make_parents(path)?;
            atomic_fs::write(path, key.public().to_pem().as_bytes())?;
        }
        // Last, and whole: a bundle that exists is a valid one.
        atomic_fs::make_parents(&bundle)?;
        atomic_fs::write(&bundle, &signed)?;
        let (model, files, signer) = (manifest.digest(), manifest.files.len(), key.public().fingerprint());
        Ok(Signed { model, files, signer, bundle })
    }
}

/// Checks that an output does not exist, not even as a link that leads nowhere.
fn absent(argument: &'static str, path: &Path) -> Result<(), SignError> {
    match fs::symlink_metadata(path) {
        Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(why) => Err(SignError::File(FileError::of("looking for", path)(why))),
        Ok(_) => Err(SignError::Exists { argument, path: path.to_owned() }),
    }
}

/// Whether a file that does not exist yet would be inside a directory.
fn is_inside(file: &Path, directory: &Path) -> bool {
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    parent.canonicalize().ok().zip(directory.canonicalize().ok()).is_some_and(|(file, model)| file.starts_with(model))
}

/// Returns the name of the model in the statement: that of its directory.
fn name(model: &Path) -> String {
    let resolved = model.canonicalize().ok();
    let name = resolved.as_deref().unwrap_or(model).file_name();
    name.map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use codex_signing::{key::PublicKey, verify::verify_signature};

    use super::*;

    #[derive(Parser)]
    struct Arguments {
        #[command(flatten)]
        sign: Sign,
    }

    struct Case(tempfile::TempDir, PrivateKey);

    impl Case {
        fn new() -> Self {
            let case = Self(tempfile::tempdir().unwrap(), PrivateKey::generate().unwrap());
            fs::create_dir(case.path("model")).unwrap();
            fs::write(case.path("model/config.json"), "{}").unwrap();
            fs::write(case.path("private.pem"), case.1.to_pem().unwrap().as_bytes()).unwrap();
            case
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn sign(&self, key: &str, password: &str, more: &[(&str, &str)]) -> Result<Signed, SignError> {
            let path = |name: &str| self.path(name).to_str().unwrap().to_owned();
            let mut arguments = vec!["sign".to_owned(), path("model"), "--key".to_owned(), path(key)];
            arguments.extend(more.iter().flat_map(|(flag, file)| [(*flag).to_owned(), path(file)]));
            Arguments::try_parse_from(arguments).unwrap().sign.sign(password.as_bytes())
        }
    }

    #[test]
    fn a_model_is_signed_and_verified_with_the_written_key() {
        let case = Case::new();
        let manifest = Manifest::of_dir(&case.path("model")).unwrap();
        let signed = case.sign("private.pem", "", &[("--public-key", "key.pem")]).unwrap();
        assert_eq!((signed.model, signed.files, &signed.bundle), (manifest.digest(), 1, &case.path("model/model.sig")));
        let key = PublicKey::from_pem(&fs::read_to_string(case.path("key.pem")).unwrap()).unwrap();
        let bundle = fs::read(&signed.bundle).unwrap();
        assert_eq!(verify_signature(&manifest, &bundle, &key, None).unwrap().signer, signed.signer);
        let again = case.sign("private.pem", "", &[]).unwrap_err().to_string();
        assert!(again.contains("--bundle: ") && again.contains("model.sig exists: remove it"), "{again}");
        // What is there already, the former bundle included, is a file of the model.
        let other = case.sign("private.pem", "", &[("--bundle", "other.sig")]).unwrap();
        assert_eq!(other.files, 2);
    }

    #[test]
    fn a_key_of_cosign_needs_its_password() {
        let case = Case::new();
        fs::write(case.path("cosign.key"), case.1.to_encrypted_pem(b"secret").unwrap().as_bytes()).unwrap();
        let refused = case.sign("cosign.key", "", &[]).unwrap_err();
        assert!(
            refused.to_string().contains("encrypted by cosign") && refused.to_string().contains(PASSWORD),
            "{refused}"
        );
        assert_eq!(CommandError::from(refused).exit, exit::BAD_INPUT);
        assert!(!case.path("model/model.sig").exists());
        let signed = case.sign("cosign.key", "secret", &[]).unwrap();
        assert_eq!(signed.signer, case.1.public().fingerprint());
    }

    #[test]
    fn nothing_is_overwritten_and_no_file_of_the_model_stays_unsigned() {
        let case = Case::new();
        let told = |more: &[(&str, &str)]| case.sign("private.pem", "", more).unwrap_err().to_string();
        assert!(told(&[("--bundle", "model/config.json")]).contains("exists"));
        assert!(told(&[("--public-key", "private.pem")]).contains("--public-key: "));
        assert!(told(&[("--public-key", "model/key.pem")]).contains("is inside the model"));
        assert!(!case.path("model/model.sig").exists() && !case.path("model/key.pem").exists());
        let missing = case.sign("nowhere.pem", "", &[]).unwrap_err().to_string();
        assert!(missing.contains("--key: ") && missing.contains("nowhere.pem"), "{missing}");
    }
}
