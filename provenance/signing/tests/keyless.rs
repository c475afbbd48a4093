//! Keyless bundles: a recorded one of Sigstore's staging instance, and what it must not pass as.
//!
//! Fixtures: `fixtures/keyless/dsse.sigstore.json` is `a.dsse.staging-rekor-v2.txt.sigstore.json` of sigstore-python (Apache-2.0,
//! commit 71b63df1aea910fbfe5ba0fb1dc1199a27f56b25): Rekor v2 and a timestamp. `trusted_root.json` is the trusted root of the
//! staging instance. `fixtures/conformance/public-good` has a bundle of the public instance: Rekor v1, whose log gives the time.

#![allow(clippy::unwrap_used)]

use std::sync::LazyLock;

use codex_signing::{
    bundle::{self, BundleError},
    key::{PrivateKey, Signer as _},
    keyless::{Identity, IdentityPattern, Keyless, Root},
    log::{self, LogError, LogKeys},
    verify::{Trusted, Trusts as _},
};
use serde_json::{Value, json};

const ISSUER: &str = "https://token.actions.githubusercontent.com";
const SUBJECT: &str = "https://github.com/sigstore-conformance/extremely-dangerous-public-oidc-beacon/.github/workflows/\
                       extremely-dangerous-oidc-beacon.yml@refs/heads/main";

static BUNDLE: LazyLock<Vec<u8>> =
    LazyLock::new(|| std::fs::read("tests/fixtures/keyless/dsse.sigstore.json").unwrap());
static ROOT: LazyLock<String> =
    LazyLock::new(|| std::fs::read_to_string("tests/fixtures/keyless/trusted_root.json").unwrap());

/// A change of a bundle.
type Change = fn(&mut Value);

fn trust(root: &str, subject: &str, issuer: &str) -> Keyless {
    Keyless::new(root, subject, issuer).map_err(|why| why.to_string()).unwrap()
}

fn told(bundle: &[u8], keyless: &Keyless) -> String {
    keyless.open(bundle).map(|opened| opened.signer).unwrap_err().to_string()
}

fn edited(text: &[u8], edit: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut value = serde_json::from_slice(text).unwrap();
    edit(&mut value);
    serde_json::to_vec(&value).unwrap()
}

#[test]
fn a_recorded_bundle_is_verified_and_names_who_signed() {
    let subjects = [SUBJECT, "https://github.com/sigstore-conformance/*/.github/workflows/*.yml@refs/heads/main"];
    for subject in subjects {
        let opened = trust(&ROOT, subject, ISSUER).open(&BUNDLE).unwrap();
        let identity = Identity { issuer: ISSUER.to_owned(), subject: SUBJECT.to_owned() };
        assert_eq!((opened.signer, opened.identity.as_ref()), (identity.fingerprint(), Some(&identity)));
        let statement: Value = serde_json::from_slice(&opened.payload).unwrap();
        assert_eq!(statement["subject"][0]["name"], json!("a.txt"));
    }
}

/// A bundle of somebody else from the public instance of Sigstore, with an entry of Rekor v1 and no timestamp of an authority.
#[test]
fn a_bundle_of_the_public_instance_is_verified() {
    let read = |name: &str| std::fs::read(format!("tests/fixtures/conformance/public-good/{name}")).unwrap();
    let (bundle, root) = (read("bundle.sigstore.json"), String::from_utf8(read("trusted_root.json")).unwrap());
    let subject = "https://github.com/prefix-dev/sigstore-example/.github/workflows/action.yaml@refs/heads/main";
    let opened = trust(&root, subject, ISSUER).open(&bundle).unwrap();
    let identity = Identity { issuer: ISSUER.to_owned(), subject: subject.to_owned() };
    assert_eq!(opened.identity, Some(identity));
    let statement: Value = serde_json::from_slice(&opened.payload).unwrap();
    assert_eq!(statement["predicateType"], json!("https://schemas.conda.org/attestations-publish-1.schema.json"));
    let told = told(&bundle, &trust(&root, SUBJECT, ISSUER));
    assert!(told.starts_with("was signed by another identity: "), "{told}");
    assert!(trust(&ROOT, subject, ISSUER).open(&bundle).is_err(), "the staging instance has other authorities");
    let no_entry = edited(&bundle, |bundle| bundle["verificationMaterial"]["tlogEntries"] = json!([]));
    assert!(trust(&root, subject, ISSUER).open(&no_entry).is_err());
}

