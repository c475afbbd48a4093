//! Verification of a small signed model on the command line.

use std::{collections::BTreeMap, fs};

use clap::Parser;
use codex_provenance::{
    ConfigDigest, DataDigest, Device, ModelDigest,
    attestation::{AttestationKind, Build, Unsigned, attestations},
    golden::{GoldenPrompt, Tokens},
    oms,
    promotion::{Adopted, Attested, Base, Object, Parity, Promotion, Reasons, Reported, Training},
};
use codex_signing::key::{PrivateKey, PublicKey, Signer as _};
use codex_verdict::{Decimal, GateSpec, Measurement, Stated, report_digest};

use super::*;

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    verify: Verify,
}

pub(crate) fn promotion(model: &Manifest, payload: &[u8], name: &str, base: Option<Base>) -> Promotion {
    let gate = GateSpec {
        metric: "exact_match".into(),
        min: Some(Decimal("0.95".into())),
        min_samples: Some(500),
        confidence: Some(Decimal("0.95".into())),
        ..GateSpec::default()
    };
    let metrics = BTreeMap::from([("exact_match".to_owned(), Measurement::Share { successes: 495, n: 500 })]);
    let stated = Stated::of(model.digest(), &BTreeMap::new(), &metrics, &[gate]).unwrap();
    let tokens = Tokens { prompt: vec![1, 2], tokens: vec![3, 4, 5], log_probabilities: vec![-0.5; 3] };
    let golden = Golden {
        path: "cpu-f32".into(),
        instruction_set: "avx2".into(),
        kernels: 1,
        tolerance: "0.01".into(),
        prompts: vec![GoldenPrompt::new(&tokens)],
    };
    let evaluation = Evaluation {
        name: name.into(),
        uid: "u".into(),
        preset: "cot-lite".into(),
        config_digest: Some(ConfigDigest(Sha256::of("e"))),
        report_digest: report_digest(model.digest(), &BTreeMap::new(), &metrics, Some(&golden)),
        gates_digest: stated.gates_digest,
        data: BTreeMap::new(),
        image_id: "i".into(),
        completed_at: "2026-11-28T09:00:00Z".into(),
        evidence: Some(EvidenceStrength::Weak),
        outcomes: None,
        golden_tokens: Some(golden),
        metrics: stated.metrics,
        gates: stated.gates,
        references: Vec::new(),
        reads: None,
    };
    let training = Training {
        run: Object { name: "cot".into(), uid: "u".into() },
        attested: Attested {
            config_digest: ConfigDigest(Sha256::of("c")),
            image_id: "i".into(),
            completed_at: Some("2026-11-28T08:00:00Z".into()),
            data: None,
        },
        reported: Some(Reported { data: BTreeMap::from([("arithmetic".into(), DataDigest(Sha256::of("d")))]) }),
        device: base.as_ref().map(|_| Device {
            name: "NVIDIA H100\u{1b}[1A".to_owned(),
            engine: "candle-cuda-bf16".to_owned(),
            driver: Some("580.65.06".to_owned()),
            memory_bytes: Some(85_520_809_984),
            fallback: None,
        }),
        adapter: base.as_ref().map(|_| ModelDigest(Sha256::of("adapter"))),
        adopted: base.as_ref().map(|_| Adopted {
            run: Object { name: "cot".into(), uid: "before".into() },
            image_id: "codex@sha256:0123".into(),
            completed_at: None,
            provenance: Sha256::of("provenance"),
        }),
        base,
    };
    let reasons = Reasons {
        ring: "main".into(),
        namespace: "team".into(),
        oms_payload: oms::payload_digest(payload),
        training,
        evaluations: vec![evaluation],
        policies: Vec::new(),
        earlier: Vec::new(),
        sign_offs: Vec::new(),
        parity: vec![Parity {
            shadow: Object { name: "next".into(), uid: "n".into() },
            of: "live".into(),
            of_model: None,
            compared: 459,
            agreed: 459,
            max_divergence: "0.01".into(),
            bound: "0.01".into(),
        }],
    };
    Promotion { model: model.digest(), reasons }
}

