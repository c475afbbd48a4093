//! The resolved configuration file: it reads back as the same, and a changed file is refused.

use proptest::prelude::*;

use super::{data, starter};
use crate::{ConfigError, Evaluation, Resolved, Training, compose_evaluation, compose_training, keys::TRAINING};

fn refused(yaml: &str) -> String {
    Resolved::<Training>::from_yaml(yaml.as_bytes()).expect_err("must be refused").to_string()
}

#[test]
fn a_written_file_reads_as_the_same() {
    let written = starter(&["training.learning_rate=0.1", "training.epsilon=1e-12"], None);
    let yaml = written.to_yaml().expect("YAML");
    assert_eq!(Resolved::from_yaml(yaml.as_bytes()).expect("its own file"), written);
    let marked = format!("\u{feff}{}", yaml.replace('\n', "\r\n"));
    assert_eq!(Resolved::from_yaml(marked.as_bytes()).expect("the same text"), written);
    let utf16: Vec<u8> = marked.encode_utf16().flat_map(u16::to_le_bytes).collect();
    assert_eq!(
        Resolved::<Training>::from_yaml(&utf16).expect_err("UTF-16").to_string(),
        "the configuration is UTF-16 text: save the file as UTF-8"
    );
    let evaluation = compose_evaluation("cot-lite", &["evaluation.limit=9".to_owned()], 1, vec![]).expect("good");
    let yaml = evaluation.to_yaml().expect("YAML");
    assert_eq!(Resolved::from_yaml(yaml.as_bytes()).expect("its own file"), evaluation);
}

#[test]
fn any_changed_value_is_refused() {
    let yaml = starter(&[], None).to_yaml().expect("YAML");
    for (from, to) in [
        ("batch_size: 64", "batch_size: 32"),
        ("seed: 42", "seed: 43"),
        ("count: 100000", "count: 100001"),
        ("learning_rate: 0.005", "learning_rate: 0.0050000000000000001"),
    ] {
        let changed = yaml.replacen(from, to, 1);
        assert_ne!(changed, yaml, "{from} is in the file");
        let outcome = Resolved::<Training>::from_yaml(changed.as_bytes());
        if to.ends_with("01") && from.starts_with("learning") {
            outcome.expect("the same number in other digits is the same configuration");
        } else {
            assert!(matches!(outcome, Err(ConfigError::Digest { .. })), "{to}: {outcome:?}");
        }
    }
    let other = starter(&["training.batch_size=8"], None);
    let forged = yaml.replace("batch_size: 64", "batch_size: 8");
    let sentence = refused(&forged);
    assert!(sentence.contains(&other.digest().to_string()) && sentence.contains("changed after it was composed"));
}

#[test]
fn other_versions_kinds_and_shapes_are_refused() {
    let yaml = starter(&[], None).to_yaml().expect("YAML");
    assert_eq!(
        refused(&yaml.replace("schemaVersion: 1", "schemaVersion: 2")),
        "the resolved configuration has schemaVersion 2: this program reads 1; use an image of the controller's own version"
    );
    for foreign in ["spec: {}", "apiVersion: v1\nkind: ConfigMap", "schemaVersion: one"] {
        assert!(
            refused(foreign).starts_with(
                "the file has no schemaVersion and kind, so it is not a resolved configuration of codex: "
            )
        );
    }
    assert!(
        refused(&yaml.replace("keep_last: 3", "keep_last: 3\n      surprise: 1")).contains("unknown field `surprise`")
    );
    assert!(refused(&yaml.replace("batch_size: 64", "batch_size: 0")).contains("write a whole number from 1 to 65536"));
    assert!(refused(&yaml.replace("learning_rate: 0.005", "learning_rate: .nan")).contains("write a number above 0"));
    assert!(refused("[").starts_with("the file is not YAML at line "), "{}", refused("["));
    let sentence = Resolved::<Evaluation>::from_yaml(yaml.as_bytes()).expect_err("another kind").to_string();
    assert_eq!(sentence, "the resolved configuration has kind TrainingRun: this command reads Evaluation");
}

