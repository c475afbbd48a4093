//! Curricula, replay and the options that choose them.

use codex_provenance::{DataDigest, Sha256};
use serde_json::json;

use super::{data, overrides, starter, synthetic};
use crate::{
    CURRICULUM_PRESETS, Data, Environment, Origin, Resolved, Sources, Training, compose_training,
    curriculum::{CUSTOM, NONE, SCHEDULES, included},
    explain_training, has_options,
    options::TRAINING,
};

fn sentence(texts: &[&str]) -> String {
    compose_training("cot-starter", &overrides(texts), None, 42, data()).expect_err("must be refused").to_string()
}

/// Composes a run with these phases.
fn with(phases: &str, more: &[&str]) -> Result<Resolved<Training>, String> {
    let phases = format!("curriculum.phases={phases}");
    let texts = [&["curriculum.phase_schedule=custom", phases.as_str()][..], more].concat();
    compose_training("cot-starter", &overrides(&texts), None, 42, data()).map_err(|error| error.to_string())
}

fn ids(run: &Resolved<Training>) -> Vec<&str> {
    run.spec().settings.curriculum.phases.iter().map(|phase| phase.id.as_str()).collect()
}

const EVALUATES: &str = "training.eval_every=10";

#[test]
fn every_included_curriculum_is_valid_and_chosen_by_schedule_or_preset() {
    assert_eq!(SCHEDULES.strip_suffix(&[CUSTOM]), Some(CURRICULUM_PRESETS));
    for name in CURRICULUM_PRESETS.iter().filter(|name| **name != NONE) {
        assert!(included(name).is_some(), "{name}");
        let by_schedule = starter(&[&format!("curriculum.phase_schedule={name}"), EVALUATES], None);
        let by_preset = starter(&[&format!("curriculum.preset={name}"), EVALUATES], None);
        let curriculum = &by_preset.spec().settings.curriculum;
        assert_eq!((&curriculum.preset, &curriculum.phase_schedule), (&(*name).to_owned(), &(*name).to_owned()));
        assert_eq!(curriculum.phases, by_schedule.spec().settings.curriculum.phases);
        let again = Resolved::<Training>::from_yaml(by_preset.to_yaml().expect("YAML").as_bytes());
        assert_eq!(again.expect("its own file"), by_preset);
    }
    // What `codex config show` prints is read again.
    let given = starter(&["curriculum.phase_schedule=starter", EVALUATES], None);
    let phases = serde_json::to_string(&given.spec().settings.curriculum.phases).expect("JSON");
    let text = format!("curriculum: {{phase_schedule: starter, phases: {phases}}}");
    assert_eq!(starter(&[EVALUATES], Some(&text)), given);
    let none = starter(&["curriculum.preset=starter", "curriculum.phase_schedule=none"], None);
    assert!(none.spec().settings.curriculum.phases.is_empty());
    let starter = starter(&["curriculum.phase_schedule=starter", EVALUATES], None);
    let phases = &starter.spec().settings.curriculum.phases;
    assert_eq!(ids(&starter), ["warmup", "first_principles", "challenge"]);
    assert_eq!(phases.iter().map(|phase| phase.steps).collect::<Vec<_>>(), [200, 400, 300]);
}

