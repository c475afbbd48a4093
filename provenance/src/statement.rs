//! in-toto statements v1: a subject and a predicate about it. Pure.
//!
//! Source: <https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md>.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{canonical::canonical, digest::Sha256, text::Printable};

const STATEMENT: &str = "https://in-toto.io/Statement/v1";

/// A statement about a subject.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Statement<P> {
    #[serde(rename = "_type")]
    type_: String,
    subject: Vec<Subject>,
    predicate_type: String,
    predicate: P,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Subject {
    name: String,
    digest: SubjectDigest,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SubjectDigest {
    sha256: Sha256,
}

/// Returns the canonical bytes of a statement about the subject `name` with the digest `subject`.
pub(crate) fn write<P: Serialize>(name: &str, subject: Sha256, predicate_type: &str, predicate: &P) -> Vec<u8> {
    canonical(&Statement {
        type_: STATEMENT.to_owned(),
        subject: vec![Subject { name: name.to_owned(), digest: SubjectDigest { sha256: subject } }],
        predicate_type: predicate_type.to_owned(),
        predicate,
    })
}

/// Returns the predicate type of a statement, if it is one.
pub(crate) fn predicate_type(payload: &[u8]) -> Option<String> {
    codex_json::from_slice::<Statement<serde::de::IgnoredAny>>(payload).ok().map(|statement| statement.predicate_type)
}

/// Reads a statement and returns the digest of its subject and its predicate.
///
/// # Errors
/// The first fault, as a text that is safe to print.
pub(crate) fn read<P: DeserializeOwned>(payload: &[u8], predicate_type: &str) -> Result<(Sha256, P), String> {
    // The types first, so that the message about another kind of statement names the kind and not an unknown field.
    let unreadable = |error: serde_json::Error| Printable(&error.to_string()).to_string();
    let kind: Statement<serde::de::IgnoredAny> = codex_json::from_slice(payload).map_err(unreadable)?;
    if kind.type_ != STATEMENT {
        return Err(format!("its type is {:?}, not {STATEMENT:?}", kind.type_));
    }
    if kind.predicate_type != predicate_type {
        return Err(format!("its predicate type is {:?}, not {predicate_type:?}", kind.predicate_type));
    }
    let [subject] = kind.subject.as_slice() else {
        return Err(format!("it has {} subjects, and exactly one is required", kind.subject.len()));
    };
    let statement: Statement<P> = codex_json::from_slice(payload).map_err(unreadable)?;
    Ok((subject.digest.sha256, statement.predicate))
}
