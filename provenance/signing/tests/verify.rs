//! Refusals of a server, and their messages.

#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, sync::LazyLock};

use base64::{Engine, engine::general_purpose::STANDARD};
use codex_provenance::{
    ConfigDigest, DataDigest, EvidenceStrength, OmsPayloadDigest, PromotionDigest, ReportDigest, Sha256,
    files::Entry,
    manifest::Manifest,
    oms,
    promotion::{Attested, Evaluation, Object, Promotion, Reasons, Reported, Training},
};
use codex_signing::{
    bundle::{self, MAX_BYTES},
    key::{PrivateKey, PublicKey, Signer},
    verify::{Expected, Verified, VerifyError, verify_listing, verify_model, verify_signature},
};
use codex_verdict::{Decimal, GateSpec, Measurement, Stated};
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
    let gate = GateSpec {
        metric: "exact_match".into(),
        min: Some(Decimal("0.95".into())),
        min_samples: Some(500),
        confidence: Some(Decimal("0.95".into())),
        ..GateSpec::default()
    };
    let data = BTreeMap::from([("problems".into(), DataDigest(Sha256::of("problems")))]);
    let metrics = BTreeMap::from([("exact_match".to_owned(), Measurement::Share { successes: 495, n: 500 })]);
    let evaluation = |name: &str| {
        let stated = Stated::of(manifest.digest(), &data, &metrics, std::slice::from_ref(&gate)).unwrap();
        Evaluation {
            name: name.into(),
            uid: "3f0c".into(),
            preset: "cot-lite".into(),
            config_digest: Some(ConfigDigest(Sha256::of("evaluation"))),
            report_digest: stated.report_digest,
            gates_digest: stated.gates_digest,
            data: data.clone(),
            image_id: "sha256:0002".into(),
            completed_at: "2026-11-28T09:00:00Z".into(),
            evidence: Some(EvidenceStrength::Strong),
            outcomes: None,
            golden_tokens: None,
            metrics: stated.metrics,
            gates: stated.gates,
            references: Vec::new(),
            reads: None,
        }
    };
    Promotion {
        model: manifest.digest(),
        reasons: Reasons {
            ring: ring.into(),
            namespace: "team".into(),
            oms_payload,
            training: Training {
                run: Object { name: "cot".into(), uid: "77aa".into() },
                attested: Attested {
                    config_digest: ConfigDigest(Sha256::of("config")),
                    image_id: "sha256:0001".into(),
                    completed_at: Some("2026-11-28T08:00:00Z".into()),
                    data: None,
                },
                reported: Some(Reported { data: BTreeMap::new() }),
                base: None,
                device: None,
                adapter: None,
                adopted: None,
            },
            evaluations: vec![evaluation("cot-lite"), evaluation("arithmetic")],
            policies: Vec::new(),
            earlier: Vec::new(),
            sign_offs: Vec::new(),
            parity: Vec::new(),
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
                key_fingerprints: vec![key.public().fingerprint()],
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
        told.starts_with(
            "the files of the model differ from the signed ones: model.safetensors was changed: it hashes to "
        ),
        "{told}"
    );
    let mut added = good.clone();
    added.files.insert("pickle.bin".into(), vec![]);
    assert_eq!(added.refusal(), "the files of the model differ from the signed ones: pickle.bin was added");
    let mut renamed = good.clone();
    let contents = renamed.files.remove("tokenizer.json").unwrap();
    renamed.files.insert("tokenizer.js".into(), contents);
    assert_eq!(
        renamed.refusal(),
        "the files of the model differ from the signed ones: tokenizer.json is missing; tokenizer.js was added"
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
    assert_eq!(told, format!("the public key has the fingerprint {theirs}, but {ours} is trusted"));

    let foreign = Case::of("weights", &OTHER_KEY, RING);
    let another = format!("was signed with another key: it names {theirs}, but {ours} is trusted");
    let told = Case { oms: foreign.oms.clone(), ..good.clone() }.refusal();
    assert_eq!(told, format!("the OMS bundle {another}"));
    let told = Case { promotion: foreign.promotion.clone(), ..good.clone() }.refusal();
    assert_eq!(told, format!("the promotion bundle {another}"));
    let disguised = edited(&foreign.oms, |bundle| {
        bundle["verificationMaterial"]["publicKey"]["hint"] = json!(ours);
        bundle["dsseEnvelope"]["signatures"][0]["keyid"] = json!(ours);
    });
    assert!(Case { oms: disguised, ..good.clone() }.refusal().starts_with("the OMS bundle has an invalid signature"));

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
            "the files are the model {}, but {} is required",
            other.expected.model_digest, good.expected.model_digest
        )
    );

    let told = Case { promotion: Case::of("weights", &KEY, "0C_base_").promotion, ..good.clone() }.refusal();
    assert_eq!(told, "the promotion bundle was made for the ring \"0C_base_\", but \"0D_base_\" is required");
    let mut replaced = good.clone();
    replaced.expected.promotion_digest = PromotionDigest(Sha256::of("an older one"));
    assert!(replaced.refusal().starts_with("the promotion bundle holds the statement "));
    let payload = json!(Sha256::of("another payload"));
    let rebound = resigned(&good.promotion, |statement| statement["predicate"]["omsPayload"] = payload);
    assert!(Case { promotion: rebound, ..good.clone() }.refusal().contains("made for another OMS bundle"));

    let crossed = Case { oms: good.promotion.clone(), promotion: good.oms.clone(), ..good.clone() }.refusal();
    assert_eq!(
        crossed,
        "the OMS bundle has no valid model signing statement: its predicate type is \
         \"https://codex-ml.dev/promotion/v2\", not \"https://model_signing/signature/v1.0\""
    );
    let told = Case { promotion: good.oms.clone(), ..good }.refusal();
    assert!(told.starts_with("the promotion bundle has no valid promotion statement: its predicate type"), "{told}");
}

