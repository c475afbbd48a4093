//! What other programs read about a promotion: SLSA provenance, an in-toto test result, a `CycloneDX` ML-BOM and a SLSA verification
//! summary. Each is a statement of its own about the model, in a bundle of its own beside that of the promotion. Pure.
//!
//! They follow from the promotion statement and from the TrainingRun, whose uid is part of the name under which the promotion is
//! recorded. So they hold nothing that this name does not cover but what the promotion statement itself holds, and the same promotion
//! gives the same bytes. For this reason they name no version of the controller that signs, and no time of signing.
//!
//! Sources: <https://slsa.dev/spec/v1.0/provenance>, <https://slsa.dev/spec/v1.1/verification_summary>,
//! <https://github.com/in-toto/attestation/blob/main/spec/predicates/test-result.md>,
//! <https://github.com/in-toto/attestation/blob/main/spec/predicates/cyclonedx.md> and, for digests and names,
//! <https://github.com/in-toto/attestation/blob/main/spec/v1/resource_descriptor.md>.

mod ml_bom;
mod provenance;
mod summary;
mod test_result;
#[cfg(test)]
mod tests;

use std::{borrow::Cow, fmt, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub use self::provenance::{RecordedBuild, image_digest};
use crate::{
    digest::Sha256, manifest::File, promotion::Promotion, reproduction::Computation, statement, text::Printable,
};

/// The build type of provenance: what `externalParameters` mean. docs/attestations.md describes it.
pub const BUILD_TYPE: &str = "https://codex-ml.dev/build/training-run/v1";
/// The operator as builder and verifier, with the version of its API.
pub const OPERATOR: &str = "https://codex-ml.dev/operator/v1alpha1";

/// A kind of attestation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum AttestationKind {
    /// SLSA provenance: how the model was trained.
    SlsaProvenance,
    /// in-toto test result: the gates that it passed, and on which problems.
    TestResult,
    /// `CycloneDX` ML-BOM: the files, data and base of the model, and what its gates measured, with bounds.
    MlBom,
    /// SLSA verification summary: the policy that it was verified against, and the ring.
    VerificationSummary,
}

impl AttestationKind {
    /// Every kind, in the order in which they are signed.
    pub const ALL: [Self; 4] = [Self::SlsaProvenance, Self::TestResult, Self::MlBom, Self::VerificationSummary];

    /// Returns the name in policies.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SlsaProvenance => "slsaProvenance",
            Self::TestResult => "testResult",
            Self::MlBom => "mlBom",
            Self::VerificationSummary => "verificationSummary",
        }
    }

    /// Returns the predicate type of its statements.
    pub const fn predicate_type(self) -> &'static str {
        match self {
            Self::SlsaProvenance => "https://slsa.dev/provenance/v1",
            Self::TestResult => "https://in-toto.io/attestation/test-result/v0.1",
            Self::MlBom => "https://cyclonedx.org/bom",
            Self::VerificationSummary => "https://slsa.dev/verification_summary/v1",
        }
    }

    /// Returns the entry of its bundle in the ConfigMap of a promotion.
    pub const fn entry(self) -> &'static str {
        match self {
            Self::SlsaProvenance => "slsa-provenance.json",
            Self::TestResult => "test-result.json",
            Self::MlBom => "ml-bom.json",
            Self::VerificationSummary => "verification-summary.json",
        }
    }
}

impl FromStr for AttestationKind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|kind| kind.name() == name);
        found.ok_or_else(|| {
            format!(
                "{:?} is not a kind of attestation: use {}",
                Printable(name).to_string(),
                Self::ALL.map(Self::name).join(", ")
            )
        })
    }
}

impl JsonSchema for AttestationKind {
    fn schema_name() -> Cow<'static, str> {
        "AttestationKind".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let names = Self::ALL.map(Self::name);
        json_schema!({ "type": "string", "enum": names, "maxLength": names.map(str::len).iter().max() })
    }
}

