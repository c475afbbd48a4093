//! The cluster's certificate authority, the certificates that it issues, and the key that signs service-account tokens.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};

use crate::layout::Layout;
use crate::network::{API_SERVICE, DOMAIN, HOST, NODE};
use crate::{Error, Result};

/// A certificate of the cluster: for a user of the API server, a server, or both.
struct Subject {
    /// The file's name.
    file: &'static str,
    /// The user, or the server's name.
    name: String,
    /// The user's group.
    group: Option<&'static str>,
    /// The addresses of a server; empty for a client.
    serves: Vec<IpAddr>,
}

/// The users that have a kubeconfig: file, user name, group.
pub(crate) const USERS: &[(&str, &str, Option<&str>)] = &[
    ("admin", "codex-cluster-admin", Some("system:masters")),
    ("kube-controller-manager", "system:kube-controller-manager", None),
    ("kube-scheduler", "system:kube-scheduler", None),
    ("kube-proxy", "system:kube-proxy", None),
    ("kubelet", "system:node:codex-node", Some("system:nodes")),
    ("coredns", "system:coredns", None),
    ("volumes", "codex-cluster-volumes", None),
];

/// Writes the authority and all certificates and keys.
///
/// # Errors
/// If a certificate cannot be made or a file cannot be written.
pub(crate) fn write_all(layout: &Layout) -> Result<()> {
    let authority_key = KeyPair::generate()?;
    let authority = authority();
    let certificate = authority.self_signed(&authority_key)?;
    write(&layout.pki("ca.crt"), &certificate.pem(), 0o644)?;
    write(&layout.pki("ca.key"), &authority_key.serialize_pem(), 0o600)?;
    let issuer = Issuer::new(authority, authority_key);
    for subject in subjects() {
        let key = KeyPair::generate()?;
        let certificate = parameters(&subject)?.signed_by(&key, &issuer)?;
        write(&layout.pki(&format!("{}.crt", subject.file)), &certificate.pem(), 0o644)?;
        write(&layout.pki(&format!("{}.key", subject.file)), &key.serialize_pem(), 0o600)?;
    }
    let tokens = KeyPair::generate()?;
    write(&layout.pki("service-accounts.key"), &tokens.serialize_pem(), 0o600)?;
    write(&layout.pki("service-accounts.pub"), &tokens.public_key_pem(), 0o644)
}

/// Issues a certificate for a server of this machine at the bridge's address. Returns certificate and key in PEM.
///
/// # Errors
/// If the authority's key cannot be read, or the certificate cannot be made.
pub(crate) fn serving(layout: &Layout, name: &str) -> Result<(String, String)> {
    let file = layout.pki("ca.key");
    let text = fs::read_to_string(&file).map_err(Error::io("read", &file))?;
    let issuer = Issuer::new(authority(), KeyPair::from_pem(&text)?);
    let key = KeyPair::generate()?;
    let subject = Subject { file: "", name: name.to_owned(), group: None, serves: vec![HOST.into()] };
    let certificate = parameters(&subject)?.signed_by(&key, &issuer)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

/// Returns the parameters of the authority. They are constant, so certificates issued from its key alone chain to it.
fn authority() -> CertificateParams {
    let mut authority = CertificateParams::default();
    authority.distinguished_name.push(DnType::CommonName, "codex-cluster");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    authority
}

/// Writes a file atomically, with the permissions `mode` from the start.
///
/// # Errors
/// If it cannot be written.
pub(crate) fn write(path: &Path, text: &str, mode: u32) -> Result<()> {
    use std::io::Write as _;
    let fresh = path.with_added_extension(format!("new-{}", std::process::id()));
    let _ = fs::remove_file(&fresh);
    let file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&fresh);
    file.and_then(|mut file| file.write_all(text.as_bytes())).map_err(Error::io("write", &fresh))?;
    fs::rename(&fresh, path).map_err(Error::io("create", path))
}

fn subjects() -> Vec<Subject> {
    let loopback = IpAddr::from([127, 0, 0, 1]);
    let server = |file, name: &str, serves| Subject { file, name: name.to_owned(), group: None, serves };
    let mut all = vec![
        server("etcd", "etcd", vec![loopback]),
        server("apiserver", "kube-apiserver", vec![loopback, HOST.into(), API_SERVICE.into()]),
        server("kubelet-server", NODE, vec![HOST.into()]),
        server("apiserver-etcd", "kube-apiserver", vec![]),
        Subject {
            file: "apiserver-kubelet",
            name: "kube-apiserver-kubelet-client".into(),
            group: Some("system:masters"),
            serves: vec![],
        },
    ];
    let users = USERS.iter();
    all.extend(users.map(|&(file, name, group)| Subject { file, name: name.into(), group, serves: vec![] }));
    all
}

fn parameters(subject: &Subject) -> Result<CertificateParams> {
    let mut names = Vec::new();
    if subject.file == "apiserver" {
        let service = "kubernetes.default.svc";
        names.extend(["localhost", "kubernetes", "kubernetes.default", service].map(String::from));
        names.push(format!("{service}.{DOMAIN}"));
    } else if !subject.serves.is_empty() {
        names.extend(["localhost".to_owned(), subject.name.clone()]);
    }
    let mut parameters = CertificateParams::new(names)?;
    parameters.subject_alt_names.extend(subject.serves.iter().map(|&address| SanType::IpAddress(address)));
    parameters.distinguished_name = rcgen::DistinguishedName::new();
    if let Some(group) = subject.group {
        parameters.distinguished_name.push(DnType::OrganizationName, group);
    }
    parameters.distinguished_name.push(DnType::CommonName, &subject.name);
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    if !subject.serves.is_empty() {
        parameters.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    parameters.use_authority_key_identifier_extension = true;
    Ok(parameters)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn every_user_gets_a_certificate_and_no_key_is_readable_by_others() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::below(folder.path());
        fs::create_dir_all(layout.at("pki")).unwrap();
        write_all(&layout).unwrap();
        for (file, _, _) in USERS {
            assert!(layout.pki(&format!("{file}.crt")).exists());
            let mode = fs::metadata(layout.pki(&format!("{file}.key"))).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        assert!(fs::read_to_string(layout.pki("service-accounts.pub")).unwrap().contains("BEGIN PUBLIC KEY"));
    }

    #[test]
    fn a_serving_certificate_is_issued_from_the_stored_key() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::below(folder.path());
        fs::create_dir_all(layout.at("pki")).unwrap();
        assert!(serving(&layout, "proxy").unwrap_err().to_string().contains("ca.key"));
        write_all(&layout).unwrap();
        let (certificate, key) = serving(&layout, "proxy").unwrap();
        assert!(certificate.contains("BEGIN CERTIFICATE") && key.contains("PRIVATE KEY"));
        assert_ne!(certificate, fs::read_to_string(layout.pki("apiserver.crt")).unwrap());
    }

    #[test]
    fn the_kubelet_is_the_node() {
        let (_, name, _) = USERS.iter().find(|(file, _, _)| *file == "kubelet").unwrap();
        assert_eq!(*name, format!("system:node:{NODE}"));
    }
}
