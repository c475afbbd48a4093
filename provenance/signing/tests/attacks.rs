//! Bundles and statements that are JSON in name only, say two things, or carry a signature that was made for something else. With
//! `verify.rs` and `keyless.rs` these are the lines about bundles in the table of attacks of `docs/security.md`.

#![allow(clippy::unwrap_used)]

use std::sync::LazyLock;

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use codex_provenance::{
    manifest::Manifest,
    oms::{self, Statement},
    promotion::Promotion,
};
use codex_signing::{
    bundle,
    key::{PrivateKey, Signer as _},
    verify::verify_signature,
};
use serde_json::{Value, json};

static KEY: LazyLock<PrivateKey> = LazyLock::new(|| PrivateKey::generate().unwrap());

fn manifest() -> Manifest {
    Manifest::of_files(&[("config.json".to_owned(), b"{}".to_vec())].into()).unwrap()
}

fn signed() -> Vec<u8> {
    KEY.sign(&oms::payload(&manifest(), "cot")).unwrap()
}

/// Verifies a bundle as the signature of the model.
fn refused(bundle: &[u8]) -> String {
    verify_signature(&manifest(), bundle, KEY.public(), None).map(|signed| signed.model).unwrap_err().to_string()
}

/// A bundle that holds this payload and signature.
fn assembled(payload: &[u8], payload_type: &str, signature: &[u8]) -> Vec<u8> {
    let mut bundle: Value = serde_json::from_slice(&signed()).unwrap();
    bundle["dsseEnvelope"]["payload"] = json!(STANDARD.encode(payload));
    bundle["dsseEnvelope"]["payloadType"] = json!(payload_type);
    bundle["dsseEnvelope"]["signatures"][0]["sig"] = json!(STANDARD.encode(signature));
    bundle.to_string().into_bytes()
}

/// Signs bytes as they are, without the encoding of DSSE.
fn raw(message: &[u8]) -> Vec<u8> {
    let der = pem::parse(KEY.to_pem().unwrap().as_bytes()).unwrap().into_contents();
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &der).unwrap();
    key.sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec()
}

#[test]
fn a_bundle_that_is_cut_is_refused_at_every_length() {
    let good = signed();
    assert!(verify_signature(&manifest(), &good, KEY.public(), None).is_ok());
    for length in 0..good.len() {
        let told = refused(&good[..length]);
        assert!(told.starts_with("the OMS bundle is not a Sigstore bundle: "), "{length}: {told}");
    }
}