#[test]
fn malformed_bundles_are_refused() {
    let good = Case::good();
    let told = |oms: Vec<u8>| Case { oms, ..good.clone() }.refusal();
    let after = |edit: &dyn Fn(&mut Value)| told(edited(&good.oms, edit));
    assert!(told(b"not JSON".to_vec()).starts_with("the OMS bundle is not a Sigstore bundle: "));
    assert!(told(vec![b' '; MAX_BYTES + 1]).contains("at most 33554432 bytes are allowed"));
    assert!(after(&|bundle| bundle["mediaType"] = json!("text/plain")).contains("media type \"text/plain\""));
    assert!(after(&|bundle| bundle["surprise"] = json!(1)).contains("is not a Sigstore bundle"));
    assert!(
        after(&|bundle| bundle["dsseEnvelope"]["payloadType"] = json!("text/plain"))
            .contains("payload type \"text/plain\"")
    );
    let twice = |bundle: &mut Value| {
        let signatures = bundle["dsseEnvelope"]["signatures"].as_array_mut().unwrap();
        signatures.push(signatures[0].clone());
    };
    assert_eq!(after(&twice), "the OMS bundle has 2 signatures; exactly one is required");
    assert!(after(&|bundle| bundle["dsseEnvelope"]["signatures"] = json!([])).contains("has 0 signatures"));
    assert!(
        after(&|bundle| drop(bundle.as_object_mut().unwrap().remove("dsseEnvelope"))).contains("has no DSSE envelope")
    );
    assert!(after(&|bundle| bundle["verificationMaterial"] = json!({})).contains("names no public key"));
}

