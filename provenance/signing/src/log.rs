//! A transparency log as it is read: its checkpoint, its entries and the tree over them. Pure; the caller fetches.
//!
//! Rekor v2 serves its log as tiles (<https://github.com/C2SP/C2SP/blob/main/tlog-tiles.md>): a checkpoint, which the log signs, and
//! bundles of up to [`WIDTH`] entries. [`Frontier`] computes the root over all entries from the first one on, as RFC 6962 defines it.
//! If it equals the root of the checkpoint, the entries are all that the log has, and those that were read before are still in it.
//! [`v1`] reads the answers of Rekor v1, whose trees are checked the same way.

pub mod v1;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use codex_provenance::{Identity, Sha256, text::Printable};
use serde_json::Value;
use sigstore_verify::{
    crypto::{VerificationKey, parse_certificate_info},
    trust_root::TrustedRoot,
    types::{Checkpoint, DerCertificate, DerPublicKey},
};

/// The most entries in a bundle.
pub const WIDTH: u64 = 256;
/// Maximum size of a bundle of entries in bytes: each has a length of two bytes.
pub const MAX_BUNDLE: usize = WIDTH as usize * (2 + u16::MAX as usize);
/// Maximum size of a checkpoint in bytes.
pub const MAX_CHECKPOINT: usize = 64 << 10;

/// Reasons why a log is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// The trusted root has no key of a log.
    #[error("the trusted root has no key of a log that can be used: {0}")]
    Root(&'static str),
    /// The checkpoint has another form.
    #[error("the checkpoint is invalid: {}", Printable(.0))]
    Checkpoint(String),
    /// No log of the trusted root signed the checkpoint.
    #[error("the checkpoint of {} is not signed by a log of the trusted root", Printable(.0))]
    Signature(String),
    /// An answer of Rekor v1 has another form.
    #[error("the {what} of the log is invalid: {}", Printable(why))]
    Answer {
        /// What was asked for.
        what: &'static str,
        /// Why.
        why: String,
    },
    /// A tree that had ended is another one now.
    #[error("the tree {} had ended with {} entries, and the log now shows another one in its place", Printable(&.0.origin), .0.size)]
    Ended(Head),
    /// A bundle of entries is damaged.
    #[error("the bundle of entries from {first} is damaged: {why}")]
    Bundle {
        /// Index of its first entry.
        first: u64,
        /// Why.
        why: &'static str,
    },
    /// A recorded position is not one.
    #[error("{hashes} hashes do not describe {size} entries")]
    Frontier {
        /// Number of entries.
        size: u64,
        /// Number of hashes.
        hashes: usize,
    },
    /// The log has fewer entries than before.
    #[error("the log has {now} entries, and had {before}: entries were removed")]
    Shrunk {
        /// Number of entries in the checkpoint.
        now: u64,
        /// Number of entries that were read before.
        before: u64,
    },
    /// The entries are not those of the checkpoint.
    #[error(
        "the entries have the root {found}, but the log signed {signed}: it shows other entries than it has, or changed some that were \
         read before"
    )]
    Tree {
        /// The root of the entries.
        found: Sha256,
        /// The root in the checkpoint.
        signed: Sha256,
    },
}

/// The keys of the logs of a trusted root.
pub struct LogKeys(Vec<VerificationKey>);

/// What a log signed: how many entries it has, and the root of the tree over them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Name of the log.
    pub origin: String,
    /// Number of entries.
    pub size: u64,
    /// Root of the tree.
    pub root: Sha256,
}

impl LogKeys {
    /// Reads the keys in a trusted root, in JSON.
    ///
    /// # Errors
    /// If the text is not a trusted root, or has no key of a log that can be used.
    pub fn of_root(text: &str) -> Result<Self, LogError> {
        // The parser's sentence could quote the file.
        let root = TrustedRoot::from_json(text).map_err(|_| LogError::Root("it is not a trusted root in JSON"))?;
        let key = |raw: &DerPublicKey| VerificationKey::from_spki(raw).ok();
        let keys: Vec<_> = root.tlogs.iter().filter_map(|log| key(&log.public_key.raw_bytes)).collect();
        if keys.is_empty() { Err(LogError::Root("it names no log")) } else { Ok(Self(keys)) }
    }