#[test]
fn options_are_layers_between_template_and_config() {
    let texts = ["training.max_steps=500", "+reasoning=baseline"];
    let of = |template: Option<&str>, texts: &[&str], config: Option<&str>| {
        let overrides = overrides(texts);
        let environment = Environment::ABSENT;
        let sources = Sources { group: template, config, overrides: &overrides, environment, ..Sources::default() };
        explain_training(&sources, 1, Some(data()))
    };
    let found = of(None, &texts, Some("training: {eval_samples: 5}")).expect("good");
    let settings = &found.resolved.spec().settings;
    // The quickstart of the reasoning runs: settings to begin with, and what replaces them.
    assert_eq!((settings.training.max_steps, settings.training.eval_every), (500, Some(50)));
    assert_eq!((settings.training.eval_samples, settings.curriculum.preset.as_str()), (5, "starter"));
    assert_eq!((found.resolved.spec().template.as_str(), ids(&found.resolved).len()), ("base", 3));
    let leaf = |key: &str| found.leaves.iter().find(|leaf| leaf.key == key).expect("a leaf");
    let every = leaf("training.eval_every");
    assert_eq!((&every.value, every.origin.layer()), (&json!(50), "option"));
    assert!(every.line.is_some());
    let phases = leaf("curriculum.phases");
    assert_eq!((&phases.origin, phases.line), (&Origin::Group("curriculum/starter.yaml"), Some(4)));
    assert_eq!(phases.origin.layer(), "curriculum");
    // The order of overrides does not matter to options, but the last choice counts.
    let both = ["+reasoning=baseline", "reasoning=chain_of_thought", "replay=interleaved"];
    let found = of(Some("cot-plus"), &both, None).expect("good");
    let settings = &found.resolved.spec().settings;
    assert_eq!((settings.curriculum.preset.as_str(), settings.training.max_steps), ("first_principles", 1000));
    let replay = &settings.data.replay;
    assert_eq!((replay.buffer, replay.interleave_every), (4096, 32));
    assert!((replay.ratio - 0.25).abs() < f64::EPSILON);
    assert!(has_options(&overrides(&both)) && !has_options(&overrides(&["training.max_steps=5", "~replay"])));
}

#[test]
fn every_option_is_valid() {
    for group in TRAINING.groups {
        for name in group.names() {
            let choice = format!("{}={name}", group.name);
            if name == "tool_execution" {
                // Synthetic tasks have no tool calls to weigh.
                assert!(
                    sentence(&[&choice]).contains("synthetic tasks have no tool calls"),
                    "{}",
                    sentence(&[&choice])
                );
                let run = starter(&[&choice, "training.reasoning.objective.tool_supervision_weight=1"], None);
                assert_eq!(run.spec().settings.trace_mode(), crate::TraceMode::Activations);
                continue;
            }
            let curriculum = if group.name == "replay" && !name.starts_with("difficulty") {
                "curriculum.phase_schedule=starter"
            } else {
                "training.keep_last=2"
            };
            let run = starter(&[&choice, curriculum, EVALUATES], None);
            assert!(!run.spec().settings.curriculum.phases.is_empty(), "{choice}");
        }
    }
    let unknown = |text: &str| sentence(&[text]);
    assert_eq!(
        unknown("+reasoning=baselin"),
        r#"reasoning "baselin" is unknown (did you mean baseline?): use one of baseline, chain_of_thought, tool_execution"#
    );
    assert!(
        unknown("replay=all")
            .ends_with("use one of base, difficulty_curriculum, difficulty_scaling, interleaved, rehearsal")
    );
}