/// Hints are not signed. They are optional, written in different ways, and decide nothing.
#[test]
fn hints_only_lead_to_a_better_message() {
    let good = Case::good();
    let hinted = |case: &Case, hint: &str, keyid: &str| {
        let edit = |bundle: &mut Value| {
            bundle["verificationMaterial"]["publicKey"]["hint"] = json!(hint);
            bundle["dsseEnvelope"]["signatures"][0]["keyid"] = json!(keyid);
        };
        Case { oms: edited(&case.oms, edit), ..case.clone() }
    };
    let (ours, theirs) = (KEY.public().fingerprint(), OTHER_KEY.public().fingerprint());
    let base64 = STANDARD.encode(ours.bytes());
    let upper = ours.to_string().to_uppercase();
    for hint in ["", "my key", &base64, &upper, &format!("sha256:{ours}"), &theirs.to_string()] {
        for keyid in ["", "x", &ours.to_string()] {
            assert!(hinted(&good, hint, keyid).verify_with(KEY.public()).is_ok(), "{hint:?} {keyid:?}");
        }
    }
    let mut foreign = Case::of("weights", &OTHER_KEY, RING);
    foreign.expected.key_fingerprints = vec![ours];
    let foreign_base64 = STANDARD.encode(theirs.bytes());
    for hint in [&theirs.to_string(), &theirs.to_string().to_uppercase(), &format!("SHA256:{theirs}"), &foreign_base64]
    {
        let told = hinted(&foreign, hint, "").refusal();
        assert_eq!(told, format!("the OMS bundle was signed with another key: it names {hint}, but {ours} is trusted"));
        assert_eq!(hinted(&foreign, "", hint).refusal(), told, "the hint of the envelope counts as much");
    }
    for hint in ["", "my key", &base64, "\u{1b}[2K"] {
        let told = hinted(&foreign, hint, "").refusal();
        assert_eq!(told, format!("the OMS bundle has an invalid signature: the key {ours} did not sign this payload"));
    }
}

/// Nothing from a bundle reaches a terminal unescaped, whether or not the bundle is signed.
#[test]
fn messages_escape_what_bundles_say() {
    const EVIL: &str = "\u{1b}[1A\n\u{202e}";
    let good = Case::good();
    let mut told = Vec::new();
    for edit in [
        (&|bundle: &mut Value| bundle[EVIL] = json!(1)) as &dyn Fn(&mut Value),
        &|bundle| bundle["mediaType"] = json!(EVIL),
        &|bundle| bundle["dsseEnvelope"]["payloadType"] = json!(EVIL),
    ] {
        told.push(Case { oms: edited(&good.oms, edit), ..good.clone() }.refusal());
    }
    for edit in [
        (&|statement: &mut Value| statement[EVIL] = json!(1)) as &dyn Fn(&mut Value),
        &|statement| statement["_type"] = json!(EVIL),
        &|statement| statement["predicateType"] = json!(EVIL),
        &|statement| statement["predicate"]["resources"][0]["name"] = json!(EVIL),
        &|statement| statement["predicate"]["resources"][0]["algorithm"] = json!(EVIL),
        &|statement| statement["predicate"]["resources"][0]["digest"] = json!(EVIL),
        &|statement| statement["predicate"]["serialization"]["method"] = json!(EVIL),
    ] {
        told.push(Case { oms: resigned(&good.oms, edit), ..good.clone() }.refusal());
    }
    for edit in
        [(&|statement: &mut Value| statement["predicate"][EVIL] = json!(1)) as &dyn Fn(&mut Value), &|statement| {
            statement["predicate"]["ring"] = json!(EVIL);
        }]
    {
        told.push(Case { promotion: resigned(&good.promotion, edit), ..good.clone() }.refusal());
    }
    // Errors of JSON quote nothing.
    let quoting = told.iter().filter(|told| told.contains("\\u{1b}[1A\\n\\u{202e}")).count();
    assert!(quoting >= 5, "{told:#?}");
    for told in told {
        assert!(!told.chars().any(|letter| letter.is_control() || letter == '\u{202e}'), "{told:?}");
    }
}

/// The listing of a directory with the files of a case; nothing is read.
fn listing(case: &Case) -> Vec<Entry> {
    let entry = |(path, contents): (&String, &Vec<u8>)| Entry {
        path: path.clone(),
        location: "nowhere".into(),
        size: contents.len() as u64,
    };
    case.files.iter().map(entry).collect()
}

