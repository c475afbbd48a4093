//! Runs that learn from the rewards of sampled answers, with all weights and with adapters.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use codex_configs::{Resolved, Training};
use codex_provenance::Sha256;
use codex_reports::{TrainingState, exit};

use super::base::{model, run, train, write_base};
use crate::{
    artifacts::ledger::Ledger,
    error::chain,
    plugins::testing::even,
    reporting::Reporter,
    training::{
        Base, Session, TrainError,
        data::Places,
        forensics::{RecordedRun, replay},
        state::engine_settings,
        test_support::{attempt, finished, speck},
    },
};

struct Place {
    directory: tempfile::TempDir,
    base: Base,
    files: Vec<(String, PathBuf)>,
}

/// Writes the base, and prompts to which any text with a k is right. Even random weights write some of these.
fn place(write: impl FnOnce(&Path) -> PathBuf) -> Place {
    let directory = tempfile::tempdir().unwrap();
    let path = write(&directory.path().join("base"));
    let lines: Vec<String> = (0..16)
        .map(|at| serde_json::json!({"question": format!("Spell {at} with a k."), "answer": "k"}).to_string())
        .collect();
    let data = directory.path().join("letters.jsonl");
    fs::write(&data, lines.join("\n")).unwrap();
    Place { base: Base::open(&path, None).unwrap(), directory, files: vec![("letters".to_owned(), data)] }
}

/// Writes a base with 98 characters, of which random weights choose the one that ends an answer often enough.
fn characters(place: &Path) -> PathBuf {
    finished(&attempt(&speck(&["training.stop_after=0"]), place, false));
    place.join("model")
}

/// Writes a base of SmolLM2's shape and vocabulary.
fn tokens(place: &Path) -> PathBuf {
    write_base(place);
    place.to_owned()
}

const SETTINGS: [&str; 7] = [
    "training.method=grpo",
    "training.grpo.group=6",
    "training.grpo.max_new_tokens=48",
    "training.grpo.reward.answer=regex",
    "training.grpo.reward.pattern=k",
    "training.learning_rate=0.02",
    "training.warmup_steps=0",
];
const ADAPTERS: [&str; 3] = ["training.grpo.lora=true", "training.lora.rank=4", "training.lora.dropout=0"];

fn with(files: &[(String, PathBuf)], overrides: &[&str]) -> Resolved<Training> {
    run(files, &[&SETTINGS[..], overrides].concat())
}

fn measured(output: &Path) -> BTreeMap<(u64, String), f64> {
    let ledger = Ledger::read(&output.join("artifacts/metrics.ndjson")).unwrap();
    ledger.rows.into_iter().map(|row| ((row.step, row.metric), row.value)).collect()
}

#[test]
fn answers_that_earn_more_are_learned_and_runs_resume_exactly() {
    let Place { directory, base, files } = place(characters);
    for (adapters, dtype) in [(&ADAPTERS[..], "training.dtype=fp32"), (&[][..], "training.dtype=bf16")] {
        let run = |stop| with(&files, &[adapters, &[dtype, stop]].concat());
        let (straight, resumed) = (directory.path().join("straight"), directory.path().join("resumed"));
        let whole = model(train(&run("training.stop_after=30"), &base, &files, &straight));
        assert_eq!(straight.join("artifacts/adapter").exists(), !adapters.is_empty());
        let rows = measured(&straight);
        let of = |step, name: &str| rows[&(step, name.to_owned())];
        for name in
            ["reward_deviation", "answer_accuracy", "solved_prompts", "answered", "informative_prompts", "entropy"]
        {
            assert!(of(10, name).is_finite() && of(10, name) >= 0.0, "{name}");
        }
        assert!(of(10, "answer_tokens") > 0.0 && of(10, "answer_tokens") <= 48.0);
        // The references are answers alone: they have no steps.
        assert!(!rows.keys().any(|(_, metric)| metric == "step_accuracy"), "{rows:?}");

        // Rollouts are sampled again by the attempt that resumes, and are the same.
        model(train(&run("training.stop_after=3"), &base, &files, &resumed));
        let again = train(&run("training.stop_after=30"), &base, &files, &resumed);
        assert!(again.1.resumed_from.is_some());
        assert_eq!(model(again).digest, whole.digest);
        let ledgers = [&straight, &resumed].map(|output| fs::read(output.join("artifacts/ledger.ndjson")).unwrap());
        assert!(ledgers[0] == ledgers[1]);

        // Forensics show what was sampled.
        let past = RecordedRun::open(&straight).unwrap();
        let rerun = past.rerun(&files).unwrap();
        let rewards = |step| -> f64 {
            let groups = replay(&rerun, step).unwrap().rollouts;
            groups.iter().flat_map(|group| &group.answers).map(|answer| answer.reward).sum::<f64>() / 48.0
        };
        let (first, last) = (rewards(1), rewards(30));
        assert!(first < 0.7 && last > first + 0.1, "{first} {last}");
        assert!((of(30, "reward") - last).abs() < 1e-12);
        let replayed = replay(&rerun, 5).unwrap();
        assert_eq!((replayed.reproduced, replayed.rollouts.len()), (Some(true), 8));
        for group in &replayed.rollouts {
            assert!(group.record.starts_with("letters[") && group.answers.len() == 6);
            let sum: f64 = group.answers.iter().map(|answer| answer.advantage).sum();
            assert!(sum.abs() < 1e-12, "{sum}");
        }
        for output in [straight, resumed] {
            fs::remove_dir_all(output).unwrap();
        }
    }
}

