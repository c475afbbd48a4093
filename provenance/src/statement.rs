//! in-toto statements v1: a subject and a predicate about it. Pure.
//!
//! Source: <https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md>.

use std::{collections::BTreeSet, fmt};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{DeserializeOwned, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor},
};

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

/// Any JSON in which no object has a key twice. Of such keys one reader takes the first value and another one the last, so that the same
/// signed bytes would say two things.
struct Unambiguous;

impl<'de> Deserialize<'de> for Unambiguous {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = Unambiguous;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }

            fn visit_bool<E>(self, _: bool) -> Result<Unambiguous, E> {
                Ok(Unambiguous)
            }

            fn visit_i64<E>(self, _: i64) -> Result<Unambiguous, E> {
                Ok(Unambiguous)
            }

            fn visit_u64<E>(self, _: u64) -> Result<Unambiguous, E> {
                Ok(Unambiguous)
            }

            fn visit_f64<E>(self, _: f64) -> Result<Unambiguous, E> {
                Ok(Unambiguous)
            }

            fn visit_str<E>(self, _: &str) -> Result<Unambiguous, E> {
                Ok(Unambiguous)
            }

            fn visit_unit<E>(self) -> Result<Unambiguous, E> {
                Ok(Unambiguous)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Unambiguous, A::Error> {
                while items.next_element::<Unambiguous>()?.is_some() {}
                Ok(Unambiguous)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Unambiguous, A::Error> {
                let mut known = BTreeSet::new();
                while let Some(key) = fields.next_key::<String>()? {
                    fields.next_value::<Unambiguous>()?;
                    if let Some(twice) = known.replace(key) {
                        return Err(A::Error::custom(format!("the key {twice:?} occurs twice")));
                    }
                }
                Ok(Unambiguous)
            }
        }

        deserializer.deserialize_any(Any)
    }
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
    codex_json::from_slice::<Statement<IgnoredAny>>(payload).ok().map(|statement| statement.predicate_type)
}

/// Reads a statement and returns the digest of its subject and its predicate.
///
/// # Errors
/// The first fault, as a text that is safe to print.
pub(crate) fn read<P: DeserializeOwned>(payload: &[u8], predicate_type: &str) -> Result<(Sha256, P), String> {
    // The types first, so that the message about another kind of statement names the kind and not an unknown field.
    let unreadable = |error: serde_json::Error| Printable(&error.to_string()).to_string();
    let kind: Statement<IgnoredAny> = codex_json::from_slice(payload).map_err(unreadable)?;
    if kind.type_ != STATEMENT {
        return Err(format!("its type is {:?}, not {STATEMENT:?}", kind.type_));
    }
    if kind.predicate_type != predicate_type {
        return Err(format!("its predicate type is {:?}, not {predicate_type:?}", kind.predicate_type));
    }
    let [subject] = kind.subject.as_slice() else {
        return Err(format!("it has {} subjects, and exactly one is required", kind.subject.len()));
    };
    serde_json::from_slice::<Unambiguous>(payload).map_err(unreadable)?;
    let statement: Statement<P> = codex_json::from_slice(payload).map_err(unreadable)?;
    Ok((subject.digest.sha256, statement.predicate))
}
