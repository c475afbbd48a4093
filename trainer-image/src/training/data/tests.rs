//! Token caches, selections and what is in memory.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use codex_configs::{Data, HeldOutShare, Resolved, Training};
use codex_provenance::{DataDigest, Sha256};
use proptest::prelude::*;

use super::{
    Caches, DataError, Dataset, Encoder, Input, Places,
    encoder::{Encoded, pack},
    records::{Counts, Limits, Treatment},
    selection::{Selection, Wanted, select},
    token_store::{StoreWriter, TokenStore},
};
use crate::{
    tasks::{Split, Task, materialise},
    text::Tokenizer,
    training::test_support::{
        attempt, dataset, encoder, finished, metered_with, resolved, scratch, synthetic, with_files,
    },
};

/// Returns a store whose records are these token ids.
fn store(records: &[Vec<u32>], vocabulary: usize) -> TokenStore {
    let mut writer = StoreWriter::create(None, vocabulary).unwrap();
    for (ids, number) in records.iter().zip(0..) {
        let mask = ids.iter().map(|id| id % 2 == 0).collect();
        writer.push(number, &Encoded::one(ids.clone(), mask)).unwrap();
    }
    writer.finish(Sha256::of(""), Counts::default()).unwrap()
}

fn records(store: &TokenStore) -> Vec<Encoded> {
    store.entries().map(|entry| store.record(entry.unwrap()).unwrap()).collect()
}

#[test]
fn tokens_of_every_vocabulary_are_read_as_written() {
    for vocabulary in [128_u32, 129, 32_768, 32_769, 1 << 31] {
        let written = [vec![0, vocabulary - 1, 1], vec![], vec![vocabulary - 2]];
        let store = store(&written, vocabulary as usize);
        for (read, ids) in records(&store).into_iter().zip(&written) {
            assert_eq!(read.ids, *ids);
            assert_eq!(read.mask, ids.iter().map(|id| id % 2 == 0).collect::<Vec<_>>());
        }
    }
}

#[test]
fn records_of_two_sequences_are_told_apart_by_where_the_second_begins() {
    let ids = [5, 4, 3, 2, 1];
    let mask = ids.map(|id| id % 2 == 0);
    let record = |first| Encoded { ids: ids.to_vec(), mask: mask.to_vec(), first };
    let written = [2, 3, 5, 2].map(record);
    let mut writer = StoreWriter::create(None, 98).unwrap();
    for (record, number) in written.iter().zip(0..) {
        writer.push(number, record).unwrap();
    }
    let store = writer.finish(Sha256::of(""), Counts::default()).unwrap();
    assert_eq!(records(&store), written);
    let rows: Vec<u64> = store.entries().map(|entry| entry.unwrap().rows()).collect();
    assert_eq!(rows, [3, 3, 4, 3]);
    assert_eq!(rows, written.each_ref().map(|record| record.rows() as u64));
    let (sums, packed) = (store.sums, pack(&written));
    assert_eq!((sums.records, sums.tokens, sums.most_tokens, sums.rows, sums.longest), (4, 20, 5, 13, 4));
    assert_eq!(packed.cu_seqlens.to_vec(), [0, 1, 3, 5, 6, 10, 11, 13]);
    let validation = HeldOutShare { share: 0.0, seed: 0 };
    let wanted = Wanted { deduplicate: true, validation: &validation, listed: 0 };
    let selection = select(&[&store], wanted, &scratch(), &|| false).unwrap().remove(0);
    assert_eq!((chosen(&selection), selection.duplicates), (vec![0, 1, 2], 1));
    // Caches of log-probabilities that runs have written are found by these digests.
    let keys = written.map(|record| record.key().to_string());
    assert!(keys[0] == keys[3] && keys[0] != keys[1], "{keys:?}");
    assert!(keys[0].ends_with("f3076b2b915fbb1560b4d633e1c45dcff9b8b2274de36e1c24783906655b2505"), "{keys:?}");
    assert!(keys[2].ends_with("591f015da38f96569363f1ce0f6e5af0f2e00d9797ad458db0a0ac61f985a002"), "{keys:?}");
}

/// Damages a file.
type Damage = fn(&Path);

