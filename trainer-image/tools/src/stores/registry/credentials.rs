//! Credentials of registries: variables, or a configuration file of Docker. Reads the environment and files.

use std::{collections::HashMap, path::PathBuf};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use codex::{
    artifacts::environment::variable,
    atomic_fs::{self, FileError},
};
use http::HeaderValue;
use serde::Deserialize;

/// The variables with the name and the password of a user.
pub(super) const USER: [&str; 2] = ["CODEX_REGISTRY_USERNAME", "CODEX_REGISTRY_PASSWORD"];

/// What a client may show to a registry.
#[derive(Clone, Default)]
pub(in crate::stores) enum Credentials {
    /// Nothing.
    #[default]
    Anonymous,
    /// A name and a password, as the value of a header.
    Basic(HeaderValue),
    /// A token that is exchanged for others.
    Identity(String),
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Anonymous => "Anonymous",
            Self::Basic(_) => "Basic",
            Self::Identity(_) => "Identity",
        })
    }
}

/// A configuration file of Docker, or one of podman, which has the same form.
#[derive(Deserialize)]
struct Docker {
    #[serde(default)]
    auths: HashMap<String, Entry>,
    #[serde(default, rename = "credHelpers")]
    helpers: HashMap<String, String>,
    #[serde(default, rename = "credsStore")]
    store: Option<String>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    auth: Option<String>,
    #[serde(default)]
    username: Option<String>,
    #[serde(default)]
    password: Option<String>,
    #[serde(default, rename = "identitytoken")]
    identity: Option<String>,
}

impl Credentials {
    /// Returns the credentials for a registry: of the variables, else of the first file that exists.
    ///
    /// # Errors
    /// A sentence that names the variable or the file. It never quotes a value.
    pub(in crate::stores) fn of_environment(host: &str) -> Result<Self, String> {
        match USER.map(variable) {
            [Some(name), Some(password)] => return Self::basic(&name, &password),
            [None, None] => {}
            _ => return Err(format!("set both {} and {}, or neither", USER[0], USER[1])),
        }
        let home = variable("HOME").map(|home| PathBuf::from(home).join(".docker"));
        let docker = variable("DOCKER_CONFIG").map(PathBuf::from).or(home).map(|folder| folder.join("config.json"));
        let Some(path) = variable("REGISTRY_AUTH_FILE").map(PathBuf::from).or(docker) else {
            return Ok(Self::Anonymous);
        };
        let bytes = match atomic_fs::read(&path) {
            Ok(bytes) => bytes,
            Err(FileError { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::Anonymous);
            }
            Err(error) => return Err(error.to_string()),
        };
        // The parser's sentence could quote a secret.
        let file: Docker = serde_json::from_slice(&bytes)
            .map_err(|_| format!("{} has not the form of Docker's configuration", path.display()))?;
        file.of(host).map_err(|why| format!("{}: {why}", path.display()))
    }

    /// Returns a name and a password as a header.
    ///
    /// # Errors
    /// The name has a colon.
    pub(super) fn basic(name: &str, password: &str) -> Result<Self, String> {
        if name.contains(':') {
            return Err("the name of the user must not have a colon".to_owned());
        }
        let value = HeaderValue::from_str(&format!("Basic {}", STANDARD.encode(format!("{name}:{password}"))));
        let mut value = value.map_err(|why| why.to_string())?;
        value.set_sensitive(true);
        Ok(Self::Basic(value))
    }
}

impl Docker {
    fn of(&self, host: &str) -> Result<Credentials, String> {
        let keys = match host {
            "docker.io" => vec!["https://index.docker.io/v1/".to_owned(), host.to_owned()],
            _ => vec![
                host.to_owned(),
                format!("https://{host}"),
                format!("https://{host}/v2/"),
                format!("http://{host}"),
            ],
        };
        let entry = keys.iter().find_map(|key| self.auths.get(key));
        if let Some(token) = entry.and_then(|entry| entry.identity.clone()).filter(|token| !token.is_empty()) {
            return Ok(Credentials::Identity(token));
        }
        if let Some(Entry { username: Some(name), password: Some(password), .. }) = entry {
            return Credentials::basic(name, password);
        }
        if let Some(auth) = entry.and_then(|entry| entry.auth.as_deref()).filter(|auth| !auth.is_empty()) {
            let wrong = || format!("the auth of {host} is not base64 of NAME:PASSWORD");
            let text = STANDARD.decode(auth).ok().and_then(|bytes| String::from_utf8(bytes).ok()).ok_or_else(wrong)?;
            let (name, password) = text.split_once(':').ok_or_else(wrong)?;
            return Credentials::basic(name, password.trim_end_matches('\0'));
        }
        if self.helpers.contains_key(host) || self.store.is_some() {
            tracing::warn!(
                registry = host,
                "credential helpers of Docker are not run: without {} and {} the registry is asked anonymously",
                USER[0],
                USER[1]
            );
        }
        Ok(Credentials::Anonymous)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str, host: &str) -> Result<Credentials, String> {
        serde_json::from_str::<Docker>(text).unwrap().of(host)
    }

    #[test]
    fn files_of_docker_are_read() {
        let auth = STANDARD.encode("me:pass:word");
        let file = format!(
            r#"{{"auths": {{"a.example": {{"auth": "{auth}"}}, "b.example": {{"identitytoken": "t"}},
            "https://index.docker.io/v1/": {{"username": "me", "password": "pw"}}, "c.example": {{"auth": "{}"}}}},
            "credsStore": "secretservice"}}"#,
            STANDARD.encode("me")
        );
        let Credentials::Basic(value) = of(&file, "a.example").unwrap() else { panic!("basic") };
        assert_eq!(value.to_str().unwrap(), format!("Basic {auth}"));
        assert!(matches!(of(&file, "b.example"), Ok(Credentials::Identity(token)) if token == "t"));
        assert!(matches!(of(&file, "docker.io"), Ok(Credentials::Basic(_))));
        assert!(matches!(of(&file, "d.example"), Ok(Credentials::Anonymous)));
        let told = of(&file, "c.example").unwrap_err();
        assert_eq!(told, "the auth of c.example is not base64 of NAME:PASSWORD");
        assert_eq!(format!("{:?}", of(&file, "a.example")), "Ok(Basic)");
    }
}