#[test]
fn another_identity_and_another_issuer_are_refused() {
    let other = SUBJECT.replace("refs/heads/main", "refs/heads/fork");
    assert_eq!(
        told(&BUNDLE, &trust(&ROOT, &other, ISSUER)),
        format!("was signed by another identity: {SUBJECT}, but {other} is trusted")
    );
    assert_eq!(
        told(&BUNDLE, &trust(&ROOT, SUBJECT, "https://accounts.example.com")),
        format!("was signed by an identity of another issuer: {ISSUER}, but https://accounts.example.com is trusted")
    );
}

#[test]
fn what_is_missing_or_changed_is_refused() {
    let keyless = trust(&ROOT, SUBJECT, ISSUER);
    let changes: [(&str, Change); 7] = [
        ("no timestamp", |bundle| {
            bundle["verificationMaterial"]["timestampVerificationData"]["rfc3161Timestamps"] = json!([]);
        }),
        ("no log entry", |bundle| bundle["verificationMaterial"]["tlogEntries"] = json!([])),
        ("no inclusion proof", |bundle| {
            bundle["verificationMaterial"]["tlogEntries"][0].as_object_mut().unwrap().remove("inclusionProof");
        }),
        ("a forged inclusion proof", |bundle| {
            let proof = &mut bundle["verificationMaterial"]["tlogEntries"][0]["inclusionProof"];
            proof["hashes"].as_array_mut().unwrap().push(json!("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="));
        }),
        ("a forged checkpoint", |bundle| {
            let proof = &mut bundle["verificationMaterial"]["tlogEntries"][0]["inclusionProof"];
            let signed = proof["checkpoint"]["envelope"].as_str().unwrap();
            let (origin, rest) = signed.split_once('\n').unwrap();
            let (_, rest) = rest.split_once('\n').unwrap();
            proof["checkpoint"]["envelope"] = json!(format!("{origin}\n9\n{rest}"));
        }),
        ("another payload", |bundle| {
            let other = json!({"_type": "https://in-toto.io/Statement/v1", "predicateType": "x", "predicate": {},
                "subject": [{"name": "a.txt", "digest": {"sha256": "0".repeat(64)}}]});
            bundle["dsseEnvelope"]["payload"] = json!(base64(other.to_string().as_bytes()));
        }),
        ("no certificate", |bundle| drop(bundle["verificationMaterial"].take())),
    ];
    for (what, change) in changes {
        assert!(keyless.open(&edited(&BUNDLE, change)).is_err(), "{what}");
    }
    let without = edited(&BUNDLE, |bundle| {
        bundle["verificationMaterial"]["timestampVerificationData"]["rfc3161Timestamps"] = json!([]);
    });
    assert!(
        told(&without, &keyless).starts_with("is not validly signed by an identity: "),
        "{}",
        told(&without, &keyless)
    );
}

