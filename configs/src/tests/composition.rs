//! Precedence of the layers, and that a change of one key changes no other.

use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::Value;

use super::{data, overrides, starter};
use crate::{
    PRESETS, Rule, TEMPLATES, TrainingSettings, compose_evaluation, compose_training,
    keys::{EVALUATION, Key, TRAINING},
};

/// Every leaf of a JSON value with its path.
fn leaves(value: &Value, path: &str) -> Vec<(String, Value)> {
    match value {
        Value::Object(map) => map
            .iter()
            .flat_map(|(key, value)| {
                leaves(value, &if path.is_empty() { key.clone() } else { format!("{path}.{key}") })
            })
            .collect(),
        other => vec![(path.to_owned(), other.clone())],
    }
}

/// Every setting with its path. Those that are left out while they have their default come last.
fn settings(keys: &[Key], settings: &impl serde::Serialize) -> Vec<(String, Value)> {
    let settings = serde_json::to_value(settings).expect("settings are JSON");
    let unwritten: Vec<&Key> = keys.iter().filter(|key| key.unwritten.is_some()).collect();
    let mut all = leaves(&settings, "");
    all.retain(|(path, _)| unwritten.iter().all(|key| key.path != path));
    all.extend(unwritten.iter().map(|key| (key.path.to_owned(), key.value(&settings))));
    all
}

fn paths(keys: &[Key]) -> BTreeSet<String> {
    keys.iter().map(|key| key.path.to_owned()).collect()
}

fn yaml_paths(text: &str) -> BTreeSet<String> {
    let value: Value = serde_yaml::from_str(text).expect("embedded YAML");
    leaves(&value, "").into_iter().map(|(path, _)| path).collect()
}

#[test]
fn composed_templates() {
    for template in TEMPLATES {
        let resolved = compose_training(template, &[], None, 42, data()).expect("a template");
        insta::assert_snapshot!(*template, resolved.to_yaml().expect("YAML"));
    }
    for preset in PRESETS {
        let resolved = compose_evaluation(preset, &[], 42, vec![]).expect("a preset");
        insta::assert_snapshot!(*preset, resolved.to_yaml().expect("YAML"));
    }
}

#[test]
fn keys_base_and_types_are_the_same_set() {
    assert_eq!(paths(TRAINING), yaml_paths(include_str!("../../training/base.yaml")));
    let typed: BTreeSet<String> =
        settings(TRAINING, &starter(&[], None).spec().settings).into_iter().map(|leaf| leaf.0).collect();
    assert_eq!(paths(TRAINING), typed);
    assert_eq!(paths(EVALUATION), yaml_paths(include_str!("../../evaluation/cot-lite.yaml")));
    let evaluation = compose_evaluation("cot-lite", &[], 0, vec![]).expect("a preset");
    let typed: BTreeSet<String> =
        settings(EVALUATION, &evaluation.spec().settings).into_iter().map(|leaf| leaf.0).collect();
    assert_eq!(paths(EVALUATION), typed);
}

#[test]
fn the_baseline_is_of_equal_size_tokens_and_tuning() {
    let of = |template| {
        let resolved = compose_training(template, &[], None, 42, data()).expect("a template");
        settings(TRAINING, &resolved.spec().settings)
    };
    let (steps, answers) = (of("cot-starter"), of("answers-only"));
    let differing: Vec<_> = steps.iter().zip(&answers).filter(|(a, b)| a != b).map(|(a, _)| a.0.as_str()).collect();
    assert_eq!(differing, ["training.max_steps", "response.format"]);

    // Tokens of an example with its steps, against one with its answer alone (a character is a token).
    let problems = crate::benchmark("cot-lite")[0].contents();
    let (mut long, mut short) = (0, 0);
    for line in problems.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let record: Value = serde_json::from_slice(line).expect("a record");
        let (prompt, response) = (record["prompt"].as_str().expect("text"), record["response"].as_str().expect("text"));
        let answer = &response[response.rfind('#').expect("an answer")..];
        long += prompt.len() + response.len();
        short += prompt.len() + answer.len();
    }
    let steps_of = |leaves: &[(String, Value)]| {
        leaves.iter().find(|leaf| leaf.0 == "training.max_steps").and_then(|leaf| leaf.1.as_f64()).expect("a number")
    };
    let tokens = (steps_of(&steps) * f64::from(long as u32), steps_of(&answers) * f64::from(short as u32));
    assert!((tokens.0 / tokens.1 - 1.0).abs() < 0.03, "{tokens:?}");
}

