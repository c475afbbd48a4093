//! API keys: read from the files of a Secret, kept as hashes, compared in constant time. Reads files.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use aws_lc_rs::{constant_time, digest};
use codex_provenance::files;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::quota::Quota;

/// The most keys; their names are values of a label of metrics.
const MAX_KEYS: usize = 64;
/// The most bytes of the entry of a key.
const MAX_ENTRY: usize = 8 << 10;
/// The lengths of a key in characters.
const LENGTHS: std::ops::RangeInclusive<usize> = 16..=512;

/// The hash of a key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Hash([u8; digest::SHA256_OUTPUT_LEN]);

impl Hash {
    fn of(key: &[u8]) -> Self {
        let mut hash = [0; digest::SHA256_OUTPUT_LEN];
        hash.copy_from_slice(digest::digest(&digest::SHA256, key).as_ref());
        Self(hash)
    }
}

/// A key, without the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key {
    /// The name of its entry in the Secret.
    pub(super) name: String,
    /// Its own rate limit, if it has one.
    pub(super) rate: Option<Quota>,
    /// Its own token budget, if it has one.
    pub(super) tokens: Option<Quota>,
    /// The paths that it may call; empty for all.
    pub(super) endpoints: Vec<String>,
}

/// The keys of a server. Only their hashes are kept.
#[derive(Default)]
pub(super) struct Keys {
    all: Vec<(Hash, Key)>,
}

/// A reason why keys cannot be read. It quotes no entry.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The file or directory cannot be read.
    #[error("the API keys {path:?} cannot be read")]
    Unreadable {
        /// The path.
        path: PathBuf,
        /// The I/O error.
        #[source]
        source: io::Error,
    },
    /// The entry of a key is invalid.
    #[error("the API key {name:?} is invalid: {why}")]
    Entry {
        /// Its name.
        name: String,
        /// What is wrong and what would be right.
        why: String,
    },
    /// There are no keys, or too many.
    #[error("the API keys {path:?} hold {count} keys: write 1 to {MAX_KEYS}, each as a file with its name")]
    Count {
        /// The path.
        path: PathBuf,
        /// How many there are.
        count: usize,
    },
    /// Two entries have the same key.
    #[error("the API keys {one:?} and {other:?} are the same: give each client its own")]
    Twice {
        /// The name of the first.
        one: String,
        /// The name of the second.
        other: String,
    },
}

/// The entry of a key as a JSON object.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    key: Option<String>,
    sha256: Option<String>,
    rate: Option<String>,
    tokens: Option<String>,
    #[serde(default)]
    endpoints: Vec<String>,
}

impl Keys {
    /// Reads keys: every file of a directory, as a Secret is mounted, is the key with the file's name. Of a single file, the
    /// base name without its extension is the name. Entries with problems are left out and returned as errors.
    ///
    /// # Errors
    /// The path cannot be read, or holds no key, or too many.
    pub(super) fn read(path: &Path) -> Result<(Self, Vec<KeysError>), KeysError> {
        let unreadable = |source| KeysError::Unreadable { path: path.to_owned(), source };
        let mut entries = BTreeMap::new();
        if fs::metadata(path).map_err(unreadable)?.is_dir() {
            for entry in fs::read_dir(path).map_err(unreadable)? {
                let name = entry.map_err(unreadable)?.file_name().to_string_lossy().into_owned();
                // A mounted Secret has hidden links beside its entries.
                let file = path.join(&name);
                if !name.starts_with('.') && file.is_file() {
                    entries.insert(name, file);
                }
            }
        } else {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            entries.insert(name, path.to_owned());
        }
        if !(1..=MAX_KEYS).contains(&entries.len()) {
            return Err(KeysError::Count { path: path.to_owned(), count: entries.len() });
        }
        let (mut keys, mut problems) = (Self::default(), Vec::new());
        for (name, file) in entries {
            let bytes = Zeroizing::new(files::read_start(&file, MAX_ENTRY).map_err(unreadable)?);
            match parse(&name, &bytes) {
                Ok((hash, key)) => match keys.all.iter().find(|(other, _)| *other == hash) {
                    Some((_, other)) => problems.push(KeysError::Twice { one: other.name.clone(), other: name }),
                    None => keys.all.push((hash, key)),
                },
                Err(why) => problems.push(KeysError::Entry { name, why }),
            }
        }
        Ok((keys, problems))
    }

    /// Finds a key. It is compared with all of them, each in constant time, so that the time tells nothing.
    pub(super) fn find(&self, presented: &[u8]) -> Option<&Key> {
        let hash = Hash::of(presented);
        let mut found = None;
        for (stored, key) in &self.all {
            if constant_time::verify_slices_are_equal(&stored.0, &hash.0).is_ok() {
                found = Some(key);
            }
        }
        found
    }

    /// Yields the keys in the order of their names.
    pub(super) fn all(&self) -> impl Iterator<Item = &Key> {
        self.all.iter().map(|(_, key)| key)
    }

    /// Returns whether both hold the same keys with the same settings.
    pub(super) fn equals(&self, other: &Self) -> bool {
        self.all == other.all
    }
}