fn reproduction(model: ModelDigest) -> reproduction::Reproduction {
    let training = |name: &str, node: &str| reproduction::Training {
        run: Object { name: name.into(), uid: format!("uid-{name}") },
        node: Some(node.into()),
        image_id: None,
        attested: name == "again",
    };
    let evidence = reproduction::Evidence {
        namespace: "team".into(),
        config_digest: ConfigDigest(Sha256::of("c")),
        data: BTreeMap::new(),
        base: None,
        computation: reproduction::Computation {
            program: Sha256::of("program"),
            engine: "cpu-f32".into(),
            kernels: "x86_64 avx512".into(),
        },
        original: training("cot", "node-1"),
        again: training("again", "node-2"),
    };
    reproduction::Reproduction { model, evidence }
}

/// A signed model whose bundle is inside its directory, promoted on the evaluation `cot-lite`.
pub(crate) fn signed() -> tempfile::TempDir {
    signed_with("cot-lite", None)
}

pub(super) fn signed_with(evaluation: &str, base: Option<Base>) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let model = root.path().join("model");
    fs::create_dir(&model).unwrap();
    fs::write(model.join("config.json"), "{}").unwrap();
    let key = PrivateKey::generate().unwrap();
    let manifest = Manifest::of_dir(&model).unwrap();
    let payload = oms::payload(&manifest, "model");
    let promotion = promotion(&manifest, &payload, evaluation, base);
    fs::write(root.path().join("promotion.json"), key.sign(&promotion.payload()).unwrap()).unwrap();
    for (name, model) in [("reproduced.json", manifest.digest()), ("other.json", ModelDigest(Sha256::of("other")))] {
        fs::write(root.path().join(name), key.sign(&reproduction(model).payload()).unwrap()).unwrap();
    }
    let parameters = serde_json::json!({ "template": "cot-starter" });
    let build = Build { parameters, files: manifest.files.clone(), ..Build::default() };
    for Unsigned { kind, payload } in attestations(&promotion, &build) {
        fs::write(root.path().join(kind.entry()), key.sign(&payload).unwrap()).unwrap();
    }
    fs::write(root.path().join("key.pem"), key.public().to_pem()).unwrap();
    fs::write(model.join("model.sig"), key.sign(&payload).unwrap()).unwrap();
    root
}

pub(super) fn verify(root: &Path, more: &[&str]) -> Result<Outcome, CommandError> {
    let path = |name: &str| root.join(name).to_str().unwrap().to_owned();
    let mut arguments =
        vec!["verify".into(), path("model"), "--bundle".into(), path("model/model.sig"), "--key".into()];
    arguments.push(path("key.pem"));
    for argument in more {
        arguments.push(if Path::new(argument).extension().is_some() { path(argument) } else { (*argument).to_owned() });
    }
    Arguments::try_parse_from(arguments).map_err(CommandError::bad_input)?.verify.verify()
}

pub(crate) fn fingerprint(root: &Path) -> String {
    PublicKey::from_pem(&fs::read_to_string(root.join("key.pem")).unwrap()).unwrap().fingerprint().to_string()
}

#[test]
fn the_result_names_what_was_checked() {
    let root = signed();
    let pin = fingerprint(root.path());
    let all = ["--promotion", "promotion.json", "--ring", "main", "--fingerprint", &pin];
    let outcome = verify(root.path(), &all).ok().unwrap();
    let told = outcome.to_string();
    let lines: Vec<_> = told.lines().collect();
    assert_eq!(
        lines[..4],
        [
            "training   team/cot (uid u)",
            "trainer    what it read is only reported, because the controller does not list its image: i",
            &format!("data       arithmetic {}", Sha256::of("d")),
            "evaluation cot-lite (uid u, preset cot-lite): judged at 2026-11-28T09:00:00Z, evidence weak",
        ]
    );
    let gate = "evaluation cot-lite: exact_match >= 0.95 at confidence 0.95 with minSamples 500 (value 0.99, n 500, bounds 0.97";
    assert!(lines[4].starts_with(gate) && lines[4].ends_with("): Passed"), "{}", lines[4]);
    let golden = "3 golden tokens of 1 prompt, by cpu-f32 on avx2 (kernels 1), elsewhere within 0.01";
    assert_eq!(lines[5], format!("evaluation cot-lite: {golden}"));
    assert_eq!(lines[6], "verified   1 file, 2 bytes: exactly what was signed");
    assert!(lines[7].starts_with("model      ") && lines[8].starts_with("promoted   into main by the statement "));
    assert_eq!(lines[9..], [format!("signed by  {pin}, the key of --fingerprint")]);
    assert_eq!(outcome.exit(), exit::FINISHED);
}

