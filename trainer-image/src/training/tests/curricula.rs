//! Curricula: phases that begin and wait, runs that resume within one, and the replay of earlier phases.

use std::{collections::BTreeMap, path::Path};

use codex_configs::{DIFFICULTIES, Data, Resolved, Training};
use codex_reports::{PhaseStatus, exit};

use crate::{
    artifacts::{
        ledger::{Ledger, locate},
        metadata::{ControlSurface, RunMetadata},
    },
    tasks::{Difficulty, Split, Task},
    text::Tokenizer,
    training::{
        DataError, TrainError,
        forensics::{RecordedRun, replay},
        records::{LedgerRow, read_rows},
        schedule::Curriculum,
        test_support::{
            Attempt, SPECK, attempt, dataset, finished, killed_at, metered, remains, resolved, scratch, synthetic,
        },
    },
};

/// Two phases of two tasks. The second has other batches and another rate.
const TWO: &str = "curriculum.phases=[
    {id: sums, steps: 4, dataset: {tasks: [arithmetic]}, metrics: [loss, val_loss, trace_coverage],
     max_metric_threshold: {loss: 1000, val_loss: 1000}},
    {id: stories, steps: 4, dataset: {sources: [word-problems]}, batch_size: 2, learning_rate: 0.3}]";

fn two_sources() -> Vec<Data> {
    vec![synthetic("arithmetic", 40), synthetic("word-problems", 30)]
}

/// A run so small that it takes milliseconds, in these phases.
fn phased(phases: &str, more: &[&str], data: Vec<Data>) -> Resolved<Training> {
    let small = [
        "training.gradient_accumulation=2",
        "training.max_steps=12",
        "training.warmup_steps=3",
        "training.state_digest_every=1",
        "training.checkpoint_every=1",
        "training.eval_every=5",
        "training.eval_records=8",
        "training.eval_samples=2",
        "training.eval_max_new_tokens=4",
        "curriculum.phase_schedule=custom",
        phases,
    ];
    resolved(&[&SPECK[..], &small, more].concat(), data)
}

fn statuses(attempt: &Attempt) -> Vec<PhaseStatus> {
    attempt.state.curriculum.as_ref().unwrap().phases.iter().map(|phase| phase.status).collect()
}

/// The rows of the ledger of a run.
fn rows(output: &Path) -> Vec<LedgerRow> {
    read_rows::<LedgerRow>(&output.join("artifacts/ledger.ndjson")).unwrap()
}

#[test]
fn phases_follow_each_other_and_a_killed_run_resumes_within_one() {
    let run = phased(TWO, &["data.replay.ratio=0.25", "data.replay.buffer=5"], two_sources());
    let place = || tempfile::tempdir_in(scratch()).unwrap();
    let whole = place();
    let (straight, metered) = metered(&run, whole.path());
    let model = finished(&straight);
    // The first phase waits for the evaluation of step 5, and the run ends with its last phase.
    let curriculum = straight.state.curriculum.clone().unwrap();
    assert_eq!((curriculum.phase.as_str(), curriculum.index, curriculum.of), ("stories", 2, 2));
    assert_eq!((curriculum.steps_done, curriculum.steps, curriculum.reason.as_deref()), (4, 4, None));
    let firsts: Vec<_> = curriculum.phases.iter().map(|phase| phase.first_step).collect();
    assert_eq!((firsts, statuses(&straight)), (vec![Some(0), Some(5)], vec![PhaseStatus::Completed; 2]));
    let seen: Vec<_> = rows(whole.path()).iter().map(|row| (row.step, row.first, row.examples)).collect();
    let expected: Vec<(u64, u64, u64)> = (0..9)
        .map(|done| if done < 5 { (done + 1, done * 6, 6) } else { (done + 1, 30 + (done - 5) * 4, 4) })
        .collect();
    assert_eq!(seen, expected);
    assert!(metered.contains("\ncodex_ml_training_curriculum_phase 2\n"), "{metered}");
    assert_eq!(straight.state.notices, [""; 0], "a run that ends with its last phase did not stop early");
    let metadata: RunMetadata =
        serde_json::from_slice(&std::fs::read(whole.path().join("artifacts/run_metadata.json")).unwrap()).unwrap();
    assert_eq!(metadata.knobs.unwrap().curriculum_preset, "custom");
    assert_eq!(metadata.control_surface.unwrap().curriculum.phases, ["sums", "stories"]);

    let expected = remains(whole.path());
    let mut resumed = Vec::new();
    for look in (1..).step_by(3) {
        let output = place();
        let killed = killed_at(&run, output.path(), look);
        let ended = attempt(&run, output.path(), false);
        assert_eq!(finished(&ended), model, "{look}");
        assert_eq!(remains(output.path()), expected, "{look}");
        assert_eq!(ended.state.curriculum, straight.state.curriculum, "{look}");
        if !killed {
            break;
        }
        resumed.extend(ended.state.resumed_from);
    }
    for phase in [1..5, 6..9] {
        assert!(resumed.iter().any(|step| phase.contains(step)), "{phase:?}: {resumed:?}");
    }

    // Steps that are taken again lead to the recorded states, evaluations and phases included.
    let past = RecordedRun::open(whole.path()).unwrap();
    let rerun = past.rerun(&[]).unwrap();
    let mut state = rerun.state(None).unwrap();
    while state.step < 9 {
        rerun.step(&mut state).unwrap();
    }
    assert_eq!(state.snapshot(None).unwrap().digests().whole, expected.0.state_digest);
    let again = replay(&rerun, 8).unwrap();
    assert_eq!((again.reproduced, again.records.len()), (Some(true), 4));
    let beyond = replay(&rerun, 10).unwrap_err().to_string();
    assert_eq!(beyond, "step 10 does not exist: the curriculum of the run is completed after 9 steps");
}

