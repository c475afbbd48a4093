//! Origins of values, places of mistakes, references, and the schema.

use boon::{Compiler, Schemas};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{data, overrides, starter};
use crate::{
    ConfigError, Environment, Explained, Leaf, Located, Origin, PRESETS, ResolvedFile, Sources, TEMPLATES, Training,
    choose, compose_evaluation, compose_training, explain_evaluation, explain_training,
    keys::{EVALUATION, TRAINING},
    schema,
};

fn explained(config: Option<&str>, texts: &[&str]) -> Result<Explained<Training>, Located> {
    let overrides = overrides(texts);
    let sources = Sources { group: Some("cot-starter"), config, overrides: &overrides, ..Sources::default() };
    explain_training(&sources, 42, Some(data()))
}

fn leaf(leaves: &[Leaf], key: &str) -> Leaf {
    leaves.iter().find(|leaf| leaf.key == key).unwrap_or_else(|| panic!("{key} is missing")).clone()
}

/// The line of a text that begins with `start`, counted from 1.
fn numbered(text: &str, start: &str) -> Option<usize> {
    text.lines().zip(1..).find(|(line, _)| line.trim_start().starts_with(start)).map(|(_, number)| number)
}

#[test]
fn every_value_has_its_layer_and_line() {
    let config = "training:\n  learning_rate: 0.001\nmetadata:\n  owner: ada\n";
    let found = explained(Some(config), &["training.batch_size=8", "data.weights.arithmetic=2"]).expect("good");
    let of = |key| {
        let leaf = leaf(&found.leaves, key);
        (leaf.value, leaf.origin, leaf.line)
    };
    let base = include_str!("../../training/base.yaml");
    let line = numbered(base, "rope_theta:");
    assert_eq!(of("model.rope_theta"), (json!(10000.0), Origin::Group("training/base.yaml"), line));
    assert!(line.is_some());
    let template = include_str!("../../templates/cot-starter.yaml");
    let line = numbered(template, "warmup_steps:");
    assert_eq!(of("training.warmup_steps"), (json!(100), Origin::Group("templates/cot-starter.yaml"), line));
    assert_eq!(of("training.learning_rate"), (json!(0.001), Origin::Config, Some(2)));
    assert_eq!(of("metadata.owner"), (json!("ada"), Origin::Config, Some(4)));
    assert_eq!(of("training.batch_size"), (json!(8), Origin::Override(0), None));
    assert_eq!(of("data.weights.arithmetic"), (json!(2.0), Origin::Override(1), None));
    assert!(found.leaves.iter().all(|leaf| leaf.line.is_some() || leaf.origin.layer() == "override"));
}

#[test]
fn entries_of_a_mapping_have_their_own_origins() {
    let config = "data:\n  weights:\n    arithmetic: 2\n    word-problems: 3\n";
    let found = explained(Some(config), &["data.weights.arithmetic=4"]).expect("good");
    let arithmetic = leaf(&found.leaves, "data.weights.arithmetic");
    assert_eq!((arithmetic.value, arithmetic.origin), (json!(4.0), Origin::Override(0)));
    let words = leaf(&found.leaves, "data.weights.word-problems");
    assert_eq!((words.value, words.origin, words.line), (json!(3.0), Origin::Config, Some(4)));
}

#[test]
fn layers_say_what_they_set() {
    let found = explained(Some("training: {batch_size: 8}"), &["training.batch_size=4"]).expect("good");
    let shares: Vec<_> =
        found.layers.iter().map(|share| (share.origin.to_string(), share.sets, share.in_effect)).collect();
    assert_eq!(shares[0].0, "training/base.yaml");
    assert_eq!(shares[0].1, TRAINING.len());
    assert_eq!(shares[1].0, "templates/cot-starter.yaml");
    assert_eq!(shares[2], ("config".to_owned(), 1, 0), "an override hides the configuration");
    assert_eq!(shares[3], ("overrides[0]".to_owned(), 1, 1));
    assert_eq!(found.layers.iter().map(|share| share.in_effect).sum::<usize>(), found.leaves.len());
}