#[test]
fn malformed_phases_are_refused() {
    let refused = |phases: &str, more: &[&str]| with(phases, more).expect_err("must be refused");
    for shape in [
        "{id: a, steps: 1}",
        "[5]",
        "[{id: a}]",
        "[{steps: 5}]",
        "[{id: a, steps: -1}]",
        "[{id: a, steps: 1, stepz: 1}]",
        "[{id: a, steps: 1, dataset: {level: [easy]}}]",
        "[{id: a, steps: 1, metrics: loss}]",
        "[{id: a, steps: 1, min_metric_threshold: 0.5}]",
    ] {
        let told = refused(shape, &[]);
        assert!(
            told.starts_with("overrides[1] sets curriculum.phases to ")
                && told.contains("write a list of at most 32 phases"),
            "{told}"
        );
    }
    for (phases, told) in [
        ("[{id: A, steps: 1}]", r#"curriculum.phases[0].id is "A": write 1 to 63 lower-case letters"#),
        ("[{id: '', steps: 1}]", r#"curriculum.phases[0].id is """#),
        ("[{id: a, steps: 1}, {id: a, steps: 2}]", r#"curriculum.phases[1].id is "a": give each phase a unique id"#),
        ("[{id: a, steps: 0}]", "curriculum.phases[0].steps is 0: write a whole number from 1 to 100000000"),
        (
            "[{id: a, steps: 1, metrics: [win_rate]}]",
            r#"curriculum.phases[0].metrics is "win_rate": it compares with a baseline, which evaluations have and training does not; use exact_match; the metrics of a phase are loss, val_loss, exact_match, trace_coverage"#,
        ),
        (
            "[{id: a, steps: 1, metrics: [val_los]}]",
            r#"curriculum.phases[0].metrics is "val_los": training does not measure it (did you mean val_loss?); the metrics"#,
        ),
        (
            "[{id: a, steps: 1, metrics: [loss, loss]}]",
            r#"curriculum.phases[0].metrics is "loss": name each metric once"#,
        ),
        (
            "[{id: a, steps: 1, max_metric_threshold: {loss: 1}}]",
            r#"curriculum.phases[0].max_metric_threshold is set for "loss": add the metric loss to metrics, or remove its threshold"#,
        ),
        (
            "[{id: a, steps: 1, metrics: [loss], min_metric_threshold: {loss: 2}, max_metric_threshold: {loss: 1}}]",
            "curriculum.phases[0].min_metric_threshold is loss: 2: write at most the max_metric_threshold of loss (1)",
        ),
        (
            "[{id: a, steps: 1, metrics: [exact_match], min_metric_threshold: {exact_match: 95}}]",
            "curriculum.phases[0].min_metric_threshold is exact_match: 95: it is a share; write a number from 0 to 1",
        ),
        (
            "[{id: a, steps: 1, metrics: [latency_p95]}]",
            r#"curriculum.phases[0].metrics is "latency_p95": it depends on the machine, so that a repeated run would have"#,
        ),
        (
            "[{id: a, steps: 1, metrics: [critique_density]}]",
            r#"curriculum.phases[0].metrics is "critique_density": it scores the form of a text and not its correctness"#,
        ),
        (
            "[{id: a, steps: 1, metrics: [consistency]}]",
            r#"curriculum.phases[0].metrics is "consistency": it takes several answers to each prompt"#,
        ),
        (
            "[{id: a, steps: 1, dataset: {sources: [mine]}}]",
            r#"curriculum.phases[0].dataset.sources is "mine": no data has that name; name some of arithmetic, word-problems"#,
        ),
        (
            "[{id: a, steps: 1, dataset: {sources: [validation]}}]",
            r#"curriculum.phases[0].dataset.sources is "validation": validation records are not trained on; name some of arithmetic, word-problems"#,
        ),
        (
            "[{id: a, steps: 1, dataset: {difficulties: [hardd]}}]",
            r#"curriculum.phases[0].dataset.difficulties is "hardd": use some of easy, medium, hard, very_hard (did you mean hard?)"#,
        ),
        (
            "[{id: a, steps: 1, dataset: {tasks: [algebra]}}]",
            r#"curriculum.phases[0].dataset.tasks is "algebra": use some of arithmetic, "#,
        ),
        (
            "[{id: a, steps: 1, dataset: {tasks: [multiplication]}}]",
            "curriculum.phases[0].dataset is of the tasks multiplication: it selects none of the data, which is arithmetic, word-problems; name other sources or tasks",
        ),
        (
            "[{id: a, steps: 1, learning_rate: 0}]",
            "curriculum.phases[0].learning_rate is 0: write a number above 0 and at most 1",
        ),
        (
            "[{id: a, steps: 1, batch_size: 0}]",
            "curriculum.phases[0].batch_size is 0: write a whole number from 1 to 65536",
        ),
        (
            "[{id: a, steps: 1, description: ''}]",
            r#"curriculum.phases[0].description is "": write one line of 1 to 200 characters"#,
        ),
        ("[]", "curriculum.phases is empty: list at least one phase, or write curriculum.phase_schedule=none"),
    ] {
        let said = refused(phases, &[EVALUATES]);
        assert!(said.starts_with(told), "{said}");
    }
    assert_eq!(
        refused("[{id: a, steps: 1, metrics: [loss, val_loss]}]", &[]),
        r#"curriculum.phases[0].metrics is "val_loss": it is measured by evaluations only; set training.eval_every"#
    );
    assert!(
        refused("[{id: a, steps: 1, metrics: [exact_match]}]", &[EVALUATES, "training.eval_samples=0"])
            .contains("measured on training.eval_samples answers; set it to more than 0")
    );
    // A number of steps is no share.
    let deep = "[{id: a, steps: 1, metrics: [explanation_depth], min_metric_threshold: {explanation_depth: 3}}]";
    let run = with(deep, &[EVALUATES]).expect("good");
    assert!(run.spec().settings.curriculum.phases[0].is_sampled());
    assert!(refused(deep, &[EVALUATES, "training.eval_samples=0"]).contains("explanation_depth are measured on"));
    let many: Vec<String> = (0..33).map(|index| format!("{{id: p{index}, steps: 1}}")).collect();
    assert!(refused(&format!("[{}]", many.join(", ")), &[]).contains("write a list of at most 32 phases"));
}

#[test]
fn curricula_and_other_settings_go_together_or_are_refused() {
    let phases = "[{id: a, steps: 1}]";
    let own = format!("curriculum.phases={phases}");
    assert_eq!(
        sentence(&[&own]),
        "curriculum.phases is set: write curriculum.phase_schedule=custom to train in these phases, or leave them out"
    );
    assert_eq!(
        sentence(&[&own, "curriculum.phase_schedule=starter"]),
        "curriculum.phases is set by overrides[0]: curriculum.phase_schedule is starter, which has its own phases; write \
         curriculum.phase_schedule=custom, or leave the phases out"
    );
    assert_eq!(
        sentence(&["replay=rehearsal"]),
        "data.replay.ratio is 0.3: there are no earlier phases to replay; set curriculum.phase_schedule, or write 0"
    );
    assert!(with(phases, &["training.max_epochs=2"]).expect_err("refused").contains("count steps; write null"));
    assert!(
        with(phases, &["training.method=none"]).expect_err("refused").contains("training.method=none has no phases")
    );
    assert!(
        with(
            "[{id: a, steps: 1, learning_rate: 0.001}]",
            &["training.scheduler=polynomial", "training.scheduler_end_rate=0.002"]
        )
        .expect_err("refused")
        .contains("write more than training.scheduler_end_rate (0.002)")
    );
    let good = with(phases, &["data.replay.ratio=0.5", "data.replay.sampling=difficulty_balanced"]).expect("good");
    assert_eq!(ids(&good), ["a"]);
    // Numbers have one form, so that the digest does not depend on how they are written.
    let form = |bound: &str| {
        let phases = format!("[{{id: a, steps: 1, metrics: [loss], max_metric_threshold: {{loss: {bound}}}}}]");
        with(&phases, &[]).expect("good").digest()
    };
    assert_eq!(form("1"), form("1.0"));
}

#[test]
fn phases_select_data_by_name_task_and_labels() {
    let file = Data { name: "mine".to_owned(), sha256: Some(DataDigest(Sha256::of("mine"))), synthetic: None };
    let named = Data { name: "sums".to_owned(), ..synthetic("arithmetic") };
    let phase = |dataset: &str| {
        let texts = [
            "curriculum.phase_schedule=custom".to_owned(),
            format!("curriculum.phases=[{{id: a, steps: 1, dataset: {dataset}}}]"),
        ];
        let run = compose_training("cot-starter", &texts, None, 1, vec![file.clone(), named.clone()]).expect("good");
        run.spec().settings.curriculum.phases[0].dataset.clone()
    };
    let takes = |dataset: &str| [&file, &named].map(|data| phase(dataset).takes(data));
    assert_eq!(takes("{}"), [true, true]);
    assert_eq!(takes("{sources: [mine]}"), [true, false]);
    assert_eq!(takes("{tasks: [arithmetic]}"), [false, true]);
    let labelled = phase("{difficulties: [easy, hard], categories: [addition]}");
    assert!(labelled.is_labelled() && labelled.selects(Some("hard"), Some("addition")));
    assert!(
        !labelled.selects(Some("medium"), Some("addition")) && !labelled.selects(Some("easy"), Some("subtraction"))
    );
    assert!(!labelled.selects(None, Some("addition")), "a record without a label is not selected");
}

/// `codex config show` composes without data, so stand-ins for what phases name must do.
#[test]
fn curricula_are_explained_without_data() {
    for dataset in
        ["{sources: [mine]}", "{tasks: [arithmetic, multiplication]}", "{sources: [arithmetic], tasks: [arithmetic]}"]
    {
        let texts = [
            "curriculum.phase_schedule=custom".to_owned(),
            format!("curriculum.phases=[{{id: a, steps: 1, dataset: {dataset}}}]"),
        ];
        let sources = Sources { overrides: &texts, ..Sources::default() };
        let explained = explain_training(&sources, 1, None).unwrap_or_else(|why| panic!("{dataset}: {why}"));
        assert_eq!(ids(&explained.resolved), ["a"]);
    }
}
