//! What a resume would change: everything that differs between a checkpoint and now, and what each difference means for the
//! bits of the result. Pure.

use std::{collections::BTreeSet, fmt};

use codex_configs::VALIDATION;
use codex_provenance::DataDigest;
use serde_json::Value;

use super::{
    checkpoint::{About, Identity},
    origin::Origin,
};

/// What a difference means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    /// The same bits as if nothing differed.
    Same,
    /// A valid training, but other bits than an uninterrupted one would have.
    Other,
    /// Not the same training: it is not gone on with.
    Refused,
}

/// One thing that differs, or that was compared and does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// What was compared, such as `training.learning_rate` or `threads`.
    pub(super) what: String,
    /// What the checkpoint says.
    pub(super) then: String,
    /// What is now.
    pub(super) now: String,
    /// What it means.
    pub(super) class: Class,
}

/// The plan of a resume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// The step that training goes on from; none for a start at step 0.
    pub(super) step: Option<u64>,
    /// What was compared.
    pub(super) lines: Vec<Line>,
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Same => "same bits",
            Self::Other => "valid, other bits",
            Self::Refused => "refused",
        })
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, then, now, class } = self;
        if then == now {
            write!(f, "{class:<18} {what}: {now}")
        } else {
            write!(f, "{class:<18} {what}: {then} → {now}")
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.step {
            None => f.write_str("no checkpoint: training begins at step 0"),
            Some(step) => {
                write!(f, "training goes on from the checkpoint of step {step}: {}", self.class())?;
                self.lines.iter().try_for_each(|line| write!(f, "\n  {line}"))
            }
        }
    }
}

/// Keys that change what is written or watched, never a weight. `stop_after` and patience only end earlier or later.
const FREE: [&str; 16] = [
    "metadata.owner",
    "training.best_k",
    "training.best_metric",
    "training.checkpoint_every",
    "training.checkpoint_interval_seconds",
    "training.early_stop_patience",
    "training.eval_every",
    "training.eval_max_new_tokens",
    "training.eval_records",
    "training.eval_samples",
    "training.gradient_checkpointing",
    "training.keep_every",
    "training.keep_last",
    "training.metric_mode",
    "training.state_digest_every",
    "training.stop_after",
];

/// Keys that say where in the data a step begins, together: some records would be seen twice and some never.
const CURSOR: [&str; 3] = ["training.batch_size", "training.gradient_accumulation", "training.max_epochs"];

/// Where a step begins: so many examples each, and whether epochs cut some short.
fn cursor(leaves: &[(String, &Value)]) -> (Option<u64>, bool) {
    let number = |key: &str| leaves.iter().find(|leaf| leaf.0 == key).and_then(|leaf| leaf.1.as_u64());
    let [batch, accumulation, epochs] = CURSOR.map(number);
    (batch.zip(accumulation).map(|(batch, accumulation)| batch * accumulation), epochs.is_some())
}

/// What a change of a configured key means for a run that goes on.
fn class_of(key: &str) -> Class {
    if FREE.contains(&key) {
        Class::Same
    } else if key.starts_with("training.") && key != "training.shuffle" {
        Class::Other
    } else {
        // Another shape has other tensors, other responses are another task, and in another order some records would be seen
        // twice and some never.
        Class::Refused
    }
}

/// Every leaf of a JSON value with its path.
fn leaves<'a>(value: &'a Value, path: &str, into: &mut Vec<(String, &'a Value)>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                leaves(value, &path, into);
            }
        }
        leaf => into.push((path.to_owned(), leaf)),
    }
}

/// The keys whose values differ, or that only one side has.
pub(super) fn differing_keys(a: &Value, b: &Value) -> Vec<String> {
    let (mut before, mut after) = (Vec::new(), Vec::new());
    leaves(a, "", &mut before);
    leaves(b, "", &mut after);
    let find = |leaves: &[(String, &Value)], key: &String| {
        leaves.iter().find(|leaf| leaf.0 == *key).map(|leaf| leaf.1.to_string())
    };
    let keys: BTreeSet<&String> = before.iter().chain(&after).map(|(key, _)| key).collect();
    keys.into_iter().filter(|key| find(&before, key) != find(&after, key)).cloned().collect()
}

impl Plan {
    /// For a run that begins.
    pub(super) fn fresh() -> Self {
        Self { step: None, lines: Vec::new() }
    }