#[test]
fn explaining_changes_nothing() {
    for template in TEMPLATES {
        let composed = compose_training(template, &[], None, 7, data()).expect("a template");
        let sources = Sources { group: Some(template), ..Sources::default() };
        assert_eq!(explain_training(&sources, 7, Some(data())).expect("the same").resolved, composed);
        // Without data, stand-ins are accepted.
        let without = explain_training(&sources, 7, None).expect("settings alone");
        assert_eq!(without.resolved.spec().settings, composed.spec().settings);
    }
    for preset in PRESETS {
        let composed = compose_evaluation(preset, &[], 7, Vec::new()).expect("a preset");
        let sources = Sources { group: Some(preset), ..Sources::default() };
        assert_eq!(explain_evaluation(&sources, 7, Vec::new()).expect("the same").resolved, composed);
    }
    let base = explain_training(&Sources::default(), 7, None).expect("the base alone");
    assert_eq!(base.resolved.spec().template, "base");
    for texts in [["training.method=dpo"], ["training.eval_every=100"], ["training.method=none"]] {
        let overrides = overrides(&texts);
        let sources = Sources { overrides: &overrides, ..Sources::default() };
        assert!(explain_training(&sources, 7, None).is_ok(), "{texts:?}");
    }
}

#[test]
fn mistakes_have_a_line() {
    for (config, line) in [
        ("training:\n  max_steps: 9\n  batch_size: 0\n", 3),
        ("training:\n  max_steps: 900\n\n  batchsize: 8\n", 4),
        ("# one\ntraining: {seed: 7}\n", 2),
        ("training:\n  batch_size: 8\n  batch_size: 9\n", 3),
        ("training:\n\tbatch_size: 8\n", 2),
        ("training:\n  max_steps: 900\nmodel: 7\n", 3),
        ("training:\n  max_steps: 900\nmodel:\n  num_attention_heads: 3\n", 4),
        ("- a", 1),
    ] {
        let refused = explained(Some(config), &[]).expect_err("must be refused");
        assert_eq!((refused.origin.clone(), refused.line), (Some(Origin::Config), Some(line)), "{config:?}: {refused}");
    }
    let refused = explained(Some("training:\n  max_steps: 900\n  learning_rate: [\n"), &[]).expect_err("no YAML");
    assert!(
        matches!(*refused.error, ConfigError::NotYaml { .. }) && matches!(refused.line, Some(3 | 4)),
        "{refused:?}"
    );
    // The template has the value that contradicts.
    let refused = explained(None, &["training.scheduler=constant"]).expect_err("must be refused");
    assert_eq!(refused.origin, Some(Origin::Group("templates/cot-starter.yaml")));
    assert!(refused.line.is_some() && refused.to_string().starts_with("training.warmup_steps is 100: "));
    let refused = explained(None, &["training.batch_size=0"]).expect_err("must be refused");
    assert_eq!((refused.origin, refused.line), (Some(Origin::Override(0)), None));
}

#[test]
fn resolved_files_have_lines() {
    let resolved = starter(&["training.learning_rate=0.125"], None);
    let text = resolved.to_yaml().expect("YAML");
    assert!(ResolvedFile::is_one(&text) && !ResolvedFile::is_one("training: {max_steps: 9}"));
    let file = ResolvedFile::read(&text).expect("its own file");
    let rate = leaf(file.leaves(), "training.learning_rate");
    assert_eq!(
        (rate.value, rate.origin, rate.line),
        (json!(0.125), Origin::Resolved, numbered(&text, "learning_rate:"))
    );
    let seed = leaf(file.leaves(), "spec.seed");
    assert_eq!((seed.value, seed.line), (json!(42), numbered(&text, "seed:")));
    assert!(file.leaves().iter().any(|leaf| leaf.key == "spec.data[arithmetic]"));
    let wrong = text.replace("learning_rate: 0.125", "learning_rate: 7.0");
    let refused = ResolvedFile::read(&wrong).expect_err("out of range");
    assert_eq!(refused.line, numbered(&text, "learning_rate:"), "{refused}");
    let evaluation = compose_evaluation("cot-lite", &[], 1, Vec::new()).expect("good").to_yaml().expect("YAML");
    assert!(matches!(ResolvedFile::read(&evaluation), Ok(ResolvedFile::Evaluation(..))));
}

