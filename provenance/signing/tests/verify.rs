//! Everything that a server refuses, and the sentence it says.

#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, sync::LazyLock};

use base64::{Engine, engine::general_purpose::STANDARD};
use codex_provenance::{
    ConfigDigest, DataDigest, GatesDigest, OmsPayloadDigest, PromotionDigest, ReportDigest, Sha256,
    manifest::Manifest,
    oms,
    promotion::{Evaluation, Gate, Promotion, Reasons, Training},
};
use codex_signing::{
    key::{PrivateKey, PublicKey, Signer},
    verify::{Expected, Verified, VerifyError, verify_model},
};
use proptest::prelude::*;
use serde_json::{Value, json};

const RING: &str = "0D_base_";

static KEY: LazyLock<PrivateKey> = LazyLock::new(|| PrivateKey::generate().unwrap());
static OTHER_KEY: LazyLock<PrivateKey> = LazyLock::new(|| PrivateKey::generate().unwrap());

/// A model, both its bundles, and what a server of it demands.
#[derive(Clone)]
struct Case {
    files: BTreeMap<String, Vec<u8>>,
    oms: Vec<u8>,
    promotion: Vec<u8>,
    expected: Expected,
}

fn promotion(manifest: &Manifest, oms_payload: OmsPayloadDigest, ring: &str) -> Promotion {
    let gate = Gate {
        metric: "exact_match".into(),
        min: Some("0.95".into()),
        max: None,
        confidence: Some("0.95".into()),
        value: Some("0.99".into()),
        n: Some(500),
        lower: Some("0.979".into()),
        upper: None,
        verdict: "Passed".into(),
    };
    let evaluation = |name: &str| Evaluation {
        name: name.into(),
        uid: "3f0c".into(),
        report_digest: ReportDigest(Sha256::of(name)),
        gates_digest: GatesDigest(Sha256::of("gates")),
        data: BTreeMap::from([("problems".into(), DataDigest(Sha256::of("problems")))]),
        image_id: "sha256:0002".into(),
        gates: vec![gate.clone()],
    };
    Promotion {
        model: manifest.digest(),
        reasons: Reasons {
            ring: ring.into(),
            oms_payload,
            training: Training {
                run_uid: "77aa".into(),
                config_digest: ConfigDigest(Sha256::of("config")),
                data: BTreeMap::new(),
                image_id: "sha256:0001".into(),
            },
            evaluations: vec![evaluation("cot-lite"), evaluation("arithmetic")],
        },
    }
}

impl Case {
    fn of(weights: &str, key: &PrivateKey, ring: &str) -> Self {
        let files = [("config.json", "{}"), ("model.safetensors", weights), ("tokenizer.json", "[]")];
        let files = files.map(|(path, contents)| (path.to_owned(), contents.as_bytes().to_vec())).into();
        let manifest = Manifest::of_files(&files).unwrap();
        let payload = oms::payload(&manifest, "cot-starter");
        let promotion = promotion(&manifest, oms::payload_digest(&payload), ring);
        Self {
            oms: key.sign(&payload).unwrap(),
            promotion: key.sign(&promotion.payload()).unwrap(),
            expected: Expected {
                model_digest: manifest.digest(),
                key_fingerprint: key.public().fingerprint(),
                ring: ring.into(),
                promotion_digest: promotion.digest(),
            },
            files,
        }
    }

    fn good() -> Self {
        Self::of("weights", &KEY, RING)
    }

    fn verify_with(&self, key: &PublicKey) -> Result<Verified, VerifyError> {
        let manifest = Manifest::of_files(&self.files).unwrap();
        verify_model(&manifest, &self.oms, &self.promotion, key, &self.expected)
    }

    fn refusal(&self) -> String {
        self.verify_with(KEY.public()).unwrap_err().to_string()
    }
}

fn edited(bundle: &[u8], edit: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut value = serde_json::from_slice(bundle).unwrap();
    edit(&mut value);
    serde_json::to_vec(&value).unwrap()
}

