//! The pure crates depend on no runtime and on no crypto provider, not even through another crate.

#![allow(clippy::unwrap_used)]

use std::process::Command;

/// The crates that compute and do nothing else.
const PURE: [&str; 6] =
    ["codex-crds", "codex-configs", "codex-reports", "codex-verdict", "codex-provenance", "codex-plan"];

/// Parts of crates' names: asynchronous runtimes, HTTP, and everything that signs or encrypts. Hashing (`sha2`) is allowed.
const IMPURE: [&str; 17] = [
    "tokio",
    "async-std",
    "smol",
    "hyper",
    "reqwest",
    "ureq",
    "axum",
    "tower",
    "aws-lc",
    "ring",
    "rustls",
    "openssl",
    "native-tls",
    "sigstore",
    "ecdsa",
    "ed25519",
    "rsa",
];

/// Whether a crate belongs to a family, such as `tokio-util` to `tokio`.
fn belongs(name: &str, family: &str) -> bool {
    name.strip_prefix(family).is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '_']))
}

/// The names of a crate and of everything that it is compiled with, as Cargo resolves it for that crate alone.
fn dependencies(name: &str) -> Vec<String> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["tree", "--locked", "--offline", "--edges", "normal", "--prefix", "none", "--format", "{p}"]);
    cargo.args(["--package", name, "--manifest-path", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")]);
    // Features that other members turn on are not this crate's.
    cargo.env_remove("CARGO_RESOLVER_FEATURE_UNIFICATION");
    let output = cargo.output().unwrap();
    assert!(output.status.success(), "cargo tree failed for {name}: {}", String::from_utf8_lossy(&output.stderr));
    let tree = String::from_utf8(output.stdout).unwrap();
    tree.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

fn impure(names: &[String]) -> Vec<&str> {
    names.iter().map(String::as_str).filter(|name| IMPURE.iter().any(|family| belongs(name, family))).collect()
}

#[test]
fn pure_crates_need_no_runtime_and_no_crypto_provider() {
    for name in PURE {
        let names = dependencies(name);
        assert!(names.contains(&"serde".to_owned()), "the dependencies of {name} were not listed: {names:?}");
        assert!(impure(&names).is_empty(), "{name} depends on {:?}", impure(&names));
    }
}

/// Shows that the list above finds what it looks for.
#[test]
fn the_signing_crate_is_not_pure() {
    let names = dependencies("codex-signing");
    let found = impure(&names);
    assert!(found.contains(&"sigstore") && found.contains(&"aws-lc-rs"), "{found:?}");
}