#[test]
fn every_limit_of_a_gate_is_printed() {
    let with = |by: Option<&str>| Comparison { evaluation: "before".to_owned(), by: by.map(str::to_owned) };
    let text = |text: &str| Some(text.to_owned());
    let gate = Gate {
        metric: "exact_match".to_owned(),
        min: None,
        max: None,
        better_than: Some(with(None)),
        not_worse_than: None,
        confidence: text("0.95"),
        min_samples: None,
        value: text("0.07"),
        n: Some(500),
        lower: None,
        upper: None,
        p_value: text("0.000001"),
        approximate: false,
        verdict: "Passed".to_owned(),
    };
    assert_eq!(
        describe(&gate),
        "exact_match better than before at confidence 0.95 (value 0.07, n 500, p 0.000001): Passed"
    );
    let (lower, upper) = (text("0.01"), text("0.13"));
    let gate =
        Gate { better_than: None, not_worse_than: Some(with(Some("0.02"))), p_value: None, lower, upper, ..gate };
    assert_eq!(
        describe(&gate),
        "exact_match not worse than before by 0.02 at confidence 0.95 (value 0.07, n 500, bounds 0.01 to 0.13): Passed"
    );
    let gate = Gate { metric: "bleu".to_owned(), approximate: true, ..gate };
    assert!(describe(&gate).contains(", approximate bounds 0.01 to 0.13)"));
}

#[test]
fn the_base_of_the_training_is_named() {
    let model = ModelDigest(Sha256::of("base"));
    let line = |source: Option<&str>| {
        let root = signed_with("cot-lite", Some(Base { model, source: source.map(str::to_owned), signer: None }));
        let outcome = verify(root.path(), &["--promotion", "promotion.json", "--ring", "main"]).ok().unwrap();
        outcome.to_string().lines().nth(3).unwrap().to_owned()
    };
    assert_eq!(line(Some("models/bases/smollm2")), format!("base       {model}, from models/bases/smollm2"));
    assert_eq!(line(None), format!("base       {model}, from a source that the statement does not name"));
    let signer = Sha256::of("key");
    let base = Base { model, source: Some("Hugging Face org/small@0123".to_owned()), signer: Some(signer) };
    let root = signed_with("cot-lite", Some(base));
    let told = verify(root.path(), &["--promotion", "promotion.json", "--ring", "main"]).ok().unwrap().to_string();
    let expected = format!("base       {model}, from Hugging Face org/small@0123, signed by {signer}");
    assert_eq!(told.lines().nth(3).unwrap(), expected);
    let device = format!("device     {}", Printable("NVIDIA H100\u{1b}[1A (candle-cuda-bf16, driver 580.65.06)"));
    assert_eq!(told.lines().nth(4).unwrap(), device);
    let adapter = format!("adapter    {}, in artifacts/adapter of the run", Sha256::of("adapter"));
    assert_eq!(told.lines().nth(5).unwrap(), adapter);
    assert_eq!(told.lines().nth(6).unwrap(), "adopted    from cot (uid before), computed by codex@sha256:0123");
    let forged = line(Some("x\nsigned by  me\u{1b}[1A"));
    assert_eq!(forged, format!("base       {model}, from {}", Printable("x\nsigned by  me\u{1b}[1A")));
}

#[test]
fn what_was_not_checked_is_said() {
    let root = signed();
    let pin = fingerprint(root.path());
    let outcome = verify(root.path(), &[]).ok().unwrap();
    let told = outcome.to_string();
    assert_eq!(outcome.exit(), NOT_PINNED);
    assert!(told.contains("promoted   NOT checked: give --promotion and --ring\n"), "{told}");
    assert!(told.ends_with(&format!("signed by  {pin}: key NOT pinned, give --fingerprint\n")), "{told}");
    let other = PrivateKey::generate().unwrap().public().fingerprint().to_string();
    let refused = verify(root.path(), &["--fingerprint", &other]).err().unwrap();
    assert_eq!(refused.exit, exit::FAILED);
    let told = refused.sentence();
    assert_eq!(told, format!("the public key has the fingerprint {pin}, but {other} is trusted"));
    assert_eq!(verify(root.path(), &["--fingerprint", "abc"]).err().unwrap().exit, exit::BAD_INPUT);
}

