//! `codex verify`: the checks of a server on the command line, for a model and its bundles. Reads files.

pub mod given;
mod json;
mod keys;
mod policies;
#[cfg(test)]
pub(crate) mod tests;
pub mod trusted;

use std::{
    collections::BTreeSet,
    fmt,
    io::Write as _,
    path::{Path, PathBuf},
};

use clap::builder::PossibleValuesParser;
use codex_provenance::{
    EvidenceStrength, Sha256,
    attestation::Attestation,
    files,
    golden::Golden,
    manifest::{Manifest, ManifestError},
    promotion::{Comparison, Earlier, Evaluation, Gate, HeldPolicy, Promotion, Reference},
    reproduction,
    text::{Printable, counted},
};
use codex_reports::exit;
use codex_signing::{
    bundle,
    keyless::Identity,
    verify::{
        Promoted, Reproduced, Signed, VerifyError, verify_attestations, verify_promotion, verify_reproduction,
        verify_signature,
    },
};
use codex_verdict::{
    Ring,
    policy::{Policy, Signatory, told},
};
use jiff::{SignedDuration, Timestamp};

use crate::{
    arguments::{Duration, Format, duration, timestamp},
    error::CommandError,
    evaluation::again::measured_again,
};
pub use json::{Checked, SignedBy, Verification, VerifiedAttestation, VerifiedModel, VerifiedPromotion};
use trusted::IdentityArguments;

/// The exit code for a valid model whose key was not compared with a fingerprint.
const NOT_PINNED: i32 = 3;
/// Maximum size of a key file in bytes.
const MAX_KEY: usize = 64 << 10;
/// Maximum size of a file of outcomes in bytes.
const MAX_OUTCOMES: usize = 1 << 30;
/// How far ahead of `--at` a time in a statement may be: clocks differ.
const CLOCK_SKEW: SignedDuration = SignedDuration::from_mins(5);

/// Verify that a model is exactly what was signed and, with --promotion, that it was promoted into a ring.
///
/// Exit codes: 0 verified with the key of --fingerprint, 1 refused (one sentence says why), 2 something cannot be read,
/// 3 verified, but with a key that was not compared with a fingerprint.
#[derive(Clone, Debug, clap::Args)]
pub struct Verify {
    /// The model: a directory, or a single file.
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// The OpenSSF Model Signing bundle. Inside the model directory, it does not count as a file of the model.
    #[arg(long, value_name = "FILE")]
    bundle: PathBuf,
    /// The trusted public keys: a PEM file with one or more. Lines notBefore: TIME and notAfter: TIME above a key limit when its
    /// signatures count. May be repeated.
    #[arg(long, value_name = "FILE", required_unless_present = "trusted_root")]
    key: Vec<PathBuf>,
    /// The SHA-256 fingerprint that a key must have. Take it from a source that you trust, such as the ConfigMap
    /// codex-signing-key in the controller's namespace. May be repeated; each key must have one of them. Without it, keys are not
    /// pinned, and the exit code is 3.
    #[arg(long, value_name = "SHA256")]
    fingerprint: Vec<Sha256>,
    #[command(flatten)]
    identity: IdentityArguments,
    /// The promotion bundle. Without it, no promotion is checked.
    #[arg(long, value_name = "FILE", requires = "ring")]
    promotion: Option<PathBuf>,
    /// The ring that the promotion must be for.
    #[arg(long, requires = "promotion", value_parser = PossibleValuesParser::new(Ring::ALL.map(Ring::name)))]
    ring: Option<String>,
    /// Refuse a promotion with an evaluation that was judged longer ago, such as 30d, 12h or 45m.
    #[arg(long, value_name = "DURATION", requires = "promotion", value_parser = duration)]
    max_age: Option<Duration>,
    /// The time at which keys must count, and from which --max-age counts back, as RFC 3339 [default: now].
    #[arg(long, value_name = "TIME", value_parser = timestamp)]
    at: Option<Timestamp>,
    /// The outcomes.json of an evaluation in the promotion, or of one that its gates compare with; repeatable. Every measurement
    /// of the evaluation, and the bootstrapped bounds of bleu and perplexity, is computed again from it.
    #[arg(long, value_name = "FILE", requires = "promotion")]
    outcomes: Vec<PathBuf>,
    /// Refuse a promotion with an evaluation that admission policies did not protect from start to end.
    #[arg(long, requires = "promotion")]
    strong_evidence: bool,
    /// Refuse a promotion that the policies of this file deny or whose rules it does not meet. The file holds PromotionPolicy or
    /// ClusterPromotionPolicy objects as YAML. May be repeated.
    #[arg(long, value_name = "FILE", requires = "promotion")]
    policy: Vec<PathBuf>,
    /// The bundle of a reproduction: a second TrainingRun made this model again, bit for bit. May be repeated.
    #[arg(long, value_name = "FILE")]
    reproduced: Vec<PathBuf>,
    /// The bundle of an attestation beside the promotion: SLSA provenance, test result, ML-BOM or verification summary, from the
    /// same ConfigMap. May be repeated. Each must be signed as the promotion is, and say what it says.
    #[arg(long, value_name = "FILE", requires = "promotion")]
    attestation: Vec<PathBuf>,
    /// How the result is printed.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: Format,
}

