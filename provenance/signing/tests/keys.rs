//! Keys: what is stored is read back, and anything but one valid key is refused.

#![allow(clippy::unwrap_used)]

use std::sync::LazyLock;

use base64::{Engine, engine::general_purpose::STANDARD};
use codex_provenance::Sha256;
use codex_signing::{
    bundle,
    key::{PrivateKey, PublicKey, Signer},
};
use proptest::prelude::*;

static KEY: LazyLock<PrivateKey> = LazyLock::new(|| PrivateKey::generate().unwrap());
static OTHER_KEY: LazyLock<PrivateKey> = LazyLock::new(|| PrivateKey::generate().unwrap());

#[test]
fn stored_keys_are_read_back_and_others_refused() {
    let plain = KEY.to_pem().unwrap();
    assert!(plain.starts_with("-----BEGIN PRIVATE KEY-----\n") && !plain.contains('\r'));
    let encrypted = KEY.to_encrypted_pem(b"secret").unwrap();
    assert!(encrypted.starts_with("-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\n"));
    for back in [PrivateKey::from_pem(&plain, b"").unwrap(), PrivateKey::from_pem(&encrypted, b"secret").unwrap()] {
        assert_eq!(back.public().fingerprint(), KEY.public().fingerprint());
        let bundle = back.sign(b"{}").unwrap();
        assert_eq!(bundle::open(&bundle, KEY.public()).unwrap(), b"{}");
    }
    // cosign's older label, line ends of Windows and blocks around the key, and a password that nothing needs.
    let older = encrypted.replace("SIGSTORE", "COSIGN").replace('\n', "\r\n");
    for (text, password) in [(format!("{older}{}", KEY.public().to_pem()), "secret"), (plain.to_string(), "unused")] {
        let back = PrivateKey::from_pem(&text, password.as_bytes()).unwrap();
        assert_eq!(back.public().fingerprint(), KEY.public().fingerprint());
    }
    let empty = KEY.to_encrypted_pem(b"").unwrap();
    assert!(PrivateKey::from_pem(&empty, b"").is_ok(), "cosign allows an empty password");
    assert!(!format!("{:?}", *KEY).contains("PRIVATE KEY"));
    let pem = KEY.public().to_pem();
    assert!(pem.ends_with("-----END PUBLIC KEY-----\n") && pem.lines().all(|line| line.len() <= 64));
    let windows = PublicKey::from_pem(&pem.replace('\n', "\r\n")).unwrap();
    assert_eq!(windows.fingerprint(), Sha256::of(pem));
    let ed25519 = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n";
    assert!(PublicKey::from_pem(ed25519).unwrap_err().to_string().contains("is of another kind"));
}

/// Whatever openssl writes for a key on P-256 is read; other keys are refused with the form that is wanted.
#[test]
fn private_keys_of_openssl_are_read_or_refused_with_the_wanted_form() {
    let fixture = |name: &str| std::fs::read_to_string(format!("tests/fixtures/openssl-{name}.pem")).unwrap();
    let (sec1, pkcs8) = (fixture("ecparam"), fixture("pkcs8"));
    let key = PrivateKey::from_pem(&pkcs8, b"").unwrap();
    let after = format!("{sec1}{}", key.public().to_pem());
    for text in [&sec1, &sec1.replace('\n', "\r\n"), &format!("\u{feff}my key\n{sec1}"), &after, &format!("{sec1}\n\n")]
    {
        let read = PrivateKey::from_pem(text, b"").unwrap();
        assert_eq!(read.public().fingerprint(), key.public().fingerprint(), "{text}");
        assert_eq!(bundle::open(&read.sign(b"{}").unwrap(), key.public()).unwrap(), b"{}");
        assert_eq!(
            PrivateKey::from_pem(&read.to_pem().unwrap(), b"").unwrap().public().fingerprint(),
            key.public().fingerprint()
        );
    }
    let encrypted = "encrypted (openssl pkey -in FILE -out private.pem decrypts it)";
    let kind = "of another kind or on another curve, or damaged";
    for (text, found) in [
        (String::new(), "not PEM"),
        ("no key".to_owned(), "not PEM"),
        (sec1.lines().take(4).collect::<Vec<_>>().join("\n"), "missing among the PEM blocks (EC PARAMETERS)"),
        (key.public().to_pem().to_owned(), "missing among the PEM blocks (PUBLIC KEY)"),
        (sec1.replace("MHcC", "MHcD"), kind),
        (sec1.replace("MHcC", "!!!!"), "damaged PEM"),
        (format!("{sec1}{pkcs8}"), "given 2 times"),
        (fixture("encrypted-sec1"), encrypted),
        (fixture("encrypted-pkcs8"), encrypted),
        (
            KEY.to_encrypted_pem(b"secret").unwrap().to_string(),
            "encrypted by cosign, and the password does not decrypt it to such a key",
        ),
        (fixture("p384"), kind),
        (fixture("ed25519"), kind),
        (fixture("rsa"), "a PEM block \"RSA PRIVATE KEY\""),
    ] {
        let told = PrivateKey::from_pem(&text, b"wrong").unwrap_err().to_string();
        let wanted = "give one ECDSA key on the curve P-256 in PEM, unencrypted as openssl genpkey -algorithm EC -pkeyopt \
                      ec_paramgen_curve:P-256 writes it, or encrypted as cosign generate-key-pair writes it";
        assert_eq!(told, format!("the private key is {found}: {wanted}"), "{text}");
    }
}