fn sentence(texts: &[&str]) -> String {
    compose_training("cot-starter", &overrides(texts), None, 42, data()).expect_err("must be refused").to_string()
}

#[test]
fn forms_of_overrides() {
    let digest = |texts: &[&str]| starter(texts, None).digest();
    assert_eq!(digest(&["++training.batch_size=8"]), digest(&["training.batch_size=8"]));
    assert_eq!(digest(&["training.stop_after=5", "~training.stop_after"]), digest(&[]));
    assert_eq!(digest(&["+data.weights.arithmetic=2"]), digest(&["data.weights.arithmetic=2"]));
    assert_eq!(digest(&["data.weights={arithmetic: 2, word-problems: 3}", "~data.weights.arithmetic"]), {
        digest(&["data.weights.word-problems=3"])
    });
    assert_eq!(digest(&["data.weights.arithmetic=2", "~data.weights.arithmetic"]), digest(&[]), "no entry is null");
    assert_eq!(digest(&["data.weights.arithmetic=2", " ~ data.weights "]), digest(&[]));
    assert_eq!(
        sentence(&["+training.batch_size=8"]),
        "overrides[0] adds training.batch_size, which exists and is 64: write training.batch_size=… to replace it"
    );
    assert_eq!(
        sentence(&["data.weights.arithmetic=2", "+data.weights.arithmetic=3"]),
        "overrides[1] adds data.weights.arithmetic, which exists and is 2.0: write data.weights.arithmetic=… to replace it"
    );
    assert_eq!(
        sentence(&["~training.batch_size"]),
        "overrides[0] removes training.batch_size, which cannot be null: write training.batch_size= and a whole number from 1 to 65536"
    );
    assert_eq!(
        sentence(&["~data.weights.mine"]),
        "overrides[0] removes data.weights.mine, which is not set: leave it out"
    );
    assert_eq!(
        sentence(&["~training.batchsize"]),
        "overrides[0] names the key training.batchsize, which does not exist: did you mean training.batch_size?"
    );
    assert!(sentence(&["~training"]).starts_with("overrides[0] sets training to null, but training is a group"));
    assert!(sentence(&["~seed"]).ends_with("set spec.seed instead"));
    for group in ["+optimizer=adamw", "++monitoring=base"] {
        let told = sentence(&[group]);
        assert!(told.contains("which is neither a group nor a key: the groups are template (answers-only, "), "{told}");
        assert!(told.contains("reasoning (baseline, ") && told.contains(" and preset (base, "), "{told}");
    }
    assert!(sentence(&["+template=lora"]).ends_with("set spec.template instead"));
    assert!(sentence(&["+training.nothing=1"]).contains("names the key training.nothing, which does not exist"));
    for text in ["~", "~a=1", "+", "++=1", "+a="] {
        assert!(sentence(&[text]).contains("write key=value"), "{text}");
    }
    let set = overrides(&["~training.batch_size"]);
    let refused = compose_training("cot-starter", &set, None, 42, data()).expect_err("must be refused");
    assert!(refused.on_command_line(&set).to_string().starts_with("--set ~training.batch_size removes "));
}

#[test]
fn groups_are_chosen_by_overrides() {
    let texts = overrides(&["template=cot-plus", "training.max_steps=9", "++template=lora", "+data.weights.a=1"]);
    let (chosen, rest) = choose("template", &texts);
    assert_eq!(chosen.as_deref(), Some("lora"));
    assert_eq!(rest, ["training.max_steps=9", "+data.weights.a=1"]);
    assert_eq!(choose("preset", &texts), (None, texts));
}