    /// Compares a checkpoint with what is now.
    pub(super) fn resume(about: &About, origin: Option<&Origin>, identity: &Identity, now: &Origin) -> Self {
        let mut lines = Vec::new();
        let mut compare = |what: &str, then: String, now: String, class: Class| {
            let class = if then == now { Class::Same } else { class };
            lines.push(Line { what: what.to_owned(), then, now, class });
        };
        // Another program of the same version or commit may compute other bits; the same program under another commit does not.
        let version = |origin: &Origin| {
            let program = origin.program.as_deref().map(|program| format!(" (program {program:.12})"));
            format!("{}{}", origin.version, program.unwrap_or_default())
        };
        let unknown = || "unknown".to_owned();
        let of = |value: fn(&Origin) -> String| origin.map_or_else(unknown, value);
        compare("version", origin.map_or_else(unknown, version), version(now), Class::Other);
        compare("engine", of(|origin| origin.engine.clone()), now.engine.clone(), Class::Other);
        compare("processor", of(|origin| origin.instructions.clone()), now.instructions.clone(), Class::Other);
        compare("threads", of(|origin| origin.threads.to_string()), now.threads.to_string(), Class::Same);
        compare("seed", about.identity.seed.to_string(), identity.seed.to_string(), Class::Refused);
        let looks = |identity: &Identity| {
            identity.settings.pointer("/training/eval_every").is_some_and(|every| !every.is_null())
        };
        let looked = looks(&about.identity) && looks(identity);
        let names: BTreeSet<&String> = about.identity.data.keys().chain(identity.data.keys()).collect();
        for name in names {
            let (then, now) = (about.identity.data.get(name), identity.data.get(name));
            let class = match (then, now) {
                // Held-out data changes no weight, but which checkpoints are the best, and when training ends early. Without
                // data of that name, other records are looked at.
                _ if name == VALIDATION && looked => Class::Other,
                _ if name == VALIDATION => Class::Same,
                _ => Class::Refused,
            };
            let digest = |digest: Option<&DataDigest>| digest.map_or_else(|| "none".to_owned(), DataDigest::short);
            compare(&format!("data {name}"), digest(then), digest(now), class);
        }
        let (then, now) = (about.identity.config_digest.short(), identity.config_digest.short());
        if then == now {
            compare("configuration", then, now, Class::Refused);
        } else {
            let (mut before, mut after) = (Vec::new(), Vec::new());
            leaves(&about.identity.settings, "", &mut before);
            leaves(&identity.settings, "", &mut after);
            let keys: BTreeSet<&String> = before.iter().chain(&after).map(|(key, _)| key).collect();
            let value = |leaves: &[(String, &Value)], key: &String| {
                leaves.iter().find(|leaf| leaf.0 == *key).map_or_else(|| "unset".to_owned(), |leaf| leaf.1.to_string())
            };
            for key in keys {
                let (then, now) = (value(&before, key), value(&after, key));
                if then != now {
                    let cursor = CURSOR.contains(&key.as_str()) && cursor(&before) != cursor(&after);
                    compare(key, then, now, if cursor { Class::Refused } else { class_of(key) });
                }
            }
        }
        Self { step: Some(about.step), lines }
    }

    /// The worst of all lines.
    pub(super) fn class(&self) -> Class {
        self.lines.iter().map(|line| line.class).max().unwrap_or(Class::Same)
    }

    /// The lines that differ.
    pub(super) fn differences(&self) -> impl Iterator<Item = &Line> {
        self.lines.iter().filter(|line| line.then != line.now)
    }