/// A statement with changes, signed by the right key.
fn resigned(bundle: &[u8], edit: impl FnOnce(&mut Value)) -> Vec<u8> {
    let bundle: Value = serde_json::from_slice(bundle).unwrap();
    let payload = STANDARD.decode(bundle["dsseEnvelope"]["payload"].as_str().unwrap()).unwrap();
    let mut statement = serde_json::from_slice(&payload).unwrap();
    edit(&mut statement);
    KEY.sign(&serde_json::to_vec(&statement).unwrap()).unwrap()
}

#[test]
fn a_promoted_model_is_accepted() {
    let case = Case::good();
    let verified = case.verify_with(KEY.public()).unwrap();
    assert_eq!(verified.signed.model, case.expected.model_digest);
    assert_eq!(verified.signed.signer, KEY.public().fingerprint());
    assert_eq!(verified.promoted.digest, case.expected.promotion_digest);
    assert_eq!(verified.promoted.promotion.reasons.ring, RING);
    assert_eq!(verified.promoted.promotion.reasons.evaluations[0].name, "arithmetic");
}

#[test]
fn other_files_are_refused_by_name() {
    let good = Case::good();
    let mut flipped = good.clone();
    flipped.files.get_mut("model.safetensors").unwrap()[3] ^= 1;
    let told = flipped.refusal();
    assert!(
        told.starts_with("the model's files are not the signed ones: model.safetensors was changed: it hashes to "),
        "{told}"
    );
    let mut added = good.clone();
    added.files.insert("pickle.bin".into(), vec![]);
    assert_eq!(added.refusal(), "the model's files are not the signed ones: pickle.bin was added");
    let mut renamed = good.clone();
    let contents = renamed.files.remove("tokenizer.json").unwrap();
    renamed.files.insert("tokenizer.js".into(), contents);
    assert_eq!(
        renamed.refusal(),
        "the model's files are not the signed ones: tokenizer.json is missing; tokenizer.js was added"
    );
    let mut swapped = good.clone();
    let first = swapped.files["config.json"].clone();
    let second = swapped.files.insert("tokenizer.json".into(), first).unwrap();
    swapped.files.insert("config.json".into(), second);
    assert!(swapped.refusal().contains("config.json was changed"));
    let mut many = good;
    many.files.extend((0..7).map(|i| (format!("extra-{i}"), vec![])));
    assert!(many.refusal().ends_with("extra-4 was added; and 2 more"), "{}", many.refusal());
}

#[test]
fn bundles_of_another_key_model_ring_or_kind_are_refused() {
    let good = Case::good();
    let told = good.verify_with(OTHER_KEY.public()).unwrap_err().to_string();
    let (ours, theirs) = (KEY.public().fingerprint(), OTHER_KEY.public().fingerprint());
    assert_eq!(told, format!("the public key is another one: its fingerprint is {theirs}, and {ours} is trusted"));

    let foreign = Case::of("weights", &OTHER_KEY, RING);
    let another = format!("was signed by another key: it names the fingerprint {theirs}, and {ours} is trusted");
    let told = Case { oms: foreign.oms.clone(), ..good.clone() }.refusal();
    assert_eq!(told, format!("the OMS bundle {another}"));
    let told = Case { promotion: foreign.promotion.clone(), ..good.clone() }.refusal();
    assert_eq!(told, format!("the promotion bundle {another}"));
    let disguised = edited(&foreign.oms, |bundle| {
        bundle["verificationMaterial"]["publicKey"]["hint"] = json!(ours);
        bundle["dsseEnvelope"]["signatures"][0]["keyid"] = json!(ours);
    });
    assert!(Case { oms: disguised, ..good.clone() }.refusal().starts_with("the OMS bundle does not verify"));

    let other = Case::of("other weights", &KEY, RING);
    let told = Case { oms: other.oms.clone(), ..good.clone() }.refusal();
    assert!(told.starts_with("the OMS bundle was made for another model than "), "{told}");
    assert!(told.contains("model.safetensors was changed"), "{told}");
    let told = Case { promotion: other.promotion.clone(), ..good.clone() }.refusal();
    assert!(told.starts_with("the promotion bundle was made for another model: "), "{told}");
    let told = Case { expected: good.expected.clone(), ..other.clone() }.refusal();
    assert_eq!(
        told,
        format!(
            "the files are the model {}, and {} is demanded",
            other.expected.model_digest, good.expected.model_digest
        )
    );

    let told = Case { promotion: Case::of("weights", &KEY, "0C_base_").promotion, ..good.clone() }.refusal();
    assert_eq!(told, "the promotion bundle was made for the ring \"0C_base_\", and \"0D_base_\" is demanded");
    let mut replaced = good.clone();
    replaced.expected.promotion_digest = PromotionDigest(Sha256::of("an older one"));
    assert!(replaced.refusal().starts_with("the promotion bundle holds another statement: "));
    let payload = json!(Sha256::of("another payload"));
    let rebound = resigned(&good.promotion, |statement| statement["predicate"]["omsPayload"] = payload);
    assert!(Case { promotion: rebound, ..good.clone() }.refusal().contains("made for another OMS bundle"));

    let crossed = Case { oms: good.promotion.clone(), promotion: good.oms.clone(), ..good.clone() }.refusal();
    assert_eq!(
        crossed,
        "the OMS bundle holds no model signing statement: its predicate type is \
         \"https://codex-ml.dev/promotion/v1\", not \"https://model_signing/signature/v1.0\""
    );
    let told = Case { promotion: good.oms.clone(), ..good }.refusal();
    assert!(told.starts_with("the promotion bundle holds no promotion statement: its predicate type"), "{told}");
}