/// A valid model.
struct Outcome {
    manifest: Manifest,
    pinned: bool,
    signed: Signed,
    /// The keys that expire, with the time.
    expiring: Vec<(Sha256, Timestamp)>,
    promoted: Option<Promoted>,
    /// The reproductions of the model.
    reproduced: Vec<Reproduced>,
    /// The attestations about the promotion.
    attested: Vec<Attestation>,
    /// The policies that were checked.
    policies: Vec<Policy>,
    /// Names of the evaluations that were measured again from their outcomes.
    measured: Vec<String>,
}

/// The error for a file that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{argument}: {path:?} cannot be read")]
struct Unreadable {
    argument: &'static str,
    path: PathBuf,
    #[source]
    source: std::io::Error,
}

impl Verify {
    /// Verifies the model and prints the result.
    ///
    /// # Errors
    /// Fails with exit code 1 if a check fails, and with 2 if a file cannot be read or the key is invalid.
    pub fn run(self) -> Result<i32, CommandError> {
        let mut steps = Steps::default();
        let outcome = self.verify_in(&mut steps);
        let told = match (self.format, &outcome) {
            (Format::Text, Ok(outcome)) => outcome.to_string(),
            // What was checked before the refusal, which follows as the error.
            (Format::Text, Err(_)) => steps.to_string(),
            (Format::Json, outcome) => {
                let outcome = outcome.as_ref().map_err(CommandError::sentence);
                let json = serde_json::to_string_pretty(&Verification::of(&steps, outcome));
                format!("{}\n", json.map_err(CommandError::failed)?)
            }
        };
        // The exit code is the result, even if it cannot be printed.
        let _ = std::io::stdout().write_all(told.as_bytes());
        Ok(outcome?.exit())
    }

    #[cfg(test)]
    fn verify(&self) -> Result<Outcome, CommandError> {
        self.verify_in(&mut Steps::default())
    }

