//! Invalid configurations and data, and how they are refused.

use std::{fs, path::Path};

use codex_configs::{Data, Format};
use codex_provenance::{DataDigest, Sha256};
use codex_reports::{DataFile, exit};

use crate::{
    tasks::{Split, Task, materialise},
    text::Tokenizer,
    training::{
        Train,
        test_support::{both, dataset, resolved, with_files},
    },
};

/// The configuration crate does not depend on the engine, but lists the same head widths.
#[test]
fn configurations_allow_the_head_widths_of_the_engine() {
    assert_eq!(codex_configs::HEAD_WIDTHS, codex_engine::HEAD_WIDTHS);
}

#[test]
fn bad_data_is_refused_with_a_message() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("mine.jsonl");
    let good = materialise(Task::Arithmetic, Split::Train, 1, 40).unwrap();
    let refused = |bytes: &[u8], expected: Option<DataDigest>, overrides: &[&str]| {
        fs::write(&path, bytes).unwrap();
        let sha256 = expected.unwrap_or(DataDigest(Sha256::of(bytes)));
        let data = vec![Data { name: "mine".to_owned(), sha256: Some(sha256), synthetic: None }];
        let output = tempfile::tempdir().unwrap();
        let files = [("mine".to_owned(), path.clone())];
        let attempt = with_files(&resolved(overrides, data), &files, output.path(), &|| false);
        let error = attempt.outcome.unwrap_err();
        assert_eq!(error.exit(), exit::BAD_INPUT, "{error}");
        (error.failure(), attempt.state)
    };
    let said = |bytes: &[u8], overrides: &[&str]| refused(bytes, None, overrides).0.message;

    let wrong = DataDigest(Sha256::of(b"other"));
    let (failure, state) = refused(&good, Some(wrong), &[]);
    assert_eq!(failure.reason, "DataMismatch");
    let found = DataDigest(Sha256::of(&good));
    assert!(failure.message.contains(&wrong.to_string()) && failure.message.contains(&found.to_string()));
    let size = good.len() as u64;
    assert_eq!(state.data, [DataFile { name: "mine".to_owned(), sha256: found, size, records: None }]);

    let malformed = [good.as_slice(), b"{\"prompt\":\n"].concat();
    assert!(said(&malformed, &[]).contains("mine.jsonl:41: invalid record"));
    assert!(said(b"\n", &[]).contains("mine.jsonl: no records"));
    assert!(
        said(&good, &["training.batch_size=41"]).contains("training.batch_size is 41, but the data has 40 records")
    );
    assert!(said(&good, &["model.max_position_embeddings=16"]).contains("model.max_position_embeddings is 16"));
    let foreign = String::from_utf8(good.clone()).unwrap().replacen(':', ":\u{e9}", 0).replacen(
        "prompt\":\"",
        "prompt\":\"\u{e9}",
        1,
    );
    assert!(said(foreign.as_bytes(), &[]).contains("data mine, record 1: character "));
}

#[test]
fn a_missing_file_is_final() {
    let directory = tempfile::tempdir().unwrap();
    let nowhere = directory.path().join("nowhere.jsonl");
    let train = |config: Option<&Path>, data: &Path, output: &Path| {
        let command = Train {
            config: config.map(Path::to_owned),
            template: Some("cot-starter".to_owned()),
            set: Vec::new(),
            changes: Vec::new(),
            seed: None,
            base: None,
            base_from_hub: None,
            hub_endpoint: None,
            base_digest: None,
            base_signed_by: None,
            data: vec![("mine".to_owned(), data.to_owned())],
            output: output.to_owned(),
            check: false,
            plan: true,
            accept_other_bits: false,
            prove_resume: false,
            prove_steps: 40,
            required: crate::training::Required::default(),
            grace_seconds: None,
            ledger_size: crate::artifacts::segments::SIZE,
            metrics_address: None,
        };
        let error = command.run().unwrap_err();
        assert_eq!(error.exit, exit::BAD_INPUT, "{error}");
        error.to_string()
    };
    let output = directory.path().join("output");
    let said = |what: &str, path: &Path, wrong: &str| format!("{what}: {} {wrong}", path.display());
    assert_eq!(train(None, &nowhere, &output), said("data mine", &nowhere, "does not exist"));
    assert!(train(None, directory.path(), &output).ends_with(" is a directory: name a file"));
    assert_eq!(train(Some(&nowhere), &nowhere, &output), said("--config", &nowhere, "does not exist"));
    fs::write(&nowhere, b"").unwrap();
    assert_eq!(train(None, &nowhere, &nowhere), said("--output", &nowhere, "is a file: name a directory"));
    let error = with_files(
        &resolved(
            &[],
            vec![Data { name: "mine".to_owned(), sha256: Some(DataDigest(Sha256::of(b""))), synthetic: None }],
        ),
        &[("mine".to_owned(), nowhere.join("beneath"))],
        &output,
        &|| false,
    );
    assert_eq!(error.outcome.unwrap_err().exit(), exit::BAD_INPUT);
}

#[test]
fn answers_only_leaves_the_steps_out() {
    let run = resolved(&["response.format=answer"], both());
    assert_eq!(run.spec().settings.response.format, Format::Answer);
    let two = Tokenizer::characters().unwrap();
    let dataset = dataset(&run, &two);
    let packed = dataset.pack(&dataset.examples(0, 32)).unwrap();
    let longest = packed.cu_seqlens.windows(2).map(|bounds| bounds[1] - bounds[0]).max().unwrap();
    assert!(longest < 80 && packed.targets.len() < 32 * 8, "{longest}");
}