#[test]
fn malformed_bundles_are_refused() {
    let good = Case::good();
    let told = |oms: Vec<u8>| Case { oms, ..good.clone() }.refusal();
    let after = |edit: &dyn Fn(&mut Value)| told(edited(&good.oms, edit));
    assert!(told(b"not JSON".to_vec()).starts_with("the OMS bundle is no Sigstore bundle: "));
    assert!(told(vec![b' '; (1 << 20) + 1]).contains("more than 1048576"));
    assert!(after(&|bundle| bundle["mediaType"] = json!("text/plain")).contains("media type \"text/plain\""));
    assert!(after(&|bundle| bundle["surprise"] = json!(1)).contains("is no Sigstore bundle"));
    assert!(
        after(&|bundle| bundle["dsseEnvelope"]["payloadType"] = json!("text/plain"))
            .contains("payload type \"text/plain\"")
    );
    let twice = |bundle: &mut Value| {
        let signatures = bundle["dsseEnvelope"]["signatures"].as_array_mut().unwrap();
        signatures.push(signatures[0].clone());
    };
    assert_eq!(after(&twice), "the OMS bundle has 2 signatures, and exactly one is allowed");
    assert!(after(&|bundle| bundle["dsseEnvelope"]["signatures"] = json!([])).contains("has 0 signatures"));
    assert!(after(&|bundle| drop(bundle.as_object_mut().unwrap().remove("dsseEnvelope"))).contains("no DSSE envelope"));
    assert!(after(&|bundle| bundle["verificationMaterial"] = json!({})).contains("names no public key"));
    assert!(
        after(&|bundle| bundle["dsseEnvelope"]["signatures"][0]["keyid"] = json!("x")).contains("names the key \"x\"")
    );
    let bare = |bundle: &mut Value| {
        bundle["verificationMaterial"]["publicKey"]["hint"] = json!("");
        bundle["dsseEnvelope"]["signatures"][0]["keyid"] = json!("");
    };
    let hintless = Case { oms: edited(&good.oms, bare), ..good.clone() };
    assert!(hintless.verify_with(KEY.public()).is_ok(), "hints are optional and not what is believed");
}