    fn verify_in(&self, steps: &mut Steps) -> Result<Outcome, CommandError> {
        let bundle = read("--bundle", &self.bundle, bundle::MAX_BYTES)?;
        let promotion =
            self.promotion.as_deref().map(|path| read("--promotion", path, bundle::MAX_BYTES)).transpose()?;
        let reproductions = self.reproduced.iter().map(|path| read("--reproduced", path, bundle::MAX_BYTES));
        let reproductions: Vec<Vec<u8>> = reproductions.collect::<Result<_, CommandError>>()?;
        let policies = policies::read(&self.policy)?;
        let attestations = self.attestation.iter().map(|path| read("--attestation", path, bundle::MAX_BYTES));
        let attestations: Vec<Vec<u8>> = attestations.collect::<Result<_, CommandError>>()?;
        let outcomes = self.outcomes.iter().map(|path| Ok((path.as_path(), read("--outcomes", path, MAX_OUTCOMES)?)));
        let outcomes: Vec<(&Path, Vec<u8>)> = outcomes.collect::<Result<_, CommandError>>()?;
        let now = self.at.unwrap_or_else(Timestamp::now);
        let trusted = self.identity.trusted(&self.key, &self.fingerprint, now)?;
        steps.passed(trusted.kind(), trusted.told(!self.fingerprint.is_empty()));
        let manifest = self.manifest().map_err(|error| match error {
            ManifestError::Unreadable { .. } => CommandError::bad_input(error),
            refused => CommandError::failed(format!("the model is refused: {refused}")),
        })?;
        steps.passed("files", format!("{}, {} bytes", counted(manifest.files.len(), "file"), manifest.size_bytes()));
        let signed = verify_signature(&manifest, &bundle, &trusted, None).map_err(refused)?;
        let signer = who(signed.signer, signed.identity.as_ref());
        steps.passed("signature", format!("{signer} signed exactly these files"));
        let mut expiring = Vec::new();
        let until = trusted.check(signed.signer, "the OMS bundle")?;
        expiring.extend(until.map(|end| (signed.signer, end)));
        steps.passed("validity", trusted.counted(&signer, now));
        let (mut measured, mut attested) = (Vec::new(), Vec::new());
        let promoted = match (promotion, &self.ring) {
            (Some(promotion), Some(ring)) => {
                let promoted = verify_promotion(&signed, &promotion, &trusted, ring, None).map_err(refused)?;
                let promoter = who(promoted.signer, promoted.identity.as_ref());
                steps.passed("promotion", format!("{promoter} promoted it into {ring}"));
                let until = trusted.check(promoted.signer, "the promotion bundle")?;
                expiring.extend(until.filter(|_| promoted.signer != signed.signer).map(|end| (promoted.signer, end)));
                self.check_evidence(&promoted.promotion).map_err(CommandError::failed)?;
                steps.passed("evidence", "its gates pass, and it is as recent and as strong as demanded".to_owned());
                let bundles = attestations.iter().map(Vec::as_slice);
                attested = verify_attestations(&promoted, bundles, &trusted).map_err(refused)?;
                for attestation in &attested {
                    steps.passed(attestation.kind.name(), attestation.told(&promoted.promotion));
                }
                let signers = [
                    Signatory { fingerprint: promoted.signer, identity: promoted.identity.as_ref() },
                    Signatory { fingerprint: signed.signer, identity: signed.identity.as_ref() },
                ];
                let kinds = attested.iter().map(|it| it.kind).collect();
                policies::check(&policies, &promoted.promotion, kinds, &signers, now).map_err(CommandError::failed)?;
                steps.passed("policies", format!("{} given, and all hold", policies.len()));
                measured = measured_again(&promoted.promotion.reasons.evaluations, &outcomes)?;
                if !outcomes.is_empty() {
                    steps.passed(
                        "outcomes",
                        format!("{} measured again, and equal", counted(measured.len(), "evaluation")),
                    );
                }
                Some(promoted)
            }
            _ => None,
        };
        let mut reproduced = Vec::new();
        for bundle in &reproductions {
            let again = verify_reproduction(signed.model, bundle, &trusted).map_err(refused)?;
            trusted.check(again.signer, "the bundle of the reproduction")?;
            policies::check_reproduction(&policies, again.signer).map_err(CommandError::failed)?;
            let signer = who(again.signer, again.identity.as_ref());
            steps.passed("reproduction", format!("{signer} signed that a second run made the same model"));
            reproduced.push(again);
        }
        let pinned = !self.fingerprint.is_empty() || self.identity.is_given();
        Ok(Outcome { manifest, pinned, signed, expiring, promoted, reproduced, attested, policies, measured })
    }