    /// Verifies a checkpoint.
    ///
    /// # Errors
    /// If it has another form, or none of the logs signed it.
    pub fn open(&self, checkpoint: &str) -> Result<Head, LogError> {
        let read = Checkpoint::from_text(checkpoint).map_err(|why| LogError::Checkpoint(why.to_string()))?;
        let signed = read
            .signatures()
            .iter()
            .any(|it| self.0.iter().any(|key| key.verify(read.signed_data(), &it.signature).is_ok()));
        if !signed {
            return Err(LogError::Signature(read.origin().to_owned()));
        }
        let root = <[u8; 32]>::try_from(read.root_hash().as_bytes().as_slice())
            .map_err(|_| LogError::Checkpoint("its root is no SHA-256".to_owned()))?;
        Ok(Head { origin: read.origin().to_owned(), size: read.tree_size(), root: root.into() })
    }
}

/// Returns the path of a bundle of entries below the address of a log. `index` counts bundles, and `width` is the number of entries in
/// it, which is less than [`WIDTH`] only at the end of the log.
pub fn bundle_path(index: u64, width: u64) -> String {
    let mut groups = vec![format!("{:03}", index % 1000)];
    let mut rest = index / 1000;
    while rest > 0 {
        groups.push(format!("x{:03}", rest % 1000));
        rest /= 1000;
    }
    groups.reverse();
    let part = if width < WIDTH { format!(".p/{width}") } else { String::new() };
    format!("tile/entries/{}{part}", groups.join("/"))
}

/// Returns the entries in a bundle, whose first one has the index `first`.
///
/// # Errors
/// If it has fewer or more than `width` entries.
pub fn entries(bundle: &[u8], first: u64, width: u64) -> Result<Vec<&[u8]>, LogError> {
    let damaged = |why| LogError::Bundle { first, why };
    let (mut entries, mut rest) = (Vec::new(), bundle);
    while let Some((length, after)) = rest.split_first_chunk::<2>() {
        let length = usize::from(u16::from_be_bytes(*length));
        let entry = after.get(..length).ok_or(damaged("it ends within an entry"))?;
        entries.push(entry);
        rest = after.get(length..).unwrap_or_default();
    }
    if !rest.is_empty() {
        return Err(damaged("it ends within a length"));
    }
    // A bundle that is full by now may be served in place of a part of it.
    match usize::try_from(width) {
        Ok(width) if width <= entries.len() => Ok(entries.into_iter().take(width).collect()),
        _ => Err(damaged("it has too few entries")),
    }
}

/// The roots of the complete trees that the first entries of a log fill, the largest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frontier {
    size: u64,
    peaks: Vec<Sha256>,
}

impl Frontier {
    /// Returns a recorded frontier.
    ///
    /// # Errors
    /// If so many hashes do not describe so many entries.
    pub fn of(size: u64, peaks: Vec<Sha256>) -> Result<Self, LogError> {
        if peaks.len() == size.count_ones() as usize {
            Ok(Self { size, peaks })
        } else {
            Err(LogError::Frontier { size, hashes: peaks.len() })
        }
    }

    /// Returns the number of entries.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Returns the roots of the complete trees.
    pub fn peaks(&self) -> &[Sha256] {
        &self.peaks
    }

    /// Adds the next entry.
    pub fn push(&mut self, entry: &[u8]) {
        let mut hash = leaf(entry);
        // Each complete tree of the same size as the new one is joined with it.
        for _ in 0..self.size.trailing_ones() {
            if let Some(left) = self.peaks.pop() {
                hash = node(left, hash);
            }
        }
        self.peaks.push(hash);
        self.size += 1;
    }