impl fmt::Display for AttestationKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What attestations say about a training and its model beyond the promotion statement. The uid of the TrainingRun fixes all of it but
/// `configuration`, which a later controller may leave out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Build {
    /// The parameters that the author of the TrainingRun set, and `configuration`, which was composed from them.
    pub parameters: Value,
    /// Time at which the first pod started (RFC 3339), if it was recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
    /// What computed the model, if it was recorded and all attempts computed with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub computation: Option<Computation>,
    /// Files of the model, whose manifest has the model digest.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<File>,
}

/// A statement of one of these kinds, and the bytes to sign.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsigned {
    /// Its kind.
    pub kind: AttestationKind,
    /// The bytes to sign.
    pub payload: Vec<u8>,
}

/// Returns the statements that are signed beside a promotion. The summary names the others by the digests of their payloads.
pub fn attestations(promotion: &Promotion, build: &Build) -> [Unsigned; 4] {
    let written = |kind: AttestationKind, predicate: &Value| Unsigned {
        kind,
        payload: statement::write("model", promotion.model.0, kind.predicate_type(), predicate),
    };
    let provenance = written(AttestationKind::SlsaProvenance, &provenance::predicate(promotion, build));
    let tests = written(AttestationKind::TestResult, &test_result::predicate(promotion));
    let bom = written(AttestationKind::MlBom, &ml_bom::predicate(promotion, build));
    let inputs = [&provenance, &tests, &bom].map(|input| (input.kind.name(), Sha256::of(&input.payload)));
    let summary = written(AttestationKind::VerificationSummary, &summary::predicate(promotion, &inputs));
    [provenance, tests, bom, summary]
}

/// The content of an attestation about a promotion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attestation {
    /// Its kind.
    pub kind: AttestationKind,
    /// Digest of its payload.
    pub digest: Sha256,
    predicate: Value,
}

impl Attestation {
    /// Reads the payload of a verified bundle: a statement about the model of this promotion that says what the promotion says.
    ///
    /// # Errors
    /// The first fault, as a text that is safe to print.
    pub fn read(payload: &[u8], promotion: &Promotion) -> Result<Self, String> {
        let found = statement::predicate_type(payload).ok_or("it is not an in-toto statement with one predicate")?;
        let kind = AttestationKind::ALL.into_iter().find(|kind| kind.predicate_type() == found).ok_or_else(|| {
            let known = AttestationKind::ALL.map(AttestationKind::predicate_type).join(", ");
            format!("its predicate type is {:?}; use one of {known}", Printable(&found).to_string())
        })?;
        let (model, predicate): (Sha256, Value) = statement::read(payload, kind.predicate_type())?;
        if model != promotion.model.0 {
            return Err(format!("it was made for another model: {model}, not {}", promotion.model));
        }
        match kind {
            AttestationKind::SlsaProvenance => provenance::check(&predicate, promotion),
            AttestationKind::TestResult => test_result::check(&predicate, promotion),
            AttestationKind::MlBom => ml_bom::check(&predicate, promotion),
            AttestationKind::VerificationSummary => summary::check(&predicate, promotion),
        }?;
        Ok(Self { kind, digest: Sha256::of(payload), predicate })
    }

    /// Returns what SLSA provenance records of a training beside the promotion. `None` for other kinds, and for provenance that does not
    /// say what computed the model.
    pub fn recorded_build(&self) -> Option<RecordedBuild> {
        let is_provenance = self.kind == AttestationKind::SlsaProvenance;
        is_provenance.then(|| provenance::recorded(&self.predicate)).flatten()
    }

