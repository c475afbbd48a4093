//! What holds keys and says which are trusted: the Secret, the ConfigMap that pins its key, and the list of trusted keys and identities.
//! Pure.

use std::{path::Path, sync::Arc};

use codex_provenance::{Identity, Validity};
use codex_signing::{
    key::{KeyError, PrivateKey, PublicKey},
    trust::{self, TrustedIdentity, TrustedKey},
};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};

use super::{LIST, NAME, PUBLIC};
use crate::{
    error::chain,
    keyless::KeylessSigner,
    secrets::{metadata, secret, value},
};

const PRIVATE: &str = "private.pem";
/// The entries of a Secret as `cosign generate-key-pair k8s://NAMESPACE/NAME` writes them.
const COSIGN_PRIVATE: &str = "cosign.key";
const COSIGN_PASSWORD: &str = "cosign.password";
const FINGERPRINT: &str = "fingerprint";

/// Reads the private key of a Secret: its own form, or cosign's.
pub(super) fn read(secret: &Secret) -> Result<PrivateKey, String> {
    let (name, bytes) = match (value(secret, PRIVATE), value(secret, COSIGN_PRIVATE)) {
        (Some(bytes), None) => (PRIVATE, bytes),
        (None, Some(bytes)) => (COSIGN_PRIVATE, bytes),
        (None, None) => return Err(format!("it has no {PRIVATE:?} and no {COSIGN_PRIVATE:?}")),
        (Some(_), Some(_)) => return Err(format!("it has both {PRIVATE:?} and {COSIGN_PRIVATE:?}: remove one")),
    };
    let text = std::str::from_utf8(bytes).map_err(|_| format!("{name:?} is not UTF-8"))?;
    let password = value(secret, COSIGN_PASSWORD).unwrap_or_default();
    PrivateKey::from_pem(text, password).map_err(|why| {
        format!("{name:?}: {}; the password of an encrypted key is read from {COSIGN_PASSWORD:?}", chain(&why))
    })
}

/// The list of trusted keys and identities.
#[derive(Default)]
pub(super) struct Listed {
    pub(super) keys: Vec<TrustedKey>,
    pub(super) identities: Vec<TrustedIdentity>,
    /// What is wrong with the first entry that cannot be read.
    pub(super) wrong: Option<String>,
}

/// Reads the list of trusted keys and identities: those that can be read, and what is wrong with the first entry that cannot.
pub(super) fn read_list(list: &ConfigMap) -> Listed {
    let Listed { mut keys, mut identities, mut wrong } = Listed::default();
    for (name, text) in list.data.iter().flatten() {
        let read = match Path::new(name).extension().and_then(|end| end.to_str()) {
            Some("pub" | "pem") => trust::read(text).map(|read| keys.extend(read)).map_err(|why| chain(&why)),
            Some("identity") => trust::read_identity(text).map(|read| identities.push(read)).map_err(|why| chain(&why)),
            _ => Err("its name must end in .pub, .pem or .identity".to_owned()),
        };
        if let Err(why) = read {
            wrong.get_or_insert_with(|| format!("the entry {name:?} of the ConfigMap {LIST}: {why}"));
        }
    }
    if keys.is_empty() && identities.is_empty() && wrong.is_none() {
        wrong = Some(format!(
            "the ConfigMap {LIST} lists no key and no identity: list the trusted ones, or delete it to trust the pinned key"
        ));
    }
    if let Err(why) = trust::check(&keys) {
        wrong = wrong.or_else(|| Some(format!("the ConfigMap {LIST}: {why}")));
    }
    Listed { keys, identities, wrong: wrong.map(|why| format!("{why}; nothing is signed before the list is right")) }
}

/// Returns the identity alone as a trusted one, without a limit.
pub(super) fn only(identity: &Identity) -> TrustedIdentity {
    TrustedIdentity { pattern: identity.into(), validity: Validity::default() }
}

