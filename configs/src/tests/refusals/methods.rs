//! Messages of refused methods of training, and of settings that go with them.

use codex_provenance::{DataDigest, Sha256};

use super::sentence;
use crate::{
    Data, Resolved, compose_training,
    tests::{data, overrides, starter, synthetic},
};

#[test]
fn rewards_and_what_they_go_with() {
    let grpo = |more: &[&str]| sentence(&[&["training.method=grpo"], more].concat(), None);
    for (settings, said) in [
        (&["data.loss=all"][..], "training.method=grpo samples the responses; write responses"),
        (&["data.format=text"], "training.method=grpo needs a prompt and a response"),
        (&["training.grpo.lora=true"], "because training.method=grpo trains on the probabilities"),
        (&["training.grpo.reward.answer=after"], "training.grpo.reward.after"),
        (&["training.grpo.reward.answer=regex"], "training.grpo.reward.pattern"),
        (&["training.grpo.reward.steps=1"], "training.grpo.reward.answer=marked"),
        (&["training.grpo.reward.correct=0"], "every answer has the same reward"),
        (&["training.grpo.group=1"], "a whole number from 2 to 1024"),
        (&["training.grpo.reward.version=2"], "a whole number from 1 to 1"),
    ] {
        let told = grpo(settings);
        assert!(told.contains(said), "{settings:?}: {told}");
    }
    let told = sentence(&["training.grpo.lora=true"], None);
    assert!(told.contains("it belongs to training.method=grpo"), "{told}");
}

#[test]
fn parameter_groups() {
    let groups = |text: &str| format!("training.parameter_groups={text}");
    for wrong in [
        "[{pattern: a}]",
        "[{weight_decay: 0}]",
        "[{pattern: a, weight_decay: 1}]",
        "[{pattern: '', weight_decay: 0}]",
        "[{pattern: a, learning_rate_multiplier: -1}]",
        "[{pattern: a, lr: 1}]",
        "[a]",
        "{pattern: a, weight_decay: 0}",
        "7",
    ] {
        let sentence = sentence(&[&groups(wrong)], None);
        assert!(sentence.contains("write a list of at most 64 groups, each with a pattern"), "{wrong}: {sentence}");
    }
    let good = groups("[{pattern: '*.embed_tokens.*', weight_decay: 0}, {pattern: '*', learning_rate_multiplier: 2}]");
    let good = compose_training("cot-starter", &overrides(&[&good]), None, 42, data()).expect("good");
    let read = &good.spec().settings.training.parameter_groups;
    assert_eq!((read[0].weight_decay, read[1].learning_rate_multiplier), (Some(0.0), Some(2.0)));
    let again = Resolved::<crate::Training>::from_yaml(good.to_yaml().expect("YAML").as_bytes()).expect("the same");
    assert_eq!(again.digest(), good.digest());
}

#[test]
fn targets_of_lora() {
    for wrong in ["[]", "[q]", "q_proj", "[q_proj, q_proj]", "[q_proj, 7]", "all-linear"] {
        let sentence = sentence(&[&format!("training.lora.targets={wrong}")], None);
        assert!(sentence.contains("write a list of at least one of q_proj, k_proj"), "{wrong}: {sentence}");
    }
    let of = |targets: &str| {
        let overrides = overrides(&[&format!("training.lora.targets={targets}")]);
        compose_training("cot-starter", &overrides, None, 42, data()).expect("good")
    };
    assert_eq!(of("[v_proj, q_proj]").digest(), of("[q_proj, v_proj]").digest());
    assert_eq!(of("[v_proj, q_proj]").spec().settings.training.lora.targets, ["q_proj", "v_proj"]);
}

#[test]
fn preferences() {
    let file = |name: &str| Data { name: name.to_owned(), sha256: Some(DataDigest(Sha256::of(name))), synthetic: None };
    let of = |texts: &[&str], data| {
        let texts = [&["training.method=dpo"], texts].concat();
        compose_training("cot-starter", &overrides(&texts), None, 42, data)
    };
    let said = |texts: &[&str], data| of(texts, data).expect_err("must be refused").to_string();
    let right = of(&["training.dpo.beta=0.3", "training.dpo.lora=true"], vec![file("pairs")]).expect("good");
    let training = &right.spec().settings.training;
    assert!(training.trains_adapters() && (training.dpo.beta - 0.3).abs() < f64::EPSILON);
    assert!(!of(&[], vec![file("pairs")]).expect("good").spec().settings.training.trains_adapters());
    assert_eq!(
        said(&["data.loss=all"], vec![file("pairs")]),
        r"data.loss is all: training.method=dpo compares the tokens of responses only; write responses"
    );
    assert!(said(&["response.format=answer"], vec![file("pairs")]).starts_with("response.format is answer: "));
    assert!(said(&["data.format=text"], vec![file("pairs")]).contains("a chosen and a rejected response"));
    assert_eq!(
        said(&[], vec![file("pairs"), synthetic("arithmetic")]),
        r#"data[1].synthetic is "arithmetic": synthetic tasks have no rejected responses; use a file with training.method=dpo"#
    );
    for (wrong, told) in [
        ("training.dpo.beta=0", "write a number above 0 and at most 100"),
        ("training.dpo.label_smoothing=0.5", "write a number of at least 0 and below 0.5"),
        ("training.dpo.lora=7", "write true or false"),
        ("training.dpo.rank=7", "training.dpo.rank"),
    ] {
        let sentence = said(&[wrong], vec![file("pairs")]);
        assert!(sentence.contains(told), "{wrong}: {sentence}");
    }
    assert_eq!(
        sentence(&["training.dpo.lora=true"], None),
        "training.dpo.lora is true: it belongs to training.method=dpo; write false, or training.method=dpo"
    );
}