#[test]
fn later_layers_replace_earlier_ones() {
    let config = "training:\n  batch_size: 16\n  learning_rate: 0.001\nmodel: {hidden_size: 128}\nresponse:\n";
    let resolved = starter(&["training.batch_size=8", "training.batch_size=4"], Some(config));
    let TrainingSettings { model, training, .. } = &resolved.spec().settings;
    assert_eq!(training.batch_size, 4, "the last override wins");
    assert!((training.learning_rate - 0.001).abs() < f64::EPSILON, "config is above the template");
    assert_eq!(training.warmup_steps, 100, "the template is above the base");
    assert_eq!(model.hidden_size, 128);
    assert_eq!(model.num_hidden_layers, 4, "the base is below all");
}

#[test]
fn weights_are_merged_by_name() {
    let weights = |overrides: &[&str], config| starter(overrides, Some(config)).spec().settings.data.weights.clone();
    let config = "data: {weights: {arithmetic: 2, word-problems: 3}}";
    let of = |arithmetic: f64, words: f64| {
        Some([("arithmetic".to_owned(), arithmetic), ("word-problems".to_owned(), words)].into())
    };
    assert_eq!(weights(&["data.weights.arithmetic=0.5"], config), of(0.5, 3.0));
    assert_eq!(weights(&["data.weights={word-problems: 7}"], config), of(2.0, 7.0));
    assert_eq!(weights(&["data.weights=null"], config), None);
    assert_eq!(
        weights(&["data.languages=[eng, deu]"], config),
        weights(&["data.languages=[deu, eng]"], config),
        "lists have one order"
    );
}

#[test]
fn nothing_set_changes_nothing() {
    assert_eq!(starter(&[], None), starter(&[], Some("")));
    assert_eq!(starter(&[], None), starter(&[], Some("# nothing\n")));
    assert_eq!(starter(&[], None).digest(), starter(&["training.batch_size=64"], None).digest());
}

#[test]
fn numbers_and_words_have_common_spellings() {
    let resolved = starter(
        &[
            "training.learning_rate=5e-3",
            "training.grad_clip_norm=1",
            " metadata.owner = 7 ",
            "training.stop_after=null",
        ],
        None,
    );
    assert_eq!(resolved.spec().settings.metadata.owner, "7");
    let TrainingSettings { training, .. } = &resolved.spec().settings;
    assert_eq!((training.stop_after, training.max_steps), (None, 2000));
    assert_eq!(starter(&["training.stop_after=0"], None).spec().settings.training.stop_after, Some(0));
}

