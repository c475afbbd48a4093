//! Comparison of a checkpoint with the current run: every difference, and its effect on the bits of the result. Pure.

use std::{collections::BTreeSet, fmt};

use codex_configs::VALIDATION;
use codex_provenance::DataDigest;
use serde_json::Value;

use super::{
    Origin,
    format::{RunIdentity, StateInfo},
};

/// Effect of a difference on the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Effect {
    /// The result has the same bits.
    SameBits,
    /// The training is valid, but its bits differ from those of an uninterrupted run.
    OtherBits,
    /// It would be another training, so the run does not resume.
    Refused,
}

/// One compared value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ComparedValue {
    /// Name of the value, such as `training.learning_rate` or `threads`.
    pub(crate) name: String,
    /// Value of the checkpoint.
    pub(crate) before: String,
    /// Current value.
    pub(crate) now: String,
    /// Effect of the difference.
    pub(crate) effect: Effect,
}

/// Result of the comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ResumeDiff {
    /// Step from which training resumes; `None` for a start at step 0.
    pub(crate) step: Option<u64>,
    /// Compared values.
    pub(crate) values: Vec<ComparedValue>,
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::SameBits => "same bits",
            Self::OtherBits => "valid, other bits",
            Self::Refused => "refused",
        })
    }
}

impl fmt::Display for ComparedValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, before, now, effect } = self;
        if before == now {
            write!(f, "{effect:<18} {name}: {now}")
        } else {
            write!(f, "{effect:<18} {name}: {before} → {now}")
        }
    }
}

impl fmt::Display for ResumeDiff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.step {
            None => f.write_str("no checkpoint: training starts at step 0"),
            Some(step) => {
                let resumes = if self.effect() == Effect::Refused { "cannot resume" } else { "resumes" };
                write!(f, "training {resumes} from the checkpoint of step {step}: {}", self.effect())?;
                self.values.iter().try_for_each(|value| write!(f, "\n  {value}"))
            }
        }
    }
}

/// Keys that never change a weight. `stop_after` and `early_stop_patience` only end the run earlier or later.
const NO_EFFECT: &[&str] = &[
    // The phases decide, which are compared on their own.
    "curriculum.preset",
    "deployment.preset",
    "evaluation.preset",
    "logging.reasoning_trace",
    "metadata.model_card",
    "metadata.owner",
    "trace_capture.mode",
    "trace_capture.pooling",
    "tracking.csv",
    "tracking.mlflow.files",
    "tracking.mlflow.server",
    "tracking.system_metrics",
    "tracking.tensorboard",
    "tracking.wandb",
    "training.best_k",
    "training.best_metric",
    "training.checkpoint_every",
    "training.checkpoint_interval_seconds",
    // The code path is compared apart from the configuration.
    "training.device",
    "training.early_stop_patience",
    "training.eval_every",
    "training.eval_max_new_tokens",
    "training.eval_records",
    "training.eval_samples",
    "training.gradient_checkpointing",
    "training.gradient_noise_scale",
    "training.keep_every",
    "training.keep_last",
    "training.metric_mode",
    // Traces are read by heads beside the model.
    "training.reasoning.head.dropout",
    "training.reasoning.head.hidden_size",
    "training.reasoning.head.projection_size",
    "training.reasoning.head.trace_vocab_size",
    "training.reasoning.log_probability_threshold",
    "training.reasoning.objective.log_top_k",
    "training.reasoning.objective.max_traces_per_epoch",
    "training.reasoning.objective.trace_store",
    "training.reasoning.objective.weight",
    "training.reasoning.tool_adapter.enabled",
    "training.reasoning.tool_adapter.hidden_size",
    "training.reasoning.tool_adapter.pooling",
    "training.reasoning.tool_adapter.temperature",
    "training.reasoning.tool_adapter.tools",
    "training.reasoning.trace_history",
    "training.state_digest_every",
    "training.stop_after",
];

