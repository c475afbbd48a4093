//! Addresses of directories in object stores. Pure.

use std::{fmt, str::FromStr};

use object_store::path::Path;

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
}

impl Scheme {
    const ALL: [Self; 4] = [Self::S3, Self::Gs, Self::Az, Self::File];

    fn name(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::Gs => "gs",
            Self::Az => "az",
            Self::File => "file",
        }
    }
}

/// The address of a directory, or of one object, in a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// The kind of the store.
    pub scheme: Scheme,
    /// The bucket or container; empty for a folder.
    pub bucket: String,
    /// The path in it.
    pub prefix: Path,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { scheme, bucket, prefix } = self;
        write!(f, "{}://{bucket}/{prefix}", scheme.name())
    }
}

/// The forms of an address.
const RIGHT: &str = "write s3://BUCKET/PATH, gs://BUCKET/PATH, az://CONTAINER/PATH or file:///PATH";

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
        Ok(Self { scheme, bucket: bucket.to_owned(), prefix })
    }
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
        assert!("s3://a/../b".parse::<Location>().unwrap_err().contains("the path is invalid"));
    }
}
