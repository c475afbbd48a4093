//! Runs that train preferences, with all weights and with adapters.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use codex_configs::{Resolved, Training};
use codex_reports::{TrainingState, exit};

use super::base::{model, run, train, write_base};
use crate::{
    artifacts::{data_report::DataReport, ledger::Ledger},
    error::chain,
    training::{
        Base, Outcome, TrainError,
        data::{Dataset, Places},
        forensics::{RecordedRun, replay},
        test_support::with_files,
    },
};

struct Place {
    directory: tempfile::TempDir,
    base: Base,
    files: Vec<(String, PathBuf)>,
}

/// Writes the base, and preferences in both forms: right sums are preferred to wrong ones.
fn place() -> Place {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("base");
    write_base(&path);
    let texts = (0..12).map(|at| {
        let (right, wrong) = (format!("{}", at + 1), format!("It may be {}.", at + 2));
        serde_json::json!({"prompt": format!("What is {at} + 1?"), "chosen": right, "rejected": wrong})
    });
    let says = |text: String| serde_json::json!([{"role": "assistant", "content": text}]);
    let chat = (0..9).map(|at| {
        let prompt = serde_json::json!([
            {"role": "user", "content": "Hello."},
            {"role": "assistant", "content": "Good day."},
            {"role": "user", "content": format!("Count to {at}.")},
        ]);
        serde_json::json!({"prompt": prompt, "chosen": says(at.to_string()), "rejected": says(format!("No, not to {at}."))})
    });
    let write = |name: &str, lines: Vec<serde_json::Value>| {
        let path = directory.path().join(format!("{name}.jsonl"));
        fs::write(&path, lines.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")).unwrap();
        (name.to_owned(), path)
    };
    let files = vec![
        write("texts", texts.collect()),
        write("chat", chat.clone().collect()),
        write(
            "validation",
            chat.take(5)
                .map(|mut line| {
                    line["rejected"] = says("I will not.".to_owned());
                    line
                })
                .collect(),
        ),
    ];
    Place { base: Base::open(&path, None).unwrap(), directory, files }
}

const SETTINGS: [&str; 5] = [
    "training.method=dpo",
    "training.dpo.beta=0.5",
    "training.learning_rate=0.01",
    "training.warmup_steps=0",
    "training.eval_samples=1",
];
const ADAPTERS: [&str; 3] = ["training.dpo.lora=true", "training.lora.rank=4", "training.lora.dropout=0.2"];

fn with(files: &[(String, PathBuf)], overrides: &[&str]) -> Resolved<Training> {
    run(files, &[&SETTINGS, &["training.eval_every=3", "training.eval_max_new_tokens=3"][..], overrides].concat())
}

/// The rows of the metrics ledger, by step, split and name.
fn measured(output: &Path) -> BTreeMap<(u64, String, String), f64> {
    let ledger = Ledger::read(&output.join("artifacts/metrics.ndjson")).unwrap();
    ledger.rows.into_iter().map(|row| ((row.step, row.split, row.metric), row.value)).collect()
}

fn cache(output: &Path) -> PathBuf {
    let mut found = fs::read_dir(output.join("reference")).unwrap();
    found.next().unwrap().unwrap().path()
}

#[test]
fn preferences_are_learned_and_resume_exactly() {
    let Place { directory, base, files } = place();
    for (adapters, dtype) in [(&ADAPTERS[..], "training.dtype=fp32"), (&[][..], "training.dtype=bf16")] {
        let run = |stop| with(&files, &[adapters, &[dtype, stop]].concat());
        let (straight, resumed) = (directory.path().join("straight"), directory.path().join("resumed"));
        let whole = model(train(&run("training.stop_after=10"), &base, &files, &straight));
        assert_eq!(straight.join("artifacts/adapter").exists(), !adapters.is_empty());
        // At first the model is its own reference, and no response is preferred.
        let ledger = fs::read_to_string(straight.join("artifacts/ledger.ndjson")).unwrap();
        let losses: Vec<f64> = ledger
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["loss"].as_f64().unwrap())
            .collect();
        if adapters.is_empty() {
            assert!((losses[0] - std::f64::consts::LN_2).abs() < 1e-9, "{losses:?}");
        }
        let rows = measured(&straight);
        let of = |step, split: &str, name: &str| rows[&(step, split.to_owned(), name.to_owned())];
        assert!((of(10, "train", "loss") - losses[9]).abs() < 1e-12);
        assert!(losses[9] < 0.6 && of(10, "train", "reward_margin") > 0.2, "{losses:?}");
        assert!(of(10, "train", "preference_accuracy") > 0.7);
        assert!(of(9, "val", "reward_margin") > of(3, "val", "reward_margin"));
        assert!(rows.contains_key(&(9, "val".to_owned(), "preference_accuracy".to_owned())));

        // What was computed once is read again, and the same without it.
        model(train(&run("training.stop_after=3"), &base, &files, &resumed));
        let kept = fs::read(cache(&resumed)).unwrap();
        assert_eq!(train(&run("training.stop_after=7"), &base, &files, &resumed).1.resumed_from, Some(3));
        fs::remove_file(cache(&resumed)).unwrap();
        let again = train(&run("training.stop_after=10"), &base, &files, &resumed);
        assert_eq!((again.1.resumed_from, model(again).digest), (Some(7), whole.digest));
        assert!(fs::read(cache(&resumed)).unwrap() == fs::read(cache(&straight)).unwrap());
        assert!(kept.len() <= fs::read(cache(&resumed)).unwrap().len());
        assert!(fs::read(resumed.join("artifacts/ledger.ndjson")).unwrap() == ledger.into_bytes());

        // Forensics take the steps again without writing.
        fs::remove_file(cache(&straight)).unwrap();
        let past = RecordedRun::open(&straight).unwrap();
        let replayed = replay(&past.rerun(&files).unwrap(), 10).unwrap();
        assert_eq!((replayed.reproduced, replayed.records.len()), (Some(true), 8));
        assert!(replayed.records.iter().all(|it| it.text.contains("rejected: ") && it.loss.is_some()));
        assert!(fs::read_dir(straight.join("reference")).unwrap().next().is_none());
        for output in [straight, resumed] {
            fs::remove_dir_all(output).unwrap();
        }
    }
}

