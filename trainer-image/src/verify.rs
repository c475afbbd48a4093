//! `codex verify`: the check that a server makes, for a person with a model directory and its bundles. Reads files.

use std::{
    collections::BTreeSet,
    fmt, fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use clap::builder::PossibleValuesParser;
use codex_provenance::{
    manifest::{Manifest, ManifestError},
    promotion::RINGS,
};
use codex_reports::exit;
use codex_signing::{
    bundle::BundleError,
    key::PublicKey,
    verify::{Promoted, Signed, VerifyError, verify_promotion, verify_signature},
};

use crate::error::CommandError;

/// Verify that a model directory is exactly what was signed, and, if asked, what was promoted into a ring.
///
/// Exit codes: 0 verified, 1 refused (one sentence says why), 2 something cannot be read.
#[derive(Clone, Debug, clap::Args)]
pub struct Verify {
    /// The model directory.
    #[arg(value_name = "MODEL_DIR")]
    model: PathBuf,
    /// The OMS signature bundle; when it lies inside the model directory, it is not counted as a file of the model.
    #[arg(long, value_name = "FILE")]
    bundle: PathBuf,
    /// The public key to trust, in PEM.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// The promotion bundle.
    #[arg(long, value_name = "FILE", requires = "ring")]
    promotion: Option<PathBuf>,
    /// The ring that the promotion must be for.
    #[arg(long, requires = "promotion", value_parser = PossibleValuesParser::new(RINGS))]
    ring: Option<String>,
}

/// What was verified.
struct Outcome {
    manifest: Manifest,
    signed: Signed,
    promoted: Option<Promoted>,
}

/// A file that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{argument}: {path:?} cannot be read")]
struct Unreadable {
    argument: &'static str,
    path: PathBuf,
    #[source]
    source: std::io::Error,
}

impl Verify {
    /// Verifies and says what was verified.
    ///
    /// # Errors
    /// A refusal (exit 1); a file that cannot be read, a key that is none (exit 2).
    pub fn run(self) -> Result<i32, CommandError> {
        let outcome = self.verify()?;
        // Nobody listens: the exit code says it all.
        let _ = std::io::stdout().write_all(outcome.to_string().as_bytes());
        Ok(exit::FINISHED)
    }

    fn verify(&self) -> Result<Outcome, CommandError> {
        let bundle = read("--bundle", &self.bundle)?;
        let promotion = self.promotion.as_deref().map(|path| read("--promotion", path)).transpose()?;
        let key = read("--key", &self.key)?;
        let key = PublicKey::from_pem(&String::from_utf8_lossy(&key))
            .map_err(|error| CommandError::bad_input(format!("--key: {}: {error}", self.key.display())))?;
        let except = inside(&self.bundle, &self.model).into_iter().collect::<BTreeSet<_>>();
        let manifest = Manifest::of_dir_except(&self.model, &except).map_err(|error| match error {
            ManifestError::Unreadable { .. } => CommandError::bad_input(error),
            refused => CommandError::failed(format!("the model directory is refused: {refused}")),
        })?;
        let signed = verify_signature(&manifest, &bundle, &key, None).map_err(refused)?;
        let promoted = match (promotion, &self.ring) {
            (Some(promotion), Some(ring)) => {
                Some(verify_promotion(&signed, &promotion, &key, ring, None).map_err(refused)?)
            }
            _ => None,
        };
        Ok(Outcome { manifest, signed, promoted })
    }
}

/// A bundle that is none cannot be read; everything else is refused.
fn refused(error: VerifyError) -> CommandError {
    match error {
        VerifyError::Oms(BundleError::Shape(_) | BundleError::TooLarge(_))
        | VerifyError::Promotion(BundleError::Shape(_) | BundleError::TooLarge(_)) => CommandError::bad_input(error),
        error => CommandError::failed(error),
    }
}

fn read(argument: &'static str, path: &Path) -> Result<Vec<u8>, CommandError> {
    fs::read(path).map_err(|source| CommandError::bad_input(Unreadable { argument, path: path.to_owned(), source }))
}

/// The path of `file` below `directory`, if it lies there.
fn inside(file: &Path, directory: &Path) -> Option<String> {
    let (file, directory) = (file.canonicalize().ok()?, directory.canonicalize().ok()?);
    Some(file.strip_prefix(directory).ok()?.to_str()?.to_owned())
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (files, bytes) = (self.manifest.files.len(), self.manifest.size_bytes());
        writeln!(f, "verified   {files} files, {bytes} bytes: exactly what was signed")?;
        writeln!(f, "model      {}", self.signed.model)?;
        writeln!(f, "signed by  {}", self.signed.signer)?;
        let Some(Promoted { promotion, digest }) = &self.promoted else { return Ok(()) };
        writeln!(f, "promoted   into {} by the statement {digest}", promotion.reasons.ring)?;
        for evaluation in &promotion.reasons.evaluations {
            for gate in &evaluation.gates {
                let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
                writeln!(
                    f,
                    "  {}: {} {} (n {}, bounds {} to {}): {}",
                    evaluation.name,
                    gate.metric,
                    text(&gate.value),
                    text(&gate.n.map(|n| n.to_string())),
                    text(&gate.lower),
                    text(&gate.upper),
                    gate.verdict
                )?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use clap::Parser;
    use codex_provenance::{
        ConfigDigest, GatesDigest, ReportDigest, Sha256, oms,
        promotion::{Evaluation, Gate, Promotion, Reasons, Training},
    };
    use codex_signing::key::{PrivateKey, Signer as _};

    use super::*;

    #[derive(Parser)]
    struct Arguments {
        #[command(flatten)]
        verify: Verify,
    }

    fn promotion(model: &Manifest, payload: &[u8]) -> Promotion {
        let gate = Gate {
            metric: "exact_match".into(),
            min: Some("0.95".into()),
            max: None,
            confidence: None,
            value: Some("0.99".into()),
            n: Some(500),
            lower: None,
            upper: None,
            verdict: "Passed".into(),
        };
        let evaluation = Evaluation {
            name: "cot-lite".into(),
            uid: "u".into(),
            report_digest: ReportDigest(Sha256::of("r")),
            gates_digest: GatesDigest(Sha256::of("g")),
            data: BTreeMap::new(),
            image_id: "i".into(),
            gates: vec![gate],
        };
        let training = Training {
            run_uid: "u".into(),
            config_digest: ConfigDigest(Sha256::of("c")),
            data: BTreeMap::new(),
            image_id: "i".into(),
        };
        let reasons = Reasons {
            ring: "main".into(),
            oms_payload: oms::payload_digest(payload),
            training,
            evaluations: vec![evaluation],
        };
        Promotion { model: model.digest(), reasons }
    }

    /// A signed model whose bundle lies inside its directory.
    fn signed() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let model = root.path().join("model");
        fs::create_dir(&model).unwrap();
        fs::write(model.join("config.json"), "{}").unwrap();
        let key = PrivateKey::generate().unwrap();
        let manifest = Manifest::of_dir(&model).unwrap();
        let payload = oms::payload(&manifest, "model");
        fs::write(root.path().join("promotion.json"), key.sign(&promotion(&manifest, &payload).payload()).unwrap())
            .unwrap();
        fs::write(root.path().join("key.pem"), key.public().to_pem()).unwrap();
        fs::write(model.join("model.sig"), key.sign(&payload).unwrap()).unwrap();
        root
    }

    fn verify(root: &Path, more: &[&str]) -> Result<Outcome, CommandError> {
        let path = |name: &str| root.join(name).to_str().unwrap().to_owned();
        let mut arguments =
            vec!["verify".into(), path("model"), "--bundle".into(), path("model/model.sig"), "--key".into()];
        arguments.push(path("key.pem"));
        for argument in more {
            arguments.push(if Path::new(argument).extension().is_some() {
                path(argument)
            } else {
                (*argument).to_owned()
            });
        }
        Arguments::try_parse_from(arguments).map_err(CommandError::bad_input)?.verify.verify()
    }

    #[test]
    fn what_was_verified_is_told() {
        let root = signed();
        let told = verify(root.path(), &["--promotion", "promotion.json", "--ring", "main"]).ok().unwrap().to_string();
        assert!(told.starts_with("verified   1 files, 2 bytes: exactly what was signed\nmodel      "), "{told}");
        assert!(told.contains("promoted   into main by the statement "), "{told}");
        assert!(told.ends_with("  cot-lite: exact_match 0.99 (n 500, bounds - to -): Passed\n"), "{told}");
        assert!(!verify(root.path(), &[]).ok().unwrap().to_string().contains("promoted"));
    }

    #[test]
    fn refusals_and_bad_input_end_differently() {
        let root = signed();
        let end = |more: &[&str]| verify(root.path(), more).err().map(|error| (error.exit, error.sentence())).unwrap();
        let (code, told) = end(&["--promotion", "promotion.json", "--ring", "0D_base_"]);
        assert_eq!(code, exit::FAILED);
        assert_eq!(told, "the promotion bundle was made for the ring \"main\", and \"0D_base_\" is demanded");
        assert_eq!(end(&["--promotion", "promotion.json"]).0, exit::BAD_INPUT, "a promotion is for a ring");
        let (code, told) = end(&["--promotion", "nowhere.json", "--ring", "main"]);
        assert!(code == exit::BAD_INPUT && told.contains("--promotion: ") && told.contains("nowhere.json"), "{told}");
        fs::write(root.path().join("model/config.json"), "[]").unwrap();
        let (code, told) = end(&[]);
        assert!(code == exit::FAILED && told.contains("config.json was changed"), "{told}");
        std::os::unix::fs::symlink("config.json", root.path().join("model/link")).unwrap();
        let (code, told) = end(&[]);
        assert!(code == exit::FAILED && told.contains("\"link\" is a symbolic link"), "{told}");
        for (key, why) in [
            ("no key", "the public key is no PEM: it has no line -----BEGIN PUBLIC KEY-----"),
            ("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "the public key cannot be read"),
            (&PrivateKey::generate().unwrap().to_pem().unwrap(), "the public key is a private key"),
        ] {
            fs::write(root.path().join("key.pem"), key).unwrap();
            let (code, told) = end(&[]);
            assert!(code == exit::BAD_INPUT && told.starts_with("--key: ") && told.contains(why), "{told}");
        }
        let root = signed();
        let end = |more: &[&str]| verify(root.path(), more).err().map(|error| (error.exit, error.sentence())).unwrap();
        fs::write(root.path().join("promotion.json"), "no bundle").unwrap();
        let (code, told) = end(&["--promotion", "promotion.json", "--ring", "main"]);
        assert!(code == exit::BAD_INPUT && told.contains("promotion bundle is no Sigstore bundle"), "{told}");
        fs::write(root.path().join("model/model.sig"), "no bundle").unwrap();
        let (code, told) = end(&[]);
        assert!(code == exit::BAD_INPUT && told.contains("OMS bundle is no Sigstore bundle"), "{told}");
    }
}