/// Keys that together determine where in the data a step begins. With another position some records would be seen twice and
/// others never.
const POSITION: [&str; 3] = ["training.batch_size", "training.gradient_accumulation", "training.max_epochs"];

/// Returns the examples per step, and whether epochs shorten some steps.
fn position(leaves: &[(String, &Value)]) -> (Option<u64>, bool) {
    let number = |key: &str| leaves.iter().find(|leaf| leaf.0 == key).and_then(|leaf| leaf.1.as_u64());
    let [batch, accumulation, epochs] = POSITION.map(number);
    (batch.zip(accumulation).map(|(batch, accumulation)| batch * accumulation), epochs.is_some())
}

/// Keys of another training: in another order some records would be seen twice and others never; other methods, ranks and targets
/// train other tensors.
const OTHER_TRAINING: [&str; 6] = [
    "training.dpo.lora",
    "training.grpo.lora",
    "training.lora.rank",
    "training.lora.targets",
    "training.method",
    "training.shuffle",
];

/// Keys that decide what evaluations measure. They change weights if a curriculum waits for what is measured.
const EVALUATIONS: [&str; 4] =
    ["training.eval_every", "training.eval_max_new_tokens", "training.eval_records", "training.eval_samples"];

/// Returns the effect of a changed key on a run that resumes. `waits` says whether a curriculum waits for evaluations.
fn effect_of(key: &str, waits: bool) -> Effect {
    if waits && EVALUATIONS.contains(&key) {
        Effect::OtherBits
    } else if NO_EFFECT.contains(&key) {
        Effect::SameBits
    } else if key.starts_with("training.") && !OTHER_TRAINING.contains(&key) || key.starts_with("data.augmentation.") {
        // Other versions of the same records are seen in the same order.
        Effect::OtherBits
    } else {
        // Another shape has other tensors, and other responses are another task.
        Effect::Refused
    }
}

/// Collects the leaves of a JSON value with their paths.
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

/// Returns the keys whose values differ, or that only one side has.
pub(crate) fn differing_keys(a: &Value, b: &Value) -> Vec<String> {
    let (mut before, mut after) = (Vec::new(), Vec::new());
    leaves(a, "", &mut before);
    leaves(b, "", &mut after);
    // Objects in lists are equal in any order of their names.
    let find = |leaves: &[(String, &Value)], key: &String| {
        leaves.iter().find(|leaf| leaf.0 == *key).map(|leaf| leaf.1.clone())
    };
    let keys: BTreeSet<&String> = before.iter().chain(&after).map(|(key, _)| key).collect();
    keys.into_iter().filter(|key| find(&before, key) != find(&after, key)).cloned().collect()
}

impl ResumeDiff {
    /// Returns the result for a run without a checkpoint.
    pub(crate) fn fresh() -> Self {
        Self { step: None, values: Vec::new() }
    }