#[test]
fn another_log_another_authority_and_another_clock_are_refused() {
    let key = PrivateKey::generate().unwrap();
    let other = json!(key.public().to_pem().lines().filter(|line| !line.starts_with('-')).collect::<String>());
    let with = |edit: &dyn Fn(&mut Value)| {
        let root = String::from_utf8(edited(ROOT.as_bytes(), edit)).unwrap();
        Keyless::new(&root, SUBJECT, ISSUER).map_err(|why| why.to_string()).map(|keyless| told(&BUNDLE, &keyless))
    };
    // Every log has another key.
    let log = with(&|root| {
        for log in root["tlogs"].as_array_mut().unwrap() {
            log["publicKey"]["keyDetails"] = json!("PKIX_ECDSA_P256_SHA_256");
            log["publicKey"]["rawBytes"] = other.clone();
        }
    });
    // Whether such a root is refused as a whole, or the bundle by it: nothing is verified.
    assert!(log.is_err() || log.as_ref().unwrap().contains("is not validly signed"), "{log:?}");
    // Authorities whose time had ended.
    for kind in ["certificateAuthorities", "timestampAuthorities"] {
        let authority = with(&|root| {
            for authority in root[kind].as_array_mut().unwrap() {
                authority["validFor"] = json!({"start": "2001-01-01T00:00:00Z", "end": "2001-02-01T00:00:00Z"});
            }
        });
        assert!(authority.unwrap().starts_with("is not validly signed by an identity: "), "{kind}");
    }
    let clock = with(&|root| root["timestampAuthorities"] = json!([]));
    assert!(clock.unwrap().starts_with("is not validly signed by an identity: "));
}

#[test]
fn roots_and_identities_that_verify_nothing_are_refused() {
    let refused = |root: &str, subject: &str, issuer: &str| {
        Keyless::new(root, subject, issuer).map(drop).unwrap_err().to_string()
    };
    assert!(refused("{}", SUBJECT, ISSUER).starts_with("the trusted root "), "{}", refused("{}", SUBJECT, ISSUER));
    assert!(refused("no JSON", SUBJECT, ISSUER).starts_with("the trusted root is invalid: "));
    let lacking = |field: &str| {
        let root = edited(ROOT.as_bytes(), |root| root[field] = json!([]));
        refused(std::str::from_utf8(&root).unwrap(), SUBJECT, ISSUER)
    };
    assert!(lacking("tlogs").contains("names no transparency log"));
    assert!(lacking("certificateAuthorities").contains("names no certificate authority"));
    assert!(refused(&ROOT, "", ISSUER).contains("identity of the certificate is empty"));
    assert!(refused(&ROOT, SUBJECT, "").contains("issuer of the certificate is empty"));
    assert!(refused(&ROOT, SUBJECT, "https://*.example.com").contains("name it exactly"));
}