#[test]
fn deep_json_is_refused_and_exhausts_no_stack() {
    const DEPTH: usize = 1_000_000;
    let deep = ["[".repeat(DEPTH), "]".repeat(DEPTH)].concat();
    for bundle in [deep.clone(), format!(r#"{{"mediaType": {deep}}}"#), format!(r#"{{"surprise": {deep}}}"#)] {
        let told = refused(bundle.as_bytes());
        assert!(told.starts_with("the OMS bundle is not a Sigstore bundle: "), "{told}");
    }
    // The same in a statement, which the right key signed.
    let statement = String::from_utf8(oms::payload(&manifest(), "cot")).unwrap();
    for edited in [deep.clone(), statement.replacen('{', &format!(r#"{{"surprise":{deep},"#), 1)] {
        let told = refused(&KEY.sign(edited.as_bytes()).unwrap());
        assert!(told.starts_with("the OMS bundle has no valid model signing statement: "), "{told}");
    }
}

#[test]
fn a_key_that_occurs_twice_is_refused_in_bundles_and_in_signed_statements() {
    let bundle = String::from_utf8(signed()).unwrap();
    let envelope = serde_json::from_str::<Value>(&bundle).unwrap()["dsseEnvelope"].to_string();
    let twice = bundle.replacen('{', &format!(r#"{{"dsseEnvelope":{envelope},"#), 1);
    let told = refused(twice.as_bytes());
    assert!(told.starts_with("the OMS bundle is not a Sigstore bundle: "), "{told}");

    let statement = String::from_utf8(oms::payload(&manifest(), "cot")).unwrap();
    for (before, after) in [
        ("{", r#"{"predicateType":"https://model_signing/signature/v1.0","#),
        (r#""predicate":{"#, r#""predicate":{"resources":[],"#),
    ] {
        let told = Statement::read(statement.replacen(before, after, 1).as_bytes()).unwrap_err();
        assert!(told.contains("duplicate field") || told.contains("occurs twice"), "{told}");
    }
    // In maps, whose keys are data: a promotion names data by name.
    let map = r#"{"_type":"https://in-toto.io/Statement/v1","predicate":{"data":{"a":1,"b":2,"a":3}},
        "predicateType":"https://codex-ml.dev/promotion/v2","subject":[{"digest":{"sha256":"DIGEST"},"name":"model"}]}"#;
    let told = Promotion::read(map.replace("DIGEST", &"0".repeat(64)).as_bytes()).unwrap_err();
    assert!(told.contains(r#"the key "a" occurs twice"#), "{told}");
}

#[test]
fn numbers_that_json_does_not_have_are_refused() {
    for number in ["NaN", "Infinity", "-Infinity", "1e400", "-1e400", "0x1", "01", "+1"] {
        let statement = format!(
            r#"{{"_type":"https://in-toto.io/Statement/v1","predicate":{{"n":{number}}},
            "predicateType":"https://codex-ml.dev/promotion/v2","subject":[{{"digest":{{"sha256":"{}"}},"name":"model"}}]}}"#,
            "0".repeat(64)
        );
        let told = Promotion::read(statement.as_bytes()).unwrap_err();
        assert!(told.contains(" at line 1 column "), "{number}: {told}");
    }
}

/// The encoding that DSSE signs holds the payload's type and both lengths: no signature counts for another type or another form.
#[test]
fn a_signature_over_another_type_or_form_does_not_count() {
    const IN_TOTO: &str = "application/vnd.in-toto+json";
    let payload = oms::payload(&manifest(), "cot");
    let encoded = |payload_type: &str, payload: &[u8]| {
        let head = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len());
        [head.as_bytes(), payload].concat()
    };
    let good = assembled(&payload, IN_TOTO, &raw(&encoded(IN_TOTO, &payload)));
    assert!(verify_signature(&manifest(), &good, KEY.public(), None).is_ok());
    let plain = "application/json";
    for message in [
        payload.clone(),
        STANDARD.encode(&payload).into_bytes(),
        encoded(plain, &payload),
        encoded(IN_TOTO, STANDARD.encode(&payload).as_bytes()),
        // Without lengths, another division into type and payload would encode to the same.
        [b"DSSEv1 ", IN_TOTO.as_bytes(), b" ", &payload[..]].concat(),
    ] {
        let told = refused(&assembled(&payload, IN_TOTO, &raw(&message)));
        assert!(told.starts_with("the OMS bundle has an invalid signature"), "{told}");
    }
    let told = refused(&assembled(&payload, plain, &raw(&encoded(plain, &payload))));
    assert!(told.contains(r#"has the payload type "application/json""#), "{told}");
}

/// What `cosign sign-blob` makes: a signature over a digest, and no statement that says what it is about.
#[test]
fn a_signature_of_a_blob_is_no_statement() {
    let mut bundle: Value = serde_json::from_slice(&signed()).unwrap();
    let payload = oms::payload(&manifest(), "cot");
    bundle.as_object_mut().unwrap().remove("dsseEnvelope");
    bundle["messageSignature"] = json!({
        "messageDigest": {"algorithm": "SHA2_256", "digest": STANDARD.encode(codex_provenance::Sha256::of(&payload).bytes())},
        "signature": STANDARD.encode(raw(&payload)),
    });
    assert_eq!(refused(bundle.to_string().as_bytes()), "the OMS bundle has no DSSE envelope");
    assert!(bundle::open(bundle.to_string().as_bytes(), KEY.public()).is_err());
}