/// Returns the signer if the list names its identity, or a sentence that says what is wrong.
pub(super) fn admitted(signer: Arc<KeylessSigner>, listed: &[TrustedIdentity]) -> Result<Arc<KeylessSigner>, String> {
    let identity = signer.identity();
    if listed.iter().any(|it| it.pattern.admits(identity)) {
        return Ok(signer);
    }
    Err(format!(
        "the controller signs as {identity}, which the ConfigMap {LIST} does not list: add an entry such as controller.identity \
         with the lines \"issuer: {}\" and \"subject: {}\"",
        identity.issuer, identity.subject
    ))
}

/// Returns the private key if the Secret exists and its public key is listed, or a sentence that says what is wrong.
pub(super) fn of_list(secret: Option<&Secret>, trusted: &[TrustedKey]) -> Result<Arc<PrivateKey>, String> {
    let advice = format!("put a key into it whose public key the ConfigMap {LIST} lists");
    let Some(secret) = secret else { return Err(format!("the Secret {NAME} does not exist: {advice}")) };
    let key = read(secret).map_err(|why| format!("the Secret {NAME} has no valid key ({why}): {advice}"))?;
    let found = key.public().fingerprint();
    if trusted.iter().any(|trusted| trusted.key.fingerprint() == found) {
        return Ok(Arc::new(key));
    }
    Err(format!(
        "the Secret {NAME} holds the key {found}, which the ConfigMap {LIST} does not list: list its public key, or {advice}"
    ))
}

pub(super) fn read_pin(pin: &ConfigMap) -> Result<PublicKey, String> {
    let text = pin.data.as_ref().and_then(|data| data.get(PUBLIC)).map(String::as_str).unwrap_or_default();
    PublicKey::from_pem(text).map_err(|why| {
        format!(
            "the ConfigMap {NAME} has no valid public key under {PUBLIC:?} ({}): restore it, or delete it to have the key of the \
             Secret {NAME} pinned, and restart the controller",
            chain(&why)
        )
    })
}

/// Returns the private key if the Secret exists and holds the pinned key, or a sentence that says what is wrong.
pub(super) fn of_pin(secret: Option<&Secret>, pinned: &PublicKey) -> Result<Arc<PrivateKey>, String> {
    let advice = format!(
        "restore the key {}, or, to sign with another key, list both public keys in the ConfigMap {LIST}",
        pinned.fingerprint()
    );
    let Some(secret) = secret else { return Err(format!("the Secret {NAME} does not exist: {advice}")) };
    let key = read(secret).map_err(|why| format!("the Secret {NAME} has no valid key ({why}): {advice}"))?;
    if key.public().fingerprint() != pinned.fingerprint() {
        let found = key.public().fingerprint();
        return Err(format!("the Secret {NAME} holds the key {found}, which is not the pinned one: {advice}"));
    }
    Ok(Arc::new(key))
}

/// Returns the Secret of a new key.
pub(crate) fn new_secret(key: &PrivateKey) -> Result<Secret, KeyError> {
    let private = key.to_pem()?;
    Ok(secret(NAME, "signer", [(PRIVATE, private.as_bytes()), (PUBLIC, key.public().to_pem().as_bytes())]))
}

pub(super) fn new_pin(key: &PublicKey) -> ConfigMap {
    let data = [(PUBLIC.to_owned(), key.to_pem().to_owned()), (FINGERPRINT.to_owned(), key.fingerprint().to_string())];
    ConfigMap {
        metadata: metadata(NAME, "signer"),
        immutable: Some(true),
        data: Some(data.into()),
        ..ConfigMap::default()
    }
}

#[cfg(test)]
mod tests {
    use codex_signing::{key::PrivateKey, trust};
    use k8s_openapi::{ByteString, api::core::v1::ConfigMap};

    use super::{COSIGN_PASSWORD, COSIGN_PRIVATE, PRIVATE, new_secret, of_list, of_pin, read, read_list};