#[test]
fn keys_and_identities_do_not_stand_in_for_each_other() {
    let key = PrivateKey::generate().unwrap();
    let signed = key.sign(br#"{"_type": "https://in-toto.io/Statement/v1"}"#).unwrap();
    let keyless = trust(&ROOT, SUBJECT, ISSUER);
    assert_eq!(told(&signed, &keyless), "is signed with a key; an identity is required, which a certificate names");
    assert!(matches!(bundle::open(&BUNDLE, key.public()), Err(BundleError::NoKey)));
}

#[test]
fn a_root_ends_with_its_last_authority_of_a_kind() {
    let ends = |edit: &dyn Fn(&mut Value)| {
        let root = edited(ROOT.as_bytes(), edit);
        Root::from_json(std::str::from_utf8(&root).unwrap()).map_err(|why| why.to_string()).unwrap().ends()
    };
    let at = |text: &str| Some(text.parse::<jiff::Timestamp>().unwrap());
    assert_eq!(ends(&|_| ()), at("2035-03-26T08:14:06Z"), "of two timestamp authorities, the later one");
    let first_alone = |root: &mut Value| drop(root["timestampAuthorities"].as_array_mut().unwrap().remove(0));
    assert_eq!(ends(&first_alone), at("2027-06-09T23:20:38Z"));
    let limited = |root: &mut Value| {
        for authority in root["certificateAuthorities"].as_array_mut().unwrap() {
            authority["validFor"]["end"] = json!("2026-12-31T00:00:00Z");
        }
    };
    assert_eq!(ends(&limited), at("2026-12-31T00:00:00Z"));
}

#[test]
fn keys_and_identities_are_trusted_together() {
    let (key, other) = (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
    let by = |key: &PrivateKey| key.sign(br#"{"_type": "https://in-toto.io/Statement/v1"}"#).unwrap();
    let patterns = |subjects: &[&str]| {
        subjects.iter().map(|subject| IdentityPattern::new(ISSUER, subject).unwrap()).collect::<Vec<_>>()
    };
    let root = std::sync::Arc::new(Root::from_json(&ROOT).map_err(|why| why.to_string()).unwrap());
    let trusted = |subjects: &[&str]| Trusted {
        keys: vec![key.public().clone()],
        identities: vec![Keyless::of(root.clone(), patterns(subjects))],
    };
    let both = trusted(&[SUBJECT, "https://example.com/*"]);
    assert_eq!(both.open(&by(&key)).unwrap().signer, key.public().fingerprint());
    assert_eq!(both.open(&BUNDLE).unwrap().identity.unwrap().subject, SUBJECT);
    assert_eq!(both.fingerprints().len(), 2, "a pattern has no fingerprint");
    assert!(matches!(both.open(&by(&other)), Err(BundleError::AnotherKey { .. })));
    let refused = trusted(&["https://example.com/a", "https://example.com/*"]).open(&BUNDLE).unwrap_err();
    let told = refused.to_string();
    assert!(told.contains(SUBJECT) && told.contains("but only https://example.com/a (issuer"), "{told}");
    assert!(Trusted::default().is_empty() && Trusted::default().open(&BUNDLE).is_err());
    let keys = Trusted { keys: vec![key.public().clone()], identities: Vec::new() };
    assert!(matches!(keys.open(&BUNDLE), Err(BundleError::NoKey)));
}

fn base64(bytes: &[u8]) -> String {
    use ::base64::{Engine as _, engine::general_purpose::STANDARD};
    STANDARD.encode(bytes)
}

/// The checkpoint of the recorded log, and the entry that it recorded.
#[test]
fn a_recorded_checkpoint_and_entry_are_read() {
    let bundle: Value = serde_json::from_slice(&BUNDLE).unwrap();
    let entry = &bundle["verificationMaterial"]["tlogEntries"][0];
    let checkpoint = entry["inclusionProof"]["checkpoint"]["envelope"].as_str().unwrap();
    let keys = LogKeys::of_root(&ROOT).unwrap();
    let head = keys.open(checkpoint).unwrap();
    assert_eq!((head.origin.as_str(), head.size), ("log2025-alpha3.rekor.sigstage.dev", 4_026_479));
    let told = keys.open(&checkpoint.replace("4026479", "4026480")).unwrap_err().to_string();
    assert!(told.contains("is not signed by a log of the trusted root"), "{told}");
    assert!(matches!(keys.open("x"), Err(LogError::Checkpoint(_))));
    assert!(matches!(LogKeys::of_root("{}"), Err(LogError::Root(_))));
    let [body] = &log::logged(&bundle).unwrap()[..] else { panic!("one entry") };
    let named = |entry: &[u8]| -> Vec<(String, String)> {
        log::identities(entry).into_iter().map(|identity| (identity.subject, identity.issuer)).collect()
    };
    let own = [(SUBJECT.to_owned(), ISSUER.to_owned())];
    assert_eq!(named(body), own);
    // Of an entry with several signatures, each counts.
    let entry: Value = serde_json::from_slice(body).unwrap();
    let signature =
        entry.pointer("/spec/hashedRekordV002/signature").or(entry.pointer("/spec/dsseV002/signatures/0")).unwrap();
    let other = json!({ "verifier": { "publicKey": {} } });
    let several = json!({ "spec": { "dsseV002": { "signatures": [other, signature] } } });
    assert_eq!(named(several.to_string().as_bytes()), own);
}