#[test]
fn genuine_statements_that_say_something_odd_are_refused() {
    let good = Case::good();
    let oms = |edit: &dyn Fn(&mut Value)| Case { oms: resigned(&good.oms, edit), ..good.clone() }.refusal();
    assert!(oms(&|statement| statement["_type"] = json!("x")).contains("its type is \"x\""));
    assert!(oms(&|statement| statement["subject"] = json!([])).contains("it has 0 subjects"));
    assert!(
        oms(&|statement| statement["subject"][0]["digest"]["sha256"] = json!(Sha256::of("x"))).contains("its root")
    );
    let shards = |statement: &mut Value| statement["predicate"]["serialization"]["method"] = json!("shards");
    assert!(oms(&shards).contains("serialises by \"shards\""));
    let blake = |statement: &mut Value| statement["predicate"]["resources"][0]["algorithm"] = json!("blake2b");
    assert!(oms(&blake).contains("hashes \"config.json\" with \"blake2b\""));
    // The root binds no names: a statement with two names exchanged has the same root and must be found by its names.
    let exchanged = |statement: &mut Value| {
        let resources = &mut statement["predicate"]["resources"];
        let (first, second) = (resources[0]["name"].clone(), resources[2]["name"].clone());
        resources[0]["name"] = second;
        resources[2]["name"] = first;
    };
    assert!(oms(&exchanged).contains("config.json was changed"));
    let promotion =
        |edit: &dyn Fn(&mut Value)| Case { promotion: resigned(&good.promotion, edit), ..good.clone() }.refusal();
    assert!(promotion(&|statement| statement["predicate"]["more"] = json!(1)).contains("unknown field `more`"));
    assert!(promotion(&|statement| statement["predicate"]["ring"] = json!("main")).contains("for the ring \"main\""));
}

#[test]
fn the_order_in_which_evaluations_are_listed_does_not_count() {
    let manifest = Manifest::of_files(&Case::good().files).unwrap();
    let first = promotion(&manifest, OmsPayloadDigest(Sha256::of("p")), RING);
    let mut second = first.clone();
    second.reasons.evaluations.reverse();
    assert_eq!(first.payload(), second.payload());
    assert_eq!(first.key().digest(), second.key().digest());
    second.reasons.evaluations[0].report_digest = ReportDigest(Sha256::of("another report"));
    assert_ne!(first.key().digest(), second.key().digest());
    second.reasons = Reasons { ring: "main".into(), ..first.reasons.clone() };
    assert_ne!(first.key().digest(), second.key().digest());
}

#[test]
fn keys_survive_being_stored_and_strange_ones_are_refused() {
    let plain = KEY.to_pem().unwrap();
    assert!(plain.starts_with("-----BEGIN PRIVATE KEY-----\n") && !plain.contains('\r'));
    let encrypted = KEY.to_encrypted_pem(b"secret").unwrap();
    assert!(encrypted.starts_with("-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\n"));
    for back in [PrivateKey::from_pem(&plain).unwrap(), PrivateKey::from_encrypted_pem(&encrypted, b"secret").unwrap()]
    {
        assert_eq!(back.public().fingerprint(), KEY.public().fingerprint());
        let case = Case::of("weights", &back, RING);
        assert!(case.verify_with(KEY.public()).is_ok());
    }
    assert!(PrivateKey::from_encrypted_pem(&encrypted, b"wrong").is_err());
    assert!(PrivateKey::from_pem("no key").unwrap_err().to_string().starts_with("the private key cannot be read: "));
    assert!(!format!("{:?}", *KEY).contains("PRIVATE KEY"));
    let pem = KEY.public().to_pem();
    assert!(pem.ends_with("-----END PUBLIC KEY-----\n") && pem.lines().all(|line| line.len() <= 64));
    let windows = PublicKey::from_pem(&pem.replace('\n', "\r\n")).unwrap();
    assert_eq!(windows.fingerprint(), Sha256::of(pem));
    let ed25519 = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n";
    assert!(PublicKey::from_pem(ed25519).unwrap_err().to_string().contains("is of another kind"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    /// Whatever byte of a bundle is changed: it is refused, or it says exactly the same (white space, hints' absence).
    #[test]
    fn no_changed_byte_of_a_bundle_changes_what_is_verified(which: bool, at: prop::sample::Index, flip in 1..=255_u8) {
        static GOOD: LazyLock<Case> = LazyLock::new(Case::good);
        let mut case = GOOD.clone();
        let bundle = if which { &mut case.oms } else { &mut case.promotion };
        let at = at.index(bundle.len());
        bundle[at] ^= flip;
        if let Ok(verified) = case.verify_with(KEY.public()) {
            prop_assert_eq!(verified, GOOD.verify_with(KEY.public()).unwrap());
        }
    }
}
