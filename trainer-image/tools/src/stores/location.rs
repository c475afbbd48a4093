//! Addresses of directories in object stores. Pure.

use std::{fmt, str::FromStr};

use object_store::path::Path;

use super::Version;

/// The kind of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// S3 and what speaks its protocol.
    S3,
    /// Google Cloud Storage.
    Gs,
    /// Azure Blob Storage.
    Az,
    /// A folder.
    File,
    /// A registry of OCI.
    Oci,
}

impl Scheme {
    const ALL: [Self; 5] = [Self::S3, Self::Gs, Self::Az, Self::File, Self::Oci];

    fn name(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::Gs => "gs",
            Self::Az => "az",
            Self::File => "file",
            Self::Oci => "oci",
        }
    }
}

/// The address of a directory, or of one object, in a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// The kind of the store.
    pub scheme: Scheme,
    /// The bucket or container, or the registry with its port; empty for a folder.
    pub bucket: String,
    /// The path in it, or the repository.
    pub prefix: Path,
    /// The tag or the digest of an artefact; only a registry has one.
    pub version: Option<Version>,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { scheme, bucket, prefix, version } = self;
        write!(f, "{}://{bucket}/{prefix}", scheme.name())?;
        version.iter().try_for_each(|version| write!(f, "{version}"))
    }
}

/// The forms of an address.
const RIGHT: &str =
    "write s3://BUCKET/PATH, gs://BUCKET/PATH, az://CONTAINER/PATH, oci://REGISTRY/REPOSITORY:TAG or file:///PATH";

impl FromStr for Location {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (scheme, rest) = text.split_once("://").ok_or(RIGHT)?;
        let scheme = Scheme::ALL.into_iter().find(|known| known.name() == scheme).ok_or(RIGHT)?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.contains('@') {
            // It may be a password.
            return Err("write the address without a user: credentials are taken from the environment".to_owned());
        }
        if text.contains(['?', '#']) {
            return Err(format!("write the address without ? and #: {RIGHT}"));
        }
        if scheme == Scheme::Oci {
            return registry(bucket, prefix);
        }
        let named = bucket.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._$".contains(&byte));
        if bucket.is_empty() != (scheme == Scheme::File) || !named {
            return Err(RIGHT.to_owned());
        }
        let prefix = prefix.trim_end_matches('/');
        let parsed = match scheme {
            Scheme::File if prefix.is_empty() => return Err(RIGHT.to_owned()),
            _ => Path::parse(prefix),
        };
        let prefix = parsed.map_err(|why| format!("the path is invalid ({why}): {RIGHT}"))?;
        Ok(Self { scheme, bucket: bucket.to_owned(), prefix, version: None })
    }
}

/// Reads the address of an artefact.
fn registry(host: &str, rest: &str) -> Result<Location, String> {
    let (name, port) = host.split_once(':').unwrap_or((host, "443"));
    let is_name = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte));
    if name.is_empty() || !is_name || port.parse::<u16>().is_err() {
        return Err(RIGHT.to_owned());
    }
    let (repository, version) = rest.split_at(rest.find([':', '@']).unwrap_or(rest.len()));
    let version = Version::parse(version)?;
    // As OCI's distribution specification has it.
    let is_part = |part: &str| {
        let ends = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        let all = part.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte));
        ends(part.bytes().next()) && ends(part.bytes().last()) && all && !part.contains("..")
    };
    if !repository.split('/').all(is_part) {
        return Err(format!("a repository has small letters, digits, dots, dashes and slashes: {RIGHT}"));
    }
    let prefix = Path::parse(repository).map_err(|why| why.to_string())?;
    Ok(Location { scheme: Scheme::Oci, bucket: host.to_owned(), prefix, version: Some(version) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_shown() {
        for (text, shown) in [
            ("s3://models/runs/a", "s3://models/runs/a"),
            ("s3://models", "s3://models/"),
            ("gs://my-bucket.x/a/", "gs://my-bucket.x/a"),
            ("az://box/a b", "az://box/a b"),
            ("file:///srv/models/a", "file:///srv/models/a"),
            ("oci://127.0.0.1:5000/a/b_c:v1", "oci://127.0.0.1:5000/a/b_c:v1"),
        ] {
            assert_eq!(text.parse::<Location>().unwrap().to_string(), shown);
        }
    }

    #[test]
    fn others_are_refused_without_quoting_a_password() {
        for text in ["", "models/a", "ftp://a/b", "s3:///a", "file://host/a", "file:///", "s3://a b/c", "S3://a/b"] {
            assert!(text.parse::<Location>().unwrap_err().contains("write s3://BUCKET/PATH"), "{text}");
        }
        assert!("s3://a/b?sig=secret".parse::<Location>().unwrap_err().contains("without ? and #"));
        let told = "s3://me:secret@bucket/a".parse::<Location>().unwrap_err();
        assert!(told.contains("from the environment") && !told.contains("secret"), "{told}");
        let digest = "5".repeat(64);
        let pinned: Location = format!("oci://r.example/a@sha256:{digest}").parse().unwrap();
        assert!(matches!(pinned.version, Some(Version::Digest(_))) && pinned.to_string().ends_with(&digest));
        for (text, told) in [
            ("oci://r.example/a", "end the address with :TAG or @sha256:DIGEST"),
            ("oci://r.example/a:", "end the address with :TAG"),
            ("oci://r.example/a@sha256:12", "end the address with :TAG"),
            ("oci://r.example/A:1", "small letters"),
            ("oci://r.example/a/../b:1", "small letters"),
            ("oci:///a:1", "write s3://BUCKET/PATH"),
            ("oci://r.example:x/a:1", "write s3://BUCKET/PATH"),
        ] {
            let found = text.parse::<Location>().unwrap_err();
            assert!(found.contains(told), "{text}: {found}");
        }
        assert!("s3://a/../b".parse::<Location>().unwrap_err().contains("the path is invalid"));
    }
}
