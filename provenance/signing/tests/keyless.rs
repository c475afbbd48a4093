//! Keyless bundles: a recorded one of Sigstore's staging instance, and what it must not pass as.
//!
//! Fixtures: `fixtures/keyless/dsse.sigstore.json` is `a.dsse.staging-rekor-v2.txt.sigstore.json` of sigstore-python (Apache-2.0,
//! commit 71b63df1aea910fbfe5ba0fb1dc1199a27f56b25): Rekor v2 and a timestamp. `trusted_root.json` is the trusted root of the
//! staging instance. `fixtures/conformance` has bundles that other projects publish: Rekor v1, whose log gives the time.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::LazyLock;

use codex_provenance::manifest::Manifest;
use codex_signing::{
    bundle::{self, BundleError},
    key::{PrivateKey, Signer as _},
    keyless::{Identity, IdentityPattern, Keyless, Root},
    log::{self, LogError, LogKeys},
    verify::{Trusted, Trusts as _, VerifyError, verify_signature},
};
use serde_json::{Value, json};

const ISSUER: &str = "https://token.actions.githubusercontent.com";
const SUBJECT: &str = "https://github.com/sigstore-conformance/extremely-dangerous-public-oidc-beacon/.github/workflows/\
                       extremely-dangerous-oidc-beacon.yml@refs/heads/main";

static BUNDLE: LazyLock<Vec<u8>> =
    LazyLock::new(|| std::fs::read("tests/fixtures/keyless/dsse.sigstore.json").unwrap());
static ROOT: LazyLock<String> =
    LazyLock::new(|| std::fs::read_to_string("tests/fixtures/keyless/trusted_root.json").unwrap());

static PUBLIC_ROOT: LazyLock<String> =
    LazyLock::new(|| std::fs::read_to_string("tests/fixtures/conformance/public-good/trusted_root.json").unwrap());

/// A bundle that others publish, by an identity.
struct Vector {
    folder: &'static str,
    root: &'static LazyLock<String>,
    issuer: &'static str,
    subject: &'static str,
    /// The name of what its statement is about.
    about: &'static str,
}

static VECTORS: [Vector; 5] = [
    Vector { folder: "happy-path", root: &PUBLIC_ROOT, issuer: ISSUER, subject: SUBJECT, about: "a.txt" },
    Vector {
        folder: "public-good",
        root: &PUBLIC_ROOT,
        issuer: ISSUER,
        subject: "https://github.com/prefix-dev/sigstore-example/.github/workflows/action.yaml@refs/heads/main",
        about: "signed-package-2.1.0-hb0f4dca_0.conda",
    },
    Vector {
        folder: "publish-attestation",
        root: &PUBLIC_ROOT,
        issuer: ISSUER,
        subject: "https://github.com/trailofbits/pypi-attestation-models/.github/workflows/release.yml@refs/tags/v0.0.4a2",
        about: "pypi_attestation_models-0.0.4a2.tar.gz",
    },
    Vector {
        folder: "oci-attestation",
        root: &PUBLIC_ROOT,
        issuer: "https://github.com/login/oauth",
        subject: "cody@soyland.com",
        about: "127.0.0.1:60943/repo",
    },
    Vector {
        folder: "publish-attestation-staging",
        root: &ROOT,
        issuer: "https://github.com/login/oauth",
        subject: "william@yossarian.net",
        about: "rfc8785-0.1.2-py3-none-any.whl",
    },
];

impl Vector {
    fn trust(&self) -> Keyless {
        trust(self.root, self.subject, self.issuer)
    }

    fn bundle(&self) -> Vec<u8> {
        published(self.folder)
    }
}

/// A change of a bundle.
type Change = fn(&mut Value);

fn published(folder: &str) -> Vec<u8> {
    std::fs::read(format!("tests/fixtures/conformance/{folder}/bundle.sigstore.json")).unwrap()
}

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

/// Bundles of others, with entries of Rekor v1 and no timestamp of an authority.
#[test]
fn published_bundles_are_verified_with_their_root_for_the_identity_that_signed() {
    for vector in &VECTORS {
        let Vector { folder, root, issuer, subject, about } = vector;
        let bundle = vector.bundle();
        let opened = vector.trust().open(&bundle).unwrap_or_else(|why| panic!("{folder}: {why}"));
        let identity = Identity { issuer: (*issuer).to_owned(), subject: (*subject).to_owned() };
        assert_eq!((opened.signer, opened.identity), (identity.fingerprint(), Some(identity)), "{folder}");
        let statement: Value = serde_json::from_slice(&opened.payload).unwrap();
        assert_eq!(statement["subject"][0]["name"], json!(about), "{folder}");

        let another = told(&bundle, &trust(root, "https://example.com/a", issuer));
        assert_eq!(another, format!("was signed by another identity: {subject}, but https://example.com/a is trusted"));
        let another = told(&bundle, &trust(root, subject, "https://accounts.example.com"));
        assert!(
            another.starts_with(&format!("was signed by an identity of another issuer: {issuer}, but ")),
            "{another}"
        );
        let foreign = if std::ptr::eq(*root, &raw const ROOT) { &PUBLIC_ROOT } else { &ROOT };
        let another = told(&bundle, &trust(foreign, subject, issuer));
        assert!(another.starts_with("is not validly signed by an identity: "), "{folder}: {another}");
    }
}