#[test]
fn a_phase_whose_threshold_never_holds_fails_the_run() {
    let phases = |metric: &str, bound: &str| {
        format!(
            "curriculum.phases=[{{id: a, steps: 2, metrics: [{metric}], max_metric_threshold: {{{metric}: {bound}}}}}, {{id: b, steps: 1}}]"
        )
    };
    let output = tempfile::tempdir().unwrap();
    let run = phased(&phases("loss", "0.0001"), &["training.max_steps=6"], two_sources());
    let blocked = attempt(&run, output.path(), false);
    assert_eq!(statuses(&blocked), [PhaseStatus::Failed, PhaseStatus::Skipped]);
    let curriculum = blocked.state.curriculum.clone().unwrap();
    assert_eq!((curriculum.steps_done, curriculum.steps), (6, 2));
    let reason = curriculum.reason.unwrap();
    assert!(reason.starts_with("loss is ") && reason.ends_with(" and must be at most 0.0001"), "{reason}");
    let error = blocked.outcome.unwrap_err();
    assert_eq!((error.exit(), error.failure().reason.as_str()), (exit::BAD_INPUT, "CurriculumBlocked"));
    assert_eq!(
        error.to_string(),
        format!(
            "phase a of the curriculum is not completed after step 6, the last of training.max_steps: {reason}; change its \
             thresholds, or raise training.max_steps"
        )
    );
    // Another attempt takes no step and says the same.
    let again = attempt(&run, output.path(), false);
    assert_eq!((again.outcome.unwrap_err().to_string(), again.state.steps_executed), (error.to_string(), 6));

    // Without an evaluation the metric has no value, however good the model is.
    let output = tempfile::tempdir().unwrap();
    let never = ["training.max_steps=6", "training.eval_every=100"];
    let told = attempt(&phased(&phases("val_loss", "1000"), &never, two_sources()), output.path(), false);
    let told = told.outcome.unwrap_err().to_string();
    assert!(told.contains("val_loss has no value yet and must be at most 1000"), "{told}");
}

#[test]
fn a_run_may_end_within_a_phase() {
    let phases = "curriculum.phases=[{id: a, steps: 2}, {id: b, steps: 8}, {id: c, steps: 1}]";
    let output = tempfile::tempdir().unwrap();
    let ended = attempt(&phased(phases, &["training.max_steps=6"], two_sources()), output.path(), false);
    finished(&ended);
    assert_eq!(statuses(&ended), [PhaseStatus::Completed, PhaseStatus::Active, PhaseStatus::Skipped]);
    assert_eq!(
        ended.state.notices,
        ["all 6 steps of the run are done in phase b of the curriculum, after 4 of its 8 steps; skipped: c"]
    );
    // A run that was asked to stop says nothing.
    let output = tempfile::tempdir().unwrap();
    let ended = attempt(&phased(phases, &["training.stop_after=5"], two_sources()), output.path(), false);
    finished(&ended);
    assert_eq!((statuses(&ended)[1], ended.state.notices.len()), (PhaseStatus::Active, 0));
}

