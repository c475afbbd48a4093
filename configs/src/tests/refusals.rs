//! Messages of refused configurations.

mod datasets;
mod evaluations;
mod methods;

use super::{data, overrides, synthetic};
use crate::{compose_evaluation, compose_training};

fn sentence(texts: &[&str], config: Option<&str>) -> String {
    compose_training("cot-starter", &overrides(texts), config, 42, data()).expect_err("must be refused").to_string()
}

#[test]
fn names() {
    let of = |template| compose_training(template, &[], None, 42, data()).expect_err("unknown").to_string();
    assert_eq!(
        of("cot-stater"),
        r#"template "cot-stater" is unknown (did you mean cot-starter?): use one of answers-only, cot-padded, cot-plus, cot-starter, lora"#
    );
    assert_eq!(
        of("bert"),
        r#"template "bert" is unknown: use one of answers-only, cot-padded, cot-plus, cot-starter, lora"#
    );
    assert_eq!(
        compose_evaluation("cotlite", &[], 0, vec![]).expect_err("unknown").to_string(),
        r#"preset "cotlite" is unknown (did you mean cot-lite?): use one of base, cot-hard, cot-lite, gym-chain-sum, gym-gsm-symbolic, gym-products, math, tools"#
    );
}

#[test]
fn malformed_overrides() {
    for text in ["training.max_steps", "=5", "training.max_steps=", ""] {
        assert_eq!(
            sentence(&["training.batch_size=8", text], None),
            format!("overrides[1] is {text:?}: write key=value, such as training.max_steps=900")
        );
    }
    assert_eq!(
        sentence(&["training.batch_size=[1"], None),
        r#"overrides[0] has the value "[1", which is not valid YAML: close open brackets and quotes, or put the value in quotes"#
    );
}

#[test]
fn errors_on_the_command_line_name_its_flags() {
    let said = |texts: &[&str]| {
        let set = overrides(texts);
        let refused = compose_training("cot-starter", &set, None, 42, data()).expect_err("must be refused");
        refused.on_command_line(&set).to_string()
    };
    let good = "training.batch_size=8";
    for (text, told) in [
        ("seed=7", "--set seed=7 names seed, which is not a setting: use --seed"),
        (
            "training.output_dir=/x",
            "--set training.output_dir=/x names training.output_dir, which is not a setting: use --output",
        ),
        ("data=x", "--set data=x names data, which is not a setting: use --data NAME=FILE"),
        (
            "ring=main",
            "--set ring=main names ring, which is not a setting: rolloutRing is a field of an object in a cluster",
        ),
        ("batch_size", "--set is \"batch_size\": write key=value, such as training.max_steps=900"),
        (
            "training.batchsize=8",
            "--set training.batchsize=8 names the key training.batchsize, which does not exist: did you mean training.batch_size?",
        ),
        (
            "training.batch_size=0",
            "--set training.batch_size=0 sets training.batch_size to 0: write a whole number from 1 to 65536",
        ),
        (
            "training.batch_size=18446744073709551616",
            "--set training.batch_size=18446744073709551616 sets training.batch_size to 1.8446744073709552e+19: write a whole number from 1 to 65536",
        ),
        (
            "training.batch_size={",
            "--set training.batch_size={ has the value \"{\", which is not valid YAML: close open brackets and quotes, or put the value in quotes",
        ),
    ] {
        assert_eq!(said(&[good, text]), told);
    }
}

#[test]
fn data_on_the_command_line_is_called_by_its_flag() {
    let twice = vec![synthetic("arithmetic"), synthetic("arithmetic")];
    let refused = compose_training("cot-starter", &[], None, 42, twice).expect_err("must be refused");
    assert_eq!(
        refused.on_command_line(&[]).to_string(),
        r#"the name in --data is "arithmetic": give each file a unique name"#
    );
}

#[test]
fn unknown_keys() {
    assert_eq!(
        sentence(&["training.batchsize=8"], None),
        "overrides[0] names the key training.batchsize, which does not exist: did you mean training.batch_size?"
    );
    assert_eq!(
        sentence(&["max_steps=8"], None),
        "overrides[0] names the key max_steps, which does not exist: did you mean training.max_steps?"
    );
    assert_eq!(
        sentence(&[], Some("trainin:\n  max_steps: 8\n")),
        "config names the key trainin, which does not exist: did you mean training?"
    );
    for stranger in ["zzz.verbosity=2", "training.foo=1"] {
        let told = sentence(&[stranger], None);
        assert!(told.contains("which does not exist: use one of model.hidden_size, "), "{told}");
    }
    assert!(sentence(&["zzz=1"], None).starts_with(
        "overrides[0] names the key zzz, which does not exist: use one of model.hidden_size, model.intermediate_size, "
    ));
    assert_eq!(
        sentence(&[], Some("training: {batch_size: {micro: 4}}")),
        r#"config sets training.batch_size to {"micro":4}: write a whole number from 1 to 65536"#
    );
    assert!(sentence(&[], Some("7: 3")).starts_with("config names the key 7, which does not exist"));
}