    /// Checks what the caller demands of the evidence.
    fn check_evidence(&self, promotion: &Promotion) -> Result<(), String> {
        let now = self.at.unwrap_or_else(Timestamp::now);
        for evaluation in &promotion.reasons.evaluations {
            let name = Printable(&evaluation.name);
            if self.strong_evidence && evaluation.evidence != Some(EvidenceStrength::Strong) {
                let strength = strength(evaluation);
                return Err(format!(
                    "the evidence of evaluation {name} is {strength}, but --strong-evidence is given: evaluate again while the \
                     admission policies are in place"
                ));
            }
            let Some(limit) = self.max_age else { continue };
            let judged: Timestamp = evaluation.completed_at.parse().map_err(|_| {
                format!("evaluation {name} has the time {:?}, which is not RFC 3339", evaluation.completed_at)
            })?;
            let age = now.duration_since(judged);
            if age > limit.0 || age < -CLOCK_SKEW {
                let why = if age > limit.0 {
                    format!("more than {limit} before {now}: evaluate again, or raise --max-age")
                } else {
                    format!("after {now}: check the clock, or --at")
                };
                return Err(format!("evaluation {name} was judged at {judged}, {why}"));
            }
        }
        Ok(())
    }

    fn manifest(&self) -> Result<Manifest, ManifestError> {
        if self.model.is_file() {
            return Manifest::of_file(&self.model);
        }
        Manifest::of_dir_except(&self.model, &inside(&self.bundle, &self.model).into_iter().collect::<BTreeSet<_>>())
    }
}

/// Names a signer.
fn who(signer: Sha256, identity: Option<&Identity>) -> String {
    identity.map_or_else(|| format!("the key {signer}"), ToString::to_string)
}

/// The checks that passed, a line each.
#[derive(Debug, Default)]
struct Steps(Vec<(&'static str, String)>);

impl Steps {
    fn passed(&mut self, what: &'static str, how: String) {
        self.0.push((what, how));
    }
}

impl fmt::Display for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(what, how)| writeln!(f, "passed     {what}: {how}"))
    }
}

/// Returns the exit code 2 for a file that is not a bundle, and 1 for every other refusal.
fn refused(error: VerifyError) -> CommandError {
    if error.is_shape() { CommandError::bad_input(error) } else { CommandError::failed(error) }
}

fn read(argument: &'static str, path: &Path, limit: usize) -> Result<Vec<u8>, CommandError> {
    files::read_start(path, limit)
        .map_err(|source| CommandError::bad_input(Unreadable { argument, path: path.to_owned(), source }))
}

/// Returns the path of `file` relative to `directory`, if the file is inside it.
pub(crate) fn inside(file: &Path, directory: &Path) -> Option<String> {
    let (file, directory) = (file.canonicalize().ok()?, directory.canonicalize().ok()?);
    Some(file.strip_prefix(directory).ok()?.to_str()?.to_owned())
}

impl Outcome {
    fn exit(&self) -> i32 {
        if self.pinned { exit::FINISHED } else { NOT_PINNED }
    }
}