#[test]
fn phases_without_the_records_that_they_need_are_refused() {
    let refused = |phases: &str, more: &[&str]| {
        let output = tempfile::tempdir().unwrap();
        let error = attempt(&phased(phases, more, two_sources()), output.path(), false).outcome.unwrap_err();
        assert_eq!(error.exit(), exit::BAD_INPUT, "{error}");
        error
    };
    let error = refused("curriculum.phases=[{id: a, steps: 1, dataset: {categories: [poetry]}}]", &[]);
    assert!(matches!(&error, TrainError::Data(DataError::EmptyPhase { phase, .. }) if phase == "a"), "{error}");
    let told =
        "phase a of the curriculum has no records: no record has the category poetry; change its dataset, or the data";
    assert_eq!(error.to_string(), told);
    let error = refused(
        "curriculum.phases=[{id: a, steps: 1}, {id: b, steps: 1, dataset: {tasks: [arithmetic]}, batch_size: 41}]",
        &[],
    );
    assert!(error.to_string().starts_with("phase b of the curriculum has batches of 41, but 40 records: "), "{error}");
    // One record of each task is held out, so none of some difficulty.
    let of = |difficulty: &str| {
        format!(
            "curriculum.phases=[{{id: a, steps: 1, dataset: {{difficulties: [{difficulty}]}}, metrics: [val_loss], batch_size: 1}}]"
        )
    };
    let few = ["training.eval_records=2", "training.gradient_accumulation=1"];
    let refusals = DIFFICULTIES.iter().filter(|difficulty| {
        let output = tempfile::tempdir().unwrap();
        match attempt(&phased(&of(difficulty), &few, two_sources()), output.path(), false).outcome {
            Err(TrainError::Data(DataError::UnmeasuredPhase { metrics, .. })) => metrics == "val_loss",
            Err(TrainError::Data(DataError::EmptyPhase { .. })) => true,
            _ => false,
        }
    });
    assert!(refusals.count() >= 2);
}

#[test]
fn difficulties_have_the_names_of_records() {
    let all = [Difficulty::Easy, Difficulty::Medium, Difficulty::Hard, Difficulty::VeryHard];
    let names = all.map(|difficulty| serde_json::to_value(difficulty).unwrap().as_str().unwrap().to_owned());
    assert_eq!(names, *DIFFICULTIES);
}

/// The records of steps of a run whose phases began after these steps, as `name[number]`.
fn records(run: &Resolved<Training>, firsts: &[u64], steps: impl IntoIterator<Item = u64>) -> Vec<Vec<String>> {
    let tokenizer = Tokenizer::characters().unwrap();
    let data = dataset(run, &tokenizer);
    let curriculum = Curriculum::of(&run.spec().settings).unwrap();
    let of_step = |done| {
        let (_, addresses) = data.of_phase(&curriculum, firsts, done).unwrap();
        addresses.iter().map(|address| data.describe(&[*address]).unwrap()).collect()
    };
    steps.into_iter().map(of_step).collect()
}

fn replaying(settings: &[&str]) -> Resolved<Training> {
    phased(
        TWO,
        &[&["training.batch_size=10", "training.gradient_accumulation=2"][..], settings].concat(),
        two_sources(),
    )
}

#[expect(clippy::ptr_arg, reason = "a predicate of iterators over strings")]
fn is_sum(record: &String) -> bool {
    record.starts_with("arithmetic[")
}

#[test]
fn replay_takes_its_share_of_every_step_and_a_ratio_of_0_takes_none() {
    let firsts = [0, 5];
    let plain = records(&replaying(&[]), &firsts, 0..40);
    assert!(plain[..5].iter().flatten().all(is_sum) && !plain[5..].iter().flatten().any(is_sum));
    let none = ["data.replay.ratio=0", "data.replay.buffer=7", "data.replay.sampling=difficulty_balanced"];
    assert_eq!(records(&replaying(&none), &firsts, 0..40), plain);
    // A batch of the second phase has two records, a step four.
    let half = records(&replaying(&["data.replay.ratio=0.5"]), &firsts, 0..40);
    assert_eq!(half[..5], plain[..5], "the first phase has nothing to replay");
    assert!(half[5..].iter().all(|step| step.iter().filter(|record| is_sum(record)).count() == 2), "{half:?}");
    // The records of the phase itself are those without replay, in their order.
    let own: Vec<&String> = half[5..].iter().flatten().filter(|record| !is_sum(record)).collect();
    assert_eq!(own, plain[5..].iter().flatten().take(own.len()).collect::<Vec<_>>());
    // What is replayed was trained on.
    let seen: Vec<&String> = plain[..5].iter().flatten().collect();
    assert!(half[5..].iter().flatten().filter(|record| is_sum(record)).all(|record| seen.contains(&record)));
    // A step is found without those before it.
    let run = replaying(&["data.replay.ratio=0.5"]);
    assert_eq!(records(&run, &firsts, [37]), half[37..38]);
    let interleaved = records(&replaying(&["data.replay.ratio=0.5", "data.replay.interleave_every=3"]), &firsts, 5..17);
    let shares: Vec<usize> =
        interleaved.iter().map(|step| step.iter().filter(|record| is_sum(record)).count()).collect();
    assert_eq!(shares, [0, 0, 2, 0, 0, 2, 0, 0, 2, 0, 0, 2]);
}

