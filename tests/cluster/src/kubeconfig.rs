//! Self-contained kubeconfigs for the users of the cluster.

use std::fs;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::certificates::{USERS, write};
use crate::layout::Layout;
use crate::network::{HOST, port};
use crate::{Error, Result, privilege};

/// Writes a kubeconfig for every user of the cluster; the administrator's belongs to the user who ran `sudo`.
///
/// # Errors
/// If a file cannot be read or written.
pub(crate) fn write_all(layout: &Layout) -> Result<()> {
    for (user, _, _) in USERS {
        let text = render(
            user,
            &encoded(&layout.pki("ca.crt"))?,
            &encoded(&layout.pki(&format!("{user}.crt")))?,
            &encoded(&layout.pki(&format!("{user}.key")))?,
        );
        write(&layout.kubeconfig(user), &text, 0o600)?;
    }
    if let Some((user, group)) = privilege::caller() {
        let admin = layout.kubeconfig("admin");
        std::os::unix::fs::chown(&admin, Some(user), Some(group)).map_err(Error::io("give away", &admin))?;
    }
    Ok(())
}

fn encoded(path: &Path) -> Result<String> {
    Ok(STANDARD.encode(fs::read(path).map_err(Error::io("read", path))?))
}

fn render(user: &str, authority: &str, certificate: &str, key: &str) -> String {
    format!(
        "apiVersion: v1
kind: Config
current-context: codex-cluster
clusters:
- name: codex-cluster
  cluster:
    server: https://{HOST}:{port}
    certificate-authority-data: {authority}
contexts:
- name: codex-cluster
  context:
    cluster: codex-cluster
    user: {user}
users:
- name: {user}
  user:
    client-certificate-data: {certificate}
    client-key-data: {key}
",
        port = port::API
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_yaml_that_names_one_cluster() {
        let value: serde_yaml::Value = serde_yaml::from_str(&render("admin", "QQ==", "Qg==", "Qw==")).unwrap();
        assert_eq!(value["clusters"][0]["cluster"]["server"].as_str(), Some("https://10.213.0.1:6443"));
        assert_eq!(value["contexts"][0]["context"]["user"], value["users"][0]["name"]);
    }
}
