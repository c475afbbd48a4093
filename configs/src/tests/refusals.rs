//! Messages of refused configurations.

use codex_provenance::{DataDigest, Sha256};

use super::{data, overrides, starter, synthetic};
use crate::{Data, Evaluation, Resolved, Synthetic, compose_evaluation, compose_training};

fn sentence(texts: &[&str], config: Option<&str>) -> String {
    compose_training("cot-starter", &overrides(texts), config, 42, data()).expect_err("must be refused").to_string()
}

fn data_sentence(data: Vec<Data>) -> String {
    compose_training("cot-starter", &[], None, 42, data).expect_err("must be refused").to_string()
}

fn evaluation(data: Vec<Data>) -> Result<Resolved<Evaluation>, crate::ConfigError> {
    compose_evaluation("cot-lite", &[], 42, data)
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
fn data_of_an_evaluation() {
    assert_eq!(
        evaluation(vec![synthetic("arithmetic")]).expect_err("named otherwise").to_string(),
        r#"data[0].name is "arithmetic": use problems, baseline or plugin-metric"#
    );
    let mut baseline = synthetic("arithmetic");
    baseline.name = "baseline".to_owned();
    assert!(evaluation(vec![baseline.clone()]).expect_err("made").to_string().contains("--record-baseline"));
    baseline.name = "problems".to_owned();
    let own = evaluation(vec![baseline.clone()]).expect("problems can be made");
    assert_eq!(own.spec().data, [baseline], "the preset's baseline answered other problems");
    let file = |name: &str| Data { name: name.to_owned(), sha256: Some(DataDigest(Sha256::of(name))), synthetic: None };
    let replaced = evaluation(vec![file("baseline")]).expect("a baseline of one's own");
    let names: Vec<_> = replaced.spec().data.iter().map(|item| item.name.as_str()).collect();
    assert_eq!(names, ["problems", "baseline"]);
    assert_eq!(replaced.spec().data[1], file("baseline"));
    assert_eq!(replaced.spec().data[0].sha256, Some(crate::benchmark("cot-lite")[0].digest()));
    let turned = |names: [&str; 2]| evaluation(names.map(file).to_vec()).expect("both").digest();
    assert_eq!(turned(["baseline", "problems"]), turned(["problems", "baseline"]), "names, not places");
}

#[test]
fn metrics_without_a_baseline_are_refused() {
    let file = |name: &str| Data { name: name.to_owned(), sha256: Some(DataDigest(Sha256::of(name))), synthetic: None };
    let said = |preset: &str, names: &[&str], metric: &str| {
        let data = names.iter().map(|name| file(name)).collect();
        let evaluation = compose_evaluation(preset, &[], 42, data).expect("good");
        let gate = format!("{metric}>=0.5").parse().expect("a gate");
        evaluation.spec().undecidable(&gate).map(|(field, why)| {
            assert_eq!(field, "metric");
            why
        })
    };
    let (rate, own) = ("reasoning.win_rate", ["problems"].as_slice());
    assert_eq!(said("cot-lite", &[], rate), None);
    assert_eq!(said("cot-hard", &["baseline"], rate), None);
    assert_eq!(said("cot-lite", &["problems", "baseline"], rate), None);
    for metric in ["exact_match", "trace_coverage"] {
        assert_eq!(said("cot-hard", own, metric), None);
    }
    let (without, others) = (said("cot-hard", &[], rate).expect("none"), said("cot-lite", own, rate).expect("other"));
    assert!(without.contains("the preset cot-hard has no baseline: add a file"), "{without}");
    assert!(others.contains("the baseline of the preset cot-lite answered other problems"), "{others}");
}

#[test]
fn the_number_of_problems_is_known_where_the_configuration_tells_it() {
    let file = Data { name: "problems".to_owned(), sha256: Some(DataDigest(Sha256::of("own"))), synthetic: None };
    let of = |overrides: &[&str], data: &[Data]| {
        let overrides: Vec<String> = overrides.iter().map(|&text| text.to_owned()).collect();
        compose_evaluation("cot-lite", &overrides, 42, data.to_vec()).expect("good").spec().most_problems()
    };
    let all = of(&[], &[]).expect("the problems of the preset are embedded");
    assert!(all >= 200);
    assert_eq!(of(&["evaluation.limit=9"], &[]), Some(9));
    assert_eq!(of(&["evaluation.limit=1000000"], &[]), Some(all));
    assert_eq!(of(&[], std::slice::from_ref(&file)), None);
    assert_eq!(of(&["evaluation.limit=9"], &[file]), Some(9));
}

#[test]
fn metrics_on_demand_are_measured_where_gates_or_settings_name_them() {
    let composed = |overrides: &[&str]| {
        let overrides: Vec<String> = overrides.iter().map(|&text| text.to_owned()).collect();
        compose_evaluation("cot-hard", &overrides, 42, Vec::new()).expect("good")
    };
    let gate = |text: &str| text.parse::<codex_verdict::Gate>().expect("a gate");
    let (plain, bleu) = (composed(&[]), gate("bleu>=30@0.95"));
    assert_eq!(
        plain.spec().undecidable(&bleu),
        Some(("metric", "bleu is not measured: add it to evaluation.metrics".to_owned()))
    );
    let measuring = plain.clone().measuring([bleu.metric, gate("exact_match>=0").metric]).expect("good");
    assert_eq!(measuring, composed(&["evaluation.metrics=[bleu]"]), "the same configuration, with the same digest");
    assert_eq!(measuring.spec().undecidable(&bleu), None);
    assert_eq!(plain.clone().measuring([gate("exact_match>=0").metric]).expect("good"), plain);
    let both = measuring.clone().measuring([gate("token_f1>=0.5").metric]).expect("good");
    assert_eq!(both, composed(&["evaluation.metrics=[bleu, token_f1]"]));
    let (field, why) = measuring.spec().undecidable(&gate("bleu>=30@0.9")).expect("another confidence");
    assert_eq!(field, "confidence");
    assert_eq!(
        why,
        "the gate on bleu has confidence 0.9, but its bounds are computed with evaluation.confidence 0.95: use the same one, such \
         as by evaluation.confidence=0.9"
    );
    assert_eq!(
        composed(&["evaluation.metrics=[bleu]", "evaluation.confidence=0.9"]).spec().undecidable(&gate("bleu>=30@0.9")),
        None
    );
    assert_eq!(measuring.spec().undecidable(&gate("exact_match>=0.3@0.9")), None);
    let said =
        |text: &str| compose_evaluation("cot-hard", &[text.to_owned()], 1, Vec::new()).expect_err("bad").to_string();
    assert!(said("evaluation.metrics=[rouge]").contains("a list of at least one of token_f1, bleu, perplexity"));
    assert!(said("evaluation.confidence=0.9999").contains("0.999"));
}

#[test]
fn several_answers_need_a_temperature() {
    let composed = |overrides: &[&str]| {
        let overrides: Vec<String> = overrides.iter().map(|&text| text.to_owned()).collect();
        compose_evaluation("cot-hard", &overrides, 42, Vec::new())
    };
    let said = |overrides: &[&str]| composed(overrides).expect_err("bad").to_string();
    let told = said(&["evaluation.samples=4"]);
    assert!(told.contains("evaluation.samples") && told.contains("a temperature such as 0.8"), "{told}");
    let told = said(&["evaluation.samples=4", "evaluation.temperature=1", "evaluation.k=5"]);
    assert!(told.contains("evaluation.k") && told.contains("write at most evaluation.samples"), "{told}");
    assert!(said(&["evaluation.top_k=5"]).contains("at evaluation.temperature 0 it has no effect"));
    assert!(said(&["evaluation.top_p=0.5"]).contains("evaluation.top_p"));
    for wrong in
        ["[a, a]", "['']", "[1]", "text", "[aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa]"]
    {
        let told = said(&[&format!("evaluation.stop={wrong}")]);
        assert!(told.contains("write a list of at most 16 different texts of 1 to 64 characters"), "{wrong}: {told}");
    }
    let stopping = composed(&[r#"evaluation.stop=["\n\n", "Q:"]"#]).expect("good");
    assert_eq!(stopping.spec().settings.evaluation.stop, ["\n\n", "Q:"]);
    let sampled = composed(&["evaluation.samples=4", "evaluation.temperature=0.8"]).expect("good");
    assert_eq!(sampled.spec().settings.evaluation.k(), 4);
    let gate = "pass_at_k>=0.5".parse::<codex_verdict::Gate>().expect("a gate");
    assert_eq!(sampled.spec().undecidable(&gate), None);
    let (field, why) = composed(&[]).expect("good").spec().undecidable(&gate).expect("one answer only");
    assert!(field == "metric" && why.contains("set evaluation.samples and evaluation.temperature"), "{why}");
}

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

#[test]
fn moments_in_eight_bits_are_those_of_adamw() {
    let on = "training.optimizer.moments=8bit";
    assert!(compose_training("cot-starter", &overrides(&[on]), None, 42, data()).is_ok());
    assert!(
        sentence(&[on, "training.optimizer.name=muon"], None).contains("its momentum is not quantized; write fp32")
    );
    assert!(sentence(&["training.optimizer.moments=int8"], None).contains("one of fp32, 8bit"));
}