#[test]
fn the_buffer_bounds_what_is_replayed() {
    let of = |buffer: u64| {
        let run = replaying(&["data.replay.ratio=0.5", &format!("data.replay.buffer={buffer}")]);
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for record in records(&run, &[0, 5], 5..65).into_iter().flatten().filter(is_sum) {
            *counts.entry(record).or_default() += 1;
        }
        counts
    };
    let (few, many) = (of(3), of(1000));
    // 120 draws of three examples, each 40 times.
    assert!(few.len() <= 3 && few.values().all(|count| count.is_multiple_of(40)), "{few:?}");
    assert_eq!(few.values().sum::<usize>(), 120);
    assert!(many.len() > 20, "{many:?}");
}

#[test]
fn balanced_replay_takes_every_difficulty_equally_often() {
    let difficulty = |record: &String| {
        let number: u64 = record.trim_start_matches("arithmetic[").trim_end_matches(']').parse().unwrap();
        Task::Arithmetic.draw(Split::Train, 1, number - 1).record().difficulty
    };
    let of = |sampling: &str| {
        let run = replaying(&[
            "data.replay.ratio=0.5",
            "data.replay.buffer=200",
            &format!("data.replay.sampling={sampling}"),
        ]);
        let mut counts: BTreeMap<Difficulty, usize> = BTreeMap::new();
        for record in records(&run, &[0, 5], 5..65).iter().flatten().filter(|record| is_sum(record)) {
            *counts.entry(difficulty(record)).or_default() += 1;
        }
        counts
    };
    let spread = |counts: &BTreeMap<Difficulty, usize>| counts.values().max().unwrap() - counts.values().min().unwrap();
    let (uniform, balanced) = (of("uniform"), of("difficulty_balanced"));
    assert!(balanced.len() > 1 && spread(&balanced) <= 1, "{balanced:?}");
    assert!(spread(&uniform) > spread(&balanced), "{uniform:?}");
}

/// The first task is forgotten while the second is trained, and far less so if its records are replayed. Measured once: the loss on
/// the first task rises from 0.93 to 1.10 without replay, and to 0.94 with a ratio of 0.3.
#[test]
fn replay_prevents_forgetting() {
    let losses = |ratio: &str| {
        let run = resolved(
            &[
                "training.batch_size=16",
                "training.max_steps=100",
                "training.warmup_steps=10",
                "training.scheduler=constant_with_warmup",
                "training.eval_every=20",
                "training.eval_records=64",
                "training.eval_samples=0",
                "curriculum.phase_schedule=custom",
                "curriculum.phases=[{id: sums, steps: 60, dataset: {tasks: [arithmetic]}}, {id: stories, steps: 40, dataset: {tasks: [word-problems]}}]",
                &format!("data.replay.ratio={ratio}"),
            ],
            vec![synthetic("arithmetic", 1000), synthetic("word-problems", 1000)],
        );
        let output = tempfile::tempdir().unwrap();
        finished(&attempt(&run, output.path(), false));
        let rows = Ledger::read(&locate(output.path())).unwrap().rows.into_iter();
        let of_sums = rows.filter(|row| row.split == "val" && row.metric == "loss.sums");
        of_sums.map(|row| (row.step, row.value)).collect::<BTreeMap<u64, f64>>()
    };
    let (without, with) = (losses("0"), losses("0.3"));
    assert_eq!(without[&60].to_bits(), with[&60].to_bits(), "the first phase is the same");
    let forgotten = |losses: &BTreeMap<u64, f64>| losses[&100] - losses[&60];
    assert!(forgotten(&without) > 0.1, "{without:?}");
    assert!(forgotten(&with) < forgotten(&without) / 2.0, "{with:?} {without:?}");
}

#[test]
fn the_knobs_have_the_presets_that_a_run_is_meant_for() {
    let of = |set: &[&str]| ControlSurface::of(&resolved(set, two_sources()).spec().settings);
    let (surface, knobs) = of(&["evaluation.preset=cot-lite", "deployment.preset=single"]);
    let presets = (knobs.evaluation_preset.as_deref(), knobs.deployment_preset.as_deref());
    assert_eq!(presets, (Some("cot-lite"), Some("single")));
    assert_eq!(surface.evaluation.map(|it| it.preset), knobs.evaluation_preset);
    assert_eq!(surface.deployment.map(|it| it.preset), knobs.deployment_preset);
    let (surface, knobs) = of(&[]);
    assert_eq!((knobs.evaluation_preset, knobs.deployment_preset), (None, None));
    assert!(surface.evaluation.is_none() && surface.deployment.is_none());
    let (_, knobs) = of(&["+reasoning=baseline"]);
    let recorded = [knobs.trace_mode, Some(knobs.curriculum_preset), knobs.evaluation_preset, knobs.deployment_preset];
    assert_eq!(recorded.map(Option::unwrap), ["weights", "starter", "base", "reasoning_pod"]);
}