/// Reads an input through caches. Returns its records, and whether they were tokenized.
fn read(input: &Input, run: &Resolved<Training>, caches: &Caches, encoder: Encoder) -> (Vec<Encoded>, bool) {
    let looks = AtomicU64::new(0);
    let stop = || looks.fetch_add(1, Ordering::Relaxed) == u64::MAX;
    assert!(run.spec().settings.data.languages.is_empty());
    let store = TokenStore::of(input, encoder, Treatment::default(), caches, Limits::default(), &stop).unwrap();
    // Every tokenized record is a check of the stop flag.
    (records(&store), looks.into_inner() > 0)
}

#[test]
fn a_cache_is_used_only_if_it_is_whole_and_of_the_same_input() {
    let (directory, run) = (tempfile::tempdir().unwrap(), resolved(&[], vec![synthetic("arithmetic", 100)]));
    let tokenizer = Tokenizer::characters().unwrap();
    let encoder = encoder(&run, &tokenizer);
    let caches = Caches { directory: Some(directory.path().join("cache")), keep: true };
    let file = |name: &str| directory.path().join("cache").join(name);
    let bytes = materialise(Task::Arithmetic, Split::Train, 1, 50).unwrap();
    let input = Input::of_bytes("mine", "mine.jsonl", bytes.clone());
    let (expected, tokenized) = read(&input, &run, &caches, encoder);
    assert!(tokenized && expected.len() == 50);
    assert_eq!(read(&input, &run, &caches, encoder), (expected.clone(), false));
    let damages: [(&str, Damage); 6] = [
        ("mine.tokens", |path| {
            let mut bytes = fs::read(path).unwrap();
            bytes[7] ^= 1;
            fs::write(path, bytes).unwrap();
        }),
        ("mine.entries", |path| fs::write(path, &fs::read(path).unwrap()[..64]).unwrap()),
        ("mine.entries", |path| fs::remove_file(path).unwrap()),
        ("mine.json", |path| fs::write(path, "{}").unwrap()),
        ("mine.json", |path| fs::write(path, [0xff, 0, 1]).unwrap()),
        ("mine.json", |path| fs::remove_file(path).unwrap()),
    ];
    for (name, damage) in damages {
        damage(&file(name));
        assert_eq!(read(&input, &run, &caches, encoder), (expected.clone(), true), "{name}");
        assert_eq!(read(&input, &run, &caches, encoder), (expected.clone(), false), "{name}");
    }
    // A killed attempt leaves a part.
    fs::write(file("mine.tokens.partial"), "half").unwrap();
    // Others only read.
    let reader = Caches { keep: false, ..caches.clone() };
    assert_eq!(read(&input, &run, &reader, encoder), (expected.clone(), false));
    let longer = Input::of_bytes("mine", "mine.jsonl", [bytes.as_slice(), b"\n"].concat());
    assert_eq!(read(&longer, &run, &reader, encoder), (expected.clone(), true));
    assert_eq!(read(&input, &run, &caches, encoder), (expected.clone(), false));
    // What changes tokens makes another cache.
    let all = resolved(&["data.loss=all"], vec![synthetic("arithmetic", 100)]);
    let other = Encoder { data: &all.spec().settings.data, ..encoder };
    assert!(read(&input, &run, &caches, other).1);
    assert!(read(&input, &run, &caches, Encoder { context: 200, ..encoder }).1);
    let mut fields = run.spec().settings.data.clone();
    fields.fields.chosen = "better".to_owned();
    assert!(read(&input, &run, &caches, Encoder { data: &fields, ..encoder }).1);
    let preference = br#"{"prompt": "1+1:", "chosen": "2", "rejected": "3", "response": "2$"}"#;
    let both = Input::of_bytes("mine", "mine.jsonl", *preference);
    assert!(read(&both, &run, &caches, encoder).1);
    let (pairs, tokenized) = read(&both, &run, &caches, Encoder { preferences: true, ..encoder });
    assert!(tokenized && pairs.iter().all(|pair| pair.sequences().count() == 2), "{pairs:?}");
    let given = Encoder { given: true, ..encoder };
    assert!(read(&Input::of_bytes("mine", "mine.txt", bytes), &run, &Caches::default(), given).1);
    assert_eq!(read(&input, &run, &caches, encoder), (expected, true));
    let mut left: Vec<_> =
        fs::read_dir(directory.path().join("cache")).unwrap().map(|it| it.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["mine.entries", "mine.json", "mine.tokens"]);
}

