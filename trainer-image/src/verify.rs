//! `codex verify`: the check that a server makes, for a person with a model directory and its bundles. Reads files.

use std::{
    collections::BTreeSet,
    fmt, fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use codex_provenance::{
    key::PublicKey,
    manifest::{Manifest, ManifestError},
    verify::{Promoted, Signed, verify_promotion, verify_signature},
};
use codex_reports::exit;

use crate::cli::CommandError;

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
    #[arg(long, requires = "promotion")]
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
        let key = PublicKey::from_pem(&String::from_utf8_lossy(&key)).map_err(CommandError::bad_input)?;
        let except = inside(&self.bundle, &self.model).into_iter().collect::<BTreeSet<_>>();
        let manifest = Manifest::of_dir_except(&self.model, &except).map_err(|error| match error {
            ManifestError::Unreadable { .. } => CommandError::bad_input(error),
            refused => CommandError::failed(format!("the model directory is refused: {refused}")),
        })?;
        let signed = verify_signature(&manifest, &bundle, &key, None).map_err(CommandError::failed)?;
        let promoted = match (promotion, &self.ring) {
            (Some(promotion), Some(ring)) => {
                Some(verify_promotion(&signed, &promotion, &key, ring, None).map_err(CommandError::failed)?)
            }
            _ => None,
        };
        Ok(Outcome { manifest, signed, promoted })
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