/// A PEM file holds exactly one public key, in one form, with a point on its curve.
#[test]
fn ambiguous_and_invalid_keys_are_refused() {
    let told = |pem: &str| PublicKey::from_pem(pem).unwrap_err().to_string();
    let (pem, other) = (KEY.public().to_pem(), OTHER_KEY.public().to_pem());
    assert!(PublicKey::from_pem(&format!("My key:\n\n{pem}\nthanks\n")).is_ok());
    let several = "the public key has 2 PEM blocks: give a file with exactly one public key";
    assert_eq!(told(&format!("{pem}{other}")), several);
    assert_eq!(told(&format!("{pem}{pem}")), several);
    assert_eq!(told(&format!("-----BEGIN EC PARAMETERS-----\nBggq\n-----END EC PARAMETERS-----\n{pem}")), several);
    assert_eq!(
        told("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
        "the public key is a PEM block \"CERTIFICATE\": give a PUBLIC KEY"
    );
    assert!(told(&format!("{pem}{}", &*KEY.to_pem().unwrap())).contains("holds a private key"));
    assert!(told("").contains("is not PEM"));

    let der = STANDARD.decode(pem.lines().filter(|line| !line.starts_with('-')).collect::<String>()).unwrap();
    let key = |der: &[u8]| format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der));
    assert_eq!(PublicKey::from_pem(&key(&der)).unwrap().fingerprint(), KEY.public().fingerprint());
    let mut off = der.clone();
    *off.last_mut().unwrap() ^= 1;
    assert_eq!(told(&key(&off)), "the public key is invalid: its point is not on the curve");
    // Compressed and hybrid forms of the same point would have other fingerprints.
    let (head, point) = der.split_at(der.len() - 65);
    let mut hybrid = der.clone();
    hybrid[head.len()] = 6 + (point[64] & 1);
    assert!(told(&key(&hybrid)).contains("is of another kind"), "{}", told(&key(&hybrid)));
    let mut compressed = head.to_vec();
    compressed[1] -= 32;
    let bits = compressed.len() - 2;
    compressed[bits] -= 32;
    compressed.push(2 + (point[64] & 1));
    compressed.extend(&point[1..33]);
    assert!(told(&key(&compressed)).contains("is of another kind"), "{}", told(&key(&compressed)));
}

proptest! {
    /// Arbitrary text is no public key.
    #[test]
    fn arbitrary_keys_are_refused(text: String, body in "[A-Za-z0-9+/=\n]{0,200}") {
        prop_assert!(PublicKey::from_pem(&text).is_err());
        let block = format!("-----BEGIN PUBLIC KEY-----\n{body}\n-----END PUBLIC KEY-----\n");
        prop_assert!(PublicKey::from_pem(&block).is_err());
    }
}