/// Reads the entry of a key: the key itself, or a JSON object with the key or its SHA-256, and its limits.
fn parse(name: &str, bytes: &[u8]) -> Result<(Hash, Key), String> {
    if bytes.len() > MAX_ENTRY {
        return Err(format!("it has more than {MAX_ENTRY} bytes"));
    }
    let text = bytes.trim_ascii();
    let mut key = Key { name: name.to_owned(), rate: None, tokens: None, endpoints: Vec::new() };
    if !text.starts_with(b"{") {
        return Ok((hashed(text)?, key));
    }
    let entry: Entry = codex_json::from_slice(text).map_err(|why| why.to_string())?;
    let quota = |field: &str, text: Option<String>| {
        text.map(|text| text.parse::<Quota>().map_err(|why| format!("{field}: {why}"))).transpose()
    };
    key.rate = quota("rate", entry.rate)?;
    key.tokens = quota("tokens", entry.tokens)?;
    if let Some(wrong) = entry.endpoints.iter().find(|endpoint| !endpoint.starts_with('/')) {
        return Err(format!("endpoints: {wrong:?} is no path: write one such as /v1/chat/completions"));
    }
    key.endpoints = entry.endpoints;
    let hash = match (entry.key, entry.sha256) {
        (Some(key), None) => hashed(Zeroizing::new(key).as_bytes())?,
        (None, Some(hex)) => {
            let mut hash = [0; digest::SHA256_OUTPUT_LEN];
            hex::decode_to_slice(hex, &mut hash).map_err(|_| "sha256: write 64 hexadecimal digits".to_owned())?;
            Hash(hash)
        }
        _ => return Err("write either key or sha256".to_owned()),
    };
    Ok((hash, key))
}

fn hashed(key: &[u8]) -> Result<Hash, String> {
    if !LENGTHS.contains(&key.len()) || !key.iter().all(u8::is_ascii_graphic) {
        let (least, most) = (LENGTHS.start(), LENGTHS.end());
        return Err(format!("write {least} to {most} characters of ASCII without spaces"));
    }
    Ok(Hash::of(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(entries: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in entries {
            fs::write(root.path().join(name), text).unwrap();
        }
        root
    }

    #[test]
    fn keys_are_found_by_their_hash_and_have_their_own_limits() {
        let other = hex::encode(digest::digest(&digest::SHA256, b"sk-other-0123456789"));
        let root = directory(&[
            ("alice", "sk-alice-0123456789\n"),
            ("bob", r#"{"key": "sk-bob-0123456789ab", "rate": "5/10s", "tokens": "1000/1d", "endpoints": ["/infer"]}"#),
            ("carol", &format!(r#"{{"sha256": "{other}"}}"#)),
            (".hidden", "x"),
        ]);
        let (keys, problems) = Keys::read(root.path()).unwrap();
        assert!(problems.is_empty(), "{problems:?}");
        let name = |key: &str| keys.find(key.as_bytes()).map(|key| key.name.as_str());
        assert_eq!(name("sk-alice-0123456789"), Some("alice"));
        assert_eq!(name("sk-other-0123456789"), Some("carol"));
        for wrong in ["", "sk-alice-012345678", "sk-alice-01234567890", "SK-ALICE-0123456789", &other] {
            assert_eq!(name(wrong), None, "{wrong}");
        }
        let bob = keys.find(b"sk-bob-0123456789ab").unwrap();
        assert_eq!((bob.rate, bob.tokens), ("5/10s".parse().ok(), "1000/1d".parse().ok()));
        assert_eq!(bob.endpoints, ["/infer"]);
        let (single, _) = Keys::read(&root.path().join("alice")).unwrap();
        assert_eq!(single.all().map(|key| key.name.as_str()).collect::<Vec<_>>(), ["alice"]);
    }

    #[test]
    fn invalid_entries_are_named_and_not_quoted() {
        for (text, told) in [
            ("short-secret", "write 16 to 512 characters"),
            ("sk with spaces 0123456789", "without spaces"),
            ("{\"key\": 5, \"sk-secret\": 1}", "key"),
            ("{\"rate\": \"5/10s\"}", "write either key or sha256"),
            ("{\"sha256\": \"sk-secret\"}", "sha256: write 64 hexadecimal digits"),
            ("{\"key\": \"sk-secret-0123456789\", \"rate\": \"5\"}", "rate: write a number, a slash"),
            ("{\"key\": \"sk-secret-0123456789\", \"endpoints\": [\"infer\"]}", "endpoints: \"infer\" is no path"),
        ] {
            let root = directory(&[("alice", text), ("bob", "sk-bob-0123456789ab")]);
            let (keys, problems) = Keys::read(root.path()).unwrap();
            assert_eq!(keys.all().count(), 1, "{text}");
            let said = problems[0].to_string();
            assert!(said.contains("\"alice\"") && said.contains(told), "{said}");
            assert!(!said.contains("short-secret") && !said.contains("sk-secret-"), "{said}");
        }
        let root = directory(&[("alice", "sk-alice-0123456789"), ("bob", "sk-alice-0123456789")]);
        let told = Keys::read(root.path()).unwrap().1[0].to_string();
        assert!(told.contains("\"alice\" and \"bob\" are the same"), "{told}");
        let told = Keys::read(directory(&[]).path()).err().unwrap().to_string();
        assert!(told.contains("hold 0 keys: write 1 to 64"), "{told}");
        assert!(matches!(Keys::read(Path::new("/nowhere")), Err(KeysError::Unreadable { .. })));
    }
}