/// Flips a bit in the last byte of a field in base64.
fn flip(bundle: &mut Value, pointer: &str) {
    use ::base64::{Engine as _, engine::general_purpose::STANDARD};
    let field = bundle.pointer_mut(pointer).unwrap();
    let mut bytes = STANDARD.decode(field.as_str().unwrap()).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    *field = json!(base64(&bytes));
}

#[test]
fn published_bundles_that_were_changed_are_refused() {
    let changes: [(&str, Change); 12] = [
        ("a bit of the signature", |bundle| flip(bundle, "/dsseEnvelope/signatures/0/sig")),
        ("a bit of the certificate", |bundle| flip(bundle, "/verificationMaterial/certificate/rawBytes")),
        ("a bit of the entry", |bundle| flip(bundle, "/verificationMaterial/tlogEntries/0/canonicalizedBody")),
        ("a bit of the proof", |bundle| flip(bundle, "/verificationMaterial/tlogEntries/0/inclusionProof/hashes/0")),
        ("a bit of the root", |bundle| flip(bundle, "/verificationMaterial/tlogEntries/0/inclusionProof/rootHash")),
        ("a bit of the signed time", |bundle| {
            flip(bundle, "/verificationMaterial/tlogEntries/0/inclusionPromise/signedEntryTimestamp");
        }),
        ("another time", |bundle| {
            bundle["verificationMaterial"]["tlogEntries"][0]["integratedTime"] = json!("1600000000");
        }),
        ("another index", |bundle| bundle["verificationMaterial"]["tlogEntries"][0]["logIndex"] = json!("7")),
        ("no signed time", |bundle| {
            bundle["verificationMaterial"]["tlogEntries"][0].as_object_mut().unwrap().remove("inclusionPromise");
        }),
        ("no proof", |bundle| {
            bundle["verificationMaterial"]["tlogEntries"][0].as_object_mut().unwrap().remove("inclusionProof");
        }),
        ("no entry", |bundle| bundle["verificationMaterial"]["tlogEntries"] = json!([])),
        ("one more space in the payload", |bundle| {
            use ::base64::{Engine as _, engine::general_purpose::STANDARD};
            let payload = STANDARD.decode(bundle["dsseEnvelope"]["payload"].as_str().unwrap()).unwrap();
            bundle["dsseEnvelope"]["payload"] = json!(base64(&[payload.as_slice(), b" "].concat()));
        }),
    ];
    for vector in &VECTORS {
        let (bundle, keyless) = (vector.bundle(), vector.trust());
        for (what, change) in &changes {
            let changed = edited(&bundle, change);
            assert_ne!(changed, edited(&bundle, |_| ()), "{}: {what}", vector.folder);
            let told = told(&changed, &keyless);
            assert!(told.starts_with("is not validly signed by an identity: "), "{}: {what}: {told}", vector.folder);
        }
    }
}

/// CVE-2022-36056: a log entry that is genuine, and about another signature.
#[test]
fn parts_of_another_published_bundle_are_refused() {
    for vector in &VECTORS {
        for other in VECTORS.iter().filter(|other| other.folder != vector.folder) {
            let there: Value = serde_json::from_slice(&other.bundle()).unwrap();
            for part in ["tlogEntries", "certificate"] {
                let mixed = edited(&vector.bundle(), |bundle| {
                    bundle["verificationMaterial"][part] = there["verificationMaterial"][part].clone();
                });
                for keyless in [vector.trust(), other.trust()] {
                    let told = told(&mixed, &keyless);
                    let names = (vector.folder, other.folder);
                    assert!(told.starts_with("is not validly signed by an identity: "), "{part} of {names:?}: {told}");
                }
            }
        }
    }
}

#[test]
fn published_bundles_of_another_form_are_refused_with_the_reason() {
    let keyless = trust(&PUBLIC_ROOT, SUBJECT, ISSUER);
    assert_eq!(told(&published("message-signature_fail"), &keyless), "has no DSSE envelope");
    let former = published("npm-provenance-v0.1_fail");
    assert_eq!(
        told(&former, &keyless),
        "has the media type \"application/vnd.dev.sigstore.bundle+json;version=0.1\"; only \"application/vnd.dev.sigstore.bundle.v0.3+json\" \
         is supported"
    );
    // A chain of certificates belongs to the former versions.
    let renamed = edited(&former, |bundle| bundle["mediaType"] = json!(bundle::MEDIA_TYPE));
    assert_eq!(told(&renamed, &keyless), "is not validly signed by an identity: it has no certificate");
    let twice = edited(&published("happy-path"), |bundle| {
        let signatures = bundle["dsseEnvelope"]["signatures"].as_array_mut().unwrap();
        signatures.push(signatures[0].clone());
    });
    assert_eq!(told(&twice, &keyless), "has 2 signatures; exactly one is required");
}

/// Their signatures are valid, and what they hold is no statement about a model.
#[test]
fn published_statements_are_no_signatures_of_models() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("config.json"), "{}").unwrap();
    let manifest = Manifest::of_dir(directory.path()).unwrap();
    for vector in &VECTORS {
        let refused = verify_signature(&manifest, &vector.bundle(), &vector.trust(), None).unwrap_err();
        let VerifyError::OmsStatement(told) = &refused else { panic!("{}: {refused}", vector.folder) };
        let kind = if vector.folder == "oci-attestation" { "its type is " } else { "its predicate type is " };
        assert!(told.starts_with(kind), "{}: {told}", vector.folder);
    }
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