/// A key with two different values that it takes.
fn change() -> impl Strategy<Value = (&'static str, String, String)> {
    let values = |rule: &Rule| match *rule {
        Rule::Whole { min, .. } | Rule::WholeOrNull { min, .. } => {
            (min.max(64).to_string(), min.max(64).saturating_add(64).to_string())
        }
        Rule::Above { above, .. } | Rule::AboveOrNull { above, .. } => {
            ((above + 0.015_625).to_string(), (above + 0.031_25).to_string())
        }
        Rule::From { .. } => ("0.125".to_owned(), "0.25".to_owned()),
        // The first scheduler takes no warm-up, which the template has.
        Rule::Choice(words) => (words[words.len() - 2].to_owned(), words[words.len() - 1].to_owned()),
        Rule::Choices(words) | Rule::ChoicesOrNull { words, .. } => {
            (format!("[{}]", words[0]), format!("[{}, {}]", words[1], words[0]))
        }
        Rule::ParameterGroups { .. } => ("[]".to_owned(), "[{pattern: '*', weight_decay: 0}]".to_owned()),
        Rule::AnyOf(words) => ("[]".to_owned(), format!("[{}]", words[0])),
        Rule::Names { .. } => ("[one]".to_owned(), "[one, two]".to_owned()),
        Rule::Texts { .. } => ("[]".to_owned(), r#"["\n"]"#.to_owned()),
        Rule::WeightsOrNull => ("null".to_owned(), "{arithmetic: 2}".to_owned()),
        Rule::Flag => ("false".to_owned(), "true".to_owned()),
        Rule::Phases { .. } => ("[]".to_owned(), "[{id: one, steps: 9}]".to_owned()),
        Rule::Text { .. } | Rule::TextOrNull { .. } => ("ada".to_owned(), "grace".to_owned()),
    };
    // Heads and width go together, patience and the best take evaluations, the noise scale takes
    // accumulation, privacy and Muon take few methods, adapters of preferences and rewards their method, traces
    // a name and a vocabulary, the keys of safety, of a curriculum and of replay each other, and some keys take few values; every other key can be set alone.
    let together = [
        "model.num_attention_heads",
        "training.max_steps",
        "training.early_stop_patience",
        "training.best_k",
        "training.optimizer.name",
        "training.gradient_noise_scale",
        "training.privacy.noise_multiplier",
        "training.privacy.target_epsilon",
        "training.dpo.lora",
        "training.grpo.lora",
        "training.grpo.reward.version",
        "training.grpo.reward.choices",
        "training.reasoning.objective.trace_store",
        "training.reasoning.objective.log_top_k",
        "training.reasoning.head.trace_vocab_size",
        "data.safety.redact",
        "data.validation.share",
        "data.replay.ratio",
        "curriculum.preset",
        "curriculum.phase_schedule",
        "curriculum.phases",
        "evaluation.preset",
        "deployment.preset",
    ];
    let alone: Vec<_> = TRAINING
        .iter()
        .filter(|key| !together.contains(&key.path))
        .map(|key| {
            let (a, b) = values(&key.rule);
            (key.path, a, b)
        })
        .collect();
    prop::sample::select(alone)
}

proptest! {
    #[test]
    fn an_override_changes_exactly_its_key((key, one, other) in change()) {
        let a = starter(&[&format!("{key}={one}")], None);
        let b = starter(&[&format!("{key}={other}")], None);
        let (before, after) = (settings(TRAINING, &a.spec().settings), settings(TRAINING, &b.spec().settings));
        let differing: Vec<_> =
            before.iter().zip(&after).filter(|(a, b)| a != b).map(|(a, _)| a.0.as_str()).collect();
        prop_assert_eq!(differing, [key]);
        prop_assert_ne!(a.digest(), b.digest());
    }

    #[test]
    fn the_order_of_different_keys_is_irrelevant(
        changes in prop::collection::btree_map(change().prop_map(|change| change.0), any::<bool>(), 2..6),
        (key, one, other) in change(),
    ) {
        let texts: Vec<String> = TRAINING
            .iter()
            .filter(|known| changes.contains_key(known.path) && known.path != key)
            .map(|known| match known.rule {
                Rule::Whole { min, .. } | Rule::WholeOrNull { min, .. } => format!("{}={}", known.path, min.max(128)),
                Rule::Above { above, .. } | Rule::AboveOrNull { above, .. } => {
                    format!("{}={}", known.path, above + 0.062_5)
                }
                Rule::From { .. } => format!("{}=0.125", known.path),
                Rule::Choice(words) => format!("{}={}", known.path, words[words.len() - 2]),
                Rule::Choices(words) | Rule::ChoicesOrNull { words, .. } | Rule::AnyOf(words) => {
                    format!("{}=[{}]", known.path, words[1])
                }
                Rule::ParameterGroups { .. } | Rule::Phases { .. } => format!("{}=[]", known.path),
                Rule::Names { .. } | Rule::Texts { .. } => format!("{}=[three]", known.path),
                Rule::WeightsOrNull => format!("{}={{arithmetic: 3}}", known.path),
                Rule::Flag => format!("{}=true", known.path),
                Rule::Text { .. } | Rule::TextOrNull { .. } => format!("{}=lin", known.path),
            })
            .collect();
        let forward: Vec<&str> = texts.iter().map(String::as_str).collect();
        let backward: Vec<&str> = forward.iter().rev().copied().collect();
        prop_assert_eq!(starter(&forward, None), starter(&backward, None));
        let (first, second) = (format!("{key}={one}"), format!("{key}={other}"));
        let last = starter(&[&first, &second], None);
        prop_assert_eq!(last, starter(&[&second], None));
    }

    #[test]
    fn the_seed_is_part_of_the_digest(a in 0..=crate::MAX_SEED, b in 0..=crate::MAX_SEED) {
        let of = |seed| compose_training("cot-starter", &overrides(&[]), None, seed, data()).expect("good").digest();
        prop_assert_eq!(of(a) == of(b), a == b);
    }
}

#[test]
fn templates_are_described_by_their_files() {
    for name in crate::TEMPLATES {
        let template = crate::template(name).unwrap();
        assert_eq!((template.name, template.tasks), (*name, crate::template_tasks(name)));
        assert!(template.description.ends_with('.') && !template.description.contains('#'), "{template:?}");
        assert!(!template.settings.is_empty(), "{name}");
        for setting in &template.settings {
            assert!(!setting.default.is_null(), "{name} sets {}, which has no default", setting.key);
        }
    }
    let starter = crate::template("cot-starter").unwrap();
    let steps = starter.settings.iter().find(|setting| setting.key == "training.max_steps").unwrap();
    assert_eq!((&steps.value, &steps.default), (&2000.into(), &1000.into()));
    let told = crate::template("cot-startr").unwrap_err().to_string();
    assert!(told.contains("did you mean cot-starter?"), "{told}");
}