#[test]
fn names_and_sizes_are_compared_before_files_are_read() {
    let good = Case::good();
    let check = |case: &Case, entries: &[Entry]| {
        verify_listing(entries, &case.oms, KEY.public(), &case.expected).map_err(|error| error.to_string())
    };
    let entries = listing(&good);
    check(&good, &entries).unwrap();
    let mut grown = entries.clone();
    grown[1].size = 1 << 40;
    let told = check(&good, &grown).unwrap_err();
    assert!(told.contains("a file has another size"), "{told}");
    assert!(told.ends_with("sizes found: config.json 2, model.safetensors 1099511627776, tokenizer.json 2"), "{told}");
    let told = check(&good, &entries[..2]).unwrap_err();
    assert_eq!(told, "the files of the model differ from the signed ones: tokenizer.json is missing");
    let mut added = entries.clone();
    added.push(Entry { path: "pickle.bin".to_owned(), location: "nowhere".into(), size: 0 });
    let told = check(&good, &added).unwrap_err();
    assert_eq!(told, "the files of the model differ from the signed ones: pickle.bin was added");
    let other = Case { oms: Case::of("other weights", &KEY, RING).oms, ..good.clone() };
    assert!(check(&other, &entries).unwrap_err().contains("the bundle was made for another model"));
    let mut foreign = good.clone();
    foreign.expected.key_fingerprints = vec![OTHER_KEY.public().fingerprint()];
    assert!(check(&foreign, &entries).unwrap_err().starts_with("the public key has the fingerprint "));
    // A server needs every file signed, whatever the file is.
    added[3].path = "README.md".to_owned();
    let ignoring =
        |statement: &mut Value| statement["predicate"]["serialization"]["ignore_paths"] = json!(["README.md"]);
    let ignoring = Case { oms: resigned(&good.oms, ignoring), ..good };
    assert!(check(&ignoring, &added).unwrap_err().starts_with("the OMS bundle does not cover \"README.md\""));
}

#[test]
fn ignored_paths_may_hold_nothing_that_a_server_loads() {
    let good = Case::good();
    let with = |ignored: &[&str], added: &[&str]| {
        let edit = |statement: &mut Value| statement["predicate"]["serialization"]["ignore_paths"] = json!(ignored);
        let mut case = Case { oms: resigned(&good.oms, edit), ..good.clone() };
        case.files.extend(added.iter().map(|path| ((*path).to_owned(), b"unsigned".to_vec())));
        let manifest = Manifest::of_files(&case.files).unwrap();
        verify_signature(&manifest, &case.oms, KEY.public(), None)
            .map(|signed| signed.skipped)
            .map_err(|e| e.to_string())
    };
    assert_eq!(with(&["README.md", "docs/"], &["README.md", "docs/a.pdf"]).unwrap(), ["README.md", "docs/a.pdf"]);
    assert_eq!(with(&["./LICENSE"], &["LICENSE"]).unwrap(), ["LICENSE"]);
    assert!(with(&["README.md"], &[]).unwrap().is_empty());
    for path in ["extra.safetensors", "docs/config.JSON", "chat_template.jinja", "modeling.py", "a/b.bin"] {
        let told = with(&[path], &[path]).unwrap_err();
        let expected = format!(
            "the OMS bundle does not cover {path:?}: its ignore_paths leave the file out, and a server may load it"
        );
        assert_eq!(told, expected);
    }
    // Neither the whole model nor a part of a name can be ignored.
    for ignored in ["", ".", "./", "/", "READ", "READMEmd"] {
        assert!(with(&[ignored], &["README.md"]).unwrap_err().ends_with("README.md was added"), "{ignored:?}");
    }
    // What the statement lists is compared, even if it also ignores it.
    let mut changed = good.clone();
    let ignoring =
        |statement: &mut Value| statement["predicate"]["serialization"]["ignore_paths"] = json!(["config.json"]);
    changed.oms = resigned(&good.oms, ignoring);
    changed.files.get_mut("config.json").unwrap()[0] ^= 1;
    assert!(changed.refusal().contains("config.json was changed"));
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
    assert!(oms(&shards).contains("uses the method \"shards\""));
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
    let neither = |statement: &mut Value| {
        statement["predicate"]["training"].as_object_mut().unwrap().remove("reported");
    };
    let both = |statement: &mut Value| statement["predicate"]["training"]["attested"]["data"] = json!({});
    for edit in [&neither as &dyn Fn(&mut Value), &both] {
        assert!(promotion(edit).contains("either as reported or as attested"));
    }
}