    /// Compares a checkpoint with the current run.
    pub(crate) fn compare(info: &StateInfo, origin: Option<&Origin>, identity: &RunIdentity, now: &Origin) -> Self {
        let mut values = Vec::new();
        let mut compare = |name: &str, before: String, now: String, effect: Effect| {
            let effect = if before == now { Effect::SameBits } else { effect };
            values.push(ComparedValue { name: name.to_owned(), before, now, effect });
        };
        // Another build of the same version or commit may compute other bits; the same program at another commit does not.
        let version = |origin: &Origin| {
            let program = origin.program.as_deref().map(|program| format!(" (program {program:.12})"));
            format!("{}{}", origin.version, program.unwrap_or_default())
        };
        let unknown = || "unknown".to_owned();
        let of = |value: fn(&Origin) -> String| origin.map_or_else(unknown, value);
        compare("version", origin.map_or_else(unknown, version), version(now), Effect::OtherBits);
        compare("engine", of(|origin| origin.engine.clone()), now.engine.clone(), Effect::OtherBits);
        compare("processor", of(|origin| origin.instructions.clone()), now.instructions.clone(), Effect::OtherBits);
        if now.on_gpu() {
            let before = of(|origin| origin.gpu.clone().unwrap_or_else(|| "unknown".to_owned()));
            // Without NVML nothing shows that it is the same one.
            let here = now.gpu.clone().unwrap_or_else(|| "unknown, because NVML cannot be used".to_owned());
            compare("gpu", before, here, Effect::OtherBits);
        }
        compare("threads", of(|origin| origin.threads.to_string()), now.threads.to_string(), Effect::SameBits);
        let base = |identity: &RunIdentity| identity.base.map_or_else(|| "none".to_owned(), |base| base.short());
        if info.identity.base.is_some() || identity.base.is_some() {
            compare("base", base(&info.identity), base(identity), Effect::Refused);
        }
        compare("seed", info.identity.seed.to_string(), identity.seed.to_string(), Effect::Refused);
        let looks = |identity: &RunIdentity| {
            identity.settings.pointer("/training/eval_every").is_some_and(|every| !every.is_null())
        };
        let looked = looks(&info.identity) && looks(identity);
        let names: BTreeSet<&String> = info.identity.data.keys().chain(identity.data.keys()).collect();
        for name in names {
            let (then, now) = (info.identity.data.get(name), identity.data.get(name));
            let effect = match (then, now) {
                // Validation data changes no weight, but it decides which checkpoints are the best, and when training stops
                // early. Without data of that name, other records are evaluated.
                _ if name == VALIDATION && looked => Effect::OtherBits,
                _ if name == VALIDATION => Effect::SameBits,
                _ => Effect::Refused,
            };
            let digest = |digest: Option<&DataDigest>| digest.map_or_else(|| "none".to_owned(), DataDigest::short);
            compare(&format!("data {name}"), digest(then), digest(now), effect);
        }
        let (then, now) = (info.identity.config_digest.short(), identity.config_digest.short());
        if then == now {
            compare("configuration", then, now, Effect::Refused);
        } else {
            let (mut before, mut after) = (Vec::new(), Vec::new());
            leaves(&info.identity.settings, "", &mut before);
            leaves(&identity.settings, "", &mut after);
            let keys: BTreeSet<&String> = before.iter().chain(&after).map(|(key, _)| key).collect();
            let value = |leaves: &[(String, &Value)], key: &String| {
                leaves.iter().find(|leaf| leaf.0 == *key).map_or_else(|| "unset".to_owned(), |leaf| leaf.1.to_string())
            };
            let bounds = ["min_metric_threshold", "max_metric_threshold"];
            let phases = identity.settings.pointer("/curriculum/phases").and_then(Value::as_array);
            let waits = phases.into_iter().flatten().any(|phase| bounds.iter().any(|bound| phase.get(bound).is_some()));
            for key in keys {
                let (then, now) = (value(&before, key), value(&after, key));
                if then != now {
                    let position = POSITION.contains(&key.as_str()) && position(&before) != position(&after);
                    compare(key, then, now, if position { Effect::Refused } else { effect_of(key, waits) });
                }
            }
        }
        Self { step: Some(info.step), values }
    }

    /// Returns the strongest effect of all values.
    pub(crate) fn effect(&self) -> Effect {
        self.values.iter().map(|value| value.effect).max().unwrap_or(Effect::SameBits)
    }

    /// Returns the values that differ.
    pub(crate) fn differences(&self) -> impl Iterator<Item = &ComparedValue> {
        self.values.iter().filter(|value| value.before != value.now)
    }