fn with_variables(texts: &[&str], config: Option<&str>) -> Result<Explained<Training>, Located> {
    let read = |name: &str| match name {
        "CODEX_MAX_STEPS" => Some("500".to_owned()),
        "USER" => Some("ada".to_owned()),
        "LOGNAME" => Some(String::new()),
        _ => None,
    };
    let overrides = overrides(texts);
    let environment = Environment::of(&read);
    let sources =
        Sources { group: Some("cot-starter"), config, overrides: &overrides, environment, ..Sources::default() };
    explain_training(&sources, 42, Some(data()))
}

#[test]
fn references_are_replaced_by_values() {
    let steps = |texts: &[&str], config| starter(texts, config).spec().settings.training.max_steps;
    // The last value counts, whatever the order.
    assert_eq!(steps(&["training.max_steps=${training.checkpoint_every}", "training.checkpoint_every=300"], None), 300);
    assert_eq!(steps(&["training.max_steps=${training.batch_size}0"], None), 640, "text around it is read again");
    let config = "training:\n  max_steps: ${training.checkpoint_every}\n  checkpoint_every: ${training.keep_last}00\n";
    assert_eq!(steps(&[], Some(config)), 300);
    let owner = |text: &str| starter(&[&format!("metadata.owner={text}")], None).spec().settings.metadata.owner.clone();
    assert_eq!(owner("team-${response.format}-${training.max_epochs}"), "team-steps-null");
    assert_eq!(owner("${training.batch_size}"), "64");
    assert_eq!(owner(r"\${training.batch_size}"), "${training.batch_size}");
    for plain in ["$5", "${", "${}", "${5}", "a${b", "$${", r"\${5}"] {
        assert_eq!(owner(plain), plain, "not a reference");
    }
    let explained = with_variables(
        &["training.max_steps=${oc.env:CODEX_MAX_STEPS}", "metadata.owner=${oc.env:USER}-${oc.env:LOGNAME,nobody}"],
        None,
    );
    let settings = explained.expect("good").resolved.spec().settings.clone();
    assert_eq!((settings.training.max_steps, settings.metadata.owner.as_str()), (500, "ada-nobody"));
    let nested = with_variables(&["training.max_steps=${oc.env:CODEX_OWNER,${training.checkpoint_every}}"], None);
    let leaf = leaf(&nested.expect("good").leaves, "training.max_steps");
    assert_eq!((leaf.value, leaf.origin), (json!(100), Origin::Override(0)));
}

#[test]
fn a_pattern_that_looks_like_a_reference_is_kept() {
    let pattern = r"\${1,2}([0-9]+)$";
    let set = overrides(&["evaluation.answer=regex", &format!("evaluation.pattern={pattern}")]);
    let composed = compose_evaluation("cot-lite", &set, 1, Vec::new()).expect("a regular expression");
    assert_eq!(composed.spec().settings.evaluation.pattern.as_deref(), Some(pattern));
}