    /// Returns the root of the tree over all entries.
    pub fn root(&self) -> Sha256 {
        let mut peaks = self.peaks.iter().rev().copied();
        let Some(last) = peaks.next() else { return Sha256::of([]) };
        peaks.fold(last, |right, left| node(left, right))
    }

    /// Checks that the log may grow from here to what it signed.
    ///
    /// # Errors
    /// If it has fewer entries.
    pub fn check_size(&self, head: &Head) -> Result<(), LogError> {
        if head.size < self.size {
            return Err(LogError::Shrunk { now: head.size, before: self.size });
        }
        Ok(())
    }

    /// Checks that the entries are those that the log signed.
    ///
    /// # Errors
    /// If they are not.
    pub fn check(&self, head: &Head) -> Result<(), LogError> {
        let found = self.root();
        if self.size == head.size && found == head.root {
            Ok(())
        } else {
            Err(LogError::Tree { found, signed: head.root })
        }
    }
}

fn leaf(entry: &[u8]) -> Sha256 {
    Sha256::of([&[0], entry].concat())
}

fn node(left: Sha256, right: Sha256) -> Sha256 {
    Sha256::of([&[1], left.bytes().as_slice(), right.bytes()].concat())
}

/// Returns the identities that the certificates of an entry name: of Rekor v2 one for each signature that has a certificate, of Rekor v1
/// one for each certificate in any field, because each of its kinds of entry has another one for them.
///
/// A log does not verify certificates: anyone can enter one that names anybody.
pub fn identities(entry: &[u8]) -> Vec<Identity> {
    let Ok(entry) = serde_json::from_slice::<Value>(entry) else { return Vec::new() };
    let one = entry.pointer("/spec/hashedRekordV002/signature");
    let several = entry.pointer("/spec/dsseV002/signatures").and_then(Value::as_array);
    let certificate = |signature: &Value| {
        let raw = signature.pointer("/verifier/x509Certificate/rawBytes")?;
        serde_json::from_value(raw.clone()).ok()
    };
    let mut certificates: Vec<DerCertificate> =
        one.into_iter().chain(several.into_iter().flatten()).filter_map(certificate).collect();
    pem_certificates(&entry, &mut certificates);
    let identity = |certificate: DerCertificate| {
        let info = parse_certificate_info(&certificate).ok()?;
        Some(Identity { issuer: info.issuer?, subject: info.identity?.as_str().to_owned() })
    };
    certificates.into_iter().filter_map(identity).collect()
}