#[test]
fn fields_of_the_object() {
    for (text, field) in [
        ("seed=7", "seed"),
        ("training.seed=7", "seed"),
        ("metadata.rollout_ring=main", "rolloutRing"),
        ("rolloutRing=main", "rolloutRing"),
        ("ring=main", "rolloutRing"),
        ("training.output_dir=/x", "output"),
        ("output=/x", "output"),
        ("data=x", "data"),
    ] {
        let key = text.split('=').next().expect("a key");
        assert_eq!(
            sentence(&[text], None),
            format!("overrides[0] names {key}, which is not a setting: set spec.{field} instead")
        );
    }
    assert_eq!(
        sentence(&[], Some("training: {seed: 7}")),
        "config names training.seed, which is not a setting: set spec.seed instead"
    );
    assert_eq!(
        sentence(&[], Some("output: {persistentVolumeClaim: {claimName: x}}")),
        "config names output, which is not a setting: set spec.output instead"
    );
}

#[test]
fn values() {
    for (text, right) in [
        ("training.batch_size=0", "training.batch_size to 0: write a whole number from 1 to 65536"),
        ("training.batch_size=-1", "training.batch_size to -1: write a whole number from 1 to 65536"),
        ("training.batch_size=8.5", "training.batch_size to 8.5: write a whole number from 1 to 65536"),
        ("training.batch_size='8'", r#"training.batch_size to "8": write a whole number from 1 to 65536"#),
        ("training.batch_size=many", r#"training.batch_size to "many": write a whole number from 1 to 65536"#),
        ("training.batch_size=[8]", "training.batch_size to [8]: write a whole number from 1 to 65536"),
        (
            "training.gradient_accumulation=0",
            "training.gradient_accumulation to 0: write a whole number from 1 to 4096",
        ),
        ("training.learning_rate=0", "training.learning_rate to 0: write a number above 0 and at most 1"),
        ("training.learning_rate=.nan", r#"training.learning_rate to ".nan": write a number above 0 and at most 1"#),
        ("training.learning_rate=.inf", r#"training.learning_rate to ".inf": write a number above 0 and at most 1"#),
        ("training.learning_rate=fast", r#"training.learning_rate to "fast": write a number above 0 and at most 1"#),
        ("training.beta1=1", "training.beta1 to 1: write a number of at least 0 and below 1"),
        (
            "training.scheduler=linaer",
            r#"training.scheduler to "linaer": write one of constant, constant_with_warmup, linear, cosine, cosine_with_restarts, polynomial, inverse_sqrt, step"#,
        ),
        ("training.dtype=float16", r#"training.dtype to "float16": write one of fp32, bf16, fp16"#),
        ("training.dtype=fp64", r#"training.dtype to "fp64": write one of fp32, bf16, fp16"#),
        ("response.format=null", r#"response.format to "null": write one of steps, answer"#),
        (
            "training.stop_after=soon",
            r#"training.stop_after to "soon": write a whole number from 0 to 100000000, or null for all of training.max_steps"#,
        ),
        ("metadata.owner='  '", r#"metadata.owner to "  ": write one line of 1 to 63 characters"#),
        ("training=8", "training to 8, but training is a group: set one of its keys, such as training.max_steps"),
    ] {
        assert_eq!(sentence(&[text], None), format!("overrides[0] sets {right}"));
    }
    assert_eq!(
        sentence(&[], Some("training: {batch_size: null}")),
        "config sets training.batch_size to null: write a whole number from 1 to 65536"
    );
    assert_eq!(
        sentence(&[], Some("training: {batch_size: !big 8}")),
        r#"config sets training.batch_size to "!big 8": write a whole number from 1 to 65536"#
    );
    let long = format!("training.batch_size={}", "x".repeat(5000));
    assert!(sentence(&[&long], None).len() < 200, "a long value is cut");
}

#[test]
fn contradicting_values() {
    assert_eq!(
        sentence(&["training.dtype=fp16", "training.device=cpu"], None),
        "training.dtype is fp16: training.device is cpu, and fp16 needs a GPU; write bf16 or fp32"
    );
    assert_eq!(
        sentence(&["training.scheduler=constant"], None),
        "training.warmup_steps is 100: training.scheduler constant has no warm-up; write 0, or training.scheduler=constant_with_warmup"
    );
    assert_eq!(
        sentence(&["training.scheduler=polynomial", "training.scheduler_end_rate=0.5"], None),
        "training.scheduler_end_rate is 0.5: write less than training.learning_rate (0.005)"
    );
    assert_eq!(
        sentence(&["training.early_stop_patience=2"], None),
        "training.early_stop_patience is 2: set training.eval_every, because patience counts evaluations"
    );
    assert_eq!(
        sentence(&["training.best_k=2"], None),
        "training.best_k is 2: val_loss is measured by evaluations only; set training.eval_every, or training.best_metric=loss"
    );
    assert_eq!(
        sentence(&["training.best_k=2", "training.eval_every=70", "training.checkpoint_every=100"], None),
        "training.checkpoint_every is 100: with training.best_k, write a multiple of training.eval_every (70), such as 140, \
         because a checkpoint is ranked by the val_loss of its own step"
    );
    for right in ["training.best_metric=loss", "training.eval_every=100"] {
        assert!(compose_training("cot-starter", &overrides(&["training.best_k=2", right]), None, 42, data()).is_ok());
    }
    assert_eq!(
        sentence(&["model.num_attention_heads=3"], None),
        "model.num_attention_heads is 3: model.hidden_size (64) divided by it must be one of 16, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256"
    );
    assert!(
        sentence(&["model.num_attention_heads=64"], None)
            .contains("must be one of 16, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256")
    );
    assert_eq!(
        sentence(&["training.max_steps=50"], None),
        "training.warmup_steps is 100: write at most training.max_steps (50)"
    );
    assert_eq!(
        sentence(&["training.stop_after=2001"], None),
        "training.stop_after is 2001: write at most training.max_steps (2000), or null"
    );
}

#[test]
fn malformed_config() {
    assert!(sentence(&[], Some("training: [")).starts_with("config is not valid YAML ("));
    for (text, told) in [
        ("training: {}\ntraining: {}\n", "config names training twice: keep one of the two"),
        ("training:\n  batch_size: 8\n  batch_size: 9\n", "config names batch_size twice: keep one of the two"),
        ("training:\n\tbatch_size: 8\n", "config: line 2 is indented with a tab: indent with spaces"),
        (
            "# one\ntraining:\n  max_steps: 9\n \tbatch_size: 8\n",
            "config: line 4 is indented with a tab: indent with spaces",
        ),
        (
            "training:\n\u{a0} batch_size: 8\n training\n",
            "config: line 2 is indented with another character than a space: indent with spaces",
        ),
        ("training:\n  \u{feff}batch_size: 8\n", "config: line 2 holds a byte order mark (U+FEFF): remove it"),
        (
            "training: {batch_size: 8}\n---\ntraining: {max_steps: 9}\n",
            "config: line 2 begins another document: write one, without --- and ...",
        ),
        (
            "training: &all {batch_size: 8}\nmodel:\n  <<: *all\n",
            "config uses the merge key <<, which is not supported: write its keys out",
        ),
    ] {
        assert_eq!(sentence(&[], Some(text)), told, "{text:?}");
    }
    assert_eq!(
        sentence(&["training={batch_size: 8, batch_size: 9}"], None),
        "overrides[0] names training.batch_size twice: keep one of the two"
    );
    let same = |config: &str| compose_training("cot-starter", &[], Some(config), 42, data()).expect("good").digest();
    let plain = same("training: {batch_size: 8}\n");
    for harmless in [
        "\u{feff}training: {batch_size: 8}\n",
        "---\ntraining:\r\n  batch_size:\t8\r\n",
        "# one\n---\ntraining.batch_size: 8\n...\n",
    ] {
        assert_eq!(same(harmless), plain, "{harmless:?}");
    }
    assert_eq!(
        sentence(&[], Some("training.batch_size: 8\ntraining: {batch_size: 9}")),
        "config names training.batch_size twice: keep one of the two"
    );
    assert_eq!(
        sentence(&[], Some("- a")),
        r#"config is ["a"]: write keys and values such as `training: {max_steps: 900}`"#
    );
    assert_eq!(sentence(&[], Some(&"#".repeat(40_000))), "config has 40000 bytes: write at most 32768");
}

#[test]
fn seeds_too_large_for_json() {
    let refused = compose_training("cot-starter", &[], None, u64::MAX, data()).expect_err("too large").to_string();
    assert_eq!(refused, "seed is 18446744073709551615: write a whole number from 0 to 9007199254740991");
}
