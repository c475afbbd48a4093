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

use super::{inside, read, refused, trusted::IdentityArguments, who};
use crate::error::CommandError;

/// The bundles of a model and the key that signed them.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Given {
    /// The OpenSSF Model Signing bundle of the model. Inside the model directory, it does not count as a file of the model.
    #[arg(long, value_name = "FILE")]
    pub bundle: Option<PathBuf>,
    /// The trusted public keys, a PEM file. Lines notBefore: TIME and notAfter: TIME above a key limit when its signatures count.
    #[arg(long, value_name = "FILE", requires = "bundle")]
    pub key: Option<PathBuf>,
    /// The SHA-256 fingerprint that every key must have, from a source that you trust.
    #[arg(long, value_name = "SHA256", requires = "key")]
    pub fingerprint: Option<Sha256>,
    /// The identity that is trusted instead of keys.
    #[command(flatten)]
    pub identity: IdentityArguments,
    /// The promotion bundle.
    #[arg(long, value_name = "FILE", requires = "bundle")]
    pub promotion: Option<PathBuf>,
}

/// Valid bundles.
#[derive(Clone, Debug)]
pub struct Valid {
    /// The content of the OMS bundle.
    pub signed: Signed,
    /// Whether the signer is the one that was named: by a fingerprint, or as an identity.
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

impl Valid {
    /// Names who signed the model: a key, or an identity.
    pub(crate) fn signer(&self) -> String {
        who(self.signed.signer, self.signed.identity.as_ref())
    }
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
        let Some(path) = &self.bundle else {
            if self.identity.is_given() {
                return Err(CommandError::bad_input("--trusted-root needs --bundle: the signature that it verifies"));
            }
            return Ok(Outcome::NotGiven);
        };
        if self.key.is_none() && !self.identity.is_given() {
            return Err(CommandError::bad_input(
                "--bundle needs --key, or --trusted-root with --certificate-identity and --certificate-oidc-issuer: who is trusted to \
                 have signed",
            ));
        }
        let oms = read("--bundle", path, bundle::MAX_BYTES)?;
        let promotion =
            self.promotion.as_deref().map(|path| read("--promotion", path, bundle::MAX_BYTES)).transpose()?;
        match self.check(manifest, &oms, promotion.as_deref(), ring) {
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
        ring: &str,
    ) -> Result<Valid, CommandError> {
        let trusted = self.identity.trusted(self.key.as_slice(), self.fingerprint.as_slice(), Timestamp::now())?;
        let signed = verify_signature(manifest, oms, &trusted, None).map_err(refused)?;
        trusted.check(signed.signer, "the OMS bundle")?;
        let promoted =
            promotion.map(|promotion| verify_promotion(&signed, promotion, &trusted, ring, None)).transpose();
        let promoted = promoted.map_err(refused)?;
        if let Some(promoted) = &promoted {
            trusted.check(promoted.signer, "the promotion bundle")?;
        }
        let is_pinned = self.fingerprint.is_some() || self.identity.is_given();
        Ok(Valid { signed, is_pinned, promoted })
    }

    /// Returns the command line that verifies a model. Words in capitals stand for what was not given.
    pub fn command(&self, model: &Path, ring: Option<&str>) -> String {
        let path = |given: &Option<PathBuf>, otherwise: &str| {
            given.as_ref().map_or_else(|| otherwise.to_owned(), |path| quoted(&path.display().to_string()))
        };
        let signer = if self.identity.is_given() {
            let text = |given: &Option<String>| quoted(given.as_deref().unwrap_or_default());
            format!(
                "--trusted-root {} --certificate-identity {} --certificate-oidc-issuer {}",
                path(&self.identity.trusted_root, "ROOT"),
                text(&self.identity.certificate_identity),
                text(&self.identity.certificate_oidc_issuer),
            )
        } else {
            let fingerprint = self.fingerprint.map_or_else(|| "FINGERPRINT".to_owned(), |digest| digest.to_string());
            format!("--key {} --fingerprint {fingerprint}", path(&self.key, "KEY"))
        };
        format!(
            "codex verify {} --bundle {} {signer} --promotion {} --ring {}",
            quoted(&model.display().to_string()),
            path(&self.bundle, "OMS_BUNDLE"),
            path(&self.promotion, "PROMOTION_BUNDLE"),
            ring.unwrap_or("RING"),
        )
    }

    /// Returns the command line of the `OpenSSF`'s own tool, which verifies the signature of the model alone; `None` without a bundle
    /// and a key.
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
            identity: IdentityArguments::default(),
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

    /// The recorded bundle is validly signed and holds no statement about a model, so what is refused tells how far it came.
    #[test]
    fn an_identity_is_trusted_instead_of_a_key() {
        let root = signed();
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../provenance/signing/tests/fixtures/keyless");
        let trusting = |subject: &str| Given {
            bundle: Some(fixtures.join("dsse.sigstore.json")),
            identity: IdentityArguments {
                certificate_identity: Some(subject.to_owned()),
                certificate_oidc_issuer: Some("https://token.actions.githubusercontent.com".to_owned()),
                trusted_root: Some(fixtures.join("trusted_root.json")),
            },
            ..Given::default()
        };
        let manifest = Manifest::of_dir(&root.path().join("model")).unwrap();
        let why = |given: &Given| match given.verify(&manifest, "main") {
            Ok(Outcome::Refused(why)) => why,
            other => panic!("{other:?}"),
        };
        let right = "https://github.com/sigstore-conformance/*/.github/workflows/*@refs/heads/main";
        assert!(why(&trusting(right)).contains("has no valid model signing statement"));
        assert!(why(&trusting("https://github.com/other/*")).contains("was signed by another identity"));
        let line = trusting("https://example.com/*").command(Path::new("m"), Some("main"));
        assert!(
            line.contains(" --certificate-identity 'https://example.com/*' --certificate-oidc-issuer https://token."),
            "{line}"
        );
        let neither = Given { identity: IdentityArguments::default(), ..trusting(right) };
        let error = neither.verify(&manifest, "main").unwrap_err();
        assert!(error.exit == exit::BAD_INPUT && error.sentence().contains("--bundle needs --key, or"), "{error}");
        let alone = Given { bundle: None, ..trusting(right) };
        assert!(alone.verify(&manifest, "main").unwrap_err().sentence().contains("--trusted-root needs --bundle"));
    }
}