#[test]
fn wrong_references() {
    for (text, told) in [
        ("${training.max_stepz}", "the key training.max_stepz does not exist; did you mean ${training.max_steps}?"),
        ("${training}", "training is a group; refer to one of its keys, such as ${training.max_steps}"),
        ("${now:x}", "there is no resolver now; write ${key} or ${oc.env:NAME,default}"),
        ("${data.weights.mine}", "data.weights has no entry mine"),
        (
            "${metadata.owner}",
            "the references go in a circle, from metadata.owner to metadata.owner; write the value of one of them",
        ),
        (
            "${oc.env:USER,ada}",
            "environment variables are read on the command line only, because the controller and its pods have others; write the value itself",
        ),
    ] {
        let set = format!("metadata.owner={text}");
        assert_eq!(sentence(&[&set]), format!("overrides[0] sets metadata.owner to {text:?}: {told}"));
    }
    assert!(
        sentence(&["training.max_steps=${training.stop_after}", "training.stop_after=${training.max_steps}"]).contains(
            "the references go in a circle, from training.max_steps to training.stop_after to training.max_steps"
        )
    );
    assert_eq!(
        sentence(&["training.max_steps=${training.learning_rate}"]),
        "overrides[0] sets training.max_steps to 0.005: write a whole number from 1 to 100000000"
    );
    let told =
        |text: &str| with_variables(&[&format!("metadata.owner={text}")], None).expect_err("refused").to_string();
    assert!(
        told("${oc.env:AWS_SECRET_ACCESS_KEY}")
            .contains("the variable AWS_SECRET_ACCESS_KEY cannot be read; use one of CODEX_BATCH_SIZE")
    );
    for unset in ["LOGNAME", "CODEX_OWNER"] {
        let right = format!("the variable {unset} is not set; set it, or write ${{oc.env:{unset},default}}");
        assert!(told(&format!("${{oc.env:{unset}}}")).contains(&right));
    }
    let refused = explained(Some("metadata:\n  owner: ${training.x}\n"), &[]).expect_err("refused");
    assert!(matches!(*refused.error, ConfigError::Reference { .. }) && refused.line == Some(2), "{refused}");
}

/// Checks a value by a schema.
fn valid(schema: &Value, value: &Value) -> bool {
    let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
    compiler.add_resource("https://codex-ml.dev/settings", schema.clone()).expect("a resource");
    let index = compiler.compile("https://codex-ml.dev/settings", &mut schemas).expect("a schema");
    schemas.validate(value, index).is_ok()
}

fn yaml(text: &str) -> Value {
    serde_yaml::from_str(text).expect("YAML")
}

#[test]
fn every_shipped_file_is_valid_by_the_schema() {
    let training = schema::training();
    assert_eq!(training["$schema"], "https://json-schema.org/draft/2020-12/schema");
    assert!(valid(&training, &yaml(crate::training::BASE.1)));
    for (name, _, text) in crate::training::GROUPS {
        assert!(valid(&training, &yaml(text)), "{name}");
    }
    let evaluation = schema::evaluation();
    for (name, _, text) in crate::evaluation::GROUPS {
        assert!(valid(&evaluation, &yaml(text)), "{name}");
        assert!(!valid(&training, &yaml(text)), "{name} has no settings of training");
    }
}

#[test]
fn the_schema_refuses_what_the_rules_refuse() {
    let training = schema::training();
    for (text, good) in [
        ("training: {batch_size: 8}", true),
        ("training: {batch_size: 0}", false),
        ("training: {batch_size: '8'}", false),
        ("training: {batchsize: 8}", false),
        ("training:", true),
        ("training: 7", false),
        ("trainin: {}", false),
        ("training: {scheduler: linaer}", false),
        ("training: {learning_rate: 0}", false),
        ("training: {beta1: 1}", false),
        ("training: {stop_after: null}", true),
        ("training: {max_steps: null}", false),
        ("training:\n  max_steps: ${training.batch_size}", true),
        ("training: {lora: {targets: []}}", false),
        ("training: {lora: {targets: [q_proj, q_proj]}}", false),
        ("training: {parameter_groups: [{pattern: '*', weight_decay: 0}]}", true),
        ("training: {parameter_groups: [{pattern: '*'}]}", false),
        ("metadata: {owner: ''}", false),
        ("metadata: {owner: ' '}", false),
        ("metadata: {owner: é}", true),
        ("data: {weights: {mine: 2}}", true),
        ("data: {weights: {mine: 0}}", false),
        ("data: {weights: {}}", false),
    ] {
        assert_eq!(valid(&training, &yaml(text)), good, "{text}");
    }
    let described = &training["properties"]["training"]["properties"];
    assert_eq!(
        described["stop_after"]["description"],
        "Stops after this number of steps and leaves the schedule as it is. null: all steps run. Write a whole number from 0 to \
         100000000, or null for all of training.max_steps."
    );
    assert_eq!(described["batch_size"]["description"], "Write a whole number from 1 to 65536.");
    assert_eq!(described["batch_size"]["default"], 32);
    assert!(
        described["lora"]["description"].as_str().is_some_and(|text| text.starts_with("Settings of the adapters."))
    );
}

