//! The data of a run or an evaluation, as its resolved configuration names it. Pure.

use std::collections::BTreeSet;

use codex_provenance::DataDigest;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{ConfigError, error::nearest};

/// The tasks that data can be made of.
pub const TASKS: &[&str] =
    &["arithmetic", "word-problems", "arithmetic-5", "multiplication", "word-problems-3", "arithmetic-padded"];
/// The most records that one synthetic file can have.
pub const MAX_SYNTHETIC: u64 = 10_000_000;
/// The name of the problems in an evaluation's data.
pub const PROBLEMS: &str = "problems";
/// The name of the baseline's predictions in an evaluation's data.
pub const BASELINE: &str = "baseline";

/// The name of held-out records in a run's data: they are looked at while training, and never trained on.
pub const VALIDATION: &str = "validation";

/// One file of records: pinned by its digest, or made where it is used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Data {
    /// Unique among the data of one object.
    pub name: String,
    /// What the file must hash to; only synthetic data may leave it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<DataDigest>,
    /// How the file is made, where it is not read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub synthetic: Option<Synthetic>,
}

/// Records that are made, the same bytes on every machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Synthetic {
    /// One of [`TASKS`].
    pub task: String,
    /// Chooses the records.
    pub seed: u64,
    /// Records.
    pub count: u64,
}

/// Checks the data of one object.
pub(crate) fn check(data: &[Data]) -> Result<(), ConfigError> {
    let mut names = BTreeSet::new();
    for (index, item) in data.iter().enumerate() {
        let refuse = |field: &str, value: String, right: String| ConfigError::Data {
            field: format!("data[{index}]{field}"),
            value,
            right,
        };
        if !is_name(&item.name) {
            let right = "write 1 to 63 lower-case letters, digits and inner dashes".to_owned();
            return Err(refuse(".name", format!("{:?}", item.name), right));
        }
        if !names.insert(&item.name) {
            return Err(refuse(".name", format!("{:?}", item.name), "give every file a name of its own".to_owned()));
        }
        let Some(synthetic) = &item.synthetic else {
            if item.sha256.is_none() {
                let right = format!("set data[{index}].sha256 to the SHA-256 of the file (sha256sum FILE)");
                return Err(refuse("", format!("{:?}", item.name), right));
            }
            continue;
        };
        if !TASKS.contains(&synthetic.task.as_str()) {
            let meant = nearest(&synthetic.task, TASKS).map(|task| format!(" (did you mean {task}?)"));
            let right = format!("known tasks are {}{}", TASKS.join(", "), meant.unwrap_or_default());
            return Err(refuse(".synthetic.task", format!("{:?}", synthetic.task), right));
        }
        if !(1..=MAX_SYNTHETIC).contains(&synthetic.count) {
            let right = format!("write a whole number from 1 to {MAX_SYNTHETIC}");
            return Err(refuse(".synthetic.count", synthetic.count.to_string(), right));
        }
        if synthetic.seed > crate::MAX_SEED {
            let right = format!("write a whole number from 0 to {}", crate::MAX_SEED);
            return Err(refuse(".synthetic.seed", synthetic.seed.to_string(), right));
        }
    }
    Ok(())
}

fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    (1..=63).contains(&name.len())
        && name.bytes().all(|byte| plain(byte) || byte == b'-')
        && name.bytes().next().is_some_and(plain)
        && name.bytes().last().is_some_and(plain)
}
