//! The answers of Rekor v1, which serves no tiles. Pure; the caller fetches.
//!
//! Such a log consists of one tree or several: when it is rotated, another tree begins, and the former ones no longer change. The index
//! of an entry counts through all of them. Source: <https://github.com/sigstore/rekor/blob/main/openapi.yaml>.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::Value;

use super::LogError;

/// The path of the description of a log, below its address.
pub const INFO: &str = "log";
/// Maximum size of an answer in bytes: an entry may carry the attestation that was logged.
pub const MAX_ANSWER: usize = 32 << 20;

/// Returns the path of an entry below the address of a log.
pub fn entry_path(index: u64) -> String {
    format!("log/entries?logIndex={index}")
}

/// Returns the checkpoints of the trees of a log, in the order of their entries, from its description.
///
/// # Errors
/// If the answer is not such a description.
pub fn checkpoints(answer: &[u8]) -> Result<Vec<String>, LogError> {
    const WHAT: &str = "description";
    let info = read(answer, WHAT)?;
    let former = info["inactiveShards"].as_array().into_iter().flatten();
    let heads = former.chain(std::iter::once(&info)).map(|tree| tree["signedTreeHead"].as_str().map(str::to_owned));
    heads.collect::<Option<_>>().ok_or(LogError::Answer { what: WHAT, why: "a tree has no signedTreeHead".to_owned() })
}

/// Returns the entry with this index, as the log has it.
///
/// # Errors
/// If the answer is not exactly this entry.
pub fn entry(answer: &[u8], index: u64) -> Result<Vec<u8>, LogError> {
    let wrong = |why: String| LogError::Answer { what: "entry", why };
    let answer = read(answer, "entry")?;
    let mut entries = answer.as_object().into_iter().flat_map(serde_json::Map::values);
    let (Some(entry), None) = (entries.next(), entries.next()) else {
        return Err(wrong("it does not hold exactly one entry".to_owned()));
    };
    match entry["logIndex"].as_u64() {
        Some(found) if found == index => {}
        Some(found) => return Err(wrong(format!("it is the entry {found}, but {index} was asked for"))),
        None => return Err(wrong("it has no logIndex".to_owned())),
    }
    let body = entry["body"].as_str().and_then(|body| STANDARD.decode(body).ok());
    body.ok_or_else(|| wrong("its body is not base64".to_owned()))
}

fn read(answer: &[u8], what: &'static str) -> Result<Value, LogError> {
    codex_json::from_slice(answer).map_err(|why| LogError::Answer { what, why: why.to_string() })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn trees_are_listed_in_the_order_of_their_entries() {
        let tree = |head: &str| json!({"rootHash": "00", "treeSize": 1, "treeID": "1", "signedTreeHead": head});
        let mut info = tree("c");
        let of = |info: &Value| checkpoints(info.to_string().as_bytes());
        assert_eq!(of(&info), Ok(vec!["c".to_owned()]));
        info["inactiveShards"] = json!([tree("a"), tree("b")]);
        assert_eq!(of(&info), Ok(["a", "b", "c"].map(str::to_owned).to_vec()));
        info["inactiveShards"] = Value::Null;
        assert_eq!(of(&info), Ok(vec!["c".to_owned()]));
        for wrong in [json!([]), json!({}), json!({"signedTreeHead": "c", "inactiveShards": [{}]})] {
            assert!(matches!(of(&wrong), Err(LogError::Answer { .. })), "{wrong}");
        }
    }

    #[test]
    fn an_answer_is_exactly_the_entry_that_was_asked_for() {
        let answer = |entry: &Value| json!({"24296fb24b8ad77a": entry}).to_string();
        let good = json!({"body": "YQ==", "integratedTime": 1, "logID": "00", "logIndex": 7, "verification": {}});
        assert_eq!(entry(answer(&good).as_bytes(), 7), Ok(b"a".to_vec()));
        let told = |text: &str| entry(text.as_bytes(), 7).map_err(|why| why.to_string()).unwrap_err();
        let with = |name: &str, value: Value| {
            let mut entry = good.clone();
            entry[name] = value;
            told(&answer(&entry))
        };
        assert!(with("logIndex", json!(8)).contains("it is the entry 8, but 7 was asked for"));
        assert!(with("logIndex", json!("7")).contains("it has no logIndex"));
        assert!(with("body", json!("*")).contains("its body is not base64"));
        assert!(told("{}").contains("does not hold exactly one entry"));
        assert!(told(&json!({"a": good, "b": good}).to_string()).contains("does not hold exactly one entry"));
        assert!(told(r#"{"a": {}, "a": {}}"#).starts_with("the entry of the log is invalid: "));
        assert!(told("no JSON").starts_with("the entry of the log is invalid: "));
    }
}