    /// Checks that a summary names these attestations of the same promotion. Other kinds name none.
    ///
    /// # Errors
    /// The first that it does not name.
    pub fn check_inputs<'a>(&self, others: impl IntoIterator<Item = &'a Self>) -> Result<(), String> {
        if self.kind != AttestationKind::VerificationSummary {
            return Ok(());
        }
        let others = others.into_iter().filter(|other| other.kind != self.kind);
        for other in others {
            summary::check_input(&self.predicate, other.kind.name(), other.digest)?;
        }
        Ok(())
    }

    /// Returns one sentence about what it says, for people. Text from the statement is escaped.
    pub fn told(&self, promotion: &Promotion) -> String {
        match self.kind {
            AttestationKind::SlsaProvenance => {
                let count = self.predicate.pointer("/buildDefinition/resolvedDependencies").and_then(Value::as_array);
                let count = count.map_or(0, Vec::len);
                let training = &promotion.reasons.training;
                let run = Printable(&training.computed_by().uid);
                let adopted = match &training.adopted {
                    Some(_) => format!(", and the run {} adopted it", Printable(&training.run.uid)),
                    None => String::new(),
                };
                format!("{OPERATOR} trained it in the run {run} from {count} dependencies{adopted}")
            }
            AttestationKind::TestResult => {
                let count = self.predicate["passedTests"].as_array().map_or(0, Vec::len);
                format!("PASSED, for every gate of the promotion ({count})")
            }
            AttestationKind::MlBom => ml_bom::told(&self.predicate),
            AttestationKind::VerificationSummary => {
                let policy = self.predicate.pointer("/policy/uri").and_then(Value::as_str).unwrap_or_default();
                format!("PASSED against {}", Printable(policy))
            }
        }
    }
}

/// Returns the descriptor of something with a digest.
fn descriptor(name: &str, digest: Sha256) -> Value {
    json!({ "name": name, "digest": { "sha256": digest } })
}

/// Checks a text of a predicate.
fn check_text(predicate: &Value, pointer: &str, expected: &str) -> Result<(), String> {
    let field = pointer.trim_start_matches('/').replace('/', ".");
    match predicate.pointer(pointer).and_then(Value::as_str) {
        Some(found) if found == expected => Ok(()),
        Some(found) => Err(format!("its {field} is \"{}\", not {expected:?}", Printable(found))),
        None => Err(format!("its {field} is missing: {expected:?} is required")),
    }
}

/// Returns names and digests of a list of descriptors, sorted.
///
/// # Errors
/// A descriptor has no name or no SHA-256.
fn named(predicate: &Value, pointer: &str) -> Result<Vec<(String, Sha256)>, String> {
    let field = pointer.trim_start_matches('/').replace('/', ".");
    let list = predicate.pointer(pointer).and_then(Value::as_array);
    let list = list.ok_or_else(|| format!("its {field} is missing: a list of descriptors is required"))?;
    let read = |entry: &Value| {
        let name = entry["name"].as_str()?;
        let digest: Sha256 = entry.pointer("/digest/sha256")?.as_str()?.parse().ok()?;
        Some((name.to_owned(), digest))
    };
    let mut found = Vec::with_capacity(list.len());
    for (index, entry) in list.iter().enumerate() {
        found.push(read(entry).ok_or_else(|| format!("its {field}[{index}] needs a name and digest.sha256"))?);
    }
    found.sort();
    Ok(found)
}

/// Checks that a list of descriptors has exactly the expected names and digests, in any order.
fn check_named(predicate: &Value, pointer: &str, mut expected: Vec<(String, Sha256)>) -> Result<(), String> {
    let found = named(predicate, pointer)?;
    expected.sort();
    let field = pointer.trim_start_matches('/').replace('/', ".");
    if let Some((name, digest)) = expected.iter().find(|entry| !found.contains(entry)) {
        return Err(format!("its {field} lacks {} with {digest}, which the promotion names", Printable(name)));
    }
    match found.iter().find(|entry| !expected.contains(entry)) {
        Some((name, digest)) => {
            Err(format!("its {field} names {} with {digest}, which the promotion does not", Printable(name)))
        }
        None => Ok(()),
    }
}
