//! The bundles and the key of commands that check a signature beside other things, and the line of `codex verify` for them. Reads
//! files.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use codex_provenance::{Sha256, manifest::Manifest};
use codex_reports::exit;
use codex_signing::{
    bundle,
    verify::{Promoted, Signed, verify_promotion, verify_signature},
};
use jiff::Timestamp;

use super::{inside, keys::Keys, read, refused};
use crate::error::CommandError;

/// The bundles of a model and the key that signed them.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Given {
    /// The OpenSSF Model Signing bundle of the model. Inside the model directory, it does not count as a file of the model.
    #[arg(long, value_name = "FILE", requires = "key")]
    pub bundle: Option<PathBuf>,
    /// The trusted public keys, a PEM file. Lines notBefore: TIME and notAfter: TIME above a key limit when its signatures count.
    #[arg(long, value_name = "FILE", requires = "bundle")]
    pub key: Option<PathBuf>,
    /// The SHA-256 fingerprint that every key must have, from a source that you trust.
    #[arg(long, value_name = "SHA256", requires = "key")]
    pub fingerprint: Option<Sha256>,
    /// The promotion bundle.
    #[arg(long, value_name = "FILE", requires = "bundle")]
    pub promotion: Option<PathBuf>,
}

/// Valid bundles.
#[derive(Clone, Debug)]
pub struct Valid {
    /// The content of the OMS bundle.
    pub signed: Signed,
    /// Whether the key has the given fingerprint; false if none was given.
    pub is_pinned: bool,
    /// The content of the promotion bundle, if one was given.
    pub promoted: Option<Promoted>,
}

/// What the bundles say about a model.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// No bundle was given.
    NotGiven,
    /// Everything that was given is valid.
    Valid(Box<Valid>),
    /// Something is refused, and why.
    Refused(String),
}

impl Given {
    /// Returns the paths of the bundles inside the model directory, relative to it: they are not files of the model.
    pub fn inside(&self, model: &Path) -> BTreeSet<String> {
        [&self.bundle, &self.promotion].into_iter().flatten().filter_map(|file| inside(file, model)).collect()
    }

    /// Verifies the bundles for the model with this manifest. A promotion must be for `ring`.
    ///
    /// # Errors
    /// Exit code 2: a file cannot be read, or is no bundle or no key.
    pub fn verify(&self, manifest: &Manifest, ring: &str) -> Result<Outcome, CommandError> {
        let (Some(path), Some(key)) = (&self.bundle, &self.key) else { return Ok(Outcome::NotGiven) };
        let oms = read("--bundle", path, bundle::MAX_BYTES)?;
        let promotion =
            self.promotion.as_deref().map(|path| read("--promotion", path, bundle::MAX_BYTES)).transpose()?;
        match self.check(manifest, &oms, promotion.as_deref(), key, ring) {
            Ok(valid) => Ok(Outcome::Valid(Box::new(valid))),
            Err(error) if error.exit == exit::FAILED => Ok(Outcome::Refused(error.sentence())),
            Err(error) => Err(error),
        }
    }

    fn check(
        &self,
        manifest: &Manifest,
        oms: &[u8],
        promotion: Option<&[u8]>,
        key: &Path,
        ring: &str,
    ) -> Result<Valid, CommandError> {
        let keys = Keys::read(&[key.to_owned()], self.fingerprint.as_slice(), Timestamp::now())?;
        let signed = verify_signature(manifest, oms, &keys, None).map_err(refused)?;
        keys.check(signed.signer, "the OMS bundle")?;
        let promoted = promotion.map(|promotion| verify_promotion(&signed, promotion, &keys, ring, None)).transpose();
        let promoted = promoted.map_err(refused)?;
        if let Some(promoted) = &promoted {
            keys.check(promoted.signer, "the promotion bundle")?;
        }
        Ok(Valid { signed, is_pinned: self.fingerprint.is_some(), promoted })
    }