/// The importance ratio of every sampled token is exactly 1: sampling with a cache, for any number of slots, and the forward pass of
/// training over whole sequences give the same probability, to the bit.
#[test]
fn answers_are_sampled_with_the_probabilities_that_are_trained() {
    let Place { directory, base, files } = place(tokens);
    for dtype in ["training.dtype=fp32", "training.dtype=bf16"] {
        let resolved = with(&files, &[dtype, "training.grpo.max_new_tokens=5"]);
        let reporter = Reporter::<TrainingState>::nowhere();
        let output = directory.path().join("unused");
        let session = Session { base: Some(&base), ..Session::new(&resolved, &files, &output, &reporter, &|| false) };
        let (trained, tokenizer) = session.model().unwrap();
        let dataset = session.read_data(&Places::default(), session.encoder(&trained, &tokenizer)).unwrap();
        let settings = engine_settings(&resolved.spec().settings.training);
        let mut state = trained.state(Some(&base), 1, settings, |_| Ok(None)).unwrap();
        let rollouts = session.rollouts(&trained, &tokenizer, None).unwrap().unwrap();
        let addresses = session.data_of(&state, &dataset).unwrap().addresses;
        let rolled = session.roll_out(&rollouts, state.engine.as_ref(), &dataset, (0, &addresses)).unwrap().unwrap();
        let mut compared = 0;
        for group in rolled.groups.iter().flatten() {
            for answer in &group.answers {
                // One target at a time, so that no sum of rows hides a difference.
                let ids = [group.prompt.as_slice(), &answer.tokens].concat();
                let mut sum = 0.0;
                for at in group.prompt.len()..ids.len() {
                    let mask: Vec<bool> = (0..ids.len()).map(|token| token == at).collect();
                    sum +=
                        state.engine.loss(&codex_engine::Packed::masked([(ids.as_slice(), mask.as_slice())])).unwrap();
                    compared += 1;
                }
                assert_eq!(answer.surprise.to_bits(), sum.to_bits(), "{dtype} {} {sum}", answer.surprise);
            }
        }
        assert!(compared > 100, "{compared}");
        // The step itself computes all answers together, and a prompt that they share once.
        let answers =
            rolled.groups.iter().flatten().flat_map(|group| group.answers.iter().map(move |answer| (group, answer)));
        let whole: Vec<(Vec<u32>, Vec<bool>)> = answers
            .clone()
            .map(|(group, answer)| {
                let (prompt, tokens) = (group.prompt.len(), answer.tokens.len());
                let mask = [vec![false; prompt], vec![true; tokens]].concat();
                ([group.prompt.as_slice(), &answer.tokens].concat(), mask)
            })
            .collect();
        let packed = codex_engine::Packed::masked(whole.iter().map(|(ids, mask)| (ids.as_slice(), mask.as_slice())));
        let losses = state.engine.accumulate_weighted(&packed, &mut |losses| vec![1.0; losses.len()]).unwrap();
        for ((_, answer), loss) in answers.zip(losses) {
            assert_eq!(answer.surprise.to_bits(), loss.to_bits(), "{dtype} {} {loss}", answer.surprise);
        }
        // The same answers from fewer records at once: other slots, other company.
        let alone: Vec<_> = addresses.iter().map(|batch| vec![batch[0]]).collect();
        let again = session.roll_out(&rollouts, state.engine.as_ref(), &dataset, (0, &alone[..1])).unwrap().unwrap();
        assert_eq!(again.groups[0][0], rolled.groups[0][0]);
    }
}

