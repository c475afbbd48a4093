//! Lists of trusted keys: whatever limits a key is read exactly, or the list is refused.

#![allow(clippy::unwrap_used)]

use codex_provenance::Validity;
use codex_signing::{
    bundle::{self, BundleError},
    key::{PrivateKey, PublicKey, Signer as _},
    trust,
};

fn keys<const N: usize>() -> [PrivateKey; N] {
    std::array::from_fn(|_| PrivateKey::generate().unwrap())
}

fn told(text: &str) -> String {
    trust::read(text).unwrap_err().to_string()
}

#[test]
fn a_list_has_keys_with_their_limits() {
    let [first, second, third] = keys();
    let (first, second, third) = (first.public(), second.public(), third.public());
    let list = format!(
        "# the former key\nnotBefore: 2026-01-01T00:00:00Z\nnotAfter: 2027-01-01T00:00:00+01:00\n{}\n\
         the current one\n{}notAfter:2028-01-01T00:00:00Z\n# notBefore: never\n{}",
        first.to_pem(),
        second.to_pem(),
        third.to_pem()
    );
    let time = |text: &str| Some(text.parse().unwrap());
    for list in [list.clone(), list.replace('\n', "\r\n")] {
        let read = trust::read(&list).unwrap();
        let found: Vec<_> = read.iter().map(|trusted| (trusted.key.fingerprint(), trusted.validity)).collect();
        let former = Validity { not_before: time("2026-01-01T00:00:00Z"), not_after: time("2026-12-31T23:00:00Z") };
        let last = Validity { not_before: None, not_after: time("2028-01-01T00:00:00Z") };
        assert_eq!(
            found,
            [(first.fingerprint(), former), (second.fingerprint(), Validity::default()), (third.fingerprint(), last)]
        );
    }
}

/// A limit that is not understood would otherwise make a key valid for ever.
#[test]
fn a_limit_in_another_form_is_refused() {
    let [key] = keys();
    let pem = key.public().to_pem();
    for line in [
        "notAfter: tomorrow",
        "notAfter: 2027-01-01",
        "notAfter 2027-01-01T00:00:00Z",
        "notafter: 2027-01-01T00:00:00Z",
        "not_after: 2027-01-01T00:00:00Z",
        "Not After : Jan 31 00:00:00 2027 GMT",
        "notBefore=2027-01-01T00:00:00Z",
        "\"notAfter\": 2027-01-01T00:00:00Z",
    ] {
        let told = told(&format!("\n{line}\n{pem}"));
        assert!(told.starts_with("line 2: ") && told.contains("write notBefore: or notAfter:"), "{line}: {told}");
    }
    let limit = "notAfter: 2027-01-01T00:00:00Z\n";
    assert!(told(&format!("{limit}{limit}{pem}")).starts_with("line 2: notAfter stands twice before a key"));
    assert!(told(&format!("{pem}{limit}")).contains("or no key follows"));
    let never = format!("notBefore: 2027-01-01T00:00:00Z\n{limit}{pem}");
    assert_eq!(
        told(&never),
        format!(
            "line 3: the key {} is never valid: its notAfter is not later than its notBefore",
            key.public().fingerprint()
        )
    );
}

#[test]
fn what_is_no_list_of_public_keys_is_refused() {
    let [key] = keys();
    let pem = key.public().to_pem();
    let fingerprint = key.public().fingerprint();
    assert_eq!(
        told(&format!("{pem}{pem}")),
        format!("the key {fingerprint} is listed twice: list it once, with one validity")
    );
    assert!(told("").contains("is not PEM"));
    assert!(told("no key\n").starts_with("line 1: the public key is not PEM"));
    let private = key.to_pem().unwrap();
    let secret = told(&format!("{pem}{}", &*private));
    assert!(secret.starts_with("line 5: ") && secret.contains("holds a private key"), "{secret}");
    let cut: String = pem.split_inclusive('\n').take(2).collect();
    assert!(told(&format!("{pem}{cut}")).starts_with("line 5: "), "{}", told(&format!("{pem}{cut}")));
    let certificate = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    assert!(told(certificate).contains("give a PUBLIC KEY"));
    let many: Vec<_> = std::iter::repeat_n(trust::read(pem).unwrap().remove(0), trust::MAX_KEYS + 1).collect();
    assert!(trust::check(&many).unwrap_err().to_string().contains("list at most 64"));
}

#[test]
fn a_bundle_opens_with_any_trusted_key_and_names_the_one_that_signed() {
    let [first, second, foreign] = keys();
    let both: Vec<PublicKey> = [&first, &second].map(|key| key.public().clone()).into();
    for key in [&first, &second] {
        let bundle = key.sign(b"{}").unwrap();
        let (payload, signer) = bundle::open_with(&bundle, &both).unwrap();
        assert_eq!((payload.as_slice(), signer.fingerprint()), (&b"{}"[..], key.public().fingerprint()));
    }
    let bundle = foreign.sign(b"{}").unwrap();
    let refused = bundle::open_with(&bundle, &both).unwrap_err();
    let [a, b] = [&first, &second].map(|key| key.public().fingerprint());
    assert_eq!(
        refused.to_string(),
        format!(
            "was signed with another key: it names {}, but only {a}, {b} are trusted",
            foreign.public().fingerprint()
        )
    );
    // The hint names a trusted key that did not sign.
    let forged =
        String::from_utf8(bundle).unwrap().replace(&foreign.public().fingerprint().to_string(), &b.to_string());
    let refused = bundle::open_with(forged.as_bytes(), &both).unwrap_err();
    assert_eq!(refused.to_string(), format!("has an invalid signature: the key {b} did not sign this payload"));
    assert!(matches!(bundle::open_with(forged.as_bytes(), &[]), Err(BundleError::Signature(none)) if none.is_empty()));
}