/// A name in a statement can neither add a line nor direct the terminal, and nothing follows the result.
#[test]
fn text_from_a_statement_is_escaped_and_comes_first() {
    let forged = format!("x\nsigned by  {}, the key of --fingerprint\u{1b}[1A\u{202e}", "0".repeat(64));
    let root = signed_with(&forged, None);
    let outcome = verify(root.path(), &["--promotion", "promotion.json", "--ring", "main"]).ok().unwrap();
    let told = outcome.to_string();
    assert_eq!(told.lines().filter(|line| line.starts_with("signed by")).count(), 1, "{told}");
    assert!(told.lines().last().unwrap().contains("key NOT pinned"), "{told}");
    assert!(!told.chars().any(|letter| letter != '\n' && letter.is_control()), "{told:?}");
    assert!(told.contains("\nevaluation x\\nsigned by  000") && told.contains("\\u{1b}[1A\\u{202e}"), "{told}");
}

#[test]
fn the_age_and_the_strength_of_the_evidence_can_be_demanded() {
    let root = signed();
    let with = |more: &[&str]| {
        let all = [&["--promotion", "promotion.json", "--ring", "main"], more].concat();
        verify(root.path(), &all).map(drop).map_err(|error| (error.exit, error.sentence()))
    };
    with(&["--max-age", "30d", "--at", "2026-12-01T00:00:00Z"]).unwrap();
    with(&["--max-age", "1h", "--at", "2026-11-28T10:00:00Z"]).unwrap();
    with(&["--max-age", "1h", "--at", "2026-11-28T08:58:00Z"]).unwrap();
    let refused = |more: &[&str]| with(more).unwrap_err();
    let told = "evaluation cot-lite was judged at 2026-11-28T09:00:00Z, ";
    assert_eq!(
        refused(&["--max-age", "1h", "--at", "2026-11-28T10:00:01Z"]),
        (1, format!("{told}more than 1h before 2026-11-28T10:00:01Z: evaluate again, or raise --max-age"))
    );
    assert_eq!(
        refused(&["--max-age", "1h", "--at", "2026-11-28T08:00:00Z"]),
        (1, format!("{told}after 2026-11-28T08:00:00Z: check the clock, or --at"))
    );
    let (code, told) = refused(&["--strong-evidence"]);
    assert!(
        code == 1 && told.starts_with("the evidence of evaluation cot-lite is weak, but --strong-evidence"),
        "{told}"
    );
    for wrong in ["1", "1y", "d", "-1d", "1.5h"] {
        assert_eq!(refused(&[&format!("--max-age={wrong}")]).0, 2, "{wrong}");
    }
}

#[test]
fn a_model_of_one_file_is_verified() {
    let root = signed();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../provenance/signing/tests/fixtures");
    let path = |name: &str| fixtures.join(name).to_str().unwrap().to_owned();
    let weights = root.path().join("weights.bin");
    let verify = |contents: &str| {
        fs::write(&weights, contents).unwrap();
        let (bundle, key) = (path("file.sig"), path("p384.pem"));
        let arguments = ["verify", weights.to_str().unwrap(), "--bundle", &bundle, "--key", &key];
        Arguments::try_parse_from(arguments).unwrap().verify.verify()
    };
    let told = verify("{\"hidden_size\": 64}").ok().unwrap().to_string();
    assert!(told.starts_with("verified   1 file, 19 bytes: exactly what was signed\n"), "{told}");
    let refused = verify("{\"hidden_size\": 65}").err().unwrap();
    assert!(refused.exit == exit::FAILED && refused.sentence().contains("weights.bin was changed"));
}

#[test]
fn unsigned_files_are_named() {
    let manifest = Manifest::of_files(&BTreeMap::from([("config.json".to_owned(), "{}")])).unwrap();
    let signed = Signed {
        model: manifest.digest(),
        payload: oms::payload_digest(b""),
        signer: Sha256::of(""),
        identity: None,
        skipped: vec!["a\n.md".to_owned()],
    };
    let outcome = Outcome {
        manifest,
        pinned: true,
        signed,
        expiring: Vec::new(),
        promoted: None,
        reproduced: Vec::new(),
        attested: Vec::new(),
        policies: Vec::new(),
        measured: Vec::new(),
    };
    let told = outcome.to_string();
    assert!(told.starts_with("verified   0 files of 1: exactly what was signed\n"), "{told}");
    assert!(told.contains("skipped    NOT signed, by the signature's ignore_paths: a\\n.md\n"), "{told}");
}

