//! Messages of refused evaluations and their data.

use codex_provenance::{DataDigest, Sha256};

use crate::{Data, Evaluation, OnDemand, Resolved, compose_evaluation, tests::synthetic};

pub(super) fn evaluation(data: Vec<Data>) -> Result<Resolved<Evaluation>, crate::ConfigError> {
    compose_evaluation("cot-lite", &[], 42, data)
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
    let told = said("evaluation.metrics=[meteor]");
    assert!(told.contains("a list of at least one of lowest_trace_coverage, token_f1, rouge_l, "), "{told}");
    for one in OnDemand::ALL {
        let asked = composed(&[&format!("evaluation.metrics=[{}]", one.metric())]);
        assert_eq!(plain.clone().measuring([one.metric()]).expect("good"), asked);
    }
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