#[test]
fn what_cannot_be_rewarded_is_refused() {
    let Place { directory, base, mut files } = place(characters);
    let output = directory.path().join("run");
    let said = |files: &[(String, PathBuf)], overrides: &[&str]| {
        let (ended, state) = train(&with(files, overrides), &base, files, &output);
        let error: TrainError = ended.unwrap_err();
        assert_eq!(error.exit(), exit::BAD_INPUT, "{error}");
        drop(state);
        chain(&error)
    };
    let place = files[0].1.clone();
    fs::write(&place, "{\"prompt\": \"Say one.\", \"response\": \"one\"}\n".repeat(16)).unwrap();
    files[0].1 = place;
    let told = said(&files, &["training.grpo.reward.answer=last_number"]);
    assert!(told.contains("data letters[1]: the response has no answer: it needs a number"), "{told}");
    assert!(told.contains("training.grpo.reward.answer is last_number"), "{told}");
}

/// Answers without a k, whose number of bytes the plugin rewards if it is even.
#[test]
fn a_plugin_rewards_answers_and_another_selects_records() {
    let Place { directory, base, mut files } = place(characters);
    for (name, longest) in [("plugin-reward", 0), ("plugin-filter", 17)] {
        let path = directory.path().join(format!("{name}.wasm"));
        fs::write(&path, even(longest)).unwrap();
        files.push((name.to_owned(), path));
    }
    // Prompts of two digits are dropped: "Spell 10 with a k." has 18 bytes.
    let filter = even(17);
    let set =
        ["training.grpo.reward.correct=0", "training.stop_after=4", "training.batch_size=4", "training.max_steps=40"];
    let output = directory.path().join("run");
    let resolved = with(&files, &set);
    model(train(&resolved, &base, &files, &output));
    let past = RecordedRun::open(&output).unwrap();
    let rerun = past.rerun(&files).unwrap();
    let replayed = replay(&rerun, 2).unwrap();
    assert_eq!(replayed.reproduced, Some(true));
    let answers: Vec<_> = replayed.rollouts.iter().flat_map(|group| &group.answers).collect();
    for answer in &answers {
        let expected = f64::from(u8::from(answer.text.len().is_multiple_of(2)));
        assert!((answer.reward - expected).abs() < 1e-12, "{answer:?}");
    }
    assert!(answers.iter().any(|answer| answer.reward > 0.5) && answers.iter().any(|answer| answer.reward < 0.5));
    let report = fs::read_to_string(output.join("artifacts/data_report.json")).unwrap();
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!((&report["sources"][0]["filtered"], &report["sources"][0]["trained"]), (&6.into(), &10.into()));
    let checksums = fs::read_to_string(output.join("artifacts/dataset_checksums.json")).unwrap();
    assert!(checksums.contains(&Sha256::of(&filter).to_string()) && checksums.contains("plugin-reward"), "{checksums}");

    // A run is continued with its plugins alone.
    fs::write(&files[2].1, even(18)).unwrap();
    let other = with(&files, &[&set[..], &["training.stop_after=5"]].concat());
    let (outcome, _) = train(&other, &base, &files, &output);
    let told = chain(&outcome.unwrap_err());
    assert!(told.contains("data plugin-filter"), "{told}");
    fs::write(&files[2].1, even(0)).unwrap();
    let (outcome, _) = train(&with(&files, &set), &base, &files, &directory.path().join("none"));
    let told = chain(&outcome.unwrap_err());
    assert!(told.contains("16 are dropped by the plugin (plugin-filter)"), "{told}");
}