#[test]
fn invalid_data_leaves_no_cache() {
    let (directory, run) = (tempfile::tempdir().unwrap(), resolved(&[], vec![synthetic("arithmetic", 100)]));
    let tokenizer = Tokenizer::characters().unwrap();
    let caches = Caches { directory: Some(directory.path().to_owned()), keep: true };
    let good = materialise(Task::Arithmetic, Split::Train, 1, 5).unwrap();
    let input = Input::of_bytes("mine", "mine.jsonl", [good.as_slice(), b"{}\n"].concat());
    let limits = Limits { records: 2, bytes: usize::MAX };
    let refused = TokenStore::of(&input, encoder(&run, &tokenizer), Treatment::default(), &caches, limits, &|| false)
        .unwrap_err();
    assert!(refused.to_string().starts_with("mine.jsonl:6: invalid record: "), "{refused}");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

/// The text in memory is bounded whatever the size of the file, and a source has nothing that grows with its records.
#[test]
fn a_file_larger_than_its_bound_is_read_in_parts() {
    let (directory, run) = (tempfile::tempdir().unwrap(), resolved(&[], vec![synthetic("arithmetic", 100)]));
    let tokenizer = Tokenizer::characters().unwrap();
    let path = directory.path().join("mine.jsonl");
    let held = |count: usize, limits: Limits| {
        let bytes = materialise(Task::WordProblems, Split::Train, 1, count).unwrap();
        fs::write(&path, &bytes).unwrap();
        let input = Input::of_file("mine", &path, &|| false).unwrap();
        let caches = Caches { directory: Some(directory.path().to_owned()), keep: true };
        let store = TokenStore::of(&input, encoder(&run, &tokenizer), Treatment::default(), &caches, limits, &|| false)
            .unwrap();
        assert_eq!(store.len(), count as u64);
        let on_disk: u64 =
            ["tokens", "entries"].map(|ending| fs::metadata(path.with_extension(ending)).unwrap().len()).iter().sum();
        assert!(on_disk > 32 * count as u64);
        (store.counts.held, bytes.len(), store.sums.longest as usize + 1)
    };
    let limits = Limits { records: usize::MAX, bytes: 2000 };
    let (small, _, longest) = held(200, limits);
    let (large, size, longest_of_large) = held(4000, limits);
    assert!(size > 100 * limits.bytes, "{size}");
    assert!(small < limits.bytes + longest && large < limits.bytes + longest_of_large, "{small} {large}");
    assert!(held(4000, Limits { records: 8, bytes: usize::MAX }).0 <= 8 * longest_of_large);
}

fn chosen(selection: &Selection) -> Vec<u64> {
    (0..selection.sums.records).map(|record| selection.index(record).unwrap()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn records_are_left_out_once(
        sources in prop::collection::vec(prop::collection::vec(prop::collection::vec(0_u32..2, 1..5), 1..60), 1..4),
        deduplicate: bool,
        share in prop_oneof![Just(0.0), 0.01_f64..0.9],
        seed in 0_u64..5,
        listed in 0_usize..20,
    ) {
        let stores: Vec<TokenStore> = sources.iter().map(|records| store(records, 98)).collect();
        let validation = HeldOutShare { share, seed };
        let wanted = Wanted { deduplicate, validation: &validation, listed };
        let place = scratch();
        let select = || select(&stores.iter().collect::<Vec<_>>(), wanted, &place, &|| false).unwrap();
        let (selections, again) = (select(), select());
        let mut seen = BTreeSet::new();
        for (((records, selection), again), store) in sources.iter().zip(&selections).zip(&again).zip(&stores) {
            let kept: Vec<u64> = (0..).zip(records).filter(|(_, ids)| seen.insert(*ids) || !deduplicate).map(|(at, _)| at).collect();
            prop_assert_eq!(selection.duplicates as usize, records.len() - kept.len());
            let held = if share > 0.0 { ((share * kept.len() as f64).round() as usize).max(1).min(kept.len().saturating_sub(1)) } else { 0 };
            prop_assert_eq!(selection.held as usize, held);
            prop_assert_eq!(selection.held_out.len(), held.min(listed));
            let trained = chosen(selection);
            prop_assert_eq!(trained.len(), kept.len() - held);
            prop_assert!(trained.is_sorted() && trained.iter().all(|at| kept.contains(at)));
            let held_out = &selection.held_out;
            prop_assert!(held_out.iter().all(|at| kept.contains(&u64::from(*at)) && !trained.contains(&u64::from(*at))));
            prop_assert_eq!((chosen(again), &again.held_out), (trained.clone(), held_out));
            let rows: Vec<u64> = selection.entries(store).map(|entry| entry.unwrap().rows()).collect();
            let expected: Vec<u64> = trained.iter().map(|at| records[*at as usize].len() as u64 - 1).collect();
            prop_assert_eq!(selection.sums.rows, expected.iter().sum::<u64>());
            prop_assert_eq!(rows, expected);
        }
    }
}

#[test]
fn seeds_hold_other_records_out() {
    let store = store(&vec![vec![1, 2]; 100], 98);
    let held_out = |seed| {
        let validation = HeldOutShare { share: 0.1, seed };
        let wanted = Wanted { deduplicate: false, validation: &validation, listed: 10 };
        select(&[&store], wanted, &scratch(), &|| false).unwrap().remove(0).held_out
    };
    assert_eq!(held_out(1), held_out(1));
    assert_ne!(held_out(1), held_out(2));
}

/// Weights, duplicates and held-out records in a run that is resumed.
#[test]
fn a_run_draws_what_is_selected() {
    let overrides = [
        "data.weights.word-problems=3",
        "data.deduplicate=true",
        "data.validation.share=0.1",
        "training.eval_every=2",
        "training.eval_records=30",
        "training.stop_after=4",
        "training.batch_size=8",
    ];
    let run = resolved(&overrides, vec![synthetic("arithmetic", 2000), synthetic("word-problems", 400)]);
    let output = tempfile::tempdir().unwrap();
    let ended = attempt(&run, output.path(), false);
    finished(&ended);
    let report: serde_json::Value =
        serde_json::from_slice(&fs::read(output.path().join("artifacts/data_report.json")).unwrap()).unwrap();
    let [sums, words] = [0, 1].map(|source| &report["sources"][source]);
    let number = |source: &serde_json::Value, key: &str| source[key].as_u64().unwrap();
    for source in [sums, words] {
        let left = number(source, "records") - number(source, "duplicates");
        assert_eq!(number(source, "trained") + number(source, "held_out"), left);
        assert_eq!(number(source, "held_out"), (left as f64 / 10.0).round() as u64);
    }
    assert!(number(sums, "duplicates") > 0, "{report}");
    assert_eq!((sums["share"].as_f64(), words["share"].as_f64()), (Some(0.25), Some(0.75)));
    assert!(ended.state.progress.unwrap().total_steps > 0);

    let tokenizer = Tokenizer::characters().unwrap();
    let dataset = dataset(&run, &tokenizer);
    let told = dataset.describe(&dataset.examples(0, 8)).unwrap();
    let names: Vec<&str> = told.split(' ').map(|at| at.split('[').next().unwrap()).collect();
    let cycle = ["arithmetic", "word-problems", "word-problems", "word-problems"];
    assert_eq!(names, [cycle, cycle].concat());
    // No record that is held out has the tokens of one that is trained on.
    for source in &dataset.sources {
        let trained: BTreeSet<_> = (0..source.len()).map(|record| source.record(record).unwrap().ids).collect();
        for index in &source.selection.held_out {
            let entry = source.store.entry(u64::from(*index)).unwrap();
            assert!(!trained.contains(&source.store.record(entry).unwrap().ids));
        }
    }
}

#[test]
fn nothing_left_to_train_on_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let line = r##"{"prompt": "1+1:", "response": "#2$"}"##;
    let bytes = [line, line].join("\n");
    let files = ["one", "two"].map(|name| (name.to_owned(), directory.path().join("same.jsonl")));
    fs::write(&files[0].1, &bytes).unwrap();
    let sha256 = Some(DataDigest(Sha256::of(&bytes)));
    let data = ["one", "two"].map(|name| Data { name: name.to_owned(), sha256, synthetic: None });
    let run = resolved(&["data.deduplicate=true", "training.batch_size=1"], data.to_vec());
    let refused = with_files(&run, &files, &directory.path().join("run"), &|| false).outcome.unwrap_err();
    assert_eq!(
        refused.to_string(),
        "data two has no record left to train on: of 2 records, 0 are in other languages than data.languages, 0 are blocked by safety \
         rules (data.safety, safety-rules), 0 are dropped by the plugin (plugin-filter), 2 repeat others (data.deduplicate), and 0 are held out (data.validation)"
    );
    assert_eq!(refused.exit(), codex_reports::exit::BAD_INPUT);
}

/// A file of sums and of three records that the rules hit, and the rules.
fn screened(directory: &Path) -> [(String, PathBuf); 2] {
    let line = |prompt: &str, response: &str| serde_json::json!({ "prompt": prompt, "response": response }).to_string();
    let hit = [("to jane.doe@example.com:", "sent #1$"), ("drop table users:", "done #1$"), ("codeword:", "xyzzy #1$")];
    let sums = (10..30).map(|number| line(&format!("{number}+1:"), &format!("#{}$", number + 1)));
    let lines: Vec<String> = sums.chain(hit.map(|(prompt, response)| line(prompt, response))).collect();
    let rules = "rules: [{ id: word, action: block, literal: xyzzy }]".to_owned();
    [("mine", lines.join("\n")), ("safety-rules", rules)].map(|(name, text)| {
        let path = directory.join(name);
        fs::write(&path, text).unwrap();
        (name.to_owned(), path)
    })
}

fn screening(files: &[(String, PathBuf)], overrides: &[&str]) -> Resolved<Training> {
    let data = files.iter().map(|(name, path)| {
        let sha256 = Some(DataDigest(Sha256::of(fs::read(path).unwrap())));
        Data { name: name.clone(), sha256, synthetic: None }
    });
    let set = ["data.safety.block=[sql]", "data.safety.redact=[pii]", "training.batch_size=4"];
    resolved(&[&set[..], overrides].concat(), data.collect())
}

/// A run learns nothing that a rule blocks or redacts, and says what the rules did, also if the tokens are from the cache.
#[test]
fn safety_rules_decide_what_is_learned() {
    let directory = tempfile::tempdir().unwrap();
    let files = screened(directory.path());
    let output = directory.path().join("run");
    for stop in ["training.stop_after=1", "training.stop_after=2"] {
        let (ended, metrics) = metered_with(&screening(&files, &[stop]), &files, &output);
        finished(&ended);
        for line in ["codex_ml_training_blocked_records 2", "codex_ml_training_redacted_records 1"] {
            assert!(metrics.lines().any(|found| found == line), "{line}: {metrics}");
        }
        let read = |name: &str| -> serde_json::Value {
            serde_json::from_slice(&fs::read(output.join("artifacts").join(name)).unwrap()).unwrap()
        };
        let report = read("data_report.json");
        let counts = ["records", "blocked", "redacted", "trained"].map(|name| report["sources"][0][name].as_u64());
        assert_eq!(counts, [23, 2, 1, 21].map(Some));
        let safety = &read("run_metadata.json")["safety"];
        assert_eq!(safety["rules"], serde_json::json!({ "pii.email": 1, "sql.drop": 1, "word": 1 }));
        assert_eq!(safety["file"], Sha256::of(fs::read(&files[1].1).unwrap()).to_string());
        assert_eq!((&safety["blocked"], &safety["redacted"]), (&2.into(), &1.into()));
    }
    let (run, tokenizer) = (screening(&files, &[]), Tokenizer::characters().unwrap());
    let encoder = encoder(&run, &tokenizer);
    let dataset = Dataset::read(run.spec(), &files, &Places::default(), encoder, &|| false, |_| ()).unwrap();
    let texts: Vec<String> = dataset.all().map(|address| dataset.text(address, &tokenizer).unwrap()).collect();
    assert_eq!(texts.len(), 21);
    assert!(texts.iter().any(|text| text.starts_with("to {REDACTED}:")), "{texts:?}");
    let left = texts.concat();
    assert!(!["jane", "table", "xyzzy"].iter().any(|word| left.contains(word)), "{left}");
    assert!(dataset.files().any(|file| file.name == "safety-rules"), "the rules are part of the run's identity");
}

/// Other rules are another configuration and other tokens; what rules cannot be read or leave nothing is trained without.
#[test]
fn a_run_without_valid_safety_rules_trains_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let files = screened(directory.path());
    let output = directory.path().join("run");
    let said = |run: &Resolved<Training>| {
        let error = with_files(run, &files, &output, &|| false).outcome.unwrap_err();
        assert_eq!(error.exit(), codex_reports::exit::BAD_INPUT, "{error}");
        assert!(!output.join("model").exists());
        error.failure().message
    };
    let good = screening(&files, &[]);
    for (rules, told) in [
        ("rules: 5", "data safety-rules: the safety rules are invalid: "),
        (
            "known: { sql: redact }",
            "data safety-rules: the safety rules are invalid: known.sql: data.safety.block has it",
        ),
        ("rules: [{ id: all, action: block, regex: '.' }]", "23 are blocked by safety rules"),
        ("rules: [{ id: end, action: redact, regex: '#.*' }]", "data mine, record 1: a safety rule redacts the $"),
    ] {
        fs::write(&files[1].1, rules).unwrap();
        let run = screening(&files, &[]);
        assert_ne!(run.digest(), good.digest());
        let found = said(&run);
        assert!(found.contains(told), "{rules}: {found}");
    }
    assert!(said(&good).contains("data safety-rules has digest"), "other rules than the configuration names");
    fs::remove_file(&files[1].1).unwrap();
    assert!(said(&good).contains("does not exist"));
    fs::create_dir(&files[1].1).unwrap();
    assert!(said(&good).contains("is a directory"));
}