/// The right key signs these statements; they are refused for what they say.
#[test]
fn promotions_that_their_own_numbers_do_not_prove_are_refused() {
    let good = Case::good();
    let told = |edit: &dyn Fn(&mut Value)| {
        let promotion = resigned(&good.promotion, edit);
        let mut case = Case { promotion, ..good.clone() };
        let payload: Value = serde_json::from_slice(&case.promotion).unwrap();
        let payload = STANDARD.decode(payload["dsseEnvelope"]["payload"].as_str().unwrap()).unwrap();
        case.expected.promotion_digest = codex_provenance::promotion::payload_digest(&payload);
        case.refusal()
    };
    let gate = |field: &'static str, value: Value| {
        told(&move |statement| statement["predicate"]["evaluations"][0]["gates"][0][field] = value.clone())
    };
    let refused = "the promotion bundle is refused: evaluation arithmetic ";
    assert_eq!(
        gate("verdict", json!("banana")),
        format!("{refused}states verdict banana of exact_match, but its measurements give Passed")
    );
    assert_eq!(
        gate("value", json!("0.5")),
        format!("{refused}states value 0.5 of exact_match, but its measurements give 0.99")
    );
    assert!(gate("verdict", json!("Failed")).starts_with(&format!("{refused}states verdict Failed")));
    assert!(gate("min", json!("0.999")).starts_with(&format!("{refused}states gatesDigest ")));
    assert!(gate("minSamples", json!(1)).starts_with(&format!("{refused}states gatesDigest ")));
    let few = |statement: &mut Value| {
        statement["predicate"]["evaluations"][0]["metrics"]["exact_match"]["successes"] = json!(1);
    };
    assert!(told(&few).starts_with(&format!("{refused}states reportDigest ")));
    let no_gates = |statement: &mut Value| statement["predicate"]["evaluations"][1]["gates"] = json!([]);
    assert_eq!(told(&no_gates), "the promotion bundle is refused: evaluation cot-lite has no gates");
    assert_eq!(
        told(&|statement| statement["predicate"]["evaluations"] = json!([])),
        "the promotion bundle names no evaluation: nothing shows that the model passed"
    );
    let evil = |statement: &mut Value| {
        statement["predicate"]["evaluations"][0]["name"] = json!("a\u{1b}[1A");
        statement["predicate"]["evaluations"][0]["gates"][0]["verdict"] = json!("b\n");
    };
    assert!(told(&evil).contains("evaluation a\\u{1b}[1A states verdict b\\n of"), "{}", told(&evil));
    let former = |statement: &mut Value| {
        statement["predicateType"] = json!("https://codex-ml.dev/promotion/v1");
        statement["predicate"] = json!({"ring": RING, "evaluations": []});
    };
    let told = told(&former);
    assert!(told.contains("promotion/v1\", which holds neither limits nor measurements"), "{told}");
    assert!(told.ends_with(
        "update the controller, which then signs a new one; status.promotion of the ReasoningPod names its ConfigMap"
    ));
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

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    /// A bundle with a changed byte is refused, or verifies to exactly the same (changed white space or hints).
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

    /// Arbitrary bytes are no bundle, and a signed payload of arbitrary JSON is no statement; neither panics.
    #[test]
    fn arbitrary_bundles_and_payloads_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), text in "[ -~]{0,80}") {
        static GOOD: LazyLock<Case> = LazyLock::new(Case::good);
        prop_assert!(bundle::open(&bytes, KEY.public()).is_err());
        for payload in [&bytes[..], text.as_bytes(), json!({ "_type": text, "predicate": [text] }).to_string().as_bytes()] {
            let signed = KEY.sign(payload).unwrap();
            let told = [
                Case { oms: signed.clone(), ..GOOD.clone() }.refusal(),
                Case { promotion: signed, ..GOOD.clone() }.refusal(),
            ];
            prop_assert!(told.iter().all(|told| told.contains(" statement: ")), "{:?}", told);
        }
    }
}