/// First what the promotion statement says, then what was checked, so that no text of a statement follows the result. Texts
/// from files are escaped.
impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(Promoted { promotion, .. }) = &self.promoted {
            let training = &promotion.reasons.training;
            let (namespace, run) = (&promotion.reasons.namespace, &training.run);
            writeln!(f, "training   {}/{} (uid {})", Printable(namespace), Printable(&run.name), Printable(&run.uid))?;
            let image =
                Some(training.attested.image_id.as_str()).filter(|image| !image.is_empty()).unwrap_or("unknown");
            let standing = if training.is_attested() {
                "attested, because the controller lists its image"
            } else {
                "only reported, because the controller does not list its image"
            };
            writeln!(f, "trainer    what it read is {standing}: {}", Printable(image))?;
            for (name, digest) in training.data().into_iter().flatten() {
                writeln!(f, "data       {} {digest}", Printable(name))?;
            }
            if let Some(base) = &training.base {
                let source = base.source.as_deref().unwrap_or("a source that the statement does not name");
                let signed = base.signer.map_or_else(String::new, |signer| format!(", signed by {signer}"));
                writeln!(f, "base       {}, from {}{signed}", base.model, Printable(source))?;
            }
            if let Some(device) = &training.device {
                let driver = device.driver.as_deref().map(|driver| format!(", driver {driver}")).unwrap_or_default();
                let said = format!("{} ({}{driver})", device.name, device.engine);
                writeln!(f, "device     {}", Printable(&said))?;
            }
            if let Some(adapter) = training.adapter {
                writeln!(f, "adapter    {adapter}, in artifacts/adapter of the run")?;
            }
            if let Some(adopted) = &training.adopted {
                let (run, image) = (&adopted.run, Printable(&adopted.image_id));
                writeln!(
                    f,
                    "adopted    from {} (uid {}), computed by {image}",
                    Printable(&run.name),
                    Printable(&run.uid)
                )?;
            }
        }
        for evaluation in self.promoted.iter().flat_map(|promoted| &promoted.promotion.reasons.evaluations) {
            writeln!(
                f,
                "evaluation {} (uid {}, preset {}): judged at {}, evidence {}",
                Printable(&evaluation.name),
                Printable(&evaluation.uid),
                Printable(&evaluation.preset),
                Printable(&evaluation.completed_at),
                strength(evaluation)
            )?;
            for gate in &evaluation.gates {
                writeln!(f, "evaluation {}: {}", Printable(&evaluation.name), Printable(&describe(gate)))?;
            }
            if self.measured.contains(&evaluation.name) {
                let name = Printable(&evaluation.name);
                writeln!(f, "evaluation {name}: every measurement is what its outcomes give")?;
            }
            let name = Printable(&evaluation.name);
            match &evaluation.golden_tokens {
                Some(golden) => {
                    let Golden { path, instruction_set, kernels, tolerance, .. } = golden;
                    let prompts = counted(golden.prompts.len(), "prompt");
                    writeln!(
                        f,
                        "evaluation {name}: {} golden tokens of {prompts}, by {} on {} (kernels {kernels}), elsewhere within {}",
                        golden.count(),
                        Printable(path),
                        Printable(instruction_set),
                        Printable(tolerance)
                    )?;
                }
                None => writeln!(f, "evaluation {name}: no golden tokens are recorded")?,
            }
            for Reference { name, uid, model, outcomes, .. } in &evaluation.references {
                let (evaluation, name, uid) = (Printable(&evaluation.name), Printable(name), Printable(uid));
                writeln!(
                    f,
                    "evaluation {evaluation}: compared with {name} (uid {uid}), model {model}, outcomes {outcomes}"
                )?;
            }
        }
        if let Some(Promoted { promotion, .. }) = &self.promoted {
            let reasons = &promotion.reasons;
            for HeldPolicy { kind, name, rule, .. } in &reasons.policies {
                writeln!(f, "policy     {} {} held, rule {rule}", Printable(kind), Printable(name))?;
            }
            for (evaluation, read) in reasons.evaluations.iter().filter_map(|it| Some((it, it.reads.as_ref()?))) {
                let applied: Vec<_> =
                    read.divided.iter().map(|it| format!("; {} by {}", told(it), it.policy)).collect();
                let said = format!(
                    "evaluation {} is read {} of its problems{}",
                    evaluation.name,
                    read.number,
                    applied.concat()
                );
                writeln!(f, "reads      {}", Printable(&said))?;
            }
            for Earlier { ring, promotion, since } in &reasons.earlier {
                writeln!(f, "earlier    promoted into {} at {} by {promotion}", Printable(ring), Printable(since))?;
            }
            for signed in &reasons.sign_offs {
                let how = if signed.authenticated { "" } else { ", not authenticated" };
                writeln!(f, "sign-off   {}{how}: {}", Printable(&signed.by), Printable(&signed.reason))?;
            }
        }
        for Reproduced { reproduction, .. } in &self.reproduced {
            writeln!(f, "reproduced {}", Printable(&repeated(&reproduction.evidence)))?;
        }
        let (files, bytes) = (self.manifest.files.len(), self.manifest.size_bytes());
        let skipped = &self.signed.skipped;
        if skipped.is_empty() {
            writeln!(f, "verified   {}, {bytes} bytes: exactly what was signed", counted(files, "file"))?;
        } else {
            writeln!(f, "verified   {} files of {files}: exactly what was signed", files - skipped.len())?;
            let names: Vec<_> = skipped.iter().map(|path| Printable(path).to_string()).collect();
            writeln!(f, "skipped    NOT signed, by the signature's ignore_paths: {}", names.join(", "))?;
        }
        writeln!(f, "model      {}", self.signed.model)?;
        match &self.promoted {
            Some(Promoted { promotion, digest, .. }) => {
                writeln!(f, "promoted   into {} by the statement {digest}", Printable(&promotion.reasons.ring))?;
            }
            None => writeln!(f, "promoted   NOT checked: give --promotion and --ring")?,
        }
        for (attestation, promoted) in self.attested.iter().filter_map(|it| Some((it, self.promoted.as_ref()?))) {
            writeln!(f, "attested   {}: {}", attestation.kind, attestation.told(&promoted.promotion))?;
        }
        for policy in &self.policies {
            writeln!(f, "held       {}", Printable(&policy.to_string()))?;
        }
        for (key, end) in &self.expiring {
            writeln!(f, "expires    {key} at {end}")?;
        }
        if let Some(identity) = &self.signed.identity {
            return writeln!(f, "signed by  {identity}");
        }
        let signer = self.signed.signer;
        let pinned = if self.pinned { ", the key of --fingerprint" } else { ": key NOT pinned, give --fingerprint" };
        let promoter = self.promoted.as_ref().map(|promoted| promoted.signer).filter(|promoter| *promoter != signer);
        if let Some(promoter) = promoter {
            writeln!(f, "promoted by {promoter}{pinned}")?;
        }
        writeln!(f, "signed by  {signer}{pinned}")
    }
}

