//! Messages of refused data, and of settings that name or select it.

use codex_provenance::{DataDigest, Sha256};

use super::{evaluations::evaluation, sentence};
use crate::{
    Data, Synthetic, compose_training,
    tests::{data, overrides, synthetic},
};

fn data_sentence(data: Vec<Data>) -> String {
    compose_training("cot-starter", &[], None, 42, data).expect_err("must be refused").to_string()
}

#[test]
fn settings_that_name_or_select_data() {
    for (text, told) in [
        (
            "data.weights.arithmetic=0",
            r#"overrides[0] sets data.weights to {"arithmetic":0}: write names of data, each with a number from 0.000001 to 1000000, such as {mine: 2}, or null for equal weights"#,
        ),
        (
            "data.weights=[2]",
            "overrides[0] sets data.weights to [2]: write names of data, each with a number from 0.000001 to 1000000, such as {mine: 2}, or null for equal weights",
        ),
        (
            "data.weights.mine=2",
            r#"data.weights is set for "mine": no data has that name; name one of arithmetic, word-problems"#,
        ),
        (
            "data.weights={validation: 2}",
            r#"data.weights is set for "validation": validation records are not trained on; name one of arithmetic, word-problems"#,
        ),
        (
            "data.validation.share=1",
            "overrides[0] sets data.validation.share to 1: write a number of at least 0 and below 1",
        ),
        (
            "data.validation.share=0.1",
            "data.validation.share is 0.1: held-out records are evaluated every training.eval_every steps; set it, or write 0",
        ),
        ("data.deduplicate=maybe", r#"overrides[0] sets data.deduplicate to "maybe": write true or false"#),
    ] {
        assert_eq!(sentence(&[text], None), told);
    }
    assert!(
        sentence(&["data.languages=[english]"], None)
            .contains(r#"data.languages to ["english"]: write a list of any of afr, "#)
    );
    assert!(sentence(&["data.languages=[eng, eng]"], None).contains("each once"));
    let both = vec![synthetic("arithmetic"), Data { name: "validation".to_owned(), ..synthetic("arithmetic") }];
    let set = overrides(&["training.eval_every=5", "data.validation.share=0.1"]);
    assert_eq!(
        compose_training("cot-starter", &set, None, 42, both).expect_err("two").to_string(),
        "data.validation.share is 0.1: data has an item named validation, too; remove it, or write 0"
    );
}

#[test]
fn invalid_data() {
    assert_eq!(data_sentence(vec![]), "data is empty: name at least one file or synthetic task to train on");
    let file = |name: &str| Data { name: name.to_owned(), sha256: None, synthetic: None };
    assert_eq!(
        data_sentence(vec![synthetic("arithmetic"), file("mine")]),
        r#"data[1] is "mine": set data[1].sha256 to the SHA-256 of the file (sha256sum FILE)"#
    );
    assert_eq!(
        data_sentence(vec![file("My File")]),
        r#"data[0].name is "My File": write 1 to 63 lower-case letters, digits and inner dashes"#
    );
    assert_eq!(
        data_sentence(vec![synthetic("arithmetic"), synthetic("arithmetic")]),
        r#"data[1].name is "arithmetic": give each file a unique name"#
    );
    assert_eq!(
        data_sentence(vec![synthetic("arithmetics")]),
        r#"data[0].synthetic.task is "arithmetics": use one of arithmetic, word-problems, arithmetic-5, multiplication, word-problems-3, arithmetic-padded (did you mean arithmetic?)"#
    );
    let made = |seed, count| Data {
        name: "a".to_owned(),
        sha256: None,
        synthetic: Some(Synthetic { task: "arithmetic".to_owned(), seed, count }),
    };
    assert_eq!(
        data_sentence(vec![made(1, 0)]),
        "data[0].synthetic.count is 0: write a whole number from 1 to 10000000"
    );
    assert_eq!(
        data_sentence(vec![made(u64::MAX, 9)]),
        "data[0].synthetic.seed is 18446744073709551615: write a whole number from 0 to 9007199254740991"
    );
    assert_eq!(
        data_sentence(vec![made(1, 63)]),
        "training.batch_size is 64: write at most the number of records (63), or raise data[].synthetic.count"
    );
}

#[test]
fn held_out_records() {
    let file = |name: &str| Data { name: name.to_owned(), sha256: Some(DataDigest(Sha256::of(name))), synthetic: None };
    let of = |texts: &[&str], data| compose_training("cot-starter", &overrides(texts), None, 42, data);
    let said = |texts: &[&str], data| of(texts, data).expect_err("must be refused").to_string();
    let every = ["training.eval_every=100"];
    assert_eq!(
        said(&[], vec![file("mine"), file("validation")]),
        "data[1].name is \"validation\": validation records are evaluated every training.eval_every steps; set it, or remove this item"
    );
    assert!(said(&every, vec![file("validation")]).ends_with("name other data to train on"));
    assert!(said(&every, vec![file("mine"), synthetic("arithmetic")]).starts_with(
        "training.eval_every is 100: only synthetic data has validation records of its own; add the records to evaluate on to data"
    ));
    assert!(of(&every, vec![file("mine"), file("validation")]).is_ok());
    assert!(of(&every, data()).is_ok());
}

fn plugin(name: &str) -> Data {
    Data { name: name.to_owned(), sha256: Some(DataDigest(Sha256::of(name))), synthetic: None }
}

#[test]
fn plugins_and_what_they_go_with() {
    let training = |texts: &[&str], names: &[&str]| {
        let all = data().into_iter().chain(names.iter().map(|name| plugin(name))).collect();
        compose_training("cot-starter", &overrides(texts), None, 42, all)
    };
    let said = |texts: &[&str], names: &[&str]| training(texts, names).expect_err("must be refused").to_string();
    let grpo = ["training.method=grpo", "training.grpo.reward.correct=0"];
    assert!(training(&grpo, &["plugin-reward", "plugin-filter"]).is_ok());
    assert!(training(&[], &["plugin-filter"]).is_ok());
    assert!(said(&grpo, &["plugin-filter"]).contains("or add a plugin named plugin-reward to data"));
    assert!(said(&[], &["plugin-reward"]).contains("it rewards sampled answers; set training.method=grpo"));
    assert!(said(&[], &["plugin-rewards"]).contains("use plugin-reward or plugin-filter"));
    let alone = data_sentence(vec![plugin("plugin-filter")]);
    assert_eq!(alone, "data is without records: name at least one file or synthetic task to train on");
    let generated = Data { name: "plugin-filter".to_owned(), ..synthetic("arithmetic") };
    let mut all = data();
    all.push(generated);
    assert!(data_sentence(all).contains("name the file of the plugin"));
    assert!(evaluation(vec![plugin("plugin-metric")]).is_ok());
    let other = evaluation(vec![plugin("plugin-reward")]).expect_err("must be refused").to_string();
    assert!(other.contains("use plugin-metric"), "{other}");
    // A plugin is neither trained on nor weighted.
    assert!(said(&["data.weights.plugin-filter=2"], &["plugin-filter"]).contains("no data has that name"));
}

#[test]
fn safety_rules_and_what_they_go_with() {
    let rules = |synthetic| Data { synthetic, ..plugin("safety-rules") };
    let with = |texts: &[&str], rules| {
        let all = data().into_iter().chain([rules]).collect();
        compose_training("cot-starter", &overrides(texts), None, 42, all)
    };
    let groups = ["data.safety.block=[sql, jailbreak]", "data.safety.redact=[pii]"];
    let composed = with(&groups, rules(None)).expect("both");
    let safety = &composed.spec().settings.data.safety;
    assert_eq!((safety.block.join(" "), safety.redact.join(" ")), ("jailbreak sql".to_owned(), "pii".to_owned()));
    assert_ne!(composed.digest(), with(&groups[..1], rules(None)).expect("one").digest());
    let said = |texts: &[&str]| with(texts, rules(None)).expect_err("must be refused").to_string();
    assert_eq!(
        said(&["data.safety.block=[pii, sql]", "data.safety.redact=[secrets, pii]"]),
        "data.safety.redact is [secrets, pii]: pii is in data.safety.block, too; write it in one of them"
    );
    assert!(said(&["data.safety.block=[weapons]"]).contains("a list of any of secrets, pii, jailbreak, shell, sql"));
    // Rules are neither trained on nor weighted nor generated.
    assert!(said(&["data.weights.safety-rules=2"]).contains("no data has that name"));
    let alone = "data is without records: name at least one file or synthetic task to train on";
    assert_eq!(data_sentence(vec![rules(None)]), alone);
    let task = synthetic("arithmetic").synthetic;
    let generated = with(&[], rules(task)).expect_err("must be refused").to_string();
    assert_eq!(generated, "data[2].synthetic is set for safety-rules: name the file of the rules");
}

#[test]
fn changed_prompts_and_what_they_go_with() {
    let on = "data.augmentation.probability=0.5";
    let ok = |texts: &[&str]| compose_training("cot-starter", &overrides(texts), None, 42, data());
    assert!(ok(&[on, "data.augmentation.kinds=[typos, case]"]).is_ok());
    assert!(sentence(&["data.augmentation.probability=1"], None).contains("a number of at least 0 and below 1"));
    assert!(
        sentence(&["data.augmentation.kinds=[synonyms]"], None)
            .contains("case, whitespace, punctuation, typos, dropout")
    );
    let private = [on, "training.privacy.noise_multiplier=1", "training.spike_action=count"];
    assert!(sentence(&private, None).contains("private steps draw records and not examples"));
    let file = vec![plugin("pairs")];
    let dpo = compose_training("cot-starter", &overrides(&[on, "training.method=dpo"]), None, 42, file.clone());
    assert!(dpo.expect_err("must be refused").to_string().contains("write 0 with training.method=dpo"));
    let text = compose_training("cot-starter", &overrides(&[on, "data.format=text"]), None, 42, file);
    assert!(text.expect_err("must be refused").to_string().contains("texts have no prompts"));
}