    /// Returns the command line that verifies a model. Words in capitals stand for what was not given.
    pub fn command(&self, model: &Path, ring: Option<&str>) -> String {
        let path = |given: &Option<PathBuf>, otherwise: &str| {
            given.as_ref().map_or_else(|| otherwise.to_owned(), |path| quoted(&path.display().to_string()))
        };
        let fingerprint = self.fingerprint.map_or_else(|| "FINGERPRINT".to_owned(), |digest| digest.to_string());
        format!(
            "codex verify {} --bundle {} --key {} --fingerprint {fingerprint} --promotion {} --ring {}",
            quoted(&model.display().to_string()),
            path(&self.bundle, "OMS_BUNDLE"),
            path(&self.key, "KEY"),
            path(&self.promotion, "PROMOTION_BUNDLE"),
            ring.unwrap_or("RING"),
        )
    }

    /// Returns the command line of the `OpenSSF`'s own tool, which verifies the signature of the model alone; `None` without a bundle.
    pub fn openssf_command(&self, model: &Path) -> Option<String> {
        let (bundle, key) = self.bundle.as_ref().zip(self.key.as_ref())?;
        let [model, bundle, key] = [model, bundle, key].map(|path| quoted(&path.display().to_string()));
        Some(format!("model_signing verify key {model} --signature {bundle} --public_key {key}"))
    }
}

/// Quotes a word for a POSIX shell where it needs quotes.
fn quoted(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+=:@%,".contains(&byte);
    if !word.is_empty() && !word.starts_with('-') && word.bytes().all(plain) {
        return word.to_owned();
    }
    // A word that begins with a dash would be an option.
    let path = if word.starts_with('-') { format!("./{word}") } else { word.to_owned() };
    format!("'{}'", path.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use codex_provenance::manifest::Manifest;

    use super::*;
    use crate::verify::tests::{fingerprint, signed};

    fn given(root: &Path) -> Given {
        Given {
            bundle: Some(root.join("model/model.sig")),
            key: Some(root.join("key.pem")),
            fingerprint: Some(fingerprint(root).parse().unwrap()),
            promotion: Some(root.join("promotion.json")),
        }
    }

    fn manifest(given: &Given, root: &Path) -> Manifest {
        let model = root.join("model");
        Manifest::of_dir_except(&model, &given.inside(&model)).unwrap()
    }

    #[test]
    fn bundles_are_verified_like_codex_verify_does() {
        let root = signed();
        let given = given(root.path());
        let manifest = manifest(&given, root.path());
        let Outcome::Valid(valid) = given.verify(&manifest, "main").unwrap() else { panic!("valid bundles") };
        assert!(valid.is_pinned && valid.promoted.is_some() && valid.signed.model == manifest.digest());
        let Outcome::Refused(why) = given.verify(&manifest, "0D_base_").unwrap() else { panic!("another ring") };
        assert!(why.contains("was made for the ring \"main\""), "{why}");
        let other = Given { fingerprint: Some(Sha256::of("another key")), ..given.clone() };
        let Outcome::Refused(why) = other.verify(&manifest, "main").unwrap() else { panic!("another key") };
        assert!(why.contains("is trusted"), "{why}");
        assert!(matches!(Given::default().verify(&manifest, "main").unwrap(), Outcome::NotGiven));
        fs::write(root.path().join("key.pem"), "no key").unwrap();
        let error = given.verify(&manifest, "main").unwrap_err();
        assert!(error.exit == exit::BAD_INPUT && error.sentence().starts_with("--key: "), "{}", error.sentence());
    }

    #[test]
    fn the_command_line_can_be_pasted_into_a_shell() {
        let given = Given { bundle: Some("a b/o'ms.json".into()), key: Some("key.pem".into()), ..Given::default() };
        assert_eq!(
            given.command(Path::new("-run/model"), Some("main")),
            "codex verify './-run/model' --bundle 'a b/o'\\''ms.json' --key key.pem --fingerprint FINGERPRINT \
             --promotion PROMOTION_BUNDLE --ring main"
        );
        assert_eq!(
            given.openssf_command(Path::new("run/model")).unwrap(),
            "model_signing verify key run/model --signature 'a b/o'\\''ms.json' --public_key key.pem"
        );
        assert_eq!(Given::default().openssf_command(Path::new("run/model")), None);
        assert!(
            Given::default().command(Path::new("$(id)"), None).starts_with("codex verify '$(id)' --bundle OMS_BUNDLE ")
        );
    }
}