/// Adds the certificates in PEM that strings of a value hold in base64, once or twice, as entries of Rekor v1 have them.
fn pem_certificates(value: &Value, found: &mut Vec<DerCertificate>) {
    match value {
        Value::String(text) => {
            let mut bytes = STANDARD.decode(text).unwrap_or_default();
            if let Ok(again) = STANDARD.decode(&bytes) {
                bytes = again;
            }
            if bytes.starts_with(b"-----BEGIN ") {
                let blocks = pem::parse_many(&bytes).unwrap_or_default();
                let certificates = blocks.into_iter().filter(|block| block.tag() == "CERTIFICATE");
                found.extend(certificates.map(|block| DerCertificate::new(block.into_contents())));
            }
        }
        Value::Array(items) => items.iter().for_each(|item| pem_certificates(item, found)),
        Value::Object(fields) => fields.values().for_each(|field| pem_certificates(field, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Returns the entries of logs that a bundle holds, as the logs have them. Nothing is verified; `None` if it is not a bundle.
pub fn logged(bundle: &Value) -> Option<Vec<Vec<u8>>> {
    let entries = bundle.get("verificationMaterial")?.get("tlogEntries").and_then(Value::as_array);
    let body = |entry: &Value| STANDARD.decode(entry.get("canonicalizedBody")?.as_str()?).ok();
    Some(entries.into_iter().flatten().filter_map(body).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The root of RFC 6962, by its definition: the tree is split at the largest power of two below its size.
    fn defined(entries: &[Vec<u8>]) -> Sha256 {
        match entries {
            [] => Sha256::of([]),
            [one] => leaf(one),
            all => {
                let half = all.len().next_power_of_two() / 2;
                node(defined(&all[..half]), defined(&all[half..]))
            }
        }
    }

    #[test]
    fn the_root_is_that_of_rfc_6962_at_every_size() {
        let mut frontier = Frontier::default();
        let mut all = Vec::new();
        for index in 0..70_u8 {
            assert_eq!(frontier.root(), defined(&all), "{index} entries");
            let again = Frontier::of(frontier.size(), frontier.peaks().to_vec()).expect("recorded");
            assert_eq!(again, frontier);
            all.push(vec![index; usize::from(index)]);
            frontier.push(&all[usize::from(index)]);
        }
        // A vector of certificate-transparency-go: the tree over the empty entry.
        let mut one = Frontier::default();
        one.push(b"");
        assert_eq!(one.root().to_string(), "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d");
        assert_eq!(Frontier::of(3, vec![Sha256::of("")]), Err(LogError::Frontier { size: 3, hashes: 1 }));
    }

    #[test]
    fn a_log_that_lost_or_changed_entries_is_not_believed() {
        let mut frontier = Frontier::default();
        frontier.push(b"a");
        frontier.push(b"b");
        let head = |size, root| Head { origin: "log".to_owned(), size, root };
        assert_eq!(frontier.check(&head(2, frontier.root())), Ok(()));
        assert_eq!(frontier.check_size(&head(1, Sha256::of(""))), Err(LogError::Shrunk { now: 1, before: 2 }));
        assert!(matches!(frontier.check(&head(2, Sha256::of("other"))), Err(LogError::Tree { .. })));
        assert!(matches!(frontier.check(&head(3, frontier.root())), Err(LogError::Tree { .. })));
    }

    #[test]
    fn bundles_have_the_paths_of_tlog_tiles() {
        assert_eq!(bundle_path(0, 256), "tile/entries/000");
        assert_eq!(bundle_path(0, 5), "tile/entries/000.p/5");
        assert_eq!(bundle_path(1_234_067, 256), "tile/entries/x001/x234/067");
        assert_eq!(bundle_path(1000, 1), "tile/entries/x001/000.p/1");
    }

    #[test]
    fn a_damaged_bundle_is_refused() {
        let bundle = [0, 1, b'a', 0, 0, 0, 2, b'b', b'c'];
        assert_eq!(entries(&bundle, 0, 3).expect("entries"), [&b"a"[..], b"", b"bc"]);
        assert_eq!(entries(&bundle, 0, 2).expect("its start"), [&b"a"[..], b""]);
        for (bundle, width, why) in [
            (&bundle[..], 4, "it has too few entries"),
            (&bundle[..8], 3, "it ends within an entry"),
            (&bundle[..4], 1, "it ends within a length"),
        ] {
            assert_eq!(entries(bundle, 256, width), Err(LogError::Bundle { first: 256, why }));
        }
    }

    #[test]
    fn only_an_entry_with_a_certificate_names_an_identity() {
        for entry in ["", "{}", r#"{"spec":{"hashedRekordV002":{"signature":{"verifier":{"publicKey":{}}}}}}"#] {
            assert_eq!(identities(entry.as_bytes()), [], "{entry}");
        }
        assert_eq!(logged(&serde_json::json!({})), None);
        let bundle =
            serde_json::json!({ "verificationMaterial": { "tlogEntries": [{ "canonicalizedBody": "YQ==" }] } });
        assert_eq!(logged(&bundle), Some(vec![b"a".to_vec()]));
    }
}