#[test]
fn refusals_and_bad_input_end_differently() {
    let root = signed();
    let end = |more: &[&str]| verify(root.path(), more).err().map(|error| (error.exit, error.sentence())).unwrap();
    let (code, told) = end(&["--promotion", "promotion.json", "--ring", "0D_base_"]);
    assert_eq!(code, exit::FAILED);
    assert_eq!(told, "the promotion bundle was made for the ring \"main\", but \"0D_base_\" is required");
    assert_eq!(end(&["--promotion", "promotion.json"]).0, exit::BAD_INPUT, "a promotion is for a ring");
    let (code, told) = end(&["--promotion", "nowhere.json", "--ring", "main"]);
    assert!(code == exit::BAD_INPUT && told.contains("--promotion: ") && told.contains("nowhere.json"), "{told}");
    fs::write(root.path().join("model/config.json"), "[]").unwrap();
    let (code, told) = end(&[]);
    assert!(code == exit::FAILED && told.contains("config.json was changed"), "{told}");
    std::os::unix::fs::symlink("config.json", root.path().join("model/link")).unwrap();
    let (code, told) = end(&[]);
    assert!(code == exit::FAILED && told.contains("\"link\" is a symbolic link"), "{told}");
    for (key, why) in [
        ("no key", "the public key is not PEM: the line -----BEGIN PUBLIC KEY----- is missing"),
        ("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "the public key is damaged: "),
        (&PrivateKey::generate().unwrap().to_pem().unwrap(), "the file of the public key holds a private key"),
    ] {
        fs::write(root.path().join("key.pem"), key).unwrap();
        let (code, told) = end(&[]);
        assert!(code == exit::BAD_INPUT && told.starts_with("--key: ") && told.contains(why), "{told}");
    }
    let root = signed();
    let end = |more: &[&str]| verify(root.path(), more).err().map(|error| (error.exit, error.sentence())).unwrap();
    fs::write(root.path().join("promotion.json"), "no bundle").unwrap();
    let (code, told) = end(&["--promotion", "promotion.json", "--ring", "main"]);
    assert!(code == exit::BAD_INPUT && told.contains("promotion bundle is not a Sigstore bundle"), "{told}");
    fs::write(root.path().join("model/model.sig"), "no bundle").unwrap();
    let (code, told) = end(&[]);
    assert!(code == exit::BAD_INPUT && told.contains("OMS bundle is not a Sigstore bundle"), "{told}");
}

/// A model that one key signed and another promoted, as after a rotation.
#[test]
fn several_keys_are_trusted_within_their_time() {
    let root = signed();
    let path = |name: &str| root.path().join(name);
    let first = fingerprint(root.path());
    let next = PrivateKey::generate().unwrap();
    let bundle = fs::read(path("promotion.json")).unwrap();
    let former = PublicKey::from_pem(&fs::read_to_string(path("key.pem")).unwrap()).unwrap();
    let payload = bundle::open(&bundle, &former).unwrap();
    fs::write(path("promotion.json"), next.sign(&payload).unwrap()).unwrap();
    fs::write(path("next.pub"), next.public().to_pem()).unwrap();
    let promoter = next.public().fingerprint().to_string();
    let promoted = ["--promotion", "promotion.json", "--ring", "main"];
    let with = |more: &[&str]| verify(root.path(), &[&promoted[..], more].concat());
    let told = |more: &[&str]| with(more).err().map(|error| (error.exit, error.sentence())).unwrap();
    let (code, why) = told(&[]);
    assert!(code == exit::FAILED && why.contains("promotion bundle was signed with another key"), "{why}");
    let outcome = with(&["--key", "next.pub", "--fingerprint", &first, "--fingerprint", &promoter]).ok().unwrap();
    let lines = outcome.to_string();
    assert_eq!(outcome.exit(), exit::FINISHED);
    assert!(
        lines.ends_with(&format!(
            "promoted by {promoter}, the key of --fingerprint\nsigned by  {first}, the key of --fingerprint\n"
        )),
        "{lines}"
    );
    let (code, why) = told(&["--key", "next.pub", "--fingerprint", &first]);
    assert_eq!(
        (code, why),
        (exit::FAILED, format!("the public key has the fingerprint {promoter}, but {first} is trusted"))
    );
    // One file for all keys; the former one is limited.
    let limited = |limits: &str| {
        let list = format!("{limits}{}{}", former.to_pem(), next.public().to_pem());
        fs::write(path("key.pem"), list).unwrap();
    };
    limited("notBefore: 2026-01-01T00:00:00Z\nnotAfter: 2027-01-01T00:00:00Z\n");
    let outcome = with(&["--at", "2026-12-31T00:00:00Z"]).ok().unwrap().to_string();
    assert!(outcome.contains(&format!("\nexpires    {first} at 2027-01-01T00:00:00Z\n")), "{outcome}");
    for (at, untimely) in [
        ("2027-01-01T00:00:00Z", "expired at 2027-01-01T00:00:00Z"),
        ("2025-12-31T23:59:59Z", "is not valid before 2026-01-01T00:00:00Z"),
    ] {
        let (code, why) = told(&["--at", at]);
        let expected = format!("the key {first} signed the OMS bundle, and it {untimely}: at {at} ");
        assert!(code == exit::FAILED && why.starts_with(&expected), "{why}");
    }
    limited("notAfter: soon\n");
    let (code, why) = told(&[]);
    assert!(code == exit::BAD_INPUT && why.starts_with("--key: ") && why.contains("line 1: "), "{why}");
}

#[test]
fn a_reproduction_of_this_model_is_shown_and_of_another_refused() {
    let root = signed();
    let told = verify(root.path(), &["--reproduced", "reproduced.json"]).unwrap().to_string();
    let expected = format!(
        "reproduced team/again (uid uid-again) on node node-2, attested by the image unknown made the model of team/cot (uid \
         uid-cot) on node node-1, reported by the image unknown; program {}, engine cpu-f32, kernels x86_64 avx512\n",
        Sha256::of("program")
    );
    assert!(told.contains(&expected), "{told}");
    let refused = |bundle: &str| {
        let refused = verify(root.path(), &["--reproduced", bundle]).err().unwrap();
        (refused.exit, refused.sentence())
    };
    let (code, why) = refused("other.json");
    assert!(code == exit::FAILED && why.contains("was made for another model"), "{why}");
    let (code, why) = refused("promotion.json");
    assert!(code == exit::FAILED && why.contains("has no valid statement"), "{why}");
    fs::write(root.path().join("reproduced.json"), "[]").unwrap();
    let (code, why) = refused("reproduced.json");
    assert!(code == exit::BAD_INPUT && why.starts_with("the bundle of the reproduction "), "{why}");
    let key = PrivateKey::generate().unwrap();
    let model = Manifest::of_dir_except(&root.path().join("model"), &["model.sig".to_owned()].into()).unwrap();
    fs::write(root.path().join("reproduced.json"), key.sign(&reproduction(model.digest()).payload()).unwrap()).unwrap();
    let (code, why) = refused("reproduced.json");
    assert!(code == exit::FAILED && why.contains(&key.public().fingerprint().to_string()), "{why}");
}

#[test]
fn a_reproduction_that_a_denied_key_signed_is_refused() {
    let root = signed();
    let path = |name: &str| root.path().join(name);
    let key = PrivateKey::generate().unwrap();
    let model = Manifest::of_dir_except(&path("model"), &BTreeSet::from(["model.sig".to_owned()])).unwrap().digest();
    fs::write(path("reproduced.json"), key.sign(&reproduction(model).payload()).unwrap()).unwrap();
    fs::write(path("second.pem"), key.public().to_pem()).unwrap();
    let under = |denied: Sha256| {
        let policy = serde_json::json!({
            "apiVersion": "codex-ml.dev/v1alpha1", "kind": "ClusterPromotionPolicy", "metadata": { "name": "guard" },
            "spec": { "denied": { "keys": [denied] } },
        });
        fs::write(path("policy.json"), policy.to_string()).unwrap();
        let promoted = ["--promotion", "promotion.json", "--ring", "main", "--policy", "policy.json"];
        verify(root.path(), &[&promoted[..], &["--key", "second.pem", "--reproduced", "reproduced.json"]].concat())
    };
    assert!(under(Sha256::of("another key")).is_ok());
    let refused = under(key.public().fingerprint()).err().unwrap();
    assert_eq!(refused.exit, exit::FAILED);
    assert!(
        refused.sentence().contains("guard, denied.keys: the reproduction is signed with"),
        "{}",
        refused.sentence()
    );
}

#[test]
fn attestations_are_verified_with_the_promotion() {
    let root = signed();
    let pin = fingerprint(root.path());
    let promoted = ["--promotion", "promotion.json", "--ring", "main", "--fingerprint", &pin];
    let all = AttestationKind::ALL.map(|kind| ["--attestation", kind.entry()]).concat();
    let with = |more: &[&str]| verify(root.path(), &[&promoted[..], more].concat());
    let outcome = with(&all).ok().unwrap();
    let told = outcome.to_string();
    for line in [
        "attested   slsaProvenance: https://codex-ml.dev/operator/v1alpha1 trained it in the run u from 2 dependencies",
        "attested   testResult: PASSED, for every gate of the promotion (1)",
        "attested   mlBom: CycloneDX 1.6, which lists its files (1), data (1) and measurements (1)",
        "attested   verificationSummary: PASSED against https://codex-ml.dev/policies/none",
    ] {
        assert!(told.lines().any(|found| found == line), "{told}");
    }
    let json = serde_json::to_value(Verification::of(&Steps::default(), Ok(&outcome))).unwrap();
    assert_eq!(json["promotion"]["attestations"][2]["kind"], "mlBom");
    assert_eq!(json["promotion"]["attestations"][3]["kind"], "verificationSummary");
    assert_eq!((&json["verified"], &json["model"]["files"]), (&true.into(), &1.into()));
    let refused = |more: &[&str]| with(more).err().map(|error| (error.exit, error.sentence())).unwrap();
    // One of a key that is not trusted, one of another trusted key, one twice, and a bundle of something else.
    let other = signed_with("lite", None);
    let foreign = fs::read(other.path().join("test-result.json")).unwrap();
    fs::write(root.path().join("foreign.json"), foreign).unwrap();
    let (code, why) = refused(&["--attestation", "foreign.json"]);
    assert!(code == exit::FAILED && why.starts_with("the attestation was signed with another key"), "{why}");
    let next = PrivateKey::generate().unwrap();
    let own = PublicKey::from_pem(&fs::read_to_string(root.path().join("key.pem")).unwrap()).unwrap();
    let payload = bundle::open(&fs::read(root.path().join("test-result.json")).unwrap(), &own).unwrap();
    fs::write(root.path().join("again.json"), next.sign(&payload).unwrap()).unwrap();
    fs::write(root.path().join("next.pub"), next.public().to_pem()).unwrap();
    let other = next.public().fingerprint().to_string();
    let (code, why) = refused(&["--key", "next.pub", "--fingerprint", &other, "--attestation", "again.json"]);
    assert!(code == exit::FAILED && why.contains("take both from the same ConfigMap"), "{why}");
    let (code, why) = refused(&["--attestation", "test-result.json", "--attestation", "test-result.json"]);
    assert_eq!((code, why.as_str()), (1, "the attestation is refused: testResult is given twice"));
    let (code, why) = refused(&["--attestation", "promotion.json"]);
    assert!(code == exit::FAILED && why.contains("its predicate type is"), "{why}");
    fs::write(root.path().join("none.json"), "no bundle").unwrap();
    let (code, why) = refused(&["--attestation", "none.json"]);
    assert!(code == exit::BAD_INPUT && why.contains("the attestation is not a Sigstore bundle"), "{why}");
    // A policy demands them.
    let policy = serde_json::json!({
        "apiVersion": "codex-ml.dev/v1alpha1", "kind": "ClusterPromotionPolicy", "metadata": { "name": "guard" },
        "spec": { "rules": [{ "ring": "main", "attestations": ["slsaProvenance", "testResult"] }] },
    });
    fs::write(root.path().join("policy.json"), policy.to_string()).unwrap();
    let (code, why) = refused(&["--policy", "policy.json", "--attestation", "test-result.json"]);
    assert!(code == exit::FAILED && why.contains("the promotion has no valid slsaProvenance: "), "{why}");
    assert!(with(&[&["--policy", "policy.json"], &all[..]].concat()).is_ok());
}

#[test]
fn the_result_in_json_says_why_something_is_refused() {
    let root = signed();
    fs::write(root.path().join("model/config.json"), "[]").unwrap();
    let path = |name: &str| root.path().join(name).to_str().unwrap().to_owned();
    let (model, bundle, key) = (path("model"), path("model/model.sig"), path("key.pem"));
    let arguments = ["verify", &model, "--bundle", &bundle, "--key", &key, "--format", "json"];
    let mut steps = Steps::default();
    let error = Arguments::try_parse_from(arguments).unwrap().verify.verify_in(&mut steps).err().unwrap();
    let json = serde_json::to_value(Verification::of(&steps, Err(error.sentence()))).unwrap();
    assert_eq!((&json["verified"], &json["model"]), (&false.into(), &serde_json::Value::Null));
    let checks = json["checks"].as_array().unwrap();
    let passed: Vec<_> = checks.iter().map(|check| (&check["name"], &check["passed"])).collect();
    assert_eq!(
        passed,
        [(&"keys".into(), &true.into()), (&"files".into(), &true.into()), (&"refused".into(), &false.into())]
    );
    assert!(checks[2]["reason"].as_str().unwrap().contains("config.json was changed"), "{checks:?}");
}

#[test]
fn a_refusal_says_what_had_passed() {
    let root = signed();
    fs::write(root.path().join("model/config.json"), "[]").unwrap();
    let path = |name: &str| root.path().join(name).to_str().unwrap().to_owned();
    let (model, bundle, key) = (path("model"), path("model/model.sig"), path("key.pem"));
    let arguments = ["verify", &model, "--bundle", &bundle, "--key", &key];
    let mut steps = Steps::default();
    assert!(Arguments::try_parse_from(arguments).unwrap().verify.verify_in(&mut steps).is_err());
    assert_eq!(steps.to_string(), "passed     keys: 1 public key, none is pinned\npassed     files: 1 file, 2 bytes\n");
}

/// The recorded bundle is validly signed and holds no statement about a model, so what is refused tells how far it came.
#[test]
fn an_identity_is_trusted_instead_of_a_key() {
    let root = signed();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../provenance/signing/tests/fixtures/keyless");
    let path = |name: &str| fixtures.join(name).to_str().unwrap().to_owned();
    let (model, own) = (root.path().join("model"), root.path().join("model/model.sig"));
    let (model, own) = (model.to_str().unwrap(), own.to_str().unwrap());
    let issuer = "https://token.actions.githubusercontent.com";
    let identity = "https://github.com/sigstore-conformance/*/.github/workflows/*@refs/heads/main";
    let (bundle, trusted) = (path("dsse.sigstore.json"), path("trusted_root.json"));
    let verify = |bundle: &str, identity: &str, issuer: &str| {
        let arguments = ["verify", model, "--bundle", bundle, "--trusted-root", &trusted];
        let who = ["--certificate-identity", identity, "--certificate-oidc-issuer", issuer];
        let all = [&arguments[..], &who].concat();
        let refused = Arguments::try_parse_from(all).unwrap().verify.verify().err().unwrap();
        (refused.exit, refused.sentence())
    };
    let (code, told) = verify(&bundle, identity, issuer);
    assert!(code == exit::FAILED && told.contains("has no valid model signing statement"), "{told}");
    let (code, told) = verify(&bundle, "https://github.com/other/*", issuer);
    assert!(code == exit::FAILED && told.contains("the OMS bundle was signed by another identity"), "{told}");
    let (code, told) = verify(&bundle, identity, "https://accounts.example.com");
    assert!(code == exit::FAILED && told.contains("by an identity of another issuer"), "{told}");
    let (code, told) = verify(own, identity, issuer);
    assert!(code == exit::FAILED && told.contains("is signed with a key; an identity is required"), "{told}");
    let parse =
        |more: &[&str]| Arguments::try_parse_from([&["verify", model, "--bundle", &bundle], more].concat()).is_err();
    assert!(parse(&[]), "a key or an identity is required");
    assert!(parse(&["--trusted-root", &trusted]) && parse(&["--certificate-identity", identity]));
    let all = ["--trusted-root", &trusted, "--certificate-identity", identity, "--certificate-oidc-issuer", issuer];
    assert!(!parse(&all) && parse(&[&all[..], &["--key", "key.pem"]].concat()));
}
