//! in-toto statements v1: who is spoken of, and what is said. Pure.
//!
//! Source: <https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md>.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{canonical::canonical, digest::Sha256};

const STATEMENT: &str = "https://in-toto.io/Statement/v1";

/// A statement about one thing.
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

/// The canonical bytes of a statement that says `predicate` about the thing `name` with the digest `subject`.
pub(crate) fn write<P: Serialize>(name: &str, subject: Sha256, predicate_type: &str, predicate: &P) -> Vec<u8> {
    canonical(&Statement {
        type_: STATEMENT.to_owned(),
        subject: vec![Subject { name: name.to_owned(), digest: SubjectDigest { sha256: subject } }],
        predicate_type: predicate_type.to_owned(),
        predicate,
    })
}

/// Reads a statement: the digest of its one subject, and what it says.
///
/// # Errors
/// What is not as it must be, to go on after "it holds no … statement: ".
pub(crate) fn read<P: DeserializeOwned>(payload: &[u8], predicate_type: &str) -> Result<(Sha256, P), String> {
    // The kind first, so that a statement of another kind is named and not its first strange field.
    let kind: Statement<serde::de::IgnoredAny> = serde_json::from_slice(payload).map_err(|error| error.to_string())?;
    if kind.type_ != STATEMENT {
        return Err(format!("its type is {:?}, not {STATEMENT:?}", kind.type_));
    }
    if kind.predicate_type != predicate_type {
        return Err(format!("its predicate type is {:?}, not {predicate_type:?}", kind.predicate_type));
    }
    let [subject] = kind.subject.as_slice() else {
        return Err(format!("it has {} subjects, and exactly one is allowed", kind.subject.len()));
    };
    let statement: Statement<P> = serde_json::from_slice(payload).map_err(|error| error.to_string())?;
    Ok((subject.digest.sha256, statement.predicate))
}