/// Returns which runs made the same model, where, and what computed it.
fn repeated(evidence: &reproduction::Evidence) -> String {
    let reproduction::Evidence { namespace, computation, original, again, .. } = evidence;
    let run = |training: &reproduction::Training| {
        let node = training.node.as_ref().map_or_else(|| "an unknown node".to_owned(), |node| format!("node {node}"));
        let standing = if training.attested { "attested" } else { "reported" };
        let image = training.image_id.as_deref().unwrap_or("unknown");
        let reproduction::Training { run, .. } = training;
        format!("{namespace}/{} (uid {}) on {node}, {standing} by the image {image}", run.name, run.uid)
    };
    let reproduction::Computation { program, engine, kernels } = computation;
    format!("{} made the model of {}; program {program}, engine {engine}, kernels {kernels}", run(again), run(original))
}

/// Returns how strong the evidence of an evaluation is, in a word.
fn strength(evaluation: &Evaluation) -> &'static str {
    evaluation.evidence.map_or("of unknown strength", EvidenceStrength::name)
}

/// Returns a gate with its limits, values and verdict.
pub(crate) fn describe(gate: &Gate) -> String {
    let Gate {
        metric,
        min,
        max,
        better_than,
        not_worse_than,
        confidence,
        min_samples,
        value,
        n,
        lower,
        upper,
        p_value,
        approximate,
        verdict,
    } = gate;
    let compared = |with: &Option<Comparison>| {
        let Comparison { evaluation, by } = with.as_ref()?;
        Some(by.as_ref().map_or_else(|| evaluation.clone(), |by| format!("{evaluation} by {by}")))
    };
    let limits = [
        (">=", min.clone()),
        ("<=", max.clone()),
        ("better than", compared(better_than)),
        ("not worse than", compared(not_worse_than)),
        ("at confidence", confidence.clone()),
        ("with minSamples", min_samples.map(|count| count.to_string())),
    ];
    let limits = limits.into_iter().filter_map(|(sign, limit)| Some(format!(" {sign} {}", limit?)));
    let bounds = if *approximate { "approximate bounds" } else { "bounds" };
    let found = [
        ("value", value.clone()),
        ("n", n.map(|n| n.to_string())),
        (bounds, Option::zip(lower.as_ref(), upper.as_ref()).map(|(lower, upper)| format!("{lower} to {upper}"))),
        ("p", p_value.clone()),
    ];
    let found = found.into_iter().filter_map(|(name, number)| Some(format!("{name} {}", number?)));
    format!("{metric}{} ({}): {verdict}", limits.collect::<String>(), found.collect::<Vec<_>>().join(", "))
}