#[test]
fn only_the_responses_after_the_prompt_count() {
    let Place { directory: _directory, base, files } = place();
    let run = with(&files, &[]);
    let reporter = crate::reporting::Reporter::<TrainingState>::nowhere();
    let output = PathBuf::from("unused");
    let session = crate::training::Session {
        base: Some(&base),
        ..crate::training::Session::new(&run, &files, &output, &reporter, &|| false)
    };
    let (model, tokenizer) = session.model().unwrap();
    let dataset =
        Dataset::read(run.spec(), &files, &Places::default(), session.encoder(&model, &tokenizer), &|| false, |_| ())
            .unwrap();
    for (at, address) in dataset.all().enumerate() {
        let packed = dataset.pack(&[address]).unwrap();
        assert_eq!(packed.cu_seqlens.len(), 3);
        let middle = packed.cu_seqlens[1];
        let written = |rejected: bool| {
            let of = packed.targets.iter().filter(|target| (target.row >= middle) == rejected);
            tokenizer.decode(&of.map(|target| target.id).collect::<Vec<_>>()).unwrap()
        };
        let (chosen, rejected) = match at.checked_sub(12) {
            None => (format!("{}", at + 1), format!("It may be {}.", at + 2)),
            Some(at) => (at.to_string(), format!("No, not to {at}.")),
        };
        assert_eq!((written(false), written(true)), (chosen, rejected));
    }
}

#[test]
fn preferences_are_weighted_selected_and_held_out() {
    let Place { directory, base, files } = place();
    let files = &files[..2];
    // The second file repeats a record of the first one.
    let [texts, chat] = [0, 1].map(|file: usize| fs::read_to_string(&files[file].1).unwrap());
    fs::write(&files[1].1, [chat.as_str(), texts.lines().next().unwrap()].join("\n")).unwrap();
    let selected = ["data.deduplicate=true", "data.validation.share=0.25", "data.weights.texts=2"];
    let run = |stop| with(files, &[&selected[..], &[stop]].concat());
    let (straight, resumed) = (directory.path().join("straight"), directory.path().join("resumed"));
    let whole = model(train(&run("training.stop_after=6"), &base, files, &straight));
    let report: DataReport =
        serde_json::from_slice(&fs::read(straight.join("artifacts/data_report.json")).unwrap()).unwrap();
    let counts = report.sources.iter().map(|it| (it.records, it.duplicates, it.held_out, it.trained));
    assert_eq!(counts.collect::<Vec<_>>(), [(12, 0, 3, 9), (10, 1, 2, 7)]);
    let rows = measured(&straight);
    for step in [3, 6] {
        assert!(rows[&(step, "val".to_owned(), "reward_margin".to_owned())].is_finite(), "{rows:?}");
    }
    model(train(&run("training.stop_after=4"), &base, files, &resumed));
    // The next attempt reads the tokens that this one has written.
    assert!(resumed.join("cache/chat.tokens").exists());
    let again = train(&run("training.stop_after=6"), &base, files, &resumed);
    assert_eq!((again.1.resumed_from, model(again).digest), (Some(4), whole.digest));
}

#[test]
fn what_is_no_preference_is_final() {
    let Place { directory, base, files } = place();
    let output = directory.path().join("output");
    let error = with_files(&with(&files, &[]), &files, &output, &|| false).outcome.unwrap_err();
    assert!(error.to_string().contains("training.method=dpo needs a base: pass --base DIR"), "{error}");
    let other = directory.path().join("other.jsonl");
    fs::write(&other, "{\"prompt\": \"a\", \"response\": \"b\"}\n").unwrap();
    let files = vec![("other".to_owned(), other)];
    let run = run(&files, &[&SETTINGS[..], &["training.batch_size=1"]].concat());
    let error = train(&run, &base, &files, &output).0.unwrap_err();
    let said = chain(&error);
    assert!(said.contains("other.jsonl:1: invalid record: chosen is missing"), "{said}");
    assert_eq!(error.exit(), exit::BAD_INPUT);
}

#[test]
fn an_interrupted_computation_of_the_reference_goes_on() {
    let Place { directory, base, files } = place();
    let output = directory.path().join("output");
    let run = with(&files, &["training.stop_after=2"]);
    let reporter = crate::reporting::Reporter::<TrainingState>::nowhere();
    // Asked to end as soon as some of the reference is there.
    let looks = std::sync::atomic::AtomicU64::new(0);
    let begun = || {
        let log = output.join("artifacts/config.yaml").exists();
        log && looks.fetch_add(1, std::sync::atomic::Ordering::Relaxed) >= 1
    };
    let session = crate::training::Session {
        base: Some(&base),
        ..crate::training::Session::new(&run, &files, &output, &reporter, &begun)
    };
    assert!(matches!(session.run(), Ok(Outcome::Interrupted { step: 0 })));
    let part = fs::read(cache(&output)).unwrap().len();
    let ended: Result<Outcome, TrainError> = train(&run, &base, &files, &output).0;
    assert!(matches!(ended, Ok(Outcome::Finished(_))), "{ended:?}");
    assert!(fs::read(cache(&output)).unwrap().len() > part);
}