#[test]
fn a_cache_that_breaks_during_a_run_is_an_error() {
    let run = resolved(&[], vec![synthetic("arithmetic", 100)]);
    let tokenizer = Tokenizer::characters().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let caches = Caches { directory: Some(directory.path().to_owned()), keep: true };
    let places = Places { synthetic: None, caches };
    let dataset = Dataset::read(run.spec(), &[], &places, encoder(&run, &tokenizer), &|| false, |_| ()).unwrap();
    let examples = dataset.examples(0, 100);
    dataset.pack(&examples).unwrap();
    fs::OpenOptions::new().write(true).open(directory.path().join("arithmetic.tokens")).unwrap().set_len(10).unwrap();
    assert!(matches!(dataset.pack(&examples), Err(DataError::File(_))));
}

/// Examples draw one of the versions of their record, and nothing else about a run changes.
#[test]
fn prompts_are_changed_and_runs_resume_exactly() {
    let words = |more: &[&str]| {
        let set =
            ["model.num_hidden_layers=1", "training.batch_size=8", "training.max_steps=12", "training.warmup_steps=2"];
        resolved(&[&set[..], more].concat(), vec![synthetic("word-problems", 60)])
    };
    let changed = ["data.augmentation.probability=0.5", "data.augmentation.rate=0.3", "data.augmentation.variants=2"];
    let (plain, run) = (words(&[]), words(&changed));
    let tokenizer = Tokenizer::characters().unwrap();
    let (original, augmented) = (dataset(&plain, &tokenizer), dataset(&run, &tokenizer));
    let (mut differing, mut versions) = (0, BTreeSet::new());
    for example in 0..600 {
        let [before, after] = [&original, &augmented].map(|dataset| {
            let address = dataset.examples(example, 1)[0];
            (dataset.describe(&[address]).unwrap(), dataset.text(address, &tokenizer).unwrap())
        });
        assert_eq!(before.0, after.0, "the same record");
        let digits = |text: &str| text.chars().filter(char::is_ascii_digit).collect::<String>();
        assert_eq!(digits(&before.1), digits(&after.1));
        let answer = |text: &str| text[text.rfind('#').unwrap()..].to_owned();
        assert_eq!(answer(&before.1), answer(&after.1));
        differing += usize::from(before.1 != after.1);
        versions.insert((before.0, after.1));
    }
    assert!((220..380).contains(&differing), "{differing}");
    assert!((100..=180).contains(&versions.len()), "{}", versions.len());
    // What bounds a batch holds for every version.
    let rows = augmented.examples(0, 600).into_iter().map(|address| augmented.pack(&[address]).unwrap().tokens.len());
    let longest = rows.max().unwrap();
    assert!(augmented.lengths().longest() >= longest && augmented.lengths().rows(8) >= original.lengths().rows(8));
    assert_eq!(augmented.report().augmentation.unwrap().variants, 2);

    let (whole, resumed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let expected = finished(&attempt(&run, whole.path(), false));
    finished(&attempt(&words(&[&changed[..], &["training.stop_after=5"]].concat()), resumed.path(), false));
    assert_eq!(finished(&attempt(&run, resumed.path(), false)), expected);
    assert_ne!(finished(&attempt(&plain, tempfile::tempdir().unwrap().path(), false)), expected);
}