    /// The differences that were asked for (seed, data, configuration) and not by the machine, with at least `class`.
    pub(super) fn asked(&self, class: Class) -> Vec<&Line> {
        const MACHINE: [&str; 4] = ["version", "engine", "processor", "threads"];
        self.differences().filter(|line| line.class >= class && !MACHINE.contains(&&*line.what)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use codex_provenance::Sha256;

    use super::*;
    use crate::training::{
        checkpoint::SCHEMA_VERSION,
        tests::{both, resolved},
    };

    fn identity(overrides: &[&str], data: &[u8]) -> Identity {
        let run = resolved(overrides, both());
        Identity {
            config_digest: run.digest(),
            settings: serde_json::to_value(&run.spec().settings).unwrap(),
            seed: 1,
            data: BTreeMap::from([("mine".to_owned(), DataDigest(Sha256::of(data)))]),
        }
    }

    fn origin(threads: usize) -> Origin {
        let text = |text: &str| text.to_owned();
        Origin {
            version: text("0.1.0"),
            git_commit: None,
            program: Some(text("0123456789abcdef")),
            engine: text("cpu-f32"),
            instructions: text("avx2"),
            threads,
        }
    }

    fn about(overrides: &[&str]) -> About {
        About {
            schema_version: SCHEMA_VERSION,
            step: 40,
            identity: identity(overrides, b"data"),
            metrics: BTreeMap::new(),
            state_digest: Sha256::of(b""),
            tensors: BTreeMap::new(),
        }
    }

    #[test]
    fn every_difference_has_its_class() {
        let plan = |origin: Option<&Origin>, overrides: &[&str], data: &[u8], now: &Origin| {
            Plan::resume(&about(&[]), origin, &identity(overrides, data), now)
        };
        let two = origin(2);
        let same = plan(Some(&two), &[], b"data", &two);
        assert_eq!((same.class(), same.differences().count()), (Class::Same, 0));
        assert_eq!(plan(Some(&origin(1)), &[], b"data", &two).class(), Class::Same, "threads change no bit");
        let newer = Origin { version: "0.2.0".to_owned(), ..origin(2) };
        let plan_of_version = plan(Some(&two), &[], b"data", &newer);
        assert_eq!((plan_of_version.class(), plan_of_version.asked(Class::Other).len()), (Class::Other, 0));
        let rebuilt = Origin { program: Some("fedcba9876543210".to_owned()), ..origin(2) };
        let plan_of_program = plan(Some(&two), &[], b"data", &rebuilt);
        assert_eq!((plan_of_program.class(), plan_of_program.asked(Class::Other).len()), (Class::Other, 0));
        let text = plan_of_program.to_string();
        assert!(text.contains("version: 0.1.0 (program 0123456789ab) → 0.1.0 (program fedcba987654)"), "{text}");
        assert_eq!(plan(None, &[], b"data", &two).class(), Class::Other, "nobody knows what wrote it");
        assert_eq!(plan(Some(&two), &[], b"other", &two).class(), Class::Refused);
        assert_eq!(plan(Some(&two), &["training.keep_last=7"], b"data", &two).class(), Class::Same);
        let rate = plan(Some(&two), &["training.learning_rate=0.5"], b"data", &two);
        assert_eq!((rate.class(), rate.asked(Class::Other).len()), (Class::Other, 1));
        assert_eq!(plan(Some(&two), &["model.num_hidden_layers=9"], b"data", &two).class(), Class::Refused);
        let class = |overrides: &[&str]| plan(Some(&two), overrides, b"data", &two).class();
        let halves = ["training.batch_size=16", "training.gradient_accumulation=2"];
        assert_eq!(class(&halves), Class::Other, "a step begins where it began");
        assert_eq!(class(&halves[..1]), Class::Refused, "records would be seen twice");
        assert_eq!(class(&["training.max_epochs=3"]), Class::Refused);
        assert_eq!(class(&["training.shuffle=false"]), Class::Refused);
        let held_out = |then: (&[&str], Option<&[u8]>), now: (&[&str], Option<&[u8]>)| {
            let with = |(overrides, held_out): (&[&str], Option<&[u8]>)| {
                let mut identity = identity(overrides, b"data");
                let file = held_out.map(|bytes| (VALIDATION.to_owned(), DataDigest(Sha256::of(bytes))));
                identity.data.extend(file);
                identity
            };
            Plan::resume(&About { identity: with(then), ..about(&[]) }, Some(&two), &with(now), &two).class()
        };
        let (blind, looking) = (&[][..], &["training.eval_every=2"][..]);
        let (a, b): (Option<&[u8]>, Option<&[u8]>) = (Some(b"a"), Some(b"b"));
        assert_eq!(held_out((blind, None), (looking, a)), Class::Same, "looking changes no weight");
        assert_eq!(held_out((looking, a), (blind, None)), Class::Same, "nobody looks any more");
        assert_eq!(held_out((looking, a), (looking, b)), Class::Other, "losses are of something else");
        assert_eq!(held_out((looking, a), (looking, None)), Class::Other, "of synthetic records now");
        assert_eq!(held_out((looking, None), (looking, a)), Class::Other, "of synthetic records before");
        let text = rate.to_string();
        assert!(text.starts_with("training goes on from the checkpoint of step 40: valid, other bits\n"), "{text}");
        assert!(text.contains("valid, other bits  training.learning_rate: 0.01 → 0.5"), "{text}");
        assert!(text.contains("same bits          threads: 2"), "{text}");
    }

    /// Every key that is configured has a class on purpose: a new one that changes no weight belongs into `FREE`, and a
    /// name there that is no key is a mistake.
    #[test]
    fn free_keys_are_keys() {
        let settings = serde_json::to_value(&resolved(&[], both()).spec().settings).unwrap();
        let mut known = Vec::new();
        leaves(&settings, "", &mut known);
        for key in FREE {
            assert!(known.iter().any(|(path, _)| path == key), "{key}");
        }
    }
}