/// Values of every kind, near the bounds of rules.
fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-2_i64..70_000).prop_map(Value::from),
        prop_oneof![Just(0.0), Just(0.5), Just(1.0), 0.0..2.0_f64, Just(1e9), Just(1e13)].prop_map(Value::from),
        prop::sample::select(vec!["", " ", "a", "null", "fp32", "q_proj", "eng", "bleu", "a\nb", "linear", "é"])
            .prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map(
                prop::sample::select(vec!["pattern", "weight_decay", "learning_rate_multiplier", "mine"])
                    .prop_map(str::to_owned),
                inner,
                0..3
            )
            .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// A key with its rule.
fn any_rule() -> impl Strategy<Value = (&'static str, crate::Rule)> {
    let all: Vec<_> = TRAINING.iter().chain(EVALUATION).map(|key| (key.path, key.rule)).collect();
    prop::sample::select(all)
}

proptest! {
    /// The schema of a rule accepts what the rule accepts. JSON Schema does not tell 1.0 from 1.
    #[test]
    fn schemas_agree_with_rules(value in any_value(), (path, rule) in any_rule()) {
        let fraction = value.is_f64() && value.as_f64().is_some_and(|number| number.fract() == 0.0);
        prop_assume!(!fraction);
        prop_assert_eq!(valid(&rule.schema(), &value), rule.accept(&value).is_some(), "{} {}", path, value);
    }

    /// Explaining finds the same configuration or the same mistake as composing.
    #[test]
    fn explaining_is_composing(text in "[-a-z0-9_.=: \n,'\"#&*!|$%@~+{}\\[\\]]{0,60}", (key, _) in any_rule()) {
        let both = vec![format!("~{key}"), format!("+{key}={text}")];
        for texts in [vec![text.clone()], vec![format!("{key}={text}")], both] {
            let (group, config) = (Some("cot-starter"), Some(text.as_str()));
            let sources = Sources { group, config, overrides: &texts, ..Sources::default() };
            let explained = explain_training(&sources, 42, Some(data()));
            let composed = compose_training("cot-starter", &texts, Some(&text), 42, data());
            match (explained, composed) {
                (Ok(explained), Ok(composed)) => prop_assert_eq!(explained.resolved, composed),
                (Err(explained), Err(composed)) => prop_assert_eq!(explained.to_string(), composed.to_string()),
                (explained, composed) => prop_assert!(false, "{:?} {:?}", explained, composed),
            }
        }
    }

    /// A reference to a key is the same as its value, however many others stand between.
    #[test]
    fn a_reference_is_the_value(value in 1_u64..1000, turned in any::<bool>()) {
        let value = format!("training.best_k={value}");
        let mut texts = [
            "training.best_metric=loss",
            "training.keep_every=${training.best_k}0",
            "training.eval_max_new_tokens=${training.keep_every}",
            "training.checkpoint_every=${training.eval_max_new_tokens}",
            &value,
        ];
        if turned {
            texts.reverse();
        }
        let referring = starter(&texts, None);
        let training = &referring.spec().settings.training;
        let wanted = training.best_k as u64 * 10;
        prop_assert_eq!((training.keep_every, training.checkpoint_every), (Some(wanted), wanted));
        let written = starter(
            &[
                "training.best_metric=loss",
                &value,
                &format!("training.keep_every={wanted}"),
                &format!("training.eval_max_new_tokens={wanted}"),
                &format!("training.checkpoint_every={wanted}"),
            ],
            None,
        );
        prop_assert_eq!(referring.digest(), written.digest());
    }
}