    /// Returns the differences of seed, data and configuration, not those of the machine, with at least this `effect`.
    pub(crate) fn requested(&self, effect: Effect) -> Vec<&ComparedValue> {
        const MACHINE: [&str; 5] = ["version", "engine", "processor", "gpu", "threads"];
        self.differences().filter(|value| value.effect >= effect && !MACHINE.contains(&&*value.name)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use codex_provenance::Sha256;

    use super::*;
    use crate::training::{
        checkpoint::format::SCHEMA_VERSION,
        test_support::{both, resolved},
    };

    fn identity(overrides: &[&str], data: &[u8]) -> RunIdentity {
        let run = resolved(overrides, both());
        RunIdentity {
            config_digest: run.digest(),
            settings: serde_json::to_value(&run.spec().settings).unwrap(),
            seed: 1,
            base: None,
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
            kernels: Some(text("x86_64 avx2")),
            gpu: None,
            mixed: false,
            threads,
        }
    }

    fn about(overrides: &[&str]) -> StateInfo {
        StateInfo {
            schema_version: SCHEMA_VERSION,
            step: 40,
            identity: identity(overrides, b"data"),
            metrics: BTreeMap::new(),
            state_digest: Sha256::of(b""),
            tensors: BTreeMap::new(),
        }
    }

    #[test]
    fn every_difference_has_its_effect() {
        let plan = |origin: Option<&Origin>, overrides: &[&str], data: &[u8], now: &Origin| {
            ResumeDiff::compare(&about(&[]), origin, &identity(overrides, data), now)
        };
        let two = origin(2);
        let same = plan(Some(&two), &[], b"data", &two);
        assert_eq!((same.effect(), same.differences().count()), (Effect::SameBits, 0));
        assert_eq!(plan(Some(&origin(1)), &[], b"data", &two).effect(), Effect::SameBits, "threads change no bit");
        let newer = Origin { version: "0.2.0".to_owned(), ..origin(2) };
        let plan_of_version = plan(Some(&two), &[], b"data", &newer);
        assert_eq!(
            (plan_of_version.effect(), plan_of_version.requested(Effect::OtherBits).len()),
            (Effect::OtherBits, 0)
        );
        let rebuilt = Origin { program: Some("fedcba9876543210".to_owned()), ..origin(2) };
        let plan_of_program = plan(Some(&two), &[], b"data", &rebuilt);
        assert_eq!(
            (plan_of_program.effect(), plan_of_program.requested(Effect::OtherBits).len()),
            (Effect::OtherBits, 0)
        );
        let text = plan_of_program.to_string();
        assert!(text.contains("version: 0.1.0 (program 0123456789ab) → 0.1.0 (program fedcba987654)"), "{text}");
        assert_eq!(plan(None, &[], b"data", &two).effect(), Effect::OtherBits, "the origin is unknown");
        assert_eq!(plan(Some(&two), &[], b"other", &two).effect(), Effect::Refused);
        assert_eq!(plan(Some(&two), &["training.keep_last=7"], b"data", &two).effect(), Effect::SameBits);
        let rate = plan(Some(&two), &["training.learning_rate=0.5"], b"data", &two);
        assert_eq!((rate.effect(), rate.requested(Effect::OtherBits).len()), (Effect::OtherBits, 1));
        assert_eq!(plan(Some(&two), &["model.num_hidden_layers=9"], b"data", &two).effect(), Effect::Refused);
        let effect = |overrides: &[&str]| plan(Some(&two), overrides, b"data", &two).effect();
        let halves = ["training.batch_size=16", "training.gradient_accumulation=2"];
        assert_eq!(effect(&halves), Effect::OtherBits, "steps begin at the same examples");
        assert_eq!(effect(&halves[..1]), Effect::Refused, "records would be seen twice");
        assert_eq!(effect(&["training.max_epochs=3"]), Effect::Refused);
        assert_eq!(effect(&["training.shuffle=false"]), Effect::Refused);
        assert_eq!(effect(&["curriculum.preset=starter", "curriculum.phase_schedule=none"]), Effect::SameBits);
        let waiting = [
            "curriculum.phase_schedule=custom",
            "curriculum.phases=[{id: a, steps: 1, metrics: [loss], max_metric_threshold: {loss: 1}}]",
        ];
        assert_eq!(effect(&waiting), Effect::Refused, "other phases");
        let looking = |every: &str| {
            let (then, now) = (about(&waiting), identity(&[&waiting[..], &[every]].concat(), b"data"));
            ResumeDiff::compare(&then, Some(&two), &now, &two).effect()
        };
        assert_eq!(looking("training.eval_every=2"), Effect::OtherBits, "the phase may wait for other values");
        assert_eq!(looking("training.keep_last=7"), Effect::SameBits);
        let held_out = |then: (&[&str], Option<&[u8]>), now: (&[&str], Option<&[u8]>)| {
            let with = |(overrides, held_out): (&[&str], Option<&[u8]>)| {
                let mut identity = identity(overrides, b"data");
                let file = held_out.map(|bytes| (VALIDATION.to_owned(), DataDigest(Sha256::of(bytes))));
                identity.data.extend(file);
                identity
            };
            ResumeDiff::compare(&StateInfo { identity: with(then), ..about(&[]) }, Some(&two), &with(now), &two)
                .effect()
        };
        let (blind, looking) = (&[][..], &["training.eval_every=2"][..]);
        let (a, b): (Option<&[u8]>, Option<&[u8]>) = (Some(b"a"), Some(b"b"));
        assert_eq!(held_out((blind, None), (looking, a)), Effect::SameBits, "evaluations change no weight");
        assert_eq!(held_out((looking, a), (blind, None)), Effect::SameBits, "the run no longer evaluates");
        assert_eq!(held_out((looking, a), (looking, b)), Effect::OtherBits, "the losses are of other records");
        assert_eq!(held_out((looking, a), (looking, None)), Effect::OtherBits, "of synthetic records now");
        assert_eq!(held_out((looking, None), (looking, a)), Effect::OtherBits, "of synthetic records before");
        let text = rate.to_string();
        assert!(text.starts_with("training resumes from the checkpoint of step 40: valid, other bits\n"), "{text}");
        assert!(text.contains("valid, other bits  training.learning_rate: 0.01 → 0.5"), "{text}");
        assert!(text.contains("same bits          threads: 2"), "{text}");
    }

    #[test]
    fn another_gpu_or_driver_may_compute_other_bits() {
        let on = |gpu: Option<&str>| Origin {
            engine: "candle-cuda-bf16".to_owned(),
            kernels: None,
            gpu: gpu.map(str::to_owned),
            ..origin(2)
        };
        let (card, updated) = (on(Some("H100, driver 580.65")), on(Some("H100, driver 580.82")));
        let plan = |before: &Origin, now: &Origin| {
            ResumeDiff::compare(&about(&[]), Some(before), &identity(&[], b"data"), now)
        };
        let same = plan(&card, &card);
        assert_eq!(same.effect(), Effect::SameBits);
        assert!(same.to_string().contains("same bits          gpu: H100, driver 580.65"), "{same}");
        for (before, now) in [(&card, &updated), (&card, &on(None)), (&on(None), &card), (&on(None), &on(None))] {
            let diff = plan(before, now);
            assert_eq!((diff.effect(), diff.requested(Effect::OtherBits).len()), (Effect::OtherBits, 0), "{diff}");
        }
        assert!(!plan(&origin(2), &origin(2)).to_string().contains("gpu"), "a processor computes");
    }

    /// A new key that changes no weight belongs into `NO_EFFECT`; every name there must be an existing key.
    #[test]
    fn keys_without_effect_exist() {
        // Settings with these defaults are left out.
        let set = ["deployment.preset=single", "evaluation.preset=cot-lite", "metadata.model_card=true"];
        let settings = serde_json::to_value(&resolved(&set, both()).spec().settings).unwrap();
        let mut known = Vec::new();
        leaves(&settings, "", &mut known);
        for key in NO_EFFECT {
            assert!(known.iter().any(|(path, _)| path == key), "{key}");
        }
    }
}