    fn list(entries: &[(&str, &str)]) -> ConfigMap {
        let data = entries.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        ConfigMap { data: Some(data), ..ConfigMap::default() }
    }

    #[test]
    fn missing_changed_and_invalid_keys_are_distinguished() {
        let key = PrivateKey::generate().unwrap();
        let other = PrivateKey::generate().unwrap();
        let secret = new_secret(&key).unwrap();
        assert_eq!(of_pin(Some(&secret), key.public()).unwrap().public().fingerprint(), key.public().fingerprint());
        let lost = of_pin(None, key.public()).unwrap_err();
        assert!(lost.contains("does not exist") && lost.contains(&key.public().fingerprint().to_string()), "{lost}");
        let changed = of_pin(Some(&secret), other.public()).unwrap_err();
        assert!(
            changed.contains("not the pinned one") && changed.contains(&key.public().fingerprint().to_string()),
            "{changed}"
        );
        let trusted = trust::read(&format!("{}{}", other.public().to_pem(), key.public().to_pem())).unwrap();
        assert!(of_list(Some(&secret), &trusted).is_ok());
        let foreign = of_list(Some(&secret), &trusted[..1]).unwrap_err();
        assert!(
            foreign.contains("does not list") && foreign.contains(&key.public().fingerprint().to_string()),
            "{foreign}"
        );
        assert!(of_list(None, &trusted).unwrap_err().contains("does not exist"));
        let mut broken = secret;
        broken.data = None;
        assert!(of_pin(Some(&broken), key.public()).unwrap_err().contains("private.pem"));
    }

    #[test]
    fn a_secret_may_have_the_form_of_cosign() {
        let key = PrivateKey::generate().unwrap();
        let mut secret = new_secret(&key).unwrap();
        let data = secret.data.as_mut().unwrap();
        let plain = data.remove(PRIVATE).unwrap();
        let encrypted = key.to_encrypted_pem(b"secret").unwrap();
        data.insert(COSIGN_PRIVATE.to_owned(), ByteString(encrypted.as_bytes().to_vec()));
        let told = read(&secret).unwrap_err();
        assert!(told.contains("encrypted by cosign") && told.contains(COSIGN_PASSWORD), "{told}");
        secret.data.as_mut().unwrap().insert(COSIGN_PASSWORD.to_owned(), ByteString(b"secret".to_vec()));
        assert_eq!(read(&secret).unwrap().public().fingerprint(), key.public().fingerprint());
        secret.data.as_mut().unwrap().insert(PRIVATE.to_owned(), plain);
        assert!(read(&secret).unwrap_err().contains("has both"));
    }

    #[test]
    fn a_wrong_entry_is_named_and_the_others_count() {
        let key = PrivateKey::generate().unwrap();
        let pem = key.public().to_pem();
        let identity =
            "issuer: https://kubernetes.default.svc\nsubject: https://kubernetes.io/namespaces/a/serviceaccounts/*";
        let read = read_list(&list(&[("2026.pub", pem), ("tenants.identity", identity)]));
        assert_eq!((read.keys.len(), read.identities.len(), read.wrong), (1, 1, None));
        for (name, text, why) in [
            ("2027.pub", "notAfter: soon\n", "the entry \"2027.pub\" of the ConfigMap codex-trusted-keys: line 1: "),
            ("2027", pem, "its name must end in .pub, .pem or .identity"),
            ("2027.pub", pem, "is listed twice"),
            ("2027.identity", "issuer: a", "identity of the certificate is empty"),
        ] {
            let read = read_list(&list(&[("2026.pub", pem), (name, text)]));
            let wrong = read.wrong.unwrap();
            assert!(!read.keys.is_empty() && wrong.contains(why) && wrong.contains("nothing is signed"), "{wrong}");
        }
        let read = read_list(&ConfigMap::default());
        assert!(read.keys.is_empty() && read.wrong.unwrap().contains("lists no key"));
    }
}