#[test]
fn methods_that_need_a_base() {
    for method in ["lora", "none"] {
        let of = compose_training("cot-starter", &overrides(&[&format!("training.method={method}")]), None, 42, data());
        let of = of.expect("good");
        assert!(of.spec().check_base(true).is_ok());
        assert_eq!(
            of.spec().check_base(false).expect_err("no base").to_string(),
            format!("training.method is {method}: it needs a base; set spec.base, or write sft")
        );
    }
    assert!(starter(&[], None).spec().check_base(false).is_ok());
}

#[test]
fn a_copy_of_a_base_has_no_model_card() {
    assert_eq!(
        sentence(&["training.method=none", "metadata.model_card=true"], None),
        "metadata.model_card is true: training.method=none copies the files of the base as they are; write false, or another method"
    );
}

#[test]
fn optimizers_and_what_they_go_with() {
    for (settings, said) in [
        (&["training.optimizer.name=sgd"][..], "one of adamw, muon"),
        (&["training.optimizer.name=muon", "training.method=lora"], "adapters are products of two matrices"),
        (&["training.ema.decay=1"], "a number above 0 and at most 0.9999999, or null for no average"),
        (&["training.gradient_noise_scale=true"], "set training.gradient_accumulation to at least 2"),
        (
            &["training.gradient_noise_scale=true", "training.gradient_accumulation=2", "training.method=grpo"],
            "it is measured on the loss of single records",
        ),
    ] {
        let told = sentence(settings, None);
        assert!(told.contains(said), "{settings:?}: {told}");
    }
}

#[test]
fn what_would_break_the_guarantee_of_privacy() {
    let private = |more: &[&str]| sentence(&[&["training.privacy.noise_multiplier=1"], more].concat(), None);
    for (settings, said) in [
        (
            &["training.privacy.target_epsilon=3"][..],
            "training.privacy.noise_multiplier is 1: with training.privacy, training.",
        ),
        (&["training.privacy.noise_multiplier=0.05"], "a number above 0.1 and at most 1000000, or null for no noise"),
        (&["training.method=dpo", "data.format=jsonl"], "training.method is dpo"),
        (&["training.method=grpo"], "training.method is grpo"),
        (&["+reasoning=baseline"], "is starter: with training.privacy, every step draws from all records"),
        (&["data.weights={arithmetic: 2}"], "every record has the same probability; write null"),
        (&["training.shuffle=false"], "records are drawn at random; write true"),
        (&["training.dtype=fp16"], "has no scale of its own; write bf16 or fp32"),
        (&["training.spike_action=skip"], "a step must not depend on losses"),
        (
            &["training.early_stop_patience=2", "training.eval_every=10", "training.best_metric=loss"],
            "the end must not depend on the loss of training records",
        ),
        (
            &[
                "training.reasoning.objective.mode=tool_execution",
                "training.reasoning.objective.tool_supervision_weight=2",
            ],
            "the loss of a record must not depend on the others",
        ),
        (
            &["logging.reasoning_trace=true", "trace_capture.mode=activations"],
            "no trace of a single record may be written",
        ),
        (
            &["training.gradient_noise_scale=true", "training.gradient_accumulation=2"],
            "no statistics of gradients without noise",
        ),
    ] {
        let told = private(settings);
        assert!(told.contains(said), "{settings:?}: {told}");
    }
}

#[test]
fn moments_in_eight_bits_are_those_of_adamw() {
    let on = "training.optimizer.moments=8bit";
    assert!(compose_training("cot-starter", &overrides(&[on]), None, 42, data()).is_ok());
    assert!(
        sentence(&[on, "training.optimizer.name=muon"], None).contains("its momentum is not quantized; write fp32")
    );
    assert!(sentence(&["training.optimizer.moments=int8"], None).contains("one of fp32, 8bit"));
}