#[test]
fn no_error_quotes_a_file_that_is_not_a_configuration() {
    const SECRET: &str = "eyJhbGciOiJSUzI1NiJ9.c2VjcmV0";
    for file in [
        SECRET.to_owned(),
        format!("{SECRET:?}"),
        format!("[{SECRET}]"),
        format!("- {SECRET}\n- :"),
        format!("{SECRET}: 1\n{SECRET}: 2"),
        format!("password: {SECRET}"),
        format!("schemaVersion: {SECRET}"),
        format!("schemaVersion: 1\nkind: {SECRET}"),
        format!("schemaVersion: 1\ntoken: {SECRET}"),
        format!("*{SECRET}"),
        format!("!{SECRET} x: ["),
        format!("%{SECRET}"),
        format!("-----BEGIN PRIVATE KEY-----\n{SECRET}\n-----END PRIVATE KEY-----\n"),
    ] {
        let told = refused(&file);
        assert!(!told.contains("eyJ") && told.contains("is not a resolved configuration of codex"), "{file}: {told}");
    }
}

#[test]
fn the_digest_is_that_of_the_canonical_json() {
    let resolved = starter(&[], None);
    let value = serde_json::json!({"spec": resolved.spec(), "kind": "TrainingRun", "schemaVersion": 1});
    let canonical = serde_json_canonicalizer::to_string(&value).expect("canonical");
    assert!(canonical.contains(r#""epsilon":1e-8,"#), "RFC 8785 writes numbers as ECMAScript does");
    assert_eq!(resolved.digest().0, codex_provenance::Sha256::of(canonical));
}

/// The digests are those that statuses, checkpoints and signatures of earlier versions hold. They never change: a new key is a
/// [`later`](crate::keys) one.
#[test]
fn configurations_keep_their_digests_when_keys_are_added() {
    for (template, digest) in [
        ("answers-only", "8da908f7359e4effe881d9c12265b3aad2113873f550f11449967a95704a348b"),
        ("cot-padded", "3c1f015fec02e1f5301331d2306b970bc5c0b10e62656043e6cd64f687fe4d1a"),
        ("cot-plus", "f09f370acdcc02f8a888c69ce9b284fd730d00ae410cb46357df11b164eaa8c2"),
        ("cot-starter", "545cd1bd9e3ea2c5db283fd86e2e17f127884e41e896e8b4fc5fc083cbd3f02d"),
        ("lora", "76b8d871f973c11ca86c63eba50a13f8db8422662fa0d3d2ee466f5f7cad3257"),
    ] {
        let resolved = compose_training(template, &[], None, 42, data()).expect("a template");
        assert_eq!(resolved.digest().to_string(), digest, "{template}");
    }
    for (option, digest) in [
        ("baseline", "ac9793c073c1a128caf4e1044b336bf23c381d9988c775d7727652461c3f0d94"),
        ("chain_of_thought", "390d28b2bb785ced14a175ef1b668e20dbe0afa6ff9fc02180f40a24d7de345d"),
    ] {
        assert_eq!(starter(&[&format!("+reasoning={option}")], None).digest().to_string(), digest, "{option}");
    }
    let lite = compose_evaluation("cot-lite", &[], 42, vec![]).expect("a preset");
    assert_eq!(lite.digest().to_string(), "444aadccdd0396ea59c7ea96eb9d7fa9cd51c176c317f1dcc456c36da649aa9c");
}

#[test]
fn a_key_that_is_left_out_has_its_default() {
    let base: serde_json::Value = serde_yaml::from_str(include_str!("../../training/base.yaml")).expect("YAML");
    let (plain, empty) = (starter(&[], None), serde_json::json!({}));
    for key in TRAINING.iter().filter(|key| key.unwritten.is_some()) {
        let written = key.path.split('.').fold(&base, |value, word| &value[word]);
        assert_eq!(key.value(&empty), *written, "{}", key.path);
        assert_eq!(starter(&[&format!("{}={written}", key.path)], None), plain, "{}", key.path);
    }
    let yaml = plain.to_yaml().expect("YAML");
    assert!(["model_card", "safety", "deployment", "evaluation:"].iter().all(|name| !yaml.contains(name)), "{yaml}");
    let texts = ["metadata.model_card=true", "data.safety.block=[sql]", "deployment.preset=single"];
    let other = starter(&texts, None);
    assert_ne!(other.digest(), plain.digest());
    let yaml = other.to_yaml().expect("YAML");
    assert_eq!(Resolved::from_yaml(yaml.as_bytes()).expect("its own file"), other);
}

proptest! {
    #[test]
    fn floats_survive_the_file(rate in 1e-12_f64..1.0) {
        let text = format!("training.learning_rate={rate:e}");
        let resolved = starter(&[&text], None);
        let yaml = resolved.to_yaml().expect("YAML");
        let read = Resolved::<Training>::from_yaml(yaml.as_bytes()).expect("its own file");
        prop_assert_eq!(read.spec().settings.training.learning_rate.to_bits(), rate.to_bits());
        prop_assert_eq!(read.digest(), resolved.digest());
    }
}
